//! A retry budget through calls and waits, against a list of when there were calls and retries.

use std::{cell::Cell, time::Duration};

use arbitrary::Arbitrary;
use buttress::{Backoff, Jitter, Retry, retry::Budget};
use tokio::time::advance;

use crate::{Share, Span, paused, with};

#[derive(Arbitrary, Debug)]
struct Input {
    /// So many times as much.
    ratio: Option<(Share, u8)>,
    per_second: u8,
    attempts: u8,
    events: Vec<Event>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Event {
    /// So many calls, of which each fails so many times.
    Calls {
        calls: u8,
        failures: u8,
    },
    Wait(Span),
    /// A fraction of the ten seconds.
    Pass(u16),
    Look,
}

const SPAN: u128 = 10_000_000_000;

/// Calls that may wait for somebody who looks at the clock.
const UNTIMED: usize = 63;

/// When there were calls, and when retries.
#[derive(Default)]
struct Model {
    now: u128,
    /// When they are counted, once somebody has looked at the clock.
    calls: Vec<Option<u128>>,
    /// When they were made.
    made: Vec<u128>,
    retries: Vec<u128>,
    /// Of a call to retries, as a fraction.
    ratio: (u128, u128),
    floor: u128,
}

impl Model {
    /// As far as nanoseconds go in a word.
    fn pass(&mut self, time: Duration) {
        self.now = (self.now + time.as_nanos()).min(u64::MAX.into());
    }

    fn look_at_the_clock(&mut self) {
        let now = self.now;
        self.calls.iter_mut().for_each(|at| {
            at.get_or_insert(now);
        });
    }

    fn deposit(&mut self) {
        let waiting = self.calls.iter().filter(|at| at.is_none()).count();
        self.calls.push(None);
        self.made.push(self.now);
        if waiting >= UNTIMED {
            self.look_at_the_clock();
        }
    }

    /// It slides in tenths.
    fn balance(&mut self) -> u64 {
        self.look_at_the_clock();
        let now = self.now;
        let lately = |at: u128| at / (SPAN / 10) + 10 > now / (SPAN / 10);
        self.calls.retain(|at| at.is_none_or(lately));
        let calls = self.calls.len() as u128;
        let retries = self.retries.iter().filter(|at| lately(**at)).count() as u128;
        (calls * self.ratio.0 / self.ratio.1 + self.floor).saturating_sub(retries) as u64
    }

    fn withdraw(&mut self) -> bool {
        let granted = self.balance() > 0;
        if granted {
            self.retries.push(self.now);
        }
        granted
    }
}

pub fn run(data: &[u8]) {
    with(data, |input: Input| paused(story(input)));
}

async fn story(Input { ratio, per_second, attempts, events }: Input) {
    let (share, times) = ratio.unwrap_or((Share { part: 1, whole: 5 }, 1));
    let times = u64::from(times % 10) + 1;
    let attempts = u32::from(attempts % 6) + 1;
    let per_second = u32::from(per_second % 20);
    // Twentieths, so that a float and a fraction round alike.
    let ratio = share.rate() * times as f64;
    let mut builder = Budget::builder().min_per_second(per_second);
    builder = builder.ratio(ratio);
    let budget = builder.build().expect("sensible settings");
    let retry = Retry::with(Backoff::constant(Duration::ZERO).jitter(Jitter::None)).max_attempts(attempts);
    let retry = retry.budget(budget.clone()).build().expect("sensible settings");
    let ratio = (u128::from(share.part * times), u128::from(share.whole));
    let mut model = Model { ratio, floor: u128::from(per_second) * 10, ..Model::default() };

    let mut total = 0;
    for event in events {
        match event {
            Event::Calls { calls, failures } => {
                for _ in 0..calls % 100 {
                    model.deposit();
                    let mut made = 1;
                    while made <= u32::from(failures) && made < attempts && model.withdraw() {
                        made += 1;
                    }
                    let seen = Cell::new(0);
                    let told = retry
                        .run(|number| {
                            seen.set(seen.get() + 1);
                            assert_eq!(number, seen.get());
                            async move { if number > u32::from(failures) { Ok(number) } else { Err(number) } }
                        })
                        .await;
                    assert_eq!(seen.get(), made, "attempts");
                    assert_eq!(told.is_ok(), made > u32::from(failures));
                }
                // More take long, and show no more.
                total += u32::from(calls % 100);
                if total > 500 {
                    break;
                }
            }
            Event::Wait(Span(time)) => {
                advance(time).await;
                model.pass(time);
            }
            Event::Pass(part) => {
                let time = Duration::from_nanos((SPAN * u128::from(part) / 60_000) as u64);
                advance(time).await;
                model.pass(time);
            }
            Event::Look => assert_eq!(budget.balance(), model.balance()),
        }
    }
    assert_eq!(budget.balance(), model.balance());
    // What it is there for, whatever way it slides: retries of nine seconds are paid for by the floor and the calls of ten.
    for (index, last) in model.retries.iter().enumerate() {
        let burst = model.retries[..=index].iter().filter(|at| **at + SPAN / 10 * 9 > *last).count() as u128;
        let calls = model.made.iter().filter(|at| **at <= *last && **at + SPAN > *last).count() + UNTIMED;
        assert!(burst <= calls as u128 * model.ratio.0 / model.ratio.1 + model.floor, "{burst} retries, {calls} calls");
    }
}
