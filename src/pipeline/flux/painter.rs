//! What painting takes from FLUX.

use std::rc::Rc;

use candle_core::Device;

use super::model::{FluxParts, true_cfg};
use super::velocity::Scripts;
use crate::domain::request::{GenerationRequest, Operation};
use crate::models::vae::Vae;
use crate::pipeline::PipelineError;
use crate::pipeline::denoise::Predict;
use crate::pipeline::job::{Beside, Painter};
use crate::pipeline::latents::LatentShape;
use crate::pipeline::loaded::ModelParts;
use crate::pipeline::text::TextError;
use crate::schedulers::Scheduler;
use crate::weights::lora::Layers;

impl ModelParts for FluxParts {
    type Prompts = Scripts;

    fn refuse(&self, request: &GenerationRequest) -> Result<(), PipelineError> {
        let unsupported = |field, message: &str| {
            Err(PipelineError::Unsupported {
                field,
                message: message.to_owned(),
            })
        };
        if self.is_fill() && !matches!(request.operation, Operation::Inpaint { .. }) {
            return unsupported("operation", "FLUX.1-Fill only inpaints: give an image and a mask");
        }
        if request.eta != 0.0 {
            return unsupported("eta", "FLUX's samplers draw no noise between steps; leave it at 0");
        }
        if request.clip_skip > 1 {
            return unsupported("clip_skip", "FLUX reads CLIP's last layer; leave it at 1");
        }
        if !request.negative_prompt.is_empty() && !true_cfg(request).is_used() {
            return unsupported("negative_prompt", "FLUX heeds it only with true_cfg_scale above 1");
        }
        Ok(())
    }

    fn layers(&mut self) -> Result<Layers, PipelineError> {
        let [clip, t5] = self.text.prepare().map_err(TextError::from)?.clone();
        Ok(Layers {
            denoiser: Rc::clone(&self.transformer_layers),
            text_encoder: Some(clip),
            text_encoder_2: Some(t5),
        })
    }

    fn forget_prompts(&mut self) {
        self.text.forget();
    }

    fn read_prompts(
        &mut self,
        request: &GenerationRequest,
        prompt: &str,
        warnings: &mut Vec<String>,
    ) -> Result<Scripts, PipelineError> {
        let steps = self.scheduler_of(request)?.steps();
        let text = &mut self.text;
        let prompt = text.script(prompt, request.prompt_syntax, steps)?;
        let negative = if true_cfg(request).is_used() {
            Some(text.script(&request.negative_prompt, request.prompt_syntax, steps)?)
        } else {
            None
        };
        if self.compute.drops_encoders() {
            text.unload();
        }
        for (field, script) in [("prompt", Some(&prompt)), ("negative_prompt", negative.as_ref())] {
            let dropped = script
                .into_iter()
                .flatten()
                .map(|(_, conditioning)| conditioning.dropped)
                .max();
            if let Some(dropped @ 1..) = dropped {
                warnings.push(format!(
                    "{field}: {dropped} tokens are more than the model reads and were left out"
                ));
            }
        }
        Ok(Scripts { prompt, negative })
    }

    fn painter<'a>(&'a self, scripts: &'a Scripts) -> Box<dyn Painter + 'a> {
        Box::new(Prompted { parts: self, scripts })
    }
}

/// A loaded model with the prompts of one job.
struct Prompted<'a> {
    parts: &'a FluxParts,
    scripts: &'a Scripts,
}

impl Painter for Prompted<'_> {
    fn vae(&self) -> &Vae {
        &self.parts.vae
    }

    fn device(&self) -> &Device {
        &self.parts.compute.device
    }

    fn is_inpainting_model(&self) -> bool {
        self.parts.is_fill()
    }

    fn draws_unused_latents(&self) -> bool {
        true
    }

    fn scheduler(&self, request: &GenerationRequest) -> Result<Box<dyn Scheduler>, PipelineError> {
        self.parts.scheduler_of(request)
    }

    fn denoiser<'a>(
        &'a self,
        request: &'a GenerationRequest,
        shape: LatentShape,
        beside: Option<Beside<'_>>,
    ) -> Result<Box<dyn Predict + 'a>, PipelineError> {
        let beside = beside.map(|beside| (beside.mask, beside.masked));
        Ok(Box::new(self.parts.velocity(request, self.scripts, shape, beside)?))
    }
}
