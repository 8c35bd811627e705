//! The circuit breaker, second part: half-open, the cancel rule, states by hand, waiting in `poll_ready`, and retry.

use std::{
    collections::VecDeque,
    future::ready,
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use buttress::{
    Backoff, CircuitBreaker, CircuitBreakerBuilder, CircuitBreakerService, ConcurrencyLimit, Error, Jitter, Policy,
    Reason, Rejection, Retry, Rule, Verdict,
    circuit_breaker::{Permit, State, WhenOpen},
};
use tokio::{
    runtime::Handle,
    time::{Instant, advance, sleep, timeout},
};
use tower::{Layer, Service};
use tower_test::mock::Spawn;

use crate::{
    circuit_breaker::{Answer, heard, hung, play, prompt, refused, touchy},
    support::{Echo, ms, secs, settle},
};

/// Open, with its open time just over.
async fn due(builder: CircuitBreakerBuilder) -> CircuitBreaker {
    let breaker = builder.build().unwrap();
    play(&breaker, "F");
    advance(secs(10)).await;
    breaker
}

/// A call of a service that takes its time.
async fn takes(time: Duration, answer: Answer) -> Answer {
    sleep(time).await;
    answer
}

/// As many as it gives.
fn take_all(breaker: &CircuitBreaker) -> Vec<Permit> {
    std::iter::from_fn(|| breaker.try_acquire().ok()).collect()
}

/// How many of so many it gives, which are given back.
fn take_all_of(breaker: &CircuitBreaker, count: usize) -> usize {
    (0..count).filter(|_| breaker.try_acquire().is_ok()).count()
}

// ------------------------------------------------------------------ half-open

// HAZARD: B9
#[tokio::test(start_paused = true)]
async fn of_fifty_at_once_a_half_open_circuit_admits_exactly_its_probes() {
    let breaker = due(touchy().probes(3)).await;
    let service = breaker.layer().layer(tower::service_fn(|()| async {
        sleep(ms(100)).await;
        Ok::<_, Error<&str>>(())
    }));
    let calls: Vec<_> = (0..50).map(|_| tokio::spawn(service.send(()))).collect();
    let (mut answered, mut turned_away) = (0, 0);
    for call in calls {
        match call.await.unwrap() {
            Ok(()) => answered += 1,
            Err(no) => {
                let no = *no.rejection().unwrap();
                assert_eq!((no.rule(), no.retry_after()), (Rule::ProbesOut, Some(secs(30))));
                turned_away += 1;
            }
        }
    }
    assert_eq!((answered, turned_away, breaker.state()), (3, 47, State::Closed));
}

// HAZARD: B8
#[tokio::test(start_paused = true)]
async fn a_retry_that_is_refused_gives_back_no_probe_of_its_attempt_before() {
    let breaker = due(touchy().probes(2).probe_failure_rate(1.0)).await;
    let retry = Retry::constant(secs(1)).jitter(Jitter::None).max_attempts(2);
    let policy = Policy::plain("whole").retry(retry).circuit_breaker(&breaker).build().unwrap();
    let mut call = Box::pin(policy.call(|| ready(Err::<(), _>("down"))));
    timeout(ms(500), &mut call).await.expect_err("it waits to try again");
    let _other = breaker.try_acquire().expect("of two probes one has failed");
    let refused = call.await.unwrap_err();
    assert_eq!(refused.rejection().unwrap().rule(), Rule::ProbesOut);
    assert_eq!(breaker.try_acquire().unwrap_err().rule(), Rule::ProbesOut, "still");
}

// HAZARD: B9
#[tokio::test(start_paused = true)]
async fn of_many_threads_at_once_exactly_the_probes_get_in() {
    for _ in 0..20 {
        let breaker = due(touchy().probes(3)).await;
        let (clock, start) = (Handle::current(), Barrier::new(8));
        let ask = || {
            let _paused = clock.enter();
            start.wait();
            (0..100).filter_map(|_| breaker.try_acquire().ok()).collect::<Vec<_>>()
        };
        let probes: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!((probes.len(), breaker.snapshot().rejected), (3, 797));
    }
}

// HAZARD: B8
#[tokio::test(start_paused = true)]
async fn a_probe_that_says_nothing_gives_back_exactly_one() {
    type End = fn(Permit);
    let ends: [(&str, End); 3] = [
        ("dropped", drop),
        ("ignored", |probe| probe.settle(Verdict::Ignored)),
        ("ignored late", |probe| probe.settle_after(Verdict::Ignored, secs(3600))),
    ];
    for (name, end) in ends {
        let breaker = due(touchy().probes(3)).await;
        let mut probes = take_all(&breaker);
        assert_eq!(probes.len(), 3);
        for _ in 0..5 {
            end(probes.pop().unwrap());
            let again = take_all(&breaker);
            assert_eq!(again.len(), 1, "{name}");
            probes.extend(again);
        }
        probes.into_iter().for_each(|probe| probe.settle(Verdict::Success));
        assert_eq!(breaker.state(), State::Closed, "{name}");
    }
}

// HAZARD: B8
#[tokio::test(start_paused = true)]
async fn a_probe_that_is_cancelled_in_a_layer_gives_back_exactly_one() {
    let breaker = due(touchy().probes(2)).await;
    let first = tokio::spawn({
        let breaker = breaker.clone();
        async move { breaker.call(hung()).await }
    });
    settle().await;
    assert_eq!(take_all(&breaker).len(), 1);
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(take_all(&breaker).len(), 2);
}

// HAZARD: B8, B4
#[tokio::test(start_paused = true)]
async fn calls_from_before_the_trip_inflate_no_probes_and_decide_no_round() {
    let breaker = touchy().probes(2).probe_failure_rate(1.0).build().unwrap();
    let mut early: Vec<_> = (0..6).map(|_| breaker.try_acquire().unwrap()).collect();
    play(&breaker, "F");
    advance(secs(10)).await;
    let probes = take_all(&breaker);
    assert_eq!(probes.len(), 2);

    early.pop().unwrap().settle(Verdict::Ignored);
    drop(early.pop().unwrap());
    assert!(take_all(&breaker).is_empty());
    for verdict in [Verdict::Success, Verdict::TRANSIENT, Verdict::Success, Verdict::TRANSIENT] {
        early.pop().unwrap().settle(verdict);
        assert_eq!((breaker.state(), breaker.snapshot().calls), (State::HalfOpen, 0));
    }
    probes.into_iter().for_each(|probe| probe.settle(Verdict::TRANSIENT));
    assert_eq!(breaker.state(), State::Open);
}

// HAZARD: B4
#[tokio::test(start_paused = true)]
async fn a_result_from_before_the_trip_does_not_count_after_the_circuit_has_closed() {
    let breaker = touchy().consecutive_failures(2).build().unwrap();
    let mut late: Vec<_> = (0..4).map(|_| breaker.try_acquire().unwrap()).collect();
    // The same through futures, whose results come by another path.
    let calls = [Answer::Ok(()), Err("late")].map(|answer| {
        let breaker = breaker.clone();
        tokio::spawn(async move { breaker.call(takes(secs(11), answer)).await })
    });
    settle().await;
    play(&breaker, "FF");
    advance(secs(10)).await;
    late.push(breaker.try_acquire().unwrap());
    breaker.reset();
    play(&breaker, "F");
    for (permit, verdict) in late.into_iter().zip([Verdict::Success, Verdict::TRANSIENT].into_iter().cycle()) {
        permit.settle(verdict);
        let seen = breaker.snapshot();
        assert_eq!((seen.state, seen.calls, seen.consecutive_failures), (State::Closed, 1, 1));
    }
    for call in calls {
        let _ = call.await.unwrap();
        let seen = breaker.snapshot();
        assert_eq!((seen.state, seen.calls, seen.consecutive_failures), (State::Closed, 1, 1));
    }
    play(&breaker, "F");
    assert_eq!(breaker.state(), State::Open);
}

// HAZARD: B2
#[tokio::test(start_paused = true)]
async fn a_lease_ends_a_round_whose_probes_hang() {
    let backoff = Backoff::exponential(secs(10)).jitter(Jitter::None);
    let breaker = due(touchy().probes(2).probe_lease(secs(30)).open_time(backoff)).await;
    let hung = take_all(&breaker);
    advance(secs(30) - ms(1)).await;
    let no = refused(&breaker);
    assert_eq!((no.rule(), no.retry_after()), (Rule::ProbesOut, Some(ms(1))));
    advance(ms(1)).await;
    let no = refused(&breaker);
    assert_eq!((breaker.state(), no.rule(), no.retry_after()), (State::Open, Rule::ProbeLease, Some(secs(20))));
    assert_eq!((no.measured(), no.threshold()), (Some(0.0), Some(2.0)));

    // The next round is as large as the first, and those that hung have no part in it.
    advance(secs(20)).await;
    let probes = take_all(&breaker);
    assert_eq!(probes.len(), 2);
    drop(hung);
    assert!(take_all(&breaker).is_empty());
    probes.into_iter().for_each(|probe| probe.settle(Verdict::Success));
    assert_eq!(breaker.state(), State::Closed);
}

// HAZARD: B2
#[tokio::test(start_paused = true)]
async fn a_round_that_takes_longer_than_a_lease_is_no_round_that_hangs() {
    // A call a second, of two: some probe is out at any time.
    let breaker = due(touchy().probes(50).probe_failure_rate(0.2).probe_lease(secs(3))).await;
    let mut out = VecDeque::new();
    for _ in 0..50 {
        out.push_back(breaker.try_acquire().unwrap());
        advance(secs(1)).await;
        if out.len() == 3 {
            out.pop_front().unwrap().settle(Verdict::Success);
        }
    }
    assert_eq!(breaker.state(), State::Closed, "41 of 50 decide it");
}

// HAZARD: B2
#[tokio::test(start_paused = true)]
async fn each_probe_has_a_lease_of_its_own_and_who_is_refused_waits_for_the_last() {
    let breaker = due(touchy().probes(2).probe_lease(secs(30))).await;
    let _first = breaker.try_acquire().unwrap();
    advance(secs(20)).await;
    let _second = breaker.try_acquire().unwrap();
    advance(secs(29)).await;
    let no = refused(&breaker);
    assert_eq!((no.rule(), no.retry_after()), (Rule::ProbesOut, Some(secs(1))));
    advance(secs(1)).await;
    assert_eq!(refused(&breaker).rule(), Rule::ProbeLease);
}

#[tokio::test(start_paused = true)]
async fn a_round_that_came_to_nothing_says_what_of_it_failed_or_answered() {
    let four = || touchy().probes(4).probe_failure_rate(0.5).probe_lease(secs(30));
    let failed = due(four()).await;
    play(&failed, "SFF");
    let no = refused(&failed);
    assert_eq!((no.rule(), no.measured(), no.threshold()), (Rule::ProbesFailed, Some(0.5), Some(0.5)));

    let hung = due(four()).await;
    play(&hung, "SSF");
    let _hangs = hung.try_acquire().unwrap();
    advance(secs(30)).await;
    let no = refused(&hung);
    assert_eq!((no.rule(), no.measured(), no.threshold()), (Rule::ProbeLease, Some(3.0), Some(4.0)));
}

// HAZARD: B2
#[tokio::test(start_paused = true)]
async fn a_round_outlives_the_window() {
    let breaker = due(touchy().window(ms(100)).probes(3).probe_failure_rate(1.0 / 3.0)).await;
    for _ in 0..3 {
        play(&breaker, "S");
        advance(secs(9)).await;
    }
    assert_eq!(breaker.state(), State::Closed, "no answer of a probe has aged out");
}

// HAZARD: B7
#[tokio::test(start_paused = true)]
async fn slow_probes_open_the_circuit_again_where_slowness_matters() {
    let probe = |breaker: CircuitBreaker| async move {
        breaker.call(takes(secs(2), Ok(()))).await.unwrap();
        breaker.state()
    };
    let matters = touchy().slow_call_rate(0.5).slow_call(secs(1));
    assert_eq!(probe(due(matters.clone()).await).await, State::Open);
    assert_eq!(probe(due(matters.slow_call(secs(2))).await).await, State::Closed);
    assert_eq!(probe(due(touchy().slow_call(secs(1))).await).await, State::Closed);
}

// HAZARD: B10
#[tokio::test(start_paused = true)]
async fn a_service_that_was_polled_while_open_is_not_bound_by_it() {
    for when_open in [WhenOpen::Reject, WhenOpen::Wait] {
        let breaker = touchy().build().unwrap();
        play(&breaker, "F");
        let mut service = Spawn::new(breaker.layer().when_open(when_open).layer(Echo));
        assert_eq!(service.poll_ready::<u64>().is_ready(), when_open == WhenOpen::Reject);
        breaker.reset();
        assert!(service.poll_ready::<u64>().is_ready());
        assert_eq!(service.call(7).await, Ok(7), "{when_open:?}");
    }
}

// HAZARD: B13
#[tokio::test(start_paused = true)]
async fn every_view_of_the_state_agrees_at_every_step() {
    let (breaker, heard) = heard(touchy().slow_call(secs(1)));
    let watch = breaker.watch();
    let agree = |state| {
        let told = heard.lock().unwrap().last().map_or(State::Closed, |t| t.to);
        assert_eq!([breaker.state(), breaker.snapshot().state, *watch.borrow(), told], [state; 4]);
    };
    agree(State::Closed);
    play(&breaker, "F");
    agree(State::Open);
    advance(secs(10)).await;
    // Nothing moves by itself: the first caller finds the open time over.
    agree(State::Open);
    let probe = breaker.try_acquire().unwrap();
    agree(State::HalfOpen);
    probe.settle(Verdict::Success);
    agree(State::Closed);
    type Step = fn(&CircuitBreaker);
    let steps: [(Step, State); 4] = [
        (CircuitBreaker::force_open, State::ForcedOpen),
        (CircuitBreaker::shadow, State::Shadow),
        (CircuitBreaker::force_closed, State::ForcedClosed),
        (CircuitBreaker::reset, State::Closed),
    ];
    for (step, state) in steps {
        step(&breaker);
        agree(state);
    }
    let heard = heard.lock().unwrap();
    assert!(heard.windows(2).all(|pair| pair[0].to == pair[1].from), "{heard:?}");
}

// ------------------------------------------------------------------ the cancel rule

// HAZARD: B5
#[tokio::test(start_paused = true)]
async fn a_cancelled_call_is_a_failure_once_it_has_outrun_the_slow_threshold() {
    for (dropped_after, failures) in [(ms(0), 0), (ms(500), 0), (ms(1000), 0), (ms(1001), 1), (secs(60), 1)] {
        let breaker = CircuitBreaker::builder().window(secs(600)).slow_call(secs(1)).build().unwrap();
        let outcome = timeout(dropped_after, breaker.call(hung())).await;
        outcome.unwrap_err();
        let seen = breaker.snapshot();
        assert_eq!((seen.calls, seen.failures), (failures, failures), "call, {dropped_after:?}");

        let breaker = CircuitBreaker::builder().window(secs(600)).slow_call(secs(1)).build().unwrap();
        let permit = breaker.try_acquire().unwrap();
        advance(dropped_after).await;
        drop(permit);
        let seen = breaker.snapshot();
        assert_eq!((seen.calls, seen.failures, seen.slow_calls), (failures, failures, failures), "{dropped_after:?}");
    }
}

// HAZARD: B5, B8
#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_late_counts_as_failed() {
    let breaker = due(touchy().slow_call(secs(1))).await;
    timeout(secs(1), breaker.call(hung())).await.unwrap_err();
    assert_eq!(breaker.state(), State::HalfOpen);
    timeout(ms(1001), breaker.call(hung())).await.unwrap_err();
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_future_that_was_never_polled_was_no_call() {
    let breaker = due(touchy()).await;
    let idle = breaker.call(hung());
    advance(secs(60)).await;
    drop(idle);
    assert_eq!((breaker.state(), breaker.snapshot().calls), (State::Open, 0));
    assert_eq!(take_all(&breaker).len(), 1, "it has taken no probe");
}

#[test]
fn a_call_that_was_made_and_never_polled_says_nothing() {
    let breaker = touchy().build().unwrap();
    let mut service = breaker.layer().layer(tower::service_fn(async |()| Err::<(), _>(Error::Inner("down"))));
    drop(service.call(()));
    assert_eq!((breaker.state(), breaker.snapshot().calls), (State::Closed, 0), "above all not that it has panicked");
}

// HAZARD: B8, B17
#[tokio::test(start_paused = true)]
async fn a_probe_that_our_own_limit_refuses_is_given_back() {
    let breaker = due(touchy()).await;
    let limit = ConcurrencyLimit::builder().max_in_flight(1).max_queue(0).build().unwrap();
    let policy = Policy::plain("small").circuit_breaker(&breaker).concurrency_limit(&limit).build().unwrap();
    let held = limit.try_acquire().unwrap();
    for _ in 0..3 {
        let no = policy.call(|| ready(Answer::Ok(()))).await.unwrap_err();
        assert_eq!(no.rejection().unwrap().reason(), Reason::Overloaded);
    }
    drop(held);
    assert_eq!(policy.call(|| ready(Answer::Ok(()))).await, Ok(()));
    assert_eq!(breaker.state(), State::Closed);
}

// ------------------------------------------------------------------ by hand

#[tokio::test(start_paused = true)]
async fn forced_open_refuses_for_as_long_as_it_takes_and_asks_nothing() {
    let breaker = touchy().build().unwrap();
    breaker.force_open();
    for _ in 0..5 {
        let no = breaker.call(async { Answer::Ok(()) }).await.unwrap_err();
        let no = no.rejection().unwrap();
        assert_eq!((no.reason(), no.rule(), no.retry_after()), (Reason::CircuitOpen, Rule::Forced, None));
        advance(secs(3600)).await;
    }
    assert_eq!(breaker.snapshot().rejected, 5);
    breaker.reset();
    assert_eq!(breaker.call(async { Answer::Ok(()) }).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn forced_closed_lets_everything_pass_and_counts_it() {
    let breaker = touchy().build().unwrap();
    play(&breaker, "F");
    breaker.force_closed();
    play(&breaker, &"F".repeat(100));
    let seen = breaker.snapshot();
    assert_eq!((seen.state, seen.failures, seen.consecutive_failures), (State::ForcedClosed, 100, 100));
    breaker.reset();
    play(&breaker, "F");
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn shadow_mode_refuses_nothing_and_tells_once_per_open_time_that_it_would() {
    let shadow = touchy().consecutive_failures(3).shadow();
    let (breaker, heard) = heard(shadow);
    let told = || heard.lock().unwrap().iter().filter(|t| t.would_open()).count();
    play(&breaker, "FF");
    assert_eq!(told(), 0);
    play(&breaker, &"F".repeat(100));
    assert_eq!(told(), 1);
    advance(secs(10) - ms(1)).await;
    play(&breaker, "FF");
    assert_eq!(told(), 1);
    advance(ms(1)).await;
    play(&breaker, "FF");
    assert_eq!(told(), 2);

    let would = heard.lock().unwrap()[0];
    assert_eq!((would.rule, would.measured, would.open_for), (Some(Rule::ConsecutiveFailures), 3.0, Some(secs(10))));
    let seen = breaker.snapshot();
    assert_eq!((seen.state, seen.rejected), (State::Shadow, 0));
    breaker.reset();
    play(&breaker, "FFF");
    assert_eq!(breaker.state(), State::Open);
    breaker.shadow();
    play(&breaker, "FF");
    assert_eq!(breaker.snapshot().failures, 2);
}

#[tokio::test(start_paused = true)]
async fn reset_empties_the_window_and_begins_with_the_first_open_time() {
    for span in [CircuitBreaker::builder(), CircuitBreaker::builder().window_calls(20)] {
        let backoff = Backoff::exponential(secs(10)).jitter(Jitter::None);
        let breaker = span.consecutive_failures(5).probes(1).open_time(backoff).build().unwrap();
        play(&breaker, &"FS".repeat(9));
        play(&breaker, "FF");
        assert_eq!(breaker.state(), State::Open);
        advance(secs(10)).await;
        play(&breaker, "F");
        assert_eq!(refused(&breaker).retry_after(), Some(secs(20)));

        breaker.reset();
        let seen = breaker.snapshot();
        assert_eq!((seen.state, seen.calls, seen.consecutive_failures), (State::Closed, 0, 0));
        assert_eq!(seen.retry_after, None);
        play(&breaker, "FFFF");
        assert_eq!(breaker.state(), State::Closed);
        play(&breaker, "F");
        assert_eq!(refused(&breaker).retry_after(), Some(secs(10)));
    }
}

// A late success must not be taken for one of the present, nor the present one for a late one.
#[tokio::test(start_paused = true)]
async fn after_a_reset_successes_are_counted_and_end_a_streak_as_before() {
    for span in [CircuitBreaker::builder(), CircuitBreaker::builder().window_calls(4)] {
        let breaker = span.min_calls(4).failure_rate(0.5).consecutive_failures(3).build().unwrap();
        breaker.force_open();
        breaker.reset();
        play(&breaker, "F");
        breaker.call(ready(Ok::<_, &str>(()))).await.unwrap();
        breaker.call(ready(Ok::<_, &str>(()))).await.unwrap();
        assert_eq!(breaker.snapshot().calls, 3);
        play(&breaker, "F");
        assert_eq!(refused(&breaker).rule(), Rule::FailureRate);

        breaker.force_open();
        breaker.reset();
        play(&breaker, "FSF");
        assert_eq!(breaker.snapshot().consecutive_failures, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_road_is_opened_to_one_then_to_ten_then_to_all() {
    let (breaker, heard) = heard(touchy().probes(1).then_probes([10]).probe_failure_rate(0.3));
    play(&breaker, "F");
    advance(secs(10)).await;
    let all = |of: &mut dyn Iterator<Item = Permit>, verdict: Verdict| of.for_each(|permit| permit.settle(verdict));

    let first = take_all(&breaker);
    assert_eq!(first.len(), 1);
    assert_eq!(
        refused(&breaker).to_string(),
        "circuit breaker `circuit_breaker` is half-open: all 1 probes are out; retry after 30.0s"
    );
    all(&mut first.into_iter(), Verdict::Success);

    let late = {
        let mut ten = take_all(&breaker).into_iter();
        assert_eq!((breaker.state(), ten.len()), (State::HalfOpen, 10));
        assert!(refused(&breaker).to_string().contains("all 10 probes are out"));
        // Two of ten may fail; one leaves, and another goes in its place.
        all(&mut ten.by_ref().take(2), Verdict::TRANSIENT);
        drop(ten.next());
        let again = take_all(&breaker);
        assert_eq!(again.len(), 1);
        all(&mut ten.by_ref().take(6), Verdict::Success);
        all(&mut again.into_iter(), Verdict::Success);
        assert_eq!(breaker.state(), State::HalfOpen, "the last may be the third that fails");
        ten
    };
    all(&mut { late }, Verdict::Success);
    assert_eq!((breaker.state(), take_all_of(&breaker, 50)), (State::Closed, 50));
    let told: Vec<_> = heard.lock().unwrap().iter().map(|t| (t.from, t.to)).collect();
    let (closed, open, half_open) = (State::Closed, State::Open, State::HalfOpen);
    assert_eq!(told, [(closed, open), (open, half_open), (half_open, half_open), (half_open, closed)]);
}

#[tokio::test(start_paused = true)]
async fn a_later_round_that_fails_or_hangs_opens_the_circuit_and_begins_with_the_first_again() {
    let breaker = due(touchy().probes(1).then_probes([4]).probe_failure_rate(0.5)).await;
    let failed = Verdict::TRANSIENT;
    take_all(&breaker).into_iter().for_each(|probe| probe.settle(Verdict::Success));
    let second = take_all(&breaker);
    assert_eq!(second.len(), 4);
    second.into_iter().take(2).for_each(|probe| probe.settle(failed));
    assert_eq!(refused(&breaker).rule(), Rule::ProbesFailed);

    advance(secs(60)).await;
    let first = take_all(&breaker);
    assert_eq!(first.len(), 1, "from the first round on");
    first.into_iter().for_each(|probe| probe.settle(Verdict::Success));
    let mut hung = take_all(&breaker);
    hung.pop().unwrap().settle(Verdict::Success);
    // Its lease is its own.
    advance(secs(30)).await;
    let no = refused(&breaker);
    assert_eq!((no.rule(), no.measured(), no.threshold()), (Rule::ProbeLease, Some(1.0), Some(4.0)));
    // What the round before left behind moves nothing.
    hung.into_iter().for_each(|probe| probe.settle(Verdict::Success));
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_of_a_round_is_none_of_the_next() {
    let breaker = due(touchy().probes(3).then_probes([2]).probe_failure_rate(0.5)).await;
    let mut first = take_all(&breaker).into_iter();
    first.by_ref().take(2).for_each(|probe| probe.settle(Verdict::Success));
    let second = take_all(&breaker);
    assert_eq!(second.len(), 2, "two of three decide the first");
    first.for_each(|probe| probe.settle(Verdict::TRANSIENT));
    assert_eq!(breaker.state(), State::HalfOpen);
    second.into_iter().for_each(|probe| probe.settle(Verdict::Success));
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_transition_says_how_many_were_refused_before_it() {
    let (breaker, heard) = heard(touchy());
    play(&breaker, "F");
    for _ in 0..7 {
        refused(&breaker);
    }
    advance(secs(10)).await;
    let probe = breaker.try_acquire().unwrap();
    for _ in 0..2 {
        refused(&breaker);
    }
    probe.settle(Verdict::Success);
    let heard: Vec<_> = heard.lock().unwrap().iter().map(|t| (t.to, t.rejected)).collect();
    assert_eq!(heard, [(State::Open, 0), (State::HalfOpen, 7), (State::Closed, 2)]);
    assert_eq!(breaker.snapshot().rejected, 9);
}

#[tokio::test(start_paused = true)]
async fn a_move_by_hand_does_not_claim_the_rule_that_had_opened_the_circuit() {
    type Step = fn(&CircuitBreaker);
    let steps: [(&str, Step, _); 4] = [
        ("reset", CircuitBreaker::reset, None),
        ("force_closed", CircuitBreaker::force_closed, None),
        ("shadow", CircuitBreaker::shadow, None),
        ("force_open", CircuitBreaker::force_open, Some(Rule::Forced)),
    ];
    for (name, by_hand, rule) in steps {
        let (breaker, heard) = heard(touchy());
        play(&breaker, "F");
        by_hand(&breaker);
        let told = *heard.lock().unwrap().last().unwrap();
        assert_eq!(told.rule, rule, "{name}: {told:?}");
        assert!(told.measured.is_nan(), "{name}: {told:?}");
    }
}

// ------------------------------------------------------------------ waiting in `poll_ready`

/// A service that waits, and remembers whether it was woken.
type Waiting = Spawn<CircuitBreakerService<Echo>>;

fn waiting(breaker: &CircuitBreaker) -> Waiting {
    Spawn::new(breaker.layer().when_open(WhenOpen::Wait).layer(Echo))
}

fn is_ready(service: &mut Waiting) -> bool {
    matches!(service.poll_ready::<u64>(), Poll::Ready(Ok(())))
}

#[tokio::test(start_paused = true)]
async fn a_waiting_service_is_not_ready_while_open_and_wakes_when_probes_are_due() {
    let breaker = touchy().build().unwrap();
    let mut service = waiting(&breaker);
    assert!(is_ready(&mut service));
    play(&breaker, "F");
    assert!(!is_ready(&mut service));
    advance(secs(10) - ms(1)).await;
    settle().await;
    assert!(!service.is_woken());
    advance(ms(1)).await;
    settle().await;
    assert!(service.is_woken() && is_ready(&mut service));
    assert_eq!(service.call(7).await, Ok(7));
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn every_one_of_many_waiting_clones_is_woken_by_whatever_opens_the_way() {
    type Step = fn(&CircuitBreaker);
    let ways: [(&str, Step, Step); 4] = [
        ("reset", CircuitBreaker::force_open, CircuitBreaker::reset),
        ("forced closed", CircuitBreaker::force_open, CircuitBreaker::force_closed),
        ("shadow", |b| play(b, "F"), CircuitBreaker::shadow),
        ("reset of an open circuit", |b| play(b, "F"), CircuitBreaker::reset),
    ];
    for (name, shut, open) in ways {
        let breaker = touchy().build().unwrap();
        let layer = breaker.layer().when_open(WhenOpen::Wait);
        let first = layer.layer(Echo);
        let mut clones: Vec<_> = (0..5).map(|_| Spawn::new(first.clone())).collect();
        shut(&breaker);
        assert!(clones.iter_mut().all(|clone| !is_ready(clone)), "{name}");
        settle().await;
        assert!(clones.iter().all(|clone| !clone.is_woken()), "{name}");
        open(&breaker);
        assert!(clones.iter().all(|clone| clone.is_woken()), "{name}");
        assert!(clones.iter_mut().all(is_ready), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn readiness_reserves_nothing_and_who_loses_the_race_is_refused_in_the_future() {
    let breaker = due(touchy()).await;
    let mut clones: Vec<_> = (0..3).map(|_| waiting(&breaker)).collect();
    assert!(clones.iter_mut().all(is_ready));
    assert_eq!(breaker.state(), State::Open, "to be ready is not to have asked");
    drop(clones.pop());

    let probe = breaker.try_acquire().expect("none of them holds the probe");
    let lost = clones[0].call(7).await.unwrap_err();
    assert_eq!(lost.rejection().unwrap().rule(), Rule::ProbesOut);
    assert!(!is_ready(&mut clones[1]), "while the probe is out there is nothing to be ready for");
    drop(probe);
    assert!(clones[1].is_woken() && is_ready(&mut clones[1]), "it was given back");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_service_wakes_when_the_round_is_decided_or_its_lease_ends() {
    for verdict in [Some(Verdict::Success), Some(Verdict::TRANSIENT), None] {
        let breaker = due(touchy().probe_lease(secs(30))).await;
        let probe = breaker.try_acquire().unwrap();
        let mut service = waiting(&breaker);
        assert!(!is_ready(&mut service));
        match verdict {
            Some(verdict) => {
                probe.settle(verdict);
                assert!(service.is_woken());
                assert_eq!(is_ready(&mut service), verdict == Verdict::Success);
            }
            None => {
                advance(secs(30)).await;
                settle().await;
                assert!(service.is_woken() && is_ready(&mut service));
                // Whoever comes first finds the lease over and the circuit open again.
                assert_eq!(service.call(7).await.unwrap_err().rejection().unwrap().rule(), Rule::ProbeLease);
                assert!(!is_ready(&mut service));
                drop(probe);
                assert_eq!(breaker.state(), State::Open);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_does_not_wait_is_ready_and_refuses() {
    let breaker = touchy().build().unwrap();
    play(&breaker, "F");
    let mut service = Spawn::new(breaker.layer().layer(prompt()));
    assert!(service.poll_ready::<Answer>().is_ready());
    let no = service.call(Answer::Ok(())).await.unwrap_err();
    assert_eq!(no.rejection().unwrap().retry_after(), Some(secs(10)));
}

// ------------------------------------------------------------------ retry

#[tokio::test(start_paused = true)]
async fn a_retry_is_not_slept_for_when_the_circuit_it_tripped_would_refuse_it() {
    // Opens for ten seconds: nine are too few to wait, ten are enough.
    for (delay, attempts, waited) in [(secs(9), 1, secs(0)), (secs(10), 2, secs(10))] {
        let policy = Policy::plain("flaky")
            .retry(Retry::constant(delay).jitter(Jitter::None).max_attempts(2))
            .circuit_breaker(touchy())
            .build()
            .unwrap();
        let (made, begin) = (AtomicUsize::new(0), now());
        let last = policy.call(|| ready(Err::<(), _>(made.fetch_add(1, SeqCst)))).await.unwrap_err();
        assert_eq!(last, Error::Inner(attempts - 1), "the service's own answer says more than a refusal");
        assert_eq!((made.into_inner(), now() - begin), (attempts, waited));
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_not_slept_for_when_the_circuit_was_forced_open() {
    let policy = Policy::plain("flaky")
        .retry(Retry::constant(secs(9)).jitter(Jitter::None).max_attempts(2))
        .circuit_breaker(touchy())
        .build()
        .unwrap();
    let (breaker, made, begin) = (policy.circuit_breaker().unwrap(), AtomicUsize::new(0), now());
    let attempt = || {
        breaker.force_open();
        ready(Err::<(), _>(made.fetch_add(1, SeqCst)))
    };
    assert_eq!(policy.call(attempt).await, Err(Error::Inner(0)), "the service's own answer says more than a refusal");
    assert_eq!((made.into_inner(), now() - begin), (1, secs(0)));
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_refused_when_the_circuit_opens_while_it_sleeps() {
    let policy = Policy::plain("flaky")
        .retry(Retry::constant(secs(1)).jitter(Jitter::None))
        .circuit_breaker(touchy().consecutive_failures(2))
        .build()
        .unwrap();
    let call = tokio::spawn({
        let policy = policy.clone();
        async move { policy.call(|| ready(Err::<(), _>("down"))).await }
    });
    settle().await;
    play(policy.circuit_breaker().unwrap(), "F");
    let no = call.await.unwrap().unwrap_err();
    assert_eq!(no.rejection().map(Rejection::reason), Some(Reason::CircuitOpen));
}

#[allow(clippy::disallowed_methods)] // a story that measures how long a call slept
fn now() -> Instant {
    Instant::now()
}
