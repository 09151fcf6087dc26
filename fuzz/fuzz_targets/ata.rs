//! Fuzzes an ATA channel: commands in and out of order, over a disk in memory and over a file; and the recognition of the
//! formats of disks. A model of the contents knows what each read must give.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use vmm::device::{Device, Disk};
use vmm::internals::{Channel, Content, ControlBlock, CopiedDisk, FileMedium, SECTOR, SharedMedium};
use vmm_fuzz::{ScratchFile, Script};

/// The sectors of each disk.
const SECTORS: u64 = 40;
const LEN: usize = SECTORS as usize * SECTOR;

thread_local! {
    static FILE: RefCell<ScratchFile> = RefCell::default();
}

/// The channel as a driver sees it, and the contents that its disks must have.
struct Bench {
    channel: Arc<Mutex<Channel>>,
    control: ControlBlock,
    media: [SharedMedium; 2],
    model: [Vec<u8>; 2],
}

impl Bench {
    fn new() -> Self {
        let contents =
            [3u8, 5].map(|step| (0..LEN).map(|at| (at / SECTOR) as u8 * step).collect::<Vec<u8>>());
        let path = FILE.with_borrow_mut(|file| {
            file.set(&contents[1]);
            file.path()
        });
        let content: Content = Arc::new(contents[0].clone().into());
        let file = FileMedium::new(Disk::open_raw(&path, false).expect("the image")).expect("memory");
        let media: [SharedMedium; 2] =
            [Arc::new(Mutex::new(CopiedDisk::new(content, SECTORS))), Arc::new(Mutex::new(file))];
        let channel = Arc::new(Mutex::new(Channel::new(media.to_vec(), None)));
        Self { control: ControlBlock(channel.clone()), channel, media, model: contents }
    }

    fn read(&mut self, offset: u64, size: u8) -> u64 {
        match self.channel.lock().expect("no panic").read(offset, size) {
            ControlFlow::Continue(value) => value,
            ControlFlow::Break(stop) => panic!("{stop}"),
        }
    }

    fn write(&mut self, offset: u64, size: u8, data: u64) {
        assert!(self.channel.lock().expect("no panic").write(offset, size, data).is_continue());
    }

    /// Resets both drives, and takes their contents for the model: wild accesses may have written.
    fn restart(&mut self) {
        for value in [4, 0] {
            assert!(self.control.write(0, 1, value).is_continue());
        }
        assert_eq!(self.read(7, 1) & 0x89, 0, "a drive is ready after a reset");
        for (medium, model) in self.media.iter().zip(&mut self.model) {
            medium.lock().expect("no panic").read(0, model).expect("the sectors are there");
        }
    }

    /// A read or a write by LBA. Compares what happens with the model.
    fn transfer(&mut self, script: &mut Script) {
        let (drive, is_write, extended) = (script.below(2) as usize, script.one_in(2), script.one_in(3));
        let lba = if script.one_in(8) { script.any::<u32>().into() } else { script.below(SECTORS + 2) };
        let lba = if extended { lba } else { lba & 0x0fff_ffff };
        let count = if script.one_in(16) { 0 } else { script.below(6) as u8 };
        let all = if extended { 0x1_0000 } else { 0x100 };
        let total = if count == 0 { all } else { u64::from(count) };
        let device = 0xe0 | (drive as u64) << 4 | if extended { 0 } else { lba >> 24 & 0xf };
        if extended {
            for (offset, value) in [(2, 0), (3, lba >> 24), (4, 0), (5, 0)] {
                self.write(offset, 1, value & 0xff);
            }
        }
        for (offset, value) in [(2, count.into()), (3, lba), (4, lba >> 8), (5, lba >> 16), (6, device)] {
            self.write(offset, 1, value & 0xff);
        }
        self.write(
            7,
            1,
            match (is_write, extended) {
                (false, false) => 0x20,
                (false, true) => 0x24,
                (true, false) => 0x30,
                (true, true) => 0x34,
            },
        );
        if lba + total > SECTORS {
            assert_eq!(self.read(7, 1) & 0x89, 1, "an access past the end fails");
            return;
        }
        let fill = script.any::<u16>();
        for sector in lba..lba + total {
            assert_eq!(self.read(7, 1) & 0x89, 8, "data is to be moved");
            let at = sector as usize * SECTOR;
            for place in (at..at + SECTOR).step_by(2) {
                let bytes = &mut self.model[drive][place..place + 2];
                if is_write {
                    bytes.copy_from_slice(&fill.to_le_bytes());
                    self.write(0, 2, fill.into());
                } else {
                    let expected = u16::from_le_bytes([bytes[0], bytes[1]]);
                    assert_eq!(self.read(0, 2) & 0xffff, u64::from(expected), "sector {sector}");
                }
            }
        }
        assert_eq!(self.read(7, 1) & 0x89, 0, "the command is done");
    }

    /// Accesses without any order.
    fn wild(&mut self, script: &mut Script) {
        for _ in 0..script.below(64) {
            let (offset, size) = (script.below(8), script.pick(&[1u8, 2, 4, 8]));
            match script.below(4) {
                0 => drop(self.read(offset, size)),
                1 => drop(self.control.read(0, size)),
                2 => assert!(self.control.write(0, size, script.any()).is_continue()),
                _ => self.write(offset, size, script.any()),
            }
        }
        self.restart();
    }
}

/// Opens any file as a disk. One that is accepted is whole sectors of the file.
fn open_any(content: &[u8]) {
    let path = FILE.with_borrow_mut(|file| {
        file.set(content);
        file.path()
    });
    if let Ok(disk) = Disk::open(&path, true) {
        assert_eq!(disk.sectors() * SECTOR as u64, content.len() as u64);
    }
}

fuzz_target!(|input: &[u8]| {
    let mut script = Script::new(input);
    if script.one_in(4) {
        return open_any(script.rest());
    }
    let mut bench = Bench::new();
    while !script.is_empty() {
        if script.one_in(3) {
            bench.wild(&mut script);
        } else {
            bench.transfer(&mut script);
        }
    }
    for (medium, model) in bench.media.iter().zip(&bench.model) {
        let mut content = vec![0; LEN];
        medium.lock().expect("no panic").read(0, &mut content).expect("the sectors are there");
        assert!(content == *model, "only the sectors of a write change");
    }
    assert_eq!(FILE.with_borrow(ScratchFile::size), LEN as u64, "the file must not grow");
});
