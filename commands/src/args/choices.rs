//! Options whose values are words.

use clap::ValueEnum;
use vmm::device::{Layout, Transport};
use vmm::machine::{InputDevice, MachineKind};
use vmm::x86::Mode;

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum OnHaltArg {
    /// the machine ends
    #[default]
    Exit,
    /// the machine stays on
    Wait,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum MachineArg {
    /// a processor, memory and few devices; no interrupts, so HLT ends the run
    Bare,
    /// a classic PC: interrupt controllers, timer, and the devices that kernels expect
    Pc,
    /// a classic PC with a BIOS, for boot sectors
    Bios,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DebugExitArg {
    /// the value that the guest writes
    #[default]
    Value,
    /// twice the value plus 1, as QEMU's isa-debug-exit
    Qemu,
}

impl From<MachineArg> for MachineKind {
    fn from(machine: MachineArg) -> Self {
        match machine {
            MachineArg::Bare => Self::Bare,
            MachineArg::Pc => Self::Pc,
            MachineArg::Bios => Self::Bios,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ModeArg {
    /// 16-bit real mode
    #[value(alias = "16")]
    Real,
    /// 32-bit protected mode
    #[value(alias = "32")]
    Protected,
    /// 64-bit long mode, ring 0
    #[value(alias = "64")]
    Long,
    /// 64-bit long mode, ring 3; the guest ends with port 0xf4, because HLT needs ring 0
    #[value(name = "user64", aliases = ["user", "ring3"])]
    User,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Real => Self::Real,
            ModeArg::Protected => Self::Protected,
            ModeArg::Long => Self::Long,
            ModeArg::User => Self::User,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum TransportArg {
    /// each access to the device is a VM exit
    Exit,
    /// like exit, but KVM queues the stores to TX head until the next exit
    Coalesced,
    /// shared memory; a host thread sleeps until the driver rings the doorbell
    Doorbell,
    /// shared memory; a host thread polls it
    Polling,
}

impl From<TransportArg> for Transport {
    fn from(transport: TransportArg) -> Self {
        match transport {
            TransportArg::Exit => Self::Exit,
            TransportArg::Coalesced => Self::Coalesced,
            TransportArg::Doorbell => Self::Doorbell,
            TransportArg::Polling => Self::Polling,
        }
    }
}

/// A way to see the calls of an observed program.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum EngineArg {
    /// ptrace for statically linked programs and for those of Go, preload for others
    #[default]
    Auto,
    /// a library in front of ioctl (LD_PRELOAD), for dynamically linked programs
    Preload,
    /// stops at the calls to KVM (ptrace, seccomp), for all programs; slower
    Ptrace,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LayoutArg {
    /// as in the assignment's table: max_queue_len (2 bytes), device_status, driver_status
    Table,
    /// as in the assignment's struct device_t: device_status, driver_status, max_queue_len (1 byte)
    Struct,
}

impl From<LayoutArg> for Layout {
    fn from(layout: LayoutArg) -> Self {
        match layout {
            LayoutArg::Table => Self::Table,
            LayoutArg::Struct => Self::Struct,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConsoleArg {
    /// the serial port
    Serial,
    /// virtio console of Linux
    Virtio,
    /// the keyboard of a classic PC
    Keyboard,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum InputDeviceArg {
    /// the serial port
    Serial,
    /// the keyboard
    Keyboard,
}

impl From<InputDeviceArg> for InputDevice {
    fn from(device: InputDeviceArg) -> Self {
        match device {
            InputDeviceArg::Serial => Self::Serial,
            InputDeviceArg::Keyboard => Self::Keyboard,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum ClockArg {
    /// kvm-clock; a kernel without it gets a PIT and a PM timer as soon as it looks for them
    #[default]
    Auto,
    /// kvm-clock only
    Kvm,
    /// also a PIT and a PM timer from the start, for older kernels
    Pit,
}
