//! Listings, all pages of them.
//!
//! Directory buckets list folders: what a prefix ends with after its last slash is filtered here. They list in no order, so what
//! they list is put in order here.

use std::time::SystemTime;

use http::Method;

use crate::client::Client;
use crate::error::{Error, invalid};
use crate::operation::call::Call;
use crate::operation::object::ObjectInfo;
use crate::protocol::bucket::is_directory_bucket;
use crate::protocol::checksum::parse_crc32;
use crate::protocol::dates::parse_iso8601;
use crate::protocol::error_response::server_time;
use crate::protocol::xml::{self, Element};

/// Most entries that S3 puts on one page.
pub(crate) const PAGE: usize = 1000;

/// The result of [`Client::list_objects`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Objects, in the order of their keys' bytes.
    pub objects: Vec<ObjectInfo>,
    /// What stands before the first delimiter after the prefix, once each, delimiter included. In a directory bucket also what only
    /// uploads under way are below.
    pub common_prefixes: Vec<String>,
    /// The service's clock when it answered with the first page, where it says.
    pub service_time: Option<SystemTime>,
}

/// A multipart upload that was neither completed nor aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MultipartUpload {
    /// Key of the object to be.
    pub key: String,
    /// Id for completing or aborting.
    pub upload_id: String,
    /// When it was begun, to the second.
    pub initiated: Option<SystemTime>,
}

/// A part of a multipart upload under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadedPart {
    /// Its number, from 1.
    pub number: u32,
    /// Length in bytes.
    pub size: u64,
    /// When it was complete, to the second.
    pub last_modified: Option<SystemTime>,
    /// ETag, quotes included, where the service says one.
    pub etag: Option<String>,
    /// CRC-32, where the service keeps one.
    pub crc32: Option<u32>,
}

impl Client {
    /// Lists all objects whose keys start with `prefix`; with a delimiter, only the first level below it.
    ///
    /// # Errors
    /// `NotFound` with code `NoSuchBucket`, `Config` for a delimiter that a directory bucket does not have, and all kinds that a
    /// request can end with.
    pub async fn list_objects(
        &self,
        bucket: &str,
        prefix: &str,
        delimiter: Option<&str>,
    ) -> Result<Listing, Error> {
        self.list_first(bucket, prefix, delimiter, usize::MAX).await
    }

    /// The first entries of the same, objects and common prefixes together: `limit` of them, if there are so many. Of a
    /// directory bucket any `limit` of them.
    ///
    /// # Errors
    /// As for [`Client::list_objects`].
    pub async fn list_first(
        &self,
        bucket: &str,
        prefix: &str,
        delimiter: Option<&str>,
        limit: usize,
    ) -> Result<Listing, Error> {
        let scope = Scope::of(bucket, prefix);
        if scope.is_folder && delimiter.is_some_and(|delimiter| delimiter != "/") {
            let text = format!("delimiter must be \"/\" in a directory bucket, not {delimiter:?}");
            return Err(invalid(text).with_bucket(bucket));
        }
        let mut listing = Listing::default();
        let mut next: Option<Next> = None;
        loop {
            let left = limit.saturating_sub(listing.objects.len() + listing.common_prefixes.len());
            let mut call = Call::new("ListObjectsV2", Method::GET, bucket, None)?.query("list-type", "2");
            match &next {
                None => {}
                Some(Next::Token(token)) => call = call.query("continuation-token", token),
                Some(Next::After(key)) => call = call.query("marker", key),
            }
            if let Some(delimiter) = delimiter {
                call = call.query("delimiter", delimiter);
            }
            if left < PAGE && scope.asked == prefix {
                call = call.query("max-keys", &left.to_string());
            }
            call = scope.asked_with(call);
            let (page, time) = self.page(&call, "ListBucketResult").await?;
            if next.is_none() {
                listing.service_time = time;
            }
            for object in page.all("Contents") {
                let entry = object_entry(object);
                let entry = entry.ok_or_else(|| call.malformed("an object without key or size"))?;
                listing.objects.extend(scope.has(&entry.key).then_some(entry));
            }
            listing.common_prefixes.extend(common_prefixes(&page).filter(|common| scope.has(common)));
            if listing.objects.len() + listing.common_prefixes.len() >= limit
                || page.text_of("IsTruncated") != Some("true")
            {
                if scope.is_folder {
                    listing.put_in_order();
                }
                return Ok(listing);
            }
            let following = Next::of(&page);
            if following.is_none() || following == next {
                return Err(call.malformed("a page that is not the last names no next one"));
            }
            next = following;
        }
    }

    /// Lists the multipart uploads under way for keys that start with `prefix`.
    ///
    /// # Errors
    /// As for [`Client::list_objects`].
    pub async fn list_multipart_uploads(
        &self,
        bucket: &str,
        prefix: &str,
    ) -> Result<Vec<MultipartUpload>, Error> {
        let scope = Scope::of(bucket, prefix);
        let mut uploads = Vec::new();
        let mut marker: Option<(String, String)> = None;
        loop {
            let mut call = Call::new("ListMultipartUploads", Method::GET, bucket, None)?.flag("uploads");
            call = scope.asked_with(call);
            if let Some((key, id)) = &marker {
                call = call.query("key-marker", key);
                // The marker of a directory bucket's listing is all that there is.
                if !scope.is_folder {
                    call = call.query("upload-id-marker", id);
                }
            }
            let (page, _) = self.page(&call, "ListMultipartUploadsResult").await?;
            for upload in page.all("Upload") {
                let (Some(key), Some(id)) = (upload.text_of("Key"), upload.text_of("UploadId")) else {
                    return Err(call.malformed("an upload without key or id"));
                };
                if scope.has(key) {
                    uploads.push(MultipartUpload {
                        key: key.to_owned(),
                        upload_id: id.to_owned(),
                        initiated: upload.text_of("Initiated").and_then(parse_iso8601),
                    });
                }
            }
            if page.text_of("IsTruncated") != Some("true") {
                if scope.is_folder {
                    uploads.sort_by(|a, b| (&a.key, a.initiated).cmp(&(&b.key, b.initiated)));
                }
                return Ok(uploads);
            }
            let next = (
                page.text_of("NextKeyMarker").unwrap_or_default().to_owned(),
                page.text_of("NextUploadIdMarker").unwrap_or_default().to_owned(),
            );
            if next.0.is_empty() || marker.as_ref() == Some(&next) {
                return Err(call.malformed("a page that is not the last names no next one"));
            }
            marker = Some(next);
        }
    }

    /// Lists the parts that the service holds of a multipart upload.
    ///
    /// # Errors
    /// `NotFound` with code `NoSuchUpload`, and all kinds that a request can end with.
    pub async fn list_parts(
        &self,
        bucket: &str,
        key: &str,
        upload_id: &str,
    ) -> Result<Vec<UploadedPart>, Error> {
        let mut parts: Vec<UploadedPart> = Vec::new();
        loop {
            let mut call =
                Call::new("ListParts", Method::GET, bucket, Some(key))?.query("uploadId", upload_id);
            let marker = parts.last().map_or(0, |part| part.number);
            if marker > 0 {
                call = call.query("part-number-marker", &marker.to_string());
            }
            let (page, _) = self.page(&call, "ListPartsResult").await?;
            for part in page.all("Part") {
                let entry = part_entry(part);
                parts.push(entry.ok_or_else(|| call.malformed("a part without number or size"))?);
            }
            if page.text_of("IsTruncated") != Some("true") {
                return Ok(parts);
            }
            if parts.last().is_none_or(|part| part.number <= marker) {
                return Err(call.malformed("a page that is not the last names no next one"));
            }
        }
    }

    /// One page, and the service's clock.
    async fn page(&self, call: &Call, root: &str) -> Result<(Element, Option<SystemTime>), Error> {
        let response = self.execute(call).await?;
        let page = xml::parse(&response.body)
            .map_err(|error| call.malformed(&xml::line(&error)).with_source(error))?;
        if page.name == root {
            Ok((page, server_time(&response.headers)))
        } else {
            Err(call.malformed(&format!("<{}> instead of <{root}>", page.name)))
        }
    }
}

/// What is asked for, and what of it is wanted.
struct Scope<'a> {
    prefix: &'a str,
    /// The prefix that the service is asked for.
    asked: &'a str,
    /// The service lists nothing but folders, in any order.
    is_folder: bool,
}

impl Scope<'_> {
    fn of<'a>(bucket: &str, prefix: &'a str) -> Scope<'a> {
        let is_folder = is_directory_bucket(bucket);
        let folder = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
        Scope { prefix, asked: if is_folder { folder } else { prefix }, is_folder }
    }

    /// The bucket as a whole is no prefix that ends with a slash.
    fn asked_with(&self, call: Call) -> Call {
        if self.is_folder && self.asked.is_empty() { call } else { call.query("prefix", self.asked) }
    }

    fn has(&self, name: &str) -> bool {
        !self.is_folder || name.starts_with(self.prefix)
    }
}

impl Listing {
    fn put_in_order(&mut self) {
        self.objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        self.common_prefixes.sort_unstable();
        self.common_prefixes.dedup();
    }
}

/// How to ask for the next page of a listing.
#[derive(PartialEq)]
enum Next {
    Token(String),
    /// The keys after this one: of services that response as to the first version of ListObjects.
    After(String),
}

impl Next {
    fn of(page: &Element) -> Option<Next> {
        if let Some(token) = page.text_of("NextContinuationToken") {
            return Some(Next::Token(token.to_owned()));
        }
        let keys = page.all("Contents").filter_map(|object| object.text_of("Key").map(str::to_owned));
        let last = || keys.chain(common_prefixes(page)).max();
        page.text_of("NextMarker").map(str::to_owned).or_else(last).map(Next::After)
    }
}

fn object_entry(object: &Element) -> Option<ObjectInfo> {
    Some(ObjectInfo {
        key: object.text_of("Key")?.to_owned(),
        size: object.text_of("Size")?.parse().ok()?,
        etag: object.text_of("ETag").map(str::to_owned),
        last_modified: object.text_of("LastModified").and_then(parse_iso8601),
    })
}

fn part_entry(part: &Element) -> Option<UploadedPart> {
    Some(UploadedPart {
        number: part.text_of("PartNumber")?.parse().ok()?,
        size: part.text_of("Size")?.parse().ok()?,
        last_modified: part.text_of("LastModified").and_then(parse_iso8601),
        etag: part.text_of("ETag").map(str::to_owned),
        crc32: part.text_of("ChecksumCRC32").and_then(parse_crc32),
    })
}

fn common_prefixes(page: &Element) -> impl Iterator<Item = String> + '_ {
    page.all("CommonPrefixes").flat_map(|group| group.all("Prefix")).map(|prefix| prefix.text.clone())
}
