//! What can be seen from outside: logs, listeners and `watch`.

use std::{
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock, Mutex, OnceLock},
};

use buttress::{
    Backoff, CircuitBreaker, CircuitBreakerBuilder, ConcurrencyLimit, Deadline, DeadlineLayer, Error, Jitter, Keyed,
    Policy, Reason, Retry, Rule, Timeout, Verdict,
    circuit_breaker::{State, Transition},
    classify,
    retry::Budget,
};
use tokio::time::sleep;
use tower::Layer as _;
use tracing::{
    Dispatch, Event, Level, Subscriber,
    field::{Field, Visit},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{Layer, Registry, layer::Context, prelude::*};

use crate::support::{Echo, ms, secs};

/// One event of ours.
#[derive(Debug)]
pub struct Line {
    pub level: Level,
    pub target: String,
    fields: BTreeMap<&'static str, String>,
}

impl Line {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    pub fn of<const N: usize>(&self, names: [&str; N]) -> [&str; N] {
        names.map(|name| self.field(name).unwrap_or("-"))
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
}

/// Everything that is logged on this thread.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Line>>>);

impl Log {
    /// The lines since the last look.
    pub fn take(&self) -> Vec<Line> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let target = event.metadata().target().to_owned();
        let mut line = Line { level: *event.metadata().level(), target, fields: BTreeMap::new() };
        event.record(&mut line);
        self.0.lock().unwrap().push(line);
    }
}

/// Two subscribers that stay: while there is only one, an event that is first met on another thread, which has none,
/// is switched off for all.
static OTHERS: LazyLock<[Dispatch; 2]> = LazyLock::new(|| [(); 2].map(|()| Dispatch::new(Registry::default())));

fn listen_with(layer: impl Layer<Registry> + Send + Sync) -> DefaultGuard {
    LazyLock::force(&OTHERS);
    tracing::subscriber::set_default(Registry::default().with(layer))
}

pub fn listen() -> (Log, DefaultGuard) {
    let log = Log::default();
    (log.clone(), listen_with(log))
}

fn builder() -> CircuitBreakerBuilder {
    let open_time = Backoff::constant(secs(1)).jitter(Jitter::None);
    CircuitBreaker::builder().name("stock").consecutive_failures(2).open_time(open_time).probes(1)
}

fn fail(breaker: &CircuitBreaker, times: usize) {
    for _ in 0..times {
        breaker.try_acquire().unwrap().settle(Verdict::TRANSIENT);
    }
}

fn succeed(breaker: &CircuitBreaker) {
    breaker.try_acquire().unwrap().settle(Verdict::Success);
}

async fn refused(breaker: &CircuitBreaker) {
    breaker.call(async { Ok::<_, fmt::Error>(()) }).await.unwrap_err();
}

/// A listener that writes down what it hears.
type Heard = Arc<Mutex<Vec<Transition>>>;

fn moves(heard: &Heard) -> Vec<(State, State)> {
    heard.lock().unwrap().iter().map(|transition| (transition.from, transition.to)).collect()
}

// ---------------------------------------------------------------- logs

const TRANSITION: [&str; 7] = ["name", "from", "to", "rule", "measured", "threshold", "rejected"];

#[tokio::test(start_paused = true)]
async fn opening_is_a_warning_that_says_why_and_recovering_is_information() {
    let (log, _guard) = listen();
    let breaker = builder().build().unwrap();
    fail(&breaker, 2);
    let opened = log.take();
    assert_eq!(opened.len(), 1);
    assert_eq!((opened[0].level, opened[0].target.as_str()), (Level::WARN, "buttress"));
    assert_eq!(opened[0].of(TRANSITION), ["stock", "closed", "open", "consecutive_failures", "2.0", "2.0", "0"]);
    assert_eq!(opened[0].of(["message", "open_for"]), ["circuit breaker opened", "Some(1s)"]);

    sleep(secs(1)).await;
    succeed(&breaker);
    let recovered = log.take();
    let seen: Vec<_> = recovered.iter().map(|line| (line.level, line.of(["from", "to"]))).collect();
    assert_eq!(seen, [(Level::INFO, ["open", "half_open"]), (Level::INFO, ["half_open", "closed"])]);
    assert!(recovered.iter().all(|line| line.target == "buttress"));
}

#[tokio::test(start_paused = true)]
async fn each_transition_tells_how_many_were_rejected_since_the_last() {
    let (log, _guard) = listen();
    let breaker = builder().build().unwrap();
    fail(&breaker, 2);
    for _ in 0..3 {
        refused(&breaker).await;
    }
    sleep(secs(1)).await;
    let probe = breaker.try_acquire().unwrap();
    for _ in 0..2 {
        refused(&breaker).await;
    }
    probe.settle(Verdict::Success);
    breaker.force_open();
    let told: Vec<_> = log.take().iter().filter_map(|line| line.field("rejected").map(str::to_owned)).collect();
    assert_eq!(told, ["0", "3", "2", "0"], "to open, half-open, closed, forced open");
    assert_eq!(breaker.snapshot().rejected, 5);
}

#[tokio::test(start_paused = true)]
async fn every_state_that_refuses_is_told_as_a_warning() {
    let (log, _guard) = listen();
    let breaker = builder().build().unwrap();
    breaker.force_open();
    breaker.force_closed();
    breaker.shadow();
    fail(&breaker, 2);
    breaker.reset();
    let told: Vec<_> = log.take().into_iter().map(|line| (line.level, line.fields["to"].clone())).collect();
    let expected = [
        (Level::WARN, "forced_open"),
        (Level::INFO, "forced_closed"),
        (Level::INFO, "shadow"),
        (Level::WARN, "shadow"),
        (Level::INFO, "closed"),
    ];
    assert_eq!(told, expected.map(|(level, to)| (level, to.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_transition_names_a_rule_only_if_a_rule_moved_it() {
    let heard = Heard::default();
    let log = heard.clone();
    let breaker = builder().on_transition(move |transition| log.lock().unwrap().push(*transition)).build().unwrap();
    fail(&breaker, 2);
    sleep(secs(1)).await;
    drop(breaker.try_acquire().unwrap());
    breaker.force_closed();
    breaker.force_open();
    let told: Vec<_> = heard.lock().unwrap().iter().map(|transition| (transition.to, transition.rule)).collect();
    let expected = [
        (State::Open, Some(Rule::ConsecutiveFailures)),
        (State::HalfOpen, None),     // Time has moved it.
        (State::ForcedClosed, None), // A hand has.
        (State::ForcedOpen, Some(Rule::Forced)),
    ];
    assert_eq!(told, expected);
}

#[tokio::test(start_paused = true)]
async fn every_rejection_is_told_once_at_debug() {
    let (log, _guard) = listen();
    let breaker = builder().build().unwrap();
    breaker.force_open();
    let limit = ConcurrencyLimit::builder().name("database").max_in_flight(1).max_queue(1).max_wait(ms(250));
    let limit = limit.build().unwrap();
    let _held = limit.try_acquire().unwrap();
    log.take();
    let fine = || async { Ok::<_, fmt::Error>(()) };
    let stall = || std::future::pending::<Result<(), fmt::Error>>();

    breaker.call(fine()).await.unwrap_err();
    let (waited, full) = tokio::join!(limit.call(fine()), limit.call(fine()));
    assert!(waited.is_err() && full.is_err());
    Timeout::new(ms(100)).name("slow").call(stall()).await.unwrap_err();
    Deadline::after(ms(100)).enforce(stall()).await.unwrap_err();
    breaker.layer().layer(Echo).send(1).await.unwrap_err();
    Policy::plain("all").circuit_breaker(&breaker).build().unwrap().call(fine).await.unwrap_err();

    let lines = log.take();
    assert!(lines.iter().all(|line| line.level == Level::DEBUG && line.target == "buttress"));
    let seen: Vec<_> = lines.iter().map(|line| line.of(["name", "reason", "rule", "measured", "threshold"])).collect();
    let forced = ["stock", "CircuitOpen", "forced", "-", "-"];
    assert_eq!(
        seen,
        [
            forced,
            ["database", "Overloaded", "queue_full", "1.0", "1.0"],
            ["database", "Overloaded", "max_wait", "0.25", "0.25"],
            ["slow", "Timeout", "attempt_timeout", "0.10000000149011612", "0.10000000149011612"],
            ["deadline", "DeadlineExceeded", "deadline", "-", "-"],
            forced,
            forced,
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_rejection_of_an_open_circuit_tells_when_to_come_back() {
    let (log, _guard) = listen();
    let breaker = builder().build().unwrap();
    fail(&breaker, 2);
    log.take();
    refused(&breaker).await;
    let line = &log.take()[0];
    assert_eq!(line.of(["rule", "measured", "threshold"]), ["consecutive_failures", "2.0", "2.0"]);
    assert_eq!(line.of(["message", "retry_after"]), ["call rejected", "Some(1s)"]);
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_told_at_debug_and_so_is_an_empty_purse() {
    let (log, _guard) = listen();
    let budget = Budget::builder().ratio(0.0).min_per_second(0).build().unwrap();
    let patient = Retry::constant(ms(10)).jitter(Jitter::None).max_attempts(2);
    let error = || async { Err::<(), _>("no") };
    Policy::plain("asks").retry(patient.clone().without_budget()).build().unwrap().call(error).await.unwrap_err();
    Policy::plain("spent").retry(patient.budget(budget)).build().unwrap().call(error).await.unwrap_err();
    let lines = log.take();
    let seen: Vec<_> =
        lines.iter().map(|line| (line.level, line.of(["name", "attempt", "delay", "message"]))).collect();
    assert_eq!(
        seen,
        [
            (Level::DEBUG, ["asks", "1", "10ms", "retrying"]),
            (Level::DEBUG, ["spent", "-", "-", "retry budget exhausted"])
        ]
    );
}

// HAZARD: C10
#[tokio::test(start_paused = true)]
async fn a_success_is_silent() {
    let (log, _guard) = listen();
    let (breaker, limit) = (builder().build().unwrap(), ConcurrencyLimit::builder().max_in_flight(2).build().unwrap());
    let retry = Retry::constant(ms(1)).build().unwrap();
    let policy = Policy::cloned("all")
        .deadline(secs(5))
        .retry(&retry)
        .circuit_breaker(&breaker)
        .concurrency_limit(&limit)
        .timeout(secs(1))
        .build()
        .unwrap();
    macro_rules! silent {
        ($($layer:expr),*) => { $(assert_eq!($layer.layer(Echo).send(7).await, Ok(7));)* };
    }
    silent![
        Timeout::new(secs(1)).layer(),
        DeadlineLayer::new(secs(1)),
        retry.layer(),
        breaker.layer(),
        limit.layer(),
        policy.layer()
    ];
    // Nor when it is found pending, or waits in the queue.
    let slow = || async {
        sleep(ms(10)).await;
        Ok::<_, fmt::Error>(())
    };
    let answers = tokio::join!(policy.call(slow), policy.call(slow), policy.call(slow));
    assert_eq!(answers, (Ok(()), Ok(()), Ok(())));
    assert!(log.take().is_empty());
}

// HAZARD: C11
#[test]
fn a_subscriber_may_use_the_breaker_that_it_hears_of() {
    struct Nosy(CircuitBreaker);
    impl<S: Subscriber> Layer<S> for Nosy {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            let _ = (self.0.snapshot(), self.0.try_acquire().is_ok());
            self.0.force_closed();
        }
    }
    let breaker = builder().build().unwrap();
    let _guard = listen_with(Nosy(breaker.clone()));
    fail(&breaker, 2);
    assert_eq!(breaker.state(), State::ForcedClosed);
}

// ---------------------------------------------------------------- listeners

#[tokio::test(start_paused = true)]
async fn a_listener_hears_every_transition_in_order() {
    let heard = Heard::default();
    let log = heard.clone();
    let breaker = builder().on_transition(move |transition| log.lock().unwrap().push(*transition)).build().unwrap();
    fail(&breaker, 2);
    refused(&breaker).await;
    sleep(secs(1)).await;
    fail(&breaker, 1);
    sleep(secs(1)).await;
    succeed(&breaker);
    breaker.force_open();
    breaker.force_open(); // No move.
    breaker.force_closed();
    breaker.shadow();
    fail(&breaker, 2);
    breaker.reset();
    use State::*;
    let expected = [
        (Closed, Open),
        (Open, HalfOpen),
        (HalfOpen, Open),
        (Open, HalfOpen),
        (HalfOpen, Closed),
        (Closed, ForcedOpen),
        (ForcedOpen, ForcedClosed),
        (ForcedClosed, Shadow),
        (Shadow, Shadow),
        (Shadow, Closed),
    ];
    assert_eq!(moves(&heard), expected);
    let heard = heard.lock().unwrap();
    assert!(heard.iter().all(|transition| transition.name == "stock"));
    let would_open: Vec<_> = heard.iter().map(Transition::would_open).collect();
    assert_eq!(would_open.iter().position(|would| *would), Some(8));
    let first = heard[0];
    assert_eq!((first.rule, first.measured, first.threshold), (Some(Rule::ConsecutiveFailures), 2.0, 2.0));
    assert_eq!((first.open_for, first.rejected, heard[1].rejected), (Some(secs(1)), 0, 1));
}

/// A breaker that its listener has at hand, with a log to write what it hears into.
fn at_hand(listener: impl Fn(&CircuitBreaker, &Transition, &Heard) + Send + Sync + 'static) -> (CircuitBreaker, Heard) {
    let (own, heard) = (Arc::<OnceLock<CircuitBreaker>>::default(), Heard::default());
    let (inner, log) = (own.clone(), heard.clone());
    let hears = move |transition: &Transition| listener(inner.get().unwrap(), transition, &log);
    let breaker = builder().on_transition(hears).build().unwrap();
    own.set(breaker.clone()).unwrap();
    (breaker, heard)
}

// HAZARD: C11
#[test]
fn a_listener_that_moves_the_breaker_hears_of_that_next() {
    let (breaker, heard) = at_hand(|breaker, transition, log| {
        match transition.to {
            State::Open => breaker.force_closed(),
            State::ForcedClosed => breaker.reset(),
            _ => {}
        }
        // After it has moved the breaker on: were it called from within, the order would be upside down.
        log.lock().unwrap().push(*transition);
    });
    for _ in 0..2 {
        fail(&breaker, 2);
    }
    use State::*;
    let round = [(Closed, Open), (Open, ForcedClosed), (ForcedClosed, Closed)];
    assert_eq!(moves(&heard), [round, round].concat());
    assert_eq!(*breaker.watch().borrow(), Closed);
}

#[test]
fn a_listener_that_moves_the_breaker_twice_hears_of_both() {
    let (breaker, heard) = at_hand(|breaker, transition, log| {
        if transition.to == State::Open {
            breaker.force_closed();
            breaker.reset();
        }
        log.lock().unwrap().push(*transition);
    });
    fail(&breaker, 2);
    use State::*;
    assert_eq!(moves(&heard), [(Closed, Open), (Open, ForcedClosed), (ForcedClosed, Closed)]);
}

// It moves the breaker faster than it hears of it: what it has yet to hear of is kept up to a bound.
#[test]
fn a_listener_that_moves_the_breaker_without_end_hears_of_the_latest() {
    let (breaker, heard) = at_hand(|breaker, transition, log| {
        log.lock().unwrap().push(*transition);
        if log.lock().unwrap().len() == 1 {
            (0..2_000).for_each(|_| {
                breaker.force_closed();
                breaker.force_open();
            });
        }
    });
    breaker.force_open();
    let moves = moves(&heard);
    assert_eq!(moves.len(), 1 + 1_024);
    assert!(moves[1..].windows(2).all(|pair| pair[0].1 == pair[1].0), "nothing is left out in between");
    assert_eq!(moves.last().map(|last| last.1), Some(breaker.state()));
}

#[test]
fn many_threads_move_it_and_the_listener_hears_an_unbroken_story() {
    let heard = Heard::default();
    let log = heard.clone();
    let breaker = builder().on_transition(move |transition| log.lock().unwrap().push(*transition)).build().unwrap();
    std::thread::scope(|scope| {
        for n in 0..4 {
            let breaker = &breaker;
            scope.spawn(move || {
                for _ in 0..50 {
                    match n {
                        0 => breaker.force_open(),
                        1 => breaker.force_closed(),
                        2 => breaker.shadow(),
                        _ => breaker.reset(),
                    }
                }
            });
        }
    });
    // Whoever was telling when the others were done has told it all before its own call returned.
    let moves = moves(&heard);
    assert!(moves.windows(2).all(|pair| pair[0].1 == pair[1].0), "each begins where the last one ended");
    assert_eq!(moves.last().map(|last| last.1), Some(breaker.state()));
    assert_eq!(*breaker.watch().borrow(), breaker.state());
}

// HAZARD: C11
#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_poisons_nothing_and_hears_of_the_next() {
    let heard = Heard::default();
    let log = heard.clone();
    let breaker = builder()
        .on_transition(move |transition| {
            log.lock().unwrap().push(*transition);
            panic!("in a listener, as asked");
        })
        .build()
        .unwrap();
    let mut watch = breaker.watch();
    fail(&breaker, 2);
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(*watch.borrow_and_update(), State::Open);
    refused(&breaker).await;
    sleep(secs(1)).await;
    succeed(&breaker);
    assert_eq!(*watch.borrow_and_update(), State::Closed);
    assert_eq!(moves(&heard).len(), 3);
    assert!(!heard.is_poisoned());
}

// HAZARD: B5, C11
#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_while_a_call_panics_does_not_bring_the_process_down() {
    let breaker =
        builder().consecutive_failures(1).on_transition(|_| panic!("in a listener, as asked")).build().unwrap();
    let panicking = breaker.call(async { if true { panic!("in a call, as asked") } else { Ok::<(), fmt::Error>(()) } });
    let mut call = tokio_test::task::spawn(panicking);
    catch_unwind(AssertUnwindSafe(|| call.poll().is_pending())).expect_err("the call panics");
    catch_unwind(AssertUnwindSafe(move || {
        let _call = call;
        panic!("and it is dropped by a panic");
    }))
    .expect_err("it panics");
    assert_eq!(breaker.state(), State::Open, "the panic is a failure");
}

// HAZARD: B5
#[tokio::test(start_paused = true)]
async fn a_classifier_that_panics_counts_as_a_failure_and_poisons_nothing() {
    let breaker = builder().consecutive_failures(3).build().unwrap();
    let limit = ConcurrencyLimit::builder().max_in_flight(1).max_queue(0).build().unwrap();
    let judge = classify::from_fn::<u64, std::convert::Infallible, _>(|answer| match answer {
        Ok(13) => panic!("in a classifier, as asked"),
        _ => Verdict::Success,
    });
    let retry = Retry::constant(ms(1)).without_budget();
    let policy = Policy::cloned("judged")
        .retry(retry)
        .circuit_breaker(&breaker)
        .concurrency_limit(&limit)
        .classify(judge)
        .build()
        .unwrap();
    let service = policy.layer().layer(Echo);
    for ask in [false, true] {
        let (service, policy) = (service.clone(), policy.clone());
        let call = match ask {
            true => tokio::spawn(async move { policy.call(|| async { Ok(13) }).await }),
            false => tokio::spawn(async move { service.send(13).await }),
        };
        assert!(call.await.unwrap_err().is_panic());
    }
    assert_eq!((limit.in_flight(), breaker.snapshot().consecutive_failures), (0, 2));
    assert_eq!(service.send(7).await, Ok(7));
    assert_eq!((breaker.state(), breaker.snapshot().consecutive_failures), (State::Closed, 0));
}

// ---------------------------------------------------------------- watch

#[tokio::test(start_paused = true)]
async fn a_watch_shows_the_latest_state() {
    let breaker = builder().build().unwrap();
    let mut watch = breaker.watch();
    assert_eq!(*watch.borrow_and_update(), State::Closed);
    fail(&breaker, 2);
    sleep(secs(1)).await;
    let probe = breaker.try_acquire().unwrap();
    watch.changed().await.unwrap();
    assert_eq!(*watch.borrow_and_update(), State::HalfOpen, "who looks late sees the latest only");
    probe.settle(Verdict::Success);
    watch.changed().await.unwrap();
    assert_eq!(*watch.borrow_and_update(), State::Closed);
    breaker.reset();
    assert!(!watch.has_changed().unwrap(), "it was closed before");
}

#[tokio::test(start_paused = true)]
async fn a_watch_begins_with_the_state_as_it_is_and_wakes_who_waits() {
    let breaker = builder().shadow().build().unwrap();
    assert_eq!(*breaker.watch().borrow(), State::Shadow);
    let mut watch = breaker.watch();
    let waits = tokio::spawn(async move { *watch.wait_for(|state| *state == State::ForcedOpen).await.unwrap() });
    tokio::task::yield_now().await;
    fail(&breaker, 2); // It would open, but does not.
    breaker.force_open();
    assert_eq!(waits.await.unwrap(), State::ForcedOpen);
    let refused = breaker.call(async { Ok::<_, fmt::Error>(()) }).await;
    assert!(matches!(refused, Err(Error::Rejected(no)) if no.reason() == Reason::CircuitOpen));
}

// ---------------------------------------------------------------- keys without room

#[tokio::test(start_paused = true)]
async fn keys_that_find_no_room_are_a_warning_once_a_minute() {
    let hosts: Keyed<u32, _> = Keyed::each(builder()).max_keys(1).build().unwrap();
    let held = hosts.get(&0);
    let (log, _guard) = listen();
    (1..100).for_each(|key| drop(hosts.get(&key)));
    let warned = log.take();
    assert_eq!(warned.len(), 1);
    assert_eq!((warned[0].level, warned[0].target.as_str()), (Level::WARN, "buttress"));
    assert_eq!(warned[0].of(["max_keys", "overflowed"]), ["1", "1"]);

    sleep(secs(59)).await;
    let _ = hosts.get(&1);
    assert!(log.take().is_empty());
    sleep(secs(1)).await;
    (1..100).for_each(|key| drop(hosts.get(&key)));
    let warned = log.take();
    assert_eq!(warned.len(), 1);
    assert_eq!(warned[0].of(["max_keys", "overflowed"]), ["1", "101"]);
    drop(held);
    let _ = hosts.get(&1);
    assert!(log.take().is_empty());
    assert_eq!(hosts.overflowed(), 199);
}
