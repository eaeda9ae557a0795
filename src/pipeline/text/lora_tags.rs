//! `<lora:name:0.8>` tags: A1111's way to name a LoRA inside the prompt.

use crate::domain::request::LoraRef;

/// A prompt without its tags.
#[derive(Clone, Debug, PartialEq)]
pub struct Untagged {
    /// What is left of the prompt.
    pub text: String,
    /// The LoRAs that the tags named, in order; strength 1 where a tag gives none.
    pub loras: Vec<LoraRef>,
}

/// A tag that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// The strength is no number.
    #[error("`{0}`: the strength must be a number, for example <lora:name:0.8>")]
    Strength(String),
    /// The tag asks for something other than a LoRA.
    #[error("`{0}`: only <lora:name:strength> tags are supported")]
    Kind(String),
}

/// Takes `<lora:name>`, `<lora:name:strength>` and `<lyco:...>` tags out of a prompt.
///
/// # Errors
/// A tag has a strength that is no number, separate strengths for text encoder and UNet, or names another kind of
/// network. Angle brackets around anything without a `word:` at the start are text.
pub fn extract(prompt: &str) -> Result<Untagged, TagError> {
    let mut text = String::with_capacity(prompt.len());
    let mut loras = Vec::new();
    let mut rest = prompt;
    while let Some(open) = rest.find('<') {
        text.push_str(&rest[..open]);
        match tag_at(&rest[open..]) {
            Some((kind, arguments, used)) => {
                loras.push(read(kind, arguments, &rest[open..open + used])?);
                rest = &rest[open + used..];
            }
            None => {
                text.push('<');
                rest = &rest[open + 1..];
            }
        }
    }
    text.push_str(rest);
    Ok(Untagged { text, loras })
}

/// Kind, arguments and length of the tag that `text` starts with.
fn tag_at(text: &str) -> Option<(&str, &str, usize)> {
    let close = text.find('>')?;
    let (kind, arguments) = text[1..close].split_once(':')?;
    let is_word = !kind.is_empty() && kind.chars().all(|c| c.is_alphanumeric() || c == '_');
    (is_word && !arguments.is_empty()).then_some((kind, arguments, close + 1))
}

fn read(kind: &str, arguments: &str, tag: &str) -> Result<LoraRef, TagError> {
    if kind != "lora" && kind != "lyco" {
        return Err(TagError::Kind(tag.to_owned()));
    }
    let mut parts = arguments.split(':');
    let name = parts.next().unwrap_or_default().trim().to_owned();
    let mut strength = 1.0;
    for (index, part) in parts.enumerate() {
        let number = part
            .trim()
            .strip_prefix("te=")
            .or_else(|| part.trim().strip_prefix("unet="))
            .unwrap_or(part);
        let number: f32 = number.trim().parse().map_err(|_| TagError::Strength(tag.to_owned()))?;
        if !number.is_finite() || (index > 0 && number != strength) {
            return Err(TagError::Strength(tag.to_owned()));
        }
        strength = number;
    }
    Ok(LoraRef { name, strength })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lora(name: &str, strength: f32) -> LoraRef {
        LoraRef {
            name: name.to_owned(),
            strength,
        }
    }

    #[test]
    fn tags_leave_the_text() {
        let found = extract("a cat <lora:fur:0.8>, red<lora:sub/ink> <lyco:x:-1>").unwrap();
        assert_eq!(found.text, "a cat , red ");
        assert_eq!(found.loras, [lora("fur", 0.8), lora("sub/ink", 1.0), lora("x", -1.0)]);
    }

    #[test]
    fn other_angle_brackets_are_text() {
        for prompt in ["a < b", "i <3 you > me", "<b>bold</b>", "<lora:>", "<", "<lora"] {
            assert_eq!(
                extract(prompt).unwrap(),
                Untagged {
                    text: prompt.to_owned(),
                    loras: vec![]
                }
            );
        }
    }

    #[test]
    fn what_cannot_be_followed_is_refused_by_name() {
        let error = extract("<lora:a:strong>").unwrap_err();
        assert!(error.to_string().contains("<lora:a:strong>"), "{error}");
        assert_eq!(extract("<lora:a:0.5:0.5>").unwrap().loras, [lora("a", 0.5)]);
        assert!(matches!(extract("<lora:a:0.5:0.9>"), Err(TagError::Strength(_))));
        assert!(matches!(extract("<lora:a:nan>"), Err(TagError::Strength(_))));
        assert!(matches!(extract("<hypernet:a:1>"), Err(TagError::Kind(_))));
    }
}
