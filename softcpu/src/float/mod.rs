//! Floating-point arithmetic of SSE, bit by bit (SDM volume 1, chapters 4 and 11).
//!
//! Values are the bits of a single or double in a `u64`. Each operation rounds as MXCSR says, and notes the exceptions
//! that it raises in its [`Env`].

mod arithmetic;
mod compare;
mod convert;
mod estimate;

pub(crate) use arithmetic::{add, div, mul, sqrt, sub};
pub(crate) use compare::{compare, max, min};
pub(crate) use convert::{double_to_single, from_integer, single_to_double, to_integer};
pub(crate) use estimate::{reciprocal, reciprocal_sqrt};

/// The bits of MXCSR (SDM volume 1, section 10.2.3).
pub(crate) mod mxcsr {
    /// The exceptions: invalid operation, denormal operand, division by zero, overflow, underflow, precision.
    pub(crate) const IE: u32 = 1 << 0;
    pub(crate) const DE: u32 = 1 << 1;
    pub(crate) const ZE: u32 = 1 << 2;
    pub(crate) const OE: u32 = 1 << 3;
    pub(crate) const UE: u32 = 1 << 4;
    pub(crate) const PE: u32 = 1 << 5;
    /// Denormals are zeros.
    pub(crate) const DAZ: u32 = 1 << 6;
    /// The masks of the exceptions are this far above them.
    pub(crate) const MASKS: u32 = 7;
    pub(crate) const FTZ: u32 = 1 << 15;
    /// The bits that can be set.
    pub(crate) const VALID: u32 = 0xffff;
}

/// A floating-point format.
pub(crate) trait Format {
    /// The number of bits of the fraction.
    const FRACTION: u32;
    /// The number of bits of the exponent.
    const EXPONENT: u32;

    /// The exponent field of infinities and NaNs.
    const TOP: u64 = (1 << Self::EXPONENT) - 1;
    const BIAS: i32 = (1 << (Self::EXPONENT - 1)) - 1;
    const SIGN: u64 = 1 << (Self::EXPONENT + Self::FRACTION);
    /// The bit of a NaN that makes it quiet, the highest of the fraction.
    const QUIET: u64 = 1 << (Self::FRACTION - 1);
    const INFINITY: u64 = Self::TOP << Self::FRACTION;
    /// The result of an invalid operation: the QNaN floating-point indefinite.
    const INDEFINITE: u64 = Self::SIGN | Self::INFINITY | Self::QUIET;

    /// The result of a Rust operation, if it is a normal number that is not near the ends of the range, and both operands
    /// are normal numbers.
    #[inline]
    fn is_plain(a: u64, b: u64, result: u64) -> bool {
        let field = |bits: u64| bits >> Self::FRACTION & Self::TOP;
        let is_normal = |bits: u64| (1..Self::TOP).contains(&field(bits));
        is_normal(a) && is_normal(b) && (2..Self::TOP).contains(&field(result))
    }

    /// Computes with Rust's floats, which round to nearest and raise no flags.
    fn with_rust(a: u64, b: u64, operation: Operation) -> u64;
}

/// An operation on two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Add,
    Sub,
    Mul,
    Div,
}

/// A single-precision value: the low 32 bits.
pub(crate) struct Single;

impl Format for Single {
    const FRACTION: u32 = 23;
    const EXPONENT: u32 = 8;

    #[inline]
    fn with_rust(a: u64, b: u64, operation: Operation) -> u64 {
        let (a, b) = (f32::from_bits(a as u32), f32::from_bits(b as u32));
        let result = match operation {
            Operation::Add => a + b,
            Operation::Sub => a - b,
            Operation::Mul => a * b,
            Operation::Div => a / b,
        };
        result.to_bits().into()
    }
}

/// A double-precision value.
pub(crate) struct Double;

impl Format for Double {
    const FRACTION: u32 = 52;
    const EXPONENT: u32 = 11;

    #[inline]
    fn with_rust(a: u64, b: u64, operation: Operation) -> u64 {
        let (a, b) = (f64::from_bits(a), f64::from_bits(b));
        let result = match operation {
            Operation::Add => a + b,
            Operation::Sub => a - b,
            Operation::Mul => a * b,
            Operation::Div => a / b,
        };
        result.to_bits()
    }
}

/// The rounding modes, in the order of their encoding (SDM volume 1, section 4.8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    Nearest,
    Down,
    Up,
    Zero,
}

/// The environment of an instruction: MXCSR before it, and the exceptions that it has raised.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Env {
    mxcsr: u32,
    raised: u32,
}

impl Env {
    pub(crate) const fn new(mxcsr: u32) -> Self {
        Self { mxcsr, raised: 0 }
    }

    /// The exceptions that the instruction reports. An unmasked one that is found before the computation, in any element,
    /// hides those that are found after it (SDM volume 1, section 11.5.3).
    pub(crate) const fn exceptions(&self) -> u32 {
        const BEFORE: u32 = mxcsr::IE | mxcsr::DE | mxcsr::ZE;
        if self.raised & BEFORE & self.unmasked() != 0 { self.raised & BEFORE } else { self.raised }
    }

    /// The exceptions that are not masked.
    pub(crate) const fn unmasked(&self) -> u32 {
        !(self.mxcsr >> mxcsr::MASKS) & 0x3f
    }

    #[inline]
    fn raise(&mut self, exceptions: u32) {
        self.raised |= exceptions;
    }

    /// Raises the invalid-operation exception.
    fn invalid<F: Format>(&mut self) -> u64 {
        self.raise(mxcsr::IE);
        F::INDEFINITE
    }

    pub(crate) const fn rounding(&self) -> Rounding {
        match self.mxcsr >> 13 & 3 {
            0 => Rounding::Nearest,
            1 => Rounding::Down,
            2 => Rounding::Up,
            _ => Rounding::Zero,
        }
    }

    #[inline]
    const fn has(&self, bit: u32) -> bool {
        self.mxcsr & bit != 0
    }

    /// True if Rust's result is right: the mode is to nearest, and the precision exception, the only one that can occur, is
    /// masked and already noted.
    #[inline]
    const fn is_common(&self) -> bool {
        const BITS: u32 = mxcsr::PE | mxcsr::PE << mxcsr::MASKS | 3 << 13;
        self.mxcsr & BITS == mxcsr::PE | mxcsr::PE << mxcsr::MASKS
    }

    /// Replaces a denormal by zero, if MXCSR.DAZ is set.
    #[inline]
    fn flush_operand<F: Format>(&self, bits: u64) -> u64 {
        let is_denormal = bits & F::INFINITY == 0;
        if is_denormal && self.has(mxcsr::DAZ) { bits & F::SIGN } else { bits }
    }

    /// Rounds `significand * 2^exponent`, which is not zero. The lowest bit may stand for all bits below it.
    fn round<F: Format>(&mut self, sign: bool, exponent: i32, significand: u128) -> u64 {
        // The value is significand * 2^(exponent - 63), with its highest bit set.
        let lead = significand.leading_zeros() as i32;
        let exponent = exponent.wrapping_add(127 - lead);
        let significand = jam(significand.wrapping_shl(lead as u32));
        let signed = if sign { F::SIGN } else { 0 };
        let shift = 63 - F::FRACTION;
        let (rounded, inexact) = self.shift(significand, shift, sign);
        let carries = (rounded >> (F::FRACTION + 1)) as i32;
        if exponent.wrapping_add(carries) < 1 - F::BIAS {
            return signed | self.underflow::<F>(sign, exponent, significand, inexact);
        }
        if exponent.wrapping_add(carries) > F::BIAS {
            return signed | self.overflow::<F>(sign, inexact);
        }
        if inexact {
            self.raise(mxcsr::PE);
        }
        if exponent < 1 - F::BIAS {
            // It is rounded up to the smallest normal number.
            return signed | 1 << F::FRACTION;
        }
        let below = (exponent.wrapping_add(F::BIAS - 1)) as u64;
        signed | (below << F::FRACTION).wrapping_add(rounded)
    }

    /// The absolute value of a result that is tiny after rounding (SDM volume 1, section 4.9.1.5). `inexact`: rounding to
    /// the full precision changes it.
    fn underflow<F: Format>(&mut self, sign: bool, exponent: i32, significand: u64, inexact: bool) -> u64 {
        if self.unmasked() & mxcsr::UE != 0 {
            self.raise(mxcsr::UE | if inexact { mxcsr::PE } else { 0 });
            return 0;
        }
        if self.has(mxcsr::FTZ) {
            self.raise(mxcsr::UE | mxcsr::PE);
            return 0;
        }
        let missing = (1 - F::BIAS).wrapping_sub(exponent);
        let shift = (63 - F::FRACTION).saturating_add(missing.unsigned_abs());
        let (rounded, inexact) = self.shift(significand, shift, sign);
        if inexact {
            self.raise(mxcsr::UE | mxcsr::PE);
        }
        rounded
    }

    /// The absolute value of a result that is too large (SDM volume 1, table 4-10).
    fn overflow<F: Format>(&mut self, sign: bool, inexact: bool) -> u64 {
        let masked = self.unmasked() & mxcsr::OE == 0;
        self.raise(mxcsr::OE | if masked || inexact { mxcsr::PE } else { 0 });
        match (self.rounding(), sign) {
            (Rounding::Zero, _) | (Rounding::Down, false) | (Rounding::Up, true) => F::INFINITY - 1,
            _ => F::INFINITY,
        }
    }

    /// Shifts a value right and rounds it. Returns it with true if that changed it.
    fn shift(&self, value: u64, shift: u32, sign: bool) -> (u64, bool) {
        let value = u128::from(value);
        let shift = shift.min(100);
        let whole = value >> shift;
        let rest = value & ((1 << shift) - 1);
        let half = (1u128 << shift) >> 1;
        let up = match self.rounding() {
            Rounding::Nearest => rest > half || (rest == half && whole & 1 != 0),
            Rounding::Down => sign,
            Rounding::Up => !sign,
            Rounding::Zero => false,
        };
        (whole as u64 + u64::from(up && rest != 0), rest != 0)
    }
}

/// The upper half of a value. Its lowest bit stands for the lower half, too.
const fn jam(value: u128) -> u64 {
    (value >> 64) as u64 | (value as u64 != 0) as u64
}

/// A value that is no NaN, in its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts {
    sign: bool,
    kind: Number,
    /// The value is `significand * 2^exponent`.
    exponent: i32,
    /// Bit [`Format::FRACTION`] is the highest one that is set.
    significand: u64,
    /// The value was a denormal.
    denormal: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Zero,
    Finite,
    Infinity,
}

impl Parts {
    /// Takes a value apart that is no NaN. A denormal is zero if MXCSR.DAZ is set.
    fn new<F: Format>(env: &Env, bits: u64) -> Self {
        let bits = env.flush_operand::<F>(bits);
        let (field, fraction) = (bits >> F::FRACTION & F::TOP, bits & ((1 << F::FRACTION) - 1));
        let sign = bits & F::SIGN != 0;
        let lowest = 1 - F::BIAS - F::FRACTION as i32;
        let (kind, exponent, significand) = match field {
            0 if fraction == 0 => (Number::Zero, 0, 0),
            0 => {
                let up = fraction.leading_zeros() - (63 - F::FRACTION);
                (Number::Finite, lowest - up as i32, fraction << up)
            }
            _ if field == F::TOP => (Number::Infinity, 0, 0),
            _ => (Number::Finite, lowest + field as i32 - 1, fraction | 1 << F::FRACTION),
        };
        Self { sign, kind, exponent, significand, denormal: field == 0 && fraction != 0 }
    }
}

pub(crate) fn is_nan<F: Format>(bits: u64) -> bool {
    bits & (F::SIGN - 1) > F::INFINITY
}

fn is_signalling<F: Format>(bits: u64) -> bool {
    is_nan::<F>(bits) && bits & F::QUIET == 0
}

/// The result of an operation on two values one of which is a NaN: the first NaN, made quiet (SDM volume 1, table 4-7).
/// `None` if none is.
fn nan_result<F: Format>(env: &mut Env, a: u64, b: u64) -> Option<u64> {
    let nan = [a, b].into_iter().find(|bits| is_nan::<F>(*bits))?;
    if is_signalling::<F>(a) || is_signalling::<F>(b) {
        env.raise(mxcsr::IE);
    }
    Some(nan | F::QUIET)
}
