//! Linux kernels: `vmlinux`, which is an ELF64 executable, and `bzImage`, which unpacks itself. Both are entered in
//! long mode, with RSI at the `boot_params` that say where the rest is.
//!
//! Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol", and `zero-page.rst`. The loading itself is
//! linux-loader's; what it believes of the file is checked here first.

use super::{elf, open};
use crate::error::ImageError;
use crate::host::printable;
use crate::memory::{Gpa, GuestMemory, PAGE, pc};
use crate::x86::modes;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use object::ReadCache;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use vm_memory::{ByteValued, Bytes};

/// `boot_params` has no loader's number for this VMM: "undefined".
const LOADER: u8 = 0xff;
/// Where the heap of the kernel's 16-bit part would end, which is not run.
const HEAP_END: u16 = 0xfe00;
/// loadflags: the kernel is at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// loadflags: `heap_end_ptr` is valid.
const CAN_USE_HEAP: u8 = 1 << 7;
/// xloadflags: there is a 64-bit entry point.
const KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry point of a bzImage, from where it is loaded.
const ENTRY_64: u64 = 0x200;
/// The setup header in a bzImage, and its signature in there.
const SETUP_HEADER: u64 = 0x1f1;
/// See [`SETUP_HEADER`].
const SIGNATURE: (u64, [u8; 4]) = (0x202, *b"HdrS");
/// Where an ELF64 file says how many program headers it has (`e_phnum`).
const HEADER_COUNT: u64 = 56;
/// What a kernel without a setup header takes for a command line, in bytes without its end.
const COMMAND_LINE_SIZE: u32 = 2047;
/// E820: RAM.
const E820_RAM: u32 = 1;

/// A kernel's file, looked at but not loaded.
#[derive(Debug)]
pub struct Kernel {
    name: String,
    file: File,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// An ELF64 executable: where it is entered, and where it ends.
    Vmlinux { entry: Gpa, end: u64 },
    /// Unpacks itself to where it ends.
    BzImage { setup: Box<setup_header>, end: u64 },
}

/// A kernel in memory: how to enter it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Where.
    pub entry: Gpa,
    /// The address after the last that it takes, also once it has unpacked itself.
    pub end: u64,
}

/// Whether a file looks like a Linux kernel. Anything that cannot be read does not.
pub fn is_kernel(path: &Path) -> bool {
    let Ok((file, _)) = open(path) else { return false };
    if is_bzimage(&file) {
        return true;
    }
    // The kernel's code model is one that other kernels have as well; Linux has its name in it.
    elf::layout(&ReadCache::new(&file)).is_ok_and(|layout| layout.is_high) && names_linux(file)
}

fn is_bzimage(file: &File) -> bool {
    let mut signature = [0; 4];
    file.read_exact_at(&mut signature, SIGNATURE.0).is_ok() && signature == SIGNATURE.1
}

/// Whether a file has Linux's banner in it.
fn names_linux(file: File) -> bool {
    const BANNER: &[u8] = b"Linux version ";
    const CHUNK: usize = 1 << 20;
    let mut reader = BufReader::with_capacity(CHUNK, file);
    let mut window = Vec::new();
    loop {
        let kept = window.len().saturating_sub(BANNER.len());
        window.drain(..kept);
        match reader.by_ref().take(CHUNK as u64).read_to_end(&mut window) {
            Ok(0) | Err(_) => return false,
            Ok(_) if memchr::memmem::find(&window, BANNER).is_some() => return true,
            Ok(_) => {}
        }
    }
}

impl Kernel {
    /// Opens a kernel and checks what its headers say.
    ///
    /// # Errors
    /// It cannot be read, is no kernel, is cut short, or would lie where something else is.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let (file, length) = open(path)?;
        let name = printable(path);
        let kind = match is_bzimage(&file) {
            true => bzimage(&file, length).map_err(|what| ImageError::Linux { file: name.clone(), what })?,
            false => vmlinux(&file, &name)?,
        };
        Ok(Self { name, file, kind })
    }

    /// What to call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long a command line it takes, in bytes without its end.
    pub fn command_line_size(&self) -> usize {
        let size = match &self.kind {
            Kind::BzImage { setup, .. } if setup.cmdline_size != 0 => setup.cmdline_size,
            _ => COMMAND_LINE_SIZE,
        };
        // What lies after the command line must not be reached.
        const ROOM: u64 = pc::LOW_RAM_END - pc::COMMAND_LINE.0 - 1;
        usize::try_from(u64::from(size).min(ROOM)).unwrap_or(0)
    }

    /// Loads it into RAM of `ram` bytes.
    ///
    /// # Errors
    /// It does not fit, or its file has changed.
    pub fn load(&mut self, memory: &GuestMemory, ram: u64) -> Result<Loaded, ImageError> {
        let low = pc::HOLE.min(ram);
        let (Kind::Vmlinux { end, .. } | Kind::BzImage { end, .. }) = &self.kind;
        if *end > low {
            let what = format!(
                "needs the addresses up to {end:#x}, and the guest's memory is [0x0, {low:#x}): give it more (--mem)"
            );
            return Err(ImageError::Linux { file: self.name.clone(), what });
        }
        let high = Some(Gpa(pc::HIGH_RAM));
        let loaded = match self.kind {
            Kind::Vmlinux { entry, end } => {
                // With an offset, also of nothing, the loader leaves notes alone: it believes their sizes.
                let nowhere_else = Some(Gpa(0));
                Elf::load(memory.slots(), nowhere_else, &mut self.file, None).map(|_| Loaded { entry, end })
            }
            Kind::BzImage { end, .. } => {
                BzImage::load(memory.slots(), Some(Gpa(pc::HIGH_RAM)), &mut self.file, high)
                    .map(|_| Loaded { entry: Gpa(pc::HIGH_RAM.saturating_add(ENTRY_64)), end })
            }
        };
        loaded.map_err(|error| ImageError::Linux {
            file: self.name.clone(),
            what: format!("cannot be loaded ({error}): is it complete?"),
        })
    }

    /// The setup header that goes into `boot_params`: its own, or that of a kernel that has none.
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

    /// Up to which address an initrd may lie, exclusive.
    fn initrd_limit(&self, ram: u64) -> u64 {
        let low = pc::HOLE.min(ram);
        match &self.kind {
            Kind::BzImage { setup, .. } if setup.initrd_addr_max != 0 => {
                low.min(u64::from(setup.initrd_addr_max).saturating_add(1))
            }
            _ => low,
        }
    }
}

/// Reads the headers of a vmlinux.
fn vmlinux(file: &File, name: &str) -> Result<Kind, ImageError> {
    let refuse = |what: String| Err(ImageError::Linux { file: name.into(), what });
    let mut magic = [0; 4];
    if file.read_exact_at(&mut magic, 0).is_err() || !elf::is_elf(&magic) {
        return refuse("is no Linux kernel: give a vmlinux (ELF64) or a bzImage".into());
    }
    // The loader takes the number in the header for what it is, and not for a hint that it is elsewhere.
    let mut count = [0; 2];
    if file.read_exact_at(&mut count, HEADER_COUNT).is_ok() && u16::from_le_bytes(count) == u16::MAX {
        return refuse("has more program headers than a kernel has: is it complete?".into());
    }
    let elf::Layout { segments, entry, .. } = elf::layout(&ReadCache::new(file))?;
    if let Some(low) = segments.iter().find(|segment| segment.start.0 < pc::HIGH_RAM) {
        return refuse(format!(
            "has a segment at {:#x}, and below {:#x} is what the kernel is given to start with: link it higher",
            low.start.0,
            pc::HIGH_RAM
        ));
    }
    let end = segments.iter().map(super::Segment::end).max().unwrap_or(0);
    Ok(Kind::Vmlinux { entry, end })
}

/// Reads the setup header of a bzImage; `Err` is what is wrong.
fn bzimage(file: &File, length: u64) -> Result<Kind, String> {
    let mut setup = setup_header::default();
    file.read_exact_at(setup.as_mut_slice(), SETUP_HEADER)
        .map_err(|_| "is a bzImage cut short within its setup header: is it complete?")?;
    // The second byte of the jump over it says where the header ends; what follows is the kernel's.
    let end = u64::from(setup.jump >> 8).saturating_add(SIGNATURE.0);
    let known = usize::try_from(end.saturating_sub(SETUP_HEADER)).unwrap_or(usize::MAX);
    setup.as_mut_slice().iter_mut().skip(known).for_each(|byte| *byte = 0);
    let version = setup.version;
    if version < 0x20c || setup.xloadflags & KERNEL_64 == 0 {
        return Err(format!(
            "is a bzImage without a 64-bit entry point (boot protocol {}.{:02}): give one for x86-64, of Linux 3.8 or later",
            version >> 8,
            version & 0xff
        ));
    }
    let sectors = if setup.setup_sects == 0 { 4 } else { u64::from(setup.setup_sects) };
    let code = sectors.saturating_add(1).saturating_mul(512);
    // In paragraphs of 16 bytes; the last may be cut off, with what is signed after it.
    let size = u64::from(setup.syssize).saturating_mul(16);
    let whole = code.saturating_add(size);
    if size <= ENTRY_64 || whole > length.saturating_add(15) {
        return Err(format!(
            "is a bzImage whose header says that its code is [{code:#x}, {whole:#x}) of {length:#x} bytes: is it complete?"
        ));
    }
    let loaded = pc::HIGH_RAM.saturating_add(length.saturating_sub(code));
    let unpacked = setup.pref_address.max(pc::HIGH_RAM).saturating_add(setup.init_size.into());
    Ok(Kind::BzImage { setup: Box::new(setup), end: loaded.max(unpacked) })
}

/// Loads the initial RAM disk as high as the kernel takes it, and returns where it is and its size.
fn load_initrd(
    path: &Path,
    memory: &GuestMemory,
    limit: u64,
    kernel_end: u64,
) -> Result<(u32, u32), ImageError> {
    let (mut file, size) = open(path)?;
    let refuse = |what: String| ImageError::Linux { file: printable(path), what };
    if size == 0 {
        return Err(refuse("is empty: give a cpio archive, or leave out --initrd".into()));
    }
    let start = limit.checked_sub(size).map(|start| start & !(PAGE - 1)).filter(|start| *start >= kernel_end);
    let place = start.and_then(|start| Some((u32::try_from(start).ok()?, u32::try_from(size).ok()?)));
    let (Some((start, size)), Ok(length)) = (place, usize::try_from(size)) else {
        return Err(refuse(format!(
            "has {size:#x} bytes, and between the kernel and the end of the memory for it are {:#x}: give the guest more \
             memory (--mem), or a smaller initrd",
            limit.saturating_sub(kernel_end)
        )));
    };
    let read = memory.slots().read_exact_volatile_from(Gpa(start.into()), &mut file, length);
    read.map_err(|error| refuse(format!("cannot be read ({error}): is it complete?")))?;
    Ok((start, size))
}

/// Puts all that a kernel is entered with into memory: the GDT, page tables, the initrd, the command line, and the
/// `boot_params` that lead to the last three, to RAM and to the ACPI tables.
///
/// # Errors
/// The initrd or the command line does not fit.
pub fn write_boot_params(
    kernel: &Kernel,
    loaded: Loaded,
    memory: &GuestMemory,
    ram: u64,
    initrd: Option<&Path>,
    command_line: &str,
) -> Result<(), crate::error::Error> {
    let most = kernel.command_line_size();
    if command_line.len() > most {
        return Err(crate::error::Error::Config(format!(
            "the command line has {} bytes, and {} takes {most}: shorten --cmdline",
            command_line.len(),
            kernel.name
        )));
    }
    if command_line.contains('\0') {
        return Err(crate::error::Error::Config(
            "the command line has a NUL in it: take it out of --cmdline".into(),
        ));
    }
    memory.write(pc::COMMAND_LINE, command_line.as_bytes())?;
    let mut params = boot_params { hdr: kernel.setup(), ..Default::default() };
    params.acpi_rsdp_addr = pc::ACPI.0;
    params.hdr.cmd_line_ptr = u32::try_from(pc::COMMAND_LINE.0).unwrap_or(0);
    if let Some(initrd) = initrd {
        let (start, size) = load_initrd(initrd, memory, kernel.initrd_limit(ram), loaded.end)?;
        (params.hdr.ramdisk_image, params.hdr.ramdisk_size) = (start, size);
    }
    let usable = pc::usable(ram);
    params.e820_entries = u8::try_from(usable.len()).unwrap_or(0);
    for (entry, (start, size)) in params.e820_table.iter_mut().zip(usable) {
        *entry = boot_e820_entry { addr: start.0, size, r#type: E820_RAM };
    }
    let params = BootParams::new::<boot_params>(&params, pc::BOOT_PARAMS);
    LinuxBootConfigurator::write_bootparams(&params, memory.slots())
        .map_err(|error| crate::error::Error::Memory { bytes: PAGE, reason: error.to_string() })?;
    memory.write(pc::GDT, &modes::bytes(&modes::linux_gdt()))?;
    memory.write(pc::PAGE_TABLES, &modes::bytes(&modes::identity_map(pc::PAGE_TABLES)))
}

#[cfg(test)]
mod tests;
