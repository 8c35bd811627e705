//! What must be, at each moment.

use std::time::Duration;

use buttress::{CircuitBreaker, Error, Reason, Rejection, Rule, circuit_breaker::State, shutdown};
use tokio::time::Instant;

use super::{
    super::watch::{Attempt, Seen},
    Call, Outcome, Way, World,
};
use crate::support::{ms, secs};

/// A timer may be as late as its wheel is coarse.
const LATE: Duration = ms(2);

impl World {
    pub(super) fn check_outcome(&self, at: usize, outcome: &Outcome) -> Result<(), String> {
        let (call, now) = (&self.calls[at], Instant::now());
        let wrong = || format!("call {} ended with {outcome:?}", call.number);
        let seen = self.watch.seen();
        let last = seen.attempts.iter().rposition(|attempt| attempt.call == call.number);
        // Or of the one before, if that ran beside it.
        let beside = last.filter(|last| seen.attempts[*last].beside);
        let first = beside.and_then(|last| seen.attempts[..last].iter().rposition(|it| it.call == call.number));
        drop(seen);
        // Whatever comes of it is what came of its last attempt.
        let its_own = |number: u64| [last, first].contains(&Some(number as usize));
        match outcome {
            Ok(number) => require(its_own(*number), wrong),
            Err(Error::Inner(fault)) => require(its_own(fault.number), wrong),
            Err(Error::Rejected(no)) => require(self.may_reject(no, call, now), wrong),
        }
    }

    fn may_reject(&self, no: &Rejection, call: &Call, now: Instant) -> bool {
        match no.reason() {
            Reason::Timeout => {
                let seen = self.watch.seen();
                // Of two that run side by side, the first may be the last to be waited for.
                let first = |it: &&Attempt| self.plan.hedge.is_none() || it.ended == Some(now) || it.runs();
                let begun = seen.of(call.number).filter(first).map(|it| it.at.max(call.since.get().unwrap_or(now)));
                let begun = if self.plan.hedge.is_some() { begun.min() } else { begun.last() };
                // Where the service takes its time to be ready, that counts, and is not seen here.
                let began = begun.filter(|_| self.plan.ready_after == 0);
                self.plan.timeout.is_some_and(|timeout| began.is_none_or(|began| now >= began + ms(timeout)))
            }
            Reason::DeadlineExceeded => self.deadline(call).is_some_and(|deadline| now >= deadline),
            Reason::CircuitOpen => {
                // Probes that hang keep others out for no longer than the lease of the latest. (A kept service has asked before;
                // and one that takes its time to be ready is probed before that is seen here.)
                let lease = self.plan.breaker.as_ref().map_or(0, |breaker| breaker.lease);
                let latest = self.watch.seen().probes().map(|probe| probe.at).max();
                let hangs = self.plan.ready_after == 0 && latest.is_some_and(|latest| now >= latest + ms(lease));
                if no.rule() == Rule::ProbesOut && hangs && !matches!(call.way, Way::Kept) {
                    return false;
                }
                let refuses = self.policy.circuit_breaker().map(CircuitBreaker::state);
                let refuses = matches!(refuses, Some(State::Open | State::HalfOpen | State::ForcedOpen));
                if !refuses && !matches!(call.way, Way::Kept) {
                    return false;
                }
                let comes_back = no.retry_after().is_some_and(|wait| !wait.is_zero());
                self.plan.breaker.is_some() && comes_back == (no.rule() != Rule::Forced)
            }
            Reason::Overloaded if no.rule() == Rule::AcceptRate => self.may_throttle(no),
            Reason::Overloaded => {
                let (Some(limit), Some(plan)) = (self.policy.concurrency_limit(), &self.plan.limit) else {
                    return false;
                };
                let waited = now - call.since.get().unwrap_or(now);
                match no.rule() {
                    Rule::MaxWait => plan.max_wait.is_some_and(|most| waited >= ms(most)),
                    // It was told of this poll, but to a kept service when it was called.
                    _ if matches!(call.way, Way::Kept) => true,
                    Rule::TooLate => plan.adaptive,
                    _ if plan.adaptive => limit.waiting() >= plan.queue,
                    _ => limit.in_flight() >= limit.max_in_flight() && limit.waiting() >= plan.queue,
                }
            }
            Reason::ShuttingDown => self.shutdown.as_ref().is_some_and(shutdown::Handle::is_draining),
            _ => false,
        }
    }

    fn may_throttle(&self, no: &Rejection) -> bool {
        let (Some(throttle), Some((rate, least))) = (self.policy.throttle(), no.measured().zip(no.threshold())) else {
            return false;
        };
        throttle.snapshot().rejected > 0 && rate < least && no.retry_after().is_none()
    }

    /// What is counted is what the service has answered, or was cut off by the attempt timeout; and what was refused, if that counts.
    fn check_throttle(&self, ended: usize) -> Result<(), String> {
        let (Some(throttle), Some(plan)) = (self.policy.throttle(), &self.plan.throttle) else { return Ok(()) };
        let seen = throttle.snapshot();
        let refused = if plan.envoy { 0 } else { seen.rejected };
        // Where the service takes its time to be ready, who is cut off then was never seen.
        let counted = seen.requests <= ended as u64 + refused || self.plan.ready_after > 0;
        let most = f64::from(plan.most) / 100.0;
        let is_chance = (0.0..=most).contains(&seen.rejection_probability);
        require(counted && is_chance && seen.accepts <= seen.requests, || format!("{ended} have ended: {seen:?}"))
    }

    pub(super) fn check(&mut self) -> Result<(), String> {
        let now = Instant::now();
        let counted = self.service.calls().counted();
        let seen = self.watch.seen();
        if let Some(wrong) = seen.wrong.first() {
            return Err(wrong.clone());
        }
        let ends = counted.answered + counted.failed + counted.panicked + counted.dropped + counted.in_flight;
        require(counted.started == ends, || format!("{counted:?}"))?;
        require(self.outcomes + self.dropped + self.calls.len() == self.begun.len(), || {
            format!("{} calls began, {} had an outcome, {} were dropped", self.begun.len(), self.outcomes, self.dropped)
        })?;

        for call in &self.calls {
            self.check_call(call, &seen)?;
            let in_time = self.deadline(call).is_none_or(|deadline| now < deadline + LATE);
            require(in_time, || format!("call {} waits past its deadline", call.number))?;
        }

        let (running, probing) = (seen.running(), seen.probing().count());
        let ended = seen.attempts.len() - running;
        drop(seen);
        self.check_throttle(ended)?;
        self.check_budget()?;
        if self.policy.concurrency_limit().is_some_and(|limit| limit.waiting() > 1) {
            self.reach("queued");
        }
        if let (Some(breaker), Some(plan)) = (self.policy.circuit_breaker(), &self.plan.breaker) {
            let state = breaker.state();
            require(
                state != State::HalfOpen || probing <= (plan.probes + plan.then_probes.unwrap_or(0)) as usize,
                || format!("{probing} probes are out"),
            )?;
            let last = self.watch.seen().moves.last().map(|(_, last)| last.to);
            require(last.is_none_or(|last| last == state), || format!("it is {state:?}, and was told to be {last:?}"))?;
        }
        self.check_limit(running)
    }

    /// Of a call that has ended or has not: what it asked of the service, and when.
    pub(super) fn check_call(&self, call: &Call, seen: &Seen) -> Result<(), String> {
        let Some(since) = call.since.get() else { return Ok(()) };
        let (now, number) = (Instant::now(), call.number);
        let most = self.plan.retry.as_ref().map_or(1, |retry| retry.attempts);
        // Otherwise it is asked by an attempt that runs already, whose answer wins over the deadline.
        let at_once = self.plan.ready_after == 0 || matches!(call.way, Way::Send | Way::Kept);
        for attempt in seen.of(number) {
            let tell = |what: &str| format!("call {number}: attempt {} {what}", attempt.number);
            require(attempt.number <= most, || tell("is one too many"))?;
            require(!attempt.beside || self.plan.hedge.is_some(), || tell("is sent beside another"))?;
            let in_time = self.deadline(call).is_none_or(|deadline| attempt.at < deadline);
            require(in_time || !at_once, || tell("comes after the deadline"))?;
            let ran = now.duration_since(attempt.at.max(since));
            let cut_off = !attempt.runs() || self.plan.timeout.is_none_or(|timeout| ran < ms(timeout) + LATE);
            require(cut_off, || tell("runs for too long"))?;
        }
        Ok(())
    }

    /// The earlier one of the policy's and the caller's, once the policy has heard of the call.
    fn deadline(&self, call: &Call) -> Option<Instant> {
        let since = call.since.get()?;
        let own = self.plan.deadline.map(|deadline| since + ms(deadline));
        let outer = self.plan.outer_deadline.map(|deadline| self.begun[call.number] + ms(deadline));
        own.into_iter().chain(outer).min()
    }

    /// Where a circuit is half-open and no probe is out, somebody may probe, whoever keeps what of the calls that have ended.
    pub(super) fn check_probes(&self) -> Result<(), String> {
        let Some(breaker) = self.watch.breaker.get() else { return Ok(()) };
        if breaker.state() != State::HalfOpen || self.watch.seen().probing().count() != 0 {
            return Ok(());
        }
        let refused = breaker.try_acquire().err();
        require(refused.is_none(), || format!("a probe is lost: {refused:?}"))
    }

    fn check_limit(&mut self, running: usize) -> Result<(), String> {
        let Some(limit) = self.policy.concurrency_limit() else { return Ok(()) };
        let (in_flight, waiting, max) = (limit.in_flight(), limit.waiting(), limit.max_in_flight());
        let tell = || format!("{in_flight} of {max} in flight, {waiting} wait, {running} run");
        let each = if self.plan.hedge.is_some() { 2 } else { 1 };
        require(running <= in_flight && in_flight + waiting <= self.calls.len() * each, tell)?;
        let all_polled = self.calls.iter().all(|call| call.polled);
        require(in_flight == running || !all_polled || self.plan.ready_after > 0, || {
            format!("a permit is lost: {}", tell())
        })?;
        let adaptive = self.plan.limit.as_ref().is_some_and(|limit| limit.adaptive);
        // One that adapts falls below what is in flight, and holds back.
        let most = if adaptive { self.most } else { max };
        // Whoever has a share has it also where others have taken all.
        let shared = self.plan.limit.as_ref().is_some_and(|limit| limit.shared);
        let owed = if shared { most.div_ceil(2) + most.div_ceil(3) } else { 0 };
        require(in_flight <= most.max(self.in_flight) + owed, || format!("over-admitted: {}", tell()))?;
        require(waiting == 0 || in_flight >= max || adaptive, || format!("nobody is let in: {}", tell()))?;
        require(waiting <= self.plan.limit.as_ref().map_or(0, |limit| limit.queue), || {
            format!("too many: {}", tell())
        })?;
        let draining = self.shutdown.as_ref().is_some_and(shutdown::Handle::is_draining);
        require(waiting == 0 || !draining, || format!("somebody waits while it drains: {}", tell()))?;
        if in_flight > most && shared {
            self.reach("beyond the limit, by a share");
        }
        self.in_flight = if in_flight > max { in_flight } else { 0 };
        Ok(())
    }

    /// In any ten seconds, so many retries to so many calls.
    fn check_budget(&self) -> Result<(), String> {
        let Some((percent, floor)) = self.plan.retry.as_ref().and_then(|retry| retry.budget) else { return Ok(()) };
        let seen = self.watch.seen();
        let retries = || seen.attempts.iter().filter(|attempt| attempt.number > 1);
        let Some(now) = retries().next_back().map(|retry| retry.at) else { return Ok(()) };
        // Paid for between the end of the attempt before and their beginning.
        let made = retries().filter(|it| it.after.is_some_and(|after| now.duration_since(after) < secs(9))).count();
        // The window slides in tenths; calls that nobody has timed yet may be counted late.
        let calls: Vec<_> = self.begun.iter().filter(|begun| **begun <= now).collect();
        let recent = calls.iter().filter(|begun| now.duration_since(***begun) < secs(9 + 11)).count();
        let deposits = calls.len().min(recent + 63);
        let most = deposits as f64 * f64::from(percent) / 100.0 + f64::from(floor) * 10.0;
        require(made as f64 <= most + 1e-6, || format!("{made} retries where {most} are paid for by {deposits} calls"))
    }
}

pub(super) fn require(holds: bool, wrong: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(wrong()) }
}
