//! The elements of an XMM register.

use std::array::from_fn;

/// Defines the functions for elements of a type: to take a register apart, to put it together, and to compute each element
/// of a result from those of two operands.
macro_rules! lanes {
    ($split:ident, $join:ident, $each:ident, $type:ty, $count:literal) => {
        #[inline]
        pub(super) fn $split(value: u128) -> [$type; $count] {
            from_fn(|lane| (value >> (lane as u32 * <$type>::BITS)) as $type)
        }

        #[inline]
        pub(super) fn $join(lanes: [$type; $count]) -> u128 {
            lanes.into_iter().rev().fold(0, |value, lane| value << <$type>::BITS | u128::from(lane))
        }

        #[inline]
        pub(super) fn $each(a: u128, b: u128, mut result: impl FnMut($type, $type) -> $type) -> u128 {
            let (a, b) = ($split(a), $split(b));
            $join(from_fn(|lane| result(a[lane], b[lane])))
        }
    };
}

lanes!(bytes, from_bytes, each_byte, u8, 16);
lanes!(words, from_words, each_word, u16, 8);
lanes!(dwords, from_dwords, each_dword, u32, 4);
lanes!(qwords, from_qwords, each_qword, u64, 2);
