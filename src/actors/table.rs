//! The jobs of this worker: those that wait in order, the one that runs, and finished ones for a while.
//!
//! Plain data without actix: the jobs actor calls it, tests call it too.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

use super::messages::{CancelFlag, IdempotencyKey, JobsView, RunningView, Totals};
use super::reader::EventLog;
use crate::domain::event::{Generation, JobEvent, Numbered, Step};
use crate::domain::job::{JobError, JobId, JobSnapshot, JobState};
use crate::domain::picture::EncodedImage;
use crate::domain::request::GenerationRequest;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Jobs that may wait.
    pub capacity: usize,
    /// Finished jobs kept at most.
    pub keep_jobs: usize,
    /// How long a finished job is kept.
    pub keep_for: Duration,
    /// Bytes of pictures that are kept at most, besides those of the last job.
    pub keep_bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Table {
    bounds: Bounds,
    jobs: HashMap<JobId, Job>,
    waiting: VecDeque<JobId>,
    running: Option<Running>,
    /// Oldest first, by when they ended.
    finished: VecDeque<(JobId, Instant)>,
    /// Bytes of their pictures.
    kept_bytes: usize,
    keys: HashMap<String, (JobId, u64)>,
    admitted: u64,
    totals: Totals,
}

#[derive(Debug)]
struct Running {
    id: JobId,
    since: Instant,
    step: Option<Step>,
    left: Option<Duration>,
}

#[derive(Debug)]
struct Job {
    order: u64,
    state: JobState,
    /// Gone when the job has ended, with its input pictures.
    request: Option<Arc<GenerationRequest>>,
    seed: u64,
    cancel: CancelFlag,
    log: EventLog,
    step: Option<Step>,
    created_at: SystemTime,
    started_at: Option<SystemTime>,
    finished_at: Option<SystemTime>,
    result: Option<Arc<Generation>>,
    error: Option<JobError>,
    key: Option<String>,
}

impl Job {
    /// Bytes of its finished pictures.
    fn bytes(&self) -> usize {
        let images = self.result.iter().flat_map(|result| &result.images);
        images.map(|image| image.bytes.len()).sum()
    }
}

/// How a job ended.
#[derive(Debug)]
pub enum Ending {
    /// With pictures.
    Completed(Generation),
    /// With an error.
    Failed(JobError),
    /// Cancelled.
    Cancelled,
}

/// A job that is to run now.
#[derive(Debug)]
pub struct Next {
    /// Its name.
    pub id: JobId,
    /// What to paint.
    pub request: Arc<GenerationRequest>,
    /// Whether to stop.
    pub cancel: CancelFlag,
}

impl Table {
    /// An empty table.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            jobs: HashMap::new(),
            waiting: VecDeque::new(),
            running: None,
            finished: VecDeque::new(),
            kept_bytes: 0,
            keys: HashMap::new(),
            admitted: 0,
            totals: Totals::default(),
        }
    }

    /// Whether one more job may wait. A job that would start at once always may.
    pub fn has_room(&self, model_is_up: bool) -> bool {
        let starts_now = model_is_up && self.running.is_none() && self.waiting.is_empty();
        starts_now || self.waiting.len() < self.bounds.capacity
    }

    /// Notes that a job was turned away.
    pub fn reject(&mut self) {
        self.totals.rejected += 1;
    }

    /// When a place in the queue may be free: the mean time of a job, less what the running one has had.
    pub fn retry_after(&self) -> Duration {
        const GUESS_S: f64 = 5.0;
        let ended = self.totals.completed + self.totals.cancelled + self.totals.failed;
        let mean = if ended == 0 {
            GUESS_S
        } else {
            self.totals.busy_s / ended as f64
        };
        let had = self
            .running
            .as_ref()
            .map_or(0.0, |running| running.since.elapsed().as_secs_f64());
        Duration::from_secs((mean - had).ceil().clamp(1.0, 600.0) as u64)
    }

    /// The job that came with this key, and whether it was the same request.
    pub fn with_key(&self, key: &IdempotencyKey) -> Option<(JobId, bool)> {
        let (id, fingerprint) = self.keys.get(&key.key)?;
        Some((*id, *fingerprint == key.fingerprint))
    }

    /// Adds a job to the end of the queue.
    pub fn admit(&mut self, request: GenerationRequest, key: Option<IdempotencyKey>) -> JobId {
        let id = JobId::random();
        self.admitted += 1;
        let mut job = Job {
            order: self.admitted,
            state: JobState::Queued,
            seed: request.seed,
            request: Some(Arc::new(request)),
            cancel: CancelFlag::default(),
            log: EventLog::default(),
            step: None,
            created_at: SystemTime::now(),
            started_at: None,
            finished_at: None,
            result: None,
            error: None,
            key: key.as_ref().map(|key| key.key.clone()),
        };
        let position = self.ahead() + self.waiting.len();
        job.log.push(JobEvent::Queued { position });
        if let Some(IdempotencyKey { key, fingerprint }) = key {
            self.keys.insert(key, (id, fingerprint));
        }
        self.jobs.insert(id, job);
        self.waiting.push_back(id);
        id
    }

    /// Takes the first waiting job, if none runs.
    pub fn start_next(&mut self) -> Option<Next> {
        if self.running.is_some() {
            return None;
        }
        let id = self.waiting.pop_front()?;
        let job = self.jobs.get_mut(&id)?;
        let request = job.request.clone()?;
        job.state = JobState::Running;
        job.started_at = Some(SystemTime::now());
        job.log.push(JobEvent::Started);
        let cancel = job.cancel.clone();
        self.running = Some(Running {
            id,
            since: Instant::now(),
            step: None,
            left: None,
        });
        self.tell_positions();
        Some(Next { id, request, cancel })
    }

    /// The running job will have so many steps.
    pub fn begins(&mut self, id: JobId, total: u32) {
        let Some(running) = self.running.as_mut().filter(|running| running.id == id) else {
            return;
        };
        let step = Some(Step { step: 0, total });
        running.step = step;
        if let Some(job) = self.jobs.get_mut(&id) {
            job.step = step;
        }
    }

    /// A step of the running job is done.
    pub fn progress(&mut self, id: JobId, step: Step) {
        let Some(running) = self.running.as_mut().filter(|running| running.id == id) else {
            return;
        };
        let elapsed = running.since.elapsed();
        let left = elapsed.mul_f64(f64::from(step.total.saturating_sub(step.step)) / f64::from(step.step.max(1)));
        running.step = Some(step);
        running.left = Some(left);
        self.totals.steps += 1;
        if let Some(job) = self.jobs.get_mut(&id) {
            job.step = Some(step);
            job.log.push(JobEvent::Progress { step, elapsed, left });
        }
    }

    /// A preview of the running job.
    pub fn preview(&mut self, id: JobId, step: Step, image: EncodedImage) {
        if let Some(job) = self.jobs.get_mut(&id) {
            let image = Arc::new(image);
            job.log.push(JobEvent::Preview { step, image });
        }
    }

    /// The running job has ended. One that was cancelled on the way ends so, even if its pictures came.
    pub fn end_running(&mut self, id: JobId, ending: Ending) {
        let Some(running) = self.running.take_if(|running| running.id == id) else {
            return;
        };
        self.totals.busy_s += running.since.elapsed().as_secs_f64();
        let cancelled = self.jobs.get(&id).is_some_and(|job| job.cancel.is_set());
        self.end(id, if cancelled { Ending::Cancelled } else { ending });
    }

    /// Every waiting job ends so.
    pub fn end_waiting(&mut self, mut ending: impl FnMut() -> Ending) {
        for id in std::mem::take(&mut self.waiting) {
            self.end(id, ending());
        }
    }

    /// Cancels a job: at once if it waits, within a step if it runs; a finished one stays as it is.
    pub fn cancel(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        if job.state.is_final() {
            return;
        }
        job.cancel.set();
        if let Some(place) = self.waiting.iter().position(|waiting| *waiting == id) {
            self.waiting.remove(place);
            self.end(id, Ending::Cancelled);
            self.tell_positions();
        }
    }

    /// Cancels every job.
    pub fn cancel_all(&mut self) {
        self.end_waiting(|| Ending::Cancelled);
        if let Some(running) = &self.running {
            self.cancel(running.id);
        }
    }

    /// Ends the running job as cancelled without waiting for the model.
    pub fn abandon_running(&mut self) {
        if let Some(running) = self.running.take() {
            self.end(running.id, Ending::Cancelled);
        }
    }

    /// A new reader of a job.
    pub fn subscribe(&mut self, id: JobId, after: Option<u64>) -> Option<mpsc::Receiver<Numbered>> {
        self.jobs.get_mut(&id).map(|job| job.log.subscribe(after))
    }

    /// The pictures of a finished job.
    pub fn result(&self, id: JobId) -> Option<Arc<Generation>> {
        self.jobs.get(&id)?.result.clone()
    }

    /// How a job stands.
    pub fn snapshot(&self, id: JobId) -> Option<JobSnapshot> {
        let job = self.jobs.get(&id)?;
        let place = self.waiting.iter().position(|waiting| *waiting == id);
        Some(JobSnapshot {
            id,
            state: job.state,
            position: place.map(|place| place + self.ahead()),
            step: job.step.map_or(0, |step| step.step),
            total: job.step.map_or(0, |step| step.total),
            created_at: job.created_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
            seed: job.seed,
            images: job.result.as_ref().map_or(0, |result| result.images.len()),
            warnings: job
                .result
                .as_ref()
                .map_or_else(Vec::new, |result| result.warnings.clone()),
            error: job.error.clone(),
        })
    }

    /// All jobs, newest first.
    pub fn list(&self) -> Vec<JobSnapshot> {
        let mut ids: Vec<_> = self.jobs.iter().map(|(id, job)| (job.order, *id)).collect();
        ids.sort_unstable_by_key(|(order, _)| std::cmp::Reverse(*order));
        ids.into_iter().filter_map(|(_, id)| self.snapshot(id)).collect()
    }

    /// Forgets finished jobs that are too old or too many.
    pub fn expire(&mut self) {
        while let Some((id, ended)) = self.finished.front().copied() {
            let count = self.finished.len();
            let too_many = count > self.bounds.keep_jobs || (count > 1 && self.kept_bytes > self.bounds.keep_bytes);
            if !too_many && ended.elapsed() < self.bounds.keep_for {
                break;
            }
            self.finished.pop_front();
            let Some(job) = self.jobs.remove(&id) else { continue };
            self.kept_bytes -= job.bytes();
            if let Some(key) = job.key {
                self.keys.remove(&key);
            }
        }
    }

    /// How the queue stands.
    pub fn view(&self, draining: bool) -> JobsView {
        JobsView {
            depth: self.waiting.len(),
            capacity: self.bounds.capacity,
            running: self.running.as_ref().map(|running| RunningView {
                id: running.id,
                step: running.step.map_or(0, |step| step.step),
                total: running.step.map_or(0, |step| step.total),
                since: running.since,
                left: running.left,
            }),
            draining,
            totals: self.totals,
        }
    }

    /// Jobs before the first waiting one.
    fn ahead(&self) -> usize {
        usize::from(self.running.is_some())
    }

    fn tell_positions(&mut self) {
        let ahead = self.ahead();
        for (place, id) in self.waiting.iter().enumerate() {
            if let Some(job) = self.jobs.get_mut(id) {
                job.log.push(JobEvent::Queued {
                    position: place + ahead,
                });
            }
        }
    }

    fn end(&mut self, id: JobId, ending: Ending) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.request = None;
        job.finished_at = Some(SystemTime::now());
        let event = match ending {
            Ending::Completed(mut generation) => {
                generation.timings.queued_s = queued_s(job);
                let generation = Arc::new(generation);
                self.totals.completed += 1;
                self.totals.images += generation.images.len() as u64;
                job.state = JobState::Completed;
                job.result = Some(generation.clone());
                JobEvent::Completed(generation)
            }
            Ending::Failed(error) => {
                self.totals.failed += 1;
                job.state = JobState::Failed;
                job.error = Some(error.clone());
                JobEvent::Failed(error)
            }
            Ending::Cancelled => {
                self.totals.cancelled += 1;
                job.state = JobState::Cancelled;
                JobEvent::Cancelled
            }
        };
        job.log.push(event);
        self.kept_bytes += job.bytes();
        self.finished.push_back((id, Instant::now()));
        self.expire();
    }
}

fn queued_s(job: &Job) -> f64 {
    let started = job.started_at.unwrap_or(job.created_at);
    started.duration_since(job.created_at).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::Timings;
    use crate::domain::picture::{OutputFormat, Size};
    use crate::domain::request::{Operation, PromptSyntax, StepCache};
    use crate::domain::sampling::{Sampler, Schedule};

    const SIZE: Size = Size { width: 64, height: 64 };

    fn table(change: impl FnOnce(&mut Bounds)) -> Table {
        let mut bounds = Bounds {
            capacity: 2,
            keep_jobs: 10,
            keep_for: Duration::from_secs(60),
            keep_bytes: 1000,
        };
        change(&mut bounds);
        Table::new(bounds)
    }

    fn request() -> GenerationRequest {
        GenerationRequest {
            operation: Operation::TextToImage,
            prompt: "x".into(),
            negative_prompt: String::new(),
            prompt_syntax: PromptSyntax::A1111,
            size: SIZE,
            steps: 4,
            guidance_scale: 7.5,
            guidance_interval: (0.0, 1.0),
            true_cfg_scale: 1.0,
            seed: 1,
            count: 1,
            sampler: Sampler::Euler,
            schedule: Schedule::Default,
            loras: Vec::new(),
            clip_skip: 1,
            eta: 0.0,
            preview_every: 0,
            size_conditioning: None,
            step_cache: StepCache::Off,
            output_format: OutputFormat::Png,
        }
    }

    fn painted(bytes: usize) -> Ending {
        Ending::Completed(Generation {
            images: vec![EncodedImage {
                bytes: vec![0; bytes],
                format: OutputFormat::Png,
                size: SIZE,
                seed: 1,
            }],
            timings: Timings::default(),
            warnings: Vec::new(),
        })
    }

    fn finish(table: &mut Table, bytes: usize) -> JobId {
        let id = table.admit(request(), None);
        table.start_next().unwrap();
        table.end_running(id, painted(bytes));
        id
    }

    #[test]
    fn finished_jobs_are_kept_by_the_weight_of_their_pictures() {
        let mut table = table(|_| {});
        let light = finish(&mut table, 400);
        let middle = finish(&mut table, 400);
        assert!(table.snapshot(light).is_some());
        let heavy = finish(&mut table, 500);
        assert!(table.snapshot(light).is_none() && table.snapshot(middle).is_some());
        let giant = finish(&mut table, 5000);
        assert!(table.snapshot(middle).is_none() && table.snapshot(heavy).is_none());
        assert!(table.result(giant).is_some(), "the last one is always kept");
    }

    #[test]
    fn a_job_that_starts_at_once_needs_no_place_in_the_queue() {
        let mut table = table(|bounds| bounds.capacity = 1);
        assert!(table.has_room(true) && table.has_room(false));
        table.admit(request(), None);
        assert!(!table.has_room(false));
        table.start_next().unwrap();
        assert!(table.has_room(true));
        table.admit(request(), None);
        assert!(!table.has_room(true));
    }

    #[test]
    fn what_is_said_of_another_job_than_the_running_one_is_ignored() {
        let mut table = table(|_| {});
        let old = finish(&mut table, 1);
        let id = table.admit(request(), None);
        table.start_next().unwrap();
        table.end_running(old, Ending::Cancelled);
        table.progress(old, Step { step: 1, total: 4 });
        assert_eq!(table.snapshot(old).unwrap().state, JobState::Completed);
        assert_eq!(table.snapshot(id).unwrap().step, 0);
        assert!(table.view(false).running.is_some());
    }
}
