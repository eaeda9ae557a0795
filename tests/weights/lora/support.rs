//! Layers to patch, and folders of LoRAs.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use sd_worker::domain::request::LoraRef;
use sd_worker::weights::lora::{Layers, LoraDir, Loras};
use sd_worker::weights::{Folder, LayerTable, Precision, SlotLayout, WeightSlot};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tempfile::TempDir;

use crate::support::{Given, safetensors, write};

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The layers of a component of the tiny Stable Diffusion 1 pipeline, as the models enter them.
pub fn table(component: &str, dtype: DType) -> Rc<LayerTable> {
    let folder = Folder::open(&fixtures().join("pipelines/sd1"), Precision::Full).unwrap();
    let source = folder.tensors_in(component).unwrap();
    let table = LayerTable::default();
    for name in source.names() {
        let raw = source.read(&name).unwrap();
        if let (Some(layer), true) = (name.strip_suffix(".weight"), raw.shape.len() > 1) {
            let layout = if raw.shape.len() == 4 {
                SlotLayout::ConvNhwc
            } else {
                SlotLayout::Exact
            };
            let weight = raw.to_tensor(&name, dtype, &Device::Cpu).unwrap();
            table.insert(
                layer.to_owned(),
                Rc::new(WeightSlot::of_dense(&weight, layout).unwrap()),
            );
        }
    }
    Rc::new(table)
}

pub fn tiny(dtype: DType) -> Layers {
    Layers {
        denoiser: table("unet", dtype),
        text_encoder: Some(table("text_encoder", dtype)),
        text_encoder_2: None,
    }
}

/// Layers of the given shapes with weights of small numbers.
pub fn made(shapes: &[(&str, &[usize])], quantised: bool) -> Layers {
    let table = LayerTable::default();
    for (name, shape) in shapes {
        let count: usize = shape.iter().product();
        let numbers: Vec<f32> = (0..count).map(|i| ((i * 29 % 83) as f32 - 41.0) / 41.0).collect();
        let weight = Tensor::from_vec(numbers, *shape, &Device::Cpu).unwrap();
        let slot = if quantised {
            WeightSlot::quantised(QTensor::quantize(&weight, GgmlDType::Q8_0).unwrap(), DType::F32)
        } else {
            let layout = if shape.len() == 4 {
                SlotLayout::ConvNhwc
            } else {
                SlotLayout::Exact
            };
            WeightSlot::of_dense(&weight, layout).unwrap()
        };
        table.insert((*name).to_owned(), Rc::new(slot));
    }
    Layers {
        denoiser: Rc::new(table),
        text_encoder: None,
        text_encoder_2: None,
    }
}

/// What the layer computes with, as `f32` in the file's layout.
pub fn held(slot: &WeightSlot) -> Vec<f32> {
    let weight = slot.dense().unwrap().unwrap();
    let weight = if weight.rank() == 4 {
        weight.permute((0, 3, 1, 2)).unwrap()
    } else {
        weight
    };
    weight
        .to_dtype(DType::F32)
        .unwrap()
        .contiguous()
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

pub fn every(layers: &Layers) -> BTreeMap<String, Vec<f32>> {
    let mut all = BTreeMap::new();
    let tables = [
        ("unet", Some(&layers.denoiser)),
        ("text_encoder", layers.text_encoder.as_ref()),
    ];
    for (component, table) in tables {
        for name in table.iter().flat_map(|table| table.names()) {
            all.insert(format!("{component}.{name}"), held(&table.unwrap().get(&name).unwrap()));
        }
    }
    all
}

pub fn named(name: &str, strength: f32) -> LoraRef {
    LoraRef {
        name: name.to_owned(),
        strength,
    }
}

pub fn golden() -> Loras {
    Loras::new(Some(LoraDir::new(fixtures().join("weights"))))
}

/// A folder with one LoRA of these tensors, named `x`.
pub fn folder_with(tensors: &[Given]) -> (TempDir, Loras) {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "x.safetensors", safetensors(tensors));
    let loras = Loras::new(Some(LoraDir::new(root.path().to_owned())));
    (root, loras)
}

/// The change of one layer of `made`, row by row.
pub fn changes(layers: &Layers, before: &BTreeMap<String, Vec<f32>>, name: &str) -> Vec<f32> {
    let after = held(&layers.denoiser.get(name).unwrap());
    after
        .iter()
        .zip(&before[&format!("unet.{name}")])
        .map(|(a, b)| a - b)
        .collect()
}
