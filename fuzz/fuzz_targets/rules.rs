//! Fuzzes the user's changes to CPUID and rules for MSRs: their texts, and what they do to a guest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use vmm::controller::{ExitController, FakeVcpu, MsrForwarder, MsrPolicy, MsrRule, parse_msr_rule};
use vmm::exit::{Exit, Outcome};
use vmm::internals::{CpuidContext, for_vcpu};
use vmm::x86::{CpuidEntry, CpuidOverride, Register};
use vmm_fuzz::Script;

const LEAVES: [u32; 12] =
    [0, 1, 4, 7, 0xb, 0xd, 0x1f, 0x4000_0000, 0x4000_0001, 0x8000_0001, 0x8000_0008, 0x8000_001e];

fn number(script: &mut Script, number: u32) -> String {
    if script.one_in(2) { format!("{number:#x}") } else { number.to_string() }
}

/// The text of a change, and the change.
fn change(script: &mut Script) -> (String, CpuidOverride) {
    let leaf = if script.one_in(8) { script.any() } else { script.pick(&LEAVES) };
    let subleaf = script.one_in(2).then(|| script.below(3) as u32);
    let (name, register) = script.pick(&[
        ("eax", Register::Eax),
        ("EBX", Register::Ebx),
        ("ecx", Register::Ecx),
        ("edx", Register::Edx),
    ]);
    let bits = script.one_in(2).then(|| (script.below(32) as u8, script.below(32) as u8));
    let (one, other) = bits.unwrap_or((0, 31));
    let (low, high) = (one.min(other), one.max(other));
    let value = script.any::<u32>() & (u32::MAX >> (31 - (high - low)));
    let mut text = number(script, leaf);
    if let Some(subleaf) = subleaf {
        text += &format!(".{}", number(script, subleaf));
    }
    text += &format!(".{name}");
    match bits {
        Some((one, other)) if one == other => text += &format!(".{one}"),
        Some((one, other)) => text += &format!(".{one}-{other}"),
        None => {}
    }
    text += &format!("={}", number(script, value));
    (text, CpuidOverride { leaf, subleaf, register, low, high, value })
}

fn entry(script: &mut Script) -> CpuidEntry {
    CpuidEntry {
        function: script.pick(&LEAVES),
        index: script.below(3) as u32,
        flags: script.pick(&[0, CpuidEntry::HAS_INDEX]),
        eax: script.any(),
        ebx: script.pick(&[0, u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"Genu"), u32::MAX]),
        ecx: script.any(),
        edx: script.any(),
        ..Default::default()
    }
}

fn registers(entry: &CpuidEntry) -> [u32; 4] {
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

/// A change sets its bits in its register of the first leaf that it names, and nothing else.
fn cpuid(script: &mut Script) {
    let supported: Vec<_> = (0..script.below(6)).map(|_| entry(script)).collect();
    let count = 1 + script.below(32) as u32;
    let vcpu = CpuidContext { id: script.below(count.into()) as u32, count, tsc_deadline: script.one_in(2) };
    let (text, change) = change(script);
    assert_eq!(text.parse(), Ok(change), "{text}");
    let before = for_vcpu(&supported, vcpu, &[]);
    let mut after = for_vcpu(&supported, vcpu, &[change]);
    let index = change.subleaf.unwrap_or(0);
    let is_meant = |entry: &CpuidEntry| {
        let has_index = entry.flags & CpuidEntry::HAS_INDEX != 0;
        entry.function == change.leaf && (!has_index || entry.index == index)
    };
    let place = after.iter().position(is_meant).expect("the leaf is there");
    let (old, new) = (before.get(place).map_or([0; 4], registers), registers(&after.remove(place)));
    for (number, (old, new)) in old.into_iter().zip(new).enumerate() {
        for bit in 0..32 {
            let is_changed = number == change.register as usize && (change.low..=change.high).contains(&bit);
            let right = if is_changed { change.value >> (bit - change.low) & 1 } else { old >> bit & 1 };
            assert_eq!(new >> bit & 1, right, "{text}: register {number}, bit {bit}");
        }
    }
    let others = before.iter().enumerate().filter(|(at, _)| *at != place).map(|(_, entry)| registers(entry));
    assert!(others.eq(after.iter().map(registers)), "{text}: another leaf changed");
}

/// The last rule for a register decides what an access does.
fn msrs(script: &mut Script) {
    let (mut policy, mut model) = (MsrPolicy::default(), BTreeMap::new());
    for _ in 0..script.below(8) {
        let (name, rule) =
            script.pick(&[("deny", MsrRule::Deny), ("ignore", MsrRule::Ignore), ("log", MsrRule::Log)]);
        let index = if script.one_in(8) { script.any() } else { script.below(4) as u32 };
        let text = format!("{}={name}", number(script, index));
        assert_eq!(parse_msr_rule(&text), Ok((index, rule)), "{text}");
        policy.set(index, rule);
        model.insert(index, rule);
    }
    let mut vcpu = FakeVcpu { msrs: [(1, 0x11), (2, 0x22)].into(), ..Default::default() };
    for _ in 0..script.below(8) {
        let index = script.below(5) as u32;
        let known = vcpu.msrs.get(&index).copied();
        let (rule, write) = (model.get(&index), script.one_in(2));
        let exit = if write { Exit::WrMsr { index, data: 7 } } else { Exit::RdMsr { index } };
        let outcome = (&policy, MsrForwarder(&policy)).handle(&exit, &mut vcpu);
        let is_right = match (rule, known, outcome) {
            (None, _, Outcome::Unclaimed) | (Some(MsrRule::Deny), _, Outcome::Fault) => true,
            (Some(MsrRule::Ignore), _, Outcome::Value(0)) => !write,
            (Some(MsrRule::Ignore), _, Outcome::Resume) => write,
            (Some(MsrRule::Log), Some(value), Outcome::Value(read)) => !write && read == value,
            (Some(MsrRule::Log), Some(_), Outcome::Resume) => write && vcpu.msrs.get(&index) == Some(&7),
            (Some(MsrRule::Log), None, Outcome::Unclaimed) => true,
            _ => false,
        };
        assert!(is_right, "rule {rule:?} for {exit}");
    }
}

fuzz_target!(|input: &[u8]| {
    let mut script = Script::new(input);
    match script.below(3) {
        0 => cpuid(&mut script),
        1 => msrs(&mut script),
        _ => {
            let text = String::from_utf8_lossy(script.rest());
            let _ = (text.parse::<CpuidOverride>(), parse_msr_rule(&text));
        }
    }
});
