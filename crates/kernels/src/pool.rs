//! The kernels' own threads: made once, asleep between calls, sharing one loop at a time by claiming its next index.
//!
//! The calling thread takes part. A call made while the pool is busy (from another thread, or from inside a task) runs on its
//! caller alone, so calls never wait for each other and nesting cannot lock up.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// How long an idle thread looks for the next loop before it sleeps: the gaps between the layers of a model are shorter.
const SPIN: Duration = Duration::from_micros(60);

/// One loop: an erased closure and where its indices stand.
struct Job {
    /// Points to the caller's closure, which outlives the job: the caller waits until `busy` is zero.
    run: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    next: AtomicUsize,
    /// Threads that may still touch `run`.
    busy: AtomicUsize,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

// SAFETY: `run` points to a Sync closure that is alive while any thread works on the job.
unsafe impl Send for Job {}
// SAFETY: as above; the rest is atomics and a mutex.
unsafe impl Sync for Job {}

impl Job {
    fn work(&self) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.tasks {
                return;
            }
            // SAFETY: the caller keeps the closure alive until `busy` falls to zero, which happens after this thread is done.
            let run = unsafe { &*self.run };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(index))) {
                self.next.store(self.tasks, Ordering::Relaxed);
                lock(&self.panic).get_or_insert(panic);
            }
        }
    }
}

struct State {
    job: Option<Arc<Job>>,
    epoch: usize,
    /// Helpers that may join; one with a higher number has been retired.
    helpers: usize,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    /// Copy of `State::epoch` to look at without the lock.
    epoch: AtomicUsize,
}

struct Pool {
    shared: Arc<Shared>,
    /// Held by the caller whose loop the pool runs; counts the helper threads.
    owner: Mutex<usize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| {
        let pool = Pool {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    job: None,
                    epoch: 0,
                    helpers: 0,
                }),
                wake: Condvar::new(),
                epoch: AtomicUsize::new(0),
            }),
            owner: Mutex::new(0),
        };
        let wanted = std::env::var("SD_KERNELS_THREADS").ok().and_then(|n| n.parse().ok());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        pool.resize(&mut lock(&pool.owner), wanted.unwrap_or(cores).max(1) - 1);
        pool
    })
}

impl Pool {
    fn resize(&self, count: &mut usize, helpers: usize) {
        lock(&self.shared.state).helpers = helpers;
        self.shared.wake.notify_all();
        let kept = (*count).min(helpers);
        *count = kept;
        for number in kept..helpers {
            let shared = Arc::clone(&self.shared);
            let spawned = std::thread::Builder::new()
                .name(format!("kernel-{number}"))
                .spawn(move || help(&shared, number));
            if spawned.is_err() {
                break;
            }
            *count += 1;
        }
    }
}

/// Life of a helper thread: wait for the next loop, take part, again, until retired.
fn help(shared: &Shared, number: usize) {
    let mut seen = 0;
    loop {
        let spin_until = Instant::now() + SPIN;
        while shared.epoch.load(Ordering::Acquire) == seen && Instant::now() < spin_until {
            for _ in 0..32 {
                std::hint::spin_loop();
            }
        }
        let mut state = lock(&shared.state);
        while state.epoch == seen && number < state.helpers {
            state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if number >= state.helpers {
            return;
        }
        seen = state.epoch;
        let Some(job) = state.job.clone() else { continue };
        job.busy.fetch_add(1, Ordering::AcqRel);
        drop(state);
        job.work();
        job.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Number of threads that share a loop, the caller included.
pub fn threads() -> usize {
    lock(&pool().shared.state).helpers + 1
}

/// Sets how many threads share a loop, the caller included (at least 1). At the start it is the number of cores, or
/// `SD_KERNELS_THREADS`.
pub fn set_threads(threads: usize) {
    let pool = pool();
    let mut count = lock(&pool.owner);
    pool.resize(&mut count, threads.max(1) - 1);
}

/// Calls `run(0)` to `run(tasks - 1)`, each once, in any order and on any of the threads; returns when all are done. A panic
/// of a task is raised again here.
pub fn parallel_for(tasks: usize, run: impl Fn(usize) + Sync) {
    if tasks <= 1 {
        (0..tasks).for_each(run);
        return;
    }
    let pool = pool();
    let _owner = match pool.owner.try_lock() {
        Ok(owner) if *owner > 0 => owner,
        Err(TryLockError::Poisoned(owner)) if **owner.get_ref() > 0 => owner.into_inner(),
        _ => {
            (0..tasks).for_each(run);
            return;
        }
    };
    share(&pool.shared, tasks, &run);
}

fn share(shared: &Shared, tasks: usize, run: &(dyn Fn(usize) + Sync)) {
    // SAFETY: only the lifetime is erased; this function does not return before every thread has let go of the job.
    let run = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(run) };
    let job = Arc::new(Job {
        run,
        tasks,
        next: AtomicUsize::new(0),
        busy: AtomicUsize::new(0),
        panic: Mutex::new(None),
    });
    {
        let mut state = lock(&shared.state);
        state.job = Some(Arc::clone(&job));
        state.epoch += 1;
        shared.epoch.store(state.epoch, Ordering::Release);
    }
    shared.wake.notify_all();
    job.work();
    // After this no helper can join any more, so `busy` only falls.
    lock(&shared.state).job = None;
    let mut spins = 0u32;
    while job.busy.load(Ordering::Acquire) > 0 {
        spins += 1;
        if spins > 2000 {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
    if let Some(panic) = lock(&job.panic).take() {
        resume_unwind(panic);
    }
}

/// Gives disjoint pieces of one slice to the tasks of a loop.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    life: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: pieces are handed out only through `piece`, whose caller promises that they do not overlap.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            life: std::marker::PhantomData,
        }
    }

    /// # Safety
    /// No two pieces alive at the same time may overlap.
    #[expect(
        clippy::mut_from_ref,
        reason = "that is its purpose; the caller promises disjoint pieces"
    )]
    pub(crate) unsafe fn piece(&self, from: usize, to: usize) -> &mut [T] {
        assert!(from <= to && to <= self.len, "piece {from}..{to} of {}", self.len);
        // SAFETY: in bounds, and disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), to - from) }
    }
}

/// Splits `out` into pieces of `size` elements (the last may be shorter) and runs them in parallel: `run(index, piece)`. Each
/// thread walks a stretch of its own, so that no two touch a new page for the first time together.
pub(crate) fn parallel_chunks<T: Send>(out: &mut [T], size: usize, run: impl Fn(usize, &mut [T]) + Sync) {
    let len = out.len();
    let size = size.max(1);
    let shared = SharedMut::new(out);
    let (pieces, stretches) = (len.div_ceil(size), threads());
    parallel_for(pieces, |index| {
        let index = in_stretches(index, pieces, stretches);
        // SAFETY: pieces of different indices do not overlap, and each index runs once.
        let piece = unsafe { shared.piece(index * size, ((index + 1) * size).min(len)) };
        run(index, piece);
    });
}

/// The `index`-th of `count` things that lie in so many stretches, in an order that goes from stretch to stretch.
fn in_stretches(index: usize, count: usize, stretches: usize) -> usize {
    let (stretch, place) = (index % stretches, index / stretches);
    stretch * (count / stretches) + stretch.min(count % stretches) + place
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_order_by_stretches_names_everything_once() {
        for (count, stretches) in [(0, 2), (1, 2), (7, 1), (7, 2), (8, 2), (11, 4), (3, 8)] {
            let mut order: Vec<usize> = (0..count).map(|i| in_stretches(i, count, stretches)).collect();
            if (count, stretches) == (7, 2) {
                assert_eq!(order, [0, 4, 1, 5, 2, 6, 3]);
            }
            order.sort_unstable();
            assert!(order.into_iter().eq(0..count), "{count} in {stretches}");
        }
    }

    #[test]
    fn every_index_runs_once() {
        for tasks in [0, 1, 2, 7, 1000] {
            let hits: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            parallel_for(tasks, |i| {
                hits[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn nested_and_concurrent_loops_finish() {
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        parallel_for(5, |_| {
                            parallel_for(3, |_| {
                                total.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 4 * 50 * 15);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let caught = catch_unwind(|| parallel_for(8, |i| assert!(i != 3, "task three")));
        assert!(caught.is_err());
        parallel_for(8, |_| {});
    }
}
