//! Multipart uploads: parts gathered under an upload id, made into an object at once.
//!
//! The object takes the parts' segments over, so completing an upload moves no bytes. Uploads live in memory whatever
//! the back-end: a server that stops forgets those in progress.

use std::collections::BTreeMap;
use std::sync::Arc;

use s3s::crypto::{Checksum as _, Md5};
use s3s::{S3Error, S3Result, s3_error};

use crate::checksum::{Algorithm, Digest, ObjectChecksum, bad_digest};
use crate::conditions::WriteCondition;
use crate::directory::is_directory;
use crate::object::{self, Metadata, Object, ObjectPart};
use crate::store::{Bucket, Store};
use crate::upload::{Completed, Part, Upload, UploadChecksum};

/// Every part but the last is at least this long.
const MIN_PART_BYTES: u64 = 5 << 20;

const COMPLETED_REMEMBERED: usize = 1024;

/// What a client lists when it completes an upload.
pub(crate) struct ListedPart {
    pub(crate) number: i32,
    pub(crate) etag: Option<String>,
    pub(crate) digest: Option<Digest>,
}

pub(crate) struct Completion {
    pub(crate) parts: Vec<ListedPart>,
    pub(crate) condition: WriteCondition,
    /// The checksum of the object, as the client has it.
    pub(crate) checksum: Option<(Algorithm, String)>,
    pub(crate) size: Option<u64>,
}

pub(crate) fn check_part_number(number: i32) -> S3Result<()> {
    if (1..=10_000).contains(&number) {
        Ok(())
    } else {
        Err(s3_error!(InvalidArgument, "Part number must be an integer between 1 and 10000, inclusive"))
    }
}

impl Store {
    pub(crate) fn create_upload(
        &self,
        bucket: &str,
        key: &str,
        metadata: Metadata,
        checksum: Option<UploadChecksum>,
    ) -> S3Result<String> {
        self.check_write(bucket, key)?;
        let upload_id = self.ids.next();
        let upload = Upload { initiated: object::now(), metadata, checksum, parts: BTreeMap::new() };
        self.lock().bucket(bucket)?.uploads.insert((key.to_owned(), upload_id.clone()), upload);
        Ok(upload_id)
    }

    /// Looks at an upload.
    pub(crate) fn with_upload<T>(
        &self,
        bucket: &str,
        key: &str,
        upload_id: &str,
        look: impl FnOnce(&mut Upload) -> T,
    ) -> S3Result<T> {
        self.lock().bucket(bucket)?.upload(key, upload_id).map(look)
    }

    pub(crate) fn put_part(
        &self,
        bucket: &str,
        key: &str,
        upload_id: &str,
        number: i32,
        part: Part,
    ) -> S3Result<()> {
        let replaced =
            self.with_upload(bucket, key, upload_id, |upload| upload.parts.insert(number, part))?;
        drop(replaced);
        Ok(())
    }

    pub(crate) fn abort_upload(&self, bucket: &str, key: &str, upload_id: &str) -> S3Result<()> {
        let mut index = self.lock();
        let removed = index.bucket(bucket)?.uploads.remove(&(key.to_owned(), upload_id.to_owned()));
        drop(index);
        removed.map(drop).ok_or_else(no_such_upload)
    }

    pub(crate) fn complete_upload(
        &self,
        bucket: &str,
        key: &str,
        upload_id: &str,
        completion: &Completion,
    ) -> S3Result<Arc<Object>> {
        let mut index = self.lock();
        if let Some(done) = index.completed.iter().find(|done| done.is(bucket, key, upload_id)) {
            return Ok(Arc::clone(&done.object));
        }
        let entry = index.bucket(bucket)?;
        let object = self.assemble(bucket, entry.upload(key, upload_id)?, completion)?;
        let (object, replaced) = self.insert(entry, bucket, key, object, &completion.condition)?;
        let finished = entry.uploads.remove(&(key.to_owned(), upload_id.to_owned()));
        if index.completed.len() == COMPLETED_REMEMBERED {
            index.completed.pop_front();
        }
        // What is remembered holds no bytes, so that an overwritten object is let go.
        let remembered = Object {
            etag: object.etag.clone(),
            size: object.size,
            modified: object.modified,
            metadata: Metadata::default(),
            checksum: object.checksum.clone(),
            parts: Vec::new(),
            segments: Vec::new(),
        };
        index.completed.push_back(Completed {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            upload_id: upload_id.to_owned(),
            object: Arc::new(remembered),
        });
        drop(index);
        drop((replaced, finished));
        Ok(object)
    }

    fn assemble(&self, bucket: &str, upload: &Upload, completion: &Completion) -> S3Result<Object> {
        let is_directory = is_directory(bucket);
        if is_directory
            && !completion.parts.iter().map(|part| part.number).eq(1..=completion.parts.len() as i32)
        {
            return Err(s3_error!(
                InvalidPartOrder,
                "The list of parts was not consecutive. Part numbers must start at 1 and be consecutive."
            ));
        }
        let parts = listed_parts(upload, &completion.parts)?;
        let size = parts.iter().map(|part| part.size).sum();
        if completion.size.is_some_and(|expected| expected != size) {
            return Err(s3_error!(
                InvalidRequest,
                "The provided 'x-amz-mp-object-size' header does not match what was uploaded: {size} bytes"
            ));
        }
        Ok(Object {
            etag: if is_directory { self.ids.next() } else { self.multipart_etag(bucket, &parts) },
            size,
            modified: object::now(),
            metadata: upload.metadata.clone(),
            checksum: object_checksum(upload.checksum, &parts, completion.checksum.as_ref())?,
            parts: parts
                .iter()
                .map(|part| ObjectPart { size: part.size, digest: part.digest.clone() })
                .collect(),
            segments: parts.iter().flat_map(|part| part.segments.iter().cloned()).collect(),
        })
    }

    /// The MD5 of the parts' MD5s where all have one, and the number of parts.
    fn multipart_etag(&self, bucket: &str, parts: &[&Part]) -> String {
        let md5 = parts
            .iter()
            .map(|part| part.md5)
            .collect::<Option<Vec<_>>>()
            .map(|digests| Md5::checksum(digests.as_flattened()));
        format!("{}-{}", self.etag(bucket, md5.as_ref()), parts.len())
    }
}

impl Bucket {
    fn upload(&mut self, key: &str, upload_id: &str) -> S3Result<&mut Upload> {
        self.uploads.get_mut(&(key.to_owned(), upload_id.to_owned())).ok_or_else(no_such_upload)
    }
}

fn no_such_upload() -> S3Error {
    s3_error!(
        NoSuchUpload,
        "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed."
    )
}

/// The parts that the client lists, which must be there, in order, and long enough.
fn listed_parts<'a>(upload: &'a Upload, listed: &[ListedPart]) -> S3Result<Vec<&'a Part>> {
    if listed.is_empty() {
        return Err(s3_error!(MalformedXML, "You must specify at least one part"));
    }
    if !listed.is_sorted_by(|a, b| a.number < b.number) {
        return Err(s3_error!(
            InvalidPartOrder,
            "The list of parts was not in ascending order. Parts must be ordered by part number."
        ));
    }
    let mut parts = Vec::with_capacity(listed.len());
    for (position, wanted) in listed.iter().enumerate() {
        let part = upload
            .parts
            .get(&wanted.number)
            .filter(|part| wanted.etag.as_ref().is_none_or(|etag| *etag == part.etag))
            .filter(|part| wanted.digest.is_none() || wanted.digest == part.digest)
            .ok_or_else(|| {
                s3_error!(
                    InvalidPart,
                    "One or more of the specified parts could not be found, or its entity tag or checksum does not match: part {}",
                    wanted.number
                )
            })?;
        if part.size < MIN_PART_BYTES && position + 1 < listed.len() {
            return Err(s3_error!(
                EntityTooSmall,
                "Your proposed upload is smaller than the minimum allowed size: part {} has {} bytes",
                wanted.number,
                part.size
            ));
        }
        parts.push(part);
    }
    Ok(parts)
}

fn object_checksum(
    declared: Option<UploadChecksum>,
    parts: &[&Part],
    expected: Option<&(Algorithm, String)>,
) -> S3Result<Option<ObjectChecksum>> {
    let shared = parts[0].digest.as_ref().map(|digest| digest.algorithm);
    let plan = declared.or_else(|| {
        shared
            .filter(|algorithm| algorithm.combines())
            .map(|algorithm| UploadChecksum { algorithm, composite: false })
    });
    let checksum = plan.and_then(|plan| {
        let digests: Vec<(&Digest, u64)> = parts
            .iter()
            .map(|part| {
                part.digest.as_ref().filter(|d| d.algorithm == plan.algorithm).map(|d| (d, part.size))
            })
            .collect::<Option<_>>()?;
        if plan.composite {
            Some(ObjectChecksum::composite(plan.algorithm, digests.iter().map(|(digest, _)| *digest)))
        } else {
            ObjectChecksum::combined(plan.algorithm, digests.into_iter())
        }
    });
    if let Some((algorithm, value)) = expected {
        match &checksum {
            Some(checksum) if checksum.algorithm() == *algorithm => {
                if checksum.to_string() != *value {
                    return Err(bad_digest(*algorithm));
                }
            }
            _ => {
                return Err(s3_error!(
                    InvalidRequest,
                    "The upload has no {} checksums of its parts to compare with the checksum of the object",
                    algorithm.name()
                ));
            }
        }
    }
    Ok(checksum)
}
