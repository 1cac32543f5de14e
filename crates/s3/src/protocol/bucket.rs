//! What stands for a bucket in a request: its name, or the ARN of an access point.
//!
//! An access point's alias (`…-s3alias`) is a name like any other. The name of a directory bucket (S3 Express One Zone) tells
//! that it is one, and its zone. What this does not do: ARNs of S3 on Outposts and of Object Lambda, and multi-region access
//! points, whose requests need another kind of signature.

use crate::error::{Error, invalid};

/// What every ARN begins with.
const ARN: &str = "arn:";
/// What the resource of an access point's ARN begins with.
const RESOURCE: &str = "accesspoint";
/// What the names of directory buckets end with, and those of their access points. No other bucket has such a name.
const DIRECTORY: [&str; 2] = ["--x-s3", "--xa-s3"];

/// An access point, by its ARN `arn:<partition>:s3:<region>:<account>:accesspoint/<name>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AccessPoint<'a> {
    pub(crate) partition: &'a str,
    pub(crate) region: &'a str,
    account: &'a str,
    name: &'a str,
}

impl<'a> AccessPoint<'a> {
    /// The access point that this is the ARN of; `None` for what is no ARN.
    ///
    /// # Errors
    /// `Config`, for an ARN of anything else.
    pub(crate) fn of(bucket: &'a str) -> Result<Option<AccessPoint<'a>>, Error> {
        let refuse = |why: &str| Err(invalid(format!("bucket {bucket:?} {why}")));
        let Some(rest) = bucket.strip_prefix(ARN) else { return Ok(None) };
        let parts: Vec<&str> = rest.splitn(5, ':').collect();
        let [partition, service, region, account, resource] = parts[..] else {
            return refuse("is no ARN: arn:<partition>:s3:<region>:<account>:accesspoint/<name>");
        };
        match service {
            "s3" => {}
            "s3-outposts" => return refuse("is on an Outpost, which is not supported"),
            "s3-object-lambda" => return refuse("is an Object Lambda, which is not supported"),
            _ => return refuse("is an ARN of another service than s3"),
        }
        let name = resource.strip_prefix(RESOURCE).and_then(|rest| rest.strip_prefix(['/', ':']));
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return refuse("is an ARN, but none of an access point: accesspoint/<name>");
        };
        if region.is_empty() {
            return refuse(
                "is a multi-region access point; these need signatures of version 4A, and do not promise that what was written is \
                 read, which a commit relies on: name the access point or the bucket of one region",
            );
        }
        if !is_host_label(region) {
            return refuse("has a region that cannot stand in a host name");
        }
        let access_point = AccessPoint { partition, region, account, name };
        if !is_host_label(account) || !is_host_label(name) || !is_host_label(&access_point.label()) {
            return refuse("has an account or a name that cannot stand in a host name");
        }
        Ok(Some(access_point))
    }

    /// What it is called within a host name.
    pub(crate) fn label(&self) -> String {
        format!("{}-{}", self.name, self.account)
    }
}

/// Splits what follows `s3://` into bucket and key. The ARN of an access point may hold a slash.
pub(crate) fn split_bucket(text: &str) -> (&str, &str) {
    let resource = text.strip_prefix(ARN).and_then(|rest| rest.splitn(5, ':').nth(4));
    let inside = resource.filter(|resource| resource.starts_with("accesspoint/"));
    let from = inside.map_or(0, |resource| text.len() - resource.len() + RESOURCE.len() + 1);
    match text[from..].find('/') {
        Some(slash) => (&text[..from + slash], &text[from + slash + 1..]),
        None => (text, ""),
    }
}

/// Refuses a bucket name that would change the meaning of a URL, and what is not supported.
pub(crate) fn check_bucket(bucket: &str) -> Result<(), Error> {
    if AccessPoint::of(bucket)?.is_some() {
        return Ok(());
    }
    let usable = (1..=255).contains(&bucket.len())
        && bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        && bucket != "."
        && bucket != "..";
    if !usable {
        return Err(invalid(format!(
            "a bucket name has letters, digits, '-', '.' and '_' only, at most 255 of them, not {bucket:?}"
        )));
    }
    let ends_as_directory = DIRECTORY.iter().any(|suffix| bucket.ends_with(suffix));
    let has_zone = zone_of(bucket).is_some_and(is_host_label) && is_lower_case_label(bucket);
    if ends_as_directory && !has_zone {
        return Err(invalid(format!(
            "bucket {bucket:?} ends as directory buckets do, whose names are <name>--<zone id>--x-s3, as in models--use1-az4--x-s3, \
             of at most 63 lower-case letters, digits and hyphens"
        )));
    }
    Ok(())
}

/// Whether this is a directory bucket of S3 Express One Zone, as its name tells: `models--use1-az4--x-s3`.
///
/// ```
/// assert!(s3dcp_s3::is_directory_bucket("models--use1-az4--x-s3"));
/// assert!(!s3dcp_s3::is_directory_bucket("models"));
/// ```
#[must_use]
pub fn is_directory_bucket(bucket: &str) -> bool {
    zone_of(bucket).is_some()
}

/// The id of the zone that a directory bucket lies in; `None` for every other bucket.
pub(crate) fn zone_of(bucket: &str) -> Option<&str> {
    let named = DIRECTORY.iter().find_map(|suffix| bucket.strip_suffix(suffix))?;
    named.rsplit_once("--").filter(|(name, _)| !name.is_empty()).map(|(_, zone)| zone)
}

/// Whether a bucket of this name can stand before a host's.
pub(crate) fn can_be_in_host(bucket: &str) -> bool {
    (3..=63).contains(&bucket.len()) && bucket.split('.').all(is_lower_case_label)
}

fn is_lower_case_label(text: &str) -> bool {
    is_host_label(text) && !text.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Whether the text can be one label of a host name.
pub(crate) fn is_host_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn the_bucket_ends_at_the_first_slash_and_an_access_point_at_the_next() {
        let slash = "arn:aws:s3:us-west-2:123456789012:accesspoint/models";
        let colon = "arn:aws:s3:us-west-2:123456789012:accesspoint:models";
        for bucket in ["models", "models-x1y2-s3alias", slash, colon] {
            for key in ["", "k", "a/b c", "/a", "a:b/"] {
                assert_eq!(split_bucket(&format!("{bucket}/{key}")), (bucket, key));
            }
            assert_eq!(split_bucket(bucket), (bucket, ""));
        }
        assert_eq!(split_bucket("arn:x/y"), ("arn:x", "y"));
        assert_eq!(split_bucket(""), ("", ""));
    }

    #[test]
    fn an_access_point_is_known_by_its_arn() {
        let arn = "arn:aws-cn:s3:cn-north-1:123456789012:accesspoint/models";
        let access_point = AccessPoint::of(arn).unwrap().unwrap();
        assert_eq!(
            (access_point.partition, access_point.region, access_point.label().as_str()),
            ("aws-cn", "cn-north-1", "models-123456789012")
        );
        assert_eq!(AccessPoint::of("models").unwrap(), None);
        assert_eq!(AccessPoint::of("arn").unwrap(), None);
        assert!(check_bucket(arn).is_ok());
    }

    #[test]
    fn what_else_has_an_arn_is_refused_by_what_it_is() {
        for (arn, word) in [
            ("arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap", "4A"),
            ("arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-1/accesspoint/x", "Outpost"),
            ("arn:aws:s3-object-lambda:us-west-2:123456789012:accesspoint/x", "Object Lambda"),
            ("arn:aws:sqs:us-west-2:123456789012:x", "another service"),
            ("arn:aws:s3:::models", "none of an access point"),
            ("arn:aws:s3:us-west-2:123456789012:accesspoint/", "none of an access point"),
            ("arn:aws:s3", "no ARN"),
            ("arn:aws:s3:us-west-2:123456789012:accesspoint/a/b", "name"),
            ("arn:aws:s3:us-west-2:123456789012:accesspoint/a.b", "name"),
            ("arn:aws:s3:us-west-2::accesspoint/a", "account"),
            ("arn:aws:s3:evil.com/x:123456789012:accesspoint/a", "region"),
        ] {
            let error = check_bucket(arn).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.message().contains(word) && error.message().contains(arn), "{error}");
        }
    }

    #[test]
    fn a_directory_bucket_tells_its_zone() {
        for (bucket, zone) in [
            ("b--usw2-az1--x-s3", "usw2-az1"),
            ("my--models--usw2-lax1-az1--x-s3", "usw2-lax1-az1"),
            ("b--use1-az4--xa-s3", "use1-az4"),
        ] {
            assert_eq!(zone_of(bucket), Some(zone));
            assert!(check_bucket(bucket).is_ok() && is_directory_bucket(bucket));
        }
        for bucket in ["b", "b-x-s3", "b--usw2-az1--x-s3-old", "--x-s3"] {
            assert!(!is_directory_bucket(bucket), "{bucket}");
        }
    }

    #[test]
    fn a_name_that_ends_as_a_directory_bucket_must_be_one() {
        let long = format!("{}--use1-az4--x-s3", "b".repeat(50));
        for bucket in
            ["--x-s3", "b--x-s3", "b----x-s3", "--az1--x-s3", "B--az1--x-s3", "a.b--az1--x-s3", &long]
        {
            let error = check_bucket(bucket).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.message().contains(bucket) && error.message().contains("<zone id>"), "{error}");
        }
    }
}
