//! The format of pprof: the message `Profile` of `proto/profile.proto`, without compression. `go tool pprof` reads it.

use super::{Samples, StackFrame};
use std::collections::HashMap;

/// The wire types of protocol buffers: a number of variable length, and bytes with their length.
const VARINT: u64 = 0;
const BYTES: u64 = 2;

/// A message that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Writes a number. A field that is 0 is absent.
    fn number(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.varint(field << 3 | VARINT);
            self.varint(value);
        }
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, build: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        build(&mut inner);
        self.bytes(field, &inner.0);
    }

    /// Writes numbers in one field.
    fn packed(&mut self, field: u64, values: impl Iterator<Item = u64>) {
        let mut inner = Self::default();
        values.for_each(|value| inner.varint(value));
        self.bytes(field, &inner.0);
    }
}

/// The table of texts. The first one is empty.
struct Texts {
    texts: Vec<String>,
    known: HashMap<String, u64>,
}

impl Texts {
    fn index(&mut self, text: &str) -> u64 {
        if let Some(index) = self.known.get(text) {
            return *index;
        }
        let index = self.texts.len() as u64;
        self.texts.push(text.into());
        self.known.insert(text.into(), index);
        index
    }
}

/// The file.
pub(super) fn profile(samples: &Samples) -> Vec<u8> {
    let mut file = Message::default();
    let mut texts = Texts { texts: Vec::new(), known: HashMap::new() };
    texts.index("");
    let units = [(samples.unit(), "count"), ("time", "nanoseconds")];
    let period = samples.period();
    let units = if period > 0 { &units[..] } else { units.get(..1).unwrap_or_default() };
    for (name, unit) in units {
        let (name, unit) = (texts.index(name), texts.index(unit));
        file.message(1, |kind| {
            kind.number(1, name);
            kind.number(2, unit);
        });
    }
    for (stack, count) in samples.sorted() {
        file.message(2, |sample| {
            // The innermost frame is first. The number of a location is its index, from 1.
            sample.packed(1, stack.iter().rev().map(|frame| u64::from(*frame).saturating_add(1)));
            let values = [count, count.saturating_mul(period)];
            sample.packed(2, values.into_iter().take(units.len()));
        });
    }
    let mut functions: HashMap<(&str, &str), u64> = HashMap::new();
    let mut described = Message::default();
    for (id, frame) in (1..).zip(&samples.frames) {
        let StackFrame { name, file: source, line, .. } = frame;
        let next = functions.len().saturating_add(1) as u64;
        let function = *functions.entry((name, source)).or_insert(next);
        if function == next {
            let (name, source) = (texts.index(name), texts.index(source));
            described.message(5, |function| {
                [(1, next), (2, name), (3, name), (4, source)]
                    .into_iter()
                    .for_each(|(field, value)| function.number(field, value));
            });
        }
        file.message(4, |location| {
            location.number(1, id);
            location.message(4, |at| {
                at.number(1, function);
                at.number(2, line.unwrap_or(0).into());
            });
        });
    }
    file.0.append(&mut described.0);
    if period > 0 {
        let (name, unit) = (texts.index("time"), texts.index("nanoseconds"));
        file.message(11, |kind| {
            kind.number(1, name);
            kind.number(2, unit);
        });
        file.number(12, period);
    }
    texts.texts.iter().for_each(|text| file.bytes(6, text.as_bytes()));
    file.0
}
