//! What tensors are called in another format.

use std::collections::BTreeMap;

/// New names of tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Renaming {
    /// New names by old ones; an old one may also be what names begin with before a dot: `model` of `model.weight`.
    pub map: BTreeMap<String, String>,
    /// What is taken off the front of the names that begin with it and are not in the map; the first that fits.
    pub strip_prefixes: Vec<String>,
}

impl Renaming {
    /// The new name.
    #[must_use]
    pub fn name(&self, old: &str) -> String {
        if let Some(new) = self.map.get(old) {
            return new.clone();
        }
        let dots = old.rmatch_indices('.').map(|(dot, _)| dot);
        for dot in dots {
            if let Some(new) = self.map.get(&old[..dot]) {
                return match new.is_empty() {
                    true => old[dot + 1..].to_owned(),
                    false => format!("{new}{}", &old[dot..]),
                };
            }
        }
        let stripped = self.strip_prefixes.iter().find_map(|prefix| old.strip_prefix(&prefix[..]));
        stripped.filter(|name| !name.is_empty()).unwrap_or(old).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_mapped_by_its_longest_part_or_loses_its_prefix() {
        let mut renaming = Renaming::default();
        for (old, new) in [("model", ""), ("model.head", "lm_head"), ("step", "global_step")] {
            renaming.map.insert(old.to_owned(), new.to_owned());
        }
        renaming.strip_prefixes = vec!["module.".to_owned()];
        for (old, new) in [
            ("model.layers.0.weight", "layers.0.weight"),
            ("model.head.weight", "lm_head.weight"),
            ("step", "global_step"),
            ("steps", "steps"),
            ("module.a.b", "a.b"),
            ("module.", "module."),
        ] {
            assert_eq!(renaming.name(old), new);
        }
    }
}
