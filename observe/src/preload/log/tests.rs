//! Tests of the log.

use super::*;

fn channel() -> Channel {
    Channel::new(tempfile::tempfile().unwrap()).unwrap()
}

/// A `struct entry`.
fn entry(kind: u32, process: i32, request: u32, parts: u32) -> Vec<u8> {
    // Ring 3, on vCPU 6 of VM 5, with the result -22.
    let words = [kind, process.cast_unsigned(), 3, 2, 5, 6, request, (-22i32).cast_unsigned()];
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    bytes.extend(0x1234u64.to_ne_bytes());
    bytes.extend([parts, 0].into_iter().flat_map(u32::to_ne_bytes));
    bytes
}

/// Writes the pieces of an entry, from this one on, and takes them.
fn write(channel: &Channel, first: u64, bytes: &[u8]) -> u64 {
    let parts: Vec<_> = bytes.chunks(PIECE - HEAD).collect();
    for (number, part) in (first..).zip(&parts) {
        let mut piece = number.wrapping_add(1).to_ne_bytes().to_vec();
        piece.extend((parts.len() as u32).to_ne_bytes());
        piece.extend((part.len() as u32).to_ne_bytes());
        piece.extend(*part);
        channel.write_piece(number, &piece);
    }
    let next = first.wrapping_add(parts.len() as u64);
    channel.take_pieces(next);
    next
}

#[allow(clippy::arithmetic_side_effects)]
fn drain(log: &mut Log, channel: &Channel, is_last: bool) -> Vec<Event> {
    let mut events = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    log.drain(channel, is_last, deadline, &mut |event| events.push(event));
    events
}

#[test]
fn a_long_entry_is_a_call_with_its_structure() {
    let (channel, mut log) = (channel(), Log::default());
    let data: Vec<u8> = (0..5000u32).map(|number| number as u8).collect();
    // Around the end of the log.
    log.next = PIECES - 2;
    write(&channel, PIECES - 2, &[entry(CALLED, 7, 0x4008_ae90, 0), data.clone()].concat());
    let events = drain(&mut log, &channel, false);
    let [Event::Called(call)] = events.as_slice() else { panic!("{events:?}") };
    let target = Target::Vcpu(VcpuId { vm: 5, vcpu: 6 });
    let expected = Call { process: 7, target, request: 0x4008_ae90, argument: 0x1234, data, result: -22 };
    assert_eq!((call, log.lost), (&expected, 0));
    assert!(drain(&mut log, &channel, true).is_empty());
}

#[test]
fn a_piece_that_is_not_written_is_waited_for_and_then_lost() {
    let (channel, mut log) = (channel(), Log::default());
    let call = entry(CALLED, 7, 0xae41, 0);
    write(&channel, 1, &call);
    assert!(drain(&mut log, &channel, false).is_empty());
    std::thread::sleep(PATIENCE * 2);
    assert_eq!((drain(&mut log, &channel, false).len(), log.lost), (1, 1));
    // At the end there is no wait.
    write(&channel, 3, &call);
    assert_eq!((drain(&mut log, &channel, true).len(), log.lost), (1, 2));
    // An entry of two pieces whose second one is missing, and a complete one after it.
    write(&channel, 4, &[call.clone(), vec![0; PIECE]].concat());
    channel.write_piece(5, &[0; PIECE]);
    write(&channel, 6, &call);
    assert_eq!((drain(&mut log, &channel, true).len(), log.lost), (1, 4));
}

#[test]
fn only_a_child_can_stop_and_gets_an_answer() {
    let (channel, mut log) = (channel(), Log::default());
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let stop = |process| entry(FIRST_ENTRY, process, 0, 0);
    let next = write(&channel, 0, &stop(1));
    let next = write(&channel, next, &stop(std::process::id().cast_signed()));
    assert!(drain(&mut log, &channel, false).is_empty());
    assert_eq!((log.lost, channel.answered(3)), (2, 0));
    let registers = [stop(child.id().cast_signed()), vec![1; REGS + SREGS]].concat();
    let mut registers = registers;
    registers[40] = 2;
    write(&channel, next, &registers);
    let events = drain(&mut log, &channel, false);
    child.kill().unwrap();
    child.wait().unwrap();
    let [Event::Stopped(stop)] = events.as_slice() else { panic!("{events:?}") };
    assert!(matches!(stop.cause, StopCause::FirstEntry) && stop.registers.is_some());
    assert_eq!(channel.answered(3), 3);
}

/// Whatever the program writes, the log ends, and there are no more events than pieces.
#[test]
fn a_hostile_log_ends() {
    let (channel, mut log) = (channel(), Log::default());
    let mut seed = 1u32;
    for number in 0..PIECES {
        let mut piece: Vec<u8> = (number + 1).to_ne_bytes().to_vec();
        while piece.len() < PIECE {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            piece.push((seed >> 24) as u8);
        }
        let (pieces, size) = (seed >> 8 & 31, seed >> 13 & 0x7ff);
        piece[8..12].copy_from_slice(&pieces.to_ne_bytes());
        piece[12..16].copy_from_slice(&size.to_ne_bytes());
        piece[HEAD] &= 3;
        channel.write_piece(number, &piece);
    }
    for taken in [PIECES, PIECES + 5, u64::MAX, 0, 7, u64::MAX - 1] {
        channel.take_pieces(taken);
        assert!(drain(&mut log, &channel, true).len() as u64 <= PIECES);
    }
}
