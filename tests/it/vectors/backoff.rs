//! C: backoff.

use std::time::Duration;

use buttress::{Backoff, Jitter};

use crate::support::{ms, secs};

fn without_jitter(backoff: Backoff, delays: usize) -> Vec<Duration> {
    backoff.jitter(Jitter::None).delays(0).take(delays).collect()
}

/// Polly spreads a delay by a quarter to either side, so that it may be longer than was asked for. A difference: ours
/// never is, and it spreads over the whole delay (full) or its upper half (equal), since a quarter keeps clients
/// that have failed together mostly together.
// VECTOR: C1
#[test]
fn polly_jitter_of_constant_and_linear_delays() {
    #[rustfmt::skip]
    let rows = [
        // r    constant 1 s: Polly, full, equal   linear, 3rd delay: Polly, full, equal
        (0.0, [ 750,    0,  500],                 [2_250,     0, 1_500]),
        (0.4, [ 950,  400,  700],                 [2_850, 1_200, 2_100]),
        (0.5, [1_000,  500,  750],                [3_000, 1_500, 2_250]),
        (0.6, [1_050,  600,  800],                [3_150, 1_800, 2_400]),
        (1.0, [1_250, 1_000, 1_000],              [3_750, 3_000, 3_000]),
    ];
    let shapes = [(Backoff::constant(secs(1)), secs(1)), (Backoff::linear(secs(1), secs(1)), secs(3))];
    for (r, constant, linear) in rows {
        for ((backoff, whole), [polly, full, equal]) in shapes.into_iter().zip([constant, linear]) {
            assert_eq!(whole.mul_f64(0.75 + r / 2.0), ms(polly), "the formula of the row");
            let ours = |jitter| backoff.jitter(jitter).delay(3, Duration::ZERO, r);
            assert_eq!((ours(Jitter::Full), ours(Jitter::Equal)), (ms(full), ms(equal)), "r = {r}");
        }
    }
}

/// Differences for the same reason: Polly stays within a quarter of the delay, ours within the delay; its second
/// exponential jitter may reach four times what was asked for, our decorrelated one three times the delay before.
// VECTOR: C3
#[test]
fn polly_jitter_properties() {
    for case in 0..10_000u32 {
        let (base, attempt) = (ms(u64::from(case % 97) * 11 + 1), case % 7 + 1);
        let unit = f64::from(case) / 9_999.0;
        for (backoff, whole) in [(Backoff::constant(base), base), (Backoff::linear(base, base), base * attempt)] {
            let ours = |jitter| backoff.jitter(jitter).delay(attempt, Duration::ZERO, unit);
            assert!(ours(Jitter::Full) <= whole);
            assert!((whole / 2..=whole).contains(&ours(Jitter::Equal)));
        }
        let previous = base * attempt;
        let ours = Backoff::decorrelated(base).delay(attempt, previous, unit);
        assert!((base..=previous * 3).contains(&ours), "{ours:?} after {previous:?}");
    }
}

/// The randomized function is a difference as in C1: ours are never longer than the delay.
// VECTOR: C5
#[test]
fn resilience4j_interval_function() {
    let cap = ms(100_000);
    let delays = without_jitter(Backoff::exponential(ms(100)).max_delay(cap), 13);
    assert!(delays[..11].is_sorted_by(|one, next| one < next), "{delays:?}");
    assert_eq!(delays[9], ms(51_200));
    assert_eq!(delays[10..], [cap, cap, cap], "102,400 is clamped");

    let randomized = Backoff::constant(ms(100)).jitter(Jitter::Equal);
    let spread: Vec<_> = randomized.delays(5).take(1_000).collect();
    assert!(spread.iter().all(|delay| (ms(50)..=ms(100)).contains(delay)), "theirs is 50 to 150 ms");
}

/// `takeUntil` is a difference: attempts are bounded by their number and by the deadline, so ours are endless.
// VECTOR: C7
#[test]
fn finagle_backoff() {
    let rows = [
        (Backoff::exponential(ms(2)), [2, 4, 8, 16, 32]),
        (Backoff::exponential(ms(2)).max_delay(ms(15)), [2, 4, 8, 15, 15]),
        (Backoff::linear(ms(9), ms(30)).max_delay(ms(99)), [9, 39, 69, 99, 99]),
        (Backoff::linear(secs(1), secs(1)), [1_000, 2_000, 3_000, 4_000, 5_000]),
    ];
    for (backoff, delays) in rows {
        assert_eq!(without_jitter(backoff, 5), delays.map(ms), "{backoff:?}");
    }
}

// VECTOR: C9
#[test]
fn botocore_standard_backoff() {
    let delays: Vec<_> =
        (1..=11).map(|attempt| Backoff::exponential(ms(50)).delay(attempt, Duration::ZERO, 1.0)).collect();
    assert_eq!(delays, [50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 20_000, 20_000].map(ms));
}
