//! Fuzzes the reader of profiles with profiles and with any file. A profile that was read is equal after it is written and
//! read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use report::{Saved, SavedProfile};
use vmm_fuzz::{Script, saved};

fuzz_target!(|input: &[u8]| {
    let mut file = input.to_vec();
    if !input.starts_with(b"{") {
        let mut script = Script::new(input);
        file.clear();
        saved::profile(&mut script).write(&mut file).expect("memory");
        script.damage(&mut file);
    }
    let read = SavedProfile::read(&file);
    let Ok(profile) = read else {
        let message = read.map(|_| ()).unwrap_err().to_string();
        assert!(message.lines().count() == 1 && message.chars().count() < 400, "{message}");
        return;
    };
    assert_eq!(Saved::read(&file), Ok(Saved::Profile(profile.clone().into())));
    let mut written = Vec::new();
    profile.write(&mut written).expect("memory");
    assert_eq!(SavedProfile::read(&written), Ok(profile));
});
