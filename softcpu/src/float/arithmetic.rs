//! Addition, subtraction, multiplication, division and square roots.

use super::{Env, Format, Number, Operation, Parts, mxcsr, nan_result};

/// The result of Rust's operation, where it is right with all exceptions.
#[inline]
fn common<F: Format>(env: &Env, a: u64, b: u64, operation: Operation) -> Option<u64> {
    if !env.is_common() {
        return None;
    }
    let result = F::with_rust(a, b, operation);
    F::is_plain(a, b, result).then_some(result)
}

/// Takes both operands apart, or returns the result if one is a NaN.
fn pair<F: Format>(env: &mut Env, a: u64, b: u64) -> Result<(Parts, Parts), u64> {
    match nan_result::<F>(env, a, b) {
        Some(nan) => Err(nan),
        None => Ok((Parts::new::<F>(env, a), Parts::new::<F>(env, b))),
    }
}

/// Raises the denormal-operand exception, if an operand is a denormal.
fn note_denormals(env: &mut Env, operands: &[Parts]) {
    if operands.iter().any(|parts| parts.denormal) {
        env.raise(mxcsr::DE);
    }
}

fn zero<F: Format>(sign: bool) -> u64 {
    if sign { F::SIGN } else { 0 }
}

fn infinity<F: Format>(sign: bool) -> u64 {
    zero::<F>(sign) | F::INFINITY
}

pub(crate) fn add<F: Format>(env: &mut Env, a: u64, b: u64) -> u64 {
    if let Some(result) = common::<F>(env, a, b, Operation::Add) {
        return result;
    }
    match pair::<F>(env, a, b) {
        Ok((x, y)) => sum::<F>(env, x, y),
        Err(nan) => nan,
    }
}

pub(crate) fn sub<F: Format>(env: &mut Env, a: u64, b: u64) -> u64 {
    if let Some(result) = common::<F>(env, a, b, Operation::Sub) {
        return result;
    }
    match pair::<F>(env, a, b) {
        Ok((x, y)) => sum::<F>(env, x, Parts { sign: !y.sign, ..y }),
        Err(nan) => nan,
    }
}

fn sum<F: Format>(env: &mut Env, x: Parts, y: Parts) -> u64 {
    if x.kind == Number::Infinity && y.kind == Number::Infinity && x.sign != y.sign {
        return env.invalid::<F>();
    }
    note_denormals(env, &[x, y]);
    match (x.kind, y.kind) {
        (Number::Infinity, _) => infinity::<F>(x.sign),
        (_, Number::Infinity) => infinity::<F>(y.sign),
        (Number::Zero, Number::Zero) if x.sign == y.sign => zero::<F>(x.sign),
        (Number::Zero, Number::Zero) => exact_zero::<F>(env),
        (Number::Zero, _) => env.round::<F>(y.sign, y.exponent, y.significand.into()),
        (_, Number::Zero) => env.round::<F>(x.sign, x.exponent, x.significand.into()),
        _ => finite_sum::<F>(env, x, y),
    }
}

/// The sum of two numbers that differ in their sign only.
fn exact_zero<F: Format>(env: &Env) -> u64 {
    zero::<F>(env.rounding() == super::Rounding::Down)
}

fn finite_sum<F: Format>(env: &mut Env, x: Parts, y: Parts) -> u64 {
    let is_ordered = (x.exponent, x.significand) >= (y.exponent, y.significand);
    let (large, small) = if is_ordered { (x, y) } else { (y, x) };
    let distance = large.exponent.wrapping_sub(small.exponent).unsigned_abs();
    let high = u128::from(large.significand) << 64;
    // Bits that are shifted out are kept in the lowest bit.
    let low = u128::from(small.significand) << 64;
    let low = match distance {
        0..=64 => low >> distance,
        65..=127 => low >> distance | u128::from(low & ((1 << distance) - 1) != 0),
        _ => 1,
    };
    let value = if large.sign == small.sign { high + low } else { high - low };
    if value == 0 {
        return exact_zero::<F>(env);
    }
    env.round::<F>(large.sign, large.exponent - 64, value)
}

pub(crate) fn mul<F: Format>(env: &mut Env, a: u64, b: u64) -> u64 {
    if let Some(result) = common::<F>(env, a, b, Operation::Mul) {
        return result;
    }
    let (x, y) = match pair::<F>(env, a, b) {
        Ok(parts) => parts,
        Err(nan) => return nan,
    };
    let sign = x.sign != y.sign;
    let kinds = [x.kind, y.kind];
    let is_zero = kinds.contains(&Number::Zero);
    if is_zero && kinds.contains(&Number::Infinity) {
        return env.invalid::<F>();
    }
    note_denormals(env, &[x, y]);
    if is_zero {
        return zero::<F>(sign);
    }
    if kinds.contains(&Number::Infinity) {
        return infinity::<F>(sign);
    }
    env.round::<F>(sign, x.exponent + y.exponent, u128::from(x.significand) * u128::from(y.significand))
}

pub(crate) fn div<F: Format>(env: &mut Env, a: u64, b: u64) -> u64 {
    if let Some(result) = common::<F>(env, a, b, Operation::Div) {
        return result;
    }
    let (x, y) = match pair::<F>(env, a, b) {
        Ok(parts) => parts,
        Err(nan) => return nan,
    };
    let sign = x.sign != y.sign;
    match (x.kind, y.kind) {
        (Number::Infinity, Number::Infinity) | (Number::Zero, Number::Zero) => return env.invalid::<F>(),
        (Number::Finite, Number::Zero) => {
            env.raise(mxcsr::ZE);
            return infinity::<F>(sign);
        }
        _ => note_denormals(env, &[x, y]),
    }
    match (x.kind, y.kind) {
        (Number::Infinity, _) => infinity::<F>(sign),
        (_, Number::Infinity) | (Number::Zero, _) => zero::<F>(sign),
        _ => {
            let dividend = u128::from(x.significand) << 64;
            let divisor = u128::from(y.significand).max(1);
            let quotient = (dividend / divisor) | u128::from(dividend % divisor != 0);
            env.round::<F>(sign, x.exponent - y.exponent - 64, quotient)
        }
    }
}

pub(crate) fn sqrt<F: Format>(env: &mut Env, bits: u64) -> u64 {
    if let Some(nan) = nan_result::<F>(env, bits, bits) {
        return nan;
    }
    let x = Parts::new::<F>(env, bits);
    if x.kind == Number::Zero {
        return zero::<F>(x.sign);
    }
    if x.sign {
        return env.invalid::<F>();
    }
    note_denormals(env, &[x]);
    if x.kind == Number::Infinity {
        return F::INFINITY;
    }
    // The exponent must be even. The root of a number of more than 114 bits has more than 57.
    let up = 62 - (x.exponent & 1);
    let radicand = u128::from(x.significand) << up;
    let root = radicand.isqrt();
    let rest = u128::from(root * root != radicand);
    // One more bit of precision, in which the rest is noted.
    env.round::<F>(false, (x.exponent - up) / 2 - 1, root << 1 | rest)
}
