//! Delays of any backoff, for any attempt: never past the cap, never below what the jitter leaves, and a sequence can be had
//! again from its seed.

use std::time::Duration;

use arbitrary::Arbitrary;
use buttress::{Backoff, CircuitBreaker, Jitter, Retry};

use crate::{Span, with};

#[derive(Arbitrary, Debug)]
struct Input {
    shape: Shape,
    first: Any,
    longest: Option<Any>,
    jitter: Option<bool>,
    asked: Vec<(u32, Any, u64)>,
    seed: u64,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Shape {
    Constant,
    Linear(Any),
    /// With the bits of a factor.
    Exponential(u64),
    Decorrelated,
}

/// Any time at all.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Any {
    Span(Span),
    Seconds(u64, u32),
    Longest,
}

impl From<Any> for Duration {
    fn from(any: Any) -> Self {
        match any {
            Any::Span(Span(time)) => time,
            Any::Seconds(secs, nanos) => Duration::new(secs, nanos % 1_000_000_000),
            Any::Longest => Duration::MAX,
        }
    }
}

pub fn run(data: &[u8]) {
    with(data, |Input { shape, first, longest, jitter, asked, seed }: Input| {
        let first = first.into();
        let (mut backoff, step, factor) = match shape {
            Shape::Constant => (Backoff::constant(first), Some(Duration::ZERO), 1.0),
            Shape::Linear(step) => (Backoff::linear(first, step.into()), Some(step.into()), 1.0),
            Shape::Exponential(bits) => {
                let factor = f64::from_bits(bits);
                (Backoff::exponential(first).factor(factor), None, factor)
            }
            Shape::Decorrelated => (Backoff::decorrelated(first), None, 1.0),
        };
        let longest = longest.map_or_else(|| first.max(Duration::from_secs(20)), Duration::from);
        backoff = backoff.max_delay(longest).jitter(match jitter {
            None => Jitter::None,
            Some(true) => Jitter::Full,
            Some(false) => Jitter::Equal,
        });

        for &(attempt, previous, unit) in &asked {
            let (previous, any) = (previous.into(), f64::from_bits(unit));
            // Whatever is given for a random number, the delay keeps to the cap.
            let delay = backoff.delay(attempt, previous, any);
            assert!(delay <= longest, "{delay:?} by {any}");
            assert_eq!(delay, backoff.delay(attempt, previous, any), "it is a function");

            let (lowest, highest) = (backoff.delay(attempt, previous, 0.0), backoff.delay(attempt, previous, 1.0));
            let unit = (unit >> 11) as f64 / (1_u64 << 53) as f64;
            let delay = backoff.delay(attempt, previous, unit);
            assert!(lowest <= delay && delay <= highest, "{lowest:?} <= {delay:?} <= {highest:?} by {unit}");
            match (shape, jitter) {
                (Shape::Decorrelated, _) => {
                    let base = first.min(longest);
                    assert_eq!(lowest, base);
                    assert_eq!(highest, previous.max(base).saturating_mul(3).min(longest));
                }
                (_, Some(true)) => assert_eq!(lowest, Duration::ZERO),
                (_, Some(false)) => {
                    let half = highest / 2;
                    assert!(lowest == half || lowest == highest - half, "{lowest:?} of {highest:?}");
                }
                (_, None) => assert_eq!((lowest, delay), (highest, highest)),
            }
            let again = attempt.saturating_sub(1);
            if let Some(step) = step {
                assert_eq!(highest, step.saturating_mul(again).saturating_add(first).min(longest));
            } else if let (Shape::Exponential(_), true) = (shape, factor.is_finite() && factor >= 1.0) {
                // The caps meet what grows, and nothing shrinks on the way there.
                let next = backoff.delay(attempt.saturating_add(1), previous, 1.0);
                assert!(next >= highest || again == 0 && attempt == 0, "{next:?} after {highest:?}");
                if again == 0 {
                    assert_eq!(highest, first.min(longest));
                }
            }
        }

        let some = |seed| backoff.delays(seed).take(20).collect::<Vec<_>>();
        let delays = some(seed);
        assert_eq!(delays, some(seed));
        assert!(delays.iter().all(|delay| *delay <= longest));

        // What `build()` takes and what it refuses.
        let growing = !matches!(shape, Shape::Exponential(_)) || factor.is_finite() && factor >= 1.0;
        let moving = !matches!(shape, Shape::Decorrelated) || !first.is_zero();
        let sane = growing && moving && !longest.is_zero();
        assert_eq!(Retry::with(backoff).build().is_ok(), sane);
        assert_eq!(CircuitBreaker::builder().open_time(backoff).build().is_ok(), sane && !first.is_zero());
    });
}
