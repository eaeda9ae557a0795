//! What is wrong with a field, in words for its sender.

/// A field that cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// The field as the caller names it, such as `width` or `loras[1].strength`.
    pub field: String,
    /// Its value and what is allowed.
    pub message: String,
}

impl FieldError {
    /// An error about `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

/// The start of a text that may be long, for messages.
pub fn shortened(text: &str) -> String {
    const MOST: usize = 80;
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    text.chars().take(MOST).chain("...".chars()).collect()
}

pub(super) fn missing(field: &str) -> FieldError {
    FieldError::new(field, "missing; it is required")
}

pub(super) fn not_one_of(field: &str, value: &str, allowed: &str) -> FieldError {
    FieldError::new(field, format!("`{}` is unknown; allowed: {allowed}", shortened(value)))
}

pub(super) fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
