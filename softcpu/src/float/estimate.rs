//! The estimates of RCPPS and RSQRTPS.
//!
//! The SDM bounds their error only. These are the values of Intel processors: the reciprocal, or the reciprocal of the
//! square root, of the middle of the interval of operands with the same 11 bits, rounded to 13 bits. They raise no
//! exceptions, and MXCSR does not change them.

use super::{Format, Single, is_nan};

/// The number of bits of the fraction below the 12 bits of an estimate.
const UNUSED: u32 = Single::FRACTION - 12;

/// The estimate of `1 / x`.
pub(crate) fn reciprocal(bits: u64) -> u64 {
    let (sign, exponent) = (bits & Single::SIGN, bits >> Single::FRACTION & Single::TOP);
    if is_nan::<Single>(bits) {
        return bits | Single::QUIET;
    }
    let field = match exponent {
        0 => return sign | Single::INFINITY,
        // The result would be a denormal.
        253.. => return sign,
        _ => 253 - exponent,
    };
    // The upper 11 bits of the fraction, and the middle of the rest.
    let middle = 1 << 12 | bits >> UNUSED & 0xffe | 1;
    sign | field << Single::FRACTION | (divide(1 << 25, middle) & 0xfff) << UNUSED
}

/// The estimate of `1 / sqrt(x)`.
pub(crate) fn reciprocal_sqrt(bits: u64) -> u64 {
    let (sign, exponent) = (bits & Single::SIGN, bits >> Single::FRACTION & Single::TOP);
    if is_nan::<Single>(bits) {
        return bits | Single::QUIET;
    }
    if exponent == 0 {
        return sign | Single::INFINITY;
    }
    if sign != 0 {
        return Single::INDEFINITE;
    }
    if exponent == Single::TOP {
        return 0;
    }
    // The exponent of the result is minus half of this one; if it is odd, the fraction counts twice.
    let doubles = u64::from(exponent & 1 == 0);
    let middle = (1 << 11 | bits >> (UNUSED + 1) & 0x7fe | 1) << doubles;
    let root = ((1u64 << 39) / middle).isqrt().div_ceil(2);
    let field = (380 - exponent) / 2;
    field << Single::FRACTION | (root & 0xfff) << UNUSED
}

/// The quotient, rounded to nearest. The divisor is odd, so that there is no tie.
const fn divide(dividend: u64, divisor: u64) -> u64 {
    (dividend + divisor / 2) / divisor
}
