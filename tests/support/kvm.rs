//! Tests that need KVM, and tests that do not. The tests of the bench share this file.

use libtest_mimic::{Completion, Failed, Trial};
use std::sync::OnceLock;
use vmm::boot::Image;
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Error, Machine, Output};

/// The reason why KVM cannot be used here, if it cannot. Any other failure does not skip a test.
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

/// A test that runs guests. If KVM cannot be used, the test is skipped with the reason. With REQUIRE_KVM=1 in the
/// environment it fails instead.
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

/// A test that needs no KVM.
pub fn plain_test(name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, || {
        body();
        Ok(())
    })
}

/// A test that needs something else of the host. It is skipped with the reason that `lacks` returns, if any.
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
