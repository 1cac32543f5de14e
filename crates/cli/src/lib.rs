//! The `s3dcp` command.
