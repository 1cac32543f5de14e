//! XXH3-128 of what an item is: how it is stored, its dtype and shape, and its bytes. Two items with the same hash are taken
//! for the same, which no CRC-32 allows.
//!
//! It is no defence against somebody who makes up bytes on purpose: who can do that to a state can save any other.

use s3dcp_s3::Error;
use twox_hash::XxHash3_128;

use crate::archive::spec::TensorSpec;
use crate::error::corrupt;

/// What an index calls the hash of an item.
pub(crate) const ITEM_HASH: &str = "xxh3";

/// The hash of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ItemHash([u8; ItemHash::BYTES]);

impl ItemHash {
    const BYTES: usize = 16;

    /// As an index keeps it.
    #[must_use]
    pub fn to_bytes(self) -> [u8; ItemHash::BYTES] {
        self.0
    }

    /// The inverse of [`ItemHash::to_bytes`].
    ///
    /// # Errors
    /// `Corrupt` for another number of bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<ItemHash, Error> {
        let hash = bytes
            .try_into()
            .map_err(|_| corrupt(format!("item hash: {} bytes, must be {}", bytes.len(), ItemHash::BYTES)))?;
        Ok(ItemHash(hash))
    }
}

/// How an item is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemFormat {
    /// A tensor in a torch archive of its own.
    Archive,
    /// The values of a tensor alone, in a file of the safetensors format.
    Values,
}

/// Hashes an item, piece by piece.
pub struct ItemHasher(XxHash3_128);

impl ItemHasher {
    /// A tensor, whose storage's bytes follow.
    #[must_use]
    pub fn tensor(format: ItemFormat, spec: &TensorSpec) -> ItemHasher {
        let name = spec.dtype.torch_name();
        let mut head = vec![
            match format {
                ItemFormat::Archive => 1,
                ItemFormat::Values => 2,
            },
            u8::from(spec.requires_grad),
            name.len() as u8,
        ];
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(&(spec.shape.len() as u64).to_le_bytes());
        let numbers = spec.shape.iter().chain(&spec.strides).chain([&spec.storage_offset]);
        head.extend(numbers.flat_map(|number| number.to_le_bytes()));
        ItemHasher::new(&head)
    }

    /// A pickled object, whose bytes follow.
    #[must_use]
    pub fn object() -> ItemHasher {
        ItemHasher::new(&[0])
    }

    fn new(head: &[u8]) -> ItemHasher {
        let mut hasher = XxHash3_128::new();
        hasher.write(head);
        ItemHasher(hasher)
    }

    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The hash of all of them.
    #[must_use]
    pub fn finish(&self) -> ItemHash {
        ItemHash(self.0.finish_128().to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::dtype::DType;

    fn of(mut hasher: ItemHasher, pieces: &[&[u8]]) -> ItemHash {
        pieces.iter().for_each(|piece| hasher.update(piece));
        hasher.finish()
    }

    #[test]
    fn a_hash_tells_bytes_dtypes_shapes_and_formats_apart() {
        let float = |shape: &[u64]| TensorSpec::contiguous(DType::Float32, shape.to_vec());
        let values: &[u8] = &[0; 24];
        let tensor = |format, spec: &TensorSpec| of(ItemHasher::tensor(format, spec), &[values]);
        let hashes = [
            tensor(ItemFormat::Archive, &float(&[2, 3])),
            tensor(ItemFormat::Archive, &float(&[3, 2])),
            tensor(ItemFormat::Archive, &float(&[6])),
            tensor(ItemFormat::Archive, &TensorSpec::contiguous(DType::Int32, vec![2, 3])),
            tensor(ItemFormat::Values, &float(&[2, 3])),
            of(ItemHasher::tensor(ItemFormat::Archive, &float(&[2, 3])), &[&[0; 23], &[1]]),
            of(ItemHasher::object(), &[values]),
            of(ItemHasher::object(), &[]),
        ];
        assert_eq!(hashes.iter().collect::<HashSet<_>>().len(), hashes.len());
        let pieces: [&[u8]; 3] = [&values[..1], &values[1..20], &values[20..]];
        assert_eq!(of(ItemHasher::tensor(ItemFormat::Archive, &float(&[2, 3])), &pieces), hashes[0]);
        assert_eq!(ItemHash::from_bytes(&hashes[0].to_bytes()).unwrap(), hashes[0]);
        assert!(ItemHash::from_bytes(&[0; 15]).is_err());
    }

    #[test]
    fn an_index_of_another_version_has_the_same_hashes() {
        let spec = TensorSpec::contiguous(DType::BFloat16, vec![2, 1]);
        let hash = of(ItemHasher::tensor(ItemFormat::Archive, &spec), &[&[1, 2, 3, 4]]);
        assert_eq!(u128::from_le_bytes(hash.to_bytes()), 3_099_418_690_477_792_909_871_377_710_284_532_704);
    }
}
