//! What is compared: rows, the subjects in them, and the ways in which a subject is called.

use std::time::Duration;

use tokio::runtime::Runtime;
use tower::Service;

use crate::{
    inner::Client,
    measure::{ByHand, Ends, InTasks, Runner, TASKS, Turn},
};

/// What the subjects of a row do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    Bare,
    Timeout,
    Limit,
    Adaptive,
    Full,
    Saturated,
    Retry,
    Hedge,
    Breaker,
    Throttle,
    Open,
    Rate,
    Policy,
    InFlight,
}

impl Row {
    pub fn title(self) -> &'static str {
        match self {
            Row::Bare => "the service alone",
            Row::Timeout => "timeout",
            Row::Limit => "concurrency limit",
            Row::Adaptive => "limit that finds itself",
            Row::Full => "limit full, refusing",
            Row::Saturated => "64 tasks for 8 permits",
            Row::Retry => "retry, success",
            Row::Hedge => "hedge, not sent",
            Row::Breaker => "circuit breaker, closed",
            Row::Throttle => "throttle, refusing nothing",
            Row::Open => "circuit breaker, open, refusing",
            Row::Rate => "rate limit, for comparison",
            Row::Policy => "whole policy",
            Row::InFlight => "counting calls for the shutdown",
        }
    }

    fn ends(self) -> Ends {
        if matches!(self, Row::Full | Row::Open) { Ends::Refused } else { Ends::Answered }
    }
}

/// How a subject is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// By hand, and the service answers at once.
    Ready,
    /// By hand, and the service is pending once.
    Pending,
    /// In 64 tasks on one worker; the service answers at once.
    OneWorker,
    /// In 64 tasks on two workers; the service answers at once.
    TwoWorkers,
    /// In 64 tasks on two workers; the service is pending once.
    TwoWorkersPending,
}

/// Where calls run.
pub struct Runtimes {
    pub by_hand: &'static Runtime,
    pub one: &'static Runtime,
    pub two: &'static Runtime,
}

/// A library's way of doing what its row says.
pub struct Subject {
    pub row: Row,
    pub library: &'static str,
    /// What comes with it that others of the row do not have, or lack.
    pub remark: &'static str,
    /// Bytes of what a caller holds: the service, or what it is called through.
    pub handle: usize,
    /// Bytes of the future of a call.
    pub future: usize,
    pub ways: Vec<(Way, Box<dyn Runner>)>,
}

impl Subject {
    /// `ready` answers at once, `pending` is the same around a service that is pending once.
    pub fn new<A: Client, P: Client>(
        runtimes: &Runtimes,
        row: Row,
        (library, remark): Named,
        ready: A,
        pending: P,
    ) -> Self {
        let mut subject = Self {
            row,
            library,
            remark,
            handle: size_of::<A>(),
            future: size_of::<<A as Service<u64>>::Future>(),
            ways: Vec::new(),
        };
        match row {
            Row::Saturated => subject.add_tasks(Way::TwoWorkersPending, pending, runtimes.two),
            Row::Full | Row::Open => {
                subject.add_tasks(Way::OneWorker, ready.clone(), runtimes.one);
                subject.add_tasks(Way::TwoWorkers, ready.clone(), runtimes.two);
                subject.add_by_hand(Way::Ready, ready, runtimes.by_hand);
            }
            _ => {
                subject.add_tasks(Way::OneWorker, ready.clone(), runtimes.one);
                subject.add_tasks(Way::TwoWorkers, ready.clone(), runtimes.two);
                subject.add_tasks(Way::TwoWorkersPending, pending.clone(), runtimes.two);
                subject.add_by_hand(Way::Ready, ready, runtimes.by_hand);
                subject.add_by_hand(Way::Pending, pending, runtimes.by_hand);
            }
        }
        subject
    }

    fn add_by_hand(&mut self, way: Way, service: impl Client, runtime: &'static Runtime) {
        self.ways.push((way, Box::new(ByHand { service, ends: self.row.ends(), runtime })));
    }

    fn add_tasks(&mut self, way: Way, service: impl Client, runtime: &'static Runtime) {
        self.ways.push((way, Box::new(InTasks { service, ends: self.row.ends(), runtime, tasks: TASKS })));
    }

    pub fn is_ours(&self) -> bool {
        self.library == OURS
    }

    /// The library, and what sets the subject apart in its row.
    pub fn full_name(&self) -> String {
        match self.remark {
            "" => self.library.to_owned(),
            remark => format!("{} ({remark})", self.library),
        }
    }

    /// The row, and what sets the subject apart in it.
    pub fn name(&self) -> String {
        match self.remark {
            "" => self.row.title().to_owned(),
            remark => format!("{}: {remark}", self.row.title()),
        }
    }
}

/// A library, and what is to be known about its subject.
pub type Named = (&'static str, &'static str);

pub const OURS: &str = "buttress";

impl Way {
    pub fn title(self) -> &'static str {
        match self {
            Way::Ready => "ready at once",
            Way::Pending => "pending once",
            Way::OneWorker => "64 tasks on 1 worker",
            Way::TwoWorkers => "64 tasks on 2 workers",
            Way::TwoWorkersPending => "64 tasks on 2 workers, pending once",
        }
    }

    pub fn turn(self) -> Turn {
        Turn::Lasting(match self {
            Way::Ready | Way::Pending => Duration::from_millis(2),
            _ => Duration::from_millis(6),
        })
    }
}
