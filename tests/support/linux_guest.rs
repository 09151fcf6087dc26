//! Linux in `vmm boot`, with a thread that reads its console and methods that type commands.

use crate::support::vmm;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The time limit of one guest, from start to end. On an emulated host, a boot takes several seconds.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// Returns the path of a file of the kit.
pub fn kit(name: &str) -> String {
    let path = PathBuf::from(std::env::var_os("LINUX_KIT").unwrap()).join(name);
    assert!(path.exists(), "{} is missing: run tests/testbed/kit", path.display());
    path.to_str().expect("a plain path").into()
}

/// The bytes that a stream has delivered so far.
#[derive(Default)]
struct Received {
    bytes: Vec<u8>,
    /// If set, the stream has ended.
    ended: bool,
}

/// A thread that reads a stream, and the text that it has read.
#[derive(Default)]
struct Stream {
    received: Mutex<Received>,
    more: Condvar,
}

impl Stream {
    /// Starts the thread.
    fn follow(mut from: impl Read + Send + 'static) -> Arc<Self> {
        let stream = Arc::new(Self::default());
        let ours = Arc::clone(&stream);
        thread::spawn(move || {
            let mut piece = [0; 4096];
            loop {
                let len = from.read(&mut piece).unwrap_or(0);
                let mut received = ours.received.lock().unwrap();
                received.bytes.extend(&piece[..len]);
                received.ended = len == 0;
                ours.more.notify_all();
                if len == 0 {
                    break;
                }
            }
        });
        stream
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.received.lock().unwrap().bytes).into_owned()
    }

    /// Waits for `text` after the first `from` bytes and returns the position of its end. Returns `None` at the end of the
    /// stream or at the deadline.
    fn wait_for(&self, text: &str, from: usize, deadline: Instant) -> Option<usize> {
        let mut received = self.received.lock().unwrap();
        loop {
            let at = received.bytes[from..].windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = at {
                return Some(from + at + text.len());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if received.ended || left.is_zero() {
                return None;
            }
            received = self.more.wait_timeout(received, left).unwrap().0;
        }
    }

    /// Waits for the end of the stream, or for the deadline.
    fn wait_for_end(&self, deadline: Instant) {
        let mut received = self.received.lock().unwrap();
        while !received.ended && Instant::now() < deadline {
            received = self.more.wait_timeout(received, Duration::from_millis(100)).unwrap().0;
        }
    }
}

/// A running guest. It is killed at its time limit, and at the end of its test.
pub struct Linux {
    child: Child,
    input: Option<ChildStdin>,
    console: Arc<Stream>,
    report: Arc<Stream>,
    /// The number of bytes of the console up to the end of the last expected text.
    read: usize,
    deadline: Instant,
}

impl Linux {
    /// Starts `vmm boot` with these arguments, and does not wait.
    pub fn start(arguments: &[&str], input: Stdio) -> Self {
        let mut command = vmm(&[&["boot"], arguments].concat());
        Self::of(command.stdin(input).stderr(Stdio::piped()))
    }

    /// Starts a program with a guest, and does not wait. Its stdout and stderr are pipes.
    pub fn of(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("the program starts");
        let console = Stream::follow(child.stdout.take().unwrap());
        let report = Stream::follow(child.stderr.take().unwrap());
        let input = child.stdin.take();
        Self { child, input, console, report, read: 0, deadline: Instant::now() + TIME_LIMIT }
    }

    /// Boots the kernel and the userland of the kit with these arguments, up to the shell.
    pub fn boot(kernel: &str, arguments: &[&str]) -> Self {
        let (kernel, initrd) = (kit(kernel), kit("guest-initrd"));
        let all = [&[&kernel, "--initrd", &initrd], arguments].concat();
        let mut linux = Self::start(&all, Stdio::piped());
        linux.expect("USERLAND-READY");
        linux
    }

    /// Kills the program with SIGKILL. Returns the whole text of the console.
    pub fn kill(&mut self) -> String {
        self.child.kill().expect("the program is killed");
        self.child.wait().expect("the child can be waited for");
        self.console.wait_for_end(self.deadline);
        self.console.text()
    }

    /// Kills the guest and panics.
    pub fn fail(&mut self, why: &str) -> ! {
        let _ = self.child.kill();
        let status = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        let soon = Instant::now() + Duration::from_secs(1);
        self.console.wait_for_end(soon);
        self.report.wait_for_end(soon);
        panic!("{why} ({status})");
    }

    /// Waits until the console prints a text. Returns the output before it.
    pub fn expect(&mut self, text: &str) -> String {
        let from = self.read;
        match self.console.wait_for(text, from, self.deadline) {
            Some(end) => {
                self.read = end;
                let received = self.console.received.lock().unwrap();
                String::from_utf8_lossy(&received.bytes[from..end - text.len()]).into_owned()
            }
            None => self.fail(&format!("the console did not print {text:?}")),
        }
    }

    /// Types a line on the console.
    pub fn type_line(&mut self, line: &str) {
        let typed = self.input.as_mut().unwrap().write_all(format!("{line}\n").as_bytes());
        if let Err(error) = typed {
            self.fail(&format!("cannot type {line:?}: {error}"));
        }
    }

    /// Runs a command in the shell. Returns its output and its exit status. The marks are typed in pieces, so that the echo
    /// of the terminal does not contain them.
    pub fn run(&mut self, line: &str) -> (String, u32) {
        self.type_line(&format!("echo BEG''IN; {line}; echo \"EN\"D $?."));
        self.expect("BEGIN\r\n");
        let output = self.expect("END ").replace('\r', "");
        let status = self.expect(".").parse().unwrap_or(u32::MAX);
        (output, status)
    }

    /// Runs a command that must succeed. Returns its output without the last newline.
    pub fn ask(&mut self, line: &str) -> String {
        let (output, status) = self.run(line);
        if status != 0 {
            self.fail(&format!("{line:?} failed with status {status}"));
        }
        output.trim_end().to_owned()
    }

    /// Waits for the end of the program. Returns its exit status and its report.
    pub fn end(&mut self) -> (i32, String) {
        while Instant::now() < self.deadline {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                self.console.wait_for_end(self.deadline);
                self.report.wait_for_end(self.deadline);
                return (status.code().unwrap_or(-1), self.report.text());
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.fail("the program did not end")
    }

    /// Waits for the end, and checks the exit status and that the first line of the report contains `text`.
    pub fn assert_end(&mut self, status: i32, text: &str) {
        let (found, report) = self.end();
        let first = report.lines().next().unwrap_or_default();
        if found != status || !first.starts_with("vmm: ") || !first.contains(text) {
            self.fail(&format!("status {found} and {first:?} instead of {status} and {text:?}"));
        }
    }

    /// Powers the guest off from the shell.
    pub fn power_off(&mut self) {
        self.type_line("poweroff -f");
        self.assert_end(0, ": powered off (after ");
    }

    /// Returns the process ID of the program.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Linux {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let (console, report) = (self.console.text(), self.report.text());
            eprintln!("\n--- the console:\n{console}\n--- the report:\n{report}\n---");
        }
    }
}
