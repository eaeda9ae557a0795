//! Which layers of a loaded model a LoRA file's layers mean.

use std::collections::HashMap;
use std::rc::Rc;

use super::rows::Rows;
use super::sgm_names::sgm_layers;
use crate::weights::flux_names::parts_of_layer;
use crate::weights::{LayerTable, WeightSlot};

/// The layers of a loaded model, by component.
#[derive(Clone, Debug)]
pub struct Layers {
    /// UNet or transformer.
    pub denoiser: Rc<LayerTable>,
    /// CLIP.
    pub text_encoder: Option<Rc<LayerTable>>,
    /// OpenCLIP bigG or T5.
    pub text_encoder_2: Option<Rc<LayerTable>>,
}

impl Layers {
    /// Gives every layer its original weight back.
    pub fn restore(&self) {
        self.tables().for_each(|table| table.restore_all());
    }

    /// Whether these are the very same layers.
    pub(super) fn same(&self, other: &Self) -> bool {
        let (ours, theirs): (Vec<_>, Vec<_>) = (self.tables().collect(), other.tables().collect());
        ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| Rc::ptr_eq(a, b))
    }

    fn tables(&self) -> impl Iterator<Item = &Rc<LayerTable>> {
        [
            Some(&self.denoiser),
            self.text_encoder.as_ref(),
            self.text_encoder_2.as_ref(),
        ]
        .into_iter()
        .flatten()
    }
}

/// What one layer of a LoRA file changes.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The model's layers, whose rows follow one another in the file's (one, but for fused projections).
    pub slots: Vec<Slot>,
    /// First and second half of the file's rows change places.
    pub halves_swapped: bool,
    /// Whether it belongs to a text encoder.
    pub is_text: bool,
}

impl Target {
    /// Whether it is the layer that the latents enter by, which is wider in models that are given a picture beside them.
    pub fn is_entrance(&self) -> bool {
        let entrance = |slot: &Slot| matches!(slot.name.as_str(), "denoiser.conv_in" | "denoiser.x_embedder");
        self.slots.iter().all(entrance)
    }

    /// Which of the file's rows belong to one of its slots.
    pub fn rows(&self, index: usize) -> Rows {
        let height = |slot: &Slot| slot.weight.shape().first().copied().unwrap_or(0);
        Rows {
            start: self.slots.iter().take(index).map(height).sum(),
            count: self.slots.get(index).map_or(0, height),
            total: self.slots.iter().map(height).sum(),
            halves_swapped: self.halves_swapped,
        }
    }
}

/// A layer of the model.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// Component and diffusers name: unique in the model.
    pub name: String,
    /// Its weight.
    pub weight: Rc<WeightSlot>,
}

/// Finds targets by any of the names in use.
pub(super) struct Targets {
    denoiser: HashMap<String, Target>,
    text_encoder: HashMap<String, Target>,
    text_encoder_2: HashMap<String, Target>,
}

#[derive(Clone, Copy)]
enum Part {
    Denoiser,
    First,
    Second,
}

/// Beginnings of names, flattened; the longer ones first where one begins another.
const PREFIXES: &[(&str, Part)] = &[
    ("lora_te1_", Part::First),
    ("lora_te2_", Part::Second),
    ("lora_te3_", Part::Second),
    ("lora_te_", Part::First),
    ("text_encoder_2_", Part::Second),
    ("text_encoder_", Part::First),
    ("text_encoders_clip_l_transformer_", Part::First),
    ("text_encoders_clip_g_transformer_", Part::Second),
    ("text_encoders_t5xxl_transformer_", Part::Second),
    ("lora_unet_", Part::Denoiser),
    ("lora_transformer_", Part::Denoiser),
    ("lycoris_", Part::Denoiser),
    ("unet_", Part::Denoiser),
    ("transformer_", Part::Denoiser),
    ("diffusion_model_", Part::Denoiser),
    ("model_diffusion_model_", Part::Denoiser),
    ("", Part::Denoiser),
    ("", Part::First),
    ("", Part::Second),
];

impl Targets {
    /// The names of a model's layers.
    pub fn new(layers: &Layers) -> Self {
        let text = |table: &Option<Rc<LayerTable>>, component: &str| {
            table
                .as_ref()
                .map(|table| text_names(table, component))
                .unwrap_or_default()
        };
        Self {
            denoiser: denoiser_names(&layers.denoiser),
            text_encoder: text(&layers.text_encoder, "text_encoder"),
            text_encoder_2: text(&layers.text_encoder_2, "text_encoder_2"),
        }
    }

    /// What a layer of a file, as the file calls it, changes.
    pub fn find(&self, layer: &str) -> Option<&Target> {
        let flat = flat(layer).replace("_processor_", "_");
        let flat = flat.strip_prefix("base_model_model_").unwrap_or(&flat);
        PREFIXES.iter().find_map(|(prefix, part)| {
            let rest = flat.strip_prefix(prefix)?;
            match part {
                Part::Denoiser => self.denoiser.get(rest),
                Part::First => self.text_encoder.get(rest),
                Part::Second => self.text_encoder_2.get(rest),
            }
        })
    }
}

/// Names as kohya's scripts write them: without dots.
fn flat(name: &str) -> String {
    name.replace('.', "_")
}

fn slot(table: &LayerTable, component: &str, name: &str) -> Option<Slot> {
    Some(Slot {
        name: format!("{component}.{name}"),
        weight: table.get(name)?,
    })
}

fn text_names(table: &LayerTable, component: &str) -> HashMap<String, Target> {
    let mut found = HashMap::new();
    for name in table.names() {
        let Some(slot) = slot(table, component, &name) else {
            continue;
        };
        let target = Target {
            slots: vec![slot],
            halves_swapped: false,
            is_text: true,
        };
        // Newer transformers leave `text_model` out.
        if let Some(short) = name.strip_prefix("text_model.") {
            found.insert(flat(short), target.clone());
        }
        // Early diffusers called the projections as its UNet's.
        for (todays, early) in [
            ("q_proj", "to_q"),
            ("k_proj", "to_k"),
            ("v_proj", "to_v"),
            ("out_proj", "to_out"),
        ] {
            if let Some(attention) = name.strip_suffix(todays).filter(|rest| rest.ends_with(".self_attn.")) {
                found.insert(flat(&format!("{attention}{early}")), target.clone());
            }
        }
        found.insert(flat(&name), target);
    }
    found
}

fn denoiser_names(table: &LayerTable) -> HashMap<String, Target> {
    const COMPONENT: &str = "denoiser";
    let names = table.names();
    let mut found = HashMap::new();
    let mut enter = |theirs: &str, ours: &[String], halves_swapped: bool| {
        let slots: Option<Vec<Slot>> = ours.iter().map(|name| slot(table, COMPONENT, name)).collect();
        if let Some(slots) = slots.filter(|slots| !slots.is_empty()) {
            found.insert(
                flat(theirs),
                Target {
                    slots,
                    halves_swapped,
                    is_text: false,
                },
            );
        }
    };
    for name in &names {
        enter(name, std::slice::from_ref(name), false);
        // Attention processors of early diffusers call the last layer `to_out`.
        if let Some(short) = name.strip_suffix(".to_out.0") {
            enter(&format!("{short}.to_out"), std::slice::from_ref(name), false);
        }
    }
    for (theirs, ours) in sgm_layers(&names) {
        enter(&theirs, &[ours], false);
    }
    for (theirs, alias) in original_flux_layers(&names) {
        let (ours, swapped) = parts_of_layer(&theirs);
        enter(&theirs, &ours, swapped);
        if let Some(alias) = alias {
            enter(&alias, &ours, swapped);
        }
    }
    found
}

/// The original names of a FLUX transformer's layers, each with xlabs' name if it has one.
fn original_flux_layers(names: &[String]) -> Vec<(String, Option<String>)> {
    let count = |block: &str| {
        (0..)
            .take_while(|i| names.iter().any(|name| name.starts_with(&format!("{block}.{i}."))))
            .count()
    };
    let mut layers = Vec::new();
    for block in (0..count("transformer_blocks")).map(|i| format!("double_blocks.{i}")) {
        for (side, number) in [("img", 1), ("txt", 2)] {
            for layer in ["mod.lin", "mlp.0", "mlp.2"] {
                layers.push((format!("{block}.{side}_{layer}"), None));
            }
            for layer in ["qkv", "proj"] {
                // After `processor` is taken out, as for diffusers' attention processors.
                let xlabs = format!("{block}.{layer}_lora{number}");
                layers.push((format!("{block}.{side}_attn.{layer}"), Some(xlabs)));
            }
        }
    }
    for block in (0..count("single_transformer_blocks")).map(|i| format!("single_blocks.{i}")) {
        layers.push((format!("{block}.modulation.lin"), None));
        layers.push((format!("{block}.linear1"), None));
        layers.push((format!("{block}.linear2"), None));
        // xlabs' names: the attention's projections alone, without the feed-forward beside them.
        layers.push((format!("{block}.qkv"), None));
        layers.push((format!("{block}.proj"), None));
    }
    let outside = [
        "img_in",
        "txt_in",
        "final_layer.linear",
        "final_layer.adaLN_modulation.1",
    ];
    layers.extend(outside.map(|name| (name.to_owned(), None)));
    for part in ["time_in", "vector_in", "guidance_in"] {
        layers.extend(["in_layer", "out_layer"].map(|layer| (format!("{part}.{layer}"), None)));
    }
    layers
}
