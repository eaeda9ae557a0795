//! A model in one file: a checkpoint of Stable Diffusion or FLUX as people share them, or a bare denoiser with the rest
//! beside it.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use serde_json::{Value, json};

use super::beside::{Beside, FileFacts, open_tensors, text_encoder_in, vae_in};
use super::ema_names::with_averages;
use super::flux_names::original_flux;
use super::recognise::{Denoiser, Naming, prediction, recognise};
use super::sd_names::ldm_unet;
use super::shapes::{config_of, family_config};
use super::{Component, Mapped, ModelFiles, OpenOptions, Part, TensorSource, TokenizerFiles, WeightsError};
use crate::domain::model::Family;

impl ModelFiles {
    /// Opens a `.safetensors` or `.gguf` file.
    ///
    /// What the file lacks is looked for beside it. A folder of the file's own name in diffusers' layout may give
    /// configurations and tokenizers of a model whose shapes are not the released ones.
    ///
    /// # Errors
    /// It fits no family, a part is missing, or it is damaged.
    pub fn from_file(path: &Path, options: &OpenOptions) -> Result<Self, WeightsError> {
        Self::from_file_with(path, options, &mut |_, _| Ok(None))
    }

    /// As [`ModelFiles::from_file`]; what is nowhere beside the file is asked of `elsewhere`.
    pub(super) fn from_file_with(
        path: &Path,
        options: &OpenOptions,
        elsewhere: &mut dyn FnMut(Family, Component) -> Result<Option<Part>, WeightsError>,
    ) -> Result<Self, WeightsError> {
        let (file, facts) = open_tensors(path)?;
        let file = with_averages(file);
        let denoiser = recognise(file.as_ref()).map_err(|found| WeightsError::Unrecognised {
            path: path.to_owned(),
            found,
        })?;
        let beside = Beside::new(path, options.precision);
        let family = denoiser.family;
        let mut parts = BTreeMap::new();
        let (component, part) = denoiser_part(&file, &denoiser)?;
        parts.insert(component, part);
        let mut find = |component, inside: Option<Part>| match inside {
            Some(part) => Ok(part),
            None => match beside.component(family, component) {
                Err(lacking @ WeightsError::NoPart { .. }) => elsewhere(family, component)?.ok_or(lacking),
                found => found,
            },
        };
        if options.vae.is_none() {
            parts.insert(Component::Vae, find(Component::Vae, vae_in(&file, family)?)?);
        }
        let mut encoders = vec![Component::TextEncoder];
        if has_second_encoder(&denoiser) {
            encoders.push(Component::TextEncoder2);
        }
        for component in encoders {
            let inside = text_encoder_in(&file, family, component)?;
            parts.insert(component, find(component, inside)?);
        }
        for (component, part) in &mut parts {
            if let Some(config) = beside.own_text(&format!("{}/config.json", component.folder()))? {
                part.config = config;
            }
        }
        let clip = || TokenizerFiles::BuiltInClip;
        let tokenizer = beside.tokenizer("tokenizer")?.unwrap_or_else(clip);
        let tokenizer_2 = match beside.tokenizer("tokenizer_2")? {
            None if has_second_encoder(&denoiser) && !family.is_flux() => Some(clip()),
            found => found,
        };
        Ok(Self {
            source: path.to_string_lossy().into_owned(),
            family,
            model_index: if family == Family::Sdxl {
                r#"{"force_zeros_for_empty_prompt": true}"#.to_owned()
            } else {
                "{}".to_owned()
            },
            scheduler: match beside.own_text("scheduler/scheduler_config.json")? {
                Some(text) => text,
                None => scheduler(file.as_ref(), &denoiser, &facts),
            },
            parts,
            tokenizer: Some(tokenizer),
            tokenizer_2,
            quantization: facts.quantization,
        })
    }
}

fn has_second_encoder(denoiser: &Denoiser) -> bool {
    denoiser.family.is_flux() || denoiser.family == Family::Sdxl
}

fn denoiser_part(file: &Rc<dyn TensorSource>, denoiser: &Denoiser) -> Result<(Component, Part), WeightsError> {
    let component = if denoiser.family.is_flux() {
        Component::Transformer
    } else {
        Component::Unet
    };
    let tensors: Rc<dyn TensorSource> = match denoiser.naming {
        Naming::Diffusers => Rc::new(Mapped::below(Rc::clone(file), denoiser.prefix)),
        Naming::Original => {
            let pieces = match component {
                Component::Transformer => original_flux(file.as_ref(), denoiser.prefix),
                _ => ldm_unet(file.as_ref(), denoiser.prefix),
            };
            Rc::new(Mapped::new(Rc::clone(file), pieces))
        }
    };
    let config = config_of(denoiser.family, component, tensors.as_ref())?;
    Ok((component, Part { config, tensors }))
}

/// The family's scheduler settings, with what this file was trained to predict.
fn scheduler(file: &dyn TensorSource, denoiser: &Denoiser, facts: &FileFacts) -> String {
    let mut config = family_config(denoiser.family, "scheduler");
    if !denoiser.family.is_flux() {
        let found = prediction(file, denoiser, facts.prediction.as_deref());
        let kind = if found.velocity { "v_prediction" } else { "epsilon" };
        config.insert("prediction_type".to_owned(), json!(kind));
        if found.zero_snr {
            config.insert("rescale_betas_zero_snr".to_owned(), json!(true));
            config.insert("timestep_spacing".to_owned(), json!("trailing"));
        }
    }
    Value::Object(config).to_string()
}
