//! A multipart upload that the service knows of, or soon will: its parts under way, and its end.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, select};
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle, JoinSet};

use crate::client::Client;
use crate::clock;
use crate::error::{Error, ErrorKind};
use crate::operation::multipart::Part;

/// Longest time for aborting: whoever failed on a dead service should not wait for it a second time.
const ABORT_LIMIT: Duration = Duration::from_secs(30);

type UploadId = Shared<BoxFuture<'static, Result<String, Error>>>;

pub(crate) struct Begun {
    runtime: Handle,
    pub(crate) id: UploadId,
    sending: JoinSet<Result<Part, Error>>,
    pub(crate) sent: Vec<Part>,
}

impl Begun {
    /// Begins in a task of its own: were it cancelled half-way, the service would keep an upload whose id nobody
    /// knows.
    pub(crate) fn new(client: &Client, bucket: &str, key: &str) -> Begun {
        let runtime = Handle::current();
        let task = runtime.spawn(begin(client.clone(), bucket.to_owned(), key.to_owned()));
        let id = async move { task.await.unwrap_or_else(|error| Err(interrupted(error))) };
        Begun { runtime, id: id.boxed().shared(), sending: JoinSet::new(), sent: Vec::new() }
    }

    /// Sends a part in the background.
    pub(crate) fn send(&mut self, part: impl Future<Output = Result<Part, Error>> + Send + 'static) {
        self.sending.spawn_on(part, &self.runtime);
    }

    /// Notes the parts that the service holds by now.
    ///
    /// # Errors
    /// The failure of one that has ended.
    pub(crate) fn note_sent(&mut self) -> Result<(), Error> {
        let mut result = Ok(());
        while let Some(ended) = self.sending.try_join_next() {
            match part_of(ended) {
                Ok(part) => self.sent.push(part),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// Waits for all parts, and puts them in order.
    ///
    /// # Errors
    /// The first failure.
    pub(crate) async fn all_sent(&mut self) -> Result<(), Error> {
        while let Some(ended) = self.sending.join_next().await {
            self.sent.push(part_of(ended)?);
        }
        self.sent.sort_unstable_by_key(|part| part.number);
        Ok(())
    }

    /// Aborts in a task of its own: were it cancelled half-way, the service would keep the parts.
    pub(crate) fn start_aborting(self, client: &Client, bucket: &str, key: &str) -> JoinHandle<()> {
        let runtime = self.runtime.clone();
        let (client, bucket, key) = (client.clone(), bucket.to_owned(), key.to_owned());
        runtime.spawn(async move { self.abort(&client, &bucket, &key).await })
    }

    async fn abort(mut self, client: &Client, bucket: &str, key: &str) {
        self.sending.shutdown().await;
        let abort = async {
            match self.id.await {
                Ok(id) => client.abort_multipart_upload(bucket, key, &id).await,
                Err(_) => Ok(()),
            }
        };
        match clock::before(clock::now() + ABORT_LIMIT, abort).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::warn!(bucket, key, %error, "not aborted: the parts of an upload stay")
            }
            None => tracing::warn!(bucket, key, "not aborted in time: the parts of an upload may stay"),
        }
    }
}

/// Begins an upload, and one more where its answer is late. The first answer counts; the other upload is aborted.
async fn begin(client: Client, bucket: String, key: String) -> Result<String, Error> {
    const CREATE: &str = "CreateMultipartUpload";
    let create = || {
        let (client, bucket, key) = (client.clone(), bucket.clone(), key.clone());
        let task = tokio::spawn(async move { client.create_multipart_upload(&bucket, &key).await });
        task.map(|ended| ended.unwrap_or_else(|error| Err(interrupted(error))))
    };
    let hedging = client.inner.admission.hedging();
    let started = clock::now();
    let late_at = hedging.late_after(CREATE, started).map(|after| started + after);
    let mut first = create();
    match clock::before(late_at, &mut first).await {
        Some(begun) => begun,
        None if hedging.take(clock::now()) => {
            client.inner.counters.add_hedge();
            tracing::debug!(bucket, key, "an answer is late: beginning another upload");
            let (begun, other) = select(first, create()).await.factor_first();
            match begun {
                Err(_) => other.await,
                Ok(_) => {
                    let client = client.clone();
                    tokio::spawn(async move {
                        if let Ok(id) = other.await
                            && let Err(error) = client.abort_multipart_upload(&bucket, &key, &id).await
                        {
                            tracing::warn!(bucket, key, %error, "not aborted: an upload without parts stays");
                        }
                    });
                    begun
                }
            }
        }
        None => first.await,
    }
}

fn part_of(ended: Result<Result<Part, Error>, JoinError>) -> Result<Part, Error> {
    ended.unwrap_or_else(|error| Err(interrupted(error)))
}

/// A task that did not end by itself.
pub(crate) fn interrupted(error: JoinError) -> Error {
    Error::new(ErrorKind::Interrupted, format!("a transfer task was stopped: {error}")).with_source(error)
}
