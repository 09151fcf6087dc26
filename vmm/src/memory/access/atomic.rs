//! The accesses as Rust's memory model sees them, for Miri, ThreadSanitizer and other processors. The safety conditions are
//! those of `x86.rs`.
#![allow(clippy::missing_safety_doc)]

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Makes an access to an aligned word one access, which guests need. Miri does not run guests, and refuses races of accesses
/// of different widths. ThreadSanitizer has no rule about widths.
const WORDS: bool = !cfg!(miri);

#[inline]
pub(in crate::memory) unsafe fn load_u8(from: *const u8) -> u8 {
    // SAFETY: the caller promises it.
    unsafe { AtomicU8::from_ptr(from.cast_mut()).load(Ordering::Acquire) }
}

#[inline]
pub(in crate::memory) unsafe fn store_u8(to: *mut u8, byte: u8) {
    // SAFETY: the caller promises it.
    unsafe { AtomicU8::from_ptr(to).store(byte, Ordering::Release) }
}

/// The accesses to a word: in one access if it is aligned, otherwise byte by byte.
macro_rules! words {
    ($load:ident, $store:ident, $word:ident, $atomic:ident) => {
        #[inline]
        pub(in crate::memory) unsafe fn $load(from: *const u8) -> $word {
            if WORDS && from.cast::<$atomic>().is_aligned() {
                // SAFETY: the caller promises it, and the word is aligned.
                let word = unsafe { $atomic::from_ptr(from.cast_mut().cast()).load(Ordering::Acquire) };
                return $word::from_le(word);
            }
            // SAFETY: the caller promises it for all bytes.
            $word::from_le_bytes(std::array::from_fn(|at| unsafe { load_u8(from.add(at)) }))
        }

        #[inline]
        pub(in crate::memory) unsafe fn $store(to: *mut u8, word: $word) {
            if WORDS && to.cast::<$atomic>().is_aligned() {
                // SAFETY: as above.
                return unsafe { $atomic::from_ptr(to.cast()).store(word.to_le(), Ordering::Release) };
            }
            for (at, byte) in word.to_le_bytes().into_iter().enumerate() {
                // SAFETY: as above.
                unsafe { store_u8(to.add(at), byte) }
            }
        }
    };
}

words!(load_u16, store_u16, u16, AtomicU16);
words!(load_u32, store_u32, u32, AtomicU32);
words!(load_u64, store_u64, u64, AtomicU64);

pub(in crate::memory) unsafe fn copy_from(from: *const u8, to: &mut [u8]) {
    let mut done = 0;
    while let Some(rest) = to.get_mut(done..) {
        // SAFETY: the caller promises it for as many bytes as are left.
        done += unsafe {
            let from = from.add(done);
            if is_word::<u64>(from)
                && let Some(word) = rest.first_chunk_mut()
            {
                *word = load_u64(from).to_le_bytes();
                word.len()
            } else if is_word::<u32>(from)
                && let Some(word) = rest.first_chunk_mut()
            {
                *word = load_u32(from).to_le_bytes();
                word.len()
            } else {
                let Some(byte) = rest.first_mut() else { return };
                *byte = load_u8(from);
                1
            }
        };
    }
}

pub(in crate::memory) unsafe fn copy_to(to: *mut u8, from: &[u8]) {
    let mut done = 0;
    while let Some(rest) = from.get(done..) {
        // SAFETY: as in `copy_from`.
        done += unsafe {
            let to = to.add(done);
            if is_word::<u64>(to)
                && let Some(word) = rest.first_chunk()
            {
                store_u64(to, u64::from_le_bytes(*word));
                word.len()
            } else if is_word::<u32>(to)
                && let Some(word) = rest.first_chunk()
            {
                store_u32(to, u32::from_le_bytes(*word));
                word.len()
            } else {
                let Some(byte) = rest.first() else { return };
                store_u8(to, *byte);
                1
            }
        };
    }
}

/// True if a word at this place is copied in one access.
fn is_word<T>(place: *const u8) -> bool {
    WORDS && place.cast::<T>().is_aligned()
}
