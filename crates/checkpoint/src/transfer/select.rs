//! Which items of a checkpoint are meant: by their names, by what these begin with, or by a pattern.

use s3dcp_s3::Error;
use wildmatch::WildMatch;

use crate::error::config;

/// Names of items: a whole name, the part of names before a dot (`model` for `model.weight`), or a pattern in which `*` is any text and `?` one
/// character.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    wanted: Vec<(String, WildMatch)>,
}

impl Selection {
    /// What these texts mean together; none of them: everything.
    #[must_use]
    pub fn new<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Selection {
        let pattern = |text: T| {
            let text = text.into();
            let pattern = WildMatch::new(&text);
            (text, pattern)
        };
        Selection { wanted: texts.into_iter().map(pattern).collect() }
    }

    /// Whether nothing is left out.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Whether an item of this name is meant.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.is_all() || self.wanted.iter().any(|wanted| means(wanted, name))
    }

    /// Sees that every text means one of these names.
    ///
    /// # Errors
    /// `Config`, naming the text that means none.
    pub(crate) fn check<'a>(&self, names: impl Iterator<Item = &'a String> + Clone) -> Result<(), Error> {
        match self.wanted.iter().find(|wanted| !names.clone().any(|name| means(wanted, name))) {
            Some((text, _)) => Err(config(format!("--select {text:?}: the checkpoint holds no such item"))),
            None => Ok(()),
        }
    }
}

fn means((text, pattern): &(String, WildMatch), name: &str) -> bool {
    name.strip_prefix(&text[..]).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        || pattern.matches(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_prefixes_and_patterns_are_told_apart() {
        let selection = Selection::new(["model", "optimizer.*.exp_avg", "step"]);
        for (name, meant) in [
            ("model", true),
            ("model.layer.0.weight", true),
            ("models.weight", false),
            ("optimizer.state.0.exp_avg", true),
            ("optimizer.state.0.exp_avg_sq", false),
            ("step", true),
            ("steps", false),
        ] {
            assert_eq!(selection.contains(name), meant, "{name}");
        }
        assert!(Selection::default().contains("anything"));
        let names = ["model.a".to_owned(), "step".to_owned()];
        assert!(Selection::new(["mode*", "step"]).check(names.iter()).is_ok());
        assert!(Selection::new(["mode"]).check(names.iter()).unwrap_err().message().contains("\"mode\""));
    }
}
