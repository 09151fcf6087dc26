//! Functions in order of their addresses.

/// A function, or a label in assembly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) start: u64,
    /// The address after its last byte. If the symbol has no size: the next symbol, or the end of the section.
    pub(super) end: u64,
    /// The name, as it is in the file.
    pub(super) name: String,
}

/// A symbol, before its end is known.
pub(super) struct Candidate {
    pub(super) start: u64,
    /// 0 if it is not known.
    pub(super) size: u64,
    /// The end of its section.
    pub(super) limit: u64,
    /// The better of two symbols at one address has the higher rank.
    pub(super) rank: u8,
    pub(super) name: String,
}

/// Functions, each address in at most one of them.
#[derive(Debug, Default)]
pub(super) struct Functions(Vec<Function>);

impl Functions {
    pub(super) fn new(mut candidates: Vec<Candidate>) -> Self {
        vmm::host::sort_by(&mut candidates, |left, right| {
            (left.start, right.rank, &left.name).cmp(&(right.start, left.rank, &right.name))
        });
        candidates.dedup_by_key(|candidate| candidate.start);
        let mut functions: Vec<Function> = Vec::with_capacity(candidates.len());
        let mut rest = candidates.into_iter().peekable();
        while let Some(Candidate { start, size, limit, name, .. }) = rest.next() {
            let next = rest.peek().map_or(u64::MAX, |next| next.start);
            let end = if size == 0 { limit } else { start.saturating_add(size) };
            functions.push(Function { start, end: end.min(next), name });
        }
        Self(functions)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The function that contains an address.
    pub(super) fn at(&self, address: u64) -> Option<&Function> {
        let after = self.0.partition_point(|function| function.start <= address);
        let function = self.0.get(after.checked_sub(1)?)?;
        (address < function.end).then_some(function)
    }
}

/// The name that the source code has for a symbol of Rust or C++. Other names stay as they are.
pub(super) fn demangled(name: &str) -> String {
    let printable = vmm::host::printable_text(name);
    addr2line::demangle_auto(printable.to_string().into(), None).into_owned()
}
