//! One writer at a time on a path: a small object beside the index, which its writer writes again and again.
//!
//! Whoever comes finds the object and watches it. Where it changes, a writer is alive, and the path is refused. Where it does
//! not for several beats, its writer was killed, and the newcomer takes it over by a write that is conditional on what it
//! saw. A writer that finds another's object has lost the path. No clock is compared with another.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use s3dcp_s3::{Client, Condition, Error, ErrorKind, Payload, PutOptions};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::error::is_absent;
use crate::layout::{Layout, new_save_id};

/// Time between two writes of the object.
pub const LEASE_BEAT: Duration = Duration::from_secs(10);
/// Beats without a change after which a writer counts as dead.
const SILENT_BEATS: u32 = 3;
/// The longest object that is read for the name in it.
const MAX_BYTES: u64 = 4096;

/// A path that this process alone writes to, until it is released or lost.
#[derive(Debug)]
pub struct WriterLease {
    held: Arc<Mutex<Held>>,
    beats: JoinHandle<()>,
}

#[derive(Debug)]
struct Held {
    client: Client,
    bucket: String,
    key: String,
    /// Says who writes, in errors of others.
    who: String,
    id: String,
    count: u64,
    /// As the object was written last.
    etag: Option<String>,
}

impl WriterLease {
    /// Takes the path; `who` is this writer's name for others. Where a writer was killed there, this takes three beats.
    ///
    /// # Errors
    /// `AlreadyExists` where another writer is alive, with its name; else those of the requests.
    pub async fn acquire(
        client: &Client,
        bucket: &str,
        path_key: &str,
        who: &str,
        beat: Duration,
    ) -> Result<WriterLease, Error> {
        let mut held = Held {
            client: client.clone(),
            bucket: bucket.to_owned(),
            key: Layout::new(path_key).lease_key(),
            who: who.chars().filter(|c| !c.is_control()).take(200).collect(),
            id: new_save_id(),
            count: 0,
            etag: None,
        };
        let condition = match held.other().await? {
            None => Condition::IfNoneMatch,
            Some((etag, who)) => {
                held.watch(&etag, &who, beat).await?;
                Condition::IfMatch(etag)
            }
        };
        match held.write(condition).await {
            Err(error) if matches!(error.kind(), ErrorKind::PreconditionFailed | ErrorKind::Conflict) => {
                return Err(held.refused("another writer", "came first"));
            }
            written => written?,
        }
        let held = Arc::new(Mutex::new(held));
        let beating = Arc::clone(&held);
        let beats = tokio::spawn(async move {
            loop {
                sleep(beat).await;
                let mut held = beating.lock().await;
                // What fails now is tried again; a path that is lost stays so, and `check` says it.
                if held.check().await.is_ok()
                    && let Some(etag) = held.etag.clone()
                {
                    held.write(Condition::IfMatch(etag)).await.ok();
                }
            }
        });
        Ok(WriterLease { held, beats })
    }

    /// Sees that the path is still this writer's.
    ///
    /// # Errors
    /// `Conflict` where another writer has taken it; else those of the request.
    pub async fn check(&self) -> Result<(), Error> {
        self.held.lock().await.check().await
    }

    /// Gives the path up, if it is still this writer's.
    ///
    /// # Errors
    /// Those of the request: then the next writer waits.
    pub async fn release(self) -> Result<(), Error> {
        self.beats.abort();
        let held = self.held.lock().await;
        match held.client.delete_object_if(&held.bucket, &held.key, held.etag.as_deref()).await {
            Err(error) if error.kind() == ErrorKind::PreconditionFailed => Ok(()),
            released => released,
        }
    }
}

impl Drop for WriterLease {
    fn drop(&mut self) {
        self.beats.abort();
    }
}

impl Held {
    /// The ETag of the object that is there, and whom it names.
    async fn other(&self) -> Result<Option<(String, String)>, Error> {
        match self.client.get_object_within(&self.bucket, &self.key, MAX_BYTES).await {
            Ok(object) => {
                let text = String::from_utf8_lossy(&object.body);
                let who = text.lines().next().unwrap_or_default().to_owned();
                Ok(Some((object.info.etag.unwrap_or_default(), who)))
            }
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until the writer of the object that is there counts as dead.
    async fn watch(&self, etag: &str, who: &str, beat: Duration) -> Result<(), Error> {
        let dead = Instant::now() + beat * SILENT_BEATS;
        while Instant::now() < dead {
            sleep(beat / 4).await;
            match self.client.head_object(&self.bucket, &self.key).await {
                Ok(info) if info.etag.as_deref() == Some(etag) => {}
                // Released, or taken over.
                Ok(_) => return Err(self.refused(who, "is at work")),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    return Err(self.refused(who, "has just left; try again"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn refused(&self, who: &str, does: &str) -> Error {
        let message = format!("another writer of this path {does}: {who}");
        Error::new(ErrorKind::AlreadyExists, message).with_bucket(&self.bucket).with_key(&self.key)
    }

    async fn check(&mut self) -> Result<(), Error> {
        let lost = |error: Error| {
            let message = "another writer has taken this path over";
            Error::new(ErrorKind::Conflict, message).with_source(error)
        };
        let found = self.client.head_object(&self.bucket, &self.key).await;
        match found {
            Ok(info) if info.etag == self.etag => Ok(()),
            Ok(_) => Err(lost(Error::new(ErrorKind::PreconditionFailed, "its object is not ours"))),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(lost(error)),
            Err(error) => Err(error),
        }
        .map_err(|error| error.with_bucket(&self.bucket).with_key(&self.key))
    }

    async fn write(&mut self, condition: Condition) -> Result<(), Error> {
        self.count += 1;
        let body = format!("{}\n{} {}\n", self.who, self.id, self.count);
        let mut options = PutOptions::default();
        options.condition = condition;
        let body = Payload::from(Bytes::from(body));
        match self.client.put_object(&self.bucket, &self.key, body, &options).await {
            Ok(output) => {
                self.etag = output.etag;
                Ok(())
            }
            Err(error) if error.maybe_applied() => {
                // Whether it is ours the object itself says.
                let mine = self.client.get_object_within(&self.bucket, &self.key, MAX_BYTES).await?;
                if String::from_utf8_lossy(&mine.body).contains(&format!("\n{} {}\n", self.id, self.count)) {
                    self.etag = mine.info.etag;
                    return Ok(());
                }
                Err(error)
            }
            Err(error) => Err(error),
        }
    }
}
