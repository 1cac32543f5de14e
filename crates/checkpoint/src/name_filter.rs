//! Which names of a checkpoint a person means: exact ones, all below a dotted prefix, or those that a glob fits.

use glob::Pattern;
use s3dcp_s3::Error;

use crate::error::config;

/// Names that were asked for.
#[derive(Clone, Debug, Default)]
pub struct NameFilter(Vec<Wanted>);

#[derive(Clone, Debug)]
struct Wanted {
    text: String,
    glob: Option<Pattern>,
}

impl NameFilter {
    /// Of names, dotted prefixes (`model.layers`) and globs (`*.bias`, in which `*` stands for dots too). None of them: all.
    ///
    /// # Errors
    /// `Config` for a glob that is none.
    pub fn new(names: &[String]) -> Result<NameFilter, Error> {
        let wanted = names.iter().map(|text| {
            let glob = text.contains(['*', '?', '[']).then(|| Pattern::new(text)).transpose();
            // A name may hold brackets itself.
            match glob {
                Ok(glob) => Ok(Wanted { text: text.clone(), glob }),
                Err(_) if !text.contains(['*', '?']) => Ok(Wanted { text: text.clone(), glob: None }),
                Err(error) => Err(config(format!("name {text:?}: {error}"))),
            }
        });
        wanted.collect::<Result<_, _>>().map(NameFilter)
    }

    /// Whether every name is meant, as none was given.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a name is one of them.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.is_all() || self.0.iter().any(|wanted| wanted.is(name))
    }

    /// Sees that each of them is one of these names, or means some of them.
    ///
    /// # Errors
    /// `Config`, naming the first that means none.
    pub fn check<'a>(&self, names: impl Iterator<Item = &'a String> + Clone) -> Result<(), Error> {
        match self.0.iter().find(|wanted| !names.clone().any(|name| wanted.is(name))) {
            Some(wanted) => Err(config(format!("name {:?}: there is no such item", wanted.text))),
            None => Ok(()),
        }
    }
}

impl Wanted {
    fn is(&self, name: &str) -> bool {
        let below = name.strip_prefix(&self.text[..]);
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            || self.glob.as_ref().is_some_and(|glob| glob.matches(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(names: &[&str], name: &str) -> bool {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        NameFilter::new(&names).unwrap().has(name)
    }

    #[test]
    fn a_name_is_meant_by_itself_by_its_prefix_or_by_a_glob() {
        assert!(has(&[], "any"));
        assert!(has(&["a.b"], "a.b"));
        assert!(has(&["a.b"], "a.b.c"));
        assert!(!has(&["a.b"], "a.bc"));
        assert!(has(&["x", "*.bias"], "model.layers.0.bias"));
        assert!(!has(&["*.bias"], "model.bias.x"));
        assert!(has(&["layers.?.w"], "layers.3.w"));
        assert!(has(&["list[0]"], "list[0]"), "brackets in a name");
        assert!(has(&["list[0"], "list[0"));
        assert!(NameFilter::new(&["a*[".to_owned()]).is_err());
    }

    #[test]
    fn a_name_that_fits_nothing_is_told() {
        let filter = NameFilter::new(&["a".to_owned(), "b*".to_owned()]).unwrap();
        let check = |names: [&str; 2]| filter.check(names.map(str::to_owned).iter());
        assert!(check(["a.x", "c"]).unwrap_err().message().contains("\"b*\""));
        assert!(check(["a.x", "bc"]).is_ok());
        assert!(NameFilter::default().check([].iter()).is_ok());
    }
}
