//! A whole server that stops well: axum, a stream of events, a WebSocket, background tasks, and one that hangs.
//!
//! ```text
//! cargo run --example graceful_shutdown --features serve,signal,reqwest
//! ```
//!
//! Then, elsewhere: `curl -N localhost:3000/events`, and press Ctrl-C here, or `kill -TERM` the process. A second one forces
//! it. With `-- --demo` it plays a client itself, sends itself the signal, and prints what that client sees. The exit code
//! is 1, as a task hangs.

use std::{convert::Infallible, process::ExitCode, time::Duration};

use axum::{
    Router,
    extract::ws::{Message, WebSocket, WebSocketUpgrade},
    response::{IntoResponse, Sse, sse::Event},
    routing::get,
};
use buttress::{
    Backoff, Shutdown,
    shutdown::{Handle, Restart, Signals},
};
use futures_util::{
    StreamExt,
    stream::{self, Stream},
};
use tokio::{
    net::TcpListener,
    select,
    time::{interval, sleep},
};
use tower::BoxError;

fn main() -> ExitCode {
    let demo = std::env::args().any(|arg| arg == "--demo");
    let builder = Shutdown::builder()
        .lame_duck(Duration::from_secs(1)) // the default, 5 s, is for those behind a load balancer
        .total(Duration::from_secs(10))
        .phase("storage", Duration::from_secs(1)) // registered first, stopped last
        .phase("workers", Duration::from_secs(2));
    Shutdown::main(builder, Signals::default(), move |shutdown| async move {
        let handle = shutdown.handle();
        spawn_tasks(&handle)?;
        let listener = TcpListener::bind(if demo { "127.0.0.1:0" } else { "127.0.0.1:3000" }).await?;
        let address = listener.local_addr()?;
        println!("process {} serves http://{address}", std::process::id());
        if demo {
            // The process can do without it: not critical.
            handle.task("workers", "demo").optional().spawn(move |_| demo::run(address))?;
        }
        Ok(shutdown.serve(listener, app(&handle)).await)
    })
}

fn app(handle: &Handle) -> Router {
    let counted = Router::new()
        .route("/", get(|| async { "hello\n" }))
        .route("/slow", get(slow))
        .route(
            "/chat",
            get({
                let handle = handle.clone();
                move |upgrade: WebSocketUpgrade| async move { upgrade.on_upgrade(|socket| chat(socket, handle)) }
            }),
        )
        .layer(handle.in_flight_layer());
    // Streams have a name of their own: if one does not end, the report says which.
    let streams = Router::new()
        .route(
            "/events",
            get({
                let handle = handle.clone();
                move || async move { Sse::new(events(&handle)) }
            }),
        )
        .layer(handle.in_flight_layer().named("events"));
    // Outside of the layers, so that it is always answered.
    counted.merge(streams).route("/readyz", get(handle.readiness()))
}

async fn slow() -> impl IntoResponse {
    sleep(Duration::from_secs(2)).await;
    "done, however late\n"
}

/// Ends when draining begins: else it would hold the shutdown up until it is forced.
fn events(handle: &Handle) -> impl Stream<Item = Result<Event, Infallible>> + use<> {
    let ticks = stream::unfold(interval(Duration::from_millis(300)), |mut interval| async move {
        interval.tick().await;
        Some((Event::default().data("tick"), interval))
    });
    ticks.take_until(handle.draining()).chain(stream::iter([Event::default().data("bye")])).map(Ok)
}

/// The upgrade has ended the call; the guard is what the shutdown waits for from then on.
async fn chat(mut socket: WebSocket, handle: Handle) {
    let Ok(_guard) = handle.guard("chat") else { return };
    loop {
        let message = select! {
            message = socket.recv() => message,
            () = handle.draining() => break,
        };
        match message {
            Some(Ok(Message::Text(text))) => {
                if socket.send(Message::Text(text)).await.is_err() {
                    return;
                }
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return,
        }
    }
    let _ = socket.send(Message::Text("the server goes away".into())).await;
    let _ = socket.send(Message::Close(None)).await;
}

fn spawn_tasks(handle: &Handle) -> Result<(), BoxError> {
    handle.spawn("storage", "writer", |cx| async move {
        // Others may still write while they stop; this is the last to do so.
        cx.stopping().await;
        println!("writer: flushed");
    })?;

    let often = Restart::on_failure(Backoff::exponential(Duration::from_millis(100))).max(5, Duration::from_secs(60));
    handle.supervise("workers", "poller", often, |cx| async move {
        if cx.restarts() == 0 {
            return Err("the first connection is refused");
        }
        println!("poller: connected, after {} restart", cx.restarts());
        cx.stopping().await;
        println!("poller: stopped");
        Ok(())
    })?;

    // It hears nothing. After its phase's two seconds it is aborted, and the report names it.
    handle.spawn("workers", "sleeper", |_| std::future::pending::<()>())?;
    Ok(())
}

/// A client of ours, and the signal.
mod demo {
    use std::net::SocketAddr;

    use super::*;

    pub async fn run(address: SocketAddr) -> Result<(), BoxError> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let get = |path: &str| client.get(format!("http://{address}{path}")).send();
        let tell = async |path: &str| -> Result<(), BoxError> {
            let response = get(path).await?;
            let (status, close) = (response.status(), response.headers().get("connection").cloned());
            println!("GET {path}: {status}, Connection: {close:?}, {:?}", response.text().await?);
            Ok(())
        };

        println!("-- running");
        tell("/").await?;
        tell("/readyz").await?;
        let mut events = get("/events").await?;
        println!("GET /events: {:?}", events.chunk().await?);
        let stream = tokio::net::TcpStream::connect(address).await?;
        let (mut chat, _) = tokio_tungstenite::client_async(format!("ws://{address}/chat"), stream).await?;
        let slow = tokio::spawn(get("/slow"));
        sleep(Duration::from_millis(200)).await;

        println!("-- SIGTERM");
        std::process::Command::new("kill").args(["-TERM", &std::process::id().to_string()]).status()?;
        while let Some(chunk) = events.chunk().await? {
            println!("GET /events: {chunk:?}");
        }
        println!("GET /events: ended");
        while let Some(Ok(message)) = chat.next().await {
            println!("chat: {message:?}");
        }
        tell("/").await?;
        tell("/readyz").await?;
        println!("GET /slow, begun before the signal: {:?}", slow.await??.text().await?);
        println!("-- the client is done");
        Ok(())
    }
}
