//! A timer that does not exist until it is needed.

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
    Armed {
        #[pin]
        sleep: Sleep,
    },
}

impl Timer {
    /// # Panics
    /// Outside of a tokio runtime with its timers enabled.
    pub(crate) fn arm(mut self: Pin<&mut Self>, at: Instant) {
        self.set(Timer::Armed { sleep: sleep_until(at) });
    }

    /// Ready once the time has come; pending for ever if it is idle.
    #[inline]
    pub(crate) fn poll_elapsed(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.project() {
            TimerProj::Idle => Poll::Pending,
            TimerProj::Armed { sleep } => sleep.poll(cx),
        }
    }
}
