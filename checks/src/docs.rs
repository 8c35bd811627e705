//! What each public item has to say.

use std::collections::HashSet;

use rustdoc_types::{GenericBound, Id, Item, ItemEnum, Type};

use crate::{Faults, rustdoc::Crate};

/// Types without an example, and why. A future has its example where it is made, an alias where its handle is.
const NO_EXAMPLE: &[(&str, &[&str])] = &[
    (
        "what layers hold: it has a name only so that their types have one, and nothing to call",
        &[
            "buttress::circuit_breaker::BreakerParts",
            "buttress::circuit_breaker::Gate",
            "buttress::circuit_breaker::Shared",
            "buttress::concurrency_limit::LimitParts",
            "buttress::concurrency_limit::Shared",
            "buttress::deadline::DeadlineParts",
            "buttress::http::Tail",
            "buttress::keyed::ByKey",
            "buttress::policy::PolicyParts",
            "buttress::hedge::HedgeParts",
            "buttress::retry::RetryParts",
            "buttress::throttle::Shared",
            "buttress::throttle::ThrottleParts",
        ],
    ),
    (
        "a bound that types of ours meet, and nobody else can or needs to",
        &["buttress::http::Keep", "buttress::http::Trailers", "buttress::keyed::PerKey", "buttress::mark::Mark"],
    ),
];

/// Whoever may drop a future is told what becomes of the work, and every type shows how it is used.
pub fn are_complete(all: &Crate) -> Faults {
    let mut faults = Faults::new();
    let silent: Vec<String> =
        futures(all).filter(|(_, item)| !tells_of_cancelling(item)).map(|(name, _)| name).collect();
    if !silent.is_empty() {
        faults.push(format!(
            "These futures do not say what dropping them does (\"Cancel safe …\" or \"# Cancel safety\"):\n{}",
            silent.join("\n")
        ));
    }
    let exempt: Vec<&str> = NO_EXAMPLE.iter().flat_map(|(_, names)| *names).copied().collect();
    let bare = |name: &str, id: &Id| {
        let item = all.item(*id);
        let has_to =
            matches!(item.inner, ItemEnum::Struct(_) | ItemEnum::Enum(_) | ItemEnum::Union(_) | ItemEnum::Trait(_));
        has_to && !has_example(item) && !all.futures.contains(id) && !exempt.contains(&name)
    };
    let bare: Vec<&str> = all.public.iter().filter(|(name, id)| bare(name, id)).map(|(name, _)| &**name).collect();
    if !bare.is_empty() {
        faults.push(format!("These types have no example that is compiled:\n{}", bare.join("\n")));
    }
    let needless = |name: &&str| all.public.get(*name).is_none_or(|id| has_example(all.item(*id)));
    let needless: Vec<&str> = exempt.into_iter().filter(needless).collect();
    if !needless.is_empty() {
        faults.push(format!("These are excused from an example, and need not be:\n{}", needless.join("\n")));
    }
    faults
}

/// Functions that return a future, and types that are one, with what tells where they are.
fn futures(all: &Crate) -> impl Iterator<Item = (String, &Item)> {
    let types =
        all.public.iter().filter(|(_, id)| all.futures.contains(id)).map(|(name, id)| (name.clone(), all.item(*id)));
    let returns_one = |item: &&Item| match &item.inner {
        ItemEnum::Function(it) => it.header.is_async || it.sig.output.as_ref().is_some_and(|it| is_future(all, it)),
        _ => false,
    };
    let functions = own_functions(all).filter(returns_one).map(|item| {
        let span =
            item.span.as_ref().map_or_else(String::new, |it| format!("{}:{}", it.filename.display(), it.begin.0));
        (format!("{span}: {}", item.name.as_deref().unwrap_or_default()), item)
    });
    types.chain(functions)
}

/// Functions, and methods that no trait asks for, in the order of the source.
fn own_functions(all: &Crate) -> impl Iterator<Item = &Item> {
    let items = all.index.index.values();
    let asked_for: HashSet<Id> = items
        .clone()
        .filter_map(|item| match &item.inner {
            ItemEnum::Impl(it) if it.trait_.is_some() => Some(&it.items),
            _ => None,
        })
        .flatten()
        .copied()
        .collect();
    let is_own = |item: &&Item| item.crate_id == 0 && !asked_for.contains(&item.id);
    let mut own: Vec<&Item> = items.filter(is_own).collect();
    own.sort_by_key(|item| item.span.as_ref().map(|span| (span.filename.clone(), span.begin)));
    own.into_iter()
}

fn is_future(all: &Crate, output: &Type) -> bool {
    match output {
        Type::ImplTrait(bounds) => bounds.iter().any(|bound| match bound {
            GenericBound::TraitBound { trait_, .. } => trait_.path.ends_with("Future"),
            _ => false,
        }),
        Type::ResolvedPath(path) => match all.index.index.get(&path.id).map(|item| &item.inner) {
            Some(ItemEnum::TypeAlias(alias)) => is_future(all, &alias.type_),
            _ => all.futures.contains(&path.id),
        },
        _ => false,
    }
}

fn tells_of_cancelling(item: &Item) -> bool {
    let words: Vec<&str> = item.docs.iter().flat_map(|docs| docs.split_whitespace()).collect();
    let docs = words.join(" ").to_lowercase();
    docs.contains("cancel safe") || docs.contains("# cancel safety")
}

/// A block of Rust that is compiled.
fn has_example(item: &Item) -> bool {
    let fences =
        item.docs.iter().flat_map(|docs| docs.lines()).filter_map(|line| line.trim_start().strip_prefix("```"));
    // Each second one closes a block.
    fences.step_by(2).any(|kind| kind.is_empty() || kind.starts_with("no_run") || kind.starts_with("compile_fail"))
}
