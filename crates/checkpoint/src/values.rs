//! Numbers out of the bytes of a tensor, whatever its dtype, for those who look at values.

use std::sync::OnceLock;

use serde::Serialize;

use crate::dtype::DType;

/// One number: exact for integers, and `f64` for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Number {
    /// Of a signed integer.
    Signed(i64),
    /// Of an unsigned integer, or of a Boolean: 0 or 1.
    Unsigned(u64),
    /// Of a floating-point number, or the magnitude of a complex one.
    Float(f64),
}

impl Number {
    /// Whether this one, of the same kind, is the larger.
    fn is_above(self, other: Number) -> bool {
        match (self, other) {
            (Number::Signed(one), Number::Signed(other)) => one > other,
            (Number::Unsigned(one), Number::Unsigned(other)) => one > other,
            (Number::Float(one), Number::Float(other)) => one > other,
            _ => false,
        }
    }
}

/// What the values of a tensor come to. Of complex numbers it is their magnitudes, and true counts as 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Statistics {
    /// Elements.
    pub count: u64,
    /// Elements that are not a number.
    pub nan: u64,
    /// Elements that are infinite.
    pub inf: u64,
    /// The smallest of those that are finite; `None` where there are none.
    pub min: Option<Number>,
    /// The largest of those that are finite.
    pub max: Option<Number>,
    /// The mean of those that are finite.
    pub mean: Option<f64>,
    #[serde(skip)]
    sum: Sum,
}

/// Exact for integers; of floats, the sum of the sums of a thousand each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sum {
    whole: i128,
    float: f64,
}

/// Floats that are added up before their sum is.
const RUN: usize = 1024;

impl Statistics {
    /// Adds elements of this dtype: their bytes, one after another.
    pub fn add(&mut self, dtype: DType, bytes: &[u8]) {
        self.count += bytes.len() as u64 / dtype.item_size();
        with_elements(dtype, bytes, Adds(self));
        self.average();
    }

    /// Adds what other values of the same tensor come to.
    pub fn join(&mut self, other: &Statistics) {
        self.count += other.count;
        self.nan += other.nan;
        self.inf += other.inf;
        self.sum = Sum { whole: self.sum.whole + other.sum.whole, float: self.sum.float + other.sum.float };
        let chosen = |one: Option<Number>, other: Option<Number>, larger: bool| match (one, other) {
            (Some(one), Some(other)) => Some(if one.is_above(other) == larger { one } else { other }),
            (one, other) => one.or(other),
        };
        self.min = chosen(self.min, other.min, false);
        self.max = chosen(self.max, other.max, true);
        self.average();
    }

    fn average(&mut self) {
        let finite = self.count - self.nan - self.inf;
        self.mean = (finite > 0).then(|| (self.sum.whole as f64 + self.sum.float) / finite as f64);
    }

    fn add_floats(&mut self, mut values: impl Iterator<Item = f64>) {
        let (mut min, mut max) = match (self.min, self.max) {
            (Some(Number::Float(min)), Some(Number::Float(max))) => (min, max),
            _ => (f64::INFINITY, f64::NEG_INFINITY),
        };
        let mut run = [0.0; RUN];
        loop {
            let mut count = 0;
            for (place, value) in run.iter_mut().zip(values.by_ref()) {
                *place = value;
                count += 1;
            }
            let run = &run[..count];
            if run.is_empty() {
                break;
            }
            let (least, most, sum) = finite_run(run);
            if sum.is_finite() {
                (min, max) = (min.min(least), max.max(most));
                self.sum.float += sum;
                continue;
            }
            // One of them is not finite, or their sum is not.
            for &value in run {
                if value.is_finite() {
                    self.sum.float += value;
                    (min, max) = (min.min(value), max.max(value));
                } else if value.is_nan() {
                    self.nan += 1;
                } else {
                    self.inf += 1;
                }
            }
        }
        if min <= max {
            (self.min, self.max) = (Some(Number::Float(min)), Some(Number::Float(max)));
        }
    }

    fn add_wholes(&mut self, values: impl Iterator<Item = i128>, number: impl Fn(i128) -> Number) {
        let before = |number| match number {
            Some(Number::Signed(number)) => Some(number.into()),
            Some(Number::Unsigned(number)) => Some(number.into()),
            _ => None,
        };
        let (mut min, mut max) =
            (before(self.min).unwrap_or(i128::MAX), before(self.max).unwrap_or(i128::MIN));
        for value in values {
            self.sum.whole += value;
            min = min.min(value);
            max = max.max(value);
        }
        if min <= max {
            (self.min, self.max) = (Some(number(min)), Some(number(max)));
        }
    }
}

/// Minimum, maximum and sum of numbers that are all finite; else the sum is not. In lanes, which the processor runs at once.
fn finite_run(run: &[f64]) -> (f64, f64, f64) {
    const LANES: usize = 8;
    let (mut min, mut max, mut sum) = ([f64::INFINITY; LANES], [f64::NEG_INFINITY; LANES], [0.0; LANES]);
    let (lanes, rest) = run.as_chunks::<LANES>();
    for values in lanes {
        for lane in 0..LANES {
            let value = values[lane];
            min[lane] = if value < min[lane] { value } else { min[lane] };
            max[lane] = if value > max[lane] { value } else { max[lane] };
            sum[lane] += value;
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        (min[lane], max[lane]) = (min[lane].min(value), max[lane].max(value));
        sum[lane] += value;
    }
    (
        min.into_iter().fold(f64::INFINITY, f64::min),
        max.into_iter().fold(f64::NEG_INFINITY, f64::max),
        sum.iter().sum(),
    )
}

/// How two tensors of one shape differ, element by element. Two NaN are equal, as are 0 and -0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// Elements that were compared.
    pub count: u64,
    /// Those that differ.
    pub differing: u64,
    /// Those of them of which one is NaN or infinite: they are in neither of the following.
    pub not_finite: u64,
    /// The largest difference.
    pub largest_absolute: f64,
    /// The largest difference, each relative to the larger magnitude of the two: from 0 to 2.
    pub largest_relative: f64,
}

impl Difference {
    /// Compares elements, as many of the one as of the other.
    pub fn add(&mut self, one: (DType, &[u8]), other: (DType, &[u8])) {
        self.count += one.1.len() as u64 / one.0.item_size();
        if one == other {
            return;
        }
        with_elements(one.0, one.1, Against { difference: self, other });
    }

    /// Adds how other elements of the same tensors differ.
    pub fn join(&mut self, other: &Difference) {
        self.count += other.count;
        self.differing += other.differing;
        self.not_finite += other.not_finite;
        self.largest_absolute = self.largest_absolute.max(other.largest_absolute);
        self.largest_relative = self.largest_relative.max(other.largest_relative);
    }

    fn add_pair<T: Element>(&mut self, one: T, other: T) {
        if one.same(other) {
            return;
        }
        self.differing += 1;
        let (absolute, scale) = one.apart(other);
        if !absolute.is_finite() || !scale.is_finite() {
            self.not_finite += 1;
            return;
        }
        self.largest_absolute = self.largest_absolute.max(absolute);
        self.largest_relative = self.largest_relative.max(absolute / scale);
    }
}

/// One element, as it is compared.
trait Element: Copy {
    fn same(self, other: Self) -> bool;
    /// The difference, and the larger magnitude.
    fn apart(self, other: Self) -> (f64, f64);
    fn complex(self) -> (f64, f64);
}

impl Element for f64 {
    fn same(self, other: f64) -> bool {
        self == other || self.is_nan() && other.is_nan()
    }

    fn apart(self, other: f64) -> (f64, f64) {
        ((self - other).abs(), self.abs().max(other.abs()))
    }

    fn complex(self) -> (f64, f64) {
        (self, 0.0)
    }
}

impl Element for i128 {
    fn same(self, other: i128) -> bool {
        self == other
    }

    fn apart(self, other: i128) -> (f64, f64) {
        ((self - other).unsigned_abs() as f64, self.unsigned_abs().max(other.unsigned_abs()) as f64)
    }

    fn complex(self) -> (f64, f64) {
        (self as f64, 0.0)
    }
}

impl Element for (f64, f64) {
    fn same(self, other: (f64, f64)) -> bool {
        self.0.same(other.0) && self.1.same(other.1)
    }

    fn apart(self, other: (f64, f64)) -> (f64, f64) {
        let magnitude = |(real, imaginary): (f64, f64)| real.hypot(imaginary);
        (magnitude((self.0 - other.0, self.1 - other.1)), magnitude(self).max(magnitude(other)))
    }

    fn complex(self) -> (f64, f64) {
        self
    }
}

/// What is done with the elements of a tensor, by the kind of their dtype.
trait Use {
    fn floats(self, values: impl Iterator<Item = f64>);
    fn wholes(self, values: impl Iterator<Item = i128>, number: fn(i128) -> Number);
    fn complexes(self, values: impl Iterator<Item = (f64, f64)>);
}

struct Adds<'a>(&'a mut Statistics);

impl Use for Adds<'_> {
    fn floats(self, values: impl Iterator<Item = f64>) {
        self.0.add_floats(values);
    }

    fn wholes(self, values: impl Iterator<Item = i128>, number: fn(i128) -> Number) {
        self.0.add_wholes(values, number);
    }

    fn complexes(self, values: impl Iterator<Item = (f64, f64)>) {
        self.0.add_floats(values.map(|(real, imaginary)| match real.is_nan() || imaginary.is_nan() {
            true => f64::NAN,
            false => real.hypot(imaginary),
        }));
    }
}

/// The first tensor's elements, when the other's are still bytes.
struct Against<'a, 'b> {
    difference: &'a mut Difference,
    other: (DType, &'b [u8]),
}

impl Use for Against<'_, '_> {
    fn floats(self, values: impl Iterator<Item = f64>) {
        with_elements(self.other.0, self.other.1, Pairs { difference: self.difference, first: values });
    }

    fn wholes(self, values: impl Iterator<Item = i128>, _: fn(i128) -> Number) {
        with_elements(self.other.0, self.other.1, Pairs { difference: self.difference, first: values });
    }

    fn complexes(self, values: impl Iterator<Item = (f64, f64)>) {
        with_elements(self.other.0, self.other.1, Pairs { difference: self.difference, first: values });
    }
}

struct Pairs<'a, I> {
    difference: &'a mut Difference,
    first: I,
}

/// What of two kinds both can be compared as.
trait Common: Element {
    fn with_float(difference: &mut Difference, one: Self, other: f64);
    fn with_whole(difference: &mut Difference, one: Self, other: i128);
}

impl Common for f64 {
    fn with_float(difference: &mut Difference, one: f64, other: f64) {
        difference.add_pair(one, other);
    }

    fn with_whole(difference: &mut Difference, one: f64, other: i128) {
        difference.add_pair(one, other as f64);
    }
}

impl Common for i128 {
    fn with_float(difference: &mut Difference, one: i128, other: f64) {
        difference.add_pair(one as f64, other);
    }

    fn with_whole(difference: &mut Difference, one: i128, other: i128) {
        difference.add_pair(one, other);
    }
}

impl Common for (f64, f64) {
    fn with_float(difference: &mut Difference, one: (f64, f64), other: f64) {
        difference.add_pair(one, other.complex());
    }

    fn with_whole(difference: &mut Difference, one: (f64, f64), other: i128) {
        difference.add_pair(one, other.complex());
    }
}

impl<I: Iterator<Item = T>, T: Common> Use for Pairs<'_, I> {
    fn floats(self, values: impl Iterator<Item = f64>) {
        self.first.zip(values).for_each(|(one, other)| T::with_float(self.difference, one, other));
    }

    fn wholes(self, values: impl Iterator<Item = i128>, _: fn(i128) -> Number) {
        self.first.zip(values).for_each(|(one, other)| T::with_whole(self.difference, one, other));
    }

    fn complexes(self, values: impl Iterator<Item = (f64, f64)>) {
        self.first.zip(values).for_each(|(one, other)| self.difference.add_pair(one.complex(), other));
    }
}

fn signed(whole: i128) -> Number {
    Number::Signed(whole as i64)
}

fn unsigned(whole: i128) -> Number {
    Number::Unsigned(whole as u64)
}

/// Gives the elements of these bytes, little-endian, to `user`.
fn with_elements(dtype: DType, bytes: &[u8], user: impl Use) {
    macro_rules! each {
        ($type:ty) => {{
            const SIZE: usize = size_of::<$type>();
            bytes.chunks_exact(SIZE).map(|chunk| {
                let mut array = [0; SIZE];
                array.copy_from_slice(chunk);
                <$type>::from_le_bytes(array)
            })
        }};
    }
    macro_rules! pairs {
        ($type:ty, $half:expr) => {
            bytes.chunks_exact(2 * size_of::<$type>()).map(|pair| {
                let (real, imaginary) = pair.split_at(size_of::<$type>());
                let half = |chunk: &[u8]| {
                    let mut array = [0; size_of::<$type>()];
                    array.copy_from_slice(chunk);
                    $half(<$type>::from_le_bytes(array))
                };
                (half(real), half(imaginary))
            })
        };
    }
    let half = table(&F16);
    match dtype {
        DType::Float64 => user.floats(each!(f64)),
        DType::Float32 => user.floats(each!(f32).map(f64::from)),
        DType::BFloat16 => user.floats(each!(u16).map(|bits| f32::from_bits(u32::from(bits) << 16).into())),
        DType::Float16 => user.floats(each!(u16).map(|bits| f64::from(half[usize::from(bits)]))),
        DType::Float8E4M3Fn
        | DType::Float8E5M2
        | DType::Float8E4M3FnUz
        | DType::Float8E5M2FnUz
        | DType::Float8E8M0Fnu => {
            let table = table(match dtype {
                DType::Float8E4M3Fn => &E4M3FN,
                DType::Float8E5M2 => &E5M2,
                DType::Float8E4M3FnUz => &E4M3FNUZ,
                DType::Float8E5M2FnUz => &E5M2FNUZ,
                _ => &E8M0FNU,
            });
            user.floats(bytes.iter().map(|&bits| f64::from(table[usize::from(bits)])));
        }
        DType::Complex32 => {
            user.complexes(pairs!(u16, |bits: u16| f64::from(half[usize::from(bits)])));
        }
        DType::Complex64 => user.complexes(pairs!(f32, f64::from)),
        DType::Complex128 => user.complexes(pairs!(f64, f64::from)),
        DType::Int8 => user.wholes(each!(i8).map(i128::from), signed),
        DType::Int16 => user.wholes(each!(i16).map(i128::from), signed),
        DType::Int32 => user.wholes(each!(i32).map(i128::from), signed),
        DType::Int64 => user.wholes(each!(i64).map(i128::from), signed),
        DType::UInt8 => user.wholes(each!(u8).map(i128::from), unsigned),
        DType::UInt16 => user.wholes(each!(u16).map(i128::from), unsigned),
        DType::UInt32 => user.wholes(each!(u32).map(i128::from), unsigned),
        DType::UInt64 => user.wholes(each!(u64).map(i128::from), unsigned),
        DType::Bool => user.wholes(bytes.iter().map(|&byte| i128::from(byte != 0)), unsigned),
    }
}

/// A format of so few bits that a table holds all its numbers.
struct Small {
    bits: u32,
    exponent: u32,
    bias: i32,
    special: Special,
    table: OnceLock<Vec<f32>>,
}

/// Which patterns are no numbers.
enum Special {
    /// The largest exponent, as IEEE has it.
    Ieee,
    /// All bits but the sign.
    AllOnes,
    /// What would be negative zero.
    NegativeZero,
    /// No sign and no mantissa: powers of two, and all bits set.
    Power,
}

impl Small {
    const fn new(bits: u32, exponent: u32, bias: i32, special: Special) -> Small {
        Small { bits, exponent, bias, special, table: OnceLock::new() }
    }

    fn number(&self, bits: u32) -> f32 {
        if matches!(self.special, Special::Power) {
            return if bits == 0xff { f32::NAN } else { 2f64.powi(bits as i32 - self.bias) as f32 };
        }
        let mantissa_bits = self.bits - 1 - self.exponent;
        let magnitude = bits & ((1 << (self.bits - 1)) - 1);
        let sign = if bits == magnitude { 1.0 } else { -1.0 };
        let (exponent, mantissa) = (magnitude >> mantissa_bits, magnitude & ((1 << mantissa_bits) - 1));
        let no_number = match self.special {
            Special::Ieee if exponent + 1 == 1 << self.exponent => {
                return if mantissa == 0 { sign * f32::INFINITY } else { f32::NAN };
            }
            Special::AllOnes => magnitude + 1 == 1 << (self.bits - 1),
            Special::NegativeZero => bits == 1 << (self.bits - 1),
            _ => false,
        };
        if no_number {
            return f32::NAN;
        }
        // Without an exponent the leading one is missing, and the step is that of exponent 1.
        let (lead, step) = if exponent == 0 { (0, 1) } else { (1 << mantissa_bits, exponent as i32) };
        sign * (f64::from(lead + mantissa) * 2f64.powi(step - self.bias - mantissa_bits as i32)) as f32
    }
}

static F16: Small = Small::new(16, 5, 15, Special::Ieee);
static E5M2: Small = Small::new(8, 5, 15, Special::Ieee);
static E4M3FN: Small = Small::new(8, 4, 7, Special::AllOnes);
static E4M3FNUZ: Small = Small::new(8, 4, 8, Special::NegativeZero);
static E5M2FNUZ: Small = Small::new(8, 5, 16, Special::NegativeZero);
static E8M0FNU: Small = Small::new(8, 8, 127, Special::Power);

fn table(format: &'static Small) -> &'static [f32] {
    format.table.get_or_init(|| (0..1 << format.bits).map(|bits| format.number(bits)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics(dtype: DType, bytes: &[u8]) -> Statistics {
        let mut whole = Statistics::default();
        whole.add(dtype, bytes);
        let mut halves = Statistics::default();
        let mut second = Statistics::default();
        let cut = bytes.len() / 2 / dtype.item_size() as usize * dtype.item_size() as usize;
        halves.add(dtype, &bytes[..cut]);
        second.add(dtype, &bytes[cut..]);
        halves.join(&second);
        let close = |one: Option<f64>, other: Option<f64>| match (one, other) {
            (Some(one), Some(other)) => (one - other).abs() <= 1e-12 * one.abs(),
            (one, other) => one == other,
        };
        assert!(close(whole.mean, halves.mean));
        assert_eq!((whole.min, whole.max, whole.nan), (halves.min, halves.max, halves.nan));
        whole
    }

    #[test]
    fn small_floats_have_the_values_of_their_formats() {
        for (format, bits, value) in [
            (&F16, 0x3c00, 1.0),
            (&F16, 0x7bff, 65504.0),
            (&F16, 0x0001, 5.960_464_5e-8),
            (&F16, 0xc000, -2.0),
            (&F16, 0x7c00, f32::INFINITY),
            (&E4M3FN, 0x7e, 448.0),
            (&E4M3FN, 0x01, 0.001_953_125),
            (&E5M2, 0x7b, 57344.0),
            (&E4M3FNUZ, 0x7f, 240.0),
            (&E5M2FNUZ, 0x7f, 57344.0),
            (&E8M0FNU, 0x7f, 1.0),
            (&E8M0FNU, 0x80, 2.0),
        ] {
            assert_eq!(table(format)[bits], value, "{bits:#x}");
        }
        for (format, bits) in
            [(&F16, 0x7c01), (&E4M3FN, 0xff), (&E5M2, 0x7d), (&E4M3FNUZ, 0x80), (&E8M0FNU, 0xff)]
        {
            assert!(table(format)[bits].is_nan(), "{bits:#x}");
        }
    }

    #[test]
    fn integers_stay_exact_and_bad_floats_are_counted_apart() {
        let bytes: Vec<u8> =
            [i64::MAX, i64::MAX - 1, i64::MIN].iter().flat_map(|n| n.to_le_bytes()).collect();
        let found = statistics(DType::Int64, &bytes);
        assert_eq!((found.min, found.max), (Some(Number::Signed(i64::MIN)), Some(Number::Signed(i64::MAX))));
        let values = [1.0f32, f32::NAN, -3.0, f32::INFINITY, f32::NEG_INFINITY];
        let bytes: Vec<u8> = values.iter().flat_map(|n| n.to_le_bytes()).collect();
        let found = statistics(DType::Float32, &bytes);
        assert_eq!((found.count, found.nan, found.inf, found.mean), (5, 1, 2, Some(-1.0)));
        assert_eq!((found.min, found.max), (Some(Number::Float(-3.0)), Some(Number::Float(1.0))));
        assert_eq!(statistics(DType::Bool, &[1, 0, 1, 1]).mean, Some(0.75));
        let complex: Vec<u8> = [3.0f32, 4.0, 0.0, f32::NAN].iter().flat_map(|n| n.to_le_bytes()).collect();
        let found = statistics(DType::Complex64, &complex);
        assert_eq!((found.max, found.nan), (Some(Number::Float(5.0)), 1));
        assert_eq!(statistics(DType::Float64, &[]), Statistics::default());
    }

    #[test]
    fn differences_are_those_of_the_numbers() {
        let compare = |one: (DType, &[u8]), other: (DType, &[u8])| {
            let mut difference = Difference::default();
            difference.add(one, other);
            difference
        };
        let floats = |values: &[f32]| values.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
        let one = floats(&[1.0, 2.0, f32::NAN, 0.0, f32::INFINITY, 4.0]);
        let other = floats(&[1.0, 2.5, f32::NAN, -0.0, 1.0, -4.0]);
        let found = compare((DType::Float32, &one), (DType::Float32, &other));
        assert_eq!((found.count, found.differing, found.not_finite), (6, 3, 1));
        assert_eq!((found.largest_absolute, found.largest_relative), (8.0, 2.0));
        let bf16: Vec<u8> =
            [1.0f32, 2.0].iter().flat_map(|n| ((n.to_bits() >> 16) as u16).to_le_bytes()).collect();
        assert_eq!(compare((DType::Float32, &floats(&[1.0, 2.0])), (DType::BFloat16, &bf16)).differing, 0);
        let large = |n: i64| n.to_le_bytes().to_vec();
        let found = compare((DType::Int64, &large(i64::MAX)), (DType::Int64, &large(i64::MAX - 1)));
        assert_eq!((found.differing, found.largest_absolute), (1, 1.0));
    }
}
