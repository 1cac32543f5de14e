//! Heads of tensor archives.

use s3dcp_checkpoint::{HeadState, MAX_HEAD, parse_archive_head};

/// A head that is read tells of a tensor inside its storage, and of the same with less or more bytes behind it; one
/// that goes on asks for more than there is.
pub fn archive(data: &[u8]) {
    match parse_archive_head(data) {
        Ok(HeadState::Complete(head)) => {
            assert!(head.data_offset <= data.len() as u64);
            assert!(head.data_length <= i64::MAX as u64);
            assert_eq!(head.spec.shape.len(), head.spec.strides.len());
            assert!(head.spec.extent_bytes().is_some_and(|extent| extent <= head.data_length));
            let complete = HeadState::Complete(head.clone());
            assert_eq!(
                parse_archive_head(&data[..head.data_offset as usize]).expect("a whole head"),
                complete
            );
            let longer = [data, b"PK\x07\x08 more"].concat();
            assert_eq!(parse_archive_head(&longer).expect("a head and more"), complete);
        }
        Ok(HeadState::NeedMore(least)) => {
            assert!(least > data.len() as u64 && least <= MAX_HEAD, "{least} of {}", data.len());
        }
        Ok(HeadState::NotPlain) | Err(_) => {}
    }
}
