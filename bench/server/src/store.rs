//! Objects and multipart uploads, in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

/// The bytes of one body. Without a file they were dropped, and read as zeros.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) file: Option<Arc<File>>,
    pub(crate) length: u64,
}

/// An object: the bodies it was uploaded in.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    blobs: Vec<Blob>,
    pub(crate) length: u64,
    /// Different for every write.
    pub(crate) tag: u64,
}

impl Object {
    /// The pieces that hold `range`: each blob with the range within it.
    pub(crate) fn pieces(&self, range: Range<u64>) -> Vec<(Blob, Range<u64>)> {
        let mut start = 0;
        let mut pieces = Vec::new();
        for blob in &self.blobs {
            let end = start + blob.length;
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from < to {
                pieces.push((blob.clone(), from - start..to - start));
            }
            start = end;
        }
        pieces
    }
}

/// What a write demands of the object that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    None,
    Absent,
    Tag(String),
}

impl Condition {
    fn holds(&self, existing: Option<&Object>) -> bool {
        match self {
            Self::None => true,
            Self::Absent => existing.is_none(),
            Self::Tag(tag) => existing.is_some_and(|object| etag(object.tag) == *tag),
        }
    }
}

/// The ETag of a write, without quotes.
pub(crate) fn etag(tag: u64) -> String {
    format!("{tag:032x}")
}

/// Why a write did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Condition,
    NoSuchUpload,
}

/// Everything the server holds, by `bucket/key`.
#[derive(Debug, Default)]
pub(crate) struct Store {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, BTreeMap<u64, Blob>>,
    written: u64,
}

impl Store {
    pub(crate) fn get(&self, path: &str) -> Option<Object> {
        self.objects.get(path).cloned()
    }

    fn insert(&mut self, path: &str, blobs: Vec<Blob>, condition: &Condition) -> Result<u64, Refused> {
        if !condition.holds(self.objects.get(path)) {
            return Err(Refused::Condition);
        }
        self.written += 1;
        let object = Object { length: blobs.iter().map(|blob| blob.length).sum(), blobs, tag: self.written };
        self.objects.insert(path.to_owned(), object);
        Ok(self.written)
    }

    pub(crate) fn put(&mut self, path: &str, blob: Blob, condition: &Condition) -> Result<u64, Refused> {
        self.insert(path, vec![blob], condition)
    }

    /// None where there is nothing to copy.
    pub(crate) fn copy(&mut self, from: &str, to: &str) -> Option<u64> {
        let blobs = self.objects.get(from)?.blobs.clone();
        self.insert(to, blobs, &Condition::None).ok()
    }

    pub(crate) fn create_upload(&mut self) -> String {
        self.written += 1;
        let id = format!("upload-{}", self.written);
        self.uploads.insert(id.clone(), BTreeMap::new());
        id
    }

    /// Parts for an upload that nobody created are taken and forgotten: the floor's sockets send those.
    pub(crate) fn put_part(&mut self, upload: &str, number: u64, blob: Blob) -> u64 {
        self.written += 1;
        if let Some(parts) = self.uploads.get_mut(upload) {
            parts.insert(number, blob);
        }
        self.written
    }

    /// Joins all parts that were uploaded, in the order of their numbers.
    pub(crate) fn complete_upload(
        &mut self,
        path: &str,
        upload: &str,
        condition: &Condition,
    ) -> Result<u64, Refused> {
        let parts = self.uploads.get(upload).ok_or(Refused::NoSuchUpload)?;
        let tag = self.insert(path, parts.values().cloned().collect(), condition)?;
        self.uploads.remove(upload);
        Ok(tag)
    }

    pub(crate) fn abort_upload(&mut self, upload: &str) {
        self.uploads.remove(upload);
    }

    pub(crate) fn delete(&mut self, path: &str) {
        self.objects.remove(path);
    }

    /// Keys of `bucket` under `prefix` with their objects, and the common prefixes up to `delimiter`, both sorted.
    pub(crate) fn list(
        &self,
        bucket: &str,
        prefix: &str,
        delimiter: &str,
    ) -> (Vec<(&str, &Object)>, Vec<String>) {
        let start = format!("{bucket}/{prefix}");
        let below = self.objects.range(start.clone()..).take_while(|(path, _)| path.starts_with(&start));
        let (mut objects, mut prefixes) = (Vec::new(), Vec::new());
        for (path, object) in below {
            let key = &path[bucket.len() + 1..];
            match key[prefix.len()..].find(delimiter).filter(|_| !delimiter.is_empty()) {
                None => objects.push((key, object)),
                Some(at) => {
                    let common = key[..prefix.len() + at + delimiter.len()].to_owned();
                    if prefixes.last() != Some(&common) {
                        prefixes.push(common);
                    }
                }
            }
        }
        (objects, prefixes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(length: u64) -> Blob {
        Blob { file: None, length }
    }

    #[test]
    fn a_range_spans_the_parts_it_lies_in() {
        let mut store = Store::default();
        let upload = store.create_upload();
        for (number, length) in [(2, 5), (1, 10), (3, 7)] {
            store.put_part(&upload, number, blob(length));
        }
        store.complete_upload("b/k", &upload, &Condition::None).unwrap();
        let object = store.get("b/k").unwrap();
        assert_eq!(object.length, 22);
        let ranges: Vec<_> = object.pieces(8..16).into_iter().map(|(_, range)| range).collect();
        assert_eq!(ranges, [8..10, 0..5, 0..1]);
    }

    #[test]
    fn a_write_happens_only_under_its_condition() {
        let mut store = Store::default();
        let first = store.put("b/k", blob(1), &Condition::Absent).unwrap();
        assert_eq!(store.put("b/k", blob(2), &Condition::Absent), Err(Refused::Condition));
        let second = store.put("b/k", blob(3), &Condition::Tag(etag(first))).unwrap();
        assert_eq!(store.put("b/k", blob(4), &Condition::Tag(etag(first))), Err(Refused::Condition));
        let object = store.get("b/k").unwrap();
        assert_eq!((object.tag, object.length), (second, 3));
    }

    #[test]
    fn an_upload_that_loses_its_condition_can_be_tried_again() {
        let mut store = Store::default();
        store.put("b/k", blob(1), &Condition::None).unwrap();
        let upload = store.create_upload();
        assert_eq!(store.complete_upload("b/k", &upload, &Condition::Absent), Err(Refused::Condition));
        assert!(store.complete_upload("b/k", &upload, &Condition::None).is_ok());
        assert_eq!(store.complete_upload("b/k", &upload, &Condition::None), Err(Refused::NoSuchUpload));
    }

    #[test]
    fn a_list_rolls_up_what_lies_behind_the_delimiter() {
        let mut store = Store::default();
        for path in ["b/p/a", "b/p/d/1", "b/p/d/2", "b/q", "c/p/a"] {
            store.put(path, blob(1), &Condition::None).unwrap();
        }
        let (objects, prefixes) = store.list("b", "p/", "/");
        assert_eq!(objects.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["p/a"]);
        assert_eq!(prefixes, ["p/d/"]);
        assert_eq!(store.list("b", "", "").0.len(), 4);
    }
}
