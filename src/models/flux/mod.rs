//! FLUX.1's transformer: double blocks (text and image side by side), then single blocks over both, as diffusers'
//! `FluxTransformer2DModel` names and computes them.

mod attention;
mod block_cache;
mod config;
mod double;
mod embed;
mod single;
mod transformer;

pub use block_cache::BlockCache;
pub use config::FluxConfig;
pub use double::DoubleBlock;
pub use embed::{TimeTextEmbed, positions, rope_table};
pub use single::SingleBlock;
pub use transformer::{FluxInput, FluxTransformer};
