//! What happens to one call. Every layer of the crate, and the whole policy, is this one path with some of
//! its parts missing; a missing part is a constant `None` and costs nothing.
//!
//! A call passes in three steps:
//!
//! - **admit** ([`core`]): deadline, lag guard, circuit breaker, throttle, concurrency limit, in this order; the future's
//!   polls go on with it if the call must queue;
//! - **run** ([`future`]): poll the inner future, arm one timer when it is first found pending; [`second`]: what runs beside it;
//! - **settle** ([`core`]): classify, tell the breaker and the throttle, release; on drop: release, with the cancel rule. What
//!   is to last until the end of the response's body goes on in it (`rest`).
//!
//! [`guarded`] is the layer and the service, [`attempts`] is where a further attempt comes from.

mod attempts;
mod core;
mod future;
mod guarded;
mod hold;
#[cfg(feature = "http")]
mod rest;
mod second;
mod slot;

use std::{
    task::{Context, Poll},
    time::Duration,
};

pub(crate) use attempts::{Calls, Given};
pub use attempts::{Never, Repeating, Unrepeated};
pub use future::ResponseFuture;
pub(crate) use guarded::send;
pub use guarded::{Guard, Guarded};
pub use hold::{BodyTimes, UntilHeaders};
#[cfg(feature = "http")]
pub use hold::{Ending, Hold};
#[cfg(feature = "http")]
pub use rest::{BodyLimit, Rest};
pub use second::{Beside, Seat};

use crate::{
    circuit_breaker::Shared as Breaker,
    concurrency_limit::{Asks, Ended, Queued, Share, Shared as ConcurrencyLimit, Took, Turn},
    hedge::Hedge,
    lag::LagGuard,
    retry::Retry,
    spread::Spread,
    throttle::Shared as Throttle,
};

/// What a call passes through. Parts that a pattern does not have are `None` at compile time.
pub trait Parts {
    /// How outcomes are judged.
    type Classify;
    /// Whether, and how, a further attempt can be made.
    type Again;
    /// How long a call lasts.
    type Hold;
    /// The place of an attempt beside the first: [`Infallible`](std::convert::Infallible) where there is no hedge, so that nobody
    /// else pays for it.
    type Seat<F, H: Holds>: Seat<F, H>;

    /// Whether the inner service sees a deadline or an attempt number of ours.
    const SCOPED: bool = false;

    /// Whether a call takes anything that it has to give back.
    const TAKES: bool = true;

    /// Who says no.
    fn name(&self) -> &'static str;
    /// How outcomes are judged.
    fn classify(&self) -> &Self::Classify;
    /// Whether, and how, a further attempt can be made.
    fn again(&self) -> &Self::Again;
    /// How long a call lasts.
    fn hold(&self) -> &Self::Hold;

    /// How long the whole call may take.
    #[inline]
    fn deadline(&self) -> Option<Duration> {
        None
    }

    /// When to ask again.
    #[inline]
    fn retry(&self) -> Option<&Retry> {
        None
    }

    /// Whether anything can be begun now.
    #[inline]
    fn lag_guard(&self) -> Option<&LagGuard> {
        None
    }

    /// Whether the service is worth asking.
    #[inline]
    fn breaker(&self) -> Option<&Breaker> {
        None
    }

    /// How many calls the service is to be spared.
    #[inline]
    fn throttle(&self) -> Option<&Throttle> {
        None
    }

    /// How many may be in flight.
    #[inline]
    fn limit(&self) -> Option<&ConcurrencyLimit> {
        None
    }

    /// When to ask once more beside the first attempt.
    #[inline]
    fn hedge(&self) -> Option<&Hedge> {
        None
    }

    /// The same, for an attempt beside the first.
    fn beside(&self) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// How long one attempt may take.
    #[inline]
    fn timeout(&self) -> Option<Duration> {
        None
    }

    /// How long the body of the response may take.
    #[inline]
    fn body(&self) -> BodyTimes {
        BodyTimes::default()
    }
}

/// Within an `impl Parts`: judges by `Ok` and `Err`, sends once, and is over with the response.
macro_rules! plain {
    ($again:ty: $value:expr) => {
        type Classify = $crate::ByResult;
        type Again = $again;
        type Hold = $crate::UntilHeaders;
        type Seat<F, H: $crate::call::Holds> = std::convert::Infallible;

        #[inline]
        fn classify(&self) -> &$crate::ByResult {
            &$crate::ByResult
        }

        #[inline]
        fn again(&self) -> &$again {
            &$value
        }

        #[inline]
        fn hold(&self) -> &$crate::UntilHeaders {
            &$crate::UntilHeaders::HERE
        }
    };
}
pub(crate) use plain;

/// Something through which a future reaches its parts.
pub trait Holds: Sized {
    /// The parts.
    type Parts: Parts;

    /// The parts.
    fn parts(&self) -> &Self::Parts;

    /// For an attempt beside the first: the same parts. `None` where there is never one.
    fn beside(&self) -> Option<Self>;
}

/// What a layer and its services hold.
pub trait Handle: Clone {
    /// What a future holds.
    type Local: Holds;

    /// Whether to show readiness at all. Reserves nothing.
    #[inline]
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// What calls of a request pass through.
pub trait For<Req>: Handle {
    /// Borrowed, where that will do: a call that is refused holds nothing.
    type Near<'a>: Near<Local = Self::Local>
    where
        Self: 'a;

    /// For one call.
    fn near(&mut self, req: &Req) -> Self::Near<'_>;
}

/// The parts of a call that is being made, before there is a future that could hold them.
pub trait Near {
    /// What the future holds.
    type Local: Holds;

    /// The parts.
    fn parts(&self) -> &<Self::Local as Holds>::Parts;

    /// For the future.
    fn local(self) -> Self::Local;
}

impl<P: Parts> Holds for Spread<P> {
    type Parts = P;

    #[inline]
    fn parts(&self) -> &P {
        self
    }

    fn beside(&self) -> Option<Self> {
        Some(self.clone())
    }
}

impl<P: Parts> Handle for Spread<P> {
    type Local = Self;
}

impl<P: Parts, Req> For<Req> for Spread<P> {
    type Near<'a>
        = &'a Self
    where
        Self: 'a;

    #[inline]
    fn near(&mut self, _: &Req) -> &Self {
        self.here()
    }
}

impl<P: Parts> Near for &Spread<P> {
    type Local = Spread<P>;

    #[inline]
    fn parts(&self) -> &P {
        self
    }

    #[inline]
    fn local(self) -> Spread<P> {
        self.beside()
    }
}

impl<P: Parts> Holds for &P {
    type Parts = P;

    #[inline]
    fn parts(&self) -> &P {
        self
    }

    fn beside(&self) -> Option<Self> {
        Some(self)
    }
}

/// Parts so small that they are copied instead of shared.
#[derive(Clone, Copy, Debug)]
pub struct Inline<P>(pub(crate) P);

impl<P: Parts> Holds for Inline<P> {
    type Parts = P;

    #[inline]
    fn parts(&self) -> &P {
        &self.0
    }

    fn beside(&self) -> Option<Self> {
        self.0.beside().map(Inline)
    }
}

impl<P: Parts + Copy> Handle for Inline<P> {
    type Local = Self;
}

impl<P: Parts + Copy, Req> For<Req> for Inline<P> {
    type Near<'a>
        = &'a Self
    where
        Self: 'a;

    #[inline]
    fn near(&mut self, _: &Req) -> &Self {
        self
    }
}

impl<P: Parts + Copy> Near for &Inline<P> {
    type Local = Inline<P>;

    #[inline]
    fn parts(&self) -> &P {
        &self.0
    }

    #[inline]
    fn local(self) -> Inline<P> {
        *self
    }
}

/// Parts that were looked for, and are the call's own.
#[derive(Debug)]
pub struct Owned<L>(pub(crate) L);

impl<L: Holds> Near for Owned<L> {
    type Local = L;

    #[inline]
    fn parts(&self) -> &L::Parts {
        self.0.parts()
    }

    #[inline]
    fn local(self) -> L {
        self.0
    }
}
