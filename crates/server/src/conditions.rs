//! `If-Match` and its relatives, for writes and for reads.

use std::time::SystemTime;

use http::header::{CONTENT_TYPE, ETAG, HeaderMap, HeaderValue};
use s3s::dto::{ETagCondition, Timestamp};
use s3s::{S3Error, S3Result, s3_error};

use crate::object::Object;

/// The condition of a write. It is checked under the lock under which the object is then inserted, so that of any
/// number of racing writers exactly one wins.
#[derive(Debug, Clone, Default)]
pub(crate) struct WriteCondition {
    pub(crate) if_match: Option<ETagCondition>,
    pub(crate) if_none_match: Option<ETagCondition>,
}

impl WriteCondition {
    /// S3 knows no more than `*` for `If-None-Match` on a write.
    pub(crate) fn new(
        if_match: Option<ETagCondition>,
        if_none_match: Option<ETagCondition>,
    ) -> S3Result<Self> {
        if if_none_match.as_ref().is_some_and(|condition| !condition.is_any()) {
            return Err(s3_error!(
                NotImplemented,
                "A header you provided implies functionality that is not implemented"
            ));
        }
        Ok(Self { if_match, if_none_match })
    }

    pub(crate) fn check(&self, existing: Option<&Object>) -> S3Result<()> {
        if self.if_none_match.is_some() && existing.is_some() {
            return Err(precondition_failed("If-None-Match"));
        }
        if let Some(condition) = &self.if_match {
            match existing {
                None => return Err(s3_error!(NoSuchKey, "The specified key does not exist.")),
                Some(object) if !matches(condition, &object.etag) => {
                    return Err(precondition_failed("If-Match"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// The conditions of a read.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReadCondition {
    pub(crate) if_match: Option<ETagCondition>,
    pub(crate) if_none_match: Option<ETagCondition>,
    pub(crate) if_modified_since: Option<Timestamp>,
    pub(crate) if_unmodified_since: Option<Timestamp>,
}

impl ReadCondition {
    /// Entity tags win over dates, as RFC 9110 section 13.2.2 has it.
    pub(crate) fn check(&self, object: &Object) -> S3Result<()> {
        if let Some(condition) = &self.if_match {
            if !matches(condition, &object.etag) {
                return Err(precondition_failed("If-Match"));
            }
        } else if self
            .if_unmodified_since
            .as_ref()
            .is_some_and(|since| modified_after(object.modified, since))
        {
            return Err(precondition_failed("If-Unmodified-Since"));
        }
        if let Some(condition) = &self.if_none_match {
            if matches(condition, &object.etag) {
                return Err(not_modified(object));
            }
        } else if self.if_modified_since.as_ref().is_some_and(|since| !modified_after(object.modified, since))
        {
            return Err(not_modified(object));
        }
        Ok(())
    }

    /// The same for the source of a copy, where every failure is 412.
    pub(crate) fn check_source(&self, object: &Object) -> S3Result<()> {
        self.check(object).map_err(|_| precondition_failed("x-amz-copy-source-if"))
    }
}

fn matches(condition: &ETagCondition, etag: &str) -> bool {
    condition.is_any() || condition.as_etag().is_some_and(|expected| expected.value() == etag)
}

fn modified_after(modified: SystemTime, since: &Timestamp) -> bool {
    Timestamp::from(modified) > *since
}

fn precondition_failed(condition: &str) -> S3Error {
    s3_error!(
        PreconditionFailed,
        "At least one of the pre-conditions you specified did not hold: {condition}"
    )
}

fn not_modified(object: &Object) -> S3Error {
    let mut error = s3_error!(NotModified, "Not Modified");
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    if let Ok(etag) = HeaderValue::try_from(format!("\"{}\"", object.etag)) {
        headers.insert(ETAG, etag);
    }
    error.set_headers(headers);
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Metadata;
    use std::time::{Duration, UNIX_EPOCH};

    fn object() -> Object {
        Object {
            etag: "abc".to_owned(),
            size: 0,
            modified: UNIX_EPOCH + Duration::from_secs(1_000_000),
            metadata: Metadata::default(),
            checksum: None,
            parts: Vec::new(),
            segments: Vec::new(),
        }
    }

    fn tag(value: &str) -> Option<ETagCondition> {
        Some(ETagCondition::parse_http_header(value.as_bytes()).unwrap())
    }

    fn time(seconds: u64) -> Option<Timestamp> {
        Some(Timestamp::from(UNIX_EPOCH + Duration::from_secs(seconds)))
    }

    fn write(
        if_match: Option<ETagCondition>,
        if_none_match: Option<ETagCondition>,
        existing: bool,
    ) -> String {
        let object = object();
        let result = WriteCondition { if_match, if_none_match }.check(existing.then_some(&object));
        result.map_or_else(|error| error.code().as_str().to_owned(), |()| "ok".to_owned())
    }

    fn read(condition: &ReadCondition) -> u16 {
        condition.check(&object()).map_or_else(|error| error.status_code().unwrap().as_u16(), |()| 200)
    }

    #[test]
    fn a_write_condition_holds_or_names_its_error() {
        assert_eq!(write(None, None, true), "ok");
        assert_eq!(write(None, tag("*"), false), "ok");
        assert_eq!(write(None, tag("*"), true), "PreconditionFailed");
        assert_eq!(write(tag("\"abc\""), None, true), "ok");
        assert_eq!(write(tag("abc"), None, true), "ok");
        assert_eq!(write(tag("\"other\""), None, true), "PreconditionFailed");
        assert_eq!(write(tag("\"abc\""), None, false), "NoSuchKey");
    }

    #[test]
    fn if_none_match_on_a_write_knows_only_the_star() {
        assert!(WriteCondition::new(None, tag("\"abc\"")).is_err());
    }

    #[test]
    fn entity_tags_win_over_dates_on_reads() {
        let none = ReadCondition::default;
        assert_eq!(
            read(&ReadCondition { if_match: tag("\"abc\""), if_unmodified_since: time(1), ..none() }),
            200
        );
        assert_eq!(read(&ReadCondition { if_match: tag("\"x\""), ..none() }), 412);
        assert_eq!(read(&ReadCondition { if_unmodified_since: time(1), ..none() }), 412);
        assert_eq!(read(&ReadCondition { if_none_match: tag("\"abc\""), ..none() }), 304);
        assert_eq!(
            read(&ReadCondition {
                if_none_match: tag("\"x\""),
                if_modified_since: time(2_000_000),
                ..none()
            }),
            200
        );
        assert_eq!(read(&ReadCondition { if_modified_since: time(1_000_000), ..none() }), 304);
        assert_eq!(read(&ReadCondition { if_modified_since: time(999_999), ..none() }), 200);
    }
}
