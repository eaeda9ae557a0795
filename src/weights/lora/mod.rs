//! LoRAs: small files that change a model's weights for one job.
//!
//! [`LoraDir`] finds them by name below one folder, [`LoraFile`] reads any of the formats in use, and [`Loras`] patches
//! the layers of a loaded model and gives the original weights back bit by bit. Weights of linear layers that are
//! quantised (or too many to copy) stay as they are: the change is computed beside them.

mod delta;
mod dir;
mod error;
mod file;
mod keys;
mod lengths;
mod patcher;
mod rows;
mod sgm_names;
mod targets;

pub use dir::LoraDir;
pub use error::LoraError;
pub use file::LoraFile;
pub use patcher::{Applied, Loras};
pub use targets::Layers;
