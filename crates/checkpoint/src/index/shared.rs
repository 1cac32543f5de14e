//! One copy of an index for all ranks of a node: a file in shared memory, by what it holds.
//!
//! Whoever wants an index that no file holds takes the file's exclusive lock, fetches, and writes; the others wait for it or, with
//! a shared lock, use what is there. The locks are `flock`'s: those of a killed process fall free. Whoever writes makes room before it
//! fetches, so that full memory is known at once. The last user deletes the file; what killed users leave is deleted by
//! the next that writes.
//!
//! Nothing here fails a load: where the folder, the file or the room cannot be had, everyone fetches for itself.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::process::geteuid;
use s3dcp_s3::crc32;

/// Ends a file that is whole, before the checksum and the length of the identity.
const MAGIC: &[u8; 8] = b"S3DCPSHM";

/// How often to look whether a file has been written meanwhile.
const POLL: Duration = Duration::from_millis(20);

/// Who waits for another to fetch an index does so for this long, and as long as it takes to fetch at 25 MB/s.
const PATIENCE: Duration = Duration::from_secs(2);
const PATIENCE_BYTES_PER_SECOND: u64 = 25_000_000;

/// A folder in memory that belongs to this user alone.
#[derive(Clone, Debug)]
pub struct NodeFolder(PathBuf);

/// What a process gets that asks for an index.
#[derive(Debug)]
pub enum Claim {
    /// It is there.
    Held(SharedIndex),
    /// It is for this process to fetch.
    Vacant(VacantIndex),
}

/// An index that lies in a file, which stays while someone has one of these.
#[derive(Debug)]
pub struct SharedIndex {
    file: File,
    path: PathBuf,
    length: usize,
    crc: u32,
    process: u32,
}

/// A file with room for an index, locked until it is filled or given up.
#[derive(Debug)]
pub struct VacantIndex {
    /// None once filled.
    file: Option<File>,
    path: PathBuf,
    identity: String,
    length: usize,
}

impl NodeFolder {
    /// The one at `path`, which is made when it is needed.
    #[must_use]
    pub fn new(path: PathBuf) -> NodeFolder {
        NodeFolder(path)
    }

    /// Asks for the index of this identity, which tells it from every other, and of `length` bytes. Waits a while for one that
    /// another process fetches. `None`: to be fetched without this folder.
    pub async fn claim(&self, identity: &str, length: u64) -> Option<Claim> {
        let polls =
            (PATIENCE + Duration::from_secs(length / PATIENCE_BYTES_PER_SECOND)).div_duration_f64(POLL);
        let length = usize::try_from(length).ok()?;
        self.make().ok()?;
        let mut hasher = DefaultHasher::new();
        (identity, length).hash(&mut hasher);
        let path = self.0.join(format!("index-{:016x}", hasher.finish()));
        for _ in 0..polls as u64 {
            match look(&path, identity, length) {
                Ok(Some(claim)) => {
                    if let Claim::Vacant(_) = claim {
                        self.sweep();
                    }
                    return Some(claim);
                }
                Ok(None) => tokio::time::sleep(POLL).await,
                Err(_) => return None,
            }
        }
        None
    }

    /// Makes the folder, and sees that nobody else can write to it.
    fn make(&self) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let found = fs::symlink_metadata(&self.0)?;
        if found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & 0o077 == 0 {
            return Ok(());
        }
        Err(io::Error::from(io::ErrorKind::PermissionDenied))
    }

    /// Deletes the files that nobody uses.
    fn sweep(&self) {
        let Ok(files) = fs::read_dir(&self.0) else { return };
        for path in files.flatten().map(|file| file.path()) {
            if let Ok(file) = open(&path, false) {
                delete_unused(&file, &path);
            }
        }
    }
}

impl SharedIndex {
    /// The file whose first bytes are the index.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Bytes of the index.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Whether these, the first bytes of the file, are what was written.
    #[must_use]
    pub fn is_sound(&self, index: &[u8]) -> bool {
        index.len() == self.length && crc32(index) == self.crc
    }

    /// Deletes the file, because it holds something else.
    pub fn discard(&self) {
        if is_at(&self.file, &self.path) {
            fs::remove_file(&self.path).ok();
        }
    }
}

impl Drop for SharedIndex {
    fn drop(&mut self) {
        // A fork shares the lock: it would be given up for its parent too.
        if self.process == std::process::id() {
            delete_unused(&self.file, &self.path);
        }
    }
}

impl VacantIndex {
    /// Writes the index; the others use it from now on.
    ///
    /// # Errors
    /// Those of writing to a file. It is deleted then.
    pub fn fill(mut self, index: &[u8]) -> io::Result<SharedIndex> {
        let Some(file) = &self.file else { return Err(io::ErrorKind::NotFound.into()) };
        if index.len() != self.length {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let crc = crc32(index);
        file.write_all_at(index, 0)?;
        file.write_all_at(&end(&self.identity, crc), self.length as u64)?;
        file.lock_shared()?;
        let file = self.file.take().ok_or(io::ErrorKind::NotFound)?;
        let (path, length) = (std::mem::take(&mut self.path), self.length);
        Ok(SharedIndex { file, path, length, crc, process: std::process::id() })
    }
}

impl Drop for VacantIndex {
    fn drop(&mut self) {
        if self.file.is_some() {
            fs::remove_file(&self.path).ok();
        }
    }
}

/// What a whole file ends with.
fn end(identity: &str, crc: u32) -> Vec<u8> {
    let length = identity.len() as u32;
    [identity.as_bytes(), MAGIC, &crc.to_le_bytes(), &length.to_le_bytes()].concat()
}

/// The state of the file; `None` while someone writes it.
fn look(path: &Path, identity: &str, length: usize) -> io::Result<Option<Claim>> {
    let file = open(path, true)?;
    if let Some(crc) = crc_of_whole(&file, identity, length) {
        return match file.try_lock_shared() {
            Ok(()) => Ok(Some(Claim::Held(SharedIndex {
                file,
                path: path.to_owned(),
                length,
                crc,
                process: std::process::id(),
            }))),
            Err(_) => Ok(None),
        };
    }
    // Of a file that was deleted since it was opened, or written, the next look tells.
    if file.try_lock().is_err() || !is_at(&file, path) || crc_of_whole(&file, identity, length).is_some() {
        return Ok(None);
    }
    file.set_len(0)?;
    if let Err(full) = fallocate(&file, FallocateFlags::empty(), 0, (length + end(identity, 0).len()) as u64)
    {
        fs::remove_file(path).ok();
        return Err(full.into());
    }
    let (path, identity) = (path.to_owned(), identity.to_owned());
    Ok(Some(Claim::Vacant(VacantIndex { file: Some(file), path, identity, length })))
}

/// The checksum that the file says its index has; `None` of a file that is not whole, or holds another index.
fn crc_of_whole(file: &File, identity: &str, length: usize) -> Option<u32> {
    let mut found = end(identity, 0);
    if file.metadata().ok()?.len() != (length + found.len()) as u64 {
        return None;
    }
    file.read_exact_at(&mut found, length as u64).ok()?;
    let crc = &found[identity.len() + MAGIC.len()..][..4];
    let crc = u32::from_le_bytes(crc.try_into().ok()?);
    (found == end(identity, crc)).then_some(crc)
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW.bits() as i32;
    OpenOptions::new().read(true).write(true).create(create).mode(0o600).custom_flags(flags).open(path)
}

/// Whether the file is the one at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Deletes the file at `path` unless someone else has a lock on it.
fn delete_unused(file: &File, path: &Path) {
    if file.try_lock().is_ok() && is_at(file, path) {
        fs::remove_file(path).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &[u8] = b"an index of some tensors";
    const LENGTH: u64 = INDEX.len() as u64;

    /// A folder of a test, deleted in the end.
    struct Here(PathBuf);

    impl Here {
        fn new(name: &str) -> Here {
            let path = std::env::temp_dir().join(format!("s3dcp-shared-{name}-{}", std::process::id()));
            fs::remove_dir_all(&path).ok();
            Here(path)
        }

        fn folder(&self) -> NodeFolder {
            NodeFolder::new(self.0.clone())
        }

        fn files(&self) -> Vec<PathBuf> {
            fs::read_dir(&self.0).unwrap().map(|file| file.unwrap().path()).collect()
        }
    }

    impl Drop for Here {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    async fn vacant(folder: &NodeFolder, identity: &str) -> VacantIndex {
        match folder.claim(identity, LENGTH).await {
            Some(Claim::Vacant(vacant)) => vacant,
            other => panic!("{other:?}"),
        }
    }

    async fn held(folder: &NodeFolder, identity: &str) -> SharedIndex {
        match folder.claim(identity, LENGTH).await {
            Some(Claim::Held(held)) => held,
            other => panic!("{other:?}"),
        }
    }

    fn read(index: &SharedIndex) -> Vec<u8> {
        let mut bytes = vec![0; index.length()];
        index.file().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[tokio::test]
    async fn the_second_gets_what_the_first_fetched_and_the_last_deletes_it() {
        let here = Here::new("second");
        let folder = here.folder();
        let first = vacant(&folder, "one").await;
        let waiting = tokio::spawn(async move { held(&folder, "one").await });
        tokio::task::yield_now().await;
        let first = first.fill(INDEX).unwrap();
        let second = waiting.await.unwrap();
        assert_eq!(read(&second), INDEX);
        assert!(second.is_sound(INDEX) && !second.is_sound(b"an index of some tensorz"));
        drop(first);
        assert_eq!(read(&held(&here.folder(), "one").await), INDEX);
        drop(second);
        assert_eq!(here.files(), [] as [PathBuf; 0]);
    }

    #[tokio::test]
    async fn one_that_gives_up_leaves_it_to_the_next() {
        let here = Here::new("gives-up");
        let first = vacant(&here.folder(), "one").await;
        let folder = here.folder();
        let waiting = tokio::spawn(async move { vacant(&folder, "one").await });
        tokio::task::yield_now().await;
        drop(first);
        assert_eq!(read(&waiting.await.unwrap().fill(INDEX).unwrap()), INDEX);
    }

    #[tokio::test]
    async fn nobody_waits_for_ever_for_one_that_hangs() {
        let here = Here::new("hangs");
        let _hanging = vacant(&here.folder(), "one").await;
        assert!(here.folder().claim("one", LENGTH).await.is_none());
    }

    #[tokio::test]
    async fn what_was_cut_short_or_is_of_another_identity_is_fetched_anew() {
        let here = Here::new("cut");
        for damage in [
            (|file: &File| file.set_len(LENGTH)) as fn(&File) -> io::Result<()>,
            |file| file.set_len(3),
            |file| file.set_len(LENGTH + 1000),
            |file| file.write_all_at(b"another", LENGTH),
        ] {
            let left = vacant(&here.folder(), "one").await.fill(INDEX).unwrap();
            damage(left.file()).unwrap();
            // As a killed process leaves it.
            left.file().unlock().unwrap();
            let again = vacant(&here.folder(), "one").await.fill(INDEX).unwrap();
            assert_eq!(read(&again), INDEX);
        }
    }

    #[tokio::test]
    async fn what_nobody_uses_any_more_is_used_or_deleted_by_the_next_that_writes() {
        let here = Here::new("stale");
        let in_use = vacant(&here.folder(), "in use").await.fill(INDEX).unwrap();
        let left = vacant(&here.folder(), "left").await.fill(INDEX).unwrap();
        left.file().unlock().unwrap();
        std::mem::forget(left);
        assert_eq!(here.files().len(), 2);
        assert_eq!(read(&held(&here.folder(), "left").await), INDEX);
        let left = vacant(&here.folder(), "left").await.fill(INDEX).unwrap();
        left.file().unlock().unwrap();
        std::mem::forget(left);
        let new = vacant(&here.folder(), "new").await.fill(INDEX).unwrap();
        assert_eq!(here.files().len(), 2);
        assert_eq!((read(&new), read(&in_use)), (INDEX.to_vec(), INDEX.to_vec()));
    }

    #[tokio::test]
    async fn a_folder_that_others_can_write_to_is_not_used() {
        use std::os::unix::fs::PermissionsExt;

        let here = Here::new("others");
        fs::create_dir(&here.0).unwrap();
        fs::set_permissions(&here.0, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(here.folder().claim("one", LENGTH).await.is_none());
        fs::remove_dir(&here.0).unwrap();
        fs::write(&here.0, "a file").unwrap();
        assert!(here.folder().claim("one", LENGTH).await.is_none());
        fs::remove_file(&here.0).unwrap();
        std::os::unix::fs::symlink(std::env::temp_dir(), &here.0).unwrap();
        assert!(here.folder().claim("one", LENGTH).await.is_none());
        fs::remove_file(&here.0).unwrap();
    }

    #[tokio::test]
    async fn more_than_fits_is_fetched_by_everyone() {
        let here = Here::new("full");
        assert!(here.folder().claim("one", 1 << 50).await.is_none());
        assert_eq!(here.files(), [] as [PathBuf; 0]);
    }
}
