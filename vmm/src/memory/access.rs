//! Single accesses to memory that the guest and other threads of this program may change at any time.
//!
//! A guest decides which of its addresses a device, a hypercall or a vCPU accesses, so any two threads of this program
//! may access the same bytes at the same time, with any two widths. In Rust's memory model that is undefined, unless all
//! of these accesses are atomic and have the same width. So each function here is, in that model, a sequence of atomic
//! accesses to single bytes: loads with acquire order, stores with release order.
//!
//! The functions are assembly, because the standard library has no such copy of several bytes, and because the
//! processor does more than the model says: an access to an aligned word is one access. The rings of SIMVIRTIO need that
//! to work, but memory safety does not depend on it. On x86, ordinary loads and stores have acquire and release order.
//!
//! Miri and ThreadSanitizer do not see into assembly. With `cfg(miri)` and `cfg(tsan)` the same functions are what they
//! are in the model, so the tools find every access that does not go through this file.
//!
//! Other processors use the same functions, with atomic accesses to aligned words (`atomic.rs`). An atomic access to a word is
//! one access on every processor that has it. A race between a word and its bytes is outside Rust's model, and defined on the
//! processor: each access is one instruction, and a load returns for each byte a value that was stored there.

#[cfg(any(test, not(target_arch = "x86_64"), miri, tsan))]
mod atomic;
#[cfg(all(target_arch = "x86_64", not(any(miri, tsan))))]
mod x86;

#[cfg(not(all(target_arch = "x86_64", not(any(miri, tsan)))))]
use atomic as accesses;
#[cfg(all(target_arch = "x86_64", not(any(miri, tsan))))]
use x86 as accesses;

pub(super) use accesses::{
    copy_from, copy_to, load_u8, load_u16, load_u32, load_u64, store_u8, store_u16, store_u32, store_u64,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_any_length_copy_exactly_these_bytes() {
        // SAFETY: the buffers of `copies` are long enough, and only this thread uses them.
        copies(|to, from| unsafe { copy_to(to, from) }, |from, to| unsafe { copy_from(from, to) });
        // SAFETY: as above.
        copies(
            |to, from| unsafe { atomic::copy_to(to, from) },
            |from, to| unsafe { atomic::copy_from(from, to) },
        );
    }

    fn copies(copy_to: impl Fn(*mut u8, &[u8]), copy_from: impl Fn(*const u8, &mut [u8])) {
        let source: Vec<u8> = (0..600).map(|byte| (byte % 251) as u8 + 1).collect();
        let lengths: Vec<usize> = if cfg!(miri) { vec![0, 1, 7, 15, 300] } else { (0..520).collect() };
        for len in lengths {
            for start in [0, 1, 3] {
                let mut memory = vec![0; 600];
                copy_to(memory[start..].as_mut_ptr(), &source[..len]);
                assert_eq!(memory[start..start + len], source[..len]);
                assert!(memory[..start].iter().chain(&memory[start + len..]).all(|byte| *byte == 0));
                let mut copy = vec![0; len];
                copy_from(memory[start..].as_ptr(), &mut copy);
                assert_eq!(copy, source[..len]);
            }
        }
    }

    /// Expands to a test of the words of one module.
    macro_rules! words_are_little_endian {
        ($name:ident, $accesses:ident) => {
            #[test]
            fn $name() {
                use $accesses::{
                    load_u8, load_u16, load_u32, load_u64, store_u8, store_u16, store_u32, store_u64,
                };

                let mut memory = [0u32; 2];
                let start = memory.as_mut_ptr().cast::<u8>();
                // SAFETY: the accesses are in the array, and only this thread uses it.
                unsafe {
                    store_u32(start.add(4), 0x0403_0201);
                    store_u8(start.add(5), 0x22);
                    assert_eq!((load_u8(start.add(4)), load_u8(start.add(7))), (1, 4));
                    assert_eq!((load_u32(start.add(4)), load_u32(start)), (0x0403_2201, 0));
                    store_u16(start.add(1), 0xbbaa);
                    assert_eq!((load_u16(start.add(2)), load_u64(start)), (0x00bb, 0x0403_2201_00bb_aa00));
                    store_u64(start, 0x8877_6655_4433_2211);
                    assert_eq!((load_u16(start.add(3)), load_u64(start)), (0x5544, 0x8877_6655_4433_2211));
                }
            }
        };
    }

    words_are_little_endian!(words_are_little_endian, accesses);
    words_are_little_endian!(atomic_words_are_little_endian, atomic);
}
