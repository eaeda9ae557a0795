//! What the FLUX tests share: fixtures and how two tensors are compared.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use sd_worker::weights::{SafeTensors, TensorSource};
use serde_json::Value;
use tempfile::TempDir;

/// A file of the FLUX fixtures.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/flux")
        .join(name)
}

/// One of the models as a diffusers folder: what the three have in common, and what is its own.
pub fn folder(model: &str) -> TempDir {
    let target = tempfile::tempdir().unwrap();
    for part in ["shared", model] {
        copy(&path(part), target.path());
    }
    target
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
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
