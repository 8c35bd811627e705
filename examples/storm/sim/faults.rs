//! The fifteen faults: what goes wrong, and, as plain arithmetic on times, what it does to a request.

use std::time::Duration;

use super::setup::{FROM, UNTIL};

/// What goes wrong with the service, or with the first of its hosts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trouble {
    /// Nothing. It may still be asked more than it can do.
    None,
    /// It refuses all requests at once.
    Refuses(Spells),
    /// It takes requests into its line and works on none, nor does it end what it has begun.
    Stalls(Spells),
    /// This share of its workers begins nothing.
    Loses(f64),
    /// This share of the requests fails at once.
    Cheap(f64),
    /// This share of the requests fails, once all the work is done.
    Costly(f64),
    /// What is begun takes so many times as long.
    Slow(f64),
    /// It loses this share of its speed every second, until it is restarted at the end.
    Leaks(f64),
}

/// The first seconds of every so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spells {
    lasts: Duration,
    every: Duration,
}

impl Spells {
    /// As long as the fault.
    const WHOLE: Self = Self::of(30, 30);

    const fn of(lasts: u64, every: u64) -> Self {
        Self { lasts: Duration::from_secs(lasts), every: Duration::from_secs(every) }
    }

    /// When the spell is over that is on at `at`, if one is.
    fn over(self, at: Duration) -> Option<Duration> {
        let since = at.checked_sub(FROM).filter(|_| at < UNTIL)?;
        let into = Duration::from_nanos((since.as_nanos() % self.every.as_nanos()) as u64);
        (into < self.lasts).then(|| at - into + self.lasts)
    }
}

/// One fault.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub name: &'static str,
    pub about: &'static str,
    pub trouble: Trouble,
    /// So many hosts share the work; each request goes to one of them by chance, and trouble befalls the first.
    pub hosts: usize,
    /// What is called, of what the service can do, unless the setup says otherwise.
    pub load: f64,
    /// So many times the calls while it lasts.
    pub calls: f64,
}

impl Fault {
    /// Whether nobody is served while it lasts.
    pub fn is_total(&self) -> bool {
        matches!(self.trouble, Trouble::Refuses(Spells::WHOLE) | Trouble::Stalls(Spells::WHOLE)) && self.hosts == 1
    }

    const NONE: Self = Self { name: "", about: "", trouble: Trouble::None, hosts: 1, load: 0.7, calls: 1.0 };

    pub const REFUSE: Self = Self {
        name: "refuse",
        about: "all requests are refused at once",
        trouble: Trouble::Refuses(Spells::WHOLE),
        ..Self::NONE
    };
    pub const HANG: Self = Self {
        name: "hang",
        about: "requests are taken and none is worked on; then it goes on where it was",
        trouble: Trouble::Stalls(Spells::WHOLE),
        ..Self::NONE
    };
    pub const OVERLOAD_3: Self = Self {
        name: "overload x3",
        about: "three times the calls: 2.1 times what it can do",
        calls: 3.0,
        ..Self::NONE
    };
    pub const OVERLOAD_10: Self =
        Self { name: "overload x10", about: "ten times the calls: 7 times what it can do", calls: 10.0, ..Self::NONE };
    pub const HALF: Self = Self {
        name: "half capacity",
        about: "five of ten workers begin nothing",
        trouble: Trouble::Loses(0.5),
        ..Self::NONE
    };
    pub const CHEAP_30: Self =
        Self { name: "cheap 30 %", about: "brown-out: 30 % fail at once", trouble: Trouble::Cheap(0.3), ..Self::NONE };
    pub const CHEAP_50: Self =
        Self { name: "cheap 50 %", about: "brown-out: 50 % fail at once", trouble: Trouble::Cheap(0.5), ..Self::NONE };
    pub const COSTLY_50: Self = Self {
        name: "costly 50 %",
        about: "brown-out: 50 % fail, after all the work",
        trouble: Trouble::Costly(0.5),
        ..Self::NONE
    };
    pub const SLOW: Self = Self {
        name: "latency x20",
        about: "what is begun takes 20 times as long: 400 ms on average",
        trouble: Trouble::Slow(20.0),
        ..Self::NONE
    };
    pub const LEAK: Self = Self {
        name: "slow leak",
        about: "a hundredth of the speed is lost every second; then a restart",
        trouble: Trouble::Leaks(0.01),
        ..Self::NONE
    };
    pub const BAD_HOST: Self = Self {
        name: "bad host fails",
        about: "one of ten hosts fails every request at once",
        trouble: Trouble::Cheap(1.0),
        hosts: 10,
        ..Self::NONE
    };
    pub const SLOW_HOST: Self = Self {
        name: "bad host slow",
        about: "one of ten hosts takes 20 times as long",
        trouble: Trouble::Slow(20.0),
        hosts: 10,
        ..Self::NONE
    };
    pub const PAUSES: Self = Self {
        name: "pauses",
        about: "no work for 2 s in every 10 s, as when memory is collected",
        trouble: Trouble::Stalls(Spells::of(2, 10)),
        ..Self::NONE
    };
    pub const FLAPPING: Self = Self {
        name: "flapping",
        about: "3 s of refusing, 3 s of serving, in turns",
        trouble: Trouble::Refuses(Spells::of(3, 6)),
        ..Self::NONE
    };
    pub const BLIP: Self = Self {
        name: "blip at 80 %",
        about: "2 s of refusing, once, when 80 % of what it can do is called",
        trouble: Trouble::Refuses(Spells::of(2, 30)),
        load: 0.8,
        ..Self::NONE
    };

    pub const ALL: [Self; 15] = [
        Self::REFUSE,
        Self::HANG,
        Self::OVERLOAD_3,
        Self::OVERLOAD_10,
        Self::HALF,
        Self::CHEAP_30,
        Self::CHEAP_50,
        Self::COSTLY_50,
        Self::SLOW,
        Self::LEAK,
        Self::BAD_HOST,
        Self::SLOW_HOST,
        Self::PAUSES,
        Self::FLAPPING,
        Self::BLIP,
    ];

    /// What befalls that host then.
    fn trouble(&self, host: usize, at: Duration) -> Trouble {
        if host == 0 && (FROM..UNTIL).contains(&at) { self.trouble } else { Trouble::None }
    }

    /// Whether a request that comes then fails at once; `luck` is its own, from 0 to 1.
    pub fn refuses(&self, host: usize, at: Duration, luck: f64) -> bool {
        match self.trouble(host, at) {
            Trouble::Refuses(spells) => spells.over(at).is_some(),
            Trouble::Cheap(share) => luck < share,
            _ => false,
        }
    }

    /// How many of a host's workers begin nothing then.
    pub fn lost(&self, host: usize, at: Duration, workers: usize) -> usize {
        match self.trouble(host, at) {
            Trouble::Loses(share) => (share * workers as f64) as usize,
            _ => 0,
        }
    }

    /// When work is done that a worker takes up at `at`.
    pub fn done(&self, host: usize, at: Duration, work: Duration) -> Duration {
        let begins = self.resumes(host, at);
        self.resumes(host, begins + work.mul_f64(self.slowness(host, begins)))
    }

    /// Whether the answer to a request that is begun then is an error.
    pub fn fails(&self, host: usize, at: Duration, luck: f64) -> bool {
        matches!(self.trouble(host, at), Trouble::Costly(share) if luck < share)
    }

    /// How many times as long work takes that begins then.
    pub fn slowness(&self, host: usize, at: Duration) -> f64 {
        match self.trouble(host, at) {
            Trouble::Slow(times) => times,
            Trouble::Leaks(share) => 1.0 / (1.0 - share * (at - FROM).as_secs_f64()),
            _ => 1.0,
        }
    }

    /// From when on, at the earliest, a request to that host is any good at all.
    pub fn usable(&self, host: usize, at: Duration) -> Duration {
        match self.trouble(host, at) {
            Trouble::Refuses(spells) | Trouble::Stalls(spells) => spells.over(at).unwrap_or(at),
            Trouble::Cheap(share) if share >= 1.0 => UNTIL,
            // The others do twenty for its one.
            Trouble::Slow(_) if self.hosts > 1 => UNTIL,
            _ => at,
        }
    }

    /// When work goes on that would go on then.
    fn resumes(&self, host: usize, at: Duration) -> Duration {
        match self.trouble(host, at) {
            Trouble::Stalls(spells) => spells.over(at).unwrap_or(at),
            _ => at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn spells_come_and_go_while_the_fault_lasts() {
        let flaps = |at| Spells::of(3, 6).over(secs(at));
        assert_eq!(
            [19, 20, 22, 23, 25, 26, 44, 47, 50].map(flaps),
            [None, Some(secs(23)), Some(secs(23)), None, None, Some(secs(29)), Some(secs(47)), None, None,]
        );
        assert_eq!(Spells::WHOLE.over(secs(49)), Some(UNTIL));
    }

    #[test]
    fn work_stands_still_while_it_stalls_and_takes_longer_when_it_is_slow() {
        let done = |fault: Fault, at| fault.done(0, at, secs(1));
        assert_eq!(done(Fault::PAUSES, secs(21)), secs(23), "begun in a pause");
        assert_eq!(done(Fault::PAUSES, Duration::from_millis(29_500)), secs(32), "done in a pause");
        assert_eq!(done(Fault::PAUSES, secs(25)), secs(26));
        assert_eq!(done(Fault::SLOW, secs(25)), secs(45));
        assert_eq!(done(Fault::SLOW, secs(19)), secs(20), "begun before");
        assert_eq!(Fault::SLOW_HOST.done(1, secs(25), secs(1)), secs(26), "another host");
        assert!(done(Fault::LEAK, secs(40)).abs_diff(Duration::from_millis(41_250)) < Duration::from_micros(1));
    }

    #[test]
    fn what_fails_at_once_and_what_fails_at_last() {
        assert!(Fault::CHEAP_30.refuses(0, FROM, 0.29) && !Fault::CHEAP_30.refuses(0, FROM, 0.31));
        assert!(!Fault::CHEAP_30.fails(0, FROM, 0.29));
        assert!(Fault::COSTLY_50.fails(0, FROM, 0.49) && !Fault::COSTLY_50.refuses(0, FROM, 0.49));
        assert!(Fault::BLIP.refuses(0, secs(21), 1.0) && !Fault::BLIP.refuses(0, secs(22), 0.0));
        assert!(Fault::BAD_HOST.refuses(0, FROM, 0.99) && !Fault::BAD_HOST.refuses(1, FROM, 0.0));
    }
}
