//! A record as its bytes.

use super::{RECORD, Record, half, word};
use vmm::exit::Reason;

/// The reason code of `Reason::Other`, whose number is in the place field.
pub(super) const OTHER: u8 = Reason::NAMED.len() as u8;
const _: () = assert!(Reason::NAMED.len() <= u8::MAX as usize);

// The flags of a record.
const NEXT_ELEMENT: u8 = 1;
const RIP_KNOWN: u8 = 2;
const VALUE_KNOWN: u8 = 4;
const FAULT: u8 = 8;
const FLAGS: u8 = NEXT_ELEMENT | RIP_KNOWN | VALUE_KNOWN | FAULT;

impl Record {
    pub(super) fn write(&self, to: &mut Vec<u8>) {
        let (code, place) = match self.reason {
            Reason::Other(number) => (OTHER, Some(number.into())),
            reason => (reason.code(), self.place),
        };
        for word in [self.when, place.unwrap_or(0), self.value.unwrap_or(0), self.rip.unwrap_or(0)] {
            to.extend(word.to_le_bytes());
        }
        to.extend(self.in_kvm.to_le_bytes());
        to.extend(self.in_vmm.to_le_bytes());
        to.extend(self.vcpu.to_le_bytes());
        let flags = [
            (self.next_element, NEXT_ELEMENT),
            (self.rip.is_some(), RIP_KNOWN),
            (self.value.is_some(), VALUE_KNOWN),
            (self.fault, FAULT),
        ];
        let flags = flags.iter().filter(|(set, _)| *set).fold(0, |flags, (_, flag)| flags | flag);
        to.extend([code, self.width, flags, 0, 0, 0]);
    }

    /// Reads a record. The error names the wrong value.
    pub(super) fn read(bytes: &[u8; RECORD], vcpus: u32) -> Result<Self, String> {
        let [.., code, width, flags, zero0, zero1, zero2] = *bytes;
        let (when, place, value, rip) = (word(bytes, 0), word(bytes, 8), word(bytes, 16), word(bytes, 24));
        let reason = match Reason::NAMED.get(usize::from(code)) {
            Some(reason) => *reason,
            None if code == OTHER => u32::try_from(place)
                .map(Reason::Other)
                .map_err(|_| format!("the exit number {place:#x}, which is above 32 bits"))?,
            None => return Err(format!("the reason {code}, not 0 to {OTHER}")),
        };
        if flags & !FLAGS != 0 {
            return Err(format!("the unknown flags {:#x}", flags & !FLAGS));
        }
        if [zero0, zero1, zero2] != [0; 3] {
            return Err("reserved bytes that are not 0".into());
        }
        let vcpu = half(bytes, 40);
        if u32::from(vcpu) >= vcpus {
            return Err(format!("the vCPU {vcpu}, but there are {vcpus}"));
        }
        let [in_kvm, in_vmm] = [word(bytes, 32) as u32, (word(bytes, 32) >> 32) as u32];
        Ok(Self {
            when,
            place: reason.has_place().then_some(place),
            value: (flags & VALUE_KNOWN != 0).then_some(value),
            rip: (flags & RIP_KNOWN != 0).then_some(rip),
            in_kvm,
            in_vmm,
            vcpu,
            reason,
            width,
            next_element: flags & NEXT_ELEMENT != 0,
            fault: flags & FAULT != 0,
        })
    }
}
