//! The versions that are compared: those of this package's lock file.

/// The lock file itself, for packages that are to have the same versions.
pub const LOCK: &str = include_str!("../Cargo.lock");

/// The locked version of `package`.
pub fn of(package: &str) -> String {
    let lock: toml::Table = LOCK.parse().expect("cargo wrote it");
    let packages = lock["package"].as_array().expect("a lock file lists packages");
    let found = packages.iter().find(|it| it["name"].as_str() == Some(package));
    let found = found.unwrap_or_else(|| panic!("{package} is not in the lock file"));
    found["version"].as_str().expect("a version is text").to_owned()
}
