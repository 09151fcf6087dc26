//! Runs of the `vmm` program at a terminal.

use super::wait;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Returns the reason why `script` cannot provide a terminal here, such as a missing /dev/ptmx.
pub fn no_terminals() -> Option<String> {
    let tried = Command::new("script").args(["-qec", "true", "/dev/null"]).output();
    match tried {
        Ok(tried) if tried.status.success() => None,
        Ok(tried) => Some(format!("script: {}", String::from_utf8_lossy(&tried.stderr).trim_end())),
        Err(error) => Some(format!("script: {error}")),
    }
}

/// A run of `vmm` at a terminal of 40 rows, which `script` provides.
pub struct Session {
    child: Child,
    seen: Arc<Mutex<Vec<u8>>>,
    reader: thread::JoinHandle<()>,
}

impl Session {
    pub fn start(guest: &str) -> Self {
        let program = env!("CARGO_BIN_EXE_vmm");
        let line = format!(
            "stty rows 40 columns 100; {program} run {guest} --machine pc --timeout 50 -q; echo status $?; stty -a"
        );
        let mut command = Command::new("script");
        command.args(["-qefc", &line, "/dev/null"]).env_remove("RUST_LOG");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (all, mut stdout) = (seen.clone(), child.stdout.take().unwrap());
        let reader = thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut chunk) {
                all.lock().unwrap().extend(&chunk[..count]);
            }
        });
        Self { child, seen, reader }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// Waits until the terminal has received a text.
    pub fn expect(&self, text: &str) {
        let started = Instant::now();
        while !self.text().contains(text) {
            assert!(started.elapsed() < Duration::from_secs(40), "{text:?} is not in {:?}", self.text());
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn type_keys(&mut self, keys: &[u8]) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(keys).unwrap();
        stdin.flush().unwrap();
    }

    /// Waits for the end. Returns all that the terminal has received.
    pub fn finish(mut self) -> String {
        wait(&mut self.child);
        drop(self.child.stdin.take());
        self.reader.join().unwrap();
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }
}
