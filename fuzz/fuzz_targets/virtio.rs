//! Fuzzes the virtio disk with requests of any number of buffers, and with any content of the rings.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::sync::Arc;
use virtio_queue::{Queue, QueueT};
use vmm::device::Disk;
use vmm::internals::{Backend, Block, Interrupt, Queues, Virtqueue};
use vmm::memory::{Gpa, GuestMemory};
use vmm_fuzz::chains::{self, DEVICE, DEVICE_END, DISK, DRIVER, RAM, Requests, SIZE};
use vmm_fuzz::{ScratchFile, Script};
use vmm_sys_util::eventfd::EventFd;

thread_local! {
    static IMAGE: RefCell<ScratchFile> = RefCell::default();
}

/// Builds the rings, or takes all of guest memory from the input.
fn requests(script: &mut Script) -> Requests {
    if !script.one_in(8) {
        return chains::build(script);
    }
    let mut memory = script.rest().to_vec();
    memory.resize(RAM, 0);
    Requests { memory, writable: Vec::new(), is_damaged: true }
}

fn queues(memory: &GuestMemory, event_idx: bool) -> Queues {
    let mut queue = Queue::new(SIZE).expect("16 is a valid queue size");
    queue.set_size(SIZE);
    queue.try_set_desc_table_address(Gpa(0)).expect("an aligned address");
    queue.try_set_avail_ring_address(Gpa(DRIVER)).expect("an aligned address");
    queue.try_set_used_ring_address(Gpa(DEVICE)).expect("an aligned address");
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    let interrupt = Arc::new(Interrupt::new("fuzzed").expect("a descriptor"));
    let notifier = Arc::new(EventFd::new(libc::EFD_NONBLOCK).expect("a descriptor"));
    let queue = Virtqueue::new(queue, memory.clone(), interrupt, notifier).allow_indirect(true);
    Queues::new(vec![Some(queue)])
}

fuzz_target!(|input: &[u8]| {
    let mut script = Script::new(input);
    let (event_idx, features) = (script.one_in(2), u64::from(script.any::<u8>()) << 8);
    let Requests { memory: content, writable, is_damaged } = requests(&mut script);
    let memory = GuestMemory::new(&[(Gpa(0), RAM as u64)]).expect("32 KiB");
    memory.write(Gpa(0), &content).expect("it fits");
    let path = IMAGE.with_borrow_mut(|image| {
        image.set(&[7; DISK as usize]);
        image.path()
    });
    let mut queues = queues(&memory, event_idx);
    let mut disk = Block::new(Disk::open(&path, false).expect("the image"));
    disk.start(features);
    for _ in 0..4 {
        if disk.notified(0, &mut queues).is_err() {
            break;
        }
    }
    let _ = disk.close(&|| false);
    assert_eq!(IMAGE.with_borrow(ScratchFile::size), DISK, "the disk must not grow");
    let mut after = vec![0; RAM];
    assert!(memory.read(Gpa(0), &mut after));
    let may_write =
        |gpa: u64| (DEVICE..DEVICE_END).contains(&gpa) || writable.iter().any(|buffer| buffer.contains(&gpa));
    for (gpa, (before, now)) in (0..).zip(content.iter().zip(&after)) {
        assert!(is_damaged || before == now || may_write(gpa), "the device changes {gpa:#x}");
    }
});
