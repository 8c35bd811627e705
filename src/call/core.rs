//! Admit and settle: what one call holds, and how each of it is given back exactly once.

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Instant;
use tracing::debug;

use super::{Holds, Parts};
use crate::{
    Reason, Rejection, Rule, Verdict,
    clock::{after, now},
    deadline::{Ambient, Scope},
};

/// Where a call stands with the concurrency limit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    None,
    Queued(u32),
    Held,
}

/// How a call came in.
pub(super) enum Entry {
    Admitted,
    /// It waits for a permit; the breaker is asked again when it has one.
    Queued,
}

/// What the timer is armed for.
#[derive(Clone, Copy)]
enum Limit {
    Attempt,
    Deadline,
    MaxWait,
}

/// What one call holds. Dropping it gives everything back.
pub(super) struct Core<H: Holds> {
    parts: H,
    /// Seen by the inner service, if the parts are scoped.
    ambient: Ambient,
    /// When the present attempt, or the wait in the queue, was first found pending.
    started: Option<Instant>,
    /// The backoff before the present attempt.
    previous: Duration,
    /// The breaker's word at admission.
    ticket: u64,
    place: Place,
    /// Whether the breaker is owed a result.
    owing: bool,
    /// Whether the timer was considered for what is being waited for.
    armed: bool,
    /// Whether user code runs: still set on drop, it has panicked.
    running: bool,
    limit: Limit,
}

impl<H: Holds> Core<H> {
    #[inline]
    pub(super) fn new(parts: H) -> Self {
        Self {
            parts,
            ambient: Ambient::default(),
            started: None,
            previous: Duration::ZERO,
            ticket: 0,
            place: Place::None,
            owing: false,
            armed: false,
            running: false,
            limit: Limit::Attempt,
        }
    }

    #[inline]
    pub(super) fn parts(&self) -> &H::Parts {
        self.parts.parts()
    }

    /// Before the first attempt.
    #[inline]
    pub(super) fn begin(&mut self) -> Result<(), Rejection> {
        if H::Parts::SCOPED {
            self.ambient = Ambient::nested(self.parts().deadline());
            if let Some(at) = self.ambient.deadline.instant()
                && at <= now()
            {
                return Err(self.refused(self.deadline_exceeded()));
            }
        }
        if let Some(retry) = self.parts().retry() {
            retry.deposit(now);
        }
        Ok(())
    }

    // ---------------------------------------------------------------- admit

    #[inline]
    pub(super) fn admit(&mut self) -> Result<Entry, Rejection> {
        self.ambient.attempt = self.ambient.attempt.saturating_add(1);
        self.ask_breaker()?;
        if let Some(limit) = self.parts.parts().limit() {
            if !limit.try_acquire() {
                return self.queue();
            }
            self.place = Place::Held;
        }
        Ok(Entry::Admitted)
    }

    #[inline]
    fn ask_breaker(&mut self) -> Result<(), Rejection> {
        if let Some(breaker) = self.parts.parts().breaker() {
            self.ticket = match breaker.admit() {
                Some(ticket) => ticket,
                None => breaker.admit_at(now()).map_err(|rejection| self.refused(rejection))?,
            };
            self.owing = true;
        }
        Ok(())
    }

    #[cold]
    fn queue(&mut self) -> Result<Entry, Rejection> {
        let Some(limit) = self.parts.parts().limit() else { return Ok(Entry::Admitted) };
        match limit.enqueue() {
            Ok(None) => {
                self.place = Place::Held;
                Ok(Entry::Admitted)
            }
            Ok(Some(ticket)) => {
                // The circuit may open, or a probe be wanted, while this waits: ask again then.
                self.settle_neutral();
                self.place = Place::Queued(ticket);
                Ok(Entry::Queued)
            }
            Err(rejection) => {
                self.settle_neutral();
                Err(self.refused(rejection))
            }
        }
    }

    /// Pending while the call waits for a permit.
    pub(super) fn poll_queue(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        if let (Place::Queued(ticket), Some(limit)) = (self.place, self.parts.parts().limit()) {
            ready!(limit.poll_queued(ticket, cx));
            self.place = Place::Held;
        }
        self.next_wait();
        if let Err(rejection) = self.ask_breaker() {
            self.settle_neutral();
            return Poll::Ready(Err(rejection));
        }
        Poll::Ready(Ok(()))
    }

    // ---------------------------------------------------------------- run

    /// Runs user code that belongs to the attempt.
    #[inline]
    pub(super) fn run<R>(&mut self, code: impl FnOnce(&H::Parts, u32) -> R) -> R {
        self.running = true;
        let attempt = self.ambient.attempt;
        let result = if H::Parts::SCOPED {
            let _scope = Scope::enter(&mut self.ambient);
            code(self.parts.parts(), attempt)
        } else {
            code(self.parts.parts(), attempt)
        };
        self.running = false;
        result
    }

    /// Judges an outcome: user code too, but it sees no deadline.
    #[inline]
    pub(super) fn judge(&mut self, classify: impl FnOnce(&<H::Parts as Parts>::Classify) -> Verdict) -> Verdict {
        self.running = true;
        let verdict = classify(self.parts.parts().classify());
        self.running = false;
        verdict
    }

    /// Whether a further attempt may follow the present one, as far as numbers go.
    #[inline]
    pub(super) fn is_last(&self) -> bool {
        self.parts().retry().is_none_or(|retry| self.ambient.attempt >= retry.max_attempts())
    }

    /// Whether a call that was refused for this reason is to be tried again.
    #[inline]
    pub(super) fn retries(&self, reason: Reason) -> bool {
        self.parts().retry().is_some_and(|retry| retry.retries(reason))
    }

    /// On the first pending poll of an attempt: the moment to cut it off at, if there is one.
    #[inline]
    pub(super) fn arm(&mut self) -> Option<Instant> {
        if self.armed {
            return None;
        }
        self.armed = true;
        self.arm_for(self.parts().timeout(), Limit::Attempt)
    }

    /// On the first pending poll in the queue.
    pub(super) fn arm_queue(&mut self) -> Option<Instant> {
        if self.armed {
            return None;
        }
        self.armed = true;
        let max_wait = self.parts().limit().and_then(|limit| limit.max_wait());
        self.arm_for(max_wait, Limit::MaxWait)
    }

    fn arm_for(&mut self, time: Option<Duration>, limit: Limit) -> Option<Instant> {
        let ambient = if H::Parts::SCOPED { self.ambient } else { Ambient::current() };
        if time.is_none() && ambient.deadline.is_none() && self.parts().breaker().is_none() {
            return None;
        }
        let now = now();
        self.started = Some(now);
        let own = time.map(|time| after(now, time));
        match (own, self.deadline(now)) {
            (Some(own), Some(deadline)) if deadline < own => {
                self.limit = Limit::Deadline;
                Some(deadline)
            }
            (None, Some(deadline)) => {
                self.limit = Limit::Deadline;
                Some(deadline)
            }
            (own, _) => {
                self.limit = limit;
                own
            }
        }
    }

    /// The deadline of this call, started if it has yet to.
    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let outer = Ambient::start_current(now);
        if H::Parts::SCOPED { self.ambient.deadline.start(now) } else { outer }
    }

    /// Before something else is waited for.
    fn next_wait(&mut self) {
        self.started = None;
        self.armed = false;
    }

    // ---------------------------------------------------------------- settle

    /// The attempt ended, and this is what it says.
    #[inline]
    pub(super) fn settle(&mut self, verdict: Verdict) {
        self.release();
        if self.owing {
            self.owing = false;
            let Some(breaker) = self.parts.parts().breaker() else { return };
            let failed = match breaker.counts(verdict) {
                Some(failed) => failed,
                None => return breaker.release(self.ticket),
            };
            let untimed = !failed && (self.started.is_none() || !breaker.times_successes());
            if untimed && breaker.succeed(self.ticket) {
                return;
            }
            let now = now();
            let slow = breaker.is_slow(self.started, now);
            breaker.record(self.ticket, failed, slow, verdict.retry_after(), now);
        }
    }

    /// The attempt was dropped or cut off: a failure if it has outrun the slow threshold, else neutral.
    #[cold]
    pub(super) fn settle_cut_off(&mut self) {
        let slow = self.owing
            && self.started.is_some()
            && self.parts().breaker().is_some_and(|breaker| breaker.is_slow(self.started, now()));
        self.settle(if slow { Verdict::TRANSIENT } else { Verdict::Ignored });
    }

    /// A layer below refused the attempt. Only our own time-out says something about the service.
    #[cold]
    pub(super) fn settle_rejected(&mut self, reason: Reason) {
        match reason {
            Reason::Timeout => self.settle(Verdict::TRANSIENT),
            Reason::DeadlineExceeded => self.settle_cut_off(),
            Reason::CircuitOpen | Reason::Overloaded => self.settle_neutral(),
        }
    }

    #[inline]
    pub(super) fn settle_neutral(&mut self) {
        self.settle(Verdict::Ignored);
    }

    #[inline]
    fn release(&mut self) {
        if self.place != Place::None {
            if let Some(limit) = self.parts.parts().limit() {
                match self.place {
                    Place::Held => limit.release(),
                    Place::Queued(ticket) => limit.leave_queue(ticket),
                    Place::None => {}
                }
            }
            self.place = Place::None;
        }
    }

    /// The timer fired: gives everything back and says why. The inner future is dropped already.
    #[cold]
    pub(super) fn cut_off(&mut self) -> Rejection {
        let elapsed = self.started.map_or(Duration::ZERO, |started| now().saturating_duration_since(started));
        let seconds = |time: Option<Duration>| time.map_or(f32::NAN, |time| time.as_secs_f32());
        let name = self.parts().name();
        let elapsed = elapsed.as_secs_f32();
        let rejection = match self.limit {
            Limit::Attempt => {
                let allowed = seconds(self.parts().timeout());
                self.settle(Verdict::TRANSIENT);
                Rejection::new(name, Reason::Timeout, Rule::AttemptTimeout, elapsed, allowed)
            }
            Limit::Deadline => {
                self.settle_cut_off();
                self.deadline_exceeded()
            }
            Limit::MaxWait => {
                let allowed = seconds(self.parts().limit().and_then(|limit| limit.max_wait()));
                self.settle_neutral();
                Rejection::new(name, Reason::Overloaded, Rule::MaxWait, elapsed, allowed)
            }
        };
        self.refused(rejection)
    }

    fn deadline_exceeded(&self) -> Rejection {
        let own = self.parts().deadline().map_or(f32::NAN, |own| own.as_secs_f32());
        Rejection::new(self.parts().name(), Reason::DeadlineExceeded, Rule::Deadline, f32::NAN, own)
    }

    #[cold]
    fn refused(&self, rejection: Rejection) -> Rejection {
        debug!(
            target: "buttress",
            name = rejection.name(),
            reason = ?rejection.reason(),
            rule = rejection.rule().as_str(),
            measured = rejection.measured(),
            threshold = rejection.threshold(),
            retry_after = ?rejection.retry_after(),
            "call rejected"
        );
        rejection
    }

    /// After an attempt that may be repeated: when to start the next, or `None` to give up and return what there
    /// is. Withdraws from the budget last, so that a token is spent only on an attempt that is made.
    #[cold]
    pub(super) fn again_at(&mut self, hint: Option<Duration>) -> Option<Instant> {
        let now = now();
        let remaining = self.deadline(now).map(|deadline| deadline.saturating_duration_since(now));
        let retry = self.parts.parts().retry()?;
        let backoff = retry.backoff(self.ambient.attempt, self.previous);
        let delay = retry.delay(backoff, hint, remaining)?;
        let at = after(now, delay);
        if self.parts.parts().breaker().is_some_and(|breaker| breaker.refuses_at(at)) {
            // It would be refused: the answer that we have says more.
            return None;
        }
        if !retry.withdraw(now) {
            debug!(target: "buttress", name = self.parts.parts().name(), "retry budget exhausted");
            return None;
        }
        debug!(
            target: "buttress",
            name = self.parts.parts().name(),
            attempt = self.ambient.attempt,
            delay = ?delay,
            "retrying"
        );
        self.previous = backoff;
        self.next_wait();
        Some(at)
    }
}

impl<H: Holds> Drop for Core<H> {
    #[inline]
    fn drop(&mut self) {
        if self.owing || self.place != Place::None {
            if self.running {
                self.settle(Verdict::TRANSIENT);
            } else {
                self.settle_cut_off();
            }
        }
    }
}
