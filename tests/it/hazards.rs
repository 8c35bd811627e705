//! `docs/hazards.md` says which test guards against which hazard, and the tests say it themselves: the two agree.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

/// The groups of hazards, and how many there are of each.
const GROUPS: [(char, u32); 6] = [('C', 15), ('B', 18), ('R', 13), ('T', 7), ('L', 9), ('S', 32)];

/// That a test guards against a hazard: the hazard's id, the test's file from the root of the repository, its name.
type Guarded = (String, String, String);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

/// The rows of the tables: the id, the hazard, and the links to tests.
fn rows() -> Vec<[String; 3]> {
    let table = fs::read_to_string(root().join("docs/hazards.md")).unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let rows = rows.map(|row| row.split(" | ").map(str::to_owned).collect::<Vec<_>>().try_into().unwrap());
    rows.filter(|[id, ..]: &[String; 3]| id != "id" && id != "---").collect()
}

/// What the table says. A link is ``[`test`](../file)``.
fn told() -> BTreeSet<Guarded> {
    let mut told = BTreeSet::new();
    for [id, _, tests] in rows() {
        for link in tests.split(", ") {
            let parts = link.strip_prefix("[`").and_then(|link| link.strip_suffix(')')?.split_once("`](../"));
            let (test, file) = parts.unwrap_or_else(|| panic!("{id}: no link to a test: {link}"));
            assert!(told.insert((id.clone(), file.to_owned(), test.to_owned())), "{id} names {test} twice");
        }
    }
    told
}

/// The Rust files below a folder, from the root.
fn sources(folder: &str, found: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(root().join(folder))? {
        let entry = entry?;
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type()?.is_dir() {
            sources(&path, found)?;
        } else if path.ends_with(".rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// What a comment cites, if it does.
fn ids(line: &str) -> Option<Vec<String>> {
    let comment = line.trim_start().strip_prefix("// ")?;
    let (group, ids) = match comment.strip_prefix("HAZARD: ") {
        Some(ids) => ("", ids),
        None => ("S", comment.strip_prefix("SHUTDOWN: ")?),
    };
    Some(ids.split(", ").map(|id| format!("{group}{id}")).collect())
}

fn name_of_function(line: &str) -> Option<&str> {
    let (_, name) = line.split_once("fn ")?;
    Some(name.split(['(', '<']).next().unwrap_or(name))
}

/// What the tests say: a citation belongs to the next function, which is a test.
fn cited() -> BTreeSet<Guarded> {
    let mut files = Vec::new();
    ["src", "tests"].into_iter().for_each(|folder| sources(folder, &mut files).unwrap());
    let mut cited = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(root().join(&file)).unwrap();
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let Some(ids) = ids(line) else { continue };
            let mut is_test = false;
            let name = lines.by_ref().find_map(|(_, line)| {
                is_test |= line.trim_start().starts_with("#[") && line.contains("test");
                name_of_function(line)
            });
            assert!(is_test, "{file}:{}: what it cites stands at no test", number + 1);
            let name = name.unwrap();
            cited.extend(ids.into_iter().map(|id| (id, file.clone(), name.to_owned())));
        }
    }
    cited
}

#[test]
fn each_hazard_is_in_the_table_once_in_order_and_has_a_test() {
    let expected: Vec<_> =
        GROUPS.iter().flat_map(|(group, last)| (1..=*last).map(move |number| format!("{group}{number}"))).collect();
    let rows = rows();
    assert_eq!(rows.iter().map(|[id, ..]| id.clone()).collect::<Vec<_>>(), expected);
    for [id, hazard, tests] in rows {
        assert!(!hazard.is_empty() && !tests.is_empty(), "{id}");
    }
}

#[test]
fn the_table_names_the_tests_that_cite_a_hazard_and_no_others() {
    let (told, cited) = (told(), cited());
    let show = |(id, file, test): &Guarded| format!("{id}: [`{test}`](../{file})");
    let missing: Vec<_> = cited.difference(&told).map(show).collect();
    assert!(missing.is_empty(), "docs/hazards.md lacks {missing:#?}");
    let wrong: Vec<_> = told.difference(&cited).map(show).collect();
    assert!(wrong.is_empty(), "docs/hazards.md names what does not exist, or does not cite it: {wrong:#?}");
}
