//! What the children of [`process`](super::process) do. Each role is a test of this same binary, run by its name in a
//! process of its own; without its name in [`ROLE`] it returns at once, so that `cargo test -- --ignored` is no harm.
#![cfg(all(unix, feature = "serve", feature = "signal"))]

use std::{
    fmt::Display,
    future::pending,
    io::{self, Write},
    net::SocketAddr,
    process::{ExitCode, exit},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use buttress::{
    Shutdown,
    shutdown::{Handle, ShutdownBuilder, Signal, Signals},
};
use http_body_util::{BodyExt, Full};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    time::sleep,
};
use tower::BoxError;

use crate::support::{ms, secs};

/// Names the role that the process plays.
pub const ROLE: &str = "BUTTRESS_CHILD";
/// What it is told besides.
pub const ARGUMENT: &str = "BUTTRESS_CHILD_ARGUMENT";
/// Marks what is for the parent among the lines on standard output: libtest writes there too, and not only whole lines.
pub const MARK: &str = "@buttress@ ";

fn plays(role: &str) -> bool {
    std::env::var(ROLE).is_ok_and(|named| named == role)
}

fn argument() -> u64 {
    std::env::var(ARGUMENT).unwrap().parse().unwrap()
}

fn tell(what: impl Display) {
    println!("{MARK}{what}");
}

/// Ends the process as `fn main() -> ExitCode` would: libtest has a code of its own for each test, good or bad.
fn end(code: ExitCode) -> ! {
    exit((0..=u8::MAX).find(|byte| ExitCode::from(*byte) == code).unwrap().into())
}

/// Does not return, and never yields to the runtime. Parked and not spinning, as it has two cores with other tests on
/// them: to tokio it is the same.
fn hang() {
    loop {
        thread::park();
    }
}

fn tell_draining(handle: &Handle) {
    let draining = handle.draining();
    tokio::spawn(async move {
        draining.await;
        tell("draining");
    });
}

/// Nothing of it is waited for unless the role needs it.
fn quick() -> ShutdownBuilder {
    Shutdown::builder().lame_duck(ms(0)).total(ms(300)).abort_grace(ms(100))
}

/// A plan whose limits no test waits for.
fn patient() -> ShutdownBuilder {
    Shutdown::builder().lame_duck(secs(500)).total(secs(1_000)).abort_grace(secs(1))
}

/// An address of its own, where that can be: who comes once it is gone is to find nobody, and not whoever was given the port since.
async fn bind() -> TcpListener {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let own = if cfg!(target_os = "linux") { [127, 1 + high % 127, middle, low] } else { [127, 0, 0, 1] };
    let listener = TcpListener::bind(SocketAddr::from((own, 0))).await.unwrap();
    tell(format_args!("address {}", listener.local_addr().unwrap()));
    listener
}

// ---------------------------------------------------------------- under load

/// A server with answers of several kinds: at once, after a while, many bytes, and an echo.
fn app(handle: &Handle, answered: &Arc<AtomicUsize>) -> Router {
    let count = {
        let answered = Arc::clone(answered);
        move || answered.fetch_add(1, SeqCst)
    };
    let (fast, slow, long, echo) = (count.clone(), count.clone(), count.clone(), count);
    Router::new()
        .route("/fast", get(async move || fast().to_string()))
        .route(
            "/slow",
            get(async move || {
                sleep(ms(20)).await;
                slow().to_string()
            }),
        )
        .route(
            "/long",
            get(async move || {
                long();
                Body::new(Full::from(vec![b'x'; LONG]))
            }),
        )
        .route(
            "/echo",
            axum::routing::post(async move |body: Body| {
                let body = body.collect().await.unwrap().to_bytes();
                echo();
                body
            }),
        )
        .layer(handle.in_flight_layer())
        .route("/readyz", get(handle.readiness()))
}

pub const LONG: usize = 300_000;

#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn serves() {
    if !plays("serves") {
        return;
    }
    let answered = Arc::new(AtomicUsize::new(0));
    let builder = Shutdown::builder().lame_duck(ms(argument())).total(secs(20));
    let code = Shutdown::main(builder, Signals::default(), async |shutdown: Shutdown| {
        let handle = shutdown.handle();
        tell_draining(&handle);
        let listener = bind().await;
        let report = shutdown.serve(listener, app(&handle, &answered)).await;
        tell(format_args!("answered {}", answered.load(SeqCst)));
        Ok(report)
    });
    end(code)
}

// ---------------------------------------------------------------- signals

/// Serves, and has a guard that nobody lets go of.
#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn holds_on() {
    if !plays("holds_on") {
        return;
    }
    let code = Shutdown::main(patient(), Signals::default(), async |shutdown: Shutdown| {
        let handle = shutdown.handle();
        let _held = handle.guard("conversation")?;
        tell_draining(&handle);
        handle.ready();
        tell("ready");
        handle.forced().await;
        Ok(shutdown.wait().await)
    });
    end(code)
}

/// Is told to stop before it serves.
#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn starts_slowly() {
    if !plays("starts_slowly") {
        return;
    }
    let builder = Shutdown::builder().lame_duck(ms(argument()));
    let code = Shutdown::main(builder, Signals::default(), async |shutdown: Shutdown| {
        let listener = bind().await;
        let handle = shutdown.handle();
        tell_draining(&handle);
        tell("starting");
        if argument() > 0 {
            handle.draining().await;
        } else {
            // So late that there is nothing left to be served.
            handle.wait().await;
        }
        let app = app(&handle, &Arc::default());
        Ok(shutdown.serve(listener, app).await)
    });
    end(code)
}

/// Never gets as far as serving.
#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn never_starts() {
    if !plays("never_starts") {
        return;
    }
    let code = Shutdown::main(quick(), Signals::default(), async |shutdown: Shutdown| {
        tell("starting");
        let _shutdown = shutdown;
        pending().await
    });
    end(code)
}

/// Counts reloads while it listens to them, and then stops to listen.
#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn reloads() {
    if !plays("reloads") {
        return;
    }
    let code = Shutdown::main(quick(), Signals::default(), async |shutdown: Shutdown| {
        let handle = shutdown.handle();
        let mut reloads = handle.reload();
        handle.ready();
        tell("ready");
        for count in 1..=argument() {
            reloads.recv().await;
            tell(format_args!("reload {count} {}", handle.is_ready()));
        }
        drop(reloads);
        tell("deaf");
        Ok(shutdown.wait().await)
    });
    end(code)
}

// ---------------------------------------------------------------- what holds a process

/// Has a task that never yields; the others are not held by it.
#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn is_busy() {
    if !plays("is_busy") {
        return;
    }
    let code = Shutdown::main(quick().phase("work", ms(100)), Signals::default(), async |shutdown: Shutdown| {
        let handle = shutdown.handle();
        handle.spawn("work", "good", |cx| async move { cx.stopping().await })?;
        handle.spawn("work", "busy", |_| async { hang() })?;
        handle.ready();
        tell("ready");
        Ok(shutdown.wait().await)
    });
    end(code)
}

/// Has more busy tasks than workers, and `run` itself is busy too.
#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn is_starved() {
    if !plays("is_starved") {
        return;
    }
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let builder = patient().phase("work", secs(100));
    let builder = if argument() == 0 { builder } else { quick().phase("work", ms(100)) };
    let code = Shutdown::main_on(runtime, builder, Signals::default(), async |shutdown: Shutdown| {
        let handle = shutdown.handle();
        let (begun, busy) = std::sync::mpsc::channel();
        for task in 0..4 {
            let begun = begun.clone();
            handle.spawn("work", format!("busy {task}"), move |_| async move {
                let _ = begun.send(());
                hang();
            })?;
        }
        // Both workers are taken.
        let _ = (busy.recv(), busy.recv());
        handle.ready();
        // On a thread of its own, as there is no worker left for it.
        let heard = handle.clone();
        thread::spawn(move || {
            Runtime::new().unwrap().block_on(async {
                heard.draining().await;
                tell("draining");
                pending::<()>().await
            });
        });
        tell("ready");
        hang();
        unreachable!("{shutdown:?}")
    });
    end(code)
}

/// Has a call that blocks, on a thread for such things.
#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn blocks() {
    if !plays("blocks") {
        return;
    }
    let code = Shutdown::main(quick(), Signals::default(), async |shutdown: Shutdown| {
        let handle = shutdown.handle();
        let guard = if argument() == 1 { Some(handle.guard("import")?) } else { None };
        tokio::task::spawn_blocking(move || {
            let _guard = guard;
            tell("ready");
            hang();
        });
        handle.ready();
        Ok(shutdown.wait().await)
    });
    end(code)
}

/// Holds a lock that everybody who wants to write to standard error needs, and is busy.
#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn holds_stderr() {
    if !plays("holds_stderr") {
        return;
    }
    let code = Shutdown::main(quick(), Signals::default(), async |shutdown: Shutdown| {
        shutdown.handle().ready();
        let _locked = io::stderr().lock();
        tell("ready");
        hang();
        unreachable!("{shutdown:?}")
    });
    end(code)
}

/// Whoever logs anything does not return from it.
#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn hangs_in_its_log() {
    if !plays("hangs_in_its_log") {
        return;
    }
    let code = Shutdown::main(quick(), Signals::default(), async |shutdown: Shutdown| {
        let blocks = || -> io::Stderr {
            hang();
            io::stderr()
        };
        tracing_subscriber::fmt().with_writer(blocks).init();
        shutdown.handle().ready();
        tell("ready");
        Ok(shutdown.wait().await)
    });
    end(code)
}

/// Is busy, with a standard error that nobody reads: closed by the parent, or full.
#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn is_not_heard() {
    if !plays("is_not_heard") {
        return;
    }
    let code = Shutdown::main(quick(), Signals::default(), async |shutdown: Shutdown| {
        shutdown.handle().ready();
        if argument() == 1 {
            thread::spawn(|| {
                // Blocks once the pipe is full. Not by `stderr`, whose lock it would hold.
                let mut pipe = std::fs::OpenOptions::new().write(true).open("/dev/stderr").unwrap();
                while pipe.write_all(&[b'.'; 4096]).is_ok() {}
            });
        }
        tell("ready");
        hang();
        unreachable!("{shutdown:?}")
    });
    end(code)
}

// ---------------------------------------------------------------- what goes wrong in `run`

#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn fails() {
    if !plays("fails") {
        return;
    }
    let code = Shutdown::main(quick(), Signals::default(), async |_shutdown: Shutdown| Err("no database".into()));
    end(code)
}

/// Fails, with a task that never yields.
#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn fails_while_busy() {
    if !plays("fails_while_busy") {
        return;
    }
    let code = Shutdown::main(quick().phase("work", ms(100)), Signals::default(), async |shutdown: Shutdown| {
        shutdown.handle().spawn("work", "busy", |_| async { hang() })?;
        tokio::task::spawn_blocking(hang);
        Err("no database".into())
    });
    end(code)
}

#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn panics() {
    if !plays("panics") {
        return;
    }
    let code = Shutdown::main(quick().phase("work", ms(100)), Signals::default(), async |shutdown: Shutdown| {
        if argument() == 1 {
            let (begun, busy) = std::sync::mpsc::channel();
            shutdown.handle().spawn("work", "busy", move |_| async move {
                let _ = begun.send(());
                hang();
            })?;
            let _ = busy.recv();
        }
        panic!("no plan")
    });
    end(code)
}

#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn is_misconfigured() {
    if !plays("is_misconfigured") {
        return;
    }
    let builder = Shutdown::builder().lame_duck(secs(30));
    let code = Shutdown::main(builder, Signals::default(), async |_: Shutdown| unreachable!());
    end(code)
}

#[tokio::test]
#[ignore = "a child process of shutdown::process, which runs it"]
async fn is_in_a_runtime_already() {
    if !plays("is_in_a_runtime_already") {
        return;
    }
    end(Shutdown::main(Shutdown::builder(), Signals::default(), async |_: Shutdown| unreachable!()))
}

#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn wants_a_signal_that_nobody_gets() {
    if !plays("wants_a_signal_that_nobody_gets") {
        return;
    }
    let signals = Signals::default().with(Signal::Other(9));
    let code = Shutdown::main(quick(), signals, async |_: Shutdown| unreachable!());
    end(code)
}

// ---------------------------------------------------------------- systemd

#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn notifies() {
    if !plays("notifies") {
        return;
    }
    let builder = Shutdown::builder().lame_duck(ms(50)).total(Duration::from_millis(12_500)).abort_grace(secs(2));
    let code = Shutdown::main(builder, Signals::default(), async |shutdown: Shutdown| {
        let handle = shutdown.handle();
        tell("starting");
        // Until the parent has seen that nothing was said so far.
        tokio::task::spawn_blocking(|| io::stdin().read_line(&mut String::new())).await??;
        handle.ready();
        handle.ready();
        tell("ready");
        Ok::<_, BoxError>(shutdown.wait().await)
    });
    end(code)
}

// ---------------------------------------------------------------- installing signals

/// Signals belong to a process, so this is tried in one where nobody else does so.
#[test]
#[ignore = "a child process of shutdown::process, which runs it"]
fn installs() {
    if !plays("installs") {
        return;
    }
    let signals = Signals::default;

    // Without a runtime.
    let error = Shutdown::builder().signals(signals()).unwrap_err();
    assert_eq!(error.to_string(), "signals need a tokio runtime: there is none here");

    // On one without I/O: an error, and no panic.
    let bare = Builder::new_current_thread().enable_time().build().unwrap();
    let error = bare.block_on(async { Shutdown::builder().signals(signals()).unwrap_err() });
    assert_eq!(error.to_string(), "cannot listen to SIGTERM: the tokio runtime has no I/O: see `enable_io`");

    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        // What nobody can listen to, by its name; none of these tries keeps the next one from it.
        for (number, kind) in
            [(9, io::ErrorKind::Other), (19, io::ErrorKind::Other), (4_000, io::ErrorKind::InvalidInput)]
        {
            let error = Shutdown::builder().signals(signals().with(Signal::Other(number))).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with(&format!("cannot listen to signal {number}: ")), "{text}, {kind:?}");
        }

        // Without a signal there is nothing to be had twice.
        let manual = Shutdown::builder().signals(Signals::manual()).unwrap();
        let first = Shutdown::builder().signals(signals()).unwrap();
        let error = Shutdown::builder().signals(signals()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(error.to_string(), "another `Shutdown` of this process listens to signals already");

        // A builder may change its mind, and give it back.
        let first = first.signals(Signals::default().without(Signal::Hangup)).unwrap();
        drop(first);
        let second = Shutdown::builder().signals(signals()).unwrap();
        drop(manual);
        assert!(Shutdown::builder().signals(signals()).is_err(), "`manual` took nothing, and gives nothing back");

        // A shutdown keeps it until it is over.
        let second = second.lame_duck(ms(0)).build().unwrap();
        assert!(Shutdown::builder().signals(signals()).is_err());
        second.handle().trigger("enough");
        assert!(second.wait().await.is_clean());
        let third = loop {
            // Its driver says that it is over, and is dropped a moment later.
            match Shutdown::builder().signals(signals()) {
                Ok(builder) => break builder,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let third = third.build().unwrap();
        drop(second);

        // And one that works, after all of these.
        tell("ready");
        third.handle().draining().await;
        tell("heard");
    });
}
