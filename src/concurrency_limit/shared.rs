//! When is a call admitted? One word that says how many are in flight and how many wait, and a queue behind a lock
//! that only those who wait, or wake them, come near.
//!
//! An adaptive limit changes what the word is compared with; it is asked, under the lock, by whoever finds no room.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError, TryLockError},
    task::{Context, Waker},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    config::MOST,
    line::{Found, Line, Refusal},
    regulator::{Call, Ended, Question},
    shares::Share,
};
use crate::{
    Partition, Priority, Rejection, Rule,
    clock::{now, since},
    shutdown,
    spread::Padded,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*},
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
    /// For those who ask no further: zero while an adaptive limit wants to be asked, and where there are shares.
    max_in_flight: AtomicU32,
    /// The limit, to be looked at.
    calls: AtomicU32,
    max_queue: u32,
    /// Whether it learns from how calls end.
    adaptive: bool,
    /// Whether there are guaranteed shares.
    shared_out: bool,
    max_wait: Option<Duration>,
    name: &'static str,
    /// The lowest priority of those that wait, plus one; zero: nobody waits. A hint for those who find the queue full, written under
    /// the lock, which they take if they are higher.
    lowest: AtomicU32,
    line: Mutex<Line>,
    timed: Option<Timed>,
    shutdown: Option<shutdown::Handle>,
}

/// What is there if time matters: to the order of the queue, or to an adaptive limit, whose is all but the first.
struct Timed {
    base: Instant,
    /// When the first call was found pending since the last answer. Zero: none was.
    unanswered_since: AtomicU64,
    /// No answer for so long is silence.
    silent_after: AtomicU64,
    /// When it was last told of an answer.
    told: AtomicU64,
    /// So many answers may still come for which nobody looks at the clock.
    unread: AtomicU32,
    /// So many came since then that were too close to it.
    missed: AtomicU32,
    /// Whether every call is to be told of.
    guarded: AtomicBool,
}

/// What whoever asks for a permit brings along.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asks {
    pub(crate) deadline: Option<Instant>,
    /// How often it was sent before.
    pub(crate) attempts: u32,
}

/// How long a call took that ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Took {
    /// When it was first found pending, if it was.
    pub(crate) started: Option<Instant>,
    pub(crate) deadline: Option<Instant>,
}

/// What whoever waits finds.
pub(crate) enum Queued {
    Granted(Share),
    Refused(Rejection),
    /// It waits on. It is to come back then, or when it is woken.
    Waits(Option<Instant>),
}

/// Who is not refused. Of whole words, as a [`Rejection`] is: a result of either is not taken to pieces.
#[repr(u64)]
pub(crate) enum Turn {
    /// With a permit.
    Now(Share),
    /// In the queue, under this number.
    Later(u64),
}

/// In nanoseconds. Of answers that come closer together, one stands for the others: 50,000 a second are enough to learn from.
const CLOSE: u64 = 20_000;

/// Where so many came closer together than that, the clock, which costs as much as all the rest, is not read for as many more,
const UNREAD: u32 = 7;

/// unless the call began later than so many nanoseconds after what it was last told of.
const NEAR: u64 = 500_000;

const WAITING: u64 = 1 << 32;

/// In nanoseconds. Silence is found by the next to come; where calls are so far apart, and twice as far as is silence, there is nothing to
/// hold back.
const STALE: u64 = 3_000_000_000;

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
        mut line: Line,
        shutdown: Option<shutdown::Handle>,
    ) -> Self {
        let timed = line.is_timed().then(|| Timed {
            base: now(),
            unanswered_since: AtomicU64::new(0),
            silent_after: AtomicU64::new(u64::MAX),
            told: AtomicU64::new(0),
            unread: AtomicU32::new(0),
            missed: AtomicU32::new(0),
            guarded: AtomicBool::new(false),
        });
        line.bound(max_in_flight.min(MOST) as u32);
        let shared = Self {
            word: Padded::default(),
            max_in_flight: AtomicU32::new(0),
            calls: AtomicU32::new(0),
            max_queue: max_queue.min(MOST) as u32,
            adaptive: line.regulator.is_some(),
            shared_out: !line.shares.is_empty(),
            max_wait,
            name,
            lowest: AtomicU32::new(0),
            line: Mutex::new(Line::default()),
            timed,
            shutdown,
        };
        shared.publish(&line);
        *shared.lock() = line;
        shared
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
        self.calls.load(Relaxed) as usize
    }

    #[inline]
    fn adaptive(&self) -> Option<&Timed> {
        self.timed.as_ref().filter(|_| self.adaptive)
    }

    #[inline]
    pub(crate) fn is_adaptive(&self) -> bool {
        self.adaptive
    }

    /// Whether the deadline of whoever asks matters.
    #[inline]
    pub(crate) fn is_timed(&self) -> bool {
        self.timed.is_some()
    }

    #[inline]
    pub(super) fn in_flight(&self) -> usize {
        in_flight(self.word.0.load(Relaxed)) as usize
    }

    /// Whether nothing is in flight and nothing waits, and it holds nothing back.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_idle() && (self.max_in_flight.load(Relaxed) > 0 || self.lock().is_settled())
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
    pub(crate) fn enqueue(&self, asks: Asks) -> Result<Turn, Rejection> {
        if self.is_draining() {
            return self.try_now().map(Turn::Now).ok_or_else(|| Rejection::draining(self.name));
        }
        let waiting = waiting(self.word.0.load(Relaxed));
        // Refusing takes no lock, unless there may be a permit all the same.
        let asks_first = self.shared_out || self.adaptive && waiting == 0;
        let is_full = waiting >= self.max_queue;
        let evicts = is_full && self.outranks_somebody();
        if evicts && self.timed.is_some() {
            // There may be room by now, or somebody who is too late: nobody gives up a place for nothing.
            self.grant();
        }
        if !is_full || evicts || asks_first {
            if let Some(turn) = self.wait_in_line(asks, self.max_queue) {
                return Ok(turn);
            }
        } else if self.try_acquire() {
            return Ok(Turn::Now(Share::NONE));
        }
        Err(self.refusal())
    }

    /// Takes a permit if there is one, whoever has to be asked.
    pub(super) fn try_now(&self) -> Option<Share> {
        if self.try_acquire() {
            return Some(Share::NONE);
        }
        let asks = Asks { attempts: 1, deadline: None };
        match (self.adaptive || self.shared_out).then(|| self.wait_in_line(asks, 0))? {
            Some(Turn::Now(share)) => Some(share),
            _ => None,
        }
    }

    /// Takes a permit for an attempt beside another, if there is one for the asking: it does not look whether a service that is held
    /// back is there.
    pub(crate) fn try_beside(&self) -> Option<Share> {
        if !self.shared_out {
            return self.try_acquire().then_some(Share::NONE);
        }
        let is_settled = self.lock().is_settled();
        if is_settled { self.try_now() } else { None }
    }

    /// `None`: the queue is full by now.
    #[cold]
    #[inline(never)]
    fn wait_in_line(&self, asks: Asks, max_queue: u32) -> Option<Turn> {
        let (now, priority) = (self.nanos(), Priority::current());
        let mut line = self.lock();
        if asks.attempts == 0 {
            line.came(asks.deadline.map(|deadline| self.nanos_of(deadline).saturating_sub(now)));
        }
        let share = if self.shared_out { line.shares.of(Partition::current()) } else { Share::NONE };
        let max = line.room(now);
        let is_owed = line.owes_to(now, share, max);
        let mut word = self.word.0.load(Relaxed);
        loop {
            let room = is_owed || waiting(word) == 0 && in_flight(word) < max;
            let next = match room {
                true => word + 1,
                false if waiting(word) < max_queue => word + WAITING,
                // Somebody gives up a place, and the number stays.
                false if max_queue > 0 && line.lowest().is_some_and(|lowest| lowest < priority) => word,
                false => return None,
            };
            match self.word.0.compare_exchange_weak(word, next, Acquire, Relaxed) {
                Ok(_) if room => {
                    line.goes(now, share);
                    self.publish(&line);
                    return Some(Turn::Now(share));
                }
                // Whoever gives a permit back from now on sees that somebody waits, and takes the lock that we hold.
                Ok(_) => {
                    let evicted = if next == word { line.evict(now) } else { None };
                    let deadline = asks.deadline.map(|deadline| self.nanos_of(deadline));
                    let number = line.join(now, deadline, asks.attempts, priority, share);
                    self.note_lowest(&line);
                    drop(line);
                    wake(evicted);
                    if self.timed.is_some() {
                        // It may be the one that is let out next, or one that has too little time left.
                        self.grant();
                    }
                    return Some(Turn::Later(number.into()));
                }
                Err(seen) => word = seen,
            }
        }
    }

    /// Whether somebody may wait who would give up a place for whoever asks.
    #[inline]
    fn outranks_somebody(&self) -> bool {
        let lowest = self.lowest.load(Relaxed);
        lowest != 0 && lowest <= u32::from(Priority::current().level())
    }

    fn note_lowest(&self, line: &Line) {
        self.lowest.store(line.lowest().map_or(0, |lowest| u32::from(lowest.level()) + 1), Relaxed);
    }

    /// The time, if it matters.
    #[inline]
    fn nanos(&self) -> u64 {
        self.timed.as_ref().map_or(0, |timed| timed.nanos(now()))
    }

    #[inline]
    fn nanos_of(&self, instant: Instant) -> u64 {
        self.timed.as_ref().map_or(0, |timed| timed.nanos(instant))
    }

    /// What a limit has come to, for those who ask no further. Under the lock. Relaxed: whoever goes by what stood there
    /// before has come a moment earlier.
    fn publish(&self, line: &Line) {
        self.max_in_flight.store(line.unasked(), Relaxed);
        self.calls.store(line.calls(), Relaxed);
        let (Some(timed), Some(regulator)) = (&self.timed, &line.regulator) else { return };
        timed.guarded.store(regulator.is_guarded(), Relaxed);
        timed.silent_after.store(regulator.silent_after().unwrap_or(u64::MAX), Relaxed);
    }

    /// A call that has a permit is found pending for the first time.
    #[inline]
    pub(crate) fn pending(&self, at: Instant) {
        let Some(timed) = self.adaptive() else { return };
        let at = timed.nanos(at);
        let since = timed.unanswered_since.load(Relaxed);
        let (silent, silence) = (at.saturating_sub(since), timed.silent_after.load(Relaxed));
        // If it began long ago, or nobody else is out, then who was not answered gave up, and nothing was asked for a while.
        if since == 0 || silent > STALE.max(silence.saturating_mul(2)) || in_flight(self.word.0.load(Relaxed)) <= 1 {
            // One of several that come at once will do, and an answer that comes at the same time hides no silence: the next to
            // come finds it.
            timed.unanswered_since.store(at, Relaxed);
        } else if silent > silence {
            self.fall_silent(at);
        }
    }

    #[cold]
    fn fall_silent(&self, at: u64) {
        let mut line = self.lock();
        if let Some(regulator) = &mut line.regulator {
            regulator.fall_silent(at);
        }
        self.publish(&line);
        // Those who wait have seen the gate open, and nobody else may come.
        let waker = line.needs_lookout(at);
        drop(line);
        wake(waker);
    }

    /// Whether it wants to hear of a call that ended so: not of an answer that was there at once, while
    /// nobody has to ask.
    #[inline]
    pub(crate) fn listens(&self, was_pending: bool, ended: Ended) -> bool {
        let Some(timed) = self.adaptive() else { return false };
        let listens = was_pending || ended != Ended::Answered || self.max_in_flight.load(Relaxed) == 0;
        // An answer it is all the same, and ends what looks like silence.
        if !listens && timed.unanswered_since.load(Relaxed) != 0 {
            timed.unanswered_since.store(0, Relaxed);
        }
        listens
    }

    /// Gives a permit back, and tells an adaptive limit how the call ended.
    #[inline]
    pub(crate) fn release_after(&self, share: Share, ended: Ended, took: Took) {
        // Also if the limit that is asked panics.
        let _permit = Held(self, share);
        self.report(ended, took);
    }

    /// Tells an adaptive limit how a call went, that may have its permit for longer.
    #[inline(never)]
    pub(crate) fn report(&self, ended: Ended, Took { started, deadline }: Took) {
        let Some(timed) = self.adaptive() else { return };
        let guarded = timed.guarded.load(Relaxed);
        if ended == Ended::Unknown {
            return;
        }
        if !ended.is_late() {
            timed.unanswered_since.store(0, Relaxed);
        }
        if started.is_none() && ended == Ended::Answered && !guarded {
            return;
        }
        if ended == Ended::Answered && !guarded && started.is_some_and(|started| timed.is_one_of_many(started)) {
            return;
        }
        let at = now();
        let now = timed.nanos(at);
        let mut answers = 1;
        let mut line = if guarded || ended != Ended::Answered {
            self.lock()
        } else {
            // What it misses here is one sample of many; what ends a silence is none of many. Relaxed: two at once are no harm.
            if now.saturating_sub(timed.told.load(Relaxed)) < CLOSE {
                timed.miss();
                // Of two or three that come at once, as of one read, the others may come much later.
                if timed.missed.load(Relaxed) >= UNREAD {
                    timed.unread.store(UNREAD, Relaxed);
                }
                return;
            }
            let Some(line) = self.try_lock() else {
                timed.miss();
                return;
            };
            timed.told.store(now, Relaxed);
            answers = timed.missed.load(Relaxed).saturating_add(1);
            timed.missed.store(0, Relaxed);
            line
        };
        let word = self.word.0.load(Relaxed);
        let call = Call {
            ended,
            took: started.map(|started| at.saturating_duration_since(started)),
            allowed: started.zip(deadline).map(|(started, deadline)| deadline.saturating_duration_since(started)),
            in_flight: in_flight(word),
            answers,
            limited: waiting(word) > 0,
        };
        let question = line.regulator.as_mut().and_then(|regulator| regulator.ended(now, at, call));
        self.publish(&line);
        drop(line);
        if let Some(question) = question {
            // A limit may be anybody's code: it is asked outside of the lock, and comes back also if it panics.
            let mut asked = Asked { shared: self, now, question: Some(question), next: None };
            asked.next = asked.question.as_mut().map(Question::ask);
        }
        // Some may have come to wait while it was asked.
        if waiting(self.word.0.load(Relaxed)) > 0 {
            self.grant();
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

    /// What became of a place in the queue; unless it waits on, the place is given up.
    pub(crate) fn poll_queued(&self, ticket: u32, deadline: Option<Instant>, cx: &mut Context<'_>) -> Queued {
        // Before `grant` looks at the time: a gate that it finds shut, and that opens in between, is looked out for.
        let now = self.nanos();
        if let Some(timed) = &self.timed {
            self.lock().polled(ticket, deadline.map(|deadline| timed.nanos(deadline)));
            // It may have come because the gate has opened, or to hear that it is too late.
            self.grant();
        }
        // Cloned before and dropped after the lock: wakers are not our code.
        let mut waker = Some(cx.waker().clone());
        let mut line = self.lock();
        let found = line.look(ticket, now, &mut waker);
        // Asked under the lock that `wake_all` takes after it became so: either it is so, or `wake_all` wakes.
        let draining = self.is_draining();
        drop(line);
        lose(waker);
        match found {
            Found::Granted(share) => Queued::Granted(share),
            Found::Refused(why) => Queued::Refused(self.refused(why)),
            Found::Waits(_) if draining => {
                self.leave_queue(ticket);
                Queued::Refused(Rejection::draining(self.name))
            }
            Found::Waits(until) => {
                let at = |(until, timed): (u64, &Timed)| timed.base + Duration::from_nanos(until);
                Queued::Waits(until.zip(self.timed.as_ref()).map(at))
            }
        }
    }

    fn refused(&self, why: Refusal) -> Rejection {
        let seconds = |nanos| Duration::from_nanos(nanos).as_secs_f32();
        match why {
            Refusal::Late { left: 0, .. } => Rejection::too_late(self.name),
            Refusal::Late { left, least } => Rejection::new(self.name, Rule::TooLate, seconds(left), seconds(least)),
            Refusal::Stood { waited, most } => {
                Rejection::new(self.name, Rule::QueueStands, seconds(waited), seconds(most))
            }
            Refusal::Evicted => self.overloaded(Rule::QueueFull, self.max_queue as usize, self.max_queue as usize),
        }
    }

    /// Wakes all that wait, to find out why.
    #[cold]
    pub(crate) fn wake_all(&self) {
        let wakers = self.lock().wakers();
        wakers.into_iter().map(Some).for_each(wake);
    }

    /// Gives up a place in the queue, with the permit if it was just granted.
    pub(crate) fn leave_queue(&self, ticket: u32) {
        let mut line = self.lock();
        let (waited, granted, waker) = line.leave(ticket);
        if waited {
            self.word.0.fetch_sub(WAITING, Relaxed);
            self.note_lowest(&line);
        }
        drop(line);
        lose(waker);
        if let Some(share) = granted {
            self.release_of(share);
        } else if self.timed.is_some() {
            // It may have been the one that looked out for the others.
            self.grant();
        }
    }

    /// Gives a permit back; if somebody waits, hands it over.
    #[inline]
    pub(crate) fn release(&self) {
        if waiting(self.word.0.fetch_sub(1, Release)) != 0 {
            self.grant();
        }
    }

    /// As [`release`](Self::release), of a share. Counted there first: who comes in between takes the share, and the one that is given
    /// back is counted in all for a moment longer.
    pub(crate) fn release_of(&self, share: Share) {
        if share != Share::NONE {
            self.lock().shares.gave(share);
        }
        self.release();
    }

    /// Grants what there is to those whose turn it is, one at a time, and wakes each outside of the lock.
    #[cold]
    fn grant(&self) {
        loop {
            let now = self.nanos();
            let mut line = self.lock();
            let max = line.room(now);
            // While somebody waits, nobody takes a permit but under the lock: whoever is spared here is granted below.
            let has_room = in_flight(self.word.0.load(Relaxed)) < max;
            let owed = line.owes(now, max, has_room);
            let owed_of = owed.then_some(max);
            let refused = line.refuse_late(now, owed_of).or_else(|| has_room.then(|| line.refuse_stood(now))?);
            if let Some(waker) = refused {
                self.word.0.fetch_sub(WAITING, Relaxed);
                self.note_lowest(&line);
                drop(line);
                wake(waker);
                continue;
            }
            // Acquire: what those wrote who made room. The lock hands it on to whoever is granted.
            let granted = self.word.0.fetch_update(Acquire, Relaxed, |word| {
                (waiting(word) != 0 && (owed || in_flight(word) < max)).then(|| word + 1 - WAITING)
            });
            if granted.is_err() {
                self.find_silence(&mut line, now);
                let waker = line.needs_lookout(now);
                drop(line);
                wake(waker);
                return;
            }
            let waker = line.grant(now, owed_of);
            self.note_lowest(&line);
            self.publish(&line);
            drop(line);
            wake(waker);
        }
    }

    /// Nobody can go. If none of those in flight is answered either, nobody would ever go and find that out.
    fn find_silence(&self, line: &mut Line, now: u64) {
        let (Some(timed), Some(regulator)) = (self.adaptive(), &mut line.regulator) else { return };
        let (word, since) = (self.word.0.load(Relaxed), timed.unanswered_since.load(Relaxed));
        if waiting(word) == 0 || in_flight(word) == 0 {
            return;
        }
        if since == 0 {
            timed.unanswered_since.store(now, Relaxed);
        } else if regulator.stuck_after().is_some_and(|after| now.saturating_sub(since) > after) {
            regulator.fall_silent(now);
            self.publish(line);
        }
    }

    pub(super) fn resize(&self, max_in_flight: usize) {
        let mut line = self.lock();
        line.bound(max_in_flight.min(MOST) as u32);
        self.publish(&line);
        drop(line);
        // Whoever lines up by the old one has had the lock before, so it is granted.
        self.grant();
    }

    pub(super) fn in_flight_of(&self, partition: Partition) -> usize {
        self.lock().shares.in_flight(partition)
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        // No user code runs under it, and the line is whole between its methods.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Line>> {
        match self.line.try_lock() {
            Ok(line) => Some(line),
            Err(TryLockError::Poisoned(line)) => Some(line.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Timed {
    /// From one on: zero is never.
    #[inline]
    fn nanos(&self, at: Instant) -> u64 {
        since(self.base, at).saturating_add(1)
    }

    /// Whether an answer to a call that began then is one of so many that the next says the same. Relaxed: of two that come at once
    /// both may count as one, or one as both.
    #[inline]
    fn is_one_of_many(&self, started: Instant) -> bool {
        let left = self.unread.load(Relaxed);
        let is_one = left > 0 && self.nanos(started) < self.told.load(Relaxed).saturating_add(NEAR);
        if is_one {
            self.unread.store(left - 1, Relaxed);
            self.miss();
        }
        is_one
    }

    /// Counts an answer for which another one stands. Relaxed: of two at once one may be lost.
    fn miss(&self) {
        self.missed.store(self.missed.load(Relaxed).saturating_add(1), Relaxed);
    }
}

/// A permit that is given back when this is dropped.
struct Held<'a>(&'a Shared, Share);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.release_of(self.1);
    }
}

/// A limit that is being asked.
struct Asked<'a> {
    shared: &'a Shared,
    now: u64,
    question: Option<Question>,
    next: Option<f64>,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut line = self.shared.lock();
        if let (Some(regulator), Some(question)) = (&mut line.regulator, self.question.take()) {
            regulator.adopt(self.now, question, self.next);
        }
        self.shared.publish(&line);
    }
}

/// Wakers are not our code: if one panics, whoever made room for its task is not to blame, and others wait behind it.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
    }
}

/// Nor is whoever was granted to lose the permit, if it panics when it is dropped.
fn lose(waker: Option<Waker>) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(waker)));
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
        Shared::new("limit", 1, 1, None, Line::default(), None)
    }

    /// Whoever comes here has just found no permit, and a place in the queue; others were faster or slower.
    #[test]
    fn under_the_lock_a_call_takes_what_there_is_by_then() {
        let limit = limit();
        assert!(matches!(limit.wait_in_line(Asks::default(), 1), Some(Turn::Now(_))), "a permit was given back");
        assert_eq!((limit.in_flight(), limit.waiting()), (1, 0));
        assert!(matches!(limit.wait_in_line(Asks::default(), 1), Some(Turn::Later(_))));
        assert_eq!((limit.in_flight(), limit.waiting()), (1, 1));
        assert!(limit.wait_in_line(Asks::default(), 1).is_none(), "the last place was taken");
        assert_eq!((limit.in_flight(), limit.waiting()), (1, 1));
    }

    #[test]
    fn whoever_is_refused_waits_for_nobody_who_has_the_lock() {
        for (max_queue, rule) in [(0, Rule::LimitReached), (1, Rule::QueueFull)] {
            let limit = Arc::new(Shared::new("limit", 1, max_queue, None, Line::default(), None));
            assert!(limit.try_acquire());
            for _ in 0..max_queue {
                assert!(limit.enqueue(Asks::default()).is_ok());
            }
            let (told, answer) = mpsc::channel();
            let asks = Arc::clone(&limit);
            let _lock = limit.lock();
            thread::spawn(move || told.send(asks.enqueue(Asks::default()).map(drop).map_err(|no| no.rule())));
            // Only who waits for the lock takes any time, and then all of it.
            let answer = answer.recv_timeout(Duration::from_secs(30)).expect("it waits for the lock");
            assert_eq!(answer, Err(rule));
        }
    }
}
