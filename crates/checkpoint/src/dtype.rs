//! The tensor element types a checkpoint can hold, and how torch names them in archives and indexes.
//!
//! Older types are pickled as a typed storage class (`torch.FloatStorage`), newer ones as an untyped storage with
//! a dtype beside it; [`DType::storage_class`] tells which. Quantised, sub-byte and opaque bit types are left out:
//! torch itself rebuilds those in ways of their own.

/// One torch element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// IEEE double precision.
    Float64,
    /// IEEE single precision.
    Float32,
    /// IEEE half precision.
    Float16,
    /// Brain floating point, 16 bits.
    BFloat16,
    /// 8-bit float, 4 exponent and 3 mantissa bits, finite.
    Float8E4M3Fn,
    /// 8-bit float, 5 exponent and 2 mantissa bits.
    Float8E5M2,
    /// 8-bit float, 4 exponent and 3 mantissa bits, finite, no negative zero.
    Float8E4M3FnUz,
    /// 8-bit float, 5 exponent and 2 mantissa bits, no negative zero.
    Float8E5M2FnUz,
    /// 8-bit power-of-two scale.
    Float8E8M0Fnu,
    /// Two half-precision floats.
    Complex32,
    /// Two single-precision floats.
    Complex64,
    /// Two double-precision floats.
    Complex128,
    /// Signed 8-bit integer.
    Int8,
    /// Signed 16-bit integer.
    Int16,
    /// Signed 32-bit integer.
    Int32,
    /// Signed 64-bit integer.
    Int64,
    /// Unsigned 8-bit integer.
    UInt8,
    /// Unsigned 16-bit integer.
    UInt16,
    /// Unsigned 32-bit integer.
    UInt32,
    /// Unsigned 64-bit integer.
    UInt64,
    /// One byte, zero or one.
    Bool,
}

/// type, torch name, bytes per element, bytes swapped as one unit, typed storage class, name in safetensors files
type Row = (DType, &'static str, u64, u64, Option<&'static str>, Option<&'static str>);

const TABLE: [Row; 21] = [
    (DType::Float64, "float64", 8, 8, Some("DoubleStorage"), Some("F64")),
    (DType::Float32, "float32", 4, 4, Some("FloatStorage"), Some("F32")),
    (DType::Float16, "float16", 2, 2, Some("HalfStorage"), Some("F16")),
    (DType::BFloat16, "bfloat16", 2, 2, Some("BFloat16Storage"), Some("BF16")),
    (DType::Float8E4M3Fn, "float8_e4m3fn", 1, 1, None, Some("F8_E4M3")),
    (DType::Float8E5M2, "float8_e5m2", 1, 1, None, Some("F8_E5M2")),
    (DType::Float8E4M3FnUz, "float8_e4m3fnuz", 1, 1, None, None),
    (DType::Float8E5M2FnUz, "float8_e5m2fnuz", 1, 1, None, None),
    (DType::Float8E8M0Fnu, "float8_e8m0fnu", 1, 1, None, Some("F8_E8M0")),
    (DType::Complex32, "complex32", 4, 2, None, None),
    (DType::Complex64, "complex64", 8, 4, Some("ComplexFloatStorage"), Some("C64")),
    (DType::Complex128, "complex128", 16, 8, Some("ComplexDoubleStorage"), None),
    (DType::Int8, "int8", 1, 1, Some("CharStorage"), Some("I8")),
    (DType::Int16, "int16", 2, 2, Some("ShortStorage"), Some("I16")),
    (DType::Int32, "int32", 4, 4, Some("IntStorage"), Some("I32")),
    (DType::Int64, "int64", 8, 8, Some("LongStorage"), Some("I64")),
    (DType::UInt8, "uint8", 1, 1, Some("ByteStorage"), Some("U8")),
    (DType::UInt16, "uint16", 2, 2, None, Some("U16")),
    (DType::UInt32, "uint32", 4, 4, None, Some("U32")),
    (DType::UInt64, "uint64", 8, 8, None, Some("U64")),
    (DType::Bool, "bool", 1, 1, Some("BoolStorage"), Some("BOOL")),
];

impl DType {
    /// Every type, in a fixed order.
    pub fn all() -> impl Iterator<Item = DType> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// The type that torch calls `torch.<name>`; `None` for names this crate does not handle. `name` may carry the
    /// `torch.` in front.
    #[must_use]
    pub fn from_torch_name(name: &str) -> Option<DType> {
        let name = name.strip_prefix("torch.").unwrap_or(name);
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The attribute name in module `torch`, such as `float32`.
    #[must_use]
    pub fn torch_name(self) -> &'static str {
        self.row().1
    }

    /// Bytes per element.
    #[must_use]
    pub fn item_size(self) -> u64 {
        self.row().2
    }

    /// Bytes that change order together between little and big endian (half of [`DType::item_size`] for complex).
    #[must_use]
    pub fn swap_size(self) -> u64 {
        self.row().3
    }

    /// The class in module `torch` under which archives name a storage of this type; `None` where archives hold an
    /// untyped storage and the dtype itself.
    #[must_use]
    pub fn storage_class(self) -> Option<&'static str> {
        self.row().4
    }

    /// The inverse of [`DType::storage_class`].
    #[must_use]
    pub fn from_storage_class(name: &str) -> Option<DType> {
        TABLE.iter().find(|row| row.4 == Some(name)).map(|row| row.0)
    }

    /// Its name in safetensors files; `None` where that format has no such type.
    #[must_use]
    pub fn safetensors_name(self) -> Option<&'static str> {
        self.row().5
    }

    /// The inverse of [`DType::safetensors_name`].
    #[must_use]
    pub fn from_safetensors_name(name: &str) -> Option<DType> {
        TABLE.iter().find(|row| row.5 == Some(name)).map(|row| row.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (place, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, place, "{}", row.1);
        }
    }

    #[test]
    fn names_and_storage_classes_lead_back_to_the_type() {
        for dtype in DType::all() {
            assert_eq!(DType::from_torch_name(dtype.torch_name()), Some(dtype));
            assert_eq!(DType::from_torch_name(&format!("torch.{}", dtype.torch_name())), Some(dtype));
            if let Some(class) = dtype.storage_class() {
                assert_eq!(DType::from_storage_class(class), Some(dtype));
            }
            if let Some(name) = dtype.safetensors_name() {
                assert_eq!(DType::from_safetensors_name(name), Some(dtype));
            }
        }
        assert_eq!(DType::from_torch_name("qint8"), None);
        assert_eq!(DType::from_storage_class("UntypedStorage"), None);
    }
}
