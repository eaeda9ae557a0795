//! What painting takes from Stable Diffusion.

use std::rc::Rc;

use candle_core::{DType, Device};

use super::model::Parts;
use super::prompts::{Prepared, Prompts, Reading, guidance_embedding};
use crate::domain::request::{GenerationRequest, Operation, SizeConditioning};
use crate::models::unet::DeepCache;
use crate::models::vae::Vae;
use crate::pipeline::PipelineError;
use crate::pipeline::denoise::{Call, Predict};
use crate::pipeline::guidance::Guidance;
use crate::pipeline::job::{Beside, Painter};
use crate::pipeline::latents::{LatentShape, to_planes};
use crate::pipeline::loaded::ModelParts;
use crate::pipeline::step_cache::{AUTO_UNET, Reuse, threshold};
use crate::pipeline::text::TextError;
use crate::schedulers::{self, Scheduler, decimal};
use crate::weights::lora::Layers;

impl ModelParts for Parts {
    type Prompts = Prompts;

    fn refuse(&self, _: &GenerationRequest) -> Result<(), PipelineError> {
        Ok(())
    }

    fn layers(&mut self) -> Result<Layers, PipelineError> {
        let mut text = self.encoders.layers().map_err(TextError::from)?.into_iter();
        Ok(Layers {
            denoiser: Rc::clone(&self.unet_layers),
            text_encoder: text.next(),
            text_encoder_2: text.next(),
        })
    }

    fn forget_prompts(&mut self) {
        self.encoders.forget();
    }

    fn read_prompts(
        &mut self,
        request: &GenerationRequest,
        prompt: &str,
        _: &mut Vec<String>,
    ) -> Result<Prompts, PipelineError> {
        let steps = scheduler_of(self, request)?.steps();
        let guided = guidance_of(self, request).is_used();
        let reading = Reading {
            prompt,
            negative: guided.then_some(request.negative_prompt.as_str()),
            syntax: request.prompt_syntax,
            skip: request.clip_skip.saturating_sub(1) as usize,
            zeros_for_empty: self.zeros_for_empty,
            steps,
        };
        let prompts = Prompts::read(&mut self.encoders, &reading)?;
        if self.compute.drops_encoders() {
            self.encoders.unload();
        }
        Ok(prompts)
    }

    fn painter<'a>(&'a self, prompts: &'a Prompts) -> Box<dyn Painter + 'a> {
        Box::new(Prompted { parts: self, prompts })
    }
}

/// A loaded model with the prompts of one job.
struct Prompted<'a> {
    parts: &'a Parts,
    prompts: &'a Prompts,
}

impl Painter for Prompted<'_> {
    fn vae(&self) -> &Vae {
        &self.parts.vae
    }

    fn device(&self) -> &Device {
        &self.parts.compute.device
    }

    fn is_inpainting_model(&self) -> bool {
        self.parts.is_inpainting_model()
    }

    fn draws_unused_latents(&self) -> bool {
        false
    }

    fn scheduler(&self, request: &GenerationRequest) -> Result<Box<dyn Scheduler>, PipelineError> {
        scheduler_of(self.parts, request)
    }

    fn denoiser<'a>(
        &'a self,
        request: &'a GenerationRequest,
        shape: LatentShape,
        beside: Option<Beside<'_>>,
    ) -> Result<Box<dyn Predict + 'a>, PipelineError> {
        let unet = &self.parts.unet;
        let sizes = unet.config().takes_text_time.then(|| size_numbers(request));
        let width = unet.config().guidance_embedding;
        let embedding = width.map(|width| guidance_embedding(request.guidance_scale, width, self.device()));
        Ok(Box::new(UNetPredict {
            parts: self.parts,
            prompts: Prepared::new(unet, self.prompts, sizes, embedding.transpose()?),
            guidance: guidance_of(self.parts, request),
            shape,
            beside: beside.map_or_else(Vec::new, |beside| [beside.on_latents, beside.masked].concat()),
            cache: threshold(request.step_cache, AUTO_UNET).map(DeepCache::new),
            reuse: Reuse::default(),
        }))
    }
}

/// The UNet's prediction for one picture.
struct UNetPredict<'a> {
    parts: &'a Parts,
    prompts: Prepared<'a>,
    guidance: Guidance,
    shape: LatentShape,
    /// Channels beside the latents in the UNet's input, `(C', H, W)`: mask and masked picture of an inpainting model.
    beside: Vec<f32>,
    /// Deep features of earlier steps, where they may be used again.
    cache: Option<DeepCache>,
    reuse: Reuse,
}

impl Predict for UNetPredict<'_> {
    fn predict(&mut self, call: Call<'_>, latents: &[f32]) -> Result<Vec<f32>, PipelineError> {
        let guided = self.guidance.at(call.done, call.scheduler.steps());
        let mut input = latents.to_vec();
        call.scheduler.scale_model_input(call.number, &mut input);
        input.extend_from_slice(&self.beside);
        let input = self.shape.to_device(&input, &self.parts.compute.device, DType::F32)?;
        let input = if guided { input.repeat((2, 1, 1, 1))? } else { input };
        if let Some(cache) = &mut self.cache {
            cache.plan(self.reuse.plan(call, self.prompts.told(call.done, guided)));
        }
        let (prompt, added) = self.prompts.at(call.done, guided)?;
        let timestep = call.scheduler.timesteps()[call.number];
        let unet = &self.parts.unet;
        let output = unet.forward_cached(&input, timestep, prompt, added, self.cache.as_mut())?;
        self.reuse.count(self.cache.as_ref().is_some_and(DeepCache::reused));
        let mut wanted = to_planes(&output.narrow(0, usize::from(guided), 1)?)?;
        if guided {
            let negative = to_planes(&output.narrow(0, 0, 1)?)?;
            self.guidance.apply(&negative, &mut wanted);
        }
        if wanted.iter().all(|value| value.is_finite()) {
            Ok(wanted)
        } else {
            Err(PipelineError::NotFinite { part: "denoiser" })
        }
    }

    fn reused(&self) -> u32 {
        self.reuse.counted()
    }
}

fn scheduler_of(parts: &Parts, request: &GenerationRequest) -> Result<Box<dyn Scheduler>, PipelineError> {
    let strength = match &request.operation {
        Operation::TextToImage => 1.0,
        Operation::ImageToImage { strength, .. } | Operation::Inpaint { strength, .. } => decimal(*strength),
    };
    let options = schedulers::Options {
        schedule: request.schedule,
        strength,
        eta: request.eta,
        ..schedulers::Options::new(request.sampler, request.steps as usize)
    };
    Ok(schedulers::build(&options, &parts.scheduler)?)
}

/// Models that are told the guidance scale are not guided besides.
fn guidance_of(parts: &Parts, request: &GenerationRequest) -> Guidance {
    let told = parts.unet.config().guidance_embedding.is_some();
    Guidance {
        scale: if told { 1.0 } else { request.guidance_scale },
        interval: request.guidance_interval,
    }
}

/// SDXL's sizes: height and width before the crop, top and left of the crop, height and width aimed at.
fn size_numbers(request: &GenerationRequest) -> [f32; 6] {
    let sizes = request.size_conditioning.unwrap_or(SizeConditioning {
        original: request.size,
        crop_top_left: (0, 0),
        target: request.size,
    });
    [
        sizes.original.height,
        sizes.original.width,
        sizes.crop_top_left.0,
        sizes.crop_top_left.1,
        sizes.target.height,
        sizes.target.width,
    ]
    .map(|v| v as f32)
}
