//! Fuzzes the ELF loader with executables of any number of segments and with any file, and the loading of the image into
//! memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::boot::Image;
use vmm::memory::{Gpa, GuestMemory};
use vmm_fuzz::{Script, elf};

fuzz_target!(|input: &[u8]| {
    let mut file = input.to_vec();
    if !input.starts_with(b"\x7fELF") {
        let mut script = Script::new(input);
        file = elf::build(&mut script, 0x1000);
        script.damage(&mut file);
    }
    let Ok(image) = Image::elf(file) else { return };
    assert!(
        image
            .segments()
            .iter()
            .any(|segment| { (segment.start.0..=segment.end()).contains(&image.entry().0) })
    );
    let _ = (image.end(), image.ranges(), image.covers(0x400, 0x408), image.overlaps(0, u64::MAX));
    let memory = GuestMemory::new(&[(Gpa(0), 0x1_0000)]).expect("64 KiB");
    let _ = image.load(&memory, 0x1_0000);
});
