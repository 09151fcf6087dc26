//! Machines with several vCPUs: what ends one, what ends all, and that nobody holds the others.
#![allow(clippy::unwrap_used)]

mod support;

use libtest_mimic::Arguments;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use support::{
    Files, assert_error, code, embedded, find, full_stream, kvm_test, ran, run_machine, shell, vmm,
};
use vmm::boot::Image;
use vmm::device::Transport;
use vmm::exit::Stop;
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Input, Machine, Output};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        kvm_test("wrong_numbers_of_vcpus_are_refused", wrong_cpus),
        kvm_test("as_many_vcpus_as_there_may_be", most_cpus),
        kvm_test("every_mode_has_a_stack_for_each_vcpu", stacks),
        kvm_test("a_halt_parks_one_vcpu_only", parks),
        kvm_test("the_time_is_up_for_all_vcpus", timeout_of_all),
        kvm_test("a_fault_of_one_vcpu_ends_all", fault_of_one),
        kvm_test("a_signal_ends_all_vcpus_parked_or_not", signals),
        kvm_test("vcpus_share_the_device_window", shared_window),
        kvm_test("exits_are_counted_for_each_vcpu", counts),
        kvm_test("machines_with_several_vcpus_end_again_and_again", many_ends),
        kvm_test("a_signal_frees_all_from_a_reader_that_stalls", signal_while_stalled),
        kvm_test("an_end_frees_who_writes_and_who_waits", end_while_blocked),
        kvm_test("a_poller_that_writes_does_not_hold_the_guest", poller_holds_output),
        kvm_test("the_vcpu_that_died_is_the_one_explained", who_died),
        kvm_test("interrupt_controllers_are_for_one_vcpu", irqchip_alone),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn wrong_cpus() {
    for cpus in ["0", "33", "1000", "4294967295"] {
        assert_error(&ran(&["smp-counter", "--cpus", cpus]), 110, "--cpus must be 1 to 32, not ");
    }
    assert_eq!(ran(&["smp-counter", "--cpus", "many"]).status, 110);
}

fn most_cpus() {
    let (report, _) =
        run_machine(embedded(find("smp-counter"), None).cpus(32).timeout(Some(Duration::from_secs(50))));
    assert!(report.verdict.unwrap().passed());
    assert_eq!(report.vcpus.len(), 32);
}

/// Each vCPU pushes its number a thousand times, and looks what is on top.
fn stacks() {
    // mov ecx, 0x400 (in real mode cx); again: push edi; loop again; pop eax; cmp eax, edi; jne $; hlt
    let real: &[u8] = &[0xb9, 0, 4, 0x66, 0x57, 0xe2, 0xfc, 0x66, 0x58, 0x66, 0x39, 0xf8, 0x75, 0xfe, 0xf4];
    let protected: &[u8] = &[0xb9, 0, 4, 0, 0, 0x57, 0xe2, 0xfd, 0x58, 0x39, 0xf8, 0x75, 0xfe, 0xf4];
    for (image, mode) in [(real, Mode::Real), (protected, Mode::Protected), (protected, Mode::Long)] {
        let (report, _) = run_machine(Machine::builder(code(image, mode)).cpus(8));
        assert!(matches!(report.stop, Stop::Halted), "{mode:?}: {}", report.stop);
    }
}

/// The first halts at once; the second goes on, prints, and halts.
fn parks() {
    // test edi, edi; jz end; mov ecx, 300; again: loop again; mov al, 'x'; out 0xe9, al; end: hlt
    let image = code(
        &[0x85, 0xff, 0x74, 0x0b, 0xb9, 0x2c, 1, 0, 0, 0xe2, 0xfe, 0xb0, b'x', 0xe6, 0xe9, 0xf4],
        Mode::Protected,
    );
    let (report, output) = run_machine(Machine::builder(image).cpus(2));
    assert!(matches!(report.stop, Stop::Halted), "{}", report.stop);
    assert_eq!(output, b"x");
    let ends: Vec<_> =
        report.vcpus.iter().map(|vcpu| (vcpu.id, vcpu.stop.to_string(), vcpu.location)).collect();
    assert_eq!(ends, [(0, "halted".into(), None), (1, "halted".into(), None)]);
}

fn timeout_of_all() {
    // jmp $; and: test edi, edi; jnz $; hlt, where only the first parks.
    for (image, halted) in [(&[0xeb, 0xfe][..], 0), (&[0x85, 0xff, 0x75, 0xfe, 0xf4], 1)] {
        let late = || {
            let machine = Machine::builder(code(image, Mode::Protected)).cpus(4);
            let (report, _) = run_machine(machine.timeout(Some(Duration::from_millis(200))));
            assert!(matches!(report.stop, Stop::Timeout), "{}", report.stop);
            assert_eq!(report.vcpus.iter().filter(|vcpu| matches!(vcpu.stop, Stop::Halted)).count(), halted);
            report.elapsed.saturating_sub(Duration::from_millis(200))
        };
        let latest = (0..3).map(|_| late()).min().unwrap();
        assert!(latest < Duration::from_millis(200), "{latest:?}");
    }
}

fn fault_of_one() {
    // test edi, edi; jz $ (over the next two bytes); ud2
    let image = code(&[0x85, 0xff, 0x74, 0xfe, 0x0f, 0x0b], Mode::Protected);
    let (report, _) = run_machine(Machine::builder(image).cpus(3).timeout(Some(Duration::from_secs(60))));
    assert!(matches!(report.stop, Stop::TripleFault), "{}", report.stop);
    assert!(matches!(report.vcpus[0].stop, Stop::Interrupted), "{:?}", report.vcpus);
    assert!(report.elapsed < Duration::from_secs(30));
}

fn signals() {
    let files = Files::new();
    // All loop; and: the first parks, the others loop.
    let looping = files.write("loop", &[0xeb, 0xfe]);
    let parked = files.write("parked", &[0x85, 0xff, 0x75, 0xfe, 0xf4]);
    for guest in [looping, parked] {
        for signal in ["TERM", "HUP"] {
            // Once it handles the signals, and a while later, when its vCPUs run.
            let line = "\"$0\" \"$1@0x1000:32\" --cpus 3 --timeout 50 & \
                until grep -q 'SigCgt:.*[4-7c-f]...$' /proc/$!/status; do sleep 0.1; done; \
                sleep 0.5; kill -$2 $!; wait $!";
            let started = Instant::now();
            let ran = shell(line, &[&guest, signal]);
            assert_eq!(ran.status, 117, "{guest} {signal}: {}", ran.stderr);
            assert!(ran.stderr.contains("vmm: vCPU 2: interrupted"), "{}", ran.stderr);
            assert!(started.elapsed() < Duration::from_secs(20));
        }
    }
}

/// Four vCPUs read the window's magic a hundred times each.
fn shared_window() {
    // mov ecx, 100; again: cmp dword [0x100000], 0x74726976; jne $; loop again; hlt
    let image = code(
        &[
            0xb9, 100, 0, 0, 0, 0x81, 0x3d, 0, 0, 0x10, 0, 0x76, 0x69, 0x72, 0x74, 0x75, 0xfe, 0xe2, 0xf2,
            0xf4,
        ],
        Mode::Protected,
    );
    let (report, _) = run_machine(Machine::builder(image).transport(Some(Transport::Exit)).cpus(4));
    assert!(matches!(report.stop, Stop::Halted), "{}", report.stop);
    assert_eq!(report.profile.unwrap().total().exits, 404);
}

fn counts() {
    let (report, _) = run_machine(embedded(find("smp-print"), None));
    for vcpu in &report.vcpus {
        assert_eq!(vcpu.profile.as_ref().unwrap().total().exits, 26, "vCPU {}", vcpu.id);
    }
    assert_eq!(report.profile.unwrap().total().exits, 104);
    let text = ran(&["smp-print"]).stderr;
    assert!(text.contains("vmm: vCPU 3: halted; 26 exits: 25 hypercall 0x1, 1 HLT"), "{text}");
    assert!(text.contains("hypercall          0x1              32  Print"), "{text}");
}

fn many_ends() {
    for _ in 0..40 {
        let (report, _) = run_machine(embedded(find("smp-stop"), None));
        assert!(matches!(report.stop, Stop::Exited(7)), "{}", report.stop);
        let (report, _) = run_machine(embedded(find("smp-counter"), None));
        assert!(report.verdict.unwrap().passed());
    }
}

fn signal_while_stalled() {
    let files = Files::new();
    // again: mov al, 10; out 0xe9, al; jmp again
    let guest = files.write("flood", &[0xb0, 10, 0xe6, 0xe9, 0xeb, 0xfa]);
    for cpus in ["1", "2", "5"] {
        let (full, _reader) = full_stream();
        let mut command = vmm(&[&guest, "--cpus", cpus, "--timeout", "0"]);
        let mut child =
            command.stdin(Stdio::null()).stdout(OwnedFd::from(full)).stderr(Stdio::null()).spawn().unwrap();
        support::wait_for_handlers(&child);
        thread::sleep(Duration::from_millis(500));
        assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
        let started = Instant::now();
        assert_eq!(support::wait(&mut child), 117, "{cpus}");
        assert!(started.elapsed() < Duration::from_secs(5), "{cpus}");
    }
}

/// One vCPU waits a while and writes the exit port; the other blocks meanwhile, in a write that nobody reads or in a
/// wait for input that does not come.
fn end_while_blocked() {
    // edi is 0: mov ecx, 200000; again: loop again; mov al, 7; out 0xf4, al. Otherwise: again: out 0xe9, al; jmp again
    let writes = [
        0x85, 0xff, 0x75, 0x0b, 0xb9, 0x40, 0x0d, 3, 0, 0xe2, 0xfe, 0xb0, 7, 0xe6, 0xf4, 0xe6, 0xe9, 0xeb,
        0xfc,
    ];
    let (full, _reader) = full_stream();
    let image = Image::flat(writes.to_vec(), Mode::Protected, Gpa(0x1000)).unwrap();
    let builder = Machine::builder(image).cpus(2).timeout(None).output(Output::new(full, false));
    let report = builder.build().unwrap().run().unwrap();
    assert!(matches!(report.stop, Stop::Exited(7)), "{}", report.stop);
    assert!(report.elapsed < Duration::from_secs(20));

    // The handshake by vCPU 0, which then looks at RX head; vCPU 1 ends the machine a while later.
    let guest = find("simvirtio-upper").image;
    let mut image = vec![0x85, 0xff, 0x74, 0x0b, 0xb9, 0x40, 0x0d, 3, 0, 0xe2, 0xfe, 0xb0, 7, 0xe6, 0xf4];
    // jmp 0x1000, from behind the guest, where both begin
    let begin = 0x1000 + guest.len() as u64;
    let back = -(guest.len() as i32 + image.len() as i32 + 5);
    image.push(0xe9);
    image.extend(back.to_le_bytes());
    let image = [guest, &image].concat();
    let files = Files::new();
    let file = files.write("elf", &support::elf_entered_at(0x1000, begin, &image));
    for transport in ["exit", "polling"] {
        let mut command = vmm(&[&file, "--cpus", "2", "--timeout", "20", "--transport", transport]);
        let started = Instant::now();
        let mut child =
            command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let _input = child.stdin.take();
        let status = support::wait(&mut child);
        assert!(started.elapsed() < Duration::from_secs(15), "{transport}");
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(status == 7 && said.contains("exited with code 7"), "{transport}: {said}");
    }
}

/// The device's thread writes what nobody reads, and the vCPU wants to write, too.
fn poller_holds_output() {
    let mut image = find("hostile-second-reset").image.to_vec();
    let end = image.windows(5).position(|bytes| bytes == [0xb8, 42, 0, 0, 0]).expect("its end");
    image.truncate(end);
    // again: mov al, 10; out 0xe9, al; inc cl; mov [rdi + 0x10], ecx; jmp again
    image.extend([0xb0, 10, 0xe6, 0xe9, 0xfe, 0xc1, 0x89, 0x4f, 0x10, 0xeb, 0xf5]);
    for _ in 0..5 {
        let (full, _reader) = full_stream();
        let image = Image::flat(image.clone(), Mode::Long, Gpa(0x1000)).unwrap();
        let builder = Machine::builder(image).transport(Some(Transport::Polling)).input(Input::bytes(b""));
        let builder = builder.timeout(Some(Duration::from_millis(300))).output(Output::new(full, false));
        let report = builder.build().unwrap().run().unwrap();
        assert!(matches!(report.stop, Stop::Timeout), "{}", report.stop);
        assert!(report.elapsed < Duration::from_secs(10), "{:?}", report.elapsed);
    }
}

/// vCPU 0 makes exits, vCPU 1 dies without one.
fn who_died() {
    let files = Files::new();
    // test edi, edi; jnz fault; again: in al, 0x99; jmp again; fault: ud2
    let guest = files.write("dies", &[0x85, 0xff, 0x75, 0x04, 0xe4, 0x99, 0xeb, 0xfc, 0x0f, 0x0b]);
    let ran = ran(&[&format!("{guest}@0x1000:32"), "--cpus", "2"]);
    assert_eq!(ran.status, 112, "{}", ran.stderr);
    let first = ran.stderr.lines().next().unwrap();
    assert!(
        first.contains(", vCPU 1 in protected mode at 0008:00001008") || first.contains("resets"),
        "{first}"
    );
    assert!(!ran.stderr.contains("last exits   in8"), "{}", ran.stderr);
    assert!(ran.stderr.contains("vmm: vCPU 0: stopped with the others; it was then"), "{}", ran.stderr);
}

fn irqchip_alone() {
    let image = || code(&[0xf4], Mode::Real);
    let refused =
        Machine::builder(image()).irqchip(true).cpus(2).build().expect_err("it would wait for ever");
    assert!(refused.to_string().contains("irqchip"), "{refused}");
    assert!(Machine::builder(image()).irqchip(true).first_vcpu(1).build().is_err());
}
