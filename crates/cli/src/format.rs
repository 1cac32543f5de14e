//! Names, sizes and times as a person reads them.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::time::Duration;

use bytesize::ByteSize;

/// A name with its control characters escaped, so that a key cannot play with the terminal.
pub(crate) fn printable(name: &str) -> Cow<'_, str> {
    let is_plain = name.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if is_plain || !name.contains(char::is_control) {
        return name.into();
    }
    let mut shown = String::with_capacity(name.len() + 8);
    for c in name.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown.into()
}

/// The name of an item, with the rank in whose own index it is.
pub(crate) fn item_name(name: &str, rank: Option<u64>) -> Cow<'_, str> {
    let name = printable(name);
    match rank {
        Some(rank) => format!("{name} (rank {rank})").into(),
        None => name,
    }
}

/// Bytes, in the unit that leaves the fewest digits.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// A shape as torch writes it.
pub(crate) fn shape(sizes: &[i64]) -> String {
    bracketed(sizes.iter())
}

/// A block as Python writes its slices.
pub(crate) fn slices(offsets: &[i64], sizes: &[i64]) -> String {
    let slice = |(offset, size): (&i64, &i64)| format!("{offset}:{}", offset.saturating_add(*size));
    bracketed(offsets.iter().zip(sizes).map(slice))
}

fn bracketed(items: impl Iterator<Item = impl Display>) -> String {
    let mut text = String::with_capacity(16);
    text.push('[');
    for (number, item) in items.enumerate() {
        let comma = if number > 0 { ", " } else { "" };
        // writing to a text does not fail
        let _ = write!(text, "{comma}{item}");
    }
    text + "]"
}

/// A number in six digits.
pub(crate) fn number(value: f64) -> String {
    let exponent = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    if !(-4..7).contains(&exponent) {
        return format!("{value:.5e}");
    }
    let text = format!("{value:.*}", usize::try_from(5 - exponent).unwrap_or(0));
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A time in its two largest units, as `--older-than` takes them.
pub(crate) fn duration(time: Duration) -> String {
    let whole = humantime::format_duration(Duration::from_secs(time.as_secs())).to_string();
    let whole = whole.replace("days", "d").replace("day", "d");
    whole.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// Seconds as a person reads them.
pub(crate) fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        short if short < 100.0 => format!("{short:.1} s"),
        long if long < 5_400.0 => format!("{:.1} min", long / 60.0),
        longer => format!("{:.1} h", longer / 3600.0),
    }
}

/// Reads a time such as `90s`, `30m`, `2h` or `7d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("must be a time such as 90s, 30m, 2h or 7d ({error})"))
}

/// Reads a number above 0.
pub(crate) fn parse_positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "must be a positive number".to_owned())
}

/// Most bytes that a size may be: 1 EiB.
const LARGEST: u64 = 1 << 60;

/// Reads a size such as `512`, `64MiB` or `1.5GiB`, in bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let bytes = text.parse::<ByteSize>().ok().map(|size| size.as_u64());
    bytes.filter(|bytes| (1..=LARGEST).contains(bytes)).ok_or_else(|| {
        "must be a number of bytes, or one with KiB, MiB, GiB or TiB, such as 64MiB".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_numbers_are_read_strictly() {
        for (text, bytes) in [
            ("1", 1),
            ("512B", 512),
            ("64MiB", 64 << 20),
            ("1.5 GiB", 3 << 29),
            ("2TiB", 2 << 40),
            ("1 MB", 1_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "MiB", "-1", "1e9", "1 XB", "NaN", "inf", "99999999TiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(parse_positive("2.5"), Ok(2.5));
        for text in ["", "0", "-1", "NaN", "inf", "ten"] {
            assert!(parse_positive(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_one_decimal_and_the_right_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1 << 20, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn numbers_have_six_digits_and_blocks_their_slices() {
        for (value, text) in [
            (0.0, "0"),
            (-1.5, "-1.5"),
            (1.0 / 3.0, "0.333333"),
            (123_456.7, "123457"),
            (1e-9, "1.00000e-9"),
            (2.5e30, "2.50000e30"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(shape(&[]), "[]");
        assert_eq!(slices(&[0, 4], &[2, 3]), "[0:2, 4:7]");
    }

    #[test]
    fn times_have_their_two_largest_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (61, "1m 1s"),
            (3600, "1h"),
            (86_400, "1d"),
            (90_061, "1d 1h"),
            (172_800, "2d"),
            (200_000, "2d 7h"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_time_to_read_has_a_number_and_a_unit() {
        for (text, seconds) in
            [("0s", 0), ("90s", 90), ("30m", 1800), ("2h", 7200), ("7d", 604_800), ("1h 30m", 5400)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "h", "2", "-1h", "+1h", "2hé", "99999999999999999999s", "9999999999999999999d"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }
}
