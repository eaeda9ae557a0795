//! A LoRA file's content by layer.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::delta::Change;
use super::keys::{Param, split};
use crate::weights::{RawTensor, SafeTensors, StoredType, TensorSource, WeightsError};

/// An open LoRA file. Its tensors are read layer by layer.
#[derive(Debug)]
pub struct LoraFile {
    tensors: SafeTensors,
    layers: BTreeMap<String, BTreeMap<Param, String>>,
    other: Vec<String>,
}

impl LoraFile {
    /// Opens a file; reads its header only.
    ///
    /// # Errors
    /// It cannot be read or is damaged.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let tensors = SafeTensors::open(path)?;
        let mut layers: BTreeMap<String, BTreeMap<Param, String>> = BTreeMap::new();
        let mut other = Vec::new();
        for name in tensors.names() {
            match split(&name) {
                Some((layer, param)) => {
                    layers.entry(layer).or_default().insert(param, name);
                }
                None => other.push(name),
            }
        }
        other.sort_unstable();
        Ok(Self { tensors, layers, other })
    }

    /// The layers that it changes, as it calls them.
    pub fn layers(&self) -> impl Iterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// Tensors that are no part of a change that is known.
    #[must_use]
    pub fn other(&self) -> &[String] {
        &self.other
    }

    /// Reads one layer's change.
    ///
    /// # Errors
    /// A tensor cannot be read, or the layer's tensors do not make a change; the text says why.
    pub(super) fn change(&self, layer: &str) -> Result<Change, WeightsError> {
        let mut found = BTreeMap::new();
        for (&param, name) in self.layers.get(layer).into_iter().flatten() {
            let raw = self.tensors.read(name)?;
            let tensor = match whole_number(&raw) {
                Some(number) if matches!(param, Param::Alpha | Param::Scalar) => Tensor::new(number, &Device::Cpu)?,
                _ => raw.to_tensor(name, DType::F32, &Device::Cpu)?,
            };
            found.insert(param, tensor);
        }
        let damaged = |reason: String| WeightsError::damaged(self.tensors.path(), reason);
        let scale = self.noted_scale(layer);
        Change::new(&found, scale).map_err(|reason| damaged(format!("layer `{layer}` {reason}")))
    }

    /// The scale that diffusers notes in the header (`lora_adapter_metadata`) where PEFT's alpha is not the rank.
    fn noted_scale(&self, layer: &str) -> Option<f64> {
        let text = self.tensors.metadata().get("lora_adapter_metadata")?;
        let all: Value = serde_json::from_str(text).ok()?;
        let (component, module) = layer.split_once('.')?;
        let get = |name: &str| all.get(format!("{component}.{name}")).or_else(|| all.get(name));
        let pattern = |name: &str| {
            let table = get(name)?.as_object()?;
            let fits = |key: &String| module == key || module.ends_with(&format!(".{key}"));
            table
                .iter()
                .find(|(key, _)| fits(key))
                .and_then(|(_, value)| value.as_f64())
        };
        let alpha = pattern("alpha_pattern").or_else(|| get("lora_alpha")?.as_f64())?;
        let rank = pattern("rank_pattern")
            .or_else(|| get("r")?.as_f64())
            .filter(|rank| *rank > 0.0)?;
        let stable = get("use_rslora").and_then(Value::as_bool).unwrap_or(false);
        Some(alpha / if stable { rank.sqrt() } else { rank })
    }
}

/// The one number of a tensor of integers: an alpha that was never made a float before it was saved.
fn whole_number(raw: &RawTensor) -> Option<f32> {
    match raw.stored {
        StoredType::I64 => Some(i64::from_le_bytes(raw.bytes.as_slice().try_into().ok()?) as f32),
        StoredType::I32 => Some(i32::from_le_bytes(raw.bytes.as_slice().try_into().ok()?) as f32),
        _ => None,
    }
}

/// The one number of a tensor.
pub(super) fn number(tensor: &Tensor) -> Option<f64> {
    let numbers: Vec<f32> = tensor.flatten_all().ok()?.to_vec1().ok()?;
    match numbers.as_slice() {
        [one] => Some(f64::from(*one)),
        _ => None,
    }
}
