//! A pipeline that follows a script instead of a model.

use std::io::Cursor;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use image::{ImageFormat, RgbImage};
use sd_worker::domain::event::{Generation, Step, Timings};
use sd_worker::domain::model::{Defaults, Family, ModelInfo};
use sd_worker::domain::picture::{EncodedImage, OutputFormat, Size};
use sd_worker::domain::request::{GenerationRequest, Operation, OperationKind};
use sd_worker::domain::sampling::{Sampler, Schedule};
use sd_worker::pipeline::{Pipeline, PipelineError, Watch};

/// How the pipeline behaves, and what it has done. Prompts that begin with `panic`, `fail` or `refuse` do so at step 2.
#[derive(Default)]
pub struct Script {
    /// Whether each step waits for [`Script::allow`].
    gated: AtomicBool,
    allowed: Mutex<usize>,
    changed: Condvar,
    /// Whether the decoder waits until it is cancelled.
    pub hold_decode: AtomicBool,
    /// Loads begun.
    pub loads: AtomicUsize,
    /// Runs begun.
    pub runs: AtomicUsize,
    /// Steps done.
    pub steps: AtomicUsize,
    /// Decodes begun.
    pub decodes: AtomicUsize,
    /// Prompts in the order in which they ran.
    pub prompts: Mutex<Vec<String>>,
    /// Requests in the order in which they ran.
    pub requests: Mutex<Vec<GenerationRequest>>,
}

impl Script {
    /// From now on each step waits to be allowed.
    pub fn gate(&self) {
        self.gated.store(true, Ordering::SeqCst);
    }

    /// Allows so many steps more.
    pub fn allow(&self, steps: usize) {
        *self.allowed.lock().unwrap() += steps;
        self.changed.notify_all();
    }

    /// Lets everything run freely.
    pub fn open(&self) {
        self.gated.store(false, Ordering::SeqCst);
        self.hold_decode.store(false, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Reads a counter.
    pub fn count(&self, counter: impl Fn(&Self) -> &AtomicUsize) -> usize {
        counter(self).load(Ordering::SeqCst)
    }

    /// Waits for permission; `false` if the job is cancelled meanwhile.
    fn pass(&self, watch: &dyn Watch) -> bool {
        let mut allowed = self.allowed.lock().unwrap();
        while self.gated.load(Ordering::SeqCst) {
            if watch.cancelled() {
                return false;
            }
            if *allowed > 0 {
                *allowed -= 1;
                return true;
            }
            allowed = self.changed.wait_timeout(allowed, Duration::from_millis(2)).unwrap().0;
        }
        !watch.cancelled()
    }
}

/// See [`Script`].
pub struct FakePipeline {
    pub script: std::sync::Arc<Script>,
    pub info: ModelInfo,
}

impl Pipeline for FakePipeline {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn generate(&mut self, request: &GenerationRequest, watch: &mut dyn Watch) -> Result<Generation, PipelineError> {
        let script = self.script.clone();
        script.runs.fetch_add(1, Ordering::SeqCst);
        script.prompts.lock().unwrap().push(request.prompt.clone());
        script.requests.lock().unwrap().push(request.clone());
        watch.begins(request.steps);
        for step in 1..=request.steps {
            if !script.pass(watch) {
                return Err(PipelineError::Cancelled);
            }
            if step == 2 {
                misbehave(&request.prompt)?;
            }
            script.steps.fetch_add(1, Ordering::SeqCst);
            let at = Step {
                step,
                total: request.steps,
            };
            watch.step(at);
            if request.preview_every > 0 && step % request.preview_every == 0 {
                watch.preview(at, RgbImage::new(8, 8));
            }
        }
        if watch.cancelled() {
            return Err(PipelineError::Cancelled);
        }
        script.decodes.fetch_add(1, Ordering::SeqCst);
        while script.hold_decode.load(Ordering::SeqCst) {
            if watch.cancelled() {
                return Err(PipelineError::Cancelled);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(Generation {
            images: (0..request.count).map(|index| picture(request, index)).collect(),
            timings: Timings {
                total_s: 0.5,
                ..Timings::default()
            },
            warnings: request
                .prompt
                .strip_prefix("warn ")
                .map(str::to_owned)
                .into_iter()
                .collect(),
        })
    }
}

fn misbehave(prompt: &str) -> Result<(), PipelineError> {
    match prompt.split(' ').next() {
        Some("panic") => panic!("told to panic"),
        Some("fail") => Err(PipelineError::NotFinite { part: "fake" }),
        Some("refuse") => Err(PipelineError::Unsupported {
            field: "loras",
            message: "no key of `x` fits this model".into(),
        }),
        _ => Ok(()),
    }
}

/// One colour, from the seed and, if there is one, the input picture.
fn picture(request: &GenerationRequest, index: u32) -> EncodedImage {
    let seed = request.seed.wrapping_add(index.into());
    let base = match &request.operation {
        Operation::TextToImage => 0,
        Operation::ImageToImage { image, .. } | Operation::Inpaint { image, .. } => image.0.get_pixel(0, 0).0[0],
    };
    let Size { width, height } = request.size;
    let pixels = RgbImage::from_pixel(width, height, image::Rgb([seed as u8, base, 0]));
    let format = match request.output_format {
        OutputFormat::Png => ImageFormat::Png,
        OutputFormat::Jpeg => ImageFormat::Jpeg,
        OutputFormat::Webp => ImageFormat::WebP,
    };
    let mut bytes = Cursor::new(Vec::new());
    pixels.write_to(&mut bytes, format).unwrap();
    EncodedImage {
        bytes: bytes.into_inner(),
        format: request.output_format,
        size: request.size,
        seed,
    }
}

/// A small model of a family that does everything.
pub fn info(family: Family) -> ModelInfo {
    let samplers = if family.is_flux() { Sampler::FLOW } else { Sampler::ALL };
    ModelInfo {
        name: "fake".into(),
        aliases: vec!["pretender".into()],
        family,
        source: "nowhere".into(),
        dtype: "f32".into(),
        quantization: None,
        device: "cpu".into(),
        operations: OperationKind::ALL.to_vec(),
        samplers: samplers.to_vec(),
        schedules: Schedule::ALL.to_vec(),
        defaults: Defaults {
            size: Size { width: 64, height: 64 },
            steps: 4,
            guidance_scale: if family == Family::FluxSchnell { 0.0 } else { 7.5 },
            sampler: Sampler::Euler,
            schedule: Schedule::Default,
            clip_skip: 1,
        },
    }
}
