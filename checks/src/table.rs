//! The table of auto traits among the tests names every public type.

use std::{fs, path::Path};

use rustdoc_types::ItemEnum;

use crate::{BUTTRESS, Faults, rustdoc::Crate};

const TABLE: &str = "tests/it/contract/auto_traits.rs";

pub fn is_complete(all: &Crate) -> Result<Faults, String> {
    let table = fs::read_to_string(Path::new(BUTTRESS).join(TABLE)).map_err(|error| format!("{TABLE}: {error}"))?;
    // Whole paths: `Retry` is not found in `RetryBuilder`.
    let paths: Vec<&str> = table.split(|it: char| !(it.is_alphanumeric() || it == '_' || it == ':')).collect();
    let is_type = |item: &ItemEnum| matches!(item, ItemEnum::Struct(_) | ItemEnum::Enum(_) | ItemEnum::Union(_));
    let types = all.public.iter().filter(|(_, id)| is_type(&all.item(**id).inner)).map(|(name, _)| &**name);
    let missing: Vec<&str> = types.filter(|name| !paths.contains(name)).collect();
    if missing.is_empty() {
        return Ok(Faults::new());
    }
    Ok(vec![format!("These public types are not in the table of {TABLE}:\n{}", missing.join("\n"))])
}
