//! Virtqueues with requests for a disk: any number of buffers, indirect tables, and chains that break the rules.
//!
//! virtio 1.2, sections 2.7 (rings) and 5.2.6 (requests).

use crate::Script;
use std::ops::Range;

/// The size of the queue in entries. Its descriptor table is at GPA 0.
pub const SIZE: u16 = 16;
/// GPA of the driver's ring.
pub const DRIVER: u64 = 0x100;
/// GPA of the device's ring, and the first address after it.
pub const DEVICE: u64 = 0x200;
pub const DEVICE_END: u64 = DEVICE + 6 + 8 * SIZE as u64;
/// The size of guest memory in bytes.
pub const RAM: usize = 0x8000;
/// The size of the disk in bytes.
pub const DISK: u64 = 0x4000;

const HEADERS: u64 = 0x400;
const TABLES: u64 = 0x800;
const DATA: u64 = 0x1000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Guest memory with a queue, and what a device may do with it.
pub struct Requests {
    /// The content of guest memory.
    pub memory: Vec<u8>,
    /// The buffers that the device may write.
    pub writable: Vec<Range<u64>>,
    /// True if the memory was changed after the chains were built, so that `writable` is not complete.
    pub is_damaged: bool,
}

/// A descriptor, without the number of the next one.
#[derive(Clone, Copy)]
struct Buffer {
    start: u64,
    len: u64,
    write: bool,
}

/// Builds a queue with up to 5 requests.
pub fn build(script: &mut Script) -> Requests {
    let mut requests = Requests { memory: vec![0; RAM], writable: Vec::new(), is_damaged: false };
    let mut free: u16 = 0;
    let mut data = DATA;
    let count = 1 + script.below(5) as u16;
    for request in 0..count {
        let header = HEADERS + 32 * u64::from(request);
        write_header(script, &mut requests.memory, header);
        let buffers = buffers(script, header, &mut data);
        put(&mut requests.memory, DRIVER + 4 + 2 * u64::from(request), &free.to_le_bytes());
        if script.one_in(5) {
            let table = TABLES + 0x180 * u64::from(request);
            let len = 16 * buffers.len() as u64;
            link(script, &mut requests, table, 0, &buffers);
            put_descriptor(&mut requests.memory, u64::from(free) * 16, (table, len, INDIRECT, 0));
            free += 1;
        } else {
            link(script, &mut requests, 0, free, &buffers);
            free += buffers.len() as u16;
        }
        free %= SIZE;
    }
    put(&mut requests.memory, DRIVER + 2, &count.to_le_bytes());
    if script.one_in(4) {
        requests.is_damaged = script.damage(&mut requests.memory);
        requests.memory.resize(RAM, 0);
    }
    requests
}

/// Writes `struct virtio_blk_req`: type, reserved, sector.
fn write_header(script: &mut Script, memory: &mut [u8], header: u64) {
    let kind: u32 = match script.below(8) {
        0 | 1 => 0,
        2 | 3 => 1,
        4 => 4,
        5 | 6 => 8,
        _ => script.any(),
    };
    // The first sectors, and those around the end of the disk.
    let near = script.below(8) + script.pick(&[0, DISK / 512 - 4]);
    let sector: u64 = if script.one_in(16) { script.any() } else { near };
    put(memory, header, &kind.to_le_bytes());
    put(memory, header + 8, &sector.to_le_bytes());
}

/// Chooses the buffers of a request: the header in 1 to 3 parts, data for one direction, and the status.
fn buffers(script: &mut Script, header: u64, data: &mut u64) -> Vec<Buffer> {
    let mut buffers = Vec::new();
    let mut left = 16;
    for _ in 0..script.below(3) {
        let len = script.below(left);
        buffers.push(Buffer { start: header + 16 - left, len, write: false });
        left -= len;
    }
    if !script.one_in(16) {
        buffers.push(Buffer { start: header + 16 - left, len: left, write: false });
    }
    let write = script.any::<u8>() & 1 == 1;
    let has_whole_sectors = script.one_in(2);
    for _ in 0..script.below(6) {
        let len = match script.below(16) {
            _ if has_whole_sectors => script.pick(&[512, 1024]),
            15 => script.any::<u32>().into(),
            choice => [512, 1024, 512, 1, 4, 8, 16, 20, 7, 0, 511, 513, 508, 2048, 512][choice as usize],
        };
        let start = if script.one_in(16) { script.any() } else { *data };
        buffers.push(Buffer { start, len, write });
        *data = DATA + (*data + len.min(0x1000) - DATA) % (RAM as u64 - DATA);
    }
    if !script.one_in(16) {
        buffers.push(Buffer { start: header + 24, len: 1, write: true });
    }
    buffers
}

/// Writes `buffers` as descriptors of `table`, from entry `first`. In some cases the chain loops or leaves the table.
fn link(script: &mut Script, requests: &mut Requests, table: u64, first: u16, buffers: &[Buffer]) {
    let wrap = |index: u16| if table == 0 { index % SIZE } else { index };
    for (index, buffer) in (first..).zip(buffers) {
        let is_last = usize::from(index - first) + 1 == buffers.len();
        let mut flags = if is_last { 0 } else { NEXT };
        flags |= if buffer.write { WRITE } else { 0 };
        let mut next = wrap(index + 1);
        if script.one_in(16) {
            // To any entry, or with any flags.
            (flags, next) = (flags | script.pick(&[NEXT, NEXT, INDIRECT, WRITE]), script.below(20) as u16);
        }
        if flags & WRITE != 0 {
            requests.writable.push(buffer.start..buffer.start.saturating_add(buffer.len));
        }
        let place = table + 16 * u64::from(wrap(index));
        put_descriptor(&mut requests.memory, place, (buffer.start, buffer.len, flags, next));
    }
}

fn put_descriptor(memory: &mut [u8], at: u64, (start, len, flags, next): (u64, u64, u16, u16)) {
    put(memory, at, &start.to_le_bytes());
    put(memory, at + 8, &(len as u32).to_le_bytes());
    put(memory, at + 12, &flags.to_le_bytes());
    put(memory, at + 14, &next.to_le_bytes());
}

fn put(memory: &mut [u8], at: u64, bytes: &[u8]) {
    if let Some(to) = memory.get_mut(at as usize..at as usize + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}
