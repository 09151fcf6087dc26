//! Random values, with the interesting ones more often.

use fastrand::Rng;

/// An integer.
pub fn integer(rng: &mut Rng) -> u64 {
    match rng.u8(..16) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => 1 << rng.u32(..64),
        4 => (1u64 << rng.u32(..64)).wrapping_sub(1),
        5 => !(1u64 << rng.u32(..64)),
        6 => rng.u64(..64),
        7 => *pick(rng, &[0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]),
        8 => *pick(rng, &[i64::MAX as u64, i64::MIN as u64, 0xffff_ffff_8000_0000, 0xffff_ffff_ffff_ff80]),
        9 => rng.u64(..).wrapping_mul(0x0101_0101_0101_0101),
        10 => u64::MAX << rng.u32(..64),
        11 => u64::from(rng.u8(..)),
        12 => u64::from(rng.u32(..)),
        _ => rng.u64(..),
    }
}

/// An element of a list that is not empty.
pub fn pick<'a, T>(rng: &mut Rng, list: &'a [T]) -> &'a T {
    &list[rng.usize(..list.len())]
}

/// Two f32.
fn singles(rng: &mut Rng) -> u64 {
    u64::from(single(rng)) | u64::from(single(rng)) << 32
}

fn single(rng: &mut Rng) -> u32 {
    let sign = u32::from(rng.bool()) << 31;
    sign | match rng.u8(..14) {
        0 => 0,
        1 => 0x7f80_0000,
        // Quiet and signalling NaNs.
        2 => 0x7fc0_0000 | rng.u32(..0x40_0000),
        3 => 0x7f80_0001 + rng.u32(..0x3f_ffff),
        // Denormal numbers.
        4 => rng.u32(..0x80_0000),
        5 => *pick(rng, &[1, 0x7f_ffff, 0x80_0000, 0x80_0001]),
        6 => 0x7f7f_ffff,
        7 => (rng.i32(-40..40) as f32).abs().to_bits(),
        8 => (rng.i32(-1000..1000) as f32 / 8.0).abs().to_bits(),
        // Near the largest integers.
        9 => (127 + 30 + rng.u32(..4)) << 23 | rng.u32(..0x80_0000) & rng.u32(..),
        10 => (127 + rng.u32(..26)) << 23 | rng.u32(..0x80_0000),
        _ => rng.u32(..) & 0x7fff_ffff,
    }
}

fn double(rng: &mut Rng) -> u64 {
    let sign = u64::from(rng.bool()) << 63;
    let mantissa = rng.u64(..1 << 52);
    sign | match rng.u8(..14) {
        0 => 0,
        1 => 0x7ff0 << 48,
        2 => 0x7ff8 << 48 | mantissa >> 1,
        3 => 0x7ff0 << 48 | mantissa >> 1 | 1,
        4 => mantissa,
        5 => *pick(rng, &[1, (1 << 52) - 1, 1 << 52, (1 << 52) + 1]),
        6 => 0x7fef_ffff_ffff_ffff,
        7 => f64::from(rng.i32(-40..40).abs()).to_bits(),
        8 => (f64::from(rng.i32(-1000..1000).abs()) / 8.0).to_bits(),
        9 => (1023 + 61 + rng.u64(..4)) << 52 | mantissa & rng.u64(..),
        10 => (1023 + 30 + rng.u64(..3)) << 52 | mantissa,
        // Near the limits of f32.
        11 => (1023 - 127 - rng.u64(..24)) << 52 | mantissa,
        12 => (1023 + 127) << 52 | mantissa,
        _ => rng.u64(..) >> 1,
    }
}

/// 8 bytes: an integer or floating-point numbers.
pub fn word(rng: &mut Rng) -> u64 {
    match rng.u8(..3) {
        0 => integer(rng),
        1 => singles(rng),
        _ => double(rng),
    }
}

/// 16 bytes.
pub fn wide(rng: &mut Rng) -> u128 {
    let pair = match rng.u8(..4) {
        0 => (integer(rng), integer(rng)),
        1 => (singles(rng), singles(rng)),
        2 => (double(rng), double(rng)),
        _ => (word(rng), word(rng)),
    };
    u128::from(pair.0) | u128::from(pair.1) << 64
}

/// MXCSR. Most programs mask all exceptions.
pub fn mxcsr(rng: &mut Rng) -> u32 {
    let masks = if rng.u8(..12) == 0 { rng.u32(..) & 0x1f80 } else { 0x1f80 };
    let rounding = rng.u32(..4) << 13;
    // Flush to zero, and denormals are zeros.
    let modes = if rng.u8(..4) == 0 { rng.u32(..) & 0x8040 } else { 0 };
    let flags = if rng.bool() { rng.u32(..) & 0x3f } else { 0 };
    masks | rounding | modes | flags
}
