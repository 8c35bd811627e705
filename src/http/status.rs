//! What a status means.

use std::{
    error::Error,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, StatusCode, header::RETRY_AFTER};

use super::unsent::failed;
use crate::{Classify, Verdict};

/// Judges HTTP responses by their status.
///
/// | status | verdict |
/// | --- | --- |
/// | 429, and 503 with `Retry-After` | throttled |
/// | 408, 425, 5xx | transient |
/// | 501, 505, other 4xx | permanent: the service is alive |
/// | everything else | success |
///
/// An error instead of a response is transient; [unsent](Verdict::Unsent), if it shows that the request never reached the
/// server: no connection, or, by feature `http2`, a stream that HTTP/2 refused. `reqwest` follows redirects, so a failed
/// connection may be the second one, after the server had its request: there is no proof in its errors, unless you
/// [say](ByStatusDirect) that it follows none. One that the request is at fault for, as `reqwest` tells it, is permanent.
///
/// ```
/// use buttress::{http::ByStatus, Classify, Verdict};
/// use std::{convert::Infallible, time::Duration};
/// let busy = http::Response::builder().status(429).header("retry-after", "7").body(())?;
/// let verdict = ByStatus.classify(Ok::<_, &Infallible>(&busy));
/// assert_eq!(verdict, Verdict::Throttled { retry_after: Some(Duration::from_secs(7)) });
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByStatus;

/// [`ByStatus`] by a clock of yours, which a `Retry-After` that is a date is compared with: for tests, or a clock that is
/// corrected.
///
/// ```
/// use buttress::{http::ByStatusAt, Classify, Verdict};
/// use std::{convert::Infallible, time::{Duration, SystemTime}};
/// let judge = ByStatusAt(|| SystemTime::UNIX_EPOCH + Duration::from_secs(60));
/// let date = "Thu, 01 Jan 1970 00:01:30 GMT";
/// let busy = http::Response::builder().status(503).header("retry-after", date).body(())?;
/// let verdict = judge.classify(Ok::<_, &Infallible>(&busy));
/// assert_eq!(verdict, Verdict::Throttled { retry_after: Some(Duration::from_secs(30)) });
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ByStatusAt(pub fn() -> SystemTime);

/// [`ByStatus`] for a `reqwest::Client` that follows no redirects: a connection that failed was the only one, so that a POST
/// may be sent again.
///
/// ```
/// # #[cfg(feature = "reqwest")] fn policy() -> Result<(), Box<dyn std::error::Error>> {
/// use buttress::{Policy, Retry, http::ByStatusDirect};
/// let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
/// let retry = Retry::exponential(std::time::Duration::from_millis(50));
/// let orders = Policy::reqwest("orders").retry(retry).classify(ByStatusDirect).build()?.wrap(client);
/// # let _ = orders; Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByStatusDirect;

macro_rules! by_status {
    ($classifier:ty, $clock:expr, redirects: $redirects:expr) => {
        impl<B, E: Error + 'static> Classify<http::Response<B>, E> for $classifier {
            fn classify(&self, outcome: Result<&http::Response<B>, &E>) -> Verdict {
                match outcome {
                    Ok(res) => judge(res.status(), res.headers(), $clock(self)),
                    Err(error) => failed(error, $redirects),
                }
            }
        }

        /// Over [`BoxError`](tower::BoxError).
        impl<B> Classify<http::Response<B>, dyn Error + Send + Sync> for $classifier {
            fn classify(&self, outcome: Result<&http::Response<B>, &(dyn Error + Send + Sync + 'static)>) -> Verdict {
                match outcome {
                    Ok(res) => judge(res.status(), res.headers(), $clock(self)),
                    Err(error) => failed(error, $redirects),
                }
            }
        }

        #[cfg(feature = "reqwest")]
        impl Classify<reqwest::Response, reqwest::Error> for $classifier {
            fn classify(&self, outcome: Result<&reqwest::Response, &reqwest::Error>) -> Verdict {
                match outcome {
                    Ok(res) => judge(res.status(), res.headers(), $clock(self)),
                    Err(error) => failed(error, $redirects),
                }
            }
        }
    };
}

by_status!(ByStatus, |_| SystemTime::now, redirects: true);
by_status!(ByStatusAt, |this: &ByStatusAt| this.0, redirects: true);
by_status!(ByStatusDirect, |_| SystemTime::now, redirects: false);

fn judge(status: StatusCode, headers: &HeaderMap, clock: impl FnOnce() -> SystemTime) -> Verdict {
    if !status.is_client_error() && !status.is_server_error() {
        return Verdict::Success;
    }
    let retry_after = retry_after(headers, clock());
    match status.as_u16() {
        429 => Verdict::Throttled { retry_after },
        503 if retry_after.is_some() => Verdict::Throttled { retry_after },
        501 | 505 => Verdict::Permanent,
        408 | 425 | 500.. => Verdict::Transient { retry_after },
        _ => Verdict::Permanent,
    }
}

/// The `Retry-After` header, in seconds or as an HTTP date, as what remains at `now`. A date that is past is zero; what
/// cannot be read is nothing.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// let mut headers = http::HeaderMap::new();
/// headers.insert("retry-after", http::HeaderValue::from_static("Thu, 01 Jan 1970 00:01:30 GMT"));
/// let now = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
/// assert_eq!(buttress::http::retry_after(&headers, now), Some(Duration::from_secs(30)));
/// ```
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More seconds than fit are for ever.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}
