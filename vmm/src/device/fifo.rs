//! A first-in, first-out queue behind a port or an MSR: reads return the values that were written, in order. Each
//! access width has its own queue.

use crate::device::bus::{Device, DeviceName};
use crate::exit::Stop;
use std::collections::VecDeque;
use std::ops::ControlFlow;

/// The capacity of each queue, in elements. A write to a full queue is lost.
pub const CAPACITY: usize = 64 << 10;

/// Four queues: for accesses of 1, 2, 4 and 8 bytes.
#[derive(Debug, Default)]
pub struct Fifo {
    queues: [VecDeque<u64>; 4],
}

impl Fifo {
    fn queue(&mut self, size: u8) -> Option<&mut VecDeque<u64>> {
        let index = match size {
            1 => 0,
            2 => 1,
            4 => 2,
            8 => 3,
            _ => return None,
        };
        self.queues.get_mut(index)
    }
}

impl Device for Fifo {
    /// Removes and returns the oldest element of that width. An empty queue reads as all ones.
    fn read(&mut self, _: u64, size: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(self.queue(size).and_then(VecDeque::pop_front).unwrap_or(u64::MAX))
    }

    fn write(&mut self, _: u64, size: u8, data: u64) -> ControlFlow<Stop> {
        if let Some(queue) = self.queue(size).filter(|queue| queue.len() < CAPACITY) {
            queue.push_back(data);
        }
        ControlFlow::Continue(())
    }

    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("FIFO")
    }

    fn reset(&mut self) {
        self.queues.iter_mut().for_each(VecDeque::clear);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fifo: &mut Fifo, size: u8) -> u64 {
        fifo.read(0, size).continue_value().unwrap()
    }

    #[test]
    fn each_width_has_its_own_queue() {
        let mut fifo = Fifo::default();
        for (size, data) in [(1, 0x11), (2, 0x2222), (1, 0x12), (4, 0x4444_4444), (8, 1 << 63)] {
            assert!(fifo.write(0, size, data).is_continue());
        }
        let seen = [1, 1, 1, 2, 4, 8, 3].map(|size| read(&mut fifo, size));
        assert_eq!(seen, [0x11, 0x12, u64::MAX, 0x2222, 0x4444_4444, 1 << 63, u64::MAX]);
    }

    #[test]
    fn writes_to_a_full_queue_are_lost() {
        let mut fifo = Fifo::default();
        for data in 0..=CAPACITY as u64 {
            assert!(fifo.write(0, 1, data).is_continue());
        }
        let last = (0..CAPACITY).map(|_| read(&mut fifo, 1)).last();
        assert_eq!((last, read(&mut fifo, 1)), (Some(CAPACITY as u64 - 1), u64::MAX));
    }
}
