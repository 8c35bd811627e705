//! A concurrency limit through anything that can happen to it, against a queue that is a `VecDeque`.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use arbitrary::Arbitrary;
use buttress::{ConcurrencyLimit, Deadline, Error, Rejection, Rule, concurrency_limit::Permit};
use tokio::time::advance;

use crate::{Span, Woken, paused, with};

#[derive(Arbitrary, Debug)]
struct Input {
    max_in_flight: u8,
    max_queue: u8,
    max_wait: Option<Span>,
    events: Vec<Event>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Event {
    /// Asks, and does not wait.
    Try,
    /// Asks, and waits if need be: for a permit, or with a call that runs until it is told to end.
    Ask {
        call: bool,
        within: Option<Span>,
    },
    /// One of those that wait is polled, whether or not it was woken.
    Poll {
        which: u8,
    },
    /// All that were woken are polled.
    PollWoken,
    /// One of those that wait is dropped, granted or not.
    Leave {
        which: u8,
    },
    /// One that is in flight ends.
    End {
        which: u8,
    },
    Resize(u8),
    Wait(Span),
}

type Asked = Result<Held, Rejection>;

/// What is in flight.
enum Held {
    Permit { _permit: Permit },
    Call { _call: Pin<Box<dyn Future<Output = Asked>>> },
}

/// Who has asked and knows nothing yet.
struct Waiter {
    number: usize,
    asked: Pin<Box<dyn Future<Output = Asked>>>,
    /// Whether it is a call, which runs on once it has its permit.
    call: bool,
    /// When it gives up, and why.
    ends: Option<(Duration, Rule)>,
    woken: Arc<Woken>,
    /// How often it had been, when it was last polled.
    seen: usize,
}

struct Pair {
    limit: ConcurrencyLimit,
    max_wait: Option<Duration>,
    now: Duration,
    asked: usize,
    waiters: Vec<Waiter>,
    held: Vec<Held>,
    // ## the model
    max_in_flight: usize,
    max_queue: usize,
    /// Numbers of those that wait, the first first.
    queue: VecDeque<usize>,
    /// Those that have a permit and do not know yet.
    granted: Vec<usize>,
}

impl Pair {
    fn in_flight(&self) -> usize {
        self.held.len() + self.granted.len()
    }

    /// To those who wait longest, whatever there is.
    fn grant(&mut self) {
        while self.in_flight() < self.max_in_flight {
            let Some(next) = self.queue.pop_front() else { break };
            self.granted.push(next);
        }
    }

    fn has_room(&self) -> bool {
        self.queue.is_empty() && self.in_flight() < self.max_in_flight
    }

    fn ask(&mut self, call: bool, within: Option<Span>) {
        let limit = self.limit.clone();
        let asked: Pin<Box<dyn Future<Output = Asked>>> = match (call, within) {
            (false, None) => Box::pin(async move { Ok(Held::Permit { _permit: limit.acquire().await? }) }),
            (false, Some(Span(time))) => {
                let deadline = Deadline::after(time);
                Box::pin(async move { Ok(Held::Permit { _permit: deadline.scope(limit.acquire()).await? }) })
            }
            // It never ends by itself.
            (true, _) => Box::pin(async move {
                match limit.call(std::future::pending::<Result<Held, ()>>()).await {
                    Err(Error::Rejected(rejection)) => Err(rejection),
                    _ => unreachable!("it is pending for ever"),
                }
            }),
        };
        let waits = self.max_wait.map(|time| (self.now.saturating_add(time), Rule::MaxWait));
        let in_time = within.filter(|_| !call).map(|Span(time)| (self.now + time, Rule::Deadline));
        let ends = waits.into_iter().chain(in_time).min_by_key(|(at, _)| *at);
        let mut waiter = Waiter { number: self.asked, asked, call, ends, woken: Arc::default(), seen: 0 };
        self.asked += 1;

        let room = self.has_room();
        let queued = !room && self.queue.len() < self.max_queue;
        if queued {
            self.queue.push_back(waiter.number);
        }
        let polled = waiter.poll();
        match (polled, room, queued) {
            (Poll::Ready(Ok(held)), true, _) => self.held.push(held),
            // A call runs from here on.
            (Poll::Pending, true, _) if call => self.held.push(Held::Call { _call: waiter.asked }),
            (Poll::Pending, _, true) => self.waiters.push(waiter),
            // Its time is over before it began to wait.
            (Poll::Ready(Err(rejection)), _, true) => {
                self.queue.pop_back();
                assert!(
                    waiter.ends.is_some_and(|(at, rule)| at <= self.now && rule == rejection.rule()),
                    "{rejection}"
                );
            }
            (Poll::Ready(Err(rejection)), false, false) => {
                let rule = if self.max_queue == 0 { Rule::LimitReached } else { Rule::QueueFull };
                assert_eq!(rejection.rule(), rule);
                assert_eq!(rejection.retry_after(), None);
            }
            (polled, ..) => panic!("{}, with room: {room}, queued: {queued}", told(&polled)),
        }
    }

    /// One that waits finds out.
    fn poll(&mut self, index: usize) {
        let waiter = &mut self.waiters[index];
        let number = waiter.number;
        let polled = waiter.poll();
        if let Some(granted) = self.granted.iter().position(|granted| *granted == number) {
            let waiter = self.waiters.swap_remove(index);
            self.granted.swap_remove(granted);
            match polled {
                Poll::Ready(Ok(held)) => self.held.push(held),
                Poll::Pending if waiter.call => self.held.push(Held::Call { _call: waiter.asked }),
                polled => panic!("it was granted, but {}", told(&polled)),
            }
            return;
        }
        // Timers are as fine as a millisecond.
        let over = waiter.ends.filter(|(at, _)| *at <= self.now);
        let surely = over.is_some_and(|(at, _)| at + Duration::from_millis(1) <= self.now);
        match polled {
            Poll::Pending => assert!(!surely, "it waits for ever"),
            Poll::Ready(Err(rejection)) => {
                let (_, rule) = over.expect("its time is not over yet");
                assert_eq!(rejection.rule(), rule);
                self.queue.retain(|waiting| *waiting != number);
                self.waiters.swap_remove(index);
            }
            Poll::Ready(Ok(_)) => panic!("it was not its turn"),
        }
    }

    async fn step(&mut self, event: Event) {
        match event {
            Event::Try => {
                let room = self.has_room();
                match self.limit.try_acquire() {
                    Ok(permit) => {
                        assert!(room, "there was no room, or somebody was before it");
                        self.held.push(Held::Permit { _permit: permit });
                    }
                    Err(rejection) => {
                        assert!(!room, "there was room");
                        assert_eq!(rejection.rule(), Rule::LimitReached);
                        assert_eq!(rejection.measured(), Some(self.in_flight() as f32));
                        assert_eq!(rejection.threshold(), Some(self.max_in_flight as f32));
                    }
                }
            }
            Event::Ask { call, within } => self.ask(call, within),
            Event::Poll { which } => {
                if let Some(index) = any(which, self.waiters.len()) {
                    self.poll(index);
                }
            }
            Event::PollWoken => {
                for index in (0..self.waiters.len()).rev() {
                    if self.waiters[index].woken.times() > self.waiters[index].seen {
                        self.poll(index);
                    }
                }
            }
            Event::Leave { which } => {
                if let Some(index) = any(which, self.waiters.len()) {
                    let number = self.waiters.swap_remove(index).number;
                    self.queue.retain(|waiting| *waiting != number);
                    self.granted.retain(|granted| *granted != number);
                }
            }
            Event::End { which } => {
                if let Some(index) = any(which, self.held.len()) {
                    self.held.swap_remove(index);
                }
            }
            Event::Resize(calls) => {
                self.max_in_flight = usize::from(calls % 16);
                self.limit.resize(self.max_in_flight);
            }
            Event::Wait(Span(time)) => {
                // A deadline looks no further than 73 years from the first of the process.
                let time = time.min(Duration::from_secs(86_400));
                advance(time).await;
                self.now += time;
            }
        }
        self.grant();
        self.agree();
    }

    fn agree(&self) {
        assert_eq!(self.limit.in_flight(), self.in_flight());
        assert_eq!(self.limit.waiting(), self.queue.len());
        assert_eq!(self.limit.max_in_flight(), self.max_in_flight);
        assert!(self.queue.len() <= self.max_queue);
        // Nobody waits where there is room, and whoever was granted a permit was told.
        assert!(self.queue.is_empty() || self.in_flight() >= self.max_in_flight);
        for waiter in self.waiters.iter().filter(|waiter| self.granted.contains(&waiter.number)) {
            assert!(waiter.woken.times() > waiter.seen, "it was not woken");
        }
    }
}

impl Waiter {
    fn poll(&mut self) -> Poll<Asked> {
        self.seen = self.woken.times();
        let waker = Waker::from(Arc::clone(&self.woken));
        self.asked.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

fn any(which: u8, of: usize) -> Option<usize> {
    usize::from(which).checked_rem(of)
}

fn told(polled: &Poll<Asked>) -> String {
    match polled {
        Poll::Pending => "it waits".into(),
        Poll::Ready(Ok(_)) => "it has a permit".into(),
        Poll::Ready(Err(rejection)) => rejection.to_string(),
    }
}

pub fn run(data: &[u8]) {
    with(data, |Input { max_in_flight, max_queue, max_wait, events }: Input| {
        paused(async {
            let (max_in_flight, max_queue) = (usize::from(max_in_flight % 8) + 1, usize::from(max_queue % 8));
            let mut builder = ConcurrencyLimit::builder().max_in_flight(max_in_flight).max_queue(max_queue);
            let max_wait = max_wait.map(Span::or_a_nano);
            if let Some(time) = max_wait {
                builder = builder.max_wait(time);
            }
            let mut pair = Pair {
                limit: builder.build().expect("sensible settings"),
                max_wait,
                now: Duration::ZERO,
                asked: 0,
                waiters: Vec::new(),
                held: Vec::new(),
                max_in_flight,
                max_queue,
                queue: VecDeque::new(),
                granted: Vec::new(),
            };
            for event in events {
                pair.step(event).await;
            }
            // All go, and nothing is left.
            pair.waiters.clear();
            pair.held.clear();
            assert_eq!((pair.limit.in_flight(), pair.limit.waiting()), (0, 0));
        });
    });
}
