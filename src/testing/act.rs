//! [`Act`]: what a call does, and the future that does it.

use std::{
    future::{Future, Ready, ready},
    panic::resume_unwind,
    pin::Pin,
    task::{Context, Poll, ready as await_ready},
    time::Duration,
};

use pin_project::pin_project;
use tokio::time::{Sleep, sleep};

use super::calls::{Ended, InFlight};

/// What one call of a [`Scripted`](super::Scripted) service does: at once, or [`after`](Self::after) a while.
///
/// ```
/// use buttress::testing::Act;
/// use std::{io, time::Duration};
/// let slow: Act<&str, io::Error> = Act::answer("late").after(Duration::from_secs(2));
/// let fails: Act<&str, io::Error> = Act::error(io::Error::other("down"));
/// # let _ = (slow, fails);
/// ```
#[derive(Debug)]
#[must_use]
pub struct Act<T, E> {
    after: Duration,
    end: End<Ready<Result<T, E>>, Result<T, E>>,
}

/// How a call ends, if it does.
#[pin_project(project = Ending)]
#[derive(Debug)]
pub(super) enum End<F, R> {
    /// As this future does.
    Run(#[pin] F),
    /// With this; taken when it is returned.
    With(Option<R>),
    Hang,
    Panic,
}

impl<T, E> Act<T, E> {
    /// Returns this response.
    pub fn answer(response: T) -> Self {
        Self::at_once(End::Run(ready(Ok(response))))
    }

    /// Returns this error.
    pub fn error(error: E) -> Self {
        Self::at_once(End::Run(ready(Err(error))))
    }

    /// Never returns. It is dropped by whoever has had enough.
    pub fn hang() -> Self {
        Self::at_once(End::Hang)
    }

    /// Panics when it is polled, without a word: the panic hook is not called.
    pub fn panic() -> Self {
        Self::at_once(End::Panic)
    }

    /// Only after this time, counted from the call.
    pub fn after(self, time: Duration) -> Self {
        Self { after: time, ..self }
    }

    fn at_once(end: End<Ready<Result<T, E>>, Result<T, E>>) -> Self {
        Self { after: Duration::ZERO, end }
    }

    pub(super) fn begin(self, call: InFlight) -> ResponseFuture<Ready<Result<T, E>>, Result<T, E>> {
        ResponseFuture { call: Some(call.begun()), ..ResponseFuture::after(self.after, self.end) }
    }
}

/// The future of [`Scripted`](super::Scripted) and [`ChaosService`](super::ChaosService). Cancel safe if `F` is.
#[pin_project]
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture<F, R> {
    /// `Some` while it waits.
    #[pin]
    delay: Option<Sleep>,
    #[pin]
    end: End<F, R>,
    /// How long what has run is kept back.
    keep_back: Duration,
    /// `Some` if it is counted.
    call: Option<InFlight>,
}

impl<F, R> ResponseFuture<F, R> {
    /// Waits, and then ends so.
    pub(super) fn after(wait: Duration, end: End<F, R>) -> Self {
        Self { delay: (!wait.is_zero()).then(|| sleep(wait)), end, keep_back: Duration::ZERO, call: None }
    }

    /// Runs, and keeps back what comes of it.
    pub(super) fn late(by: Duration, future: F) -> Self {
        Self { delay: None, end: End::Run(future), keep_back: by, call: None }
    }
}

impl<F: Future<Output = Result<T, E>>, T, E> Future for ResponseFuture<F, Result<T, E>> {
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, E>> {
        let mut this = self.project();
        loop {
            if let Some(delay) = this.delay.as_mut().as_pin_mut() {
                await_ready!(delay.poll(cx));
                this.delay.set(None);
            }
            let result = match this.end.as_mut().project() {
                Ending::Run(future) => await_ready!(future.poll(cx)),
                Ending::With(result) => result.take().expect("not polled again after it was ready"),
                Ending::Hang => return Poll::Pending,
                Ending::Panic => {
                    if let Some(call) = this.call {
                        call.end(Ended::Panicked);
                    }
                    // Past the panic hook: nobody needs to be told.
                    resume_unwind(Box::new("a panic on purpose"));
                }
            };
            if this.keep_back.is_zero() {
                if let Some(call) = this.call {
                    call.end(if result.is_ok() { Ended::Answered } else { Ended::Failed });
                }
                return Poll::Ready(result);
            }
            this.end.set(End::With(Some(result)));
            this.delay.set(Some(sleep(std::mem::take(this.keep_back))));
        }
    }
}
