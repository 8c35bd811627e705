//! What the machine holds of buttress that no test can see: `cargo run` in this folder. See README.md.

mod api;
mod docs;
mod rustdoc;
mod table;
mod versions;

use std::process::ExitCode;

use crate::rustdoc::{Crate, Features};

/// The package that is checked.
const BUTTRESS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What is wrong, told so that whoever reads it knows what to do.
type Faults = Vec<String>;

fn main() -> ExitCode {
    let command = std::env::args().nth(1);
    let faults = match command.as_deref() {
        None => checks(),
        Some("bless") => Crate::document(Features::All).and_then(|all| api::bless(&all)),
        Some("versions") => versions::lowest(),
        Some(other) => Err(format!("`{other}` is no command: see README.md")),
    };
    let faults = faults.unwrap_or_else(|error| vec![error]);
    faults.iter().for_each(|fault| eprintln!("{fault}\n"));
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn checks() -> Result<Faults, String> {
    let all = Crate::document(Features::All)?;
    let none = Crate::document(Features::None)?;
    let faults = [
        api::is_the_snapshot(&all)?,
        api::is_additive(&none, &all)?,
        docs::are_complete(&all),
        table::is_complete(&all)?,
    ];
    let faults = faults.concat();
    println!("{} public names looked at, {} faults", all.public.len(), faults.len());
    Ok(faults)
}
