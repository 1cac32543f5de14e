//! What a save does about servers that do not honour conditional writes.
//!
//! What the server does with them is the engine's to find out ([`Client::conditions`]), once for its client. A save asks
//! while it looks at its path, so that its commit need not wait, and so that one that requires them fails before it uploads.
//! Each write needs one condition only: that there is no index, or that it is the one that planning saw.

use s3dcp_s3::{Client, Condition, Conditions, Error, ErrorKind, Found, Support};

use crate::catalogue::folder_mark;
use crate::index::read::SeenIndex;
use crate::layout::Location;
use crate::save::observe::{Observed, observe};
use crate::storage::Storage;

/// What to do about servers that do not honour the condition that a commit needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConditionalCommit {
    /// Say so, look right before the write, and commit without the protection.
    #[default]
    Warn,
    /// Refuse to save.
    Require,
    /// Send no conditions.
    Off,
}

/// Looks at the path of a save ([`observe`]), and meanwhile finds out what the server does with conditions.
///
/// # Errors
/// Those of [`observe`]; `Config` when the server does not honour a condition that the commit will need and `mode` is
/// `Require`.
pub async fn prepare(
    client: &Client,
    location: &Location,
    overwrite: bool,
    mode: ConditionalCommit,
) -> Result<Observed, Error> {
    location.check()?;
    let found = async {
        if mode == ConditionalCommit::Off { None } else { Some(conditions(client, location).await) }
    };
    let (observed, found) = tokio::join!(observe(client, location, overwrite), found);
    let mut observed = observed?;
    if let Some(mark_key) = location.mark_key() {
        folder_mark::set(&Storage::bucket(client, &location.bucket), &mark_key).await?;
    }
    let Some((conditions, notes)) = found else { return Ok(observed) };
    observed.notes = notes;
    if mode == ConditionalCommit::Require {
        let root = location.has_root().then_some(&observed.root);
        for seen in [Some(&observed.index), root].into_iter().flatten() {
            let condition = wanted(seen.as_ref());
            let support = conditions.support(&condition);
            // What could not be found out just now may be at the commit.
            let passes = matches!(support, Support::Unknown(error) if error.retryable());
            if let Some(problem) = problem(&condition, support).filter(|_| !passes) {
                return Err(required(location, &problem));
            }
        }
    }
    Ok(observed)
}

/// What the server does, and a note where the object that asked it stays.
async fn conditions(client: &Client, location: &Location) -> (Conditions, Vec<String>) {
    let key = location.layout().probe_key(fastrand::u64(..));
    let Found { conditions, left } = client.conditions(&location.bucket, &key).await;
    let note =
        |error| format!("the probe object s3://{}/{key} could not be deleted: {error}", location.bucket);
    (conditions, left.into_iter().map(note).collect())
}

/// The condition of a write that replaces this.
fn wanted(seen: Option<&SeenIndex>) -> Condition {
    match seen {
        None => Condition::IfNoneMatch,
        Some(seen) => seen.etag.clone().map_or(Condition::None, Condition::IfMatch),
    }
}

/// What is wrong with writes that have this condition.
fn problem(condition: &Condition, support: &Support) -> Option<String> {
    let header = match condition {
        Condition::IfMatch(_) => "If-Match",
        _ => "If-None-Match",
    };
    match support {
        Support::Honoured => None,
        Support::Ignored => Some(format!("the server ignores conditional writes ({header})")),
        Support::Refused(answer) => {
            Some(format!("the server refuses conditional writes ({header}: {answer})"))
        }
        Support::NeverHolds => Some(format!("the server lets no conditional writes through ({header})")),
        Support::Unknown(why) => {
            Some(format!("it is not known whether the server honours conditional writes ({why})"))
        }
    }
}

/// The refusal of a save that requires conditions.
fn required(location: &Location, problem: &str) -> Error {
    let message = format!("conditional_commit=\"require\": {problem}; nothing was committed");
    Error::new(ErrorKind::Config, message).with_bucket(&location.bucket)
}

/// The conditions of one commit, and what there is to say of them.
pub(crate) struct Protection<'a> {
    client: &'a Client,
    location: &'a Location,
    mode: ConditionalCommit,
    conditions: Option<Conditions>,
    /// For the user.
    pub(crate) warnings: Vec<String>,
}

impl Protection<'_> {
    pub(crate) fn new<'a>(
        client: &'a Client,
        location: &'a Location,
        mode: ConditionalCommit,
    ) -> Protection<'a> {
        Protection { client, location, mode, conditions: None, warnings: Vec::new() }
    }

    /// The condition to send with a write that replaces this; none where the server does not honour it.
    ///
    /// # Errors
    /// `Config` where it does not and must.
    pub(crate) async fn condition(&mut self, seen: Option<&SeenIndex>) -> Result<Condition, Error> {
        let condition = wanted(seen);
        if self.mode == ConditionalCommit::Off || condition == Condition::None {
            return Ok(Condition::None);
        }
        if self.conditions.is_none() {
            let (conditions, mut notes) = conditions(self.client, self.location).await;
            self.warnings.append(&mut notes);
            self.conditions = Some(conditions);
        }
        let support = self.conditions.as_ref().map_or(&Support::Honoured, |known| known.support(&condition));
        let Some(problem) = problem(&condition, support) else { return Ok(condition) };
        if self.mode == ConditionalCommit::Require {
            return Err(required(self.location, &problem));
        }
        let send = matches!(support, Support::Unknown(_));
        self.warn(&problem);
        Ok(if send { condition } else { Condition::None })
    }

    /// Whether the server is known to honour it.
    pub(crate) fn is_honoured(&self, condition: &Condition) -> bool {
        self.conditions.as_ref().is_some_and(|known| matches!(known.support(condition), Support::Honoured))
    }

    /// Whether to write without the condition, now that the index itself showed what the server does with it.
    pub(crate) fn goes_without(&mut self, condition: &Condition, support: &Support) -> bool {
        let goes = self.mode == ConditionalCommit::Warn && *condition != Condition::None;
        if goes && let Some(problem) = problem(condition, support) {
            self.warn(&problem);
        }
        goes
    }

    fn warn(&mut self, problem: &str) {
        let warning =
            format!("{problem}: two saves to one path at the same time could replace each other's index");
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }
}
