//! The seccomp filter of the program: it stops at the calls to KVM, and at nothing else.

use libc::sock_filter;
use std::mem::offset_of;

/// AUDIT_ARCH_X86_64: the system call is one of x86-64 and not of i386, which KVM's users do not make.
const X86_64: u32 = 0xc000_003e;
/// The number of `ioctl`. That of x32 has a further bit.
pub(super) const IOCTL: u32 = libc::SYS_ioctl as u32;
/// The type of KVM's requests (KVMIO), in its place in a request.
const KVM: u32 = 0xae00;
/// The bits of the type in a request.
const TYPE: u32 = 0xff00;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const JUMP_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// The places of the members of `seccomp_data`. The request is the lower half of the second argument.
const NUMBER: u32 = offset_of!(libc::seccomp_data, nr) as u32;
const ARCHITECTURE: u32 = offset_of!(libc::seccomp_data, arch) as u32;
const REQUEST: u32 = offset_of!(libc::seccomp_data, args) as u32 + 8;

const fn instruction(code: u32, operand: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k: operand }
}

/// Goes on if the loaded word is this one, and else skips so many instructions.
const fn unless(operand: u32, skip: u8) -> sock_filter {
    sock_filter { code: JUMP_EQUAL as u16, jt: 0, jf: skip, k: operand }
}

/// The filter (Linux `Documentation/userspace-api/seccomp_filter.rst`).
pub(super) const FILTER: [sock_filter; 9] = [
    instruction(LOAD, ARCHITECTURE),
    unless(X86_64, 6),
    instruction(LOAD, NUMBER),
    unless(IOCTL, 4),
    instruction(LOAD, REQUEST),
    instruction(AND, TYPE),
    unless(KVM, 1),
    instruction(RETURN, libc::SECCOMP_RET_TRACE),
    instruction(RETURN, libc::SECCOMP_RET_ALLOW),
];

/// True for a request that the filter stops at.
pub(super) fn is_kvm(request: u32) -> bool {
    request & TYPE == KVM
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter on a system call.
    fn run(architecture: u32, number: u32, request: u64) -> u32 {
        let mut data = [0; size_of::<libc::seccomp_data>()];
        data[NUMBER as usize..][..4].copy_from_slice(&number.to_ne_bytes());
        data[ARCHITECTURE as usize..][..4].copy_from_slice(&architecture.to_ne_bytes());
        data[REQUEST as usize..][..8].copy_from_slice(&request.to_ne_bytes());
        let (mut rest, mut word) = (FILTER.iter(), 0);
        loop {
            let sock_filter { code, jt, jf, k } = *rest.next().unwrap();
            match u32::from(code) {
                LOAD => word = u32::from_ne_bytes(data[k as usize..][..4].try_into().unwrap()),
                AND => word &= k,
                JUMP_EQUAL => {
                    rest = rest.as_slice()[usize::from(if word == k { jt } else { jf })..].iter();
                }
                RETURN => return k,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn only_calls_to_kvm_stop() {
        let (stop, pass) = (libc::SECCOMP_RET_TRACE, libc::SECCOMP_RET_ALLOW);
        for (architecture, number, request, result) in [
            (X86_64, IOCTL, 0xae80, stop),
            (X86_64, IOCTL, 0x4020_ae46, stop),
            // The kernel ignores the upper half.
            (X86_64, IOCTL, 0xffff_ffff_0000_ae80, stop),
            (X86_64, IOCTL, 0xae00_0000_0000, pass),
            // TCGETS, and requests of VFIO and vhost.
            (X86_64, IOCTL, 0x5401, pass),
            (X86_64, IOCTL, 0x3b64, pass),
            (X86_64, IOCTL, 0xaf00, pass),
            // `read`, and the `ioctl` of x32 and i386.
            (X86_64, 0, 0xae80, pass),
            (X86_64, IOCTL | 0x4000_0000, 0xae80, pass),
            (X86_64, 514 | 0x4000_0000, 0xae80, pass),
            (0x4000_0003, 54, 0xae80, pass),
            (0x4000_0003, IOCTL, 0xae80, pass),
        ] {
            assert_eq!(run(architecture, number, request), result, "{architecture:#x} {number} {request:#x}");
            assert!(result == pass || is_kvm(request as u32));
        }
    }
}
