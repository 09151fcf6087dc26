//! Guests in C with a driver for virtio devices.

use super::Files;
use std::process::Command;

const DRIVER: &str = include_str!("virtio_driver.c");

/// Compiles a guest with this body for `vmm boot`. Returns its path.
pub fn guest(files: &Files, body: &str) -> String {
    let source =
        files.write("guest.c", format!("{DRIVER}\nstatic void guest(void) {{\n{body}\n}}\n").as_bytes());
    let kernel = files.0.path().join("kernel");
    let script = files.write(
        "guest.ld",
        b"ENTRY(_start)\nPHDRS { all PT_LOAD FLAGS(5); }\nSECTIONS { . = 0x100000; .text : { *(.start) *(.text*) *(.rodata*) \
          *(.data*) *(.bss*) } :all /DISCARD/ : { *(.note*) *(.eh_frame*) *(.comment*) } }",
    );
    let mut gcc = Command::new("gcc");
    gcc.args("-O1 -static -nostdlib -ffreestanding -fno-pic -fno-stack-protector -mno-red-zone -mgeneral-regs-only".split(' '))
        .args("-fcf-protection=none -Wno-unused-function -Wl,--build-id=none -Wl,-n -T".split(' '))
        .arg(script)
        .arg("-o")
        .arg(&kernel)
        .arg(source);
    assert!(gcc.status().is_ok_and(|status| status.success()), "gcc compiles the guest");
    kernel.to_str().expect("a plain path").into()
}
