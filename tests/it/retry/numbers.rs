//! The number of an attempt: who sees which.

use std::sync::{Arc, Mutex};

use buttress::{Deadline, DeadlineLayer, Error, Policy, retry::current_attempt};
use tower::{Layer, service_fn};

use super::every;
use crate::support::{ms, secs};

type Seen = Arc<Mutex<Vec<Option<u32>>>>;

/// Fails always, and notes which attempt it thinks it is: when it is called, and when it is polled.
async fn noting(seen: Seen) -> Result<(), Error<()>> {
    seen.lock().unwrap().push(current_attempt());
    tokio::task::yield_now().await;
    seen.lock().unwrap().push(current_attempt());
    Err(Error::Inner(()))
}

fn take(seen: &Seen) -> Vec<u32> {
    seen.lock().unwrap().drain(..).map(|number| number.unwrap_or(0)).collect()
}

#[tokio::test(start_paused = true)]
async fn closure_and_inner_service_know_the_number_of_their_attempt() {
    let (retry, seen) = (every(ms(10), 3).build().unwrap(), Seen::default());
    let by_argument = Mutex::new(Vec::new());
    let attempt = |number| {
        by_argument.lock().unwrap().push(number);
        noting(seen.clone())
    };
    retry.run_as(attempt).await.unwrap_err();
    assert_eq!(*by_argument.lock().unwrap(), [1, 2, 3]);
    assert_eq!(take(&seen), [1, 1, 2, 2, 3, 3]);

    let inner = service_fn({
        let seen = seen.clone();
        move |(): ()| {
            seen.lock().unwrap().push(current_attempt());
            noting(seen.clone())
        }
    });
    retry.layer().layer(inner).send(()).await.unwrap_err();
    assert_eq!(take(&seen), [1, 1, 1, 2, 2, 2, 3, 3, 3]);
    assert_eq!(current_attempt(), None);
}

#[tokio::test(start_paused = true)]
async fn a_nested_retry_counts_for_itself_and_leaves_the_outer_number_alone() {
    let (outer, inner) = (every(ms(10), 2).build().unwrap(), every(ms(10), 2).build().unwrap());
    let nested = Policy::plain("nested").retry(&inner).build().unwrap();
    let seen = Seen::default();
    outer
        .run_as(async |_| {
            let failed = nested.call_as(|| noting(seen.clone())).await;
            seen.lock().unwrap().push(current_attempt().map(|number| 10 * number));
            failed
        })
        .await
        .unwrap_err();
    assert_eq!(take(&seen), [1, 1, 2, 2, 10, 1, 1, 2, 2, 20]);
}

#[tokio::test(start_paused = true)]
async fn calls_side_by_side_in_one_task_do_not_mix_up_their_numbers() {
    let (quick, slow) = (every(ms(10), 3).build().unwrap(), every(ms(25), 2).build().unwrap());
    let (of_quick, of_slow) = (Seen::default(), Seen::default());
    let (a, b) = tokio::join!(quick.run_as(|_| noting(of_quick.clone())), slow.run_as(|_| noting(of_slow.clone())));
    assert!(a.is_err() && b.is_err());
    assert_eq!((take(&of_quick), take(&of_slow)), (vec![1, 1, 2, 2, 3, 3], vec![1, 1, 2, 2]));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_between_the_retry_and_the_service_does_not_hide_the_number() {
    let (retry, seen) = (every(ms(10), 2).build().unwrap(), Seen::default());
    let inner = service_fn({
        let seen = seen.clone();
        move |(): ()| noting(seen.clone())
    });
    retry.layer().layer(DeadlineLayer::new(secs(1)).layer(inner)).send(()).await.unwrap_err();
    assert_eq!(take(&seen), [1, 1, 2, 2], "below a layer");

    let attempt = async |_| Deadline::after(secs(1)).scope(noting(seen.clone())).await;
    retry.run_as(attempt).await.unwrap_err();
    assert_eq!(take(&seen), [1, 1, 2, 2], "in a scope");

    let attempt = async |_| Deadline::after(secs(1)).enforce(noting(seen.clone())).await;
    retry.run(attempt).await.unwrap_err();
    assert_eq!(take(&seen), [1, 1, 2, 2], "within `enforce`");
}

#[tokio::test(start_paused = true)]
async fn where_nothing_is_retried_there_is_no_number() {
    let asked = service_fn(async |(): ()| Ok::<_, Error<()>>(current_attempt()));
    assert_eq!(DeadlineLayer::new(secs(1)).layer(asked).send(()).await, Ok(None), "deadline layer");
    let deadline = Deadline::after(secs(1));
    assert_eq!(deadline.enforce(async { Ok::<_, ()>(current_attempt()) }).await, Ok(None), "enforce");
    let policy = Policy::plain("bare").timeout(secs(1)).build().unwrap();
    assert_eq!(policy.call(async || Ok::<_, ()>(current_attempt())).await, Ok(None), "policy without a retry");
}
