//! Fuzzes the Linux loader with kernels and with any file: opens it, loads it, and writes its boot parameters.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use vmm::boot::{Kernel, is_kernel};
use vmm::internals::{pc, write_boot_params};
use vmm::memory::GuestMemory;
use vmm::x86::Mode;
use vmm_fuzz::{ScratchFile, Script, elf, kernel};

/// The size of RAM: 16 MiB, so that some kernels fit and some do not.
const RAM: u64 = 16 << 20;

thread_local! {
    static FILE: RefCell<ScratchFile> = RefCell::default();
}

/// Builds a file. The first byte of the input says of which kind.
fn build(input: &[u8]) -> Vec<u8> {
    let mut script = Script::new(input);
    let mut file = match script.below(4) {
        0 => return script.rest().to_vec(),
        1 => elf::build(&mut script, pc::HIGH_RAM),
        _ => kernel::bzimage(&mut script),
    };
    script.damage(&mut file);
    file
}

fuzz_target!(|input: &[u8]| {
    let path = FILE.with_borrow_mut(|file| {
        file.set(&build(input));
        file.path()
    });
    let _ = is_kernel(&path);
    let Ok(mut kernel) = Kernel::open(&path) else { return };
    let memory = GuestMemory::new(&pc::ram(RAM)).expect("16 MiB");
    let Ok(loaded) = kernel.load(&memory, RAM) else { return };
    assert!(loaded.end <= RAM && loaded.entry.0 >= pc::HIGH_RAM);
    assert!([Mode::Long, Mode::Protected].contains(&loaded.mode));
    let _ = write_boot_params(&kernel, loaded, &memory, RAM, &[path.clone(), path], "a command line");
});
