//! What a call costs in buttress and in its peers, side by side. `cargo run --release` in this folder.

mod ahead;
mod allocations;
mod bars;
mod builds;
mod counts;
mod figures;
mod inner;
mod machine;
mod measure;
mod measured;
mod readme;
mod scaling;
mod subject;
mod subjects;
mod table;
mod versions;

use clap::{Parser, Subcommand};

use crate::{
    measured::All,
    subject::{Runtimes, Subject},
};

/// Measures buttress beside its peers.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    /// Only rows and libraries that contain this.
    #[arg(long)]
    only: Option<String>,
    /// How often each subject has its turn.
    #[arg(long, default_value_t = 31)]
    rounds: usize,
    /// Puts the table in short between the markers of the repository's README.md too.
    #[arg(long, conflicts_with = "only")]
    readme: bool,
}

/// What else there is to measure.
#[derive(Subcommand)]
enum Other {
    /// How long each library takes to build from scratch.
    Build {
        /// How often each is built.
        #[arg(long, default_value_t = 3)]
        builds: usize,
    },
    /// How the cost of a call grows: with tasks, with the breaker's window, with keys, with the queue.
    Scaling {
        /// How often each has its turn.
        #[arg(long, default_value_t = 11)]
        rounds: usize,
    },
    /// Counts instructions per call of our subjects under callgrind, and fails if they rise over counts.toml.
    Counts {
        /// Makes what is found the baseline.
        #[arg(long)]
        bless: bool,
    },
    /// Makes the calls that are counted.
    #[command(name = counts::COUNTED, hide = true)]
    Counted,
    /// Makes calls of the subjects whose name begins so, for a profiler.
    Run {
        /// Such as `buttress timeout`.
        name: String,
        /// Such as `ready at once`.
        way: String,
        /// So many at a time.
        calls: u64,
    },
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let runtimes = Runtimes { by_hand: measure::runtime(0), one: measure::runtime(1), two: measure::runtime(2) };
    // Timers of calls that are polled by hand.
    let _in_runtime = runtimes.by_hand.enter();
    let mut subjects = subjects::all(&runtimes);
    if let Some(only) = &args.only {
        subjects
            .retain(|it| it.row == subject::Row::Bare || it.library.contains(only) || it.row.title().contains(only));
    }
    match args.other {
        None => {
            let all = All::measure(&mut subjects, args.rounds);
            println!("{}", table::table(&all));
            if args.readme {
                readme::update(&all)?;
            }
        }
        Some(Other::Build { builds }) => println!("{}", builds::table(builds)),
        Some(Other::Scaling { rounds }) => scaling::print(&runtimes, rounds),
        Some(Other::Counts { bless }) => counts::counts(&mut subjects, bless)?,
        Some(Other::Counted) => counts::be_counted(&mut subjects),
        Some(Other::Run { name, way, calls }) => run(&mut subjects, &name, &way, calls),
    }
    Ok(())
}

/// Best and median of forty rounds.
fn run(subjects: &mut [Subject], name: &str, way: &str, calls: u64) {
    for subject in subjects.iter_mut().filter(|it| format!("{} {}", it.library, it.name()).starts_with(name)) {
        let name = format!("{} {}", subject.library, subject.name());
        for (_, runner) in subject.ways.iter_mut().filter(|(it, _)| it.title() == way) {
            let mut times: Vec<_> = (0..40).map(|_| runner.run(calls).as_nanos() as f64 / calls as f64).collect();
            times.sort_by(f64::total_cmp);
            println!("{name}, {way}: {:.1} ns, {:.1} ns", times[0], times[20]);
        }
    }
}
