//! Comparison, minimum and maximum.

use super::{Env, Format, is_nan, is_signalling, mxcsr};
use std::cmp::Ordering;

/// Compares two values. `None`: they are unordered, because one is a NaN. A signalling NaN raises the invalid-operation
/// exception, and if `signals`, so does a quiet one.
pub(crate) fn compare<F: Format>(env: &mut Env, a: u64, b: u64, signals: bool) -> Option<Ordering> {
    if is_nan::<F>(a) || is_nan::<F>(b) {
        if signals || is_signalling::<F>(a) || is_signalling::<F>(b) {
            env.raise(mxcsr::IE);
        }
        return None;
    }
    let (a, b) = (env.flush_operand::<F>(a), env.flush_operand::<F>(b));
    let is_denormal = |bits: u64| bits & F::INFINITY == 0 && bits & (F::SIGN - 1) != 0;
    if is_denormal(a) || is_denormal(b) {
        env.raise(mxcsr::DE);
    }
    Some(ordinal::<F>(a).cmp(&ordinal::<F>(b)))
}

/// An integer that has the order of the values. Both zeros are 0.
fn ordinal<F: Format>(bits: u64) -> i64 {
    let magnitude = (bits & (F::SIGN - 1)) as i64;
    if bits & F::SIGN != 0 { -magnitude } else { magnitude }
}

/// The smaller value; the second one if they are equal or unordered.
pub(crate) fn min<F: Format>(env: &mut Env, a: u64, b: u64) -> u64 {
    select::<F>(env, a, b, Ordering::Less)
}

/// The larger value; the second one if they are equal or unordered.
pub(crate) fn max<F: Format>(env: &mut Env, a: u64, b: u64) -> u64 {
    select::<F>(env, a, b, Ordering::Greater)
}

fn select<F: Format>(env: &mut Env, a: u64, b: u64, wanted: Ordering) -> u64 {
    let first = compare::<F>(env, a, b, true) == Some(wanted);
    env.flush_operand::<F>(if first { a } else { b })
}
