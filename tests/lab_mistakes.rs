//! `vmm lab check`: a typical mistake fails the check that names it, and costs no more than it should.
#![allow(clippy::unwrap_used)]

#[path = "support/lab.rs"]
mod folder;
mod support;

use folder::Reader;
use lab::{Course, Language};
use libtest_mimic::Arguments;
use std::fs;
use std::process::ExitCode;
use support::kvm_test;

/// A mistake in our solution in C: the chapter, the right line, the wrong one, and the name of a check that fails.
struct Mistake(u32, &'static str, &'static str, &'static str);

const MISTAKES: [Mistake; 35] = [
    Mistake(
        2,
        "kvm = open(device,",
        "kvm = open(\"/dev/kvm\",",
        "the program ends with status 1 if the device cannot be opened",
    ),
    Mistake(
        2,
        "KVM_CAP_USER_MEMORY) <= 0",
        "KVM_CAP_IRQCHIP) <= 0",
        "KVM_CHECK_EXTENSION asks for KVM_CAP_USER_MEMORY",
    ),
    Mistake(
        3,
        "set_slot(vm, 1, address,",
        "set_slot(vm, 1, (unsigned)address,",
        "slot 1 covers 0xfe0000000 to 0xfe000ffff",
    ),
    Mistake(
        3,
        "set_slot(vm, 2, size - PAGE,",
        "set_slot(vm, 2, size,",
        "slot 2 at the last page of slot 0 is tried",
    ),
    Mistake(4, "KVM_CREATE_VCPU, number)", "KVM_CREATE_VCPU, 0)", "the vCPUs have the numbers 0, 1 and 2"),
    Mistake(
        4,
        "MAP_SHARED, vcpu.fd, 0)",
        "MAP_PRIVATE, vcpu.fd, 0)",
        "KVM_RUN is called, and immediate_exit lets it return",
    ),
    Mistake(5, "\tsregs.cs.base = 0;\n", "", "the vCPU starts at 0:0x1000 in real mode"),
    Mistake(5, ".rip = ENTRY,", ".rip = 0,", "the vCPU starts at 0:0x1000 in real mode"),
    Mistake(
        5,
        "(const uint8_t *)run + run->io.data_offset",
        "(const uint8_t *)run",
        "the text of the guest is printed",
    ),
    Mistake(
        5,
        "fwrite(data, run->io.size,",
        "fwrite(data, 1,",
        "io.count elements of io.size bytes are printed",
    ),
    Mistake(
        5,
        "case KVM_EXIT_HLT:\n\t\t\treturn;",
        "case KVM_EXIT_HLT:\n\t\t\tbreak;",
        "the program must end by itself",
    ),
    Mistake(6, "\tsregs.cr0 |= CR0_PE;\n", "", "the vCPU starts at 0x1000 in protected mode"),
    Mistake(6, "sregs.gs = sregs.ss = flat", "sregs.gs = flat", "SS has the base 0"),
    Mistake(6, "\tsegment.db = 1;\n", "", "the vCPU starts at 0x1000 in protected mode"),
    Mistake(7, "EFER_LME | EFER_LMA", "EFER_LMA", "the vCPU starts at 0x1000 in long mode"),
    Mistake(7, "\tsregs.cr4 |= CR4_PAE;\n", "", "the vCPU starts at 0x1000 in long mode"),
    Mistake(7, "\tsregs.cs.l = 1;\n", "", "the vCPU starts at 0x1000 in long mode"),
    Mistake(7, "\tset_entry(vm, PDPT, 1, PD_HIGH | PRESENT | WRITABLE);\n", "", "are the same memory"),
    Mistake(
        8,
        "if (run->io.direction == KVM_EXIT_IO_IN)",
        "if (0)",
        "reads where nothing is give the guest 0xff",
    ),
    Mistake(8, "return TRIPLE_FAULT;", "return 0;", "KVM_EXIT_SHUTDOWN ends the program with status 3"),
    Mistake(
        8,
        "if (result < 0 && errno == EINTR)",
        "if (0)",
        "the guest goes on after KVM_RUN failed with EINTR",
    ),
    Mistake(9, "i < run->io.count; ++i", "i < 1; ++i", "each element of a string counts"),
    Mistake(
        9,
        "memcpy(&value, data, run->io.size);",
        "memcpy(&value, data, 4);",
        "only the bytes that were written are added",
    ),
    Mistake(10, "else if (byte == 'C' && is_reset &&", "else if (byte == 'C' &&", "the device is BROKEN"),
    Mistake(10, "(window.tx_tail + 1) % QUEUE", "window.tx_tail + 1", "the device prints the whole text"),
    Mistake(
        12,
        "\t\tif (run->exit_reason < REASONS)\n\t\t\t++counts",
        "\t\tif (run->exit_reason < REASONS && run->exit_reason != KVM_EXIT_HLT)\n\t\t\t++counts",
        "the number of all exits is the one that was observed",
    ),
    Mistake(
        13,
        "memcpy(&leaf->ecx, vendor + 4, 4);",
        "memcpy(&leaf->edx, vendor + 4, 4);",
        "the guest finds the vendor in leaf 0x40000000",
    ),
    Mistake(
        13,
        "if (address > MEMORY_SIZE || length > MEMORY_SIZE - address)",
        "if (address + length > MEMORY_SIZE)",
        "print prints a whole text with one exit, and checks the address",
    ),
    Mistake(
        14,
        "if (pending_count > 0 && run->ready_for_interrupt_injection && run->if_flag)",
        "if (pending_count > 0)",
        "no interrupt comes while the guest's interrupts are off",
    ),
    Mistake(
        14,
        "run->request_interrupt_window = pending_count > 0;",
        "",
        "the interrupt comes when the guest switches its interrupts on",
    ),
    Mistake(15, ".rip = KERNEL + 0x200,", ".rip = KERNEL,", "is entered in long mode at its 64-bit entry"),
    Mistake(15, "\tparams->hdr.cmd_line_ptr = COMMAND_LINE;\n", "", "the kernel finds the command line"),
    Mistake(
        16,
        "if (status & FEATURES_OK && device.driver_features != VIRTIO_F_VERSION_1)",
        "if (0)",
        "refuses FEATURES_OK without it",
    ),
    Mistake(
        19,
        "return size <= RAM_SIZE && address <= RAM_SIZE - size;",
        "return address + size <= RAM_SIZE;",
        "although address plus length is a small number",
    ),
    Mistake(
        19,
        "if (printed++ == OUTPUT_LIMIT)",
        "if (0)",
        "the VMM ends the guest with status 1 after 0x400 bytes",
    ),
];

fn main() -> ExitCode {
    support::watchdog();
    let tests = MISTAKES
        .iter()
        .map(|mistake| kvm_test(format!("{:02}::{}", mistake.0, mistake.3), || fails(mistake)));
    libtest_mimic::run(&Arguments::from_args(), tests.collect()).exit_code()
}

fn fails(Mistake(number, right, wrong, name): &Mistake) {
    let course = Course::open("first-vmm").unwrap().unwrap();
    let folder = &course.exercise(*number).unwrap().folder;
    let reader = Reader::new("first-vmm", Language::C);
    reader.solve("first-vmm", folder);
    let source = reader.path.join(folder).join("vmm.c");
    let text = fs::read_to_string(&source).unwrap();
    assert_eq!(text.matches(right).count(), 1, "the solution must have this once: {right}");
    fs::write(&source, text.replace(right, wrong)).unwrap();
    let checked = reader.lab(&["check", &number.to_string()]);
    assert_eq!(checked.status, 111, "{}{}", checked.text(), checked.stderr);
    let text = checked.text();
    let failed = text.lines().filter(|line| line.trim_start().starts_with("- "));
    assert!(failed.into_iter().any(|line| line.contains(name)), "{text}{}", checked.stderr);
}
