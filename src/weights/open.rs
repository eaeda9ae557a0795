//! Opens whatever a user named: the built-in model, a hub id, a folder or a file.

use std::path::{Path, PathBuf};

use super::beside::{open_tensors, vae_at};
use super::ema_names::with_averages;
use super::folder::is_pickle;
use super::hub::{Hub, HubConfig, HubError, OnProgress};
use super::presets::{family_repository, t5_tokenizer};
use super::recognise::recognise;
use super::{
    Component, Folder, HubRef, ModelFiles, ModelSpec, Part, Place, Precision, TokenizerFiles, WeightsError, built_in,
};

/// What may be said besides the model's name.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Which variant to take where there are two.
    pub precision: Precision,
    /// A VAE instead of the model's own: a folder, or a `.safetensors` file.
    pub vae: Option<PathBuf>,
    /// Tokenizer of the second text encoder instead of the model's own: `tokenizer.json`, `spiece.model`, or a folder.
    pub tokenizer_2: Option<PathBuf>,
}

impl ModelFiles {
    /// Opens a model. What is on the hub is fetched first; of the weights only headers are read.
    ///
    /// # Errors
    /// The model is not there, is damaged, or is of an unknown kind; the message says what to do.
    pub fn open(spec: &ModelSpec, options: &OpenOptions, on: &mut OnProgress<'_>) -> Result<Self, WeightsError> {
        Self::open_from(spec, options, &HubConfig::from_env, on)
    }

    /// As [`ModelFiles::open`], with a hub of one's own.
    ///
    /// # Errors
    /// As [`ModelFiles::open`].
    pub fn open_from(
        spec: &ModelSpec,
        options: &OpenOptions,
        hub: &dyn Fn() -> Result<HubConfig, HubError>,
        on: &mut OnProgress<'_>,
    ) -> Result<Self, WeightsError> {
        let mut files = match &spec.place {
            Place::BuiltIn => built_in::files()?,
            Place::Path(path) => Self::open_path(path, options)?,
            Place::Hub(model) => {
                let hub = Hub::new(hub()?);
                let files = match &model.file {
                    Some(_) => Self::from_hub_file(&hub, model, options, on)?,
                    None => Self::open_path(&hub.model(model, options.precision, on)?, options)?,
                };
                Self {
                    source: model.to_string(),
                    ..files
                }
            }
        };
        if let Some(path) = &options.vae {
            let part = vae_at(path, files.family, options.precision)?;
            files.parts.insert(Component::Vae, part);
        }
        if let Some(path) = &options.tokenizer_2 {
            files.tokenizer_2 = Some(tokenizer_at(path)?);
        }
        if files.family.is_flux() && files.tokenizer_2.is_none() {
            let file = hub().and_then(|config| Hub::new(config).file(&t5_tokenizer(), on));
            let file = file.map_err(|error| WeightsError::NoTokenizer {
                reason: error.to_string(),
            })?;
            files.tokenizer_2 = Some(tokenizer_at(&file)?);
        }
        Ok(files)
    }

    /// One file of a repository; the parts that it lacks come from the repository of its family's preset.
    fn from_hub_file(
        hub: &Hub,
        model: &HubRef,
        options: &OpenOptions,
        on: &mut OnProgress<'_>,
    ) -> Result<Self, WeightsError> {
        let path = hub.file(model, on)?;
        Self::from_file_with(&path, options, &mut |family, component| {
            let Some(home) = family_repository(family) else {
                return Ok(None);
            };
            let folder =
                hub.part(&home, component, options.precision, on)
                    .map_err(|source| WeightsError::NotFetched {
                        file: model.to_string(),
                        component,
                        source: Box::new(source),
                    })?;
            let folder = Folder::open(&folder, options.precision)?;
            Ok(Some(Part {
                config: folder.config(component)?,
                tensors: folder.component(component)?,
            }))
        })
    }

    /// Opens a folder or file on disk, without the parts that `options` names elsewhere.
    ///
    /// # Errors
    /// As [`ModelFiles::open`].
    pub fn open_path(path: &Path, options: &OpenOptions) -> Result<Self, WeightsError> {
        let meta = std::fs::metadata(path).map_err(|source| WeightsError::Io {
            path: path.to_owned(),
            source,
        })?;
        if meta.is_dir() {
            Self::open_folder(path, options)
        } else {
            Self::from_file(path, options)
        }
    }

    /// A folder: diffusers' layout, or one with a single model file in it and the other parts beside that.
    fn open_folder(path: &Path, options: &OpenOptions) -> Result<Self, WeightsError> {
        let folder = Folder::open(path, options.precision)?;
        let tree = folder.tree();
        let whole = tree.text("model_index.json")?.is_some()
            || folder.has(Component::Unet)?
            || folder.has(Component::Transformer)?;
        if whole {
            return Self::from_folder(&folder, options);
        }
        let names = tree.list("")?;
        let mut models = Vec::new();
        for name in names.iter().filter(|name| is_tensors(name)) {
            let (file, _) = open_tensors(&path.join(name))?;
            if recognise(with_averages(file).as_ref()).is_ok() {
                models.push(name.clone());
            }
        }
        match models.as_slice() {
            [one] => Self::from_file(&path.join(one), options),
            [] => match names.iter().find(|name| is_pickle(name)) {
                Some(pickle) => Err(WeightsError::Pickle {
                    path: path.join(pickle),
                }),
                None => Err(WeightsError::Unrecognised {
                    path: path.to_owned(),
                    found: "it has no `model_index.json`, no `unet` or `transformer` folder, and no model file"
                        .to_owned(),
                }),
            },
            many => Err(WeightsError::Unrecognised {
                path: path.to_owned(),
                found: format!("it has several models; name one of them: {}", many.join(", ")),
            }),
        }
    }
}

fn is_tensors(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [".safetensors", ".sft", ".gguf"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

/// A tokenizer's file, or the folder that it lies in.
fn tokenizer_at(path: &Path) -> Result<TokenizerFiles, WeightsError> {
    if path.is_dir() {
        let found = Folder::open(path, Precision::Full)?.tokenizer("")?;
        let what = "`tokenizer.json`".to_owned();
        return found.ok_or_else(|| WeightsError::NoPart {
            place: path.to_owned(),
            what,
        });
    }
    let bytes = std::fs::read(path).map_err(|source| WeightsError::Io {
        path: path.to_owned(),
        source,
    })?;
    let name = if path.extension().is_some_and(|ending| ending == "model") {
        "spiece.model"
    } else {
        "tokenizer.json"
    };
    Ok(TokenizerFiles::Files([(name.to_owned(), bytes)].into()))
}
