//! The block device (virtio 1.2, section 5.2): a disk with 512-byte sectors over a [`Disk`] image.
//!
//! Data goes directly between the image and the guest's buffers, with one system call for each 256 KiB. The driver may
//! divide a request into buffers in any way: the header is the first 16 bytes that the device reads, and the status is
//! the last byte that the device writes.

use crate::device::virtio::Backend;
use crate::device::virtio::disk::{Disk, Failure};
use crate::device::virtio::queue::{Answer, Chain, QueueError, Queues};
use crate::exit::Stop;
use crate::memory::{GuestMemory, Span};
use virtio_bindings::{virtio_blk, virtio_ids};

/// The maximum size of the queue, in entries.
pub const QUEUE_SIZE: u16 = 256;
/// The maximum number of data buffers of a request. The header and the status take one entry each.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The block size that the driver should use, in bytes.
const BLK_SIZE: u32 = 512;

/// VIRTIO_BLK_F_FLUSH: the driver may request a flush of earlier writes to the storage.
const FLUSH: u64 = 1 << virtio_blk::VIRTIO_BLK_F_FLUSH;
const FEATURES: u64 = FLUSH | 1 << virtio_blk::VIRTIO_BLK_F_SEG_MAX | 1 << virtio_blk::VIRTIO_BLK_F_BLK_SIZE;
const READ_ONLY: u64 = 1 << virtio_blk::VIRTIO_BLK_F_RO;

/// The status byte of a request: success.
const OK: u8 = virtio_blk::VIRTIO_BLK_S_OK as u8;
/// The status byte of a request: an error.
const IOERR: u8 = virtio_blk::VIRTIO_BLK_S_IOERR as u8;
/// The status byte of a request: an unsupported request type.
const UNSUPP: u8 = virtio_blk::VIRTIO_BLK_S_UNSUPP as u8;

/// The back end of a disk.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    /// Set if the driver cannot request flushes, so that each write must be flushed at once (section 5.2.6.2).
    writes_through: bool,
}

impl Block {
    /// Creates a disk with the image `disk`.
    pub fn new(disk: Disk) -> Self {
        Self { disk, writes_through: false }
    }

    /// Performs a request and writes its status byte. If the run must end, leaves the request incomplete.
    fn request(&mut self, memory: &GuestMemory, chain: &mut Chain) -> Result<Answer, QueueError> {
        let status = chain.take_last_byte().ok_or(QueueError::Chain("a request has no status byte"))?;
        let mut header = [0; 16];
        if chain.read(memory, &mut header)? != header.len() {
            return Err(QueueError::Chain("a request has no complete header"));
        }
        let (code, written) = match self.perform(memory, &header, chain) {
            Ok(written) => (OK, written),
            Err(Failure::CutOff) => return Ok(Answer::Later),
            Err(Failure::Unsupported) => (UNSUPP, 0),
            Err(_) => (IOERR, 0),
        };
        memory
            .write(status, &[code])
            .map_err(|_| QueueError::Chain("the status byte of a request is not in guest memory"))?;
        Ok(Answer::Done(u32::try_from(written).unwrap_or(u32::MAX).saturating_add(1)))
    }

    /// Performs a request. Returns the number of data bytes that were written into its buffers.
    fn perform(&mut self, memory: &GuestMemory, header: &[u8; 16], chain: &Chain) -> Result<u64, Failure> {
        // struct virtio_blk_req: u32 type, u32 reserved, u64 sector.
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = *header;
        let sector = u64::from_le_bytes(sector);
        let must_end = || chain.must_give_up();
        let done = match u32::from_le_bytes([t0, t1, t2, t3]) {
            virtio_blk::VIRTIO_BLK_T_IN => self.disk.read(memory, sector, chain.writable(), &must_end),
            virtio_blk::VIRTIO_BLK_T_OUT => self.write(memory, sector, chain.readable(), &must_end),
            virtio_blk::VIRTIO_BLK_T_FLUSH => self.disk.flush(&must_end).map(|()| 0),
            virtio_blk::VIRTIO_BLK_T_GET_ID => self.identify(memory, chain),
            _ => Err(Failure::Unsupported),
        };
        done.inspect_err(|failure| self.disk.report(failure))
    }

    /// Writes to the disk, and flushes if the driver does not. Returns the number of bytes that went into the driver's
    /// buffers: none.
    fn write(
        &mut self,
        memory: &GuestMemory,
        sector: u64,
        spans: &[Span],
        must_end: &dyn Fn() -> bool,
    ) -> Result<u64, Failure> {
        self.disk.write(memory, sector, spans, must_end)?;
        if self.writes_through {
            self.disk.flush(must_end)?;
        }
        Ok(0)
    }

    /// Writes the serial number of the disk, truncated to the size of the buffers. Returns the number of bytes.
    fn identify(&self, memory: &GuestMemory, chain: &Chain) -> Result<u64, Failure> {
        let serial = self.disk.serial();
        let mut written: usize = 0;
        for span in chain.writable() {
            let rest = serial.get(written..).unwrap_or_default();
            let part = rest.get(..span.len as usize).unwrap_or(rest);
            memory.write(span.start, part).map_err(|_| Failure::NotMemory)?;
            written = written.saturating_add(part.len());
        }
        Ok(written as u64)
    }
}

impl Backend for Block {
    fn id(&self) -> u32 {
        virtio_ids::VIRTIO_ID_BLOCK
    }

    fn name(&self) -> &'static str {
        "virtio-blk"
    }

    fn features(&self) -> u64 {
        if self.disk.is_read_only() { FEATURES | READ_ONLY } else { FEATURES }
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    /// The layout is `u64 capacity | u32 size_max | u32 seg_max | geometry, 4 bytes | u32 blk_size` (section 5.2.4).
    fn config(&self) -> Vec<u8> {
        let mut config = self.disk.sectors().to_le_bytes().to_vec();
        for field in [0, SEG_MAX, 0, BLK_SIZE] {
            config.extend(field.to_le_bytes());
        }
        config
    }

    fn start(&mut self, features: u64) {
        self.writes_through = features & FLUSH == 0;
    }

    fn notified(&mut self, index: usize, queues: &mut Queues) -> Result<(), QueueError> {
        let Some(queue) = queues.get(index) else { return Ok(()) };
        queue.serve(|memory, chain| self.request(memory, chain))
    }

    fn close(&mut self, must_give_up: &dyn Fn() -> bool) -> Result<(), Stop> {
        self.disk.close(must_give_up).map_err(Stop::host)
    }
}

#[cfg(test)]
mod tests;
