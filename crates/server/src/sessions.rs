//! Sessions with directory buckets: keys of one bucket that are good for a while.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::ids::Ids;

/// Sessions that are remembered, those that have ended among them: a request is told which it is.
const REMEMBERED: usize = 4096;

/// What a session may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    ReadWrite,
    ReadOnly,
}

/// A session, and its keys.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) bucket: String,
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    pub(crate) token: String,
    pub(crate) expiration: SystemTime,
    pub(crate) mode: Mode,
}

pub(crate) struct Sessions {
    lifetime: Duration,
    ids: Ids,
    known: Mutex<VecDeque<Session>>,
}

impl Sessions {
    pub(crate) fn new(lifetime: Duration) -> Self {
        Self { lifetime, ids: Ids::new(), known: Mutex::default() }
    }

    pub(crate) fn create(&self, bucket: &str, mode: Mode) -> Session {
        let session = Session {
            bucket: bucket.to_owned(),
            access_key: format!("session-{}", self.ids.next()),
            secret_key: self.ids.next(),
            token: self.ids.next(),
            expiration: SystemTime::now() + self.lifetime,
            mode,
        };
        let mut known = self.lock();
        if known.len() == REMEMBERED {
            known.pop_front();
        }
        known.push_back(session.clone());
        session
    }

    /// The session that has this access key, ended or not.
    pub(crate) fn of(&self, access_key: &str) -> Option<Session> {
        self.lock().iter().rev().find(|session| session.access_key == access_key).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Session>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
