//! The system calls that no program needs, and that reach out of its namespaces: a seccomp filter. All other calls stay as they are.

use libc::{c_long, sock_filter};

/// The architecture of x86-64 (linux/audit.h).
const X86_64: u32 = 0xc000_003e;
/// The numbers of the x32 ABI begin here.
const X32: u32 = 0x4000_0000;
/// The places of the number, the architecture and the first argument in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

/// Loads a word of `struct seccomp_data`.
const fn load(place: u32) -> sock_filter {
    sock_filter { code: 0x20, jt: 0, jf: 0, k: place }
}

/// Skips `yes` instructions if the word is equal, and otherwise `no`.
const fn equal(k: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter { code: 0x15, jt: yes, jf: no, k }
}

/// The same if it is this call.
const fn call(number: c_long, yes: u8, no: u8) -> sock_filter {
    equal(number as u32, yes, no)
}

const fn end(k: u32) -> sock_filter {
    sock_filter { code: 0x06, jt: 0, jf: 0, k }
}

/// The call fails with this error.
const fn fails(error: i32) -> sock_filter {
    end(libc::SECCOMP_RET_ERRNO | error as u32)
}

/// Keyrings belong to the user and not to a namespace. A socket of another family, such as AF_VSOCK, knows no network namespace. An
/// io_uring makes system calls that no filter sees. Calls with the numbers of 32-bit programs would need filters of their own.
pub static FILTER: [sock_filter; 18] = [
    load(ARCHITECTURE),
    equal(X86_64, 0, 14),
    load(NUMBER),
    // Jumps if the number is as large or larger.
    sock_filter { code: 0x35, jt: 12, jf: 0, k: X32 },
    call(libc::SYS_add_key, 10, 0),
    call(libc::SYS_request_key, 9, 0),
    call(libc::SYS_keyctl, 8, 0),
    call(libc::SYS_io_uring_setup, 8, 0),
    call(libc::SYS_socket, 0, 8),
    load(FIRST_ARGUMENT),
    equal(libc::AF_UNIX as u32, 6, 0),
    equal(libc::AF_INET as u32, 5, 0),
    equal(libc::AF_INET6 as u32, 4, 0),
    equal(libc::AF_NETLINK as u32, 3, 0),
    fails(libc::EAFNOSUPPORT),
    fails(libc::EPERM),
    fails(libc::ENOSYS),
    end(libc::SECCOMP_RET_ALLOW),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter, as the kernel does.
    fn result(number: u32, architecture: u32, argument: u32) -> u32 {
        let (mut at, mut word) = (0usize, 0);
        loop {
            let sock_filter { code, jt, jf, k } = FILTER[at];
            at += 1;
            match code {
                0x20 if k == NUMBER => word = number,
                0x20 if k == ARCHITECTURE => word = architecture,
                0x20 => word = argument,
                0x15 => at += usize::from(if word == k { jt } else { jf }),
                0x35 => at += usize::from(if word >= k { jt } else { jf }),
                0x06 => return k,
                code => panic!("{code:#x}"),
            }
        }
    }

    #[test]
    fn keyrings_and_other_families_are_refused_and_the_rest_is_not() {
        let error = |error: i32| libc::SECCOMP_RET_ERRNO | error as u32;
        let of = |call: c_long, argument: i32| result(call as u32, X86_64, argument as u32);
        for call in [libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl] {
            assert_eq!(of(call, 0), error(libc::EPERM));
        }
        assert_eq!(of(libc::SYS_io_uring_setup, 1), error(libc::ENOSYS));
        for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK] {
            assert_eq!(of(libc::SYS_socket, family), libc::SECCOMP_RET_ALLOW);
        }
        for family in [libc::AF_VSOCK, libc::AF_ALG, libc::AF_PACKET, 0, -1] {
            assert_eq!(of(libc::SYS_socket, family), error(libc::EAFNOSUPPORT));
        }
        for call in
            [libc::SYS_read, libc::SYS_ioctl, libc::SYS_socketpair, libc::SYS_execve, libc::SYS_seccomp]
        {
            assert_eq!(of(call, 1), libc::SECCOMP_RET_ALLOW);
        }
        assert_eq!(result(libc::SYS_read as u32 | X32, X86_64, 0), error(libc::ENOSYS));
        assert_eq!(result(libc::SYS_read as u32, 0x4000_0003, 0), error(libc::ENOSYS));
    }
}
