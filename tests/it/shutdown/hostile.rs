//! Clients that are silent, slow or rude: they hold a shutdown up for as long as its total time, and the quiet ones for
//! much less. Real TCP and real time.
#![cfg(feature = "serve")]

use std::io::ErrorKind;

use axum::{Router, body::Body, body::Bytes, routing::get};
use buttress::shutdown::{Force, Handle, State};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};
use tokio_stream::StreamExt;

use super::serve::{App, DATA, Frames, GOAWAY, HEADERS, PING, Raw, SETTINGS, Server, at_once, in_time, serve};
use crate::support::{ms, secs};

/// Which connections there are, of clients that say nothing more.
async fn quiet(server: &Server, connections: usize) {
    in_time(async {
        while server.handle.connections() < connections {
            sleep(ms(1)).await;
        }
    })
    .await;
}

/// Everybody is gone without having been forced, long before the total time of 20 s.
async fn long_before_the_deadline(server: Server) {
    let report = server.clean(0, 0).await;
    assert!(report.elapsed < secs(10), "{report}");
}

/// Until the end, clean or not.
async fn hung_up(mut stream: TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    match in_time(stream.read_to_end(&mut said)).await {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    said
}

// ------------------------------------------------------------------------------------------------ quiet ones

// SHUTDOWN: 9
#[tokio::test]
async fn who_says_nothing_or_half_of_something_does_not_hold_it_up() {
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let said = [
        "",
        "G",
        "GET / HTTP/1.1\r\nhost: loc",
        "PRI * HT",
        preface,
        // An empty SETTINGS, and half of the head of a frame.
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0",
    ];
    for said in said {
        let app = App::new();
        let server = serve(at_once(), |handle| app.routes(handle)).await;
        let mut client = Raw::connect(server.addr).await;
        client.send(said).await;
        quiet(&server, 1).await;
        server.stop().await;
        let heard = hung_up(client.stream).await;
        assert!(!heard.starts_with(b"HTTP/1.1 200"), "{said:?}: {heard:?}");
        long_before_the_deadline(server).await;
        assert_eq!(app.seen.calls(), 0);
    }
}

// SHUTDOWN: 9
#[tokio::test]
async fn a_hundred_of_them_take_no_longer_than_one() {
    let app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let mut clients = Vec::new();
    for said in ["", "GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        for _ in 0..34 {
            let mut client = Raw::connect(server.addr).await;
            client.send(said).await;
            clients.push(client);
        }
    }
    quiet(&server, 102).await;
    server.handle.trigger("deploy");
    long_before_the_deadline(server).await;
}

// SHUTDOWN: 9
#[tokio::test]
async fn nor_does_who_says_nothing_in_the_backlog() {
    let app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    // Nobody accepts meanwhile: there is one thread.
    let clients: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(server.addr).unwrap()).collect();
    server.handle.trigger("deploy");
    long_before_the_deadline(server).await;
    drop(clients);
}

// SHUTDOWN: 9
// hyper waits for the acknowledgement of a ping, for ever.
#[tokio::test]
async fn an_http2_client_that_never_acknowledges_anything_does_not_hold_it_up() {
    let app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let mut client = Frames::connect(server.addr).await;
    client.acks = false;
    client.get(1, "/").await;
    client.until(|frame| frame.is(DATA, 1)).await;
    server.stop().await;
    client.until(|frame| frame.kind == GOAWAY).await;
    long_before_the_deadline(server).await;
    let rest = client.rest().await;
    assert!(rest.iter().all(|frame| frame.kind == PING || frame.kind == GOAWAY), "{rest:?}");
}

// SHUTDOWN: 9
#[tokio::test]
async fn nor_does_one_that_lets_its_stream_finish_and_is_deaf_to_the_goaway() {
    let mut app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let mut client = Frames::connect(server.addr).await;
    client.acks = false;
    client.get(1, "/held").await;
    app.begun().await;
    server.stop().await;
    // Longer than it may be quiet: a call is not quiet.
    sleep(ms(1_200)).await;
    app.let_go();
    client.until(|frame| frame.is(DATA, 1)).await;
    let report = server.clean(1, 0).await;
    assert!(report.elapsed < secs(10), "{report}");
}

// SHUTDOWN: 9
// A request that is refused opens no door for more time.
#[tokio::test]
async fn a_client_that_is_refused_and_stays_is_hung_up_on() {
    let app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    let mut client = Raw::connect(server.addr).await;
    assert_eq!(client.ask("/").await.status, 200);
    server.stop().await;
    client.ask("/").await.assert_refused();
    let report = server.clean(0, 1).await;
    assert!(report.elapsed < secs(10), "{report}");
    drop(client);
}

#[tokio::test]
async fn nonsense_is_answered_or_hung_up_on_at_once() {
    let app = App::new();
    let server = serve(at_once(), |handle| app.routes(handle)).await;
    // What a TLS client says first; a request without a version; a head that never ends.
    let endless = format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(100_000));
    for said in [&b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..], b"HELLO\r\n\r\n", endless.as_bytes()] {
        let mut stream = in_time(TcpStream::connect(server.addr)).await.unwrap();
        let _ = in_time(stream.write_all(said)).await;
        let heard = hung_up(stream).await;
        assert!(heard.is_empty() || heard.starts_with(b"HTTP/1.1 4"), "{:?}", String::from_utf8_lossy(&heard));
    }
    server.nobody().await;
    server.stop().await;
    server.clean(0, 0).await;
    assert_eq!(app.seen.calls(), 0);
}

// ------------------------------------------------------------------------------------------------ those that move

/// Endless, in small pieces.
fn endless(handle: &Handle) -> Router {
    let body = || {
        let pieces = tokio_stream::iter(std::iter::repeat(()));
        Body::from_stream(pieces.map(|()| Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 16 << 10]))))
    };
    Router::new().route("/", get(move || async move { body() })).layer(handle.in_flight_layer().named("endless"))
}

// SHUTDOWN: 9
#[tokio::test]
async fn who_reads_nothing_of_an_endless_response_is_cut_at_the_deadline() {
    let server = serve(at_once().total(secs(2)), endless).await;
    let mut one = Raw::connect(server.addr).await;
    one.get("/").await;
    // Its window is open, and its socket full; and a second one, whose window is closed.
    let mut two = Frames::connect(server.addr).await;
    two.get(1, "/").await;
    two.until(|frame| frame.is(HEADERS, 1)).await;
    let mut three = Frames::with_settings(server.addr, &[0, 4, 0, 0, 0, 0]).await;
    three.get(1, "/").await;
    three.until(|frame| frame.is(HEADERS, 1)).await;
    in_time(async {
        while server.handle.in_flight() < 3 {
            sleep(ms(1)).await;
        }
    })
    .await;
    server.stop().await;
    let handle = server.handle.clone();
    let report = server.report().await;
    assert_eq!(report.forced, Some(Force::Deadline), "{report}");
    assert_eq!((report.connections_cut, &report.cut[..]), (3, &[("endless", 3)][..]), "{report}");
    assert_eq!((report.drained, report.rejected), (0, 0), "{report}");
    assert!(report.elapsed >= secs(2) && report.elapsed < secs(10), "{report}");
    assert_eq!(handle.state(), State::Done);
    drop((one, two, three));
}

// SHUTDOWN: 9
// The whole body is with hyper at once, and nobody reads it: what was not delivered was not drained.
#[tokio::test]
async fn a_response_that_was_cut_is_a_connection_that_was_cut() {
    for version in [1, 2] {
        let calls = App::new();
        let go = calls.go.clone();
        let app = |handle: &Handle| {
            let body = Bytes::from(vec![b'x'; 16 << 20]);
            let big = || async move {
                go.acquire().await.unwrap().forget();
                body
            };
            let big = Router::new().route("/big", get(big)).layer(handle.in_flight_layer());
            calls.routes(handle).merge(big)
        };
        let server = serve(at_once().total(secs(2)), app).await;
        let _client = if version == 1 {
            let mut client = Raw::connect(server.addr).await;
            client.get("/big").await;
            client.stream
        } else {
            let mut client = Frames::connect(server.addr).await;
            client.get(1, "/big").await;
            client.stream
        };
        in_time(async {
            while server.handle.in_flight() < 1 {
                sleep(ms(1)).await;
            }
        })
        .await;
        server.stop().await;
        calls.let_go();
        let report = server.report().await;
        assert_eq!(report.forced, Some(Force::Deadline), "HTTP/{version}: {report}");
        assert_eq!(report.connections_cut, 1, "HTTP/{version}: {report}");
        // The server had all of it, which is what drained means.
        assert_eq!(report.drained, 1, "HTTP/{version}: {report}");
    }
}

// SHUTDOWN: 9
#[tokio::test]
async fn who_drips_a_byte_now_and_then_is_cut_at_the_deadline() {
    let app = App::new();
    let server = serve(at_once().total(secs(2)), |handle| app.routes(handle)).await;
    let mut client = Raw::connect(server.addr).await;
    client.send("GET / HTTP/1.1\r\nx: ").await;
    quiet(&server, 1).await;
    server.handle.trigger("deploy");
    let dripping = tokio::spawn(async move {
        while client.stream.write_all(b"x").await.is_ok() {
            sleep(ms(50)).await;
        }
    });
    let report = server.report().await;
    in_time(dripping).await.unwrap();
    assert_eq!((report.forced, report.connections_cut), (Some(Force::Deadline), 1), "{report}");
    assert_eq!((report.drained, &report.cut[..]), (0, &[][..]), "{report}");
}

// SHUTDOWN: 9
#[tokio::test]
async fn who_pings_for_ever_is_cut_at_the_deadline() {
    let app = App::new();
    let server = serve(at_once().total(secs(2)), |handle| app.routes(handle)).await;
    let mut client = Frames::connect(server.addr).await;
    client.acks = false;
    client.get(1, "/").await;
    client.until(|frame| frame.is(DATA, 1)).await;
    server.handle.trigger("deploy");
    let pinging = tokio::spawn(async move {
        let ping = [0, 0, 8, PING, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        while client.stream.write_all(&ping).await.is_ok() {
            sleep(ms(50)).await;
        }
    });
    let report = server.report().await;
    in_time(pinging).await.unwrap();
    assert_eq!((report.forced, report.connections_cut), (Some(Force::Deadline), 1), "{report}");
}

// SHUTDOWN: 9
#[tokio::test]
async fn an_upload_that_stalls_is_cut_at_the_deadline_and_counted() {
    let mut app = App::new();
    let server = serve(at_once().total(secs(2)), |handle| app.routes(handle)).await;
    let mut one = Raw::connect(server.addr).await;
    one.send("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf").await;
    app.begun().await;
    let mut two = Frames::connect(server.addr).await;
    // POST /echo, whose stream stays open.
    let block = [&[0x83, 0x86, 0x04, 5][..], b"/echo", &[0x41, 1], b"a"].concat();
    two.send(HEADERS, 0x4, 1, &block).await;
    app.begun().await;
    server.stop().await;
    let report = server.report().await;
    assert_eq!(report.forced, Some(Force::Deadline));
    assert_eq!((report.connections_cut, &report.cut[..]), (2, &[("calls", 2)][..]), "{report}");
    assert_eq!(report.drained, 0, "{report}");
    drop((one, two));
}

/// A client may open streams as fast as it can, through the stop: each is answered or reset, and it ends.
#[tokio::test]
async fn a_flood_of_streams_ends_with_the_connection() {
    let app = App::new();
    let server = serve(at_once().lame_duck(ms(50)), |handle| app.routes(handle)).await;
    let mut client = Frames::connect(server.addr).await;
    client.until(|frame| frame.kind == SETTINGS).await;
    let (mut read, mut write) = client.stream.into_split();
    let reading = tokio::spawn(async move {
        let mut heard = Vec::new();
        let _ = read.read_to_end(&mut heard).await;
        heard.len()
    });
    server.handle.trigger("deploy");
    let flooding = tokio::spawn(async move {
        let block = [&[0x82, 0x86, 0x84, 0x41, 1][..], b"a"].concat();
        let mut sent = 0_u32;
        loop {
            let mut frame = vec![0, 0, block.len() as u8, HEADERS, 0x5];
            frame.extend((2 * sent + 1).to_be_bytes());
            frame.extend(&block);
            if write.write_all(&frame).await.is_err() {
                return sent;
            }
            sent += 1;
        }
    });
    let report = server.report().await;
    let sent = in_time(flooding).await.unwrap();
    assert!(in_time(reading).await.unwrap() > 0 && sent > 0);
    // It never stops, so it may have had to be cut; but nobody is left, and nobody was called after the gate closed.
    assert!(report.elapsed < secs(25), "{report}");
    assert!(app.seen.calls() as u64 + report.rejected <= u64::from(sent), "{report}");
}
