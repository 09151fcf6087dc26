//! The packets in the bytes from a debugger (gdb manual, appendix E.1). A packet that is damaged or too long gets no further:
//! the debugger is asked for it again.

/// The size of the longest packet.
pub(crate) const PACKET: usize = 16 << 10;
/// The most bytes of a packet that is too long, and of bytes outside of packets. Then the session ends.
const MOST: usize = 4 * PACKET;
/// The most damaged packets in a row.
const MOST_DAMAGED: u32 = 16;
/// The byte that interrupts the guest.
const INTERRUPT: u8 = 0x03;

/// The consequence of a byte.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing: a packet is not complete yet, or the byte is outside of packets.
    Nothing,
    /// These bytes are for the session: a packet, or a byte outside of packets with a meaning.
    Handle(Vec<u8>),
    /// The debugger is asked for the packet again.
    Repeat,
    /// The session ends, for this reason.
    End(&'static str),
}

/// The bytes since the last packet.
#[derive(Debug, Default)]
pub(crate) struct Packets {
    /// The packet so far, with its `$`. Empty outside of packets.
    bytes: Vec<u8>,
    /// The number of bytes of the packet, or of those outside of packets.
    seen: usize,
    /// The number of bytes that are left after the `#`.
    left: Option<u8>,
    damaged: u32,
    /// The debugger has switched acknowledgements off: a packet is never sent again.
    is_reliable: bool,
}

impl Packets {
    /// Takes the next byte.
    pub(crate) fn take(&mut self, byte: u8) -> Next {
        self.seen = self.seen.saturating_add(1);
        if self.seen > MOST {
            return Next::End("a packet is too long, or there is none");
        }
        match (self.bytes.is_empty(), self.left, byte) {
            (_, None, b'$') => (self.bytes, self.seen) = (vec![byte], 1),
            (true, _, b'+' | b'-' | INTERRUPT) => return Next::Handle(vec![byte]),
            (true, ..) => {}
            (_, None, b'#') => {
                self.keep(byte);
                self.left = Some(2);
            }
            (_, None, _) => self.keep(byte),
            (_, Some(left), _) => {
                self.keep(byte);
                self.left = Some(left.saturating_sub(1));
                if left <= 1 {
                    return self.end();
                }
            }
        }
        Next::Nothing
    }

    fn keep(&mut self, byte: u8) {
        if self.bytes.len() <= PACKET {
            self.bytes.push(byte);
        }
    }

    /// A packet is complete.
    fn end(&mut self) -> Next {
        let packet = std::mem::take(&mut self.bytes);
        (self.left, self.seen) = (None, 0);
        if !is_whole(&packet) {
            self.damaged = self.damaged.saturating_add(1);
            return match self.is_reliable || self.damaged > MOST_DAMAGED {
                true => Next::End("a packet is damaged or too long"),
                false => Next::Repeat,
            };
        }
        self.damaged = 0;
        self.is_reliable |= packet.starts_with(b"$QStartNoAckMode#");
        Next::Handle(packet)
    }
}

/// True if a packet has the right sum, and is not too long.
fn is_whole(packet: &[u8]) -> bool {
    let [b'$', body @ .., b'#', high, low] = packet else { return false };
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let sum = digit(high).zip(digit(low)).map(|(high, low)| high << 4 | low);
    packet.len() <= PACKET && sum == Some(body.iter().copied().fold(0, u8::wrapping_add).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(packets: &mut Packets, bytes: &[u8]) -> Vec<Next> {
        bytes.iter().map(|byte| packets.take(*byte)).filter(|next| *next != Next::Nothing).collect()
    }

    #[test]
    fn a_damaged_packet_is_asked_for_again() {
        let mut packets = Packets::default();
        let handle = |bytes: &[u8]| Next::Handle(bytes.to_vec());
        assert_eq!(all(&mut packets, b"+GET$g#67\x03"), [handle(b"+"), handle(b"$g#67"), handle(b"\x03")]);
        assert_eq!(all(&mut packets, b"$g#68$g#zz$g#67"), [Next::Repeat, Next::Repeat, handle(b"$g#67")]);
        assert_eq!(all(&mut packets, b"$lost$g#67"), [handle(b"$g#67")], "a packet without an end");
        let long = [b"$", &[0; PACKET][..], b"#00"].concat();
        assert_eq!(all(&mut packets, &long), [Next::Repeat]);
        assert_eq!(all(&mut packets, b"$g#67"), [handle(b"$g#67")]);
    }

    #[test]
    fn a_debugger_that_breaks_the_rules_has_limits() {
        let ends = |bytes: &[u8]| matches!(all(&mut Packets::default(), bytes).last(), Some(Next::End(_)));
        assert!(ends(&[0xff; MOST + 1]) && !ends(&[0xff; MOST]));
        assert!(ends(&[b"$", &[0; MOST][..]].concat()));
        assert!(ends(&b"$g#00".repeat(17)) && !ends(&b"$g#00".repeat(16)));
        let sum = b"QStartNoAckMode".iter().copied().fold(0, u8::wrapping_add);
        assert!(ends(format!("$QStartNoAckMode#{sum:02x}$g#00").as_bytes()), "nothing is sent again");
    }
}
