//! Linux kernels: bzImages with plausible setup headers.

use crate::Script;

/// Builds a bzImage of a few kilobytes. Most of its fields have values that kernels have.
pub fn bzimage(script: &mut Script) -> Vec<u8> {
    let sectors = script.below(5) as u8;
    let code = (usize::from(if sectors == 0 { 4 } else { sectors }) + 1) * 512;
    let paragraphs = match script.below(8) {
        7 => script.any(),
        few => 33 + few as u32 * 31,
    };
    let mut file = vec![0x90; code + (paragraphs as usize * 16).min(0x4000)];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[sectors]);
    put(0x1f4, &paragraphs.to_le_bytes());
    put(0x1fe, &0xaa55u16.to_le_bytes());
    // The second byte of the jump is the length of the header: all fields, or fewer.
    put(0x200, &[0xeb, if script.one_in(8) { script.any() } else { 0x6a }]);
    put(0x202, b"HdrS");
    let version: u16 = script.pick(&[0x20f, 0x20c, 0x20d, 0x20e, 0x20b, 0x206, 0x203, 0x202, 0x200, 0xffff]);
    put(0x206, &version.to_le_bytes());
    put(0x211, &[script.pick(&[1u8, 0, 0x81, 0xff])]);
    let initrd_max: u32 = script.pick(&[0x7fff_ffff, 0, 0x37ff_ffff, 0x10_0000, 0xff_ffff, u32::MAX, 1]);
    put(0x22c, &initrd_max.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1, 21]);
    let features: u16 = script.pick(&[0x7f, 1, 3, 0]);
    put(0x236, &features.to_le_bytes());
    let command_line: u32 = script.pick(&[2047, 255, 0, 1, 4096, 64, u32::MAX]);
    put(0x238, &command_line.to_le_bytes());
    let preferred: u64 = script.pick(&[0x10_0000, 0x100_0000, 0, 0xff_f000, 1 << 32, u64::MAX]);
    put(0x258, &preferred.to_le_bytes());
    let size: u32 = match script.below(8) {
        7 => script.any(),
        pages => (pages as u32) << 14,
    };
    put(0x260, &size.to_le_bytes());
    file
}
