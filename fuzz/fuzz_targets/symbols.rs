//! Fuzzes symbol files: ELF files with DWARF information and call frame information, and the text of a `System.map`. Lookups
//! and backtraces end, and an address has a name only in the range of a function.
#![no_main]

use debug::{Guest, MAX_FRAMES, Registers, Stack, Symbols, attribute, backtrace};
use libfuzzer_sys::fuzz_target;
use vmm::exit::Reason;
use vmm::machine::Processor;
use vmm_fuzz::Script;

fuzz_target!(|input: &[u8]| {
    let mut script = Script::new(input);
    let at = script.pick(&[0x1000, 0x40_1000, 0xffff_ffff_8100_0000]);
    let stack: Vec<u8> = (0..script.below(256)).map(|_| script.below(256) as u8).collect();
    let may_move = script.one_in(2);
    let Ok(mut symbols) = Symbols::parse("file", script.rest()) else { return };
    let guest = Guest { bases: &[0x1000], memory: 0x100_0000, may_move };
    symbols.find(&guest, |address, bytes| {
        bytes.fill(address as u8);
        address < 0x100_0000
    });
    let exits: Vec<_> = (0..16).map(|step: u64| (Reason::NAMED[step as usize % 8], at + step)).collect();
    assert_eq!(attribute(&symbols, Processor::Kvm, &exits).len(), exits.len());
    for address in (0..64).map(|step: u64| at + step * 16) {
        let _ = symbols.place(address).map(|place| place.to_string());
        let registers = Registers { rip: address, rsp: 0x8000, rbp: 0x8010, rbx: 0x8020, width: 8 };
        let frames = backtrace(&registers, Stack { start: 0x8000, bytes: &stack }, &symbols);
        assert!(frames.len() <= MAX_FRAMES);
    }
});
