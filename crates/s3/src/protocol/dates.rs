//! The two ways in which S3 writes a time: `Tue, 15 Nov 1994 08:12:31 GMT` in headers and
//! `2009-10-12T17:50:30.000Z` in XML.

use std::time::{Duration, SystemTime};

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A time of an HTTP header (IMF-fixdate, the only form that may be sent).
pub(crate) fn parse_http_date(text: &str) -> Option<SystemTime> {
    let (_, rest) = text.trim().split_once(", ")?;
    let mut words = rest.split(' ');
    let day = number(words.next()?)?;
    let name = words.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year = number(words.next()?)?;
    let seconds = clock_time(words.next()?)?;
    if words.next()? != "GMT" || words.next().is_some() {
        return None;
    }
    at(year, month, day, seconds)
}

/// A time of S3's XML (ISO 8601 in UTC, fractions dropped).
pub(crate) fn parse_iso8601(text: &str) -> Option<SystemTime> {
    let (date, time) = text.trim().strip_suffix('Z')?.split_once('T')?;
    let mut words = date.split('-');
    let (year, month, day) = (number(words.next()?)?, number(words.next()?)?, number(words.next()?)?);
    if words.next().is_some() {
        return None;
    }
    at(year, month, day, clock_time(time.split('.').next()?)?)
}

fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())?
}

fn clock_time(text: &str) -> Option<u64> {
    let mut words = text.split(':');
    let (hour, minute, second) = (number(words.next()?)?, number(words.next()?)?, number(words.next()?)?);
    (words.next().is_none() && hour < 24 && minute < 60 && second <= 60)
        .then_some(hour * 3600 + minute * 60 + second)
}

fn at(year: u64, month: u64, day: u64, seconds: u64) -> Option<SystemTime> {
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 1970 of a proleptic Gregorian date, with years that start in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let since_epoch = days.checked_sub(719_468)? * 86_400 + seconds;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since_epoch))
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
