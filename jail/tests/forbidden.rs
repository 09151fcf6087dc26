//! Each forbidden action fails, or ends the process with a sentence. A child process of the test, which is this program again,
//! enters the jail and tries one action.
#![allow(clippy::unwrap_used)]
#![allow(
    unsafe_code,
    clippy::undocumented_unsafe_blocks,
    reason = "each system call is one that the jail stops, or that fails, and takes no memory of this process but constants"
)]

use jail::{Kind, Place, Policy, Use};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The status of a child that a forbidden call ended.
const STOPPED: u8 = 77;
const ACTION: &str = "JAIL_TEST_ACTION";
const FOLDER: &str = "JAIL_TEST_FOLDER";

/// Ends the child with 0 if the action succeeded, and otherwise with the error.
fn end<T>(done: io::Result<T>) -> ! {
    let errno = done.err().map_or(0, |error| error.raw_os_error().unwrap_or(99));
    unsafe { libc::_exit(errno) }
}

fn call(answer: libc::c_long) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn on_thread(kind: Kind, action: fn(&Path) -> io::Result<()>, folder: PathBuf) -> io::Result<()> {
    std::thread::spawn(move || {
        jail::thread_started(kind);
        action(&folder)
    })
    .join()
    .unwrap()
}

fn read_passwd(_: &Path) -> io::Result<()> {
    fs::read("/etc/passwd").map(drop)
}

fn act(action: &str, folder: &Path) -> io::Result<()> {
    let (pid, null) = (std::process::id().cast_signed(), std::ptr::null_mut::<libc::c_void>());
    match action {
        "passwd" => read_passwd(folder),
        "list" => fs::read_dir("/").map(drop),
        "kvm" => File::options().read(true).write(true).open("/dev/kvm").map(drop),
        "write-outside" => fs::write(folder.join("outside"), "x"),
        "make-folder" => call(unsafe { libc::syscall(libc::SYS_mkdir, c"/tmp/jail".as_ptr(), 0o700) }),
        "connect" => std::net::TcpStream::connect("127.0.0.1:1").map(drop),
        "fork" => call(unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) }),
        "vfork" => call(unsafe { libc::syscall(libc::SYS_vfork) }),
        "execve" => Command::new("/bin/true").status().map(drop),
        "execve-itself" => call(unsafe { libc::syscall(libc::SYS_execve, c"/bin/true".as_ptr(), 0, 0) }),
        "ptrace" => call(unsafe { libc::ptrace(libc::PTRACE_ATTACH, 1, null, null) }),
        "kill" => call(unsafe { libc::kill(pid.saturating_add(1), 0) }.into()),
        "kill-all" => call(unsafe { libc::kill(-1, 0) }.into()),
        "terminal" => call(unsafe { libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr()) }.into()),
        "executable" => {
            let rights = libc::PROT_READ | libc::PROT_EXEC;
            let memory =
                unsafe { libc::mmap(null, 4096, rights, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
            if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
        }
        "mount" => call(unsafe { libc::syscall(libc::SYS_mount, 0, 0, 0, 0, 0) }),
        "unshare" => call(unsafe { libc::unshare(libc::CLONE_NEWUSER) }.into()),
        "bpf" => call(unsafe { libc::syscall(libc::SYS_bpf, 0, 0, 0) }),
        "limit" => {
            let limit = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
            call(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }.into())
        }
        "i386" => {
            unsafe { std::arch::asm!("int 0x80", inout("eax") 20 => _) };
            Ok(())
        }
        other => act_as_a_run(other, folder),
    }
}

/// Does what a run does, or what only some of its threads may do.
fn act_as_a_run(action: &str, folder: &Path) -> io::Result<()> {
    let null = std::ptr::null_mut::<libc::c_void>();
    match action {
        "device-opens" => on_thread(Kind::Device, read_passwd, folder.into()),
        "vcpu-opens" => on_thread(Kind::Vcpu, read_passwd, folder.into()),
        "console-opens" => on_thread(Kind::Console, read_passwd, folder.into()),
        "device-kvm" => {
            on_thread(Kind::Device, |_| call(unsafe { libc::ioctl(0, 0xae80) }.into()), folder.into())
        }
        "memory" => {
            let memory = unsafe {
                libc::mmap(null, 8 << 30, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
            };
            if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
        }
        "result" => {
            let temporary = folder.join("results/.temporary");
            fs::write(&temporary, "result")?;
            fs::rename(temporary, folder.join("results/result"))
        }
        "large-file" => {
            let file = File::create(folder.join("results/large"))?;
            file.set_len(1 << 30)
        }
        "readable" => fs::read(folder.join("readable")).map(drop),
        "thread" => {
            std::thread::spawn(|| ()).join().unwrap();
            Ok(())
        }
        "threads" => on_thread(Kind::Vcpu, |_| Ok(()), folder.into())
            .and_then(|()| on_thread(Kind::Console, |_| io::stderr().write_all(b""), folder.into())),
        "abort" => std::process::abort(),
        other => panic!("{other}"),
    }
}

/// Does nothing in the test itself. In the child, it enters the jail and acts.
#[test]
fn child() {
    let Ok(action) = std::env::var(ACTION) else { return };
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let policy = Policy {
        places: vec![
            Place::new(folder.join("results"), Use::Replace),
            Place::new(folder.join("readable"), Use::Read),
        ],
        memory: Some(8 << 30),
        file_size: Some(1 << 20),
        status: STOPPED,
        ..Policy::default()
    };
    jail::enter(policy, true).unwrap();
    end(act(&action, &folder))
}

/// The status of a child that tries an action, or the negative signal that ended it, and its last line.
fn tried(action: &str, folder: &Path) -> (i32, String) {
    use std::os::unix::process::ExitStatusExt;
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    let ran = command.env(ACTION, action).env(FOLDER, folder).output().unwrap();
    let text = String::from_utf8_lossy(&ran.stderr).lines().last().unwrap_or_default().to_owned();
    (ran.status.code().unwrap_or_else(|| -ran.status.signal().unwrap()), text)
}

/// The reason why the jail is not whole here.
fn incomplete() -> Option<String> {
    let parts = jail::facilities().into_iter().filter(|part| part.name != "namespaces");
    parts.filter_map(|part| part.found.err()).next()
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("results")).unwrap();
    fs::write(folder.path().join("readable"), "text").unwrap();
    folder
}

#[test]
fn forbidden_actions_fail_or_end_the_process_with_a_sentence() {
    if let Some(why) = incomplete() {
        eprintln!("not tested: {why}");
        return;
    }
    let folder = folder();
    for action in ["passwd", "list", "kvm", "write-outside"] {
        let is_there = action != "kvm" || Path::new("/dev/kvm").exists();
        let refused = if is_there { libc::EACCES } else { libc::ENOENT };
        assert_eq!(tried(action, folder.path()).0, refused, "{action}");
    }
    assert_eq!(tried("memory", folder.path()).0, libc::ENOMEM);
    assert_eq!(tried("large-file", folder.path()).0, libc::EFBIG);
    for (action, call, kind) in [
        ("make-folder", "mkdir (83)", "main"),
        ("connect", "socket (41)", "main"),
        ("fork", "clone (56)", "main"),
        ("vfork", "vfork (58)", "main"),
        ("execve-itself", "execve (59)", "main"),
        ("ptrace", "ptrace (101)", "main"),
        ("kill", "kill (62)", "main"),
        ("kill-all", "kill (62)", "main"),
        ("terminal", "ioctl (16) with the request 0x5412", "main"),
        ("executable", "mmap (9)", "main"),
        ("mount", "mount (165)", "main"),
        ("unshare", "unshare (272)", "main"),
        ("bpf", "bpf (321)", "main"),
        ("limit", "prlimit64 (302)", "main"),
        ("device-opens", "openat (257)", "device"),
        ("vcpu-opens", "openat (257)", "vcpu"),
        ("console-opens", "openat (257)", "console"),
        ("device-kvm", "ioctl (16) with the request 0xae80", "device"),
    ] {
        let (status, text) = tried(action, folder.path());
        assert_eq!(status, i32::from(STOPPED), "{action}: {text}");
        let sentence =
            format!("vmm: error: the jail stopped the system call {call} of a thread of the kind {kind}: ");
        assert!(text.starts_with(&sentence), "{action}: {text}");
    }
    // The C library blocks signals while it starts a program, and a call for i386 has no number here: no sentence.
    for action in ["execve", "i386"] {
        assert_eq!(tried(action, folder.path()).0, -libc::SIGSYS, "{action}");
    }
}

#[test]
fn a_run_keeps_what_it_needs() {
    let folder = folder();
    for action in ["result", "readable", "thread", "threads"] {
        if incomplete().is_none() {
            let (status, text) = tried(action, folder.path());
            assert_eq!(status, 0, "{action}: {text}");
        }
    }
    if incomplete().is_none() {
        assert_eq!(fs::read(folder.path().join("results/result")).unwrap(), b"result");
        assert_eq!(tried("abort", folder.path()).0, -libc::SIGABRT);
    }
}

/// docs/security.md shows the calls of each kind of thread, and their number.
#[test]
fn the_documentation_has_the_same_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md");
    let text = fs::read_to_string(path).unwrap();
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
    for row in table() {
        assert!(rows.contains(&row.as_str()), "docs/security.md needs the row\n{row}");
    }
    let shown = rows.iter().filter(|row| row.matches('|').count() == 8).count();
    assert_eq!(shown, jail::CALLS.len(), "docs/security.md has rows of other calls");
    for kind in Kind::ALL {
        let row = format!("| {} | {} |", kind.name(), jail::of(kind).count());
        assert!(text.contains(&row), "docs/security.md needs the row\n{row}");
    }
}

/// The rows of the table: a call, the kinds of threads that may make it, and its limit.
fn table() -> Vec<String> {
    let row = |call: &jail::Call| {
        let name = jail::call_name(i32::try_from(call.number).unwrap()).unwrap();
        let marks = Kind::ALL.map(|kind| if call.kinds & kind as u8 == 0 { " " } else { "x" });
        format!("| `{name}` | {} | {} |", marks.join(" | "), call.limit.text())
    };
    jail::CALLS.iter().map(row).collect()
}

/// Prints the table for the documentation: `cargo test -p exitlens-jail --test forbidden -- --ignored --nocapture`.
#[test]
#[ignore = "prints the table for docs/security.md"]
fn print_the_table() {
    for kind in Kind::ALL {
        println!("| {} | {} |", kind.name(), jail::of(kind).count());
    }
    table().iter().for_each(|row| println!("{row}"));
}
