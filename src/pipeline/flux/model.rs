//! A loaded FLUX model.

use std::rc::Rc;

use candle_core::Tensor;
use image::GrayImage;

use super::latents::Grid;
use super::mask::for_fill;
use super::text::FluxText;
use super::velocity::{Scripts, Velocity};
use crate::domain::model::Family;
use crate::domain::request::{GenerationRequest, Operation, OperationKind, StepCache};
use crate::domain::sampling::{Sampler, Schedule};
use crate::models::flux::{BlockCache, FluxConfig, FluxTransformer};
use crate::models::vae::{Vae, VaeConfig};
use crate::pipeline::guidance::Guidance;
use crate::pipeline::latents::LatentShape;
use crate::pipeline::load::{Facts, every_operation};
use crate::pipeline::preview::{LatentColours, Previewer};
use crate::pipeline::step_cache::{AUTO_FLUX, Reuse, threshold};
use crate::pipeline::{Compute, LoadWatch, PartsError, PipelineError};
use crate::schedulers::{self, Scheduler, SchedulerConfig, decimal};
use crate::weights::{Component, LayerTable, ModelFiles, Weights};

/// T5 tokens that FLUX.1 dev was trained with.
const DEV_TOKENS: usize = 512;
/// T5 tokens that FLUX.1 schnell was trained with.
const SCHNELL_TOKENS: usize = 256;
/// Steps and guidance that FLUX.1-Fill is used with.
const FILL_USUAL: (u32, f32) = (50, 30.0);

/// The parts of a loaded model.
pub struct FluxParts {
    pub(super) text: FluxText,
    /// The denoiser.
    pub(super) transformer: FluxTransformer,
    pub(super) transformer_layers: Rc<LayerTable>,
    pub(super) vae: Vae,
    pub(super) scheduler: SchedulerConfig,
    pub(super) compute: Compute,
}

impl FluxParts {
    /// Reads every part.
    ///
    /// # Errors
    /// A part is missing, damaged, or asks for something that is not built here.
    pub fn load(files: &ModelFiles, compute: Compute, watch: &mut dyn LoadWatch) -> Result<Self, PartsError> {
        let (device, dtype) = (&compute.device, compute.dtype);
        let scheduler = SchedulerConfig::from_json(files.scheduler_config())?;

        watch.progress("text encoders", 0.0);
        let length = if files.family() == Family::FluxSchnell {
            SCHNELL_TOKENS
        } else {
            DEV_TOKENS
        };
        let text = FluxText::load(files, &compute, length)?;

        watch.progress("vae", 0.0);
        let vae_config = VaeConfig::parse(files.config(Component::Vae)?)?;
        let weights = Weights::new(
            files.tensors(Component::Vae)?,
            device.clone(),
            vae_config.compute_dtype(dtype),
        );
        let vae = Vae::load(&weights, &vae_config)?;

        watch.progress("denoiser", 0.0);
        let weights = Weights::new(files.tensors(Component::Transformer)?, device.clone(), dtype);
        let config = FluxConfig::parse(files.config(Component::Transformer)?, &weights)?;
        refuse_others(&config, &vae_config)?;
        let transformer = FluxTransformer::load(&weights, &config, &mut |share| watch.progress("denoiser", share))?;

        Ok(Self {
            text,
            transformer,
            transformer_layers: Rc::clone(weights.layers()),
            vae,
            scheduler,
            compute,
        })
    }

    pub(in crate::pipeline) fn facts(&self) -> Facts<'_> {
        Facts {
            compute: &self.compute,
            layers: &self.transformer_layers,
            // The transformer's file says nothing of it; FLUX.1's VAE says 1024.
            trained: self.vae.config().sample_size,
            scheduler: &self.scheduler,
            operations: if self.is_fill() {
                vec![OperationKind::ImageInpaint]
            } else {
                every_operation()
            },
            samplers: Sampler::FLOW,
            schedules: Schedule::FLOW,
            usual: self.is_fill().then_some(FILL_USUAL),
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

    /// Whether it is FLUX.1-Fill: mask and masked picture are inputs beside the latents.
    pub fn is_fill(&self) -> bool {
        let config = self.transformer.config();
        config.in_channels > config.out_channels()
    }

    /// The scheduler of one picture.
    ///
    /// # Errors
    /// The sampler or schedule does not exist for flow matching.
    pub(super) fn scheduler_of(&self, request: &GenerationRequest) -> Result<Box<dyn Scheduler>, PipelineError> {
        let strength = match &request.operation {
            Operation::TextToImage => 1.0,
            Operation::ImageToImage { strength, .. } | Operation::Inpaint { strength, .. } => decimal(*strength),
        };
        let options = schedulers::Options {
            schedule: request.schedule,
            strength,
            image_tokens: Grid::of(request.size, self.vae.config().pixels_per_latent()).tokens(),
            ..schedulers::Options::new(request.sampler, request.steps as usize)
        };
        Ok(schedulers::build(&options, &self.scheduler)?)
    }

    /// The prediction of one picture's velocity. FLUX.1-Fill wants the mask, and the latents of the picture without what
    /// the mask covers, as planes.
    ///
    /// # Errors
    /// The device refused.
    pub(super) fn velocity<'a>(
        &'a self,
        request: &GenerationRequest,
        scripts: &'a Scripts,
        shape: LatentShape,
        beside: Option<(&GrayImage, &[f32])>,
    ) -> Result<Velocity<'a>, PipelineError> {
        let factor = self.vae.config().pixels_per_latent();
        let grid = Grid::of(request.size, factor);
        let beside = beside.map(|(mask, latents)| {
            let device = &self.compute.device;
            let packed = |numbers: Vec<f32>| {
                let width = numbers.len() / grid.tokens();
                Tensor::from_vec(numbers, (1, grid.tokens(), width), &candle_core::Device::Cpu)?.to_device(device)
            };
            let latents = packed(grid.pack(latents, shape.channels))?;
            Tensor::cat(&[latents, packed(for_fill(mask, grid, factor))?], 2)
        });
        let axes = self.transformer.config().axes_dims_rope;
        Ok(Velocity {
            transformer: &self.transformer,
            grid,
            channels: shape.channels,
            positions: scripts.positions(grid, axes, &self.compute.device)?,
            scripts,
            true_cfg: true_cfg(request),
            guidance: request.guidance_scale,
            beside: beside.transpose()?,
            caches: caches(request.step_cache),
            reuse: Reuse::default(),
        })
    }
}

/// Memories of the blocks, for the prompt and for the negative one.
fn caches(choice: StepCache) -> Option<[BlockCache; 2]> {
    threshold(choice, AUTO_FLUX).map(|threshold| [BlockCache::new(threshold), BlockCache::new(threshold)])
}

/// Guidance by a second evaluation with the negative prompt.
pub(super) fn true_cfg(request: &GenerationRequest) -> Guidance {
    Guidance {
        scale: request.true_cfg_scale,
        interval: request.guidance_interval,
    }
}

fn refuse_others(config: &FluxConfig, vae: &VaeConfig) -> Result<(), PartsError> {
    let packed = 4 * vae.latent_channels;
    let fill = 2 * packed + 4 * vae.pixels_per_latent().pow(2);
    if config.out_channels() != packed || ![packed, fill].contains(&config.in_channels) {
        return Err(PartsError::Unsupported(
            "the transformer's channels are neither FLUX.1's nor FLUX.1-Fill's for this vae; models for depth, edges \
             and editing by instruction are not supported",
        ));
    }
    Ok(())
}

/// The latents of FLUX's own VAE; those of others are found when a preview is first asked for.
fn known_colours(vae: &VaeConfig) -> Option<LatentColours> {
    let own = vae.block_out_channels == [128, 256, 512, 512] && vae.latent_channels == 16;
    own.then(LatentColours::flux)
}
