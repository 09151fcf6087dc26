//! Linux kernels: `vmlinux`, which is an ELF64 executable, and `bzImage`, which unpacks itself. Both are entered in
//! long mode, with the address of the `boot_params` in RSI; a `bzImage` without a 64-bit entry point is entered in
//! protected mode, with the address in ESI.
//!
//! Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol" and "32-bit Boot Protocol", and `zero-page.rst`. The crate linux-loader loads
//! the kernel. It trusts the headers of the file, so this file checks them first.

use super::detect::{SIGNATURE, is_bzimage};
use super::elf;
use super::file::open;
use super::known::{describe, not_an_initrd};
use crate::error::{Error, ImageError};
use crate::file_format;
use crate::host::printable;
use crate::memory::{Gpa, GuestMemory, PAGE, pc};
use crate::x86::modes::{self, Mode};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use object::ReadCache;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vm_memory::{ByteValued, Bytes};

/// type_of_loader: "undefined", because the boot protocol has no number for this VMM.
const LOADER: u8 = 0xff;
/// heap_end_ptr: the end of the heap of the kernel's 16-bit code. This code does not run here.
const HEAP_END: u16 = 0xfe00;
/// loadflags: the kernel is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// loadflags: `heap_end_ptr` is valid.
const CAN_USE_HEAP: u8 = 1 << 7;
/// xloadflags: the kernel has a 64-bit entry point.
const KERNEL_64: u16 = 1 << 0;
/// The offset of the 64-bit entry point of a bzImage from its load address.
const ENTRY_64: u64 = 0x200;
/// The oldest version of the boot protocol whose kernels start here. Older ones find their command line in another way.
const OLDEST: u16 = 0x202;
/// The size of the command line of a kernel that does not tell it (before 2.06), without the final NUL.
const OLD_COMMAND_LINE_SIZE: u32 = 255;
/// The address at which the initrd of a kernel ends that does not tell it (before 2.03).
const OLD_INITRD_LIMIT: u64 = 0x3800_0000;
/// The most that a kernel grows when it unpacks itself, if it does not tell (before 2.10). Compressed kernels are about a
/// third of their size.
const OLD_RATIO: u64 = 4;
/// The offset of the setup header in a bzImage.
const SETUP_HEADER: u64 = 0x1f1;
/// The offset of the number of program headers in an ELF64 file (`e_phnum`).
const HEADER_COUNT: u64 = 56;
/// The maximum size of the command line of a kernel without a setup header, in bytes without the final NUL.
const COMMAND_LINE_SIZE: u32 = 2047;
/// The address of the command line, as the setup header has it.
const COMMAND_LINE: u32 = {
    assert!(pc::COMMAND_LINE.0 <= u32::MAX as u64);
    pc::COMMAND_LINE.0 as u32
};
/// The maximum size of the command line in the memory map, in bytes without the final NUL: RAM must not end before it.
const COMMAND_LINE_ROOM: u32 = {
    let room = pc::LOW_RAM_END - pc::COMMAND_LINE.0 - 1;
    assert!(room <= u32::MAX as u64);
    room as u32
};
/// E820: RAM.
const E820_RAM: u32 = 1;

/// A kernel file whose headers have been checked. It is not loaded yet.
#[derive(Debug)]
pub struct Kernel {
    name: String,
    file: File,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// An ELF64 executable, with its entry point and its end address.
    Vmlinux { entry: Gpa, end: u64 },
    /// A kernel that unpacks itself, with the end address of the unpacked kernel, the mode of its entry point, and the first
    /// two numbers of its version.
    BzImage { setup: Box<setup_header>, end: u64, mode: Mode, version: Option<(u32, u32)> },
}

/// A kernel in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The entry point.
    pub entry: Gpa,
    /// The mode in which it is entered: long mode, or protected mode without paging.
    pub mode: Mode,
    /// The address after the last byte of the kernel, also after it has unpacked itself.
    pub end: u64,
}

impl Kernel {
    /// Opens a kernel and checks its headers.
    ///
    /// # Errors
    /// The file cannot be read, is not a Linux kernel, is cut short, or would overlap memory that the VMM uses.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let (file, length) = open(path)?;
        let name = printable(path);
        let kind = match is_bzimage(&file) {
            true => bzimage(&file, length).map_err(|what| ImageError::Linux { file: name.clone(), what })?,
            false => vmlinux(&file, &name)?,
        };
        Ok(Self { name, file, kind })
    }

    /// The path of the file, in printable form.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version of a bzImage, such as 6.1, which its headers give. `None` for a vmlinux, and if it is not a version.
    pub fn version(&self) -> Option<(u32, u32)> {
        let Kind::BzImage { version, .. } = &self.kind else { return None };
        *version
    }

    /// False for a bzImage that names no version of Linux: another program in this format, such as a memory tester.
    pub fn is_linux(&self) -> bool {
        !matches!(self.kind, Kind::BzImage { version: None, .. })
    }

    /// The maximum size of its command line, in bytes without the final NUL.
    pub fn command_line_size(&self) -> usize {
        let size = match &self.kind {
            Kind::BzImage { setup, .. } if setup.cmdline_size != 0 => setup.cmdline_size,
            Kind::BzImage { setup, .. } if setup.version < 0x206 => OLD_COMMAND_LINE_SIZE,
            _ => COMMAND_LINE_SIZE,
        };
        size.min(COMMAND_LINE_ROOM) as usize
    }

    /// Loads the kernel into `memory`, which has `ram` bytes of RAM.
    ///
    /// # Errors
    /// The kernel does not fit into RAM, or its file has changed since [`Self::open`].
    pub fn load(&mut self, memory: &GuestMemory, ram: u64) -> Result<Loaded, ImageError> {
        let low = pc::HOLE.min(ram);
        let (Kind::Vmlinux { end, .. } | Kind::BzImage { end, .. }) = &self.kind;
        if *end > pc::HOLE {
            let what = format!(
                "has a segment that ends at {end:#x}, and a kernel must end below {:#x}, with any --mem: if its physical \
                 addresses (p_paddr) equal its virtual ones, lower them (objcopy --change-section-lma \
                 '*-0xffffffff80000000' FILE NEW, or .text : AT(ADDR(.text) - 0xffffffff80000000) in the linker script)",
                pc::HOLE
            );
            return Err(ImageError::Linux { file: self.name.clone(), what });
        }
        if *end > low {
            let what = format!(
                "needs memory up to {end:#x}, but the guest's memory is [0x0, {low:#x}): give the guest more (--mem)"
            );
            return Err(ImageError::Linux { file: self.name.clone(), what });
        }
        let high = Some(Gpa(pc::HIGH_RAM));
        let loaded = match self.kind {
            Kind::Vmlinux { entry, end } => {
                // With an offset, even 0, the loader ignores notes, whose sizes it does not check.
                let loaded = Elf::load(memory.slots(), Some(Gpa(0)), &mut self.file, None);
                loaded.map(|_| Loaded { entry, mode: Mode::Long, end })
            }
            Kind::BzImage { end, mode, .. } => {
                let loaded = BzImage::load(memory.slots(), high, &mut self.file, high);
                let offset = if mode == Mode::Long { ENTRY_64 } else { 0 };
                loaded.map(|_| Loaded { entry: Gpa(pc::HIGH_RAM.saturating_add(offset)), mode, end })
            }
        };
        loaded.map_err(|error| ImageError::Linux {
            file: self.name.clone(),
            what: format!("cannot be loaded ({error}): is it complete?"),
        })
    }

    /// The setup header for `boot_params`: the one of the kernel, or a new one for a kernel without a setup header.
    fn setup(&self) -> setup_header {
        let own = match &self.kind {
            Kind::BzImage { setup, .. } => **setup,
            Kind::Vmlinux { .. } => setup_header {
                boot_flag: 0xaa55,
                header: u32::from_le_bytes(SIGNATURE.1),
                kernel_alignment: 0x100_0000,
                ..Default::default()
            },
        };
        setup_header {
            type_of_loader: LOADER,
            loadflags: own.loadflags | LOADED_HIGH | CAN_USE_HEAP,
            heap_end_ptr: HEAP_END,
            ..own
        }
    }

    /// The address after the last one that an initrd may take.
    fn initrd_limit(&self, ram: u64) -> u64 {
        let low = pc::HOLE.min(ram);
        match &self.kind {
            Kind::BzImage { setup, .. } if setup.initrd_addr_max != 0 => {
                low.min(u64::from(setup.initrd_addr_max).saturating_add(1))
            }
            Kind::BzImage { setup, .. } if setup.version < 0x203 => low.min(OLD_INITRD_LIMIT),
            _ => low,
        }
    }
}

/// Reads the headers of a vmlinux.
fn vmlinux(file: &File, name: &str) -> Result<Kind, ImageError> {
    let refuse = |what: String| Err(ImageError::Linux { file: name.into(), what });
    let mut magic = [0; 4];
    if file.read_exact_at(&mut magic, 0).is_err() || !elf::is_elf(&magic) {
        let mut head = Vec::new();
        // A file that cannot be read is not known.
        let _ = file.take(file_format::HEAD as u64).read_to_end(&mut head);
        return refuse(match describe(Path::new(name), &head) {
            Some((format, advice)) => format!("is not a Linux kernel, but {format}: {advice}"),
            None => {
                "is not a Linux kernel: give a vmlinux (ELF64) or a bzImage, or run it as a guest (vmm run)"
                    .into()
            }
        });
    }
    // 0xffff means that the number is in section 0 (PN_XNUM). The loader would take 0xffff as the number.
    let mut count = [0; 2];
    if file.read_exact_at(&mut count, HEADER_COUNT).is_ok() && u16::from_le_bytes(count) == u16::MAX {
        return refuse("has too many program headers for a kernel: is it complete?".into());
    }
    let layout = elf::layout(&ReadCache::new(file)).map_err(|error| error.in_file(name))?;
    if !layout.is_64 || layout.is_movable {
        return refuse(
            "is not a Linux kernel for x86-64: give a vmlinux (ELF64, not position-independent) or a bzImage"
                .into(),
        );
    }
    let elf::Layout { segments, entry, .. } = layout;
    let entry = entry.map_err(|error| error.in_file(name))?;
    if let Some(low) = segments.iter().find(|segment| segment.start.0 < pc::HIGH_RAM) {
        return refuse(format!(
            "has a segment at {:#x}, but the VMM uses the memory below {:#x}: link it higher",
            low.start.0,
            pc::HIGH_RAM
        ));
    }
    let end = segments.iter().map(super::Segment::end).max().unwrap_or(0);
    Ok(Kind::Vmlinux { entry, end })
}

/// Reads the setup header of a bzImage. An error says what is wrong, without the name of the file.
fn bzimage(file: &File, length: u64) -> Result<Kind, String> {
    let mut setup = setup_header::default();
    file.read_exact_at(setup.as_mut_slice(), SETUP_HEADER)
        .map_err(|_| "is a bzImage that is cut short within its setup header: is it complete?")?;
    // The second byte of the jump instruction gives the end of the header. The bytes after it are code, not fields.
    let end = u64::from(setup.jump >> 8).saturating_add(SIGNATURE.0);
    let known = usize::try_from(end.saturating_sub(SETUP_HEADER)).unwrap_or(usize::MAX);
    setup.as_mut_slice().iter_mut().skip(known).for_each(|byte| *byte = 0);
    let version = setup.version;
    if version < OLDEST {
        return Err(format!(
            "is a Linux kernel with boot protocol {}.{:02}, which has no pointer to the command line: use Linux 2.4 or later",
            version >> 8,
            version & 0xff
        ));
    }
    if setup.loadflags & LOADED_HIGH == 0 {
        return Err("is a zImage, which belongs below 1 MiB: build a bzImage (make bzImage)".into());
    }
    let is_64 = version >= 0x20c && setup.xloadflags & KERNEL_64 != 0;
    let sectors = if setup.setup_sects == 0 { 4 } else { u64::from(setup.setup_sects) };
    let code = sectors.saturating_add(1).saturating_mul(512);
    // `syssize` counts paragraphs of 16 bytes. The last one may be incomplete. A signature may follow it.
    let size = match version {
        // The field was shorter.
        ..0x204 => length.saturating_sub(code),
        _ => u64::from(setup.syssize).saturating_mul(16),
    };
    let whole = code.saturating_add(size);
    if size <= (if is_64 { ENTRY_64 } else { 0 }) || whole > length.saturating_add(15) {
        return Err(format!(
            "is a bzImage with its code at [{code:#x}, {whole:#x}), but the file has {length:#x} bytes: is it complete?"
        ));
    }
    let packed = length.saturating_sub(code);
    let unpacked = match version {
        ..0x20a => pc::HIGH_RAM.saturating_add(packed.saturating_mul(OLD_RATIO)),
        _ => setup.pref_address.max(pc::HIGH_RAM).saturating_add(setup.init_size.into()),
    };
    let end = pc::HIGH_RAM.saturating_add(packed).max(unpacked);
    let mode = if is_64 { Mode::Long } else { Mode::Protected };
    let version = version_in(file, setup.kernel_version);
    Ok(Kind::BzImage { setup: Box::new(setup), end, mode, version })
}

/// The first two numbers of the version text of a bzImage. `offset` is that of the setup header, 0 if there is no text.
fn version_in(file: &File, offset: u16) -> Option<(u32, u32)> {
    let mut text = [0; 16];
    let place = u64::from(offset).saturating_add(0x200);
    (offset != 0).then_some(())?;
    file.read_exact_at(&mut text, place).ok()?;
    let text = String::from_utf8_lossy(&text);
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The files of the initial RAM disk are joined at multiples of this, as the kernel expects them.
const INITRD_ALIGNMENT: u64 = 4;

/// Loads the initial RAM disk at the highest address that the kernel accepts: the files one after the other, with zeroes up
/// to a multiple of 4 bytes between them (`Documentation/driver-api/early-userspace/buffer-format.rst`). Returns its
/// address and its size in bytes; 0 without files.
fn load_initrds(
    paths: &[PathBuf],
    memory: &GuestMemory,
    limit: u64,
    kernel_end: u64,
) -> Result<(u32, u32), ImageError> {
    let refuse = |path: &Path, what: String| ImageError::Linux { file: printable(path), what };
    let (mut files, mut total) = (Vec::new(), 0u64);
    for path in paths {
        let (file, size) = open(path)?;
        if size == 0 {
            return Err(refuse(path, "is empty: give a cpio archive, or leave out --initrd".into()));
        }
        let mut start = vec![0; file_format::HEAD];
        let read = file.read_at(&mut start, 0).unwrap_or(0);
        if let Some(format) = start.get(..read).and_then(not_an_initrd) {
            return Err(refuse(
                path,
                format!("is {format}, and no initrd: give a cpio archive (cpio -o -H newc)"),
            ));
        }
        total = total.next_multiple_of(INITRD_ALIGNMENT);
        files.push((path, file, total, size));
        total = total.saturating_add(size);
    }
    let Some(last) = paths.last() else { return Ok((0, 0)) };
    let start =
        limit.checked_sub(total).map(|start| start & !(PAGE - 1)).filter(|start| *start >= kernel_end);
    let range = start.and_then(|start| Some((u32::try_from(start).ok()?, u32::try_from(total).ok()?)));
    let Some((start, total)) = range else {
        let all = if paths.len() > 1 { "is the last of several initrds, which together have" } else { "has" };
        return Err(refuse(
            last,
            format!(
                "{all} {total:#x} bytes, but the memory after the kernel has room for {:#x}: give the guest more memory \
                 (--mem), or a smaller initrd",
                limit.saturating_sub(kernel_end)
            ),
        ));
    };
    for (path, mut file, offset, size) in files {
        let place = Gpa(u64::from(start).saturating_add(offset));
        let failed = |error: String| refuse(path, format!("cannot be read ({error}): is it complete?"));
        let length = usize::try_from(size).map_err(|error| failed(error.to_string()))?;
        let read = memory.slots().read_exact_volatile_from(place, &mut file, length);
        read.map_err(|error| failed(error.to_string()))?;
    }
    Ok((start, total))
}

/// Writes everything that the kernel needs at its entry into memory: the GDT, the page tables, the initrd, the command
/// line and the `boot_params`. The `boot_params` contain the addresses of the initrd, the command line and the ACPI
/// tables, and the E820 map of RAM. `ram` is the size of RAM in bytes.
///
/// # Errors
/// The initrd cannot be read or does not fit, or the command line is too long or contains a NUL byte.
pub fn write_boot_params(
    kernel: &Kernel,
    loaded: Loaded,
    memory: &GuestMemory,
    ram: u64,
    initrds: &[PathBuf],
    command_line: &str,
) -> Result<(), Error> {
    let max = kernel.command_line_size();
    if command_line.len() > max {
        return Err(Error::Config(format!(
            "the command line has {} bytes, but {} accepts at most {max}: shorten --cmdline",
            command_line.len(),
            kernel.name
        )));
    }
    if command_line.contains('\0') {
        return Err(Error::Config("the command line contains a NUL byte: remove it from --cmdline".into()));
    }
    memory.write(pc::COMMAND_LINE, command_line.as_bytes())?;
    let mut params = boot_params { hdr: kernel.setup(), ..Default::default() };
    params.acpi_rsdp_addr = pc::ACPI.0;
    params.hdr.cmd_line_ptr = COMMAND_LINE;
    (params.hdr.ramdisk_image, params.hdr.ramdisk_size) =
        load_initrds(initrds, memory, kernel.initrd_limit(ram), loaded.end)?;
    for (entry, (start, size)) in params.e820_table.iter_mut().zip(pc::usable(ram)) {
        *entry = boot_e820_entry { addr: start.0, size, r#type: E820_RAM };
        params.e820_entries = params.e820_entries.saturating_add(1);
    }
    let params = BootParams::new::<boot_params>(&params, pc::BOOT_PARAMS);
    LinuxBootConfigurator::write_bootparams(&params, memory.slots())
        .map_err(|error| Error::Memory { bytes: PAGE, reason: error.to_string() })?;
    memory.write(pc::GDT, &modes::bytes(&modes::linux_gdt(loaded.mode)))?;
    memory.write(pc::PAGE_TABLES, &modes::bytes(&modes::identity_map(pc::PAGE_TABLES)))
}

#[cfg(test)]
mod tests;
