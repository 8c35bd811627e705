//! Servers that are not ours: axum's own, a protocol of lines, and a WebSocket that has left its connection. Real TCP and
//! real time.
#![cfg(feature = "serve")]

use axum::{
    Router,
    extract::ws::{Message, WebSocket, WebSocketUpgrade},
    routing::get,
};
use buttress::{
    Error, Reason,
    shutdown::{Closed, Force, Handle, InFlight},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::{mpsc, oneshot},
};
use tokio_stream::StreamExt;
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite};
use tower::{Layer, ServiceExt, service_fn};

use super::serve::{App, Raw, Server, at_once, h2, in_time, listen, request, serve, text};
use crate::support::{ms, secs};

// ------------------------------------------------------------------------------------------------ axum's own server

// SHUTDOWN: 1, 4, 6
#[tokio::test]
async fn the_layer_alone_serves_axums_own_server() {
    let mut app = App::new();
    let shutdown = at_once().lame_duck(ms(500)).build().unwrap();
    let handle = shutdown.handle();
    let (listener, addr) = listen().await;
    handle.ready();
    let serving = {
        let (router, stopping) = (app.routes(&handle), handle.stopping());
        tokio::spawn(async move { axum::serve(listener, router).with_graceful_shutdown(stopping).await })
    };
    let (mut held, mut lame) = (Raw::connect(addr).await, Raw::connect(addr).await);
    held.get("/held").await;
    app.begun().await;
    assert!(!lame.ask("/").await.closes());
    let (mut streams, connection) = h2(addr).await;
    let call = tokio::spawn(async move { streams.send_request(request("/held")).await });
    app.begun().await;

    handle.trigger("deploy");
    let answer = lame.ask("/").await;
    assert_eq!((answer.status, answer.closes()), (200, true));
    lame.closed().await;
    in_time(handle.stopping()).await;
    assert_eq!(handle.in_flight(), 2);
    app.let_go();
    app.let_go();
    let answer = held.answer().await;
    assert_eq!((answer.status, answer.closes()), (200, true));
    let response = in_time(call).await.unwrap().unwrap();
    assert_eq!((response.status().as_u16(), text(response).await.as_str()), (200, "held"));
    in_time(connection).await.unwrap().unwrap();

    in_time(serving).await.unwrap().unwrap();
    let report = in_time(shutdown.wait()).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.drained, report.rejected, report.connections_cut), (2, 0, 0), "{report}");
    assert_eq!((handle.in_flight(), handle.connections()), (0, 0));
}

#[tokio::test]
async fn axum_has_no_deadline_and_the_shutdown_has_one() {
    let mut app = App::new();
    let shutdown = at_once().total(ms(300)).abort_grace(ms(100)).build().unwrap();
    let handle = shutdown.handle();
    let (listener, addr) = listen().await;
    let serving = {
        let (router, stopping) = (app.routes(&handle), handle.stopping());
        tokio::spawn(async move { axum::serve(listener, router).with_graceful_shutdown(stopping).await })
    };
    let mut client = Raw::connect(addr).await;
    client.get("/held").await;
    app.begun().await;
    handle.trigger("deploy");
    let report = in_time(shutdown.wait()).await;
    // Its connections are not ours to cut, so the call is left, and said to be.
    assert_eq!(report.forced, Some(Force::Deadline), "{report}");
    assert_eq!((report.left, report.drained, &report.cut[..]), (1, 0, &[][..]), "{report}");
    assert_eq!(report.exit_code(), 1);
    assert!(!serving.is_finished());
    serving.abort();
}

// ------------------------------------------------------------------------------------------------ lines

/// Answers every line, through the generic layer; what is refused is said to be.
async fn lines(handle: Handle, stream: TcpStream, began: mpsc::UnboundedSender<oneshot::Sender<()>>) {
    let upper = service_fn(move |line: String| {
        let began = began.clone();
        async move {
            let (go, gone) = oneshot::channel();
            began.send(go).unwrap();
            let _ = gone.await;
            match line.as_str() {
                "fail" => Err(Error::Inner("as it should")),
                _ => Ok(line.to_uppercase()),
            }
        }
    });
    let service = handle.layer().named("lines").layer(upper);
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read).lines();
    while let Ok(Some(line)) = read.next_line().await {
        let answer = match service.clone().oneshot(line).await {
            Ok(answer) => answer,
            Err(error) => match error.rejection() {
                Some(rejection) => format!("{:?} by {}", rejection.reason(), rejection.name()),
                None => error.to_string(),
            },
        };
        if write.write_all(format!("{answer}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

// SHUTDOWN: 1, 6
#[tokio::test]
async fn any_protocol_has_its_calls_counted_waited_for_and_refused() {
    let shutdown = at_once().build().unwrap();
    let handle = shutdown.handle();
    let (listener, addr) = listen().await;
    let (told, mut began) = mpsc::unbounded_channel();
    let accepting = {
        let handle = handle.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(lines(handle.clone(), stream, told.clone()));
            }
        })
    };
    let mut clients = Vec::new();
    for line in ["hello\n", "fail\n", "gone\n", "cut\n"] {
        let mut client = BufReader::new(TcpStream::connect(addr).await.unwrap());
        client.write_all(line.as_bytes()).await.unwrap();
        clients.push((client, in_time(began.recv()).await.unwrap()));
    }
    assert_eq!(handle.in_flight(), 4);
    let mut clients = clients.into_iter();
    let mut next = || clients.next().unwrap();

    handle.trigger("deploy");
    in_time(handle.stopping()).await;
    for expected in ["HELLO\n", "as it should\n"] {
        let (mut client, go) = next();
        go.send(()).unwrap();
        let mut answer = String::new();
        in_time(client.read_line(&mut answer)).await.unwrap();
        assert_eq!(answer, expected);
        client.write_all(b"more\n").await.unwrap();
        answer.clear();
        in_time(client.read_line(&mut answer)).await.unwrap();
        assert_eq!(answer, format!("{:?} by lines\n", Reason::ShuttingDown));
    }
    assert_eq!(handle.in_flight(), 2);
    let (third, fourth) = (next(), next());
    third.1.send(()).unwrap();
    // Dropping the sender lets the handler go on as well; the client is gone by then.
    drop(fourth);
    let report = in_time(shutdown.wait()).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.drained, report.rejected, handle.in_flight()), (4, 2, 0), "{report}");
    accepting.abort();
}

// ------------------------------------------------------------------------------------------------ WebSockets

/// An echo under a guard, which ends on draining if it is polite.
fn echo(polite: bool) -> impl FnOnce(&Handle) -> Router {
    move |handle| {
        let upgraded = handle.clone();
        let upgrade = move |upgrade: WebSocketUpgrade| {
            let handle = upgraded.clone();
            async move {
                let guard = handle.guard("websocket").map_err(|Closed| axum::http::StatusCode::SERVICE_UNAVAILABLE)?;
                Ok::<_, axum::http::StatusCode>(upgrade.on_upgrade(move |socket| talk(socket, handle, guard, polite)))
            }
        };
        Router::new().route("/ws", get(upgrade)).layer(handle.in_flight_layer())
    }
}

async fn talk(mut socket: WebSocket, handle: Handle, guard: InFlight, polite: bool) {
    assert_eq!(guard.name(), "websocket");
    let mut draining = std::pin::pin!(handle.draining());
    let mut told = false;
    loop {
        tokio::select! {
            () = &mut draining, if polite && !told => {
                told = true;
                if socket.send(Message::Text("closing soon".into())).await.is_err() {
                    return;
                }
            }
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) => {
                    if socket.send(Message::Text(text)).await.is_err() {
                        return;
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
        }
    }
}

type Socket = WebSocketStream<TcpStream>;

async fn open(server: &Server) -> Socket {
    let stream = in_time(TcpStream::connect(server.addr)).await.unwrap();
    let (socket, response) = in_time(client_async("ws://localhost/ws", stream)).await.unwrap();
    assert_eq!(response.status(), 101);
    socket
}

async fn heard(socket: &mut Socket) -> String {
    loop {
        match in_time(socket.next()).await.unwrap().unwrap() {
            tungstenite::Message::Text(text) => return text.to_string(),
            _ => continue,
        }
    }
}

/// A text message of fewer than 126 bytes, by RFC 6455: final, and masked with nothing.
async fn say(socket: &mut Socket, text: &str) {
    let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
    frame.extend(text.as_bytes());
    in_time(socket.get_mut().write_all(&frame)).await.unwrap();
}

// SHUTDOWN: 11
#[tokio::test]
async fn a_guard_holds_the_shutdown_until_the_websocket_has_ended() {
    let server = serve(at_once(), echo(true)).await;
    let mut socket = open(&server).await;
    in_time(async {
        while server.handle.connections() > 0 {
            tokio::time::sleep(ms(1)).await;
        }
    })
    .await;
    // It has left the connection, and only the guard is there.
    assert_eq!(server.handle.in_flight(), 1);

    server.stop().await;
    assert_eq!(heard(&mut socket).await, "closing soon");
    // Longer than a quiet connection is left alone: it goes on for as long as it is held.
    tokio::time::sleep(ms(1_200)).await;
    say(&mut socket, "still there").await;
    assert_eq!(heard(&mut socket).await, "still there");
    assert_eq!(server.handle.in_flight(), 1);
    drop(socket);
    server.clean(1, 0).await;
}

// SHUTDOWN: 11
#[tokio::test]
async fn a_websocket_that_ignores_the_end_is_named() {
    let server = serve(at_once().total(ms(300)).abort_grace(ms(100)), echo(false)).await;
    let socket = open(&server).await;
    let handle = server.handle.clone();
    server.stop().await;
    let report = in_time(server.task).await.unwrap();
    assert_eq!(report.forced, Some(Force::Deadline));
    assert_eq!((report.left, &report.guards[..]), (1, &[("websocket", 1)][..]), "{report}");
    assert_eq!((report.drained, report.connections_cut), (0, 0), "{report}");
    assert!(report.to_string().contains("1 of guard `websocket` did not end and are still held"), "{report}");
    // And is let go of all the same.
    drop(socket);
    in_time(async {
        while handle.in_flight() > 0 {
            tokio::time::sleep(ms(1)).await;
        }
    })
    .await;
}

// SHUTDOWN: 6, 11
#[tokio::test]
async fn a_websocket_is_refused_after_the_gate_closed_and_welcome_before() {
    let server = serve(at_once().lame_duck(secs(1)), echo(true)).await;
    let mut late = Raw::connect(server.addr).await;
    assert_eq!(late.ask("/nothing").await.status, 404);
    server.handle.trigger("deploy");
    // In the lame-duck time: the upgrade keeps its own `Connection` header.
    let mut socket = open(&server).await;
    assert_eq!(heard(&mut socket).await, "closing soon");
    in_time(server.handle.stopping()).await;
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==";
    late.send(format!("GET /ws HTTP/1.1\r\nhost: a\r\n{upgrade}\r\n\r\n")).await;
    let answer = late.answer().await;
    assert_eq!((answer.status, answer.closes()), (503, true));
    drop(socket);
    server.clean(1, 1).await;
}
