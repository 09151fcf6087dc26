//! Fuzzes the software processor: guests in all modes, with broken tables and any code.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_fuzz::{Script, processor, twice};

fuzz_target!(|input: &[u8]| twice::check(&processor::build(&mut Script::new(input))));
