//! Checks what deny.toml forbids: crates, licences and sources. cargo-deny reads the same file and can do more, but would have
//! to be compiled first; this needs nothing but cargo, so that every run of the tests has it.
//!
//! What is really compiled is asked of `cargo tree`: Cargo.lock also names what an optional feature would need.

use anyhow::{Context as _, Result, bail, ensure};
use std::{collections::BTreeSet, fs, process::Command};
use toml_edit::{Document, Item, Table};

/// The only source that cargo-deny permits too unless it is told otherwise.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The rules that this understands.
struct Rules {
    targets: Vec<String>,
    licences: BTreeSet<String>,
    banned: Vec<(String, String)>,
}

pub fn run() -> Result<()> {
    let rules = rules(&fs::read_to_string("deny.toml").context("read deny.toml")?)?;
    let mut wrong = sources(&fs::read_to_string("Cargo.lock").context("read Cargo.lock")?);
    let mut crates = BTreeSet::new();
    for target in &rules.targets {
        crates.extend(compiled(target)?);
    }
    wrong.extend(crates.iter().flat_map(|(name, licence)| rules.complaints(name, licence)));
    ensure!(wrong.is_empty(), "deny.toml forbids:\n{}", wrong.join("\n"));
    println!("{} crates: licences, bans and sources are as deny.toml wants them", crates.len());
    Ok(())
}

fn rules(text: &str) -> Result<Rules> {
    let document = Document::parse(text).context("parse deny.toml")?;
    let table = |name: &str| document.get(name).and_then(Item::as_table).with_context(|| format!("deny.toml has no [{name}]"));
    let banned = table("bans")?.get("deny").and_then(Item::as_array).context("deny.toml has no bans.deny")?;
    let banned = banned.iter().map(|entry| {
        let entry = entry.as_inline_table().context("an entry of bans.deny is no table")?;
        let text = |key| entry.get(key).and_then(|value| value.as_str()).with_context(|| format!("bans.deny: no {key}"));
        Ok((text("name")?.to_owned(), text("reason")?.to_owned()))
    });
    for kind in ["unknown-registry", "unknown-git"] {
        let rule = table("sources")?.get(kind).and_then(Item::as_str);
        ensure!(rule == Some("deny"), "sources.{kind} is not \"deny\", which is all that is understood here");
    }
    Ok(Rules {
        targets: strings(table("graph")?, "targets")?,
        licences: strings(table("licenses")?, "allow")?.into_iter().collect(),
        banned: banned.collect::<Result<_>>()?,
    })
}

fn strings(table: &Table, key: &str) -> Result<Vec<String>> {
    let array = table.get(key).and_then(Item::as_array).with_context(|| format!("deny.toml has no list {key}"))?;
    array
        .iter()
        .map(|value| value.as_str().map(str::to_owned).with_context(|| format!("{key} has more than strings")))
        .collect()
}

impl Rules {
    fn complaints(&self, name: &str, licence: &str) -> Vec<String> {
        let banned = self.banned.iter().filter(|(banned, _)| banned == name);
        let mut complaints: Vec<String> = banned.map(|(_, reason)| format!("{name} is banned: {reason}")).collect();
        match permitted(licence, &self.licences) {
            Ok(true) => {}
            Ok(false) => complaints.push(format!("{name}: `{licence}` asks for more than the permitted licences")),
            Err(error) => complaints.push(format!("{name}: `{licence}`: {error:#}")),
        }
        complaints
    }
}

/// Name and licence of every crate that is compiled for a target, for building and for tests too.
fn compiled(target: &str) -> Result<BTreeSet<(String, String)>> {
    let output = Command::new("cargo")
        .args(["tree", "--offline", "--locked", "--workspace", "--edges", "normal,build,dev", "--target", target])
        .args(["--prefix", "none", "--no-dedupe", "--format", "{p}|{l}"])
        .output()
        .context("run cargo tree")?;
    ensure!(output.status.success(), "cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("read what cargo tree prints")?;
    text.lines()
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (package, licence) = line.split_once('|').with_context(|| format!("understand `{line}` of cargo tree"))?;
            let name = package.split(' ').next().unwrap_or_default();
            Ok((name.to_owned(), licence.trim_end_matches(" (*)").to_owned()))
        })
        .collect()
}

/// Complaints about packages of Cargo.lock that come from elsewhere.
fn sources(lock: &str) -> Vec<String> {
    let sources: BTreeSet<&str> = lock.lines().filter_map(|line| line.strip_prefix("source = ")).collect();
    let foreign = sources.into_iter().map(|source| source.trim_matches('"')).filter(|source| *source != CRATES_IO);
    foreign.map(|source| format!("Cargo.lock has a package from {source}")).collect()
}

/// Whether the permitted licences satisfy an SPDX expression; `/` is how it was written before there was `OR`.
fn permitted(expression: &str, allowed: &BTreeSet<String>) -> Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let result = alternatives(&mut words, allowed)?;
    ensure!(words.next().is_none(), "something follows the licence");
    Ok(result)
}

type Words<'a, 'w> = &'a mut std::iter::Peekable<std::str::SplitWhitespace<'w>>;

fn alternatives(words: Words<'_, '_>, allowed: &BTreeSet<String>) -> Result<bool> {
    let mut result = all_of(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        result |= all_of(words, allowed)?;
    }
    Ok(result)
}

fn all_of(words: Words<'_, '_>, allowed: &BTreeSet<String>) -> Result<bool> {
    let mut result = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        result &= one(words, allowed)?;
    }
    Ok(result)
}

fn one(words: Words<'_, '_>, allowed: &BTreeSet<String>) -> Result<bool> {
    match words.next() {
        Some("(") => {
            let result = alternatives(words, allowed)?;
            ensure!(words.next() == Some(")"), "a parenthesis is not closed");
            Ok(result)
        }
        None | Some(")" | "AND" | "OR" | "WITH") => bail!("a licence is missing"),
        Some(name) if words.next_if_eq(&"WITH").is_some() => {
            Ok(allowed.contains(&format!("{name} WITH {}", words.next().context("an exception is missing")?)))
        }
        Some(name) => Ok(allowed.contains(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_rules() -> Rules {
        rules(
            "[graph]\ntargets = [\"a\"]\n[licenses]\nallow = [\"MIT\", \"ISC\", \"Apache-2.0 WITH LLVM-exception\"]\n\
             [bans]\ndeny = [{ name = \"openssl\", reason = \"rustls\" }]\n\
             [sources]\nunknown-registry = \"deny\"\nunknown-git = \"deny\"\n",
        )
        .unwrap()
    }

    #[test]
    fn licences_are_judged_as_spdx_means_them() {
        let allowed = mk_rules().licences;
        for (expression, verdict) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("MIT/Apache-2.0", true),
            ("Apache-2.0 / GPL-3.0", false),
            ("MIT AND GPL-3.0", false),
            ("MIT AND (GPL-3.0 OR ISC)", true),
            ("GPL-3.0 OR MIT AND ISC", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0", false),
        ] {
            assert_eq!(permitted(expression, &allowed).unwrap(), verdict, "{expression}");
        }
        for wrong in ["", "MIT OR", "(MIT", "MIT ISC"] {
            assert!(permitted(wrong, &allowed).is_err(), "{wrong}");
        }
    }

    #[test]
    fn banned_crates_and_foreign_sources_are_named() {
        assert!(mk_rules().complaints("serde", "MIT").is_empty());
        assert_eq!(mk_rules().complaints("openssl", "MIT"), ["openssl is banned: rustls"]);
        let lock = format!("source = \"{CRATES_IO}\"\nsource = \"git+ssh://somewhere\"\n");
        assert_eq!(sources(&lock), ["Cargo.lock has a package from git+ssh://somewhere"]);
    }

    #[test]
    fn rules_that_are_not_understood_are_an_error() {
        assert!(rules("[licenses]\nallow = []\n").is_err());
    }
}
