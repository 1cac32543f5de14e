//! An index in memory that the ranks of a node share: see `s3dcp_checkpoint::NodeFolder`.
#![expect(unsafe_code, reason = "a file is mapped")]

use std::ptr::NonNull;

use bytes::Bytes;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use s3dcp_checkpoint::{Claim, MAX_INDEX_BYTES, NodeFolder, SharedIndex};
use s3dcp_s3::{Client, Error};

use crate::index::StoredIndex;

/// Shorter indexes are not shared, in bytes: to fetch one costs hardly more than to ask what it is.
pub(crate) const SHARED_FROM: u64 = 1 << 20;

/// The index at `key`.
pub(crate) async fn get_index(engine: &Client, bucket: &str, key: &str) -> Result<StoredIndex, Error> {
    let output = engine.get_object_within(bucket, key, MAX_INDEX_BYTES).await?;
    Ok(StoredIndex::new(output.body, output.info.etag))
}

/// The same, which one of the ranks of this node fetches.
pub(crate) async fn get_shared_index(
    engine: &Client,
    bucket: &str,
    key: &str,
    folder: &NodeFolder,
) -> Result<StoredIndex, Error> {
    // A HEAD that fails does not tell why: the GET does.
    let seen = engine.head_object(bucket, key).await.ok();
    let seen = seen.filter(|seen| (SHARED_FROM..=MAX_INDEX_BYTES).contains(&seen.size));
    let Some((etag, size)) = seen.and_then(|seen| Some((seen.etag?, seen.size))) else {
        return get_index(engine, bucket, key).await;
    };
    let config = engine.config();
    let identity = format!("{:?} {:?} {bucket} {key} {etag}", config.endpoint_url, config.region);
    match folder.claim(&identity, size).await {
        Some(Claim::Held(file)) => match mapped(file) {
            Some(body) => Ok(StoredIndex::new(body, Some(etag))),
            None => get_index(engine, bucket, key).await,
        },
        Some(Claim::Vacant(vacant)) => {
            let index = get_index(engine, bucket, key).await?;
            // Replaced since: it is another's.
            if index.etag() != Some(&etag) {
                return Ok(index);
            }
            let shared = vacant.fill(index.bytes()).ok().and_then(mapped);
            Ok(shared.map_or(index, |body| StoredIndex::new(body, Some(etag))))
        }
        None => get_index(engine, bucket, key).await,
    }
}

/// The bytes of an index in a file, of which each process sees for itself that they are what was written.
fn mapped(file: SharedIndex) -> Option<Bytes> {
    let mapping = Mapping::new(file).ok()?;
    if mapping.file.is_sound(mapping.as_ref()) {
        return Some(Bytes::from_owner(mapping));
    }
    mapping.file.discard();
    None
}

/// The first bytes of a file, in memory.
struct Mapping {
    address: NonNull<u8>,
    file: SharedIndex,
}

// SAFETY: the memory is only read, and belongs to the process as a whole.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: SharedIndex) -> rustix::io::Result<Mapping> {
        // SAFETY: the kernel picks the place, so nothing else lies there.
        let address = unsafe {
            mmap(std::ptr::null_mut(), file.length(), ProtFlags::READ, MapFlags::SHARED, file.file(), 0)
        }?;
        let address = NonNull::new(address.cast()).ok_or(rustix::io::Errno::INVAL)?;
        Ok(Mapping { address, file })
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: these bytes were mapped by `new` and are until this is dropped. The file has them, and whoever would write or
        // shorten it takes its exclusive lock before, which nobody gets while `file` has a shared one.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.file.length()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no slice of it is left: they borrow from this.
        unsafe { munmap(self.address.as_ptr().cast(), self.file.length()) }.ok();
    }
}
