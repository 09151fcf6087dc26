//! Runs of the `vmm` program under a real gdb, and under a debugger that sends packets of its own.
#![allow(dead_code, clippy::unwrap_used)]

use crate::support::{Files, Ran, run, vmm, wait};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Returns the reason why there is no gdb here, if so. With REQUIRE_GDB=1 in the environment, the test then fails.
pub fn no_gdb() -> Option<String> {
    let found = Command::new("gdb").arg("--version").output().is_ok_and(|ran| ran.status.success());
    assert!(
        found || std::env::var("REQUIRE_GDB").as_deref() != Ok("1"),
        "REQUIRE_GDB=1, and there is no gdb"
    );
    (!found).then(|| "needs gdb (apt-get install gdb)".into())
}

/// A run of the `vmm` program that waits for a debugger at a socket.
pub struct Debugged {
    child: Child,
    /// The socket.
    pub socket: String,
    files: Files,
    stderr: Option<thread::JoinHandle<String>>,
}

impl Debugged {
    /// Starts the program, and waits until it has said that it waits.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_at(Files::new(), "", arguments)
    }

    /// Starts a program whose guest runs until it dies, and waits for that.
    pub fn until_death(arguments: &[&str]) -> Self {
        Self::start_at(Files::new(), "on-death,", arguments)
    }

    /// As [`start`](Self::start), with files that the guest needs, and a word before the address.
    pub fn start_at(files: Files, when: &str, arguments: &[&str]) -> Self {
        let socket = format!("{}/gdb.sock", files.0.path().display());
        let option = format!("--gdb={when}{socket}");
        let arguments: Vec<&str> = arguments.iter().copied().chain([option.as_str()]).collect();
        let mut child = vmm(&arguments).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("waits") {
            assert_ne!(lines.read_line(&mut said).unwrap(), 0, "the program ended: {said}");
        }
        let stderr = thread::spawn(move || {
            lines.read_to_string(&mut said).unwrap();
            said
        });
        Self { child, socket, files, stderr: Some(stderr) }
    }

    /// The number of the process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Runs gdb with these commands. Returns what it prints.
    pub fn gdb(&self, commands: &[&str]) -> String {
        self.gdb_with(&[], commands)
    }

    /// As [`gdb`](Self::gdb), with options before.
    pub fn gdb_with(&self, options: &[&str], commands: &[&str]) -> String {
        let target = format!("target remote {}", self.socket);
        let mut gdb = gdb(options);
        for command in [target.as_str()].iter().chain(commands) {
            gdb.args(["-ex", command]);
        }
        let ran = run(&mut gdb);
        ran.text() + &ran.stderr
    }

    /// Connects a debugger that sends packets of its own.
    pub fn raw(&self) -> Raw {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Raw(stream)
    }

    /// Waits for the end of the program.
    pub fn end(mut self) -> Ran {
        let mut stdout = self.child.stdout.take().unwrap();
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            stdout.read_to_end(&mut all).unwrap();
            all
        });
        let status = wait(&mut self.child);
        let stderr = self.stderr.take().unwrap().join().unwrap();
        drop(self.files);
        Ran { status, stdout: reader.join().unwrap(), stderr, choice: String::new() }
    }
}

/// The path of a guest that is built already, on a host without a compiler: GDB_GUESTS names the folder.
pub fn built_guest(name: &str) -> Option<String> {
    Some(format!("{}/{name}", std::env::var("GDB_GUESTS").ok()?))
}

/// An ELF64 file that has only one symbol, a function. gdb takes its name and its address.
pub fn symbol_file(name: &str, address: u64) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let add = |file: &mut Vec<u8>, halves: &[u16], words: &[u32], longs: &[u64]| {
        halves.iter().for_each(|half| file.extend(half.to_le_bytes()));
        words.iter().for_each(|word| file.extend(word.to_le_bytes()));
        longs.iter().for_each(|long| file.extend(long.to_le_bytes()));
    };
    let names = format!("\0{name}\0.text\0.symtab\0.strtab\0");
    let place = |part: &str| u32::try_from(names.find(part).unwrap()).unwrap();
    // e_type, e_machine; e_version; e_entry, e_phoff, e_shoff; e_flags; e_ehsize to e_shstrndx
    add(&mut file, &[2, 62], &[1], &[address, 0, 64]);
    add(&mut file, &[], &[0], &[]);
    add(&mut file, &[64, 0, 0, 64, 4, 3], &[], &[]);
    let (symbols, text) = (64 + 4 * 64, 64 + 4 * 64 + 48);
    // sh_name, sh_type; sh_flags, sh_addr, sh_offset, sh_size; sh_link, sh_info; sh_addralign, sh_entsize
    let sections = [
        ([0, 0], [0, 0, 0, 0], [0, 0], [0, 0]),
        ([place(".text"), 8], [6, address, 0, 16], [0, 0], [1, 0]),
        ([place(".symtab"), 2], [0, 0, symbols, 48], [3, 1], [8, 24]),
        ([place(".strtab"), 3], [0, 0, text, names.len() as u64], [0, 0], [1, 0]),
    ];
    for (first, longs, link, last) in sections {
        add(&mut file, &[], &first, &longs);
        add(&mut file, &[], &link, &last);
    }
    file.resize(file.len() + 24, 0);
    // st_name; st_info, st_other (global, function), st_shndx; st_value, st_size
    file.extend(place(name).to_le_bytes());
    add(&mut file, &[0x12, 1], &[], &[address, 16]);
    file.extend(names.as_bytes());
    file
}

/// gdb without the user's settings, for a script. It is killed after half a minute.
pub fn gdb(options: &[&str]) -> Command {
    let mut command = Command::new("sh");
    // The errors stay at their places between the output.
    command.args(["-c", "exec timeout -k 1 30 gdb -nx -q -batch \"$@\" 2>&1", "gdb"]).args(options);
    command.stdout(Stdio::piped());
    command.args(["-iex", "set confirm off", "-iex", "set pagination off", "-iex", "set width 0"]);
    command
}

/// A debugger that sends packets of its own.
pub struct Raw(pub UnixStream);

impl Raw {
    /// Sends a packet.
    pub fn send(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        let mut text = String::from("$");
        write!(text, "{packet}#{sum:02x}").unwrap();
        // The other side may have closed. Then there is no answer.
        let _ = self.0.write_all(text.as_bytes());
    }

    /// Receives a packet. `None` after the end.
    pub fn receive(&mut self) -> Option<String> {
        let mut bytes = Vec::new();
        let mut byte = [0];
        while self.0.read(&mut byte).ok()? == 1 {
            bytes.extend(byte);
            if let Some(end) = bytes.len().checked_sub(3).filter(|end| bytes[*end] == b'#') {
                let start = bytes.iter().position(|byte| *byte == b'$')? + 1;
                // The acknowledgement.
                let _ = self.0.write_all(b"+");
                return String::from_utf8(bytes[start..end].to_vec()).ok();
            }
        }
        None
    }

    /// Sends a packet and receives the answer.
    pub fn ask(&mut self, packet: &str) -> String {
        self.send(packet);
        self.receive().unwrap_or_else(|| panic!("no answer to {packet:.40}"))
    }

    /// True if the other side closes the connection within ten seconds.
    pub fn is_closed(&mut self) -> bool {
        let started = Instant::now();
        let mut rest = [0; 256];
        while started.elapsed() < Duration::from_secs(10) {
            if matches!(self.0.read(&mut rest), Ok(0) | Err(_)) {
                return true;
            }
        }
        false
    }
}

/// A guest that counts in RAX, without an end.
pub fn counter(files: &Files) -> String {
    files.write("counter", &[0x48, 0xff, 0xc0, 0xeb, 0xfb]) + "@0x1000:64"
}

/// Asserts that a text has these parts, in this order.
#[track_caller]
pub fn assert_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let at = rest.find(part).unwrap_or_else(|| panic!("{part:?} is not in its place in\n{text}"));
        rest = &rest[at + part.len()..];
    }
}
