//! The tag word of x87. FXSAVE stores one bit for each register, and gdb shows two (SDM volume 1, sections 8.1.7 and 10.5.1.1).

use vmm::x86::FxImage;

/// The tag of a register that is empty.
const EMPTY: u8 = 3;
/// The offsets of the status word, of the tags, and of ST(0) in the image.
const STATUS: usize = 2;
const TAGS: usize = 4;
const REGISTERS: usize = 32;

/// The tag word, with the physical register 0 in its lowest bits.
pub(super) fn tags(image: &FxImage) -> u16 {
    let [status, in_use] = [STATUS.saturating_add(1), TAGS].map(|at| image.get(at).copied().unwrap_or(0));
    let top = status >> 3 & 7;
    (0..8u8).rev().fold(0, |word, register| {
        let position = register.wrapping_sub(top) & 7;
        let at = REGISTERS.saturating_add(usize::from(position).saturating_mul(16));
        let tag = match in_use >> register & 1 {
            0 => EMPTY,
            _ => image.get(at..).and_then(|rest| rest.first_chunk()).map_or(EMPTY, class),
        };
        word << 2 | u16::from(tag)
    })
}

/// Sets the tags: a register is empty, or it is in use.
pub(super) fn set_tags(image: &mut FxImage, word: u64) {
    let in_use = (0..8).filter(|register| word >> u32::saturating_mul(2, *register) & 3 != u64::from(EMPTY));
    let byte = in_use.fold(0, |byte, register| byte | 1 << register);
    image.get_mut(TAGS).into_iter().for_each(|tags| *tags = byte);
}

/// The tag of a register that is in use: 0 for a number, 1 for zero, 2 for anything else.
fn class(register: &[u8; 10]) -> u8 {
    let [significand @ .., low, high] = register;
    let exponent = u16::from_le_bytes([*low, *high]) & 0x7fff;
    let significand = u64::from_le_bytes(*significand);
    match (exponent, significand) {
        (0, 0) => 1,
        (0 | 0x7fff, _) => 2,
        // The integer bit of a normal number is set.
        (_, significand) if significand >> 63 == 0 => 2,
        _ => 0,
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn tags_name_the_class_of_each_register() {
        let mut image = [0; 512];
        assert_eq!(tags(&image), 0xffff, "all are empty");
        // The top is 6: ST(0) is register 6, which is 1.0; ST(1) is register 7, infinity; ST(2) is register 0, zero.
        image[STATUS + 1] = 6 << 3;
        image[TAGS] = 0b1100_0001;
        image[32 + 7..32 + 10].copy_from_slice(&[0x80, 0xff, 0x3f]);
        image[48 + 7..48 + 10].copy_from_slice(&[0x80, 0xff, 0x7f]);
        assert_eq!(tags(&image), 0b10_00_11_11_11_11_11_01);
        set_tags(&mut image, 0b00_11_11_11_11_11_11_01);
        assert_eq!(image[TAGS], 0b1000_0001);
    }
}
