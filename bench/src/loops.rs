//! The machine code of the guests: loops of device accesses.
//!
//! Each loop repeats its access many times in a row, so that the cost of the loop instructions does not count. On some
//! hosts KVM emulates ring 0, and each instruction costs half a microsecond.

/// The number of accesses in one pass of a loop.
pub const UNROLLED: u32 = 64;

/// The port that the guests read and write.
pub const PORT: u8 = 0x42;
/// The port that a guest writes at the start and at the end of the measured part.
pub const MARK: u8 = 0x43;
/// The address that the guests read and write. The page tables map it, and it is outside RAM.
pub const ADDRESS: u32 = 0xd000_0000;
/// The model-specific register that the guests read and write. No processor has a register with this index.
pub const MSR: u32 = 0xabc;

/// The instruction that a guest repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `out PORT, al`.
    PioOut,
    /// `in al, PORT`.
    PioIn,
    /// `mov [rdi], eax`.
    MmioWrite,
    /// `mov eax, [rdi]`.
    MmioRead,
    /// `wrmsr`.
    WrMsr,
    /// `rdmsr`.
    RdMsr,
}

impl Access {
    /// Every access, in the order of the rows.
    pub const ALL: [Self; 6] =
        [Self::PioOut, Self::PioIn, Self::MmioWrite, Self::MmioRead, Self::WrMsr, Self::RdMsr];

    /// Returns the name of the access in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::PioOut => "PIO write",
            Self::PioIn => "PIO read",
            Self::MmioWrite => "MMIO write",
            Self::MmioRead => "MMIO read",
            Self::WrMsr => "MSR write",
            Self::RdMsr => "MSR read",
        }
    }

    /// Returns the part of a row's identifier that names the access.
    pub fn id(self) -> &'static str {
        match self {
            Self::PioOut => "pio-write",
            Self::PioIn => "pio-read",
            Self::MmioWrite => "mmio-write",
            Self::MmioRead => "mmio-read",
            Self::WrMsr => "msr-write",
            Self::RdMsr => "msr-read",
        }
    }

    fn bytes(self) -> [u8; 2] {
        match self {
            Self::PioOut => [0xe6, PORT],
            Self::PioIn => [0xe4, PORT],
            Self::MmioWrite => [0x89, 0x07],
            Self::MmioRead => [0x8b, 0x07],
            Self::WrMsr => [0x0f, 0x30],
            Self::RdMsr => [0x0f, 0x32],
        }
    }
}

/// Repeats the code of an access [`UNROLLED`] times.
fn unrolled(access: [u8; 2]) -> Vec<u8> {
    access.repeat(UNROLLED as usize)
}

/// The number of passes before the first write to [`MARK`]. They cover setup that happens at the first exits.
pub const WARM_UP: u32 = 4;

/// Returns a 64-bit guest that makes [`WARM_UP`] passes, writes [`MARK`], makes `passes` passes of [`UNROLLED`]
/// accesses, writes [`MARK`] again, and halts.
pub fn long_mode_guest(access: Access, passes: u32) -> Vec<u8> {
    let mut code = vec![0xbf]; // mov edi, ADDRESS
    code.extend(ADDRESS.to_le_bytes());
    code.push(0xb9); // mov ecx, MSR
    code.extend(MSR.to_le_bytes());
    code.extend([0x31, 0xc0, 0x31, 0xd2]); // xor eax, eax; xor edx, edx
    for passes in [WARM_UP, passes] {
        code.push(0xbb); // mov ebx, passes
        code.extend(passes.to_le_bytes());
        let body = unrolled(access.bytes());
        // dec ebx; jnz to the first byte of the body.
        let back = 0i32.wrapping_sub_unsigned(body.len() as u32 + 2 + 6);
        code.extend(body);
        code.extend([0xff, 0xcb, 0x0f, 0x85]);
        code.extend(back.to_le_bytes());
        code.extend([0xe6, MARK]); // out MARK, al
    }
    code.push(0xf4); // hlt
    code
}

/// Code that ends a guest: it writes 0 to the exit port. `vmm` then exits with status 0, QEMU's isa-debug-exit with 1.
const END: [u8; 5] = [0xb0, 0, 0xe6, 0xf4, 0xf4]; // mov al, 0; out 0xf4, al; hlt

/// Returns a 16-bit guest that writes `passes` times [`UNROLLED`] bytes to the debug console, and ends. The code is
/// position-independent.
pub fn console_guest(passes: u32) -> Vec<u8> {
    let mut code = vec![0xb0, b'x', 0x66, 0xb9]; // mov al, 'x'; mov ecx, passes
    code.extend(passes.to_le_bytes());
    code.extend([0x66, 0x85, 0xc9]); // test ecx, ecx
    let body = unrolled([0xe6, 0xe9]); // out 0xe9, al
    let body_and_loop = body.len() as u16 + 2 + 4;
    code.extend([0x0f, 0x84]); // jz past the loop
    code.extend(body_and_loop.to_le_bytes());
    let back = 0i16.wrapping_sub_unsigned(body_and_loop);
    code.extend(body);
    code.extend([0x66, 0x49, 0x0f, 0x85]); // dec ecx; jnz
    code.extend(back.to_le_bytes());
    code.extend(END);
    code
}

/// Returns a 32-bit guest that reads the 32-bit device register at `address` `passes` times [`UNROLLED`] times, and
/// ends. The code is position-independent.
pub fn register_guest(address: u32, passes: u32) -> Vec<u8> {
    let mut code = vec![0xbf]; // mov edi, address
    code.extend(address.to_le_bytes());
    code.push(0xb9); // mov ecx, passes
    code.extend(passes.to_le_bytes());
    code.extend([0x85, 0xc9]); // test ecx, ecx
    let body = unrolled([0x8b, 0x07]); // mov eax, [edi]
    let body_and_loop = body.len() as u32 + 1 + 6;
    code.extend([0x0f, 0x84]); // jz past the loop
    code.extend(body_and_loop.to_le_bytes());
    let back = 0i32.wrapping_sub_unsigned(body_and_loop);
    code.extend(body);
    code.extend([0x49, 0x0f, 0x85]); // dec ecx; jnz
    code.extend(back.to_le_bytes());
    code.extend(END);
    code
}

/// The size of a firmware image in bytes: the last 64 KiB below 1 MiB.
const FIRMWARE: usize = 0x1_0000;
/// The offset in the image at which the processor starts.
const RESET: usize = 0xfff0;
/// The physical address of the image: segment 0xf000.
const FIRMWARE_BASE: u32 = 0xf_0000;

/// Returns a firmware image that runs 16-bit code.
pub fn firmware(code: &[u8]) -> Vec<u8> {
    let mut image = code.to_vec();
    image.resize(RESET, 0xf4);
    image.extend([0xea, 0, 0, 0, 0xf0]); // jmp 0xf000:0
    image.resize(FIRMWARE, 0xf4);
    image
}

/// Returns a firmware image that switches to protected mode and runs 32-bit code.
pub fn firmware32(code: &[u8]) -> Vec<u8> {
    const GDT: u16 = 0x40;
    const CODE: u32 = 0x80;
    let mut image = vec![0xfa, 0x2e, 0x66, 0x0f, 0x01, 0x16]; // cli; lgdt cs:[GDT]
    image.extend(GDT.to_le_bytes());
    image.extend([0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0]); // mov eax, cr0; or al, 1; mov cr0, eax
    image.extend([0x66, 0xea]); // jmp 8:start
    let start = FIRMWARE_BASE + image.len() as u32 + 6;
    image.extend(start.to_le_bytes());
    image.extend([0x08, 0]);
    image.extend([0x66, 0xb8, 0x10, 0, 0x8e, 0xd8]); // start: mov ax, 0x10; mov ds, ax
    let rest = CODE - image.len() as u32 - 5;
    image.push(0xe9); // jmp CODE
    image.extend(rest.to_le_bytes());
    image.resize(GDT.into(), 0xf4);
    // The GDT. The processor does not read the null entry, so the operand of lgdt is in it.
    image.extend(23u16.to_le_bytes());
    image.extend((FIRMWARE_BASE + u32::from(GDT)).to_le_bytes());
    image.extend([0, 0]);
    image.extend(0x00cf_9b00_0000_ffff_u64.to_le_bytes());
    image.extend(0x00cf_9300_0000_ffff_u64.to_le_bytes());
    image.resize(CODE as usize, 0xf4);
    image.extend(code);
    firmware(&image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loop_jumps_back_to_its_first_access() {
        let code = long_mode_guest(Access::MmioRead, 3);
        let jump = code.len() - 3; // The end of jnz, from which its distance counts.
        let back = i32::from_le_bytes(code[jump - 4..jump].try_into().unwrap());
        let body = jump.checked_add_signed(back as isize).unwrap();
        assert_eq!(&code[body - 5..body + 2], [0xbb, 3, 0, 0, 0, 0x8b, 0x07]);
        let code = console_guest(3);
        let jump = code.len() - END.len();
        let back = i16::from_le_bytes(code[jump - 2..jump].try_into().unwrap());
        let body = jump.checked_add_signed(back.into()).unwrap();
        assert_eq!(code[body..body + 2], [0xe6, 0xe9]);
        assert_eq!(usize::from(u16::from_le_bytes([code[body - 2], code[body - 1]])), jump - body);
        let code = register_guest(0x10_0000, 3);
        let jump = code.len() - END.len();
        let back = i32::from_le_bytes(code[jump - 4..jump].try_into().unwrap());
        assert_eq!(code[jump.checked_add_signed(back as isize).unwrap()..][..2], [0x8b, 0x07]);
    }

    #[test]
    fn firmware_has_a_jump_at_the_reset_address() {
        let image = firmware(&console_guest(0));
        assert_eq!((image.len(), &image[RESET..RESET + 5]), (FIRMWARE, &[0xea, 0, 0, 0, 0xf0][..]));
        let image = firmware32(&register_guest(0xfeb0_0000, 1));
        assert_eq!((image.len(), image[0x80], image[0x40]), (FIRMWARE, 0xbf, 23));
    }
}
