//! Fixtures of `tests/fixtures/models` (recipe: `make_models.py` there) and how outputs are compared.

use std::path::PathBuf;
use std::rc::Rc;

use candle_core::{DType, Device, Tensor};
use sd_worker::weights::{SafeTensors, TensorSource, Weights};

/// A tiny model: its configuration, weights and cases.
pub struct Model {
    name: &'static str,
    source: Rc<SafeTensors>,
}

impl Model {
    pub fn open(name: &'static str) -> Self {
        let source = SafeTensors::open(&path(&format!("{name}.safetensors"))).unwrap();
        Self {
            name,
            source: Rc::new(source),
        }
    }

    pub fn config(&self) -> String {
        std::fs::read_to_string(path(&format!("{}.json", self.name))).unwrap()
    }

    pub fn weights(&self, dtype: DType) -> Weights {
        Weights::new(self.source.clone(), Device::Cpu, dtype)
    }

    pub fn source(&self) -> Rc<dyn TensorSource> {
        self.source.clone()
    }

    pub fn has(&self, key: &str) -> bool {
        self.source.describe(key).is_some()
    }

    /// A tensor of the file, as `f32`.
    pub fn tensor(&self, key: &str) -> Tensor {
        self.source
            .read(key)
            .unwrap()
            .to_tensor(key, DType::F32, &Device::Cpu)
            .unwrap()
    }

    /// An input or output of its case.
    pub fn case(&self, key: &str) -> Tensor {
        self.tensor(&format!("case.{key}"))
    }
}

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/models")
        .join(file)
}

pub fn numbers(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// Largest absolute difference over the largest absolute value of `expected`.
pub fn worst(found: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(found.dims(), expected.dims());
    let (found, expected) = (numbers(found), numbers(expected));
    let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    // A NaN must not slip through a maximum.
    apart.fold(0f32, |most, x| if x.is_nan() { f32::INFINITY } else { most.max(x) }) / largest
}

pub fn close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    let worst = worst(found, expected);
    assert!(worst <= tolerance, "{what}: {worst} apart, {tolerance} allowed");
}

/// Peak signal to noise ratio, in dB, against the largest absolute value of `expected`.
pub fn psnr(found: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(found.dims(), expected.dims());
    let (found, expected) = (numbers(found), numbers(expected));
    let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    let squares: f32 = found.iter().zip(&expected).map(|(a, b)| (a - b) * (a - b)).sum();
    10.0 * (largest * largest * expected.len() as f32 / squares).log10()
}
