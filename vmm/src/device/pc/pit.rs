//! The timer of a PC (8254, PIT) before it exists. KVM runs the timer. It is created when the guest first programs it, because
//! most kernels do not need it. From then on its accesses do not come here.
//!
//! Intel 8254 data sheet, "Control Word Format". Port 0x61, [`SystemControl`](super::system_control), controls the gate of
//! its third counter.

use crate::device::bus::{Device, DeviceName};
use crate::error::Error;
use crate::exit::Stop;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

/// The first port: the first counter.
pub const PORT: u16 = 0x40;
/// The number of ports: three counters, and the control word.
pub const PORTS: u16 = 4;

/// The offset of the control word.
const CONTROL: u64 = 3;

/// The access that made the timer necessary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstUse {
    /// The gate of the third counter was opened (port 0x61).
    Gate,
    /// A control word for a counter.
    Control {
        /// The counter, 0 to 2.
        counter: u8,
        /// The bytes of the count that are accessed: 1 the low one, 2 the high one, 3 both.
        access: u8,
        /// The mode, 0 to 5.
        mode: u8,
        /// 1 if the counter counts in BCD.
        bcd: u8,
    },
    /// An access that leaves the timer in the state in which it is created.
    Other,
}

impl FirstUse {
    /// The use by a control word. A word that latches counters that do not run changes nothing.
    fn of_control(word: u8) -> Self {
        let (counter, access) = (word >> 6, word >> 4 & 3);
        if counter == 3 || access == 0 {
            return Self::Other;
        }
        // The modes 6 and 7 are the modes 2 and 3.
        let mode = match word >> 1 & 7 {
            mode @ 6.. => mode & 3,
            mode => mode,
        };
        Self::Control { counter, access, mode, bcd: word & 1 }
    }
}

/// Creates the timer.
type Create = dyn FnMut(FirstUse) -> Result<(), Error> + Send;

/// The timer, until it is created. Its clones are the same timer.
#[derive(Clone)]
pub struct Pit(Arc<Mutex<Option<Box<Create>>>>);

impl fmt::Debug for Pit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pit")
    }
}

impl Pit {
    /// A timer that `create` creates.
    pub fn new(create: impl FnMut(FirstUse) -> Result<(), Error> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(create)))))
    }

    /// The ports of a machine without a timer. The counters read as 0, so a kernel that measures time with them gives up at
    /// once.
    pub fn absent() -> Self {
        Self(Arc::default())
    }

    /// Creates the timer, unless it exists.
    pub(super) fn create(&self, first: FirstUse) -> ControlFlow<Stop> {
        let create = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut create) = create else { return ControlFlow::Continue(()) };
        log::info!("the guest programs the PIT, which is created now");
        match create(first) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(Stop::host(error)),
        }
    }
}

impl Device for Pit {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(0)
    }

    fn write(&mut self, offset: u64, _: u8, data: u64) -> ControlFlow<Stop> {
        self.create(match offset {
            CONTROL => FirstUse::of_control(data.to_le_bytes()[0]),
            _ => FirstUse::Other,
        })
    }

    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("PIT")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A timer that notes how it was created.
    fn pit() -> (Pit, Arc<Mutex<Vec<FirstUse>>>) {
        let uses = Arc::new(Mutex::new(Vec::new()));
        let noted = uses.clone();
        let note = move |first| {
            noted.lock().unwrap().push(first);
            Ok(())
        };
        (Pit::new(note), uses)
    }

    #[test]
    fn it_is_created_by_the_first_write_and_only_once() {
        let (mut pit, uses) = pit();
        for offset in 0..4 {
            assert!(pit.read(offset, 1).is_continue());
        }
        assert!(uses.lock().unwrap().is_empty());
        let mut other = pit.clone();
        assert!(pit.write(3, 1, 0x34).is_continue() && other.write(3, 1, 0xb0).is_continue());
        let first = FirstUse::Control { counter: 0, access: 3, mode: 2, bcd: 0 };
        assert_eq!(*uses.lock().unwrap(), [first]);
    }

    #[test]
    fn an_absent_timer_reads_as_0_and_is_never_created() {
        let mut pit = Pit::absent();
        assert!(pit.write(3, 1, 0xb0).is_continue());
        assert_eq!(pit.read(2, 1).continue_value(), Some(0));
    }

    #[test]
    fn all_control_words_have_a_counter_that_exists_and_a_mode_of_the_data_sheet() {
        for word in 0..=u8::MAX {
            match FirstUse::of_control(word) {
                FirstUse::Control { counter, access, mode, .. } => {
                    assert!(counter < 3 && (1..4).contains(&access) && mode < 6, "{word:#x}");
                }
                first => assert!(first == FirstUse::Other && (word >= 0xc0 || word & 0x30 == 0), "{word:#x}"),
            }
        }
        assert_eq!(FirstUse::of_control(0xbd), FirstUse::Control { counter: 2, access: 3, mode: 2, bcd: 1 });
    }

    #[test]
    fn a_host_that_refuses_the_timer_ends_the_run() {
        let mut pit = Pit::new(|_| Err(Error::Config("no timer".into())));
        assert!(matches!(pit.write(0, 1, 0), ControlFlow::Break(Stop::HostFailed(_))));
    }
}
