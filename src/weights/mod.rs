//! Where tensors come from, and how a model asks for them by name.
//!
//! [`ModelFiles`] is a whole model's files by component, whatever form they have; each component's tensors are a
//! [`TensorSource`] that answers to diffusers' names, and [`Weights`] is what a model's constructor asks.

mod beside;
mod blocks;
mod builder;
mod built_in;
mod clip_names;
mod convert;
mod ema_names;
mod error;
mod finite;
mod flux_names;
mod folder;
mod gguf;
mod gguf_header;
mod header;
pub mod hub;
mod layers;
mod located;
pub mod lora;
mod mapped;
mod model_files;
mod open;
mod presets;
mod random;
mod recognise;
mod safetensors;
mod scaled_fp8;
mod sd_names;
mod shapes;
mod single_file;
mod slot;
mod source;
mod storage;
mod t5_names;
mod tree;

pub use builder::Weights;
pub use error::{LoadResult, WeightsError, without_backtrace};
pub use flux_names::{has_original_flux, original_flux};
pub use folder::Folder;
pub use gguf::Gguf;
pub use layers::LayerTable;
pub use located::Located;
pub use mapped::{Layout, Mapped, Piece};
pub use model_files::{Component, ModelFiles, Part, Precision, TokenizerFiles};
pub use open::OpenOptions;
pub use presets::{HubRef, ModelSpec, PartialDefaults, Place, family_defaults, preset_names, t5_tokenizer};
pub use random::{RandomTensors, architectures};
pub use safetensors::SafeTensors;
pub use slot::{Factors, Side, SlotLayout, Weight, WeightSlot};
pub use source::{NumbersMut, RawTensor, StoredType, TensorSource};
pub use t5_names::llama_cpp_t5;
pub use tree::Tree;
