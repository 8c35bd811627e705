//! How long a call waits, and what it leaves behind when it does no longer.

use std::future::pending;

use buttress::{ConcurrencyLimit, Deadline, Policy, Reason, Rule};
use tokio::time::{Instant, advance, sleep};
use tokio_test::{
    assert_pending, assert_ready_ok,
    task::{self, Spawn},
};

use super::{Way, at_most, limit, work};
use crate::support::{Counts, ms, settle};

/// Fails instead of waiting for ever.
async fn in_time<F: Future>(call: F) -> F::Output {
    tokio::time::timeout(ms(3_600_000), call).await.expect("nothing ends the wait")
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_exactly_at_max_wait() {
    for way in Way::ALL {
        let limit = at_most(1, 1).max_wait(ms(100)).build().unwrap();
        let _held = limit.try_acquire().unwrap();
        let began = Instant::now();
        let no = in_time(way.enter(&limit, async {})).await.unwrap_err();
        assert_eq!(began.elapsed(), ms(100), "{way:?}");
        assert_eq!((no.reason(), no.rule()), (Reason::Overloaded, Rule::MaxWait), "{way:?}");
        assert_eq!((no.measured(), no.threshold()), (Some(0.1), Some(0.1)), "{way:?}");
        assert!(no.to_string().ends_with("is overloaded: waited 0.100 s, 0.100 s is the most"), "{way:?}: {no}");
        assert_eq!((limit.in_flight(), limit.waiting()), (1, 0), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_max_wait_a_call_waits_for_as_long_as_it_takes() {
    for way in Way::ALL {
        let limit = limit(1, 1);
        let held = limit.try_acquire().unwrap();
        let mut call = way.start(&limit, async {});
        assert_pending!(call.poll());
        advance(ms(86_400_000)).await;
        assert!(!call.is_woken(), "{way:?}");
        drop(held);
        assert_ready_ok!(call.poll());
    }
}

// The wait is bounded, not the work: that is what the timeout is for.
#[tokio::test(start_paused = true)]
async fn max_wait_does_not_bound_the_work() {
    for way in Way::ALL {
        let limit = at_most(1, 1).max_wait(ms(100)).build().unwrap();
        let held = limit.try_acquire().unwrap();
        let mut call = way.start(&limit, async { sleep(ms(1000)).await });
        assert_pending!(call.poll());
        advance(ms(99)).await;
        drop(held);
        let admitted = Instant::now();
        assert_eq!(call.await, Ok(()), "{way:?}");
        assert_eq!(admitted.elapsed(), ms(1000), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_nearer_of_deadline_and_max_wait_ends_the_wait() {
    let table = [(50, 80, Rule::Deadline), (80, 50, Rule::MaxWait)];
    for (way, (deadline, max_wait, rule)) in Way::ALL.iter().flat_map(|way| table.map(|row| (*way, row))) {
        let limit = at_most(1, 1).max_wait(ms(max_wait)).build().unwrap();
        let _held = limit.try_acquire().unwrap();
        let (within, began) = (Deadline::after(ms(deadline)), Instant::now());
        let no = in_time(within.scope(async { way.enter(&limit, async {}).await })).await.unwrap_err();
        assert_eq!((no.rule(), began.elapsed()), (rule, ms(50)), "{way:?}");
        assert_eq!(no.reason() == Reason::DeadlineExceeded, rule == Rule::Deadline, "{way:?}");
        assert_eq!((limit.in_flight(), limit.waiting()), (1, 0), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_way_tells_the_same_rule_where_deadline_and_max_wait_meet() {
    let mut rules = Vec::new();
    for way in Way::ALL {
        let limit = at_most(1, 1).max_wait(ms(50)).build().unwrap();
        let _held = limit.try_acquire().unwrap();
        let call = Deadline::after(ms(50)).scope(async { way.enter(&limit, async {}).await });
        rules.push(in_time(call).await.unwrap_err().rule());
    }
    assert_eq!(rules, [Rule::MaxWait; 7]);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_the_policy_itself_bounds_the_wait() {
    let limit = limit(1, 1);
    let policy = Policy::plain("stock").deadline(ms(70)).concurrency_limit(&limit).build().unwrap();
    let _held = limit.try_acquire().unwrap();
    let began = Instant::now();
    let error = in_time(policy.call(|| async { Ok::<_, std::io::Error>(()) })).await.unwrap_err();
    assert_eq!(error.rejection().unwrap().rule(), Rule::Deadline);
    assert_eq!((began.elapsed(), limit.waiting()), (ms(70), 0));
}

#[tokio::test(start_paused = true)]
async fn a_grant_and_the_end_of_the_wait_in_one_poll_make_a_grant() {
    for way in Way::ALL {
        let limit = at_most(1, 1).max_wait(ms(100)).build().unwrap();
        let held = limit.try_acquire().unwrap();
        let mut call = task::spawn(async { way.enter(&limit, async {}).await });
        assert_pending!(call.poll());
        advance(ms(150)).await;
        settle().await;
        assert!(call.is_woken(), "{way:?}: the time is up");
        drop(held);
        assert_ready_ok!(call.poll(), "{way:?}: but it has the permit");
        assert_eq!((limit.in_flight(), limit.waiting()), (0, 0), "{way:?}");
    }
}

#[test]
fn a_waiter_that_is_dropped_leaves_no_trace() {
    for way in Way::ALL {
        for gone in 0..3 {
            let (limit, counts) = (limit(1, 3), Counts::default());
            let held = limit.try_acquire().unwrap();
            let mut watch = task::spawn(());
            let mut line: Vec<_> = (0..3).map(|_| Some(way.start(&limit, work(&counts).1))).collect();
            line.iter_mut().flatten().for_each(|waiter| assert_pending!(waiter.poll()));
            let mut leaving = line[gone].take().unwrap().into_inner();
            watch.enter(|cx, _| assert_pending!(leaving.as_mut().poll(cx)));
            assert_eq!(watch.waker_ref_count(), 2, "{way:?}: the queue knows whom to wake");
            drop(leaving);
            assert_eq!(watch.waker_ref_count(), 1, "{way:?}: and forgets it");
            assert_eq!((limit.in_flight(), limit.waiting()), (1, 2), "{way:?}");

            drop(held);
            let woken: Vec<_> = line.iter().map(|waiter| waiter.as_ref().is_some_and(|w| w.is_woken())).collect();
            let next = if gone == 0 { 1 } else { 0 };
            assert_eq!(woken, [0, 1, 2].map(|place| place == next), "{way:?}: the line closes up");
        }
    }
}

// HAZARD: L6
#[test]
fn a_waiter_dropped_while_it_is_being_granted_passes_the_permit_on() {
    for way in Way::ALL {
        let (limit, counts) = (limit(1, 3), Counts::default());
        let held = limit.try_acquire().unwrap();
        let [mut first, mut second, mut third] = [0; 3].map(|_| way.start(&limit, work(&counts).1));
        assert_pending!(first.poll());
        assert_pending!(second.poll());
        assert_pending!(third.poll());
        drop(held);
        assert!(first.is_woken() && !second.is_woken(), "{way:?}");
        drop(first);
        assert!(second.is_woken() && !third.is_woken(), "{way:?}");
        drop(second);
        assert!(third.is_woken(), "{way:?}");
        assert_eq!((limit.in_flight(), limit.waiting()), (1, 0), "{way:?}");
        drop(third);
        assert_eq!((limit.in_flight(), limit.waiting(), counts.calls()), (0, 0, 0), "{way:?}");
    }
}

// The layers queue in `call`, before anything is polled: there is nobody to wake yet.
// HAZARD: L6
#[test]
fn a_call_that_is_granted_a_permit_before_its_first_poll_finds_it_there() {
    for way in [Way::Layer, Way::PolicyLayer, Way::PolicyWrap] {
        let limit = limit(1, 2);
        let held = limit.try_acquire().unwrap();
        let (unpolled, mut polled) = (way.start(&limit, async {}), way.start(&limit, async {}));
        assert_eq!(limit.waiting(), 2, "{way:?}");
        drop(held);
        assert_eq!((limit.in_flight(), limit.waiting()), (1, 1), "{way:?}");
        drop(unpolled);
        assert_eq!((limit.in_flight(), limit.waiting()), (1, 0), "{way:?}");
        assert_ready_ok!(polled.poll());
        assert_eq!(limit.in_flight(), 0, "{way:?}");
    }
}

// HAZARD: L6
#[test]
fn churn_in_the_queue_leaves_nothing_behind() {
    let (limit, mut watch) = (limit(2, 5), task::spawn(()));
    for round in 0..34_000 {
        churn(&limit, &mut watch, round);
        assert_eq!((limit.in_flight(), limit.waiting()), (0, 0), "round {round}");
    }
    assert_eq!(watch.waker_ref_count(), 1, "no waker is kept");
}

/// Three wait; some are served, some leave, some are dropped with the permit in their hands.
fn churn(limit: &ConcurrencyLimit, watch: &mut Spawn<()>, round: usize) {
    let held = (limit.try_acquire().unwrap(), limit.try_acquire().unwrap());
    let [mut first, mut second, mut third] = [0, 1, 2].map(|place| {
        let mut waiter = Way::ALL[(round + place) % 7].enter(limit, async {});
        watch.enter(|cx, _| assert_pending!(waiter.as_mut().poll(cx)));
        waiter
    });
    match round % 4 {
        0 => drop((second, third, first, held)),
        1 => drop((held, third, first, second)),
        2 => drop((first, held.0, second, held.1, third)),
        _ => {
            drop(held);
            watch.enter(|cx, _| assert_pending!(third.as_mut().poll(cx)));
            for waiter in [&mut first, &mut third, &mut second] {
                watch.enter(|cx, _| assert_ready_ok!(waiter.as_mut().poll(cx)));
            }
        }
    }
}

#[test]
fn a_waiter_that_is_never_polled_again_keeps_nobody_else_from_leaving() {
    let limit = limit(1, 3);
    let held = limit.try_acquire().unwrap();
    let [mut idle, mut leaver, mut last] = [0; 3].map(|_| Way::Acquire.start(&limit, pending()));
    assert_pending!(idle.poll());
    assert_pending!(leaver.poll());
    assert_pending!(last.poll());
    drop(held);
    drop(leaver);
    assert_eq!((limit.in_flight(), limit.waiting()), (1, 1));
    drop(idle);
    assert!(last.is_woken());
    assert_pending!(last.poll());
    assert_eq!((limit.in_flight(), limit.waiting()), (1, 0));
}
