//! What the FLUX tests share: fixtures and how two tensors are compared.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use sd_worker::weights::{SafeTensors, TensorSource};
use serde_json::Value;

/// A file of the FLUX fixtures.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/flux")
        .join(name)
}

/// A JSON file of the fixtures.
pub fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(path(name)).unwrap()).unwrap()
}

/// A safetensors file of the fixtures.
pub fn tensors(name: &str) -> SafeTensors {
    SafeTensors::open(&path(name)).unwrap()
}

/// One tensor of it, as `f32`.
pub fn fixture(file: &str, name: &str) -> Tensor {
    tensors(file)
        .read(name)
        .unwrap()
        .to_tensor(name, DType::F32, &Device::Cpu)
        .unwrap()
}

/// Largest absolute difference over the largest absolute value of `expected`.
pub fn worst(found: &Tensor, expected: &Tensor) -> f32 {
    let largest = |x: Tensor| {
        x.abs()
            .unwrap()
            .flatten_all()
            .unwrap()
            .max(0)
            .unwrap()
            .to_scalar::<f32>()
            .unwrap()
    };
    let found = found.to_dtype(DType::F32).unwrap();
    largest((found - expected).unwrap()) / largest(expected.clone())
}

/// Fails where two tensors are further apart than `tolerance` (see [`worst`]).
pub fn close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let worst = worst(found, expected);
    assert!(worst <= tolerance, "{what}: {worst} apart, {tolerance} allowed");
}
