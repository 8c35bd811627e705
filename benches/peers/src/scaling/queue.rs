//! More and more calls that wait for the one permit of a limit.

use std::{
    fmt::Debug,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use buttress::ConcurrencyLimit;
use tokio::sync::Semaphore;
use tower::{BoxError, Layer, Service};

use super::{
    random::Random,
    sweep::{Column, Sweep},
};
use crate::{inner::AtOnce, measure::Runner, subject::Runtimes};

/// In a turn.
const CALLS: u64 = 20_000;

pub fn sweep(_: &Runtimes) -> Sweep {
    let sizes = vec![1, 10, 100, 1_000, 10_000];
    let layer = |waiting| {
        let limit = one_at_a_time();
        let permit = limit.try_acquire().unwrap();
        let mut service = limit.layer().layer(AtOnce::<BoxError>::new());
        Line::new(waiting, permit, move || service.call(1))
    };
    let acquire = |waiting| {
        let limit = Arc::new(one_at_a_time());
        let permit = limit.try_acquire().unwrap();
        Line::new(waiting, permit, move || {
            let limit = limit.clone();
            async move { limit.acquire().await.map(|_permit| 1) }
        })
    };
    let tokio = |waiting| {
        let semaphore = Arc::new(Semaphore::new(1));
        let permit = semaphore.clone().try_acquire_owned().unwrap();
        Line::new(waiting, permit, move || {
            let acquiring = semaphore.clone().acquire_owned();
            async move { acquiring.await.map(|_permit| 1) }
        })
    };
    let [layer, acquire, tokio] = [
        pair(["buttress, layer: hand-over", "one leaves"], &sizes, layer),
        pair(["buttress, `acquire`: hand-over", "one leaves"], &sizes, acquire),
        pair(["tokio, `acquire_owned`: hand-over", "one leaves"], &sizes, tokio),
    ];
    Sweep {
        title: "The queue of a limit of one: ns from one who has the permit to the next, and for one who leaves from \
                anywhere in the queue; in both, another joins at its end",
        of: "waiting",
        sizes,
        columns: [layer, acquire, tokio].into_iter().flatten().collect(),
        because: "Hand-over is flat: the first of a list is taken out, and all go round in the order in which they joined. Who \
                  leaves is unlinked from the middle without a search, but from a random place between two neighbours, and \
                  10,000 of these lie outside of the core's own caches, here and in tokio. `acquire` reads the clock when it \
                  begins to wait; the layer only if there is an end to the wait, or a breaker.",
    }
}

fn one_at_a_time() -> ConcurrencyLimit {
    ConcurrencyLimit::builder().max_in_flight(1).max_queue(1 << 20).build().unwrap()
}

/// Hand-overs, and leaving.
fn pair<F, M>(names: [&'static str; 2], sizes: &[u64], line: impl Fn(u64) -> Line<F, M>) -> [Column; 2]
where
    F: Future<Output: Answer> + 'static,
    M: FnMut() -> F + 'static,
{
    [false, true].map(|leaving| {
        let column = |waiting| Some((InLine { line: line(waiting), leaving, random: Random::default() }, CALLS));
        Column::cost(names[usize::from(leaving)], sizes, column)
    })
}

/// Calls that take the permit, are answered at once, and give it back. All but the first wait.
struct Line<F, M> {
    calls: Vec<Pin<Box<F>>>,
    /// Who has been given the permit, and has not run yet. The queue goes on from there, and round.
    first: usize,
    make: M,
}

impl<F: Future<Output: Answer>, M: FnMut() -> F> Line<F, M> {
    /// All of them find the permit taken.
    fn new<P>(waiting: u64, permit: P, mut make: M) -> Self {
        let calls = (0..=waiting).map(|_| Box::pin(make())).collect();
        let mut line = Self { calls, first: 0, make };
        (0..line.calls.len()).for_each(|at| line.waits(at));
        drop(permit);
        line
    }

    fn hand_over(&mut self) {
        let first = self.first;
        let Poll::Ready(answer) = self.poll(first) else { panic!("it was not given the permit") };
        answer.check();
        self.join(first);
        self.first = if first + 1 == self.calls.len() { 0 } else { first + 1 };
    }

    /// A new call takes this one's place in the list, and the last of the queue.
    fn join(&mut self, at: usize) {
        let call = (self.make)();
        self.calls[at].set(call);
        self.waits(at);
    }

    fn waits(&mut self, at: usize) {
        assert!(self.poll(at).is_pending());
    }

    fn poll(&mut self, at: usize) -> Poll<F::Output> {
        self.calls[at].as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }
}

struct InLine<F, M> {
    line: Line<F, M>,
    /// Or else it hands over. Who leaves leaves the list out of order, so never both.
    leaving: bool,
    random: Random,
}

impl<F: Future<Output: Answer>, M: FnMut() -> F> Runner for InLine<F, M> {
    fn run(&mut self, calls: u64) -> Duration {
        let start = Instant::now();
        for _ in 0..calls {
            if self.leaving {
                let waiting = self.line.calls.len() as u64 - 1;
                self.line.join(1 + self.random.below(waiting) as usize);
            } else {
                self.line.hand_over();
            }
        }
        start.elapsed()
    }
}

trait Answer {
    fn check(self);
}

impl<E: Debug> Answer for Result<u64, E> {
    fn check(self) {
        assert_eq!(self.expect("nothing refuses it"), 1);
    }
}
