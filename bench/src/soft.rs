//! The software processor: the time for an instruction, a cold start, and a SIMVIRTIO guest, compared with KVM.

use crate::row::{Baseline, Goal, Pair, Row, Summary, Unit, cpu, interleave, wall};
use crate::scratch::{Scratch, compile};
use crate::sys::{Cost, Moment, run_silently};
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, dword_ptr, eax, ecx, edx, esi, qword_ptr, rbx, rdi, rsp};
use std::path::Path;
use std::time::Duration;
use vmm::boot::Image;
use vmm::exit::Stop;
use vmm::machine::Processor;
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Machine, Output};

/// The source of the bare program for the cold start.
const BARE: &str = include_str!("../bare/cold-start.c");
/// The address of the guest's code.
const START: u64 = 0x1000;
/// The instructions of a pass through the loop.
const PASS: u32 = 12;
/// The passes on the software processor, and with KVM, where an instruction can take 600 ns.
const PASSES: u32 = 200_000;
const PASSES_OF_KVM: u32 = 2_000;

/// Measures each part `rounds` times.
///
/// # Errors
/// gcc is missing, a machine cannot be built, or a guest ended with a failure.
pub fn run(rounds: usize, vmm: &Path) -> Result<Vec<Row>, String> {
    let mut rows = vec![instruction(rounds)?];
    rows.extend(cold_start(rounds, vmm)?);
    rows.extend(simvirtio(rounds, vmm)?);
    Ok(rows)
}

/// A guest that goes `passes` times through a loop of arithmetic, loads, stores and a call, and halts.
///
/// # Errors
/// The assembler refused.
fn guest(passes: u32) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut top, mut function) = (a.create_label(), a.create_label());
    a.mov(ecx, passes)?;
    a.mov(rbx, 0x8000u64)?;
    a.set_label(&mut top)?;
    a.mov(eax, dword_ptr(rbx))?;
    a.add(eax, ecx)?;
    a.xor(edx, eax)?;
    a.mov(dword_ptr(rbx + 4), edx)?;
    a.add(qword_ptr(rbx + 8), rdi)?;
    a.shl(esi, 3)?;
    a.call(function)?;
    a.cmp(esi, edx)?;
    a.dec(ecx)?;
    a.jne(top)?;
    a.hlt()?;
    a.set_label(&mut function)?;
    a.lea(rdi, rsp + 8)?;
    a.ret()?;
    a.assemble(START)
}

/// The time for an instruction of a loop.
fn instruction(rounds: usize) -> Result<Row, String> {
    let measure = |processor: &Processor| -> Result<Cost, String> {
        let passes = if *processor == Processor::Soft { PASSES } else { PASSES_OF_KVM };
        let code = guest(passes).map_err(|error| error.to_string())?;
        let image = Image::flat(code, Mode::Long, Gpa(START)).map_err(|error| error.to_string())?;
        let mut machine = Machine::builder(image)
            .processor(Some(*processor))
            .profile(false)
            .timeout(Some(Duration::from_secs(30)))
            .output(Output::captured().0)
            .build()
            .map_err(|error| error.to_string())?;
        let start = Moment::now();
        let report = machine.run().map_err(|error| error.to_string())?;
        let Cost { cpu, wall } = Moment::now().since(&start);
        if !matches!(report.stop, Stop::Halted) {
            return Err(format!("the loop ended: {}", report.stop));
        }
        let each = f64::from(passes) * f64::from(PASS);
        Ok(Cost { cpu: cpu / each, wall: wall / each })
    };
    let costs = interleave(rounds, &[Processor::Soft, Processor::Kvm], measure)?;
    let [ours, kvm] = costs.as_slice() else { return Err("a measurement is missing".into()) };
    let pair: Pair = cpu(ours, kvm);
    let goal = Summary::of(&pair.ours).map(|time| {
        Goal::of_median("CPU time of an instruction on the software processor", Unit::Nanoseconds, 15.0, time)
    });
    Ok(Row {
        id: "soft-instruction".into(),
        title: "an instruction in ring 0, on the software processor".into(),
        other: "KVM",
        baseline: Baseline::Detail,
        unit: Unit::Nanoseconds,
        how: "CPU time of a run, divided by the instructions of a loop with arithmetic, loads, stores and a call",
        wall: wall(ours, kvm),
        goals: goal.into_iter().collect(),
        pair,
    })
}

/// A whole run of a tiny guest, compared with the bare program, which uses KVM.
fn cold_start(rounds: usize, vmm: &Path) -> Result<Option<Row>, String> {
    let scratch = Scratch::new()?;
    let bare = compile(&scratch, "cold-start", BARE, &["-static"])?;
    let programs = [(bare, vec![]), (vmm.to_path_buf(), vec!["run", "real16-42", "--vcpu", "soft"])];
    for program in &programs {
        run_silently(&program.0, &program.1)?;
    }
    let costs = interleave(rounds, &programs, |program| run_silently(&program.0, &program.1))?;
    let [bare, ours] = costs.as_slice() else { return Ok(None) };
    let goal = ("cold start on the software processor, relative to the bare program with KVM", 1.1);
    Ok(Some(row(
        ("soft-cold-start", "cold start on the software processor", "bare program"),
        "CPU time of `vmm run real16-42 --vcpu soft` from start to end; the bare program is static C with KVM",
        goal,
        (ours, bare),
    )))
}

/// A whole run of the SIMVIRTIO guest, compared with the same run with KVM.
fn simvirtio(rounds: usize, vmm: &Path) -> Result<Option<Row>, String> {
    let with = |vcpu| (vmm.to_path_buf(), vec!["run", "simvirtio", "--vcpu", vcpu]);
    let programs = [with("soft"), with("kvm")];
    for program in &programs {
        run_silently(&program.0, &program.1)?;
    }
    let costs = interleave(rounds, &programs, |program| run_silently(&program.0, &program.1))?;
    let [soft, kvm] = costs.as_slice() else { return Ok(None) };
    let goal = ("the SIMVIRTIO guest on the software processor, relative to KVM", 1.0);
    Ok(Some(row(
        ("soft-simvirtio", "the SIMVIRTIO guest on the software processor", "KVM"),
        "CPU time of `vmm run simvirtio --vcpu soft` and `--vcpu kvm` from start to end",
        goal,
        (soft, kvm),
    )))
}

/// A row with a goal for the ratio.
fn row(
    (id, title, other): (&str, &str, &'static str),
    how: &'static str,
    (what, limit): (&'static str, f64),
    (ours, others): (&[Cost], &[Cost]),
) -> Row {
    let pair = cpu(ours, others);
    let goal = pair.ratios().map(|ratio| Goal::of_median(what, Unit::Ratio, limit, ratio));
    Row {
        id: id.into(),
        title: title.into(),
        other,
        baseline: Baseline::LowerBound,
        unit: Unit::Nanoseconds,
        how,
        wall: wall(ours, others),
        goals: goal.into_iter().collect(),
        pair,
    }
}
