//! What a run comes to, in figures.

use std::{ops::Range, time::Duration};

use super::{
    clients::{Call, Run},
    storms::Times,
};

/// Back is who answers this share of the calls for so many seconds on end.
pub const BACK: f64 = 0.95;
const STAYS: usize = 5;

/// Of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// Answered in time of what was called while the storm lasted, and of what was called after it.
    pub storm: f64,
    pub after: f64,
    /// How long the calls of the storm took until they knew, whatever it was that they got to know.
    pub median: Duration,
    pub p99: Duration,
    /// Requests that reached the servers, to calls, while the storm lasted; and in the last ten seconds of all.
    pub amplification: f64,
    pub at_last: f64,
    /// How long after the storm it was back, if ever.
    pub back: Option<Duration>,
    /// Answered in time of what was called in each second.
    pub seconds: Vec<f64>,
}

impl Figures {
    pub fn of(run: &Run, times: Times) -> Self {
        let [from, until, end] = [times.from, times.until, times.end].map(|time| time.as_secs() as usize);
        let mut seconds = vec![Share::default(); end];
        let mut took = Vec::new();
        for call in &run.calls {
            seconds[call.began.as_secs() as usize % end].add(call);
            if (times.from..times.until).contains(&call.began) {
                took.push(call.took);
            }
        }
        took.sort_unstable();
        let over = |range: Range<usize>| {
            let all = Share::sum(&seconds[range.clone()]);
            (all.share(), run.asked[range].iter().sum::<u64>() as f64 / all.calls as f64)
        };
        let ((storm, amplification), (after, _), (_, at_last)) =
            (over(from..until), over(until..end), over(end - 10..end));
        let seconds: Vec<f64> = seconds.iter().map(Share::share).collect();
        let back = (until..=end - STAYS).find(|at| seconds[*at..at + STAYS].iter().all(|share| *share >= BACK));
        Self {
            storm,
            after,
            median: took[took.len() / 2],
            p99: took[took.len() * 99 / 100],
            amplification,
            at_last,
            back: back.map(|at| Duration::from_secs((at - until) as u64)),
            seconds,
        }
    }
}

/// Calls, and those that were answered in time.
#[derive(Clone, Copy, Default)]
struct Share {
    calls: u64,
    answered: u64,
}

impl Share {
    fn add(&mut self, call: &Call) {
        self.calls += 1;
        self.answered += u64::from(call.end.is_ok());
    }

    fn sum(shares: &[Self]) -> Self {
        shares.iter().fold(Self::default(), |sum, share| Self {
            calls: sum.calls + share.calls,
            answered: sum.answered + share.answered,
        })
    }

    fn share(&self) -> f64 {
        self.answered as f64 / self.calls as f64
    }
}
