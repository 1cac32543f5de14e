//! Operations on single objects whose request or answer fits in memory.

use std::ops::Range;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, Method};

use crate::address::encode_key;
use crate::answer::header;
use crate::checksum::{crc32_text, parse_crc32};
use crate::client::Client;
use crate::dates::parse_http_date;
use crate::error::{Error, ErrorKind};
use crate::fetch::Buffer;
use crate::payload::Payload;
use crate::request::Call;

/// What a write must find at the key to take effect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Condition {
    /// Anything: the object is replaced.
    #[default]
    None,
    /// No object (`If-None-Match: *`).
    IfNoneMatch,
    /// The object with this ETag, as the service wrote it, quotes included.
    IfMatch(String),
}

/// Options of [`Client::put_object`].
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// When the write takes effect; else the error is `PreconditionFailed`.
    pub condition: Condition,
    /// Media type. `None`: `application/octet-stream`.
    pub content_type: Option<String>,
    /// CRC-32 of the whole body, where it is known already. `None`: computed here.
    pub crc32: Option<u32>,
}

/// The result of [`Client::put_object`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutOutput {
    /// ETag of the new object, quotes included.
    pub etag: Option<String>,
    /// CRC-32 that was sent with the body.
    pub crc32: u32,
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The key.
    pub key: String,
    /// Length in bytes.
    pub size: u64,
    /// ETag, quotes included.
    pub etag: Option<String>,
    /// Time of the last write, to the second.
    pub last_modified: Option<SystemTime>,
}

/// The result of [`Client::get_object`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetOutput {
    /// The object's bytes.
    pub body: Bytes,
    /// What the service said of the object.
    pub info: ObjectInfo,
}

impl Client {
    /// Writes an object with one request. The body is sent from where it lies; its CRC-32 goes in a header, and the
    /// service checks it.
    ///
    /// # Errors
    /// `PreconditionFailed` and `Conflict` for conditional writes, and all kinds that a request can end with. After
    /// [`Error::maybe_applied`] the object may have been written.
    pub async fn put_object(
        &self,
        bucket: &str,
        key: &str,
        body: Payload,
        options: &PutOptions,
    ) -> Result<PutOutput, Error> {
        let crc32 = options.crc32.unwrap_or_else(|| body.crc32());
        let mut call = self
            .with_storage_headers(Call::new("PutObject", Method::PUT, bucket, Some(key))?)?
            .header("content-type", options.content_type.as_deref().unwrap_or("application/octet-stream"))?
            .header("x-amz-checksum-crc32", &crc32_text(crc32))?
            .body(body);
        call = match &options.condition {
            Condition::None => call,
            Condition::IfNoneMatch => call.header("if-none-match", "*")?,
            Condition::IfMatch(etag) => call.header("if-match", etag)?,
        };
        let mut result = self.execute(&call).await;
        if let (Condition::IfMatch(etag), Err(error)) = (&options.condition, &result)
            && let Some(bare) = etag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'))
            && error.kind() == ErrorKind::PreconditionFailed
            && !error.maybe_applied()
            && self.head_object(bucket, key).await.is_ok_and(|info| info.etag.as_ref() == Some(etag))
        {
            // The object has that very ETag: this service (Ceph before 17) compares it with the quotes. The
            // condition still holds for the second request.
            call = call.header("if-match", bare)?;
            result = self.execute(&call).await;
        }
        let answer = result?.headers;
        call.check_encryption(&answer).map_err(|error| error.with_maybe_applied(true))?;
        Ok(PutOutput { etag: header(&answer, "etag").map(str::to_owned), crc32 })
    }

    /// Reads a whole object into new memory. A connection that breaks goes on where it ended; a CRC-32 that the
    /// service has for the whole object is checked.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, and all kinds that a request can end with.
    pub async fn get_object(&self, bucket: &str, key: &str) -> Result<GetOutput, Error> {
        self.get_object_within(bucket, key, u64::MAX).await
    }

    /// The same for an object of at most `limit` bytes.
    ///
    /// # Errors
    /// As for [`Client::get_object`]; `Corrupt` for a longer one, of which no more than `limit` bytes were read.
    pub async fn get_object_within(&self, bucket: &str, key: &str, limit: u64) -> Result<GetOutput, Error> {
        let mut buffer = Buffer::new(limit);
        let headers = self.fetch(bucket, key, None, &mut buffer).await?;
        let body = buffer.into_bytes();
        let info = object_info(key, &headers, body.len() as u64);
        Ok(GetOutput { body, info })
    }

    /// Reads a range of an object, in bytes, into new memory.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt` when the object is shorter, and all kinds that a request can end with.
    pub async fn get_range(&self, bucket: &str, key: &str, range: Range<u64>) -> Result<Bytes, Error> {
        let mut buffer = Buffer::new(u64::MAX);
        self.fetch(bucket, key, Some(range), &mut buffer).await?;
        Ok(buffer.into_bytes())
    }

    /// Size, ETag and time of an object.
    ///
    /// # Errors
    /// `NotFound` without a code, as a HEAD's answer has no body: the bucket may be what is missing.
    pub async fn head_object(&self, bucket: &str, key: &str) -> Result<ObjectInfo, Error> {
        Ok(self.head(bucket, key).await?.0)
    }

    /// The same with the CRC-32 of the whole object, where the service keeps one.
    pub(crate) async fn head(&self, bucket: &str, key: &str) -> Result<(ObjectInfo, Option<u32>), Error> {
        let call = Call::new("HeadObject", Method::HEAD, bucket, Some(key))?
            .header("x-amz-checksum-mode", "ENABLED")?;
        let headers = self.execute(&call).await?.headers;
        let size =
            header(&headers, "content-length").and_then(|text| text.parse().ok()).ok_or_else(|| {
                call.locate(Error::new(ErrorKind::Service, "HeadObject: the service's answer has no length"))
            })?;
        Ok((object_info(key, &headers, size), header(&headers, "x-amz-checksum-crc32").and_then(parse_crc32)))
    }

    /// Copies an object of at most 5 GiB within the bucket, in the service.
    ///
    /// # Errors
    /// `NotFound` for the source, and all kinds that a request can end with, also from inside an answer of 200.
    pub async fn copy_object(&self, bucket: &str, source_key: &str, key: &str) -> Result<(), Error> {
        let call = self
            .with_storage_headers(Call::new("CopyObject", Method::PUT, bucket, Some(key))?)?
            .header("x-amz-copy-source", &format!("{bucket}/{}", encode_key(source_key)))?;
        let reply = self.execute(&call).await?;
        call.check_encryption(&reply.headers).map_err(|error| error.with_maybe_applied(true))
    }

    /// Deletes an object; one that does not exist counts as deleted.
    ///
    /// # Errors
    /// All kinds that a request can end with.
    pub async fn delete_object(&self, bucket: &str, key: &str) -> Result<(), Error> {
        let call = Call::new("DeleteObject", Method::DELETE, bucket, Some(key))?;
        match self.execute(&call).await {
            // Some services answer 404 here.
            Err(error) if error.kind() == ErrorKind::NotFound && error.code() != Some("NoSuchBucket") => {
                Ok(())
            }
            other => other.map(drop),
        }
    }
}

/// What an answer's headers say of an object.
pub(crate) fn object_info(key: &str, headers: &HeaderMap, size: u64) -> ObjectInfo {
    ObjectInfo {
        key: key.to_owned(),
        size,
        etag: header(headers, "etag").map(str::to_owned),
        last_modified: header(headers, "last-modified").and_then(parse_http_date),
    }
}
