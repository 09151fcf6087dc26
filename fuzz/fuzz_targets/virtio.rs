//! Fuzzes the virtio disk with any rings and descriptors: the input fills the beginning of guest memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use virtio_queue::{Queue, QueueT};
use vmm::device::Disk;
use vmm::internals::{Backend, Block, Interrupt, Queues, Virtqueue};
use vmm::memory::{Gpa, GuestMemory};
use vmm_sys_util::eventfd::EventFd;

/// The size of the queue. Its descriptor table is at GPA 0.
const SIZE: u16 = 16;
/// GPA of the driver's ring.
const DRIVER: u64 = 0x100;
/// GPA of the device's ring.
const DEVICE: u64 = 0x200;

fn image() -> &'static PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("vmm-fuzz-disk-{}", std::process::id()));
        std::fs::write(&path, [7; 0x4000]).expect("a temporary file");
        path
    })
}

fuzz_target!(|input: &[u8]| {
    let memory = GuestMemory::new(&[(Gpa(0), 0x8000)]).expect("32 KiB");
    let Ok(()) = memory.write(Gpa(0), input) else { return };
    let mut queue = Queue::new(SIZE).expect("16 is a valid queue size");
    queue.set_size(SIZE);
    queue.try_set_desc_table_address(Gpa(0)).expect("an aligned address");
    queue.try_set_avail_ring_address(Gpa(DRIVER)).expect("an aligned address");
    queue.try_set_used_ring_address(Gpa(DEVICE)).expect("an aligned address");
    queue.set_event_idx(input.first().is_some_and(|byte| byte & 1 == 1));
    queue.set_ready(true);
    let interrupt = Arc::new(Interrupt::new("fuzzed").expect("a descriptor"));
    let notifier = Arc::new(EventFd::new(libc::EFD_NONBLOCK).expect("a descriptor"));
    let queue = Virtqueue::new(queue, memory.clone(), interrupt, notifier);
    let mut queues = Queues::new(vec![Some(queue)]);
    let mut disk = Block::new(Disk::open(image(), false).expect("the image"));
    disk.start(input.get(1).map_or(0, |byte| u64::from(*byte) << 8));
    for _ in 0..4 {
        if disk.notified(0, &mut queues).is_err() {
            break;
        }
    }
    let _ = disk.close(&|| false);
    assert_eq!(std::fs::metadata(image()).expect("the image").len(), 0x4000, "the disk must not grow");
});
