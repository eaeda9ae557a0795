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
            let too_many = self.finished.len() > self.bounds.keep_jobs;
            if !too_many && ended.elapsed() < self.bounds.keep_for {
                break;
            }
            self.finished.pop_front();
            if let Some(key) = self.jobs.remove(&id).and_then(|job| job.key) {
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
        self.finished.push_back((id, Instant::now()));
        self.expire();
    }
}

fn queued_s(job: &Job) -> f64 {
    let started = job.started_at.unwrap_or(job.created_at);
    started.duration_since(job.created_at).unwrap_or_default().as_secs_f64()
}
