//! Rejections as responses, for services that never fail, such as an axum router.

use std::{convert::Infallible, time::Duration};

use http::{HeaderValue, Response, StatusCode, header::RETRY_AFTER};

use crate::{Outcome, Reason, Reject, Rejection};

/// Rounded up: whoever came back after the rounded-down time would be refused again.
pub(super) fn whole_seconds(after: Duration) -> u64 {
    after.as_secs().saturating_add(u64::from(after.subsec_nanos() > 0))
}

/// 503 if the call was refused, 504 if it was cut off; `Retry-After` in whole seconds, rounded up; an empty body; the
/// [`Rejection`] in the extensions. A [`RespondLayer`](crate::http::RespondLayer) makes more of it.
impl<B: Default> Reject<Response<B>> for Infallible {
    type Cause = Infallible;

    fn reject(rejection: Rejection) -> Result<Response<B>, Self> {
        let mut res = Response::new(B::default());
        *res.status_mut() = match rejection.reason() {
            Reason::CircuitOpen | Reason::Overloaded | Reason::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Reason::Timeout | Reason::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        };
        if let Some(after) = rejection.retry_after() {
            res.headers_mut().insert(RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        res.extensions_mut().insert(rejection);
        Ok(res)
    }

    #[inline]
    fn inspect(outcome: &Result<Response<B>, Self>) -> Outcome<'_, Response<B>, Infallible> {
        match outcome {
            Ok(res) => match res.extensions().get() {
                Some(rejection) => Outcome::Rejected(rejection),
                None => Outcome::Ok(res),
            },
            Err(never) => match *never {},
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_rounded_up() {
        for (after, seconds) in [
            (Duration::ZERO, 0),
            (Duration::from_nanos(1), 1),
            (Duration::from_secs(1), 1),
            (Duration::from_nanos(1_000_000_001), 2),
            (Duration::MAX, u64::MAX),
        ] {
            assert_eq!(whole_seconds(after), seconds, "{after:?}");
        }
    }
}
