//! CPU kernels for image models: packed products, convolution, attention and norms.
//!
//! Plain slices in, plain slices out; a wrong length is an error and nothing is computed. Activations are row-major with the
//! channels innermost (NHWC, tokens by channels), f32 or bf16; sums and statistics are f32. Work is shared by a pool of threads
//! of the crate's own ([`set_threads`]). The instructions to use are found at run time ([`Isa`]).
//!
//! This is the one crate of the workspace with `unsafe` code: vector loads, assembly for AMX, and disjoint pieces of one output
//! for several threads.

#![warn(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

mod allocator;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod buffer;
mod conv;
mod elementwise;
mod error;
pub mod fresh;
mod gemm;
mod isa;
mod norm;
mod peak;
mod pool;
mod quant;
mod simd;
mod stored;

pub use allocator::{Reusing, WeightMemory};
pub use attention::{AttentionMask, AttentionShape, attention};
pub use buffer::AlignedBytes;
pub use conv::{ConvShape, conv2d};
pub use elementwise::{activate, add, concat, convert, gate, rope, transpose, upsample2x};
pub use error::{KernelError, Result};
pub use gemm::{Activation, Columns, Epilogue, PackedWeights, WeightSource, WeightType, linear, matmul_nt};
pub use isa::{Isa, detected, isa, set_isa};
pub use norm::{NormAffine, group_norm, layer_norm, rms_norm};
pub use peak::peak_gflops;
pub use pool::{parallel_for, set_threads, threads};
pub use quant::{QuantType, QuantWeights, dequantise, quant_linear};
pub use simd::{Element, View, ViewMut};
pub use stored::{Stored, read_stored};
