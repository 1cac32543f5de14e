//! Folders per step, `run/step-700`, whose shard files lie below `run` as an epoch's do.
//!
//! A path that is new at every step is new to S3 too, whatever the prefix strategy: key ranges that S3 has split for one
//! step serve no other. So a save to such a folder puts its shard files where epoch 700 of `run` would have them, patterns
//! first, and its index alone into the folder. Nothing is mapped for those who read, list or delete: the index is where
//! it is looked for, and names its files from `../` on.

use s3dcp_s3::Error;

use crate::error::config;
use crate::layout::Layout;

/// What the folders of steps are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepFolders {
    before: String,
    after: String,
}

/// A path whose last folder is a step's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepFolder {
    /// The key of the path above, with its slash; empty for the bucket itself.
    pub path_key: String,
    /// The folder's name.
    pub name: String,
    /// Its number.
    pub step: u64,
}

const PLACE: &str = "{}";

impl StepFolders {
    /// By a template such as `step-{}`, with `{}` for the number.
    ///
    /// # Errors
    /// `Config` for a template that is no folder's name, has not one `{}`, or a digit beside it.
    pub fn new(template: &str) -> Result<StepFolders, Error> {
        let refuse = |why: &str| Err(config(format!("step folders {template:?}: {why}")));
        let Some((before, after)) = template.split_once(PLACE) else {
            return refuse("must have {} where the step's number goes, as step-{} does");
        };
        if after.contains(PLACE) {
            return refuse("must have one {}");
        }
        if template.contains('/') || template.chars().any(char::is_control) {
            return refuse("must be the name of one folder");
        }
        let digit = |beside: Option<char>| beside.is_some_and(|beside| beside.is_ascii_digit());
        if digit(before.chars().next_back()) || digit(after.chars().next()) {
            return refuse("must have no digit beside {}");
        }
        if before.is_empty() && after.is_empty() {
            return refuse("must have something beside {}, or every folder of digits would be a step's");
        }
        Ok(StepFolders { before: before.to_owned(), after: after.to_owned() })
    }

    /// What a path's last folder says; `None` where it is not a step's.
    ///
    /// # Errors
    /// `Config` where a number is written as no step's is: with a zero before it, or beyond 64 bits.
    pub fn find(&self, path_key: &str) -> Result<Option<StepFolder>, Error> {
        let folder = Layout::new(path_key);
        let (Some(path), Some(name)) = (folder.above(), folder.name()) else { return Ok(None) };
        let number = name.strip_prefix(&self.before[..]).and_then(|rest| rest.strip_suffix(&self.after[..]));
        let Some(number) = number.filter(|number| is_number(number)) else { return Ok(None) };
        match number.parse::<u64>() {
            Ok(step) if step.to_string() == number => {
                let path_key = path.folder().to_owned();
                Ok(Some(StepFolder { path_key, name: name.to_owned(), step }))
            }
            parsed => {
                let why = match parsed {
                    Ok(step) => format!("step {step} has the folder {}{step}{}", self.before, self.after),
                    Err(_) => "the number has more than 64 bits".to_owned(),
                };
                Err(config(format!("path {path_key:?}: {name:?} is no step's folder: {why}")))
            }
        }
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_one_folder_and_a_folder_one_step() {
        for (template, path_key, found) in [
            ("step-{}", "run/step-700", Some(("run/", "step-700", 700))),
            ("step-{}", "run/step-700/", Some(("run/", "step-700", 700))),
            ("step-{}", "step-0", Some(("", "step-0", 0))),
            ("step-{}", "/step-7", Some(("/", "step-7", 7))),
            ("step-{}", "a//step-7", Some(("a//", "step-7", 7))),
            (
                "{}.ckpt",
                "run/18446744073709551615.ckpt",
                Some(("run/", "18446744073709551615.ckpt", u64::MAX)),
            ),
            ("global_step{}/".trim_end_matches('/'), "run/global_step5", Some(("run/", "global_step5", 5))),
            ("step-{}", "run/step-", None),
            ("step-{}", "run/step-x7", None),
            ("step-{}", "run/step-7b", None),
            ("step-{}", "run/step-+7", None),
            ("step-{}", "run/final", None),
            ("step-{}", "run/step-7/model", None),
            ("step-{}", "run//", None),
            ("step-{}", "", None),
        ] {
            let found = found.map(|(path_key, name, step)| StepFolder {
                path_key: path_key.to_owned(),
                name: name.to_owned(),
                step,
            });
            assert_eq!(StepFolders::new(template).unwrap().find(path_key).unwrap(), found, "{path_key}");
        }
        let folders = StepFolders::new("step-{}").unwrap();
        for (path_key, why) in [
            ("run/step-0700", "step 700 has the folder step-700"),
            ("run/step-00", "step 0 has the folder step-0"),
            ("run/step-18446744073709551616", "the number has more than 64 bits"),
        ] {
            assert!(folders.find(path_key).unwrap_err().message().ends_with(why), "{path_key}");
        }
    }

    #[test]
    fn a_template_that_could_not_be_read_back_is_refused() {
        for template in
            ["", "step", "{}", "{}{}", "step-{}-{}", "a/step-{}", "step1{}", "{}0", "a\n{}", "step-{step}"]
        {
            assert!(StepFolders::new(template).is_err(), "{template:?}");
        }
    }
}
