//! The handle, its permits and its layer.

use std::{
    fmt,
    future::{Future, poll_fn},
    ops::Deref,
    sync::Arc,
    task::Poll,
};

use tokio::time::timeout_at;

use super::{Asks, ConcurrencyLimitBuilder, Queued, Share, Shared, Turn};
use crate::{
    Deadline, Error, Partition, Reject, Rejection, Rule,
    call::{Given, Guard, Guarded, Inline, Parts, ResponseFuture, Unrepeated, plain},
    clock::{after, now},
    spread::Spread,
};

/// A concurrency limit: one count, shared by its clones, its layers and their services.
///
/// ```
/// use buttress::ConcurrencyLimit;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let limit = ConcurrencyLimit::builder().max_in_flight(1).max_queue(0).build()?;
/// let permit = limit.acquire().await?;
/// assert_eq!(
///     limit.try_acquire().unwrap_err().to_string(),
///     "concurrency limit `concurrency_limit` is overloaded: 1 in flight, 1 allowed",
/// );
/// drop(permit);
/// assert_eq!(limit.call(async { Ok::<_, std::io::Error>(42) }).await?, 42);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ConcurrencyLimit {
    pub(crate) shared: Arc<Shared>,
}

impl ConcurrencyLimit {
    /// Settings; [`max_in_flight`](ConcurrencyLimitBuilder::max_in_flight) has no default.
    pub fn builder() -> ConcurrencyLimitBuilder {
        ConcurrencyLimitBuilder::default()
    }

    /// As a tower layer.
    pub fn layer(&self) -> ConcurrencyLimitLayer {
        Guard::from(Spread::new(LimitParts { limit: Arc::clone(&self.shared) }))
    }

    /// Runs `future` with a permit, waiting for one in the queue if need be. Cancel safe if `future` is.
    ///
    /// # Errors
    /// The future's own error, or a rejection: [`Overloaded`](crate::Reason::Overloaded), or
    /// [`DeadlineExceeded`](crate::Reason::DeadlineExceeded) if the current deadline ends the wait.
    ///
    /// # Panics
    /// If it must wait with an end in sight outside of a tokio runtime with its timers enabled.
    pub fn call<F, T, E>(&self, future: F) -> impl Future<Output = Result<T, Error<E>>> + use<'_, F, T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        ResponseFuture::lazy(Inline(LimitParts { limit: &*self.shared }), Given::lifted(future))
    }

    /// As [`call`](Self::call), for a future whose error can carry the rejection itself. Cancel safe if `future` is.
    ///
    /// # Errors
    /// The future's own error, or the rejection.
    pub fn call_as<F, T, E>(&self, future: F) -> impl Future<Output = Result<T, E>> + use<'_, F, T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: Reject<T>,
    {
        ResponseFuture::lazy(Inline(LimitParts { limit: &*self.shared }), Given::new(future))
    }

    /// A permit, once there is one. Cancel safe: dropped while it waits, it leaves the queue.
    ///
    /// # Errors
    /// The rejection, if the queue is full, or `max_wait` or the current deadline ends the wait.
    ///
    /// # Panics
    /// If it must wait with an end in sight outside of a tokio runtime with its timers enabled.
    pub async fn acquire(&self) -> Result<Permit, Rejection> {
        if let Some(share) = self.shared.try_now() {
            return Ok(self.permit(share));
        }
        let deadline = Deadline::current().map(Deadline::instant);
        let asks = Asks { deadline, attempts: 0 };
        let ticket = match self.shared.enqueue(asks).inspect_err(Rejection::log)? {
            Turn::Now(share) => return Ok(self.permit(share)),
            Turn::Later(ticket) => ticket as u32,
        };
        let mut place = Place { shared: &self.shared, ticket: Some(ticket) };
        let began = now();
        let longest = self.shared.max_wait().map(|wait| after(began, wait));
        let end = deadline.into_iter().chain(longest).min();
        let granted = loop {
            let again = match poll_fn(|cx| Poll::Ready(self.shared.poll_queued(ticket, deadline, cx))).await {
                Queued::Granted(share) => break Ok(share),
                Queued::Refused(rejection) => break Err(rejection),
                Queued::Waits(again) => again,
            };
            let Some(at) = end.into_iter().chain(again).min() else {
                woken().await;
                continue;
            };
            if timeout_at(at, woken()).await.is_err() && end.is_some_and(|end| end <= now()) {
                let rejection = self.gave_up(longest != end, (now() - began).as_secs_f32());
                rejection.log();
                return Err(rejection);
            }
        };
        // The place is given up, granted or not.
        place.ticket = None;
        granted.inspect_err(Rejection::log).map(|share| self.permit(share))
    }

    fn gave_up(&self, by_deadline: bool, waited: f32) -> Rejection {
        let name = self.shared.name();
        if by_deadline {
            Rejection::too_late(name)
        } else {
            let longest = self.shared.max_wait().map_or(f32::NAN, |wait| wait.as_secs_f32());
            Rejection::new(name, Rule::MaxWait, waited, longest)
        }
    }

    /// A permit, if there is one now.
    ///
    /// # Errors
    /// The rejection.
    pub fn try_acquire(&self) -> Result<Permit, Rejection> {
        if let Some(share) = self.shared.try_now() {
            return Ok(self.permit(share));
        }
        Err(self.shared.limit_reached()).inspect_err(Rejection::log)
    }

    fn permit(&self, share: Share) -> Permit {
        Permit { shared: Arc::clone(&self.shared), share }
    }

    /// Changes how many may be in flight, from now on: upwards admits those who wait, downwards lets those in flight
    /// finish. Zero admits nobody until it is raised again. At most 2^30.
    pub fn resize(&self, max_in_flight: usize) {
        self.shared.resize(max_in_flight);
    }

    /// How many may be in flight.
    #[must_use]
    pub fn max_in_flight(&self) -> usize {
        self.shared.max_in_flight()
    }

    /// How many are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight()
    }

    /// How many of them are of that partition. Zero if it has no share of this limit.
    #[must_use]
    pub fn in_flight_of(&self, partition: Partition) -> usize {
        self.shared.in_flight_of(partition)
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.waiting()
    }
}

impl fmt::Debug for ConcurrencyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

/// Pending until the task is woken.
async fn woken() {
    let mut polled = false;
    poll_fn(|_| if std::mem::replace(&mut polled, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}

/// A place in the queue, given up on drop.
struct Place<'a> {
    shared: &'a Shared,
    ticket: Option<u32>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.shared.leave_queue(ticket);
        }
    }
}

/// One of the calls in flight; dropping it gives the place to the next.
///
/// ```
/// let limit = buttress::ConcurrencyLimit::builder().max_in_flight(1).build().unwrap();
/// let permit = limit.try_acquire().unwrap();
/// assert_eq!(limit.in_flight(), 1);
/// drop(permit);
/// assert_eq!(limit.in_flight(), 0);
/// ```
#[derive(Debug)]
#[must_use = "a permit that is dropped at once limits nothing"]
pub struct Permit {
    shared: Arc<Shared>,
    share: Share,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.release_of(self.share);
    }
}

/// A limit.
#[derive(Debug)]
pub struct LimitParts<L> {
    pub(crate) limit: L,
}

impl<L: Deref<Target = Shared>> Parts for LimitParts<L> {
    plain!(Unrepeated: Unrepeated::ONCE);

    #[inline]
    fn name(&self) -> &'static str {
        self.limit.name()
    }

    #[inline]
    fn limit(&self) -> Option<&Shared> {
        Some(&self.limit)
    }
}

/// A [`ConcurrencyLimit`] as a tower layer.
pub type ConcurrencyLimitLayer = Guard<Spread<LimitParts<Arc<Shared>>>>;

/// The service of [`ConcurrencyLimitLayer`].
pub type ConcurrencyLimitService<S> = Guarded<S, Spread<LimitParts<Arc<Shared>>>>;
