//! CRC-32 (the polynomial of zip and of `x-amz-checksum-crc32`), its combination, and the text in which S3 writes it.

use aws_smithy_types::base64;
use http::HeaderMap;

use crate::protocol::error_response::header;

/// The header of a body's CRC-32.
pub(crate) const CRC32_HEADER: &str = "x-amz-checksum-crc32";

/// CRC-32 (ISO-HDLC, as in zip) of `bytes`.
///
/// ```
/// assert_eq!(s3dcp_s3::crc32(b"123456789"), 0xcbf4_3926);
/// ```
pub fn crc32(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iso_hdlc(bytes)
}

/// CRC-32 of `a` followed by `b`, from the CRC-32 of each and the length of `b` in bytes.
///
/// ```
/// use s3dcp_s3::{crc32, crc32_combine};
/// assert_eq!(crc32_combine(crc32(b"1234"), crc32(b"56789"), 5), crc32(b"123456789"));
/// ```
pub fn crc32_combine(a: u32, b: u32, len_b: u64) -> u32 {
    // `a` is moved up by `len_b` bytes: multiplied with x^(8 * len_b)
    let mut moved = a;
    let mut left = len_b;
    while left != 0 {
        moved = multiply(moved, BYTES_UP[left.trailing_zeros() as usize]);
        left &= left - 1;
    }
    moved ^ b
}

/// The polynomial of CRC-32, the highest power in the lowest bit, as in all numbers here.
const POLYNOMIAL: u32 = 0xedb8_8320;

/// The product of two polynomials, modulo that of CRC-32.
const fn multiply(a: u32, b: u32) -> u32 {
    let (mut product, mut term, mut power) = (0, b, 32);
    while power > 0 {
        power -= 1;
        product ^= term & ((a >> power) & 1).wrapping_neg();
        term = (term >> 1) ^ (POLYNOMIAL & (term & 1).wrapping_neg());
    }
    product
}

/// At `k`: the polynomial that moves a checksum up by `2^k` bytes.
const BYTES_UP: [u32; 64] = {
    let mut table = [1 << 23; 64]; // x^8
    let mut k = 1;
    while k < 64 {
        table[k] = multiply(table[k - 1], table[k - 1]);
        k += 1;
    }
    table
};

/// A CRC-32 as S3 writes it in headers and XML.
pub(crate) fn crc32_text(crc32: u32) -> String {
    base64::encode(crc32.to_be_bytes())
}

/// The CRC-32 in a header or XML element of S3; `None` when it is not one (a composite checksum ends in
/// `-<parts>`).
pub(crate) fn parse_crc32(text: &str) -> Option<u32> {
    // Not some other number of bytes.
    let bytes: [u8; 4] = base64::decode(text).ok()?.try_into().ok()?;
    Some(u32::from_be_bytes(bytes))
}

/// Length in bytes of the object that a response's headers are about, and the CRC-32 of the whole of it.
pub(crate) fn size_and_crc32(headers: &HeaderMap) -> (Option<u64>, Option<u32>) {
    let size = header(headers, "content-length").and_then(|text| text.parse().ok());
    let is_whole = header(headers, "x-amz-checksum-type").is_none_or(|kind| kind == "FULL_OBJECT");
    (size, header(headers, CRC32_HEADER).filter(|_| is_whole).and_then(parse_crc32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_survives_its_text_and_a_composite_one_is_none() {
        for crc in [0, 1, 0xcbf4_3926, u32::MAX] {
            assert_eq!(parse_crc32(&crc32_text(crc)), Some(crc));
        }
        assert_eq!(parse_crc32("AAAAAA==-3"), None);
        assert_eq!(parse_crc32("!AAAAA=="), None);
        assert_eq!(parse_crc32(""), None);
    }

    #[test]
    fn combining_with_nothing_changes_nothing() {
        assert_eq!(crc32_combine(crc32(b"abc"), crc32(b""), 0), crc32(b"abc"));
        assert_eq!(crc32_combine(crc32(b""), crc32(b"abc"), 3), crc32(b"abc"));
    }

    #[test]
    fn combining_agrees_with_the_checksum_of_the_whole_at_every_cut() {
        let bytes: Vec<u8> = (0..70_000u32).map(|at| (at * 7 + at / 251) as u8).collect();
        let whole = crc32(&bytes);
        for cut in (0..300).chain([4096, 65_535, 65_536, 69_999, 70_000]) {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(crc32_combine(crc32(a), crc32(b), b.len() as u64), whole, "cut at {cut}");
        }
    }

    #[test]
    fn combining_works_across_four_gibibytes() {
        // CRC of zeros only, built by doubling, against the same length combined in another order.
        let (mut crc, mut length) = (crc32(&[0; 1 << 16]), 1u64 << 16);
        while length < 1 << 33 {
            crc = crc32_combine(crc, crc, length);
            length *= 2;
        }
        let half = {
            let (mut crc, mut length) = (crc32(&[0; 1 << 16]), 1u64 << 16);
            while length < 1 << 32 {
                crc = crc32_combine(crc, crc, length);
                length *= 2;
            }
            crc
        };
        let head = crc32(b"head");
        assert_eq!(
            crc32_combine(head, crc, 1 << 33),
            crc32_combine(crc32_combine(head, half, 1 << 32), half, 1 << 32)
        );
    }
}
