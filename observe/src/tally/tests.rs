use super::*;
use vmm::exit::Reason;

const VCPU: VcpuId = VcpuId { vm: 1, vcpu: 0 };

/// A tally whose clock ticks a million times a millisecond.
fn tally(capacity: usize) -> Tally {
    let mut tally = Tally::new(capacity, false);
    tally.clock = Some(Clock::new(Some(1_000_000)));
    tally.began.1 = 0;
    tally
}

/// A HLT (reason 5) with these times.
fn halt(entered: u64, left: u64, answered: Option<u64>) -> Record {
    Record { entered, left, answered, reason: 5, ..Record::default() }
}

fn assert_near(a: u64, b: u64) {
    assert!(a.abs_diff(b) <= 3, "{a} {b}");
}

#[test]
fn exits_are_counted_and_timed() {
    let mut tally = tally(0);
    tally.take(Event::Returned(VCPU, halt(1000, 3000, Some(3500))));
    tally.take(Event::Returned(VCPU, halt(3500, 4000, None)));
    let vcpu = &tally.vcpus[0];
    assert_eq!((vcpu.id, vcpu.last), (Some(VCPU), Some(Exit::Hlt)));
    let (in_kvm, in_vmm) = vcpu.profile.total_times();
    assert_near(in_kvm.sum(), 2500);
    assert_near(in_vmm.sum(), 500);
    assert_eq!((vcpu.profile.total().exits, in_vmm.count()), (2, 2));
}

#[test]
fn the_time_before_an_interruption_belongs_to_the_next_exit() {
    let mut tally = tally(0);
    let interrupted = Record { result: -libc::EINTR, ..halt(0, 1000, Some(1200)) };
    tally.take(Event::Returned(VCPU, interrupted));
    tally.take(Event::Returned(VCPU, halt(1200, 2200, None)));
    let vcpu = &tally.vcpus[0];
    assert_eq!(vcpu.profile.total().exits, 1);
    assert_near(vcpu.profile.total_times().0.sum(), 2000);
    assert!(tally.errors.is_empty());
}

#[test]
fn failures_are_counted_by_errno() {
    let mut tally = tally(0);
    for errno in 1..100 {
        tally.take(Event::Returned(VCPU, Record { result: -errno, ..halt(0, 1, None) }));
    }
    tally.take(Event::Returned(VCPU, Record { result: -1, ..halt(0, 1, None) }));
    tally.take(Event::Returned(VCPU, Record { result: i32::MIN, ..halt(0, 1, None) }));
    assert_eq!((tally.errors.len(), tally.errors[&1]), (MOST_ERRORS, 2));
    let fault = Record { result: -libc::EFAULT, reason: MEMORY_FAULT, ..halt(0, 1, None) };
    tally.take(Event::Returned(VCPU, fault));
    assert_eq!(tally.vcpus[0].profile.reasons()[0].0, Reason::Other(MEMORY_FAULT));
}

#[test]
fn string_io_shares_its_time() {
    let mut tally = tally(100);
    let mut record = Record { reason: 2, ..halt(0, 1000, Some(2003)) };
    record.details[..8].copy_from_slice(&[1, 1, 0xe9, 0, 10, 0, 0, 0]);
    tally.take(Event::Returned(VCPU, record));
    let profile = tally.vcpus[0].profile.clone();
    let total = profile.total();
    assert_eq!((total.exits, total.elements), (1, 10));
    assert_near(profile.total_times().1.sum(), 1003);
    let trace = tally.trace().unwrap();
    assert_eq!((trace.seen(), trace.exits().len()), (10, 10));
    assert_eq!(trace.exits()[9].1.arrival, Arrival::NextElement);
}

#[test]
fn the_trace_has_the_last_exits_of_all_vcpus_in_order() {
    let mut tally = tally(4);
    for vcpu in 0..2 {
        for number in 0..SLACK as u64 {
            let id = VcpuId { vm: 1, vcpu };
            tally.take(Event::Returned(id, halt(0, 10 * number + 10 + u64::from(vcpu), None)));
        }
    }
    let trace = tally.trace().unwrap();
    let ids: Vec<_> = trace.exits().iter().map(|(id, _)| *id).collect();
    assert_eq!((ids, trace.seen()), (vec![0, 1, 0, 1], 2 * SLACK as u64));
}

#[test]
fn hostile_numbers_of_vcpus_need_no_more_memory() {
    let mut tally = tally(0);
    for number in 0..1000 {
        let id = VcpuId { vm: number, vcpu: u32::MAX };
        tally.take(Event::Returned(id, halt(u64::MAX, 0, Some(0))));
    }
    assert_eq!((tally.vcpus.len(), tally.places.len()), (MOST_VCPUS, MOST_VCPUS));
    assert!(tally.vcpus[MOST_VCPUS - 1].id.is_none() && tally.merged > 0 && tally.steps == 1000);
    let exits: u64 = tally.vcpus.iter().map(|vcpu| vcpu.profile.total().exits).sum();
    assert_eq!(exits, 1000);
}
