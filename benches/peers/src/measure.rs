//! How calls are run and timed. Every answer is checked.

use std::{
    future::poll_fn,
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;
use tower::Service;

use crate::inner::Client;

/// What the calls of a subject end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    Answered,
    Refused,
}

/// Makes calls.
pub trait Runner {
    /// Makes so many calls, and tells how long they took.
    fn run(&mut self, calls: u64) -> Duration;
}

/// One call after the other, polled by hand: nothing but the subject is measured.
pub struct ByHand<S> {
    pub service: S,
    pub ends: Ends,
    /// Runs for calls that wait for a timer.
    pub runtime: &'static Runtime,
}

impl<S: Client> Runner for ByHand<S> {
    fn run(&mut self, calls: u64) -> Duration {
        let start = Instant::now();
        for n in 0..calls {
            one(&mut self.service, black_box(n), self.ends, self.runtime);
        }
        start.elapsed()
    }
}

/// One call, polled until it is answered. What is not after two polls waits for a timer.
#[inline(never)]
pub fn one<S: Service<u64, Response = u64>>(service: &mut S, req: u64, ends: Ends, runtime: &Runtime) {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());
    let mut call = pin!(service.call(req));
    let mut polls = 0;
    // One place that polls, as an `.await` is: compilers inline it there.
    while polls < 2 {
        if let Poll::Ready(outcome) = call.as_mut().poll(&mut cx) {
            return check(outcome, req, ends);
        }
        polls += 1;
    }
    check(runtime.block_on(call), req, ends);
}

#[inline(always)]
fn check<E>(outcome: Result<u64, E>, req: u64, ends: Ends) {
    match outcome {
        Ok(res) => assert!(black_box(res) == req && ends == Ends::Answered),
        Err(error) => {
            assert!(ends == Ends::Refused);
            black_box(&error);
        }
    }
}

/// So many tasks call at a time.
pub const TASKS: u64 = 64;

/// [`TASKS`] tasks on a runtime, each with a clone of the service.
pub struct InTasks<S> {
    pub service: S,
    pub ends: Ends,
    pub runtime: &'static Runtime,
    pub tasks: u64,
}

impl<S: Client> Runner for InTasks<S> {
    fn run(&mut self, calls: u64) -> Duration {
        let (each, ends) = (calls / self.tasks, self.ends);
        let calling = |mut service: S| async move {
            for n in 0..each {
                let req = black_box(n);
                assert!(poll_fn(|cx| service.poll_ready(cx)).await.is_ok());
                check(service.call(req).await, req, ends);
            }
        };
        let start = Instant::now();
        let tasks: Vec<_> = (0..self.tasks).map(|_| self.runtime.spawn(calling(self.service.clone()))).collect();
        self.runtime.block_on(async {
            for task in tasks {
                task.await.expect("a call ended as it should not");
            }
        });
        start.elapsed()
    }
}

/// A runtime of so many workers, for as long as the process runs; of none, it runs in `block_on` only.
pub fn runtime(workers: usize) -> &'static Runtime {
    let mut runtime = match workers {
        0 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.worker_threads(workers.max(1)).enable_time().build();
    Box::leak(Box::new(runtime.expect("a runtime of tokio")))
}

/// Nanoseconds per call, of each round.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<f64>);

impl Times {
    pub fn median(&self) -> f64 {
        quantile(self.0.clone(), 0.5)
    }

    /// As the median, less what the machine did meanwhile: the tenth percentile.
    pub fn low(&self) -> f64 {
        quantile(self.0.clone(), 0.1)
    }

    /// The median of the rounds' ratios to those of `base`, which a drift of the machine does not touch.
    pub fn to(&self, base: &Times) -> f64 {
        quantile(self.0.iter().zip(&base.0).map(|(mine, base)| mine / base).collect(), 0.5)
    }

    /// The median of what the rounds took beyond those of `base`.
    pub fn beyond(&self, base: &Times) -> Times {
        Times(self.0.iter().zip(&base.0).map(|(mine, base)| mine - base).collect())
    }
}

fn quantile(mut values: Vec<f64>, at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * at).round() as usize]
}

/// How many calls a runner makes when it has its turn.
#[derive(Clone, Copy, Debug)]
pub enum Turn {
    /// As many as take about so long.
    Lasting(Duration),
    Of(u64),
}

/// Times all of them round by round, in turns, forth and back: A B C, C B A, and so on.
pub fn interleaved(runners: &mut [(&mut dyn Runner, Turn)], rounds: usize) -> Vec<Times> {
    let mut batches: Vec<u64> = runners.iter_mut().map(|(runner, turn)| batch(*runner, *turn)).collect();
    let mut times = vec![Times::default(); runners.len()];
    for round in 0..rounds {
        for turn in 0..runners.len() {
            let at = if round % 2 == 0 { turn } else { runners.len() - 1 - turn };
            let took = runners[at].0.run(batches[at]);
            times[at].0.push(took.as_nanos() as f64 / batches[at] as f64);
            // One that gets slower, since it remembers its calls, makes fewer of them: rounds stay short. And one that was
            // held up when its calls were set makes more again, or it would do little but start its tasks.
            if let Turn::Lasting(time) = runners[at].1
                && (took > time * 4 || took * 4 < time)
            {
                batches[at] = fitting(batches[at], took, time);
            }
        }
    }
    times
}

/// How many calls are a turn.
fn batch(runner: &mut dyn Runner, turn: Turn) -> u64 {
    let time = match turn {
        Turn::Lasting(time) => time,
        Turn::Of(calls) => return calls,
    };
    let mut calls = TASKS;
    loop {
        let took = runner.run(calls);
        if took * 2 >= time {
            return fitting(calls, took, time);
        }
        calls *= 2;
    }
}

/// How many calls take `time`, if so many took so long; and at least one in each task.
fn fitting(calls: u64, took: Duration, time: Duration) -> u64 {
    let fit = calls as f64 * time.as_secs_f64() / took.as_secs_f64();
    (fit as u64).max(1).next_multiple_of(TASKS)
}
