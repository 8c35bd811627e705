//! [`Shutdown::main`]: a process that ends on time, whatever holds it.

use std::{
    fmt,
    future::Future,
    io::{self, Write as _},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::channel,
    },
    thread,
    time::Duration,
};

use tokio::runtime::Runtime;
use tower::BoxError;

use super::{Force, Handle, Report, Shutdown, ShutdownBuilder, Signals, state::Alarm};

/// How long `main` may go on after the report is there.
const FAREWELL: Duration = Duration::from_secs(1);

impl Shutdown {
    /// Runs a whole process: makes a multi-threaded runtime, listens to the signals, runs what `run` returns, and ends the
    /// process on time with the report's [exit code](Report::exit_code) and the report on standard error.
    ///
    /// Signals and the shutdown's driver live on a thread and a runtime of their own. So neither a task that never yields
    /// nor a `spawn_blocking` that never returns can keep a signal from being heard, the report from being made, or
    /// the process from ending: if `run` is not done a second after the report, the process ends without it, with code 1 at least.
    /// A server of your own has that second to close, so put the [layer](super::Handle::layer) around its services, or
    /// its calls are not waited for.
    ///
    /// ```no_run
    /// use buttress::{Shutdown, shutdown::Signals};
    /// use std::{process::ExitCode, time::Duration};
    ///
    /// fn main() -> ExitCode {
    ///     let builder = Shutdown::builder().phase("workers", Duration::from_secs(5));
    ///     Shutdown::main(builder, Signals::default(), |shutdown| async move {
    ///         shutdown.handle().spawn("workers", "mailer", |cx| async move { cx.stopping().await })?;
    ///         Ok(shutdown.wait().await)
    ///     })
    /// }
    /// ```
    ///
    /// # Errors
    /// Exit code 1, with the reason on standard error, if the runtime or the signals cannot be had, a setting is out of its
    /// range, or `run` fails. What `run` has spawned until then is aborted.
    pub fn main<F, Fut>(builder: ShutdownBuilder, signals: Signals, run: F) -> ExitCode
    where
        F: FnOnce(Shutdown) -> Fut,
        Fut: Future<Output = Result<Report, BoxError>>,
    {
        match Runtime::new() {
            Ok(runtime) => Self::main_on(runtime, builder, signals, run),
            Err(error) => failed(&error),
        }
    }

    /// As [`main`](Self::main), on a runtime of yours.
    ///
    /// # Errors
    /// As there.
    pub fn main_on<F, Fut>(runtime: Runtime, builder: ShutdownBuilder, signals: Signals, run: F) -> ExitCode
    where
        F: FnOnce(Shutdown) -> Fut,
        Fut: Future<Output = Result<Report, BoxError>>,
    {
        let said = Arc::new(Said::default());
        let shutdown = match tokio::runtime::Handle::try_current() {
            Ok(_) => Err(WITHIN_A_RUNTIME.into()),
            Err(_) => watchdog(builder, signals, Arc::clone(&said)),
        };
        let outcome = shutdown.and_then(|shutdown| runtime.block_on(async { run(shutdown).await }));
        // What blocks is left behind: the process ends now. Within another runtime, to wait for it would be a panic.
        runtime.shutdown_background();
        match outcome {
            Ok(report) => {
                said.say(&report);
                // Exit codes are bytes; a signal's number and 128 fit.
                ExitCode::from(u8::try_from(report.exit_code()).unwrap_or(1))
            }
            Err(error) => failed(&error),
        }
    }
}

const WITHIN_A_RUNTIME: &str =
    "`Shutdown::main` makes the runtime itself: call it from a plain `fn main`, without `#[tokio::main]`";

/// Whether the report was printed, by whoever came first.
#[derive(Default)]
struct Said(AtomicBool);

impl Said {
    fn say(&self, report: &Report) {
        // Relaxed: nothing is published by it.
        if !self.0.swap(true, Relaxed) {
            print(report);
        }
    }
}

/// Not `eprintln`, which panics where nobody reads.
fn print(what: &dyn fmt::Display) {
    let _ = writeln!(io::stderr(), "{what}");
}

/// Makes the shutdown on a thread of its own, which ends the process if nobody else does.
fn watchdog(builder: ShutdownBuilder, signals: Signals, said: Arc<Said>) -> Result<Shutdown, BoxError> {
    let (built, shutdown) = channel();
    thread::Builder::new().name("buttress-shutdown".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return drop(built.send(Err(error.into()))),
        };
        let report = {
            let _here = runtime.enter();
            let shutdown = builder.signals(signals).map_err(BoxError::from).and_then(|builder| Ok(builder.build()?));
            let wait = shutdown.as_ref().map(|shutdown| shutdown.handle().wait()).ok();
            // Whoever waits for it is there: it is the thread that spawned this one.
            drop(built.send(shutdown));
            wait.map(|wait| runtime.block_on(wait))
        };
        if let Some(report) = report {
            wait(FAREWELL);
            // A clean shutdown that somebody slept through is none. Who is about to print it has woken up.
            let slept = !said.0.load(Relaxed);
            let code = if slept { report.exit_code().max(1) } else { report.exit_code() };
            let late = format!("Error: what `Shutdown::main` runs had not returned {FAREWELL:?} after the report");
            // Printing may block, if standard error is full or somebody holds its lock; not here.
            let printing = thread::Builder::new().spawn(move || {
                said.say(&report);
                if slept {
                    print(&late);
                }
            });
            (0..10)
                .take_while(|_| printing.as_ref().is_ok_and(|thread| !thread.is_finished()))
                .for_each(|_| wait(FAREWELL / 10));
            std::process::exit(code);
        }
    })?;
    let shutdown: Shutdown = shutdown.recv().map_err(|_| "the thread of the shutdown panicked")??;
    keep_time(shutdown.handle())?;
    Ok(shutdown)
}

/// The last resort, on a thread that neither logs nor prints: whatever listens to logs may hold up the driver for ever.
fn keep_time(handle: Handle) -> io::Result<()> {
    let (watchdog, alarms) = channel();
    // Nobody else sets it.
    let _ = handle.shared.watchdog.set(watchdog);
    if handle.is_draining() {
        handle.shared.alarm(Alarm::Begun);
    }
    thread::Builder::new().name("buttress-watchdog".to_owned()).spawn(move || {
        let Ok(mut alarm) = alarms.recv() else { return };
        loop {
            let before = match alarm {
                Alarm::Begun => handle.shared.plan.total,
                Alarm::Forced => Duration::ZERO,
            };
            let longest = handle.shared.to_the_end(before).saturating_add(FAREWELL * 3);
            match alarms.recv_timeout(longest) {
                Ok(next) => alarm = next,
                Err(_) => std::process::exit(handle.shared.forced().map_or(1, Force::exit_code)),
            }
        }
    })?;
    Ok(())
}

/// On a channel that nobody sends to: it cannot be woken early.
fn wait(time: Duration) {
    let (_open, never) = channel::<()>();
    let _ = never.recv_timeout(time);
}

fn failed(error: &dyn fmt::Display) -> ExitCode {
    print(&format_args!("Error: {error}"));
    ExitCode::FAILURE
}
