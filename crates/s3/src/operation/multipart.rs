//! The requests of a multipart upload.

use std::collections::HashMap;

use http::Method;

use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::operation::attempt::Operation;
use crate::operation::call::{Call, WhenLate};
use crate::operation::list::UploadedPart;
use crate::protocol::checksum::{CRC32_HEADER, crc32_text};
use crate::protocol::error_response::header;
use crate::protocol::xml;
use crate::transfer::payload::Payload;

/// A part that the service holds.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) number: u32,
    pub(crate) etag: String,
    /// `None` where the service copied it and does not say.
    pub(crate) crc32: Option<u32>,
    pub(crate) size: u64,
}

impl Client {
    /// Begins an upload whose checksum will be one CRC-32 of the whole object, where the service takes that.
    pub(crate) async fn create_multipart_upload(&self, bucket: &str, key: &str) -> Result<String, Error> {
        let call = self
            .with_storage_headers(Call::new("CreateMultipartUpload", Method::POST, bucket, Some(key))?)?
            .flag("uploads")
            .header("content-type", "application/octet-stream")?
            .checksum("x-amz-checksum-algorithm", "CRC32")?
            .checksum("x-amz-checksum-type", "FULL_OBJECT")?;
        let response = self.execute(&call).await?;
        let id = xml::parse(&response.body).ok().and_then(|root| root.text_of("UploadId").map(str::to_owned));
        let id = id.ok_or_else(|| call.malformed("no upload id"))?;
        if let Err(error) = call.check_encryption(&response.headers) {
            self.abort_multipart_upload(bucket, key, &id).await.ok();
            return Err(error);
        }
        Ok(id)
    }

    /// Sends one part.
    pub(crate) async fn upload_part(
        &self,
        bucket: &str,
        key: &str,
        upload_id: &str,
        number: u32,
        body: Payload,
        crc32: u32,
    ) -> Result<Part, Error> {
        let size = body.len();
        let call = Call::new("UploadPart", Method::PUT, bucket, Some(key))?
            .part(number)
            .query("partNumber", &number.to_string())
            .query("uploadId", upload_id)
            .checksum(CRC32_HEADER, &crc32_text(crc32))?
            .body(body)
            .when_late(WhenLate::SendAgain);
        let response = self.execute(&call).await?;
        let etag = header(&response.headers, "etag").ok_or_else(|| call.malformed("no ETag"))?;
        Ok(Part { number, etag: etag.to_owned(), crc32: Some(crc32), size })
    }

    /// Makes the object of its parts, which are in order; `crc32` is that of the whole, where it is known. Returns its ETag,
    /// where the service says one.
    pub(crate) async fn complete_multipart_upload(
        &self,
        bucket: &str,
        key: &str,
        upload_id: &str,
        parts: &[Part],
        crc32: Option<u32>,
    ) -> Result<Option<String>, Error> {
        let completed = self.complete_of(bucket, key, upload_id, parts, crc32).await;
        let Err(error) = completed.as_ref() else { return completed };
        if error.code() != Some("InvalidPart") {
            return completed;
        }
        match self.as_stored(bucket, key, upload_id, parts).await {
            Some(parts) => self.complete_of(bucket, key, upload_id, &parts, crc32).await,
            None => completed,
        }
    }

    /// The same parts with the ETags that the service has for them now. A part that was sent twice has that of the request that was
    /// carried out last, and not every ETag is a digest. `None` where it holds other bytes, or nothing else than what was said.
    async fn as_stored(&self, bucket: &str, key: &str, upload_id: &str, parts: &[Part]) -> Option<Vec<Part>> {
        let stored = self.list_parts(bucket, key, upload_id).await.ok()?;
        let stored: HashMap<u32, UploadedPart> = stored.into_iter().map(|part| (part.number, part)).collect();
        let mut are_others = false;
        let parts = parts.iter().map(|part| {
            let found = stored.get(&part.number).filter(|found| found.size == part.size)?;
            let is_same = part.crc32.zip(found.crc32).is_some_and(|(sent, kept)| sent == kept);
            let etag = found.etag.as_ref().filter(|etag| is_same || **etag == part.etag)?;
            are_others |= *etag != part.etag;
            Some(Part { etag: etag.clone(), ..part.clone() })
        });
        let parts: Option<Vec<Part>> = parts.collect();
        parts.filter(|_| are_others)
    }

    async fn complete_of(
        &self,
        bucket: &str,
        key: &str,
        upload_id: &str,
        parts: &[Part],
        crc32: Option<u32>,
    ) -> Result<Option<String>, Error> {
        let mut call = Call::new("CompleteMultipartUpload", Method::POST, bucket, Some(key))?
            .when_late(WhenLate::SendAgain)
            .query("uploadId", upload_id)
            .checksum("x-amz-checksum-type", "FULL_OBJECT")?
            .document(list_of(parts, true))?
            .document_without_checksums(list_of(parts, false));
        if let Some(crc32) = crc32 {
            call = call.checksum(CRC32_HEADER, &crc32_text(crc32))?;
        }
        let mut operation = Operation::default();
        match self.execute_as(&call, &mut operation).await {
            Ok(response) => {
                let root = xml::parse(&response.body).ok();
                Ok(root.and_then(|root| root.text_of("ETag").map(str::to_owned)))
            }
            // An earlier attempt whose response was lost may have done it: then the upload is gone, and the object
            // tells.
            Err(error) if error.kind() == ErrorKind::NotFound && operation.ambiguous() => {
                let size: u64 = parts.iter().map(|part| part.size).sum();
                match self.head_checksum(bucket, key).await {
                    Ok((info, kept))
                        if info.size == size && (kept.is_none() || crc32.is_none() || kept == crc32) =>
                    {
                        Ok(info.etag)
                    }
                    Ok(_) => Err(error.with_maybe_applied(false)),
                    Err(_) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Gives up a multipart upload and frees its parts; one that does not exist counts as given up.
    ///
    /// # Errors
    /// All kinds that a request can end with.
    pub async fn abort_multipart_upload(
        &self,
        bucket: &str,
        key: &str,
        upload_id: &str,
    ) -> Result<(), Error> {
        let call = Call::new("AbortMultipartUpload", Method::DELETE, bucket, Some(key))?
            .query("uploadId", upload_id);
        match self.execute(&call).await {
            Err(error) if error.kind() == ErrorKind::NotFound && error.code() != Some("NoSuchBucket") => {
                Ok(())
            }
            other => other.map(drop),
        }
    }
}

/// The parts as CompleteMultipartUpload names them.
fn list_of(parts: &[Part], checksums: bool) -> String {
    let mut document =
        String::from(r#"<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">"#);
    for part in parts {
        document.push_str("<Part>");
        xml::push_text(&mut document, "PartNumber", &part.number.to_string());
        xml::push_text(&mut document, "ETag", &part.etag);
        if let Some(crc32) = part.crc32.filter(|_| checksums) {
            xml::push_text(&mut document, "ChecksumCRC32", &crc32_text(crc32));
        }
        document.push_str("</Part>");
    }
    document.push_str("</CompleteMultipartUpload>");
    document
}
