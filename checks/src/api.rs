//! The public API as text, one line for each item, held against what is committed.

use std::{collections::BTreeSet, fs};

use public_api::Builder;
use rustdoc_types::ItemEnum;

use crate::{Faults, rustdoc::Crate};

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/api.txt");

/// The API is what `api.txt` says.
pub fn is_the_snapshot(all: &Crate) -> Result<Faults, String> {
    let committed = fs::read_to_string(SNAPSHOT).map_err(|error| format!("{SNAPSHOT}: {error}"))?;
    let committed: Vec<&str> = committed.lines().collect();
    let now = lines(all)?;
    let gone = committed.iter().filter(|line| !now.iter().any(|it| it == *line)).map(|line| format!("- {line}"));
    let come = now.iter().filter(|line| !committed.contains(&line.as_str())).map(|line| format!("+ {line}"));
    let mut changed: Vec<String> = gone.chain(come).collect();
    if changed.is_empty() && now != committed {
        changed.push("(the order of its lines)".into());
    }
    if changed.is_empty() {
        return Ok(Faults::new());
    }
    Ok(vec![format!(
        "The public API is not that of api.txt. If it is meant: `cargo run -- bless` here, a line in CHANGELOG.md, and a look at \
         whether it breaks users.\n{}",
        changed.join("\n")
    )])
}

/// Makes the API of now the one of `api.txt`.
pub fn bless(all: &Crate) -> Result<Faults, String> {
    let text = lines(all)?.join("\n") + "\n";
    fs::write(SNAPSHOT, text).map_err(|error| format!("{SNAPSHOT}: {error}"))?;
    Ok(Faults::new())
}

/// Whatever is there without features is there with all of them, and is the same.
pub fn is_additive(none: &Crate, all: &Crate) -> Result<Faults, String> {
    let all: BTreeSet<String> = lines(all)?.into_iter().collect();
    let lost: Vec<String> = lines(none)?.into_iter().filter(|line| !all.contains(line)).collect();
    if lost.is_empty() {
        return Ok(Faults::new());
    }
    Ok(vec![format!("Features take away or change what is there without them:\n- {}", lost.join("\n- "))])
}

/// Each item once, in the order of modules and types.
///
/// Without what follows from the other lines or is nobody's business: functions that a trait asks for, auto traits (which
/// have a table among the tests), and what `pin_project` writes for itself.
fn lines(of: &Crate) -> Result<Vec<String>, String> {
    let api = Builder::from_rustdoc_json(&of.json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .build()
        .map_err(|error| error.to_string())?;
    let asked_for = |item: &public_api::PublicItem| {
        let of_trait = |id| matches!(&of.item(id).inner, ItemEnum::Impl(it) if it.trait_.is_some());
        matches!(of.item(item.id()).inner, ItemEnum::Function(_)) && item.parent_id().is_some_and(of_trait)
    };
    let mut seen = BTreeSet::new();
    let lines = api.items().filter(|item| !asked_for(item)).map(ToString::to_string);
    Ok(lines.filter(|line| !line.contains("pin_project::") && seen.insert(line.clone())).collect())
}
