//! What a client is told when the storage fails.
//!
//! The response says what is wrong and where, since whoever runs the client often runs the server. S3 knows no full disks;
//! `507` is HTTP's word for one, and no client sends the request again, as all do after a `500`: the disk would be as full.

use std::io::{Error, ErrorKind};
use std::path::Path;

use http::StatusCode;
use rustix::io::Errno;
use s3s::{S3Error, S3ErrorCode};

/// The response to a request for which the storage, in `directory`, failed with `error`.
pub(crate) fn storage_failure(error: &Error, directory: Option<&Path>) -> S3Error {
    let (status, code, what) = match error.kind() {
        ErrorKind::StorageFull => insufficient("The server's disk is full"),
        ErrorKind::QuotaExceeded => insufficient("The server's disk quota is used up"),
        ErrorKind::FileTooLarge => {
            insufficient("The object is larger than a file may be on the server's disk")
        }
        ErrorKind::ReadOnlyFilesystem => internal("The server's disk is read-only"),
        ErrorKind::PermissionDenied => internal("The server lacks a permission in its directory"),
        _ if matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE)) => {
            (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "The server has too many files open")
        }
        _ => internal("The server's storage failed"),
    };
    let place = directory.map(|directory| format!(" ({})", directory.display())).unwrap_or_default();
    let code = S3ErrorCode::from_bytes(code.as_bytes()).unwrap_or(S3ErrorCode::InternalError);
    let mut answer = S3Error::with_message(code, format!("{what}{place}: {error}"));
    answer.set_status_code(status);
    answer
}

fn insufficient(what: &str) -> (StatusCode, &str, &str) {
    (StatusCode::INSUFFICIENT_STORAGE, "InsufficientStorage", what)
}

fn internal(what: &str) -> (StatusCode, &str, &str) {
    (StatusCode::INTERNAL_SERVER_ERROR, "InternalError", what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_is_told_by_what_it_is_and_where() {
        for (errno, status, code, what) in [
            (Errno::NOSPC, 507, "InsufficientStorage", "disk is full"),
            (Errno::DQUOT, 507, "InsufficientStorage", "quota"),
            (Errno::FBIG, 507, "InsufficientStorage", "larger than a file may be"),
            (Errno::ROFS, 500, "InternalError", "read-only"),
            (Errno::ACCESS, 500, "InternalError", "permission"),
            (Errno::PERM, 500, "InternalError", "permission"),
            (Errno::MFILE, 503, "ServiceUnavailable", "too many files"),
            (Errno::NFILE, 503, "ServiceUnavailable", "too many files"),
            (Errno::IO, 500, "InternalError", "storage failed"),
        ] {
            let error = Error::from(errno);
            let answer = storage_failure(&error, Some(Path::new("/data/objects")));
            assert_eq!(answer.status_code().unwrap().as_u16(), status, "{error}");
            assert_eq!(answer.code().as_str(), code, "{error}");
            let message = answer.message().unwrap();
            assert!(message.contains(what), "{message}");
            assert!(message.contains("/data/objects"), "{message}");
            assert!(message.contains(&error.to_string()), "{message}");
        }
    }
}
