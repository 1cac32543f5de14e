//! Operations on single objects whose request or response fits in memory.

use std::ops::Range;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, Method};

use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::operation::call::{Call, WhenLate};
use crate::protocol::checksum::{CRC32_HEADER, crc32_text, size_and_crc32};
use crate::protocol::conditions::Condition;
use crate::protocol::dates::parse_http_date;
use crate::protocol::error_response::header;
use crate::transfer::fetch::Buffer;
use crate::transfer::payload::Payload;

/// Options of [`Client::put_object`].
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct PutOptions {
    /// When the write takes effect; else the error is `PreconditionFailed`.
    pub condition: Condition,
    /// Media type. `None`: `application/octet-stream`.
    pub content_type: Option<String>,
    /// CRC-32 of the whole body, where it is known already. `None`: computed here.
    pub crc32: Option<u32>,
    /// What is done where the answer is late. Never sent again is a write that wants no object to be there: it may be carried out after
    /// the object was deleted. One with an ETag may be refused by the object that it wrote itself; then [`Error::maybe_applied`] is set.
    pub when_late: WhenLate,
}

/// The result of [`Client::put_object`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutOutput {
    /// ETag of the new object, quotes included.
    pub etag: Option<String>,
    /// CRC-32 of the body, which was sent with it where the service takes that.
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
    /// Writes an object with one request. The body is sent from where it lies; its CRC-32 goes in a header, where the service
    /// takes that, and the service checks it.
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
        let Condition::IfMatch(etag) = &options.condition else {
            return self.put_as_given(bucket, key, body, options).await;
        };
        // Some services (Ceph before 17) compare the ETag without its quotes.
        let Some(bare) = etag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
            return self.put_as_given(bucket, key, body, options).await;
        };
        let bare = PutOptions { condition: Condition::IfMatch(bare.to_owned()), ..options.clone() };
        let known = self.inner.store.bucket(bucket);
        if known.bare_etags.is_set() {
            return self.put_as_given(bucket, key, body, &bare).await;
        }
        let result = self.put_as_given(bucket, key, body.clone(), options).await;
        let refused = result
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::PreconditionFailed && !error.maybe_applied());
        if !refused
            || self.head_object(bucket, key).await.map_or(None, |info| info.etag).as_ref() != Some(etag)
        {
            return result;
        }
        // The object has that very ETag, so the condition still holds for a second request.
        let result = self.put_as_given(bucket, key, body, &bare).await;
        if result.is_ok() {
            known.bare_etags.set();
        }
        result
    }

    /// The same with the condition as it stands.
    pub(crate) async fn put_as_given(
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
            .checksum(CRC32_HEADER, &crc32_text(crc32))?
            .body(body);
        if options.when_late != WhenLate::SendAgain || options.condition != Condition::IfNoneMatch {
            call = call.when_late(options.when_late);
        }
        call = match &options.condition {
            Condition::None => call,
            Condition::IfNoneMatch => call.header("if-none-match", "*")?,
            Condition::IfMatch(etag) => call.header("if-match", etag)?,
        };
        let response = self.execute(&call).await?.headers;
        call.check_encryption(&response).map_err(|error| error.with_maybe_applied(true))?;
        Ok(PutOutput { etag: header(&response, "etag").map(str::to_owned), crc32 })
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
    /// `NotFound` without a code, as a HEAD's response has no body: the bucket may be what is missing.
    pub async fn head_object(&self, bucket: &str, key: &str) -> Result<ObjectInfo, Error> {
        Ok(self.head(Call::new("HeadObject", Method::HEAD, bucket, Some(key))?, key).await?.0)
    }

    /// The same with the CRC-32 of the whole object, where the service keeps one.
    ///
    /// # Errors
    /// Those of [`Client::head_object`].
    pub async fn head_checksum(&self, bucket: &str, key: &str) -> Result<(ObjectInfo, Option<u32>), Error> {
        let call = Call::new("HeadObject", Method::HEAD, bucket, Some(key))?;
        self.head(call.checksum("x-amz-checksum-mode", "ENABLED")?, key).await
    }

    async fn head(&self, call: Call, key: &str) -> Result<(ObjectInfo, Option<u32>), Error> {
        let headers = self.execute(&call).await?.headers;
        let (size, crc32) = size_and_crc32(&headers);
        let size = size.ok_or_else(|| {
            call.locate(Error::new(ErrorKind::Service, "HeadObject: the service's answer has no length"))
        })?;
        Ok((object_info(key, &headers, size), crc32))
    }

    /// Deletes an object; one that does not exist counts as deleted.
    ///
    /// # Errors
    /// All kinds that a request can end with.
    pub async fn delete_object(&self, bucket: &str, key: &str) -> Result<(), Error> {
        self.delete_object_if(bucket, key, None).await
    }

    /// The same, but only while the object has this ETag. A service that does not know the condition deletes all the same.
    ///
    /// # Errors
    /// `PreconditionFailed` for an object with another ETag, and all kinds that a request can end with.
    pub async fn delete_object_if(&self, bucket: &str, key: &str, etag: Option<&str>) -> Result<(), Error> {
        let mut call = Call::new("DeleteObject", Method::DELETE, bucket, Some(key))?;
        if let Some(etag) = etag {
            call = call.header("if-match", etag)?;
        }
        match self.execute(&call).await {
            // Some services answer 404 here.
            Err(error) if error.kind() == ErrorKind::NotFound && error.code() != Some("NoSuchBucket") => {
                Ok(())
            }
            other => other.map(drop),
        }
    }
}

/// What a response's headers say of an object.
pub(crate) fn object_info(key: &str, headers: &HeaderMap, size: u64) -> ObjectInfo {
    ObjectInfo {
        key: key.to_owned(),
        size,
        etag: header(headers, "etag").map(str::to_owned),
        last_modified: header(headers, "last-modified").and_then(parse_http_date),
    }
}
