//! The targets: each is a function of bytes. libFuzzer calls it with what it makes up, `cargo test` with the corpus and with
//! random bytes, and a target that is run as a program with the files that it is given.

use std::{
    fmt::Debug,
    future::Future,
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    task::Wake,
    time::Duration,
};

use arbitrary::{Arbitrary, Result, Unstructured};

pub mod backoff;
pub mod breaker;
pub mod budget;
pub mod builders;
pub mod deadline;
pub mod grpc;
pub mod limit;
pub mod replay;
pub mod respond;
pub mod retry_after;

/// A target, with its name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 10] = [
    ("backoff", backoff::run),
    ("breaker", breaker::run),
    ("budget", budget::run),
    ("builders", builders::run),
    ("deadline", deadline::run),
    ("grpc", grpc::run),
    ("limit", limit::run),
    ("replay", replay::run),
    ("respond", respond::run),
    ("retry_after", retry_after::run),
];

/// What a file in `fuzz_targets` consists of.
#[macro_export]
macro_rules! target {
    ($target:ident) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $crate::$target::run(data));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            for path in std::env::args_os().skip(1) {
                $crate::$target::run(&std::fs::read(path)?);
            }
            Ok(())
        }
    };
}

/// Makes an input of the bytes and runs `body` with it. With `FUZZ_SHOW` set, it is printed first.
fn with<'a, T: Arbitrary<'a> + Debug>(data: &'a [u8], body: impl FnOnce(T)) {
    if let Ok(input) = T::arbitrary_take_rest(Unstructured::new(data)) {
        if std::env::var_os("FUZZ_SHOW").is_some() {
            eprintln!("{input:#?}");
        }
        body(input);
    }
}

/// Runs `story` where time stands still but when it is told to go on.
fn paused<F: Future>(story: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(story)
}

/// A time of any magnitude, from none to longer than a clock runs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span(Duration);

impl<'a> Arbitrary<'a> for Span {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let count = u64::from(u16::arbitrary(u)?);
        Ok(Self(match u.int_in_range(0..=9)? {
            0 => Duration::ZERO,
            1 => Duration::from_nanos(count),
            2 => Duration::from_micros(count),
            3..=5 => Duration::from_millis(count),
            6 | 7 => Duration::from_secs(count),
            8 => Duration::from_secs(count * 3_600),
            // Up to 179 years each: a few, and nanoseconds in a word run over.
            _ => Duration::from_secs(count * 86_400),
        }))
    }
}

impl Span {
    fn or_a_nano(self) -> Duration {
        self.0.max(Duration::from_nanos(1))
    }
}

/// A share, as a fraction, so that a model needs no floats.
#[derive(Clone, Copy, Debug)]
struct Share {
    part: u64,
    whole: u64,
}

impl<'a> Arbitrary<'a> for Share {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let whole = u.int_in_range(1..=20)?;
        Ok(Self { part: u.int_in_range(1..=whole)?, whole })
    }
}

impl Share {
    fn rate(self) -> f64 {
        self.part as f64 / self.whole as f64
    }

    /// Whether `part` of `whole` is as much as this.
    fn is_reached_by(self, part: u64, whole: u64) -> bool {
        part * self.whole >= self.part * whole
    }
}

/// Counts how often it was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

impl Woken {
    fn times(&self) -> usize {
        self.0.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::TARGETS;

    #[test]
    fn no_input_of_the_corpora_breaks_its_target() {
        for (name, run) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
            let files: Vec<_> = fs::read_dir(&folder).expect("each target has a corpus").collect();
            assert!(!files.is_empty(), "{name}");
            for file in files {
                let path = file.unwrap().path();
                // What a failed test prints.
                println!("{}", path.display());
                run(&fs::read(path).unwrap());
            }
        }
    }

    /// Where libFuzzer cannot be built.
    #[test]
    fn no_random_bytes_break_a_target() {
        for (name, run) in TARGETS {
            let mut state = 0x9e37_79b9_7f4a_7c15_u64;
            // xorshift64*
            let mut random = || {
                state ^= state >> 12;
                state ^= state << 25;
                state ^= state >> 27;
                state.wrapping_mul(0x2545_f491_4f6c_dd1d)
            };
            for round in 0..1_000 {
                println!("{name}, round {round}");
                let len = random() % 600;
                let data: Vec<u8> = (0..len).map(|_| random().to_be_bytes()[0]).collect();
                run(&data);
            }
        }
    }
}
