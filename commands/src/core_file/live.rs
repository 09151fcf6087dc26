//! The cores of a running guest, which Ctrl-A c asks for: FILE.1, FILE.2 and so on. The guest stops for each, and goes on.

use super::{CoreFile, note};
use crate::measure::MeasureArgs;
use crate::streams::print_stderr;
use crate::terminal;
use std::path::PathBuf;
use std::time::Duration;
use vmm::Machine;
use vmm::machine::debug::{DebugGuest, Debugger, GuestStatus, Plan, Waker};
use vmm::machine::{CoreCause, CoreKey, MachineKind};

/// The interval at which a guest that is to stop is asked again.
const AGAIN: Duration = Duration::from_millis(10);

/// Writes cores of a running guest.
pub struct LiveCores {
    key: CoreKey,
    /// The path without the number.
    path: PathBuf,
    inputs: Vec<PathBuf>,
    /// The number of the last core.
    number: u32,
}

impl LiveCores {
    /// The cores of a run at a keyboard with `--core`. There are none if something else stops its vCPUs, such as a debugger.
    /// `inputs` returns the files that the run reads.
    pub fn of(
        arguments: &MeasureArgs,
        is_stopped_otherwise: bool,
        inputs: impl FnOnce() -> Vec<PathBuf>,
    ) -> Option<Self> {
        let is_watched = is_stopped_otherwise || arguments.sample.is_given();
        let path = arguments.core.clone().filter(|_| !is_watched && terminal::is_keyboard())?;
        Some(Self { key: CoreKey::default(), path, inputs: inputs(), number: 0 })
    }

    /// The key that asks for a core.
    pub fn key(cores: Option<&Self>) -> Option<CoreKey> {
        cores.map(|cores| cores.key.clone())
    }

    /// The debugger that stops the machine for them, if it has a keyboard.
    pub fn debugger<'l>(cores: Option<&'l mut Self>, machine: &Machine) -> Option<&'l mut dyn Debugger> {
        let cores = cores.filter(|_| machine.kind() != Some(MachineKind::Bare));
        cores.map(|cores| cores as &mut dyn Debugger)
    }

    /// Writes the next core of a guest that has stopped. Returns a message about it.
    fn write(&mut self, guest: &dyn DebugGuest) -> String {
        self.number = self.number.saturating_add(1);
        let mut path = self.path.clone().into_os_string();
        path.push(format!(".{}", self.number));
        let note = note(guest.memory());
        let cause = CoreCause { vmcoreinfo: note.as_deref(), ..CoreCause::default() };
        let must_end = || guest.status() == GuestStatus::Ended || vmm::host::interrupted();
        let file = CoreFile::open_at(path.as_ref(), &self.inputs).map_err(|error| error.to_string());
        let write =
            |file: CoreFile| file.save(note.is_some(), |file| guest.write_core(cause, file, &must_end));
        match file.and_then(write) {
            Ok(text) => format!("\nvmm: {text}; the guest goes on\n"),
            Err(text) => format!("\nvmm: error: {text}; the guest goes on\n"),
        }
    }
}

impl Debugger for LiveCores {
    fn stops_at_start(&self) -> bool {
        false
    }

    fn waker(&self) -> Waker {
        let key = self.key.clone();
        Box::new(move || key.wake())
    }

    fn serve(&mut self, guest: &dyn DebugGuest) {
        let mut is_asked = false;
        loop {
            let is_pressed = self.key.wait(is_asked.then_some(AGAIN));
            match guest.status() {
                GuestStatus::Ended => return,
                // Again and again: a vCPU may have been about to wait when it was asked.
                GuestStatus::Running if is_pressed || is_asked => {
                    is_asked = true;
                    guest.stop();
                }
                GuestStatus::Running => {}
                GuestStatus::Stopped(..) => {
                    if std::mem::take(&mut is_asked) || is_pressed {
                        print_stderr(&self.write(guest));
                    }
                    // Nothing else stops it: a guest that dies goes on to its end.
                    guest.resume(Plan::default());
                }
            }
        }
    }
}
