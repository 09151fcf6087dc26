//! Records the modes in which vCPUs are at their exits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use vmm::Builder;
use vmm::controller::{ExitController, Location, VcpuState};
use vmm::exit::{Exit, Outcome};
use vmm::x86::Mode;

const MODES: [Mode; 4] = [Mode::Real, Mode::Protected, Mode::Long, Mode::User];

/// The modes that were seen, a bit for each of `MODES`. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct ModeWatch(Arc<AtomicU8>);

impl ModeWatch {
    /// Adds the watch to a machine. Each exit then costs one more call to KVM (KVM_GET_SREGS).
    pub fn apply(&self, builder: Builder) -> Builder {
        let watch = self.clone();
        builder.controller(move |_| Watcher(watch.clone()))
    }

    /// The modes that were seen.
    pub fn modes(&self) -> Vec<Mode> {
        let bits = self.0.load(Ordering::Relaxed);
        (0..).zip(MODES).filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, mode)| mode).collect()
    }
}

/// The controller of one vCPU. It claims no exit.
struct Watcher(ModeWatch);

impl ExitController for Watcher {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        // These are not exits of the guest. After a shutdown, some hosts have reset the vCPU.
        if matches!(exit, Exit::Interrupted | Exit::Debug(_) | Exit::Shutdown) {
            return Outcome::Unclaimed;
        }
        let sregs = match vcpu.sregs() {
            Ok(sregs) => sregs,
            Err(error) => return Outcome::failed(error),
        };
        if let Location::At { mode, .. } = Location::of(&sregs, 0)
            && let Some((bit, _)) = (0..).zip(MODES).find(|(_, known)| *known == mode)
        {
            self.0.0.fetch_or(1 << bit, Ordering::Relaxed);
        }
        Outcome::Unclaimed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::controller::FakeVcpu;

    #[test]
    fn the_mode_of_each_exit_is_recorded() {
        let watch = ModeWatch::default();
        let mut vcpu = FakeVcpu::default();
        let mut watcher = Watcher(watch.clone());
        assert!(matches!(watcher.handle(&Exit::Shutdown, &mut vcpu), Outcome::Unclaimed));
        assert_eq!(watch.modes(), []);
        let mut sregs = vcpu.sregs().unwrap();
        for (cr0, efer, l) in [(0, 0, 0), (1, 0, 0), (1, 0, 0), (0x8000_0001, 0x500, 1)] {
            (sregs.cr0, sregs.efer, sregs.cs.l) = (cr0, efer, l);
            vcpu.set_sregs(&sregs).unwrap();
            assert!(matches!(watcher.handle(&Exit::Hlt, &mut vcpu), Outcome::Unclaimed));
        }
        assert_eq!(watch.modes(), [Mode::Real, Mode::Protected, Mode::Long]);
    }
}
