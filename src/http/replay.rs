//! A request body that can be sent again, without being buffered first.
#![allow(clippy::clone_on_copy)] // `SizeHint` is `Copy` only since http-body 1.1

use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};
use http::Request;
use http_body::{Body, Frame, SizeHint};
use tower::{BoxError, Layer, Service};

use super::tape::Tape;
use crate::{
    call::send,
    retry::{CloneRequest, Repeat},
};

/// A request body that can be sent again: it is streamed as it comes, and what goes by is recorded up to a cap.
///
/// For uploads that have no end in memory: a file, a stream, a request that is passed on. What is `Clone`, such as a
/// `Full<Bytes>`, needs none of this. [`ReplayLayer`] puts it around the body of every request;
/// [`Idempotent`](super::Idempotent) repeats such requests.
///
/// - The recording is made only while a further attempt may follow. A body that is known to be longer than the cap is not
///   recorded at all, one that turns out to be is dropped from memory there and then: the attempt goes on, and **no
///   retry follows**. An attempt that fails before anything was read of the body can be repeated however long it is.
/// - A further attempt plays what is recorded, and goes on with the rest of the body. It need not wait for the attempt
///   before it: when a server answers before it has the whole body, the connection may hold on to that one. What is left of
///   the body is taken from it, and it [ends](BodyGone::TakenOver).
/// - A body that fails is not sent again. Trailers are recorded too.
///
/// **Default cap:** [64 KiB](ReplayLayer::DEFAULT_CAP) for each request in flight: most requests are shorter, and a thousand in
/// flight hold 64 MiB at most. In memory there is never more than the cap, however the body is cut into chunks.
///
/// Cost: two allocations for a request, none for one without a body; and a copy of what is recorded.
///
/// # Errors
/// The body's own, boxed; or [`BodyGone`].
///
/// # Cancel safety
/// An attempt can be dropped at any point: nothing of the body is lost to the next.
///
/// ```
/// use buttress::http::{Replay, ReplayLayer};
/// use http_body_util::BodyExt;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let first = Replay::new(String::from("a long story"), ReplayLayer::DEFAULT_CAP);
/// let second = first.again();
/// assert_eq!(first.collect().await.unwrap().to_bytes(), "a long story");
/// assert!(second.is_whole());
/// assert_eq!(second.collect().await.unwrap().to_bytes(), "a long story");
/// # }
/// ```
pub struct Replay<B> {
    /// `None` if the body is empty.
    shared: Option<Arc<Shared<B>>>,
    /// Of all attempts at this body, the one with the highest number that was polled has it.
    number: u64,
    at: At,
    /// Of what this attempt has yet to send.
    hint: SizeHint,
}

/// Where an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// To play this frame of the recording next.
    Tape(usize),
    /// Past the recording.
    Live,
    End,
}

struct Shared<B> {
    /// Of the whole body.
    hint: SizeHint,
    state: Mutex<State<B>>,
}

struct State<B> {
    tape: Tape,
    rest: Rest<B>,
    /// The attempt that has the body. Those with lower numbers have lost it.
    turn: u64,
    /// The highest number that was given out.
    numbers: u64,
    /// Of the attempt that has the body, if it waits.
    parked: Option<Waker>,
}

/// What is not recorded yet.
enum Rest<B> {
    /// Nobody polls it. It stays here between polls, so that the next attempt finds it without the last one's help.
    Here(Source<B>),
    /// Somebody polls it at this moment, on another thread.
    Polled,
    Ended,
    Failed,
}

struct Source<B> {
    body: Pin<Box<B>>,
    /// Came from the body for an attempt that had lost its turn meanwhile.
    unread: Option<Frame<Bytes>>,
}

/// Why a [`Replay`] cannot go on.
///
/// ```
/// use buttress::http::{BodyGone, Replay};
/// use http_body_util::BodyExt;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let first = Replay::new(String::from("a long story"), 4);
/// let second = first.again();
/// assert!(first.collect().await.is_ok() && !second.is_whole());
/// let error = second.collect().await.unwrap_err();
/// assert_eq!(error.downcast_ref(), Some(&BodyGone::NotRecorded));
/// # }
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyGone {
    /// An attempt before has sent more than the cap, or what nobody was to replay.
    NotRecorded,
    /// A later attempt sends it.
    TakenOver,
    /// It has failed, or panicked, before.
    Failed,
}

impl fmt::Display for BodyGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BodyGone::NotRecorded => "the request body was sent before and is not recorded",
            BodyGone::TakenOver => "a later attempt sends the request body",
            BodyGone::Failed => "the request body has failed before",
        })
    }
}

impl StdError for BodyGone {}

impl<B> Replay<B> {
    /// Whether it can be sent from its start, as seen by an attempt that has not begun: all that an attempt before has read
    /// is recorded.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| self.at == At::Tape(0) && shared.lock().is_whole())
    }

    /// How many bytes are recorded at this moment.
    #[must_use]
    pub fn recorded(&self) -> usize {
        self.shared.as_ref().map_or(0, |shared| shared.lock().tape.len())
    }

    /// The same body from its start, for a further attempt. To be made before the present one begins, which records for
    /// as long as there is somebody to play it to. It sends nothing by itself.
    #[must_use]
    pub fn again(&self) -> Self {
        let Some(shared) = &self.shared else { return Self { shared: None, hint: self.hint.clone(), ..*self } };
        let number = shared.lock().next_number();
        Self { shared: Some(shared.clone()), number, at: At::Tape(0), hint: shared.hint.clone() }
    }

    /// Takes the body from all other attempts, which end with [`BodyGone::TakenOver`], if it [is whole](Self::is_whole):
    /// after that it stays so until this attempt has read it. The first poll does the same, unless a later attempt than
    /// this has begun.
    #[must_use]
    pub fn take_over(&mut self) -> bool {
        let Some(shared) = &self.shared else { return true };
        let told = {
            let mut state = shared.lock();
            if self.at != At::Tape(0) || !state.is_whole() {
                return false;
            }
            self.number = state.next_number();
            state.claim(self.number)
        };
        wake(told.ok().flatten());
        true
    }
}

impl<B: Body> Replay<B> {
    /// Records up to `cap` bytes of `body`, trailers included. At 0, only what is empty or was not begun can be sent again.
    pub fn new(body: B, cap: usize) -> Self {
        if body.is_end_stream() {
            return Self { shared: None, number: 0, at: At::End, hint: SizeHint::with_exact(0) };
        }
        let hint = body.size_hint();
        let rest = Rest::Here(Source { body: Box::pin(body), unread: None });
        let state = State { tape: Tape::new(cap), rest, turn: 0, numbers: 0, parked: None };
        let shared = Shared { hint: hint.clone(), state: Mutex::new(state) };
        Self { shared: Some(Arc::new(shared)), number: 0, at: At::Tape(0), hint }
    }
}

impl<B> Shared<B> {
    /// No user code runs under it.
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> State<B> {
    fn is_whole(&self) -> bool {
        !self.tape.is_torn() && !matches!(self.rest, Rest::Failed)
    }

    fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// From here on it is this attempt's turn, unless it has been a later one's. Whoever had it is to be woken.
    fn claim(&mut self, number: u64) -> Result<Option<Waker>, BodyGone> {
        if number < self.turn {
            return Err(BodyGone::TakenOver);
        }
        let told = if number > self.turn { self.parked.take() } else { None };
        self.turn = number;
        Ok(told)
    }

    /// What the attempt that has the body does next.
    fn next(&mut self, at: &mut At) -> Next<B> {
        if let At::Tape(index) = *at {
            if self.tape.is_torn() {
                return Next::Gone(BodyGone::NotRecorded);
            }
            if let Some(frame) = self.tape.play(index) {
                *at = At::Tape(index + 1);
                if matches!(self.rest, Rest::Ended) && self.tape.frames() == index + 1 {
                    *at = At::End;
                }
                return Next::Play(frame);
            }
            *at = At::Live;
        }
        match std::mem::replace(&mut self.rest, Rest::Polled) {
            Rest::Here(source) => Next::Read(source),
            Rest::Polled => Next::Wait,
            ended_or_failed => {
                let failed = matches!(ended_or_failed, Rest::Failed);
                self.rest = ended_or_failed;
                if failed { Next::Gone(BodyGone::Failed) } else { Next::End }
            }
        }
    }
}

/// See [`State::next`].
enum Next<B> {
    Play(Frame<Bytes>),
    Read(Source<B>),
    /// Somebody else polls it.
    Wait,
    End,
    Gone(BodyGone),
}

/// The body is out of its place. If its poll panics, it has failed.
struct FailedByPanic<'a, B>(&'a Shared<B>);

impl<B> Drop for FailedByPanic<'_, B> {
    #[cold]
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.rest = Rest::Failed;
        let parked = state.parked.take();
        drop(state);
        wake(parked);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

impl<B: Body> Body for Replay<B>
where
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = self.get_mut();
        let Some(shared) = &this.shared else { return Poll::Ready(None) };
        if this.at == At::End {
            return Poll::Ready(None);
        }
        let mut waker = None;
        let source = loop {
            let mut state = shared.lock();
            let told = match state.claim(this.number) {
                Ok(told) => told,
                Err(gone) => return Poll::Ready(Some(Err(gone.into()))),
            };
            let next = state.next(&mut this.at);
            if matches!(next, Next::Wait) && waker.is_some() {
                // Whoever polls it finds the waker when it puts the body back.
                std::mem::swap(&mut state.parked, &mut waker);
                drop(state);
                return Poll::Pending;
            }
            drop(state);
            wake(told);
            match next {
                Next::Read(source) => break source,
                // Once more, with a waker that was not cloned under the lock.
                Next::Wait => waker = Some(cx.waker().clone()),
                Next::Play(frame) => {
                    spend(&mut this.hint, &frame);
                    return Poll::Ready(Some(Ok(frame)));
                }
                Next::End => {
                    this.at = At::End;
                    return Poll::Ready(None);
                }
                Next::Gone(gone) => return Poll::Ready(Some(Err(gone.into()))),
            }
        };
        this.read(source, cx)
    }

    fn is_end_stream(&self) -> bool {
        self.at == At::End
    }

    fn size_hint(&self) -> SizeHint {
        self.hint.clone()
    }
}

impl<B: Body> Replay<B>
where
    B::Error: Into<BoxError>,
{
    /// Polls the body itself, puts it back, and records what came.
    fn read(&mut self, mut source: Source<B>, cx: &mut Context<'_>) -> Polled {
        let Some(shared) = &self.shared else { return Poll::Ready(None) };
        let on_panic = FailedByPanic(shared);
        let polled = match source.unread.take() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => source.body.as_mut().poll_frame(cx).map_ok(to_bytes).map_err(Into::into),
        };
        let last = matches!(polled, Poll::Ready(Some(Ok(_)))) && source.body.is_end_stream();
        let waker = polled.is_pending().then(|| cx.waker().clone());
        std::mem::forget(on_panic);

        let mut state = shared.lock();
        let mine = state.turn == self.number;
        // The waker of a later attempt, which waits for the body; or an older one of this attempt.
        let parked = std::mem::replace(&mut state.parked, if mine { waker } else { None });
        let mut rest = None;
        let polled = match polled {
            Poll::Ready(Some(Ok(frame))) if mine => {
                spend(&mut self.hint, &frame);
                if Arc::strong_count(shared) == 1 {
                    // Nobody is left to play it to.
                    state.tape.tear();
                } else {
                    state.tape.record(&frame, self.hint.lower());
                }
                if last {
                    self.at = At::End;
                    rest = Some(Rest::Ended);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Ok(frame))) => {
                source.unread = Some(frame);
                Poll::Pending
            }
            Poll::Ready(Some(Err(error))) => {
                rest = Some(Rest::Failed);
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                self.at = At::End;
                rest = Some(Rest::Ended);
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        };
        // A body that is over is dropped when this returns: outside of the lock, as the wakers are.
        state.rest = match rest {
            Some(over) => over,
            None => Rest::Here(source),
        };
        drop(state);
        if mine {
            return polled;
        }
        wake(parked);
        match polled {
            Poll::Ready(Some(Err(_)) | None) => polled,
            _ => Poll::Ready(Some(Err(BodyGone::TakenOver.into()))),
        }
    }
}

fn to_bytes<D: Buf>(frame: Frame<D>) -> Frame<Bytes> {
    frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))
}

/// Takes what is sent off what is yet to be sent.
fn spend(hint: &mut SizeHint, frame: &Frame<Bytes>) {
    let sent = frame.data_ref().map_or(0, |chunk| chunk.len() as u64);
    let mut left = SizeHint::new();
    if let Some(upper) = hint.upper() {
        left.set_upper(upper.saturating_sub(sent));
    }
    // Both shrink alike, so the lower bound stays below the upper one.
    left.set_lower(hint.lower().saturating_sub(sent));
    *hint = left;
}

impl<B> fmt::Debug for Replay<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay")
            .field("at", &self.at)
            .field("whole", &self.is_whole())
            .field("recorded", &self.recorded())
            .finish_non_exhaustive()
    }
}

impl<B> Repeat<Replay<B>> for CloneRequest {
    fn repeat(&self, body: &Replay<B>) -> Option<Replay<B>> {
        Some(body.again())
    }

    fn may_send(&self, copy: &Replay<B>, _: bool) -> bool {
        copy.is_whole()
    }

    /// One attempt reads it at a time.
    fn may_overlap(&self, copy: &Replay<B>) -> bool {
        copy.shared.is_none()
    }

    fn take_over(&self, copy: &mut Replay<B>) -> bool {
        copy.take_over()
    }
}

/// Puts a [`Replay`] around the body of each request, so that a retry below can send it again. To be put outermost.
///
/// ```
/// use buttress::{Policy, Retry, http::{ByStatus, Idempotent, Replay, ReplayLayer}};
/// use http_body_util::BodyExt;
/// use std::time::Duration;
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), tower::BoxError> {
/// # let client = service_fn(|request: http::Request<Replay<String>>| async {
/// #     let body = request.into_body().collect().await?.to_bytes();
/// #     let status = if buttress::retry::current_attempt() == Some(1) { 503 } else { 200 };
/// #     Ok::<_, tower::BoxError>(http::Response::builder().status(status).body(body)?)
/// # });
/// let policy = Policy::plain("storage")
///     .classify(ByStatus)
///     .repeat(Idempotent::default())
///     .retry(Retry::exponential(Duration::from_millis(50)))
///     .build()?;
/// let client = ReplayLayer::default().layer(policy.layer().layer(client));
/// let upload = http::Request::put("/book").body(String::from("a long story"))?;
/// assert_eq!(client.oneshot(upload).await?.into_body(), "a long story");
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct ReplayLayer {
    cap: usize,
}

impl ReplayLayer {
    /// 64 KiB.
    pub const DEFAULT_CAP: usize = 64 * 1024;

    /// Records up to `cap` bytes of each request: see [`Replay::new`].
    pub fn new(cap: usize) -> Self {
        Self { cap }
    }
}

/// Records up to [`DEFAULT_CAP`](Self::DEFAULT_CAP).
impl Default for ReplayLayer {
    fn default() -> Self {
        Self::new(Self::DEFAULT_CAP)
    }
}

impl<S> Layer<S> for ReplayLayer {
    type Service = ReplayService<S>;

    fn layer(&self, inner: S) -> ReplayService<S> {
        ReplayService { inner, cap: self.cap }
    }
}

/// The service of [`ReplayLayer`].
///
/// ```
/// # use buttress::http::{ReplayLayer, ReplayService};
/// # use tower::Layer;
/// # #[derive(Clone)] struct Client;
/// fn replaying(client: Client) -> ReplayService<Client> {
///     ReplayLayer::default().layer(client)
/// }
/// # let _ = replaying;
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ReplayService<S> {
    inner: S,
    cap: usize,
}

impl<S> ReplayService<S> {
    /// The service below.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Sends one request through a clone of this service: waits until it is ready, then calls it.
    ///
    /// Cancel safe if the call is: dropped before the service is ready, the request is not sent.
    ///
    /// # Errors
    /// The service's error.
    pub fn send<B>(&self, req: Request<B>) -> impl Future<Output = Result<S::Response, S::Error>> + use<S, B>
    where
        S: Service<Request<Replay<B>>> + Clone,
        B: Body,
    {
        send(self.clone(), req)
    }
}

impl<S, B: Body> Service<Request<B>> for ReplayService<S>
where
    S: Service<Request<Replay<B>>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, req: Request<B>) -> S::Future {
        self.inner.call(req.map(|body| Replay::new(body, self.cap)))
    }
}
