//! Run: the states of one call.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project::pin_project;

use super::{
    Holds, Parts,
    attempts::Attempts,
    core::{Claims, Core, Entry},
    hold::{Ending, Hold},
    second::{Seat, SeatOf, Second, lose, succeed},
    slot::{Slot, Wait},
};
use crate::{Classify, Outcome, Reason, Reject, Rejection, Verdict, clock::now};

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
    pub(super) state: State<F>,
    // With the attempt beside the first, if there is one. Both attempts are dropped before their permits are given back.
    #[pin]
    pub(super) slot: Slot<SeatOf<F, H>>,
    pub(super) core: Core<H>,
    /// Where the next attempt comes from; `None` if there can be none.
    pub(super) attempts: Option<A>,
}

#[pin_project(project = StateProj)]
pub(super) enum State<F> {
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
    /// The first attempt is over without an answer, and the second goes on in its place.
    Seconded,
    /// Waiting to try again; the slot says until when.
    Backoff,
    /// Refused or cut off; the slot says why. It may be tried again.
    Refused,
    /// Refused for good.
    Rejected,
    Done,
}

impl<A, F, H: Holds> ResponseFuture<A, F, H> {
    #[inline]
    fn new(state: State<F>, core: Core<H>, attempts: Option<A>) -> Self {
        Self { state, core, slot: Slot::Empty, attempts }
    }

    /// Begins when it is first polled.
    #[inline]
    pub(crate) fn lazy(parts: H, attempts: A) -> Self {
        Self::new(State::Begin, Core::new(parts, Claims::default()), Some(attempts))
    }

    /// Waits in the queue, and is made from `attempts` later.
    #[cold]
    pub(super) fn queued(core: Core<H>, attempts: A) -> Self {
        Self::new(State::Queued, core, Some(attempts))
    }

    /// Was refused, which may be tried again.
    #[cold]
    pub(super) fn refused(core: Core<H>, attempts: Option<A>, rejection: Rejection) -> Self {
        Self { state: State::Refused, core, slot: Slot::Rejection(rejection), attempts }
    }

    /// Was refused for good.
    #[inline]
    pub(super) fn rejected(rejection: Rejection) -> Self {
        let core = Core::empty(Claims::default());
        Self { state: State::Rejected, core, slot: Slot::Rejection(rejection), attempts: None }
    }
}

impl<A, F, H, T, E> Future for ResponseFuture<A, F, H>
where
    H: Holds,
    A: Attempts<H::Parts, Future = F, Error = E>,
    F: Future<Output = Result<T, E>>,
    E: Reject<T>,
    A::Hold: Hold<T, H>,
    <H::Parts as Parts>::Classify: Classify<T, E::Cause>,
{
    type Output = Result<<A::Hold as Hold<T, H>>::Response, E>;

    /// What nearly every call takes is inlined where it is polled; all else is out of line.
    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let mut this = self.as_mut().project();
            match this.state.as_mut().project() {
                StateProj::Running { attempt } => {
                    let (claims, held) = this.core.split();
                    let parts = held.parts();
                    let scope = claims.enter::<H::Parts>();
                    let polled = attempt.poll(cx);
                    claims.leave(scope);
                    if let Poll::Ready(outcome) = polled {
                        // A permit is held no longer than the work, and the work ends before its permit does.
                        claims.look(|| this.state.set(State::Done));
                        let lasts = <A::Hold as Hold<T, H>>::BEYOND && outcome.is_ok();
                        let said = settle(claims, parts, &outcome, lasts);
                        let next = if said.answers {
                            None
                        } else {
                            let second = this.slot.as_mut().second().map(Seat::second);
                            go_on(claims, parts, this.attempts, second, said.again)
                        };
                        match next {
                            None => {
                                if parts.hedge().is_some() && lose::<F, H>(this.slot) {
                                    // It may stand in a line below, to be sent beside this.
                                    *this.attempts = None;
                                }
                                let ending = Ending { claims, held, verdict: said.verdict };
                                return Poll::Ready(outcome.map(|res| A::hold(parts).hold(res, ending)));
                            }
                            Some(next) => {
                                // A failed response may pin a connection; it does not live through the backoff.
                                claims.look(|| drop(outcome));
                                if lasts {
                                    claims.settle_neutral(parts);
                                }
                                match next {
                                    Next::Wait(wait) => back_off(this.state, this.slot, wait),
                                    Next::Second => succeed::<F, H>(claims, parts, this.state, this.slot),
                                }
                            }
                        }
                    } else if SeatOf::<F, H>::HEDGES && parts.hedge().is_some() {
                        if let Some(answer) = ready!(self.as_mut().poll_hedged(cx)) {
                            return Poll::Ready(answer);
                        }
                    } else if !claims.is_timed(parts) || self.as_mut().wait(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                StateProj::Seconded if SeatOf::<F, H>::HEDGES => {
                    if let Some(answer) = ready!(self.as_mut().poll_hedged(cx)) {
                        return Poll::Ready(answer);
                    }
                }
                StateProj::Rejected => {
                    let Some(rejection) = this.slot.rejection() else { unreachable!("a rejected call has its reason") };
                    this.state.set(State::Done);
                    return Poll::Ready(E::reject(rejection).map(<A::Hold as Hold<T, H>>::bare));
                }
                _ => {}
            }
            match self.as_mut().advance(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl<A, F, H, E> ResponseFuture<A, F, H>
where
    H: Holds,
    A: Attempts<H::Parts, Future = F, Error = E>,
{
    /// The attempt is pending: ready once it has taken too long, and is dropped.
    #[inline(never)]
    fn wait(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let (claims, held) = this.core.split();
        let parts = held.parts();
        ready!(this.slot.as_mut().poll_armed(claims.arm(parts), cx));
        // Dropping it is the cancellation, before anyone hears of it.
        this.state.set(State::Done);
        refuse(this.state, this.slot, claims.cut_off(parts));
        Poll::Ready(())
    }

    /// From state to state, until an attempt runs or none ever will. The error is that of a service that does not get ready.
    #[inline(never)]
    fn advance(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        assert!(!matches!(self.state, State::Done), "a response future was polled after completion");
        loop {
            let mut this = self.as_mut().project();
            let (claims, held) = this.core.split();
            let parts = held.parts();
            match this.state.as_mut().project() {
                StateProj::Running { .. } | StateProj::Seconded | StateProj::Rejected | StateProj::Done => {
                    return Poll::Ready(Ok(()));
                }
                StateProj::Begin if claims.begin(parts) => this.state.set(State::Admit),
                StateProj::Begin => refuse(this.state, this.slot, Claims::too_late(parts)),
                StateProj::Admit => {
                    claims.next_attempt(parts);
                    if claims.admit_at_once(parts) {
                        this.state.set(State::Readying);
                        continue;
                    }
                    match claims.admit(parts) {
                        Ok(Entry::Admitted) => this.state.set(State::Readying),
                        Ok(Entry::Queued) => this.state.set(State::Queued),
                        Err(rejection) => refuse(this.state, this.slot, rejection),
                    }
                }
                StateProj::Queued => match claims.poll_queue(parts, cx) {
                    Ok(Ok(())) => {
                        this.slot.set(Slot::Empty);
                        this.state.set(State::Readying);
                    }
                    Ok(Err(rejection)) => refuse(this.state, this.slot, rejection),
                    Err(again) => {
                        ready!(this.slot.as_mut().poll_armed(claims.waits_until(parts, again), cx));
                        if claims.waited_enough(parts) {
                            refuse(this.state, this.slot, claims.cut_off(parts));
                        } else {
                            this.slot.set(Slot::Empty);
                        }
                    }
                },
                StateProj::Readying => {
                    let Some(attempts) = this.attempts else { unreachable!("an attempt is readied from its source") };
                    let last = claims.is_sent_once(parts);
                    // An answer wins over the end of its time. But readiness is none, and what comes too late is not begun.
                    let next = if this.slot.is_due() {
                        None
                    } else {
                        match claims.run(parts, |parts, number| attempts.poll_next(cx, parts, number, last)) {
                            Poll::Ready(next) => Some(next),
                            Poll::Pending => {
                                ready!(this.slot.as_mut().poll_armed(claims.arm(parts), cx));
                                None
                            }
                        }
                    };
                    match next {
                        Some(Ok(attempt)) => {
                            if let Some(wait) = claims.arm_again_to_hedge(parts) {
                                this.slot.as_mut().arm(wait);
                            }
                            this.state.set(State::Running { attempt });
                        }
                        Some(Err(error)) => {
                            // The service is gone, which is no attempt's failure: nothing to count or to repeat.
                            this.state.set(State::Done);
                            claims.settle_neutral(parts);
                            return Poll::Ready(Err(error));
                        }
                        None => {
                            attempts.leave(parts);
                            refuse(this.state, this.slot, claims.cut_off(parts));
                        }
                    }
                }
                StateProj::Backoff => {
                    let waker = this.slot.as_mut().poll_elapsed(cx).is_pending().then(|| cx.waker());
                    let goes_on = claims.sleep(parts, waker);
                    if waker.is_some() && goes_on.is_ok() {
                        return Poll::Pending;
                    }
                    match goes_on.and_then(|()| claims.in_time(parts)) {
                        Ok(()) => {
                            this.slot.set(Slot::Empty);
                            this.state.set(State::Admit);
                        }
                        Err(rejection) => refuse(this.state, this.slot, rejection),
                    }
                }
                StateProj::Refused => {
                    let rejection = this.slot.as_mut().rejection();
                    let again = rejection.filter(|rejection| claims.retries(parts, rejection.reason()));
                    let again = again.map(|rejection| Hint::of(&rejection));
                    match again.and_then(|hint| go_on::<A, F, H>(claims, parts, this.attempts, None, Some(hint))) {
                        Some(Next::Wait(wait)) => back_off(this.state, this.slot, wait),
                        Some(Next::Second) | None => this.state.set(State::Rejected),
                    }
                }
            }
        }
    }
}

/// Waits, to try again.
#[cold]
pub(super) fn back_off<F, S>(mut state: Pin<&mut State<F>>, slot: Pin<&mut Slot<S>>, wait: Wait) {
    slot.arm(wait);
    state.set(State::Backoff);
}

/// Ends the call, unless it is tried again: the reason goes into the slot, where the timer was.
#[cold]
pub(super) fn refuse<F, S>(mut state: Pin<&mut State<F>>, mut slot: Pin<&mut Slot<S>>, rejection: Rejection) {
    slot.set(Slot::Rejection(rejection));
    state.set(State::Refused);
}

/// What an outcome says.
pub(super) struct Said {
    pub(super) verdict: Verdict,
    /// Whether it is the service's answer, for better or worse.
    pub(super) answers: bool,
    /// If asking again may help.
    pub(super) again: Option<Hint>,
}

/// What is known about asking again.
#[derive(Clone, Copy)]
pub(super) struct Hint {
    /// When to come back, by the server.
    pub(super) retry_after: Option<Duration>,
    /// Whether the request may have reached the service.
    sent: bool,
}

impl Hint {
    fn of(rejection: &Rejection) -> Self {
        let sent = matches!(rejection.reason(), Reason::Timeout | Reason::DeadlineExceeded);
        Self { retry_after: rejection.retry_after(), sent }
    }
}

/// Tells the parts what the outcome says. If the call `lasts` beyond it, then only that it failed: whether it succeeded
/// shows at the end.
#[inline(always)]
pub(super) fn settle<P, T, E>(claims: &mut Claims, parts: &P, outcome: &Result<T, E>, lasts: bool) -> Said
where
    P: Parts,
    E: Reject<T>,
    P::Classify: Classify<T, E::Cause>,
{
    if parts.breaker().is_none()
        && parts.retry().is_none()
        && parts.hedge().is_none()
        && parts.throttle().is_none()
        && parts.limit().is_none_or(|limit| !limit.is_adaptive())
    {
        if !lasts {
            claims.settle_neutral(parts);
        }
        return Said { verdict: Verdict::Success, answers: true, again: None };
    }
    let throttled = <P::Classify as Classify<T, E::Cause>>::RETRIES_THROTTLED;
    match claims.look(|| E::inspect(outcome)) {
        Outcome::Ok(res) => match claims.look(|| parts.classify().classify(Ok(res))) {
            Verdict::Success => {
                claims.learn(parts);
                if let Some(throttle) = parts.throttle() {
                    throttle.accept(now);
                }
                if lasts {
                    claims.answered(parts, Verdict::Success);
                } else {
                    claims.settle_success(parts);
                }
                Said { verdict: Verdict::Success, answers: true, again: None }
            }
            verdict => weigh(claims, parts, verdict, throttled, lasts),
        },
        Outcome::Err(error) => {
            let verdict = claims.look(|| parts.classify().classify(Err(error)));
            weigh(claims, parts, verdict, throttled, lasts)
        }
        Outcome::Rejected(rejection) => {
            claims.settle_rejected(parts, rejection.reason());
            let again = claims.retries(parts, rejection.reason()).then(|| Hint::of(rejection));
            Said { verdict: Verdict::Ignored, answers: false, again }
        }
    }
}

/// What is not a success.
#[inline(never)]
fn weigh<P: Parts>(claims: &mut Claims, parts: &P, verdict: Verdict, throttled: bool, lasts: bool) -> Said {
    let again = match verdict {
        Verdict::Transient { retry_after } => Some(Hint { retry_after, sent: true }),
        Verdict::Throttled { retry_after } if claims.retries_throttled(parts, throttled, retry_after) => {
            Some(Hint { retry_after, sent: true })
        }
        Verdict::Unsent => Some(Hint { retry_after: None, sent: false }),
        _ => None,
    };
    if verdict == Verdict::Permanent {
        claims.learn(parts);
    }
    if let Some(throttle) = parts.throttle() {
        throttle.settle(verdict, now);
    }
    if !lasts {
        claims.settle(parts, verdict);
    } else {
        claims.answered(parts, verdict);
        if !matches!(verdict, Verdict::Success | Verdict::Permanent | Verdict::Ignored) {
            claims.tell(parts, verdict);
        }
    }
    Said { verdict, answers: verdict == Verdict::Permanent, again }
}

/// How a call goes on whose attempt has failed.
pub(super) enum Next {
    /// By another, later.
    Wait(Wait),
    /// By the one that runs beside it.
    Second,
}

/// What comes next, if anything can and may.
#[cold]
pub(super) fn go_on<A: Attempts<H::Parts>, F, H: Holds>(
    claims: &mut Claims,
    parts: &H::Parts,
    attempts: &mut Option<A>,
    second: Option<Pin<&mut Second<F, H>>>,
    hint: Option<Hint>,
) -> Option<Next> {
    let mut comes_back = None;
    if let Some(second) = second {
        if second.is_running() {
            return Some(Next::Second);
        }
        comes_back = second.leave(claims, attempts);
    }
    let hint = hint?;
    if claims.is_last(parts) {
        return None;
    }
    let attempts = attempts.as_mut().filter(|attempts| attempts.can_go_on(parts, hint.sent))?;
    // Last, since it ends what may still go on of the attempt before: a call that gives up leaves that alone.
    let wait = claims.again_at(parts, hint.retry_after.max(comes_back)).filter(|_| attempts.take_over(parts));
    wait.map(Next::Wait)
}

impl<A, F, H: Holds> fmt::Debug for ResponseFuture<A, F, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Begin | State::Admit => "admit",
            State::Queued => "queued",
            State::Readying => "readying",
            State::Running { .. } | State::Seconded => "running",
            State::Backoff => "backoff",
            State::Refused | State::Rejected => "rejected",
            State::Done => "done",
        };
        let mut f = f.debug_struct("ResponseFuture");
        // A call that was refused for good holds nothing that has a name.
        if let Some(name) = self.core.name() {
            f.field("name", &name);
        }
        f.field("state", &state).finish_non_exhaustive()
    }
}
