//! The checksums of S3: computed while bytes pass, compared with what the client says, combined over parts.
//!
//! Nothing is computed unless the client names an algorithm.

use std::fmt;

use crc_fast::CrcAlgorithm;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Sha1, Sha256};
use s3s::dto::{ChecksumAlgorithm, ChecksumType};
use s3s::{S3Error, S3Result, s3_error};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Algorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

impl Algorithm {
    pub(crate) const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    /// S3's name, as in `x-amz-checksum-algorithm`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Crc32 => ChecksumAlgorithm::CRC32,
            Self::Crc32c => ChecksumAlgorithm::CRC32C,
            Self::Crc64Nvme => ChecksumAlgorithm::CRC64NVME,
            Self::Sha1 => ChecksumAlgorithm::SHA1,
            Self::Sha256 => ChecksumAlgorithm::SHA256,
        }
    }

    pub(crate) fn parse(name: &str) -> S3Result<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            s3_error!(InvalidRequest, "Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]")
        })
    }

    /// The algorithm that a header or trailer name such as `x-amz-checksum-crc32` carries.
    pub(crate) fn of_header(name: &str) -> Option<Self> {
        let suffix = name.strip_prefix("x-amz-checksum-")?;
        Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(suffix))
    }

    /// Whether checksums of neighbours can be combined into the checksum of both together.
    pub(crate) const fn combines(self) -> bool {
        self.crc().is_some()
    }

    const fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Self::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Self::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Self::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            Self::Sha1 | Self::Sha256 => None,
        }
    }

    const fn size(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }
}

/// The checksum of one run of bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Digest {
    pub(crate) algorithm: Algorithm,
    bytes: Vec<u8>,
}

impl Digest {
    /// Reads a header's value.
    pub(crate) fn parse(algorithm: Algorithm, base64: &str) -> S3Result<Self> {
        match base64_simd::STANDARD.decode_to_vec(base64) {
            Ok(bytes) if bytes.len() == algorithm.size() => Ok(Self { algorithm, bytes }),
            _ => Err(s3_error!(
                InvalidRequest,
                "Value for x-amz-checksum-{} header is invalid.",
                algorithm.name().to_ascii_lowercase()
            )),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base64_simd::STANDARD.encode_to_string(&self.bytes))
    }
}

/// The checksum of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ObjectChecksum {
    digest: Digest,
    /// For a checksum of the parts' checksums: how many parts.
    composite: Option<usize>,
}

impl ObjectChecksum {
    pub(crate) const fn full(digest: Digest) -> Self {
        Self { digest, composite: None }
    }

    pub(crate) const fn algorithm(&self) -> Algorithm {
        self.digest.algorithm
    }

    pub(crate) const fn kind(&self) -> &'static str {
        match self.composite {
            None => ChecksumType::FULL_OBJECT,
            Some(_) => ChecksumType::COMPOSITE,
        }
    }

    /// The checksum of the whole object out of its parts' checksums and sizes.
    pub(crate) fn combined<'a>(
        algorithm: Algorithm,
        parts: impl Iterator<Item = (&'a Digest, u64)>,
    ) -> Option<Self> {
        let crc = algorithm.crc()?;
        let mut whole = 0;
        for (digest, size) in parts {
            whole = crc_fast::checksum_combine(crc, whole, number(&digest.bytes), size);
        }
        let bytes = whole.to_be_bytes()[8 - algorithm.size()..].to_vec();
        Some(Self::full(Digest { algorithm, bytes }))
    }

    /// The checksum of the parts' checksums.
    pub(crate) fn composite<'a>(algorithm: Algorithm, parts: impl Iterator<Item = &'a Digest>) -> Self {
        let mut hasher = Hasher::new(algorithm);
        let mut count = 0;
        for digest in parts {
            hasher.update(&digest.bytes);
            count += 1;
        }
        Self { digest: hasher.finish(), composite: Some(count) }
    }
}

impl fmt::Display for ObjectChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.composite {
            None => self.digest.fmt(f),
            Some(parts) => write!(f, "{}-{parts}", self.digest),
        }
    }
}

fn number(big_endian: &[u8]) -> u64 {
    big_endian.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// One checksum in the making.
pub(crate) enum Hasher {
    Crc32(Crc32),
    Crc32c(Crc32c),
    Crc64Nvme(Crc64Nvme),
    Sha1(Sha1),
    Sha256(Sha256),
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Crc32 => Self::Crc32(Crc32::new()),
            Algorithm::Crc32c => Self::Crc32c(Crc32c::new()),
            Algorithm::Crc64Nvme => Self::Crc64Nvme(Crc64Nvme::new()),
            Algorithm::Sha1 => Self::Sha1(Sha1::new()),
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc32(hasher) => hasher.update(bytes),
            Self::Crc32c(hasher) => hasher.update(bytes),
            Self::Crc64Nvme(hasher) => hasher.update(bytes),
            Self::Sha1(hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        let (algorithm, bytes) = match self {
            Self::Crc32(hasher) => (Algorithm::Crc32, hasher.finalize().to_vec()),
            Self::Crc32c(hasher) => (Algorithm::Crc32c, hasher.finalize().to_vec()),
            Self::Crc64Nvme(hasher) => (Algorithm::Crc64Nvme, hasher.finalize().to_vec()),
            Self::Sha1(hasher) => (Algorithm::Sha1, hasher.finalize().as_ref().to_vec()),
            Self::Sha256(hasher) => (Algorithm::Sha256, hasher.finalize().as_ref().to_vec()),
        };
        Digest { algorithm, bytes }
    }
}

/// Puts a checksum into the field of its algorithm; every S3 message has the same five fields.
macro_rules! set_checksum {
    ($message:expr, $algorithm:expr, $value:expr) => {
        match $algorithm {
            $crate::checksum::Algorithm::Crc32 => $message.checksum_crc32 = Some($value.to_string()),
            $crate::checksum::Algorithm::Crc32c => $message.checksum_crc32c = Some($value.to_string()),
            $crate::checksum::Algorithm::Crc64Nvme => $message.checksum_crc64nvme = Some($value.to_string()),
            $crate::checksum::Algorithm::Sha1 => $message.checksum_sha1 = Some($value.to_string()),
            $crate::checksum::Algorithm::Sha256 => $message.checksum_sha256 = Some($value.to_string()),
        }
    };
}

/// The checksums that a message carries, as `Vec<(Algorithm, &str)>`.
macro_rules! checksums_of {
    ($message:expr) => {
        [
            ($crate::checksum::Algorithm::Crc32, $message.checksum_crc32.as_deref()),
            ($crate::checksum::Algorithm::Crc32c, $message.checksum_crc32c.as_deref()),
            ($crate::checksum::Algorithm::Crc64Nvme, $message.checksum_crc64nvme.as_deref()),
            ($crate::checksum::Algorithm::Sha1, $message.checksum_sha1.as_deref()),
            ($crate::checksum::Algorithm::Sha256, $message.checksum_sha256.as_deref()),
        ]
        .into_iter()
        .filter_map(|(algorithm, value)| value.map(|value| (algorithm, value)))
        .collect::<Vec<_>>()
    };
}

pub(crate) use {checksums_of, set_checksum};

/// The response to bytes that are not those of their checksum.
pub(crate) fn bad_digest(algorithm: Algorithm) -> S3Error {
    s3_error!(BadDigest, "The {} you specified did not match the calculated checksum.", algorithm.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    #[test]
    fn check_values_are_those_of_the_catalogues() {
        for (algorithm, expected) in [
            (Algorithm::Crc32, "y/Q5Jg=="),
            (Algorithm::Crc32c, "4waSgw=="),
            (Algorithm::Crc64Nvme, "rosUhgp5mIg="),
            (Algorithm::Sha1, "98O8HYCOBHMq32eZZczDTKeuNEE="),
            (Algorithm::Sha256, "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="),
        ] {
            assert_eq!(digest(algorithm, b"123456789").to_string(), expected, "{}", algorithm.name());
        }
    }

    #[test]
    fn parts_combine_to_the_checksum_of_the_whole() {
        let data: Vec<u8> = (0..100_000_u32).map(|i| ((i * 7) >> 3) as u8).collect();
        for algorithm in Algorithm::ALL.into_iter().filter(|algorithm| algorithm.combines()) {
            let parts: Vec<(Digest, u64)> =
                data.chunks(33_333).map(|part| (digest(algorithm, part), part.len() as u64)).collect();
            let combined = ObjectChecksum::combined(algorithm, parts.iter().map(|(d, n)| (d, *n)));
            assert_eq!(
                combined,
                Some(ObjectChecksum::full(digest(algorithm, &data))),
                "{}",
                algorithm.name()
            );
        }
    }

    #[test]
    fn a_composite_checksum_says_how_many_parts_it_is_of() {
        let parts = [digest(Algorithm::Sha256, b"a"), digest(Algorithm::Sha256, b"b")];
        let composite = ObjectChecksum::composite(Algorithm::Sha256, parts.iter());
        assert!(composite.to_string().ends_with("-2"));
        assert_eq!(composite.kind(), "COMPOSITE");
    }

    #[test]
    fn a_value_of_the_wrong_length_is_refused() {
        assert!(Digest::parse(Algorithm::Crc32, "y/Q5Jg==").is_ok());
        assert!(Digest::parse(Algorithm::Crc64Nvme, "y/Q5Jg==").is_err());
        assert!(Digest::parse(Algorithm::Crc32, "not base64").is_err());
    }
}
