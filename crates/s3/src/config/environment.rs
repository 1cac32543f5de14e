//! The environment variables that AWS tools share, as people set them: with the white space of secrets and shells.

use std::ffi::OsString;

use crate::error::{Error, invalid};

type Read = dyn Fn(&str) -> Option<OsString> + Send + Sync;

/// Where variables are read.
pub(crate) struct Environment {
    read: Box<Read>,
}

impl Environment {
    /// The variables of this process.
    pub(crate) fn of_process() -> Environment {
        Environment { read: Box::new(|name| std::env::var_os(name)) }
    }

    /// The value of a variable, without white space around it; `None` where nothing is left.
    ///
    /// # Errors
    /// `Config`, naming the variable, when no setting can have such a value.
    pub(crate) fn get(&self, name: &str) -> Result<Option<String>, Error> {
        let Some(value) = (self.read)(name) else { return Ok(None) };
        let value = value.into_string().map_err(|_| invalid(format!("{name} is not valid UTF-8")))?;
        let value = trimmed(&value);
        if value.chars().any(char::is_control) {
            return Err(invalid(format!("{name} has a control character or a line break within it")));
        }
        Ok((!value.is_empty()).then(|| value.to_owned()))
    }

    /// The first of these variables that is set, and its name.
    pub(crate) fn first<'a>(&self, names: &[&'a str]) -> Result<Option<(&'a str, String)>, Error> {
        for name in names {
            if let Some(value) = self.get(name)? {
                return Ok(Some((name, value)));
            }
        }
        Ok(None)
    }

    /// Refuses a variable that code of others reads, and takes as it is, when it is not what [`Self::get`] says.
    #[cfg(feature = "credential-chain")]
    pub(crate) fn check_plain(&self, name: &str) -> Result<(), Error> {
        let plain = self.get(name)?.unwrap_or_default();
        match (self.read)(name) {
            Some(value) if value != *plain => {
                Err(invalid(format!("{name} has white space around its value; remove it")))
            }
            _ => Ok(()),
        }
    }

    #[cfg(test)]
    pub(crate) fn of(pairs: &[(&str, &str)]) -> Environment {
        let pairs: Vec<(String, OsString)> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
        Environment {
            read: Box::new(move |name| {
                pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
            }),
        }
    }
}

/// A text without white space around it, nor the marks without width that editors leave.
pub(crate) fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || matches!(c, '\u{feff}' | '\u{200b}'))
}

/// `true` or `false`, however written; `source` is named in the error.
pub(crate) fn flag(value: &str, source: &str) -> Result<bool, Error> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(invalid(format!("{source} must be true or false, not {value:?}"))),
    }
}

/// Refuses an access key id, a secret key or a token that nobody has handed out, without repeating it.
pub(crate) fn check_key(source: &str, value: &str) -> Result<(), Error> {
    let quoted = value.len() >= 2
        && ['"', '\''].iter().any(|quote| value.starts_with(*quote) && value.ends_with(*quote));
    let why = if value.is_empty() {
        "must not be empty"
    } else if quoted {
        "has quotes around it, which are no part of a key"
    } else if value.bytes().any(|byte| !byte.is_ascii_graphic()) {
        "has white space or another character within it that no key has"
    } else {
        return Ok(());
    };
    Err(invalid(format!("{source} {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn white_space_around_a_value_is_dropped_and_an_empty_value_counts_as_unset() {
        for (value, expected) in [
            ("x", Some("x")),
            ("x\n", Some("x")),
            ("x\r\n", Some("x")),
            (" \tx ", Some("x")),
            ("\u{feff}x\u{a0}", Some("x")),
            ("x y", Some("x y")),
            ("", None),
            (" \n", None),
        ] {
            let found = Environment::of(&[("V", value)]).get("V").unwrap();
            assert_eq!(found.as_deref(), expected, "{value:?}");
        }
        assert_eq!(Environment::of(&[]).get("V").unwrap(), None);
    }

    #[test]
    fn a_value_that_nothing_can_have_is_refused_by_the_variables_name() {
        for value in ["a\nb", "a\rb", "a\u{0}b", "a\u{1b}b"] {
            let error = Environment::of(&[("AWS_REGION", value)]).get("AWS_REGION").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.message().contains("AWS_REGION"), "{error}");
        }
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStringExt;
            let strange = Environment { read: Box::new(|_| Some(OsString::from_vec(vec![b'a', 0xff]))) };
            assert!(strange.get("AWS_ENDPOINT_URL").unwrap_err().message().contains("AWS_ENDPOINT_URL"));
        }
    }

    #[test]
    #[cfg(feature = "credential-chain")]
    fn what_others_read_must_be_plain_already() {
        let environment = Environment::of(&[("A", "x"), ("B", "x\n"), ("C", " "), ("D", "")]);
        let refused = ["A", "B", "C", "D", "E"].map(|name| environment.check_plain(name).is_err());
        assert_eq!(refused, [false, true, true, false, false]);
    }

    #[test]
    fn a_flag_is_true_or_false_and_nothing_else() {
        assert!(flag("True", "F").unwrap());
        assert!(!flag("FALSE", "F").unwrap());
        for other in ["yes", "1", "true "] {
            assert!(flag(other, "F").unwrap_err().message().contains("F must be"));
        }
    }

    #[test]
    fn a_key_that_cannot_be_one_is_named_and_not_repeated() {
        for bad in ["", "se cret", "se\ncret", "\"secret\"", "'secret'", "secret\u{a0}x", "sécret"] {
            let error = check_key("AWS_SECRET_ACCESS_KEY", bad).unwrap_err();
            assert!(error.message().contains("AWS_SECRET_ACCESS_KEY"), "{error}");
            assert!(bad.is_empty() || !error.message().contains(bad), "{error}");
        }
        for good in ["s3dcp-secret", "wJalrXUtnFEMI/K7MDENG+bPx=", "a\"b", "\""] {
            assert!(check_key("x", good).is_ok(), "{good}");
        }
    }
}
