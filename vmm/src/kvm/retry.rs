//! KVM operations that a signal interrupts.

use crate::host;

/// Repeats a KVM operation while signals interrupt it, unless a signal asks the program to end.
pub(crate) fn retry_on_eintr<T>(
    mut operation: impl FnMut() -> Result<T, kvm_ioctls::Error>,
) -> Result<T, kvm_ioctls::Error> {
    loop {
        match operation() {
            Err(error) if error.errno() == libc::EINTR && !host::interrupted() => {}
            answer => return answer,
        }
    }
}
