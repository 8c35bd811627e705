//! What is counted, and what follows from it: takes the time, and chance, as arguments.

use std::time::Duration;

use super::formula::Formula;
use crate::{
    clock::nanos,
    spread::Padded,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    window::{TimeWindow, Totals, rate},
};

/// Fewer accepted calls than this, per slot, may be counted late: a clock costs as much as a whole call.
const UNTIMED: u64 = 8;

/// A window that is never reset has one generation.
const GENERATION: u64 = 0;

/// Counts requests, and says how likely the next one is to be refused. All times are nanoseconds since it was made.
#[derive(Debug)]
pub(super) struct Gauge {
    formula: Formula,
    /// Whether what it refuses is a request like any other.
    counts_refused: bool,
    span: u64,
    /// Successes are the accepted.
    window: TimeWindow,
    /// Zero while nothing is to be refused; else when the last of what speaks against the service will have slid out of the window.
    ///
    /// Relaxed: it is a hint, by which most calls need neither the time nor a sum. Of two threads that write it at once one may find
    /// a failure that the other has not: then nothing is refused until the next failure, of which each looks again. Seen late, it
    /// decides as for a call that came so much earlier. Whoever writes it late may set it back by a bucket, which only `is_calm` sees.
    wary_until: Padded<AtomicU64>,
}

/// Why a call is refused.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Refused {
    /// The share of requests that was accepted.
    pub(super) accept_rate: f64,
}

impl Gauge {
    pub(super) fn new(formula: Formula, counts_refused: bool, span: Duration) -> Self {
        let window = TimeWindow::new(span, UNTIMED);
        Self { formula, counts_refused, span: nanos(span), window, wary_until: Padded::default() }
    }

    /// Below which share of accepted requests something is refused.
    pub(super) fn threshold(&self) -> f64 {
        self.formula.allowance.rate()
    }

    /// Whether some calls may be refused, so that each has to [ask](Self::ask).
    #[inline(always)]
    pub(super) fn is_wary(&self) -> bool {
        self.wary_until.0.load(Relaxed) != 0
    }

    /// Whether nothing is refused, or would be if anybody asked.
    pub(super) fn is_calm(&self, now: impl FnOnce() -> u64) -> bool {
        let until = self.wary_until.0.load(Relaxed);
        until == 0 || until <= now()
    }

    /// Whether a call may go, if it is wary; `unit` is drawn if it is up to chance.
    pub(super) fn ask(&self, now: u64, unit: impl FnOnce() -> f64) -> Result<(), Refused> {
        let (totals, chance) = self.weigh(now);
        if chance == 0.0 {
            self.wary_until.0.store(0, Relaxed);
            return Ok(());
        }
        if unit() >= chance {
            return Ok(());
        }
        if self.counts_refused {
            self.fail(now);
        }
        Err(Refused { accept_rate: rate(totals.successes, totals.calls()) })
    }

    /// Counts an accepted call without a clock. `false`: not counted, as it is [to be](Self::accept) with the time.
    #[inline]
    pub(super) fn accept_untimed(&self) -> bool {
        self.window.tally(GENERATION)
    }

    /// A call was accepted. That makes no refusal more likely.
    pub(super) fn accept(&self, now: u64) {
        self.window.record(now, GENERATION, false, false);
    }

    /// A call was not.
    pub(super) fn fail(&self, now: u64) {
        self.window.record(now, GENERATION, true, false);
        let (seen, until) = (self.wary_until.0.load(Relaxed), self.window.outlived_at(now));
        // Who is wary already need not sum up: whoever asks does. And the word changes once a bucket.
        if seen != until && (seen != 0 || self.weigh(now).1 > 0.0) {
            self.wary_until.0.store(until, Relaxed);
        }
    }

    /// What was counted until now, and how likely a refusal is.
    pub(super) fn weigh(&self, now: u64) -> (Totals, f64) {
        let totals = self.window.totals(now, GENERATION);
        // Until a window has gone by, fewer seconds than it has were counted: one at least, or the first call would be a storm.
        let counted = now.max(1_000_000_000).min(self.span);
        (totals, self.formula.chance(totals, Duration::from_nanos(counted).as_secs_f64()))
    }
}

#[cfg(all(test, not(buttress_loom)))]
mod tests {
    use super::*;
    use crate::throttle::formula::Allowance;

    const SECOND: u64 = 1_000_000_000;

    fn formula(allowance: Allowance) -> Formula {
        Formula { allowance, aggression: 1.0, max_rejection: 1.0, min_calls_per_second: 0 }
    }

    /// Over ten seconds, so that a bucket is one.
    fn google() -> Gauge {
        Gauge::new(formula(Allowance::Multiplier(2.0)), true, Duration::from_secs(10))
    }

    fn envoy() -> Gauge {
        let formula = Formula { max_rejection: 0.8, ..formula(Allowance::Rate(0.95)) };
        Gauge::new(formula, false, Duration::from_secs(10))
    }

    fn counted(gauge: &Gauge, now: u64) -> (u64, u64) {
        let (totals, _) = gauge.weigh(now);
        (totals.calls(), totals.successes)
    }

    /// Numbers from zero to one that are nowhere dense: each share of them is as large as it should be.
    fn even() -> impl FnMut() -> f64 {
        let mut number = 0.0;
        move || {
            number = (number + 0.618_033_988_749_895) % 1.0;
            number
        }
    }

    #[test]
    fn nobody_draws_while_nothing_is_refused() {
        let gauge = google();
        assert!(!gauge.is_wary(), "nothing known");
        gauge.accept(0);
        gauge.fail(0);
        assert!(!gauge.is_wary(), "one of two was accepted");
        assert_eq!(gauge.ask(0, || panic!("it is certain")), Ok(()));
        gauge.fail(0);
        assert!(gauge.is_wary());
    }

    #[test]
    fn a_call_is_refused_below_the_chance_and_goes_at_it() {
        let gauge = envoy();
        (0..3).for_each(|_| gauge.fail(0));
        assert_eq!(gauge.weigh(0).1, 0.75);
        assert_eq!(gauge.ask(0, || 0.75), Ok(()));
        assert_eq!(gauge.ask(0, || 0.749), Err(Refused { accept_rate: 0.0 }));
    }

    #[test]
    fn googles_counts_what_it_refuses_and_envoys_does_not() {
        for (gauge, after) in [(google(), 4), (envoy(), 3)] {
            gauge.accept(0);
            (0..2).for_each(|_| gauge.fail(0));
            assert_eq!(gauge.ask(0, || 0.0), Err(Refused { accept_rate: 1.0 / 3.0 }));
            assert_eq!(counted(&gauge, 0), (after, 1));
            assert_eq!(gauge.ask(0, || 1.0), Ok(()));
            assert_eq!(counted(&gauge, 0), (after, 1), "who may go is not counted yet");
        }
    }

    #[test]
    fn it_is_wary_until_what_speaks_against_the_service_has_slid_out() {
        let gauge = google();
        gauge.fail(SECOND / 2);
        gauge.fail(3 * SECOND);
        assert_eq!(counted(&gauge, 10 * SECOND), (1, 0), "the first has");
        assert!(gauge.is_wary() && !gauge.is_calm(|| 13 * SECOND - 1));
        assert!(gauge.is_calm(|| 13 * SECOND), "though nobody has asked");
        assert_eq!(gauge.ask(13 * SECOND, || panic!("it is certain")), Ok(()));
        assert!(!gauge.is_wary() && gauge.is_calm(|| panic!("it needs no clock")));
    }

    #[test]
    fn whatever_it_refuses_itself_keeps_it_wary_if_that_counts() {
        for (gauge, until) in [(google(), 19), (envoy(), 10)] {
            gauge.fail(0);
            assert!(gauge.ask(9 * SECOND, || 0.0).is_err());
            assert!(!gauge.is_calm(|| until * SECOND - 1) && gauge.is_calm(|| until * SECOND), "until {until} s");
        }
    }

    #[test]
    fn successes_that_nobody_has_timed_count_as_soon_as_anybody_looks() {
        let gauge = google();
        assert!((0..3).all(|_| gauge.accept_untimed()));
        (0..7).for_each(|_| gauge.fail(0));
        assert_eq!((counted(&gauge, 0), gauge.weigh(0).1), ((10, 3), 4.0 / 11.0));
        let waits = (0..100).take_while(|_| gauge.accept_untimed()).count() as u64;
        assert!(waits < UNTIMED, "{waits} may wait for somebody who knows the time");
    }

    #[test]
    fn few_calls_a_second_are_those_of_the_window_or_of_the_time_there_was() {
        let formula = Formula { min_calls_per_second: 3, ..formula(Allowance::Rate(0.95)) };
        let gauge = Gauge::new(formula, false, Duration::from_secs(10));
        (0..2).for_each(|_| gauge.fail(0));
        assert!(!gauge.is_wary(), "two in the first second");
        gauge.fail(0);
        assert!(gauge.is_wary());
        assert!(gauge.ask(SECOND, || 0.0).is_err());
        assert!(gauge.ask(SECOND + 1, || 0.0).is_ok(), "fewer by then");
        (0..23).for_each(|_| gauge.fail(9 * SECOND));
        assert!(!gauge.is_wary(), "26 in nine seconds");
        gauge.fail(9 * SECOND);
        assert!(gauge.is_wary(), "27");
        assert!(gauge.ask(30 * SECOND, || 0.0).is_ok(), "and none of late");
        (0..29).for_each(|_| gauge.fail(30 * SECOND));
        assert!(!gauge.is_wary(), "29 in ten seconds, which is all that is looked at");
        gauge.fail(30 * SECOND);
        assert!(gauge.is_wary(), "30");
    }

    /// Calls at this rate for so many seconds, of a service that says which it accepts. The share that was sent of the last tenth.
    fn run(gauge: &Gauge, seconds: u64, rate: u64, mut accepts: impl FnMut(u64) -> bool) -> f64 {
        let (mut unit, mut sent, calls) = (even(), 0, seconds * rate);
        let mut last = 0;
        for call in 0..calls {
            let now = call * SECOND / rate;
            if gauge.is_wary() && gauge.ask(now, &mut unit).is_err() {
                continue;
            }
            sent += 1;
            last += u64::from(call >= calls - calls / 10);
            if accepts(sent) { gauge.accept(now) } else { gauge.fail(now) }
        }
        last as f64 / (calls / 10) as f64
    }

    #[test]
    fn of_a_service_that_fails_half_envoys_sheds_what_the_formula_says() {
        let sent = run(&envoy(), 60, 200, |sent| sent % 2 == 0);
        let expected = 1.0 - (1.0 - 0.5 / 0.95);
        assert!((sent - expected).abs() < 0.02, "{sent}, not {expected}");
    }

    #[test]
    fn of_a_service_that_fails_a_share_googles_sheds_nothing_or_nearly_all() {
        let sent = run(&google(), 60, 200, |sent| sent % 5 > 1);
        assert!(sent > 0.99, "{sent} where two of five fail");
        let sent = run(&google(), 120, 200, |sent| sent % 5 < 2);
        assert!(sent < 0.02, "{sent} where three of five fail");
    }

    /// Accepts 50 a second of 500 that are wanted.
    #[test]
    fn a_service_with_a_capacity_gets_twice_as_much_by_googles() {
        let gauge = google();
        let (mut unit, mut sent) = (even(), [0; 60]);
        for call in 0..500 * 60 {
            let (now, second) = (call * SECOND / 500, (call / 500) as usize);
            if gauge.is_wary() && gauge.ask(now, &mut unit).is_err() {
                continue;
            }
            sent[second] += 1;
            if sent[second] <= 50 { gauge.accept(now) } else { gauge.fail(now) }
        }
        let last = f64::from(sent[40..].iter().sum::<i32>()) / 20.0;
        assert!((95.0..105.0).contains(&last), "{last} a second: {sent:?}");
    }

    /// After an outage that has filled the window: how many seconds until nine of ten are sent again.
    fn comes_back_after(gauge: &Gauge, rate: u64) -> u64 {
        let (mut unit, mut second, mut sent) = (even(), 0, 0);
        let well = gauge.span / SECOND * 2;
        for call in 0.. {
            let now = call * SECOND / rate;
            if now / SECOND != second {
                if second >= well && sent * 10 >= rate * 9 {
                    return second - well;
                }
                (second, sent) = (now / SECOND, 0);
            }
            if !gauge.is_wary() || gauge.ask(now, &mut unit).is_ok() {
                sent += 1;
                if second < well { gauge.fail(now) } else { gauge.accept(now) }
            }
        }
        unreachable!("it comes back")
    }

    #[test]
    fn after_an_outage_a_cap_brings_it_back_sooner() {
        let google = |max_rejection| Formula { max_rejection, ..formula(Allowance::Multiplier(2.0)) };
        let of = |formula, counts| comes_back_after(&Gauge::new(formula, counts, Duration::from_secs(120)), 100);
        let (whole, capped) = (of(google(1.0), true), of(google(0.9), true));
        let envoy = comes_back_after(&envoy(), 100);
        assert!((600..800).contains(&whole) && capped < 240 && envoy <= 10, "{whole} s, {capped} s, {envoy} s");
    }
}
