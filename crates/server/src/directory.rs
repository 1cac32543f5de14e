//! Directory buckets (S3 Express One Zone), in what they are not like other buckets: which requests they take, and how they list.
//!
//! A bucket is one by its name, `<name>--<zone id>--x-s3`. What is refused here is what AWS documents as not supported; where it
//! gives no error for that, the one is taken that S3 has for other requests like it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use http::{HeaderMap, StatusCode};
use s3s::access::S3AccessContext;
use s3s::path::S3Path;
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use crate::sessions::Mode;

/// The storage class of what lies there.
pub(crate) const STORAGE_CLASS: &str = "EXPRESS_ONEZONE";

/// What can be asked of one.
const OPERATIONS: [&str; 18] = [
    "AbortMultipartUpload",
    "CompleteMultipartUpload",
    "CopyObject",
    "CreateBucket",
    "CreateMultipartUpload",
    "CreateSession",
    "DeleteBucket",
    "DeleteObject",
    "DeleteObjects",
    "GetObject",
    "HeadBucket",
    "HeadObject",
    "ListMultipartUploads",
    "ListObjectsV2",
    "ListParts",
    "PutObject",
    "UploadPart",
    "UploadPartCopy",
];

/// What a session that may read only can be used for.
const READING: [&str; 6] =
    ["GetObject", "HeadBucket", "HeadObject", "ListMultipartUploads", "ListObjectsV2", "ListParts"];

/// What is asked for with the keys of the account, and in no session.
const OUTSIDE_SESSIONS: [&str; 5] =
    ["CopyObject", "CreateBucket", "CreateSession", "DeleteBucket", "UploadPartCopy"];

/// Headers of what they do not have. DeleteObjects may have a Content-MD5.
const UNKNOWN_HEADERS: [&str; 9] = [
    "content-md5",
    "x-amz-acl",
    "x-amz-object-lock-legal-hold",
    "x-amz-object-lock-mode",
    "x-amz-object-lock-retain-until-date",
    "x-amz-request-payer",
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-tagging",
    "x-amz-website-redirect-location",
];

/// Whether a bucket of this name is one.
pub(crate) fn is_directory(bucket: &str) -> bool {
    let zone = bucket.strip_suffix("--x-s3").and_then(|named| named.rsplit_once("--"));
    zone.is_some_and(|(name, zone)| !name.is_empty() && !zone.is_empty())
}

/// Refuses what cannot be asked of a directory bucket; `session` is that of the request.
pub(crate) fn check(request: &S3AccessContext<'_>, session: Option<Mode>) -> S3Result<()> {
    let bucket = match request.s3_path() {
        S3Path::Root => return Ok(()),
        S3Path::Bucket { bucket } | S3Path::Object { bucket, .. } => bucket,
    };
    let operation = request.s3_op().name();
    if !is_directory(bucket) {
        if operation == "CreateSession" {
            return Err(s3_error!(InvalidRequest, "Sessions are created with directory buckets only."));
        }
        return Ok(());
    }
    if !OPERATIONS.contains(&operation) {
        return Err(not_supported());
    }
    match session {
        Some(_) if OUTSIDE_SESSIONS.contains(&operation) => {
            Err(s3_error!(AccessDenied, "{operation} is not authorized by a session."))
        }
        Some(Mode::ReadOnly) if !READING.contains(&operation) => {
            Err(s3_error!(AccessDenied, "Access Denied"))
        }
        _ => check_headers(operation, request.headers()),
    }
}

fn check_headers(operation: &str, headers: &HeaderMap) -> S3Result<()> {
    let has = |name: &&&str| headers.contains_key(**name);
    let allowed = |name: &&&str| operation == "DeleteObjects" && **name == "content-md5";
    if UNKNOWN_HEADERS.iter().filter(|name| !allowed(name)).any(|name| has(&name)) {
        return Err(s3_error!(
            NotImplemented,
            "A header you provided implies functionality that is not implemented"
        ));
    }
    let class = headers.get("x-amz-storage-class").map(|class| class.as_bytes());
    if class.is_some_and(|class| class != STORAGE_CLASS.as_bytes()) {
        return Err(s3_error!(InvalidStorageClass, "The storage class you specified is not valid"));
    }
    Ok(())
}

/// Refuses a listing of anything but a folder.
pub(crate) fn check_listing(prefix: &str, delimiter: Option<&str>) -> S3Result<()> {
    if !prefix.is_empty() && !prefix.ends_with('/') {
        return Err(s3_error!(
            InvalidRequest,
            "This bucket does not support a prefix that does not end in a delimiter. Specify a prefix path ending with a \
             delimiter and try again."
        ));
    }
    if delimiter.is_some_and(|delimiter| !delimiter.is_empty() && delimiter != "/") {
        return Err(s3_error!(
            InvalidRequest,
            "This bucket does not support a delimiter other than '/'. Specify '/' as the delimiter and try again."
        ));
    }
    Ok(())
}

pub(crate) fn not_supported() -> S3Error {
    let code = S3ErrorCode::from_bytes(b"NotSupported").unwrap_or(S3ErrorCode::NotImplemented);
    let mut error = S3Error::with_message(code, "This operation is not supported for directory buckets.");
    error.set_status_code(StatusCode::NOT_IMPLEMENTED);
    error
}

/// Where a name comes in a listing: anywhere, but always in the same place.
pub(crate) fn place(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_bucket_is_known_by_its_name() {
        for (name, is_one) in [
            ("models--use1-az4--x-s3", true),
            ("a--b--use1-az4--x-s3", true),
            ("models", false),
            ("models--x-s3", false),
            ("--use1-az4--x-s3", false),
            ("models--use1-az4--x-s3-old", false),
        ] {
            assert_eq!(is_directory(name), is_one, "{name}");
        }
    }
}
