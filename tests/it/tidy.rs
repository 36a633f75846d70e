//! The house rules that no lint knows: layers point downward, files stay short and say what they are for,
//! no test is switched off, nothing is left to do.
//!
//! The layers are read from the map in `src/lib.rs`, so that the map can't differ from the rule.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Longer files are hard to read. Exempt: nothing but tables.
const LONGEST_FILE: usize = 800;
const TABLES: [&str; 0] = [];

/// All may use these, in layer 0 too: they are what every module's errors and arguments are made of.
const GROUND: [&str; 2] = ["env", "error"];

/// The layer of each top-level module.
type Layers = BTreeMap<String, u32>;

#[test]
fn modules_use_only_lower_layers() {
    let layers = layers_of_the_map(&read(&root().join("src/lib.rs")));
    assert!(layers.len() > 8, "the map in src/lib.rs was not understood: {layers:?}");
    let found: Vec<String> = sources(&["src"])
        .iter()
        .filter(|file| !file.ends_with("src/main.rs"))
        .flat_map(|file| upward_uses(&module_of(file), &read(file), &layers))
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn every_file_is_short_says_what_it_is_for_and_is_finished() {
    let found: Vec<String> = sources(&["src", "archive-command", "restore-command", "tests"])
        .iter()
        .flat_map(|file| {
            let name = file.strip_prefix(root()).expect("below the root").display().to_string();
            untidy(&name, &read(file))
        })
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn an_upward_use_is_found_however_it_is_written() {
    let layers = layers_of_the_map(
        "//! | 0 | [`env`] x · [`error`] · `pg` |\n//! | 2 | `store` y · `net` z |\n//! | 4 | `plan` |",
    );
    let module = |path: &str| path.split("::").map(str::to_owned).collect::<Vec<_>>();
    for (by, text) in [
        ("store", "use crate::plan::Plan;"),
        ("store::retry", "use crate::{env::Env, pg::{self, Lsn}, plan};"),
        ("store::retry", "fn f() -> crate::plan::Plan { g() }"),
        ("store", "use super::plan;"),
        ("store::retry", "use super::super::{pg, plan};"),
        ("store", "mod tests { use super::super::plan; }"),
        ("store", "use crate::net::Socket;"),
        ("store", "use crate::unheard_of;"),
        ("pg", "use crate::store;"),
        ("env", "use crate::error::Class;"),
        ("plan", "use crate::*;"),
    ] {
        assert_eq!(upward_uses(&module(by), text, &layers).len(), 1, "{by}: {text}");
    }
    for (by, text) in [
        (
            "plan",
            "use crate::store; use crate::plan::x; use crate::{pg, env::Env};",
        ),
        (
            "pg::lsn",
            "use crate::error::Explain; use super::timeline; use crate::pg::Lsn;",
        ),
        (
            "store",
            "mod tests { use super::*; } mod more { mod deep { use super::super::own; } }",
        ),
        (
            "store",
            "// use crate::plan;\n/* crate::plan */ const A: &str = \"crate::plan \\\" {\"; const B: char = '\"';",
        ),
        (
            "store",
            "const R: &str = r#\"crate::plan\"#; fn f<'a>(b: &'a [u8]) -> &'a u8 { &b[b'{' as usize] }",
        ),
    ] {
        assert_eq!(
            upward_uses(&module(by), text, &layers),
            Vec::<String>::new(),
            "{by}: {text}"
        );
    }
}

#[test]
fn an_untidy_file_is_found() {
    for text in [
        "fn undescribed() {}",
        "//! A.\n#[test]\n#[ignore]\nfn off() {}",
        "//! A.\n#[test]\n#[ignore = \"slow\"]\nfn off() {}",
        "//! A.\nfn later() { todo!(\"x\") }",
        &"//! A line of too many.\n".repeat(LONGEST_FILE + 1),
    ] {
        assert_eq!(untidy("src/a.rs", text).len(), 1, "{text}");
    }
    assert_eq!(
        untidy(
            "src/a.rs",
            "//! Not todo!() nor #[ignore].\nconst A: &str = \"todo!()\";"
        ),
        Vec::<String>::new()
    );
}

/// What is wrong with a file, apart from what it uses.
fn untidy(name: &str, text: &str) -> Vec<String> {
    let words = words(text);
    let follows = |what: &[&str]| words.windows(what.len()).any(|some| some == what);
    let length = text.lines().count();
    [
        (
            !text.starts_with("//! "),
            "does not begin with `//!` and what it is for",
        ),
        (
            length > LONGEST_FILE && !TABLES.contains(&name),
            "is too long: split it",
        ),
        (follows(&["#", "[", "ignore"]), "switches a test off"),
        (follows(&["todo", "!"]), "has something left to do"),
    ]
    .into_iter()
    .filter(|(wrong, _)| *wrong)
    .map(|(_, what)| format!("{name} {what}"))
    .collect()
}

/// The uses in `text`, the source of `module`, that its layer forbids.
fn upward_uses(module: &[String], text: &str, layers: &Layers) -> Vec<String> {
    let own = &module[0];
    let allowed = |used: &str| {
        used == own
            || (GROUND.contains(&used) && !GROUND.contains(&own.as_str()))
            || matches!((layers.get(own), layers.get(used)), (Some(own), Some(used)) if used < own)
    };
    used_modules(module, text)
        .into_iter()
        .filter(|used| !allowed(used))
        .map(|used| {
            format!(
                "{} uses crate::{used}, which is not below it in the map of src/lib.rs",
                module.join("::")
            )
        })
        .collect()
}

/// The top-level modules named in `text` by paths that begin with `crate` or climb there with `super`.
fn used_modules(module: &[String], text: &str) -> Vec<String> {
    let words = words(text);
    let mut used = Vec::new();
    // Depth of the module that each word is in: inline modules open and close with their braces.
    let mut depth = module.len();
    let mut braces = Vec::new();
    let mut at = 0;
    while at < words.len() {
        match words[at].as_str() {
            "{" => {
                let opens_module = at >= 2 && words[at - 2] == "mod";
                depth += usize::from(opens_module);
                braces.push(opens_module);
            }
            "}" => depth -= usize::from(braces.pop() == Some(true)),
            "crate" if words.get(at + 1).is_some_and(|next| next == "::") => {
                used.extend(first_names(&words[at + 2..]));
            }
            "super" => {
                let mut climbed = 0;
                // Not in `pub(super)`, where no path goes on.
                while words[at..].starts_with(&["super".to_owned(), "::".to_owned()]) {
                    climbed += 1;
                    at += 2;
                }
                at += usize::from(climbed == 0);
                if climbed == depth {
                    used.extend(first_names(words.get(at..).unwrap_or_default()));
                }
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    used
}

/// The names that a path goes on with: one, or in braces those after `{` and after each comma of it.
fn first_names(words: &[String]) -> Vec<String> {
    if words.first().is_none_or(|word| word != "{") {
        return words.first().cloned().into_iter().collect();
    }
    let mut names = Vec::new();
    let mut depth = 0;
    for pair in words.windows(2) {
        match pair[0].as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && matches!(pair[0].as_str(), "{" | ",") && pair[1] != "}" {
            names.push(pair[1].clone());
        }
    }
    names
}

/// Source text as words: names, `::`, and single marks. Comments, strings, characters and lifetimes are
/// left out.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let name = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        let length = if let Some(skipped) = skipped(rest) {
            skipped
        } else if name > 0 {
            words.push(rest[..name].to_owned());
            name
        } else if rest.starts_with("::") {
            words.push("::".to_owned());
            2
        } else {
            words.extend((!first.is_whitespace()).then(|| first.to_string()));
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    words
}

/// The length of the comment, string, character or lifetime that `text` begins with, if it does.
fn skipped(text: &str) -> Option<usize> {
    let to_end_of =
        |mark: &str, from: usize| Some(text[from..].find(mark).map_or(text.len(), |at| from + at + mark.len()));
    if text.starts_with("//") {
        return to_end_of("\n", 2);
    }
    if text.starts_with("/*") {
        return to_end_of("*/", 2);
    }
    let unprefixed = text.trim_start_matches(['b', 'c']);
    let prefix = text.len() - unprefixed.len();
    if let Some(raw) = unprefixed.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            return to_end_of(&format!("\"{}", "#".repeat(hashes)), prefix + hashes + 2);
        }
    }
    let quote = unprefixed.chars().next().filter(|mark| matches!(mark, '"' | '\''))?;
    let is_lifetime = quote == '\'' && !unprefixed.starts_with("'\\") && unprefixed.chars().nth(2) != Some('\'');
    if is_lifetime {
        return Some(prefix + 1);
    }
    let mut escaped = false;
    let inside = unprefixed[1..].find(|c| {
        let ends = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })?;
    Some(prefix + inside + 2)
}

/// Reads the rows `//! | layer | modules … |` of the map; a module is a name in backquotes.
fn layers_of_the_map(text: &str) -> Layers {
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! | "));
    rows.filter_map(|row| {
        let (layer, modules) = row.split_once(" | ")?;
        Some((layer.parse().ok()?, modules))
    })
    .flat_map(|(layer, modules): (u32, &str)| {
        modules
            .split('`')
            .skip(1)
            .step_by(2)
            .map(move |name| (name.to_owned(), layer))
    })
    .collect()
}

/// The module that a file of `src` is, as a path of names from the crate's root.
fn module_of(file: &Path) -> Vec<String> {
    let inside = file
        .strip_prefix(root().join("src"))
        .expect("a file of src")
        .with_extension("");
    let mut names: Vec<String> = inside.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    names.pop_if(|last| last == "mod");
    names
}

/// Every Rust file below these folders, except `src/lib.rs`, which uses nothing.
fn sources(folders: &[&str]) -> Vec<PathBuf> {
    let mut waiting: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut files = Vec::new();
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") && !path.ends_with("src/lib.rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).expect("a readable file")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
