//! Fuzzes the loaders of multiboot, PVH and position-independent kernels, with a command line and modules: what is placed in
//! memory does not overlap, and is in RAM.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use vmm::boot::{Image, Module, Protocol, is_elf};
use vmm::internals::handed_over;
use vmm::memory::{Gpa, GuestMemory};
use vmm_fuzz::{Script, loader};

/// The size of RAM: little more than a megabyte, so that some modules fit and some do not.
const RAM: u64 = 0x14_0000;

fuzz_target!(|input: &[u8]| {
    let mut script = Script::new(input);
    let modules: Vec<Module> = (0..script.below(4))
        .map(|_| Module {
            bytes: Arc::new(vec![7; script.below(0x1_8000) as usize]),
            text: vec![b'x'; script.below(0x100) as usize],
            file: "module".into(),
        })
        .collect();
    let command_line = "x".repeat(script.pick(&[0, 5, 0x3f00]));
    let mut file = if script.one_in(16) { script.rest().to_vec() } else { loader::kernel(&mut script) };
    script.damage(&mut file);
    let protocol = Protocol::of(&file);
    let image = if is_elf(&file) { Image::elf(file) } else { Image::multiboot(file) };
    let Ok(image) = image else { return };
    assert_eq!(image.protocol(), protocol);
    let Ok(image) = image.with_boot_data(&command_line, modules.clone()) else { return };
    let Ok(image) = handed_over(image, RAM) else { return };
    let mut ranges = image.ranges();
    if protocol.is_some() {
        // The information comes last, and each module before it.
        assert!(ranges.len() > modules.len());
        let information = ranges.last().expect("a range").clone();
        assert!(information.start % 0x1000 == 0 && !information.is_empty());
    }
    ranges.sort_by_key(|range| range.start);
    ranges.retain(|range| !range.is_empty());
    assert!(ranges.iter().all(|range| range.end <= RAM));
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:x?}");
    let memory = GuestMemory::new(&[(Gpa(0), RAM)]).expect("RAM");
    image.load(&memory, RAM).expect("it fits");
});
