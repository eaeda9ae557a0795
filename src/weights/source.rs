//! A place that tensors are read from by name.

use candle_core::quantized::GgmlDType;

use super::WeightsError;

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// IEEE single.
    F32,
    /// IEEE double.
    F64,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit float, 4 exponent bits.
    F8E4M3,
    /// 8-bit float, 5 exponent bits.
    F8E5M2,
    /// 64-bit integer (position ids in old files).
    I64,
    /// 32-bit integer.
    I32,
    /// A block format of GGUF.
    Ggml(GgmlDType),
}

/// One tensor as its file has it: little-endian numbers, row-major.
#[derive(Clone, Debug)]
pub struct RawTensor {
    /// How the numbers are stored.
    pub stored: StoredType,
    /// Shape, outermost first (GGUF's reversed order is already turned round).
    pub shape: Vec<usize>,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A source of tensors by name: a safetensors file or a folder's shards, a GGUF file, a single-file checkpoint seen
/// through its key map, or tensors in memory.
///
/// Names are the ones that the model code asks for (diffusers' names); a source with other names inside maps them.
pub trait TensorSource {
    /// Every name it has, in no particular order.
    fn names(&self) -> Vec<String>;

    /// Shape and stored type, without reading the numbers; `None` if there is no such tensor.
    fn describe(&self, name: &str) -> Option<(Vec<usize>, StoredType)>;

    /// Reads one tensor, straight from its range into one buffer.
    ///
    /// # Errors
    /// [`WeightsError::Missing`], or the reading failed.
    fn read(&self, name: &str) -> Result<RawTensor, WeightsError>;
}
