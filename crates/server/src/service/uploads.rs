//! Operations on multipart uploads.

use s3s::dto::{self, *};
use s3s::{S3Request, S3Result, s3_error};

use super::Service;
use super::listing::{Encoder, limit};
use super::objects::{metadata_of, read_condition, source_of, stored_class};
use crate::checksum::{Algorithm, Digest, checksums_of, set_checksum};
use crate::conditions::WriteCondition;
use crate::directory;
use crate::multipart::{Completion, ListedPart, check_part_number};
use crate::object;
use crate::receive::Announced;
use crate::upload::{Part, UploadChecksum};

impl Service {
    pub(super) async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<CreateMultipartUploadOutput> {
        let input = request.input;
        let checksum = declared_checksum(input.checksum_algorithm.as_ref(), input.checksum_type.as_ref())?;
        let upload_id = self.store.create_upload(&input.bucket, &input.key, metadata_of!(input), checksum)?;
        Ok(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(upload_id),
            checksum_algorithm: checksum
                .map(|checksum| ChecksumAlgorithm::from_static(checksum.algorithm.name())),
            checksum_type: checksum.map(|checksum| ChecksumType::from_static(checksum.kind())),
            server_side_encryption: input.server_side_encryption,
            ..Default::default()
        })
    }

    pub(super) async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<UploadPartOutput> {
        let S3Request { input, headers, trailing_headers, .. } = request;
        check_part_number(input.part_number)?;
        let declared = self.declared(&input.bucket, &input.key, &input.upload_id)?;
        let checksums = checksums_of!(input);
        let mut announced =
            Announced::new(&headers, input.content_length, input.content_md5.as_deref(), &checksums)?;
        announced.wanted = match declared {
            Some(declared) => Some(declared),
            None => {
                input.checksum_algorithm.as_ref().map(|name| Algorithm::parse(name.as_str())).transpose()?
            }
        };
        let algorithm = announced.algorithm();
        if let (Some(declared), Some(given)) = (declared, algorithm)
            && declared != given
        {
            return Err(s3_error!(
                InvalidRequest,
                "Checksum Type mismatch occurred, expected checksum Type: {}, actual checksum Type: {}",
                declared.name().to_ascii_lowercase(),
                given.name().to_ascii_lowercase()
            ));
        }
        let received = self.receive(input.body, announced, trailing_headers).await?;
        let digest = algorithm.and_then(|algorithm| received.digest(algorithm)).cloned();
        let part = Part {
            etag: self.store.etag(&input.bucket, received.md5.as_ref()),
            size: received.size,
            modified: object::now(),
            digest: digest.clone(),
            md5: received.md5,
            segments: received.segments,
        };
        let mut output =
            UploadPartOutput { e_tag: Some(ETag::Strong(part.etag.clone())), ..Default::default() };
        if let Some(digest) = digest {
            set_checksum!(output, digest.algorithm, digest);
        }
        self.store.put_part(&input.bucket, &input.key, &input.upload_id, input.part_number, part)?;
        Ok(output)
    }

    /// The algorithm an upload was created for, or an error where there is no such upload.
    fn declared(&self, bucket: &str, key: &str, upload_id: &str) -> S3Result<Option<Algorithm>> {
        self.store
            .with_upload(bucket, key, upload_id, |upload| upload.checksum.map(|checksum| checksum.algorithm))
    }

    pub(super) async fn upload_part_copy(
        &self,
        request: S3Request<UploadPartCopyInput>,
    ) -> S3Result<UploadPartCopyOutput> {
        let input = request.input;
        check_part_number(input.part_number)?;
        let declared = self.declared(&input.bucket, &input.key, &input.upload_id)?;
        let (source_bucket, source_key) = source_of(&input.copy_source)?;
        let source = self.store.get(source_bucket, source_key)?;
        read_condition(
            input.copy_source_if_match.clone(),
            input.copy_source_if_none_match.clone(),
            input.copy_source_if_modified_since.clone(),
            input.copy_source_if_unmodified_since.clone(),
        )
        .check_source(&source)?;
        let (start, size) = match &input.copy_source_range {
            None => (0, source.size),
            Some(range) => copied_range(range, source.size)?,
        };
        let segments = object::slice(&source.segments, start, size);
        let digest = match declared {
            Some(algorithm) => Some(self.digest_of(segments.clone(), algorithm).await?),
            None => None,
        };
        let part = Part {
            etag: self.store.etag(&input.bucket, None),
            size,
            modified: object::now(),
            digest: digest.clone(),
            md5: None,
            segments,
        };
        let mut result = CopyPartResult {
            e_tag: Some(ETag::Strong(part.etag.clone())),
            last_modified: Some(part.modified.into()),
            ..Default::default()
        };
        if let Some(digest) = digest {
            set_checksum!(result, digest.algorithm, digest);
        }
        self.store.put_part(&input.bucket, &input.key, &input.upload_id, input.part_number, part)?;
        Ok(UploadPartCopyOutput { copy_part_result: Some(result), ..Default::default() })
    }

    pub(super) async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<CompleteMultipartUploadOutput> {
        let input = request.input;
        let listed =
            input.multipart_upload.as_ref().and_then(|upload| upload.parts.as_deref()).unwrap_or_default();
        let completion = Completion {
            parts: listed.iter().map(listed_part).collect::<S3Result<_>>()?,
            condition: WriteCondition::new(input.if_match.clone(), input.if_none_match.clone())?,
            checksum: checksums_of!(input)
                .first()
                .map(|(algorithm, value)| (*algorithm, (*value).to_owned())),
            size: input.mpu_object_size.and_then(|size| u64::try_from(size).ok()),
        };
        let object = self.store.complete_upload(&input.bucket, &input.key, &input.upload_id, &completion)?;
        let mut output = CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, input.key)),
            bucket: Some(input.bucket),
            key: Some(input.key),
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

    pub(super) async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<AbortMultipartUploadOutput> {
        let input = request.input;
        self.store.abort_upload(&input.bucket, &input.key, &input.upload_id)?;
        Ok(AbortMultipartUploadOutput::default())
    }

    pub(super) async fn list_parts(&self, request: S3Request<ListPartsInput>) -> S3Result<ListPartsOutput> {
        let input = request.input;
        let (max_parts, limit) = limit(input.max_parts, "max-parts")?;
        let after = input.part_number_marker.unwrap_or(0);
        let (checksum, mut parts) =
            self.store.with_upload(&input.bucket, &input.key, &input.upload_id, |upload| {
                let parts = upload.parts.range(after.saturating_add(1)..).take(limit.saturating_add(1));
                (upload.checksum, parts.map(|(number, part)| listed(*number, part)).collect::<Vec<_>>())
            })?;
        let truncated = parts.len() > limit;
        parts.truncate(limit);
        let storage_class = Some(class_of(&input.bucket));
        Ok(ListPartsOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            checksum_algorithm: checksum
                .map(|checksum| ChecksumAlgorithm::from_static(checksum.algorithm.name())),
            checksum_type: checksum.map(|checksum| ChecksumType::from_static(checksum.kind())),
            is_truncated: Some(truncated),
            max_parts: Some(max_parts),
            part_number_marker: Some(after),
            next_part_number_marker: parts.last().and_then(|part| part.part_number),
            parts: Some(parts),
            storage_class,
            ..Default::default()
        })
    }

    pub(super) async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<ListMultipartUploadsOutput> {
        let input = request.input;
        if input.delimiter.is_some() {
            return Err(s3_error!(NotImplemented, "Uploads cannot be listed with a delimiter"));
        }
        let encoder = Encoder::new(input.encoding_type.as_ref())?;
        let (max_uploads, limit) = limit(input.max_uploads, "max-uploads")?;
        let prefix = input.prefix.as_deref().unwrap_or_default();
        let key_marker = input.key_marker.as_deref().unwrap_or_default();
        let id_marker = input.upload_id_marker.as_deref().unwrap_or_default();
        let is_directory = directory::is_directory(&input.bucket);
        if is_directory {
            directory::check_listing(prefix, None)?;
        }
        let mut index = self.store.lock();
        let below =
            index.bucket(&input.bucket)?.uploads.iter().filter(|((key, _), _)| key.starts_with(prefix));
        let mut matching: Vec<_> = if is_directory {
            // The marker is the id of the last upload, which tells nothing of its key.
            let place = |id: &str| (directory::place(id), id.to_owned());
            let mut later: Vec<_> =
                below.filter(|((_, id), _)| key_marker.is_empty() || place(id) > place(key_marker)).collect();
            later.sort_unstable_by_key(|((_, id), _)| place(id));
            later
        } else {
            below
                .filter(|((key, id), _)| {
                    key.as_str() > key_marker
                        || (key == key_marker && !id_marker.is_empty() && id.as_str() > id_marker)
                })
                .collect()
        };
        let truncated = limit > 0 && matching.len() > limit;
        matching.truncate(limit);
        let page = matching;
        let last = page.last().filter(|_| truncated).map(|((key, id), _)| match is_directory {
            true => (id.clone(), None),
            false => (encoder.encode(key), Some(id.clone())),
        });
        let uploads = page
            .iter()
            .map(|((key, id), upload)| MultipartUpload {
                checksum_algorithm: upload
                    .checksum
                    .map(|c| ChecksumAlgorithm::from_static(c.algorithm.name())),
                checksum_type: upload.checksum.map(|checksum| ChecksumType::from_static(checksum.kind())),
                initiated: Some(upload.initiated.into()),
                key: Some(encoder.encode(key)),
                upload_id: Some(id.clone()),
                storage_class: Some(class_of(&input.bucket)),
                ..Default::default()
            })
            .collect();
        drop(index);
        Ok(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            is_truncated: Some(truncated),
            max_uploads: Some(max_uploads),
            prefix: Some(encoder.encode(prefix)),
            key_marker: Some(encoder.encode(key_marker)),
            upload_id_marker: input.upload_id_marker.clone(),
            next_key_marker: last.as_ref().map(|(key, _)| key.clone()),
            next_upload_id_marker: last.and_then(|(_, id)| id),
            encoding_type: input.encoding_type,
            uploads: Some(uploads),
            ..Default::default()
        })
    }
}

fn class_of(bucket: &str) -> StorageClass {
    StorageClass::from(stored_class(bucket, None).unwrap_or_else(|| StorageClass::STANDARD.to_owned()))
}

/// The checksum that an upload is created for. CRC-64/NVME is always of the whole object, the SHA family never.
fn declared_checksum(
    algorithm: Option<&ChecksumAlgorithm>,
    kind: Option<&ChecksumType>,
) -> S3Result<Option<UploadChecksum>> {
    let Some(algorithm) = algorithm.map(|name| Algorithm::parse(name.as_str())).transpose()? else {
        return match kind {
            None => Ok(None),
            Some(_) => Err(s3_error!(
                InvalidRequest,
                "The x-amz-checksum-type header needs x-amz-checksum-algorithm"
            )),
        };
    };
    let composite = match kind.map(ChecksumType::as_str) {
        None => algorithm != Algorithm::Crc64Nvme,
        Some(ChecksumType::COMPOSITE) => true,
        Some(ChecksumType::FULL_OBJECT) => false,
        Some(_) => return Err(s3_error!(InvalidRequest, "Value for x-amz-checksum-type header is invalid.")),
    };
    if (composite && algorithm == Algorithm::Crc64Nvme) || (!composite && !algorithm.combines()) {
        return Err(s3_error!(
            InvalidRequest,
            "The {} checksum type cannot be used with the {} checksum algorithm.",
            if composite { ChecksumType::COMPOSITE } else { ChecksumType::FULL_OBJECT },
            algorithm.name().to_ascii_lowercase()
        ));
    }
    Ok(Some(UploadChecksum { algorithm, composite }))
}

fn listed_part(part: &CompletedPart) -> S3Result<ListedPart> {
    let number = part.part_number.ok_or_else(|| s3_error!(MalformedXML, "A part has no number"))?;
    let digest =
        checksums_of!(part).first().map(|(algorithm, value)| Digest::parse(*algorithm, value)).transpose()?;
    Ok(ListedPart { number, etag: part.e_tag.as_ref().map(|etag| etag.value().to_owned()), digest })
}

fn listed(number: i32, part: &Part) -> dto::Part {
    let mut listed = dto::Part {
        e_tag: Some(ETag::Strong(part.etag.clone())),
        last_modified: Some(part.modified.into()),
        part_number: Some(number),
        size: i64::try_from(part.size).ok(),
        ..Default::default()
    };
    if let Some(digest) = &part.digest {
        set_checksum!(listed, digest.algorithm, digest);
    }
    listed
}

/// Start and size of `bytes=<first>-<last>`, which must lie inside the source.
fn copied_range(range: &str, source_size: u64) -> S3Result<(u64, u64)> {
    match dto::Range::parse(range) {
        Ok(dto::Range::Int { first, last: Some(last) }) if last < source_size => {
            Ok((first, last - first + 1))
        }
        _ => Err(s3_error!(
            InvalidArgument,
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based offsets of the first and last bytes to copy, inside the source"
        )),
    }
}
