//! A shutdown from its first state to its report.
#![allow(clippy::disallowed_methods)] // tokio's clock, to measure on it what a shutdown took

use std::{
    future::{Future, pending},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use buttress::{
    Shutdown,
    shutdown::{Force, Handle, Report, Signal, Signals, Stage, State, Trigger},
};
use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, advance, sleep, timeout},
};
use tokio_test::{assert_pending, assert_ready, task};

use crate::support::{ms, secs, settle};

/// No lame-duck time; ten seconds in all.
pub(super) fn prompt() -> buttress::ShutdownBuilder {
    Shutdown::builder().signals(Signals::manual()).unwrap().lame_duck(Duration::ZERO).total(secs(10))
}

/// Whether that is how long it took. The wheel of tokio's timers turns by milliseconds.
#[track_caller]
pub(super) fn assert_took(took: Duration, expected: Duration) {
    assert!(took >= expected && took <= expected + ms(3), "{took:?} instead of {expected:?}");
}

/// Each stage with the tenths of seconds it took, and whether it overran.
pub(super) fn stages(report: &Report) -> Vec<(&'static str, u128, bool)> {
    let row = |stage: &Stage| (stage.name, stage.elapsed.as_millis() / 100, stage.overran);
    report.stages.iter().map(row).collect()
}

/// A runtime of one thread that goes on running on a thread of its own, until it is told.
pub(super) struct Elsewhere {
    pub(super) runtime: tokio::runtime::Handle,
    end: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Elsewhere {
    pub(super) fn new() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (end, ended) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            let _ = ended.recv();
            runtime.shutdown_background();
        });
        Self { runtime: handle, end: Some(end), thread: Some(thread) }
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        drop(self.end.take());
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// What comes of it within a time that stands for "it did not hang".
fn soon<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Option<T> {
    thread::spawn(move || current_thread().block_on(async { timeout(secs(10), future).await.ok() })).join().unwrap()
}

// ---------------------------------------------------------------- states

#[tokio::test(start_paused = true)]
async fn it_goes_from_state_to_state_and_never_back() {
    let shutdown = Shutdown::builder().lame_duck(secs(5)).total(secs(25)).build().unwrap();
    let handle = shutdown.handle();
    assert_eq!(handle.state(), State::Starting);
    handle.ready();
    assert_eq!(handle.state(), State::Running);
    let guard = handle.guard("socket").unwrap();
    let began = Instant::now();

    assert!(handle.trigger("deploy"));
    assert_eq!(handle.state(), State::Draining, "at once, and not when the driver runs next");
    handle.ready();
    assert_eq!(handle.state(), State::Draining);
    sleep(ms(4_990)).await;
    assert_eq!(handle.state(), State::Draining);
    let late = handle.guard("late").expect("calls are admitted for as long as it is a lame duck");
    handle.stopping().await;
    assert_took(began.elapsed(), secs(5));
    assert_eq!(handle.state(), State::Stopping);
    assert_eq!(handle.in_flight(), 2);

    sleep(secs(2)).await;
    drop((guard, late));
    let report = shutdown.wait().await;
    assert_took(report.elapsed, secs(7));
    assert_eq!(stages(&report), [("lame duck", 50, false), ("calls", 20, false)]);
    assert_eq!((report.drained, report.left, report.exit_code()), (2, 0, 0), "{report}");

    assert_eq!(handle.state(), State::Done);
    handle.ready();
    assert!(!handle.trigger("again") && !handle.force());
    handle.signal(Signal::Terminate);
    handle.signal(Signal::Terminate);
    assert_eq!(handle.state(), State::Done);
    assert_eq!(shutdown.wait().await, report, "and so it stays");
}

#[tokio::test(start_paused = true)]
async fn each_of_its_moments_is_told_in_its_order() {
    let shutdown = Shutdown::builder().lame_duck(secs(5)).total(secs(25)).build().unwrap();
    let handle = shutdown.handle();
    let _held = handle.guard("held").unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let began = Instant::now();
    let tell = |what: &'static str, moment: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        let told = told.clone();
        tokio::spawn(async move {
            moment.await;
            told.lock().unwrap().push((what, began.elapsed().as_secs()));
        })
    };
    let done = handle.wait();
    tell("done", Box::pin(async move { drop(done.await) }));
    tell("forced", Box::pin(handle.forced()));
    tell("stopping", Box::pin(handle.stopping()));
    tell("draining", Box::pin(handle.draining()));
    settle().await;
    handle.signal(Signal::Terminate);
    shutdown.wait().await;
    settle().await;
    assert_eq!(*told.lock().unwrap(), [("draining", 0), ("stopping", 5), ("forced", 25), ("done", 26)]);
    // Whoever asks late is told at once.
    for mut late in [task::spawn(handle.draining()), task::spawn(handle.draining())] {
        assert_ready!(late.poll());
    }
    assert_ready!(task::spawn(handle.forced()).poll());
}

#[tokio::test(start_paused = true)]
async fn a_waiter_can_change_its_waker_and_is_woken_once_its_state_is_there() {
    let shutdown = prompt().build().unwrap();
    let handle = shutdown.handle();
    let _held = handle.guard("held").unwrap();
    let mut waiter = Box::pin(handle.forced());
    let mut first = task::spawn(());
    assert_pending!(first.enter(|cx, _| waiter.as_mut().poll(cx)));
    handle.trigger("deploy");
    settle().await;
    assert!(first.is_woken());
    let mut second = task::spawn(());
    assert_pending!(second.enter(|cx, _| waiter.as_mut().poll(cx)), "it is stopping, no more");
    assert_pending!(second.enter(|cx, _| waiter.as_mut().poll(cx)));
    assert!(!second.is_woken());
    let mut third = task::spawn(());
    assert_pending!(third.enter(|cx, _| waiter.as_mut().poll(cx)), "nothing has moved in between");
    handle.force();
    assert!(third.is_woken(), "the latest waker counts");
    assert_ready!(third.enter(|cx, _| waiter.as_mut().poll(cx)));
}

// A wake-up was lost: whoever registered between the number of a move and its telling was told of no later one.
#[test]
fn whoever_waits_is_told_though_it_came_while_another_move_was_told() {
    let runtime = Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    for round in 0..1_000 {
        let all_told = runtime.block_on(async {
            let shutdown = prompt().build().unwrap();
            let handle = shutdown.handle();
            let (start, teller) = (Arc::new(Barrier::new(2)), handle.clone());
            let go = start.clone();
            let teller = thread::spawn(move || {
                go.wait();
                teller.ready();
                teller.trigger("deploy");
            });
            start.wait();
            let waiters: Vec<_> = (0..40).map(|_| tokio::spawn(handle.wait())).collect();
            teller.join().unwrap();
            let all = async {
                for waiter in waiters {
                    waiter.await.unwrap();
                }
            };
            timeout(secs(10), all).await.is_ok()
        });
        assert!(all_told, "round {round}");
    }
}

// ---------------------------------------------------------------- triggers

// SHUTDOWN: 15
#[tokio::test(start_paused = true)]
async fn what_comes_before_anything_runs_drains_at_once() {
    type Begin = fn(&Handle);
    let cases: [(Begin, Trigger); 3] = [
        (|handle| handle.signal(Signal::Terminate), Trigger::Signal(Signal::Terminate)),
        (|handle| handle.signal(Signal::Hangup), Trigger::Signal(Signal::Hangup)),
        (|handle| assert!(handle.trigger("no config")), Trigger::Asked("no config".into())),
    ];
    for (begin, reason) in cases {
        // The driver has not been polled once, and it was never `ready`.
        let shutdown = prompt().build().unwrap();
        begin(&shutdown.handle());
        assert!(shutdown.handle().is_draining());
        shutdown.handle().ready();
        assert!(!shutdown.handle().is_ready(), "it never becomes ready any more");
        let report = shutdown.wait().await;
        assert_eq!(report.reason, reason);
        assert_took(report.elapsed, Duration::ZERO);
        assert_eq!(report.exit_code(), 0, "{report}");
    }
}

// SHUTDOWN: 16
#[tokio::test(start_paused = true)]
async fn a_second_signal_forces_and_is_the_exit_code() {
    let cases = [
        (Signal::Terminate, 143),
        (Signal::Interrupt, 130),
        (Signal::Quit, 131),
        (Signal::Hangup, 129),
        (Signal::Other(12), 140),
    ];
    for (second, code) in cases {
        let shutdown = Shutdown::builder().build().unwrap();
        let handle = shutdown.handle();
        let guard = handle.guard("socket").unwrap();
        tokio::spawn({
            let forced = handle.forced();
            async move {
                forced.await;
                drop(guard);
            }
        });
        handle.signal(Signal::Terminate);
        sleep(secs(1)).await;
        let asked = Instant::now();
        handle.signal(second);
        assert_eq!(handle.state(), State::Forced);
        let report = shutdown.wait().await;
        assert_took(asked.elapsed(), Duration::ZERO);
        assert_eq!((&report.reason, report.forced), (&Trigger::Signal(Signal::Terminate), Some(Force::Signal(second))));
        assert_eq!(report.exit_code(), code);
        assert_eq!(stages(&report), [("lame duck", 10, true), ("abort", 0, false)]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_signal_after_a_trigger_does_not_force() {
    let shutdown = Shutdown::builder().build().unwrap();
    let handle = shutdown.handle();
    handle.trigger("deploy");
    handle.signal(Signal::Terminate);
    assert_eq!(handle.state(), State::Draining, "whoever deploys sends SIGTERM next");
    handle.signal(Signal::Terminate);
    assert_eq!(handle.state(), State::Forced);
    assert_eq!(shutdown.wait().await.reason, Trigger::Asked("deploy".into()));
}

// SHUTDOWN: 17
#[tokio::test(start_paused = true)]
async fn nothing_that_comes_in_the_abort_grace_changes_anything() {
    type Force_ = fn(&Handle);
    let cases: [(Force_, Option<Force>, i32); 3] = [
        (|handle| handle.signal(Signal::Interrupt), Some(Force::Signal(Signal::Interrupt)), 130),
        (|handle| assert!(handle.force()), Some(Force::Asked), 1),
        (|_| {}, Some(Force::Deadline), 1),
    ];
    for (force, by, code) in cases {
        let shutdown = prompt().abort_grace(secs(2)).build().unwrap();
        let handle = shutdown.handle();
        let _held = handle.guard("socket").unwrap();
        handle.signal(Signal::Terminate);
        force(&handle);
        handle.forced().await;
        let forced = Instant::now();
        sleep(secs(1)).await;
        for _ in 0..2 {
            handle.signal(Signal::Quit);
            handle.signal(Signal::Terminate);
        }
        assert!(!handle.force() && !handle.trigger("again"));
        let report = shutdown.wait().await;
        assert_took(forced.elapsed(), secs(2));
        assert_eq!((report.forced, report.exit_code()), (by, code));
        assert_eq!(report.reason, Trigger::Signal(Signal::Terminate));
        assert_eq!((report.left, &*report.guards), (1, &[("socket", 1)][..]));
    }
}

// SHUTDOWN: 18
#[test]
fn of_eight_threads_that_trigger_it_one_gives_the_reason() {
    const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for _ in 0..200 {
        let shutdown = runtime.block_on(async { prompt().build().unwrap() });
        let (start, firsts) = (Barrier::new(8), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for name in NAMES {
                let (handle, start, firsts) = (shutdown.handle(), &start, &firsts);
                scope.spawn(move || {
                    start.wait();
                    if handle.trigger(name) {
                        firsts.lock().unwrap().push(name);
                    }
                });
            }
        });
        let report = runtime.block_on(async { timeout(secs(30), shutdown.wait()).await.unwrap() });
        let firsts = firsts.into_inner().unwrap();
        assert_eq!(firsts.len(), 1, "{firsts:?}");
        assert_eq!(report.reason, Trigger::Asked(firsts[0].into()));
        assert_eq!(report.exit_code(), 0, "{report}");
    }
}

#[test]
fn of_eight_threads_that_force_it_one_does() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for _ in 0..200 {
        let shutdown = runtime.block_on(async { prompt().build().unwrap() });
        let _held = shutdown.handle().guard("socket").unwrap();
        let (start, firsts) = (Barrier::new(8), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                let (handle, start, firsts) = (shutdown.handle(), &start, &firsts);
                scope.spawn(move || {
                    start.wait();
                    firsts.fetch_add(usize::from(handle.force()), SeqCst);
                });
            }
        });
        assert_eq!(firsts.into_inner(), 1);
        let state = shutdown.handle().state();
        assert_eq!(state, State::Forced);
    }
}

// SHUTDOWN: 19
#[tokio::test(start_paused = true)]
async fn force_from_running_skips_the_lame_duck_and_every_phase() {
    let shutdown = Shutdown::builder().phase("storage", secs(3)).phase("workers", secs(5)).build().unwrap();
    let handle = shutdown.handle();
    for phase in ["storage", "workers"] {
        handle.spawn(phase, "hung", |_| pending::<()>()).unwrap();
    }
    handle.ready();
    settle().await;
    assert!(handle.force());
    assert!(handle.guard("late").is_err());
    let report = shutdown.wait().await;
    assert_eq!(stages(&report), [("abort", 0, false)]);
    assert_took(report.elapsed, Duration::ZERO);
    assert_eq!((&report.reason, report.forced), (&Trigger::Forced, Some(Force::Asked)));
    assert_eq!(
        report.to_string(),
        "shutdown by force: forced by request, after 0.0s; calls: 0 drained, 0 rejected\
         \n  task `hung` of phase `storage` did not stop in time and was aborted\
         \n  task `hung` of phase `workers` did not stop in time and was aborted",
    );
}

// ---------------------------------------------------------------- who owns it

// SHUTDOWN: 28
#[tokio::test(start_paused = true)]
async fn dropping_it_aborts_everything_and_whoever_waits_has_the_report() {
    for begin in [false, true] {
        let shutdown = Shutdown::builder().phase("workers", secs(5)).build().unwrap();
        let handle = shutdown.handle();
        let gone = Arc::new(());
        let kept = gone.clone();
        handle
            .spawn("workers", "mailer", |_| async move {
                let _kept = kept;
                pending::<()>().await;
            })
            .unwrap();
        settle().await;
        if begin {
            handle.trigger("deploy");
        }
        let waiting = tokio::spawn(handle.wait());
        settle().await;
        drop(shutdown);
        assert_eq!(handle.state(), State::Forced);
        let report = waiting.await.unwrap();
        assert_eq!((report.forced, report.exit_code()), (Some(Force::Dropped), 1));
        assert_took(report.elapsed, Duration::ZERO);
        assert_eq!(
            report.tasks[0].to_string(),
            "task `mailer` of phase `workers` did not stop in time and was aborted"
        );
        assert_eq!(Arc::strong_count(&gone), 1, "the task is gone when the report is there");
    }
}

// SHUTDOWN: 28
#[tokio::test(start_paused = true)]
async fn dropping_a_wait_changes_nothing() {
    let shutdown = prompt().build().unwrap();
    let guard = shutdown.handle().guard("socket").unwrap();
    drop(shutdown.wait());
    assert!(timeout(secs(3), shutdown.wait()).await.is_err());
    assert_eq!(shutdown.handle().state(), State::Starting);
    shutdown.handle().trigger("deploy");
    assert!(timeout(secs(3), shutdown.wait()).await.is_err());
    assert_eq!(shutdown.handle().state(), State::Stopping);
    drop(guard);
    let report = shutdown.wait().await;
    assert_took(report.elapsed, secs(3));
    assert_eq!(report.exit_code(), 0);
}

#[tokio::test(start_paused = true)]
async fn dropping_it_after_the_report_is_no_force() {
    let shutdown = prompt().build().unwrap();
    let handle = shutdown.handle();
    handle.trigger("deploy");
    let report = shutdown.wait().await;
    drop(shutdown);
    assert_eq!(handle.wait().await, report);
    assert_eq!(handle.state(), State::Done);
}

// SHUTDOWN: 29
#[tokio::test(start_paused = true)]
async fn calls_that_came_and_went_before_it_do_not_complete_it() {
    let shutdown = prompt().build().unwrap();
    let handle = shutdown.handle();
    for _ in 0..3 {
        drop(handle.guard("before").unwrap());
        settle().await;
    }
    let guard = handle.guard("during").unwrap();
    handle.trigger("deploy");
    assert!(timeout(secs(9), shutdown.wait()).await.is_err());
    drop(guard);
    let report = shutdown.wait().await;
    assert_took(report.elapsed, secs(9));
    assert_eq!(report.drained, 1);
}

#[tokio::test(start_paused = true)]
async fn going_to_zero_in_the_lame_duck_time_does_not_complete_it() {
    let shutdown = Shutdown::builder().build().unwrap();
    let handle = shutdown.handle();
    let first = handle.guard("first").unwrap();
    handle.trigger("deploy");
    sleep(secs(1)).await;
    drop(first);
    settle().await;
    let second = handle.guard("second").unwrap();
    assert!(timeout(secs(9), shutdown.wait()).await.is_err());
    drop(second);
    assert_eq!(shutdown.wait().await.drained, 1);
}

// ---------------------------------------------------------------- its runtime goes away

#[test]
fn the_end_of_its_runtime_is_reported_to_whoever_waits_on_another() {
    for begin in [false, true] {
        let runtime = current_thread();
        let shutdown = runtime.block_on(async {
            let shutdown = Shutdown::builder().phase("workers", secs(5)).build().unwrap();
            shutdown.handle().spawn("workers", "mailer", |cx| async move { cx.stopping().await }).unwrap();
            settle().await;
            if begin {
                shutdown.handle().signal(Signal::Terminate);
                settle().await;
            }
            shutdown
        });
        let wait = shutdown.handle().wait();
        drop(runtime);
        let report = soon(wait).expect("a report");
        assert_eq!((report.forced, report.exit_code()), (Some(Force::RuntimeGone), 1), "{report}");
        // Else it hangs on which of its tasks the runtime drops first.
        if begin {
            assert_eq!(report.reason, Trigger::Signal(Signal::Terminate));
        }
        assert_eq!(shutdown.handle().state(), State::Done);
    }
}

// The driver was never polled, so that nothing of it was there to be dropped.
#[test]
fn the_end_of_its_runtime_is_reported_though_its_driver_never_ran() {
    let runtime = current_thread();
    let shutdown = runtime.block_on(async { Shutdown::builder().build().unwrap() });
    drop(runtime);
    let report = soon(shutdown.handle().wait()).expect("a report");
    assert_eq!(report.forced, Some(Force::RuntimeGone));
}

// What was spawned elsewhere would go on for ever, with nobody left to abort it.
#[test]
fn the_end_of_its_runtime_aborts_the_tasks_on_others() {
    let (runtime, elsewhere) = (current_thread(), Elsewhere::new());
    let (alive, gone) = mpsc::channel::<()>();
    let shutdown = runtime.block_on(async {
        let shutdown = Shutdown::builder().phase("workers", secs(5)).build().unwrap();
        let _there = elsewhere.runtime.enter();
        let task = |_| async move {
            let _alive = alive;
            pending::<()>().await;
        };
        shutdown.handle().spawn("workers", "mailer", task).unwrap();
        settle().await;
        shutdown
    });
    drop(runtime);
    assert_eq!(soon(shutdown.handle().wait()).unwrap().forced, Some(Force::RuntimeGone));
    let end = gone.recv_timeout(secs(5));
    assert_eq!(end, Err(mpsc::RecvTimeoutError::Disconnected), "the task still runs");
}

#[test]
fn a_runtime_without_timers_ends_in_a_report_too() {
    let runtime = Builder::new_current_thread().build().unwrap();
    let built = runtime.block_on(async { Shutdown::builder().build() });
    // Either it is refused, or somebody hears of it.
    let Ok(shutdown) = built else { return };
    let handle = shutdown.handle();
    handle.trigger("deploy");
    let report = runtime.block_on(shutdown.wait());
    assert_eq!(report.forced, Some(Force::RuntimeGone));
}

// ---------------------------------------------------------------- the report

#[tokio::test(start_paused = true)]
async fn a_clean_report_is_one_line() {
    let shutdown = Shutdown::builder().phase("workers", secs(5)).build().unwrap();
    let handle = shutdown.handle();
    handle
        .spawn("workers", "mailer", |cx| async move {
            cx.stopping().await;
            sleep(ms(1_500)).await;
        })
        .unwrap();
    let guard = handle.guard("socket").unwrap();
    handle.signal(Signal::Terminate);
    sleep(ms(6_200)).await;
    drop(guard);
    let report = shutdown.wait().await;
    assert_eq!(
        report.to_string(),
        "shutdown by SIGTERM: clean in 7.7s (lame duck 5.0s; calls 1.2s; workers 1.5s); calls: 1 drained, 0 rejected",
    );
    assert!(report.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_forced_report_says_by_what_and_what_was_left() {
    type Then = fn(&mut Option<Shutdown>);
    let cases: [(Then, &str, i32); 4] = [
        (|_| {}, "SIGTERM: forced by its total time, after 11.0s (calls 10.0s, overran; abort 1.0s, overran)", 1),
        (
            |it| assert!(it.as_ref().unwrap().handle().force()),
            "SIGTERM: forced by request, after 3.0s (calls 2.0s, overran; abort 1.0s, overran)",
            1,
        ),
        (
            |it| it.as_ref().unwrap().handle().signal(Signal::Interrupt),
            "SIGTERM: forced by a second signal, SIGINT, after 3.0s (calls 2.0s, overran; abort 1.0s, overran)",
            130,
        ),
        (
            |it| drop(it.take()),
            "SIGTERM: forced by the drop of `Shutdown`, after 3.0s (calls 2.0s, overran; abort 1.0s, overran)",
            1,
        ),
    ];
    for (then, text, code) in cases {
        let mut shutdown = Some(prompt().build().unwrap());
        let handle = shutdown.as_ref().unwrap().handle();
        let _held = [handle.guard("socket").unwrap(), handle.guard("socket").unwrap(), handle.guard("job").unwrap()];
        handle.signal(Signal::Terminate);
        sleep(secs(2)).await;
        then(&mut shutdown);
        let report = handle.wait().await;
        assert_eq!(
            report.to_string(),
            format!(
                "shutdown by {text}; calls: 0 drained, 0 rejected, 3 left\
                 \n  1 of guard `job` did not end and are still held\
                 \n  2 of guard `socket` did not end and are still held"
            ),
        );
        assert_eq!((report.exit_code(), report.is_clean()), (code, false));
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_is_let_go_of_because_it_was_forced_was_cut() {
    let shutdown = prompt().build().unwrap();
    let handle = shutdown.handle();
    let (drains, cut) = (handle.guard("job").unwrap(), handle.guard("socket").unwrap());
    handle.trigger("deploy");
    sleep(secs(1)).await;
    drop(drains);
    handle.force();
    sleep(ms(100)).await;
    drop(cut);
    let report = shutdown.wait().await;
    assert_eq!((report.drained, report.left, &*report.cut), (1, 0, &[("socket", 1)][..]));
    assert_eq!(report.guards, []);
    assert!(report.to_string().ends_with("\n  1 of `socket` did not end in time and were dropped"), "{report}");
}

#[tokio::test(start_paused = true)]
async fn what_was_waited_for_past_its_own_time_but_ended_within_the_total_is_clean() {
    // The calls are through with what the phases have reserved and did not need: nothing was lost, nothing forced.
    let shutdown = prompt().phase("workers", secs(5)).build().unwrap();
    let handle = shutdown.handle();
    let guard = handle.guard("socket").unwrap();
    handle.trigger("deploy");
    sleep(secs(7)).await;
    drop(guard);
    let report = shutdown.wait().await;
    assert_took(report.elapsed, secs(7));
    assert_eq!((report.forced, report.drained, report.left), (None, 1, 0));
    assert_eq!(report.exit_code(), 0, "{report}");
}

// ---------------------------------------------------------------- hooks

#[tokio::test(start_paused = true)]
async fn hooks_run_at_the_very_end_in_their_order_each_within_its_limit() {
    let shutdown = prompt().phase("workers", secs(5)).build().unwrap();
    let handle = shutdown.handle();
    let said = Arc::new(Mutex::new(Vec::new()));
    let say = |what: &'static str| {
        let said = said.clone();
        move || said.lock().unwrap().push(what)
    };
    let ended = say("task");
    handle
        .spawn("workers", "mailer", |cx| async move {
            cx.stopping().await;
            ended();
        })
        .unwrap();
    let (first, last) = (say("first"), say("last"));
    handle.at_end("first", secs(3), async move {
        sleep(secs(2)).await;
        first();
    });
    handle.at_end("hangs", secs(4), pending());
    handle.at_end("panics", secs(1), async { panic!("no log to flush") });
    handle.at_end("last", secs(1), async move { last() });
    handle.trigger("deploy");
    let report = shutdown.wait().await;
    assert_eq!(*said.lock().unwrap(), ["task", "first", "last"]);
    let hooks = &stages(&report)[3..];
    assert_eq!(hooks, [("first", 20, false), ("hangs", 40, true), ("panics", 0, true), ("last", 0, false)]);
    assert_took(report.elapsed, secs(6));
    assert_eq!(report.exit_code(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hook_from_outside_of_any_runtime_runs_on_that_of_the_shutdown() {
    let shutdown = prompt().build().unwrap();
    let (handle, flushed) = (shutdown.handle(), Arc::new(AtomicUsize::new(0)));
    let count = flushed.clone();
    let flush = async move {
        sleep(secs(1)).await;
        count.fetch_add(1, SeqCst);
    };
    thread::spawn(move || handle.at_end("flush", secs(2), flush)).join().unwrap();
    shutdown.handle().trigger("deploy");
    let report = shutdown.wait().await;
    assert_eq!((flushed.load(SeqCst), stages(&report).last()), (1, Some(&("flush", 10, false))));
}

#[tokio::test(start_paused = true)]
async fn hooks_run_when_it_was_forced_too_and_one_that_hangs_is_dropped() {
    let shutdown = prompt().build().unwrap();
    let gone = Arc::new(());
    let kept = gone.clone();
    shutdown.handle().at_end("hangs", secs(4), async move {
        let _kept = kept;
        pending::<()>().await;
    });
    shutdown.handle().force();
    let report = shutdown.wait().await;
    assert_eq!(stages(&report), [("abort", 0, false), ("hangs", 40, true)]);
    settle().await;
    assert_eq!(Arc::strong_count(&gone), 1);
}

#[test]
fn a_hook_whose_runtime_is_gone_does_not_hold_it() {
    let (runtime, other) = (current_thread(), current_thread());
    let shutdown = runtime.block_on(async { prompt().build().unwrap() });
    other.block_on(async { shutdown.handle().at_end("flush", secs(5), async {}) });
    drop(other);
    shutdown.handle().trigger("deploy");
    let report = runtime.block_on(async { timeout(secs(30), shutdown.wait()).await.unwrap() });
    assert_eq!(report.stages.last().map(|stage| (stage.name, stage.overran)), Some(("flush", true)));
}

// ---------------------------------------------------------------- reload

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn reloads_that_come_while_nobody_looks_are_one() {
    let shutdown = prompt().build().unwrap();
    let handle = shutdown.handle();
    let (mut one, mut other) = (handle.reload(), handle.reload());
    for _ in 0..3 {
        handle.signal(Signal::Hangup);
    }
    for reloads in [&mut one, &mut other] {
        assert_ready!(task::spawn(reloads.recv()).poll());
        assert_pending!(task::spawn(reloads.recv()).poll());
    }
    let mut late = handle.reload();
    assert_pending!(task::spawn(late.recv()).poll(), "what came before it is nothing to it");
    {
        let mut waiting = task::spawn(one.recv());
        assert_pending!(waiting.poll());
        handle.signal(Signal::Hangup);
        assert!(waiting.is_woken());
        // Dropped before it is polled: the reload is still to be had.
    }
    assert_ready!(task::spawn(one.recv()).poll());
    assert_eq!(handle.state(), State::Starting);
    // It was no first signal either.
    handle.signal(Signal::Terminate);
    assert_eq!(handle.state(), State::Stopping.min(handle.state()));
    assert!(handle.state() < State::Forced);
}

#[tokio::test(start_paused = true)]
async fn a_hangup_that_nobody_listens_to_drains() {
    let shutdown = prompt().build().unwrap();
    let handle = shutdown.handle();
    drop(handle.reload());
    handle.signal(Signal::Hangup);
    let report = timeout(secs(60), shutdown.wait()).await.expect("it drains");
    assert_eq!(report.reason, Trigger::Signal(Signal::Hangup));
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_reload_while_it_drains_does_not_force() {
    let shutdown = Shutdown::builder().build().unwrap();
    let handle = shutdown.handle();
    let mut reloads = handle.reload();
    handle.signal(Signal::Terminate);
    handle.signal(Signal::Hangup);
    assert_eq!(handle.state(), State::Draining);
    reloads.recv().await;
}

#[tokio::test(start_paused = true)]
async fn reloads_wait_for_ever_once_the_shutdown_is_gone() {
    let shutdown = prompt().build().unwrap();
    let mut reloads = shutdown.handle().reload();
    shutdown.handle().trigger("deploy");
    shutdown.wait().await;
    drop(shutdown);
    settle().await;
    assert!(timeout(secs(3_600), reloads.recv()).await.is_err());
}

// ---------------------------------------------------------------- readiness

#[tokio::test(start_paused = true)]
async fn it_is_ready_from_ready_until_it_drains_while_all_conditions_are_up() {
    let shutdown = prompt().build().unwrap();
    let handle = shutdown.handle();
    let (cache, database) = (handle.condition("cache"), handle.condition("database"));
    cache.up();
    database.up();
    assert!(!handle.is_ready(), "it is still starting");
    handle.ready();
    assert!(handle.is_ready());
    cache.down();
    assert!(!handle.is_ready());
    cache.up();
    assert!(handle.is_ready());
    drop(cache);
    assert!(handle.is_ready(), "one that was up is no condition any more");
    database.down();
    drop(database);
    assert!(!handle.is_ready(), "one that was down stays so");
    drop(handle.condition("queue"));
    assert!(!handle.is_ready());
}

#[tokio::test(start_paused = true)]
async fn conditions_of_one_name_are_two() {
    let shutdown = prompt().build().unwrap();
    let handle = shutdown.handle();
    handle.ready();
    let (one, other) = (handle.condition("shard"), handle.condition("shard"));
    one.up();
    assert!(!handle.is_ready());
    other.up();
    drop(one);
    assert!(handle.is_ready());
    other.down();
    assert!(!handle.is_ready(), "dropping the one did not take the other away");
}

#[cfg(feature = "http")]
#[tokio::test(start_paused = true)]
async fn the_probe_says_why_it_is_not_ready() {
    let shutdown = Shutdown::builder().build().unwrap();
    let handle = shutdown.handle();
    let probe = handle.readiness();
    let ask = || {
        let answer = probe();
        async move {
            let response = answer.await;
            assert_eq!(response.headers()["cache-control"], "no-store");
            (response.status().as_u16(), response.into_body())
        }
    };
    let says = |status, text: &str| (status, text.to_owned());
    let (cache, database) = (handle.condition("cache"), handle.condition("database"));
    assert_eq!(ask().await, says(503, "starting"));
    handle.ready();
    assert_eq!(ask().await, says(503, "waiting for cache, database"));
    database.up();
    assert_eq!(ask().await, says(503, "waiting for cache"));
    cache.up();
    assert_eq!(ask().await, says(200, "ready"));
    let held = handle.guard("socket").unwrap();
    handle.trigger("deploy");
    assert_eq!(ask().await, says(503, "draining"));
    handle.stopping().await;
    assert_eq!(ask().await, says(503, "stopping"));
    handle.force();
    assert_eq!(ask().await, says(503, "forced"));
    drop(held);
    shutdown.wait().await;
    assert_eq!(ask().await, says(503, "done"));
}

// ---------------------------------------------------------------- bad input

fn refused(builder: buttress::ShutdownBuilder) -> String {
    builder.build().map(drop).unwrap_err().to_string()
}

#[tokio::test(start_paused = true)]
async fn bad_settings_are_refused_and_named() {
    assert_eq!(
        refused(prompt().phase("workers", secs(1)).phase("storage", secs(1)).phase("workers", secs(1))),
        "invalid configuration: shutdown.phase = \"workers\": must not have the name of another phase",
    );
    assert_eq!(
        refused(prompt().phase("", secs(1)).phase("storage", Duration::ZERO)),
        "invalid configuration: shutdown.phase = \"\": must not be empty: the report carries it; \
         shutdown.phase.storage = 0ns: must be longer than zero",
    );
    assert_eq!(
        refused(prompt().phase("workers", secs(10))),
        "invalid configuration: shutdown.phase.workers = 10s: must be shorter than the total",
    );
    assert_eq!(
        refused(prompt().lame_duck(secs(2)).phase("storage", secs(4)).phase("workers", secs(4))),
        "invalid configuration: \
         shutdown.total = 10s: must be longer than the lame-duck time and all phases together, or the calls have none",
    );
    assert_eq!(
        refused(prompt().lame_duck(secs(10))),
        "invalid configuration: shutdown.lame_duck = 10s: must be shorter than the total",
    );
    let longest = refused(prompt().lame_duck(Duration::MAX).phase("workers", Duration::MAX));
    assert!(longest.starts_with("invalid configuration: shutdown.lame_duck = "), "{longest}");
    // A total of zero is longer than nothing.
    assert!(refused(prompt().total(Duration::ZERO)).contains("shutdown.total = 0ns: must be longer than zero"));
}

#[test]
fn it_is_not_built_outside_of_a_runtime() {
    assert_eq!(
        refused(prompt()),
        "invalid configuration: shutdown.runtime = None: must be built inside of a tokio runtime, where its task runs",
    );
}

#[tokio::test(start_paused = true)]
async fn the_longest_times_do_not_overflow() {
    let shutdown = Shutdown::builder()
        .lame_duck(Duration::MAX / 4)
        .total(Duration::MAX)
        .abort_grace(Duration::MAX)
        .phase("workers", Duration::MAX / 4)
        .build()
        .unwrap();
    shutdown.handle().at_end("flush", Duration::MAX, async {});
    shutdown.handle().trigger("deploy");
    settle().await;
    advance(secs(100)).await;
    assert_eq!(shutdown.handle().state(), State::Draining);
    shutdown.handle().force();
    assert_eq!(shutdown.wait().await.forced, Some(Force::Asked));
}
