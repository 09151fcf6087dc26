//! `vmm run --step`: the trace of a guest's instructions.
#![allow(clippy::unwrap_used)]

mod support;

use libtest_mimic::Trial;
use std::fs;
use std::process::ExitCode;
use support::assembler::*;
use support::{Files, Ran, assert_error, kvm_test, machine_test, on_both, plain_test, ran, soft_test};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests: Vec<Trial> = Vec::new();
    tests.extend(on_both("each_instruction_of_real_mode_is_a_line", real_mode));
    tests.extend(on_both("each_instruction_of_protected_mode_is_a_line", protected_mode));
    tests.extend(on_both("each_instruction_of_long_mode_is_a_line", long_mode));
    tests.extend(on_both("a_string_instruction_is_one_line_with_its_iterations", strings));
    tests.extend(on_both("a_guest_is_traced_from_real_mode_to_long_mode", all_modes));
    tests.extend(on_both("accesses_are_shown_after_their_instruction", accesses));
    tests.extend(on_both("stores_are_shown_with_their_addresses_and_values", stores));
    tests.push(machine_test("vmm_boot_traces_a_kernel", boot));
    tests.extend(on_both("the_limit_ends_the_trace_and_not_the_guest", limit));
    tests.push(soft_test("the_instructions_after_sti_and_a_load_of_ss_have_their_lines", shadows));
    tests.push(soft_test("popf_and_iret_go_on_to_the_next_instruction", flags));
    tests.push(soft_test("a_fault_is_followed_to_its_handler", fault));
    tests.push(soft_test("ring_3_is_traced", ring_3));
    tests.push(soft_test("several_vcpus_are_named", several_vcpus));
    tests.push(kvm_test("a_mode_in_which_kvm_does_not_step_is_refused", refused));
    tests.push(plain_test("options_are_checked", options));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// The words of a trace: each line with single blanks, without the number of instructions.
fn lines(ran: &Ran) -> Vec<String> {
    let lines = ran.stderr.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.take_while(|line| !line.ends_with(" instructions")).collect()
}

/// Traces code at 0x1000.
fn trace(mode: &str, code: &[u8], options: &[&str]) -> Ran {
    let files = Files::new();
    let guest = format!("{}@0x1000:{mode}", files.write("guest.bin", code));
    ran(&[&[guest.as_str(), "--step", "--quiet"], options].concat())
}

/// Traces the instructions that `write` adds, and compares the trace. The guest must end with this status.
fn check(
    mode: &str,
    bits: u32,
    status: i32,
    expected: &[&str],
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) {
    let ran = trace(mode, &assemble(bits, 0x1000, write), &[]);
    assert_eq!(ran.status, status, "{}", ran.stderr);
    assert_eq!(lines(&ran), expected, "{}", ran.stderr);
}

fn real_mode() {
    let expected = [
        "0x1000 b8 ff ff mov ax,0FFFFh ax=0xffff",
        "0x1003 40 inc ax ax=0x0 flags=PF,AF,ZF",
        "0x1004 8e c0 mov es,ax",
        "0x1006 66 41 inc ecx cx=0x1 flags=none",
        "0x1008 50 push ax sp=0xffe [0xffe]=0x0",
        "0x1009 f4 hlt",
        "exit: hlt",
    ];
    let code = [0xb8, 0xff, 0xff, 0x40, 0x8e, 0xc0, 0x66, 0x41, 0x50, 0xf4];
    let ran = trace("16", &code, &["--set", "sp=0x1000"]);
    assert_eq!((ran.status, lines(&ran)), (0, expected.map(String::from).to_vec()), "{}", ran.stderr);
}

fn protected_mode() {
    let expected = [
        "0x1000 b8 05 00 00 00 mov eax,5 eax=0x5",
        "0x1005 e8 01 00 00 00 call 0000100Bh esp=0xffffc [0xffffc]=0x100a",
        "0x100b 3d 05 00 00 00 cmp eax,5 flags=PF,ZF",
        "0x1010 c3 ret esp=0x100000",
        "0x100a f4 hlt",
        "exit: hlt",
    ];
    check("32", 32, 0, &expected, |a| {
        let mut function = a.create_label();
        a.mov(eax, 5)?;
        a.call(function)?;
        a.hlt()?;
        a.set_label(&mut function)?;
        a.cmp(eax, 5)?;
        a.ret()
    });
}

fn long_mode() {
    let expected = [
        "0x1000 41 b9 07 00 00 00 mov r9d,7 r9=0x7",
        "0x1006 0f 20 c0 mov rax,cr0 rax=0x80050033",
        "0x1009 eb 01 jmp short 000000000000100Ch",
        "0x100c f4 hlt",
        "exit: hlt",
    ];
    let ran = trace("64", &[0x41, 0xb9, 7, 0, 0, 0, 0x0f, 0x20, 0xc0, 0xeb, 1, 0x90, 0xf4], &[]);
    let seen = lines(&ran);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    // The bits of CR0 that a host adds are no matter.
    assert!(seen[1].starts_with("0x1006 0f 20 c0 mov rax,cr0 rax=0x"), "{}", ran.stderr);
    assert_eq!(
        (&seen[..1], &seen[2..]),
        (&expected.map(String::from)[..1], &expected.map(String::from)[2..])
    );
    assert!(ran.stderr.contains("\n4 instructions\n"), "{}", ran.stderr);
}

fn strings() {
    let expected = [
        "0x1000 bf 00 20 mov di,2000h di=0x2000",
        "0x1003 b9 05 00 mov cx,5 cx=0x5",
        "0x1006 f3 aa rep stosb 5 times cx=0x0 di=0x2005 [0x2000]: 5 bytes",
        "0x1008 b1 02 mov cl,2 cx=0x2",
        "0x100a be 00 20 mov si,2000h si=0x2000",
        "0x100d ba e9 00 mov dx,0E9h dx=0xe9",
        "0x1010 f3 6e rep outsb 2 times cx=0x0 si=0x2002",
        "exit: out8 0xe9 0x0",
        "exit: out8 0xe9 0x0",
        "0x1012 f4 hlt",
        "exit: hlt",
    ];
    check("16", 16, 0, &expected, |a| {
        a.mov(di, 0x2000)?;
        a.mov(cx, 5)?;
        a.rep().stosb()?;
        a.mov(cl, 2)?;
        a.mov(si, 0x2000)?;
        a.mov(dx, 0xe9)?;
        a.rep().outsb()?;
        a.hlt()
    });
}

/// The built-in guest that goes through all modes. It has the same instructions on each processor.
fn all_modes() {
    let seen = lines(&ran(&["modes", "--step", "--quiet"]));
    for text in [
        "mov cr0,eax cr0=0x",
        "jmp dword 8:00001027h cs=0x8",
        "wrmsr efer=0x",
        "jmp 0018h:00001099h cs=0x18",
        "mov eax,2Ah rax=0x2a",
        "exit: hlt",
    ] {
        assert!(seen.iter().any(|line| line.contains(text)), "{text}: {}", seen.join("\n"));
    }
    assert!(seen.iter().all(|line| !line.contains("exception")), "{}", seen.join("\n"));
    let counted = ran(&["modes", "--step", "--quiet"]);
    assert!(counted.stderr.contains("\n219 instructions\n"), "{}", counted.stderr);
}

fn accesses() {
    let expected = [
        "0x1000 e4 42 in al,42h eax=0xff",
        "exit: in8 0x42",
        "0x1002 a1 00 00 00 d0 mov eax,[0D0000000h] eax=0xffffffff",
        "exit: read32 0xd0000000",
        "0x1007 a3 00 00 00 d0 mov [0D0000000h],eax",
        "exit: write32 0xd0000000 0xffffffff",
        "0x100c e6 f4 out 0F4h,al",
        "exit: out8 0xf4 0xff",
    ];
    // The write has no effect, which is status 111 only with --verify.
    let code = [0xe4, 0x42, 0xa1, 0, 0, 0, 0xd0, 0xa3, 0, 0, 0, 0xd0, 0xe6, 0xf4];
    let ran = trace("32", &code, &["--mem", "1M"]);
    assert_eq!(ran.status, 99, "{}", ran.stderr);
    assert_eq!(lines(&ran), expected, "{}", ran.stderr);
    assert!(ran.stderr.contains("\n4 instructions\n"), "{}", ran.stderr);
}

fn stores() {
    let expected = [
        "0x1000 b8 34 12 mov ax,1234h ax=0x1234",
        "0x1003 bb 00 20 mov bx,2000h bx=0x2000",
        "0x1006 89 07 mov [bx],ax [0x2000]=0x1234",
        "0x1008 fe 07 inc byte [bx] flags=none [0x2000]=0x35",
        "0x100a 39 07 cmp [bx],ax flags=ZZ",
        "0x100c 8b 07 mov ax,[bx] ax=0x1235",
        "0x100e 8e db mov ds,bx ds=0x2000",
        "0x1010 a3 00 00 mov [0],ax [0x20000]=0x1235",
        "0x1013 fd std flags=ZZ",
        "0x1014 bf 04 30 mov di,3004h di=0x3004",
        "0x1017 b9 03 00 mov cx,3 cx=0x3",
        "0x101a f3 ab rep stosw 3 times cx=0x0 di=0x2ffe [0x3000]: 6 bytes",
        "0x101c f4 hlt",
        "exit: hlt",
    ];
    let code = [
        0xb8, 0x34, 0x12, 0xbb, 0x00, 0x20, 0x89, 0x07, 0xfe, 0x07, 0x39, 0x07, 0x8b, 0x07, 0x8e, 0xdb, 0xa3,
        0, 0, 0xfd, 0xbf, 0x04, 0x30, 0xb9, 3, 0, 0xf3, 0xab, 0xf4,
    ];
    let ran = trace("16", &code, &[]);
    let without_flags = |line: &str| {
        let words = line.split(' ').filter(|word| !word.starts_with("flags="));
        words.collect::<Vec<_>>().join(" ")
    };
    let seen: Vec<_> = lines(&ran).iter().map(|line| without_flags(line)).collect();
    assert_eq!((ran.status, seen), (0, expected.map(without_flags).to_vec()), "{}", ran.stderr);
}

/// A multiboot kernel: mov eax, 7; mov [0x200000], eax; out 0xf4, al
fn boot() {
    let files = Files::new();
    let mut kernel = vec![0xb8, 7, 0, 0, 0, 0xa3, 0, 0, 0x20, 0, 0xe6, 0xf4, 0, 0, 0, 0];
    let magic = 0x1bad_b002u32;
    kernel.extend([magic, 0, magic.wrapping_neg()].map(u32::to_le_bytes).concat());
    let path = files.write("kernel.elf", &support::elf(0x10_0000, &kernel));
    let boot = |options: &[&str]| {
        let arguments = [&["boot", &path, "--vcpu", "soft", "--quiet", "--timeout", "20"], options].concat();
        ran(&arguments)
    };
    let traced = boot(&["--step=2"]);
    let expected = [
        "0x100000 b8 07 00 00 00 mov eax,7 eax=0x7",
        "0x100005 a3 00 00 20 00 mov [200000h],eax [0x200000]=0x7",
    ];
    let seen = lines(&traced);
    assert_eq!(seen[..2], expected, "{}", traced.stderr);
    assert!(seen[2].starts_with("the limit of 2 instructions is reached"), "{}", traced.stderr);
    assert_eq!(traced.status, 7, "{}", traced.stderr);
    assert_error_of(&["boot", &path, "--step", "--gdb"], "--gdb");
}

fn limit() {
    let ran = ran(&["real16-hello", "--step=3", "--quiet"]);
    assert_eq!((ran.status, ran.text().as_str()), (0, "Hello, world!\n"), "{}", ran.stderr);
    let seen = lines(&ran);
    assert_eq!(seen.len(), 4, "{}", ran.stderr);
    assert!(seen[3].starts_with("the limit of 3 instructions is reached"), "{}", ran.stderr);
    assert!(ran.stderr.contains("\n3 instructions\n"), "{}", ran.stderr);
}

fn shadows() {
    let expected = [
        "0x1000 8e d0 mov ss,eax",
        "0x1002 90 nop",
        "0x1003 fb sti flags=IF",
        "0x1004 90 nop",
        "0x1005 f4 hlt",
        "exit: hlt",
    ];
    let ran = trace("32", &[0x8e, 0xd0, 0x90, 0xfb, 0x90, 0xf4], &["--set", "eax=0x10"]);
    assert_eq!((ran.status, lines(&ran)), (0, expected.map(String::from).to_vec()), "{}", ran.stderr);
}

fn flags() {
    let expected = [
        "0x1000 6a 03 push 3 sp=0xffe [0xffe]=0x3",
        "0x1002 9d popf sp=0x1000 flags=CF",
        "0x1003 9c pushf sp=0xffe [0xffe]=0x3",
        "0x1004 0e push cs sp=0xffc [0xffc]=0x0",
        "0x1005 68 09 10 push 1009h sp=0xffa [0xffa]=0x1009",
        "0x1008 cf iret sp=0x1000",
        "0x1009 f4 hlt",
        "exit: hlt",
    ];
    let code = [0x6a, 3, 0x9d, 0x9c, 0x0e, 0x68, 0x09, 0x10, 0xcf, 0xf4];
    let ran = trace("16", &code, &["--set", "sp=0x1000"]);
    assert_eq!((ran.status, lines(&ran)), (0, expected.map(String::from).to_vec()), "{}", ran.stderr);
}

/// The vector of #UD leads to the HLT after the wrong instruction.
fn fault() {
    let expected = [
        "0x1000 c7 06 18 00 0a 10 mov word [18h],100Ah [0x18]=0x100a",
        "0x1006 31 db xor bx,bx flags=PF,ZF",
        "0x1008 0f 0b ud2 sp=0xffa flags=PF,ZF",
        "0x100a f4 hlt",
        "exit: hlt",
    ];
    let code = [0xc7, 0x06, 0x18, 0, 0x0a, 0x10, 0x31, 0xdb, 0x0f, 0x0b, 0xf4];
    let ran = trace("16", &code, &["--set", "sp=0x1000"]);
    let seen: Vec<_> = lines(&ran).iter().map(|line| line.replace(" flags=PF,ZF", "")).collect();
    let expected: Vec<_> = expected.iter().map(|line| line.replace(" flags=PF,ZF", "")).collect();
    assert_eq!((ran.status, seen), (0, expected), "{}", ran.stderr);
}

fn ring_3() {
    let ran = ran(&["user64-ports", "--step", "--quiet"]);
    let seen = lines(&ran);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!(seen[0], "0x1000 31 c0 xor eax,eax flags=PF,ZF");
    assert!(ran.stderr.contains("\n16 instructions\n"), "{}", ran.stderr);
}

fn several_vcpus() {
    let ran = trace("64", &[0x90, 0xf4], &["--cpus", "2"]);
    let expected = [
        "vCPU 0:",
        "0x1000 90 nop",
        "0x1001 f4 hlt",
        "exit: hlt",
        "vCPU 1:",
        "0x1000 90 nop",
        "0x1001 f4 hlt",
        "exit: hlt",
    ];
    assert_eq!(lines(&ran), expected, "{}", ran.stderr);
}

/// A host that steps in ring 3 traces the guest there.
fn refused() {
    let ran = ran(&["user64-ports", "--step", "--quiet", "--vcpu", "kvm"]);
    if ran.status == 0 {
        assert_eq!(lines(&ran)[0], "0x1000 31 c0 xor eax,eax flags=PF,ZF");
    } else {
        assert_error(
            &ran,
            110,
            "--step does not work with KVM on this host in user64 mode: give --vcpu soft",
        );
    }
}

fn options() {
    // The guest goes on without a trace.
    let full = trace("16", &[0x90, 0xe6, 0xe9, 0xf4], &["--vcpu", "soft", "--step-file", "/dev/full"]);
    assert_eq!((full.status, full.stdout.len()), (115, 1), "{}", full.stderr);
    assert!(full.stderr.contains("cannot write /dev/full: No space left on device"), "{}", full.stderr);
    assert_error_of(&["real16-hello", "--step=0"], "give a number of instructions, such as --step=100");
    assert_error_of(&["real16-hello", "--step-file", "trace.txt"], "--step");
    let files = Files::new();
    let path = files.0.path().join("trace.txt");
    let path = path.to_str().unwrap();
    let quiet = ran(&["real16-42", "--vcpu", "soft", "--step", "--step-file", path, "--quiet"]);
    assert_eq!(quiet.status, 0, "{}", quiet.stderr);
    let text = fs::read_to_string(path).unwrap();
    assert!(text.starts_with("    0x1000  ") && text.ends_with(" instructions\n"), "{text}");
    assert_eq!(quiet.stderr.lines().count(), 1, "{}", quiet.stderr);
    let none = ran(&["real16-42", "--vcpu", "soft", "--step", "--step-file", "/no/such/folder/t"]);
    assert_error(&none, 110, "create the directory");
    let full = ran(&["real16-hello", "--vcpu", "soft", "--step", "--step-file", "/dev/full", "--quiet"]);
    assert_eq!(full.status, 115, "{}", full.stderr);
    assert!(full.stderr.contains("No space left on device"), "{}", full.stderr);
}

/// The message of the parser of the command line has several lines.
fn assert_error_of(arguments: &[&str], text: &str) {
    let ran = ran(arguments);
    assert_eq!(ran.status, 110, "{}", ran.stderr);
    assert!(ran.stderr.contains(text), "{}", ran.stderr);
}
