//! The two ways in which S3 writes a time: `Tue, 15 Nov 1994 08:12:31 GMT` in headers and
//! `2009-10-12T17:50:30.000Z` in XML.

use std::time::SystemTime;

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

/// A time of an HTTP header.
pub(crate) fn parse_http_date(text: &str) -> Option<SystemTime> {
    parse(text, Format::HttpDate)
}

/// A time of S3's XML (ISO 8601 in UTC, fractions dropped).
pub(crate) fn parse_iso8601(text: &str) -> Option<SystemTime> {
    parse(text, Format::DateTime)
}

/// No service has answered before 1970.
fn parse(text: &str, format: Format) -> Option<SystemTime> {
    let seconds = DateTime::from_str(text.trim(), format).ok()?.secs();
    (seconds >= 0).then(|| SystemTime::try_from(DateTime::from_secs(seconds)).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(time: Option<SystemTime>) -> Option<u64> {
        time.map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
    }

    #[test]
    fn both_forms_name_the_same_second() {
        for (header, xml, epoch) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", "1970-01-01T00:00:00.000Z", 0),
            ("Tue, 15 Nov 1994 08:12:31 GMT", "1994-11-15T08:12:31Z", 784_887_151),
            ("Tue, 29 Feb 2000 23:59:59 GMT", "2000-02-29T23:59:59.999Z", 951_868_799),
            ("Sun, 31 Dec 2034 12:00:00 GMT", "2034-12-31T12:00:00.000Z", 2_051_179_200),
        ] {
            assert_eq!(seconds(parse_http_date(header)), Some(epoch), "{header}");
            assert_eq!(seconds(parse_iso8601(xml)), Some(epoch), "{xml}");
        }
    }

    #[test]
    fn nonsense_is_no_time() {
        for text in [
            "",
            "GMT",
            "Tue, 15 Foo 1994 08:12:31 GMT",
            "Tue, 15 Nov 1994 08:12:31 CET",
            "2024-13-01T00:00:00Z",
        ] {
            assert_eq!(parse_http_date(text), None);
            assert_eq!(parse_iso8601(text), None);
        }
        assert_eq!(parse_iso8601("2024-01-01T25:00:00Z"), None);
        assert_eq!(parse_iso8601("1900-01-01T00:00:00Z"), None);
        assert_eq!(parse_iso8601("99999999999999999999-01-01T00:00:00Z"), None);
    }
}
