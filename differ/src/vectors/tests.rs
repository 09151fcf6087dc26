//! Tests of the reader and the replay, with files that are made here.

use super::*;
use crate::explain::{Class, explain};
use crate::replay::{Ram, Replay};
use softcpu::Exit;

fn chunk(tag: &[u8; 4], data: &[u8]) -> Vec<u8> {
    [tag, (data.len() as u32).to_le_bytes().as_slice(), data].concat()
}

fn state_chunk(tag: &[u8; 4], registers: &[(usize, u16)], memory: &[(u32, u8)]) -> Vec<u8> {
    let present = registers.iter().fold(0u16, |bits, (number, _)| bits | 1 << number);
    let mut data = present.to_le_bytes().to_vec();
    registers.iter().for_each(|(_, value)| data.extend(value.to_le_bytes()));
    let mut bytes = (memory.len() as u32).to_le_bytes().to_vec();
    memory.iter().for_each(|(address, value)| {
        bytes.extend(address.to_le_bytes());
        bytes.push(*value);
    });
    chunk(tag, &[chunk(b"REGS", &data), chunk(b"RAM ", &bytes)].concat())
}

/// A file with one test of code at 0x20000, with the stack pointer at 0x1000.
fn file(code: &[u8], more: &[(usize, u16)], after: &[(usize, u16)], memory: &[(u32, u8)]) -> Vec<u8> {
    let before = [&[(CS, 0x2000), (SS, 0), (SP, 0x1000), (IP, 0), (FLAGS, 2)], more].concat();
    let mut before: Vec<_> =
        (0..14).map(|number| (number, before.iter().rfind(|(at, _)| *at == number))).collect();
    before.iter_mut().for_each(|(_, value)| *value = value.or(Some(&(0, 0))));
    let before: Vec<_> =
        before.iter().filter_map(|(number, value)| Some((*number, value.as_ref()?.1))).collect();
    let bytes: Vec<_> = (0x2_0000..).zip(code.iter().copied()).collect();
    let counted = |data: &[u8]| [(data.len() as u32).to_le_bytes().as_slice(), data].concat();
    let test = [
        7u32.to_le_bytes().to_vec(),
        chunk(b"NAME", &counted(b"name")),
        chunk(b"BYTS", &counted(code)),
        state_chunk(b"INIT", &before, &bytes),
        state_chunk(b"FINA", after, memory),
        chunk(b"CYCL", &[0; 9]),
    ];
    [chunk(b"MOO ", &[1, 0, 0, 0]), chunk(b"META", &[0; 3]), chunk(b"TEST", &test.concat())].concat()
}

#[test]
fn a_file_is_read() {
    let tests = read(&file(&[0x40, 0xf4], &[], &[(AX, 1), (IP, 2)], &[(5, 6)])).unwrap();
    assert_eq!(tests.len(), 1);
    let test = &tests[0];
    assert_eq!((test.name.as_str(), test.code.as_slice()), ("name", &[0x40, 0xf4][..]));
    assert_eq!((test.before.registers[CS], test.after.registers[AX]), (Some(0x2000), Some(1)));
    assert_eq!((test.after.registers[BX], test.after.memory.as_slice()), (None, &[(5, 6)][..]));
    assert_eq!(test.exception, None);
}

#[test]
fn a_damaged_file_is_refused() {
    let whole = file(&[0x40, 0xf4], &[], &[], &[]);
    assert_eq!(read(b"MOO"), None);
    assert_eq!(read(&chunk(b"TEST", &[])), None);
    for len in 12..whole.len() {
        // Only the chunks before the test are complete.
        assert!(read(&whole[..len]).is_none_or(|tests| tests.is_empty()), "{len}");
    }
}

#[test]
fn a_test_passes_if_all_is_as_it_says() {
    let ram = Ram::new();
    let mut replay = Replay::new(&ram);
    let mut outcome = |after: &[(usize, u16)], memory: &[(u32, u8)]| {
        // mov [0x10], al; hlt
        let tests = read(&file(&[0xa2, 0x10, 0, 0xf4], &[(AX, 0x1234)], after, memory)).unwrap();
        replay.run(&tests[0], u16::MAX)
    };
    assert!(outcome(&[(IP, 4)], &[(0x10, 0x34)]).is_pass());
    assert_eq!(outcome(&[(IP, 4)], &[(0x10, 0x35)]).differences.len(), 1);
    // A byte that is written but not expected, and registers.
    assert_eq!(outcome(&[(IP, 4)], &[]).differences.len(), 1);
    assert_eq!(outcome(&[(IP, 5), (FLAGS, 3)], &[(0x10, 0x34)]).differences.len(), 2);
    assert_eq!((0..64).map(|address| ram.read(address)).max(), Some(0));
}

#[test]
fn differences_are_explained_only_by_their_cause() {
    let ram = Ram::new();
    let mut replay = Replay::new(&ram);
    let mut class = |code: &[u8], after: &[(usize, u16)]| {
        let tests = read(&file(code, &[(CX, 9)], after, &[])).unwrap();
        let outcome = replay.run(&tests[0], u16::MAX);
        assert!(!outcome.is_pass());
        (outcome.end == Exit::Halted, explain(&mut replay, &tests[0], &outcome))
    };
    // lock inc ax
    assert_eq!(class(&[0xf0, 0x40, 0xf4], &[(AX, 1), (IP, 3)]).1, Some(Class::Lock));
    // shl ax, cl: OF is not defined, SF is.
    assert_eq!(class(&[0xd3, 0xe0, 0xf4], &[(IP, 3), (FLAGS, 0x846)]), (true, Some(Class::ShiftFlags)));
    assert_eq!(class(&[0xd3, 0xe0, 0xf4], &[(IP, 3), (FLAGS, 0xc6)]), (true, None));
    // A wrong result of inc ax, and a wrong one with flags that no instruction loads.
    assert_eq!(class(&[0x40, 0xf4], &[(AX, 2), (IP, 2)]), (true, None));
}
