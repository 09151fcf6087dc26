//! The last exits of each vCPU.

use crate::engine::{Record, VcpuId};
use std::collections::{HashMap, VecDeque};
use vmm::RunCopy;
use vmm::exit::Exit;

/// The number of exits that are shown, as of a guest of this program.
const LAST: usize = 6;
/// The most vCPUs whose exits are remembered.
const MOST_VCPUS: usize = 1024;

/// The last exits of each vCPU.
#[derive(Debug, Default)]
pub(super) struct LastExits {
    recent: HashMap<VcpuId, VecDeque<Record>>,
}

impl LastExits {
    /// Takes an exit. An interruption is none.
    pub(super) fn take(&mut self, vcpu: VcpuId, record: &Record) {
        let is_kept = self.recent.len() < MOST_VCPUS || self.recent.contains_key(&vcpu);
        if record.result < 0 || !is_kept {
            return;
        }
        let recent = self.recent.entry(vcpu).or_default();
        if recent.len() >= LAST {
            recent.pop_front();
        }
        recent.push_back(*record);
    }

    /// The last exits of a vCPU, the newest at the end. String I/O has an exit for each element.
    pub(super) fn of(&self, vcpu: VcpuId) -> Vec<Exit> {
        let (mut copy, mut last) = (RunCopy::default(), VecDeque::new());
        for record in self.recent.get(&vcpu).into_iter().flatten() {
            for element in copy.decode(record.reason, &record.details) {
                if last.len() >= LAST {
                    last.pop_front();
                }
                last.push_back(element.exit);
            }
        }
        last.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::DETAILS;

    /// `count` elements of a byte to a port.
    fn out(port: u16, count: u32) -> Record {
        let mut details = [0; DETAILS];
        details[..2].copy_from_slice(&[1, 1]);
        details[2..4].copy_from_slice(&port.to_ne_bytes());
        details[4..8].copy_from_slice(&count.to_ne_bytes());
        details[16..24].copy_from_slice(b"abcdefgh");
        Record { reason: 2, details, ..Record::default() }
    }

    #[test]
    fn the_newest_elements_are_kept() {
        let (vcpu, other) = (VcpuId { vm: 1, vcpu: 0 }, VcpuId { vm: 1, vcpu: 1 });
        let mut last = LastExits::default();
        (0..9).for_each(|port| last.take(vcpu, &out(port, 1)));
        last.take(vcpu, &Record { result: -libc::EINTR, ..out(99, 1) });
        last.take(other, &out(0xe9, 3));
        let texts = |id| last.of(id).iter().map(Exit::to_string).collect::<Vec<_>>().join(", ");
        assert_eq!(
            texts(vcpu),
            "out8 0x3 0x61, out8 0x4 0x61, out8 0x5 0x61, out8 0x6 0x61, out8 0x7 0x61, out8 0x8 0x61"
        );
        assert_eq!(texts(other), "out8 0xe9 0x61, out8 0xe9 0x62, out8 0xe9 0x63");
        assert_eq!(last.of(VcpuId { vm: 2, vcpu: 0 }), []);
        (0..2000).for_each(|vcpu| last.take(VcpuId { vm: 3, vcpu }, &out(1, 1)));
        assert_eq!(last.recent.len(), MOST_VCPUS);
    }
}
