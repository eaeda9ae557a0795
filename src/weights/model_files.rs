//! Everything that one model is made of, by component, whatever form its files have.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::rc::Rc;

use serde_json::Value;

use super::folder::Folder;
use super::sd_names::todays_vae;
use super::{Mapped, OpenOptions, StoredType, TensorSource, WeightsError};
use crate::domain::model::Family;

/// A part of a model that has tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// The denoiser of Stable Diffusion.
    Unet,
    /// The denoiser of FLUX.
    Transformer,
    /// Between pixels and latents.
    Vae,
    /// CLIP (ViT-L, OpenCLIP-H).
    TextEncoder,
    /// OpenCLIP bigG (SDXL) or T5-XXL (FLUX).
    TextEncoder2,
}

impl Component {
    /// Every one.
    pub const ALL: &[Self] = &[
        Self::Unet,
        Self::Transformer,
        Self::Vae,
        Self::TextEncoder,
        Self::TextEncoder2,
    ];

    /// Name of its folder in diffusers' layout.
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::Transformer => "transformer",
            Self::Vae => "vae",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.folder())
    }
}

/// Which variant of the files to take where there are two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// The full one, for computing in `f32`.
    #[default]
    Full,
    /// `fp16`, for computing in `f16` or `bf16`.
    Half,
}

/// The files that a tokenizer is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerFiles {
    /// Content by file name: `tokenizer.json`, or `vocab.json` and `merges.txt`, with `tokenizer_config.json` and
    /// `special_tokens_map.json` where there are any.
    Files(BTreeMap<String, Vec<u8>>),
    /// CLIP's vocabulary that the crate ships, for files that bring none.
    BuiltInClip,
}

impl TokenizerFiles {
    /// Names of the files that are looked for.
    pub(super) const NAMES: &[&str] = &[
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        "spiece.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ];

    /// A file's content; `None` if there is no such file.
    #[must_use]
    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        match self {
            Self::Files(files) => files.get(name).cloned(),
            Self::BuiltInClip => None,
        }
    }
}

/// A component's configuration and tensors.
#[derive(Clone)]
pub struct Part {
    /// Its `config.json`.
    pub config: String,
    /// Its tensors under diffusers' names; read when asked for, as often as asked.
    pub tensors: Rc<dyn TensorSource>,
}

/// Everything that one model is made of. Opening reads headers and small files only.
#[derive(Clone)]
pub struct ModelFiles {
    pub(super) source: String,
    pub(super) family: Family,
    pub(super) model_index: String,
    pub(super) scheduler: String,
    pub(super) parts: BTreeMap<Component, Part>,
    pub(super) tokenizer: Option<TokenizerFiles>,
    pub(super) tokenizer_2: Option<TokenizerFiles>,
    pub(super) quantization: Option<String>,
}

/// Numbers of a model that counts as large.
const LARGE: usize = 500_000_000;
/// Tokens that CLIP's vocabulary has.
const CLIP_TOKENS: u64 = 49408;

impl ModelFiles {
    /// A folder in diffusers' layout.
    ///
    /// # Errors
    /// A needed part is missing or damaged, or it is a model of an unknown kind.
    pub fn from_folder(folder: &Folder, options: &OpenOptions) -> Result<Self, WeightsError> {
        let tree = folder.tree();
        let model_index = tree.text("model_index.json")?;
        let mut parts = BTreeMap::new();
        for &component in Component::ALL {
            if !folder.has(component)? || (component == Component::Vae && options.vae.is_some()) {
                continue;
            }
            let config = folder.config(component)?;
            let mut tensors = folder.component(component)?;
            if component == Component::Vae {
                tensors = Rc::new(Mapped::new(Rc::clone(&tensors), todays_vae(tensors.as_ref())));
            }
            parts.insert(component, Part { config, tensors });
        }
        let root = tree.path("");
        if model_index.is_none() && parts.is_empty() {
            let found = "it has no `model_index.json` and no `unet` or `transformer` folder".to_owned();
            return Err(WeightsError::Unrecognised { path: root, found });
        }
        for needed in [Component::Vae, Component::TextEncoder] {
            let elsewhere = needed == Component::Vae && options.vae.is_some();
            if !elsewhere && !parts.contains_key(&needed) {
                return Err(WeightsError::NoPart {
                    place: root,
                    what: format!("the folder `{needed}`"),
                });
            }
        }
        let model_index = model_index.unwrap_or_else(|| "{}".to_owned());
        let family = family_of(&root, &model_index, &parts)?;
        if (family.is_flux() || family == Family::Sdxl) && !parts.contains_key(&Component::TextEncoder2) {
            return Err(WeightsError::NoPart {
                place: root,
                what: "the folder `text_encoder_2`".to_owned(),
            });
        }
        Ok(Self {
            source: root.to_string_lossy().into_owned(),
            family,
            model_index,
            scheduler: folder.need("scheduler/scheduler_config.json")?,
            tokenizer: match folder.tokenizer("tokenizer")? {
                None if reads_clip(&parts, Component::TextEncoder) => Some(TokenizerFiles::BuiltInClip),
                found => found,
            },
            tokenizer_2: match folder.tokenizer("tokenizer_2")? {
                None if !family.is_flux() && reads_clip(&parts, Component::TextEncoder2) => {
                    Some(TokenizerFiles::BuiltInClip)
                }
                found => found,
            },
            parts,
            quantization: None,
        })
    }

    /// Where it was found: a path, a hub id, or `built in`.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Its family, as the configurations or the tensors' names show.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// GGUF type of most of the denoiser's weights, such as `q4_0`, if they are quantised.
    #[must_use]
    pub fn quantization(&self) -> Option<&str> {
        self.quantization.as_deref()
    }

    /// Whether it has a component.
    #[must_use]
    pub fn has(&self, component: Component) -> bool {
        self.parts.contains_key(&component)
    }

    /// A component's `config.json`.
    ///
    /// # Errors
    /// The model has no such component.
    pub fn config(&self, component: Component) -> Result<&str, WeightsError> {
        self.part(component).map(|part| part.config.as_str())
    }

    /// A component's tensors under diffusers' names. They are read anew at every request, so that a component that was
    /// dropped can be loaded again.
    ///
    /// # Errors
    /// The model has no such component.
    pub fn tensors(&self, component: Component) -> Result<Rc<dyn TensorSource>, WeightsError> {
        self.part(component).map(|part| Rc::clone(&part.tensors))
    }

    /// `model_index.json`, or `{}`: pipeline options such as `force_zeros_for_empty_prompt`.
    #[must_use]
    pub fn model_index(&self) -> &str {
        &self.model_index
    }

    /// `scheduler/scheduler_config.json`.
    #[must_use]
    pub fn scheduler_config(&self) -> &str {
        &self.scheduler
    }

    /// Whether the denoiser is a large one stored in half precision or less: in `f32` it would take a gigabyte more than its
    /// file at least.
    ///
    /// # Errors
    /// There is no denoiser.
    pub fn is_large_in_half(&self) -> Result<bool, WeightsError> {
        let component = if self.family.is_flux() {
            Component::Transformer
        } else {
            Component::Unet
        };
        let tensors = self.tensors(component)?;
        let (mut full, mut half) = (0, 0);
        for name in tensors.names() {
            match tensors.describe(&name) {
                Some((shape, StoredType::F32 | StoredType::F64)) => full += shape.iter().product::<usize>(),
                Some((shape, _)) => half += shape.iter().product::<usize>(),
                None => {}
            }
        }
        Ok(half > full && half >= LARGE)
    }

    /// The tokenizer of the first text encoder.
    ///
    /// # Errors
    /// There is none.
    pub fn tokenizer(&self) -> Result<&TokenizerFiles, WeightsError> {
        self.tokenizer
            .as_ref()
            .ok_or_else(|| self.no_part("the tokenizer (folder `tokenizer`)"))
    }

    /// The tokenizer of the second text encoder.
    ///
    /// # Errors
    /// There is none.
    pub fn tokenizer_2(&self) -> Result<&TokenizerFiles, WeightsError> {
        self.tokenizer_2.as_ref().ok_or_else(|| {
            self.no_part("the tokenizer of the second text encoder (folder `tokenizer_2`, or give --tokenizer-2)")
        })
    }

    fn part(&self, component: Component) -> Result<&Part, WeightsError> {
        self.parts
            .get(&component)
            .ok_or_else(|| self.no_part(&format!("the component `{component}`")))
    }

    fn no_part(&self, what: &str) -> WeightsError {
        WeightsError::NoPart {
            place: self.source.clone().into(),
            what: what.to_owned(),
        }
    }
}

/// The family of a folder, from its configurations.
fn family_of(root: &Path, model_index: &str, parts: &BTreeMap<Component, Part>) -> Result<Family, WeightsError> {
    let json = |component| -> Value {
        parts
            .get(&component)
            .and_then(|p| serde_json::from_str(&p.config).ok())
            .unwrap_or_default()
    };
    let unknown = |found: String| WeightsError::Unrecognised {
        path: root.to_owned(),
        found,
    };
    if parts.contains_key(&Component::Transformer) {
        let config = json(Component::Transformer);
        return match config["_class_name"].as_str() {
            Some("FluxTransformer2DModel") if config["guidance_embeds"] == true => Ok(Family::FluxDev),
            Some("FluxTransformer2DModel") => Ok(Family::FluxSchnell),
            other => Err(unknown(format!(
                "its transformer is of class {}",
                other.unwrap_or("(none)")
            ))),
        };
    }
    if !parts.contains_key(&Component::Unet) {
        let index: Value = serde_json::from_str(model_index).unwrap_or_default();
        let class = index["_class_name"].as_str().unwrap_or("(none)");
        return Err(unknown(format!(
            "it has neither a `unet` nor a `transformer` folder; its pipeline is {class}"
        )));
    }
    let unet = json(Component::Unet);
    if unet["addition_embed_type"] == "text_time" {
        return Ok(Family::Sdxl);
    }
    if let Some(other) = unet["addition_embed_type"].as_str() {
        return Err(unknown(format!("its unet wants `addition_embed_type` {other}")));
    }
    match unet["cross_attention_dim"].as_u64() {
        Some(768) => Ok(Family::Sd1),
        Some(1024) => Ok(Family::Sd2),
        // Models of other sizes: OpenCLIP text encoders use the exact GELU, OpenAI's the quick one.
        Some(_) if json(Component::TextEncoder)["hidden_act"] == "gelu" => Ok(Family::Sd2),
        Some(_) => Ok(Family::Sd1),
        None => Err(unknown("its unet has no `cross_attention_dim`".to_owned())),
    }
}

/// Whether a text encoder has the vocabulary that is built in, so that a folder need not bring one.
fn reads_clip(parts: &BTreeMap<Component, Part>, component: Component) -> bool {
    parts.get(&component).is_some_and(|part| {
        let config: Value = serde_json::from_str(&part.config).unwrap_or_default();
        // transformers leaves it out where it is the usual one.
        config["vocab_size"].as_u64().unwrap_or(CLIP_TOKENS) == CLIP_TOKENS
    })
}
