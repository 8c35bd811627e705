//! What lasts of a call once its response is there: its permit, and the result that the breaker is owed.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    BodyTimes, Breaker, Ended, Ending, Holds, Parts,
    core::{Claims, Core, cut_off_verdict, out_of_time},
};
use crate::{Rejection, Rule, Verdict, clock};

impl<H: Holds + Clone> Ending<'_, H> {
    /// Takes over what is left.
    pub(crate) fn rest(self) -> Rest<H> {
        let mut claims = std::mem::take(self.claims);
        let parts = self.held.parts();
        // A circuit that is half-open waits for what its probes say; a stream may take days to say it.
        if claims.owing && Breaker::is_probe(claims.ticket) {
            claims.tell(parts, self.verdict);
        }
        let started = claims.started.take().filter(|_| claims.owing);
        let mut waited = Duration::ZERO;
        if started.is_some() || !claims.ambient.deadline.is_none() {
            let now = clock::now();
            waited = started.map_or(waited, |started| now.saturating_duration_since(started));
            claims.ambient.deadline.start(now);
        }
        let core = Core::new(self.held.clone(), claims);
        Rest { core, verdict: self.verdict, headers: waited, waited: Duration::ZERO }
    }
}

/// What ended the wait for a body.
#[derive(Clone, Copy, Debug)]
pub enum BodyLimit {
    Idle,
    Whole,
    Deadline,
}

/// What is left of a call. Dropped, it gives everything back as a call that is dropped does.
pub struct Rest<H: Holds> {
    core: Core<H>,
    /// What the response says, as long as its end says nothing else.
    verdict: Verdict,
    /// How long the response was waited for.
    headers: Duration,
    /// How long its body was, in all; what its reader does in between is not the service's time.
    waited: Duration,
}

impl<H: Holds> Rest<H> {
    pub(crate) fn name(&self) -> &'static str {
        self.core.parts().name()
    }

    pub(crate) fn times(&self) -> BodyTimes {
        self.core.parts().body()
    }

    /// Runs user code that belongs to the call: under its deadline, and a panic is a failure.
    pub(crate) fn run<R>(&mut self, code: impl FnOnce() -> R) -> R {
        let (claims, held) = self.core.split();
        let own = claims.ambient;
        let result = claims.run(held.parts(), |_, _| code());
        // The deadline of whoever polls now is not that of the next one.
        claims.ambient = own;
        result
    }

    /// The deadline as it stands for whoever waits now.
    pub(crate) fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let (claims, _) = self.core.split();
        let own = claims.ambient;
        let deadline = claims.deadline::<H::Parts>(now);
        claims.ambient = own;
        deadline
    }

    /// How long the body was waited for, in all.
    pub(crate) fn waited(&self) -> Duration {
        self.waited
    }

    /// The body was waited for once more.
    pub(crate) fn add(&mut self, waited: Duration) {
        self.waited = self.waited.saturating_add(waited);
    }

    /// The claims of a call that has lasted until now, but for the pauses of its reader.
    fn without_pauses(&mut self) -> (&mut Claims, &H) {
        let lasted = self.headers.saturating_add(self.waited);
        let (claims, held) = self.core.split();
        if claims.owing && !lasted.is_zero() {
            claims.started = clock::now().checked_sub(lasted);
        }
        (claims, held)
    }

    /// Whether nothing is left that would be given back, told or timed.
    pub(crate) fn is_empty(&self) -> bool {
        let BodyTimes { idle, whole } = self.times();
        self.core.claims.is_empty() && idle.is_none() && whole.is_none()
    }

    /// Whether its limit goes by how long the headers take.
    pub(crate) fn is_counted_until_headers(&self) -> bool {
        self.core.parts().limit().is_some_and(|limit| limit.is_adaptive())
    }

    /// Gives the permit back.
    pub(crate) fn release(&mut self) {
        let (claims, held) = self.core.split();
        claims.release(held.parts(), Ended::Unknown);
    }

    /// The body came to its end, which may know `better` than the headers.
    pub(crate) fn end(&mut self, better: Option<Verdict>) {
        let verdict = better.unwrap_or(self.verdict);
        let (claims, held) = self.without_pauses();
        claims.tell(held.parts(), verdict);
        // It ended well: whoever gives the permit back later does not give up.
        claims.started = None;
    }

    /// The body is dropped before its end, and was `quiet` since then. Its reader may have seen enough: what counts is
    /// what the headers said, unless the body was silent, or not asked for again, for longer than is slow.
    pub(crate) fn leave(&mut self, quiet: Option<Instant>) {
        let verdict = self.verdict;
        let (claims, held) = self.core.split();
        // After a panic it is for the drop of the claims to say so.
        if claims.owing && !claims.running {
            let parts = held.parts();
            let stalled = cut_off_verdict(parts.breaker(), quiet) == Verdict::TRANSIENT;
            claims.tell(parts, if stalled { Verdict::TRANSIENT } else { verdict });
        }
    }

    /// The body took too long, and is dropped already.
    #[cold]
    pub(crate) fn cut_off(&mut self, limit: BodyLimit) -> Rejection {
        let times = self.times();
        let (claims, held) = self.without_pauses();
        let parts = held.parts();
        let rejection = match limit {
            BodyLimit::Idle => claims.time_out(parts, Rule::BodyIdle, times.idle),
            BodyLimit::Whole => claims.time_out(parts, Rule::BodyTimeout, times.whole),
            BodyLimit::Deadline => {
                claims.settle_cut_off(parts);
                out_of_time(parts)
            }
        };
        rejection.log();
        rejection
    }
}

impl Claims {
    fn is_empty(&self) -> bool {
        !self.owing && !self.is_placed() && self.ambient.deadline.is_none()
    }

    fn time_out<P: Parts>(&mut self, parts: &P, rule: Rule, allowed: Option<Duration>) -> Rejection {
        self.settle(parts, Verdict::TRANSIENT);
        let allowed = allowed.map_or(f32::NAN, |time| time.as_secs_f32());
        Rejection::new(parts.name(), rule, f32::NAN, allowed)
    }
}
