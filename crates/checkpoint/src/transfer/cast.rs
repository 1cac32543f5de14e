//! Values of tensors in another floating-point type, rounded as torch rounds them.

use bytes::{Bytes, BytesMut};
use half::{bf16, f16};

use crate::dtype::DType;

/// Whether values of these types can be written as each other.
pub(crate) fn can_cast(from: DType, to: DType) -> bool {
    from == to || is_float(from) && is_float(to)
}

/// Whether `cast` knows it as a floating-point type: not the ones of 8 bits, whose scales lie elsewhere.
pub(crate) fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::Float64 | DType::Float32 | DType::Float16 | DType::BFloat16)
}

/// Little-endian values of `from` as values of `to`. Through float32, as torch does it for the types of 16 bits.
pub(crate) fn cast(values: Bytes, from: DType, to: DType) -> Bytes {
    match (from, to) {
        (from, to) if from == to => values,
        (DType::Float64, _) => written(values.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)), to),
        (DType::Float32, _) => {
            written(values.as_chunks().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))), to)
        }
        (DType::Float16, _) => {
            written(values.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f64()), to)
        }
        _ => written(values.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f64()), to),
    }
}

fn written(values: impl Iterator<Item = f64>, to: DType) -> Bytes {
    let mut out = BytesMut::with_capacity(values.size_hint().0 * to.item_size() as usize);
    for value in values {
        match to {
            DType::Float64 => out.extend_from_slice(&value.to_le_bytes()),
            DType::Float32 => out.extend_from_slice(&(value as f32).to_le_bytes()),
            DType::Float16 => out.extend_from_slice(&f16::from_f32(value as f32).to_le_bytes()),
            _ => out.extend_from_slice(&bf16::from_f32(value as f32).to_le_bytes()),
        }
    }
    out.freeze()
}
