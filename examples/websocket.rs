//! A chat over WebSockets, where each connection listens to many sources at once: its own client, everybody else, a clock, a
//! limit on its rooms, and the shutdown, which ends them all with a proper close.
//!
//! ```text
//! cargo run --example websocket --features serve
//! ```
//!
//! It plays the clients itself: three that talk, one that finds the room full, and a shutdown while they are connected.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use buttress::{ConcurrencyLimit, Deadline, Reject, Shutdown, concurrency_limit::Permit, shutdown::Handle};
use futures_util::{SinkExt, StreamExt};
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::broadcast::{self, error::RecvError},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_tungstenite::{client_async, tungstenite};
use tower::BoxError;

const TICK: Duration = Duration::from_millis(100);
const SEATS: usize = 3;

/// What all connections share.
#[derive(Clone)]
struct Room {
    said: broadcast::Sender<Arc<str>>,
    /// An upgraded connection outlives its HTTP call, so it takes a seat by hand.
    seats: ConcurrencyLimit,
    shutdown: Handle,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let shutdown = Shutdown::builder().lame_duck(Duration::ZERO).total(Duration::from_secs(5)).build()?;
    let handle = shutdown.handle();
    let room = Room {
        said: broadcast::Sender::new(64),
        seats: ConcurrencyLimit::builder().name("seats").max_in_flight(SEATS).max_queue(0).build()?,
        shutdown: handle.clone(),
    };
    let app = Router::new().route("/chat", get(enter)).with_state(room.clone()).layer(handle.in_flight_layer());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let serving = tokio::spawn(shutdown.serve(listener, app));

    let mut clients = JoinSet::new();
    for name in ["ann", "bob", "cleo"] {
        clients.spawn(client(address.clone(), name));
    }
    while room.said.receiver_count() < SEATS {
        tokio::task::yield_now().await;
    }
    println!("dan:  {}", client(address.clone(), "dan").await.unwrap_err());
    for text in ["hello", "is anybody there?"] {
        let _ = room.said.send(text.into());
    }
    timeout(Duration::from_secs(1), room.shutdown.draining()).await.unwrap_err();

    handle.trigger("the end of the example");
    while let Some(client) = clients.join_next().await {
        let (name, heard) = client??;
        println!("{name}: {heard}");
    }
    let report = serving.await?;
    println!("{report}");
    assert!(report.is_clean() && room.seats.in_flight() == 0);
    Ok(())
}

/// Takes a seat before the upgrade, so that whoever finds none gets a plain 503.
async fn enter(State(room): State<Room>, upgrade: WebSocketUpgrade) -> Response {
    match room.seats.try_acquire() {
        Ok(seat) => upgrade.on_upgrade(|socket| chat(socket, room, seat)),
        Err(full) => match std::convert::Infallible::reject(full) {
            Ok(response) => Response::<axum::body::Body>::into_response(response),
        },
    }
}

/// One connection. Whatever ends it, its seat and its guard are given back with it.
async fn chat(mut socket: WebSocket, room: Room, _seat: Permit) {
    // What the shutdown waits for, by name; none is given once it has closed the gate.
    let Ok(_guard) = room.shutdown.guard("chat") else { return };
    let mut said = room.said.subscribe();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut draining = std::pin::pin!(room.shutdown.draining());
    let end = loop {
        // Each of these can be dropped halfway and asked again.
        let send = select! {
            () = &mut draining => break "the server goes away",
            from_client = socket.recv() => match from_client {
                Some(Ok(Message::Text(text))) => {
                    let _ = room.said.send(text.as_str().into());
                    continue;
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
            from_others = said.recv() => match from_others {
                Ok(text) => Message::text(&*text),
                Err(RecvError::Lagged(missed)) => Message::text(format!("({missed} messages missed)")),
                Err(RecvError::Closed) => break "the room is closed",
            },
            _ = ticks.tick() => Message::Ping(Vec::new().into()),
        };
        // A client that does not read must not hold its connection for ever.
        if Deadline::after(Duration::from_secs(1)).enforce(socket.send(send)).await.is_err() {
            return;
        }
    };
    let close = CloseFrame { code: close_code::AWAY, reason: end.into() };
    let _ = Deadline::after(Duration::from_secs(1)).enforce(socket.send(Message::Close(Some(close)))).await;
}

/// Says its name, and listens until it is told to go.
async fn client(address: String, name: &'static str) -> Result<(&'static str, String), BoxError> {
    let stream = TcpStream::connect(&address).await?;
    let (mut socket, _) = client_async(format!("ws://{address}/chat"), stream).await?;
    socket.send(format!("{name} is here").into()).await?;
    let mut heard = 0;
    while let Some(message) = socket.next().await {
        match message? {
            tungstenite::Message::Text(_) => heard += 1,
            tungstenite::Message::Close(Some(frame)) => {
                return Ok((name, format!("heard {heard} messages; then: {}", frame.reason)));
            }
            _ => {}
        }
    }
    Err("the connection ended without a close".into())
}
