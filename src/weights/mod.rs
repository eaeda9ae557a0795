//! Where tensors come from, and how a model asks for them by name.

mod builder;
mod error;
mod source;

pub use builder::Weights;
pub use error::WeightsError;
pub use source::{RawTensor, StoredType, TensorSource};
