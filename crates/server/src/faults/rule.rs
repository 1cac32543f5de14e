//! One fault as a line of text: what happens, then to which requests.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http::StatusCode;
use s3s::S3ErrorCode;

use super::target::{OPERATIONS, Target};

/// A rule such as `error:SlowDown on=UploadPart key=*.distcp skip=2 times=3`: what happens, then any of the conditions.
///
/// | what | happens |
/// | --- | --- |
/// | `error:<code>` | S3's error of this code (`SlowDown`, `InternalError`, `ExpiredToken`, `RequestTimeTooSkewed`, …); nothing is done |
/// | `error:<status>/<code>` | the same with a status of another service's choice, and any code |
/// | `error-in-200:<code>` | the same error in the body of a `200 OK`, as a long CompleteMultipartUpload may answer |
/// | `drop` | the connection closes without a response; nothing is done |
/// | `reset-request:<n>` | the connection is reset after n bytes of the request's body; nothing is done |
/// | `silence` | the request is read and never answered; nothing is done |
/// | `flip-request` | one bit of the request's body differs on arrival |
/// | `delay:<n>ms` | n milliseconds pass before anything is done |
/// | `late:<n>ms` | it takes effect; the response begins n milliseconds late |
/// | `lose` | the request takes effect, and the connection closes without a response |
/// | `reset:<n>`, `cut:<n>` | it takes effect; n bytes into the response's body the connection is reset, or closed |
/// | `stall:<n>` | it takes effect; the response stops after n bytes of its body, and the connection stays open |
/// | `truncate:<n>` | it takes effect; the response is a well-formed one of only n bytes of its body |
/// | `flip` | it takes effect; one bit of the response's body differs |
/// | `etag:<form>` | it takes effect; the response's header ETag is `weak` (`W/"…"`), `unquoted`, `uppercase`, `suffixed` (`"…-1"`) or `absent` |
///
/// | condition | the requests |
/// | --- | --- |
/// | `on=<operation>,…` | of these S3 operations |
/// | `key=<pattern>` | for keys that match: `*` is any text, `?` any character |
/// | `part=<n>` | for this part number |
/// | `header=<pattern>` | with a header whose name, in lower case, matches |
/// | `skip=<n>` | but the first n of them |
/// | `times=<n>` | n of them, then no more |
/// | `chance=<p>` | each with this probability, from 0 to 1 |
///
/// A response without a body is lost altogether by `reset`, `cut` and `stall`, and left alone by `truncate` and `flip`.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    text: String,
    action: Action,
    operations: Vec<String>,
    key: Option<String>,
    part: Option<u32>,
    header: Option<String>,
    skip: u64,
    times: u64,
    chance: f64,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    Error(StatusCode, String),
    Drop,
    ResetRequest(u64),
    Silence,
    FlipRequest,
    Delay(Duration),
    Late(Duration),
    Lose,
    Reset(u64),
    Cut(u64),
    Stall(u64),
    Truncate(u64),
    Flip,
    Etag(EtagForm),
}

/// How stores write an ETag that S3 writes as `"…"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EtagForm {
    Weak,
    Unquoted,
    Uppercase,
    Suffixed,
    Absent,
}

impl EtagForm {
    /// This ETag in this form.
    pub(crate) fn of(self, etag: &str) -> Option<String> {
        let bare = etag.trim_matches('"');
        match self {
            EtagForm::Weak => Some(format!("W/{etag}")),
            EtagForm::Unquoted => Some(bare.to_owned()),
            EtagForm::Uppercase => Some(etag.to_uppercase()),
            EtagForm::Suffixed => Some(format!("\"{bare}-1\"")),
            EtagForm::Absent => None,
        }
    }
}

/// A line that is no rule; says which word is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidFault(String);

impl fmt::Display for InvalidFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidFault {}

impl Fault {
    pub(super) fn action(&self) -> &Action {
        &self.action
    }

    pub(super) fn chance(&self) -> f64 {
        self.chance
    }

    pub(super) fn is_about(&self, target: &Target) -> bool {
        (self.operations.is_empty() || self.operations.iter().any(|name| name == target.operation))
            && self.key.as_ref().is_none_or(|pattern| matches(pattern, &target.key))
            && self.part.is_none_or(|part| target.part == Some(part))
            && self
                .header
                .as_ref()
                .is_none_or(|pattern| target.headers.iter().any(|name| matches(pattern, name)))
    }

    pub(super) fn is_due(&self, matched: u64, applied: u64) -> bool {
        matched > self.skip && applied < self.times
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Fault {
    type Err = InvalidFault;

    fn from_str(text: &str) -> Result<Self, InvalidFault> {
        let wrong = |what: String| InvalidFault(format!("fault {text:?}: {what}"));
        let mut words = text.split_whitespace();
        let action = words.next().ok_or_else(|| wrong("a rule begins with what happens".to_owned()))?;
        let mut fault = Self {
            text: text.split_whitespace().collect::<Vec<_>>().join(" "),
            action: parse_action(action).map_err(&wrong)?,
            operations: Vec::new(),
            key: None,
            part: None,
            header: None,
            skip: 0,
            times: u64::MAX,
            chance: 1.0,
        };
        for word in words {
            fault.add_condition(word).map_err(&wrong)?;
        }
        Ok(fault)
    }
}

impl Fault {
    fn add_condition(&mut self, word: &str) -> Result<(), String> {
        let (name, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is no condition"))?;
        match name {
            "on" => {
                self.operations = value.split(',').map(str::to_owned).collect();
                if let Some(unknown) =
                    self.operations.iter().find(|name| !OPERATIONS.contains(&name.as_str()))
                {
                    return Err(format!("{unknown:?} in {word:?} is none of {}", OPERATIONS.join(", ")));
                }
            }
            "key" => self.key = Some(value.to_owned()),
            "part" => self.part = Some(number(word, value)?),
            "header" => self.header = Some(value.to_owned()),
            "skip" => self.skip = number(word, value)?,
            "times" => self.times = number(word, value)?,
            "chance" => {
                self.chance = number(word, value)?;
                if !(0.0..=1.0).contains(&self.chance) {
                    return Err(format!("{word:?} is not from 0 to 1"));
                }
            }
            _ => {
                return Err(format!(
                    "{name:?} in {word:?} is none of on, key, part, header, skip, times, chance"
                ));
            }
        }
        Ok(())
    }
}

fn parse_action(word: &str) -> Result<Action, String> {
    let (name, argument) =
        word.split_once(':').map_or((word, None), |(name, argument)| (name, Some(argument)));
    let needed = |what: &str| argument.ok_or_else(|| format!("{name} needs {what}: {name}:<{what}>"));
    let bytes = || needed("bytes").and_then(|argument| number(word, argument));
    let time = || {
        let given = needed("milliseconds")?;
        let milliseconds = given
            .strip_suffix("ms")
            .ok_or_else(|| format!("{given:?} in {word:?} is no time such as 20ms"))?;
        number(word, milliseconds).map(Duration::from_millis)
    };
    let action = match name {
        "error" => {
            let code = needed("code")?;
            let (status, code) = match code.split_once('/') {
                None => (status_of(code)?, code),
                Some((status, code)) => (refusal(word, status)?, code),
            };
            Action::Error(status, code.to_owned())
        }
        "error-in-200" => {
            let code = needed("code")?;
            status_of(code)?;
            Action::Error(StatusCode::OK, code.to_owned())
        }
        "delay" => Action::Delay(time()?),
        "late" => Action::Late(time()?),
        "reset-request" => Action::ResetRequest(bytes()?),
        "reset" => Action::Reset(bytes()?),
        "cut" => Action::Cut(bytes()?),
        "stall" => Action::Stall(bytes()?),
        "truncate" => Action::Truncate(bytes()?),
        "etag" => Action::Etag(match needed("form")? {
            "weak" => EtagForm::Weak,
            "unquoted" => EtagForm::Unquoted,
            "uppercase" => EtagForm::Uppercase,
            "suffixed" => EtagForm::Suffixed,
            "absent" => EtagForm::Absent,
            form => {
                return Err(format!(
                    "{form:?} in {word:?} is none of weak, unquoted, uppercase, suffixed, absent"
                ));
            }
        }),
        _ => {
            let action = match name {
                "drop" => Action::Drop,
                "silence" => Action::Silence,
                "flip-request" => Action::FlipRequest,
                "lose" => Action::Lose,
                "flip" => Action::Flip,
                _ => return Err(format!("{name:?} is nothing that can happen")),
            };
            if argument.is_some() {
                return Err(format!("{name} takes no argument"));
            }
            action
        }
    };
    Ok(action)
}

fn status_of(code: &str) -> Result<StatusCode, String> {
    S3ErrorCode::from_bytes(code.as_bytes())
        .and_then(|known| known.status_code())
        .ok_or_else(|| format!("{code:?} is no error code of S3"))
}

/// The status of an error.
fn refusal(word: &str, value: &str) -> Result<StatusCode, String> {
    let status: StatusCode = number(word, value)?;
    let refuses = status.is_client_error() || status.is_server_error();
    refuses.then_some(status).ok_or_else(|| format!("{value:?} in {word:?} is no status of an error"))
}

fn number<T: FromStr>(word: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{value:?} in {word:?} is no number that fits"))
}

/// Whether all of `text` matches `pattern`, in which `*` is any text and `?` any character.
fn matches(pattern: &str, text: &str) -> bool {
    match (pattern.chars().next(), text.chars().next()) {
        (None, None) => true,
        (Some('*'), _) => {
            let rest = &pattern[1..];
            text.char_indices().any(|(at, _)| matches(rest, &text[at..])) || matches(rest, "")
        }
        (Some(expected), Some(found)) if expected == '?' || expected == found => {
            matches(&pattern[expected.len_utf8()..], &text[found.len_utf8()..])
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_is_written_as_other_stores_do() {
        for (form, written) in [
            (EtagForm::Weak, Some("W/\"ab-2\"")),
            (EtagForm::Unquoted, Some("ab-2")),
            (EtagForm::Uppercase, Some("\"AB-2\"")),
            (EtagForm::Suffixed, Some("\"ab-2-1\"")),
            (EtagForm::Absent, None),
        ] {
            assert_eq!(form.of("\"ab-2\"").as_deref(), written);
        }
        assert!("etag:odd".parse::<Fault>().is_err());
    }

    #[test]
    fn a_rule_is_read_and_written_back() {
        let fault: Fault =
            "  error:SlowDown  on=UploadPart,PutObject key=*.distcp skip=2 times=3 ".parse().unwrap();
        assert_eq!(fault.to_string(), "error:SlowDown on=UploadPart,PutObject key=*.distcp skip=2 times=3");
        assert_eq!(fault.action, Action::Error(StatusCode::SERVICE_UNAVAILABLE, "SlowDown".to_owned()));
        assert_eq!((fault.skip, fault.times, fault.chance), (2, 3, 1.0));
        assert_eq!("delay:20ms".parse::<Fault>().unwrap().action, Action::Delay(Duration::from_millis(20)));
        assert_eq!("late:20ms".parse::<Fault>().unwrap().action, Action::Late(Duration::from_millis(20)));
        let refused = Action::Error(StatusCode::BAD_REQUEST, "NotImplemented".to_owned());
        assert_eq!("error:400/NotImplemented header=if-match".parse::<Fault>().unwrap().action, refused);
        assert_eq!("reset:0 chance=0.5".parse::<Fault>().unwrap().chance, 0.5);
    }

    #[test]
    fn what_is_no_rule_is_refused_with_the_wrong_word() {
        for (text, named) in [
            ("", "begins with what happens"),
            ("explode", "\"explode\""),
            ("error", "error:<code>"),
            ("error:Sloth", "\"Sloth\""),
            ("error:200/SlowDown", "\"200\""),
            ("error:often/SlowDown", "\"often\""),
            ("error-in-200:Sloth", "\"Sloth\""),
            ("drop:5", "no argument"),
            ("reset", "reset:<bytes>"),
            ("reset:-1", "\"-1\""),
            ("delay:20", "20ms"),
            ("delay", "delay:<"),
            ("late:20s", "20s"),
            ("drop on=Upload", "\"Upload\""),
            ("drop sometimes", "\"sometimes\""),
            ("drop chance=2", "from 0 to 1"),
            ("drop chance=NaN", "from 0 to 1"),
            ("drop part=x", "\"x\""),
            ("drop when=now", "\"when\""),
        ] {
            let error = text.parse::<Fault>().unwrap_err().to_string();
            assert!(error.contains(named), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_pattern_matches_the_whole_key() {
        for (pattern, key, fits) in [
            ("*", "", true),
            ("*", "a/b", true),
            ("", "", true),
            ("", "a", false),
            ("a*c", "abbc", true),
            ("a*c", "abbcd", false),
            ("*.distcp", "x/__0_0-1.distcp", true),
            ("*x*y", "axbxcy", true),
            ("?", "é", true),
            ("?", "", false),
        ] {
            assert_eq!(matches(pattern, key), fits, "{pattern} {key}");
        }
    }
}
