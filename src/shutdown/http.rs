//! What shutting down means for HTTP: exempt paths, `Connection: close`, and a call that lasts as long as its body.

use std::{borrow::Cow, convert::Infallible, sync::Arc};

use http::{HeaderValue, Request, Response, StatusCode, Version, header::CONNECTION};

use super::{
    Handle, InFlightLayer,
    handle::Call,
    layer::{Look, Respond, Seen},
};
use crate::http::{Held, Keep};

/// HTTP: a call ends with the body of its response.
///
/// ```
/// use buttress::shutdown::{Http, InFlightLayer};
/// # fn of(handle: &buttress::shutdown::Handle) {
/// let layer: InFlightLayer<Http> = handle.in_flight_layer().exempt("/healthz");
/// # let _ = layer; }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Http {
    exempt: Arc<[Cow<'static, str>]>,
}

impl Handle {
    /// A tower layer for HTTP, such as axum's `Router::layer` takes: a call is in flight until the **body** of its response
    /// ends or is dropped.
    ///
    /// Once draining, responses over HTTP/1 say `Connection: close` (HTTP/2 has no such header: its connections are told by
    /// `serve`). Once nothing new is admitted, the answer is 503 with `Retry-After`, and the service is not called; but for
    /// [exempt](InFlightLayer::exempt) paths.
    #[cfg_attr(docsrs, doc(cfg(feature = "http")))]
    pub fn in_flight_layer(&self) -> InFlightLayer<Http> {
        InFlightLayer::new(self.clone(), Http::default())
    }
}

impl InFlightLayer<Http> {
    /// Requests for exactly this path are neither counted nor refused: health checks.
    #[cfg_attr(docsrs, doc(cfg(feature = "http")))]
    pub fn exempt(self, path: impl Into<Cow<'static, str>>) -> Self {
        let path = path.into();
        self.map(|http| Http { exempt: http.exempt.iter().cloned().chain([path]).collect() })
    }
}

impl<B> Look<Request<B>> for Http {
    #[inline]
    fn look(&self, req: &Request<B>) -> Seen {
        Seen {
            exempt: self.exempt.iter().any(|path| path == req.uri().path()),
            closes: req.version() < Version::HTTP_2,
        }
    }
}

impl<B> Respond<Response<B>> for Http {
    type Response = Response<Held<B, Call>>;

    #[inline]
    fn respond(seen: Seen, call: &mut Call, mut res: Response<B>) -> Self::Response {
        if seen.closes && call.is_draining() {
            close(&mut res);
        }
        res.map(|body| Held::new(body, call.hand_on()))
    }
}

impl<E> Keep<E> for Call {
    type Error = E;
    type Over = Infallible;

    fn end(&mut self, _failed: bool) {
        self.ended = true;
    }

    fn cut_off(&mut self, over: Infallible) -> E {
        match over {}
    }
}

/// Says that the connection is not kept, unless it changes hands.
pub(super) fn close<B>(res: &mut Response<B>) {
    let closes = |value: &HeaderValue| value.to_str().is_ok_and(|value| value.to_ascii_lowercase().contains("close"));
    let said = res.headers().get_all(CONNECTION).iter().any(closes);
    if !said && res.status() != StatusCode::SWITCHING_PROTOCOLS {
        res.headers_mut().append(CONNECTION, const { HeaderValue::from_static("close") });
    }
}
