//! Background tasks: how they are stopped, how they end, and when they begin again.
#![allow(clippy::disallowed_methods)] // tokio's clock, to measure on it what a shutdown took

use std::{
    fmt,
    future::{Future, pending},
    panic::panic_any,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use buttress::{
    Backoff, Jitter, Shutdown,
    shutdown::{Force, Handle, Report, Restart, State, TaskContext, TaskOutcome, TaskReport, Trigger, Why},
};
use tokio::{
    runtime::Builder,
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use super::life::{Elsewhere, assert_took, prompt, stages};
use crate::support::{ms, secs, settle};

/// What happened, and after how many tenths of a second.
#[derive(Clone)]
struct Log {
    began: Instant,
    lines: Arc<Mutex<Vec<(String, u128)>>>,
}

impl Log {
    fn new() -> Self {
        Self { began: Instant::now(), lines: Arc::default() }
    }

    fn say(&self, what: impl Into<String>) {
        self.lines.lock().unwrap().push((what.into(), self.began.elapsed().as_millis() / 100));
    }

    #[track_caller]
    fn assert(&self, expected: &[(&str, u128)]) {
        let lines = self.lines.lock().unwrap().clone();
        let lines: Vec<_> = lines.iter().map(|(what, when)| (what.as_str(), *when)).collect();
        assert_eq!(lines, expected);
    }
}

/// Says when it is dropped.
struct Dropped(Log, &'static str);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.say(self.1);
    }
}

/// Two phases: the storage, and the workers that need it, which therefore stop first.
fn two_phases() -> Shutdown {
    prompt().phase("storage", secs(3)).phase("workers", secs(4)).build().unwrap()
}

fn outcomes(report: &Report) -> Vec<(&str, &TaskOutcome)> {
    report.tasks.iter().map(|task| (&*task.name, &task.outcome)).collect()
}

fn of<'a>(report: &'a Report, name: &str) -> &'a TaskReport {
    report.tasks.iter().find(|task| task.name == name).unwrap()
}

fn panicked(message: &str) -> TaskOutcome {
    TaskOutcome::Panicked(message.to_owned())
}

// ---------------------------------------------------------------- phases

// SHUTDOWN: 26
#[tokio::test(start_paused = true)]
async fn phases_stop_in_the_reverse_order_each_after_the_other() {
    let shutdown =
        prompt().phase("storage", secs(2)).phase("workers", secs(2)).phase("intake", secs(2)).build().unwrap();
    let handle = shutdown.handle();
    let log = Log::new();
    for (phase, needs) in [("storage", 3), ("workers", 15), ("intake", 10)] {
        let log = log.clone();
        let task = move |cx: TaskContext| async move {
            cx.draining().await;
            log.say(format!("{phase} drains"));
            cx.stopping().await;
            log.say(format!("{phase} stops"));
            sleep(ms(100 * needs)).await;
            log.say(format!("{phase} ends"));
        };
        handle.spawn(phase, phase, task).unwrap();
    }
    settle().await;
    let guard = handle.guard("call").unwrap();
    handle.trigger("deploy");
    sleep(secs(1)).await;
    log.assert(&[("storage drains", 0), ("workers drains", 0), ("intake drains", 0)]);
    drop(guard);
    let report = shutdown.wait().await;
    log.assert(&[
        ("storage drains", 0),
        ("workers drains", 0),
        ("intake drains", 0),
        ("intake stops", 10),
        ("intake ends", 20),
        ("workers stops", 20),
        ("workers ends", 35),
        ("storage stops", 35),
        ("storage ends", 38),
    ]);
    let expected = [
        ("lame duck", 0, false),
        ("calls", 10, false),
        ("intake", 10, false),
        ("workers", 15, false),
        ("storage", 3, false),
    ];
    assert_eq!(stages(&report), expected);
    assert_eq!(report.exit_code(), 0, "{report}");
}

// SHUTDOWN: 26
#[tokio::test(start_paused = true)]
async fn a_slow_first_phase_cannot_eat_the_reserve_of_the_second() {
    let shutdown = two_phases();
    let handle = shutdown.handle();
    handle.spawn("workers", "hung", |_| pending::<()>()).unwrap();
    let storage = |cx: TaskContext| async move {
        cx.stopping().await;
        sleep(ms(2_900)).await;
    };
    handle.spawn("storage", "flush", storage).unwrap();
    // The calls take all that is theirs, too.
    let _held = handle.guard("call").unwrap();
    handle.trigger("deploy");
    let report = shutdown.wait().await;
    assert_eq!(outcomes(&report), [("flush", &TaskOutcome::Ok), ("hung", &TaskOutcome::Aborted)]);
    assert_eq!(stages(&report)[2..4], [("workers", 40, true), ("storage", 29, false)]);
    assert_eq!(report.forced, Some(Force::Deadline), "for the call");
    assert_took(report.elapsed, secs(11));
}

// SHUTDOWN: 26
#[tokio::test(start_paused = true)]
async fn slow_calls_get_what_the_phases_leave() {
    let shutdown = two_phases();
    let handle = shutdown.handle();
    handle.spawn("workers", "quick", |cx| async move { cx.stopping().await }).unwrap();
    let guard = handle.guard("call").unwrap();
    handle.trigger("deploy");
    sleep(ms(9_900)).await;
    assert_eq!(handle.state(), State::Stopping);
    drop(guard);
    let report = shutdown.wait().await;
    assert_eq!((report.forced, report.drained, report.left), (None, 1, 0));
    assert_took(report.elapsed, ms(9_900));
}

// SHUTDOWN: 20
#[tokio::test(start_paused = true)]
async fn a_task_that_hangs_is_aborted_and_named_when_its_phase_is_over_its_limit() {
    let shutdown = two_phases();
    let handle = shutdown.handle();
    let log = Log::new();
    let held = Dropped(log.clone(), "hung is gone");
    let hung = |_| async move {
        let _held = held;
        pending::<()>().await;
    };
    handle.spawn("workers", "hung", hung).unwrap();
    let told = log.clone();
    let storage = |cx: TaskContext| async move {
        cx.stopping().await;
        told.say("storage stops");
    };
    handle.spawn("storage", "flush", storage).unwrap();
    settle().await;
    handle.trigger("deploy");
    let report = shutdown.wait().await;
    log.assert(&[("hung is gone", 40), ("storage stops", 40)]);
    assert_took(report.elapsed, secs(4));
    assert_eq!(report.forced, None, "a phase that is over its limit is not the end of the total");
    assert_eq!(report.exit_code(), 1);
    assert_eq!(
        report.to_string(),
        "shutdown by deploy: not clean, in 4.0s (workers 4.0s, overran); calls: 0 drained, 0 rejected\
         \n  task `hung` of phase `workers` did not stop in time and was aborted",
    );
}

#[tokio::test(start_paused = true)]
async fn aborting_one_phase_leaves_the_tasks_of_the_others_alone() {
    let shutdown = two_phases();
    let handle = shutdown.handle();
    for name in ["one", "two"] {
        handle.spawn("workers", name, |_| pending::<()>()).unwrap();
    }
    handle
        .spawn("storage", "flush", |cx| async move {
            cx.stopping().await;
            sleep(secs(1)).await;
        })
        .unwrap();
    handle.trigger("deploy");
    let report = shutdown.wait().await;
    let expected = [("flush", &TaskOutcome::Ok), ("one", &TaskOutcome::Aborted), ("two", &TaskOutcome::Aborted)];
    assert_eq!(outcomes(&report), expected);
}

/// A task that never yields, on a thread of its own, until what is returned is dropped.
fn unabortable(handle: &Handle, elsewhere: &Elsewhere, phase: &str) -> mpsc::Sender<()> {
    let (release, released) = mpsc::channel::<()>();
    let (busy, is_busy) = mpsc::channel();
    let _there = elsewhere.runtime.enter();
    let task = |_| async move {
        busy.send(()).unwrap();
        let _ = released.recv();
    };
    handle.spawn(phase, "busy", task).unwrap();
    is_busy.recv().unwrap();
    release
}

// SHUTDOWN: 21
#[tokio::test(start_paused = true)]
async fn a_task_that_never_yields_is_waited_for_a_little_and_named() {
    let elsewhere = Elsewhere::new();
    let shutdown = two_phases();
    let handle = shutdown.handle();
    let release = unabortable(&handle, &elsewhere, "workers");
    let log = Log::new();
    let told = log.clone();
    handle
        .spawn("storage", "flush", |cx| async move {
            cx.stopping().await;
            told.say("storage stops");
        })
        .unwrap();
    handle.trigger("deploy");
    let report = shutdown.wait().await;
    log.assert(&[("storage stops", 50)]);
    assert_eq!(of(&report, "busy").outcome, TaskOutcome::Unabortable);
    assert_eq!(
        of(&report, "busy").to_string(),
        "task `busy` of phase `workers` did not stop in time, and not when aborted either",
    );
    assert_eq!(stages(&report)[2..], [("workers", 40, true), ("storage", 0, false), ("abort", 10, true)]);
    assert_took(report.elapsed, secs(6));
    drop(release);
}

// A second signal must not wait for the grace of a phase that is over its limit.
#[tokio::test(start_paused = true)]
async fn force_does_not_wait_for_what_cannot_be_aborted() {
    let elsewhere = Elsewhere::new();
    let shutdown = prompt().phase("storage", secs(3)).phase("workers", secs(2)).abort_grace(secs(2)).build().unwrap();
    let handle = shutdown.handle();
    let release = unabortable(&handle, &elsewhere, "workers");
    let log = Log::new();
    let held = Dropped(log.clone(), "storage is gone");
    let storage = |_| async move {
        let _held = held;
        pending::<()>().await;
    };
    handle.spawn("storage", "hung", storage).unwrap();
    settle().await;
    handle.trigger("deploy");
    sleep(ms(2_500)).await;
    assert!(handle.force());
    settle().await;
    log.assert(&[("storage is gone", 25)]);
    let report = shutdown.wait().await;
    assert_took(report.elapsed, ms(4_500));
    drop(release);
}

#[tokio::test(start_paused = true)]
async fn a_task_is_told_to_drain_then_to_stop_then_that_it_is_forced() {
    let shutdown = Shutdown::builder().phase("workers", secs(5)).build().unwrap();
    let handle = shutdown.handle();
    let log = Log::new();
    let told = log.clone();
    let task = |cx: TaskContext| async move {
        assert_eq!((cx.restarts(), cx.handle().state()), (0, State::Running));
        // The task itself is aborted before it can tell that it is forced; what it has spawned hears of it.
        let (forced, later) = (cx.forced(), told.clone());
        tokio::spawn(async move {
            forced.await;
            later.say("forced");
        });
        cx.draining().await;
        told.say("draining");
        cx.stopping().await;
        told.say("stopping");
        pending::<()>().await;
    };
    handle.ready();
    handle.spawn("workers", "mailer", task).unwrap();
    let _call = handle.guard("call").unwrap();
    settle().await;
    handle.trigger("deploy");
    sleep(secs(22)).await;
    log.assert(&[("draining", 0), ("stopping", 200)]);
    handle.force();
    shutdown.wait().await;
    log.assert(&[("draining", 0), ("stopping", 200), ("forced", 220)]);
}

#[tokio::test(start_paused = true)]
async fn force_tells_a_task_everything_at_once() {
    let shutdown = two_phases();
    let log = Log::new();
    let told = log.clone();
    let task = |cx: TaskContext| async move {
        cx.stopping().await;
        told.say("stopping");
        cx.forced().await;
        told.say("forced");
    };
    shutdown.handle().spawn("storage", "flush", task).unwrap();
    settle().await;
    shutdown.handle().force();
    let report = shutdown.wait().await;
    assert_eq!(of(&report, "flush").phase, "storage");
    assert!(log.lines.lock().unwrap().iter().all(|(_, when)| *when == 0));
}

// ---------------------------------------------------------------- ends and panics

/// Panics when it is dropped.
struct Grenade(&'static str);

impl Drop for Grenade {
    fn drop(&mut self) {
        if !thread::panicking() {
            panic!("{} fell", self.0);
        }
    }
}

/// Panics when it is shown.
struct Unspeakable;

impl fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("unspeakable")
    }
}

/// Panics, as far as types go perhaps.
fn give_up(payload: impl std::any::Any + Send) {
    panic_any(payload);
}

type Spawn = fn(&Handle, Restart);

/// Every way in which a task can panic, with its message.
const PANICS: [(Spawn, &str); 7] = [
    (
        |handle, restart| {
            let factory = |_| {
                give_up("no factory");
                pending::<()>()
            };
            handle.task("workers", "it").optional().supervise(restart, factory).unwrap();
        },
        "no factory",
    ),
    (
        |handle, restart| {
            let task = |_| async { give_up(format!("no {}", "queue")) };
            handle.task("workers", "it").optional().supervise(restart, task).unwrap();
        },
        "no queue",
    ),
    (
        |handle, restart| {
            let task = |_| async {
                settle().await;
                give_up(7_u32);
            };
            handle.task("workers", "it").optional().supervise(restart, task).unwrap();
        },
        "with no message",
    ),
    (
        |handle, restart| {
            let task = |_| async {
                settle().await;
                give_up("said with a str");
            };
            handle.task("workers", "it").optional().supervise(restart, task).unwrap();
        },
        "said with a str",
    ),
    (
        |handle, restart| {
            // What an async block captures is dropped with its future, after it has returned.
            struct Returns(#[expect(dead_code)] Grenade);
            impl Future for Returns {
                type Output = ();
                fn poll(
                    self: std::pin::Pin<&mut Self>,
                    _: &mut std::task::Context<'_>,
                ) -> std::task::Poll<Self::Output> {
                    std::task::Poll::Ready(())
                }
            }
            handle.task("workers", "it").optional().supervise(restart, |_| Returns(Grenade("late"))).unwrap();
        },
        "late fell",
    ),
    (
        |handle, restart| {
            let task = |_| async { Err::<(), _>(Unspeakable) };
            handle.task("workers", "it").optional().supervise(restart, task).unwrap();
        },
        "unspeakable",
    ),
    (
        |handle, restart| {
            let task = |_| async {
                // Dropping the output is the user's code too.
                Ok::<_, Unspeakable>(Grenade("output"))
            };
            handle.task("workers", "it").optional().supervise(restart, task).unwrap();
        },
        "output fell",
    ),
];

// SHUTDOWN: 23
#[tokio::test(start_paused = true)]
async fn a_panic_in_the_factory_the_polls_or_the_drop_is_restarted_and_its_message_kept() {
    for (spawn, message) in PANICS {
        let shutdown = two_phases();
        let handle = shutdown.handle();
        handle.ready();
        let restart = Restart::on_failure(Backoff::constant(ms(10)).jitter(Jitter::None)).max(2, secs(60));
        spawn(&handle, restart);
        sleep(secs(1)).await;
        assert_eq!(handle.state(), State::Running, "it is optional");
        handle.trigger("deploy");
        let report = shutdown.wait().await;
        let task = of(&report, "it");
        assert_eq!((&task.outcome, task.restarts, task.early), (&panicked(message), 2, true));
        assert_eq!(task.to_string(), format!("task `it` of phase `workers` panicked: {message}, after 2 restarts"));
        assert_eq!(report.exit_code(), 0, "what is not critical may fail while it runs");
    }
}

// SHUTDOWN: 23
#[tokio::test(start_paused = true)]
async fn a_panic_when_an_aborted_task_is_dropped_is_kept_and_harms_nobody() {
    for forced in [false, true] {
        let shutdown = two_phases();
        let handle = shutdown.handle();
        for name in ["one", "two"] {
            let task = move |_| async move {
                let _grenade = Grenade(name);
                pending::<()>().await;
            };
            handle.spawn("workers", name, task).unwrap();
        }
        handle.spawn("storage", "flush", |cx| async move { cx.stopping().await }).unwrap();
        settle().await;
        handle.trigger("deploy");
        if forced {
            handle.force();
        }
        let report = shutdown.wait().await;
        assert_eq!(of(&report, "one").outcome, panicked("one fell"));
        assert_eq!(of(&report, "two").outcome, panicked("two fell"));
        assert_eq!(report.exit_code(), 1);
    }
}

// SHUTDOWN: 23
#[tokio::test(start_paused = true)]
async fn a_panic_when_what_makes_a_task_is_dropped_is_kept_though_the_task_ended_well() {
    let shutdown = two_phases();
    let grenade = Grenade("factory");
    let task = move |cx: TaskContext| {
        let _ = &grenade;
        async move { cx.stopping().await }
    };
    let restart = Restart::on_failure(Backoff::constant(ms(10)));
    shutdown.handle().supervise("workers", "poller", restart, task).unwrap();
    settle().await;
    shutdown.handle().trigger("deploy");
    let report = shutdown.wait().await;
    assert_eq!((&of(&report, "poller").outcome, report.exit_code()), (&panicked("factory fell"), 1));
}

// SHUTDOWN: 23
#[tokio::test(start_paused = true)]
async fn the_end_of_a_critical_task_drains_however_it_ends() {
    type End = fn() -> Result<(), &'static str>;
    let cases: [(End, TaskOutcome, i32); 3] = [
        (|| Ok(()), TaskOutcome::Ok, 0),
        (|| Err("no such queue"), TaskOutcome::Err("no such queue".to_owned()), 1),
        (|| panic!("boom"), panicked("boom"), 1),
    ];
    for (end, outcome, code) in cases {
        let shutdown = two_phases();
        let handle = shutdown.handle();
        handle.ready();
        let task = move |_| async move {
            sleep(secs(1)).await;
            end()
        };
        handle.spawn("workers", "mailer", task).unwrap();
        handle.draining().await;
        let report = shutdown.wait().await;
        assert_eq!(report.reason, Trigger::Task { phase: "workers", name: "mailer".into() });
        assert_eq!(report.reason.to_string(), "the end of critical task `mailer` of phase `workers`");
        let task = of(&report, "mailer");
        assert_eq!((&task.outcome, task.critical, task.early), (&outcome, true, true));
        assert_eq!(report.exit_code(), code);
    }
}

// SHUTDOWN: 23
#[tokio::test(start_paused = true)]
async fn the_end_of_an_optional_task_drains_nothing() {
    let shutdown = two_phases();
    let handle = shutdown.handle();
    handle.ready();
    handle.task("workers", "ends").optional().spawn(|_| async {}).unwrap();
    handle.task("workers", "fails").optional().spawn(|_| async { Err::<(), _>("cold") }).unwrap();
    handle.task("workers", "panics").optional().spawn(|_| async { give_up("hot") }).unwrap();
    sleep(secs(1)).await;
    assert_eq!(handle.state(), State::Running);
    handle.trigger("deploy");
    let report = shutdown.wait().await;
    let expected =
        [("ends", &TaskOutcome::Ok), ("fails", &TaskOutcome::Err("cold".to_owned())), ("panics", &panicked("hot"))];
    assert_eq!(outcomes(&report), expected);
    assert_eq!(report.exit_code(), 0);
    assert!(!report.to_string().contains('\n'), "{report}");
}

#[tokio::test(start_paused = true)]
async fn what_is_optional_must_stop_in_time_all_the_same() {
    let shutdown = two_phases();
    let handle = shutdown.handle();
    handle.task("workers", "hung").optional().spawn(|_| pending::<()>()).unwrap();
    handle
        .task("workers", "fails")
        .optional()
        .spawn(|cx| async move {
            cx.stopping().await;
            Err::<(), _>("no goodbye")
        })
        .unwrap();
    handle.trigger("deploy");
    let report = shutdown.wait().await;
    assert!(of(&report, "hung").is_failure() && of(&report, "fails").is_failure());
    assert!(!of(&report, "fails").early);
    assert_eq!(report.exit_code(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_aborted_before_it_was_polled_is_aborted() {
    let shutdown = two_phases();
    let handle = shutdown.handle();
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    handle
        .spawn("workers", "mailer", move |_| {
            count.fetch_add(1, SeqCst);
            pending::<()>()
        })
        .unwrap();
    handle.force();
    let report = shutdown.wait().await;
    assert_eq!(of(&report, "mailer").outcome, TaskOutcome::Aborted);
    assert!(made.load(SeqCst) <= 1);
}

#[tokio::test(start_paused = true)]
async fn a_task_on_a_runtime_that_goes_away_is_an_end_that_counts() {
    let elsewhere = Elsewhere::new();
    let shutdown = two_phases();
    let handle = shutdown.handle();
    {
        let _there = elsewhere.runtime.enter();
        handle.spawn("workers", "mailer", |_| pending::<()>()).unwrap();
    }
    drop(elsewhere);
    // Real time passes there; here only once nothing else is to be done.
    let report = shutdown.wait().await;
    assert_eq!(report.reason, Trigger::Task { phase: "workers", name: "mailer".into() });
    assert_eq!(of(&report, "mailer").outcome, TaskOutcome::Aborted);
}

// Else the report is there while what the task has held is not gone yet: a lock, a file, a socket.
#[tokio::test(start_paused = true)]
async fn what_a_task_has_captured_is_dropped_before_its_end_is_told() {
    struct Tells(Handle, Arc<Mutex<Vec<State>>>);
    impl Drop for Tells {
        fn drop(&mut self) {
            self.1.lock().unwrap().push(self.0.state());
        }
    }
    for (supervised, polled) in [(false, false), (false, true), (true, false), (true, true)] {
        let shutdown = two_phases();
        let handle = shutdown.handle();
        handle.ready();
        let told = Arc::default();
        let tells = Tells(handle.clone(), Arc::clone(&told));
        let other = thread::spawn(|| Builder::new_current_thread().build().unwrap()).join().unwrap();
        {
            let _there = other.enter();
            let restart = Restart::always(Backoff::constant(secs(1)));
            if supervised {
                let task = move |_| {
                    let _ = &tells;
                    pending::<()>()
                };
                handle.supervise("workers", "poller", restart, task).unwrap();
            } else {
                let task = move |_| async move {
                    let _tells = tells;
                    pending::<()>().await;
                };
                handle.spawn("workers", "poller", task).unwrap();
            }
        }
        thread::scope(|scope| {
            scope.spawn(move || {
                if polled {
                    other.block_on(settle());
                }
                // It is aborted with its runtime: a critical task that ends, and so the drain begins.
                drop(other);
            });
        });
        assert!(handle.is_draining());
        assert_eq!(*told.lock().unwrap(), [State::Running], "supervised: {supervised}, polled: {polled}");
    }
}

// ---------------------------------------------------------------- restarts

/// A supervised, optional task that fails at once each time, and says when.
fn failing(handle: &Handle, log: &Log, restart: Restart) {
    let log = log.clone();
    let task = move |cx: TaskContext| {
        log.say(format!("start {}", cx.restarts()));
        async { Err::<(), _>("no luck") }
    };
    handle.task("workers", "poller").optional().supervise(restart, task).unwrap();
}

// SHUTDOWN: 24
#[tokio::test(start_paused = true)]
async fn the_backoff_of_restarts_grows_up_to_its_cap() {
    let shutdown = two_phases();
    let log = Log::new();
    let backoff = Backoff::exponential(secs(1)).max_delay(secs(5)).jitter(Jitter::None);
    failing(&shutdown.handle(), &log, Restart::on_failure(backoff).max(6, secs(3_600)));
    sleep(secs(1_000)).await;
    let starts =
        [("start 0", 0), ("start 1", 10), ("start 2", 30), ("start 3", 70), ("start 4", 120), ("start 5", 170)];
    log.assert(&[&starts[..], &[("start 6", 220)]].concat());
    shutdown.handle().trigger("deploy");
    assert_eq!(of(&shutdown.wait().await, "poller").restarts, 6);
}

// SHUTDOWN: 24
#[tokio::test(start_paused = true)]
async fn the_backoff_of_restarts_is_left_to_chance_within_its_range() {
    for (jitter, least) in [(Jitter::Full, 0), (Jitter::Equal, 500)] {
        let shutdown = two_phases();
        let starts = Arc::new(Mutex::new(Vec::new()));
        let kept = starts.clone();
        let restart = Restart::on_failure(Backoff::constant(secs(1)).jitter(jitter)).max(200, secs(3_600));
        let task = move |_| {
            kept.lock().unwrap().push(Instant::now());
            async { Err::<(), _>("no luck") }
        };
        shutdown.handle().task("workers", "poller").optional().supervise(restart, task).unwrap();
        sleep(secs(1_000)).await;
        let starts = starts.lock().unwrap();
        let waits: Vec<_> = starts.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
        assert_eq!(waits.len(), 200);
        assert!(waits.iter().all(|wait| (least..=1_002).contains(wait)), "{waits:?}");
        // That all of 200 lie in one half has a probability of 2^-199.
        let middle = (least + 1_000) / 2;
        assert!(waits.iter().any(|wait| *wait < middle) && waits.iter().any(|wait| *wait > middle), "{waits:?}");
    }
}

// SHUTDOWN: 24
#[tokio::test(start_paused = true)]
async fn what_restarts_too_often_has_ended_for_good() {
    for critical in [false, true] {
        let shutdown = two_phases();
        let handle = shutdown.handle();
        handle.ready();
        let starts = Arc::new(AtomicUsize::new(0));
        let count = starts.clone();
        let task = move |_| {
            count.fetch_add(1, SeqCst);
            async { Err::<(), _>("no luck") }
        };
        let restart = Restart::on_failure(Backoff::constant(secs(1)).jitter(Jitter::None)).max(3, secs(60));
        let spec = handle.task("workers", "poller");
        let spec = if critical { spec } else { spec.optional() };
        spec.supervise(restart, task).unwrap();
        sleep(secs(50)).await;
        assert_eq!(starts.load(SeqCst), 4);
        assert_eq!(handle.is_draining(), critical);
        handle.trigger("deploy");
        let report = shutdown.wait().await;
        assert_eq!(
            of(&report, "poller").to_string(),
            "task `poller` of phase `workers` failed: no luck, after 3 restarts"
        );
        assert_eq!(report.exit_code(), i32::from(critical));
        if critical {
            assert_eq!(report.reason, Trigger::Task { phase: "workers", name: "poller".into() });
            assert_took(report.elapsed, Duration::ZERO);
        }
    }
}

// SHUTDOWN: 24
#[tokio::test(start_paused = true)]
async fn a_task_that_ran_well_for_the_span_begins_its_restarts_anew() {
    let shutdown = two_phases();
    let log = Log::new();
    let told = log.clone();
    let task = move |cx: TaskContext| {
        let told = told.clone();
        async move {
            told.say(format!("start {}", cx.restarts()));
            // It runs well for a minute after its second restart.
            if cx.restarts() == 2 {
                sleep(secs(60)).await;
            }
            Err::<(), _>("no luck")
        }
    };
    let backoff = Backoff::exponential(secs(1)).jitter(Jitter::None);
    let restart = Restart::on_failure(backoff).max(2, secs(60));
    shutdown.handle().task("workers", "poller").optional().supervise(restart, task).unwrap();
    sleep(secs(600)).await;
    let expected = [("start 0", 0), ("start 1", 10), ("start 2", 30), ("start 3", 640), ("start 4", 660)];
    log.assert(&expected);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_failed_once_and_then_stopped_as_told_says_so() {
    let shutdown = two_phases();
    let task = |cx: TaskContext| async move {
        if cx.restarts() == 0 {
            return Err("no luck");
        }
        cx.stopping().await;
        Ok(())
    };
    let restart = Restart::on_failure(Backoff::constant(ms(10)).jitter(Jitter::None));
    shutdown.handle().supervise("workers", "poller", restart, task).unwrap();
    sleep(secs(1)).await;
    shutdown.handle().trigger("deploy");
    let report = shutdown.wait().await;
    assert_eq!(of(&report, "poller").to_string(), "task `poller` of phase `workers` ended, after 1 restart");
    assert_eq!(report.exit_code(), 0, "{report}");
}

#[tokio::test(start_paused = true)]
async fn only_always_restarts_what_has_ended_well() {
    let shutdown = two_phases();
    let handle = shutdown.handle();
    let starts = Arc::new(AtomicUsize::new(0));
    let count = |starts: &Arc<AtomicUsize>, by| {
        let starts = starts.clone();
        move |_| {
            starts.fetch_add(by, SeqCst);
            async {}
        }
    };
    let backoff = Backoff::constant(ms(10)).jitter(Jitter::None);
    let (on_failure, always) = (Restart::on_failure(backoff), Restart::always(backoff).max(7, secs(60)));
    handle.task("workers", "once").optional().supervise(on_failure, count(&starts, 100)).unwrap();
    handle.task("workers", "always").optional().supervise(always, count(&starts, 1)).unwrap();
    sleep(secs(5)).await;
    assert_eq!(starts.load(SeqCst), 108);
}

// SHUTDOWN: 25
#[tokio::test(start_paused = true)]
async fn a_failure_while_it_drains_is_not_restarted() {
    let shutdown = Shutdown::builder().phase("workers", secs(5)).build().unwrap();
    let handle = shutdown.handle();
    let starts = Arc::new(AtomicUsize::new(0));
    let count = starts.clone();
    let task = move |cx: TaskContext| {
        count.fetch_add(1, SeqCst);
        async move {
            cx.draining().await;
            sleep(ms(100)).await;
            Err::<(), _>("broker gone")
        }
    };
    let restart = Restart::always(Backoff::constant(ms(1)).jitter(Jitter::None));
    handle.supervise("workers", "poller", restart, task).unwrap();
    settle().await;
    handle.trigger("deploy");
    let report = shutdown.wait().await;
    assert_eq!(starts.load(SeqCst), 1);
    let task = of(&report, "poller");
    assert_eq!((&task.outcome, task.restarts, task.early), (&TaskOutcome::Err("broker gone".to_owned()), 0, false));
    assert_eq!(report.exit_code(), 1, "it failed while that mattered");
}

// SHUTDOWN: 25
#[tokio::test(start_paused = true)]
async fn a_restart_backoff_ends_at_once_when_it_drains() {
    let shutdown = Shutdown::builder().phase("workers", secs(5)).build().unwrap();
    let handle = shutdown.handle();
    let starts = Arc::new(AtomicUsize::new(0));
    let count = starts.clone();
    let task = move |_| {
        count.fetch_add(1, SeqCst);
        async { Err::<(), _>("no luck") }
    };
    let restart = Restart::on_failure(Backoff::constant(secs(3_600)).max_delay(secs(3_600)).jitter(Jitter::None));
    handle.task("workers", "poller").optional().supervise(restart, task).unwrap();
    sleep(secs(10)).await;
    handle.trigger("deploy");
    let report = shutdown.wait().await;
    assert_eq!(starts.load(SeqCst), 1);
    assert_took(report.elapsed, secs(5));
    assert_eq!(stages(&report)[2], ("workers", 0, false));
    let task = of(&report, "poller");
    assert_eq!((&task.outcome, task.restarts), (&TaskOutcome::Err("no luck".to_owned()), 0));
    // It is not critical, and it failed while the process ran.
    assert_eq!(report.exit_code(), 0, "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_task_in_a_restart_backoff_is_gone_at_once_when_it_is_forced() {
    let shutdown = two_phases();
    let log = Log::new();
    let backoff = Backoff::constant(secs(3_600)).max_delay(secs(3_600)).jitter(Jitter::None);
    failing(&shutdown.handle(), &log, Restart::on_failure(backoff));
    settle().await;
    shutdown.handle().force();
    let report = shutdown.wait().await;
    assert_took(report.elapsed, Duration::ZERO);
    assert_eq!(stages(&report), [("abort", 0, false)]);
    log.assert(&[("start 0", 0)]);
}

// ---------------------------------------------------------------- too late

// SHUTDOWN: 27
#[tokio::test(start_paused = true)]
async fn a_phase_takes_tasks_until_it_is_told_to_stop() {
    let shutdown = two_phases();
    let handle = shutdown.handle();
    let quick = |cx: TaskContext| async move { cx.stopping().await };
    let slow = |cx: TaskContext| async move {
        cx.stopping().await;
        sleep(secs(2)).await;
    };
    handle.spawn("workers", "slow", slow).unwrap();
    let held = handle.guard("call").unwrap();
    handle.trigger("deploy");
    settle().await;
    assert_eq!(handle.state(), State::Stopping);
    assert!(handle.guard("late").is_err(), "no call is admitted any more");
    handle.spawn("workers", "for a call", quick).expect("calls may need tasks for as long as they last");
    drop(held);
    settle().await;
    let refused = handle.spawn("workers", "late", quick).unwrap_err();
    assert_eq!((refused.task(), refused.why()), ("late", &Why::Closed));
    assert_eq!(refused.to_string(), "task `late` was not spawned: its phase was told to stop already");
    handle.spawn("storage", "of a worker", quick).expect("the storage is not stopped yet");
    let report = shutdown.wait().await;
    assert!(handle.spawn("storage", "late", quick).is_err());
    assert!(handle.task("storage", "late").supervise(Restart::always(Backoff::constant(ms(1))), quick).is_err());
    let expected = [("of a worker", &TaskOutcome::Ok), ("slow", &TaskOutcome::Ok), ("for a call", &TaskOutcome::Ok)];
    assert_eq!(outcomes(&report), expected);
}

// SHUTDOWN: 27
#[test]
fn a_task_that_is_spawned_against_the_close_is_awaited_or_refused() {
    let runtime = Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let mut both = (0, 0);
    for round in 0..300 {
        let shutdown = runtime.block_on(async { prompt().phase("workers", secs(5)).build().unwrap() });
        let running = Arc::new(AtomicUsize::new(0));
        let (start, spawned) = (Barrier::new(4), AtomicUsize::new(0));
        let refused = AtomicUsize::new(0);
        thread::scope(|scope| {
            for thread in 0..3 {
                let (handle, running) = (shutdown.handle(), running.clone());
                let (runtime, start, spawned, refused) = (&runtime, &start, &spawned, &refused);
                scope.spawn(move || {
                    let _here = runtime.enter();
                    start.wait();
                    for n in 0..100 {
                        let running = running.clone();
                        let task = move |_| async move {
                            running.fetch_add(1, SeqCst);
                            tokio::task::yield_now().await;
                            running.fetch_sub(1, SeqCst);
                        };
                        match handle.task("workers", format!("{thread}-{n}")).optional().spawn(task) {
                            Ok(()) => spawned.fetch_add(1, SeqCst),
                            Err(error) => {
                                assert_eq!(error.why(), &Why::Closed);
                                refused.fetch_add(1, SeqCst)
                            }
                        };
                    }
                });
            }
            start.wait();
            if round % 3 == 0 {
                thread::yield_now();
            }
            shutdown.handle().trigger("deploy");
        });
        let report = runtime.block_on(async { timeout(secs(30), shutdown.wait()).await.unwrap() });
        assert_eq!(running.load(SeqCst), 0);
        let (spawned, refused) = (spawned.into_inner(), refused.into_inner());
        assert_eq!(report.tasks.len(), spawned, "all that were spawned, and no other");
        assert!(report.tasks.iter().all(|task| task.outcome.is_ok()), "{report}");
        assert_eq!(spawned + refused, 300);
        both = (both.0 + spawned, both.1 + refused);
    }
    assert!(both.0 > 0 && both.1 > 0, "it was no race: {both:?}");
}

// SHUTDOWN: 27
#[test]
fn a_task_that_is_spawned_against_force_is_aborted_or_refused() {
    let runtime = Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    for _ in 0..300 {
        let shutdown = runtime.block_on(async { prompt().phase("workers", secs(5)).build().unwrap() });
        let alive = Arc::new(());
        let start = Barrier::new(3);
        thread::scope(|scope| {
            for _ in 0..2 {
                let (handle, alive, runtime, start) = (shutdown.handle(), alive.clone(), &runtime, &start);
                scope.spawn(move || {
                    let _here = runtime.enter();
                    start.wait();
                    for _ in 0..50 {
                        let alive = alive.clone();
                        let task = move |_| async move {
                            let _alive = alive;
                            pending::<()>().await;
                        };
                        if handle.spawn("workers", "hung", task).is_err() {
                            break;
                        }
                    }
                });
            }
            start.wait();
            shutdown.handle().force();
        });
        let report = runtime.block_on(async { timeout(secs(30), shutdown.wait()).await.unwrap() });
        assert!(report.tasks.iter().all(|task| task.outcome == TaskOutcome::Aborted), "{report}");
        assert_eq!(Arc::strong_count(&alive), 1, "{report}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_ended_long_ago_is_forgotten() {
    let shutdown = two_phases();
    let handle = shutdown.handle();
    let kept = Arc::new(Notify::new());
    for n in 0..5 {
        let kept = kept.clone();
        let task = move |_| async move { kept.notified().await };
        handle.task("workers", format!("kept {n}")).optional().spawn(task).unwrap();
    }
    for n in 0..2_500 {
        handle.task("workers", format!("short {n}")).optional().spawn(|_| async {}).unwrap();
        if n % 100 == 0 {
            settle().await;
        }
    }
    settle().await;
    handle.trigger("deploy");
    kept.notify_waiters();
    let report = shutdown.wait().await;
    assert_eq!((report.tasks.len(), report.forgotten), (1_005, 1_500));
    assert_eq!(report.tasks[0].name, "kept 0", "what runs is never forgotten");
    assert_eq!(report.tasks[5].name, "short 1500", "the oldest go first");
    assert_eq!(report.tasks[1_004].name, "short 2499");
    assert_eq!(report.exit_code(), 0);
}

// ---------------------------------------------------------------- bad input

#[tokio::test(start_paused = true)]
async fn a_task_of_no_phase_is_refused_and_the_phases_are_named() {
    let shutdown = two_phases();
    let refused = shutdown.handle().spawn("worker", "mailer", |_| async {}).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "task `mailer` was not spawned: there is no phase `worker`, only `storage`, `workers`",
    );
    let none = prompt().build().unwrap();
    let refused = none.handle().spawn("worker", "mailer", |_| async {}).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "task `mailer` was not spawned: there is no phase `worker`, and no other: see `ShutdownBuilder::phase`",
    );
    assert!(!shutdown.handle().is_draining());
}

#[test]
fn a_task_outside_of_a_runtime_is_refused() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let shutdown = runtime.block_on(async { two_phases() });
    let refused = shutdown.handle().spawn("workers", "mailer", |_| async {}).unwrap_err();
    assert_eq!(refused.why(), &Why::NoRuntime);
    assert_eq!(refused.to_string(), "task `mailer` was not spawned: there is no tokio runtime here");
    // It has left nothing behind.
    shutdown.handle().trigger("deploy");
    let report = runtime.block_on(shutdown.wait());
    assert_eq!((report.tasks.len(), report.exit_code()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn restarts_out_of_their_range_are_refused() {
    let shutdown = two_phases();
    let refused = |restart| {
        let task = |_| async { Err::<(), _>("never") };
        shutdown.handle().supervise("workers", "poller", restart, task).unwrap_err().to_string()
    };
    let backoff = Backoff::exponential(secs(1));
    assert_eq!(
        refused(Restart::on_failure(backoff.factor(0.5)).max(0, Duration::ZERO)),
        "task `poller` was not spawned: invalid configuration: \
         restart.backoff.factor = 0.5: must be a finite number of at least 1; \
         restart.max = 0: must be 1 to 10,000; restart.max.per = 0ns: must be longer than zero",
    );
    assert_eq!(
        refused(Restart::always(backoff).max(10_001, secs(60))),
        "task `poller` was not spawned: invalid configuration: restart.max = 10001: must be 1 to 10,000",
    );
    assert!(!shutdown.handle().is_draining());
}
