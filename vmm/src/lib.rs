//! A small KVM virtual machine monitor that counts, times and explains every VM exit.
//!
//! A guest is an [`Image`](boot::Image): a flat binary or an ELF64 executable. A [`Machine`] runs it and returns a
//! [`Report`]: how the run ended, what the guest left, and where each exit came from.
//!
//! ```no_run
//! use vmm::boot::Image;
//! use vmm::memory::Gpa;
//! use vmm::x86::Mode;
//! use vmm::{Machine, Output};
//!
//! // mov al, '!'; out 0xe9, al; hlt
//! let code: &[u8] = &[0xb0, b'!', 0xe6, 0xe9, 0xf4];
//! let image = Image::flat(code, Mode::Real, Gpa(0))?;
//! let (output, captured) = Output::captured();
//! let report = Machine::builder(image).output(output).build()?.run()?;
//! println!("{}; {:?}; {:?} exits", report.stop, captured.bytes(), report.profile);
//! # Ok::<(), vmm::Error>(())
//! ```
//!
//! The library is not on crates.io. A program in another folder depends on it by its path, or by the address of its
//! repository:
//!
//! ```toml
//! [dependencies]
//! vmm = { path = "../vmm/vmm" }
//! ```
//!
//! # Modules
//!
//! | module | contents |
//! |---|---|
//! | [`boot`] | images of guests, from files and from bytes, and Linux kernels |
//! | [`machine`] | machines, their builder, and the reports of their runs |
//! | [`controller`] | exit controllers, and what they see of a vCPU |
//! | [`device`] | devices, and the buses that map ports, addresses and MSRs to them |
//! | [`exit`] | VM exits, the answers to them, and the reasons for the end of a run |
//! | [`profile`] | counts, times and traces of exits |
//! | [`memory`] | guest memory and its maps |
//! | [`x86`] | modes, CPUID leaves, page tables and the check of a state for mistakes |
//! | [`host`] | functions of the host: signals, text that is safe to print, numbers in text |
//! | [`lab`] | the comparison of the transports, and the checks of `vmm doctor` |
//!
//! # Linux
//!
//! A [`Linux`](machine::Linux) is a kernel with its initial RAM disk and its command line. [`Machine::linux`] boots it:
//!
//! ```no_run
//! use std::path::Path;
//! use std::time::Duration;
//! use vmm::Machine;
//! use vmm::machine::Linux;
//!
//! let linux = Linux::open(Path::new("bzImage"))?
//!     .initrd(Some(Path::new("initrd")))
//!     .command_line(Some("console=ttyS0 panic=-1"));
//! let machine = Machine::linux(linux).memory(Some(512 << 20)).cpus(2);
//! let report = machine.timeout(Some(Duration::from_secs(60))).build()?.run()?;
//! println!("{}", report.stop);
//! # Ok::<(), vmm::Error>(())
//! ```
//!
//! # A guest that runs a thousand times
//!
//! A machine runs more than once. Between two runs its memory and registers can be read and changed; a reset restores
//! only what has changed, which is many times faster than a new virtual machine. This is
//! `vmm/examples/thousand_runs.rs`:
//!
//! ```no_run
#![doc = include_str!("../examples/thousand_runs.rs")]
//! ```
//!
//! # Your own controller
//!
//! Your own [`ExitController`] sees every exit before the machine's controllers. This is
//! `vmm/examples/controller.rs`:
//!
//! ```no_run
#![doc = include_str!("../examples/controller.rs")]
//! ```
//!
//! # The journey of an exit
//!
//! `kvm/vcpu.rs` decodes the exit. The chain of controllers ([`controller`]) answers it; one of them hands port, MMIO and
//! MSR accesses to the [`device`]s. The loop records the exit in the [`profile`], and enters the guest again. The file
//! `docs/design.md` shows all layers.

#![cfg_attr(
    not(has_kvm),
    allow(dead_code, unused_imports, reason = "some parts are only for Linux guests, which need KVM")
)]

pub mod boot;
mod console;
pub mod controller;
pub mod device;
mod error;
pub mod exit;
mod file_format;
pub mod host;
#[cfg_attr(not(has_kvm), path = "kvm/absent/mod.rs")]
mod kvm;
pub mod lab;
pub mod machine;
pub mod memory;
pub mod profile;
mod run;
mod shutdown;
mod soft;
pub mod x86;

pub use console::input::Input;
pub use console::output::{Captured, Output};
pub use controller::ExitController;
pub use error::{BusError, Error, ImageError};
pub use kvm::counters::KvmCounters;
#[cfg(has_kvm)]
pub use kvm::run_copy::{CopiedExit, DETAILS, RunCopy};
pub use machine::{Builder, Machine, Report, Verdict};
pub use run::run as run_vcpu;
pub use shutdown::Deadline;

/// Parts that the benchmarks and fuzzers of this workspace reach into. Not for users: they change without notice.
#[cfg(all(feature = "internals", has_kvm))]
#[doc(hidden)]
pub mod internals {
    pub use crate::boot::linux::write_boot_params;
    pub use crate::controller::bios::{
        Bios, Drives, PORT as BIOS_PORT, Parts as BiosParts, memory as bios_memory, offset as bios_stub,
    };
    pub use crate::device::pc::ata::file_medium::FileMedium;
    pub use crate::device::pc::ata::{Channel, ControlBlock};
    pub use crate::device::pc::i8042::I8042;
    pub use crate::device::pc::medium::{Content, CopiedDisk, Medium, SECTOR, SharedMedium};
    pub use crate::device::pc::post_code::PostCode;
    pub use crate::device::pc::power::Power;
    pub use crate::device::pc::rtc::Rtc;
    pub use crate::device::pc::system_control::SystemControl;
    pub use crate::device::virtio::interrupt::Interrupt;
    pub use crate::device::virtio::queue::{Queues, Virtqueue};
    pub use crate::device::virtio::{Backend, Block, Entropy, Mmio};
    pub use crate::memory::map::pc;
    pub use crate::x86::cpuid::{CpuidContext, for_vcpu};
    pub use crate::x86::modes::{gdt, identity_map, regs, sregs};

    /// Checks that an image fits into `ram` bytes, and adds what a boot loader gives to its kernel.
    ///
    /// # Errors
    /// It does not fit.
    pub fn handed_over(
        image: crate::boot::Image,
        ram: u64,
    ) -> Result<crate::boot::Image, crate::error::ImageError> {
        image.check(ram)?;
        image.handed_over(ram, &crate::boot::Firmware::NONE)
    }
}
