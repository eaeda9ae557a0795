//! The few operations that models are made of. Activations are NHWC (`B, H, W, C`) or tokens (`B, N, C`).
//!
//! Models call these and no tensor library of their own in the hot path, so that a device's fast kernels need only be put
//! behind these names. Layers own their weights and take activations of the compute type (`F32`, `BF16`, `F16`); sums of
//! norms and softmax are `f32` whatever that is.

mod activation;
mod attention;
mod conv;
mod cpu;
mod embedding;
#[cfg(feature = "flash-attn")]
mod flash;
mod linear;
mod norm;
mod resample;
mod rope;
mod timestep;

pub use activation::{Activation, geglu, gelu_erf, gelu_tanh, quick_gelu, silu};
pub use attention::{Mask, attention, softmax};
pub use conv::{Conv2d, ConvShape, Padding};
pub use cpu::{Packing, pack, plainly, unpack};
pub use embedding::Embedding;
pub use linear::{Bias, GegluLinear, Linear};
pub use norm::{GroupNorm, LayerNorm, RmsNorm, modulate};
pub use resample::{concat, upsample_nearest, upsample_nearest2x};
pub use rope::{RopeTable, rope};
pub use timestep::TimestepEmbedding;
