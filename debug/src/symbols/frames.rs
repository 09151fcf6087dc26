//! Call frame information (DWARF 5, section 6.4; System V ABI, "Exception Frames"): it finds the caller of a function
//! without a frame pointer.

use super::lines::contents;
use gimli::{
    BaseAddresses, CfaRule, DebugFrame, EhFrame, EndianArcSlice, Register, RegisterRule, RunTimeEndian,
    UnwindContext, UnwindSection, UnwindTableRow,
};
use object::{Object, ObjectSection};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

type Reader = EndianArcSlice<RunTimeEndian>;

/// The registers of a function that calls another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The address of the instruction; of a caller the address to which the call returns.
    pub(crate) rip: u64,
    pub(crate) rsp: u64,
    pub(crate) rbp: u64,
    pub(crate) rbx: u64,
    /// The width of a word on the stack, in bytes: 4 or 8.
    pub(crate) width: u64,
    /// `rip` is the address to which a call returns. Its instruction is the one before.
    pub(crate) returns: bool,
}

/// The call frame information of a file.
pub(crate) struct CallFrames {
    eh_frame: Option<EhFrame<Reader>>,
    debug_frame: Option<DebugFrame<Reader>>,
    bases: BaseAddresses,
    /// The rules that were looked up, by address and width. A search reads the section from its start.
    known: RefCell<HashMap<(u64, u64), Option<Rule>>>,
}

/// The most rules that are kept.
const MAX_KNOWN: usize = 1 << 16;

/// The rule for the frame of an address.
#[derive(Clone, Copy)]
struct Rule {
    /// The register from which the frame is found, in the order of [`numbers`], and the distance.
    base: usize,
    distance: i64,
    /// The distances of the saved registers from the frame.
    rip: i64,
    rbp: Saved,
    rbx: Saved,
}

/// The place of a register of the caller.
#[derive(Clone, Copy)]
enum Saved {
    /// At this distance from the frame.
    At(i64),
    /// In the register itself.
    Same,
    Lost,
}

impl CallFrames {
    /// `None` if the file has none.
    pub(super) fn of<'data>(file: &impl Object<'data>) -> Option<Self> {
        let endian = if file.is_little_endian() { RunTimeEndian::Little } else { RunTimeEndian::Big };
        let address_size = if file.is_64() { 8 } else { 4 };
        let bytes = |name| Some(contents(file, name)).filter(|bytes| !bytes.is_empty());
        let reader = |bytes: &[u8]| Reader::new(Arc::from(bytes), endian);
        let address = |name| file.section_by_name(name).map(|section| section.address());
        let mut bases = BaseAddresses::default();
        if let Some(at) = address(".text") {
            bases = bases.set_text(at);
        }
        if let Some(at) = address(".got") {
            bases = bases.set_got(at);
        }
        if let Some(at) = address(".eh_frame") {
            bases = bases.set_eh_frame(at);
        }
        let eh_frame = bytes(".eh_frame").map(|bytes| {
            let mut section: EhFrame<Reader> = reader(&bytes).into();
            section.set_address_size(address_size);
            section
        });
        let debug_frame = bytes(".debug_frame").map(|bytes| {
            let mut section: DebugFrame<Reader> = reader(&bytes).into();
            section.set_address_size(address_size);
            section
        });
        (eh_frame.is_some() || debug_frame.is_some()).then(|| Self {
            eh_frame,
            debug_frame,
            bases,
            known: RefCell::default(),
        })
    }

    /// The caller of the function at `at`. `read` gives the word at an address of the stack.
    pub(super) fn caller(&self, at: &Caller, read: impl Fn(u64) -> Option<u64>) -> Option<Caller> {
        let address = if at.returns { at.rip.checked_sub(1)? } else { at.rip };
        let known = self.known.borrow().get(&(address, at.width)).copied();
        let rule = known.unwrap_or_else(|| self.find(address, at.width))?;
        rule.caller(at, read)
    }

    /// Finds the rule for an address, and keeps it.
    fn find(&self, address: u64, width: u64) -> Option<Rule> {
        let by_eh = self.eh_frame.as_ref().and_then(|section| rule(section, &self.bases, address, width));
        let rule = by_eh.or_else(|| {
            self.debug_frame.as_ref().and_then(|section| rule(section, &self.bases, address, width))
        });
        let mut known = self.known.borrow_mut();
        if known.len() < MAX_KNOWN {
            known.insert((address, width), rule);
        }
        rule
    }
}

/// The numbers of RBX, RBP and RSP in DWARF: System V ABI for x86-64, figure 3.36, and for i386, figure 2.14.
fn numbers(width: u64) -> [Register; 3] {
    match width {
        8 => [gimli::X86_64::RBX, gimli::X86_64::RBP, gimli::X86_64::RSP],
        _ => [gimli::X86::EBX, gimli::X86::EBP, gimli::X86::ESP],
    }
}

fn rule<S: UnwindSection<Reader>>(
    section: &S,
    bases: &BaseAddresses,
    address: u64,
    width: u64,
) -> Option<Rule> {
    let mut context = UnwindContext::new();
    let row: &UnwindTableRow<_> =
        section.unwind_info_for_address(bases, &mut context, address, S::cie_from_offset).ok()?;
    let registers = numbers(width);
    let [rbx, rbp, _] = registers;
    let CfaRule::RegisterAndOffset { register, offset: distance } = *row.cfa() else { return None };
    let base = registers.iter().position(|known| *known == register)?;
    let saved = |register| match row.register(register) {
        RegisterRule::Offset(offset) => Saved::At(offset),
        RegisterRule::Undefined | RegisterRule::SameValue => Saved::Same,
        _ => Saved::Lost,
    };
    let RegisterRule::Offset(rip) = row.register(if width == 8 { gimli::X86_64::RA } else { gimli::X86::RA })
    else {
        return None;
    };
    Some(Rule { base, distance, rip, rbp: saved(rbp), rbx: saved(rbx) })
}

impl Rule {
    /// The caller of the function at `at`.
    fn caller(&self, at: &Caller, read: impl Fn(u64) -> Option<u64>) -> Option<Caller> {
        let base = *[at.rbx, at.rbp, at.rsp].get(self.base)?;
        let frame = base.checked_add_signed(self.distance)?;
        let word = |distance| read(frame.checked_add_signed(distance)?);
        let saved = |saved, now| match saved {
            Saved::At(distance) => word(distance),
            Saved::Same => Some(now),
            Saved::Lost => None,
        };
        Some(Caller {
            rip: word(self.rip)?,
            rsp: frame,
            rbp: saved(self.rbp, at.rbp).unwrap_or(0),
            rbx: saved(self.rbx, at.rbx).unwrap_or(0),
            width: at.width,
            returns: true,
        })
    }
}
