//! A loaded Stable Diffusion model.

use std::rc::Rc;

use serde_json::Value;

use super::encoder::{TextEncoder, TextEncoders, UsualLayer};
use crate::domain::load::Residency;
use crate::domain::model::Family;
use crate::domain::sampling::{Sampler, Schedule};
use crate::models::clip::ClipConfig;
use crate::models::unet::{UNet, UNetConfig};
use crate::models::vae::{Vae, VaeConfig};
use crate::pipeline::load::{Facts, every_operation};
use crate::pipeline::preview::{LatentColours, Previewer};
use crate::pipeline::text::{ClipTokenizer, Padding};
use crate::pipeline::{Compute, LoadWatch, PartsError};
use crate::schedulers::SchedulerConfig;
use crate::weights::{Component, LayerTable, ModelFiles, TokenizerFiles, Weights};

/// The parts of a loaded model.
pub struct Parts {
    /// Text encoders.
    pub encoders: TextEncoders,
    /// The denoiser.
    pub unet: UNet,
    /// Its layers, for LoRAs.
    pub unet_layers: Rc<LayerTable>,
    /// Between pixels and latents.
    pub vae: Vae,
    /// The model's own scheduler configuration.
    pub scheduler: SchedulerConfig,
    /// An empty negative prompt is zeros.
    pub zeros_for_empty: bool,
    /// Where and how it computes.
    pub compute: Compute,
}

/// Steps and guidance of models that are told the guidance instead of being guided: diffusers' of latent consistency models.
const TOLD_USUAL: (u32, f32) = (4, 8.5);

impl Parts {
    /// Reads every part.
    ///
    /// # Errors
    /// A part is missing, damaged, or asks for something that is not built here.
    pub fn load(files: &ModelFiles, compute: Compute, watch: &mut dyn LoadWatch) -> Result<Self, PartsError> {
        let (device, dtype) = (&compute.device, compute.dtype);
        let index: Value = serde_json::from_str(files.model_index()).unwrap_or_default();
        let unet_config = UNetConfig::parse(files.config(Component::Unet)?)?;
        refuse_refiner(files, &unet_config)?;
        let scheduler = SchedulerConfig::from_json(files.scheduler_config())?;

        watch.progress("text encoders", 0.0);
        let mut encoders = vec![encoder(files, Component::TextEncoder)?];
        if files.family() == Family::Sdxl {
            encoders.push(encoder(files, Component::TextEncoder2)?);
        }
        let mut encoders = TextEncoders::new(encoders, device.clone(), dtype);
        // Those that leave again are read when a prompt needs them.
        if compute.residency != Residency::Sequential {
            encoders.load()?;
        }

        watch.progress("denoiser", 0.0);
        let weights = Weights::new(files.tensors(Component::Unet)?, device.clone(), dtype);
        let unet = UNet::load(&weights, &unet_config)?;
        let unet_layers = Rc::clone(weights.layers());

        watch.progress("vae", 0.0);
        let vae_config = VaeConfig::parse(files.config(Component::Vae)?)?;
        let vae_dtype = vae_config.compute_dtype(dtype);
        let weights = Weights::new(files.tensors(Component::Vae)?, device.clone(), vae_dtype);
        let vae = Vae::load(&weights, &vae_config)?;
        watch.progress("vae", 1.0);

        let zeros_for_empty = files.family() == Family::Sdxl && index["force_zeros_for_empty_prompt"] != false;
        Ok(Self {
            encoders,
            unet,
            unet_layers,
            vae,
            scheduler,
            zeros_for_empty,
            compute,
        })
    }

    pub(in crate::pipeline) fn facts(&self) -> Facts<'_> {
        let latent = self.vae.config().pixels_per_latent();
        Facts {
            compute: &self.compute,
            layers: &self.unet_layers,
            trained: self.unet.config().sample_size.map(|side| (side * latent) as u32),
            scheduler: &self.scheduler,
            operations: every_operation(),
            samplers: Sampler::ALL,
            schedules: Schedule::ALL,
            usual: self.unet.config().guidance_embedding.map(|_| TOLD_USUAL),
        }
    }

    /// What makes previews, where it is known.
    ///
    /// # Errors
    /// TAESD cannot be read.
    pub(in crate::pipeline) fn previewer(&self) -> Result<Option<Previewer>, PartsError> {
        let vae = self.vae.config();
        Ok(self.compute.previewer(vae.latent_channels, known_colours(vae))?)
    }

    /// Whether the denoiser takes mask and masked picture beside the latents.
    pub fn is_inpainting_model(&self) -> bool {
        self.unet.config().in_channels > self.vae.config().latent_channels
    }
}

fn refuse_refiner(files: &ModelFiles, unet: &UNetConfig) -> Result<(), PartsError> {
    if !matches!(unet.in_channels, 4 | 9) {
        return Err(PartsError::Unsupported(
            "the unet has neither 4 nor 9 input channels; models for depth, editing by instruction and upscaling are not \
             supported",
        ));
    }
    if files.family() == Family::Sdxl && !files.has(Component::TextEncoder) {
        return Err(PartsError::Unsupported(
            "this SDXL model has only the second text encoder, as the refiner does; use a base model",
        ));
    }
    Ok(())
}

fn encoder(files: &ModelFiles, component: Component) -> Result<TextEncoder, PartsError> {
    let (tokenizer, padding) = match (component, files.family()) {
        (Component::TextEncoder2, _) => (files.tokenizer_2()?, Padding::Bang),
        (_, Family::Sd2) => (files.tokenizer()?, Padding::Bang),
        _ => (files.tokenizer()?, Padding::End),
    };
    let tokenizer = match tokenizer {
        TokenizerFiles::BuiltInClip => ClipTokenizer::built_in(padding)?,
        files @ TokenizerFiles::Files(_) => ClipTokenizer::from_files(&|name| files.read(name))?,
    };
    let usual = match files.family() {
        Family::Sdxl => UsualLayer::Penultimate,
        _ => UsualLayer::Last,
    };
    let config = ClipConfig::parse(files.config(component)?)?;
    tokenizer.fits(config.vocab_size)?;
    Ok(TextEncoder::new(tokenizer, config, usual, files.tensors(component)?))
}

/// The latents of the VAEs that everyone uses; those of others are found when a preview is first asked for.
fn known_colours(vae: &VaeConfig) -> Option<LatentColours> {
    let full_size = vae.block_out_channels == [128, 256, 512, 512] && vae.latent_channels == 4;
    match (full_size, (vae.scaling_factor * 1e5).round() as i64) {
        (true, 18215) => Some(LatentColours::stable_diffusion()),
        (true, 13025) => Some(LatentColours::sdxl()),
        _ => None,
    }
}
