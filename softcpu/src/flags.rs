//! The status flags of results (SDM volume 1, section 3.4.3.1).

use crate::operands::{mask, sign_bit};
use crate::state::flag;

/// ZF, SF and PF of a result of `size` bytes.
#[inline]
pub(crate) fn of_result(result: u64, size: u8) -> u64 {
    let result = result & mask(size);
    let zero = if result == 0 { flag::ZF } else { 0 };
    let sign = if result & sign_bit(size) != 0 { flag::SF } else { 0 };
    let parity = if (result as u8).count_ones() & 1 == 0 { flag::PF } else { 0 };
    zero | sign | parity
}

/// The flags of `a + b + carry`, all values of `size` bytes. `result` is the sum.
#[inline]
pub(crate) fn of_add(a: u64, b: u64, result: u64, size: u8) -> u64 {
    // The carry out of each bit (Hacker's Delight, section 2-13).
    let carries = (a & b) | ((a | b) & !result);
    let carry = if carries & sign_bit(size) != 0 { flag::CF } else { 0 };
    let auxiliary = (carries & 8) << 1;
    let overflow = if (a ^ result) & (b ^ result) & sign_bit(size) != 0 { flag::OF } else { 0 };
    of_result(result, size) | carry | auxiliary | overflow
}

/// The flags of `a - b - borrow`, all values of `size` bytes. `result` is the difference.
#[inline]
pub(crate) fn of_sub(a: u64, b: u64, result: u64, size: u8) -> u64 {
    let borrows = (!a & b) | ((!a | b) & result);
    let carry = if borrows & sign_bit(size) != 0 { flag::CF } else { 0 };
    let auxiliary = (borrows & 8) << 1;
    let overflow = if (a ^ b) & (a ^ result) & sign_bit(size) != 0 { flag::OF } else { 0 };
    of_result(result, size) | carry | auxiliary | overflow
}

/// Replaces the flags in `which` by those in `new`.
#[inline]
pub(crate) fn merge(rflags: u64, which: u64, new: u64) -> u64 {
    rflags & !which | new & which
}
