//! Fuzzes SIMVIRTIO with a driver that changes any byte of the window, the device table and the buffers between any two
//! accesses of the device.
#![no_main]

use libfuzzer_sys::fuzz_target;
use simvirtio::abi::Layout;
use simvirtio::device::{Device, Host, State};
use vmm_fuzz::Script;
use vmm_fuzz::race::Race;

/// Counts the bytes of both directions. Every third read finds no input.
#[derive(Default)]
struct Counts {
    sent: u64,
    asked: u64,
    given: u64,
}

impl Host for Counts {
    fn transmit(&mut self, _: u8) {
        self.sent += 1;
    }
    fn receive(&mut self) -> Option<u8> {
        self.asked += 1;
        let has_input = self.asked % 3 != 0;
        self.given += u64::from(has_input);
        has_input.then_some(b'x')
    }
}

fuzz_target!(|input: &[u8]| {
    let mut script = Script::new(input);
    let queue_len = script.pick(&[8, 2, 3, 256, 4096]);
    let race = Race::new(queue_len);
    let mut device = Device::power_on(Layout::Table, queue_len, &race).expect("a valid length");
    race.begin(script);
    let mut host = Counts::default();
    while !race.is_over() {
        let was_broken = device.state() == State::Broken;
        race.take_accesses();
        let answer = device.advance(&race, &mut host);
        // A command looks at all of the device table, and there is a command for each byte of a queue.
        assert!(race.take_accesses() <= 128 * (u64::from(queue_len) + 4), "a turn without end");
        assert!(answer.is_ok() || device.state() == State::Broken);
        assert!(!was_broken || matches!(answer, Ok(false)), "a broken device works");
        let history = device.history();
        assert_eq!((host.sent, host.given), (history.received, history.delivered));
        assert!(history.readies <= history.configs && (history.configs == 0 || history.resets > 0));
        assert!(history.received == 0 || history.readies > 0, "data before READY");
        device.repair(&race);
    }
});
