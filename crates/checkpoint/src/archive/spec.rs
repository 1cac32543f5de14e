//! What one tensor looks like: its type, its shape, and where its elements lie in its storage.

use s3dcp_s3::Error;

use crate::dtype::DType;
use crate::error::config;

/// Most dimensions a tensor may have, in torch too.
pub(crate) const MAX_DIMENSIONS: usize = 64;

/// One tensor as an archive describes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    /// Element type.
    pub dtype: DType,
    /// Elements along each dimension; empty for a scalar.
    pub shape: Vec<u64>,
    /// Steps along each dimension, in elements; as many as `shape` has.
    pub strides: Vec<u64>,
    /// The first element's place in the storage, in elements.
    pub storage_offset: u64,
    /// torch's `requires_grad`.
    pub requires_grad: bool,
}

impl TensorSpec {
    /// A row-major tensor that fills its storage and needs no gradient.
    #[must_use]
    pub fn contiguous(dtype: DType, shape: Vec<u64>) -> TensorSpec {
        TensorSpec { dtype, strides: row_major(&shape), shape, storage_offset: 0, requires_grad: false }
    }

    /// Elements in the tensor; `None` when that passes `u64`.
    #[must_use]
    pub fn numel(&self) -> Option<u64> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        self.shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size))
    }

    /// Bytes of the storage this tensor needs at least; `None` when that passes `u64`.
    #[must_use]
    pub fn extent_bytes(&self) -> Option<u64> {
        if self.numel()? == 0 {
            return Some(0);
        }
        let mut last = self.storage_offset;
        for (&size, &stride) in self.shape.iter().zip(&self.strides) {
            last = last.checked_add((size - 1).checked_mul(stride)?)?;
        }
        last.checked_add(1)?.checked_mul(self.dtype.item_size())
    }

    /// True when the elements lie one after another in row-major order (torch's contiguous format).
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        if self.numel() == Some(0) {
            return true;
        }
        let mut step = 1;
        for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if size != 1 {
                if stride != step {
                    return false;
                }
                step *= size;
            }
        }
        true
    }

    /// The bytes of a storage that holds exactly this tensor, after checking that it does.
    ///
    /// # Errors
    /// `Config` when shape and strides differ in number, pass 64 dimensions or `u64`, or reach outside a storage of
    /// as many elements as the tensor has.
    pub(crate) fn dense_bytes(&self) -> Result<u64, Error> {
        if self.shape.len() != self.strides.len() || self.shape.len() > MAX_DIMENSIONS {
            return Err(config(format!(
                "tensor spec: {} sizes and {} strides, must be as many as each other and at most {MAX_DIMENSIONS}",
                self.shape.len(),
                self.strides.len()
            )));
        }
        let bytes = self.numel().and_then(|count| count.checked_mul(self.dtype.item_size()));
        let (Some(bytes), Some(extent)) = (bytes, self.extent_bytes()) else {
            return Err(config(format!("tensor spec: shape {:?} has too many elements", self.shape)));
        };
        if bytes > i64::MAX as u64 || extent > bytes {
            return Err(config(format!(
                "tensor spec: shape {:?} with strides {:?} from element {} does not fit a storage of {bytes} bytes",
                self.shape, self.strides, self.storage_offset
            )));
        }
        Ok(bytes)
    }
}

/// Strides, in elements, of a row-major tensor of `shape`.
pub(crate) fn row_major(shape: &[u64]) -> Vec<u64> {
    let mut strides = vec![1u64; shape.len()];
    for dimension in (1..shape.len()).rev() {
        strides[dimension - 1] = strides[dimension].saturating_mul(shape[dimension].max(1));
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguous_strides_are_those_of_torch() {
        let spec = TensorSpec::contiguous(DType::Int64, vec![2, 0, 3]);
        assert_eq!(spec.strides, [3, 3, 1]);
        assert_eq!(spec.dense_bytes().unwrap(), 0);
        assert_eq!(TensorSpec::contiguous(DType::Float32, vec![]).dense_bytes().unwrap(), 4);
        assert!(TensorSpec::contiguous(DType::Float32, vec![2, 3, 4]).is_contiguous());
    }

    #[test]
    fn a_spec_that_reaches_outside_its_storage_is_refused() {
        let mut spec = TensorSpec::contiguous(DType::Float32, vec![2, 3]);
        spec.strides = vec![1, 2];
        assert_eq!(spec.dense_bytes().unwrap(), 24, "a transposed dense tensor is fine");
        assert!(!spec.is_contiguous());
        spec.storage_offset = 1;
        assert!(spec.dense_bytes().is_err());
        spec.strides.pop();
        assert!(spec.dense_bytes().is_err());
        assert!(TensorSpec::contiguous(DType::Float32, vec![u64::MAX, 2]).dense_bytes().is_err());
    }
}
