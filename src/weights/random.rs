//! Made-up weights of real shapes: what `bench` loads, so that nothing needs to be downloaded.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use serde_json::Value;

use super::{Component, ModelFiles, Part, RawTensor, StoredType, TensorSource, TokenizerFiles, WeightsError};
use crate::domain::model::Family;

/// Distinct numbers of a tensor; they repeat after that.
const PATTERN: usize = 1 << 16;

/// Tensors of any name and of the shape that the model asks for, with numbers that keep activations in range.
pub struct RandomTensors {
    /// Standard normal values.
    normal: Vec<f32>,
    stored: StoredType,
    /// Blocks of each number of rows that repeat, by their bytes.
    blocks: RefCell<HashMap<usize, Rc<Vec<u8>>>>,
    expected: RefCell<HashMap<String, Vec<usize>>>,
}

impl RandomTensors {
    /// Tensors that are stored as `stored`. With a GGUF format only matrices are, the rest is `F32`.
    #[must_use]
    pub fn new(stored: StoredType) -> Self {
        Self {
            normal: normal(PATTERN),
            stored,
            blocks: RefCell::default(),
            expected: RefCell::default(),
        }
    }

    fn stored_of(&self, name: &str, shape: &[usize]) -> StoredType {
        match self.stored {
            StoredType::Ggml(format)
                if shape.len() != 2 || !name.ends_with(".weight") || !shape[1].is_multiple_of(format.block_size()) =>
            {
                StoredType::F32
            }
            stored => stored,
        }
    }

    /// Scale and shift that a tensor of this name should have.
    fn spread(name: &str, shape: &[usize]) -> (f32, f32) {
        let inputs: usize = shape.iter().skip(1).product();
        match shape.len() {
            0 | 1 if name.ends_with("weight") || name.ends_with("scale") => (0.0, 1.0),
            0 | 1 => (0.0, 0.0),
            _ => (0.7 / (inputs as f32).sqrt(), 0.0),
        }
    }

    fn dense(&self, name: &str, shape: &[usize], stored: StoredType) -> Vec<u8> {
        let count: usize = shape.iter().product();
        let (scale, shift) = Self::spread(name, shape);
        let numbers = self.normal.iter().take(count).map(|v| v * scale + shift);
        let pattern: Vec<u8> = match stored {
            StoredType::Bf16 => numbers.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
            StoredType::F16 => numbers.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
            _ => numbers.flat_map(f32::to_le_bytes).collect(),
        };
        let width = if matches!(stored, StoredType::Bf16 | StoredType::F16) {
            2
        } else {
            4
        };
        repeat(&pattern, count * width)
    }

    /// Some rows are quantised, the others repeat them.
    fn quantised(&self, shape: &[usize], format: GgmlDType) -> Result<Vec<u8>, WeightsError> {
        let width = shape[1];
        let rows = (PATTERN / width).clamp(1, shape[0]);
        let pattern = match self.blocks.borrow().get(&width) {
            Some(pattern) => Some(Rc::clone(pattern)),
            None => None,
        };
        let pattern = match pattern {
            Some(pattern) => pattern,
            None => {
                let scale = 0.7 / (width as f32).sqrt();
                let numbers: Vec<f32> = self
                    .normal
                    .iter()
                    .cycle()
                    .take(rows * width)
                    .map(|v| v * scale)
                    .collect();
                let tensor = Tensor::from_vec(numbers, (rows, width), &Device::Cpu)?;
                let made = Rc::new(QTensor::quantize(&tensor, format)?.data()?.into_owned());
                self.blocks.borrow_mut().insert(width, Rc::clone(&made));
                made
            }
        };
        Ok(repeat(
            &pattern,
            shape[0] * width / format.block_size() * format.type_size(),
        ))
    }
}

impl TensorSource for RandomTensors {
    fn names(&self) -> Vec<String> {
        self.expected.borrow().keys().cloned().collect()
    }

    fn expect(&self, name: &str, shape: &[usize]) {
        self.expected.borrow_mut().insert(name.to_owned(), shape.to_vec());
    }

    fn describe(&self, name: &str) -> Option<(Vec<usize>, StoredType)> {
        let shape = self.expected.borrow().get(name)?.clone();
        let stored = self.stored_of(name, &shape);
        Some((shape, stored))
    }

    fn read(&self, name: &str) -> Result<RawTensor, WeightsError> {
        let missing = || WeightsError::Missing { name: name.to_owned() };
        let (shape, stored) = self.describe(name).ok_or_else(missing)?;
        let bytes = match stored {
            StoredType::Ggml(format) => self.quantised(&shape, format)?,
            stored => self.dense(name, &shape, stored),
        };
        Ok(RawTensor { stored, shape, bytes })
    }
}

impl ModelFiles {
    /// A model of one of the [`architectures`] with made-up weights: those of the denoiser stored as `denoiser`, all
    /// others as `rest`; T5 as `Q8_0` beside a quantised denoiser.
    ///
    /// # Errors
    /// There is no such architecture.
    pub fn random(shape: &str, denoiser: StoredType, rest: StoredType) -> Result<Self, WeightsError> {
        let unknown = || WeightsError::NoPart {
            place: shape.into(),
            what: format!("a shape of this name; there are {}", architectures().join(", ")),
        };
        let (_, family, text) = ARCHITECTURES
            .iter()
            .find(|(name, ..)| *name == shape)
            .ok_or_else(unknown)?;
        let tree: Value =
            serde_json::from_str(text).map_err(|e| WeightsError::damaged(shape.as_ref(), e.to_string()))?;
        let mut parts = BTreeMap::new();
        for &component in Component::ALL {
            if let Some(config) = tree.get(component.folder()) {
                let stored = match component {
                    Component::Unet | Component::Transformer => denoiser,
                    // Whoever runs a quantised FLUX has T5 quantised too, but gently.
                    Component::TextEncoder2 if family.is_flux() && matches!(denoiser, StoredType::Ggml(_)) => {
                        StoredType::Ggml(GgmlDType::Q8_0)
                    }
                    Component::Vae | Component::TextEncoder | Component::TextEncoder2 => rest,
                };
                let tensors = Rc::new(RandomTensors::new(stored));
                let config = config.to_string();
                parts.insert(component, Part { config, tensors });
            }
        }
        Ok(Self {
            source: "random weights".to_owned(),
            family: *family,
            model_index: "{}".to_owned(),
            scheduler: tree["scheduler"].to_string(),
            tokenizer: Some(TokenizerFiles::BuiltInClip),
            tokenizer_2: parts
                .contains_key(&Component::TextEncoder2)
                .then_some(TokenizerFiles::BuiltInClip),
            quantization: super::gguf::quantization_of(denoiser),
            parts,
        })
    }
}

const ARCHITECTURES: &[(&str, Family, &str)] = &[
    (
        "sd15",
        Family::Sd1,
        include_str!("../../config/architectures/sd15.json"),
    ),
    (
        "sd21",
        Family::Sd2,
        include_str!("../../config/architectures/sd21.json"),
    ),
    (
        "sdxl",
        Family::Sdxl,
        include_str!("../../config/architectures/sdxl.json"),
    ),
    (
        "flux-schnell",
        Family::FluxSchnell,
        include_str!("../../config/architectures/flux-schnell.json"),
    ),
    (
        "flux-dev",
        Family::FluxDev,
        include_str!("../../config/architectures/flux-dev.json"),
    ),
];

/// Names of the shapes that [`ModelFiles::random`] knows.
#[must_use]
pub fn architectures() -> Vec<&'static str> {
    ARCHITECTURES.iter().map(|(name, ..)| *name).collect()
}

fn repeat(pattern: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let part = pattern.len().min(len - bytes.len());
        bytes.extend_from_slice(&pattern[..part]);
    }
    bytes
}

/// Standard normal values, near enough: sums of twelve uniform numbers of a xorshift.
fn normal(count: usize) -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..count)
        .map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_have_the_shape_and_spread_that_is_asked_for() {
        for stored in [
            StoredType::F32,
            StoredType::Bf16,
            StoredType::Ggml(GgmlDType::Q4_0),
            StoredType::Ggml(GgmlDType::Q8_0),
        ] {
            let source = RandomTensors::new(stored);
            assert_eq!(source.describe("a.weight"), None);
            source.expect("a.weight", &[96, 1024]);
            let (shape, found) = source.describe("a.weight").unwrap();
            assert_eq!((shape.as_slice(), found), (&[96, 1024][..], stored));
            let raw = source.read("a.weight").unwrap();
            let numbers = raw.to_f32("a.weight").unwrap();
            assert_eq!(numbers.len(), 96 * 1024);
            let deviation = (numbers.iter().map(|v| v * v).sum::<f32>() / numbers.len() as f32).sqrt();
            assert!((deviation * 32.0 - 0.7).abs() < 0.02, "{stored:?}: {deviation}");
        }
    }

    #[test]
    fn vectors_are_neutral_and_never_quantised() {
        let source = RandomTensors::new(StoredType::Ggml(GgmlDType::Q4_0));
        source.expect("norm.weight", &[64]);
        source.expect("norm.bias", &[64]);
        let read = |name| source.read(name).unwrap().to_f32(name).unwrap();
        assert!(read("norm.weight").iter().all(|v| *v == 1.0));
        assert!(read("norm.bias").iter().all(|v| *v == 0.0));
    }

    #[test]
    fn every_architecture_reads() {
        for name in architectures() {
            let files = ModelFiles::random(name, StoredType::F32, StoredType::F32).unwrap();
            assert!(files.has(Component::Vae) && files.has(Component::TextEncoder), "{name}");
        }
        let error = ModelFiles::random("sd9", StoredType::F32, StoredType::F32)
            .err()
            .unwrap();
        assert!(error.to_string().contains("sd15"), "{error}");
    }
}
