//! Profiles and traces, written by the writers of the program.

use crate::Script;
use report::profile::{SavedMark, SavedProcessor, SavedSite, SavedTimes, SavedVcpu};
use report::setup::{SavedCall, SavedSetup, SavedSlot};
use report::trace::{Record, SavedDevice};
use report::{SavedAddress, SavedName, SavedOrigin, SavedProfile, SavedSamples, SavedTrace};
use vmm::exit::Reason;

const NAMES: [&str; 8] =
    ["", "serial data", "simvirtio TX head", "é\n\"", "virtio-blk", "exit port", "i8042", " "];

fn text(script: &mut Script) -> String {
    script.pick(&NAMES).into()
}

fn number(script: &mut Script) -> u64 {
    match script.below(4) {
        3 => script.any(),
        2 => script.any::<u16>().into(),
        _ => script.any::<u8>().into(),
    }
}

fn reason(script: &mut Script) -> Reason {
    match script.below(Reason::NAMED.len() as u64 + 1) {
        11 => Reason::Other(script.any()),
        code => Reason::NAMED[code as usize],
    }
}

/// Builds a profile with up to 4 vCPUs, 4 marks and 4 sites for each vCPU.
pub fn profile(script: &mut Script) -> SavedProfile {
    let vcpus: Vec<_> = (0..script.below(5)).map(|id| vcpu(script, Some(id as u32))).collect();
    let mark =
        |script: &mut Script| SavedMark { event: text(script), at_ns: number(script), exits: number(script) };
    SavedProfile {
        program: text(script),
        guest: text(script),
        ended: text(script),
        origin: origin(script),
        elapsed_ns: number(script),
        marks: (0..script.below(5)).map(|_| mark(script)).collect(),
        machine: vcpu(script, None),
        vcpus,
        processor: script.pick(&[SavedProcessor::Kvm, SavedProcessor::Soft]),
        setup: script.one_in(3).then(|| setup(script)),
        addresses: (0..script.below(4)).map(|_| address(script)).collect(),
        names: names(script),
        samples: script.one_in(3).then(|| samples(script)),
        ..Default::default()
    }
}

fn origin(script: &mut Script) -> Option<Box<SavedOrigin>> {
    let mut text = || text(script);
    let origin = SavedOrigin {
        date: text(),
        host: text(),
        cpu: text(),
        kernel: text(),
        command: text(),
        transport: text(),
    };
    script.one_in(3).then(|| Box::new(origin))
}

fn samples(script: &mut Script) -> SavedSamples {
    let stack = |script: &mut Script| {
        let frames: Vec<_> = (0..=script.below(4)).map(|_| text(script)).collect();
        format!("{} {}", frames.join(";"), number(script))
    };
    SavedSamples {
        rate: script.one_in(2).then(|| script.any()),
        lost: number(script),
        cost_ns: number(script),
        may_be_kvm: script.one_in(2),
        stacks: (0..script.below(4)).map(|_| stack(script)).collect(),
    }
}

fn address(script: &mut Script) -> SavedAddress {
    let has_place = script.one_in(2);
    SavedAddress {
        rip: script.one_in(2).then(|| number(script)),
        reason: reason(script),
        place: has_place.then(|| number(script)),
        width: has_place.then_some(4),
        exits: number(script),
        elements: number(script),
        in_kvm_ns: number(script),
        in_vmm_ns: number(script),
    }
}

fn names(script: &mut Script) -> Vec<SavedName> {
    let name = |script: &mut Script| SavedName {
        rip: number(script),
        reason: reason(script),
        function: text(script),
        offset: number(script),
        line: script.one_in(2).then(|| text(script)),
        unsure: script.one_in(2),
    };
    (0..script.below(4)).map(|_| name(script)).collect()
}

fn setup(script: &mut Script) -> SavedSetup {
    let call = |script: &mut Script| SavedCall {
        vm: script.one_in(2).then(|| number(script) as u32),
        object: text(script),
        call: text(script),
        times: number(script),
        words: text(script),
        failure: script.one_in(2).then(|| text(script)),
    };
    let slot = |script: &mut Script| SavedSlot {
        vm: number(script) as u32,
        slot: number(script) as u32,
        first: number(script),
        size: number(script),
        host: number(script),
        flags: text(script),
    };
    SavedSetup {
        calls: (0..script.below(4)).map(|_| call(script)).collect(),
        memory: (0..script.below(4)).map(|_| slot(script)).collect(),
        remarks: (0..script.below(3)).map(|_| text(script)).collect(),
    }
}

fn vcpu(script: &mut Script, id: Option<u32>) -> SavedVcpu {
    let kernel = |script: &mut Script| (0..script.below(3)).map(|_| (text(script), number(script))).collect();
    SavedVcpu {
        id,
        ended: text(script),
        exits: number(script),
        elements: number(script),
        kernel: script.one_in(3).then(|| kernel(script)),
        in_kvm: times(script),
        in_vmm: times(script),
        sites: (0..script.below(5)).map(|_| site(script)).collect(),
    }
}

fn site(script: &mut Script) -> SavedSite {
    let reason = reason(script);
    let has_place = reason.has_place() != script.one_in(16);
    SavedSite {
        reason,
        place: has_place.then(|| number(script)),
        width: (has_place != script.one_in(16)).then(|| script.pick(&[1, 2, 4, 8, 0, 255])),
        device: script.one_in(2).then(|| text(script)),
        exits: number(script),
        elements: number(script),
        in_kvm: times(script),
        in_vmm: times(script),
    }
}

fn times(script: &mut Script) -> SavedTimes {
    let min = script.any::<u8>().into();
    let mut bin = 0;
    let mut next = |script: &mut Script| {
        bin += script.below(8);
        (bin, number(script))
    };
    SavedTimes {
        count: number(script),
        sum: number(script),
        min,
        max: if script.one_in(16) { number(script) } else { min + script.below(200) },
        p50: script.one_in(2).then(|| number(script)),
        p99: script.one_in(2).then(|| number(script)),
        bins: (0..script.below(3)).map(|_| next(script)).collect(),
    }
}

/// Builds a trace with up to 15 records.
pub fn trace(script: &mut Script) -> SavedTrace {
    let vcpus = 1 + script.below(33) as u32;
    let records: Vec<_> = (0..script.below(16)).map(|_| record(script, vcpus)).collect();
    let seen = if script.one_in(8) { number(script) } else { records.len() as u64 + number(script) / 2 };
    let devices = (0..script.below(4)).map(|_| SavedDevice {
        reason: reason(script),
        place: number(script),
        width: script.pick(&[1, 2, 4, 8, 0]),
        device: text(script),
    });
    let devices = devices.collect();
    SavedTrace {
        vcpus,
        seen,
        elapsed_ns: number(script),
        khz: number(script),
        records,
        program: text(script),
        guest: text(script),
        ended: text(script),
        origin: origin(script),
        processor: script.pick(&[SavedProcessor::Kvm, SavedProcessor::Soft]),
        devices,
        names: names(script),
    }
}

fn record(script: &mut Script, vcpus: u32) -> Record {
    let reason = reason(script);
    Record {
        when: number(script),
        place: reason.has_place().then(|| number(script)),
        value: script.one_in(2).then(|| number(script)),
        rip: script.one_in(2).then(|| number(script)),
        in_kvm: script.any::<u16>().into(),
        in_vmm: script.any::<u16>().into(),
        vcpu: if script.one_in(32) { script.any() } else { script.below(vcpus.into()) as u16 },
        reason,
        width: script.pick(&[1, 2, 4, 8, 0]),
        next_element: script.one_in(4),
        fault: script.one_in(4),
    }
}
