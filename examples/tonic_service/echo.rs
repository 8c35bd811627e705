//! An echo service, written as `tonic-prost-build` would generate it, but that its messages are plain text: so that nobody
//! needs a `protoc` to run the example.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, BufMut, Bytes};
use http::{Request as HttpRequest, Response as HttpResponse, uri::PathAndQuery};
use hyper::body::Body as HttpBody;
use tokio_stream::Stream;
use tonic::{
    Code, Request, Response, Status, Streaming,
    body::Body,
    client::GrpcService,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::{Grpc, NamedService},
};
use tower::{BoxError, Service, service_fn};

const SAY: &str = "/buttress.Echo/Say";
const REPEAT: &str = "/buttress.Echo/Repeat";

/// What the service does.
pub trait Echo: Send + Sync + 'static {
    /// Says it once.
    fn say(&self, request: Request<String>) -> impl Future<Output = Result<Response<String>, Status>> + Send;

    /// Says it again and again.
    fn repeat(&self, request: Request<String>) -> impl Future<Output = Result<Response<Texts>, Status>> + Send;
}

/// What [`Echo::repeat`] answers.
pub type Texts = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

// ---------------------------------------------------------------- the server

/// The service, as tonic serves it.
#[derive(Debug)]
pub struct EchoServer<T>(Arc<T>);

impl<T> EchoServer<T> {
    pub fn new(echo: T) -> Self {
        Self(Arc::new(echo))
    }
}

impl<T> Clone for EchoServer<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> NamedService for EchoServer<T> {
    const NAME: &'static str = "buttress.Echo";
}

impl<T, B> Service<HttpRequest<B>> for EchoServer<T>
where
    T: Echo,
    B: HttpBody + Send + 'static,
    B::Error: Into<BoxError> + Send + 'static,
{
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: HttpRequest<B>) -> Self::Future {
        let echo = Arc::clone(&self.0);
        Box::pin(async move {
            let mut grpc = Grpc::new(Text);
            Ok(match req.uri().path() {
                SAY => {
                    let say = service_fn(|request| {
                        let echo = Arc::clone(&echo);
                        async move { echo.say(request).await }
                    });
                    grpc.unary(say, req).await
                }
                REPEAT => {
                    let repeat = service_fn(|request| {
                        let echo = Arc::clone(&echo);
                        async move { echo.repeat(request).await }
                    });
                    grpc.server_streaming(repeat, req).await
                }
                _ => Status::new(Code::Unimplemented, "no such method").into_http(),
            })
        })
    }
}

// ---------------------------------------------------------------- the client

/// The client, over a channel or whatever is wrapped around one.
#[derive(Clone, Debug)]
pub struct EchoClient<T>(tonic::client::Grpc<T>);

impl<T> EchoClient<T>
where
    T: GrpcService<Body>,
    T::Error: Into<BoxError>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<BoxError> + Send,
{
    pub fn new(channel: T) -> Self {
        Self(tonic::client::Grpc::new(channel))
    }

    pub async fn say(&mut self, text: impl Into<String>) -> Result<Response<String>, Status> {
        self.ready().await?;
        self.0.unary(Request::new(text.into()), PathAndQuery::from_static(SAY), Text).await
    }

    pub async fn repeat(&mut self, text: impl Into<String>) -> Result<Response<Streaming<String>>, Status> {
        self.ready().await?;
        self.0.server_streaming(Request::new(text.into()), PathAndQuery::from_static(REPEAT), Text).await
    }

    async fn ready(&mut self) -> Result<(), Status> {
        self.0.ready().await.map_err(|error| Status::from_error(error.into()))
    }
}

// ---------------------------------------------------------------- its messages

/// Messages of plain text.
#[derive(Clone, Copy, Debug)]
struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Text;
    type Decoder = Text;

    fn encoder(&mut self) -> Text {
        Text
    }

    fn decoder(&mut self) -> Text {
        Text
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, text: String, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(text.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        String::from_utf8(bytes.into()).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
