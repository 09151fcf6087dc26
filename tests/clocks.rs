//! The time sources of `vmm boot`: the PIT, the ACPI PM timer and the PM1 registers, used by kernels of a few instructions. Linux
//! with them is tested in tests/linux.rs.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant};
use support::Ran;
use support::assembler::{
    CodeAssembler, CodeLabel, IcedError, al, assemble, ax, cl, dword_ptr, dx, eax, ecx, qword_ptr, rax, rcx,
    rdi, rsp, word_ptr,
};
use support::kernels::{assert_ended, boot};
use support::kvm_test;

type Written = Result<(), IcedError>;

/// The address of the kernels.
const ENTRY: u64 = 0x10_0000;
/// The low half of the address of the XSDT in the RSDP.
const ROOT: u64 = 0xe_0018;

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        kvm_test("the_pit_is_created_when_it_is_programmed", pit),
        kvm_test("without_a_pit_its_ports_have_no_effect", no_pit),
        kvm_test("a_pit_from_the_start_makes_no_exits", eager_pit),
        kvm_test("an_mp_table_is_where_kernels_search", mp_table),
        kvm_test("soft_off_works_at_every_width", soft_off),
        kvm_test("other_sleep_states_wake_up", other_sleep_states),
        kvm_test("the_pm_timer_advances_and_a_flood_of_reads_ends_at_the_deadline", pm_timer),
        kvm_test("timer_interrupts_of_any_rate_end_at_the_deadline", timer_storms),
        kvm_test("a_storm_of_serial_interrupts_ends_at_the_deadline", serial_storm),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn kernel(write: impl FnOnce(&mut CodeAssembler) -> Written) -> Vec<u8> {
    assemble(64, ENTRY, write)
}

fn run(arguments: &[&str], write: impl FnOnce(&mut CodeAssembler) -> Written) -> Ran {
    boot(&[&kernel(write)], arguments)
}

/// out PORT, al
fn out(code: &mut CodeAssembler, port: u32, byte: u32) -> Written {
    code.mov(al, byte)?;
    code.out(port, al)
}

/// Prints AL on the serial port.
fn print_al(code: &mut CodeAssembler) -> Written {
    code.mov(dx, 0x3f8)?;
    code.out(dx, al)
}

fn print(code: &mut CodeAssembler, text: &str) -> Written {
    text.bytes().try_for_each(|byte| {
        code.mov(al, u32::from(byte))?;
        print_al(code)
    })
}

/// Writes EAX to a port, with its low bytes: 1, 2 or 4.
fn out_bytes(code: &mut CodeAssembler, port: u32, bytes: u32, value: u32) -> Written {
    code.mov(dx, port)?;
    code.mov(eax, value)?;
    match bytes {
        1 => code.out(dx, al),
        2 => code.out(dx, ax),
        _ => code.out(dx, eax),
    }
}

fn power_off(code: &mut CodeAssembler) -> Written {
    out_bytes(code, 0x600, 1, 0x34)
}

/// Waits with the third counter of the PIT: some milliseconds. First it opens the gate, like Linux.
fn wait_with_pit(code: &mut CodeAssembler) -> Written {
    out(code, 0x61, 1)?;
    out(code, 0x43, 0xb0)?;
    out(code, 0x42, 0xff)?;
    out(code, 0x42, 0x1f)?;
    let mut again = code.create_label();
    code.set_label(&mut again)?;
    code.in_(al, 0x61)?;
    code.test(al, 0x20)?;
    code.jz(again)
}

/// Prints K if the RSDP is that of the hardware-reduced tables, and F for the full ones.
fn print_root(code: &mut CodeAssembler) -> Written {
    code.mov(ecx, dword_ptr(ROOT))?;
    code.mov(al, u32::from(b'K'))?;
    code.mov(dx, u32::from(b'F'))?;
    code.cmp(ecx, 0xe_8000)?;
    code.cmovae(ax, dx)?;
    print_al(code)
}

fn waits_between_roots(code: &mut CodeAssembler) -> Written {
    print_root(code)?;
    wait_with_pit(code)?;
    print_root(code)?;
    power_off(code)
}

fn pit() {
    let ran = run(&[], waits_between_roots);
    assert_ended(&ran, 0, "powered off");
    assert_eq!(ran.text(), "KF", "{}", ran.stderr);
    // The store to port 0x61 creates the PIT, and KVM has its ports from then on.
    assert!(ran.stderr.contains("4 exits"), "{}", ran.stderr);
    // Linux is told to do without kvm-clock.
    let ran = run(&["--cmdline", "quiet no-kvmclock"], waits_between_roots);
    assert_eq!((ran.status, ran.text().as_str()), (0, "KK"), "the tables do not move: {}", ran.stderr);
    assert!(ran.stderr.contains("4 exits"), "{}", ran.stderr);
}

fn no_pit() {
    let ran = run(&["--clock", "kvm"], waits_between_roots);
    assert_ended(&ran, 0, "powered off");
    assert_eq!(ran.text(), "KK", "port 0x61 says that the counter has run out: {}", ran.stderr);
    assert!(ran.stderr.contains("8 exits"), "{}", ran.stderr);
}

fn eager_pit() {
    let ran = run(&["--clock", "pit"], |code| {
        wait_with_pit(code)?;
        power_off(code)
    });
    assert_ended(&ran, 0, "powered off");
    assert!(ran.stderr.contains("1 exit"), "{}", ran.stderr);
}

fn mp_table() {
    let ran = run(&[], |code| {
        code.mov(ecx, dword_ptr(0xf_0000u64))?;
        for _ in 0..4 {
            code.mov(eax, ecx)?;
            print_al(code)?;
            code.shr(ecx, 8)?;
        }
        power_off(code)
    });
    assert_eq!((ran.status, ran.text().as_str()), (0, "_MP_"), "{}", ran.stderr);
}

fn soft_off() {
    for (port, bytes, value) in
        [(0x614, 2, 0x3400), (0x614, 4, 0x3400), (0x615, 1, 0x34), (0x612, 4, 0x3400_0000)]
    {
        let ran = run(&[], |code| {
            out_bytes(code, port, bytes, value)?;
            print(code, "still here")
        });
        assert_ended(&ran, 0, "powered off");
        assert_eq!(ran.text(), "", "{port:#x} {bytes}");
    }
}

fn other_sleep_states() {
    let ran = run(&[], |code| {
        for kind in [0u32, 1, 2, 3, 4, 6, 7] {
            out_bytes(code, 0x614, 2, kind << 10 | 1 << 13)?;
        }
        // Bit 15 of the status.
        code.mov(dx, 0x611)?;
        code.in_(al, dx)?;
        code.shr(al, 7)?;
        code.add(al, u32::from(b'0'))?;
        print_al(code)?;
        for (port, bytes, value) in
            [(0x610, 4, u32::MAX), (0x614, 1, 0xff), (0x618, 4, 0), (0x61b, 4, u32::MAX)]
        {
            out_bytes(code, port, bytes, value)?;
        }
        power_off(code)
    });
    assert_eq!((ran.status, ran.text().as_str()), (0, "1"), "{}", ran.stderr);
}

fn pm_timer() {
    let ran = run(&["--timeout", "1"], |code| {
        // Reads until the value has changed.
        code.mov(dx, 0x618)?;
        code.in_(eax, dx)?;
        code.mov(ecx, eax)?;
        let mut same = code.create_label();
        code.set_label(&mut same)?;
        code.in_(eax, dx)?;
        code.cmp(eax, ecx)?;
        code.je(same)?;
        print(code, "x")?;
        code.mov(dx, 0x618)?;
        let mut flood = code.create_label();
        code.set_label(&mut flood)?;
        code.in_(eax, dx)?;
        code.jmp(flood)
    });
    assert_ended(&ran, 114, "timeout");
    assert_eq!(ran.text(), "x");
    assert!(ran.stderr.contains("ACPI PM timer"), "{}", ran.stderr);
}

/// Sends an interrupt of the 8259 to a handler, which is the rest of the kernel: an IDT at 0x9000, a stack below it.
fn interrupts(code: &mut CodeAssembler, irq: u32, handler: CodeLabel) -> Written {
    code.mov(rsp, 0x8f00u64)?;
    code.lea(rax, qword_ptr(handler))?;
    code.mov(rdi, 0x9000 + (0x20 + u64::from(irq)) * 16)?;
    code.mov(word_ptr(rdi), ax)?;
    code.mov(dword_ptr(rdi + 2), 0x8e00_0010u32 as i32)?;
    code.shr(rax, 16)?;
    code.mov(word_ptr(rdi + 6), ax)?;
    code.mov(word_ptr(0x8ff0u64), 0xfff)?;
    code.mov(rcx, 0x9000u64)?;
    code.mov(qword_ptr(0x8ff2u64), rcx)?;
    code.lidt(qword_ptr(0x8ff0u64))?;
    for (port, byte) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xff & !(1 << irq))] {
        out(code, port, byte)?;
    }
    Ok(())
}

/// The first counter of the PIT interrupts at intervals of `count`, and the handler acknowledges it.
fn timer_storm(count: u32) -> impl FnOnce(&mut CodeAssembler) -> Written {
    move |code| {
        let mut handler = code.create_label();
        interrupts(code, 0, handler)?;
        for (port, byte) in [(0x43, 0x34), (0x40, count & 0xff), (0x40, count >> 8)] {
            out(code, port, byte)?;
        }
        code.sti()?;
        let mut wait = code.create_label();
        code.set_label(&mut wait)?;
        code.hlt()?;
        code.jmp(wait)?;
        code.set_label(&mut handler)?;
        // The first interrupt is told.
        code.inc(cl)?;
        let mut told = code.create_label();
        code.cmp(cl, 1)?;
        code.jne(told)?;
        print(code, "tick")?;
        code.set_label(&mut told)?;
        out(code, 0x20, 0x20)?;
        code.iretq()
    }
}

fn timer_storms() {
    // 65,536 is 18.2 Hz, and 1 is 1.19 MHz.
    for (clock, count) in [("auto", 0), ("auto", 1), ("pit", 1), ("pit", 2)] {
        let started = Instant::now();
        let ran = run(&["--timeout", "1", "--clock", clock], timer_storm(count));
        assert_ended(&ran, 114, "timeout");
        assert!(started.elapsed() < Duration::from_secs(20), "{clock} {count}: {:?}", started.elapsed());
        assert!(ran.text().starts_with("tick"), "{clock} {count}: {}", ran.stderr);
    }
}

/// Each interrupt of the serial port makes the next one.
fn serial_storm() {
    let started = Instant::now();
    let ran = run(&["--timeout", "1"], |code| {
        let mut handler = code.create_label();
        interrupts(code, 4, handler)?;
        out_bytes(code, 0x3f9, 1, 2)?;
        code.sti()?;
        let mut wait = code.create_label();
        code.set_label(&mut wait)?;
        code.hlt()?;
        code.jmp(wait)?;
        code.set_label(&mut handler)?;
        out(code, 0x20, 0x20)?;
        out_bytes(code, 0x3f9, 1, 0)?;
        out_bytes(code, 0x3f9, 1, 2)?;
        code.iretq()
    });
    assert_ended(&ran, 114, "timeout");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    let told = ran.stderr.lines().find(|line| line.contains("PIO out 0x3f9") || line.contains("0x3f9"));
    assert!(told.is_some(), "{}", ran.stderr);
}
