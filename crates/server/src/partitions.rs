//! The model of S3's partitions in front of the store: which requests are answered `503 SlowDown`.
//!
//! A key of the model is `<bucket>/<key>`. A listing counts as a read at its prefix, a deletion of many keys as one
//! write at the start of its bucket.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response};
use percent_encoding::percent_decode_str;
use s3dcp_partition::{Access, KeySpace, Limits, PartitionView};
use s3s::access::S3AccessContext;
use s3s::path::S3Path;
use s3s::{Body, S3Error, S3Result, s3_error};
use serde_json::json;

use crate::directory::is_directory;
use crate::query::Query;

/// Draws what `/_s3dcp/partitions` gives, as it changes.
const PAGE: &str = include_str!("partitions.html");

/// Partitions in front of a server.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Partitions {
    /// What each takes, and when it splits.
    pub limits: Limits,
    /// Where partitions begin from the start, as `<bucket>/<key>`, besides the lowest; none for a cold key space.
    pub first_keys: Vec<String>,
}

/// What one partition was asked for.
pub(crate) struct PartitionGate {
    space: Mutex<KeySpace>,
    started: Instant,
}

impl PartitionGate {
    /// Says which limit makes no sense.
    pub(crate) fn new(partitions: &Partitions) -> Result<Self, &'static str> {
        if let Some(reason) = partitions.limits.invalid() {
            return Err(reason);
        }
        let space = KeySpace::divided(partitions.limits.clone(), partitions.first_keys.iter().cloned());
        Ok(Self { space: Mutex::new(space), started: Instant::now() })
    }

    pub(crate) fn check(&self, request: &S3AccessContext<'_>) -> S3Result<()> {
        let operation = request.s3_op().name();
        let key = match request.s3_path() {
            S3Path::Root => return Ok(()),
            // Their request rates are those of the bucket, and none of them is modelled.
            S3Path::Bucket { bucket } | S3Path::Object { bucket, .. } if is_directory(bucket) => {
                return Ok(());
            }
            S3Path::Bucket { bucket } => format!("{bucket}/{}", listed_prefix(&Query::of(request.uri()))),
            S3Path::Object { bucket, key } => format!("{bucket}/{key}"),
        };
        let now = self.started.elapsed();
        self.lock().admit(now, &key, access(operation)).map_err(|refusal| slow_down(refusal.retry_after))
    }

    pub(crate) fn views(&self) -> Vec<PartitionView> {
        self.lock().partitions(self.started.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, KeySpace> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn access(operation: &str) -> Access {
    if ["Get", "Head", "List"].iter().any(|read| operation.starts_with(read)) {
        Access::Read
    } else {
        Access::Write
    }
}

fn listed_prefix(query: &Query<'_>) -> String {
    percent_decode_str(query.value("prefix").unwrap_or_default()).decode_utf8_lossy().into_owned()
}

fn slow_down(retry_after: Duration) -> S3Error {
    let mut error = s3_error!(SlowDown, "Please reduce your request rate.");
    let seconds = retry_after.as_secs_f64().ceil() as u64;
    error.set_headers(HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from(seconds))]));
    error
}

/// What is served beside S3, below a name that no bucket can have: the page, and its figures as JSON.
pub(crate) fn page(gate: &PartitionGate, path: &str) -> Option<Response<Body>> {
    match path {
        "/_s3dcp/" | "/_s3dcp" => Some(shown("text/html; charset=utf-8", PAGE.to_owned())),
        "/_s3dcp/partitions" => Some(shown("application/json", figures(gate).to_string())),
        _ => None,
    }
}

/// A response that is true only now.
pub(crate) fn shown(kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn figures(gate: &PartitionGate) -> serde_json::Value {
    let limits = gate.lock().limits().clone();
    let partitions: Vec<_> = gate
        .views()
        .into_iter()
        .map(|view| {
            json!({
                "first_key": view.first_key,
                "end_key": view.end_key,
                "writes_per_second": view.writes_per_second,
                "reads_per_second": view.reads_per_second,
                "load": view.load,
                "hot": view.hot,
                "admitted": view.admitted,
                "refused": view.refused,
            })
        })
        .collect();
    json!({
        "seconds": gate.started.elapsed().as_secs_f64(),
        "writes_per_second": limits.writes_per_second,
        "reads_per_second": limits.reads_per_second,
        "partitions": partitions,
    })
}
