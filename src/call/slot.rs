//! What a call keeps beside its attempt: the timer that it waits on, the rejection that it ends with, or a second attempt.
//!
//! Never two of them, so they share one place. In [`State`](super::future::State) the rejection would share that of the
//! attempt, whose own layout would then no longer be that of the state, and be copied in pieces.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{Rejection, clock::now};

#[pin_project(project = SlotProj)]
pub(super) enum Slot<S> {
    /// No timer exists until it is needed.
    Empty,
    /// A timer for a time that had come already. tokio's know milliseconds only and would round it up.
    Due,
    Timer {
        #[pin]
        sleep: Sleep,
    },
    Rejection(Rejection),
    /// An attempt beside the first, which has the timer of both.
    Second(S),
}

/// What to wait for, as seen from `now`.
#[derive(Clone, Copy)]
pub(super) struct Wait {
    pub(super) now: Instant,
    pub(super) until: Instant,
}

impl<S> Slot<S> {
    /// # Panics
    /// Outside of a tokio runtime with its timers enabled, if there is something to wait for.
    #[inline]
    pub(super) fn arm(mut self: Pin<&mut Self>, Wait { now, until }: Wait) {
        self.set(if until <= now { Slot::Due } else { Slot::Timer { sleep: sleep_until(until) } });
    }

    /// For this, and for nothing that was waited for before.
    pub(super) fn rearm(mut self: Pin<&mut Self>, wait: Option<Wait>) {
        match wait {
            Some(wait) => self.arm(wait),
            None => self.set(Slot::Empty),
        }
    }

    /// As [`poll_elapsed`](Self::poll_elapsed), for what is armed first if there is something to wait for.
    #[inline]
    pub(super) fn poll_armed(mut self: Pin<&mut Self>, wait: Option<Wait>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(wait) = wait {
            self.as_mut().arm(wait);
        }
        self.poll_elapsed(cx)
    }

    /// Ready once the time has come; pending for ever if there is no timer.
    #[inline]
    pub(super) fn poll_elapsed(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.project() {
            SlotProj::Due => Poll::Ready(()),
            SlotProj::Timer { sleep } => sleep.poll(cx),
            SlotProj::Empty | SlotProj::Rejection(_) | SlotProj::Second(_) => Poll::Pending,
        }
    }

    /// Whether the time has come, by the clock: a timer is as late as the runtime, and does not fire for a task that has used up
    /// its share of the runtime.
    #[inline]
    pub(super) fn is_due(&self) -> bool {
        match self {
            Slot::Due => true,
            Slot::Timer { sleep } => sleep.deadline() <= now(),
            Slot::Empty | Slot::Rejection(_) | Slot::Second(_) => false,
        }
    }

    #[inline]
    pub(super) fn second(self: Pin<&mut Self>) -> Option<&mut S> {
        match self.project() {
            SlotProj::Second(second) => Some(second),
            _ => None,
        }
    }

    pub(super) fn rejection(self: Pin<&mut Self>) -> Option<Rejection> {
        match self.project() {
            SlotProj::Rejection(rejection) => Some(*rejection),
            _ => None,
        }
    }
}
