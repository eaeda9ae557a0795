//! Opens whatever a user named: the built-in model, a hub id, a folder or a file.

use std::path::{Path, PathBuf};

use super::folder::is_pickle;
use super::hub::{Hub, HubConfig, OnProgress};
use super::{Component, Folder, ModelFiles, ModelSpec, Part, Place, Precision, TokenizerFiles, WeightsError, built_in};

/// What may be said besides the model's name.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Which variant to take where there are two.
    pub precision: Precision,
    /// A VAE instead of the model's own: a folder, or a `.safetensors` file.
    pub vae: Option<PathBuf>,
    /// `tokenizer.json` of the second text encoder, instead of the model's own.
    pub tokenizer_2: Option<PathBuf>,
}

impl ModelFiles {
    /// Opens a model. What is on the hub is fetched first; of the weights only headers are read.
    ///
    /// # Errors
    /// The model is not there, is damaged, or is of an unknown kind; the message says what to do.
    pub fn open(spec: &ModelSpec, options: &OpenOptions, on: &mut OnProgress<'_>) -> Result<Self, WeightsError> {
        let mut files = match &spec.place {
            Place::BuiltIn => built_in::files()?,
            Place::Path(path) => Self::open_path(path, options)?,
            Place::Hub(model) => {
                let hub = Hub::new(HubConfig::from_env()?);
                let path = match &model.file {
                    Some(_) => hub.file(model, on)?,
                    None => hub.model(model, options.precision, on)?,
                };
                Self {
                    source: model.to_string(),
                    ..Self::open_path(&path, options)?
                }
            }
        };
        if let Some(path) = &options.vae {
            let part = vae_at(path, options.precision)?;
            files.parts.insert(Component::Vae, part);
        }
        if let Some(path) = &options.tokenizer_2 {
            files.tokenizer_2 = Some(tokenizer_at(path)?);
        }
        Ok(files)
    }

    /// Opens a folder or file on disk.
    ///
    /// # Errors
    /// As [`ModelFiles::open`].
    pub fn open_path(path: &Path, options: &OpenOptions) -> Result<Self, WeightsError> {
        let meta = std::fs::metadata(path).map_err(|source| WeightsError::Io {
            path: path.to_owned(),
            source,
        })?;
        if meta.is_dir() {
            return Self::from_folder(&Folder::open(path, options.precision)?);
        }
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_ascii_lowercase();
        if is_pickle(&name) {
            return Err(WeightsError::Pickle { path: path.to_owned() });
        }
        let found = "it is neither a folder nor a .safetensors or .gguf file".to_owned();
        Err(WeightsError::Unrecognised {
            path: path.to_owned(),
            found,
        })
    }
}

/// A VAE from a folder: the VAE's own, or a model's with `vae/` in it.
fn vae_at(path: &Path, precision: Precision) -> Result<Part, WeightsError> {
    let folder = Folder::open(path, precision)?;
    if folder.has(Component::Vae)? {
        return Ok(Part {
            config: folder.config(Component::Vae)?,
            tensors: folder.component(Component::Vae)?,
        });
    }
    Ok(Part {
        config: folder.need("config.json")?,
        tensors: folder.tensors_in("")?,
    })
}

/// `tokenizer.json` itself, or the folder that it lies in.
fn tokenizer_at(path: &Path) -> Result<TokenizerFiles, WeightsError> {
    let path = if path.is_dir() {
        path.join("tokenizer.json")
    } else {
        path.to_owned()
    };
    let bytes = std::fs::read(&path).map_err(|source| WeightsError::Io { path, source })?;
    Ok(TokenizerFiles::Files([("tokenizer.json".to_owned(), bytes)].into()))
}
