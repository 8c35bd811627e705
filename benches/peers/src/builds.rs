//! What it costs to build each library: seconds, and crates.

use std::{
    collections::BTreeSet,
    fmt::Write,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{subject::OURS, versions};

/// Libraries, and the features with which they have what the table compares; their default features too.
const LIBRARIES: [(&str, &[&str]); 9] = [
    (OURS, &[]),
    ("tower", &["limit", "load-shed", "retry", "timeout", "util"]),
    ("tower-resilience", &["bulkhead", "circuitbreaker", "retry", "timelimiter"]),
    ("seatbelt", &["breaker", "retry", "timeout", "tower-service"]),
    ("failsafe", &[]),
    ("recloser", &[]),
    ("backon", &[]),
    ("governor", &[]),
    ("tokio", &["time", "sync", "rt"]),
];

/// The only package of a library's own folder, which but depends on it.
const USER: &str = "user-of-one";

struct Library {
    name: &'static str,
    features: &'static [&'static str],
    folder: TempDir,
    crates: usize,
    seconds: Vec<f64>,
}

/// Builds all of them so many times in turns, and prints the median.
pub fn table(builds: usize) -> String {
    let mut libraries = LIBRARIES.map(|(name, features)| Library::new(name, features));
    for _ in 0..builds {
        for library in &mut libraries {
            let took = library.build();
            library.seconds.push(took.as_secs_f64());
        }
    }
    let mut out = String::from("| library | features | crates | seconds | |\n| --- | --- | ---: | ---: | ---: |\n");
    let ours = libraries[0].median();
    for library in &libraries {
        let (name, features, median) = (library.name, library.features.join(", "), library.median());
        let _ = writeln!(out, "| {name} | {features} | {} | {median:.1} | {:.2}× |", library.crates, median / ours);
    }
    out
}

impl Library {
    fn new(name: &'static str, features: &'static [&'static str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        let package = folder.path();
        fs::create_dir(package.join("src"))
            .and_then(|()| fs::write(package.join("src/lib.rs"), ""))
            .expect("an empty library");
        fs::write(package.join("Cargo.toml"), manifest(name, features)).expect("a manifest");
        // cargo drops what this package does not need, and keeps the versions of the rest.
        fs::write(package.join("Cargo.lock"), versions::LOCK).expect("a lock file");
        cargo(package, &["fetch"]);
        let crates = crates(package);
        Self { name, features, folder, crates, seconds: Vec::new() }
    }

    /// A clean build.
    fn build(&self) -> Duration {
        let start = Instant::now();
        cargo(self.folder.path(), &["build", "--release", "--offline", "--locked"]);
        let took = start.elapsed();
        fs::remove_dir_all(self.folder.path().join("target")).expect("it was built there");
        took
    }

    fn median(&self) -> f64 {
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    }
}

fn manifest(library: &str, features: &[&str]) -> String {
    let source = if library == OURS {
        format!("path = {:?}", concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
    } else {
        format!("version = \"={}\"", versions::of(library))
    };
    format!(
        "[package]\nname = \"{USER}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
         [dependencies]\n{library} = {{ {source}, features = {features:?} }}\n"
    )
}

/// How many crates are linked or run as macros, apart from the package itself.
fn crates(package: &Path) -> usize {
    let tree = cargo(package, &["tree", "--edges", "normal", "--prefix", "none", "--offline", "--locked"]);
    let name_and_version = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let crates: BTreeSet<String> = tree.lines().map(name_and_version).collect();
    crates.iter().filter(|it| !it.starts_with(USER)).count()
}

/// Runs cargo in `package`, and returns what it printed. Neither a cache of compiled crates nor a shared target folder
/// is to spare it work.
fn cargo(package: &Path, args: &[&str]) -> String {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(args).current_dir(package).env("CARGO_TARGET_DIR", package.join("target")).env("RUSTC_WRAPPER", "");
    let output = cargo.output().expect("cargo can be run");
    assert!(output.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints text")
}
