//! Tests of decoding without KVM. They fill `kvm_run` as the kernel would.

use super::*;
use crate::kvm::run_copy::RunCopy;
use kvm_bindings::{KVM_EXIT_IO_IN, kvm_run};

/// Offset of string data in the mapping. Like KVM, the tests use the page after `kvm_run`.
const DATA: usize = 4096;

fn io_exit(out: bool, size: u8, count: u32, data: &[u8]) -> RunCopy {
    let mut run = kvm_run { exit_reason: KVM_EXIT_IO, ..Default::default() };
    let direction = if out { KVM_EXIT_IO_OUT } else { KVM_EXIT_IO_IN } as u8;
    run.__bindgen_anon_1.io.direction = direction;
    run.__bindgen_anon_1.io.size = size;
    run.__bindgen_anon_1.io.port = 0xe9;
    run.__bindgen_anon_1.io.count = count;
    run.__bindgen_anon_1.io.data_offset = DATA as u64;
    let page = RunCopy::of(run);
    data.iter().enumerate().for_each(|(at, byte)| page.write(DATA + at, [*byte]));
    page
}

/// Handles all elements of a port exit, and writes the answers of `device` back. Returns the number of elements.
fn elements(page: &RunPage, mut device: impl FnMut(Exit) -> u64) -> usize {
    let Decoded::Pio(mut transfer) = decode(page) else { panic!("not port I/O") };
    let mut exit = transfer.exit(page);
    for count in 1.. {
        let value = device(exit);
        if !transfer.out {
            transfer.answer(page, value);
        }
        match transfer.next() {
            Some(next) => transfer = next,
            None => return count,
        }
        exit = transfer.exit(page);
    }
    0
}

#[test]
fn a_batch_of_outs_is_split_into_elements_of_one_port() {
    for (size, expect) in [(1, vec![1, 2, 3, 4]), (2, vec![0x201, 0x403]), (4, vec![0x0403_0201])] {
        let page = io_exit(true, size, 4 / u32::from(size), &[1, 2, 3, 4]);
        let mut seen = Vec::new();
        elements(&page, |exit| match exit {
            Exit::PioOut { port: 0xe9, size: got, data } if got == size => {
                seen.push(data);
                0
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(seen, expect);
    }
}

#[test]
fn the_answers_to_a_batch_of_ins_are_stored_in_order() {
    let page = io_exit(false, 2, 3, &[]);
    let mut next = 0x1110;
    let count = elements(&page, |exit| {
        assert_eq!(exit, Exit::PioIn { port: 0xe9, size: 2 });
        next += 1;
        next
    });
    assert_eq!(count, 3);
    assert_eq!(page.read(DATA), Some([0x11, 0x11, 0x12, 0x11, 0x13, 0x11, 0, 0]));
}

#[test]
fn a_full_page_of_elements_is_split_completely() {
    let page = io_exit(false, 4, 1024, &[]);
    assert_eq!(elements(&page, |_| u64::MAX), 1024);
    assert_eq!(page.read(DATA), Some([0xff; 4096]));
    assert_eq!(page.read(DATA + 4096), Some([0]), "past the last element");
}

#[test]
fn a_transfer_outside_the_mapping_is_harmless() {
    for data_offset in [u64::MAX, u64::MAX - 3, 3 * 4096 - 1] {
        for (out, value) in [(true, 0), (false, 1)] {
            let page = io_exit(out, 4, 2, &[]);
            // SAFETY: the field is in the mapping.
            unsafe { (*page.details()).io.data_offset = data_offset };
            assert_eq!(elements(&page, |_| value), 2);
            assert_eq!(page.read(DATA), Some([0; RunCopy::SIZE - DATA]));
        }
    }
}

#[test]
fn mmio_keeps_its_width() {
    let mut run = kvm_run { exit_reason: KVM_EXIT_MMIO, ..Default::default() };
    run.__bindgen_anon_1.mmio.phys_addr = 0x10_0010;
    run.__bindgen_anon_1.mmio.data = [1, 2, 3, 4, 5, 6, 7, 8];
    for (len, data) in [(1, 1), (2, 0x201), (4, 0x0403_0201), (8, 0x0807_0605_0403_0201)] {
        run.__bindgen_anon_1.mmio.len = len;
        run.__bindgen_anon_1.mmio.is_write = 1;
        let write = Exit::MmioWrite { address: 0x10_0010, size: len as u8, data };
        assert_eq!(decode(&RunCopy::of(run)), Decoded::Exit(write));
        run.__bindgen_anon_1.mmio.is_write = 0;
        let read = Exit::MmioRead { address: 0x10_0010, size: len as u8 };
        assert_eq!(decode(&RunCopy::of(run)), Decoded::Exit(read));
    }
}

#[test]
fn an_emulation_failure_has_the_instruction_if_kvm_reports_it() {
    let mut run = kvm_run { exit_reason: KVM_EXIT_INTERNAL_ERROR, ..Default::default() };
    run.__bindgen_anon_1.internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
    assert_eq!(decode(&RunCopy::of(run)), Decoded::Exit(Exit::EmulationFailure(Instruction::default())));
    // The layout of `emulation_failure` from its flags: the flag, then a length and bytes.
    let mut data = [0; 16];
    data[..2].copy_from_slice(&[1, u64::from_le_bytes([3, 0x0f, 0x57, 0xc0, 0, 0, 0, 0])]);
    run.__bindgen_anon_1.internal.ndata = 4;
    run.__bindgen_anon_1.internal.data = data;
    let instruction = Instruction::new(&[0x0f, 0x57, 0xc0]);
    assert_eq!(decode(&RunCopy::of(run)), Decoded::Exit(Exit::EmulationFailure(instruction)));
}

#[test]
fn the_other_reasons_are_decoded() {
    let reason = |reason| match decode(&RunCopy::of(kvm_run { exit_reason: reason, ..Default::default() })) {
        Decoded::Exit(exit) => exit,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(KVM_EXIT_HLT), Exit::Hlt);
    assert_eq!(reason(KVM_EXIT_SHUTDOWN), Exit::Shutdown);
    assert_eq!(reason(KVM_EXIT_FAIL_ENTRY), Exit::FailedEntry { reason: 0 });
    assert_eq!(reason(KVM_EXIT_INTERNAL_ERROR), Exit::Other(KVM_EXIT_INTERNAL_ERROR));
    assert_eq!(reason(4711), Exit::Other(4711));
}
