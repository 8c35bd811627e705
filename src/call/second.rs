//! Run, hedged: a second attempt beside the first. Nothing here is ever called where there is no hedge.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project::pin_project;
use tracing::debug;

use super::{
    Holds, Parts,
    attempts::Attempts,
    core::{Claims, Core},
    future::{Next, ResponseFuture, State, StateProj, back_off, go_on, refuse, settle},
    hold::{Ending, Hold},
    slot::Slot,
};
use crate::{Classify, Reject, clock::now};

/// The place of an attempt beside the first.
pub trait Seat<F, H: Holds>: Sized {
    /// Whether anybody is ever seated.
    const HEDGES: bool;

    fn new(second: Beside<F, H>) -> Option<Self>;

    fn second(&mut self) -> Pin<&mut Second<F, H>>;
}

/// Boxed: only who is late pays for it.
pub type Beside<F, H> = Pin<Box<Second<F, H>>>;

impl<F, H: Holds> Seat<F, H> for Beside<F, H> {
    const HEDGES: bool = true;

    fn new(second: Self) -> Option<Self> {
        Some(second)
    }

    fn second(&mut self) -> Pin<&mut Second<F, H>> {
        self.as_mut()
    }
}

impl<F, H: Holds> Seat<F, H> for Infallible {
    const HEDGES: bool = false;

    fn new(_: Beside<F, H>) -> Option<Self> {
        None
    }

    fn second(&mut self) -> Pin<&mut Second<F, H>> {
        match *self {}
    }
}

/// The place beside a call of `H`.
pub(super) type SeatOf<F, H> = <<H as Holds>::Parts as Parts>::Seat<F, H>;

/// The attempt that is sent beside the first, with a permit and a breaker's ticket of its own.
#[allow(missing_debug_implementations)] // never seen by anybody
#[pin_project(project = SecondProj)]
pub struct Second<F, H: Holds> {
    #[pin]
    stage: Stage<F>,
    /// When to come back, if it failed and the service said so.
    comes_back: Option<Duration>,
    // Behind the attempt, which is dropped before its permit is given back.
    core: Core<H>,
    /// For the end of the first attempt, while there is one; then for that of this.
    #[pin]
    timer: Slot<Infallible>,
}

#[pin_project(project = StageProj)]
enum Stage<F> {
    /// Admitted, the service is not ready yet.
    Readying,
    Running {
        #[pin]
        attempt: F,
    },
    Over,
}

impl<F, H: Holds> Second<F, H> {
    /// Only if it may go at once, and there is something to send: it waits for nothing.
    fn admit<A: Attempts<H::Parts>>(first: &mut Claims, held: &H, attempts: &Option<A>) -> Option<Beside<F, H>> {
        let parts = held.parts();
        let hedge = parts.hedge()?;
        let mut claims = first.beside(parts)?;
        first.look(|| attempts.as_ref().filter(|attempts| attempts.can_overlap(parts)))?;
        let held = held.beside()?;
        if !claims.admit_beside(parts) {
            return None;
        }
        let mut core = Core::new(held, claims);
        if !hedge.withdraw(now()) {
            core.claims.settle_neutral(parts);
            return None;
        }
        debug!(target: "buttress", name = parts.name(), "hedging");
        Some(Box::pin(Self { stage: Stage::Readying, comes_back: None, core, timer: Slot::Empty }))
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Running { .. })
    }

    /// The first is over, and this one too: it has failed, or was never sent. If it was, it counts. When to come back, if that was said.
    pub(super) fn leave<A: Attempts<H::Parts>>(
        self: Pin<&mut Self>,
        first: &mut Claims,
        attempts: &mut Option<A>,
    ) -> Option<Duration> {
        let this = self.project();
        let (claims, held) = this.core.split();
        match (this.stage.project(), attempts) {
            (StageProj::Readying, Some(attempts)) => {
                attempts.leave(held.parts());
                claims.lose(held.parts());
            }
            _ => first.ambient.attempt = claims.ambient.attempt,
        }
        *this.comes_back
    }
}

/// The first was faster than the second in the slot. Whether there is one.
pub(super) fn lose<F, H: Holds>(slot: Pin<&mut Slot<SeatOf<F, H>>>) -> bool {
    let second = slot.second().map(Seat::second);
    let is_there = second.is_some();
    if let Some(second) = second {
        let mut second = second.project();
        let (claims, held) = second.core.split();
        claims.look(|| second.stage.set(Stage::Over));
        claims.lose(held.parts());
    }
    is_there
}

/// The first is over, and the second goes on in its place: under its claims, and with its timer.
#[cold]
pub(super) fn succeed<F, H: Holds>(
    claims: &mut Claims,
    parts: &H::Parts,
    mut state: Pin<&mut State<F>>,
    slot: Pin<&mut Slot<SeatOf<F, H>>>,
) {
    if let Some(second) = slot.second().map(Seat::second) {
        let second = second.project();
        std::mem::swap(claims, &mut second.core.claims);
        second.timer.rearm(claims.arm_again(parts));
        state.set(State::Seconded);
    }
}

/// The answer of a call, if it has come to one.
type Answer<A, T, E, H> = Option<Result<<<A as Attempts<<H as Holds>::Parts>>::Hold as Hold<T, H>>::Response, E>>;

impl<A, F, H, T, E> ResponseFuture<A, F, H>
where
    H: Holds,
    A: Attempts<H::Parts, Future = F, Error = E>,
    F: Future<Output = Result<T, E>>,
    E: Reject<T>,
    A::Hold: Hold<T, H>,
    <H::Parts as Parts>::Classify: Classify<T, E::Cause>,
{
    /// The first attempt is pending, or over. Ready without an answer if there is none of either.
    #[inline(never)]
    pub(super) fn poll_hedged(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer<A, T, E, H>> {
        loop {
            if let Poll::Ready(answer) = self.as_mut().poll_second(cx) {
                return Poll::Ready(answer);
            }
            let mut this = self.as_mut().project();
            let (claims, held) = this.core.split();
            let parts = held.parts();
            if let Some(second) = this.slot.as_mut().second().map(Seat::second) {
                // Armed before, unless nothing was waited for yet.
                ready!(second.project().timer.poll_armed(claims.arm(parts), cx));
            } else {
                ready!(this.slot.as_mut().poll_armed(claims.arm_to_hedge(parts), cx));
                if claims.is_to_hedge() {
                    let second = Second::admit(claims, held, this.attempts);
                    let wait = claims.arm_again(parts);
                    if let Some(mut second) = second {
                        second.as_mut().project().timer.rearm(wait);
                        this.slot.set(Seat::new(second).map_or(Slot::Empty, Slot::Second));
                    } else {
                        this.slot.rearm(wait);
                    }
                    continue;
                }
            }
            if !self.as_mut().cut_off() {
                return Poll::Ready(None);
            }
        }
    }

    /// The present attempt has taken too long. Whether another goes on.
    fn cut_off(self: Pin<&mut Self>) -> bool {
        let mut this = self.project();
        let (claims, held) = this.core.split();
        let parts = held.parts();
        let first = !matches!(this.state.as_mut().project(), StateProj::Seconded);
        // Dropping it is the cancellation, before anyone hears of it.
        claims.look(|| match this.slot.as_mut().second().map(Seat::second) {
            Some(second) if !first => second.project().stage.set(Stage::Over),
            _ => this.state.set(State::Done),
        });
        let mut rejection = claims.cut_off(parts);
        if let Some(second) = this.slot.as_mut().second().map(Seat::second).filter(|_| first) {
            if second.is_running() && claims.in_time(parts).is_ok() {
                succeed::<F, H>(claims, parts, this.state, this.slot);
                return true;
            }
            if let Some(time) = second.leave(claims, this.attempts) {
                rejection = rejection.with_retry_after(time);
            }
        }
        refuse(this.state, this.slot, rejection);
        false
    }

    /// Pending if there is no second attempt, or if it says nothing that counts.
    fn poll_second(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer<A, T, E, H>> {
        let mut this = self.project();
        let Some(second) = this.slot.as_mut().second().map(Seat::second) else { return Poll::Pending };
        let SecondProj { mut stage, comes_back, core, .. } = second.project();
        let alone = matches!(this.state.as_mut().project(), StateProj::Seconded);
        if let (StageProj::Readying, Some(attempts)) = (stage.as_mut().project(), this.attempts.as_mut()) {
            let (claims, held) = core.split();
            if claims.is_late::<H::Parts>() {
                // It is left when the first ends, which is now.
                return Poll::Pending;
            }
            let last = claims.is_last(held.parts());
            match ready!(claims.run(held.parts(), |parts, number| attempts.poll_next(cx, parts, number, last))) {
                Ok(attempt) => stage.set(Stage::Running { attempt }),
                Err(_) => {
                    // The service is gone, and nothing was sent. The first may still be answered.
                    stage.set(Stage::Over);
                    claims.settle_neutral(held.parts());
                    claims.ambient.attempt = this.core.claims.ambient.attempt;
                    attempts.leave(held.parts());
                }
            }
        }
        let StageProj::Running { attempt } = stage.as_mut().project() else { return Poll::Pending };
        let (claims, held, first) = if alone {
            let (claims, held) = this.core.split();
            (claims, held, None)
        } else {
            let (claims, held) = core.split();
            (claims, held, Some(&mut this.core.claims))
        };
        let parts = held.parts();
        let scope = claims.enter::<H::Parts>();
        let polled = attempt.poll(cx);
        claims.leave(scope);
        let Poll::Ready(outcome) = polled else {
            if first.is_some() {
                // Its time is up after that of the first: what is waited for is known already.
                claims.arm_beside(parts);
            }
            return Poll::Pending;
        };
        claims.look(|| stage.set(Stage::Over));
        let lasts = <A::Hold as Hold<T, H>>::BEYOND && outcome.is_ok();
        let said = settle(claims, parts, &outcome, lasts);
        let wait = if first.is_none() && !said.answers {
            go_on::<A, F, H>(claims, parts, this.attempts, None, said.again)
        } else {
            None
        };
        // It does not beat the first, however fast it fails.
        if wait.is_some() || first.is_some() && !said.answers {
            claims.look(|| drop(outcome));
            if lasts {
                claims.settle_neutral(parts);
            }
            let Some(Next::Wait(wait)) = wait else {
                *comes_back = said.again.and_then(|hint| hint.retry_after);
                return Poll::Pending;
            };
            back_off(this.state, this.slot, wait);
            return Poll::Ready(None);
        }
        if let Some(first) = first {
            first.look(|| this.state.set(State::Done));
            first.learn(parts);
            first.lose(parts);
        }
        this.state.set(State::Done);
        let ending = Ending { claims, held, verdict: said.verdict };
        Poll::Ready(Some(outcome.map(|res| A::hold(parts).hold(res, ending))))
    }
}
