//! Builds the guests that the `guest` crate embeds: assembles or compiles each payload, links it with its
//! linker script, and leaves a flat image `NAME.bin` in `OUT_DIR`.
//!
//! Needs `nasm`, and gcc with binutils (`ld`, `objcopy`); C for 32 bits is compiled without any library, so
//! no multilib is needed. 64-bit Rust is compiled by the same rustc as the rest, for the bare machine.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A guest image: its name, its source below `guest/payloads`, and the linker script that places it.
struct Payload {
    name: &'static str,
    source: &'static str,
    script: &'static str,
    defines: &'static [&'static str],
}

const fn payload(name: &'static str, source: &'static str, script: &'static str) -> Payload {
    Payload { name, source, script, defines: &[] }
}

const PAYLOADS: &[Payload] = &[
    payload("real16-42", "real16/forty_two.asm", "real16.ld"),
    payload("real16-hello", "real16/hello.asm", "real16.ld"),
    payload("real16-in", "real16/port_in.asm", "real16.ld"),
    payload("real16-outsb", "real16/string_out.asm", "real16.ld"),
    payload("real16-insb", "real16/string_in.asm", "real16.ld"),
    payload("modes", "real16/modes.asm", "real16.ld"),
    payload("real16-endless", "real16/endless.asm", "real16.ld"),
    payload("real16-wrong-result", "real16/wrong_result.asm", "real16.ld"),
    payload("prot32-hello", "prot32/hello.c", "prot32.ld"),
    payload("prot32-triple-fault", "prot32/triple_fault.asm", "prot32.ld"),
    payload("long64-hello", "long64/hello.rs", "long64.ld"),
    payload("long64-exit-code", "long64/exit_code.asm", "long64.ld"),
    payload("long64-triple-fault", "long64/triple_fault.asm", "long64.ld"),
    payload("long64-endless", "long64/endless.asm", "long64.ld"),
    payload("hello-kvm", "long64/hello_kvm.asm", "plain64.ld"),
    Payload { name: "user64-hello", source: "long64/hello.rs", script: "long64.ld", defines: &["ring3"] },
    payload("user64-hlt", "user64/hlt.asm", "long64.ld"),
    payload("user64-ports", "user64/ports.asm", "long64.ld"),
    Payload {
        name: "user64-simvirtio",
        source: "long64/simvirtio.rs",
        script: "long64.ld",
        defines: &["ring3"],
    },
    payload("simvirtio", "long64/simvirtio.rs", "long64.ld"),
    payload("simvirtio-c", "long64/simvirtio.c", "long64.ld"),
    Payload {
        name: "simvirtio-skeleton",
        source: "long64/simvirtio.c",
        script: "long64.ld",
        defines: &["ANNOUNCE_MAGIC"],
    },
    payload("simvirtio-upper", "long64/simvirtio_upper.rs", "long64.ld"),
    payload("simvirtio-upper-c", "long64/simvirtio_upper.c", "long64.ld"),
    payload("simvirtio-twice", "long64/simvirtio_twice.rs", "long64.ld"),
    payload("simvirtio-reserved", "long64/reserved.asm", "long64.ld"),
    payload("simvirtio-doorbell", "long64/doorbell.asm", "long64.ld"),
    payload("simvirtio-echo", "long64/echo.asm", "long64.ld"),
    payload("simvirtio-no-wrap", "hostile/no_wrap.asm", "long64.ld"),
    payload("hostile-data-early", "hostile/data_early.asm", "long64.ld"),
    payload("hostile-second-reset", "hostile/second_reset.asm", "long64.ld"),
    payload("hostile-second-config", "hostile/second_config.asm", "long64.ld"),
    payload("hostile-wild-head", "hostile/wild_head.asm", "long64.ld"),
    payload("hostile-selector", "hostile/selector.asm", "long64.ld"),
    payload("hostile-narrow-head", "hostile/narrow_head.asm", "long64.ld"),
    payload("hostile-word-head", "hostile/word_head.asm", "long64.ld"),
    payload("hostile-wide-head", "hostile/wide_head.asm", "long64.ld"),
    payload("hostile-straddling-head", "hostile/straddling_head.asm", "long64.ld"),
    payload("hostile-decreasing-head", "hostile/decreasing_head.asm", "long64.ld"),
    payload("hostile-racing-head", "hostile/racing_head.asm", "long64.ld"),
    payload("hostile-read-only", "hostile/read_only.asm", "long64.ld"),
    payload("hostile-widths", "hostile/widths.asm", "long64.ld"),
    payload("hostile-full-queue", "hostile/full_queue.asm", "long64.ld"),
    payload("hostile-over-table", "hostile/over_table.asm", "long64.ld"),
    payload("hostile-over-buffers", "hostile/over_buffers.asm", "long64.ld"),
    payload("hostile-status", "hostile/status.asm", "long64.ld"),
    payload("hostile-no-ack", "hostile/no_ack.asm", "long64.ld"),
    payload("hostile-table", "hostile/table.asm", "long64.ld"),
    payload("hostile-halt-early", "hostile/halt_early.asm", "long64.ld"),
    payload("hostile-jump-outside", "hostile/jump_outside.asm", "long64.ld"),
    payload("hostile-return", "hostile/return.asm", "long64.ld"),
    payload("hostile-gdt", "hostile/gdt.asm", "long64.ld"),
    payload("hostile-page-tables", "hostile/page_tables.asm", "long64.ld"),
    payload("prot32-endless", "prot32/endless.asm", "prot32.ld"),
    payload("kev-hypercall", "kev/hypercall.asm", "long64.ld"),
    payload("kev-hypercall32", "kev/hypercall32.asm", "prot32.ld"),
    payload("kev-hypercall16", "kev/hypercall16.asm", "real16.ld"),
    payload("kev-port", "kev/port.asm", "long64.ld"),
    payload("kev-mmio", "kev/mmio.asm", "long64.ld"),
    payload("kev-halt", "kev/halt.asm", "long64.ld"),
    payload("kev-ports", "kev/ports.asm", "long64.ld"),
    payload("kev-strings", "kev/strings.asm", "long64.ld"),
    payload("kev-cpuid", "kev/cpuid.asm", "long64.ld"),
    payload("kev-msr", "kev/msr.asm", "long64.ld"),
    payload("kev-msr-fault", "kev/msr_fault.asm", "long64.ld"),
    payload("kev-msr-rules", "kev/msr_rules.asm", "long64.ld"),
    payload("kev-vmcall", "kev/vmcall.asm", "long64.ld"),
    payload("smp-counter", "kev/counter.asm", "long64.ld"),
    payload("smp-print", "kev/print.asm", "long64.ld"),
    payload("smp-stop", "kev/stop.asm", "long64.ld"),
    payload("hostile-hypercall", "kev/hostile_hypercall.asm", "long64.ld"),
    payload("hostile-mmio", "kev/hostile_mmio.asm", "long64.ld"),
    payload("hostile-ins", "kev/hostile_ins.asm", "long64.ld"),
    payload("compare", "compare.asm", "long64.ld"),
    payload("simvirtio-config-first", "long64/config_first.asm", "long64.ld"),
    payload("simvirtio-broken-wait", "long64/broken_wait.asm", "long64.ld"),
];

/// For code that runs on a bare machine: no position independence, no red zone under interrupts, and no
/// SSE, which nothing has switched on.
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
    // Fixed addresses below one page, such as the result word, are no arrays to this compiler.
    "-Wno-array-bounds",
];

/// Where this is set, as `make check` does, a warning of a guest's compiler is an error.
const DENY_WARNINGS: &str = "GUEST_DENY_WARNINGS";

fn main() {
    let build = Build::new();
    println!("cargo::rerun-if-changed={}", build.root.join("build.rs").display());
    for folder in ["linker", "guest/payloads", "guest/include", "simvirtio/src"] {
        println!("cargo::rerun-if-changed={}", build.root.join(folder).display());
    }
    let target = env::var("TARGET").unwrap_or_default();
    if !target.starts_with("x86_64-") || !target.contains("linux") {
        fail(&format!("this VMM and its guests are for x86_64 Linux, and the target is {target}"));
    }
    if Command::new("nasm").arg("-v").output().is_err() {
        fail(
            "nasm, the assembler of the 16-bit guests, is missing: run `make setup`, or apt-get install nasm",
        );
    }
    println!("cargo::rerun-if-env-changed={DENY_WARNINGS}");
    // What the user has set for his own programs is not for a bare machine.
    let for_target = [format!("CFLAGS_{target}"), format!("CFLAGS_{}", target.replace('-', "_"))];
    let general = ["CFLAGS", "HOST_CFLAGS", "TARGET_CFLAGS", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"];
    for variable in general.into_iter().chain(for_target.iter().map(String::as_str)) {
        // SAFETY: a build script's main has no other thread yet.
        #[allow(unsafe_code)]
        unsafe {
            env::remove_var(variable);
        }
    }
    let library = build.simvirtio();
    for payload in PAYLOADS {
        build.payload(payload, &library);
    }
}

/// The folders that the build works in.
struct Build {
    root: PathBuf,
    out: PathBuf,
}

impl Build {
    fn new() -> Self {
        let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
        let root = manifest.parent().map(Path::to_path_buf).unwrap_or_default();
        Self { root, out: PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()) }
    }

    /// The protocol crate, compiled for guests.
    fn simvirtio(&self) -> PathBuf {
        let library = self.out.join("libsimvirtio.rlib");
        let mut rustc = rustc();
        rustc.args(["--crate-type=rlib", "--crate-name=simvirtio", "-o"]).arg(&library);
        run(rustc.arg(self.root.join("simvirtio/src/lib.rs")));
        library
    }

    fn payload(&self, payload: &Payload, library: &Path) {
        let source = self.root.join("guest/payloads").join(payload.source);
        let script = self.root.join("linker").join(payload.script);
        let elf = self.out.join(payload.name).with_extension("elf");
        let bits = if payload.script.ends_with("64.ld") { 64 } else { 32 };
        match source.extension().and_then(OsStr::to_str) {
            Some("rs") => {
                let mut rustc = rustc();
                rustc.args(["--crate-type=bin", "--crate-name=payload", "--extern"]);
                rustc.arg(format!("simvirtio={}", library.display()));
                rustc.arg("--check-cfg=cfg(ring3)");
                rustc.args(payload.defines.iter().map(|define| format!("--cfg={define}")));
                for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"] {
                    rustc.arg(format!("-Clink-arg={argument}"));
                }
                rustc.arg(format!("-Clink-arg=-T{}", script.display())).arg("-o").arg(&elf);
                run(rustc.arg(&source));
            }
            Some("c") => link(bits, &script, &self.c_object(payload, &source, bits), &elf),
            _ => link(bits, &script, &self.nasm_object(payload, &source, bits), &elf),
        }
        let image = self.out.join(payload.name).with_extension("bin");
        run(Command::new("objcopy").args(["-O", "binary"]).arg(&elf).arg(&image));
    }

    fn c_object(&self, payload: &Payload, source: &Path, bits: u8) -> Vec<PathBuf> {
        let mut cc = cc::Build::new();
        cc.out_dir(self.out.join(payload.name)).no_default_flags(true).cargo_metadata(false);
        cc.warnings(true).extra_warnings(true).warnings_into_errors(deny_warnings());
        cc.flag(format!("-m{bits}")).flag("-Os").flags(C_FLAGS).include(self.root.join("guest/include"));
        for define in payload.defines {
            cc.define(define, None);
        }
        match cc.file(source).try_compile_intermediates() {
            Ok(objects) => objects,
            Err(error) => fail(&format!("{}: {error}", source.display())),
        }
    }

    fn nasm_object(&self, payload: &Payload, source: &Path, bits: u8) -> Vec<PathBuf> {
        let folder = self.out.join(payload.name);
        if let Err(error) = std::fs::create_dir_all(&folder) {
            fail(&format!("{}: {error}", folder.display()));
        }
        let mut nasm = nasm_rs::Build::new();
        nasm.file(source).out_dir(folder).target("").debug(false).flag(&format!("-felf{bits}"));
        // nasm wants the separator at the end.
        nasm.include(format!("{}/", self.root.join("guest/include").display())).flag("-Werror");
        match nasm.compile_objects() {
            Ok(objects) => objects,
            Err(error) => fail(&format!("{}: {error}", source.display())),
        }
    }
}

fn deny_warnings() -> bool {
    env::var_os(DENY_WARNINGS).is_some()
}

fn rustc() -> Command {
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    if deny_warnings() {
        rustc.arg("-Dwarnings");
    }
    rustc.args(RUSTC_FLAGS).args(["--target", &env::var("TARGET").unwrap_or_default()]);
    rustc
}

fn link(bits: u8, script: &Path, objects: &[PathBuf], elf: &Path) {
    let emulation = if bits == 64 { "elf_x86_64" } else { "elf_i386" };
    let mut ld = Command::new("ld");
    ld.args(["-m", emulation, "-T"]).arg(script).arg("-o").arg(elf);
    run(ld.args(objects));
}

fn run(command: &mut Command) {
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => fail(&format!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => {
            fail(&format!("{command:?}: {error} (gcc and binutils are needed to build the guests)"))
        }
    }
}

fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    std::process::exit(1)
}
