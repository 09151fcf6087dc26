//! Sets `cfg(has_kvm)`, as `vmm/build.rs` does, and passes on what `vmm --version` says about the build.

use std::{env, fs};

/// Prints the instructions for cargo.
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(has_kvm)");
    let target = |part: &str| env::var(format!("CARGO_CFG_TARGET_{part}")).unwrap_or_default();
    if target("OS") == "linux" && target("ARCH") == "x86_64" {
        println!("cargo::rustc-cfg=has_kvm");
    }
    println!("cargo::rustc-env=BUILD_TARGET={}", env::var("TARGET").unwrap_or_default());
    println!("cargo::rerun-if-env-changed=VMM_COMMIT");
    if let Some(commit) = env::var("VMM_COMMIT").ok().or_else(packaged_commit) {
        println!("cargo::rustc-env=VMM_COMMIT={commit}");
    }
}

/// Returns the commit that cargo notes in each package that it makes for the registry.
fn packaged_commit() -> Option<String> {
    let text = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let commit = text.split("\"sha1\": \"").nth(1)?.split('"').next()?;
    Some(commit.into())
}
