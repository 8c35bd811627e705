//! What rustdoc knows of the crate, as JSON: its documentation for machines.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rustdoc_types::{FORMAT_VERSION, Id, Item, ItemEnum, Type};

use crate::BUTTRESS;

#[derive(Clone, Copy)]
pub enum Features {
    All,
    None,
}

pub struct Crate {
    pub json: PathBuf,
    pub index: rustdoc_types::Crate,
    /// What can be named from outside, under its shortest path.
    pub public: BTreeMap<String, Id>,
    /// Types that implement `Future`.
    pub futures: HashSet<Id>,
}

impl Crate {
    /// Documents the crate. Each set of features has a folder of its own, as rustdoc would write both to one file.
    pub fn document(features: Features) -> Result<Self, String> {
        let (flag, folder) = match features {
            Features::All => ("--all-features", "all"),
            Features::None => ("--no-default-features", "none"),
        };
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/api").join(folder);
        let status = Command::new(env!("CARGO"))
            .args(["rustdoc", "--quiet", "--lib", flag, "--target-dir"])
            .arg(&target)
            .args(["--", "-Z", "unstable-options", "--output-format", "json", "--cap-lints", "allow"])
            .current_dir(BUTTRESS)
            // The format is not stable, so the stable compiler has to be asked like this.
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("RUSTDOCFLAGS")
            .env_remove("RUSTFLAGS")
            .status()
            .map_err(|error| format!("cargo rustdoc: {error}"))?;
        if !status.success() {
            return Err("cargo rustdoc failed".into());
        }
        let json = target.join("doc/buttress.json");
        let text = fs::read_to_string(&json).map_err(|error| format!("{}: {error}", json.display()))?;
        let index = parse(&text)?;
        let mut public = BTreeMap::new();
        name(&index, index.root, "buttress", &mut public);
        let mut shortest = BTreeMap::<Id, String>::new();
        for (path, id) in public {
            let known = shortest.entry(id).or_insert_with(|| path.clone());
            if path.len() < known.len() {
                *known = path;
            }
        }
        let public = shortest.into_iter().map(|(id, path)| (path, id)).collect();
        let futures = index.index.values().filter_map(is_future).collect();
        Ok(Self { json, index, public, futures })
    }

    pub fn item(&self, id: Id) -> &Item {
        &self.index.index[&id]
    }
}

fn parse(text: &str) -> Result<rustdoc_types::Crate, String> {
    let json: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let format = json["format_version"].as_u64();
    if format != Some(FORMAT_VERSION.into()) {
        return Err(format!(
            "rustdoc writes format {format:?}, and this reads {FORMAT_VERSION}: take the versions of `public-api` and \
             `rustdoc-types` in Cargo.toml that read the compiler's"
        ));
    }
    serde_json::from_value(json).map_err(|error| error.to_string())
}

/// Follows modules and re-exports down from `id`.
fn name(index: &rustdoc_types::Crate, id: Id, path: &str, public: &mut BTreeMap<String, Id>) {
    let Some(item) = index.index.get(&id) else { return };
    match &item.inner {
        ItemEnum::Module(module) => {
            for child in &module.items {
                let Some(child) = index.index.get(child) else { continue };
                match &child.inner {
                    ItemEnum::Use(re_export) => {
                        if let Some(id) = re_export.id {
                            name(index, id, &format!("{path}::{}", re_export.name), public);
                        }
                    }
                    _ => {
                        let child_name = child.name.as_deref().unwrap_or_default();
                        name(index, child.id, &format!("{path}::{child_name}"), public);
                    }
                }
            }
        }
        _ => {
            public.insert(path.to_owned(), id);
        }
    }
}

/// The type, if this is an implementation of `Future` that somebody wrote.
fn is_future(item: &Item) -> Option<Id> {
    let ItemEnum::Impl(written) = &item.inner else { return None };
    let future = written.trait_.as_ref().is_some_and(|it| it.path.ends_with("Future"));
    match &written.for_ {
        Type::ResolvedPath(path) if future && written.blanket_impl.is_none() => Some(path.id),
        _ => None,
    }
}
