//! Where checkpoints lie: a bucket, or the local file system. What lists, reads, copies and deletes them asks here.

pub(crate) mod disk;
pub(crate) mod writer;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use s3dcp_s3::{
    Client, DeleteFailure, Error, GetOutput, Listing, MultipartUpload, ObjectInfo, Payload, PutOptions,
    RangeRead, UploadedPart, WhenLate, parse_s3_uri,
};

use self::disk::Disk;
use crate::layout::Name;

/// A bucket with its client, or the local file system.
///
/// Keys of the file system are absolute paths without their first slash, so that names are resolved as in a bucket.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Storage {
    /// Objects of a bucket.
    Bucket {
        /// What asks for them.
        client: Client,
        /// The bucket.
        bucket: Arc<str>,
    },
    /// Files of this machine.
    Disk(Disk),
}

/// Who copies from one place to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopiedBy {
    /// The service, which the same client asks for both.
    Service,
    /// The service, unless it refuses: the destination's client has another region or other credentials, which may not read
    /// the source.
    ServiceIfItMay,
    /// This process, which reads and writes.
    Client,
}

impl Storage {
    /// A bucket.
    #[must_use]
    pub fn bucket(client: &Client, bucket: &str) -> Storage {
        Storage::Bucket { client: client.clone(), bucket: bucket.into() }
    }

    /// The place that a text names, and the key of its path: `s3://bucket/path`, or a local path, `file://` before it or not.
    /// `client` is asked for one where the text names a bucket.
    ///
    /// # Errors
    /// `Config` for a text that names neither; those of `client`.
    pub fn parse<E: From<Error>>(
        uri: &str,
        client: impl FnOnce() -> Result<Client, E>,
    ) -> Result<(Storage, String), E> {
        match uri.split_once("://") {
            None | Some(("file", _)) => Ok((Storage::Disk(Disk), disk::key_of(uri)?)),
            Some(_) => {
                let (bucket, path_key) = parse_s3_uri(uri)?;
                Ok((Storage::Bucket { client: client()?, bucket: bucket.into() }, path_key))
            }
        }
    }

    /// How a person writes the place of a key: `s3://bucket/key`, or `/path`.
    #[must_use]
    pub fn uri(&self, key: &str) -> String {
        match self {
            Storage::Bucket { bucket, .. } => format!("s3://{bucket}/{key}"),
            Storage::Disk(_) => format!("/{key}"),
        }
    }

    /// The error of the object of this key.
    pub(crate) fn at(&self, key: &str, error: Error) -> Error {
        match self {
            Storage::Bucket { bucket, .. } => error.with_bucket(&**bucket).with_key(key),
            Storage::Disk(_) => error.with_key(format!("/{key}")),
        }
    }

    /// Every object whose key starts with `prefix`; with a delimiter, only the first level below it.
    ///
    /// # Errors
    /// Those of [`Client::list_objects`], and of the file system.
    pub async fn list(&self, prefix: &str, delimiter: Option<&str>) -> Result<Listing, Error> {
        self.list_first(prefix, delimiter, usize::MAX).await
    }

    /// The first entries of the same.
    pub(crate) async fn list_first(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
        limit: usize,
    ) -> Result<Listing, Error> {
        match self {
            Storage::Bucket { client, bucket } => client.list_first(bucket, prefix, delimiter, limit).await,
            Storage::Disk(disk) => disk.list(prefix, delimiter.is_some(), limit),
        }
    }

    /// An object of at most `limit` bytes.
    pub(crate) async fn get(&self, key: &str, limit: u64) -> Result<GetOutput, Error> {
        match self {
            Storage::Bucket { client, bucket } => client.get_object_within(bucket, key, limit).await,
            Storage::Disk(disk) => disk.get(key, limit),
        }
    }

    pub(crate) async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, Error> {
        match self {
            Storage::Bucket { client, bucket } => client.get_range(bucket, key, range).await,
            Storage::Disk(disk) => disk.get_range(key, range),
        }
    }

    pub(crate) async fn head(&self, key: &str) -> Result<ObjectInfo, Error> {
        match self {
            Storage::Bucket { client, bucket } => client.head_object(bucket, key).await,
            Storage::Disk(disk) => disk.head(key),
        }
    }

    /// The same with the CRC-32 of the whole object, where a service keeps one.
    pub(crate) async fn head_checksum(&self, key: &str) -> Result<(ObjectInfo, Option<u32>), Error> {
        match self {
            Storage::Bucket { client, bucket } => client.head_checksum(bucket, key).await,
            Storage::Disk(disk) => Ok((disk.head(key)?, None)),
        }
    }

    /// The CRC-32 of a file, which is read for it; `None` of an object.
    pub(crate) fn read_checksum(&self, key: &str) -> Result<Option<u32>, Error> {
        match self {
            Storage::Bucket { .. } => Ok(None),
            Storage::Disk(disk) => disk.crc32(key).map(Some),
        }
    }

    /// Who copies from here to `other`.
    pub(crate) async fn copies_to(&self, other: &Storage) -> Result<CopiedBy, Error> {
        Ok(match (self, other) {
            (Storage::Bucket { client, .. }, Storage::Bucket { client: other, .. }) => {
                if client.is_same(other) {
                    CopiedBy::Service
                } else if client.is_of_same_service(other).await? {
                    CopiedBy::ServiceIfItMay
                } else {
                    CopiedBy::Client
                }
            }
            _ => CopiedBy::Client,
        })
    }

    /// Whether the keys of both are of one place.
    pub(crate) fn is_same_place(&self, other: &Storage) -> bool {
        match (self, other) {
            (
                Storage::Bucket { client, bucket },
                Storage::Bucket { client: other_client, bucket: other_bucket },
            ) => bucket == other_bucket && client.is_same(other_client),
            (Storage::Disk(_), Storage::Disk(_)) => true,
            _ => false,
        }
    }

    /// Feeds each range to its sink. No sink is written to after this has returned or was dropped.
    pub(crate) async fn download(&self, reads: Vec<RangeRead>) -> Result<(), Error> {
        match self {
            Storage::Bucket { client, bucket } => client.download(bucket, reads).await,
            Storage::Disk(disk) => disk.download(reads),
        }
    }

    /// Bytes that one range should have when `total` are to be read: see [`Client::range_size`].
    pub(crate) fn range_size(&self, total: u64, smallest: u64, requests_per_second: Option<f64>) -> u64 {
        match self {
            Storage::Bucket { client, .. } => client.range_size(total, smallest, requests_per_second),
            Storage::Disk(_) => smallest,
        }
    }

    pub(crate) async fn put(&self, key: &str, body: Bytes, options: &PutOptions) -> Result<(), Error> {
        match self {
            Storage::Bucket { client, bucket } => {
                client.put_object(bucket, key, Payload::from(body), options).await.map(drop)
            }
            Storage::Disk(disk) => disk.put(key, &body, options),
        }
    }

    /// Deletes an object while it has this ETag; one that does not exist counts as deleted.
    pub(crate) async fn delete_if(&self, key: &str, etag: Option<&str>) -> Result<(), Error> {
        match self {
            Storage::Bucket { client, bucket } => client.delete_object_if(bucket, key, etag).await,
            Storage::Disk(disk) => disk.delete_if(key, etag),
        }
    }

    /// Deletes objects; those that were refused.
    pub(crate) async fn delete(&self, keys: &[String]) -> Result<Vec<DeleteFailure>, Error> {
        match self {
            Storage::Bucket { client, bucket } => {
                // The names of shard files have the ids of their saves.
                let when_late = match keys.iter().all(|key| Name::of(key).is_own_shard_file()) {
                    true => WhenLate::SendAgain,
                    false => WhenLate::Wait,
                };
                client.delete_objects(bucket, keys, when_late).await
            }
            Storage::Disk(disk) => Ok(disk.delete(keys)),
        }
    }

    /// The multipart uploads under way for keys that start with `prefix`, or the files.
    pub(crate) async fn list_multipart_uploads(&self, prefix: &str) -> Result<Vec<MultipartUpload>, Error> {
        match self {
            Storage::Bucket { client, bucket } => client.list_multipart_uploads(bucket, prefix).await,
            Storage::Disk(disk) => {
                Ok(disk.unfinished(prefix)?.into_iter().map(|(upload, _)| upload).collect())
            }
        }
    }

    /// Whether this project began it. In a folder the name of the file under way tells it, whatever it becomes; of a bucket's upload
    /// no more is known than the key.
    pub(crate) fn is_own_upload(&self, upload: &MultipartUpload) -> bool {
        match self {
            Storage::Bucket { .. } => Name::of(&upload.key).is_own_shard_file(),
            Storage::Disk(_) => true,
        }
    }

    pub(crate) async fn list_parts(&self, upload: &MultipartUpload) -> Result<Vec<UploadedPart>, Error> {
        match self {
            Storage::Bucket { client, bucket } => {
                client.list_parts(bucket, &upload.key, &upload.upload_id).await
            }
            Storage::Disk(disk) => {
                let files = disk.unfinished(&upload.key)?.into_iter();
                let parts = files.filter(|(file, _)| file.upload_id == upload.upload_id);
                let part = |(file, size): (MultipartUpload, u64)| UploadedPart {
                    number: 1,
                    size,
                    last_modified: file.initiated,
                    etag: None,
                    crc32: None,
                };
                Ok(parts.map(part).collect())
            }
        }
    }

    pub(crate) async fn abort_multipart_upload(&self, key: &str, upload_id: &str) -> Result<(), Error> {
        match self {
            Storage::Bucket { client, bucket } => client.abort_multipart_upload(bucket, key, upload_id).await,
            Storage::Disk(disk) => disk.abort(key, upload_id),
        }
    }

    /// The failure of a deletion as an error.
    pub(crate) fn refusal(&self, failure: DeleteFailure) -> Error {
        match self {
            Storage::Bucket { bucket, .. } => failure.into_error(bucket),
            Storage::Disk(_) => {
                let DeleteFailure { key, code, message } = failure;
                let message = format!("/{key} could not be deleted: {code} {message}");
                Error::new(s3dcp_s3::ErrorKind::Service, message).with_key(&key)
            }
        }
    }
}
