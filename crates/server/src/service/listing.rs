//! Listing objects, in both versions of the operation.

use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::{self, *};
use s3s::{S3Request, S3Result, s3_error};

use super::Service;
use crate::directory;
use crate::list::{self, Page, Query};
use crate::object::Object;

const MAX_KEYS: i32 = 1000;

/// What `encoding-type=url` leaves as it is.
const UNESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// How names are written into the response: as they are, or escaped when the client asks for it.
#[derive(Clone, Copy)]
pub(super) struct Encoder(bool);

impl Encoder {
    pub(super) fn new(encoding: Option<&EncodingType>) -> S3Result<Self> {
        match encoding.map(EncodingType::as_str) {
            None => Ok(Self(false)),
            Some(EncodingType::URL) => Ok(Self(true)),
            Some(_) => Err(s3_error!(InvalidArgument, "Invalid Encoding Method specified in Request")),
        }
    }

    pub(super) fn encode(self, name: &str) -> String {
        if self.0 { utf8_percent_encode(name, UNESCAPED).to_string() } else { name.to_owned() }
    }

    pub(super) fn prefixes(self, prefixes: &[String]) -> Vec<CommonPrefix> {
        prefixes.iter().map(|prefix| CommonPrefix { prefix: Some(self.encode(prefix)) }).collect()
    }

    fn objects(self, objects: &[(String, Arc<Object>)]) -> Vec<dto::Object> {
        objects
            .iter()
            .map(|(key, object)| dto::Object {
                checksum_algorithm: object
                    .checksum
                    .as_ref()
                    .map(|checksum| vec![ChecksumAlgorithm::from_static(checksum.algorithm().name())]),
                checksum_type: object
                    .checksum
                    .as_ref()
                    .map(|checksum| ChecksumType::from_static(checksum.kind())),
                e_tag: Some(ETag::Strong(object.etag.clone())),
                key: Some(self.encode(key)),
                last_modified: Some(object.modified.into()),
                size: i64::try_from(object.size).ok(),
                storage_class: Some(object.metadata.storage_class.clone().map_or(
                    ObjectStorageClass::from_static(ObjectStorageClass::STANDARD),
                    ObjectStorageClass::from,
                )),
                ..Default::default()
            })
            .collect()
    }
}

/// The page size asked for, within S3's bounds.
pub(super) fn limit(asked: Option<i32>, name: &str) -> S3Result<(i32, usize)> {
    let limit = asked.unwrap_or(MAX_KEYS).min(MAX_KEYS);
    let count = usize::try_from(limit)
        .map_err(|_| s3_error!(InvalidArgument, "Argument {name} must not be negative"))?;
    Ok((limit, count))
}

impl Service {
    fn page(&self, name: &str, query: &Query<'_>) -> S3Result<Page<Arc<Object>>> {
        let mut index = self.store.lock();
        let bucket = index.bucket(name)?;
        if directory::is_directory(name) {
            let unfinished = bucket.uploads.keys().map(|(key, _)| key.as_str());
            return Ok(list::list_unordered(&bucket.objects, unfinished, query, directory::place));
        }
        Ok(list::list(&bucket.objects, query))
    }

    pub(super) async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<ListObjectsV2Output> {
        let input = request.input;
        if directory::is_directory(&input.bucket) {
            directory::check_listing(
                input.prefix.as_deref().unwrap_or_default(),
                input.delimiter.as_deref(),
            )?;
            if input.start_after.is_some() {
                return Err(directory::not_supported());
            }
        }
        let encoder = Encoder::new(input.encoding_type.as_ref())?;
        let (max_keys, limit) = limit(input.max_keys, "max-keys")?;
        let resumed = input.continuation_token.as_deref().map(read_token).transpose()?;
        let page = self.page(
            &input.bucket,
            &Query {
                prefix: input.prefix.as_deref().unwrap_or_default(),
                delimiter: input.delimiter.as_deref().unwrap_or_default(),
                after: resumed.as_deref().or(input.start_after.as_deref()),
                after_covers_prefix: resumed.is_some(),
                limit,
            },
        )?;
        Ok(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(encoder.encode(input.prefix.as_deref().unwrap_or_default())),
            max_keys: Some(max_keys),
            key_count: i32::try_from(page.len()).ok(),
            continuation_token: input.continuation_token,
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.as_deref().map(write_token),
            contents: Some(encoder.objects(&page.objects)),
            common_prefixes: Some(encoder.prefixes(&page.prefixes)),
            delimiter: input.delimiter.as_deref().map(|delimiter| encoder.encode(delimiter)),
            encoding_type: input.encoding_type,
            start_after: input.start_after.as_deref().map(|start| encoder.encode(start)),
            ..Default::default()
        })
    }

    pub(super) async fn list_objects(
        &self,
        request: S3Request<ListObjectsInput>,
    ) -> S3Result<ListObjectsOutput> {
        let input = request.input;
        let encoder = Encoder::new(input.encoding_type.as_ref())?;
        let (max_keys, limit) = limit(input.max_keys, "max-keys")?;
        let page = self.page(
            &input.bucket,
            &Query {
                prefix: input.prefix.as_deref().unwrap_or_default(),
                delimiter: input.delimiter.as_deref().unwrap_or_default(),
                after: input.marker.as_deref(),
                after_covers_prefix: true,
                limit,
            },
        )?;
        Ok(ListObjectsOutput {
            name: Some(input.bucket),
            prefix: Some(encoder.encode(input.prefix.as_deref().unwrap_or_default())),
            marker: Some(encoder.encode(input.marker.as_deref().unwrap_or_default())),
            max_keys: Some(max_keys),
            is_truncated: Some(page.next.is_some()),
            contents: Some(encoder.objects(&page.objects)),
            common_prefixes: Some(encoder.prefixes(&page.prefixes)),
            // Without a delimiter a client takes the last key for the next marker.
            next_marker: page
                .next
                .as_deref()
                .filter(|_| input.delimiter.is_some())
                .map(|next| encoder.encode(next)),
            delimiter: input.delimiter.as_deref().map(|delimiter| encoder.encode(delimiter)),
            encoding_type: input.encoding_type,
            ..Default::default()
        })
    }
}

/// A continuation token is the last name of its page, made opaque.
fn write_token(name: &str) -> String {
    base64_simd::URL_SAFE_NO_PAD.encode_to_string(name)
}

fn read_token(token: &str) -> S3Result<String> {
    base64_simd::URL_SAFE_NO_PAD
        .decode_to_vec(token)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| s3_error!(InvalidArgument, "The continuation token provided is incorrect"))
}
