//! Sets `cfg(has_kvm)` if this package is built for x86-64 Linux. On other hosts it has no KVM, and no Linux guests, which need
//! it (`docs/design.md`, "Hosts"). `commands/build.rs` has the same condition.

use std::env;

/// Prints the instructions for cargo.
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(has_kvm)");
    let target = |part: &str| env::var(format!("CARGO_CFG_TARGET_{part}")).unwrap_or_default();
    if target("OS") == "linux" && target("ARCH") == "x86_64" {
        println!("cargo::rustc-cfg=has_kvm");
    }
}
