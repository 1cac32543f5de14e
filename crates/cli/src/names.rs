//! Dotted names as a tree, with what lies below each.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::format::{printable, size};
use crate::output::count;

/// Levels of a tree; what a name has beyond them is one name.
const DEEPEST: usize = 64;

/// What lies below a part of a name.
#[derive(Debug, Default)]
pub(crate) struct Names {
    items: u64,
    bytes: u64,
    /// What the name itself is, where it is one.
    is: Vec<String>,
    below: BTreeMap<Part, Names>,
}

/// A part of a name: layer 2 comes before layer 10.
#[derive(Debug, PartialEq, Eq)]
struct Part(String);

impl Ord for Part {
    fn cmp(&self, other: &Part) -> Ordering {
        let number = |part: &Part| part.0.parse::<u64>().map_or((true, 0), |number| (false, number));
        number(self).cmp(&number(other)).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Part {
    fn partial_cmp(&self, other: &Part) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Names {
    /// Adds an item of this name, and how it is told of.
    pub(crate) fn add(&mut self, name: &str, is: String, bytes: u64) {
        let mut node = self;
        for part in name.splitn(DEEPEST, '.') {
            node.items += 1;
            node.bytes = node.bytes.saturating_add(bytes);
            node = node.below.entry(Part(part.to_owned())).or_default();
        }
        node.items += 1;
        node.bytes = node.bytes.saturating_add(bytes);
        node.is.push(is);
    }

    /// The tree under a title, with at most so many levels.
    pub(crate) fn render(&self, title: &str, depth: usize) -> String {
        let mut text = format!("{}  {}\n", printable(title), self.summary());
        self.render_below(&mut text, "", depth);
        text
    }

    fn render_below(&self, text: &mut String, indent: &str, depth: usize) {
        if depth == 0 {
            return;
        }
        for (position, (Part(name), node)) in self.below.iter().enumerate() {
            let last = position + 1 == self.below.len();
            let (branch, below) = if last { ("└── ", "    ") } else { ("├── ", "│   ") };
            let (mut name, mut node) = (printable(name).into_owned(), node);
            while let (true, Some((Part(only), within)), 1) =
                (node.is.is_empty(), node.below.iter().next(), node.below.len())
            {
                name = format!("{name}.{}", printable(only));
                node = within;
            }
            let says = if node.below.is_empty() { node.is.join("; ") } else { node.summary() };
            // Writing to a String cannot fail.
            let _infallible = writeln!(text, "{indent}{branch}{name}  {says}");
            node.render_below(text, &format!("{indent}{below}"), depth - 1);
        }
    }

    fn summary(&self) -> String {
        format!("{}, {}", count(self.items, "item"), size(self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_below_their_prefixes_in_the_order_of_their_numbers() {
        let mut names = Names::default();
        for (name, bytes) in
            [("model.layers.10.w", 4), ("model.layers.2.w", 8), ("model.layers.2.b", 1), ("step", 2)]
        {
            names.add(name, format!("{bytes} B"), bytes);
        }
        let expected = "\
all  4 items, 15 B
├── model.layers  3 items, 13 B
│   ├── 2  2 items, 9 B
│   │   ├── b  1 B
│   │   └── w  8 B
│   └── 10.w  4 B
└── step  2 B
";
        assert_eq!(names.render("all", usize::MAX), expected);
        assert_eq!(names.render("all", 1).lines().count(), 3);
    }

    #[test]
    fn a_name_of_a_million_dots_and_of_controls_is_shown() {
        let mut names = Names::default();
        names.add(&".".repeat(1_000_000), "x".to_owned(), 1);
        names.add("\u{1b}[2J", "y".to_owned(), 1);
        assert!(!names.render("all", usize::MAX).contains('\u{1b}'));
    }
}
