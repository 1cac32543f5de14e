//! Names, sizes and times as a person reads them.

use std::time::Duration;

/// A name with its control characters escaped, so that a key cannot play with the terminal.
pub(crate) fn printable(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

/// Bytes, in the unit that leaves the fewest digits.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A time in its two largest units, as `--older-than` takes them; days from the second on.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600, seconds / 60);
    let (large, small) = match seconds {
        0..60 => (format!("{seconds}s"), String::new()),
        60..3600 => (format!("{minutes}m"), format!("{}s", seconds % 60)),
        3600..172_800 => (format!("{hours}h"), format!("{}m", minutes % 60)),
        _ => (format!("{days}d"), format!("{}h", hours % 24)),
    };
    if small.is_empty() || small.starts_with("0") { large } else { format!("{large} {small}") }
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
    let unit = match text.chars().last() {
        Some('s') => Some(1),
        Some('m') => Some(60),
        Some('h') => Some(3600),
        Some('d') => Some(86_400),
        _ => None,
    };
    let digits = text.get(..text.len().saturating_sub(1)).unwrap_or_default();
    let number = digits.parse::<u64>().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let seconds = number.zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| "must be a whole number and one of s, m, h, d, such as 90s, 30m, 2h or 7d".to_owned())
}

/// Reads a number above 0.
pub(crate) fn parse_positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "must be a positive number".to_owned())
}

/// Reads a size such as `512`, `64MiB` or `1.5GiB`, in bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 5] =
        [("KiB", 1024.0), ("MiB", 1048576.0), ("GiB", 1073741824.0), ("TiB", 1099511627776.0), ("B", 1.0)];
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?.trim_end(), *unit)))
        .unwrap_or((text, 1.0));
    let digits = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let bytes = number.parse::<f64>().ok().filter(|_| digits).map(|number| number * unit);
    bytes.filter(|bytes| (1.0..=(1_u64 << 60) as f64).contains(bytes)).map(|bytes| bytes as u64).ok_or_else(
        || "must be a number of bytes, or one with KiB, MiB, GiB or TiB, such as 64MiB".to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_numbers_are_read_strictly() {
        for (text, bytes) in
            [("1", 1), ("512B", 512), ("64MiB", 64 << 20), ("1.5 GiB", 3 << 29), ("2TiB", 2 << 40)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "MiB", "-1", "1e9", "1 MB", "NaN", "inf", "99999999TiB"] {
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
        assert_eq!(size((1 << 20) - 1), "1.0 MiB");
    }

    #[test]
    fn times_have_their_two_largest_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (61, "1m 1s"),
            (3600, "1h"),
            (86_400, "24h"),
            (90_061, "25h 1m"),
            (172_800, "2d"),
            (200_000, "2d 7h"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_time_to_read_has_a_number_and_a_unit() {
        for (text, seconds) in [("0s", 0), ("90s", 90), ("30m", 1800), ("2h", 7200), ("7d", 604_800)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in [
            "",
            "h",
            "2",
            "2 h",
            "-1h",
            "+1h",
            "1.5h",
            "2w",
            "2hé",
            "99999999999999999999s",
            "9999999999999999999d",
        ] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }
}
