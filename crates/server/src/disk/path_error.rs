//! Errors that say where they were met.

use std::io;
use std::path::Path;

/// Puts the path into an error that was met there.
pub(crate) fn at(path: &Path) -> impl Fn(io::Error) -> io::Error + Copy {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
