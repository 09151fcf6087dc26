//! The memory that an instruction has written.

use super::Traced;
use std::fmt::Write as _;
use vmm::x86::Probe;

/// The longest value that is shown, in bytes.
const MAX_VALUE: u64 = 16;
/// The direction flag.
const DIRECTION: u64 = 1 << 10;

/// The stores of an instruction that is complete, as a list of `[address]=value`. A device is not memory: its exit is shown.
pub fn stores(traced: &Traced, after: &Probe) -> String {
    let mut text = String::new();
    for store in &traced.next.stores {
        let (linear, len) = (store.linear, store.len);
        let count = if traced.next.repeats { traced.iterations } else { 1 };
        // A store that may have been left out, such as that of a comparison, is not listed.
        if len == 0 || count == 0 || store.is_conditional && !traced.next.repeats {
            continue;
        }
        let mut bytes = [0; MAX_VALUE as usize];
        let shown = usize::try_from(len.min(MAX_VALUE)).unwrap_or_default();
        let Some(value) = bytes.get_mut(..shown) else { continue };
        if !after.read_range(linear, value) {
            continue;
        }
        // Writing to a String cannot fail.
        let _ = match (count, len) {
            (1, ..=MAX_VALUE) => {
                let value = value.iter().rev().fold(0, |value, byte| value << 8 | u128::from(*byte));
                write!(text, " [{linear:#x}]={value:#x}")
            }
            (1, _) => write!(text, " [{linear:#x}]: {len} bytes"),
            _ => {
                // DF is set: each iteration is below the last one.
                let more = len.wrapping_mul(count.wrapping_sub(1));
                let is_down = traced.regs.rflags & DIRECTION != 0;
                let first = if is_down { linear.wrapping_sub(more) } else { linear };
                write!(text, " [{first:#x}]: {} bytes", len.wrapping_mul(count))
            }
        };
    }
    text
}
