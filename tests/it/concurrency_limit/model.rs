//! Random scripts against a plain model of a line of people.

use std::{collections::VecDeque, task::Poll, time::Duration};

use buttress::{ConcurrencyLimit, Rule};
use proptest::{prelude::*, sample::Index};
use tokio::{sync::oneshot, time::advance};

use super::{Call, Way, at_most, work};
use crate::support::{Counts, ms, settle};

const MAX_WAIT: Duration = ms(20);
const MAX_QUEUE: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    /// A call, with or without a first poll.
    Start(Index, bool),
    Poll(Index),
    Finish(Index),
    Drop(Index),
    Resize(usize),
    Advance(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<Index>(), prop::bool::weighted(0.8)).prop_map(|(way, polled)| Step::Start(way, polled)),
        5 => any::<Index>().prop_map(Step::Poll),
        4 => any::<Index>().prop_map(Step::Finish),
        3 => any::<Index>().prop_map(Step::Drop),
        1 => (0_usize..5).prop_map(Step::Resize),
        2 => (1_u64..15).prop_map(Step::Advance),
    ]
}

/// What the model knows of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Not polled, and so not asked for anything: only ways that begin when they are polled.
    Outside,
    /// Since its first poll, if there was one.
    Waiting(Option<u64>),
    /// With whether anybody had to be woken.
    Granted(bool),
    Running,
}

struct Member {
    number: usize,
    place: Place,
    call: Call,
    end: Option<oneshot::Sender<()>>,
}

/// The model, with the real thing beside it.
struct World {
    limit: ConcurrencyLimit,
    counts: Counts,
    members: Vec<Member>,
    /// Calls that have ended, whose futures are kept: they must hold nothing.
    kept: Vec<Call>,
    max: usize,
    in_flight: usize,
    line: VecDeque<usize>,
    now: u64,
    started: usize,
}

impl World {
    fn new(max: usize) -> Self {
        Self {
            limit: at_most(max, MAX_QUEUE).max_wait(MAX_WAIT).build().unwrap(),
            counts: Counts::default(),
            members: Vec::new(),
            kept: Vec::new(),
            max,
            in_flight: 0,
            line: VecDeque::new(),
            now: 0,
            started: 0,
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Start(way, polled) => self.start(*way.get(&Way::ALL), polled),
            Step::Resize(max) => {
                self.limit.resize(max);
                self.max = max;
                self.grant();
            }
            Step::Advance(by) => {
                advance(ms(by)).await;
                settle().await;
                self.now += by;
            }
            _ if self.members.is_empty() => {}
            Step::Poll(which) => self.poll(which.index(self.members.len())),
            Step::Finish(which) => {
                let at = which.index(self.members.len());
                if let Some(end) = self.members[at].end.take() {
                    let _ = end.send(());
                }
                self.poll(at);
            }
            Step::Drop(which) => {
                let Member { number, place, call, .. } = self.members.swap_remove(which.index(self.members.len()));
                drop(call);
                self.line.retain(|other| *other != number);
                if matches!(place, Place::Granted(_) | Place::Running) {
                    self.in_flight -= 1;
                    self.grant();
                }
            }
        }
    }

    /// Asks for admission. `None`: refused.
    fn admit(&mut self, number: usize) -> Option<Place> {
        if self.line.is_empty() && self.in_flight < self.max {
            self.in_flight += 1;
            Some(Place::Granted(false))
        } else if self.line.len() < MAX_QUEUE {
            self.line.push_back(number);
            Some(Place::Waiting(None))
        } else {
            None
        }
    }

    fn grant(&mut self) {
        while self.in_flight < self.max {
            let Some(number) = self.line.pop_front() else { return };
            self.in_flight += 1;
            let member = self.members.iter_mut().find(|member| member.number == number).unwrap();
            member.place = Place::Granted(matches!(member.place, Place::Waiting(Some(_))));
        }
    }

    fn start(&mut self, way: Way, polled: bool) {
        let (end, work) = work(&self.counts);
        let (number, mut call) = (self.started, way.start(&self.limit, work));
        self.started += 1;
        let asks = matches!(way, Way::Layer | Way::PolicyLayer | Way::PolicyWrap);
        let place = if asks { self.admit(number) } else { Some(Place::Outside) };
        match place {
            Some(place) => self.members.push(Member { number, place, call, end: Some(end) }),
            None => {
                assert_eq!(call.poll().map(|refused| refused.unwrap_err().rule()), Poll::Ready(Rule::QueueFull));
                self.kept.push(call);
                return;
            }
        }
        if polled {
            self.poll(self.members.len() - 1);
        }
    }

    fn poll(&mut self, at: usize) {
        let number = self.members[at].number;
        if self.members[at].place == Place::Outside {
            match self.admit(number) {
                Some(place) => self.members[at].place = place,
                None => return self.ends(at, Err(Rule::QueueFull)),
            }
        }
        let finishes = self.members[at].end.is_none();
        match self.members[at].place {
            Place::Waiting(since) if since.is_some_and(|since| self.now >= since + MAX_WAIT.as_millis() as u64) => {
                self.line.retain(|other| *other != number);
                self.ends(at, Err(Rule::MaxWait));
            }
            Place::Waiting(since) => {
                self.members[at].place = Place::Waiting(since.or(Some(self.now)));
                assert!(self.members[at].call.poll().is_pending());
            }
            Place::Granted(_) | Place::Running if finishes => {
                self.in_flight -= 1;
                self.grant();
                self.ends(at, Ok(()));
            }
            Place::Granted(_) | Place::Running => {
                self.members[at].place = Place::Running;
                assert!(self.members[at].call.poll().is_pending());
            }
            Place::Outside => unreachable!(),
        }
    }

    /// Polls a call that must end now, and keeps its future.
    fn ends(&mut self, at: usize, outcome: Result<(), Rule>) {
        let mut member = self.members.swap_remove(at);
        assert_eq!(member.call.poll().map(|ended| ended.map_err(|no| no.rule())), Poll::Ready(outcome));
        self.kept.push(member.call);
    }

    fn check(&self) {
        let figures = (self.limit.max_in_flight(), self.limit.in_flight(), self.limit.waiting());
        assert_eq!(figures, (self.max, self.in_flight, self.line.len()));
        let running = self.members.iter().filter(|member| member.place == Place::Running).count();
        assert_eq!(self.counts.running(), running);
        for Member { place, call, .. } in &self.members {
            match place {
                Place::Granted(true) => assert!(call.is_woken(), "it has a permit and does not know"),
                Place::Waiting(Some(since)) => {
                    // In time order, nobody is woken for nothing.
                    assert_eq!(call.is_woken(), self.now >= since + MAX_WAIT.as_millis() as u64);
                }
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    // HAZARD: L1, L2, L5, L6, L7, L9
    #[test]
    fn behaves_like_a_line_of_people_with_so_many_counters(
        max in 1_usize..4,
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(max);
            for step in steps {
                world.take(step).await;
                world.check();
            }
            world.members.clear();
            assert_eq!((world.limit.in_flight(), world.limit.waiting()), (0, 0));
            world.limit.resize(3);
            let set: Vec<_> = (0..3).map(|_| world.limit.try_acquire().unwrap()).collect();
            assert!(world.limit.try_acquire().is_err());
            drop(set);
        });
    }
}
