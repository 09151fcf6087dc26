//! `vmm grade`: grades a course's work. Runs its guests, and prints the points with the evidence for them.

mod args;
mod batch;
mod courses;
mod driver;
mod exercise;
mod kev;
mod output;
mod points;
mod run;
mod so2;
#[cfg_attr(not(has_kvm), path = "student_absent.rs")]
mod student;
mod student_args;
mod target;

use crate::file_name::suggestion;
use crate::jail::{Jail, JailArgs, Rights};
use crate::processor::VcpuArg;
use crate::progress::Progress;
use crate::status::{self, Failure, HasStatus};
use crate::streams::{print_stderr, report_error};
use crate::summary::ending;
use crate::target::{RunTarget, is_unreadable};
pub use args::GradeArgs;
use args::{Course, Settings, Subject};
use grades::Grade;
use guest::{End, GUESTS};
use output::Outputs;
use points::{Evidence, Task, wrong};
use run::Run;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};
use vmm::Error;
use vmm::device::Layout;
use vmm::machine::Processor;

/// The time limit of the built-in guest that checks the host.
const HOST_CHECK: Duration = Duration::from_secs(10);

/// Grades and prints the result. Returns the exit status.
pub fn main(arguments: &GradeArgs) -> u8 {
    vmm::host::catch_interrupts();
    match &arguments.subject {
        Subject::Exercise(file) => return batch::main(file, arguments),
        Subject::Merge => return batch::merge(arguments),
        Subject::Course(_) => {}
    }
    let jail = arguments.jail.prepare(true).filter(|_| !arguments.vmm.grades());
    let started = Instant::now();
    let opened = images(arguments)
        .map_err(Failure::from)
        .and_then(|images| Ok((images, Outputs::open(&arguments.output, 1, &arguments.inputs())?)));
    let (images, outputs) = match opened {
        Ok(opened) => opened,
        Err(error) => return report_error(&error),
    };
    let grade = match tasks(arguments, &images, jail) {
        Ok(grade) if !vmm::host::interrupted() => grade,
        Ok(_) => return interrupted(),
        Err(_) if vmm::host::interrupted() => return interrupted(),
        Err(error) => return failed(&error),
    };
    let graded = Grade {
        submission: arguments.submission(),
        exercise: arguments.course().name().into(),
        seed: grade.seed,
        error: None,
        tasks: grade.tasks.into_iter().map(Task::graded).collect(),
        milliseconds: milliseconds_since(started),
    };
    outputs.write(&[graded], &grade.remark)
}

/// The time since then, in milliseconds.
fn milliseconds_since(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Runs what is to be graded. The remark goes to stderr.
fn tasks(
    arguments: &GradeArgs,
    images: &[kev::Replacement],
    jail: Option<Jail>,
) -> Result<student::Grade, Failure> {
    let settings = arguments.settings();
    if arguments.vmm.grades() {
        let prepared = student::prepare(
            arguments.course(),
            &arguments.vmm,
            arguments.layout.map(Into::into),
            arguments.jail,
        )?;
        if matches!(arguments.vcpu, Some(VcpuArg::Soft)) {
            return Err(Error::Config("a student's VMM runs on KVM: leave --vcpu out".into()).into());
        }
        check_host(Settings { processor: Some(Processor::Kvm), ..settings })?;
        let _progress = Progress::begin(false, || "grading".into());
        return prepared.grade(&arguments.vmm, settings.timeout);
    }
    check_host(settings)?;
    if let Some(jail) = jail {
        let of_so2 = [&arguments.guest16, &arguments.guest64, &arguments.simvirtio].into_iter().flatten();
        let images = of_so2.chain(images.iter().map(|(_, image)| image));
        let read = images.filter_map(|image| crate::target::file(image)).collect();
        let results = arguments.output.files();
        jail.enter(&Rights { read, results, builds: true, ..Rights::default() }, None)?;
    }
    let _progress = Progress::begin(false, || "grading".into());
    let missing = |missing| format!("vmm: not graded, because there is no image: {missing}\n");
    Ok(match arguments.course() {
        Course::So2 => student::Grade {
            tasks: so2::tasks(arguments).map_err(unreadable)?,
            seed: 0,
            remark: so2::missing(arguments)?.map(missing).unwrap_or_default(),
        },
        Course::Kev => student::Grade {
            tasks: kev::tasks(arguments, images).map_err(unreadable)?,
            seed: 0,
            remark: String::new(),
        },
    })
}

/// Grades a folder for an exercise in this process. The same seed gives the same points.
///
/// # Errors
/// The host failed, or the exercise does not suit its own machine.
pub(crate) fn grade_folder(
    exercise: &::exercise::Exercise,
    folder: &Path,
    seed: u64,
    processor: Option<Processor>,
    jail: JailArgs,
) -> Result<Vec<grades::Task>, Error> {
    let settings = Settings {
        processor,
        layout: Layout::default(),
        timeout: Some(HOST_CHECK),
        wall: Some(HOST_CHECK.saturating_mul(6)),
    };
    check_host(settings)?;
    exercise::grade(exercise, folder, seed, settings, jail)
}

/// Prints an error. A host that fails gives no grade. Returns the exit status.
fn failed(error: &Failure) -> u8 {
    if error.status() == status::HOST_ERROR {
        print_stderr("vmm: the host failed, so this run gives no grade\n");
    }
    report_error(error)
}

/// Runs a built-in guest, so that a failure of the host costs no points.
///
/// # Errors
/// The guest did not end as it should.
fn check_host(settings: Settings) -> Result<(), Error> {
    let Some(guest) = GUESTS.iter().find(|guest| guest.end == End::FortyTwo) else { return Ok(()) };
    let run = Run::embedded(guest, None, settings)?;
    if run.passed() {
        return Ok(());
    }
    let source = io::Error::other(format!("the built-in guest {}: {}", run.name, ending(&run.report)));
    Err(Error::Host { operation: "checking the host", source })
}

/// Returns true if an error is the fault of an image. Otherwise the image cannot be graded.
fn is_bad_guest(error: &Error) -> bool {
    match error {
        Error::Image(error) => !is_unreadable(error),
        Error::Config(_) => true,
        _ => false,
    }
}

/// Checks the options for images, and that their files can be read. This needs no KVM. Returns the replacements of
/// [`Course::Kev`].
///
/// # Errors
/// Nothing is to be graded. Or: an option belongs to the other course, names an unknown guest or one that another option
/// names, or names a file that cannot be read.
fn images(arguments: &GradeArgs) -> Result<Vec<kev::Replacement>, Error> {
    let of_so2 = [&arguments.guest16, &arguments.guest64, &arguments.simvirtio];
    let of_vmm = arguments.vmm.grades();
    arguments.vmm.check()?;
    if let Some(option) = arguments.batch.given() {
        let what = format!("{option} is for an exercise in a file: leave it out, or give FILE.toml");
        return Err(Error::Config(what));
    }
    if arguments.layout.is_some() && arguments.simvirtio.is_none() && !of_vmm {
        return Err(Error::Config(
            "--layout is for a driver or a VMM: give --simvirtio IMAGE or --vmm PROGRAM".into(),
        ));
    }
    match arguments.course() {
        Course::So2 if !arguments.guest.is_empty() => {
            return Err(Error::Config("--guest is for `vmm grade kev`: leave it out, or grade kev".into()));
        }
        Course::Kev if of_so2.into_iter().any(Option::is_some) => {
            return Err(Error::Config(
                "--guest16, --guest64 and --simvirtio are for `vmm grade so2`: for kev, give --guest NAME=IMAGE"
                    .into(),
            ));
        }
        _ if of_vmm && (of_so2.into_iter().any(Option::is_some) || !arguments.guest.is_empty()) => {
            return Err(Error::Config(
                "one grade is for images or for a VMM: give --vmm and its options, or images, not both"
                    .into(),
            ));
        }
        _ if of_vmm => {}
        Course::So2 if !of_so2.into_iter().any(|image| arguments.grades(image.as_ref())) => {
            return Err(nothing("--guest16, --guest64 or --simvirtio IMAGE"));
        }
        Course::Kev if arguments.guest.is_empty() && !arguments.reference => {
            return Err(nothing("--guest NAME=IMAGE"));
        }
        _ => {}
    }
    let replacements = kev::replacements(&arguments.guest)?;
    let files = of_so2.into_iter().flatten().chain(replacements.iter().map(|(_, image)| image));
    files.into_iter().try_for_each(|file| RunTarget::check_file(file)).map_err(unreadable)?;
    Ok(replacements)
}

/// Makes an image that cannot be read an error of the command line.
fn unreadable(error: Error) -> Error {
    match error {
        Error::Image(error) if is_unreadable(&error) => {
            let error = Error::Image(error);
            let similar = error.unread_file().map_or_else(String::new, |path| suggestion(Path::new(path)));
            Error::Config(format!("{error}{similar}"))
        }
        error => error,
    }
}

fn nothing(images: &str) -> Error {
    Error::Config(format!(
        "there is nothing to grade: give {images} of a submission, --vmm PROGRAM to grade a VMM, or --reference to grade the built-in guests"
    ))
}

fn interrupted() -> u8 {
    print_stderr("vmm: grading was interrupted; the result is invalid\n");
    status::INTERRUPTED
}
