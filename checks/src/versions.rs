//! The lowest versions that Cargo.toml allows are enough.

use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{BUTTRESS, Faults};

/// Checks the library, with all features, with the lowest versions of its dependencies: in a copy, so that Cargo.lock stays
/// as it is.
pub fn lowest() -> Result<Faults, String> {
    let copy = copy().map_err(|error| format!("a copy to build: {error}"))?;
    let status = Command::new(env!("CARGO"))
        .args(["-Z", "direct-minimal-versions", "check", "--quiet", "--lib", "--all-features"])
        .current_dir(copy)
        .env("RUSTC_BOOTSTRAP", "1")
        .status()
        .map_err(|error| format!("cargo check: {error}"))?;
    if status.success() {
        return Ok(Faults::new());
    }
    Ok(vec!["A lower bound in Cargo.toml is too low: see above which.".into()])
}

/// A package whose manifest is a copy, and all else the original.
fn copy() -> std::io::Result<PathBuf> {
    let copy = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/lowest");
    fs::create_dir_all(&copy)?;
    for name in ["src", "examples", "tests", "README.md"] {
        let link = copy.join(name);
        if !link.exists() {
            symlink(Path::new(BUTTRESS).join(name), link)?;
        }
    }
    fs::copy(Path::new(BUTTRESS).join("Cargo.toml"), copy.join("Cargo.toml"))?;
    // Not of the workspace of this package.
    fs::OpenOptions::new().append(true).open(copy.join("Cargo.toml"))?.write_all(b"\n[workspace]\n")?;
    // Resolved anew.
    let _ = fs::remove_file(copy.join("Cargo.lock"));
    Ok(copy)
}
