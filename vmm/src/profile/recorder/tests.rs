use super::*;
use crate::profile::Count;

const OUT: Exit = Exit::PioOut { port: 0xe9, size: 1, data: 0x41 };
const IN: Exit = Exit::PioIn { port: 0xe9, size: 1 };

fn recorder(remembered: Option<usize>) -> Recorder {
    let mut recorder = Recorder::new(Clock::new(Some(1_000_000)), 1000, remembered, false, None);
    recorder.begin();
    recorder
}

/// Records an exit with these readings of the clock: entered, left, answered. A tick is a nanosecond.
fn at(recorder: &mut Recorder, exit: Exit, arrival: Arrival, readings: [u64; 3]) {
    recorder.left(&exit, arrival, None);
    let note = &mut recorder.notes[recorder.next];
    [note.entered, note.left, note.answered] = readings;
    recorder.next += 1;
    recorder.open = false;
    if recorder.next.is_multiple_of(CHUNK) {
        recorder.count_chunk(0);
    }
}

#[test]
fn the_time_in_kvm_before_queued_stores_counts_for_the_exit_after_them() {
    let mut recorder = recorder(None);
    recorder.begin();
    std::thread::sleep(std::time::Duration::from_millis(2));
    let stores = std::iter::repeat_n((OUT, Arrival::Coalesced), 3 * CHUNK);
    for (exit, arrival) in stores.chain([(Exit::Hlt, Arrival::FromGuest)]) {
        recorder.left(&exit, arrival, None);
        recorder.answered(&Outcome::Resume);
    }
    let profile = recorder.finish().profile;
    let in_kvm: Vec<_> = profile
        .details()
        .iter()
        .map(|detail| (detail.in_kvm.count(), detail.in_kvm.sum() >= 2_000_000))
        .collect();
    assert!(in_kvm.contains(&(1, true)) && in_kvm.contains(&(0, false)), "{in_kvm:?}");
}

#[test]
fn time_is_split_into_kvm_and_vmm_at_the_exit() {
    let mut recorder = recorder(None);
    at(&mut recorder, OUT, Arrival::FromGuest, [2000, 6000, 6300]);
    at(&mut recorder, OUT, Arrival::NextElement, [6400, 6410, 6460]);
    let recording = recorder.finish();
    let details = recording.profile.details();
    assert_eq!((details[0].in_kvm.sum(), details[0].in_kvm.count()), (4000, 1));
    assert_eq!((details[0].in_vmm.sum(), details[0].in_vmm.count()), (350, 2));
    assert_eq!(details[0].time(), 4350);
    let last: Vec<_> = recording.last.iter().map(|traced| (traced.at, traced.times)).collect();
    let times = |in_kvm, in_vmm| Times { in_kvm, in_vmm };
    assert_eq!(last, [(5000, times(4000, 300)), (5410, times(0, 50))]);
    assert_eq!(recording.steps, 0);
}

#[test]
fn a_clock_that_steps_back_gives_a_time_of_zero() {
    let mut recorder = recorder(None);
    at(&mut recorder, OUT, Arrival::FromGuest, [6000, 2000, 2100]);
    at(&mut recorder, OUT, Arrival::FromGuest, [3000, 4000, 500]);
    at(&mut recorder, OUT, Arrival::FromGuest, [0, u64::MAX, u64::MAX]);
    let recording = recorder.finish();
    assert_eq!(recording.steps, 2);
    assert_eq!(recording.profile.total(), Count { exits: 3, elements: 3 });
    let details = recording.profile.details();
    assert_eq!((details[0].in_kvm.min(), details[0].in_kvm.max()), (0, u64::MAX));
    assert_eq!(recording.last[0].at, 1000);
}

#[test]
fn time_in_kvm_before_an_interruption_counts_for_the_next_exit() {
    let mut recorder = recorder(None);
    for _ in 0..2 {
        recorder.left(&Exit::Interrupted, Arrival::FromGuest, None);
        recorder.notes[0].entered = recorder.notes[0].left - 1_000_000_000;
        recorder.answered(&Outcome::Resume);
    }
    recorder.left(&Exit::Hlt, Arrival::FromGuest, None);
    recorder.answered(&Outcome::Resume);
    let recording = recorder.finish();
    assert_eq!(recording.profile.total().exits, 1);
    let in_kvm = recording.last[0].times.in_kvm;
    assert!((1_000_000_000..2_000_000_000).contains(&in_kvm), "{in_kvm}");
}

#[test]
fn the_last_exits_are_kept_in_order() {
    for (remembered, seen) in [(None, 10), (Some(3), 10), (Some(100), 10), (Some(100), 1000), (Some(64), 128)]
    {
        let mut recorder = recorder(remembered);
        for port in 0..seen {
            let exit = Exit::PioIn { port, size: 1 };
            at(&mut recorder, exit, Arrival::FromGuest, [2000, 3000, 3000]);
        }
        let recording = recorder.finish();
        assert_eq!(recording.profile.total().exits, u64::from(seen));
        let ports: Vec<_> = recording.last.iter().map(|traced| traced.exit).collect();
        let first = seen.saturating_sub(remembered.unwrap_or(LAST) as u16);
        let wanted: Vec<_> = (first..seen).map(|port| Exit::PioIn { port, size: 1 }).collect();
        assert_eq!(ports, wanted, "the last {remembered:?} of {seen}");
    }
}

#[test]
fn an_exit_without_an_answer_is_counted() {
    let mut recorder = recorder(None);
    recorder.left(&OUT, Arrival::FromGuest, Some(7));
    recorder.answered(&Outcome::Resume);
    recorder.left(&IN, Arrival::FromGuest, Some(9));
    let recording = recorder.finish();
    assert_eq!(recording.profile.total().exits, 2);
    let last: Vec<_> = recording.last.iter().map(|traced| (traced.rip, traced.value)).collect();
    assert_eq!(last, [(Some(7), Some(0x41)), (Some(9), None)]);
}

#[test]
fn values_have_the_width_of_the_access() {
    let value = |exit, outcome| value(&exit, Some(&outcome));
    assert_eq!(value(IN, Outcome::Value(u64::MAX)), Some(0xff));
    assert_eq!(value(Exit::MmioRead { address: 0, size: 8 }, Outcome::Value(u64::MAX)), Some(u64::MAX));
    assert_eq!(value(Exit::MmioRead { address: 0, size: 3 }, Outcome::Value(u64::MAX)), Some(0xff_ffff));
    assert_eq!(value(Exit::RdMsr { index: 1 }, Outcome::Fault), None);
    assert_eq!(value(Exit::WrMsr { index: 1, data: 5 }, Outcome::Fault), Some(5));
    assert_eq!(value(Exit::Hlt, Outcome::Resume), None);
}
