//! The model actor: loads the pipeline in a thread of its own and paints one job at a time.
//!
//! Its thread does nothing else, so a run simply blocks it. The pipeline is built there and never leaves; a panic costs
//! the job at hand and the pipeline, which is then loaded again. The thread ends with the process.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use actix::{Actor, Addr, Arbiter, Context, Handler};
use image::RgbImage;
use thread_priority::{ThreadPriority, ThreadPriorityValue};
use tokio::sync::watch;
use tracing::span::EnteredSpan;

use super::jobs::JobsActor;
use super::messages::{
    Begins, CancelFlag, Cancelled, Done, Failed, Generate, ModelDown, ModelState, ModelUp, Preview, Progress,
};
use crate::domain::event::Step;
use crate::domain::job::{JobError, JobErrorKind, JobId};
use crate::domain::model::ModelInfo;
use crate::domain::picture::{EncodedImage, OutputFormat, Size};
use crate::pipeline::{LoadWatch, Pipeline, PipelineError, Watch, image_io};

/// Why a model could not be loaded.
pub type LoadError = Box<dyn std::error::Error + Send + Sync>;

/// Builds the pipeline, in the model's thread, whenever one is needed.
pub type Loader = Box<dyn FnMut(&mut dyn LoadWatch) -> Result<Box<dyn Pipeline>, LoadError> + Send>;

/// What the model actor is made of.
pub struct ModelParts {
    /// Builds the pipeline.
    pub loader: Loader,
    /// Whom to tell.
    pub jobs: Addr<JobsActor>,
    /// Where the state is published.
    pub state: watch::Sender<ModelState>,
    /// Name of the worker, for the logs.
    pub worker: String,
    /// Niceness of the model's threads.
    pub niceness: u8,
}

/// See the module.
pub struct ModelActor {
    parts: ModelParts,
    pipeline: Option<Box<dyn Pipeline>>,
    _worker: EnteredSpan,
}

impl ModelActor {
    /// Starts the actor in `arbiter`'s thread, where it loads at once.
    pub fn start_in(arbiter: &Arbiter, parts: ModelParts) -> Addr<Self> {
        Self::start_in_arbiter(&arbiter.handle(), move |_| {
            let worker = tracing::info_span!("worker", worker = %parts.worker).entered();
            lower_priority(parts.niceness);
            Self {
                parts,
                pipeline: None,
                _worker: worker,
            }
        })
    }

    /// Loads the pipeline and tells everybody how it went. `again` is the model that was lost.
    fn load(&mut self, again: Option<Arc<ModelInfo>>) {
        let begun = Instant::now();
        match self.build(again) {
            Ok(pipeline) => {
                let info = Arc::new(pipeline.info().clone());
                self.pipeline = Some(pipeline);
                // In this order: whoever sees that the model is there finds the jobs actor knowing it.
                self.parts.jobs.do_send(ModelUp);
                self.parts.state.send_replace(ModelState::Ready(info.clone()));
                tracing::info!(model = %info.name, seconds = begun.elapsed().as_secs_f64(), "model loaded");
            }
            Err(reason) => {
                let failed = ModelState::Failed { reason: reason.clone() };
                self.parts.state.send_replace(failed);
                self.parts.jobs.do_send(ModelDown { reason: reason.clone() });
                tracing::error!(%reason, "the model could not be loaded");
            }
        }
    }

    fn build(&mut self, again: Option<Arc<ModelInfo>>) -> Result<Box<dyn Pipeline>, String> {
        let mut progress = LoadProgress {
            state: &self.parts.state,
            again,
        };
        progress.progress("starting", 0.0);
        let loader = &mut self.parts.loader;
        match catch_unwind(AssertUnwindSafe(|| loader(&mut progress))) {
            Ok(Ok(pipeline)) => Ok(pipeline),
            Ok(Err(error)) => Err(error.to_string()),
            Err(panic) => Err(format!("panic while loading: {}", panic_text(&*panic))),
        }
    }

    /// The pipeline panicked: it cannot be trusted any more.
    fn reload(&mut self) {
        let Some(pipeline) = self.pipeline.take() else { return };
        let info = Arc::new(pipeline.info().clone());
        // A broken pipeline may panic again while it is dropped.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(pipeline)));
        self.load(Some(info));
    }

    fn paint(&mut self, generate: &Generate) {
        let Generate { id, request, cancel } = generate;
        let id = *id;
        let jobs = &self.parts.jobs;
        let Some(pipeline) = self.pipeline.as_mut() else {
            jobs.do_send(failed(id, JobErrorKind::Unavailable, "no model is loaded".into(), true));
            return;
        };
        let mut watch = RunWatch::new(id, cancel, jobs);
        let outcome = catch_unwind(AssertUnwindSafe(|| pipeline.generate(request, &mut watch)));
        drop(watch);
        match outcome {
            Ok(Ok(generation)) => jobs.do_send(Done { id, generation }),
            Ok(Err(PipelineError::Cancelled)) => jobs.do_send(Cancelled { id }),
            Ok(Err(error)) => {
                let kind = match error.field() {
                    Some(field) => JobErrorKind::BadRequest { field: field.into() },
                    None => JobErrorKind::Model,
                };
                jobs.do_send(failed(id, kind, error.to_string(), false));
            }
            Err(panic) => {
                let message = format!("the model panicked: {}", panic_text(&*panic));
                jobs.do_send(failed(id, JobErrorKind::Model, message, true));
                self.reload();
            }
        }
    }
}

impl Actor for ModelActor {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        self.load(None);
    }
}

impl Handler<Generate> for ModelActor {
    type Result = ();

    fn handle(&mut self, generate: Generate, _: &mut Self::Context) {
        let _job = tracing::info_span!("job", job = %generate.id).entered();
        self.paint(&generate);
    }
}

fn failed(id: JobId, kind: JobErrorKind, message: String, model_lost: bool) -> Failed {
    Failed {
        id,
        error: JobError { kind, message },
        model_lost,
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// Makes this thread, and those it will start, yield to the threads that answer HTTP.
///
/// On Linux the niceness belongs to the thread, and threads inherit it from the one that starts them.
fn lower_priority(niceness: u8) {
    if niceness == 0 {
        return;
    }
    // The crate spreads niceness 19..-20 over 0..99; half a step more keeps its rounding on the value meant.
    let share = 1.0 - (f32::from(niceness) + 20.5) / 39.0;
    let value = ThreadPriorityValue::try_from((share * 99.0).max(0.0) as u8);
    let set = value.map(|value| ThreadPriority::Crossplatform(value).set_for_current());
    if !matches!(set, Ok(Ok(()))) {
        tracing::warn!(niceness, "the priority of the model's thread could not be lowered");
    }
}

/// Publishes how far the load is.
struct LoadProgress<'a> {
    state: &'a watch::Sender<ModelState>,
    again: Option<Arc<ModelInfo>>,
}

impl LoadWatch for LoadProgress<'_> {
    fn progress(&mut self, stage: &str, fraction: f32) {
        self.state.send_replace(ModelState::Loading {
            stage: stage.to_owned(),
            fraction,
            again: self.again.clone(),
        });
    }
}

/// Passes on what happens in a run.
struct RunWatch<'a> {
    id: JobId,
    cancel: &'a CancelFlag,
    jobs: &'a Addr<JobsActor>,
    /// Open while a step is computed, so that what is logged meanwhile carries its number.
    step: Option<EnteredSpan>,
}

impl<'a> RunWatch<'a> {
    fn new(id: JobId, cancel: &'a CancelFlag, jobs: &'a Addr<JobsActor>) -> Self {
        let mut watch = Self {
            id,
            cancel,
            jobs,
            step: None,
        };
        watch.enter(1);
        watch
    }

    fn enter(&mut self, step: u32) {
        // The span before must close first: spans close in the order of a stack.
        self.step = None;
        self.step = Some(tracing::info_span!("step", step).entered());
    }
}

impl Watch for RunWatch<'_> {
    fn cancelled(&self) -> bool {
        self.cancel.is_set()
    }

    fn begins(&mut self, total: u32) {
        self.jobs.do_send(Begins { id: self.id, total });
    }

    fn step(&mut self, step: Step) {
        tracing::debug!(total = step.total, "step done");
        self.jobs.do_send(Progress { id: self.id, step });
        if step.step < step.total {
            self.enter(step.step + 1);
        } else {
            self.step = None;
        }
    }

    fn preview(&mut self, step: Step, image: RgbImage) {
        match encode_preview(&image) {
            Ok(image) => self.jobs.do_send(Preview {
                id: self.id,
                step,
                image,
            }),
            Err(error) => tracing::warn!(%error, "a preview could not be encoded"),
        }
    }
}

fn encode_preview(image: &RgbImage) -> Result<EncodedImage, image::ImageError> {
    Ok(EncodedImage {
        bytes: image_io::encode(image, OutputFormat::Png, image_io::DEFAULT_JPEG_QUALITY, None)?,
        format: OutputFormat::Png,
        size: Size {
            width: image.width(),
            height: image.height(),
        },
        seed: 0,
    })
}
