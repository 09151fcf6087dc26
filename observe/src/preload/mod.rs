//! The engine `preload`: a library in front of `ioctl` (`preload/preload.c`) in each process of the program.

mod channel;
mod folder;
mod link;
mod log;
#[cfg(test)]
mod tests;

use crate::descendants;
use crate::engine::{Engine, Event, Stop, StopCause, Stops, VcpuId};
use crate::error::Error;
use crate::ptrace::inspect;
use channel::{Channel, Head, RECORDS, RINGS, State};
use folder::Folder;
use jail::Place;
use link::{Counters, Link};
use log::Log;
use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::process::Command;
use std::time::{Duration, Instant};
use vmm::host::sort_by_key;

/// The environment variable with the libraries that the loader loads first.
const LD_PRELOAD: &str = "LD_PRELOAD";
/// The longest time of one look at the rings and at the log, and that of the last look. A program can fill all rings with
/// string I/O, whose records have thousands of elements, and would keep this process from its signals and its time limit.
const LOOK: Duration = Duration::from_millis(100);
const LAST_LOOK: Duration = Duration::from_secs(5);
/// The number of records that are handed over between two looks at the clock.
const BATCH: u64 = 256;

/// The engine.
#[derive(Debug)]
pub struct Preload {
    folder: Folder,
    channel: Channel,
    link: Link,
    /// The rings in use, by number.
    rings: Vec<Ring>,
    /// The ring with which the next look begins.
    first: usize,
    log: Log,
}

/// The observer's side of a ring.
#[derive(Debug, Default)]
struct Ring {
    /// The vCPU, once it is known.
    vcpu: Option<VcpuId>,
    /// The number of records that were read, and of exits that were lost.
    read: u64,
    lost: u64,
    counters: Option<Counters>,
}

impl Preload {
    /// Creates the files that this process shares with the program.
    ///
    /// # Errors
    /// They cannot be created.
    pub fn new() -> Result<Self, Error> {
        let (folder, channel) = Folder::new()?;
        let link = Link::new(&folder.link()).map_err(Error::host("creating a socket for the library"))?;
        Ok(Self { folder, channel, link, rings: Vec::new(), first: 0, log: Log::default() })
    }

    /// Receives the counters of new vCPUs.
    fn receive(&mut self) {
        // A program that floods the socket does not keep this process from its other work.
        for _ in 0..RINGS {
            let Some((ring, counters)) = self.link.receive() else { return };
            if ring < RINGS && counters.is_some() {
                if self.rings.len() <= ring {
                    self.rings.resize_with(ring.saturating_add(1), Ring::default);
                }
                if let Some(ring) = self.rings.get_mut(ring) {
                    ring.counters = counters;
                }
            }
        }
    }

    /// Hands over the new records of all rings, and then the calls and stops, until the deadline. What is left then comes
    /// with the next look, or is lost if this is the last one.
    fn drain(&mut self, is_last: bool, deadline: Instant, to: &mut dyn FnMut(Event)) {
        let used = self.channel.control().used;
        let states = self.channel.states(used);
        // The library sends the counters of a vCPU before it can close the ring.
        self.receive();
        if self.rings.len() < states.len() {
            self.rings.resize_with(states.len(), Ring::default);
        }
        let first = std::mem::take(&mut self.first).min(states.len());
        let (before, from) = states.split_at_checked(first).unwrap_or_default();
        let rings = (first..).zip(from).chain((0..).zip(before));
        for (number, state) in rings.filter(|(_, state)| **state != State::Free) {
            let Some(ring) = self.rings.get_mut(number) else { continue };
            let is_closed = *state == State::Closed;
            let is_empty = ring.drain(number, &mut self.channel, is_last || is_closed, deadline, to);
            if is_empty && is_closed {
                *ring = Ring::default();
                self.channel.free(number);
            }
            if !is_empty && !is_last {
                self.first = number;
                break;
            }
            if is_last && !is_empty {
                ring.give_up(number, &self.channel, to);
            }
        }
        // Rings that never become empty must not keep the vCPUs that wait.
        self.log.drain(&self.channel, is_last, deadline.max(deadline_of(LOOK)), to);
    }
}

impl Ring {
    /// Hands over the new records until the deadline. `is_last` if no more will come. Returns false if some are left.
    fn drain(
        &mut self,
        number: usize,
        channel: &mut Channel,
        is_last: bool,
        deadline: Instant,
        to: &mut dyn FnMut(Event),
    ) -> bool {
        let Some(head) = channel.head(number) else { return true };
        // The vCPU of a ring does not change, whatever the program writes there.
        let vcpu = match self.vcpu {
            Some(vcpu) => vcpu,
            None => {
                to(Event::Created(head.vcpu));
                *self.vcpu.insert(head.vcpu)
            }
        };
        let end = if is_last { head.noted } else { head.done };
        if let Some(new) = end.checked_sub(self.read) {
            // A ring has no more records than this, so the program has changed the numbers.
            let overwritten = new.saturating_sub(RECORDS);
            if overwritten > 0 {
                to(Event::Lost(vcpu, overwritten));
                self.read = self.read.saturating_add(overwritten);
            }
        }
        while self.read < end {
            if Instant::now() >= deadline {
                return false;
            }
            let next = self.read.saturating_add(BATCH).min(end);
            channel.read(number, self.read, next, |record| to(Event::Returned(vcpu, record)));
            self.read = next;
        }
        if head.lost > self.lost {
            to(Event::Lost(vcpu, head.lost.saturating_sub(self.lost)));
            self.lost = head.lost;
        }
        if is_last && let Some(counters) = self.counters.take().and_then(|counters| counters.read()) {
            to(Event::Counters(vcpu, counters));
        }
        true
    }

    /// Counts the records that are left as lost.
    fn give_up(&mut self, number: usize, channel: &Channel, to: &mut dyn FnMut(Event)) {
        if let (Some(vcpu), Some(head)) = (self.vcpu, channel.head(number)) {
            to(Event::Lost(vcpu, head.noted.saturating_sub(self.read)));
        }
    }
}

impl Engine for Preload {
    fn name(&self) -> &'static str {
        "preload"
    }

    fn prepare(&mut self, command: &mut Command, stops: Stops, is_isolated: bool) -> Result<(), Error> {
        // SAFETY: the call takes no memory.
        #[allow(unsafe_code)]
        let is_filtered = unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) } > 0;
        let shared = Error::host("writing to the channel to the preloaded library");
        // The filter of an isolated program is none of its own.
        self.channel.want(stops, is_filtered || is_isolated, is_isolated).map_err(shared)?;
        let mut libraries = OsString::from(self.folder.library());
        if let Some(others) = std::env::var_os(LD_PRELOAD).filter(|others| !others.is_empty()) {
            libraries.push(":");
            libraries.push(others);
        }
        command.env(LD_PRELOAD, libraries);
        Ok(())
    }

    fn places(&self) -> Vec<Place> {
        self.folder.places()
    }

    fn wakes(&self) -> Option<BorrowedFd<'_>> {
        Some(self.link.file())
    }

    fn collect(&mut self, to: &mut dyn FnMut(Event)) {
        self.drain(false, deadline_of(LOOK), to);
    }

    fn inspect(&mut self, to: &mut dyn FnMut(Event)) {
        let states = self.channel.states(self.channel.control().used);
        let live = (0..).zip(states).filter(|(_, state)| *state == State::Live);
        let heads: Vec<Head> = live.filter_map(|(ring, _)| self.channel.head(ring)).collect();
        let mut processes: Vec<i32> = heads.iter().map(|head| head.process).collect();
        sort_by_key(&mut processes, |process| *process);
        processes.dedup();
        for process in processes.into_iter().filter(|process| descendants::is_own(*process)) {
            inspect::running(process, &mut |fd, registers| {
                // With several VMs in a process, a descriptor does not tell which one it belongs to.
                let number = vcpu_number(process, fd);
                let mut vcpus =
                    heads.iter().filter(|head| head.process == process && Some(head.vcpu.vcpu) == number);
                if let (Some(Head { vcpu, .. }), None) = (vcpus.next(), vcpus.next()) {
                    let cause = StopCause::Running(Duration::ZERO);
                    to(Event::Stopped(Box::new(Stop {
                        vcpu: *vcpu,
                        process,
                        cause,
                        registers: Some(registers),
                    })));
                }
            });
        }
    }

    fn finish(&mut self, to: &mut dyn FnMut(Event)) {
        self.channel.end();
        self.drain(true, deadline_of(LAST_LOOK), to);
        let control = self.channel.control();
        to(Event::LostCalls(self.log.lost.saturating_add(control.lost_calls.into())));
        to(Event::Unrecorded(control.unrecorded));
        to(Event::Machines(control.vms));
    }

    fn leave(&mut self) {
        self.folder.keep_library();
    }
}

/// The number of the vCPU of a descriptor in another process, from its name.
fn vcpu_number(process: i32, fd: i32) -> Option<u32> {
    let name = std::fs::read_link(format!("/proc/{process}/fd/{fd}")).ok()?;
    name.to_str()?.strip_prefix("anon_inode:kvm-vcpu:")?.parse().ok()
}

/// The end of a look that begins now.
fn deadline_of(length: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(length).unwrap_or(now)
}
