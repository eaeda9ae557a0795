//! What the models' `config.json` files have in common.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::ModelError;

/// One value for every block, or one for each.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum PerBlock<T> {
    /// The same everywhere.
    One(T),
    /// One for each block.
    Each(Vec<T>),
}

impl<T: Clone> PerBlock<T> {
    /// The values of `count` blocks; `None` if there are not that many.
    pub fn spread(&self, count: usize) -> Option<Vec<T>> {
        match self {
            Self::One(value) => Some(vec![value.clone(); count]),
            Self::Each(values) => (values.len() == count).then(|| values.clone()),
        }
    }
}

/// Reads the text of a `config.json`.
pub(super) fn read<T: DeserializeOwned>(model: &'static str, text: &str) -> Result<T, ModelError> {
    serde_json::from_str(text).map_err(|source| ModelError::Json { model, source })
}

/// Refuses a field whose value is not supported, unless `fine`.
pub(super) fn require(
    fine: bool,
    model: &'static str,
    field: &'static str,
    value: impl std::fmt::Debug,
    allowed: &'static str,
) -> Result<(), ModelError> {
    if fine {
        return Ok(());
    }
    Err(ModelError::Unsupported {
        model,
        field,
        value: format!("{value:?}"),
        allowed,
    })
}
