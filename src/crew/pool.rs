//! The worker pool: threads for what may have to wait, as many as are needed at the moment.
//!
//! One member of the crew, of many threads. It grows by one thread whenever a job finds nobody free, up to its most;
//! a thread that has had nothing to do for a while leaves. A thread that is needed and cannot be had is no failure:
//! the job waits for another one, or is handed back.
//!
//! One lock guards it all, held for a few instructions: who is free is known exactly, never guessed, so that no job
//! can wait behind a worker that was counted twice.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::crew::{Exit, ExitGuard, thread_name};
use crate::sync::{ignore_poison, lock};
use crate::text::panic_message;

/// How long a worker waits for a job before it leaves: longer than the pauses between bursts, short enough that the
/// memory of a burst is not kept. The same as tiny_http's own threads.
const PATIENCE: Duration = Duration::from_secs(5);

/// Workers that stay, without any wake-up, so that the first slow request after a pause needs no new thread.
const STAYING: usize = 1;

/// Something to do; the text says what, for those who ask who is stuck.
pub(crate) trait Work: Send + 'static {
    fn name(&self) -> String;
    fn run(self);
}

/// What the pool looks like at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PoolStats {
    pub(crate) threads: usize,
    pub(crate) busy: usize,
    pub(crate) queued: usize,
    pub(crate) most: usize,
}

pub(crate) struct Pool<W> {
    state: Mutex<State<W>>,
    work: Condvar,
    most: usize,
    queue: usize,
    guard: ExitGuard,
}

struct State<W> {
    jobs: VecDeque<W>,
    free: usize,
    /// Threads on their way to their first job, which is in the queue meanwhile and takes nobody's room there.
    starting: usize,
    threads: usize,
    closing: bool,
    next: u64,
    handles: HashMap<u64, JoinHandle<()>>,
    /// The thread that left last; whoever leaves next joins it.
    leaver: Option<JoinHandle<()>>,
    doing: HashMap<u64, (Instant, String)>,
}

impl<W: Work> Pool<W> {
    /// A pool of at most `most` threads, with room for `queue` jobs that find nobody free.
    pub(crate) fn new(most: usize, queue: usize, guard: ExitGuard) -> Arc<Pool<W>> {
        Arc::new(Pool {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                free: 0,
                starting: 0,
                threads: 0,
                closing: false,
                next: 1,
                handles: HashMap::new(),
                leaver: None,
                doing: HashMap::new(),
            }),
            work: Condvar::new(),
            most: most.max(1),
            queue,
            guard,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        lock(&self.state)
    }

    /// Gives a job to a worker, a new one if nobody is free. Never blocks.
    ///
    /// # Errors
    ///
    /// The job itself, if all workers are busy and the queue is full, or the pool is closing.
    pub(crate) fn submit(self: &Arc<Self>, job: W) -> Result<(), W> {
        let mut state = self.lock();
        if state.closing {
            return Err(job);
        }
        // Each job in the queue has a free worker on its way to it, up to as many as are free.
        if state.free + state.starting > state.jobs.len() {
            state.jobs.push_back(job);
            self.work.notify_one();
            return Ok(());
        }
        if state.threads < self.most {
            match self.hire(&mut state) {
                Ok(()) => {
                    state.jobs.push_back(job);
                    return Ok(());
                }
                Err(error) if state.threads == 0 => {
                    log::warn!("no thread can be had for a worker: {error}");
                    return Err(job);
                }
                Err(_) => {} // the workers that there are must do
            }
        }
        if state.jobs.len() < self.queue + state.free + state.starting {
            state.jobs.push_back(job);
            return Ok(());
        }
        Err(job)
    }

    /// Starts a worker. The lock is held, so that it finds its handle and its job when it takes the lock itself.
    fn hire(self: &Arc<Self>, state: &mut State<W>) -> std::io::Result<()> {
        let number = state.next;
        let pool = Arc::clone(self);
        let name = thread_name(&format!("worker-{number}"));
        let handle = thread::Builder::new().name(name).spawn(move || pool.live(number))?;
        state.handles.insert(number, handle);
        state.next += 1;
        state.threads += 1;
        state.starting += 1;
        Ok(())
    }

    /// A worker's life.
    fn live(&self, number: u64) {
        let mut state = self.lock();
        state.starting -= 1;
        loop {
            if let Some(job) = state.jobs.pop_front() {
                state.doing.insert(number, (Instant::now(), job.name()));
                drop(state);
                // What a job runs catches the panics of handlers itself; one that gets here is ours, and an end.
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job.run())) {
                    self.guard.report(Exit::Panicked(panic_message(payload.as_ref())));
                }
                state = self.lock();
                state.doing.remove(&number);
                continue;
            }
            if state.closing {
                break;
            }
            state.free += 1;
            let timed_out;
            if state.threads <= STAYING {
                state = ignore_poison(self.work.wait(state));
                timed_out = false;
            } else {
                let (again, result) = ignore_poison(self.work.wait_timeout(state, PATIENCE));
                state = again;
                timed_out = result.timed_out();
            }
            state.free -= 1;
            if timed_out && state.jobs.is_empty() && state.threads > STAYING {
                break;
            }
        }
        state.threads -= 1;
        let own = state.handles.remove(&number);
        let before = std::mem::replace(&mut state.leaver, own);
        let last = state.closing && state.threads == 0;
        drop(state);
        if let Some(before) = before {
            let _ = before.join(); // it has left the lock behind; its panics were caught
        }
        if last {
            self.guard.report(Exit::Finished);
        }
    }

    /// No more jobs; workers leave when the queue is empty. The last one out reports the pool's end.
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

    /// Joins the last worker that left, once the pool has reported its end.
    pub(crate) fn join(&self) {
        let leaver = self.lock().leaver.take();
        if let Some(leaver) = leaver {
            let _ = leaver.join();
        }
    }

    pub(crate) fn stats(&self) -> PoolStats {
        let state = self.lock();
        PoolStats { threads: state.threads, busy: state.doing.len(), queued: state.jobs.len(), most: self.most }
    }

    /// What each busy worker does, and since when.
    pub(crate) fn running_jobs(&self) -> Vec<(u64, Instant, String)> {
        let mut doing: Vec<_> =
            self.lock().doing.iter().map(|(number, (since, what))| (*number, *since, what.clone())).collect();
        doing.sort_by_key(|(_, since, _)| *since);
        doing
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
        fn name(&self) -> String {
            "a test".to_owned()
        }
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

    fn pool(most: usize, queue: usize) -> (Crew, Arc<Pool<Job>>) {
        let mut crew = Crew::new();
        let guard = crew.reserve("workers", || {});
        (crew, Pool::new(most, queue, guard))
    }

    #[test]
    fn every_job_of_a_burst_runs_at_once_up_to_the_most_and_then_waits_and_then_is_handed_back() {
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
        assert_eq!(pool.stats(), PoolStats { threads: 8, busy: 8, queued: 2, most: 8 });
        assert_eq!(pool.running_jobs().len(), 8);
        drop(go);
        for _ in 0..2 {
            begins.recv_timeout(SAFETY).expect("what was queued runs in the end");
        }
        pool.close();
    }

    #[test]
    fn a_closed_pool_finishes_what_it_has_and_reports_once() {
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
            begins.recv_timeout(SAFETY).expect("what was taken is done");
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
