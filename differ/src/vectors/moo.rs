//! The file format MOO of published single-instruction tests: a tree of chunks, each a tag of 4 bytes, the length of its
//! data in 32 bits, and its data. All numbers are little-endian.

/// The places of registers among those of a test: AX, BX, CX, DX, CS, SS, DS, ES, SP, BP, SI, DI, IP, FLAGS.
pub const AX: usize = 0;
pub const BX: usize = 1;
pub const CX: usize = 2;
pub const DX: usize = 3;
pub const CS: usize = 4;
pub const SS: usize = 5;
pub const DS: usize = 6;
pub const ES: usize = 7;
pub const SP: usize = 8;
pub const BP: usize = 9;
pub const SI: usize = 10;
pub const DI: usize = 11;
pub const IP: usize = 12;
pub const FLAGS: usize = 13;

/// A test of one instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Test {
    /// The disassembled instruction.
    pub name: String,
    /// The instruction, and the HLT that follows it.
    pub code: Vec<u8>,
    pub before: State,
    /// The registers and bytes that the test changes.
    pub after: State,
    pub exception: Option<Exception>,
}

/// Registers and bytes of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub registers: [Option<u16>; 14],
    /// Addresses and values.
    pub memory: Vec<(u32, u8)>,
}

/// An exception that the instruction raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    pub vector: u8,
    /// The address of the pushed FLAGS.
    pub flags: u32,
}

/// Unread bytes.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    /// A length in 32 bits.
    fn len(&mut self) -> Option<usize> {
        usize::try_from(self.u32()?).ok()
    }

    /// Bytes after their number.
    fn counted(&mut self) -> Option<&'a [u8]> {
        let len = self.len()?;
        self.take(len)
    }

    /// A chunk: its tag and its data.
    fn chunk(&mut self) -> Option<(&'a [u8], Bytes<'a>)> {
        let tag = self.take(4)?;
        Some((tag, Bytes(self.counted()?)))
    }
}

/// Reads a file. `None` if it is not in the format.
pub fn read(file: &[u8]) -> Option<Vec<Test>> {
    let mut rest = Bytes(file);
    let (tag, _) = rest.chunk()?;
    if tag != b"MOO " {
        return None;
    }
    let mut tests = Vec::new();
    while !rest.0.is_empty() {
        let (tag, data) = rest.chunk()?;
        if tag == b"TEST" {
            tests.push(test(data)?);
        }
    }
    Some(tests)
}

fn test(mut data: Bytes) -> Option<Test> {
    let mut test = Test::default();
    data.u32()?;
    while !data.0.is_empty() {
        let (tag, mut data) = data.chunk()?;
        match tag {
            b"NAME" => test.name = String::from_utf8_lossy(data.counted()?).into_owned(),
            b"BYTS" => test.code = data.counted()?.to_vec(),
            b"INIT" => test.before = state(data)?,
            b"FINA" => test.after = state(data)?,
            b"EXCP" => test.exception = Some(Exception { vector: data.u8()?, flags: data.u32()? }),
            // Bus cycles, and the hash of the test.
            _ => {}
        }
    }
    Some(test)
}

fn state(mut data: Bytes) -> Option<State> {
    let mut state = State::default();
    while !data.0.is_empty() {
        let (tag, mut data) = data.chunk()?;
        match tag {
            b"REGS" => {
                let present = data.u16()?;
                for (number, register) in state.registers.iter_mut().enumerate() {
                    if present >> number & 1 != 0 {
                        *register = Some(data.u16()?);
                    }
                }
            }
            b"RAM " => {
                for _ in 0..data.u32()? {
                    state.memory.push((data.u32()?, data.u8()?));
                }
            }
            _ => {}
        }
    }
    Some(state)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
