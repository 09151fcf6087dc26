//! Runs guests of random bytes on the software processor, each one in slices and instruction by instruction, in all modes.
//!
//! Usage: random_guests [GUESTS [FIRST]]. The number of a guest is its seed. A panic, another result in the second run, and
//! a guest that takes longer than ten seconds are findings: the number is printed, and the status is 1.

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vmm_fuzz::{Script, processor, twice};

/// The time limit of a guest.
const PATIENCE: Duration = Duration::from_secs(10);

/// The bytes of a script: a guest uses a part of them.
const LENGTH: usize = 4096;

/// Ends the process if a guest does not end.
fn watch(current: &'static AtomicU64) {
    std::thread::spawn(move || {
        loop {
            let before = current.load(Ordering::Relaxed);
            std::thread::sleep(PATIENCE);
            if current.load(Ordering::Relaxed) == before {
                eprintln!("random_guests: guest {before} does not end: repeat with GUESTS=1 FIRST={before}");
                std::process::exit(1);
            }
        }
    });
}

/// The resident memory of this process in KiB.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default() * 4
}

fn main() -> ExitCode {
    static CURRENT: AtomicU64 = AtomicU64::new(0);
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let (Ok(guests), Ok(first)) = (numbers.next().unwrap_or(Ok(100_000)), numbers.next().unwrap_or(Ok(0))) else {
        eprintln!("random_guests: GUESTS and FIRST must be numbers");
        return ExitCode::from(2);
    };
    let started = Instant::now();
    let (mut findings, mut slowest) = (0u64, (Duration::ZERO, first));
    CURRENT.store(first, Ordering::Relaxed);
    watch(&CURRENT);
    let mut input = vec![0; LENGTH];
    for number in first..first.saturating_add(guests) {
        CURRENT.store(number, Ordering::Relaxed);
        fastrand::Rng::with_seed(number).fill(&mut input);
        let guest = processor::build(&mut Script::new(&input));
        let since = Instant::now();
        if catch_unwind(|| twice::check(&guest)).is_err() {
            eprintln!("random_guests: guest {number}: repeat with GUESTS=1 FIRST={number}");
            findings += 1;
        }
        slowest = slowest.max((since.elapsed(), number));
        let done = number - first + 1;
        if done % 100_000 == 0 || done == guests {
            println!(
                "random_guests: {done} guests, {findings} findings, {} KiB resident, slowest {:?} (guest {}), {} s",
                resident(),
                slowest.0,
                slowest.1,
                started.elapsed().as_secs()
            );
        }
    }
    if findings == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
