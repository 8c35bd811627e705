//! Run: the states of one call.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project::pin_project;
use tokio::time::Instant;

use super::{
    Holds, Parts,
    attempts::Attempts,
    core::{Core, Entry},
    timer::Timer,
};
use crate::{Classify, Outcome, Reject, Rejection, Verdict};

/// The future of every service in this crate, and of its plain async functions.
///
/// `A` is where attempts come from, `F` the future of one attempt, `H` what it holds of its layer. Nothing in it is
/// boxed.
///
/// # Cancel safety
/// Dropping it at any point drops the attempt, gives every permit back, leaves the queue, and starts nothing more.
/// A circuit breaker counts a call that is dropped after the slow threshold as failed, before it as nothing.
///
/// # Panics
/// If polled after completion, and, when it must wait, outside of a tokio runtime with its timers enabled.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture<A, F, H: Holds> {
    #[pin]
    state: State<F>,
    // Behind the state, so that the attempt is dropped before its permits are given back.
    core: Core<H>,
    #[pin]
    timer: Timer,
    /// Where the next attempt comes from; `None` if there can be none.
    attempts: Option<A>,
}

#[pin_project(project = StateProj)]
enum State<F> {
    /// Nothing has happened yet.
    Begin,
    /// About to ask for admission.
    Admit,
    /// In the queue of the concurrency limit.
    Queued,
    /// Admitted, the service is not ready yet.
    Readying,
    /// The attempt runs.
    Running {
        #[pin]
        attempt: F,
    },
    /// Waiting to try again; the timer says until when.
    Backoff,
    Rejected(Rejection),
    Done,
}

impl<A, F, H: Holds> ResponseFuture<A, F, H> {
    #[inline]
    fn new(state: State<F>, core: Core<H>, attempts: Option<A>) -> Self {
        Self { state, core, timer: Timer::Idle, attempts }
    }

    /// Begins when it is first polled.
    #[inline]
    pub(crate) fn lazy(parts: H, attempts: A) -> Self {
        Self::new(State::Begin, Core::new(parts), Some(attempts))
    }

    #[inline]
    pub(super) fn running(core: Core<H>, attempt: F, attempts: Option<A>) -> Self {
        Self::new(State::Running { attempt }, core, attempts)
    }

    #[cold]
    pub(super) fn queued(core: Core<H>, attempts: A) -> Self {
        Self::new(State::Queued, core, Some(attempts))
    }

    #[cold]
    pub(super) fn rejected(core: Core<H>, attempts: Option<A>, rejection: Rejection) -> Self {
        Self::new(State::Rejected(rejection), core, attempts)
    }
}

impl<A, F, H, T, E> Future for ResponseFuture<A, F, H>
where
    H: Holds,
    A: Attempts<H::Parts, Future = F, Error = E>,
    F: Future<Output = Result<T, E>>,
    E: Reject<T>,
    <H::Parts as Parts>::Classify: Classify<T, E::Cause>,
{
    type Output = Result<T, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Running { attempt } => match this.core.run(|_, _| attempt.poll(cx)) {
                    Poll::Ready(outcome) => {
                        // A permit is held no longer than the work, and the work ends before its permit does.
                        this.state.set(State::Done);
                        match settle(this.core, &outcome).and_then(|hint| go_on(this.core, this.attempts, hint)) {
                            None => return Poll::Ready(outcome),
                            Some(at) => {
                                // A failed response may pin a connection; it does not live through the backoff.
                                drop(outcome);
                                this.timer.as_mut().arm(at);
                                this.state.set(State::Backoff);
                            }
                        }
                    }
                    Poll::Pending => {
                        if let Some(at) = this.core.arm() {
                            this.timer.as_mut().arm(at);
                        }
                        ready!(this.timer.as_mut().poll_elapsed(cx));
                        // Dropping it is the cancellation, before anyone hears of it.
                        this.state.set(State::Done);
                        this.state.set(State::Rejected(this.core.cut_off()));
                    }
                },
                StateProj::Begin => {
                    let next = match this.core.begin() {
                        Ok(()) => State::Admit,
                        Err(rejection) => State::Rejected(rejection),
                    };
                    this.state.set(next);
                }
                StateProj::Admit => {
                    let next = match this.core.admit() {
                        Ok(Entry::Admitted) => State::Readying,
                        Ok(Entry::Queued) => State::Queued,
                        Err(rejection) => State::Rejected(rejection),
                    };
                    this.state.set(next);
                }
                StateProj::Queued => match this.core.poll_queue(cx) {
                    Poll::Ready(Ok(())) => {
                        this.timer.set(Timer::Idle);
                        this.state.set(State::Readying);
                    }
                    Poll::Ready(Err(rejection)) => this.state.set(State::Rejected(rejection)),
                    Poll::Pending => {
                        if let Some(at) = this.core.arm_queue() {
                            this.timer.as_mut().arm(at);
                        }
                        ready!(this.timer.as_mut().poll_elapsed(cx));
                        this.state.set(State::Rejected(this.core.cut_off()));
                    }
                },
                StateProj::Readying => {
                    let Some(attempts) = this.attempts else { unreachable!("an attempt is readied from its source") };
                    let last = this.core.is_last();
                    match this.core.run(|parts, number| attempts.poll_next(cx, parts, number, last)) {
                        Poll::Ready(Ok(attempt)) => this.state.set(State::Running { attempt }),
                        Poll::Ready(Err(error)) => {
                            // The service is gone, which is no attempt's failure: nothing to count or to repeat.
                            this.state.set(State::Done);
                            this.core.settle_neutral();
                            return Poll::Ready(Err(error));
                        }
                        Poll::Pending => {
                            if let Some(at) = this.core.arm() {
                                this.timer.as_mut().arm(at);
                            }
                            ready!(this.timer.as_mut().poll_elapsed(cx));
                            this.state.set(State::Rejected(this.core.cut_off()));
                        }
                    }
                }
                StateProj::Backoff => {
                    ready!(this.timer.as_mut().poll_elapsed(cx));
                    this.timer.set(Timer::Idle);
                    this.state.set(State::Admit);
                }
                StateProj::Rejected(rejection) => {
                    let rejection = *rejection;
                    let again = this.core.retries(rejection.reason());
                    match again.then(|| go_on(this.core, this.attempts, rejection.retry_after())).flatten() {
                        Some(at) => {
                            this.timer.as_mut().arm(at);
                            this.state.set(State::Backoff);
                        }
                        None => {
                            this.state.set(State::Done);
                            return Poll::Ready(E::reject(rejection));
                        }
                    }
                }
                StateProj::Done => panic!("a response future was polled after completion"),
            }
        }
    }
}

/// Tells the parts what the outcome says. `Some` with the server's hint if asking again may help.
#[inline]
fn settle<H, T, E>(core: &mut Core<H>, outcome: &Result<T, E>) -> Option<Option<Duration>>
where
    H: Holds,
    E: Reject<T>,
    <H::Parts as Parts>::Classify: Classify<T, E::Cause>,
{
    if core.parts().breaker().is_none() && core.parts().retry().is_none() {
        core.settle_neutral();
        return None;
    }
    let verdict = match E::inspect(outcome) {
        Outcome::Ok(res) => core.judge(|judge| judge.classify(Ok(res))),
        Outcome::Err(error) => core.judge(|judge| judge.classify(Err(error))),
        Outcome::Rejected(rejection) => {
            core.settle_rejected(rejection.reason());
            return core.retries(rejection.reason()).then(|| rejection.retry_after());
        }
    };
    core.settle(verdict);
    match verdict {
        Verdict::Transient { retry_after } | Verdict::Throttled { retry_after } => Some(retry_after),
        _ => None,
    }
}

/// When to make the next attempt, if one can and may be made.
#[cold]
fn go_on<A: Attempts<H::Parts>, H: Holds>(
    core: &mut Core<H>,
    attempts: &Option<A>,
    hint: Option<Duration>,
) -> Option<Instant> {
    let can = !core.is_last() && attempts.as_ref().is_some_and(|attempts| attempts.can_go_on());
    if can { core.again_at(hint) } else { None }
}

impl<A, F, H: Holds> fmt::Debug for ResponseFuture<A, F, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Begin | State::Admit => "admit",
            State::Queued => "queued",
            State::Readying => "readying",
            State::Running { .. } => "running",
            State::Backoff => "backoff",
            State::Rejected(_) => "rejected",
            State::Done => "done",
        };
        f.debug_struct("ResponseFuture")
            .field("name", &self.core.parts().name())
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
