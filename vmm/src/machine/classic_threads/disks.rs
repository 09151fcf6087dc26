//! The disks of a classic PC: the drives of the first ATA channel.

use crate::device::Disk;
use crate::device::bus::Bus;
use crate::device::pc::ata::file_medium::FileMedium;
use crate::device::pc::ata::{self, Channel, ControlBlock};
use crate::device::pc::medium::{SharedMedium, lock};
use crate::error::Error;
use crate::exit::Stop;
use crate::host::{EventFd, event};
use crate::kvm::vm::Vm;
use crate::shutdown::Deadline;
use std::sync::{Arc, Mutex};

/// The most disks of a classic PC.
pub(in crate::machine) const MAX_DISKS: usize = ata::DRIVES;

/// The disks, which the ATA channel and the BIOS have in common.
pub(in crate::machine) struct Disks {
    media: Vec<SharedMedium>,
    /// Raises the interrupt of the channel. `None` without interrupt controllers.
    line: Option<EventFd>,
}

/// The media of disks.
///
/// # Errors
/// The host has no memory left.
pub(in crate::machine) fn media(disks: Vec<Disk>) -> Result<Vec<SharedMedium>, Error> {
    let medium = |disk| Ok(Arc::new(Mutex::new(FileMedium::new(disk)?)) as SharedMedium);
    disks.into_iter().map(medium).collect()
}

impl Disks {
    /// Attaches the first ATA channel, with these media.
    ///
    /// # Errors
    /// The host has no file descriptor left.
    pub(in crate::machine) fn attach(
        media: Vec<SharedMedium>,
        ports: &mut Bus,
        has_interrupts: bool,
    ) -> Result<Self, Error> {
        let line = has_interrupts.then(event).transpose().map_err(Error::host("eventfd"))?;
        let raise = line.as_ref().map(EventFd::try_clone).transpose().map_err(Error::host("dup"))?;
        let channel = Arc::new(Mutex::new(Channel::new(media.clone(), raise)));
        ports.attach(ata::PORT.into(), ata::PORTS.into(), channel.clone())?;
        ports.attach(ata::CONTROL_PORT.into(), 1, Arc::new(Mutex::new(ControlBlock(channel))))?;
        Ok(Self { media, line })
    }

    /// Connects the interrupt.
    ///
    /// # Errors
    /// The kernel refused.
    pub(in crate::machine) fn connect(&self, vm: &Vm) -> Result<(), Error> {
        self.line.iter().try_for_each(|line| vm.connect_interrupt(line, ata::IRQ))
    }

    /// Prepares a run with this deadline.
    pub(in crate::machine) fn begin_run(&self, deadline: &Deadline) {
        self.media.iter().for_each(|media| lock(media).begin_run(deadline.clone()));
    }

    /// Writes what is not written yet. Returns the reason for a failure of the run, if data was lost.
    pub(in crate::machine) fn end_run(&self) -> Option<Stop> {
        let results: Vec<_> = self.media.iter().map(|media| lock(media).close()).collect();
        results.into_iter().find_map(Result::err)
    }
}
