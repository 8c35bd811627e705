//! Everything that a call holds is given back exactly once, however it ends.

use std::{
    error::Error as StdError,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use buttress::{Deadline, retry::current_attempt};
use tokio::time::{advance, sleep};
use tokio_test::{assert_ready, task};
use tower::{BoxError, Service, ServiceExt};

use super::{Ask, OPEN_TIME, Strict, Subject, strict::Boom};
use crate::support::{ms, settle};

pub async fn when_dropped(subject: fn() -> Subject) {
    for probing in [false, true] {
        let mut polls = 0;
        while !dropped_after(polls, &subject(), probing).await {
            polls += 1;
        }
        assert!(polls >= 5, "there was something to wait for");
    }
}

/// Drops a call after so many polls, and tells whether it had finished: in a probe, or in one that fails at first. It
/// waits for a permit, for readiness, for an answer, and for the next attempt, where the layer does.
async fn dropped_after(polls: usize, subject: &Subject, probing: bool) -> bool {
    let strict = Strict::getting_ready_in(ms(10));
    if probing {
        subject.half_open().await;
    } else {
        strict.fail_next(1);
    }
    subject.crowd();
    let mut call = task::spawn(subject.over(strict.clone()).oneshot(Ask::Later));
    let mut finished = false;
    for n in 0..polls {
        if n == 4 {
            subject.resize(1);
        }
        finished = call.poll().is_ready();
        if finished {
            break;
        }
        advance(ms(5)).await;
    }
    let calls = strict.calls();
    drop(call);
    settle().await;
    assert_eq!((strict.running(), strict.reserved()), (0, 0), "after {polls} polls");
    assert!(subject.is_idle(), "after {polls} polls");
    sleep(ms(500)).await;
    assert_eq!(strict.calls(), calls, "nothing more is sent after {polls} polls");
    finished
}

pub async fn when_it_panics(subject: fn() -> Subject) {
    for ask in [Ask::PanicInCall, Ask::PanicInPoll, Ask::PanicInDrop] {
        for probing in [false, true] {
            let (subject, strict) = (subject(), Strict::default());
            subject.resize(1);
            if probing {
                subject.half_open().await;
            }
            let mut service = subject.over(strict.clone());
            service.ready().await.unwrap();
            let panicked = catch_unwind(AssertUnwindSafe(|| task::spawn(service.call(ask)).poll().is_pending()));
            panicked.expect_err("it panics");
            assert_eq!((strict.running(), strict.reserved()), (0, 0), "{ask:?}");
            assert_eq!((Deadline::current(), current_attempt()), (None, None), "{ask:?} leaves the thread as it was");
            // A probe that panicked has failed.
            sleep(OPEN_TIME).await;
            assert!(subject.is_idle(), "{ask:?}");
            assert_eq!(service.oneshot(Ask::Echo).await.unwrap(), 1);
        }
    }
}

pub async fn when_readiness_panics(subject: Subject) {
    let strict = Strict::default();
    subject.crowd();
    let mut queued = task::spawn(subject.over(strict.clone()).oneshot(Ask::Echo));
    let waits = queued.poll().is_pending();
    strict.panic_when_asked();
    subject.resize(1);
    if waits {
        catch_unwind(AssertUnwindSafe(|| queued.poll().is_pending())).expect_err("it panics");
    }
    drop(queued);
    assert!(subject.is_idle());

    let mut service = subject.over(strict.clone());
    let mut readying = task::spawn(service.ready());
    catch_unwind(AssertUnwindSafe(|| readying.poll().is_pending())).expect_err("it panics");
    drop(readying);
    assert!(subject.is_idle());
    assert_eq!((Deadline::current(), current_attempt()), (None, None));
}

pub async fn when_finished(subject: Subject) {
    let strict = Strict::default();
    for ask in [Ask::Echo, Ask::Later, Ask::Fail] {
        let mut call = task::spawn(subject.over(strict.clone()).oneshot(ask));
        while call.poll().is_pending() {
            advance(ms(10)).await;
        }
        assert_eq!((strict.running(), strict.reserved()), (0, 0), "{ask:?}");
        assert!(subject.is_idle(), "{ask:?}");
        drop(call);
        assert!(subject.is_idle(), "{ask:?}, given back once");
    }
}

pub async fn errors_unchanged(subject: Subject) {
    let error = subject.over(Strict::default()).oneshot(Ask::Fail).await.unwrap_err();
    is_boom(&error, "asked to fail");
}

pub async fn readiness_errors_unchanged(subject: Subject) {
    let strict = Strict::default();
    subject.resize(1);
    // A call that has queued, or has failed once, asks again whether the service is ready.
    for prepare in [Subject::crowd, |_: &Subject| ()] {
        strict.be_fine();
        strict.fail_next(1);
        prepare(&subject);
        let mut call = task::spawn(subject.over(strict.clone()).oneshot(Ask::Echo));
        let waits = call.poll().is_pending();
        let before = strict.calls();
        strict.be_gone();
        subject.resize(1);
        if waits {
            advance(Duration::from_secs(1)).await;
            is_boom(&assert_ready!(call.poll()).unwrap_err(), "gone");
            assert_eq!(strict.calls(), before, "nothing is sent to a service that is gone");
        }
        drop(call);
        assert!(subject.is_idle());
    }
    is_boom(&subject.over(strict.clone()).ready().await.expect_err("gone"), "gone");
    if let Some(breaker) = &subject.breaker {
        let failures = breaker.snapshot().consecutive_failures as usize;
        assert_eq!(failures, strict.calls(), "every call that was made failed, and nothing else counts");
    }
    assert!(subject.is_idle());
}

fn is_boom(error: &BoxError, what: &str) {
    let boom: &Boom = error.downcast_ref().unwrap_or_else(|| panic!("another error: {error}"));
    assert_eq!(boom.what, what);
    assert_eq!(boom.source().unwrap().to_string(), "the cause");
}
