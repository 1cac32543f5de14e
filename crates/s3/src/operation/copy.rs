//! Copies that the service makes, of whole objects and of ranges as parts of a multipart upload.

use std::ops::Range;

use http::Method;

use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::operation::call::Call;
use crate::operation::multipart::Part;
use crate::protocol::address::{check_key, encode_key};
use crate::protocol::bucket::{AccessPoint, check_bucket};
use crate::protocol::checksum::parse_crc32;
use crate::protocol::xml;

/// An object to copy from, as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySource {
    /// Its bucket, which the same service and credentials reach.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// Its ETag, quotes included: a source that has another by now is an error. `None` takes it as it is.
    pub etag: Option<String>,
}

impl CopySource {
    fn sent_with(&self, call: Call) -> Result<Call, Error> {
        check_bucket(&self.bucket)?;
        check_key(&self.key).map_err(|error| error.with_bucket(&self.bucket))?;
        let within = if AccessPoint::of(&self.bucket)?.is_some() { "object/" } else { "" };
        let source = format!("{}/{within}{}", self.bucket, encode_key(&self.key));
        // Who copies is asked for its own rights on both.
        let call = call.outside_sessions().header("x-amz-copy-source", &source)?;
        match &self.etag {
            Some(etag) => call.header("x-amz-copy-source-if-match", etag),
            None => Ok(call),
        }
    }

    /// Says of a failed condition what it means.
    fn explain(&self, error: Error) -> Error {
        if error.kind() != ErrorKind::PreconditionFailed || self.etag.is_none() {
            return error;
        }
        let message = format!("s3://{}/{} changed while it was copied", self.bucket, self.key);
        error.with_message(message)
    }
}

impl Client {
    /// Makes an object of `source`, of at most 5 GiB, in the service.
    ///
    /// # Errors
    /// `NotFound` for the source, `PreconditionFailed` for one that has changed, and all kinds that a request can end with,
    /// also from inside a response of 200.
    pub async fn copy_object(&self, source: &CopySource, bucket: &str, key: &str) -> Result<(), Error> {
        let call = self.with_storage_headers(Call::new("CopyObject", Method::PUT, bucket, Some(key))?)?;
        let call = source.sent_with(call)?;
        let response = self.execute(&call).await.map_err(|error| source.explain(error))?;
        call.check_encryption(&response.headers).map_err(|error| error.with_maybe_applied(true))
    }

    /// Makes a part of these bytes of `source`.
    pub(crate) async fn upload_part_copy(
        &self,
        bucket: &str,
        key: &str,
        upload_id: &str,
        number: u32,
        source: &CopySource,
        range: Range<u64>,
    ) -> Result<Part, Error> {
        let call = Call::new("UploadPartCopy", Method::PUT, bucket, Some(key))?
            .part(number)
            .query("partNumber", &number.to_string())
            .query("uploadId", upload_id)
            .header("x-amz-copy-source-range", &format!("bytes={}-{}", range.start, range.end - 1))?;
        let call = source.sent_with(call)?;
        let response = self.execute(&call).await.map_err(|error| source.explain(error))?;
        let result = xml::parse(&response.body).map_err(|_| call.malformed("no CopyPartResult"))?;
        let etag = result.text_of("ETag").ok_or_else(|| call.malformed("no ETag"))?;
        let crc32 = result.text_of("ChecksumCRC32").and_then(parse_crc32);
        Ok(Part { number, etag: etag.to_owned(), crc32, size: range.end - range.start })
    }
}
