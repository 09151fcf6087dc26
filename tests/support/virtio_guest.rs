//! Guests in C with a driver for virtio devices, and hosts whose system calls fail.

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

/// A library whose functions fail. The environment variable FAIL has the name of a function, an errno, the number of
/// calls that succeed first, and the number of calls that fail.
const FAILING: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>
static int fails(const char *function) {
    char name[32];
    int error, skip, times;
    static int seen;
    const char *fail = getenv("FAIL");
    if (!fail || sscanf(fail, "%31s %d %d %d", name, &error, &skip, &times) != 4 || strcmp(name, function)) return 0;
    int call = __sync_fetch_and_add(&seen, 1);
    if (call < skip || call >= skip + times) return 0;
    errno = error;
    return 1;
}
#define REPLACE(type, name, parameters, arguments) \
    type name parameters { \
        if (fails(#name)) return -1; \
        return ((type (*) parameters)dlsym(RTLD_NEXT, #name)) arguments; \
    }
REPLACE(int, fdatasync, (int file), (file))
REPLACE(int, sync_file_range, (int file, off64_t start, off64_t len, unsigned flags), (file, start, len, flags))
REPLACE(int, epoll_wait, (int file, struct epoll_event *events, int max, int wait), (file, events, max, wait))
REPLACE(int, ppoll, (struct pollfd *files, nfds_t count, const struct timespec *wait, const sigset_t *mask),
        (files, count, wait, mask))
REPLACE(ssize_t, preadv, (int file, const struct iovec *to, int count, off_t at), (file, to, count, at))
REPLACE(ssize_t, pwritev, (int file, const struct iovec *from, int count, off_t at), (file, from, count, at))
"#;

/// Compiles the library. Returns its path, for LD_PRELOAD.
pub fn failing_host(files: &Files) -> String {
    let source = files.write("failing.c", FAILING.as_bytes());
    let library = files.0.path().join("failing.so");
    let mut gcc = Command::new("gcc");
    gcc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl");
    assert!(gcc.status().is_ok_and(|status| status.success()), "gcc compiles the library");
    library.to_str().expect("a plain path").into()
}
