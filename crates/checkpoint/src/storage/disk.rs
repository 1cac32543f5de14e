//! The local file system, told of as a bucket is: folders are no more than parts of keys.
//!
//! A conditional write or delete looks first and acts then: between the two another process may come.

use std::fs::{self, File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::SystemTime;

use bytes::Bytes;
use s3dcp_s3::{
    Condition, DeleteFailure, Error, ErrorKind, GetOutput, Listing, MultipartUpload, ObjectInfo, PutOptions,
    RangeRead, RangeSink, Space, crc32_combine,
};

use crate::error::{config, corrupt};
use crate::layout::{id_text, is_id};

/// Most that is read at once, in bytes: it stays in the processor's caches while it is summed up.
const CHUNK: usize = 1 << 20;
/// What marks a file that is being written: `.<name><mark><id>` stands beside the place of `<name>`.
const UNFINISHED: &str = ".s3dcp-part-";
/// Threads that read.
const READERS: usize = 8;

/// The local file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

/// The key of a local path.
///
/// # Errors
/// `Config` for a path that is empty or no UTF-8, and where there is no current directory.
pub(crate) fn key_of(path: &str) -> Result<String, Error> {
    let bare = path.strip_prefix("file://").unwrap_or(path);
    let absolute = std::path::absolute(bare).map_err(|error| config(format!("path {path:?}: {error}")))?;
    // `a/../b` is no key; what a link in it stands for is known to the file system alone.
    let mut plain = PathBuf::new();
    for part in absolute.components() {
        match part {
            std::path::Component::ParentDir => {
                plain = fs::canonicalize(&plain).unwrap_or(plain);
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    let text = plain.to_str().ok_or_else(|| config(format!("path {path:?} is no UTF-8")))?;
    Ok(text.trim_start_matches('/').to_owned())
}

fn path_of(key: &str) -> PathBuf {
    Path::new("/").join(key)
}

fn failed(what: &str, key: &str, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
        io::ErrorKind::UnexpectedEof => ErrorKind::Corrupt,
        _ => ErrorKind::Service,
    };
    Error::new(kind, format!("/{key} cannot be {what}: {error}"))
}

fn etag_of(meta: &Metadata) -> String {
    format!("\"{:x}-{:x}-{:x}.{:x}\"", meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec())
}

fn info(key: String, meta: &Metadata) -> ObjectInfo {
    ObjectInfo { key, size: meta.len(), etag: Some(etag_of(meta)), last_modified: meta.modified().ok() }
}

impl Disk {
    pub(crate) fn list(self, prefix: &str, one_level: bool, limit: usize) -> Result<Listing, Error> {
        let mut listing = Listing { service_time: Some(SystemTime::now()), ..Listing::default() };
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut waiting = vec![folder.to_owned()];
        while let Some(folder) = waiting.pop() {
            let entries = match fs::read_dir(path_of(&folder)) {
                Ok(entries) => entries,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
                {
                    continue;
                }
                Err(error) => return Err(failed("listed", &folder, &error)),
            };
            for entry in entries {
                let entry = entry.map_err(|error| failed("listed", &folder, &error))?;
                // No checkpoint names a file whose name is no text.
                let Ok(name) = entry.file_name().into_string() else { continue };
                let key = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                // Of a folder it is known now whether anything in it counts; what is behind a link to one does not.
                let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if is_folder && one_level && key.starts_with(prefix) {
                    listing.common_prefixes.push(key + "/");
                } else if is_folder && !one_level && key.starts_with(prefix) {
                    waiting.push(key);
                } else if !is_folder && key.starts_with(prefix) {
                    match fs::metadata(entry.path()) {
                        Ok(meta) if meta.is_file() => listing.objects.push(info(key, &meta)),
                        Ok(_) => {}
                        // Gone meanwhile, or a link to nothing.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => return Err(failed("looked at", &key, &error)),
                    }
                }
            }
        }
        listing.objects.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        listing.common_prefixes.sort_unstable();
        listing.common_prefixes.truncate(limit);
        listing.objects.truncate(limit - listing.common_prefixes.len());
        Ok(listing)
    }

    pub(crate) fn head(self, key: &str) -> Result<ObjectInfo, Error> {
        let meta = fs::metadata(path_of(key)).map_err(|error| failed("found", key, &error))?;
        if !meta.is_file() {
            return Err(Error::new(ErrorKind::NotFound, format!("/{key} is no file")));
        }
        Ok(info(key.to_owned(), &meta))
    }

    pub(crate) fn get(self, key: &str, limit: u64) -> Result<GetOutput, Error> {
        let info = self.head(key)?;
        if info.size > limit {
            return Err(corrupt(format!("/{key} has {} bytes; at most {limit} are read of it", info.size)));
        }
        let body = fs::read(path_of(key)).map_err(|error| failed("read", key, &error))?;
        Ok(GetOutput { body: body.into(), info })
    }

    pub(crate) fn get_range(self, key: &str, range: Range<u64>) -> Result<Bytes, Error> {
        let size = self.head(key)?.size;
        if range.end > size || range.start > range.end {
            return Err(corrupt(format!("/{key} ends at byte {size}, before the end of {range:?}")));
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let file = File::open(path_of(key)).map_err(|error| failed("read", key, &error))?;
        file.read_exact_at(&mut bytes, range.start).map_err(|error| failed("read", key, &error))?;
        Ok(bytes.into())
    }

    /// The CRC-32 of a whole file.
    pub(crate) fn crc32(self, key: &str) -> Result<u32, Error> {
        let read = || {
            let file = File::open(path_of(key))?;
            let (mut buffer, mut at, mut crc32) = (vec![0; CHUNK], 0, 0);
            loop {
                match file.read_at(&mut buffer, at)? {
                    0 => return Ok(crc32),
                    count => {
                        crc32 = crc32_combine(crc32, s3dcp_s3::crc32(&buffer[..count]), count as u64);
                        at += count as u64;
                    }
                }
            }
        };
        read().map_err(|error| failed("read", key, &error))
    }

    pub(crate) fn download(self, reads: Vec<RangeRead>) -> Result<(), Error> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(READERS).min(reads.len());
        let queue = Mutex::new(reads.into_iter());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let read_all = || {
            while let Some(mut read) = next() {
                if let Err(error) = feed(&mut read) {
                    while next().is_some() {}
                    return Err(error);
                }
            }
            Ok(())
        };
        thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(read_all)).collect();
            let mut result = read_all();
            for other in others {
                let interrupted =
                    |_| Err(Error::new(ErrorKind::Interrupted, "a thread that read files ended early"));
                result = result.and(other.join().unwrap_or_else(interrupted));
            }
            result
        })
    }

    /// Writes a file beside its place and moves it there, so that no reader meets a part of it.
    pub(crate) fn put(self, key: &str, body: &[u8], options: &PutOptions) -> Result<(), Error> {
        let path = path_of(key);
        let is = fs::metadata(&path).ok().map(|meta| etag_of(&meta));
        let holds = match &options.condition {
            Condition::None => true,
            Condition::IfNoneMatch => is.is_none(),
            Condition::IfMatch(etag) => is.as_ref() == Some(etag),
        };
        if !holds {
            return Err(Error::new(ErrorKind::PreconditionFailed, format!("/{key} is not what it was")));
        }
        let file = DiskFile::create(key)?;
        file.write_at(0, body)?;
        file.finish()
    }

    /// Files under way for keys that start with `prefix`, as a bucket has uploads.
    pub(crate) fn unfinished(self, prefix: &str) -> Result<Vec<(MultipartUpload, u64)>, Error> {
        let listing =
            self.list(prefix.rsplit_once('/').map_or("", |(folder, _)| folder), false, usize::MAX)?;
        let upload = |object: ObjectInfo| {
            let (folder, name) = object.key.rsplit_once('/').unwrap_or(("", &object.key));
            let (name, upload_id) =
                name.strip_prefix('.')?.rsplit_once(UNFINISHED).filter(|(_, id)| is_id(id))?;
            let key = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
            let upload =
                MultipartUpload { key, upload_id: upload_id.to_owned(), initiated: object.last_modified };
            upload.key.starts_with(prefix).then_some((upload, object.size))
        };
        Ok(listing.objects.into_iter().filter_map(upload).collect())
    }

    /// Deletes a file under way.
    pub(crate) fn abort(self, key: &str, upload_id: &str) -> Result<(), Error> {
        remove(&unfinished_key(key, upload_id)).map_err(|error| failed("deleted", key, &error))
    }

    pub(crate) fn delete_if(self, key: &str, etag: Option<&str>) -> Result<(), Error> {
        if let (Some(wanted), Ok(meta)) = (etag, fs::metadata(path_of(key)))
            && etag_of(&meta) != wanted
        {
            return Err(Error::new(ErrorKind::PreconditionFailed, format!("/{key} is not what it was")));
        }
        remove(key).map_err(|error| failed("deleted", key, &error))
    }

    pub(crate) fn delete(self, keys: &[String]) -> Vec<DeleteFailure> {
        let refused = |key: &String| {
            let error = remove(key).err()?;
            Some(DeleteFailure {
                key: key.clone(),
                code: error.kind().to_string(),
                message: error.to_string(),
            })
        };
        keys.iter().filter_map(refused).collect()
    }
}

fn unfinished_key(key: &str, id: &str) -> String {
    let (folder, name) = key.rsplit_once('/').unwrap_or(("", key));
    format!("{folder}/.{name}{UNFINISHED}{id}")
}

/// A file that is written beside its place and moved there, so that no reader meets a part of it. Dropped before it is
/// finished, nothing of it stays.
#[derive(Debug)]
pub(crate) struct DiskFile {
    file: File,
    key: String,
    beside: PathBuf,
    is_finished: bool,
}

impl DiskFile {
    pub(crate) fn create(key: &str) -> Result<DiskFile, Error> {
        let beside = path_of(&unfinished_key(key, &id_text(fastrand::u64(..))));
        let file = fs::create_dir_all(beside.parent().unwrap_or(Path::new("/")))
            .and_then(|()| File::create_new(&beside))
            .map_err(|error| failed("written", key, &error))?;
        Ok(DiskFile { file, key: key.to_owned(), beside, is_finished: false })
    }

    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(bytes, offset).map_err(|error| failed("written", &self.key, &error))
    }

    /// Moves it to its place once it is on the disk.
    pub(crate) fn finish(mut self) -> Result<(), Error> {
        let path = path_of(&self.key);
        let finished = self.file.sync_all().and_then(|()| fs::rename(&self.beside, &path));
        finished.map_err(|error| failed("written", &self.key, &error))?;
        self.is_finished = true;
        // The name is as lasting as the bytes; some file systems know no such wish.
        if let Some(folder) = path.parent() {
            File::open(folder).and_then(|folder| folder.sync_all()).ok();
        }
        Ok(())
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        if !self.is_finished {
            fs::remove_file(&self.beside).ok();
        }
    }
}

/// Deletes a file and the folders that are empty without it, as a bucket has none.
fn remove(key: &str) -> io::Result<()> {
    let path = path_of(key);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        removed => removed?,
    }
    let mut folder = path.parent();
    while let Some(empty) = folder.filter(|folder| fs::remove_dir(folder).is_ok()) {
        folder = empty.parent();
    }
    Ok(())
}

/// Reads one range into its sink.
fn feed(read: &mut RangeRead) -> Result<(), Error> {
    let RangeRead { key, range, sink } = read;
    let file = File::open(path_of(key)).map_err(|error| failed("read", key, &error))?;
    let mut buffer = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let most = (range.end - at).min(CHUNK as u64) as usize;
        at += feed_some(&file, at, most, sink.as_mut(), &mut buffer)
            .map_err(|error| error.with_key(format!("/{key}")))?;
    }
    sink.finish()
}

/// Reads at most `most` bytes; how many there were.
fn feed_some(
    file: &File,
    at: u64,
    most: usize,
    sink: &mut dyn RangeSink,
    buffer: &mut Vec<u8>,
) -> Result<u64, Error> {
    let read = |memory: &mut [u8]| match file.read_at(memory, at) {
        Ok(0) => Err(corrupt(format!("the file ends at byte {at}, before what it should hold"))),
        Ok(count) => Ok(count),
        Err(error) => Err(Error::new(ErrorKind::Service, format!("the file cannot be read: {error}"))),
    };
    match sink.space() {
        Space::Memory(memory) => {
            let most = most.min(memory.len());
            let count = read(&mut memory[..most])?;
            sink.filled(count)?;
            Ok(count as u64)
        }
        Space::Write(wanted) => {
            buffer.resize(most.min(wanted), 0);
            let count = read(buffer)?;
            sink.write(&buffer[..count])?;
            Ok(count as u64)
        }
    }
}
