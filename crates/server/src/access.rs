//! Who may come in: the one pair of keys with the sessions that were given for it, and the gate every request passes after its signature is verified and before
//! its body is read.
//!
//! The gate ([`S3Access::check`]) is where a request can be refused early and cheaply, with operation, bucket, key and
//! headers known: an anonymous one is, and one that is too many for its partition.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};

use crate::directory;
use crate::partitions::PartitionGate;
use crate::sessions::{Mode, Sessions};
use crate::stats::Counters;

#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    pub(crate) sessions: Arc<Sessions>,
}

/// That a request was made in a session, and of which mode. It is among the request's extensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InSession(pub(crate) Mode);

#[async_trait::async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key == self.access_key {
            Ok(SecretKey::from(self.secret_key.as_str()))
        } else if let Some(session) = self.sessions.of(access_key) {
            Ok(SecretKey::from(session.secret_key))
        } else {
            Err(s3_error!(
                InvalidAccessKeyId,
                "The AWS access key Id you provided does not exist in our records."
            ))
        }
    }
}

/// Whether a request came in. It is among the request's extensions, where the gate finds it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Admission(Arc<AtomicBool>);

impl Admission {
    pub(crate) fn grant(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_granted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

pub(crate) struct Gate {
    pub(crate) counters: Arc<Counters>,
    pub(crate) partitions: Option<Arc<PartitionGate>>,
}

#[async_trait::async_trait]
impl S3Access for Gate {
    async fn check(&self, request: &mut S3AccessContext<'_>) -> S3Result<()> {
        if request.credentials().is_none() {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        }
        if let Some(admission) = request.extensions_mut().get::<Admission>() {
            admission.grant();
        }
        self.counters.request(request.s3_op().name());
        let session = request.extensions_mut().get::<InSession>().map(|session| session.0);
        directory::check(request, session)?;
        self.partitions.as_ref().map_or(Ok(()), |partitions| partitions.check(request))
    }
}
