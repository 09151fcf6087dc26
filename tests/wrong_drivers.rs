//! The commonest mistakes of SIMVIRTIO drivers: a line names the next step.

mod support;

use std::process::ExitCode;
use support::assembler::{CodeAssembler, IcedError, al, assemble, byte_ptr, dword_ptr, eax};
use support::{Files, each_on_both, elf, machine_test, ran};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![machine_test("the_layout_of_the_assignment_is_named", foreign_layout)];
    tests.extend(each_on_both(&[
        ("a_driver_above_1_mib_is_told_that_there_is_no_device", no_device),
        ("the_next_step_of_a_handshake_is_named", handshake_steps),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

type Payload = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Drivers that end before the device is ready.
fn handshake_steps() {
    let files = Files::new();
    let sends_r: Payload = |code| {
        let mut wait = code.create_label();
        code.mov(byte_ptr(0x1_1000), u32::from(b'R'))?;
        code.mov(dword_ptr(0x10_0010), 1)?;
        code.set_label(&mut wait)?;
        code.cmp(dword_ptr(0x10_0014), 1)?;
        code.jne(wait)
    };
    let mut code = assemble(64, 0x1000, sends_r);
    for (end, status) in [(&[0xf4][..], 0), (&[0xeb, 0xfe], 114)] {
        let file = files.write("driver", &[&code, end].concat());
        let ran = ran(&[&format!("{file}@0x1000:64"), "--timeout", "0.3", "--transport", "exit"]);
        assert_eq!(ran.status, status, "{}", ran.stderr);
        assert!(ran.stderr.contains("; it waits for 'C' in the TX queue\n"), "{}", ran.stderr);
    }
    // A head that is the length of the queue.
    code.extend(assemble(64, 0x1000, |code| code.mov(dword_ptr(0x10_0010), 256)));
    let file = files.write("driver", &code);
    let ran = ran(&[&format!("{file}@0x1000:64"), "--transport", "exit"]);
    let text = "the TX queue's head is 0x100, and an index must be below the queue's length, 256 (0x100): after 255 comes 0";
    assert!(ran.status == 113 && ran.stderr.contains(text), "{}", ran.stderr);
}

/// Drivers in a machine with memory in the place of the window: one waits for a status, one ends without the magic, and one
/// other guest fails.
fn no_device() {
    let files = Files::new();
    let waits: Payload = |code| {
        let mut again = code.create_label();
        code.set_label(&mut again)?;
        code.cmp(byte_ptr(0x10_0006), 2)?;
        code.jne(again)
    };
    let asks: Payload = |code| {
        let mut found = code.create_label();
        code.cmp(dword_ptr(0x10_0000), 0x7472_6976)?;
        code.je(found)?;
        code.mov(al, 1)?;
        code.out(0xf4, al)?;
        code.set_label(&mut found)?;
        code.hlt()
    };
    let other: Payload = |code| {
        code.mov(al, 1)?;
        code.out(0xf4, al)
    };
    for (payload, is_told) in [(waits, true), (asks, true), (other, false)] {
        let file = files.write("driver", &elf(0x40_0000, &assemble(64, 0x40_0000, payload)));
        let ran = ran(&[&file, "--timeout", "0.5"]);
        let text = "vmm: this machine has no SIMVIRTIO device, although the guest looks for it at 1 MiB: the guest has 250 MiB \
                    of memory, more than 1 MiB, because its image lies at 0x400000 to ";
        assert_eq!(ran.stderr.contains(text), is_told, "{}", ran.stderr);
    }
}

/// Begins the handshake with the layout of the assignment's `device_t`, in which driver_status is at offset 5.
fn uses_the_assignments_layout(code: &mut CodeAssembler) -> Result<(), IcedError> {
    for (slot, command) in (0..).zip(*b"RC") {
        code.mov(byte_ptr(0x1_1000 + slot), u32::from(command))?;
        code.mov(dword_ptr(0x10_0010), slot + 1)?;
        let mut wait = code.create_label();
        code.set_label(&mut wait)?;
        code.mov(eax, dword_ptr(0x10_0014))?;
        code.cmp(eax, slot + 1)?;
        code.jne(wait)?;
        code.mov(byte_ptr(0x10_0005), 0)?;
    }
    let mut wait = code.create_label();
    code.set_label(&mut wait)?;
    code.cmp(byte_ptr(0x10_0004), 2)?;
    code.jne(wait)
}

fn foreign_layout() {
    let files = Files::new();
    let file = files.write("guest", &assemble(64, 0x1000, uses_the_assignments_layout));
    for transport in ["exit", "polling", "doorbell"] {
        let arguments =
            [&format!("{file}@0x1000:64"), "--transport", transport, "--timeout", "0.5", "--quiet"];
        let ran = ran(&arguments);
        let text = "its driver uses the layout of the assignment's struct device_t, and this device has that of its table: give \
                    --layout struct";
        assert_eq!((ran.status, ran.stderr.contains(text)), (114, true), "{transport}: {}", ran.stderr);
    }
    // With queues of 100 bytes it waits for a status that never comes. Only a window that traps sees the loads.
    for transport in ["exit", "polling", "doorbell"] {
        let queues = ["--queue-len", "100", "--timeout", "0.5", "--transport", transport];
        let waits = ran(&[&[&*format!("{file}@0x1000:64")][..], &queues].concat());
        let text = "uses the layout of the assignment's struct device_t";
        assert!(waits.stderr.contains(text), "{transport}: {}", waits.stderr);
    }
    let right = ran(&[&format!("{file}@0x1000:64"), "--layout", "struct", "--timeout", "0.5"]);
    assert!(!right.stderr.contains("device_t"), "{}", right.stderr);
    // The other way round, for a driver of the table. It is not the built-in guest, which knows its layout.
    let table = format!("{}:64", files.guest("simvirtio-c"));
    let ran_table = ran(&[&table, "--layout", "struct", "--timeout", "0.5", "--transport", "exit"]);
    let text = "its driver uses the layout of the assignment's table, and this device has that of its struct device_t: \
                leave --layout struct out";
    assert!(ran_table.status != 0 && ran_table.stderr.contains(text), "{}", ran_table.stderr);
    // This guest overwrites the length, too, but finishes its handshake.
    assert!(!ran(&["hostile-read-only", "--quiet"]).stderr.contains("device_t"));
}
