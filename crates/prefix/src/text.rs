//! What a prefix's text may be, so that its keys stay below the checkpoint's path and every client can name them.

use crate::error::PrefixError;
use crate::strategy::{Number, check_room};

/// Checks one prefix that a user named; `argument` says which in the error, such as `user_prefixes[2]`.
///
/// A trailing `/` and doubled ones are fine: S3 keys are not paths, and they stay as they are.
///
/// # Errors
/// [`PrefixError::BadText`] for a prefix that is empty, starts with `/`, has a segment `.` or `..` (clients resolve
/// those, so the key would leave the checkpoint's path), or holds `://` (a reader would take it for another place) or a
/// control character (which XML listings cannot carry); [`PrefixError::TooLong`] for one that no key could hold with
/// this epoch.
pub fn check_user_prefix(
    argument: &str,
    text: &str,
    epoch_num: Option<Number<'_>>,
) -> Result<(), PrefixError> {
    if let Some(reason) = fault(text) {
        return Err(PrefixError::BadText { argument: argument.to_owned(), value: text.to_owned(), reason });
    }
    check_room(argument, &format_args!("{text:?}"), text.len() + "/".len(), epoch_num)
}

fn fault(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        Some("is empty")
    } else if text.starts_with('/') {
        Some("starts with '/'")
    } else if text.split('/').any(|segment| matches!(segment, "." | "..")) {
        Some("has a segment '.' or '..'")
    } else if text.contains("://") || text.ends_with(":/") {
        Some("holds '://', or does when a name follows")
    } else if text.chars().any(char::is_control) {
        Some("has a control character")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_that_leave_the_path_are_refused() {
        for text in [
            "", "/", "/p", ".", "..", "p/..", "p/./q", "p/../", "s3://p", "s3:/", "a\0b", "a\nb", "a\u{7f}",
            "a\u{85}b",
        ] {
            assert_eq!(check_user_prefix("p[2]", text, None).unwrap_err().argument(), "p[2]", "{text:?}");
        }
    }

    #[test]
    fn dots_slashes_and_letters_elsewhere_are_fine() {
        for text in ["p", "p/", "p//q", "...", ".hidden", "v1.2/..x", "ä/日本", " ", "a b", "a%2Fb", "a\\b"]
        {
            check_user_prefix("p", text, None).unwrap();
        }
    }

    #[test]
    fn a_long_value_is_cut_in_the_error_text() {
        let refused =
            check_user_prefix("p", &("/".to_owned() + &"é".repeat(500)), None).unwrap_err().to_string();
        assert!(refused.ends_with("\"...") && refused.len() < 300, "{refused}");
    }
}
