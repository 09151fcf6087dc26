use super::record::OTHER;
use super::*;
use proptest::prelude::*;

const OUT: Record = Record {
    when: 1000,
    place: Some(0xe9),
    value: Some(0x41),
    rip: Some(0x1004),
    in_kvm: 4000,
    in_vmm: 250,
    vcpu: 0,
    reason: Reason::PioOut,
    width: 1,
    next_element: false,
    fault: false,
};

fn small() -> SavedTrace {
    let halt =
        Record { when: 2000, place: None, value: None, rip: None, reason: Reason::Hlt, width: 0, ..OUT };
    let denied = Record {
        when: 1500,
        place: Some(0x1a0),
        reason: Reason::RdMsr,
        value: None,
        fault: true,
        vcpu: 1,
        ..OUT
    };
    SavedTrace {
        processor: SavedProcessor::Soft,
        vcpus: 2,
        seen: 7,
        elapsed_ns: 2500,
        khz: 2_250_000,
        records: vec![OUT, denied, halt],
        program: "vmm 0.1.0".into(),
        guest: "real16-hello".into(),
        ended: "halted".into(),
        origin: Some(Box::new(SavedOrigin { date: "2026-11-29T07:16:40Z".into(), ..SavedOrigin::default() })),
        devices: vec![SavedDevice {
            reason: Reason::PioOut,
            place: 0xe9,
            width: 1,
            device: "debugcon".into(),
        }],
        names: Vec::new(),
    }
}

fn written(trace: &SavedTrace) -> Vec<u8> {
    let mut bytes = Vec::new();
    assert_eq!(trace.write(&mut bytes).unwrap(), trace.records.len() as u64);
    bytes
}

#[test]
fn the_bytes_match_the_specification() {
    let bytes = written(&small());
    assert_eq!(bytes[..8], *b"vmmtrace");
    assert_eq!(bytes[8..16], [1, 0, 48, 0, 2, 0, 0, 0]);
    assert_eq!((bytes[16], bytes[24]), (7, 3));
    assert_eq!(bytes[40..42], 2500u16.to_le_bytes());
    assert_eq!(bytes[48..56], 2_250_000u64.to_le_bytes());
    let record = &bytes[64..112];
    assert_eq!((record[..8].to_vec(), record[8], record[16]), (1000u64.to_le_bytes().to_vec(), 0xe9, 0x41));
    assert_eq!(
        (record[24..26].to_vec(), record[32..34].to_vec(), record[36]),
        (vec![4, 0x10], vec![0xa0, 0x0f], 250)
    );
    assert_eq!(record[40..48], [0, 0, 1, 1, 6, 0, 0, 0]);
    assert_eq!(bytes[112 + 40..160], [1, 0, 5, 1, 2 | 8, 0, 0, 0]);
    let trailer = std::str::from_utf8(&bytes[64 + 3 * 48..]).unwrap();
    assert_eq!(
        trailer,
        r#"{"program":"vmm 0.1.0","processor":"soft","guest":"real16-hello","ended":"halted","origin":{"date":"2026-11-29T07:16:40Z","host":"","cpu":"","kernel":"","command":"","transport":""},"devices":[{"reason":"PIO out","place":233,"width":1,"device":"debugcon"}]}"#
    );
    assert_eq!(bytes[32..34], (trailer.len() as u16).to_le_bytes());
    assert_eq!(SavedTrace::read(&bytes), Ok((small(), None)));
}

#[test]
fn a_trace_that_is_cut_short_is_read_up_to_its_last_record() {
    let whole = written(&small());
    for end in 0..whole.len() {
        let read = SavedTrace::read(&whole[..end]);
        if end < HEADER {
            assert_eq!(read, Err(SavedError::CutHeader { there: end }));
            continue;
        }
        let (trace, cut) = read.unwrap();
        let there = ((end - HEADER) / RECORD).min(3);
        assert_eq!(cut, Some(Cut { records: there as u64, of: 3 }), "{end}");
        assert_eq!(trace.records, small().records[..there]);
        assert_eq!((trace.seen, trace.guest.as_str()), (7, ""));
    }
    let message = |records| Cut { records, of: 3 }.to_string();
    assert_eq!(message(2), "the trace is cut short after 2 of 3 records");
    assert_eq!(message(3), "the trace is cut short: the names of the guest and of the devices are missing");
}

/// A disk with room for a number of bytes.
struct Disk(Vec<u8>, usize);

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match bytes.len().min(self.1.saturating_sub(self.0.len())).min(1000) {
            0 => Err(io::ErrorKind::StorageFull.into()),
            some => {
                self.0.extend(&bytes[..some]);
                Ok(some)
            }
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_write_error_tells_the_number_of_complete_records() {
    let trace = SavedTrace { seen: 5000, records: vec![OUT; 5000], ..small() };
    let size = written(&trace).len();
    for room in [0, 10, 64, 65, 64 + 48, 64 + 48 * 3000 + 47, 64 + 48 * 5000, size - 1] {
        let mut disk = Disk(Vec::new(), room);
        let error = trace.write(&mut disk).unwrap_err();
        let there = (room.saturating_sub(64) / 48).min(5000) as u64;
        assert_eq!((error.records, error.of, disk.0.len()), (there, 5000, room));
        if room >= 64 {
            let (read, cut) = SavedTrace::read(&disk.0).unwrap();
            assert_eq!((read.records.len() as u64, cut), (there, Some(Cut { records: there, of: 5000 })));
        }
    }
    let error = trace.write(Disk(Vec::new(), 64 + 48)).unwrap_err().to_string();
    assert!(error.starts_with("cut short after 1 of 5000 records: "), "{error}");
}

#[test]
fn a_wrong_header_or_record_is_refused_and_its_field_named() {
    let with = |at: usize, bytes: &[u8]| {
        let mut file = written(&small());
        file[at..at + bytes.len()].copy_from_slice(bytes);
        SavedTrace::read(&file).unwrap_err().to_string()
    };
    for (at, bytes, expected) in [
        (0, &b"V"[..], "not a profile or a trace"),
        (8, &[2, 1], "the trace has version 258, and this program reads version 1: use a newer vmm"),
        (10, &[47], "its records have 47 bytes, not 48"),
        (12, &[0], "it has 0 vCPUs, not 1 to 128"),
        (12, &[129], "it has 129 vCPUs, not 1 to 128"),
        (12, &[0xff; 4], "4294967295 vCPUs"),
        (24, &[8], "it has 8 records of a run with 7 elements"),
        (16, &[0xff; 16], "it has 18446744073709551615 records (the limit is 4194304)"),
        (32, &[0xff; 8], "its trailer has 18446744073709551615 bytes (the limit is 16777216)"),
        (24, &[2], "48 bytes after its end"),
        (32, &[1, 0], "bytes after its end"),
        (56, &[1], "the reserved field of its header is not 0"),
        (64 + 42, &[12], "record 0 has the reason 12, not 0 to 11"),
        (112 + 40, &[2], "record 1 has the vCPU 2, but there are 2"),
        (160 + 44, &[16], "record 2 has the unknown flags 0x10"),
        (160 + 47, &[1], "record 2 has reserved bytes that are not 0"),
    ] {
        let error = with(at, bytes);
        assert!(error.contains(expected), "{at}: {error}");
    }
    let mut file = written(&small());
    file[64 + 42] = 11;
    file[64 + 8..64 + 16].fill(0xff);
    assert!(
        SavedTrace::read(&file)
            .unwrap_err()
            .to_string()
            .contains("record 0 has the exit number 0xffffffffffffffff")
    );
    file[64 + 12..64 + 16].fill(0);
    assert_eq!(SavedTrace::read(&file).unwrap().0.records[0].reason, Reason::Other(u32::MAX));
}

/// The header announces four million records, and the file has one.
#[test]
fn a_count_without_records_takes_no_memory() {
    let mut file = written(&SavedTrace { seen: u64::MAX, records: vec![OUT], ..small() });
    file[24..32].copy_from_slice(&MOST_RECORDS.to_le_bytes());
    file.truncate(64 + 48);
    let (trace, cut) = SavedTrace::read(&file).unwrap();
    assert_eq!((trace.records.capacity(), cut), (1, Some(Cut { records: 1, of: MOST_RECORDS })));
}

#[test]
fn the_trailer_is_checked_like_a_profile() {
    let with = |trailer: &str| {
        let mut file = written(&small());
        file.truncate(64 + 3 * 48);
        file.extend(trailer.as_bytes());
        file[32..40].copy_from_slice(&(trailer.len() as u64).to_le_bytes());
        SavedTrace::read(&file)
    };
    for bad in [
        "",
        "{}",
        "[]",
        "null",
        "\u{1b}",
        &"[".repeat(1 << 20),
        r#"{"program":"","program":"","guest":"","ended":"","devices":[]}"#,
        r#"{"program":"","guest":"","ended":"","devices":[{"reason":"PIO","place":1,"width":1,"device":""}]}"#,
        r#"{"program":"","guest":"","ended":"","devices":[{"reason":"HLT","place":-1,"width":1,"device":""}]}"#,
    ] {
        let error = with(bad).unwrap_err().to_string();
        assert!(error.starts_with("the trace is damaged: ") && error.len() < 300, "{error}");
        assert!(!error.contains('\u{1b}'));
    }
    let long = format!(r#"{{"program":"","guest":"{}","ended":"","devices":[]}}"#, "x".repeat(MOST_TEXT + 1));
    assert!(
        with(&long)
            .unwrap_err()
            .to_string()
            .contains("it has 65537 bytes of text in its trailer (the limit is 65536)")
    );
    assert!(with(r#"{"program":"","guest":"","ended":"","devices":[],"later":{}}"#).is_ok());
}

#[test]
fn records_are_sorted_by_time() {
    let mut trace = small();
    trace.records.reverse();
    assert_eq!(SavedTrace::read(&written(&trace)), Ok((small(), None)));
}

fn record() -> impl Strategy<Value = Record> {
    let reason =
        prop_oneof![prop::sample::select(Reason::NAMED.to_vec()), any::<u32>().prop_map(Reason::Other)];
    (
        any::<[u64; 2]>(),
        any::<[Option<u64>; 2]>(),
        any::<[u32; 2]>(),
        0..4u16,
        reason,
        any::<(u8, bool, bool)>(),
    )
        .prop_map(
            |([when, place], [value, rip], [in_kvm, in_vmm], vcpu, reason, (width, next_element, fault))| {
                Record {
                    when,
                    place: reason.has_place().then_some(place),
                    value,
                    rip,
                    in_kvm,
                    in_vmm,
                    vcpu,
                    reason,
                    width,
                    next_element,
                    fault,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_written_trace_is_read_back(
        mut records in prop::collection::vec(record(), 0..40),
        [more, elapsed_ns, khz] in any::<[u64; 3]>(),
        guest in prop::collection::vec(any::<char>(), 0..10),
    ) {
        records.sort_by_key(|record| record.when);
        let seen = more.max(records.len() as u64);
        let guest = guest.into_iter().collect();
        let trace = SavedTrace { vcpus: 4, seen, elapsed_ns, khz, records, guest, ..small() };
        prop_assert_eq!(SavedTrace::read(&written(&trace)), Ok((trace, None)));
    }

    /// The result is a trace or a message of one line.
    #[test]
    fn changed_bytes_do_not_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = written(&small());
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Err(error) = SavedTrace::read(&bytes) {
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }
}

#[test]
fn each_reason_has_its_documented_code() {
    for (code, reason) in (0..).zip(Reason::NAMED) {
        assert_eq!(reason.code(), code, "{reason}");
    }
    assert_eq!(Reason::Other(7).code(), OTHER);
}
