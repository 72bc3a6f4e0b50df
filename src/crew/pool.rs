//! The worker pool: threads for jobs that may wait, as many as are needed at the moment.
//!
//! It is one member of the crew, with many threads. It grows by a thread when a job finds no idle worker, up to a limit;
//! a worker that was idle for [`IDLE_TIMEOUT`] ends. If the system cannot create a thread, the job waits for a busy
//! worker, or is handed back when there is none.
//!
//! One lock guards all of it, held for a few instructions. So the number of idle workers is exact, and no job is queued
//! behind a worker that another job was promised.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::crew::member::{Exit, SlotId, thread_name};
use crate::crew::message::ExitGuard;
use crate::sync::{ignore_poison, lock};
use crate::text::panic_message;

/// Time after which an idle worker ends: longer than the pauses between bursts, short enough to give back the memory of a
/// burst.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Workers that never time out, so that the first slow request after a pause needs no new thread.
const MIN_WORKERS: usize = 1;

/// Workers beyond the pool's limit, for urgent jobs: an operator's `/status` and `/shutdown` run even if all other
/// workers are busy.
const RESERVED_WORKERS: usize = 4;

/// A job of a [`Pool`].
pub(crate) trait Work: Send + 'static {
    /// Identifies the job in [`Pool::running_jobs`].
    type Id: Clone + Send;

    fn id(&self) -> Self::Id;

    fn run(self);
}

/// Numbers of a pool at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PoolStats {
    pub(crate) threads: usize,
    pub(crate) busy: usize,
    pub(crate) queued: usize,
    pub(crate) max_threads: usize,
}

/// A job that a worker is running.
#[derive(Clone, Debug)]
pub(crate) struct RunningJob<Id> {
    /// The number in the thread's name, `worker-N`.
    pub(crate) worker: u64,
    pub(crate) since: Instant,
    pub(crate) id: Id,
}

/// A pool of worker threads with a bounded queue.
pub(crate) struct Pool<W: Work> {
    state: Mutex<State<W>>,
    /// Wakes one idle worker for a job, or all of them for the end.
    work: Condvar,
    max_threads: usize,
    max_queued: usize,
    guard: ExitGuard,
}

struct State<W: Work> {
    jobs: VecDeque<W>,
    /// Workers that wait for a job.
    idle: usize,
    /// Workers that were created and have not taken the lock yet.
    starting: usize,
    threads: usize,
    closing: bool,
    next: u64,
    handles: HashMap<u64, JoinHandle<()>>,
    /// The handle of the worker that ended last. The next one to end joins it, or [`Pool::join`].
    last_exited: Option<JoinHandle<()>>,
    running: HashMap<u64, (Instant, W::Id)>,
}

impl<W: Work> Pool<W> {
    /// A pool of at most `max_threads` threads, with room for `max_queued` jobs when all are busy. `guard` reports its
    /// end.
    pub(crate) fn new(max_threads: usize, max_queued: usize, guard: ExitGuard) -> Arc<Pool<W>> {
        Arc::new(Pool {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                idle: 0,
                starting: 0,
                threads: 0,
                closing: false,
                next: 1,
                handles: HashMap::new(),
                last_exited: None,
                running: HashMap::new(),
            }),
            work: Condvar::new(),
            max_threads: max_threads.max(1),
            max_queued,
            guard,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        lock(&self.state)
    }

    /// The pool's place among the members.
    pub(crate) fn slot(&self) -> SlotId {
        self.guard.slot()
    }

    /// Gives a job to a worker, a new one if none is idle. Never blocks.
    /// Errors: the job itself, if all workers are busy and the queue is full, or the pool is closing.
    pub(crate) fn submit(self: &Arc<Self>, job: W) -> Result<(), W> {
        self.submit_to(self.max_threads, job)
    }

    /// Gives a job to a worker before those that are queued, and to one of [`RESERVED_WORKERS`] if all others are busy.
    /// Never blocks.
    /// Errors: as for [`submit`](Pool::submit), the reserved workers included.
    pub(crate) fn submit_urgent(self: &Arc<Self>, job: W) -> Result<(), W> {
        self.submit_to(self.max_threads + RESERVED_WORKERS, job)
    }

    fn submit_to(self: &Arc<Self>, max_threads: usize, job: W) -> Result<(), W> {
        let mut state = self.lock();
        if state.closing {
            return Err(job);
        }
        // As many queued jobs as there are idle workers are about to be taken by them.
        if state.idle + state.starting > state.jobs.len() {
            state.jobs.push_back(job);
            self.work.notify_one();
            return Ok(());
        }
        if state.threads < max_threads {
            match self.spawn_worker(&mut state) {
                Ok(()) if state.threads > self.max_threads => {
                    state.jobs.push_front(job); // the reserved worker is for this job, not for those that are queued
                    return Ok(());
                }
                Ok(()) => {
                    state.jobs.push_back(job);
                    return Ok(());
                }
                Err(error) if state.threads == 0 => {
                    log::warn!("cannot spawn a thread for a worker: {error}");
                    return Err(job);
                }
                Err(_) => {} // a busy worker will take the job
            }
        }
        if state.jobs.len() < self.max_queued + state.idle + state.starting {
            state.jobs.push_back(job);
            return Ok(());
        }
        Err(job)
    }

    /// Creates a worker while the lock is held, so that it finds its handle and its job when it takes the lock itself.
    fn spawn_worker(self: &Arc<Self>, state: &mut State<W>) -> std::io::Result<()> {
        let number = state.next;
        let pool = Arc::clone(self);
        let name = thread_name(&format!("worker-{number}"));
        let handle = thread::Builder::new().name(name).spawn(move || pool.worker_loop(number))?;
        state.handles.insert(number, handle);
        state.next += 1;
        state.threads += 1;
        state.starting += 1;
        Ok(())
    }

    fn worker_loop(&self, number: u64) {
        let mut state = self.lock();
        state.starting -= 1;
        loop {
            if let Some(job) = state.jobs.pop_front() {
                state.running.insert(number, (Instant::now(), job.id()));
                drop(state);
                // Panics of handlers are caught inside the job. One that arrives here is a bug of this crate.
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job.run())) {
                    self.guard.report(Exit::Panicked(panic_message(payload)));
                }
                state = self.lock();
                state.running.remove(&number);
                if state.threads > self.max_threads {
                    break; // one thread more than the limit was for an urgent job; the others take the queued ones
                }
                continue;
            }
            if state.closing {
                break;
            }
            state.idle += 1;
            let timed_out;
            if state.threads <= MIN_WORKERS {
                state = ignore_poison(self.work.wait(state));
                timed_out = false;
            } else {
                let (again, result) = ignore_poison(self.work.wait_timeout(state, IDLE_TIMEOUT));
                state = again;
                timed_out = result.timed_out();
            }
            state.idle -= 1;
            if timed_out && state.jobs.is_empty() && state.threads > MIN_WORKERS {
                break;
            }
        }
        state.threads -= 1;
        let own = state.handles.remove(&number);
        let before = std::mem::replace(&mut state.last_exited, own);
        let last = state.closing && state.threads == 0;
        drop(state);
        if let Some(before) = before {
            let _ = before.join(); // it has released the lock for the last time, and its panics were caught
        }
        if last {
            self.guard.report(Exit::Finished);
        }
    }

    /// Takes no more jobs. Workers end when the queue is empty; the last one reports the pool's exit.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closing = true;
        let empty = state.threads == 0;
        drop(state);
        self.work.notify_all();
        if empty {
            self.guard.report(Exit::Finished);
        }
    }

    /// Joins the worker that ended last. Call it after the pool has reported its exit.
    pub(crate) fn join(&self) {
        let last = self.lock().last_exited.take();
        if let Some(last) = last {
            let _ = last.join();
        }
    }

    pub(crate) fn stats(&self) -> PoolStats {
        let state = self.lock();
        PoolStats {
            threads: state.threads,
            busy: state.running.len(),
            queued: state.jobs.len(),
            max_threads: self.max_threads,
        }
    }

    /// The jobs that workers are running, the oldest first.
    pub(crate) fn running_jobs(&self) -> Vec<RunningJob<W::Id>> {
        let job = |(worker, (since, id)): (&u64, &(Instant, W::Id))| RunningJob {
            worker: *worker,
            since: *since,
            id: id.clone(),
        };
        let mut jobs: Vec<_> = self.lock().running.iter().map(job).collect();
        jobs.sort_by_key(|job| job.since);
        jobs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crew::Crew;
    use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

    const SAFETY: Duration = Duration::from_secs(20);

    enum Job {
        Wait(Sender<()>, Receiver<()>),
        Panic,
    }

    impl Work for Job {
        type Id = ();

        fn id(&self) {}

        fn run(self) {
            match self {
                Job::Wait(begun, go) => {
                    begun.send(()).unwrap();
                    let _ = go.recv();
                }
                Job::Panic => std::panic::resume_unwind(Box::new("a bug")),
            }
        }
    }

    fn pool(max_threads: usize, max_queued: usize) -> (Crew, Arc<Pool<Job>>) {
        let mut crew = Crew::new();
        let guard = crew.reserve("workers");
        (crew, Pool::new(max_threads, max_queued, guard))
    }

    #[test]
    fn jobs_run_at_once_up_to_the_limit_then_queue_and_then_are_handed_back() {
        let (_crew, pool) = pool(8, 2);
        let (begun, begins) = unbounded();
        let (go, gone) = bounded::<()>(0);
        let job = || Job::Wait(begun.clone(), gone.clone());
        for _ in 0..8 {
            assert!(pool.submit(job()).is_ok());
        }
        for n in 0..8 {
            begins.recv_timeout(SAFETY).unwrap_or_else(|_| panic!("only {n} of 8 jobs began"));
        }
        assert!(pool.submit(job()).is_ok() && pool.submit(job()).is_ok());
        assert!(pool.submit(job()).is_err(), "the queue holds two");
        assert_eq!(pool.stats(), PoolStats { threads: 8, busy: 8, queued: 2, max_threads: 8 });
        assert_eq!(pool.running_jobs().len(), 8);
        drop(go);
        for _ in 0..2 {
            begins.recv_timeout(SAFETY).expect("queued jobs run in the end");
        }
        pool.close();
    }

    #[test]
    fn an_urgent_job_runs_although_all_workers_are_busy_and_the_queue_is_full() {
        let (_crew, pool) = pool(1, 1);
        let (begun, begins) = unbounded();
        let (go, gone) = bounded::<()>(0);
        let job = || Job::Wait(begun.clone(), gone.clone());
        assert!(pool.submit(job()).is_ok());
        begins.recv_timeout(SAFETY).expect("the first job runs");
        assert!(pool.submit(job()).is_ok() && pool.submit(job()).is_err(), "one is queued");
        for _ in 0..RESERVED_WORKERS {
            assert!(pool.submit_urgent(job()).is_ok());
            begins.recv_timeout(SAFETY).expect("an urgent job runs at once");
        }
        assert!(pool.submit_urgent(job()).is_err(), "their number is limited");
        assert_eq!(pool.stats().queued, 1, "the queued job waits for the pool's own worker");
        drop(go);
        begins.recv_timeout(SAFETY).expect("the queued job runs in the end");
        pool.close();
    }

    #[test]
    fn a_closed_pool_finishes_its_jobs_and_reports_once() {
        let (mut crew, pool) = pool(2, 8);
        let (begun, begins) = unbounded();
        let (go, gone) = bounded::<()>(0);
        for _ in 0..4 {
            assert!(pool.submit(Job::Wait(begun.clone(), gone.clone())).is_ok());
        }
        pool.close();
        assert!(pool.submit(Job::Panic).is_err());
        drop(go);
        for _ in 0..4 {
            begins.recv_timeout(SAFETY).expect("accepted jobs are done");
        }
        assert_eq!(crew.wait_first().to_string(), "workers finished");
        pool.join();
        assert_eq!(pool.stats().threads, 0);
    }

    #[test]
    fn a_worker_that_panics_is_the_end_of_the_pool() {
        let (mut crew, pool) = pool(2, 8);
        assert!(pool.submit(Job::Panic).is_ok());
        assert_eq!(crew.wait_first().to_string(), "workers panicked: a bug");
        pool.close();
    }
}
