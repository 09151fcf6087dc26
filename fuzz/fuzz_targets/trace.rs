//! Fuzzes the reader of traces with any file. A trace that was read is equal after it is written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use report::SavedTrace;

fuzz_target!(|file: &[u8]| {
    let (trace, cut) = match SavedTrace::read(file) {
        Ok(read) => read,
        Err(error) => {
            let message = error.to_string();
            assert!(message.lines().count() == 1 && message.chars().count() < 400, "{message}");
            return;
        }
    };
    if let Some(cut) = cut {
        assert_eq!(cut.records, trace.records.len() as u64);
    }
    assert!(trace.records.is_sorted_by_key(|record| record.when));
    let mut written = Vec::new();
    assert_eq!(trace.write(&mut written).expect("memory"), trace.records.len() as u64);
    assert_eq!(SavedTrace::read(&written), Ok((trace, None)));
});
