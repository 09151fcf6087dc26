//! The meaning of an error for the call that failed (Linux `Documentation/virt/kvm/api.rst`, section 4).

use super::calls::{slot, vm_of};
use super::requests;
use super::values::{half, long, range};
use crate::engine::{Call, Target};
use crate::memory::ObservedMemory;

/// The size of a page, of which slots consist.
const PAGE: u64 = 0x1000;
/// The largest number of pages of a slot.
const MOST_PAGES: u64 = (1 << 31) - 1;

/// Returns the name of an error, and its meaning for a call whose request has this name without `KVM_`.
pub(super) fn meaning(call: &Call, name: Option<&str>, memory: &ObservedMemory) -> String {
    let errno = call.result.saturating_neg();
    let meaning = match name {
        Some(_) if let Some(object) = of_other_object(call) => Some(format!("this is a call on {object}")),
        Some("SET_USER_MEMORY_REGION" | "SET_USER_MEMORY_REGION2") => region(errno, call, memory),
        Some(name) => of_call(errno, name).map(String::from),
        None => None,
    };
    let meaning = meaning.or_else(|| of_any(errno, name.is_some()).map(String::from));
    let errno_name = errno_name(errno).map_or_else(|| format!("errno {errno}"), String::from);
    meaning.map_or_else(|| errno_name.clone(), |meaning| format!("{errno_name}: {meaning}"))
}

/// The object that a refused call belongs to, if it was made on another one. A vCPU and `/dev/kvm` then answer EINVAL.
fn of_other_object(call: &Call) -> Option<&'static str> {
    let made_on = match call.target {
        Target::System => "/dev/kvm",
        Target::Vm(_) => "a VM",
        Target::Vcpu(_) => "a vCPU",
    };
    let is_refused = [-libc::ENOTTY, -libc::EINVAL].contains(&call.result);
    requests::object(call.request).filter(|object| is_refused && *object != made_on)
}

fn errno_name(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::E2BIG => "E2BIG",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::ENODEV => "ENODEV",
        libc::EINVAL => "EINVAL",
        libc::ENFILE => "ENFILE",
        libc::EMFILE => "EMFILE",
        libc::ENOTTY => "ENOTTY",
        libc::ENOSPC => "ENOSPC",
        libc::ENOSYS => "ENOSYS",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        _ => return None,
    })
}

/// The meaning of an error for one kind of call.
fn of_call(errno: i32, name: &str) -> Option<&'static str> {
    Some(match (name, errno) {
        ("CREATE_VM", libc::EINVAL) => "this processor or kernel has no VMs of this type; 0 is the usual one",
        ("CREATE_VM", libc::EBUSY) => "another hypervisor uses the processor's virtualization",
        ("CREATE_VCPU", libc::EEXIST) => "the VM has a vCPU with this number already",
        ("CREATE_VCPU", libc::EINVAL) => {
            "the number, or the number of vCPUs, is too large (KVM_CAP_MAX_VCPU_ID, KVM_CAP_MAX_VCPUS)"
        }
        ("SET_TSS_ADDR", libc::EINVAL) => "the three pages must lie below 4 GiB",
        ("SET_IDENTITY_MAP_ADDR", libc::EINVAL) => "it must come before the first KVM_CREATE_VCPU",
        ("CREATE_IRQCHIP", libc::EEXIST) => "the VM has an interrupt controller already",
        ("CREATE_IRQCHIP", libc::EINVAL) => "it must come before the first KVM_CREATE_VCPU",
        ("CREATE_PIT" | "CREATE_PIT2", libc::EEXIST) => "the VM has a timer (PIT) already",
        ("CREATE_PIT" | "CREATE_PIT2", libc::ENOENT) => "the timer (PIT) needs KVM_CREATE_IRQCHIP first",
        ("SET_SREGS" | "SET_SREGS2", libc::EINVAL) => "KVM refuses this combination of registers",
        ("SET_CPUID" | "SET_CPUID2", libc::EINVAL) => {
            "KVM refuses these leaves; after the first KVM_RUN they cannot change"
        }
        ("SET_CPUID" | "SET_CPUID2", libc::E2BIG) => "there are too many leaves; at most 256",
        ("GET_SUPPORTED_CPUID" | "GET_EMULATED_CPUID" | "GET_CPUID2", libc::E2BIG) => {
            "`nent` is too small for all leaves: give room for more"
        }
        ("GET_MSR_INDEX_LIST" | "GET_MSR_FEATURE_INDEX_LIST", libc::E2BIG) => {
            "`nmsrs` was too small; it is now the number of MSRs"
        }
        ("SET_MSRS" | "GET_MSRS", libc::E2BIG) => "there are too many MSRs; at most 256",
        ("ENABLE_CAP", libc::EINVAL) => "KVM does not have this capability here, or refuses its arguments",
        ("GET_LAPIC" | "SET_LAPIC", libc::EINVAL) => {
            "the kernel has no local APIC: KVM_CREATE_IRQCHIP is missing"
        }
        ("IRQ_LINE" | "IRQ_LINE_STATUS" | "GET_IRQCHIP" | "SET_IRQCHIP", libc::ENXIO) => {
            "the kernel has no interrupt controller: KVM_CREATE_IRQCHIP is missing"
        }
        ("IRQFD", libc::EINVAL) => {
            "the kernel has no interrupt controller, or the GSI or the eventfd is wrong"
        }
        ("IOEVENTFD", libc::EEXIST) => "another ioeventfd has this address, width and value",
        ("IOEVENTFD", libc::EINVAL) => "the width must be 0, 1, 2, 4 or 8, and the flags known",
        ("INTERRUPT", libc::ENXIO) => "the interrupt controller is in the kernel: use KVM_IRQ_LINE",
        ("INTERRUPT", libc::EEXIST) => "an interrupt waits already",
        ("INTERRUPT", libc::EINVAL) => "the vector must be 0 to 255",
        ("SET_MP_STATE", libc::EINVAL) => {
            "other states than runnable need an interrupt controller in the kernel"
        }
        ("SET_SIGNAL_MASK", libc::EINVAL) => "`len` must be 8, the size of the kernel's signal set",
        ("SET_TSC_KHZ", libc::EINVAL) => "the processor cannot scale the counter to this frequency",
        ("KVMCLOCK_CTRL", libc::EINVAL) => "the guest does not use KVM's clock",
        ("GET_DIRTY_LOG", libc::ENOENT) => "the slot has no dirty log (KVM_MEM_LOG_DIRTY_PAGES)",
        ("RUN", libc::EINVAL) => "KVM refuses to enter: see the registers, and `kvm_valid_regs` in `kvm_run`",
        _ => return None,
    })
}

/// The meaning of an error that any call can have.
fn of_any(errno: i32, is_known: bool) -> Option<&'static str> {
    Some(match errno {
        libc::ENOTTY if is_known => "this descriptor, or this kernel, does not have the call",
        libc::ENOTTY | libc::EINVAL if !is_known => "KVM does not know this request",
        libc::EFAULT => "the argument is not the address of memory that the program may read and write",
        libc::EBADF => "the descriptor is not open: did an earlier call fail?",
        libc::EIO => "the VM belongs to another process: only the one that made it may use it",
        libc::EMFILE => "the program has no free descriptor",
        libc::ENOMEM => "the host lacks memory",
        libc::EPERM | libc::EACCES => "the program may not do this",
        libc::EINVAL => "KVM refuses the arguments",
        _ => return None,
    })
}

/// The reason why KVM refused a memory slot (section 4.35).
fn region(errno: i32, call: &Call, memory: &ObservedMemory) -> Option<String> {
    let (vm, data) = (vm_of(call.target)?, call.data.as_slice());
    let (number, flags, gpa) = (half(data, 0)?, half(data, 4)?, long(data, 8)?);
    let (size, address) = (long(data, 16)?, long(data, 24)?);
    let old = memory.slot(vm, number);
    match errno {
        libc::EEXIST => {
            let other = memory.overlapped(vm, number, gpa, size)?;
            Some(format!("it overlaps slot {} at {}", slot(other.number), range(other.gpa, other.size)))
        }
        libc::EINVAL => Some(match () {
            () if gpa % PAGE != 0 => format!("the guest address {gpa:#x} is no multiple of 4096"),
            () if size % PAGE != 0 => format!("the size {size:#x} is no multiple of 4096"),
            () if address % PAGE != 0 => format!("the host address {address:#x} is no multiple of 4096"),
            () if address >> 47 != 0 => format!("the host address {address:#x} is not one of the program"),
            () if gpa.checked_add(size).is_none() => "it runs past the last address".into(),
            () if size / PAGE > MOST_PAGES => "it is larger than 8 TiB".into(),
            () if size == 0 && old.is_none() => "there is no such slot to delete".into(),
            () if flags & !7 != 0 => format!("unknown flags {:#x}", flags & !7),
            () if old.is_some_and(|old| old.size != size) => {
                "the size of a slot cannot change: delete it first, with size 0".into()
            }
            () if old.is_some_and(|old| old.address != address) => {
                "the host address of a slot cannot change: delete it first, with size 0".into()
            }
            () => {
                "the number of the slot is too large (KVM_CAP_NR_MEMSLOTS), or KVM refuses its flags".into()
            }
        }),
        _ => None,
    }
}
