//! On what, when, and of which versions it was measured.

use std::{env::consts::ARCH, fs, thread};

use crate::versions;

const LIBRARIES: [&str; 10] = [
    "buttress",
    "tokio",
    "tokio-util",
    "tower",
    "tower-resilience",
    "seatbelt",
    "failsafe",
    "recloser",
    "backon",
    "governor",
];

/// A paragraph for under a table.
pub fn described() -> String {
    let today = jiff::Timestamp::now().strftime("%Y-%m-%d");
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let libraries = LIBRARIES.map(|library| format!("{library} {}", versions::of(library))).join(", ");
    format!("Measured on {today} on {cores} cores of {}, built by {}; {libraries}.", processor(), env!("RUSTC_VERSION"),)
}

/// Its name, or its architecture where nobody tells the name.
fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = info.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == "model name");
    named.map_or(ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}
