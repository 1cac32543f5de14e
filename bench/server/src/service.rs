//! S3's operations: from a request to an answer.

use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quick_xml::escape::{escape, unescape};
use rustix::fs::MemfdFlags;

use crate::answer::{Answer, Body};
use crate::connection::Connection;
use crate::request::{Request, decoded};
use crate::stats::Stats;
use crate::store::{Blob, Condition, Refused, Store, etag};

/// Every object has the same age: nothing that is measured looks at it.
const MODIFIED: &str = "2020-01-01T00:00:00.000Z";
const MODIFIED_HTTP: &str = "Wed, 01 Jan 2020 00:00:00 GMT";
/// Zeros that stand for dropped bytes, again and again.
const ZEROS: u64 = 16 << 20;

/// The server's state, shared by all connections.
pub(crate) struct Service {
    store: Mutex<Store>,
    pub(crate) stats: Stats,
    discards: bool,
    latency: Duration,
    zeros: File,
}

impl Service {
    pub(crate) fn new(discards: bool, latency: Duration) -> io::Result<Self> {
        let zeros = File::from(rustix::fs::memfd_create("zeros", MemfdFlags::CLOEXEC)?);
        zeros.set_len(ZEROS)?;
        Ok(Self { store: Mutex::default(), stats: Stats::default(), discards, latency, zeros })
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the body of `request` and answers it.
    pub(crate) fn handle(&self, request: &Request, connection: &mut Connection) -> io::Result<()> {
        if request.header("expect").is_some() {
            connection.invite()?;
        }
        if request.path == "_stats" {
            let text = serde_json::to_string(&self.stats.take())?;
            return connection.send(&Answer::new("200 OK", Body::Text(text)), &self.zeros);
        }
        let (operation, answer) = self.answer(request, connection)?;
        let received = request.number("content-length").unwrap_or(0);
        let sent = if request.method == "HEAD" { 0 } else { answer.length() };
        self.stats.request(operation, received, sent);
        if !self.latency.is_zero() {
            std::thread::sleep(self.latency);
        }
        connection.send(&answer, &self.zeros)
    }

    fn answer(&self, request: &Request, connection: &mut Connection) -> io::Result<(&'static str, Answer)> {
        let has = |name: &str| request.query.contains_key(name);
        let (bucket, key) = request.bucket_and_key();
        if request.method == "PUT" && !key.is_empty() && request.header("x-amz-copy-source").is_none() {
            let blob = self.body(request, connection)?;
            return Ok(match request.query.get("partNumber") {
                Some(number) => ("UploadPart", self.upload_part(request, number.parse().unwrap_or(0), blob)),
                None => ("PutObject", self.put_object(request, blob)),
            });
        }
        let mut body = Vec::new();
        connection.receive(request, &mut body)?;
        Ok(match (request.method.as_str(), key.is_empty()) {
            ("PUT", true) => ("CreateBucket", Answer::empty("200 OK")),
            ("PUT", false) => ("CopyObject", self.copy_object(request)),
            ("HEAD", true) => ("HeadBucket", Answer::empty("200 OK")),
            ("GET", true) => ("ListObjects", self.list_objects(request, bucket)),
            ("GET", false) => ("GetObject", self.get_object(request)),
            ("HEAD", false) => ("HeadObject", self.head_object(request)),
            ("POST", true) if has("delete") => ("DeleteObjects", self.delete_objects(bucket, &body)),
            ("POST", false) if has("uploads") => ("CreateMultipartUpload", self.create_upload(request)),
            ("POST", false) if has("uploadId") => ("CompleteMultipartUpload", self.complete_upload(request)),
            ("DELETE", false) => match request.query.get("uploadId") {
                Some(upload) => {
                    self.store().abort_upload(upload);
                    ("AbortMultipartUpload", Answer::empty("204 No Content"))
                }
                None => {
                    self.store().delete(&request.path);
                    ("DeleteObject", Answer::empty("204 No Content"))
                }
            },
            _ => {
                ("Other", Answer::error("501 Not Implemented", "NotImplemented", "Not part of this server."))
            }
        })
    }

    /// The body of a write: kept, or dropped where this server drops. Clients read `.metadata` back, so that is kept.
    fn body(&self, request: &Request, connection: &mut Connection) -> io::Result<Blob> {
        if !self.discards || request.path.contains(".metadata") {
            return connection.keep(request);
        }
        Ok(Blob { file: None, length: connection.drop_body(request)? })
    }

    fn upload_part(&self, request: &Request, number: u64, blob: Blob) -> Answer {
        let upload = request.query.get("uploadId").map_or("", String::as_str);
        written(self.store().put_part(upload, number, blob))
    }

    fn put_object(&self, request: &Request, blob: Blob) -> Answer {
        self.store().put(&request.path, blob, &condition(request)).map_or_else(refused, written)
    }

    fn copy_object(&self, request: &Request) -> Answer {
        let source = decoded(request.header("x-amz-copy-source").unwrap_or_default());
        match self.store().copy(source.trim_start_matches('/'), &request.path) {
            None => no_such_key(),
            Some(tag) => {
                let etag = etag(tag);
                Answer::xml(
                    "CopyObjectResult",
                    &format!("<ETag>\"{etag}\"</ETag><LastModified>{MODIFIED}</LastModified>"),
                )
            }
        }
    }

    fn create_upload(&self, request: &Request) -> Answer {
        let upload = self.store().create_upload();
        let names = names(request);
        Answer::xml("InitiateMultipartUploadResult", &format!("{names}<UploadId>{upload}</UploadId>"))
    }

    fn complete_upload(&self, request: &Request) -> Answer {
        match self.store().complete_upload(&request.path, &request.query["uploadId"], &condition(request)) {
            Err(error) => refused(error),
            Ok(tag) => {
                let content = format!("{}<ETag>\"{}\"</ETag>", names(request), etag(tag));
                Answer::xml("CompleteMultipartUploadResult", &content)
            }
        }
    }

    fn get_object(&self, request: &Request) -> Answer {
        let Some(object) = self.store().get(&request.path) else { return no_such_key() };
        let length = object.length;
        let (status, range) = match (request.header("range"), request.range(length)) {
            (None, _) => ("200 OK", 0..length),
            (Some(_), Some(range)) => ("206 Partial Content", range),
            (Some(_), None) => {
                let answer =
                    Answer::error("416 Range Not Satisfiable", "InvalidRange", "The range is not there.");
                return answer.with("Content-Range", &format!("bytes */{length}"));
            }
        };
        let answer = Answer::new(status, Body::Pieces(object.pieces(range.clone())));
        let answer = if status.starts_with("206") {
            answer.with("Content-Range", &format!("bytes {}-{}/{length}", range.start, range.end - 1))
        } else {
            answer
        };
        described(answer, object.tag)
    }

    fn head_object(&self, request: &Request) -> Answer {
        match self.store().get(&request.path) {
            None => Answer::empty("404 Not Found"),
            Some(object) => described(Answer::new("200 OK", Body::Length(object.length)), object.tag),
        }
    }

    fn delete_objects(&self, bucket: &str, body: &[u8]) -> Answer {
        let text = String::from_utf8_lossy(body);
        let mut content = String::new();
        for key in text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()) {
            let name = unescape(key).unwrap_or_default();
            self.store().delete(&format!("{bucket}/{name}"));
            content += &format!("<Deleted><Key>{key}</Key></Deleted>");
        }
        Answer::xml("DeleteResult", &content)
    }

    fn list_objects(&self, request: &Request, bucket: &str) -> Answer {
        let argument = |name: &str| request.query.get(name).map_or("", String::as_str);
        let store = self.store();
        let (objects, prefixes) = store.list(bucket, argument("prefix"), argument("delimiter"));
        let mut content = format!(
            "<Name>{}</Name><Prefix>{}</Prefix><KeyCount>{}</KeyCount><MaxKeys>1000000</MaxKeys>\
             <IsTruncated>false</IsTruncated>",
            escape(bucket),
            escape(argument("prefix")),
            objects.len() + prefixes.len(),
        );
        for (key, object) in objects {
            content += &format!(
                "<Contents><Key>{}</Key><LastModified>{MODIFIED}</LastModified><ETag>\"{}\"</ETag><Size>{}</Size>\
                 <StorageClass>STANDARD</StorageClass></Contents>",
                escape(key),
                etag(object.tag),
                object.length,
            );
        }
        for prefix in prefixes {
            content += &format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escape(&prefix));
        }
        Answer::xml("ListBucketResult", &content)
    }
}

fn condition(request: &Request) -> Condition {
    if request.header("if-none-match") == Some("*") {
        return Condition::Absent;
    }
    request.header("if-match").map_or(Condition::None, |tag| Condition::Tag(tag.trim_matches('"').to_owned()))
}

fn written(tag: u64) -> Answer {
    Answer::empty("200 OK").with("ETag", &format!("\"{}\"", etag(tag)))
}

fn refused(reason: Refused) -> Answer {
    match reason {
        Refused::Condition => {
            Answer::error("412 Precondition Failed", "PreconditionFailed", "The condition did not hold.")
        }
        Refused::NoSuchUpload => Answer::error("404 Not Found", "NoSuchUpload", "The upload does not exist."),
    }
}

fn no_such_key() -> Answer {
    Answer::error("404 Not Found", "NoSuchKey", "The key does not exist.")
}

fn described(answer: Answer, tag: u64) -> Answer {
    answer
        .with("ETag", &format!("\"{}\"", etag(tag)))
        .with("Last-Modified", MODIFIED_HTTP)
        .with("Accept-Ranges", "bytes")
        .with("Content-Type", "binary/octet-stream")
}

fn names(request: &Request) -> String {
    let (bucket, key) = request.bucket_and_key();
    format!("<Bucket>{}</Bucket><Key>{}</Key>", escape(bucket), escape(key))
}
