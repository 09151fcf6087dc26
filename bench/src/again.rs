//! Running a tiny guest again and again in one VM. The baseline is a bare loop over KVM_RUN, KVM_GET_DIRTY_LOG,
//! KVM_SET_SREGS and KVM_SET_REGS, which puts back only the pages that the guest has changed.

use crate::memory::Memory;
use crate::row::{Baseline, Goal, Pair, Row, Unit, cpu, interleave, wall};
use crate::sys::{Cost, Moment};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_regs, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use std::cell::RefCell;
use vmm::boot::Image;
use vmm::exit::Stop;
use vmm::internals::{regs, sregs};
use vmm::machine::Processor;
use vmm::memory::{Gpa, PAGE, TABLES, TSS};
use vmm::x86::{Mode, VcpuIndex};
use vmm::{Machine, Output};

/// mov ax, 42; mov [0x400], ax; hlt
const GUEST: [u8; 7] = [0xb8, 42, 0, 0xa3, 0, 4, 0xf4];
/// The address of the guest's code.
const START: u64 = 0x1000;
/// The address of the result.
const RESULT: u64 = 0x400;
/// The size of RAM in bytes.
const RAM: usize = 1 << 20;
/// Runs in one measurement.
const RUNS: u32 = 1000;

/// The program that runs the guest.
enum Runner {
    Vmm,
    Bare,
}

/// Measures `rounds` times 1,000 runs of each candidate.
///
/// # Errors
/// A host call failed, or the guest did not leave its result.
pub fn run(rounds: usize) -> Result<Vec<Row>, String> {
    let text = |error: vmm::Error| error.to_string();
    let image = Image::flat(&GUEST[..], Mode::Real, Gpa(START)).map_err(|error| error.to_string())?;
    let machine = Machine::builder(image)
        .processor(Some(Processor::Kvm))
        .output(Output::captured().0)
        .build()
        .map_err(text)?;
    let (machine, bare) = (RefCell::new(machine), RefCell::new(Bare::new()?));
    let costs = interleave(rounds, &[Runner::Vmm, Runner::Bare], |runner| {
        let start = Moment::now();
        for _ in 0..RUNS {
            match runner {
                Runner::Vmm => run_in_vmm(&mut machine.borrow_mut())?,
                Runner::Bare => bare.borrow_mut().run()?,
            }
        }
        let Cost { cpu, wall } = Moment::now().since(&start);
        let each = f64::from(RUNS);
        Ok(Cost { cpu: cpu / each, wall: wall / each })
    })?;
    let [ours, bare] = costs.as_slice() else { return Ok(Vec::new()) };
    let pair: Pair = cpu(ours, bare);
    let goal = pair.ratios().map(|ratio| {
        Goal::of_median(
            "CPU time of a run and a reset in one VM, relative to the bare loop",
            Unit::Ratio,
            2.0,
            ratio,
        )
    });
    Ok(vec![Row {
        id: "again".into(),
        title: "run and reset of a 7-byte guest".into(),
        other: "bare loop",
        baseline: Baseline::LowerBound,
        unit: Unit::Nanoseconds,
        how: "CPU time of a run and a reset, in batches of 1,000",
        wall: wall(ours, bare),
        goals: goal.into_iter().collect(),
        pair,
    }])
}

/// Runs the guest once with exits counted, reads its result, and resets the machine.
fn run_in_vmm(machine: &mut Machine) -> Result<(), String> {
    let report = machine.run().map_err(|error| error.to_string())?;
    let mut result = [0; 2];
    machine.memory().read(Gpa(RESULT), &mut result);
    let exits = report.profile.map_or(0, |profile| profile.total().exits);
    if !matches!(report.stop, Stop::Halted) || result != [42, 0] || exits != 1 {
        return Err(format!("{}, {exits} exits, and {result:?} at {RESULT:#x}", report.stop));
    }
    machine.reset().map_err(|error| error.to_string())
}

/// The bare loop.
struct Bare {
    // Rust drops fields in this order, so the vCPU and the VM go before the memory that they use.
    vcpu: VcpuFd,
    vm: VmFd,
    ram: Memory,
    sregs: kvm_sregs,
    regs: kvm_regs,
}

impl Bare {
    fn new() -> Result<Self, String> {
        let failed = |operation: &'static str| move |error| format!("{operation}: {error}");
        let mut ram = Memory::new(RAM)?;
        ram.write(START as usize, &GUEST)?;
        let kvm = Kvm::new().map_err(failed("opening /dev/kvm"))?;
        let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        vm.set_tss_address(TSS as usize).map_err(failed("KVM_SET_TSS_ADDR"))?;
        ram.register_with(&vm, 0, 0, KVM_MEM_LOG_DIRTY_PAGES)?;
        let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        let reset = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        let index = VcpuIndex::ALONE;
        let bare = Self {
            vcpu,
            vm,
            ram,
            sregs: sregs(Mode::Real, reset.into(), TABLES, index).into(),
            regs: regs(Mode::Real, Gpa(START), index).into(),
        };
        bare.set_registers()?;
        Ok(bare)
    }

    fn set_registers(&self) -> Result<(), String> {
        self.vcpu.set_sregs(&self.sregs).map_err(|error| format!("KVM_SET_SREGS: {error}"))?;
        self.vcpu.set_regs(&self.regs).map_err(|error| format!("KVM_SET_REGS: {error}"))
    }

    /// Runs the guest once, and puts it back.
    fn run(&mut self) -> Result<(), String> {
        match self.vcpu.run() {
            Ok(VcpuExit::Hlt) => {}
            Ok(exit) => return Err(format!("unexpected exit in the bare loop: {exit:?}")),
            Err(error) => return Err(format!("KVM_RUN: {error}")),
        }
        let log = self.vm.get_dirty_log(0, RAM).map_err(|error| format!("KVM_GET_DIRTY_LOG: {error}"))?;
        let pages = (0..).zip(log).flat_map(|(word, pages)| {
            (0..64).filter(move |bit| pages & 1 << bit != 0).map(move |bit| word * 64 + bit)
        });
        for page in pages.collect::<Vec<usize>>() {
            let start = page * PAGE as usize;
            self.ram.write(start, &[0; PAGE as usize])?;
            if start == START as usize {
                self.ram.write(start, &GUEST)?;
            }
        }
        self.set_registers()
    }
}
