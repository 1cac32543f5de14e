//! Whether a server honours conditional writes; some answer 200 and overwrite.
//!
//! Asked once per server and bucket in a process, by writing a small probe object twice: a server that honours
//! conditions refuses the second write. A save asks while it looks at its path, so that its commit need not wait.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use s3dcp_s3::{Client, Condition, Error, ErrorKind, Payload, PutOptions};

use crate::keys::{Target, join, probe_name};

/// What to do about servers that ignore conditional writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConditionalCommit {
    /// Say so, and commit without the protection.
    #[default]
    Warn,
    /// Refuse to commit.
    Require,
    /// Send no conditions.
    Off,
}

/// What is known of a server's conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Support {
    Honoured,
    /// Accepted without effect.
    Ignored,
    /// Requests with a condition are refused, with this answer.
    Refused(String),
    /// The probe could not be written.
    Unknown(String),
}

/// By server and bucket: what is known, and what the next commit has to tell of how it was found out.
static KNOWN: Mutex<BTreeMap<String, (Support, Vec<String>)>> = Mutex::new(BTreeMap::new());

impl Support {
    /// What is wrong with it.
    pub(crate) fn problem(&self) -> Option<String> {
        match self {
            Support::Honoured => None,
            Support::Ignored => Some("the server ignores conditional writes".to_owned()),
            Support::Refused(answer) => Some(format!("the server refuses conditional writes ({answer})")),
            Support::Unknown(why) => {
                Some(format!("it is not known whether the server honours conditional writes ({why})"))
            }
        }
    }
}

/// Finds out what this server does unless that is known or does not matter, so that a commit will not have to.
///
/// # Errors
/// `Config` when the server does not honour conditions and `mode` is `Require`: better before a save is uploaded.
pub async fn learn_conditions(
    client: &Client,
    target: &Target,
    mode: ConditionalCommit,
) -> Result<(), Error> {
    if mode == ConditionalCommit::Off || target.check().is_err() {
        return Ok(());
    }
    let mut notes = Vec::new();
    let support = support(client, target, &mut notes).await;
    if let Some((_, told)) = known().get_mut(&server(client, target)) {
        told.append(&mut notes);
    }
    match support.problem() {
        // What could not be found out now may be at the commit.
        Some(problem) if mode == ConditionalCommit::Require && !matches!(support, Support::Unknown(_)) => {
            Err(required(target, &problem))
        }
        _ => Ok(()),
    }
}

/// The refusal of a commit that requires conditions.
pub(crate) fn required(target: &Target, problem: &str) -> Error {
    let message = format!("conditional_commit=\"require\": {problem}; nothing was committed");
    Error::new(ErrorKind::Config, message).with_bucket(&target.bucket)
}

/// What this server does, asking it when it is not known yet. A note is added where the probe object stays.
pub(crate) async fn support(client: &Client, target: &Target, notes: &mut Vec<String>) -> Support {
    let server = server(client, target);
    if let Some((known, told)) = known().get_mut(&server) {
        notes.append(told);
        return known.clone();
    }
    let found = probe(client, target, notes).await;
    if !matches!(found, Support::Unknown(_)) {
        known().insert(server, (found.clone(), Vec::new()));
    }
    found
}

fn known() -> MutexGuard<'static, BTreeMap<String, (Support, Vec<String>)>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn server(client: &Client, target: &Target) -> String {
    let config = client.config();
    format!("{:?} {:?} {}", config.endpoint_url, config.region, target.bucket)
}

async fn probe(client: &Client, target: &Target, notes: &mut Vec<String>) -> Support {
    let bucket = &target.bucket;
    let key = join(&target.path_key, &probe_name(fastrand::u64(..)));
    let options = PutOptions { condition: Condition::IfNoneMatch, ..PutOptions::default() };
    let body = || Payload::from(Bytes::from_static(b"s3dcp asks whether conditional writes are honoured\n"));
    match client.put_object(bucket, &key, body(), &options).await {
        Ok(_) => {}
        // an earlier attempt of this very request was carried out, and the condition held this one off
        Err(error) if error.kind() == ErrorKind::PreconditionFailed => {}
        Err(error) if not_understood(&error) => return Support::Refused(error.to_string()),
        Err(error) => {
            if error.maybe_applied() {
                client.delete_object(bucket, &key).await.ok();
            }
            return Support::Unknown(error.to_string());
        }
    }
    let found = match client.put_object(bucket, &key, body(), &options).await {
        Ok(_) => Support::Ignored,
        Err(error) if matches!(error.kind(), ErrorKind::PreconditionFailed | ErrorKind::Conflict) => {
            Support::Honoured
        }
        Err(error) => Support::Unknown(error.to_string()),
    };
    if let Err(error) = client.delete_object(bucket, &key).await {
        notes.push(format!("the probe object s3://{bucket}/{key} could not be deleted: {error}"));
    }
    found
}

/// The server does not know the header.
fn not_understood(error: &Error) -> bool {
    error.status() == Some(501) || error.code() == Some("NotImplemented")
}
