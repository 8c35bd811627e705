//! Instructions per call of our own subjects, counted under callgrind and held against a committed baseline.
//!
//! Counts do not wobble on a busy machine, times do. Each subject makes few and then more calls, and what the further ones
//! took is the difference, so that nothing but calls is counted.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use toml::{Table, Value};

use crate::{
    allocations,
    measure::Runner,
    subject::{Row, Subject, Way},
};

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/counts.toml");
/// A rise by more than this fails.
const ALLOWED: f64 = 1.03;
/// What the subcommand is called that callgrind runs.
pub const COUNTED: &str = "counted";

/// Instructions per call, by the name of the subject and how it is called.
type Counts = BTreeMap<String, f64>;

/// Counts, and prints the table. An error names each subject that costs more than the baseline allows; `bless` makes what
/// is found the baseline.
pub fn counts(subjects: &mut [Subject], bless: bool) -> Result<(), String> {
    let mut found = Counts::new();
    let names: Vec<String> = ours(subjects).map(|(name, _)| name).collect();
    for (name, instructions) in names.into_iter().zip(under_callgrind()?) {
        found.insert(name, instructions);
    }
    let allocating: Vec<String> =
        ours(subjects).filter_map(|(name, runner)| allocates(runner).then_some(name)).collect();
    if !allocating.is_empty() {
        return Err(format!("these allocate: {}", allocating.join("; ")));
    }
    if bless {
        return write(&found);
    }
    let baseline = read()?;
    let mut missed = Vec::new();
    println!("| instructions per call | baseline | now |\n| --- | ---: | ---: |");
    for (name, now) in &found {
        let before = baseline.get(name);
        println!("| {name} | {} | {now:.1} |", before.map_or("none".into(), |before| format!("{before:.1}")));
        if before.is_none_or(|before| *now > before * ALLOWED) {
            missed.push(name.as_str());
        }
    }
    missed.extend(baseline.keys().filter(|name| !found.contains_key(*name)).map(String::as_str));
    if missed.is_empty() {
        return Ok(());
    }
    Err(format!(
        "more than {:.0} % over the baseline of counts.toml, or not in both: {}. If that is meant, and argued: `cargo run \
         --release -- counts --bless`",
        (ALLOWED - 1.0) * 100.0,
        missed.join("; ")
    ))
}

/// What is counted: our subjects, called by hand.
fn ours(subjects: &mut [Subject]) -> impl Iterator<Item = (String, &mut dyn Runner)> {
    subjects.iter_mut().filter(|it| it.is_ours()).flat_map(|it| {
        let name = it.name();
        // How many answers a limit learns from goes by the clock, and not by their number.
        let counts = it.row != Row::Adaptive;
        let by_hand = move |way| way == Way::Ready || way == Way::Pending && counts;
        let by_hand = it.ways.iter_mut().filter(move |(way, _)| by_hand(*way));
        by_hand.map(move |(way, runner)| (format!("{name}, {}", way.title()), &mut **runner as &mut dyn Runner))
    })
}

fn allocates(runner: &mut dyn Runner) -> bool {
    allocations::of(|| {
        runner.run(FEW);
    })
    .count
        != 0
}

const FEW: u64 = 1_000;
const MORE: u64 = 3_000;

/// Makes the calls that callgrind counts: it dumps what it has counted at the end of each `counted`.
pub fn be_counted(subjects: &mut [Subject]) {
    for (_, runner) in ours(subjects) {
        runner.run(FEW);
        counted(runner, FEW);
        counted(runner, MORE);
    }
}

#[inline(never)]
fn counted(runner: &mut dyn Runner, calls: u64) {
    runner.run(calls);
}

/// Instructions per call, in the order of `ours`.
fn under_callgrind() -> Result<Vec<f64>, String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let out = dir.path().join("out");
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*::counts::counted", "--dump-after=*::counts::counted"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(this)
        .arg(COUNTED)
        .stdout(Stdio::null())
        .output()
        .map_err(|error| format!("valgrind cannot be run, which counts the instructions: {error}"))?;
    if !ran.status.success() {
        return Err(format!("valgrind failed: {}", String::from_utf8_lossy(&ran.stderr)));
    }
    let dumps: Vec<u64> = (1..).map_while(|n| total(&out.with_extension(n.to_string()))).collect();
    Ok(dumps.chunks_exact(2).map(|pair| (pair[1] - pair[0]) as f64 / (MORE - FEW) as f64).collect())
}

/// The instructions of one dump; `None` if there is no such dump.
fn total(dump: &Path) -> Option<u64> {
    let dump = fs::read_to_string(dump).ok()?;
    let total = dump.lines().find_map(|line| line.strip_prefix("totals:"))?;
    total.split_whitespace().next()?.parse().ok()
}

fn read() -> Result<Counts, String> {
    let text = fs::read_to_string(BASELINE).map_err(|error| format!("{BASELINE}: {error}"))?;
    let table: Table = text.parse().map_err(|error| format!("{BASELINE}: {error}"))?;
    Ok(table.into_iter().filter_map(|(name, count)| Some((name, count.as_float()?))).collect())
}

fn write(counts: &Counts) -> Result<(), String> {
    let table: Table = counts.iter().map(|(name, count)| (name.clone(), Value::Float(*count))).collect();
    let text = format!("# Instructions per call, by `cargo run --release -- counts --bless`.\n{table}");
    fs::write(BASELINE, text).map_err(|error| format!("{BASELINE}: {error}"))
}
