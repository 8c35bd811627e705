//! May the next call go? What an adaptive limit decides by: the limit that finds itself, rests between calls where that is below
//! one, and what is held back while the service is silent or fails every call.
//!
//! Pure: times are nanoseconds since some moment, and come as arguments.

use std::time::Duration;

use tokio::time::Instant;

use super::limits::{Limit, Recent, Sample};
use crate::{
    Verdict,
    clock::{self, nanos},
};

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Answered,
    /// With a failure that is the service's, or the way's to it.
    Failed,
    /// The service said that it has too much to do.
    Throttled,
    /// Its caller left, or had no time left.
    GivenUp,
    /// By its own time-out, which is how long it may take.
    TimedOut,
    /// With an answer that says nothing, but that somebody is there.
    Ignored,
    /// In a way that says nothing: on our side, or not yet.
    Unknown,
}

impl Ended {
    /// Without any answer.
    #[inline]
    pub(super) fn is_late(self) -> bool {
        matches!(self, Ended::GivenUp | Ended::TimedOut)
    }

    #[inline]
    pub(crate) fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Success | Verdict::Permanent => Ended::Answered,
            Verdict::Transient { .. } | Verdict::Unsent | Verdict::Failed => Ended::Failed,
            Verdict::Throttled { .. } => Ended::Throttled,
            Verdict::Ignored => Ended::Ignored,
        }
    }
}

/// Whether a call may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// If fewer than so many are in flight.
    Open(u32),
    /// One, to see, unless so many are in flight.
    Probe(u32),
    /// Not before then, unless one ends.
    Shut(u64),
}

/// What one call that ended was like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) ended: Ended,
    /// If it was pending.
    pub(super) took: Option<Duration>,
    /// From its start to its deadline.
    pub(super) allowed: Option<Duration>,
    /// How many were in flight until it ended.
    pub(super) in_flight: u32,
    /// So many answers for which it stands.
    pub(super) answers: u32,
    /// Whether calls wait.
    pub(super) limited: bool,
}

/// What a [`Limit`] is asked.
#[derive(Debug)]
pub(super) struct Question {
    strategy: Box<dyn Limit>,
    limit: f64,
    sample: Sample,
    least: f64,
}

impl Question {
    pub(super) fn ask(&mut self) -> f64 {
        self.strategy.update(self.limit, &self.sample)
    }
}

#[derive(Debug)]
pub(super) struct Regulator {
    /// `None` while it is asked, which is done outside of all locks.
    strategy: Option<Box<dyn Limit>>,
    limit: f64,
    min: f64,
    max: f64,
    /// How long calls take now, in seconds.
    recent: Recent,
    /// How long they may take as a rule, in seconds.
    allowed: f64,
    /// While the limit is below one, nothing goes before this.
    rests_until: u64,
    /// Whether calls are held back while the service is down.
    holds_back: bool,
    /// Calls that went since the service is silent.
    unanswered: i32,
    failures: u32,
    failing_since: u64,
    went: u64,
    /// What may still go to a service that fails.
    credit: f64,
}

/// Silence: so many times the usual time without any answer, and at least so many seconds.
const SILENT: f64 = 6.0;
const SILENT_AT_LEAST: f64 = 0.02;

/// Into the silence goes a call after this part of what calls may take, so that one is nearly always out to hear that it is over;
/// then after twice that, and so on up to so much, as each leaves work behind that nobody waits for any more.
const PROBE_AFTER: f64 = 0.7;
const PROBE_AT_LEAST_AFTER: f64 = 3.0;

/// If nobody says how long calls may take: one second.
const ALLOWED: f64 = 1.0;

/// And never more than this, whatever calls may take: the first look comes after 0.7 s then, and the others three seconds apart, at
/// the latest.
const LONGEST: f64 = 1.0;

/// What may take longer has no time to be known by.
const HOUR: f64 = 3_600.0;

/// It fails every call: so many in a row, and for so long.
const FAILURES: u32 = 5;
const FAILING: u64 = 100_000_000;

/// To a service that fails every call goes one in so long, and one for each call that comes.
const FAILING_GAP: u64 = 150_000_000;
const CREDIT: f64 = 1.0;
const MOST_CREDIT: f64 = 20.0;

/// Whoever has less time left than so many times the usual is not let out to a service that is busy.
const MARGIN: f64 = 4.0;
const LEAST_MARGIN: f64 = 1.5;

/// But whoever has hardly waited is, in any case.
const MOST_LEFT: f64 = 0.9;

/// Whoever is given up after so many times the usual, or so much of what calls may take, was dropped. Less than what whoever is let
/// out has left: else it would look as if nothing was wrong where everybody is let out in vain.
const TIMES_USUAL: f64 = 3.0;
const TELLING: f64 = 0.4;
const TELLING_AT_MOST: f64 = 0.85;

impl Regulator {
    pub(super) fn new(strategy: Box<dyn Limit>, min: f64, max: f64, holds_back: bool) -> Self {
        let initial = strategy.initial();
        let limit = if initial.is_nan() { min } else { initial.clamp(min, max) };
        Self {
            strategy: Some(strategy),
            limit,
            min,
            max,
            recent: Recent::default(),
            allowed: 0.0,
            rests_until: 0,
            holds_back,
            unanswered: 0,
            failures: 0,
            failing_since: 0,
            went: 0,
            credit: MOST_CREDIT,
        }
    }

    /// How many may be in flight while nothing is held back. Below one it is one, in between rests.
    pub(super) fn calls(&self) -> u32 {
        // The most may be less than the least, as that is resized to what it must be.
        if self.max < 1.0 { 0 } else { (self.limit.min(self.max) as u32).max(1) }
    }

    /// How many may be in flight for all who ask no further.
    pub(super) fn unasked(&self) -> u32 {
        if self.is_guarded() || self.limit < 1.0 { 0 } else { self.calls() }
    }

    /// Whether every call is to be told of.
    pub(super) fn is_guarded(&self) -> bool {
        self.unanswered > 0 || self.failures > 0 && self.holds_back
    }

    pub(super) fn gate(&self, now: u64) -> Gate {
        if self.calls() == 0 {
            return Gate::Open(0);
        }
        if self.unanswered > 0 {
            let gap = PROBE_AFTER * 2f64.powi(self.unanswered - 1);
            return self.probe_after(now, seconds(gap.min(PROBE_AT_LEAST_AFTER) * self.usually_allowed()));
        }
        if now < self.rests_until {
            return Gate::Shut(self.rests_until);
        }
        if self.is_failing(now) {
            let gap = if self.credit >= 1.0 { FAILING_GAP } else { seconds(self.usually_allowed()) };
            return self.probe_after(now, gap);
        }
        Gate::Open(self.calls())
    }

    fn probe_after(&self, now: u64, gap: u64) -> Gate {
        let at = self.went.saturating_add(gap);
        if now < at { Gate::Shut(at) } else { Gate::Probe(self.max as u32) }
    }

    fn is_failing(&self, now: u64) -> bool {
        self.holds_back && self.failures >= FAILURES && now.saturating_sub(self.failing_since) > FAILING
    }

    /// Whether the service is silent or fails every call.
    pub(super) fn is_down(&self, now: u64) -> bool {
        self.unanswered > 0 || self.is_failing(now)
    }

    /// How much time whoever goes must have left, in nanoseconds.
    pub(super) fn least_left(&self) -> u64 {
        let (usual, allowed) = (self.recent.value, self.allowed());
        // Half of what calls may take is enough, but not where an answer takes as long: who is let out with less is asked for in vain.
        let enough = (0.5 * allowed).max((LEAST_MARGIN * usual).min(MOST_LEFT * allowed));
        seconds((MARGIN * usual).min(enough))
    }

    /// How long no answer is silence; `None` if that is not known yet, or does not matter.
    pub(super) fn silent_after(&self) -> Option<u64> {
        (self.holds_back && self.recent.value > 0.0).then(|| seconds((SILENT * self.recent.value).max(SILENT_AT_LEAST)))
    }

    /// How long no answer is silence where nobody can go any more: as long as until the first look into one.
    pub(super) fn stuck_after(&self) -> Option<u64> {
        Some(self.silent_after()?.max(seconds(PROBE_AFTER * self.usually_allowed())))
    }

    /// A call came that was never sent before, and has so many nanoseconds left.
    pub(super) fn came(&mut self, left: Option<u64>) {
        self.credit = (self.credit + CREDIT).min(MOST_CREDIT);
        if let Some(left) = left {
            self.is_allowed(Duration::from_nanos(left).as_secs_f64());
        }
    }

    /// A call went.
    pub(super) fn went(&mut self, now: u64) {
        self.went = now;
        if self.unanswered > 0 {
            self.unanswered = self.unanswered.saturating_add(1);
        } else if self.is_failing(now) {
            self.credit = (self.credit - 1.0).max(0.0);
        }
    }

    /// None was answered for as long as is silence, and a call has just gone, or none can.
    pub(super) fn fall_silent(&mut self, now: u64) {
        if self.unanswered == 0 {
            self.unanswered = 1;
            self.went = now;
        }
    }

    /// A call ended. What is to be asked for a new limit, if it says anything about that.
    pub(super) fn ended(&mut self, now: u64, at: Instant, call: Call) -> Option<Question> {
        let silent = self.unanswered > 0;
        if !call.ended.is_late() && call.ended != Ended::Unknown {
            self.unanswered = 0;
        }
        match call.ended {
            Ended::Answered => (self.failures, self.credit) = (0, MOST_CREDIT),
            Ended::Failed | Ended::Throttled => {
                if self.failures == 0 {
                    self.failing_since = now;
                }
                self.failures = self.failures.saturating_add(1);
            }
            Ended::Ignored | Ended::GivenUp | Ended::TimedOut | Ended::Unknown => {}
        }
        // To be told at once that it is too much says as much as to be told late.
        let rtt = call.took.or_else(|| (call.ended == Ended::Throttled).then_some(Duration::ZERO))?;
        let took = rtt.as_secs_f64();
        // One that is turned away at the door has not taken what an answer takes.
        self.rest(now, if call.ended == Ended::Throttled { took.max(self.recent.value) } else { took });
        let counts = match call.ended {
            Ended::Answered | Ended::Throttled | Ended::TimedOut => true,
            Ended::GivenUp => took > self.telling(),
            // What fails says how long it takes to fail.
            Ended::Failed | Ended::Ignored | Ended::Unknown => false,
        };
        if let Some(allowed) = call.allowed.map(|allowed| allowed.as_secs_f64()) {
            // Where calls wait it may have, and so has nothing to say against those who say more.
            self.is_allowed(if call.limited { allowed.max(self.allowed) } else { allowed });
        } else if call.ended.is_late() && counts {
            self.is_allowed(took);
        }
        if !counts {
            return None;
        }
        if call.ended != Ended::Throttled {
            self.recent.add(took, 0.3 / (self.limit / 2.0 / f64::from(call.answers)).max(1.0));
        }
        let sample = Sample {
            answers: call.answers as usize,
            limited: call.limited,
            dropped: call.ended == Ended::Throttled || call.ended.is_late(),
            allowed: (self.allowed > 0.0).then(|| clock::seconds(self.allowed)),
            ..Sample::new(at, rtt, call.in_flight as usize)
        };
        // That a service is down says little about how much it can do.
        let least = if silent && call.ended.is_late() { self.limit.min(1.0) } else { self.min };
        Some(Question { strategy: self.strategy.take()?, limit: self.limit, sample, least })
    }

    /// The question comes back, with its answer if there was one.
    pub(super) fn adopt(&mut self, now: u64, question: Question, next: Option<f64>) {
        let Question { strategy, sample, least, .. } = question;
        self.strategy = Some(strategy);
        if let Some(next) = next.filter(|next| !next.is_nan()) {
            self.limit = self.within(next.max(least));
            let took = sample.rtt.as_secs_f64();
            self.rest(now, if sample.dropped { took.max(self.recent.value) } else { took });
        }
    }

    /// Below one there is a pause after each call, so that on average so much of one is in flight.
    fn rest(&mut self, now: u64, took: f64) {
        if self.limit < 1.0 {
            let longest = PROBE_AT_LEAST_AFTER * self.usually_allowed();
            self.rests_until = now.saturating_add(seconds((took * (1.0 / self.limit - 1.0)).min(longest)));
        } else {
            self.rests_until = 0;
        }
    }

    fn is_allowed(&mut self, time: f64) {
        // The most, as of late: others have less left for reasons of their own.
        let time = time.min(HOUR);
        self.allowed = time.max(self.allowed + 0.01 * (time - self.allowed));
    }

    /// In seconds: for how long a call was out, before it was given up, if that says anything of the service. Whoever was let out
    /// with just the [time that is enough](Self::least_left) was.
    fn telling(&self) -> f64 {
        let usual = self.recent.value;
        if usual == 0.0 {
            TELLING * self.allowed()
        } else if self.allowed == 0.0 {
            TIMES_USUAL * usual
        } else {
            (TIMES_USUAL * usual).min((TELLING * self.allowed).max(usual.min(TELLING_AT_MOST * self.allowed)))
        }
    }

    /// How long calls may take, in seconds.
    fn allowed(&self) -> f64 {
        if self.allowed > 0.0 { self.allowed } else { ALLOWED }
    }

    /// As far as pauses go: whoever may take an hour does not have the others wait for that long.
    fn usually_allowed(&self) -> f64 {
        self.allowed().min(LONGEST)
    }

    /// How far it may go. Zero: nowhere, until it may again.
    pub(super) fn bound(&mut self, max: f64) {
        self.max = max;
        // What was found is still so once it may go further again than nowhere.
        if max >= 1.0 {
            self.limit = self.within(self.limit);
        }
    }

    fn within(&self, limit: f64) -> f64 {
        limit.clamp(self.min, self.max.max(self.min))
    }
}

/// As nanoseconds, saturating.
fn seconds(time: f64) -> u64 {
    nanos(clock::seconds(time))
}

#[cfg(all(test, not(buttress_loom)))]
mod tests {
    use super::*;
    use crate::clock;

    /// Says what it is told to.
    #[derive(Debug)]
    struct Says(f64);

    impl Limit for Says {
        fn initial(&self) -> f64 {
            self.0
        }

        fn update(&mut self, _: f64, sample: &Sample) -> f64 {
            if sample.dropped { self.0 / 4.0 } else { self.0 }
        }
    }

    const MS: u64 = 1_000_000;

    fn regulator(limit: f64) -> Regulator {
        Regulator::new(Box::new(Says(limit)), 0.02, 100.0, true)
    }

    fn end(regulator: &mut Regulator, now: u64, ended: Ended, took: u64) {
        let call = Call {
            ended,
            took: Some(Duration::from_nanos(took)),
            allowed: Some(Duration::from_secs(1)),
            in_flight: 1,
            answers: 1,
            limited: false,
        };
        if let Some(mut question) = regulator.ended(now, clock::now(), call) {
            let next = question.ask();
            regulator.adopt(now, question, Some(next));
        }
    }

    /// One that knows that calls take 20 ms.
    fn calm(limit: f64) -> Regulator {
        let mut regulator = regulator(limit);
        for number in 0..10 {
            end(&mut regulator, number * 100 * MS, Ended::Answered, 20 * MS);
        }
        regulator
    }

    #[test]
    fn a_limit_below_one_rests_in_between() {
        let regulator = calm(0.25);
        let now = 900 * MS;
        assert_eq!(regulator.unasked(), 0, "each call asks");
        // A quarter of one: three times as long as the call took.
        assert_eq!(regulator.gate(now), Gate::Shut(now + 60 * MS));
        assert_eq!(regulator.gate(now + 60 * MS), Gate::Open(1));
    }

    #[test]
    fn a_limit_keeps_within_its_bounds_and_is_no_nonsense() {
        let mut regulator = calm(1e9);
        assert_eq!(regulator.gate(0), Gate::Open(100));
        regulator.bound(7.0);
        assert_eq!((regulator.gate(0), regulator.unasked()), (Gate::Open(7), 7));
        regulator.fall_silent(0);
        assert_eq!(regulator.gate(60_000 * MS), Gate::Probe(7), "a probe is no exception");
        regulator.bound(0.0);
        end(&mut regulator, 0, Ended::Answered, 20 * MS);
        let back = regulator.limit;
        assert!(back >= 0.02, "{back}");
        // Below the least that it was built with, too.
        let mut regulator = Regulator::new(Box::new(Says(10.0)), 10.0, 100.0, true);
        regulator.bound(5.0);
        assert_eq!((regulator.gate(0), regulator.unasked(), regulator.calls()), (Gate::Open(5), 5, 5));
        regulator.bound(0.0);
        assert_eq!((regulator.gate(0), regulator.unasked(), regulator.calls()), (Gate::Open(0), 0, 0));
        assert_eq!((regulator.gate(u64::MAX), regulator.unasked()), (Gate::Open(0), 0), "zero is nobody");
        let mut regulator = calm(1e-9);
        assert_eq!(regulator.limit, 0.02);
        regulator.strategy = Some(Box::new(Says(f64::NAN)));
        end(&mut regulator, 0, Ended::Answered, 20 * MS);
        assert_eq!(regulator.limit, 0.02);
    }

    // A refusal that is there at once is no leave to come again at once.
    #[test]
    fn who_is_turned_away_rests_as_long_as_who_is_answered() {
        let mut regulator = calm(0.25);
        for took in [Some(Duration::ZERO), None] {
            let call = Call { ended: Ended::Throttled, took, allowed: None, in_flight: 1, answers: 1, limited: true };
            let question = regulator.ended(5_000 * MS, clock::now(), call).unwrap();
            assert_eq!(regulator.gate(5_000 * MS), Gate::Shut(5_060 * MS));
            regulator.adopt(5_000 * MS, question, Some(0.5));
            assert_eq!(regulator.gate(5_000 * MS), Gate::Shut(5_020 * MS));
            regulator.limit = 0.25;
        }
    }

    #[test]
    fn it_rests_no_longer_once_it_is_above_one() {
        let mut regulator = calm(0.1);
        assert!(matches!(regulator.gate(901 * MS), Gate::Shut(_)));
        regulator.strategy = Some(Box::new(Says(3.0)));
        end(&mut regulator, 901 * MS, Ended::Answered, 20 * MS);
        assert_eq!(regulator.gate(901 * MS), Gate::Open(3));
    }

    #[test]
    fn one_call_that_may_take_an_hour_has_nobody_wait_for_that_long() {
        let mut regulator = calm(8.0);
        let (took, allowed) = (Some(Duration::from_millis(20)), Some(Duration::MAX));
        let call = Call { ended: Ended::Answered, took, allowed, in_flight: 1, answers: 1, limited: false };
        let question = regulator.ended(1_000 * MS, clock::now(), call).unwrap();
        regulator.adopt(1_000 * MS, question, None);
        regulator.fall_silent(2_000 * MS);
        assert_eq!(regulator.gate(2_000 * MS), Gate::Shut(2_700 * MS), "0.7 of a second");
    }

    #[test]
    fn an_answer_that_says_nothing_says_that_somebody_is_there() {
        let mut regulator = calm(8.0);
        regulator.fall_silent(2_000 * MS);
        end(&mut regulator, 2_100 * MS, Ended::Unknown, 20 * MS);
        assert!(regulator.unanswered > 0);
        end(&mut regulator, 2_100 * MS, Ended::Ignored, 20 * MS);
        assert_eq!(regulator.gate(2_100 * MS), Gate::Open(8));
    }

    #[test]
    fn into_silence_goes_one_call_now_and_then() {
        let mut regulator = calm(8.0);
        assert_eq!(regulator.silent_after(), Some(120 * MS), "six times the usual");
        let began = 2_000 * MS;
        regulator.fall_silent(began);
        assert!(regulator.is_guarded() && regulator.is_down(began) && regulator.unasked() == 0);
        let mut gone = vec![began];
        for _ in 0..6 {
            let last = *gone.last().unwrap();
            let Gate::Shut(at) = regulator.gate(last) else { panic!("one has just gone") };
            assert_eq!((regulator.gate(at - 1), regulator.gate(at)), (Gate::Shut(at), Gate::Probe(100)));
            regulator.went(at);
            gone.push(at);
        }
        let gaps: Vec<_> = gone.windows(2).map(|two| (two[1] - two[0]) / MS).collect();
        assert_eq!(gaps, [700, 1_400, 2_800, 3_000, 3_000, 3_000], "of calls that may take a second");
        // Whoever gave up says nothing, any answer that it is over, an error too.
        end(&mut regulator, 20_000 * MS, Ended::GivenUp, 1_000 * MS);
        assert!(regulator.unanswered > 0 && regulator.limit >= 1.0, "a silence takes no more than down to one");
        end(&mut regulator, 20_000 * MS, Ended::Failed, MS);
        assert_eq!(regulator.unanswered, 0);
    }

    #[test]
    fn what_fails_every_call_is_asked_one_at_a_time_and_once_for_each_that_comes() {
        let mut regulator = calm(8.0);
        let mut now = 2_000 * MS;
        for _ in 0..4 {
            end(&mut regulator, now, Ended::Failed, MS);
        }
        now += 200 * MS;
        assert_eq!(regulator.gate(now), Gate::Open(8), "four are not all");
        end(&mut regulator, now, Ended::Failed, MS);
        assert!(regulator.is_down(now) && regulator.unasked() == 0);
        let mut probes = 0;
        for _ in 0..1_000 {
            now += 10 * MS;
            if regulator.gate(now) == Gate::Probe(100) {
                regulator.went(now);
                end(&mut regulator, now, Ended::Failed, MS);
                probes += 1;
            }
        }
        assert!(
            (26..=28).contains(&probes),
            "twenty, and then one for each of the seconds that calls may take: {probes}"
        );
        for _ in 0..3 {
            regulator.came(None);
        }
        let mut more = 0;
        for _ in 0..100 {
            now += 10 * MS;
            if regulator.gate(now) == Gate::Probe(100) {
                regulator.went(now);
                more += 1;
            }
        }
        assert!((3..=4).contains(&more), "one for each that came: {more}");
        end(&mut regulator, now, Ended::Answered, 20 * MS);
        assert_eq!((regulator.gate(now), regulator.unasked()), (Gate::Open(8), 8), "one answer, and all may go");
    }

    #[test]
    fn failures_that_come_faster_than_a_tenth_of_a_second_are_no_outage() {
        let mut regulator = calm(8.0);
        // However long ago the last answer is.
        let now = 600_000 * MS;
        (0..50).for_each(|_| end(&mut regulator, now, Ended::Failed, MS));
        assert_eq!(regulator.gate(now), Gate::Open(8));
        assert_eq!(regulator.gate(now + 200 * MS), Gate::Probe(100));
    }

    #[test]
    fn who_does_not_hold_back_lets_all_go() {
        let mut regulator = Regulator::new(Box::new(Says(8.0)), 1.0, 100.0, false);
        (0..50).for_each(|at| end(&mut regulator, at * 1_000 * MS, Ended::Failed, MS));
        assert_eq!((regulator.gate(60_000 * MS), regulator.silent_after()), (Gate::Open(8), None));
        assert!(!regulator.is_guarded());
    }

    #[test]
    fn what_says_nothing_is_not_asked_about() {
        let mut regulator = calm(8.0);
        for (ended, took, counts) in [
            (Ended::Unknown, 20, false),
            (Ended::Failed, 9, false),
            (Ended::Failed, 900, false),
            (Ended::GivenUp, 59, false),
            (Ended::GivenUp, 70, true),
            (Ended::Throttled, 1, true),
        ] {
            let took = Some(Duration::from_millis(took));
            let call = Call { ended, took, allowed: None, in_flight: 1, answers: 1, limited: false };
            let question = regulator.ended(2_000 * MS, clock::now(), call);
            assert_eq!(question.is_some(), counts, "{ended:?} after {took:?}");
            if let Some(question) = question {
                let dropped = question.sample.dropped;
                assert_eq!(dropped, matches!(ended, Ended::GivenUp | Ended::Throttled), "{ended:?}");
                regulator.adopt(2_000 * MS, question, None);
            }
        }
    }

    /// Whether anybody is asked about a call that ended so, after so many milliseconds of so many.
    fn is_told(regulator: &mut Regulator, ended: Ended, took: u64, allowed: Option<u64>) -> bool {
        let (took, allowed) = (Some(Duration::from_millis(took)), allowed.map(Duration::from_millis));
        let call = Call { ended, took, allowed, in_flight: 1, answers: 1, limited: true };
        let question = regulator.ended(2_000 * MS, clock::now(), call);
        question.map(|question| regulator.adopt(2_000 * MS, question, None)).is_some()
    }

    // Else a client that starts while its service fails at once takes that for how long answers take.
    #[test]
    fn before_the_first_answer_only_one_that_took_its_time_says_anything() {
        for (ended, took, told) in [
            (Ended::Failed, 1, false),
            (Ended::Failed, 900, false),
            (Ended::GivenUp, 399, false),
            (Ended::GivenUp, 401, true),
            (Ended::Throttled, 1, true),
        ] {
            assert_eq!(is_told(&mut regulator(8.0), ended, took, None), told, "{ended:?} after {took} ms");
        }
    }

    // Whoever is let out with just enough time left, in vain, must be heard of.
    #[test]
    fn what_is_enough_to_be_let_out_is_enough_to_be_told_of() {
        for usual in [20, 90, 150, 250, 400, 600, 800, 900, 990] {
            let mut regulator = regulator(8.0);
            for _ in 0..200 {
                is_told(&mut regulator, Ended::Answered, usual, Some(1_000));
            }
            let least = regulator.least_left() / MS;
            assert!(is_told(&mut regulator, Ended::GivenUp, least - 1, Some(least)), "{usual} ms: {least} ms");
            let mut regulator = self::regulator(8.0);
            for _ in 0..200 {
                is_told(&mut regulator, Ended::Answered, usual, Some(1_000));
            }
            let sooner = usual.min(850) - 1;
            assert!(!is_told(&mut regulator, Ended::GivenUp, sooner, Some(1_000)), "{usual} ms: sooner than usual");
        }
        // Its own time-out is no caller who has no patience.
        let mut regulator = calm(8.0);
        assert!(!is_told(&mut regulator, Ended::GivenUp, 30, Some(10_000)));
        assert!(is_told(&mut regulator, Ended::TimedOut, 30, Some(10_000)));
        // Without a deadline a caller may have left for reasons of its own.
        let mut regulator = self::regulator(8.0);
        for _ in 0..200 {
            is_told(&mut regulator, Ended::Answered, 800, None);
        }
        assert!(!is_told(&mut regulator, Ended::GivenUp, 2_000, None));
        assert!(is_told(&mut regulator, Ended::GivenUp, 2_500, None));
    }

    // Else whoever is let out last, with little time left, has all seem to have little time, and be let out in vain.
    #[test]
    fn how_long_calls_may_take_is_known_by_those_who_come() {
        let mut regulator = calm(8.0);
        for _ in 0..1_000 {
            regulator.came(Some(1_000 * MS));
            is_told(&mut regulator, Ended::Answered, 20, Some(100));
        }
        assert_eq!(regulator.allowed, 1.0);
        for _ in 0..1_000 {
            regulator.came(Some(100 * MS));
        }
        assert!((0.1..0.11).contains(&regulator.allowed), "{}", regulator.allowed);
        // Where nobody waits, nobody comes to say so; and of those who may take for ever one is soon forgotten.
        regulator.came(Some(u64::MAX));
        for _ in 0..1_200 {
            end(&mut regulator, 0, Ended::Answered, 20 * MS);
        }
        assert!((1.0..1.1).contains(&regulator.allowed), "{}", regulator.allowed);
    }

    #[test]
    fn who_has_too_little_time_left_is_known_by_what_is_usual() {
        assert_eq!(regulator(8.0).least_left(), 0, "nothing is known yet");
        let mut regulator = calm(8.0);
        assert_eq!(regulator.least_left(), 80 * MS, "four times the usual");
        for at in 0..100 {
            end(&mut regulator, at * 1_000 * MS, Ended::Answered, 900 * MS);
        }
        assert_eq!(regulator.least_left(), 900 * MS, "but no more than there is, nearly");
        for at in 0..100 {
            end(&mut regulator, at * 1_000 * MS, Ended::Answered, 300 * MS);
        }
        assert_eq!(regulator.least_left(), 500 * MS, "half of all the time is enough");
        for at in 0..100 {
            end(&mut regulator, at * 1_000 * MS, Ended::Answered, 400 * MS);
        }
        assert_eq!((regulator.least_left() + MS / 2) / MS, 600, "unless an answer takes more");
    }
}
