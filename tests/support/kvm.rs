//! Kinds of tests: of KVM, of guests on either processor, and others. The tests of the package `bench` use this file too.

use libtest_mimic::{Completion, Failed, Trial};
use std::cell::Cell;
use std::sync::OnceLock;
use vmm::boot::Image;
use vmm::machine::Processor;
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Error, Machine, Output};

/// Returns the reason why KVM cannot be used on this host, if it cannot. Only this reason skips tests, no other failure.
pub fn unusable() -> Option<&'static str> {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    let probe = || {
        let image = Image::flat(&[0xf4][..], Mode::Real, Gpa(0)).expect("an image");
        let builder = Machine::builder(image).processor(Some(Processor::Kvm));
        match builder.output(Output::captured().0).build() {
            Err(error @ (Error::OpenKvm { .. } | Error::NotKvm { .. } | Error::ApiVersion { .. })) => {
                Some(error.to_string())
            }
            _ => None,
        }
    };
    REASON.get_or_init(probe).as_deref()
}

/// Returns true if REQUIRE_KVM=1 is in the environment: nothing may be skipped, or run without KVM.
fn is_required() -> bool {
    std::env::var("REQUIRE_KVM").is_ok_and(|value| value == "1")
}

fn required(reason: &str) -> Failed {
    Failed::from(format!("REQUIRE_KVM=1, and {reason}"))
}

/// Returns a test of KVM itself, or of something that needs it. If KVM cannot be used, the test is skipped with the
/// reason. With REQUIRE_KVM=1 in the environment, it fails instead.
pub fn kvm_test(name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || match unusable() {
        None => {
            body();
            Ok(Completion::Completed)
        }
        Some(reason) if is_required() => Err(required(reason)),
        Some(reason) => Ok(Completion::ignored_with(format!("needs KVM, and {}", first_part(reason)))),
    })
}

/// Returns an error message without its advice.
fn first_part(message: &str) -> &str {
    message.match_indices(": ").nth(1).map_or(message, |(end, _)| &message[..end])
}

/// Returns a test that runs guests on the processor that the program chooses: KVM's, or the software processor if KVM
/// cannot be used. With REQUIRE_KVM=1 in the environment, it fails instead.
pub fn machine_test(name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || match unusable() {
        Some(reason) if is_required() => Err(required(reason)),
        _ => {
            body();
            Ok(())
        }
    })
}

/// Returns true if the guests of the calling thread's test run on the software processor.
pub fn is_soft() -> bool {
    processor().map_or_else(|| unusable().is_some(), |processor| processor == Processor::Soft)
}

thread_local! {
    /// The kind of processor of the machines that this thread's test builds.
    static PROCESSOR: Cell<Option<Processor>> = const { Cell::new(None) };
}

/// The kind of processor of the machines that the calling thread's test builds. `None` for a test that does not care.
pub fn processor() -> Option<Processor> {
    PROCESSOR.get()
}

/// Returns a test that runs guests on the software processor, and so needs no KVM. `run_machine` and `vmm` choose it.
pub fn soft_test(name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> Trial {
    plain_test(name.into() + "::soft", || {
        PROCESSOR.set(Some(Processor::Soft));
        body();
        PROCESSOR.set(None);
    })
}

/// Returns the same test twice: with KVM, as `kvm_test`, and on the software processor, as `soft_test`. If KVM cannot be
/// used, only the second test is left.
pub fn on_both(name: impl Into<String>, body: impl FnOnce() + Clone + Send + 'static) -> Vec<Trial> {
    let name = name.into();
    if unusable().is_some() && !is_required() {
        return vec![soft_test(name, body)];
    }
    let on_kvm = body.clone();
    let with_kvm = move || {
        PROCESSOR.set(Some(Processor::Kvm));
        on_kvm();
        PROCESSOR.set(None);
    };
    vec![kvm_test(name.clone(), with_kvm), soft_test(name, body)]
}

/// Returns each of these tests twice, as [`on_both`].
pub fn each_on_both(tests: &[(&str, fn())]) -> Vec<Trial> {
    tests.iter().flat_map(|(name, body)| on_both(*name, *body)).collect()
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
