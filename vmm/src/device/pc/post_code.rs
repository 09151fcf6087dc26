//! Port 0x80, to which firmware and kernels write their progress codes. Each write that changes the value adds a mark
//! to the [`Timeline`].

use crate::device::bus::{Device, DeviceName};
use crate::exit::Stop;
use crate::profile::timeline::{Event, Timeline};
use std::ops::ControlFlow;
use std::sync::Arc;

/// The port.
pub const PORT: u16 = 0x80;

/// The device: marks the timeline when the value changes.
#[derive(Debug)]
pub struct PostCode {
    timeline: Arc<Timeline>,
    last: Option<u8>,
}

impl PostCode {
    /// Creates a port that adds marks to `timeline`.
    pub fn new(timeline: Arc<Timeline>) -> Self {
        Self { timeline, last: None }
    }
}

impl Device for PostCode {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(self.last.map_or(u64::MAX, u64::from))
    }

    fn write(&mut self, _: u64, _: u8, data: u64) -> ControlFlow<Stop> {
        let code = data.to_le_bytes()[0];
        // Linux also writes to this port as a short delay. A repeated value is not a mark.
        if self.last.replace(code) != Some(code) {
            self.timeline.mark(Event::PostCode(code));
        }
        ControlFlow::Continue(())
    }

    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("boot mark")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_changed_value_is_a_mark() {
        let timeline = Arc::new(Timeline::default());
        let mut port = PostCode::new(timeline.clone());
        assert_eq!(port.read(0, 1).continue_value(), Some(u64::MAX));
        for code in [1, 1, 2, 0x1_01, 1] {
            assert!(port.write(0, 1, code).is_continue());
        }
        let events: Vec<_> = timeline.marks().into_iter().map(|mark| mark.event).collect();
        assert_eq!(events, [1, 2, 1].map(Event::PostCode));
        assert_eq!(port.read(0, 1).continue_value(), Some(1));
    }
}
