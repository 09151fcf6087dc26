//! The requests of KVM on x86, by number (`linux/kvm.h`).

/// The numbers and the names without `KVM_`, ordered by the number of the function.
pub(super) const REQUESTS: &[(u32, &str)] = &[
    (0x0000_ae00, "GET_API_VERSION"),
    (0x0000_ae01, "CREATE_VM"),
    (0xc004_ae02, "GET_MSR_INDEX_LIST"),
    (0x0000_ae03, "CHECK_EXTENSION"),
    (0x0000_ae04, "GET_VCPU_MMAP_SIZE"),
    (0xc008_ae05, "GET_SUPPORTED_CPUID"),
    (0xc008_ae09, "GET_EMULATED_CPUID"),
    (0xc004_ae0a, "GET_MSR_FEATURE_INDEX_LIST"),
    (0x4018_ae40, "SET_MEMORY_REGION"),
    (0x0000_ae41, "CREATE_VCPU"),
    (0x4010_ae42, "GET_DIRTY_LOG"),
    (0x4020_ae46, "SET_USER_MEMORY_REGION"),
    (0x0000_ae47, "SET_TSS_ADDR"),
    (0x4008_ae48, "SET_IDENTITY_MAP_ADDR"),
    (0x40a0_ae49, "SET_USER_MEMORY_REGION2"),
    (0x0000_ae60, "CREATE_IRQCHIP"),
    (0x4008_ae61, "IRQ_LINE"),
    (0xc208_ae62, "GET_IRQCHIP"),
    (0x8208_ae63, "SET_IRQCHIP"),
    (0x0000_ae64, "CREATE_PIT"),
    (0xc048_ae65, "GET_PIT"),
    (0x8048_ae66, "SET_PIT"),
    (0x4010_ae67, "REGISTER_COALESCED_MMIO"),
    (0xc008_ae67, "IRQ_LINE_STATUS"),
    (0x4010_ae68, "UNREGISTER_COALESCED_MMIO"),
    (0x4008_ae6a, "SET_GSI_ROUTING"),
    (0x0000_ae71, "REINJECT_CONTROL"),
    (0x4020_ae76, "IRQFD"),
    (0x4040_ae77, "CREATE_PIT2"),
    (0x0000_ae78, "SET_BOOT_CPU_ID"),
    (0x4040_ae79, "IOEVENTFD"),
    (0x4038_ae7a, "XEN_HVM_CONFIG"),
    (0x4030_ae7b, "SET_CLOCK"),
    (0x8030_ae7c, "GET_CLOCK"),
    (0x0000_ae80, "RUN"),
    (0x8090_ae81, "GET_REGS"),
    (0x4090_ae82, "SET_REGS"),
    (0x8138_ae83, "GET_SREGS"),
    (0x4138_ae84, "SET_SREGS"),
    (0xc018_ae85, "TRANSLATE"),
    (0x4004_ae86, "INTERRUPT"),
    (0xc008_ae88, "GET_MSRS"),
    (0x4008_ae89, "SET_MSRS"),
    (0x4008_ae8a, "SET_CPUID"),
    (0x4004_ae8b, "SET_SIGNAL_MASK"),
    (0x81a0_ae8c, "GET_FPU"),
    (0x41a0_ae8d, "SET_FPU"),
    (0x8400_ae8e, "GET_LAPIC"),
    (0x4400_ae8f, "SET_LAPIC"),
    (0x4008_ae90, "SET_CPUID2"),
    (0xc008_ae91, "GET_CPUID2"),
    (0xc028_ae92, "TPR_ACCESS_REPORTING"),
    (0x4008_ae93, "SET_VAPIC_ADDR"),
    (0x8004_ae98, "GET_MP_STATE"),
    (0x4004_ae99, "SET_MP_STATE"),
    (0x0000_ae9a, "NMI"),
    (0x4048_ae9b, "SET_GUEST_DEBUG"),
    (0x4008_ae9c, "X86_SETUP_MCE"),
    (0x8008_ae9d, "X86_GET_MCE_CAP_SUPPORTED"),
    (0x4040_ae9e, "X86_SET_MCE"),
    (0x8040_ae9f, "GET_VCPU_EVENTS"),
    (0x8070_ae9f, "GET_PIT2"),
    (0x4040_aea0, "SET_VCPU_EVENTS"),
    (0x4070_aea0, "SET_PIT2"),
    (0x8080_aea1, "GET_DEBUGREGS"),
    (0x0000_aea2, "SET_TSC_KHZ"),
    (0x4080_aea2, "SET_DEBUGREGS"),
    (0x0000_aea3, "GET_TSC_KHZ"),
    (0x4068_aea3, "ENABLE_CAP"),
    (0x9000_aea4, "GET_XSAVE"),
    (0x4020_aea5, "SIGNAL_MSI"),
    (0x5000_aea5, "SET_XSAVE"),
    (0x8188_aea6, "GET_XCRS"),
    (0x4188_aea7, "SET_XCRS"),
    (0x4010_aeab, "GET_ONE_REG"),
    (0x4010_aeac, "SET_ONE_REG"),
    (0x0000_aead, "KVMCLOCK_CTRL"),
    (0x4020_aeb2, "SET_PMU_EVENT_FILTER"),
    (0x0000_aeb7, "SMI"),
    (0xc008_aeba, "MEMORY_ENCRYPT_OP"),
    (0x8010_aebb, "MEMORY_ENCRYPT_REG_REGION"),
    (0x8010_aebc, "MEMORY_ENCRYPT_UNREG_REGION"),
    (0x4018_aebd, "HYPERV_EVENTFD"),
    (0xc080_aebe, "GET_NESTED_STATE"),
    (0x4080_aebf, "SET_NESTED_STATE"),
    (0xc018_aec0, "CLEAR_DIRTY_LOG"),
    (0xc008_aec1, "GET_SUPPORTED_HV_CPUID"),
    (0x4188_aec6, "X86_SET_MSR_FILTER"),
    (0x0000_aec7, "RESET_DIRTY_RINGS"),
    (0xc048_aec8, "XEN_HVM_GET_ATTR"),
    (0x4048_aec9, "XEN_HVM_SET_ATTR"),
    (0xc048_aeca, "XEN_VCPU_GET_ATTR"),
    (0x4048_aecb, "XEN_VCPU_SET_ATTR"),
    (0x8140_aecc, "GET_SREGS2"),
    (0x4140_aecd, "SET_SREGS2"),
    (0x0000_aece, "GET_STATS_FD"),
    (0x9000_aecf, "GET_XSAVE2"),
    (0x400c_aed0, "XEN_HVM_EVTCHN_SEND"),
    (0x4020_aed2, "SET_MEMORY_ATTRIBUTES"),
    (0xc040_aed4, "CREATE_GUEST_MEMFD"),
    (0xc040_aed5, "PRE_FAULT_MEMORY"),
    (0xc00c_aee0, "CREATE_DEVICE"),
    (0x4018_aee1, "SET_DEVICE_ATTR"),
    (0x4018_aee2, "GET_DEVICE_ATTR"),
    (0x4018_aee3, "HAS_DEVICE_ATTR"),
];

/// The bits of a request without the size and the direction of its structure.
const FUNCTION: u32 = 0xffff;

/// Returns the name of a request without `KVM_`.
pub(super) fn known(request: u32) -> Option<&'static str> {
    REQUESTS.iter().find(|(number, _)| *number == request).map(|(_, name)| *name)
}

/// Returns the object that a known request is made on, where that is only one: `/dev/kvm`, `a VM` or `a vCPU`.
pub(super) fn object(request: u32) -> Option<&'static str> {
    Some(match request & 0xff {
        0x00..=0x02 | 0x04..=0x0a => "/dev/kvm",
        0x40..=0x7f => "a VM",
        // KVM_GET_MSRS, KVM_X86_GET_MCE_CAP_SUPPORTED, and numbers that two requests have.
        0x88 | 0x9d | 0x9f => return None,
        0x80..=0x9e | 0xa4..=0xa7 | 0xcc | 0xcd | 0xcf => "a vCPU",
        _ => return None,
    })
}

/// Returns the name of a request, or its number and the request that it resembles.
pub(super) fn name(request: u32) -> String {
    if let Some(name) = known(request) {
        return format!("KVM_{name}");
    }
    let size = |request: u32| request >> 16 & 0x3fff;
    let similar = REQUESTS.iter().find(|(number, _)| number & FUNCTION == request & FUNCTION);
    match similar {
        Some((number, name)) if size(*number) != size(request) => format!(
            "request {request:#x} (KVM_{name} is {number:#x}; its structure has {} bytes, not {})",
            size(*number),
            size(request)
        ),
        Some((number, name)) => format!("request {request:#x} (KVM_{name} is {number:#x})"),
        None => format!("request {request:#x}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// All requests, for other tests.
    pub(in crate::setup) use super::REQUESTS as ALL;

    #[test]
    fn requests_have_names() {
        assert_eq!(name(0xae80), "KVM_RUN");
        assert_eq!(name(0x4138_ae84), "KVM_SET_SREGS");
        assert_eq!(name(0xaeff), "request 0xaeff");
        assert_eq!(
            name(0x4090_ae84),
            "request 0x4090ae84 (KVM_SET_SREGS is 0x4138ae84; its structure has 312 bytes, not 144)"
        );
        assert_eq!(name(0x8138_ae84), "request 0x8138ae84 (KVM_SET_SREGS is 0x4138ae84)");
    }

    #[test]
    fn requests_have_objects() {
        let numbers = [0xae01, 0xae41, 0x4138_ae84, 0xae03, 0x4140_aecd].map(object);
        assert_eq!(numbers, [Some("/dev/kvm"), Some("a VM"), Some("a vCPU"), None, Some("a vCPU")]);
    }

    #[test]
    fn every_request_is_listed_once() {
        let mut numbers: Vec<_> = REQUESTS.iter().map(|(number, _)| *number).collect();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
        assert!(REQUESTS.iter().all(|(number, _)| number >> 8 & 0xff == 0xae));
    }
}
