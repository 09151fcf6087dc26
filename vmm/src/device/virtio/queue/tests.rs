#![allow(clippy::arithmetic_side_effects)]

use super::*;
use crate::device::virtio::testing::{self, Buffer, INDIRECT, NEXT, RAM, Ring, WRITE};
use crate::shutdown::{Deadline, StopHandle};

const RING: u64 = 0x1_0000;
const DATA: u64 = 0x3_0000;
const TABLE: u64 = 0x8_0000;
const SIZE: u16 = 8;

struct Rig {
    ring: Ring,
    queue: Virtqueue,
    interrupt: Arc<Interrupt>,
}

impl Rig {
    fn new() -> Self {
        let memory = testing::memory();
        let ring = Ring::new(&memory, RING, SIZE);
        let interrupt = Arc::new(Interrupt::new("test").unwrap());
        let queue = ring.queue(&interrupt);
        Self { ring, queue, interrupt }
    }

    /// Serves the requests. Returns the numbers of readable and writable buffers of the last one.
    fn serve(&mut self) -> Result<(usize, usize), QueueError> {
        let mut seen = (0, 0);
        self.queue.serve(|_, chain| {
            seen = (chain.readable().len(), chain.writable().len());
            Ok(Answer::Done(0))
        })?;
        Ok(seen)
    }
}

/// Lets `wrong` fill the ring, and requires this error.
#[track_caller]
fn refused(error: &str, wrong: impl FnOnce(&mut Ring)) {
    let mut rig = Rig::new();
    wrong(&mut rig.ring);
    let seen = rig.serve().unwrap_err().to_string();
    assert_eq!((seen.as_str(), rig.ring.used_index()), (error, 0));
}

#[test]
fn buffers_may_come_before_an_indirect_table() {
    let mut rig = Rig::new();
    rig.ring.set(0, DATA, 16, NEXT, 1);
    // The device ignores the flag WRITE of a descriptor with a table (section 2.7.5.3.2).
    rig.ring.set(1, TABLE, 32, INDIRECT | WRITE, 0);
    rig.ring.describe(TABLE, DATA, 16, NEXT, 1);
    rig.ring.describe(TABLE + 16, DATA, 16, WRITE, 0);
    rig.ring.publish(0);
    assert_eq!(rig.serve().unwrap(), (2, 1));
    assert_eq!(rig.ring.used(), Some((0, 0)));
}

#[test]
fn the_rules_of_indirect_tables_are_checked() {
    refused("a descriptor with an indirect table has a next one", |ring| {
        ring.set(0, TABLE, 16, INDIRECT | NEXT, 1);
        ring.set(1, DATA, 16, 0, 0);
        ring.describe(TABLE, DATA, 16, 0, 0);
        ring.publish(0);
    });
    refused("an indirect table refers to another one", |ring| {
        ring.set(0, TABLE, 32, INDIRECT, 0);
        ring.describe(TABLE, DATA, 16, NEXT, 1);
        ring.describe(TABLE + 16, TABLE, 16, INDIRECT, 0);
        ring.publish(0);
    });
    for len in [0, 1, 15, 17, 24, 16 * 0x1_0000, u32::MAX] {
        refused("an indirect table has an invalid length", |ring| {
            ring.set(0, TABLE, len, INDIRECT, 0);
            ring.publish(0);
        });
    }
    for next in [1, 2, u16::MAX] {
        refused("a descriptor chain leaves its table", |ring| {
            ring.set(0, TABLE, 16, INDIRECT, 0);
            ring.describe(TABLE, DATA, 16, NEXT, next);
            ring.publish(0);
        });
    }
    refused("a table of descriptors is not in guest memory", |ring| {
        ring.set(0, RAM - 16, 32, INDIRECT, 0);
        ring.describe(RAM - 16, DATA, 16, NEXT, 1);
        ring.publish(0);
    });
    let mut rig = Rig::new();
    rig.queue = rig.queue.allow_indirect(false);
    rig.ring.set(0, TABLE, 16, INDIRECT, 0);
    rig.ring.describe(TABLE, DATA, 16, 0, 0);
    rig.ring.publish(0);
    let error = rig.serve().unwrap_err().to_string();
    assert_eq!(error, "the driver uses an indirect table without the feature");
}

#[test]
fn the_rules_of_chains_are_checked() {
    refused("a readable descriptor comes after a writable one", |ring| {
        ring.add(&[Buffer(DATA, 1, true), Buffer(DATA, 1, false)]);
    });
    refused("a descriptor chain is longer than its queue", |ring| {
        ring.set(0, DATA, 1, NEXT, 1);
        ring.set(1, DATA, 1, NEXT, 0);
        ring.publish(0);
    });
    refused("a descriptor chain is longer than its queue", |ring| {
        ring.set(0, TABLE, 16 * 9, INDIRECT, 0);
        for entry in 0..9 {
            ring.describe(TABLE + entry * 16, DATA, 1, NEXT, entry as u16 + 1);
        }
        ring.publish(0);
    });
    refused("a descriptor chain has more than 4 GiB", |ring| {
        ring.add(&[Buffer(0, u32::MAX, false), Buffer(0, 2, false)]);
    });
    for head in [SIZE, u16::MAX] {
        refused("a descriptor chain leaves its table", |ring| ring.publish(head));
    }
    let mut rig = Rig::new();
    rig.ring.add(&[Buffer(0, u32::MAX, false), Buffer(0, 1, false)]);
    assert_eq!(rig.serve().unwrap(), (2, 0), "exactly 4 GiB");
    rig.ring.add(&[Buffer(DATA, 1, true); SIZE as usize]);
    assert_eq!(rig.serve().unwrap(), (0, 8), "as long as the queue");
}

#[test]
fn each_kind_of_mistake_is_reported_once() {
    let interrupt = Interrupt::new("test").unwrap();
    for _ in 0..3 {
        for error in [QueueError::Chain("one"), QueueError::Chain("two"), Error::InvalidChain.into()] {
            interrupt.needs_reset(error.kind(), &error);
        }
    }
    assert_eq!(interrupt.reported_kinds(), 3);
}

#[test]
fn after_the_deadline_no_request_is_taken_or_returned() {
    let mut rig = Rig::new();
    let deadline = Deadline::default();
    rig.interrupt.begin_run(deadline.clone(), Arc::new(StopHandle::new().unwrap()));
    for _ in 0..3 {
        rig.ring.add(&[Buffer(DATA, 1, true)]);
    }
    let mut taken = 0;
    let mut serve = |queue: &mut Virtqueue| {
        queue
            .serve(|_, chain| {
                taken += 1;
                if taken == 2 {
                    // The deadline passes while the device works on the second request.
                    deadline.abandon();
                }
                Ok(if chain.must_give_up() { Answer::Later } else { Answer::Done(0) })
            })
            .unwrap();
    };
    serve(&mut rig.queue);
    serve(&mut rig.queue);
    assert_eq!((taken, rig.ring.used_index()), (2, 1));
}
