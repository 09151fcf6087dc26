//! Builds the guests that the `guest` crate embeds: assembles or compiles each payload, links it with its
//! linker script, and writes a flat image `NAME.bin` to `OUT_DIR`.
//!
//! Needs `nasm`, and gcc with binutils (`ld`, `objcopy`). No multilib is needed, because 32-bit C is compiled without
//! any library. The rustc that compiles this workspace also compiles the 64-bit Rust payloads, freestanding.
//!
//! The guests are x86 code on every host and for every target. A host other than x86-64 Linux needs a gcc and a Rust
//! target for x86-64 ([`Tools`]).

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Stands in for the images, which do not exist yet: this script reads only the other fields of the table.
macro_rules! image {
    ($name:literal) => {
        &[]
    };
}

#[allow(dead_code)]
#[path = "src/catalogue/mod.rs"]
mod catalogue;
#[allow(dead_code)]
#[path = "src/model.rs"]
mod model;

use catalogue::{COMPARE, GUESTS, HIDDEN};
use model::{Guest, Map, Mode};

/// Flags for code without an operating system: no position independence, no red zone (interrupts overwrite it), and no
/// SSE (it is not enabled).
const RUSTC_FLAGS: &[&str] = &[
    "--edition=2024",
    "-Cpanic=abort",
    "-Crelocation-model=static",
    "-Ccode-model=small",
    "-Cno-redzone=yes",
    "-Copt-level=s",
    "-Clto=fat",
    "-Cembed-bitcode=yes",
    "-Ctarget-feature=-sse,-sse2",
];

const C_FLAGS: &[&str] = &[
    "-std=gnu11",
    "-ffreestanding",
    "-fno-pic",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns",
    "-mgeneral-regs-only",
    "-mno-red-zone",
    // gcc reports a fixed address below one page (here the result word) as an array of size 0.
    "-Wno-array-bounds",
];

/// Environment variable. If set, as in `make check`, a compiler warning in a guest is an error.
const DENY_WARNINGS: &str = "GUEST_DENY_WARNINGS";

fn main() {
    let build = Build::new();
    for folder in ["build.rs", "linker", "payloads", "include"] {
        println!("cargo::rerun-if-changed={folder}");
    }
    println!("cargo::rerun-if-changed={}", simvirtio_source().display());
    if Command::new("nasm").arg("-v").output().is_err() {
        fail(
            "nasm, the assembler of the guests, is missing: run `make setup`, `apt-get install nasm` or \
             `brew install nasm`",
        );
    }
    println!("cargo::rerun-if-env-changed={DENY_WARNINGS}");
    // The user's flags are for ordinary programs and can break freestanding code.
    let target = &build.tools.target;
    let for_target = [format!("CFLAGS_{target}"), format!("CFLAGS_{}", target.replace('-', "_"))];
    let general = ["CFLAGS", "HOST_CFLAGS", "TARGET_CFLAGS", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"];
    for variable in general.into_iter().chain(for_target.iter().map(String::as_str)) {
        // SAFETY: no other thread runs yet.
        #[allow(unsafe_code)]
        unsafe {
            env::remove_var(variable);
        }
    }
    let library = build.simvirtio();
    for guest in GUESTS.iter().chain([&COMPARE]).chain(&HIDDEN) {
        if let Some(source) = guest.source {
            build.guest(guest, source, &library);
        }
    }
}

/// The tools that make x86-64 code.
struct Tools {
    /// The prefix of the names of the GNU tools, such as `x86_64-linux-gnu-`. Empty on x86-64 Linux.
    prefix: &'static str,
    /// The C compiler. `None` for a build on and for x86-64 Linux, where it is the system's own or that in `CC`.
    compiler: Option<String>,
    /// The target of the Rust payloads. Its `core` is installed.
    target: String,
}

impl Tools {
    /// The prefixes of a gcc for x86-64: that of Linux distributions and that of Homebrew.
    const PREFIXES: [&str; 2] = ["x86_64-linux-gnu-", "x86_64-elf-"];

    fn find() -> Self {
        let x86_linux = |name: &String| name.starts_with("x86_64-") && name.contains("linux");
        let (target, host) = (variable("TARGET"), variable("HOST"));
        let runs = |prefix: &&str| Command::new(format!("{prefix}gcc")).arg("-dumpmachine").output().is_ok();
        let prefix = match Self::PREFIXES.into_iter().find(runs) {
            _ if x86_linux(&host) => "",
            Some(prefix) => prefix,
            None => fail(
                "the guests are x86 code, and gcc for x86-64 is missing: run `apt-get install gcc-x86-64-linux-gnu` or \
                 `brew install x86_64-elf-gcc`",
            ),
        };
        let native = x86_linux(&host) && x86_linux(&target);
        let compiler = (!native).then(|| format!("{prefix}gcc"));
        Self {
            prefix,
            compiler,
            target: [target, host].into_iter().find(x86_linux).unwrap_or_else(other_target),
        }
    }
}

/// Returns the target of x86-64 Linux, for other hosts and targets. With it the images are the same on all hosts.
fn other_target() -> String {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let mut rustc = Command::new(variable("RUSTC"));
    let folder = rustc.args(["--print", "target-libdir", "--target", TARGET]).output();
    let folder = folder.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    if !folder.is_ok_and(|folder| Path::new(&folder).exists()) {
        fail(&format!(
            "the guests are x86 code, and Rust's target for it is missing: run `rustup target add {TARGET}`"
        ));
    }
    TARGET.into()
}

/// The folders and the tools of the build.
struct Build {
    /// The folder of this package.
    root: PathBuf,
    /// The folder of the results, `OUT_DIR`.
    out: PathBuf,
    tools: Tools,
}

impl Build {
    fn new() -> Self {
        let root = variable("CARGO_MANIFEST_DIR").into();
        Self { root, out: variable("OUT_DIR").into(), tools: Tools::find() }
    }

    /// Compiles the protocol crate for guests.
    fn simvirtio(&self) -> PathBuf {
        let library = self.out.join("libsimvirtio.rlib");
        let mut rustc = self.rustc();
        rustc.args(["--crate-type=rlib", "--crate-name=simvirtio", "-o"]).arg(&library);
        run(rustc.arg(simvirtio_source().join("lib.rs")));
        library
    }

    /// Builds the image of `guest` from `source`.
    fn guest(&self, guest: &Guest, source: &str, library: &Path) {
        let source = self.root.join("payloads").join(source);
        let elf = self.out.join(guest.name).with_extension("elf");
        match source.extension().and_then(OsStr::to_str) {
            Some("rs") => self.rust(guest, &source, library, &elf),
            Some("c") => self.link(guest, &self.c_object(guest, &source), &elf),
            _ => self.link(guest, &self.nasm_object(guest, &source), &elf),
        }
        let image = self.out.join(guest.name).with_extension("bin");
        run(self.binutil("objcopy").args(["-O", "binary"]).arg(&elf).arg(&image));
    }

    fn rust(&self, guest: &Guest, source: &Path, library: &Path, elf: &Path) {
        let mut rustc = self.rustc();
        rustc.args(["--crate-type=bin", "--crate-name=payload", "--extern"]);
        rustc.arg(format!("simvirtio={}", library.display()));
        rustc.arg("--check-cfg=cfg(ring3)");
        if guest.mode == Mode::User {
            rustc.arg("--cfg=ring3");
        }
        for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"] {
            rustc.arg(format!("-Clink-arg={argument}"));
        }
        rustc.arg(format!("-Clink-arg=-T{}", self.script(guest).display())).arg("-o").arg(elf);
        run(rustc.arg(source));
    }

    fn c_object(&self, guest: &Guest, source: &Path) -> Vec<PathBuf> {
        let mut cc = cc::Build::new();
        cc.out_dir(self.out.join(guest.name)).no_default_flags(true).cargo_metadata(false);
        cc.target(&self.tools.target);
        if let Some(compiler) = &self.tools.compiler {
            cc.compiler(compiler);
        }
        cc.warnings(true).extra_warnings(true).warnings_into_errors(deny_warnings());
        cc.flag(format!("-m{}", bits(guest))).flag("-Os").flags(C_FLAGS).include(self.root.join("include"));
        for define in guest.defines {
            cc.define(define, None);
        }
        match cc.file(source).try_compile_intermediates() {
            Ok(objects) => objects,
            Err(error) => fail(&format!("{}: {error}", source.display())),
        }
    }

    fn nasm_object(&self, guest: &Guest, source: &Path) -> Vec<PathBuf> {
        let folder = self.out.join(guest.name);
        if let Err(error) = std::fs::create_dir_all(&folder) {
            fail(&format!("{}: {error}", folder.display()));
        }
        let mut nasm = nasm_rs::Build::new();
        nasm.file(source).out_dir(folder).target("").debug(false).flag(&format!("-felf{}", bits(guest)));
        // nasm needs the separator at the end.
        nasm.include(format!("{}/", self.root.join("include").display())).flag("-Werror");
        match nasm.compile_objects() {
            Ok(objects) => objects,
            Err(error) => fail(&format!("{}: {error}", source.display())),
        }
    }

    fn link(&self, guest: &Guest, objects: &[PathBuf], elf: &Path) {
        let emulation = if bits(guest) == 64 { "elf_x86_64" } else { "elf_i386" };
        let mut ld = self.binutil("ld");
        ld.args(["-m", emulation, "-T"]).arg(self.script(guest)).arg("-o").arg(elf);
        run(ld.args(objects));
    }

    fn binutil(&self, name: &str) -> Command {
        Command::new(format!("{}{name}", self.tools.prefix))
    }

    fn rustc(&self) -> Command {
        let mut rustc = Command::new(variable("RUSTC"));
        if deny_warnings() {
            rustc.arg("-Dwarnings");
        }
        rustc.args(RUSTC_FLAGS).args(["--target", &self.tools.target]);
        if let Some(compiler) = &self.tools.compiler {
            rustc.arg(format!("-Clinker={compiler}"));
        }
        rustc
    }

    /// Returns the linker script of this guest.
    fn script(&self, guest: &Guest) -> PathBuf {
        self.root.join("linker").join(match (guest.mode, guest.map) {
            (Mode::Real, _) => "real16.ld",
            (Mode::Protected, _) => "prot32.ld",
            (Mode::Long | Mode::User, Map::So2) => "long64.ld",
            (Mode::Long | Mode::User, Map::Plain) => "plain64.ld",
        })
    }
}

/// Returns the folder with the sources of the protocol crate. In a checkout it is in the workspace, and otherwise where cargo
/// keeps downloaded packages.
fn simvirtio_source() -> &'static Path {
    Path::new(simvirtio::SOURCE)
}

/// Returns the width of the object files. Real-mode code is linked as 32-bit code.
fn bits(guest: &Guest) -> u8 {
    match guest.mode {
        Mode::Real | Mode::Protected => 32,
        Mode::Long | Mode::User => 64,
    }
}

/// Returns a variable that cargo sets for each build script.
fn variable(name: &str) -> String {
    env::var(name)
        .unwrap_or_else(|error| fail(&format!("{name}: {error} (cargo sets it: run `cargo build`)")))
}

fn deny_warnings() -> bool {
    env::var_os(DENY_WARNINGS).is_some()
}

fn run(command: &mut Command) {
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => fail(&format!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => fail(&format!("{command:?}: {error} (the guests need gcc and binutils)")),
    }
}

fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    std::process::exit(1)
}
