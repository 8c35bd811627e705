//! A tonic service and its client, both with a policy, and a deadline that travels from one to the other.
//!
//! ```text
//! cargo run --example tonic_service --features tonic
//! ```

mod echo;

use std::{error::Error, net::SocketAddr, time::Duration};

use buttress::{
    CircuitBreaker, ConcurrencyLimit, Deadline, LiftLayer, Policy, Rejection, Retry, Shutdown,
    http::{ReadDeadlineLayer, RespondLayer, WriteDeadlineLayer},
};
use tokio_stream::StreamExt;
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, server::TcpIncoming},
};
use tower::ServiceBuilder;

use crate::echo::{Echo, EchoClient, EchoServer, Texts};

struct Parrot;

impl Echo for Parrot {
    async fn say(&self, request: Request<String>) -> Result<Response<String>, Status> {
        match request.into_inner().as_str() {
            "sleep" => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                Ok(Response::new("good morning".to_owned()))
            }
            "how long?" => Ok(Response::new(format!("{:?}", Deadline::current()))),
            "fall" => Err(Status::unavailable("the parrot has fallen")),
            text => Ok(Response::new(text.to_owned())),
        }
    }

    async fn repeat(&self, request: Request<String>) -> Result<Response<Texts>, Status> {
        let text = request.into_inner();
        let texts = tokio_stream::iter((1..=3).map(move |n| Ok(format!("{n}: {text}"))));
        Ok(Response::new(Box::pin(texts)))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let shutdown = Shutdown::builder().lame_duck(Duration::ZERO).build()?;
    let handle = shutdown.handle();

    // The server: at most 64 calls at once. The layer keeps the name of the service, so that tonic finds it.
    let server = Policy::grpc("echo")
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(64).max_queue(64))
        .timeout(Duration::from_secs(1))
        .build()?;
    let layers = ServiceBuilder::new()
        .layer(RespondLayer::grpc_only()) // says no in gRPC's own words
        .layer(handle.in_flight_layer())
        .layer(ReadDeadlineLayer::new())
        .layer(server.layer());
    let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let addr = incoming.local_addr()?;
    let serving = tonic::transport::Server::builder()
        .add_service(layers.service(EchoServer::new(Parrot)))
        .serve_with_incoming_shutdown(incoming, handle.stopping());
    let serving = tokio::spawn(serving);
    handle.ready();

    // The client: the policy stands between the generated client and the channel. Without the header `client.wrap(channel)`
    // would do.
    let client = Policy::grpc("parrot")
        .deadline(Duration::from_millis(300))
        .circuit_breaker(CircuitBreaker::builder().consecutive_failures(3))
        .build()?;
    let channel = Channel::from_shared(format!("http://{addr}"))?.connect_lazy();
    let layers = ServiceBuilder::new().layer(client.layer()).layer(WriteDeadlineLayer::new()).layer(LiftLayer);
    let mut parrot = EchoClient::new(layers.service(channel));

    println!("say: {}", parrot.say("hello").await?.into_inner());
    println!("how long? {}", parrot.say("how long?").await?.into_inner());
    let mut texts = parrot.repeat("hello").await?.into_inner();
    while let Some(text) = texts.next().await {
        println!("repeat: {}", text?);
    }
    let late = parrot.say("sleep").await.unwrap_err();
    // Either side may be the first to see that the time is over.
    let by = Rejection::find(&late).map_or("the server".to_owned(), Rejection::to_string);
    println!("sleep: {:?}, by {by}", late.code());
    assert_eq!(late.code(), Code::DeadlineExceeded);

    // Calls of a generated client can be retried as closures: the request is made anew for each attempt.
    let retrying = Policy::grpc("again").retry(Retry::exponential(Duration::from_millis(10))).build()?;
    let mut attempts = 0;
    let fallen = retrying
        .call_as(|| {
            attempts += 1;
            let mut parrot = parrot.clone();
            async move { parrot.say("fall").await }
        })
        .await
        .unwrap_err();
    println!("fall: {:?} after {attempts} attempts; the circuit is {:?}", fallen.code(), state(&client));
    assert_eq!((fallen.code(), attempts), (Code::Unavailable, 3));

    handle.trigger("the end");
    drop(parrot);
    serving.await??;
    println!("{}", shutdown.wait().await);
    Ok(())
}

fn state(client: &Policy<buttress::http::Grpc>) -> Option<buttress::circuit_breaker::State> {
    client.circuit_breaker().map(CircuitBreaker::state)
}
