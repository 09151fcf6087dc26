//! Fuzzes the reader of traces with traces and with any file. A trace that was read is equal after it is written and read
//! again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use report::{SavedTrace, trace::MAGIC};
use vmm_fuzz::{Script, saved};

fuzz_target!(|input: &[u8]| {
    let mut file = input.to_vec();
    if !input.starts_with(&MAGIC) {
        let mut script = Script::new(input);
        file.clear();
        saved::trace(&mut script).write(&mut file).expect("memory");
        script.damage(&mut file);
    }
    let (trace, cut) = match SavedTrace::read(&file) {
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
