//! What a run comes to, in figures.

use std::{ops::Range, time::Duration};

use super::{
    clients::Run,
    setup::{END, FROM, PATIENCE, UNTIL},
};

/// Back is who answers this share of the calls in each half second, for two seconds.
const BACK: f64 = 0.95;
const STAYS: usize = 4;

/// Of one run, or of one oracle.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// Answered in time of what was called while the fault lasted; and that, of what the oracle serves.
    pub answered: f64,
    pub of_possible: f64,
    /// Requests that were sent, to calls, while the fault lasted.
    pub load: f64,
    /// How long after the fault it was back, if ever.
    pub back: Option<Duration>,
    /// Not answered of what was called in the calm before, but for its last second: those calls the fault may still meet.
    pub lost_in_calm: f64,
    /// Answered in time of what was called in each half second.
    pub halves: Vec<f64>,
}

impl Figures {
    /// The oracle's word is for the same calls: whether it serves each.
    pub fn of(run: &Run, oracle: &[bool]) -> Self {
        let calls: Vec<_> = run.calls.iter().map(|call| (call.began, call.end.is_ok())).collect();
        let possible: Vec<_> = calls.iter().zip(oracle).map(|((began, _), served)| (*began, *served)).collect();
        let during = Share::of(&calls, FROM..UNTIL);
        let asked: u64 = run.asked[FROM.as_secs() as usize..UNTIL.as_secs() as usize].iter().sum();
        let halves = halves(&calls);
        Self {
            answered: during.share(),
            of_possible: during.share() / Share::of(&possible, FROM..UNTIL).share(),
            load: asked as f64 / during.calls as f64,
            back: back(&halves),
            lost_in_calm: 1.0 - Share::of(&calls, Duration::ZERO..FROM - PATIENCE).share(),
            halves,
        }
    }
}

/// Answered in time of what was called in each half second, in the order of their times.
pub fn halves(calls: &[(Duration, bool)]) -> Vec<f64> {
    let mut halves = vec![Share::default(); half(END)];
    for (began, answered) in calls.iter().filter(|(began, _)| *began < END) {
        halves[half(*began)].add(*answered);
    }
    halves.iter().map(Share::share).collect()
}

fn half(at: Duration) -> usize {
    at.as_millis() as usize / 500
}

fn back(halves: &[f64]) -> Option<Duration> {
    let after = &halves[half(UNTIL)..];
    let back = after.windows(STAYS).position(|some| some.iter().all(|share| *share >= BACK))?;
    Some(Duration::from_millis(500) * back as u32)
}

/// Calls, and those that were answered in time.
#[derive(Clone, Copy, Default)]
struct Share {
    calls: u64,
    answered: u64,
}

impl Share {
    fn of(calls: &[(Duration, bool)], when: Range<Duration>) -> Self {
        let mut share = Self::default();
        calls.iter().filter(|(began, _)| when.contains(began)).for_each(|(_, answered)| share.add(*answered));
        share
    }

    fn add(&mut self, answered: bool) {
        self.calls += 1;
        self.answered += u64::from(answered);
    }

    /// Of no calls at all, all are answered.
    fn share(&self) -> f64 {
        if self.calls == 0 { 1.0 } else { self.answered as f64 / self.calls as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{clients::Call, hosts::Failure},
        *,
    };

    /// A call every 10 ms, of which those end well; two requests for each, but three while the fault lasts.
    fn figures(ends_well: impl Fn(u64) -> bool) -> Figures {
        let call = |at: u64| Call {
            began: Duration::from_millis(10 * at),
            took: Duration::ZERO,
            end: if ends_well(at) { Ok(()) } else { Err(Failure::Held) },
        };
        let calls: Vec<_> = (0..7_000).map(call).collect();
        let asked = (0..72).map(|second| if (20..50).contains(&second) { 300 } else { 200 }).collect();
        let oracle: Vec<_> = (0..7_000).map(|at| at % 2 == 0).collect();
        Figures::of(&Run { calls, hosts: Vec::new(), asked }, &oracle)
    }

    #[test]
    fn a_third_of_what_the_oracle_serves_half_of() {
        let figures = figures(|at| !(2_000..5_000).contains(&at) || at % 6 == 0);
        assert!((figures.answered - 1.0 / 6.0).abs() < 1e-9 && (figures.of_possible - 1.0 / 3.0).abs() < 1e-9);
        assert!((figures.load - 3.0).abs() < 1e-9);
        assert_eq!((figures.back, figures.lost_in_calm), (Some(Duration::ZERO), 0.0));
        assert_eq!(figures.halves.len(), 140);
    }

    /// All is well from 51.5 s on, but for one half second that comes too soon.
    #[test]
    fn back_is_who_stays_back_for_two_seconds() {
        let but = |bad: Range<u64>| figures(move |at| !(2_000..5_150).contains(&at) && !bad.contains(&at)).back;
        assert_eq!(but(0..0), Some(Duration::from_millis(1_500)));
        assert_eq!(but(5_300..5_303), Some(Duration::from_millis(3_500)));
        assert_eq!(but(5_300..5_302), Some(Duration::from_millis(1_500)), "96 % are enough");
        assert_eq!(figures(|at| at < 2_000).back, None);
    }

    #[test]
    fn what_is_lost_on_a_calm_day() {
        assert!((figures(|at| at != 7 && at != 1_950).lost_in_calm - 1.0 / 1_900.0).abs() < 1e-9);
    }
}
