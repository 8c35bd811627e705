//! A timer that does not exist until it is needed, and not even then if there is nothing to wait for.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

#[pin_project(project = TimerProj)]
pub(crate) enum Timer {
    Idle,
    /// Armed for a time that had come already. tokio's timers know milliseconds only and would round it up.
    Due,
    Armed {
        #[pin]
        sleep: Sleep,
    },
}

/// What to wait for, as seen from `now`.
#[derive(Clone, Copy)]
pub(crate) struct Wait {
    pub(crate) now: Instant,
    pub(crate) until: Instant,
}

impl Timer {
    /// # Panics
    /// Outside of a tokio runtime with its timers enabled, if there is something to wait for.
    pub(crate) fn arm(mut self: Pin<&mut Self>, Wait { now, until }: Wait) {
        self.set(if until <= now { Timer::Due } else { Timer::Armed { sleep: sleep_until(until) } });
    }

    /// Ready once the time has come; pending for ever if it is idle.
    #[inline]
    pub(crate) fn poll_elapsed(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.project() {
            TimerProj::Idle => Poll::Pending,
            TimerProj::Due => Poll::Ready(()),
            TimerProj::Armed { sleep } => sleep.poll(cx),
        }
    }
}
