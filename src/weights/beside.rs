//! Parts of a model that lie beside its file: a VAE, text encoders, a tokenizer.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::clip_names::{hf_clip, open_clip};
use super::folder::is_pickle;
use super::scaled_fp8::with_scales;
use super::sd_names::{ldm_vae, ldm_vae_prefix, todays_vae};
use super::shapes::config_of;
use super::{
    Component, Folder, Gguf, Mapped, Part, Precision, SafeTensors, TensorSource, TokenizerFiles, WeightsError,
    llama_cpp_t5,
};
use crate::domain::model::Family;

/// Folders that programs keep parts in, from the model's file on.
const PLACES: &[&str] = &[
    "",
    "vae",
    "clip",
    "text_encoder",
    "text_encoders",
    "../vae",
    "../VAE",
    "../clip",
    "../text_encoder",
    "../text_encoders",
];

/// Opens a file of tensors by its name's ending.
///
/// # Errors
/// It is damaged, a pickle, or neither safetensors nor GGUF.
pub(super) fn open_tensors(path: &Path) -> Result<(Rc<dyn TensorSource>, FileFacts), WeightsError> {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_ascii_lowercase();
    if name.ends_with(".safetensors") || name.ends_with(".sft") {
        let file = SafeTensors::open(path)?;
        let said = file.metadata().get("modelspec.prediction_type").cloned();
        return Ok((
            with_scales(file),
            FileFacts {
                prediction: said,
                quantization: None,
            },
        ));
    }
    if name.ends_with(".gguf") {
        let file = Gguf::open(path)?;
        let quantization = file.quantization();
        return Ok((
            Rc::new(file),
            FileFacts {
                prediction: None,
                quantization,
            },
        ));
    }
    if is_pickle(&name) {
        return Err(WeightsError::Pickle { path: path.to_owned() });
    }
    let found = "it is neither a folder nor a .safetensors or .gguf file".to_owned();
    Err(WeightsError::Unrecognised {
        path: path.to_owned(),
        found,
    })
}

/// What a file says of itself beside its tensors.
#[derive(Clone, Debug, Default)]
pub(super) struct FileFacts {
    /// What the model predicts.
    pub prediction: Option<String>,
    /// Block type of its weights.
    pub quantization: Option<String>,
}

/// A VAE of `family` from a folder (the VAE's own, or a model's with `vae/` in it) or a file.
///
/// # Errors
/// There is no VAE, or it is damaged.
pub(super) fn vae_at(path: &Path, family: Family, precision: Precision) -> Result<Part, WeightsError> {
    if path.is_dir() {
        let folder = Folder::open(path, precision)?;
        let (config, tensors) = if folder.has(Component::Vae)? {
            (folder.config(Component::Vae)?, folder.component(Component::Vae)?)
        } else {
            (folder.need("config.json")?, folder.tensors_in("")?)
        };
        return Ok(Part {
            config,
            tensors: Rc::new(Mapped::new(Rc::clone(&tensors), todays_vae(tensors.as_ref()))),
        });
    }
    let (tensors, _) = open_tensors(path)?;
    vae_in(&tensors, family)?.ok_or_else(|| WeightsError::Unrecognised {
        path: path.to_owned(),
        found: "it has no VAE".to_owned(),
    })
}

/// The VAE inside a file, if it has one.
///
/// # Errors
/// It is incomplete.
pub(super) fn vae_in(file: &Rc<dyn TensorSource>, family: Family) -> Result<Option<Part>, WeightsError> {
    let pieces = match ldm_vae_prefix(file.as_ref()) {
        Some(prefix) => ldm_vae(file.as_ref(), prefix),
        None if file.describe("decoder.mid_block.resnets.0.norm1.weight").is_some() => todays_vae(file.as_ref()),
        None => return Ok(None),
    };
    part(file, pieces, family, Component::Vae).map(Some)
}

/// A text encoder inside a file, if it has one.
///
/// # Errors
/// It is incomplete.
pub(super) fn text_encoder_in(
    file: &Rc<dyn TensorSource>,
    family: Family,
    component: Component,
) -> Result<Option<Part>, WeightsError> {
    let inner = file.as_ref();
    let has = |name: String| inner.describe(&name).is_some();
    if component == Component::TextEncoder2 && family.is_flux() {
        let prefixes = [
            "text_encoders.t5xxl.transformer.",
            "t5xxl.transformer.",
            "text_encoder_2.",
            "",
        ];
        let found = prefixes
            .into_iter()
            .find(|prefix| has(format!("{prefix}encoder.block.0.layer.0.SelfAttention.q.weight")));
        let source: Rc<dyn TensorSource> = match found {
            Some(prefix) => Rc::new(Mapped::below(Rc::clone(file), prefix)),
            None if has("enc.blk.0.attn_q.weight".to_owned()) => {
                Rc::new(Mapped::new(Rc::clone(file), llama_cpp_t5(inner)))
            }
            None => return Ok(None),
        };
        let config = config_of(family, component, source.as_ref())?;
        return Ok(Some(Part {
            config,
            tensors: source,
        }));
    }
    let second = component == Component::TextEncoder2;
    let towers: &[&str] = if second {
        &["conditioner.embedders.1.model.", "conditioner.embedders.0.model.", ""]
    } else {
        &["cond_stage_model.model.", ""]
    };
    let transformers: &[&str] = match (second, family) {
        (true, _) => &[
            "text_encoders.clip_g.transformer.",
            // stable-diffusion.cpp's.
            "cond_stage_model.1.transformer.",
            "text_encoder_2.",
            "",
        ],
        (false, Family::Sd2) => &[
            "text_encoders.clip_h.transformer.",
            "cond_stage_model.transformer.",
            "text_encoder.",
            "",
        ],
        (false, _) => &[
            "conditioner.embedders.0.transformer.",
            "cond_stage_model.transformer.",
            "text_encoders.clip_l.transformer.",
            "text_encoder.",
            "",
        ],
    };
    if let Some(prefix) = towers
        .iter()
        .find(|prefix| has(format!("{prefix}transformer.resblocks.0.ln_1.weight")))
    {
        return part(file, open_clip(inner, prefix), family, component).map(Some);
    }
    let layer = "encoder.layers.0.layer_norm1.weight";
    let found = transformers
        .iter()
        .find(|prefix| has(format!("{prefix}text_model.{layer}")) || has(format!("{prefix}{layer}")));
    match found {
        Some(prefix) => part(file, hf_clip(inner, prefix), family, component).map(Some),
        None => Ok(None),
    }
}

fn part(
    file: &Rc<dyn TensorSource>,
    pieces: std::collections::HashMap<String, super::Piece>,
    family: Family,
    component: Component,
) -> Result<Part, WeightsError> {
    let tensors: Rc<dyn TensorSource> = Rc::new(Mapped::new(Rc::clone(file), pieces));
    Ok(Part {
        config: config_of(family, component, tensors.as_ref())?,
        tensors,
    })
}

/// The folder and the neighbours of a model's file.
pub(super) struct Beside {
    folder: PathBuf,
    stem: String,
    precision: Precision,
}

impl Beside {
    /// What lies beside `file`.
    pub fn new(file: &Path, precision: Precision) -> Self {
        Self {
            folder: file.parent().map(Path::to_owned).unwrap_or_default(),
            stem: file.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            precision,
        }
    }

    /// Folders in diffusers' layout that may complete the file: one of the file's own name, then the file's folder.
    pub fn folders(&self) -> Vec<Folder> {
        [self.folder.join(&self.stem), self.folder.clone()]
            .iter()
            .filter_map(|path| Folder::open(path, self.precision).ok())
            .collect()
    }

    /// A component from a folder in diffusers' layout, or from a file with a name that is usual for it.
    ///
    /// # Errors
    /// What was found is damaged, or nothing was found.
    pub fn component(&self, family: Family, component: Component) -> Result<Part, WeightsError> {
        for folder in self.folders() {
            let names = folder.tree().list(component.folder())?;
            if names.iter().any(|name| name == "config.json") && names.iter().any(|name| name.ends_with(".safetensors"))
            {
                let (config, tensors) = (folder.config(component)?, folder.component(component)?);
                return Ok(Part { config, tensors });
            }
        }
        let usual = usual_names(family, component);
        for path in self.files() {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .to_ascii_lowercase();
            if !usual.iter().any(|start| name.starts_with(start)) {
                continue;
            }
            let (file, _) = open_tensors(&path)?;
            let found = match component {
                Component::Vae => vae_in(&file, family)?,
                _ => text_encoder_in(&file, family, component)?,
            };
            if let Some(found) = found {
                return Ok(found);
            }
        }
        let what = match component {
            Component::Vae => "the VAE",
            Component::TextEncoder => "the CLIP text encoder",
            _ if family.is_flux() => "the T5 text encoder",
            _ => "the second text encoder (OpenCLIP bigG)",
        };
        let option = if component == Component::Vae {
            ", or give --vae"
        } else {
            ""
        };
        Err(WeightsError::NoPart {
            place: self.folder.join(&self.stem),
            what: format!(
                "{what} is not in the file; put `{}` (or {}.safetensors) beside it{option}: {what}",
                component.folder(),
                usual.first().copied().unwrap_or("one"),
            ),
        })
    }

    /// A tokenizer from a folder in diffusers' layout, or for T5 a file.
    ///
    /// # Errors
    /// What was found is damaged.
    pub fn tokenizer(&self, folder: &str) -> Result<Option<TokenizerFiles>, WeightsError> {
        for beside in self.folders() {
            if let Some(found) = beside.tokenizer(folder)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// A text from a folder of the file's own name, such as `unet/config.json`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn own_text(&self, inner: &str) -> Result<Option<String>, WeightsError> {
        match Folder::open(&self.folder.join(&self.stem), self.precision) {
            Ok(folder) => folder.tree().text(inner),
            Err(_) => Ok(None),
        }
    }

    /// Files of tensors in the usual places, the nearest first.
    fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for place in PLACES {
            let Ok(entries) = std::fs::read_dir(self.folder.join(place)) else {
                continue;
            };
            let mut paths: Vec<PathBuf> = entries
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| {
                    let ending = path
                        .extension()
                        .unwrap_or_default()
                        .to_string_lossy()
                        .to_ascii_lowercase();
                    matches!(ending.as_str(), "safetensors" | "sft" | "gguf") && path.is_file()
                })
                .collect();
            paths.sort_unstable();
            found.extend(paths);
        }
        found
    }
}

/// How the file names of a part usually begin.
fn usual_names(family: Family, component: Component) -> &'static [&'static str] {
    match (component, family) {
        (Component::Vae, Family::FluxDev | Family::FluxSchnell) => {
            &["ae", "flux-ae", "flux_ae", "flux-vae", "flux_vae", "vae"]
        }
        (Component::Vae, Family::Sdxl) => &["sdxl_vae", "sdxl-vae", "sdxl.vae", "vae"],
        (Component::Vae, _) => &["vae-ft-mse", "vae", "kl-f8", "sd-vae", "sd_vae"],
        (Component::TextEncoder, Family::Sd2) => &["clip_h", "clip-h", "open_clip", "text_encoder"],
        (Component::TextEncoder, _) => &[
            "clip_l",
            "clip-l",
            "clip_vit_l",
            "vit-l",
            "text_encoder.",
            "text_encoder_l",
        ],
        (Component::TextEncoder2, Family::FluxDev | Family::FluxSchnell) => {
            &["t5xxl", "t5-v1_1-xxl", "t5_xxl", "t5", "google_t5"]
        }
        (Component::TextEncoder2, _) => &["clip_g", "clip-g", "text_encoder_2"],
        (Component::Unet | Component::Transformer, _) => &[],
    }
}
