//! Tests that need KVM, and tests that do not. The tests of the package `bench` use this file too.

use libtest_mimic::{Completion, Failed, Trial};
use std::sync::OnceLock;
use vmm::boot::Image;
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Error, Machine, Output};

/// Returns the reason why KVM cannot be used on this host, if it cannot. Only this reason skips tests, no other failure.
pub fn unusable() -> Option<&'static str> {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    let probe = || {
        let image = Image::flat(&[0xf4][..], Mode::Real, Gpa(0)).expect("an image");
        match Machine::builder(image).output(Output::captured().0).build() {
            Err(error @ (Error::OpenKvm { .. } | Error::NotKvm { .. } | Error::ApiVersion { .. })) => {
                Some(error.to_string())
            }
            _ => None,
        }
    };
    REASON.get_or_init(probe).as_deref()
}

/// Returns a test that runs guests. If KVM cannot be used, the test is skipped with the reason. With REQUIRE_KVM=1 in
/// the environment, it fails instead.
pub fn kvm_test(name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || match unusable() {
        None => {
            body();
            Ok(Completion::Completed)
        }
        Some(reason) if std::env::var("REQUIRE_KVM").is_ok_and(|value| value == "1") => {
            Err(Failed::from(format!("REQUIRE_KVM=1, and {reason}")))
        }
        Some(reason) => Ok(Completion::ignored_with(reason)),
    })
}

/// Returns a test that does not need KVM.
pub fn plain_test(name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, || {
        body();
        Ok(())
    })
}

/// Returns a test with another condition. If `lacks` returns a reason, the test is skipped with it.
pub fn test_unless(
    lacks: impl FnOnce() -> Option<String> + Send + 'static,
    name: impl Into<String>,
    body: impl FnOnce() + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, || match lacks() {
        Some(reason) => Ok(Completion::ignored_with(reason)),
        None => {
            body();
            Ok(Completion::Completed)
        }
    })
}
