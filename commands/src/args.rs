//! The options of `vmm run` and `vmm boot`, and the parsers of their values.

mod choices;

use crate::debugger::GdbArgs;
use crate::jail::JailArgs;
use crate::measure::MeasureArgs;
use crate::processor::VcpuArg;
use crate::step::StepArgs;
pub(super) use choices::{
    ClockArg, ConsoleArg, DebugExitArg, EngineArg, InputDeviceArg, LayoutArg, MachineArg, ModeArg, OnHaltArg,
    TransportArg,
};
use clap::Args;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use vmm::Error;
use vmm::controller::MsrRule;
pub(super) use vmm::controller::parse_msr_rule;
use vmm::host::format_size;
pub(super) use vmm::host::{parse_number, parse_size};
use vmm::x86::{CpuidOverride, InitialValue};

// `Default` gives the defaults of the options: the test `a_run_without_options_skips_the_parser` compares them.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Examples:
  vmm run simvirtio                          a built-in guest
  vmm run simvirtio --transport polling      the same, over shared memory
  vmm run guest.bin@0x1000:32 --verify       a 32-bit flat binary at 0x1000
  vmm run guest.elf --cpus 4 --timeout 60    an ELF executable on four vCPUs
  vmm run kernel.elf --module initrd,text    a multiboot kernel with a module
  vmm run guest.bin@0x1000:0x0 --set ax=2    16-bit code with CS 0x1000
  vmm run disk.img                           a boot sector or disk, with a BIOS
  vmm run --rom bios.bin                     firmware, from its reset vector
  vmm run simvirtio --vcpu soft              on the software processor
  vmm run real16-hello --step=100            each of the first instructions
  vmm run guest.bin --expect-output out.txt --expect ax=42
                                             fails if the run differs
  vmm run guest.elf --gdb                    waits for gdb at 127.0.0.1:1234
  vmm run guest.elf --sample --sample-file guest.svg
                                             a flame graph of the guest
  vmm run simvirtio --profile json=run.json --trace run.trace
                                             files for `vmm report`

If stdin is a terminal, a classic PC gets each key, except:
  Ctrl-A x         end the machine
  Ctrl-A c         write a core of the guest to FILE.1 (--core FILE)
  Ctrl-A h         show the keys
  Ctrl-A Ctrl-A    send Ctrl-A to the guest

`vmm --help` lists the exit statuses.")]
pub(super) struct RunArgs {
    /// Guest to run: a built-in guest (see `vmm guests`), an ELF executable, a multiboot or PVH kernel, or a flat
    /// binary as FILE[@ADDR][:MODE], such as guest.bin@0x1000:32, or FILE@SEG:OFF; or a boot disk with 55 AA at the
    /// end of its first sector, which runs with a BIOS; a number without 0x is decimal
    #[arg(value_name = "NAME|FILE", required_unless_present = "rom")]
    pub(super) guest: Option<OsString>,

    /// Firmware to run instead of a guest: a ROM of 64 KiB to 16 MiB, which ends at 4 GiB; the machine starts at its
    /// reset vector
    #[arg(long, value_name = "FILE", conflicts_with_all = ["guest", "mode", "load_at", "module", "cmdline"])]
    pub(super) rom: Option<PathBuf>,

    /// Mode in which a flat binary starts; 16, 32 and 64 are short names. An ELF64 file accepts long and user64, an
    /// ELF32 file protected; then a multiboot header has no effect
    /// [default: long for a flat binary at 1 MiB or above, otherwise real]
    #[arg(long, value_enum)]
    pub(super) mode: Option<ModeArg>,

    /// Processor that runs the guest [default: kvm where it can be used, otherwise soft]
    #[arg(long, value_enum)]
    pub(super) vcpu: Option<VcpuArg>,

    /// Machine that runs the guest [default: bios for boot disks, pc for multiboot and PVH kernels on KVM, otherwise bare]
    #[arg(long, value_enum)]
    pub(super) machine: Option<MachineArg>,

    /// Device of a classic PC that gets what is typed or piped [default: the one that the guest reads; for keys of a
    /// terminal first the keyboard, for other input first the serial port, or the BIOS]
    #[arg(long, value_enum)]
    pub(super) console: Option<InputDeviceArg>,

    /// Exit code of a write to port 0xf4
    #[arg(long, value_enum, default_value_t)]
    pub(super) debug_exit: DebugExitArg,

    /// Guest physical address at which a flat binary is loaded and entered, such as 0x1000; without 0x the number is
    /// decimal [default: 0]
    #[arg(long, value_name = "ADDR", value_parser = parse_number)]
    pub(super) load_at: Option<u64>,

    /// Size of the guest's memory in bytes, 1M to 3G, such as 0x100000, 64M or 2G; above 1M the machine has no
    /// SIMVIRTIO device [default: 1M; 250M for a guest at 1 MiB or above]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) mem: Option<u64>,

    /// Command line of a multiboot or PVH kernel
    #[arg(long, value_name = "TEXT")]
    pub(super) cmdline: Option<String>,

    /// File that a multiboot or PVH kernel gets as a module, with a text for it [default: the file's name]; can be
    /// repeated
    #[arg(long, value_name = "FILE[,TEXT]")]
    pub(super) module: Vec<OsString>,

    /// Raw disk image for the ATA channel of a classic PC, at most 2; with `,ro` the guest cannot write it; with `,raw`
    /// it is not refused if it looks like another format; can be repeated
    #[arg(long, value_name = "FILE[,ro][,raw]")]
    pub(super) disk: Vec<OsString>,

    /// Value of a general register at the start, such as rax=2; can be repeated
    #[arg(long, value_name = "REGISTER=VALUE")]
    pub(super) set: Vec<InitialValue>,

    /// Transport between the guest's SIMVIRTIO driver and the device [default: exit; polling if vmm was built with
    /// the feature polling]
    #[arg(long, value_enum)]
    pub(super) transport: Option<TransportArg>,

    /// Order of the fields in SIMVIRTIO's window [default: table, or that of the built-in guest]
    #[arg(long, value_enum)]
    pub(super) layout: Option<LayoutArg>,

    /// Length of the SIMVIRTIO queues in bytes, 2 to 4096, or to 255 with --layout struct [default: 256 for most guests]
    #[arg(long, value_name = "BYTES", value_parser = parse_number)]
    pub(super) queue_len: Option<u64>,

    /// File that the SIMVIRTIO device reads as input for the guest [default: standard input]
    #[arg(long, value_name = "FILE")]
    pub(super) input: Option<PathBuf>,

    /// Time limit of the run in seconds, such as 10 or 0.5; 0 means no limit. Time spent waiting for input does not
    /// count
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_timeout)]
    pub(super) timeout: Timeout,

    /// Wall-clock limit of the run in seconds; time spent waiting for input counts; 0 means no limit [default: 0]
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    pub(super) wall_timeout: Option<Timeout>,

    /// Require the guest to leave 42 in RAX (EAX, AX) and at 0x400, and show no sign of a mistake, such as a store to
    /// an address without memory; built-in guests that promise this are always verified
    #[arg(long)]
    pub(super) verify: bool,

    /// Set what CPUID returns: `host` (what KVM supports), `none` (nothing, which starts faster), or a change to the
    /// host's values, LEAF[.SUBLEAF].REGISTER[.BITS]=VALUE, such as 1.ecx.24=1 or 1.ebx.31-24=0xba; can be repeated
    /// [default: host for files, none for most built-in guests]
    #[arg(long, value_name = "CPUID", value_parser = parse_cpuid)]
    pub(super) cpuid: Vec<CpuidArg>,

    /// Number of vCPUs, 1 to 32, each on its own host thread (with `--vcpu soft` they take turns on one); RDI and CPUID tell a vCPU its number [default: 1 for
    /// most guests]
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    pub(super) cpus: Option<u32>,

    /// Rule for accesses to a model-specific register, such as 0x1a0=deny: `deny` raises #GP, `ignore` reads 0 and
    /// drops writes, `log` prints a line on stderr for each of the first 100 accesses; can be repeated for other registers
    #[arg(long, value_name = "MSR=RULE", value_parser = parse_msr_rule)]
    pub(super) msr: Vec<(u32, MsrRule)>,

    /// Add the devices of project 2 of the KeV course: FIFOs on port 0xbb and MSR 0xabc, a constant on port 3, and a printer at
    /// 0xcafe0000
    #[arg(long)]
    pub(super) kev: bool,

    #[command(flatten)]
    pub(super) step: StepArgs,

    /// Limit of the guest's output in bytes, such as 64K; 0 means no limit [default: 256K if stdout is a terminal,
    /// otherwise no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) output_limit: Option<u64>,

    /// Pass control characters of the guest to the terminal. By default they are shown as text, such as \x1b. If stdout
    /// is not a terminal, all bytes pass
    #[arg(long)]
    pub(super) raw_output: bool,

    #[command(flatten)]
    pub(super) gdb: GdbArgs,

    #[command(flatten)]
    pub(super) jail: JailArgs,

    #[command(flatten)]
    pub(super) measure: MeasureArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm boot bzImage --initrd initrd           Linux with an initial RAM disk
  vmm boot vmlinux --initrd initrd --cpus 2 --mem 1G
  vmm boot vmlinux --disk root.img --cmdline \"console=ttyS0 root=/dev/vda\"
  vmm boot kernel.elf --step=1000            each of the first instructions
  vmm boot vmlinux --gdb --cmdline \"console=ttyS0 nokaslr\"
                                             waits for gdb at 127.0.0.1:1234
  vmm boot bzImage --initrd initrd --profile json=boot.json
                                             a file for `vmm report`

If stdin is a terminal, each key goes to the guest, except:
  Ctrl-A x         end the machine
  Ctrl-A c         write a core of the guest to FILE.1 (--core FILE)
  Ctrl-A h         show the keys
  Ctrl-A Ctrl-A    send Ctrl-A to the guest

`vmm --help` lists the exit statuses.")]
pub(super) struct BootArgs {
    /// Linux kernel for x86-64, a vmlinux (ELF64) or a bzImage; or a multiboot or PVH kernel, which runs on the machine
    /// of `vmm run`
    #[arg(value_name = "KERNEL")]
    pub(super) kernel: PathBuf,

    /// Processor of the machine; Linux needs kvm [default: kvm]
    #[arg(long, value_enum)]
    pub(super) vcpu: Option<VcpuArg>,

    /// Machine of a multiboot or PVH kernel [default: pc on KVM, otherwise bare]
    #[arg(long, value_enum)]
    pub(super) machine: Option<MachineArg>,

    /// Exit code of a write to port 0xf4
    #[arg(long, value_enum, default_value_t)]
    pub(super) debug_exit: DebugExitArg,

    /// Initial RAM disk: a cpio archive, compressed or not; can be repeated, and the kernel then gets the archives one
    /// after the other [default: none]
    #[arg(long, value_name = "FILE")]
    pub(super) initrd: Vec<PathBuf>,

    /// Command line of the kernel; with panic=-1 a kernel panic ends the machine
    /// [default: console=ttyS0 panic=-1 reboot=k pci=off; with --console virtio, hvc0 instead of ttyS0]
    #[arg(long, value_name = "TEXT")]
    pub(super) cmdline: Option<String>,

    /// File that a multiboot or PVH kernel gets as a module, with a text for it [default: the file's name]; can be
    /// repeated
    #[arg(long, value_name = "FILE[,TEXT]")]
    pub(super) module: Vec<OsString>,

    /// Attach a raw disk image, at most 16; the first appears as /dev/vda. A multiboot or PVH kernel gets at most 2, on
    /// ATA. With `,ro` the guest cannot write it; with `,raw` it is not refused if it looks like another format; can be
    /// repeated
    #[arg(long, value_name = "FILE[,ro][,raw]")]
    pub(super) disk: Vec<OsString>,

    /// Console of Linux: `serial` is the serial port (ttyS0) and the default; `virtio` (hvc0) is faster, but starts later
    /// in the boot. For a multiboot or PVH kernel, the device that gets the input: `serial` or `keyboard` [default: the one
    /// that the kernel reads]
    #[arg(long, value_enum)]
    pub(super) console: Option<ConsoleArg>,

    /// Effect of `halt -f` and the like: `exit` ends the machine with status 0; `wait` lets it stand, as a computer does
    #[arg(long, value_enum, default_value_t)]
    pub(super) on_halt: OnHaltArg,

    /// Time sources for Linux
    #[arg(long, value_enum, default_value_t)]
    pub(super) clock: ClockArg,

    /// Size of the machine's memory in bytes, 8M to 512G, such as 64M or 8G
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    pub(super) mem: u64,

    /// Number of vCPUs, 1 to 32
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_cpus)]
    pub(super) cpus: u32,

    /// Time limit of the run in seconds, such as 60 or 0.5; 0 means no limit
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = parse_timeout)]
    pub(super) timeout: Timeout,

    /// Time limit in real time. For Linux, --timeout counts the same time; the shorter one applies; 0 means no limit
    /// [default: 0]
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    pub(super) wall_timeout: Option<Timeout>,

    /// Console text that marks the start of userland in the boot timeline, 1 to 512 bytes without an end of line
    /// [default: the kernel's message that it runs init]
    #[arg(long, value_name = "TEXT")]
    pub(super) marker: Option<String>,

    /// Change what CPUID returns, LEAF[.SUBLEAF].REGISTER[.BITS]=VALUE, such as 1.ecx.24=0; can be repeated
    /// [default: what KVM supports]
    #[arg(long, value_name = "CHANGE")]
    pub(super) cpuid: Vec<CpuidOverride>,

    /// Rule for accesses to a model-specific register, as in `vmm run`; can be repeated for other registers
    #[arg(long, value_name = "MSR=RULE", value_parser = parse_msr_rule)]
    pub(super) msr: Vec<(u32, MsrRule)>,

    /// Limit of the guest's output in bytes, such as 64K; 0 means no limit [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) output_limit: Option<u64>,

    #[command(flatten)]
    pub(super) step: StepArgs,

    #[command(flatten)]
    pub(super) gdb: GdbArgs,

    #[command(flatten)]
    pub(super) jail: JailArgs,

    #[command(flatten)]
    pub(super) measure: MeasureArgs,
}

/// A value of `--cpuid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CpuidArg {
    /// All features that KVM supports on this host.
    Host,
    /// No features.
    None,
    /// A change to the host's features.
    Change(CpuidOverride),
}

pub(super) fn parse_cpuid(text: &str) -> Result<CpuidArg, String> {
    match text {
        "host" => Ok(CpuidArg::Host),
        "none" => Ok(CpuidArg::None),
        _ => text.parse().map(CpuidArg::Change),
    }
}

/// The time limit of a run; `None` for no limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeout(pub(super) Option<Duration>);

/// The default of `--output-limit` if stdout is a terminal: a guest in a wrong mode pours out bytes without end.
pub(super) const TERMINAL_OUTPUT_LIMIT: u64 = 256 << 10;

/// The limit that `--output-limit` sets: 0 means none. `default` is the limit without the option.
pub(super) fn output_limit(given: Option<u64>, default: Option<u64>) -> Option<u64> {
    given.or(default).filter(|limit| *limit != 0)
}

/// The limit of `vmm run`.
impl Default for Timeout {
    fn default() -> Self {
        Self(Some(Duration::from_secs(10)))
    }
}

pub(super) fn parse_timeout(text: &str) -> Result<Timeout, String> {
    const MAX_SECONDS: f64 = 1e9;
    // 1e-400 rounds to 0.0, but does not mean "no limit": a zero has only zeros before its exponent.
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    let is_zero = !mantissa.contains(|c| ('1'..='9').contains(&c));
    match text.parse::<f64>() {
        Ok(0.0) if is_zero => Ok(Timeout(None)),
        Ok(seconds) if seconds > 0.0 && seconds <= MAX_SECONDS => {
            Ok(Timeout(Some(Duration::from_secs_f64(seconds))))
        }
        _ => Err("give 0 to 1000000000 seconds, such as 10 or 0.5; 0 means no limit".into()),
    }
}

/// Parses a number of vCPUs. The library checks the range of what fits into 32 bits.
pub(super) fn parse_cpus(text: &str) -> Result<u32, String> {
    let number = parse_number(text).ok().and_then(|number| number.try_into().ok());
    number.ok_or_else(|| "give a number from 1 to 32".into())
}

/// Checks that the value of an option is within its range.
///
/// # Errors
/// It is not. The message names the option, the value and the range.
pub(super) fn in_range<T: Copy + PartialOrd + Into<u64> + TryFrom<u64>>(
    option: &str,
    value: u64,
    min: T,
    max: T,
) -> Result<T, Error> {
    let checked = T::try_from(value).ok().filter(|value| (min..=max).contains(value));
    checked.ok_or_else(|| {
        Error::Config(format!("{option} must be {} to {}, not {value}", min.into(), max.into()))
    })
}

/// Checks that a number of bytes is 1 to `max`.
///
/// # Errors
/// It is not. The message names the option, the value and the range.
pub(super) fn size_in_range(option: &str, bytes: u64, max: u32) -> Result<u32, Error> {
    let checked = u32::try_from(bytes).ok().filter(|bytes| (1..=max).contains(bytes));
    checked.ok_or_else(|| {
        Error::Config(format!(
            "{option} must be 1 to {}, not {}",
            format_size(max.into()),
            format_size(bytes)
        ))
    })
}

/// Checks the value of `--queue-len`.
///
/// # Errors
/// SIMVIRTIO does not allow queues of this length.
pub(super) fn check_queue_len(bytes: u64) -> Result<u16, Error> {
    in_range("--queue-len", bytes, simvirtio::abi::MIN_QUEUE_LEN, simvirtio::abi::MAX_QUEUE_LEN)
}

#[cfg(test)]
mod tests;
