//! When is a call admitted? One word that says how many are in flight and how many wait, and a queue behind a lock
//! that only those who wait, or wake them, come near.

use std::{
    fmt,
    sync::{Arc, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use super::config::MOST;
use crate::{
    Rejection, Rule,
    queue::Queue,
    shutdown,
    spread::Padded,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU32, AtomicU64, Ordering::*},
    },
};

/// The state of a concurrency limit.
pub struct Shared {
    /// `waiting: 32 | in flight: 32`, in one word so that "is there room, and nobody before me?" is one question.
    /// `waiting` changes only under the lock.
    ///
    /// A permit is taken with Acquire and given back with Release, so that what one holder wrote the next one sees,
    /// as with a lock.
    word: Padded<AtomicU64>,
    max_in_flight: AtomicU32,
    max_queue: u32,
    max_wait: Option<Duration>,
    name: &'static str,
    queue: Mutex<Queue<Waiter>>,
    shutdown: Option<shutdown::Handle>,
}

/// Who is not refused. Of whole words, as a [`Rejection`] is: a result of either is not taken to pieces.
#[repr(u64)]
pub(crate) enum Turn {
    /// With a permit.
    Now,
    /// In the queue, under this number.
    Later(u64),
}

enum Waiter {
    /// With the waker of its latest poll, if it was polled.
    Waiting(Option<Waker>),
    /// It holds a permit and does not know yet.
    Granted,
}

const WAITING: u64 = 1 << 32;

fn in_flight(word: u64) -> u32 {
    word as u32
}

fn waiting(word: u64) -> u32 {
    (word >> 32) as u32
}

impl Shared {
    pub(super) fn new(
        name: &'static str,
        max_in_flight: usize,
        max_queue: usize,
        max_wait: Option<Duration>,
        shutdown: Option<shutdown::Handle>,
    ) -> Self {
        Self {
            word: Padded::default(),
            max_in_flight: AtomicU32::new(max_in_flight.min(MOST) as u32),
            max_queue: max_queue.min(MOST) as u32,
            max_wait,
            name,
            queue: Mutex::new(Queue::new()),
            shutdown,
        }
    }

    /// Has the queue woken when draining begins.
    pub(super) fn enlist(self: &Arc<Self>) {
        if let Some(shutdown) = &self.shutdown {
            shutdown.enlist(self);
        }
    }

    #[inline]
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    #[inline]
    pub(crate) fn max_wait(&self) -> Option<Duration> {
        self.max_wait
    }

    #[inline]
    pub(super) fn max_in_flight(&self) -> usize {
        self.max_in_flight.load(Relaxed) as usize
    }

    #[inline]
    pub(super) fn in_flight(&self) -> usize {
        in_flight(self.word.0.load(Relaxed)) as usize
    }

    /// Whether nothing is in flight and nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.word.0.load(Relaxed) == 0
    }

    pub(super) fn waiting(&self) -> usize {
        waiting(self.word.0.load(Relaxed)) as usize
    }

    /// Takes a permit if there is one and nobody waits for it.
    #[inline]
    pub(crate) fn try_acquire(&self) -> bool {
        let max = self.max_in_flight.load(Relaxed);
        let mut word = self.word.0.load(Relaxed);
        while waiting(word) == 0 && in_flight(word) < max {
            match self.word.0.compare_exchange_weak(word, word + 1, Acquire, Relaxed) {
                Ok(_) => return true,
                Err(seen) => word = seen,
            }
        }
        false
    }

    /// Takes a permit or a place in the queue, or tells why not.
    #[inline(always)]
    pub(crate) fn enqueue(&self) -> Result<Turn, Rejection> {
        let draining = self.is_draining();
        // Refusing takes no lock.
        if !draining && waiting(self.word.0.load(Relaxed)) < self.max_queue {
            if let Some(turn) = self.wait_in_line() {
                return Ok(turn);
            }
        } else if self.try_acquire() {
            return Ok(Turn::Now);
        }
        Err(if draining { Rejection::draining(self.name) } else { self.refusal() })
    }

    /// `None`: the queue is full by now.
    #[cold]
    #[inline(never)]
    fn wait_in_line(&self) -> Option<Turn> {
        let mut queue = self.lock();
        let mut word = self.word.0.load(Relaxed);
        loop {
            let room = waiting(word) == 0 && in_flight(word) < self.max_in_flight.load(Relaxed);
            let next = match room {
                true => word + 1,
                false if waiting(word) < self.max_queue => word + WAITING,
                false => return None,
            };
            match self.word.0.compare_exchange_weak(word, next, Acquire, Relaxed) {
                Ok(_) if room => return Some(Turn::Now),
                // Whoever gives a permit back from now on sees that somebody waits, and takes the lock that we hold.
                Ok(_) => return Some(Turn::Later(queue.push_back(Waiter::Waiting(None)).into())),
                Err(seen) => word = seen,
            }
        }
    }

    /// Whether nothing waits any more.
    #[inline]
    fn is_draining(&self) -> bool {
        self.shutdown.as_ref().is_some_and(shutdown::Handle::is_draining)
    }

    #[inline]
    fn refusal(&self) -> Rejection {
        match self.max_queue {
            0 => self.limit_reached(),
            most => self.overloaded(Rule::QueueFull, self.waiting(), most as usize),
        }
    }

    /// For whoever does not wait.
    #[inline]
    pub(super) fn limit_reached(&self) -> Rejection {
        self.overloaded(Rule::LimitReached, self.in_flight(), self.max_in_flight())
    }

    #[inline]
    fn overloaded(&self, rule: Rule, measured: usize, threshold: usize) -> Rejection {
        Rejection::new(self.name, rule, measured as f32, threshold as f32)
    }

    /// Ready once the permit is there, or nothing waits any more; the place in the queue is given up then.
    pub(crate) fn poll_queued(&self, ticket: u32, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        // Cloned before and dropped after the lock: wakers are not our code.
        let mut waker = Some(cx.waker().clone());
        let mut queue = self.lock();
        match queue.get_mut(ticket) {
            // Asked under the lock that `wake_all` takes after it became so: either it is so, or `wake_all` wakes.
            Some(Waiter::Waiting(stored)) if !self.is_draining() => {
                std::mem::swap(stored, &mut waker);
                drop(queue);
                drop(waker);
                Poll::Pending
            }
            Some(Waiter::Waiting(_)) => {
                drop(queue);
                self.leave_queue(ticket);
                Poll::Ready(Err(Rejection::draining(self.name)))
            }
            _ => {
                queue.remove(ticket);
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Wakes all that wait, to find out why.
    #[cold]
    pub(crate) fn wake_all(&self) {
        let mut wakers = Vec::new();
        let mut queue = self.lock();
        queue.for_each(|waiter| match waiter {
            Waiter::Waiting(waker) => wakers.extend(waker.take()),
            Waiter::Granted => {}
        });
        drop(queue);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Gives up a place in the queue, with the permit if it was just granted.
    pub(crate) fn leave_queue(&self, ticket: u32) {
        let mut queue = self.lock();
        let (waited, waiter) = queue.remove(ticket);
        if waited {
            self.word.0.fetch_sub(WAITING, Relaxed);
        }
        drop(queue);
        drop(waiter);
        if !waited {
            self.release();
        }
    }

    /// Gives a permit back; if somebody waits, hands it over.
    #[inline]
    pub(crate) fn release(&self) {
        if waiting(self.word.0.fetch_sub(1, Release)) != 0 {
            self.grant();
        }
    }

    /// Grants what there is to those who wait longest, one at a time, and wakes each outside of the lock.
    #[cold]
    fn grant(&self) {
        loop {
            let mut queue = self.lock();
            let max = self.max_in_flight.load(Relaxed);
            // Acquire: what those wrote who made room. The lock hands it on to whoever is granted.
            let granted = self.word.0.fetch_update(Acquire, Relaxed, |word| {
                (waiting(word) != 0 && in_flight(word) < max).then(|| word + 1 - WAITING)
            });
            if granted.is_err() {
                return;
            }
            let waiter = queue.unlink_front().map(|waiter| std::mem::replace(waiter, Waiter::Granted));
            drop(queue);
            if let Some(Waiter::Waiting(Some(waker))) = waiter {
                waker.wake();
            }
        }
    }

    pub(super) fn resize(&self, max_in_flight: usize) {
        // Before `grant` takes the lock: an `enqueue` that decides by the old one has had it before, so it is granted.
        self.max_in_flight.store(max_in_flight.min(MOST) as u32, Relaxed);
        self.grant();
    }

    fn lock(&self) -> MutexGuard<'_, Queue<Waiter>> {
        // No user code runs under it, and the queue is whole between its methods.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrencyLimit")
            .field("name", &self.name)
            .field("in_flight", &self.in_flight())
            .field("max_in_flight", &self.max_in_flight())
            .field("waiting", &self.waiting())
            .finish()
    }
}

#[cfg(all(test, buttress_loom))]
mod models;

#[cfg(all(test, not(buttress_loom)))]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    fn limit() -> Shared {
        Shared::new("limit", 1, 1, None, None)
    }

    /// Whoever comes here has just found no permit, and a place in the queue; others were faster or slower.
    #[test]
    fn under_the_lock_a_call_takes_what_there_is_by_then() {
        let limit = limit();
        assert!(matches!(limit.wait_in_line(), Some(Turn::Now)), "a permit was given back");
        assert_eq!((limit.in_flight(), limit.waiting()), (1, 0));
        assert!(matches!(limit.wait_in_line(), Some(Turn::Later(_))));
        assert_eq!((limit.in_flight(), limit.waiting()), (1, 1));
        assert!(limit.wait_in_line().is_none(), "the last place was taken");
        assert_eq!((limit.in_flight(), limit.waiting()), (1, 1));
    }

    #[test]
    fn whoever_is_refused_waits_for_nobody_who_has_the_lock() {
        let limit = Arc::new(limit());
        assert!(limit.try_acquire() && limit.enqueue().is_ok());
        let (told, answer) = mpsc::channel();
        let asks = Arc::clone(&limit);
        let _lock = limit.lock();
        thread::spawn(move || told.send(asks.enqueue().map(drop).map_err(|no| no.rule())));
        // Only who waits for the lock takes any time, and then all of it.
        let answer = answer.recv_timeout(Duration::from_secs(30)).expect("it waits for the lock");
        assert_eq!(answer, Err(Rule::QueueFull));
    }
}
