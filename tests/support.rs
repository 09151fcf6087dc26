//! What the end-to-end tests share: a test that needs KVM, a program that cannot hang, an ELF file.
#![allow(dead_code)]

use libtest_mimic::{Completion, Failed, Trial};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};
use vmm::boot::flat;
use vmm::memory::Gpa;
use vmm::modes::Mode;
use vmm::{Error, Machine, Output};

/// Why KVM cannot be used here, if it cannot. Any other failure is no reason to skip a test.
fn unusable() -> Option<&'static str> {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    let probe = || {
        let image = flat::image(&[0xf4][..], Mode::Real, Gpa(0)).expect("an image");
        match Machine::builder(image).output(Output::captured().0).build() {
            Err(error @ (Error::OpenKvm { .. } | Error::NotKvm | Error::ApiVersion { .. })) => {
                Some(error.to_string())
            }
            _ => None,
        }
    };
    REASON.get_or_init(probe).as_deref()
}

/// Ends the whole test program where it has not ended by itself after five minutes.
pub fn watchdog() {
    thread::spawn(|| {
        thread::sleep(Duration::from_secs(300));
        eprintln!("the tests did not end within five minutes");
        std::process::abort();
    });
}

/// A test that runs guests. Where KVM cannot be used it is skipped, with the reason, or fails where the
/// environment says REQUIRE_KVM=1.
pub fn kvm_test(name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || match unusable() {
        None => {
            body();
            Ok(Completion::Completed)
        }
        Some(reason) if std::env::var("REQUIRE_KVM").is_ok_and(|value| value == "1") => {
            Err(Failed::from(format!("REQUIRE_KVM=1, and {reason}")))
        }
        Some(reason) => Ok(Completion::ignored_with(reason)),
    })
}

/// A test that needs no KVM.
pub fn plain_test(name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, || {
        body();
        Ok(())
    })
}

/// What a program printed, and its exit status.
#[derive(Debug)]
pub struct Ran {
    /// The exit status; -1 for a signal.
    pub status: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

impl Ran {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Runs a command for a minute at most; one that takes longer is killed and fails its test.
pub fn run(command: &mut Command) -> Ran {
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the command starts");
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    let status = wait(&mut child);
    let collect = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
        reader.map(|reader| reader.join().expect("the reader ends")).unwrap_or_default()
    };
    Ran { status, stdout: collect(stdout), stderr: String::from_utf8_lossy(&collect(stderr)).into_owned() }
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        all
    })
}

fn wait(child: &mut Child) -> i32 {
    let started = Instant::now();
    loop {
        match child.try_wait().expect("the child can be waited for") {
            Some(status) => return status.code().unwrap_or(-1),
            None if started.elapsed() > Duration::from_secs(60) => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the program did not end within a minute");
            }
            None => thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// The `vmm` program with these arguments, its output captured.
pub fn vmm(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.args(arguments).stdout(Stdio::piped()).env_remove("RUST_LOG");
    command
}

/// An ELF64 executable with `code` at `address`, where it begins.
pub fn elf(address: u64, code: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for word in [address, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    file.extend(7u32.to_le_bytes());
    let len = code.len() as u64;
    for word in [120, address, address, len, len, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}
