//! The device table in guest RAM, which lists the configured devices for the driver.
//!
//! The layout is that of C's `{ u16 count; u64 addresses[10]; }` at [`abi::DEVICE_TABLE`]. An address is stored
//! before the count that covers it. The guest can write to the table, so each value is checked.

use crate::{Memory, abi};

/// GPA of the high byte of the count.
const COUNT_HIGH: u64 = abi::DEVICE_TABLE + 1;
/// GPA of the first entry.
const ENTRIES: u64 = abi::DEVICE_TABLE + abi::TABLE_ADDRESSES;
// One byte store publishes an entry, because the high byte of the count is always zero.
const _: () = assert!(abi::TABLE_LEN <= u8::MAX as u16);

/// The count of the table, which leaves no room for an entry or is above the capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadCount(pub(crate) u16);

/// Returns the number of entries.
fn count(memory: &impl Memory) -> Result<u16, BadCount> {
    let count = u16::from_le_bytes([memory.load_u8(abi::DEVICE_TABLE), memory.load_u8(COUNT_HIGH)]);
    if count <= abi::TABLE_LEN { Ok(count) } else { Err(BadCount(count)) }
}

/// Returns the GPA of byte `byte` of entry `index`.
fn place(index: u16, byte: u64) -> u64 {
    ENTRIES.saturating_add(u64::from(index).saturating_mul(8)).saturating_add(byte)
}

/// Adds `address` at the end unless the table holds it already.
pub(crate) fn enter(memory: &impl Memory, address: u64) -> Result<(), BadCount> {
    let count = count(memory)?;
    if holds_among(memory, count, address) {
        return Ok(());
    }
    if count == abi::TABLE_LEN {
        return Err(BadCount(count));
    }
    for (offset, byte) in (0..).zip(address.to_le_bytes()) {
        memory.store_u8(place(count, offset), byte);
    }
    let [low, _] = count.saturating_add(1).to_le_bytes();
    memory.store_u8(abi::DEVICE_TABLE, low);
    Ok(())
}

/// Returns true if the table holds `address`.
pub(crate) fn holds(memory: &impl Memory, address: u64) -> bool {
    count(memory).is_ok_and(|count| holds_among(memory, count, address))
}

fn holds_among(memory: &impl Memory, count: u16, address: u64) -> bool {
    (0..count).any(|index| {
        (0..).zip(address.to_le_bytes()).all(|(offset, byte)| memory.load_u8(place(index, offset)) == byte)
    })
}
