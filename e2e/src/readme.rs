//! The commands and the YAML that README.md tells users to use, taken from it.

use anyhow::{Context as _, Result, ensure};

use crate::tools::repository;

/// A fenced block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The heading above it, without `## `.
    pub section: String,
    /// As in ```` ```sh ````.
    pub language: String,
    /// What is between the fences.
    pub text: String,
}

/// All fenced blocks of README.md that have a language.
///
/// # Errors
/// It cannot be read.
pub fn blocks() -> Result<Vec<Block>> {
    blocks_of("README.md")
}

/// The same of another document of this repository.
///
/// # Errors
/// It cannot be read.
pub fn blocks_of(document: &str) -> Result<Vec<Block>> {
    let path = repository().join(document);
    Ok(parse(&std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?))
}

fn parse(markdown: &str) -> Vec<Block> {
    let (mut section, mut blocks, mut open) = (String::new(), Vec::new(), None::<Block>);
    for line in markdown.lines() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(""), Some(block)) if block.language.is_empty() => {}
            (Some(""), Some(block)) => blocks.push(block),
            (Some(language), None) => {
                open = Some(Block { section: section.clone(), language: language.to_owned(), text: String::new() });
            }
            (_, Some(mut block)) => {
                block.text += line;
                block.text.push('\n');
                open = Some(block);
            }
            (None, None) => {
                if let Some(title) = line.strip_prefix("## ") {
                    title.clone_into(&mut section);
                }
            }
        }
    }
    blocks
}

/// What has to be another text here than on a user's machine.
pub struct Replacement {
    /// In the README.
    pub from: &'static str,
    /// Here.
    pub to: String,
    used: bool,
}

impl Replacement {
    /// Replaces `from` with `to`.
    pub fn new(from: &'static str, to: impl Into<String>) -> Self {
        Self { from, to: to.into(), used: false }
    }
}

/// The text with all replacements made.
pub fn replace(text: &str, table: &mut [Replacement]) -> String {
    table.iter_mut().fold(text.to_owned(), |text, replacement| {
        replacement.used |= text.contains(replacement.from);
        text.replace(replacement.from, &replacement.to)
    })
}

/// Fails if one was never needed: then the README has changed, and the table is about nothing.
///
/// # Errors
/// Names it.
pub fn check_all_used(table: &[Replacement]) -> Result<()> {
    let unused = table.iter().find(|replacement| !replacement.used);
    ensure!(unused.is_none(), "README.md has no `{}` any more", unused.map(|r| r.from).unwrap_or_default());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_their_section_language_and_text() {
        let blocks = parse("# T\n```\nart\n```\n## One\n```sh\na\nb\n```\ntext\n```yaml\nc: d\n```\n## Two\n```sh\ne\n```\n");
        let seen: Vec<_> = blocks.iter().map(|b| (b.section.as_str(), b.language.as_str(), b.text.as_str())).collect();
        assert_eq!(seen, [("One", "sh", "a\nb\n"), ("One", "yaml", "c: d\n"), ("Two", "sh", "e\n")]);
    }

    #[test]
    fn a_replacement_that_is_not_needed_is_an_error() {
        let mut table = [Replacement::new("a", "b"), Replacement::new("x", "y")];
        assert_eq!(replace("a c a", &mut table), "b c b");
        let error = check_all_used(&table).unwrap_err().to_string();
        assert!(error.contains("`x`"), "{error}");
    }
}
