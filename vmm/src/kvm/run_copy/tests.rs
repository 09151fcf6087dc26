use super::*;
use kvm_bindings::{
    KVM_EXIT_HLT, KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR,
};

/// The description of port I/O with these first data.
fn io(out: bool, size: u8, port: u16, count: u32, data: &[u8]) -> [u8; DETAILS] {
    let mut details = [0; DETAILS];
    details[0] = out.into();
    details[1] = size;
    details[2..4].copy_from_slice(&port.to_le_bytes());
    details[4..8].copy_from_slice(&count.to_le_bytes());
    details[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    details[16..16 + data.len()].copy_from_slice(data);
    details
}

fn all(reason: u32, details: &[u8; DETAILS]) -> Vec<CopiedExit> {
    RunCopy::default().decode(reason, details).collect()
}

fn one(reason: u32, details: &[u8; DETAILS]) -> CopiedExit {
    let all = all(reason, details);
    assert_eq!(all.len(), 1);
    all[0]
}

#[test]
fn port_io_is_decoded_with_its_values() {
    let exit = one(KVM_EXIT_IO, &io(true, 2, 0x3f8, 1, &[0x34, 0x12]));
    assert_eq!(exit.exit, Exit::PioOut { port: 0x3f8, size: 2, data: 0x1234 });
    assert_eq!(exit.value, Some(0x1234));
    let exit = one(KVM_EXIT_IO, &io(false, 1, 0x60, 1, &[0xab, 0xff]));
    assert_eq!((exit.exit, exit.value), (Exit::PioIn { port: 0x60, size: 1 }, Some(0xab)));
    let exit = one(KVM_EXIT_IO, &io(true, 4, 0x500, 1, &[7]));
    assert_eq!(exit.exit, Exit::Hypercall { number: 7 });
}

#[test]
fn string_io_has_its_elements_and_the_first_values() {
    let elements = all(KVM_EXIT_IO, &io(true, 1, 0xe9, 20, b"abcdefghijklmnop"));
    let values: Vec<_> = elements.iter().filter_map(|element| element.value).collect();
    assert_eq!((elements.len(), values), (20, b"abcdefghijklmnop".map(u64::from).to_vec()));
    assert_eq!(elements[15].value, Some(b'p'.into()));
    assert_eq!(all(KVM_EXIT_IO, &io(false, 2, 0x1f0, 9, &[])).len(), 9);
}

#[test]
fn hostile_counts_and_widths_are_bounded() {
    for size in 0..=u8::MAX {
        for count in [0, 1, 4096, 4097, u32::MAX] {
            let elements = all(KVM_EXIT_IO, &io(true, size, 1, count, &[]));
            assert!((1..=4096).contains(&elements.len()), "{size} {count}");
        }
    }
    assert_eq!(all(KVM_EXIT_IO, &io(true, 4, 1, u32::MAX, &[])).len(), 1024);
}

#[test]
fn other_exits_are_decoded_with_their_values() {
    let mut details = [0xee; DETAILS];
    details[..8].copy_from_slice(&0xfee0_0000u64.to_le_bytes());
    details[8..16].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    details[16..20].copy_from_slice(&4u32.to_le_bytes());
    details[20] = 1;
    let write = one(KVM_EXIT_MMIO, &details);
    assert_eq!(write.exit, Exit::MmioWrite { address: 0xfee0_0000, size: 4, data: 0x0403_0201 });
    details[20] = 0;
    let read = one(KVM_EXIT_MMIO, &details);
    assert_eq!(
        (read.exit, read.value),
        (Exit::MmioRead { address: 0xfee0_0000, size: 4 }, Some(0x0403_0201))
    );

    let mut msr = [0; DETAILS];
    msr[12..16].copy_from_slice(&0x1a0u32.to_le_bytes());
    msr[16] = 9;
    let read = one(KVM_EXIT_X86_RDMSR, &msr);
    assert_eq!((read.exit, read.value, read.fault), (Exit::RdMsr { index: 0x1a0 }, Some(9), false));
    msr[0] = 1;
    let read = one(KVM_EXIT_X86_RDMSR, &msr);
    assert_eq!((read.value, read.fault), (None, true));
    let write = one(KVM_EXIT_X86_WRMSR, &msr);
    assert_eq!(
        (write.exit, write.value, write.fault),
        (Exit::WrMsr { index: 0x1a0, data: 9 }, Some(9), true)
    );
    assert_eq!(one(KVM_EXIT_HLT, &details).exit, Exit::Hlt);
    assert_eq!(one(KVM_EXIT_SYSTEM_EVENT, &details).exit, Exit::Other(KVM_EXIT_SYSTEM_EVENT));
}

/// The copy is used again for each exit, so nothing of the previous one may show.
#[test]
fn one_copy_decodes_many_exits() {
    let mut copy = RunCopy::default();
    let first: Vec<_> = copy.decode(KVM_EXIT_IO, &io(true, 4, 1, 4, &[0xff; 16])).collect();
    assert_eq!(first.len(), 4);
    let second: Vec<_> = copy.decode(KVM_EXIT_IO, &io(true, 4, 1, 1, &[1])).collect();
    assert_eq!(second[0].exit, Exit::PioOut { port: 1, size: 4, data: 1 });
}
