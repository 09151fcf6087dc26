//! The refusals of ELF files: what the file is, and the next step.

use super::notes::Notes;
use object::elf::{
    EM_386, EM_AARCH64, EM_ARM, EM_BPF, EM_IAMCU, EM_MIPS, EM_PPC, EM_PPC64, EM_RISCV, EM_S390, EM_X86_64,
    ET_CORE, ET_REL, FileType, Machine,
};

/// The refusal of a file without a usable entry point.
pub(super) const ENTRY_OUTSIDE: &str =
    "has its entry point outside every segment: set it with the linker's -e or ENTRY";

/// The refusal of an ELF file that is not an executable, by its type.
pub(super) fn not_executable(kind: FileType) -> &'static str {
    match kind {
        ET_REL => "is an object file: link it (ld -T linker/long64.ld, or gcc -static -nostdlib -no-pie)",
        ET_CORE => "is the core dump of a program: give the executable of a guest",
        _ => "is not an executable: link it with -static -no-pie",
    }
}

/// The refusal of a file for another processor.
pub(super) fn other_machine(machine: Machine, is_64: bool) -> String {
    if is_64 || machine != EM_X86_64 {
        return format!("is for another processor, {}: build it for x86-64", name(machine));
    }
    "has 32-bit addresses for code of 64 bits (the x32 ABI): build it with -m64, or with -m32 for protected mode".into()
}

/// The name of a processor (`e_machine`, gABI "ELF Header"), or its number.
fn name(machine: Machine) -> String {
    let name = match machine {
        EM_386 | EM_IAMCU => "x86 of 32 bits",
        EM_ARM => "ARM of 32 bits",
        EM_AARCH64 => "ARM of 64 bits",
        EM_RISCV => "RISC-V",
        EM_PPC | EM_PPC64 => "PowerPC",
        EM_MIPS => "MIPS",
        EM_S390 => "s390",
        EM_BPF => "BPF",
        _ => return format!("number {}", machine.0),
    };
    name.into()
}

/// The advice for a program that needs Linux.
const NEEDS_LINUX: &str = "build it for no system (gcc -ffreestanding -mgeneral-regs-only -static -nostdlib -no-pie, with \
                           _start instead of main), or run it under Linux (vmm boot KERNEL --initrd FILE)";

/// The refusal of a program that was built for another system than a bare machine. `None` if nothing shows one.
pub(super) fn other_system(interpreter: Option<&[u8]>, notes: &Notes, bytes: &[u8]) -> Option<String> {
    let holds = |text: &[u8]| memchr::memmem::find(bytes, text).is_some();
    let path = interpreter
        .map(|path| String::from_utf8_lossy(path).trim_end_matches('\0').escape_debug().to_string());
    if notes.solo5 || path.as_ref().is_some_and(|path| path.contains("solo5")) {
        return Some(
            "is a unikernel for the Solo5 ABI, which has its own hypercalls: run it with solo5-hvt, or build it for Solo5's \
             target virtio, which is a multiboot kernel"
                .into(),
        );
    }
    if notes.hermit {
        return Some(
            "is a Hermit unikernel, which needs the hypercalls of uhyve or Hermit's loader: run it with uhyve, or give the \
             loader (hermit-loader-x86_64, a multiboot kernel) and the unikernel as its module (--module FILE)"
                .into(),
        );
    }
    let needs_linux = path.is_some() || notes.linux;
    if needs_linux && holds(b"user-mode-linux.sourceforge.net") {
        return Some(
            "is User Mode Linux, a Linux kernel that is a program for Linux: start it from a shell, or boot a kernel for \
             x86-64 (vmm boot bzImage)"
                .into(),
        );
    }
    match path {
        Some(path) if path.contains("ld-linux") || path.contains("ld-musl") => {
            Some(format!("is a program for Linux (it needs {path}): {NEEDS_LINUX}"))
        }
        Some(path) => Some(format!("needs a dynamic linker ({path}): link it with -static -nostdlib -no-pie")),
        None if notes.linux => Some(format!("is a program for Linux with the GNU C library: {NEEDS_LINUX}")),
        None if notes.xen => Some(
            "is a paravirtualised guest of Xen, without an entry point for PVH: build it for PVH (XEN_ELFNOTE_PHYS32_ENTRY), \
             or as a multiboot kernel"
                .into(),
        ),
        None => None,
    }
}
