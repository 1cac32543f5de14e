//! Operations on single objects, and the deletion of many.

use std::future::poll_fn;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use s3s::dto::{self, *};
use s3s::{S3Error, S3Request, S3Result, TrailingHeaders, s3_error};

use super::Service;
use crate::checksum::{Algorithm, Digest, Hasher, ObjectChecksum, checksums_of, set_checksum};
use crate::conditions::{ReadCondition, WriteCondition};
use crate::directory;
use crate::http_service::OBJECT_SIZE_HEADER;
use crate::object::{self, Metadata, Object, Segment};
use crate::receive::{self, Announced, Received};
use crate::send::Sender;
use crate::stats::Counters;

/// The part of an object that a request asks for.
struct Selection {
    start: u64,
    size: u64,
    /// Whether it was asked for, so that the response is partial content.
    partial: bool,
}

impl Selection {
    fn new(object: &Object, range: Option<&dto::Range>, part_number: Option<i32>) -> S3Result<Self> {
        match (range, part_number) {
            (Some(_), Some(_)) => Err(s3_error!(
                InvalidRequest,
                "Cannot specify both Range header and partNumber query parameter"
            )),
            (None, None) => Ok(Self { start: 0, size: object.size, partial: false }),
            (Some(range), None) => {
                let found = range.check(object.size).map_err(|_| invalid_range(object.size))?;
                Ok(Self { start: found.start, size: found.end - found.start, partial: true })
            }
            (None, Some(number)) => Self::part(object, number),
        }
    }

    fn part(object: &Object, number: i32) -> S3Result<Self> {
        crate::multipart::check_part_number(number)?;
        let position = number as usize - 1;
        if object.parts.is_empty() && position == 0 {
            return Ok(Self { start: 0, size: object.size, partial: object.size > 0 });
        }
        let part = object.parts.get(position).ok_or_else(|| {
            let mut error = S3Error::with_message(
                s3s::S3ErrorCode::from_bytes(b"InvalidPartNumber").unwrap_or(s3s::S3ErrorCode::InvalidRange),
                "The requested partnumber is not satisfiable",
            );
            error.set_status_code(http::StatusCode::RANGE_NOT_SATISFIABLE);
            error
        })?;
        let start = object.parts[..position].iter().map(|part| part.size).sum();
        Ok(Self { start, size: part.size, partial: part.size > 0 })
    }

    fn content_range(&self, object: &Object) -> Option<String> {
        let Self { start, size, partial } = *self;
        (partial && size > 0).then(|| format!("bytes {start}-{}/{}", start + size - 1, object.size))
    }
}

/// Puts what is stored with an object into a response; GetObject and HeadObject have these fields alike.
macro_rules! describe {
    ($output:expr, $object:expr, $selection:expr, $part_number:expr, $checksum_mode:expr) => {{
        let (output, object, selection) = (&mut $output, &$object, &$selection);
        output.accept_ranges = Some("bytes".to_owned());
        output.cache_control = object.metadata.cache_control.clone();
        output.content_disposition = object.metadata.content_disposition.clone();
        output.content_encoding = object.metadata.content_encoding.clone();
        output.content_language = object.metadata.content_language.clone();
        output.content_length = i64::try_from(selection.size).ok();
        output.content_range = selection.content_range(object);
        output.content_type =
            Some(object.metadata.content_type.clone().unwrap_or_else(|| "binary/octet-stream".to_owned()));
        output.e_tag = Some(ETag::Strong(object.etag.clone()));
        output.last_modified = Some(object.modified.into());
        output.metadata =
            (!object.metadata.user.is_empty()).then(|| object.metadata.user.clone().into_iter().collect());
        output.parts_count =
            $part_number.filter(|_| !object.parts.is_empty()).map(|_| object.parts.len() as i32);
        output.server_side_encryption =
            object.metadata.server_side_encryption.clone().map(ServerSideEncryption::from);
        output.storage_class = object.metadata.storage_class.clone().map(StorageClass::from);
        // The checksum is that of the whole object, so a part of it comes without.
        if $checksum_mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED)
            && !selection.partial
            && let Some(checksum) = &object.checksum
        {
            set_checksum!(output, checksum.algorithm(), checksum);
            output.checksum_type = Some(ChecksumType::from_static(checksum.kind()));
        }
    }};
}

/// Says how large the object is, which clients read to tell an empty object from a wrong range.
fn invalid_range(size: u64) -> S3Error {
    let mut error = s3_error!(InvalidRange, "The requested range is not satisfiable");
    let mut headers = HeaderMap::new();
    headers.insert(OBJECT_SIZE_HEADER, HeaderValue::from(size));
    error.set_headers(headers);
    error
}

/// The headers of a new object; PutObject, CopyObject and CreateMultipartUpload have these fields alike.
macro_rules! metadata_of {
    ($input:expr) => {
        $crate::object::Metadata {
            content_type: $input.content_type.clone(),
            content_encoding: $crate::service::objects::stored_encoding($input.content_encoding.as_deref()),
            content_language: $input.content_language.clone(),
            content_disposition: $input.content_disposition.clone(),
            cache_control: $input.cache_control.clone(),
            storage_class: $crate::service::objects::stored_class(
                &$input.bucket,
                $input.storage_class.as_ref().map(|class| class.as_str()),
            ),
            server_side_encryption: $input.server_side_encryption.as_ref().map(|sse| sse.as_str().to_owned()),
            user: $input.metadata.clone().unwrap_or_default().into_iter().collect(),
        }
    };
}

pub(super) use metadata_of;

/// Directory buckets have one storage class, and name it.
pub(super) fn stored_class(bucket: &str, given: Option<&str>) -> Option<String> {
    given.or(directory::is_directory(bucket).then_some(directory::STORAGE_CLASS)).map(str::to_owned)
}

/// `aws-chunked` is how the body travelled, not what it is.
pub(super) fn stored_encoding(header: Option<&str>) -> Option<String> {
    let kept: Vec<&str> = header?.split(',').map(str::trim).filter(|name| *name != "aws-chunked").collect();
    (!kept.is_empty() && kept != [""]).then(|| kept.join(", "))
}

impl Service {
    pub(super) async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<GetObjectOutput> {
        let input = request.input;
        let object = self.store.get(&input.bucket, &input.key)?;
        read_condition(
            input.if_match,
            input.if_none_match,
            input.if_modified_since,
            input.if_unmodified_since,
        )
        .check(&object)?;
        let selection = Selection::new(&object, input.range.as_ref(), input.part_number)?;
        let mut output = GetObjectOutput::default();
        describe!(output, object, selection, input.part_number, input.checksum_mode);
        let segments = object::slice(&object.segments, selection.start, selection.size);
        let sender = self.open(segments, &self.counters).await?;
        output.body = Some(StreamingBlob::new(sender));
        Ok(output)
    }

    pub(super) async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<HeadObjectOutput> {
        let input = request.input;
        let object = self.store.get(&input.bucket, &input.key)?;
        read_condition(
            input.if_match,
            input.if_none_match,
            input.if_modified_since,
            input.if_unmodified_since,
        )
        .check(&object)?;
        let selection = Selection::new(&object, input.range.as_ref(), input.part_number)?;
        let mut output = HeadObjectOutput::default();
        describe!(output, object, selection, input.part_number, input.checksum_mode);
        Ok(output)
    }

    pub(super) async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<PutObjectOutput> {
        let S3Request { input, headers, trailing_headers, .. } = request;
        let condition = WriteCondition::new(input.if_match.clone(), input.if_none_match.clone())?;
        self.store.check_write(&input.bucket, &input.key)?;
        let checksums = checksums_of!(input);
        let mut announced =
            Announced::new(&headers, input.content_length, input.content_md5.as_deref(), &checksums)?;
        announced.wanted =
            input.checksum_algorithm.as_ref().map(|name| Algorithm::parse(name.as_str())).transpose()?;
        let algorithm = announced.algorithm();
        let metadata = metadata_of!(input);
        let received = self.receive(input.body, announced, trailing_headers).await?;

        let checksum =
            algorithm.and_then(|algorithm| received.digest(algorithm)).cloned().map(ObjectChecksum::full);
        let object = Object {
            etag: self.store.etag(&input.bucket, received.md5.as_ref()),
            size: received.size,
            modified: object::now(),
            metadata,
            checksum,
            parts: Vec::new(),
            segments: received.segments,
        };
        let object = self.store.put(&input.bucket, &input.key, object, &condition)?;
        let mut output = PutObjectOutput {
            e_tag: Some(ETag::Strong(object.etag.clone())),
            server_side_encryption: object
                .metadata
                .server_side_encryption
                .clone()
                .map(ServerSideEncryption::from),
            ..Default::default()
        };
        if let Some(checksum) = &object.checksum {
            set_checksum!(output, checksum.algorithm(), checksum);
            output.checksum_type = Some(ChecksumType::from_static(checksum.kind()));
        }
        Ok(output)
    }

    pub(super) async fn receive(
        &self,
        body: Option<StreamingBlob>,
        mut announced: Announced,
        trailing: Option<TrailingHeaders>,
    ) -> S3Result<Received> {
        announced.md5 |= self.md5_etags;
        receive::receive(body, &self.store, announced, trailing, &self.counters).await
    }

    pub(super) async fn copy_object(
        &self,
        request: S3Request<CopyObjectInput>,
    ) -> S3Result<CopyObjectOutput> {
        let input = request.input;
        let (source_bucket, source_key) = source_of(&input.copy_source)?;
        let source = self.store.get(source_bucket, source_key)?;
        read_condition(
            input.copy_source_if_match.clone(),
            input.copy_source_if_none_match.clone(),
            input.copy_source_if_modified_since.clone(),
            input.copy_source_if_unmodified_since.clone(),
        )
        .check_source(&source)?;
        let replace =
            input.metadata_directive.as_ref().is_some_and(|d| d.as_str() == MetadataDirective::REPLACE);
        let given = metadata_of!(input);
        if !replace
            && source_bucket == input.bucket
            && source_key == input.key
            && given.storage_class.is_none()
            && given.server_side_encryption.is_none()
        {
            return Err(s3_error!(
                InvalidRequest,
                "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes."
            ));
        }
        let wanted =
            input.checksum_algorithm.as_ref().map(|name| Algorithm::parse(name.as_str())).transpose()?;
        let object = Object {
            etag: self.store.etag(&input.bucket, None),
            size: source.size,
            modified: object::now(),
            metadata: if replace { given } else { copied_metadata(&source.metadata, given) },
            checksum: self.copied_checksum(&source, wanted).await?,
            parts: Vec::new(),
            segments: source.segments.clone(),
        };
        let object = self.store.put(&input.bucket, &input.key, object, &WriteCondition::default())?;
        let mut result = CopyObjectResult {
            e_tag: Some(ETag::Strong(object.etag.clone())),
            last_modified: Some(object.modified.into()),
            ..Default::default()
        };
        if let Some(checksum) = &object.checksum {
            set_checksum!(result, checksum.algorithm(), checksum);
            result.checksum_type = Some(ChecksumType::from_static(checksum.kind()));
        }
        let server_side_encryption =
            object.metadata.server_side_encryption.clone().map(ServerSideEncryption::from);
        Ok(CopyObjectOutput {
            copy_object_result: Some(result),
            server_side_encryption,
            ..Default::default()
        })
    }

    /// The copy is one piece, whatever its source was, so its checksum is that of the whole object.
    async fn copied_checksum(
        &self,
        source: &Object,
        wanted: Option<Algorithm>,
    ) -> S3Result<Option<ObjectChecksum>> {
        let Some(algorithm) = wanted.or(source.checksum.as_ref().map(ObjectChecksum::algorithm)) else {
            return Ok(None);
        };
        match &source.checksum {
            Some(checksum)
                if checksum.algorithm() == algorithm && checksum.kind() == ChecksumType::FULL_OBJECT =>
            {
                Ok(Some(checksum.clone()))
            }
            _ => Ok(Some(ObjectChecksum::full(self.digest_of(source.segments.clone(), algorithm).await?))),
        }
    }

    pub(super) async fn digest_of(&self, segments: Vec<Segment>, algorithm: Algorithm) -> S3Result<Digest> {
        let mut hasher = Hasher::new(algorithm);
        let mut sender = self.open(segments, &Arc::default()).await?;
        while let Some(bytes) = poll_fn(|cx| sender.poll_bytes(cx)).await {
            hasher.update(&bytes.map_err(|error| self.store.failure(&error))?);
        }
        Ok(hasher.finish())
    }

    async fn open(&self, segments: Vec<Segment>, counters: &Arc<Counters>) -> S3Result<Sender> {
        Sender::open(segments, Arc::clone(counters)).await.map_err(|error| self.store.failure(&error))
    }

    pub(super) async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<DeleteObjectOutput> {
        let input = request.input;
        let condition = WriteCondition { if_match: input.if_match, if_none_match: None };
        self.store.delete(&input.bucket, &input.key, &condition)?;
        Ok(DeleteObjectOutput::default())
    }

    pub(super) async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<DeleteObjectsOutput> {
        let input = request.input;
        self.store.check_bucket(&input.bucket)?;
        if input.delete.objects.is_empty() || input.delete.objects.len() > 1000 {
            return Err(s3_error!(MalformedXML, "The request must name 1 to 1000 keys"));
        }
        let quiet = input.delete.quiet.unwrap_or(false);
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        for wanted in input.delete.objects {
            let if_match = wanted.e_tag.map(ETagCondition::ETag);
            match self.store.delete(
                &input.bucket,
                &wanted.key,
                &WriteCondition { if_match, if_none_match: None },
            ) {
                Ok(()) if quiet => {}
                Ok(()) => deleted.push(DeletedObject { key: Some(wanted.key), ..Default::default() }),
                Err(error) => errors.push(dto::Error {
                    code: Some(error.code().as_str().to_owned()),
                    key: Some(wanted.key),
                    message: error.message().map(str::to_owned),
                    version_id: None,
                }),
            }
        }
        Ok(DeleteObjectsOutput { deleted: Some(deleted), errors: Some(errors), request_charged: None })
    }
}

pub(super) fn read_condition(
    if_match: Option<ETagCondition>,
    if_none_match: Option<ETagCondition>,
    if_modified_since: Option<Timestamp>,
    if_unmodified_since: Option<Timestamp>,
) -> ReadCondition {
    ReadCondition { if_match, if_none_match, if_modified_since, if_unmodified_since }
}

/// The bucket and key a copy comes from.
pub(super) fn source_of(source: &CopySource) -> S3Result<(&str, &str)> {
    match source {
        CopySource::Bucket { bucket, key, .. } => Ok((bucket, key)),
        _ => Err(s3_error!(NotImplemented, "Only <bucket>/<key> can be copied from")),
    }
}

/// The source's headers, but for what the request says of how to store the copy.
fn copied_metadata(source: &Metadata, given: Metadata) -> Metadata {
    Metadata {
        storage_class: given.storage_class,
        server_side_encryption: given.server_side_encryption,
        ..source.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transport_encoding_is_not_stored() {
        assert_eq!(stored_encoding(Some("aws-chunked")), None);
        assert_eq!(stored_encoding(Some("gzip,aws-chunked")).as_deref(), Some("gzip"));
        assert_eq!(stored_encoding(Some("gzip")).as_deref(), Some("gzip"));
        assert_eq!(stored_encoding(Some("")), None);
        assert_eq!(stored_encoding(None), None);
    }
}
