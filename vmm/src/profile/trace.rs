//! The trace: the last exits of all vCPUs of a machine, in the order of time.

use crate::host::sort_by_key;
use crate::profile::recorder::{Recording, TracedExit};

/// The maximum number of exits in a trace, multiplied by the number of vCPUs. They take 350 MiB during the run, and about
/// three times as much while the file is written.
pub const MAX_TRACED_EXITS: usize = 1 << 22;

/// The last exits of a machine.
#[derive(Clone, Debug)]
pub struct Trace {
    capacity: usize,
    seen: u64,
    exits: Vec<(u32, TracedExit)>,
}

impl Trace {
    /// Creates an empty trace of at most `capacity` exits.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, seen: 0, exits: Vec::new() }
    }

    /// Creates the trace of a run with `seen` elements, from its last exits in the order of time. Each has the number of its
    /// vCPU.
    pub fn of(seen: u64, exits: Vec<(u32, TracedExit)>) -> Self {
        Self { capacity: exits.len(), seen, exits }
    }

    /// Adds the recording of vCPU `id`.
    pub(crate) fn add(&mut self, id: u32, recording: &Recording) {
        self.seen = self.seen.saturating_add(recording.profile.total().elements);
        self.exits.extend(recording.last.iter().map(|traced| (id, *traced)));
        // Each vCPU's recording has up to `capacity` exits, so the last exits of the machine are complete.
        sort_by_key(&mut self.exits, |(_, traced)| traced.at);
        let surplus = self.exits.len().saturating_sub(self.capacity);
        self.exits.drain(..surplus);
    }

    /// The number of all exits of the run, and of further elements of string I/O.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The last exits, each with the number of its vCPU.
    pub fn exits(&self) -> &[(u32, TracedExit)] {
        &self.exits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{Arrival, Exit};
    use crate::profile::{Profile, Times};

    fn recording(times: impl IntoIterator<Item = u64>) -> Recording {
        let mut profile = Profile::default();
        let mut last = Vec::new();
        for at in times {
            let (exit, arrival, times) = (Exit::Hlt, Arrival::FromGuest, Times::default());
            profile.record(&exit, arrival, times);
            last.push(TracedExit { exit, arrival, at, times, rip: None, value: None, fault: false });
        }
        Recording { profile, last, ..Default::default() }
    }

    #[test]
    fn the_exits_of_all_vcpus_are_sorted_by_time() {
        let mut trace = Trace::new(4);
        trace.add(0, &recording([1, 5, 9]));
        trace.add(3, &recording([2, 6, 7]));
        let exits: Vec<_> = trace.exits().iter().map(|(id, traced)| (*id, traced.at)).collect();
        assert_eq!(exits, [(0, 5), (3, 6), (3, 7), (0, 9)]);
        assert_eq!(trace.seen(), 6);
    }
}
