//! The vectors of those that others had first, and what ours promises.

use super::{gradient2::Average, *};
use crate::clock::now;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The limit after each of these: milliseconds, and how many were in flight.
fn run(mut limit: impl Limit, from: f64, samples: &[(u64, usize)]) -> Vec<f64> {
    let mut at = from;
    let step = |(took, in_flight): &(u64, usize)| {
        at = limit.update(at, &Sample::new(now(), ms(*took), *in_flight));
        at
    };
    samples.iter().map(step).collect()
}

fn half(limit: f64) -> f64 {
    limit / 2.0
}

// VECTOR: F1
#[test]
fn vegas_does_as_netflix_has_it() {
    assert_eq!(run(Vegas::default(), 10.0, &[(10, 10), (10, 11)]), [10.0, 16.0]);
    assert_eq!(run(Vegas::default(), 10.0, &[(10, 10), (50, 11)]), [10.0, 9.0]);
    assert_eq!(run(Vegas::default(), 10.0, &[(10, 10), (14, 14)]), [10.0, 10.0]);
    assert_eq!(run(Vegas::default(), 10_000.0, &[(10_000, 5_000), (10_000, 6_000)]), [10_000.0, 10_024.0]);
    let smooth = run(Vegas::default().decrease(half).smoothing(0.5), 100.0, &[(10, 100), (20, 100), (20, 100)]);
    assert_eq!(smooth.iter().map(|limit| limit.floor()).collect::<Vec<_>>(), [100.0, 75.0, 56.0]);
    assert_eq!(run(Vegas::default().decrease(half), 100.0, &[(10, 100), (20, 100), (20, 100)]), [100.0, 50.0, 25.0]);
}

#[test]
fn vegas_neither_grows_unused_nor_holds_on_to_the_fastest_for_ever() {
    assert_eq!(run(Vegas::default(), 10.0, &[(10, 10), (10, 4)]), [10.0, 10.0]);
    let mut vegas = Vegas::default();
    let mut limit = vegas.update(10.0, &Sample::new(now(), ms(1), 10));
    let forgotten = (0..400).find(|_| {
        limit = vegas.update(10.0, &Sample::new(now(), ms(100), 10));
        limit > 10.0
    });
    assert!(
        forgotten.is_some_and(|after| after >= 150),
        "after half of 30 for each of 10, and not before: {forgotten:?}"
    );
}

#[test]
fn vegas_forgets_the_fastest_at_another_time_each_time() {
    let mut vegas = Vegas::default();
    let forgets: Vec<usize> = (0..3_000).filter(|_| vegas.forgets(10.0)).collect();
    let gaps: Vec<usize> = forgets.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(gaps.len() >= 9 && gaps.iter().all(|gap| (150..=300).contains(gap)), "{gaps:?}");
    assert!(gaps.windows(2).all(|two| two[0] != two[1]), "{gaps:?}");
}

// VECTOR: F3
#[test]
fn the_long_term_average_begins_as_a_plain_one() {
    let mut average = Average::new(100, 10);
    for (number, value) in (10..20).enumerate() {
        assert_eq!(average.add(f64::from(value)), 10.0 + number as f64 / 2.0);
    }
    assert!((average.add(100.0) - 16.2).abs() < 0.1);
}

#[test]
fn gradient2_adds_four_while_it_is_no_slower_and_falls_to_what_it_tolerates() {
    let grown = run(Gradient2::default(), 20.0, &[(10, 20); 2]);
    assert_eq!(grown.iter().map(|limit| (limit * 1e6).round() / 1e6).collect::<Vec<_>>(), [20.8, 21.6]);
    let mut gradient = Gradient2::default();
    let mut limit = 100.0;
    for _ in 0..600 {
        limit = gradient.update(limit, &Sample::new(now(), ms(10), 100)).min(100.0);
    }
    let slower = gradient.update(limit, &Sample::new(now(), ms(30), 100));
    // 1.5 × 10 ÷ 30 of it, four more, and of that change a fifth.
    assert!((slower - (80.0 + 0.2 * (50.0 + 4.0))).abs() < 0.5, "{slower}");
    assert_eq!(gradient.update(100.0, &Sample::new(now(), ms(30), 49)), 100.0, "it is not used");
}

#[test]
fn vegas_and_aimd_come_back_from_below_one() {
    let vegas = run(Vegas::default(), 0.02, &[(10, 1); 100]);
    assert!(vegas.last().is_some_and(|limit| *limit > 1.0), "{vegas:?}");
    let dropped = Sample { dropped: true, ..Sample::new(now(), ms(1), 1) };
    let mut aimd = Aimd::default();
    assert_eq!([1.0, 0.5, 2.0].map(|limit| aimd.update(limit, &dropped)), [0.9, 0.45, 1.0]);
    assert_eq!(aimd.update(0.5, &Sample::new(now(), ms(1), 1)), 1.5);
}

#[test]
fn aimd_adds_one_and_takes_a_tenth() {
    assert_eq!(run(Aimd::default(), 20.0, &[(1, 20), (1, 10), (1, 10), (5_001, 1)]), [21.0, 21.0, 21.0, 18.0]);
    let mut aimd = Aimd::default();
    let dropped = Sample { dropped: true, ..Sample::new(now(), ms(1), 20) };
    assert_eq!(aimd.update(20.0, &dropped), 18.0);
    assert_eq!(Aimd::default().slow(ms(100)).update(20.0, &Sample::new(now(), ms(101), 20)), 18.0);
}

/// A service of so many workers behind one queue, asked by `clients` who all keep to their limits: how many calls are in flight in
/// all and how long they take, once it has settled. `took` is how long a call takes when nothing is wrong.
fn settled(clients: usize, workers: f64, took: f64, rounds: usize) -> (f64, f64) {
    let mut limits = vec![(Headroom::default(), 4.0_f64); clients];
    let mut rtt = took;
    for round in 0..rounds {
        for (headroom, limit) in &mut limits {
            // As it was before anyone asked too much.
            let rtt = if round < 30 { took } else { rtt };
            let in_flight = limit.max(1.0) as usize;
            let sample = Sample { limited: round >= 30, ..Sample::new(now(), Duration::from_secs_f64(rtt), in_flight) };
            *limit = headroom.update(*limit, &sample).max(0.02);
        }
        let in_flight: f64 = limits.iter().map(|(_, limit)| limit).sum();
        rtt = took * (in_flight / workers).max(1.0);
    }
    (limits.iter().map(|(_, limit)| limit).sum(), rtt)
}

#[test]
fn headroom_keeps_a_service_busy_and_its_queue_short_however_many_ask() {
    for clients in [1, 5, 50, 200] {
        let (in_flight, rtt) = settled(clients, 10.0, 0.02, 3_000);
        assert!(in_flight >= 10.5, "{clients} clients: {in_flight} in flight do not keep ten workers busy");
        assert!(rtt <= 0.4, "{clients} clients: {rtt} s");
    }
}

fn feed(headroom: &mut Headroom, limit: &mut f64, times: usize, sample: Sample) {
    for _ in 0..times {
        *limit = headroom.update(*limit, &sample);
    }
}

#[test]
fn headroom_does_not_grow_unused() {
    let (mut headroom, mut limit) = (Headroom::default(), 4.0);
    feed(&mut headroom, &mut limit, 1_000, Sample::new(now(), ms(20), 2));
    assert!((3.0..=3.5).contains(&limit), "two in flight, a fifth more and one: {limit}");
}

#[test]
fn headroom_does_not_take_an_overload_for_what_is_usual() {
    let (mut headroom, mut limit) = (Headroom::default(), 4.0);
    feed(&mut headroom, &mut limit, 100, Sample::new(now(), ms(20), 4));
    let overload = Sample { limited: true, ..Sample::new(now(), ms(400), 4) };
    feed_each(&mut headroom, &mut limit, 10_000, ms(100), overload);
    assert!(limit < 1.0, "it is twenty times as slow: {limit}");
    // A slow leak: a thousandth more each time, while calls wait.
    let (mut headroom, mut limit) = (Headroom::default(), 4.0);
    feed(&mut headroom, &mut limit, 100, Sample::new(now(), ms(20), 4));
    let mut rtt = 0.02;
    for _ in 0..3_000 {
        rtt *= 1.001;
        let leak = Sample { limited: true, ..Sample::new(now(), Duration::from_secs_f64(rtt), 4) };
        limit = headroom.update(limit, &leak);
    }
    assert!(limit < 1.0, "it is twenty times as slow: {limit}");
}

// Whoever starts in the middle of an overload has seen at first how long calls take.
#[test]
fn headroom_takes_the_fastest_of_the_first_for_what_is_usual() {
    let (mut headroom, mut limit) = (Headroom::default(), 10.0);
    let sample = |took| Sample { limited: true, allowed: Some(ms(1_000)), ..Sample::new(now(), ms(took), 10) };
    feed(&mut headroom, &mut limit, 3, sample(20));
    feed(&mut headroom, &mut limit, 300, sample(400));
    assert!(limit < 2.0, "{limit}");
}

#[test]
fn headroom_follows_what_is_usual_down_at_any_time_and_up_while_nobody_waits() {
    // How high the limit is where calls take `now`, and some wait, after so many of each.
    let after = |phases: &[(u64, bool)], took| {
        let (mut headroom, mut limit) = (Headroom::default(), 3.0);
        let sample = |took, limited| Sample { limited, ..Sample::new(now(), ms(took), 3) };
        for &(took, limited) in phases {
            feed(&mut headroom, &mut limit, 3_000, sample(took, limited));
        }
        limit = 3.0;
        feed(&mut headroom, &mut limit, 300, sample(took, true));
        limit
    };
    assert!(after(&[(100, false)], 250) < 2.0);
    assert!(after(&[(100, false), (250, true)], 250) < 2.0, "they waited");
    assert!(after(&[(100, false), (250, false)], 250) > 3.0, "nobody waited");
    assert!(after(&[(100, false), (400, false)], 400) < 2.0, "but that is too far off");
    assert!(after(&[(300, false)], 300) > 3.0);
    assert!(after(&[(300, false), (100, true)], 300) < 2.0);
    assert!(after(&[(300, false), (100, false)], 300) < 2.0);
}

/// So many samples, each so long after the one before.
fn feed_each(headroom: &mut Headroom, limit: &mut f64, times: u32, apart: Duration, mut sample: Sample) -> Sample {
    for _ in 0..times {
        sample.now += apart;
        *limit = headroom.update(*limit, &sample);
    }
    sample
}

#[test]
fn headroom_goes_by_the_better_half() {
    for (bad, of) in [(1, 10), (1, 2)] {
        let (mut headroom, mut limit) = (Headroom::default(), 4.0);
        for round in 0..2_000 {
            let hangs = round % of < bad;
            let sample =
                Sample { limited: true, dropped: hangs, ..Sample::new(now(), ms(if hangs { 1_000 } else { 20 }), 4) };
            limit = headroom.update(limit, &sample);
        }
        assert!(limit > 3.0, "{bad} of {of} hang: {limit}");
    }
}

#[test]
fn headroom_takes_who_is_given_up_for_twice_as_slow() {
    let limit = |dropped| {
        let (mut headroom, mut limit) = (Headroom::default(), 8.0);
        let calm = Sample { allowed: Some(ms(1_000)), ..Sample::new(now(), ms(100), 8) };
        feed(&mut headroom, &mut limit, 100, calm);
        feed(&mut headroom, &mut limit, 100, Sample { rtt: ms(500), dropped, limited: true, ..calm });
        limit
    };
    let (answered, given_up) = (limit(false), limit(true));
    assert!(given_up < 0.7 * answered, "{given_up} {answered}");
}

#[test]
fn headroom_takes_for_no_queue_what_is_brief_for_those_who_wait() {
    // A tenth of a second at most, also where calls may take a minute.
    for (allowed, brief, long) in [(None, 45, 150), (Some(1_000), 45, 150), (Some(200), 9, 40), (Some(60_000), 90, 300)]
    {
        let after = |took| {
            let (mut headroom, mut limit) = (Headroom::default(), 3.0);
            let sample = Sample { limited: true, allowed: allowed.map(ms), ..Sample::new(now(), ms(1), 3) };
            feed(&mut headroom, &mut limit, 30, sample);
            feed(&mut headroom, &mut limit, 500, Sample { rtt: ms(took), in_flight: 3, ..sample });
            limit
        };
        assert!(after(brief) > 3.0 && after(long) < 2.0, "{allowed:?}: {} {}", after(brief), after(long));
    }
}

#[test]
fn headroom_follows_what_is_slow_for_good_if_deadlines_say_that_it_is_no_harm() {
    let after = |took, allowed: Option<u64>| {
        let (mut headroom, mut limit) = (Headroom::default(), 3.0);
        let sample = Sample { limited: true, allowed: allowed.map(ms), ..Sample::new(now(), ms(10), 3) };
        let sample = feed_each(&mut headroom, &mut limit, 100, ms(10), sample);
        let slow = Sample { rtt: ms(took), in_flight: 3, ..sample };
        feed_each(&mut headroom, &mut limit, 50, ms(100), slow);
        let soon = limit;
        feed_each(&mut headroom, &mut limit, 3_000, ms(100), slow);
        (soon, limit)
    };
    let (soon, later) = after(400, Some(1_000));
    assert!(soon < 2.0 && later > 3.0, "after five seconds {soon}, after five minutes {later}");
    let (_, later) = after(400, None);
    assert!(later < 2.0, "nobody says what is no harm: {later}");
    let (_, later) = after(700, Some(1_000));
    assert!(later < 1.0, "more than half of the time is harm: {later}");
    let (_, later) = after(2_500, Some(60_000));
    assert!(later < 2.0, "and more than two seconds, whatever the time is: {later}");
}

#[test]
fn headroom_doubles_what_is_in_use_until_it_has_to_fall() {
    let mut headroom = Headroom::default();
    let mut limit = headroom.initial();
    let mut at = Sample::new(now(), ms(20), 0);
    let mut trips = |headroom: &mut Headroom, limit: &mut f64, rtt, until: f64| {
        // In each trip as many answers as may be in flight.
        (1..=1_000).find(|_| {
            let in_flight = limit.max(1.0);
            for _ in 0..in_flight as u32 {
                at = Sample {
                    rtt,
                    limited: true,
                    in_flight: in_flight as usize,
                    now: at.now + rtt / in_flight as u32,
                    ..at
                };
                *limit = headroom.update(*limit, &at);
            }
            if until > in_flight { *limit >= until } else { *limit <= until }
        })
    };
    let first = trips(&mut headroom, &mut limit, ms(20), 300.0).unwrap();
    assert!((4..=12).contains(&first), "{first} trips from 10 to 300");
    trips(&mut headroom, &mut limit, ms(400), 150.0).unwrap();
    let again = trips(&mut headroom, &mut limit, ms(20), 300.0).unwrap();
    assert!(again > first, "{again} trips from 150 to 300, more carefully");
    // Many small clients who all double flood a service.
    let (mut headroom, mut limit) = (Headroom::default(), 3.0);
    let small = trips(&mut headroom, &mut limit, ms(20), 6.0).unwrap();
    assert!(small >= 4, "{small} trips from 3 to 6");
}

#[test]
fn a_drop_is_no_quick_answer() {
    let refused = Sample { dropped: true, ..Sample::new(now(), ms(1), 40) };
    let answer = Sample::new(now(), ms(50), 40);
    let mut vegas = Vegas::default();
    assert_eq!(vegas.update(40.0, &answer), 40.0, "the first is the fastest");
    assert_eq!(vegas.update(40.0, &refused), 39.0);
    assert_eq!(vegas.update(40.0, &answer), 46.0, "and is still");
    let mut gradient = Gradient2::default();
    let mut limit = 40.0;
    for _ in 0..20 {
        limit = gradient.update(limit, &answer).min(40.0);
    }
    assert_eq!(gradient.update(40.0, &refused), 40.0 * 0.8 + 0.2 * (20.0 + 4.0));
    assert!((gradient.update(40.0, &answer) - 40.8).abs() < 1e-9, "50 ms are as usual as they were");
    // Of nothing but refusals nobody knows how long anything takes.
    let (mut headroom, mut limit) = (Headroom::default(), 10.0);
    feed(&mut headroom, &mut limit, 40, refused);
    assert!(limit < 5.0, "{limit}");
    feed(&mut headroom, &mut limit, 400, Sample { limited: true, ..answer });
    assert!(limit > 40.0, "{limit}");
}

#[test]
fn settings_that_cannot_work_are_named() {
    let problems = |limit: &dyn Limit| limit.problem().map(|problem| problem.to_string());
    for bad in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1.1] {
        let problem = problems(&Vegas::default().smoothing(bad)).unwrap();
        assert_eq!(problem, format!("smoothing = {bad:?}: must be above 0 and at most 1"));
    }
    for bad in [f64::NAN, f64::INFINITY, -1.0, 0.0, 0.9] {
        let problem = problems(&Gradient2::default().tolerance(bad)).unwrap();
        assert_eq!(problem, format!("tolerance = {bad:?}: must be at least 1, and finite"));
    }
    assert_eq!(problems(&Aimd::default().slow(ms(0))).unwrap(), "slow = 0ns: must be longer than zero");
    let good: [&dyn Limit; 4] = [
        &Headroom::default(),
        &Aimd::default().slow(ms(1)),
        &Vegas::default().smoothing(1.0),
        &Gradient2::default().tolerance(1.0),
    ];
    for limit in good {
        assert_eq!(problems(limit), None, "{limit:?}");
    }
}

#[test]
fn headroom_takes_no_more_than_half_of_the_time_to_the_deadline() {
    let (mut headroom, mut limit) = (Headroom::default(), 4.0);
    let calm = Sample { allowed: Some(ms(1_000)), ..Sample::new(now(), ms(400), 8) };
    feed(&mut headroom, &mut limit, 200, calm);
    let before = limit;
    feed(&mut headroom, &mut limit, 200, Sample { rtt: ms(600), ..calm });
    assert!(before > 4.0 && limit < before / 2.0, "{before}, {limit}");
}

#[test]
fn headroom_finds_that_it_is_not_the_queue() {
    let (mut headroom, mut limit) = (Headroom::default(), 4.0);
    let mut at = now();
    let mut sample = |took: u64, limit: f64| {
        at += ms(took) / (limit as u32 + 1);
        Sample { limited: true, allowed: Some(ms(1_000)), ..Sample::new(at, ms(took), limit as usize + 1) }
    };
    for _ in 0..2_000 {
        limit = headroom.update(limit, &sample(20, limit)).min(100.0);
    }
    assert!(limit > 50.0, "{limit}");
    // From now on all calls take twenty times as long, however many are in flight.
    let (mut lowest, mut took) = (limit, 0);
    while limit < 90.0 || lowest > 60.0 {
        let sample = sample(400, limit);
        limit = headroom.update(limit, &sample).min(100.0);
        lowest = limit.min(lowest);
        took += 1;
        assert!(took < 5_000, "{limit} after {:?}", sample.now - now());
    }
    assert!(lowest > 2.0, "it came down to {lowest} before it knew");
    // What may be harm is taken for a queue, whatever it is.
    for _ in 0..5_000 {
        let slow = Sample { allowed: None, ..sample(900, limit) };
        limit = headroom.update(limit, &slow).min(100.0);
    }
    assert!(limit < 2.0, "{limit}");
}

#[test]
fn headroom_steps_back_from_a_door_that_is_shut() {
    let (mut headroom, mut limit) = (Headroom::default(), 4.0);
    feed(&mut headroom, &mut limit, 100, Sample::new(now(), ms(20), 4));
    let before = limit;
    feed(&mut headroom, &mut limit, 1, Sample { dropped: true, ..Sample::new(now(), ms(1), 4) });
    assert!((before - 0.3..before - 0.1).contains(&limit), "{before}, {limit}");
}

#[test]
fn no_sample_makes_nonsense_of_a_limit() {
    let extremes = [Duration::ZERO, Duration::from_nanos(1), ms(1), Duration::from_secs(1), Duration::MAX];
    let limits: [Box<dyn Limit>; 4] =
        [Box::<Aimd>::default(), Box::<Vegas>::default(), Box::<Gradient2>::default(), Box::<Headroom>::default()];
    for mut strategy in limits {
        let mut limit = strategy.initial();
        for round in 0..2_000 {
            let sample = Sample {
                limited: round % 3 == 0,
                dropped: round % 7 == 0,
                allowed: (round % 2 == 0).then_some(extremes[round % 5]),
                ..Sample::new(now(), extremes[round * 7 / 3 % 5], round % 40)
            };
            limit = strategy.update(limit, &sample).clamp(0.02, 1_000.0);
            assert!(!limit.is_nan(), "{strategy:?} in round {round}");
        }
    }
}
