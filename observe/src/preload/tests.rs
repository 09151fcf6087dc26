//! Tests of the looks at the rings.
#![allow(clippy::arithmetic_side_effects)]

use super::*;

/// The numbers of exits and of lost ones in a look until this time, by vCPU.
fn look(preload: &mut Preload, is_last: bool, deadline: Instant) -> Vec<(u32, u64, u64)> {
    let mut seen: Vec<(u32, u64, u64)> = Vec::new();
    preload.drain(is_last, deadline, &mut |event| {
        let (vcpu, exits, lost) = match event {
            Event::Returned(id, _) => (id.vcpu, 1, 0),
            Event::Lost(id, lost) => (id.vcpu, 0, lost),
            _ => return,
        };
        match seen.iter_mut().find(|(id, ..)| *id == vcpu) {
            Some((_, all, all_lost)) => (*all, *all_lost) = (*all + exits, *all_lost + lost),
            None => seen.push((vcpu, exits, lost)),
        }
    });
    seen
}

#[test]
fn a_look_ends_at_its_deadline_and_the_next_one_goes_on() {
    let mut preload = Preload::new().unwrap();
    preload.channel.fill(0, 1000);
    preload.channel.fill(1, RECORDS);
    let (past, later) = (Instant::now(), Instant::now() + Duration::from_secs(60));
    assert_eq!(look(&mut preload, false, past), []);
    preload.first = 1;
    assert_eq!(look(&mut preload, false, later), [(1, RECORDS, 0), (0, 1000, 0)], "in turn");
    assert_eq!(look(&mut preload, false, later), []);
}

#[test]
fn what_the_last_look_leaves_is_lost() {
    let mut preload = Preload::new().unwrap();
    preload.channel.fill(0, 1000);
    preload.channel.fill(1, 7);
    assert_eq!(look(&mut preload, true, Instant::now()), [(0, 0, 1000), (1, 0, 7)]);
}
