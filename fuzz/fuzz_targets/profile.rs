//! Any file as a profile. What is read is written and read again the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::saved::{Profile, Saved};

fuzz_target!(|file: &[u8]| {
    let read = Profile::read(file);
    let Ok(profile) = read else {
        let said = read.map(|_| ()).unwrap_err().to_string();
        assert!(said.lines().count() == 1 && said.chars().count() < 400, "{said}");
        return;
    };
    assert_eq!(Saved::read(file), Ok(Saved::Profile(profile.clone().into())));
    let mut written = Vec::new();
    profile.write(&mut written).expect("memory");
    assert_eq!(Profile::read(&written), Ok(profile));
});
