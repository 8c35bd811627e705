//! Admit and settle: what one call holds, and how each of it is given back exactly once.

use std::{
    cell::Cell,
    task::{Context, Waker},
    time::Duration,
};

use tokio::time::Instant;
use tracing::debug;

use super::{Asks, Breaker, ConcurrencyLimit, Ended, Holds, Parts, Queued, Share, Throttle, Took, Turn, slot::Wait};
use crate::{
    Reason, Rejection, Rule, Verdict,
    clock::{after, nanos, now},
    deadline::{Ambient, Moment, Scope},
    hedge::Hedge,
    retry::Retry,
    shutdown,
};

/// Where a call stands: nowhere, with a permit of the limit, in its queue under a number, or asleep in a backoff, with
/// the number under which the shutdown knows it. One word without padding; [`Claims`] says why.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place(u32);

impl Place {
    const NONE: Place = Place(u32::MAX);
    /// With a permit that is of nobody's share; those of shares are below it.
    const HELD: Place = Place(u32::MAX - 1);
    const LEAST_HELD: u32 = Self::HELD.0 - Share::MOST as u32;
    /// Numbers of the queue are below it, those of sleepers above.
    const ASLEEP: u32 = 1 << 31;

    fn held(share: Share) -> Self {
        Place(Self::HELD.0 - share.number())
    }

    /// Whose permit it has, if it has one.
    fn share(self) -> Option<Share> {
        let holds = (Self::LEAST_HELD..=Self::HELD.0).contains(&self.0);
        holds.then(|| Share::of(Self::HELD.0 - self.0))
    }

    fn asleep(ticket: u32) -> Self {
        Place(ticket | Self::ASLEEP)
    }

    fn sleeper(self) -> Option<u32> {
        let asleep = (Self::ASLEEP..Self::LEAST_HELD).contains(&self.0);
        asleep.then_some(self.0 & !Self::ASLEEP)
    }
}

/// How a call came in. Of whole words, as a [`Rejection`] is: a result of either is not taken to pieces.
#[repr(u64)]
pub(super) enum Entry {
    Admitted,
    /// It waits for a permit; the breaker is asked again when it has one.
    Queued,
}

/// What the timer is armed for.
#[derive(Clone, Copy)]
enum Limit {
    /// Not for the end of anything, but to ask once more.
    Hedge,
    Attempt,
    Deadline,
    MaxWait,
}

/// What one call has taken and where it stands. It gives nothing back by itself: see [`Core`].
///
/// A call is made in registers and written once, where its future ends up. That works as long as nothing out of line
/// gets the address of this, and as long as there is no padding in front of what is not constant: copies of half
/// written words overlap and stall, which costs more than all the rest of a call.
#[derive(Clone, Copy)]
pub struct Claims {
    /// Seen by the inner service, if the parts are scoped.
    pub(super) ambient: Ambient,
    /// When the present attempt, or the wait in the queue, was first found pending.
    pub(super) started: Option<Instant>,
    /// The backoff before the present attempt, in nanoseconds.
    previous: u64,
    /// The breaker's word at admission.
    pub(super) ticket: u64,
    place: Place,
    /// Whether the breaker is owed a result.
    pub(super) owing: bool,
    /// Whether the timer was considered for what is being waited for.
    armed: bool,
    /// Whether user code runs: still set on drop, it has panicked.
    pub(super) running: bool,
    limit: Limit,
}

impl Default for Claims {
    #[inline(always)]
    fn default() -> Self {
        Self {
            ambient: Ambient::default(),
            started: None,
            previous: 0,
            ticket: 0,
            place: Place::NONE,
            owing: false,
            armed: false,
            running: false,
            limit: Limit::Attempt,
        }
    }
}

impl Claims {
    /// Before the first attempt. `false`: it comes [too late](Self::too_late).
    #[inline(always)]
    pub(super) fn begin<P: Parts>(&mut self, parts: &P) -> bool {
        if P::SCOPED {
            self.ambient = Ambient::nested(parts.deadline());
            if parts.retry().is_some() {
                self.ambient.attempt = 0;
            }
            if self.ambient.deadline.is_started() && is_past(self.ambient.deadline) {
                return false;
            }
        }
        if let Some(retry) = parts.retry() {
            retry.deposit(now);
        }
        if let Some(hedge) = parts.hedge() {
            hedge.deposit(parts.retry().and_then(Retry::budget), now);
        }
        true
    }

    #[cold]
    pub(super) fn too_late<P: Parts>(parts: &P) -> Rejection {
        let rejection = deadline_exceeded(parts.name(), None);
        rejection.log();
        rejection
    }

    // ---------------------------------------------------------------- admit

    /// Before each attempt.
    #[inline(always)]
    pub(super) fn next_attempt<P: Parts>(&mut self, parts: &P) {
        if parts.retry().is_some() {
            self.ambient.attempt = self.ambient.attempt.saturating_add(1);
        }
    }

    /// Takes what is free to be taken; `false`: nothing, as not all of it is, and it is to be [asked for](Self::admit).
    #[inline(always)]
    pub(super) fn admit_at_once<P: Parts>(&mut self, parts: &P) -> bool {
        self.admit_if(parts, |limit| limit.try_acquire().then_some(Share::NONE))
    }

    /// The same, for an attempt beside another.
    pub(super) fn admit_beside<P: Parts>(&mut self, parts: &P) -> bool {
        self.admit_if(parts, ConcurrencyLimit::try_beside)
    }

    #[inline(always)]
    fn admit_if<P: Parts>(&mut self, parts: &P, permit: impl FnOnce(&ConcurrencyLimit) -> Option<Share>) -> bool {
        if parts.lag_guard().is_some_and(|guard| guard.is_late(now)) {
            return false;
        }
        if let Some(breaker) = parts.breaker() {
            let Some(ticket) = breaker.admit() else { return false };
            self.ticket = ticket;
        }
        // Then it is up to chance, which is drawn once for an attempt: not here.
        if parts.throttle().is_some_and(Throttle::is_wary) {
            return false;
        }
        if let Some(limit) = parts.limit() {
            let Some(share) = permit(limit) else { return false };
            self.place = Place::held(share);
        }
        self.owing = parts.breaker().is_some();
        true
    }

    #[inline(always)]
    pub(super) fn admit<P: Parts>(&mut self, parts: &P) -> Result<Entry, Rejection> {
        if let Some(guard) = parts.lag_guard() {
            guard.check_with(now).inspect_err(Rejection::log)?;
        }
        self.ask_breaker(parts)?;
        self.ask_throttle(parts)?;
        let Some(limit) = parts.limit() else { return Ok(Entry::Admitted) };
        let mut asks = Asks::default();
        if limit.is_timed() {
            // A limit alone is below a retry that somebody else has.
            let attempt = if P::SCOPED { self.ambient } else { Ambient::current() }.attempt;
            asks.attempts = u32::try_from(attempt).unwrap_or(u32::MAX).saturating_sub(1);
            // As it would be if it began now; it begins with the wait.
            asks.deadline = self.bound::<P>().start(now());
        }
        match limit.enqueue(asks) {
            Ok(Turn::Now(share)) => {
                self.place = Place::held(share);
                Ok(Entry::Admitted)
            }
            Ok(Turn::Later(ticket)) => {
                // The circuit may open, or a probe be wanted, while this waits: ask again then.
                self.settle_neutral(parts);
                self.place = Place(ticket as u32);
                Ok(Entry::Queued)
            }
            Err(rejection) => {
                self.settle_neutral(parts);
                rejection.log();
                Err(rejection)
            }
        }
    }

    #[inline(always)]
    fn ask_breaker<P: Parts>(&mut self, parts: &P) -> Result<(), Rejection> {
        if let Some(breaker) = parts.breaker() {
            self.ticket = match breaker.admit() {
                Some(ticket) => ticket,
                None => match breaker.admit_at(now()) {
                    Ok(ticket) => ticket,
                    Err(rejection) => {
                        rejection.log();
                        return Err(rejection);
                    }
                },
            };
            self.owing = true;
        }
        Ok(())
    }

    /// After the breaker, whose probes are not left to chance; once for an attempt, also if that waits.
    #[inline(always)]
    fn ask_throttle<P: Parts>(&mut self, parts: &P) -> Result<(), Rejection> {
        if let Some(throttle) = parts.throttle().filter(|_| !Breaker::is_probe(self.ticket)) {
            if let Err(rejection) = throttle.ask(now) {
                self.settle_neutral(parts);
                rejection.log();
                return Err(rejection);
            }
        }
        Ok(())
    }

    /// Pending while the call waits for a permit; and when to look again, if it is to.
    pub(super) fn poll_queue<P: Parts>(
        &mut self,
        parts: &P,
        cx: &mut Context<'_>,
    ) -> Result<Result<(), Rejection>, Option<Instant>> {
        if let Some(limit) = parts.limit() {
            let deadline = if limit.is_timed() { self.deadline::<P>(now()) } else { None };
            match limit.poll_queued(self.place.0, deadline, cx) {
                Queued::Granted(share) => self.place = Place::held(share),
                Queued::Waits(again) => return Err(again),
                Queued::Refused(rejection) => {
                    self.place = Place::NONE;
                    rejection.log();
                    return Ok(Err(rejection));
                }
            }
        }
        self.next_wait();
        let may_go_on = self.in_time(parts).and_then(|()| self.ask_breaker(parts));
        if may_go_on.is_err() {
            self.settle_neutral(parts);
        }
        Ok(may_go_on)
    }

    /// How long to wait in the queue: for ever if `None`.
    pub(super) fn waits_until<P: Parts>(&mut self, parts: &P, again: Option<Instant>) -> Option<Wait> {
        let armed = self.arm_queue(parts);
        if !parts.limit().is_some_and(|limit| limit.is_timed()) {
            return armed;
        }
        let until = self.queue_ends(parts).into_iter().chain(again).min()?;
        Some(Wait { now: now(), until })
    }

    /// When the wait in the queue is over, if ever; known since it was armed.
    fn queue_ends<P: Parts>(&mut self, parts: &P) -> Option<Instant> {
        let started = self.started?;
        let own = parts.limit().and_then(|limit| limit.max_wait()).map(|wait| after(started, wait));
        let deadline = self.deadline::<P>(started);
        own.into_iter().chain(deadline).min()
    }

    /// Whether the wait in the queue is over, and not just to be looked after.
    pub(super) fn waited_enough<P: Parts>(&mut self, parts: &P) -> bool {
        !parts.limit().is_some_and(|limit| limit.is_timed()) || self.queue_ends(parts).is_some_and(|end| end <= now())
    }

    /// In a backoff: `waker` while it lasts, `None` once it is over. An error if nothing is tried again any more.
    pub(super) fn sleep<P: Parts>(&mut self, parts: &P, waker: Option<&Waker>) -> Result<(), Rejection> {
        let Some(shutdown) = parts.retry().and_then(Retry::shutdown) else { return Ok(()) };
        match waker {
            Some(waker) => {
                let sleeper = std::mem::replace(&mut self.place, Place::NONE).sleeper();
                if let Some(sleeper) = shutdown.keep_waiting(sleeper, waker) {
                    self.place = Place::asleep(sleeper);
                    return Ok(());
                }
            }
            None => self.stop_sleeping(parts),
        }
        if !shutdown.is_draining() {
            return Ok(());
        }
        let rejection = Rejection::draining(parts.name());
        rejection.log();
        Err(rejection)
    }

    #[cold]
    fn stop_sleeping<P: Parts>(&mut self, parts: &P) {
        if let (Some(sleeper), Some(retry)) = (self.place.sleeper(), parts.retry()) {
            self.place = Place::NONE;
            if let Some(shutdown) = retry.shutdown() {
                shutdown.stop_waiting(sleeper);
            }
        }
    }

    // ---------------------------------------------------------------- run

    /// Gives back what is claimed if user code panics before there is a future to do so. To be forgotten after it.
    #[inline(always)]
    pub(super) fn unless_forgotten<P: Parts>(self, parts: &P) -> Option<Core<&P>> {
        P::TAKES.then(|| Core::new(parts, Claims { running: true, ..self }))
    }

    /// What is current for user code that belongs to the attempt, and user code runs.
    #[inline(always)]
    pub(super) fn enter<P: Parts>(&mut self) -> Option<Scope> {
        self.running = true;
        P::SCOPED.then(|| Scope::enter(self.ambient))
    }

    /// After user code that was entered with `enter`, while its scope lasts.
    #[inline(always)]
    pub(super) fn called<P: Parts>(self) -> Self {
        let ambient = if P::SCOPED { Ambient::current() } else { self.ambient };
        Self { ambient, running: false, ..self }
    }

    /// Runs user code that belongs to the attempt.
    #[inline(always)]
    pub(super) fn run<P: Parts, R>(&mut self, parts: &P, code: impl FnOnce(&P, u32) -> R) -> R {
        let scope = self.enter::<P>();
        let result = code(parts, self.attempt());
        self.leave(scope);
        result
    }

    /// After it.
    #[inline(always)]
    pub(super) fn leave(&mut self, scope: Option<Scope>) {
        if let Some(scope) = scope {
            self.ambient = scope.exit();
        }
        self.running = false;
    }

    /// Runs user code that looks at the outcome or drops the attempt, and needs no deadline.
    #[inline(always)]
    pub(super) fn look<R>(&mut self, code: impl FnOnce() -> R) -> R {
        self.running = true;
        let result = code();
        self.running = false;
        result
    }

    /// Whether it has a permit, or waits somewhere.
    #[inline(always)]
    pub(super) fn is_placed(&self) -> bool {
        self.place != Place::NONE
    }

    /// The number of the present attempt.
    #[inline(always)]
    fn attempt(&self) -> u32 {
        u32::try_from(self.ambient.attempt).unwrap_or(u32::MAX)
    }

    /// Whether a further attempt may follow the present one, as far as numbers go.
    #[inline]
    pub(super) fn is_last<P: Parts>(&self, parts: &P) -> bool {
        parts.retry().is_none_or(|retry| self.attempt() >= retry.max_attempts())
    }

    /// Whether nothing may be sent after the present attempt, or beside it.
    #[inline]
    pub(super) fn is_sent_once<P: Parts>(&self, parts: &P) -> bool {
        parts.hedge().is_none() && self.is_last(parts)
    }

    /// Whether a call that was refused for this reason is to be tried again.
    #[inline]
    pub(super) fn retries<P: Parts>(&self, parts: &P, reason: Reason) -> bool {
        parts.retry().is_some_and(|retry| retry.retries(reason))
    }

    /// Whether a call that was throttled is to be tried again.
    #[inline]
    pub(super) fn retries_throttled<P: Parts>(&self, parts: &P, usual: bool, hint: Option<Duration>) -> bool {
        parts.retry().is_some_and(|retry| retry.retries_throttled(usual, hint))
    }

    /// Whether time matters to an attempt that is pending. A deadline of whoever polls it is the call's own by now, if the
    /// parts are scoped.
    #[inline(always)]
    pub(super) fn is_timed<P: Parts>(&self, parts: &P) -> bool {
        parts.timeout().is_some()
            || parts.breaker().is_some()
            || P::SCOPED && !self.ambient.deadline.is_none()
            || parts.limit().is_some_and(|limit| limit.is_adaptive())
            || parts.hedge().is_some()
    }

    /// On the first pending poll of an attempt: the moment to cut it off at, if there is one. A layer that has no
    /// bound of its own leaves the deadline to whoever set it: one timer is enough.
    #[inline]
    pub(super) fn arm<P: Parts>(&mut self, parts: &P) -> Option<Wait> {
        if self.armed {
            return None;
        }
        let wait = self.arm_beside(parts);
        if let (Some(limit), Some(started)) = (parts.limit(), self.started) {
            limit.pending(started);
        }
        wait
    }

    /// As [`arm`](Self::arm), for an attempt beside which another may be sent.
    pub(super) fn arm_to_hedge<P: Parts>(&mut self, parts: &P) -> Option<Wait> {
        if self.armed {
            return None;
        }
        let wait = self.arm(parts);
        match self.started {
            Some(now) => self.hedge_within(parts, wait, now),
            None => wait,
        }
    }

    /// The same, for one that had to wait for its service, and so has a timer already.
    pub(super) fn arm_again_to_hedge<P: Parts>(&mut self, parts: &P) -> Option<Wait> {
        parts.hedge().filter(|_| self.armed)?;
        let wait = self.arm_again(parts);
        self.hedge_within(parts, wait, now())
    }

    fn hedge_within<P: Parts>(&mut self, parts: &P, wait: Option<Wait>, now: Instant) -> Option<Wait> {
        let Some(delay) = parts.hedge().and_then(Hedge::delay) else { return wait };
        let until = after(now, delay);
        if wait.is_some_and(|wait| wait.until <= until) {
            return wait;
        }
        self.limit = Limit::Hedge;
        Some(Wait { now, until })
    }

    /// As [`arm`](Self::arm), for an attempt beside the first: that a call which is alone is slow is no silence.
    #[inline]
    pub(super) fn arm_beside<P: Parts>(&mut self, parts: &P) -> Option<Wait> {
        if self.armed {
            return None;
        }
        let time = parts.timeout();
        self.arm_for(parts, time, P::SCOPED || time.is_some(), Limit::Attempt)
    }

    /// Whether what was waited for is no end.
    pub(super) fn is_to_hedge(&self) -> bool {
        matches!(self.limit, Limit::Hedge)
    }

    /// After something else was waited for, or for another: the moment to cut the attempt off at.
    pub(super) fn arm_again<P: Parts>(&mut self, parts: &P) -> Option<Wait> {
        let started = self.started?;
        let time = parts.timeout();
        self.ends::<P>(started, time, P::SCOPED || time.is_some(), Limit::Attempt)
    }

    /// On the first pending poll in the queue. No wait outlasts the deadline.
    pub(super) fn arm_queue<P: Parts>(&mut self, parts: &P) -> Option<Wait> {
        if self.armed {
            return None;
        }
        let max_wait = parts.limit().and_then(|limit| limit.max_wait());
        self.arm_for(parts, max_wait, true, Limit::MaxWait)
    }

    #[inline]
    fn arm_for<P: Parts>(&mut self, parts: &P, time: Option<Duration>, bounded: bool, limit: Limit) -> Option<Wait> {
        self.armed = true;
        let bounded = bounded && !self.bound::<P>().is_none();
        if time.is_none()
            && !bounded
            && parts.breaker().is_none()
            && parts.limit().is_none_or(|limit| !limit.is_timed())
            && parts.hedge().is_none()
        {
            return None;
        }
        let now = now();
        self.started = Some(now);
        self.ends::<P>(now, time, bounded, limit)
    }

    /// When what began then is over: by its own time, or by the deadline.
    #[inline(always)]
    fn ends<P: Parts>(&mut self, now: Instant, time: Option<Duration>, bounded: bool, limit: Limit) -> Option<Wait> {
        let own = time.map(|time| after(now, time));
        let deadline = if bounded { self.deadline::<P>(now) } else { None };
        let by_deadline = deadline.is_some_and(|deadline| own.is_none_or(|own| deadline < own));
        self.limit = if by_deadline { Limit::Deadline } else { limit };
        let until = if by_deadline { deadline } else { own }?;
        Some(Wait { now, until })
    }

    /// The deadline of this call as it stands: of its own, of whoever polls it, or the earlier of both.
    fn bound<P: Parts>(&self) -> Moment {
        let outer = Ambient::current();
        if P::SCOPED { self.ambient.heeding(outer).deadline } else { outer.deadline }
    }

    /// The same, started if it has yet to.
    pub(super) fn deadline<P: Parts>(&mut self, now: Instant) -> Option<Instant> {
        let outer = Ambient::start_current(now);
        if P::SCOPED {
            self.ambient = self.ambient.heeding(Ambient::current());
            self.ambient.deadline.start(now)
        } else {
            outer
        }
    }

    /// After a wait, which may have ended late: nothing begins past the deadline.
    pub(super) fn in_time<P: Parts>(&self, parts: &P) -> Result<(), Rejection> {
        if !self.is_late::<P>() {
            return Ok(());
        }
        let rejection = out_of_time(parts);
        rejection.log();
        Err(rejection)
    }

    /// Whether the deadline is past.
    pub(super) fn is_late<P: Parts>(&self) -> bool {
        let deadline = self.bound::<P>();
        deadline.is_started() && is_past(deadline)
    }

    /// Before something else is waited for.
    fn next_wait(&mut self) {
        self.started = None;
        self.armed = false;
    }

    // ---------------------------------------------------------------- settle

    /// The attempt ended, and this is what it says.
    #[inline(always)]
    pub(super) fn settle<P: Parts>(&mut self, parts: &P, verdict: Verdict) {
        self.release(parts, Ended::of(verdict));
        self.tell(parts, verdict);
    }

    /// The attempt succeeded.
    #[inline(always)]
    pub(super) fn settle_success<P: Parts>(&mut self, parts: &P) {
        self.release(parts, Ended::Answered);
        if let Some(breaker) = parts.breaker().filter(|_| std::mem::take(&mut self.owing)) {
            if self.started.is_some() || !breaker.succeed(self.ticket) {
                settle_with(breaker, self.ticket, self.started, Verdict::Success);
            }
        }
    }

    /// An attempt that took so long was answered, or given up for another.
    #[inline]
    pub(super) fn learn<P: Parts>(&self, parts: &P) {
        if let Some((hedge, started)) = parts.hedge().zip(self.started) {
            hedge.learn(now().saturating_duration_since(started));
        }
    }

    /// For an attempt beside this one, if there may be one: the timer may have been late.
    pub(super) fn beside<P: Parts>(&self, parts: &P) -> Option<Self> {
        if self.is_late::<P>() || parts.hedge().is_some_and(Hedge::is_draining) {
            return None;
        }
        let mut ambient = self.ambient;
        if let Some(retry) = parts.retry() {
            if self.is_last(parts) || retry.shutdown().is_some_and(shutdown::Handle::is_draining) {
                return None;
            }
            ambient.attempt = ambient.attempt.saturating_add(1);
        }
        Some(Self { ambient, previous: self.previous, ..Self::default() })
    }

    /// Another attempt of the call was faster, which says nothing of this one but how long it has taken.
    #[cold]
    pub(super) fn lose<P: Parts>(&mut self, parts: &P) {
        self.give_up(parts, Ended::Unknown);
    }

    /// The attempt was answered, and lasts on.
    #[inline(always)]
    pub(super) fn answered<P: Parts>(&mut self, parts: &P, verdict: Verdict) {
        if let Some(limit) = parts.limit().filter(|limit| limit.is_adaptive()) {
            limit.report(Ended::of(verdict), self.took::<P>());
        }
    }

    /// Tells the breaker, if it is owed a result.
    pub(super) fn tell<P: Parts>(&mut self, parts: &P, verdict: Verdict) {
        if let Some(breaker) = parts.breaker().filter(|_| std::mem::take(&mut self.owing)) {
            settle_with(breaker, self.ticket, self.started, verdict);
        }
    }

    /// The attempt was dropped or cut off: a failure if it has outrun the slow threshold, else neutral.
    #[cold]
    pub(super) fn settle_cut_off<P: Parts>(&mut self, parts: &P) {
        self.give_up(parts, Ended::GivenUp);
    }

    /// By the cancel rule.
    fn give_up<P: Parts>(&mut self, parts: &P, ended: Ended) {
        let verdict = cut_off_verdict(parts.breaker().filter(|_| self.owing), self.started);
        self.release(parts, ended);
        self.tell(parts, verdict);
    }

    /// It took longer than it may.
    #[cold]
    fn settle_timeout<P: Parts>(&mut self, parts: &P) {
        if let Some(throttle) = parts.throttle() {
            throttle.settle(Verdict::TRANSIENT, now);
        }
        self.release(parts, Ended::TimedOut);
        self.tell(parts, Verdict::TRANSIENT);
    }

    /// A layer below refused the attempt. Only our own time-out says something about the service.
    #[cold]
    pub(super) fn settle_rejected<P: Parts>(&mut self, parts: &P, reason: Reason) {
        match reason {
            Reason::Timeout => self.settle_timeout(parts),
            Reason::DeadlineExceeded => self.settle_cut_off(parts),
            Reason::CircuitOpen | Reason::Overloaded | Reason::ShuttingDown => self.settle_neutral(parts),
        }
    }

    #[inline(always)]
    pub(super) fn settle_neutral<P: Parts>(&mut self, parts: &P) {
        self.release(parts, Ended::Unknown);
        self.tell(parts, Verdict::Ignored);
    }

    /// The call is dropped with something in hand.
    #[cold]
    #[inline(never)]
    fn give_back<P: Parts>(&mut self, parts: &P) {
        self.stop_sleeping(parts);
        if self.running {
            self.settle(parts, Verdict::TRANSIENT);
        } else {
            self.settle_cut_off(parts);
        }
    }

    #[inline(always)]
    pub(super) fn release<P: Parts>(&mut self, parts: &P, ended: Ended) {
        if let Some(limit) = parts.limit() {
            match std::mem::replace(&mut self.place, Place::NONE) {
                Place::HELD if limit.listens(self.started.is_some(), ended) => {
                    limit.release_after(Share::NONE, ended, self.took::<P>());
                }
                Place::HELD => limit.release(),
                Place::NONE => {}
                other => self.yield_place::<P>(limit, other, ended),
            }
        }
    }

    /// Gives back the permit of a share, or a place in the queue.
    #[cold]
    fn yield_place<P: Parts>(&self, limit: &ConcurrencyLimit, place: Place, ended: Ended) {
        match place.share() {
            Some(share) => limit.release_after(share, ended, self.took::<P>()),
            None => limit.leave_queue(place.0),
        }
    }

    /// How long the attempt took, for an adaptive limit.
    #[inline(never)]
    fn took<P: Parts>(&self) -> Took {
        Took { started: self.started, deadline: self.bound::<P>().instant() }
    }

    /// The timer fired: gives everything back and says why. The inner future is dropped already.
    #[cold]
    pub(super) fn cut_off<P: Parts>(&mut self, parts: &P) -> Rejection {
        let elapsed = self.started.map_or(Duration::ZERO, |started| now().saturating_duration_since(started));
        let seconds = |time: Option<Duration>| time.map_or(f32::NAN, |time| time.as_secs_f32());
        let name = parts.name();
        let elapsed = elapsed.as_secs_f32();
        let rejection = match self.limit {
            // It is armed again before anything can be cut off.
            Limit::Hedge | Limit::Attempt => {
                let allowed = seconds(parts.timeout());
                self.settle_timeout(parts);
                Rejection::new(name, Rule::AttemptTimeout, elapsed, allowed)
            }
            Limit::Deadline => {
                self.settle_cut_off(parts);
                out_of_time(parts)
            }
            Limit::MaxWait => {
                let allowed = seconds(parts.limit().and_then(|limit| limit.max_wait()));
                self.settle_neutral(parts);
                Rejection::new(name, Rule::MaxWait, elapsed, allowed)
            }
        };
        rejection.log();
        rejection
    }

    /// After an attempt that may be repeated: when to start the next, or `None` to give up and return what there
    /// is. Withdraws from the budget last, so that a token is spent only on an attempt that is made.
    #[cold]
    pub(super) fn again_at<P: Parts>(&mut self, parts: &P, hint: Option<Duration>) -> Option<Wait> {
        let now = now();
        let remaining = self.deadline::<P>(now).map(|deadline| deadline.saturating_duration_since(now));
        let retry = parts.retry()?;
        if retry.shutdown().is_some_and(shutdown::Handle::is_draining) {
            return None;
        }
        let backoff = retry.backoff(self.attempt(), Duration::from_nanos(self.previous));
        let delay = retry.delay(backoff, hint, remaining)?;
        let until = after(now, delay);
        if parts.breaker().is_some_and(|breaker| breaker.refuses_at(until)) {
            // It would be refused: the answer that we have says more.
            return None;
        }
        if !retry.withdraw(now) {
            debug!(target: "buttress", name = parts.name(), "retry budget exhausted");
            return None;
        }
        debug!(
            target: "buttress",
            name = parts.name(),
            attempt = self.ambient.attempt,
            delay = ?delay,
            "retrying"
        );
        self.previous = nanos(backoff);
        self.next_wait();
        Some(Wait { now, until })
    }
}

/// Claims on parts. Dropping it gives everything back: a panic is a failure, a cancellation falls under the cancel
/// rule.
pub(super) struct Core<H: Holds> {
    /// `None`: there is nothing to give back.
    held: Option<H>,
    pub(super) claims: Claims,
}

impl<H: Holds> Core<H> {
    #[inline(always)]
    pub(super) fn new(held: H, claims: Claims) -> Self {
        Self { held: Some(held), claims }
    }

    /// Of a call that was refused for good.
    #[inline(always)]
    pub(super) fn empty(claims: Claims) -> Self {
        Self { held: None, claims }
    }

    #[cfg(feature = "http")]
    pub(super) fn parts(&self) -> &H::Parts {
        let Some(held) = &self.held else { over() };
        held.parts()
    }

    pub(super) fn name(&self) -> Option<&'static str> {
        self.held.as_ref().map(|held| held.parts().name())
    }

    #[inline(always)]
    pub(super) fn split(&mut self) -> (&mut Claims, &H) {
        let Some(held) = &self.held else { over() };
        (&mut self.claims, held)
    }
}

impl<H: Holds> Drop for Core<H> {
    #[inline]
    fn drop(&mut self) {
        if let Some(held) = &self.held {
            if self.claims.owing || self.claims.is_placed() {
                self.claims.give_back(held.parts());
            }
        }
    }
}

#[cold]
#[inline(never)]
fn over() -> ! {
    unreachable!("the parts stay for as long as the future does")
}

/// What holds the parts while there is no future yet that could, and gives back what is claimed if the service panics
/// before there is one.
pub(super) struct Admitted<H: Holds> {
    held: Cell<Option<H>>,
}

/// See [`Admitted`]. Of the claims it has what was taken, in words that stay in registers.
pub(super) struct OnPanic<'a, H: Holds> {
    admitted: &'a Admitted<H>,
    ticket: u64,
    place: Place,
    owing: bool,
}

impl<H: Holds> Admitted<H> {
    #[inline(always)]
    pub(super) fn new(held: H) -> Self {
        Self { held: Cell::new(Some(held)) }
    }

    #[inline(always)]
    pub(super) fn unless_taken(&self, claims: Claims) -> Option<OnPanic<'_, H>> {
        let Claims { ticket, place, owing, .. } = claims;
        H::Parts::TAKES.then(|| OnPanic { admitted: self, ticket, place, owing })
    }

    /// For the future.
    #[inline(always)]
    pub(super) fn take(&self, claims: Claims) -> Core<H> {
        Core { held: self.held.take(), claims }
    }
}

impl<H: Holds> Drop for OnPanic<'_, H> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(held) = self.admitted.held.take() {
            panicked(held, self.ticket, self.place, self.owing);
        }
    }
}

#[cold]
#[inline(never)]
fn panicked<H: Holds>(held: H, ticket: u64, place: Place, owing: bool) {
    drop(Core::new(held, Claims { ticket, place, owing, running: true, ..Claims::default() }));
}

// What follows takes what it needs by value; [`Claims`] says why.

#[cold]
fn is_past(deadline: Moment) -> bool {
    deadline.instant().is_some_and(|at| at <= now())
}

/// Counts a result that may need the time.
#[inline(never)]
fn settle_with(breaker: &Breaker, ticket: u64, started: Option<Instant>, verdict: Verdict) {
    let Some(failed) = breaker.counts(verdict) else { return breaker.release(ticket) };
    let untimed = !failed && !breaker.times_successes();
    if untimed && breaker.succeed(ticket) {
        return;
    }
    let now = now();
    let slow = breaker.is_slow(started, now);
    breaker.record(ticket, failed, slow, verdict.comes_back_after(), now);
}

/// The cancel rule.
#[cold]
pub(super) fn cut_off_verdict(breaker: Option<&Breaker>, started: Option<Instant>) -> Verdict {
    match breaker {
        Some(breaker) if started.is_some() && breaker.is_slow(started, now()) => Verdict::TRANSIENT,
        _ => Verdict::Ignored,
    }
}

/// Names the parts' own deadline, unless an outer one is past as well: that is what counts then, and it does not say
/// how long it was.
pub(super) fn out_of_time(parts: &impl Parts) -> Rejection {
    let own = parts.deadline().filter(|_| !is_past(Ambient::current().deadline));
    deadline_exceeded(parts.name(), own)
}

#[cold]
fn deadline_exceeded(name: &'static str, own: Option<Duration>) -> Rejection {
    own.map_or(Rejection::too_late(name), |own| Rejection::new(name, Rule::Deadline, f32::NAN, own.as_secs_f32()))
}
