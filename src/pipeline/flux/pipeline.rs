//! FLUX behind the pipeline's boundary.

use std::path::PathBuf;
use std::time::Instant;

use candle_core::Device;
use image::RgbImage;

use super::model::{FluxParts, true_cfg};
use super::velocity::Scripts;
use crate::domain::event::{Generation, Timings};
use crate::domain::model::ModelInfo;
use crate::domain::request::{GenerationRequest, LoraRef, Operation};
use crate::models::vae::Vae;
use crate::pipeline::colours::find_colours;
use crate::pipeline::denoise::Predict;
use crate::pipeline::job::{Beside, Job, Painter};
use crate::pipeline::latents::LatentShape;
use crate::pipeline::loras::JobLoras;
use crate::pipeline::output::encode;
use crate::pipeline::preview::Previewer;
use crate::pipeline::tags::read_tags;
use crate::pipeline::{Pipeline, PipelineError, Watch};
use crate::schedulers::Scheduler;

/// A loaded FLUX.1 model.
pub struct Flux {
    info: ModelInfo,
    parts: FluxParts,
    loras: JobLoras,
}

impl Flux {
    /// A pipeline of loaded parts.
    #[must_use]
    pub fn new(info: ModelInfo, parts: FluxParts, lora_dir: Option<PathBuf>) -> Self {
        Self {
            info,
            parts,
            loras: JobLoras::new(lora_dir),
        }
    }

    fn apply_loras(&mut self, wanted: &[LoraRef], warnings: &mut Vec<String>) -> Result<(), PipelineError> {
        let parts = &mut self.parts;
        let applied = self.loras.apply(wanted, || parts.layers());
        if applied
            .as_ref()
            .map_or(true, |applied| applied.changed && applied.touches_text)
        {
            parts.text.forget();
        }
        let applied = applied?;
        warnings.extend(applied.warnings);
        Ok(())
    }

    fn run(
        &mut self,
        request: &GenerationRequest,
        watch: &mut dyn Watch,
        timings: &mut Timings,
    ) -> Result<(Vec<RgbImage>, Vec<String>), PipelineError> {
        self.refuse(request)?;
        let mut warnings = Vec::new();
        let tags = read_tags(request, &mut warnings)?;
        if watch.cancelled() {
            return Err(PipelineError::Cancelled);
        }
        let started = Instant::now();
        let wanted = [request.loras.as_slice(), &tags.loras].concat();
        self.apply_loras(&wanted, &mut warnings)?;
        timings.lora_s = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let scripts = self.read(request, &tags.text, &mut warnings)?;
        timings.text_encode_s += started.elapsed().as_secs_f64();
        if request.preview_every > 0 && self.parts.previewer.is_none() {
            let colours = find_colours(&self.parts.vae, &self.parts.compute.device)?;
            self.parts.previewer = Some(Previewer::Colours(colours));
        }
        let mut job = Job {
            painter: &Prompted {
                parts: &self.parts,
                scripts: &scripts,
            },
            request,
            previewer: self.parts.previewer.as_ref(),
            timings,
        };
        Ok((job.paint(watch)?, warnings))
    }

    /// Refuses what FLUX has no such thing for.
    fn refuse(&self, request: &GenerationRequest) -> Result<(), PipelineError> {
        let unsupported = |field, message: &str| {
            Err(PipelineError::Unsupported {
                field,
                message: message.to_owned(),
            })
        };
        if self.parts.is_fill() && !matches!(request.operation, Operation::Inpaint { .. }) {
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

    /// Reads the prompts, and drops the text encoders where they are not to stay.
    fn read(
        &mut self,
        request: &GenerationRequest,
        prompt: &str,
        warnings: &mut Vec<String>,
    ) -> Result<Scripts, PipelineError> {
        let steps = self.parts.scheduler_of(request)?.steps();
        let text = &mut self.parts.text;
        let prompt = text.script(prompt, request.prompt_syntax, steps)?;
        let negative = if true_cfg(request).is_used() {
            Some(text.script(&request.negative_prompt, request.prompt_syntax, steps)?)
        } else {
            None
        };
        if self.parts.compute.drops_encoders() {
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
}

impl Pipeline for Flux {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn generate(&mut self, request: &GenerationRequest, watch: &mut dyn Watch) -> Result<Generation, PipelineError> {
        let started = Instant::now();
        let mut timings = Timings::default();
        let (pictures, warnings) = self.run(request, watch, &mut timings)?;
        let images = pictures
            .iter()
            .zip(0..)
            .map(|(picture, index)| encode(picture, request, &self.info, index))
            .collect::<Result<_, _>>()?;
        timings.total_s = started.elapsed().as_secs_f64();
        Ok(Generation {
            images,
            timings,
            warnings,
        })
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
