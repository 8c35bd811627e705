//! How large the service is, who calls it, and when.

use std::time::Duration;

/// A fault begins at `FROM` and is over at `UNTIL`; nobody calls any more at `END`.
pub const FROM: Duration = Duration::from_secs(20);
pub const UNTIL: Duration = Duration::from_secs(50);
pub const END: Duration = Duration::from_secs(70);

/// Users wait for so long and then leave, whatever the client does.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// What goes over the network takes so long, each way.
pub const ONE_WAY: Duration = Duration::from_micros(500);

/// Clients that try again give each attempt so long, and make so many.
pub const ATTEMPT: Duration = Duration::from_millis(300);
pub const ATTEMPTS: u32 = 3;

/// Refusals that say when to come back say so in whole seconds, as HTTP has it: this is the least.
pub const HINT: Duration = Duration::from_secs(1);

/// All workers together; ten hosts have one each.
pub const WORKERS: usize = 10;
/// What a request takes on average, so that all workers together do 500 a second.
const MEAN: Duration = Duration::from_millis(20);
const LEAST: Duration = Duration::from_millis(5);
const MOST: Duration = Duration::from_secs(1);

/// How long requests take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// 5 ms, and by chance some 15 ms more.
    Exponential,
    /// By Pareto's law with an exponent of 1.5, 7 ms at least: most take less than 20 ms, every hundredth 140 ms and more.
    HeavyTailed,
}

impl Work {
    /// By a chance from 0 to 1; a second at most.
    pub fn draw(self, chance: f64) -> Duration {
        let left = 1.0 - chance;
        let work = match self {
            Self::Exponential => LEAST.as_secs_f64() - (MEAN - LEAST).as_secs_f64() * left.ln(),
            Self::HeavyTailed => MEAN.as_secs_f64() / 3.0 * left.powf(-1.0 / 1.5),
        };
        Duration::from_secs_f64(work.min(MOST.as_secs_f64()))
    }
}

/// What the sensitivity table varies.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Processes that call, each with a policy of its own.
    pub clients: usize,
    /// What is called on a calm day, of what the service can do; none: what the fault says.
    pub load: Option<f64>,
    pub work: Work,
    /// Whether the service drops what waits in its line once the caller has gone.
    pub notices: bool,
    /// Whether its refusals ask to come back after [`HINT`].
    pub hints: bool,
}

impl Setup {
    pub const USUAL: Self = Self { clients: 50, load: None, work: Work::Exponential, notices: false, hints: false };

    /// Requests per second that all workers can do.
    pub fn capacity() -> f64 {
        WORKERS as f64 / MEAN.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean over all chances; a tail that is cut off at a second has lost some of it.
    #[test]
    fn both_kinds_of_work_take_as_long_on_average() {
        let mean =
            |work: Work| (0..100_000).map(|at| work.draw((f64::from(at) + 0.5) / 1e5)).sum::<Duration>() / 100_000;
        assert!((0.0199..0.0201).contains(&mean(Work::Exponential).as_secs_f64()), "{:?}", mean(Work::Exponential));
        assert!((0.018..0.0201).contains(&mean(Work::HeavyTailed).as_secs_f64()), "{:?}", mean(Work::HeavyTailed));
    }
}
