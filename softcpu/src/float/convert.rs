//! Conversion between formats, and to and from integers.

use super::{Double, Env, Format, Number, Parts, Rounding, Single, is_nan, mxcsr, nan_result};

pub(crate) fn double_to_single(env: &mut Env, bits: u64) -> u64 {
    if let Some(nan) = nan_result::<Double>(env, bits, bits) {
        let fraction = nan >> (Double::FRACTION - Single::FRACTION) & ((1 << Single::FRACTION) - 1);
        return nan >> 32 & Single::SIGN | Single::INFINITY | fraction;
    }
    change::<Double, Single>(env, bits)
}

pub(crate) fn single_to_double(env: &mut Env, bits: u64) -> u64 {
    if let Some(nan) = nan_result::<Single>(env, bits, bits) {
        let fraction = nan << (Double::FRACTION - Single::FRACTION) & ((1 << Double::FRACTION) - 1);
        return (nan & Single::SIGN) << 32 | Double::INFINITY | fraction;
    }
    change::<Single, Double>(env, bits)
}

/// Converts a value that is no NaN.
fn change<From: Format, To: Format>(env: &mut Env, bits: u64) -> u64 {
    let parts = Parts::new::<From>(env, bits);
    let sign = if parts.sign { To::SIGN } else { 0 };
    if parts.denormal {
        env.raise(mxcsr::DE);
    }
    match parts.kind {
        Number::Zero => sign,
        Number::Infinity => sign | To::INFINITY,
        Number::Finite => env.round::<To>(parts.sign, parts.exponent, parts.significand.into()),
    }
}

pub(crate) fn from_integer<F: Format>(env: &mut Env, value: i64) -> u64 {
    match value {
        0 => 0,
        _ => env.round::<F>(value < 0, 0, value.unsigned_abs().into()),
    }
}

/// Converts a value to a signed integer of `width` bits, 32 or 64. A NaN or a value that does not fit raises the
/// invalid-operation exception; the result is then the integer indefinite.
pub(crate) fn to_integer<F: Format>(env: &mut Env, bits: u64, width: u32, truncates: bool) -> u64 {
    let indefinite = 1u64 << (width - 1);
    let parts = Parts::new::<F>(env, bits);
    if is_nan::<F>(bits) || parts.kind == Number::Infinity {
        env.raise(mxcsr::IE);
        return indefinite;
    }
    let magnitude = match parts.exponent {
        _ if parts.kind == Number::Zero => return 0,
        ..0 => {
            let mode = if truncates { Rounding::Zero } else { env.rounding() };
            round_integer(mode, parts.significand, parts.exponent.unsigned_abs(), parts.sign)
        }
        // The significand is at least 2^23.
        0..=64 => (u128::from(parts.significand) << parts.exponent, false),
        _ => (u128::MAX, false),
    };
    let (whole, inexact) = magnitude;
    if whole > u128::from(indefinite) - u128::from(!parts.sign) {
        env.raise(mxcsr::IE);
        return indefinite;
    }
    if inexact {
        env.raise(mxcsr::PE);
    }
    let value = if parts.sign { (whole as u64).wrapping_neg() } else { whole as u64 };
    value & (u64::MAX >> (64 - width))
}

/// Shifts a value right and rounds it. Returns it with true if that changed it.
fn round_integer(mode: Rounding, value: u64, shift: u32, sign: bool) -> (u128, bool) {
    let env = Env::new((mode as u32) << 13);
    let (whole, inexact) = env.shift(value, shift, sign);
    (whole.into(), inexact)
}
