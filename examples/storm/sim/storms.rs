//! The six storms: who asks, what goes wrong, and when.

use std::time::Duration;

use super::server::{Fault, Size, Trouble};

/// So many clients (processes, each with a policy of its own) ask together so often, per second.
pub const CLIENTS: u64 = 5;
pub const RATE: f64 = 200.0;
/// All servers together have twice the workers that this takes.
pub const WORKERS: usize = 20;
const WORK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(30));
/// Ten seconds of work may wait.
pub const LINE: usize = 4_000;
/// Whoever calls waits for so long and then leaves, whatever the client does.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// A client that tries again gives each attempt so long, and makes so many.
pub const ATTEMPT: Duration = Duration::from_millis(500);
pub const ATTEMPTS: u32 = 3;
/// What goes over the network takes so long, there and back.
pub const NETWORK: Duration = Duration::from_millis(1);

/// When it begins, when it is over, and when nobody calls any more.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub from: Duration,
    pub until: Duration,
    pub end: Duration,
}

impl Times {
    /// Ten seconds of calm, thirty of trouble, and a minute to get over it.
    pub const FULL: Self =
        Self { from: Duration::from_secs(10), until: Duration::from_secs(40), end: Duration::from_secs(100) };
}

/// One storm.
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    pub name: &'static str,
    pub about: &'static str,
    /// So many servers share the work; each attempt goes to one of them by chance.
    pub hosts: usize,
    /// What happens to the first of them.
    trouble: Trouble,
    /// So many times the calls.
    pub load: u32,
}

impl Storm {
    const CALM: Self = Self { name: "", about: "", hosts: 1, trouble: Trouble::None, load: 1 };

    pub const OVERLOAD: Self = Self {
        name: "Overload",
        about: "ten times the calls; the server can answer every fifth",
        load: 10,
        ..Self::CALM
    };
    pub const OUTAGE: Self = Self {
        name: "Outage",
        about: "the server takes requests and answers none",
        trouble: Trouble::Hangs,
        ..Self::CALM
    };
    pub const SLOW: Self = Self {
        name: "Latency step",
        about: "each request takes 20 times as long",
        trouble: Trouble::Slow(20),
        ..Self::CALM
    };
    pub const LEAK: Self = Self {
        name: "Slow leak",
        about: "18 of 20 workers are lost one by one; then a restart",
        trouble: Trouble::Leaks { left: 2, restart: Duration::from_secs(2) },
        ..Self::CALM
    };
    pub const BROWN_OUT: Self = Self {
        name: "Brown-out",
        about: "every other answer is an error",
        trouble: Trouble::Errors(0.5),
        ..Self::CALM
    };
    pub const BAD_HOST: Self = Self {
        name: "One bad host of ten",
        about: "one of ten servers takes requests and answers none",
        hosts: 10,
        trouble: Trouble::Hangs,
        ..Self::CALM
    };

    pub const ALL: [Self; 6] = [Self::OVERLOAD, Self::OUTAGE, Self::SLOW, Self::LEAK, Self::BROWN_OUT, Self::BAD_HOST];

    /// How large each server is.
    pub fn size(&self) -> Size {
        Size { workers: WORKERS / self.hosts, line: LINE / self.hosts, work: WORK }
    }

    /// What happens to one of the servers.
    pub fn fault(&self, host: usize, times: Times) -> Fault {
        let trouble = if host == 0 { self.trouble } else { Trouble::None };
        Fault { trouble, from: times.from, until: times.until }
    }
}
