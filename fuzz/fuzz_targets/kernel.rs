//! Fuzzes the Linux loader with any file: opens it, loads it, and writes its boot parameters.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::OnceLock;
use vmm::boot::{Kernel, is_kernel};
use vmm::internals::{pc, write_boot_params};
use vmm::memory::GuestMemory;

/// The size of RAM: 16 MiB, so that some kernels fit and some do not.
const RAM: u64 = 16 << 20;

fn path() -> &'static PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| std::env::temp_dir().join(format!("vmm-fuzz-kernel-{}", std::process::id())))
}

fuzz_target!(|file: &[u8]| {
    std::fs::write(path(), file).expect("a temporary file");
    let _ = is_kernel(path());
    let Ok(mut kernel) = Kernel::open(path()) else { return };
    let memory = GuestMemory::new(&pc::ram(RAM)).expect("16 MiB");
    let Ok(loaded) = kernel.load(&memory, RAM) else { return };
    assert!(loaded.end <= RAM && loaded.entry.0 >= pc::HIGH_RAM);
    let _ = write_boot_params(&kernel, loaded, &memory, RAM, Some(path()), "a command line");
});
