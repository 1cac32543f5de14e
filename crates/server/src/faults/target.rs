//! Which S3 operation a request is, on which key.

use http::{HeaderMap, Method, Request};
use percent_encoding::percent_decode_str;

use crate::host::{Domains, bucket_and_key};
use crate::query::Query;

/// The operations a rule can name: those that this server knows.
pub(super) const OPERATIONS: &[&str] = &[
    "AbortMultipartUpload",
    "CompleteMultipartUpload",
    "CopyObject",
    "CreateBucket",
    "CreateMultipartUpload",
    "CreateSession",
    "DeleteBucket",
    "DeleteObject",
    "DeleteObjects",
    "GetBucketLocation",
    "GetObject",
    "HeadBucket",
    "HeadObject",
    "ListBuckets",
    "ListMultipartUploads",
    "ListObjects",
    "ListObjectsV2",
    "ListParts",
    "PutObject",
    "UploadPart",
    "UploadPartCopy",
];

/// A request as rules see it.
pub(crate) struct Target {
    pub(crate) operation: &'static str,
    pub(crate) key: String,
    pub(crate) part: Option<u32>,
    /// The names of its headers.
    pub(crate) headers: Vec<String>,
}

impl Target {
    pub(crate) fn of<B>(request: &Request<B>, domains: &Domains) -> Self {
        let (bucket, key) = bucket_and_key(request, domains);
        let has_bucket = !bucket.is_empty();
        let query = Query::of(request.uri());
        Self {
            operation: operation(request.method(), request.headers(), has_bucket, !key.is_empty(), &query),
            key: percent_decode_str(key).decode_utf8_lossy().into_owned(),
            part: query.value("partNumber").and_then(|number| number.parse().ok()),
            headers: request.headers().keys().map(|name| name.as_str().to_owned()).collect(),
        }
    }
}

/// As S3 tells operations apart; an empty name for what is none of them.
fn operation(
    method: &Method,
    headers: &HeaderMap,
    has_bucket: bool,
    has_key: bool,
    query: &Query<'_>,
) -> &'static str {
    let copies = headers.contains_key("x-amz-copy-source");
    let upload = query.has("uploadId");
    match (method.as_str(), has_bucket, has_key) {
        ("GET", false, _) => "ListBuckets",
        ("GET", true, false) if query.has("session") => "CreateSession",
        ("GET", true, false) if query.has("uploads") => "ListMultipartUploads",
        ("GET", true, false) if query.has("location") => "GetBucketLocation",
        ("GET", true, false) if query.value("list-type") == Some("2") => "ListObjectsV2",
        ("GET", true, false) => "ListObjects",
        ("GET", true, true) if upload => "ListParts",
        ("GET", true, true) => "GetObject",
        ("HEAD", true, false) => "HeadBucket",
        ("HEAD", true, true) => "HeadObject",
        ("PUT", true, false) => "CreateBucket",
        ("PUT", true, true) if upload && copies => "UploadPartCopy",
        ("PUT", true, true) if upload => "UploadPart",
        ("PUT", true, true) if copies => "CopyObject",
        ("PUT", true, true) => "PutObject",
        ("POST", true, false) if query.has("delete") => "DeleteObjects",
        ("POST", true, true) if query.has("uploads") => "CreateMultipartUpload",
        ("POST", true, true) if upload => "CompleteMultipartUpload",
        ("DELETE", true, false) => "DeleteBucket",
        ("DELETE", true, true) if upload => "AbortMultipartUpload",
        ("DELETE", true, true) => "DeleteObject",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_told_by_method_path_query_and_headers() {
        let mut seen = Vec::new();
        for (method, path, copies, operation, key, part) in [
            ("GET", "/", false, "ListBuckets", "", None),
            ("GET", "/b?session", false, "CreateSession", "", None),
            ("GET", "/b?uploads", false, "ListMultipartUploads", "", None),
            ("GET", "/b?location", false, "GetBucketLocation", "", None),
            ("GET", "/b/?list-type=2&prefix=x", false, "ListObjectsV2", "", None),
            ("GET", "/b?prefix=x", false, "ListObjects", "", None),
            ("GET", "/b/k/l?uploadId=u", false, "ListParts", "k/l", None),
            ("GET", "/b/k%20l?x-id=GetObject", false, "GetObject", "k l", None),
            ("HEAD", "/b", false, "HeadBucket", "", None),
            ("HEAD", "/b/k", false, "HeadObject", "k", None),
            ("PUT", "/b", false, "CreateBucket", "", None),
            ("PUT", "/b/k?partNumber=7&uploadId=u", true, "UploadPartCopy", "k", Some(7)),
            ("PUT", "/b/k?partNumber=7&uploadId=u", false, "UploadPart", "k", Some(7)),
            ("PUT", "/b/k", true, "CopyObject", "k", None),
            ("PUT", "/b/k", false, "PutObject", "k", None),
            ("POST", "/b?delete", false, "DeleteObjects", "", None),
            ("POST", "/b/k?uploads", false, "CreateMultipartUpload", "k", None),
            ("POST", "/b/k?uploadId=u", false, "CompleteMultipartUpload", "k", None),
            ("DELETE", "/b", false, "DeleteBucket", "", None),
            ("DELETE", "/b/k?uploadId=u", false, "AbortMultipartUpload", "k", None),
            ("DELETE", "/b/k", false, "DeleteObject", "k", None),
        ] {
            let mut request = Request::builder().method(method).uri(path).body(()).unwrap();
            if copies {
                request.headers_mut().insert("x-amz-copy-source", http::HeaderValue::from_static("b/o"));
            }
            let target = Target::of(&request, &Domains::new(None));
            assert_eq!(
                (target.operation, target.key.as_str(), target.part),
                (operation, key, part),
                "{method} {path}"
            );
            seen.push(operation);
        }
        seen.sort_unstable();
        assert_eq!(seen, OPERATIONS);
    }

    #[test]
    fn a_bucket_in_the_host_leaves_the_whole_path_to_the_key() {
        let request = Request::put("/k/l").header("host", "bkt.localhost:9000").body(()).unwrap();
        assert_eq!(Target::of(&request, &Domains::new(None)).key, "k/l");
    }
}
