//! Sessions with directory buckets (S3 Express One Zone): credentials of a bucket's own, which the bucket gives for five minutes
//! and which sign all that is asked of its objects.
//!
//! Each bucket has one [`CredentialCache`], so that its session is created and renewed as the client's own credentials are: by
//! one request for all that wait, before it expires, while the old one serves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::auth::credentials::CredentialCache;
use crate::auth::provider::Load;

/// The sessions of one client.
#[derive(Default)]
pub(crate) struct ExpressSessions {
    buckets: Mutex<HashMap<String, Arc<CredentialCache>>>,
}

impl ExpressSessions {
    /// The session with a bucket; `load` is what creates one.
    pub(crate) fn with(&self, bucket: &str, load: impl FnOnce() -> Load) -> Arc<CredentialCache> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        match buckets.get(bucket) {
            Some(known) => Arc::clone(known),
            None => {
                let cache = CredentialCache::of("session with the directory bucket", load());
                Arc::clone(buckets.entry(bucket.to_owned()).or_insert_with(|| Arc::new(cache)))
            }
        }
    }
}
