//! The VMs and vCPUs of the program, and the descriptors that mean them.
//!
//! The observer has a duplicate of each of them. So it can ask the kernel whether a descriptor of the program still means the
//! same (kcmp(2)), whatever the program did to it: `close`, `dup2`, a message with descriptors. An object that the program has
//! closed is given up when [`Objects::sweep`] finds no descriptor of it.

use super::sys::{self, Mapping};
use super::vcpu::Vcpu;
use crate::engine::{Event, Target, VcpuId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// The largest number of VMs and vCPUs at a time. Each takes up to two descriptors.
const MOST_OBJECTS: usize = 2048;
/// The largest number of descriptors whose meaning is kept.
const MOST_KNOWN: usize = 1 << 16;
/// The device number of `/dev/kvm`: a misc device.
const KVM_DEVICE: (u32, u32) = (10, 232);
/// The names of the files.
const VM: &str = "anon_inode:kvm-vm";
const VCPU: &str = "anon_inode:kvm-vcpu:";

/// A thread, and its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) tid: i32,
    pub(super) tgid: i32,
}

/// The number of an object, which is never used again.
pub(super) type Key = u64;

/// The meaning of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// `/dev/kvm`.
    System,
    /// A VM or a vCPU.
    Object(Key),
    /// Anything else, or nothing.
    Other,
}

/// A VM or a vCPU.
#[derive(Debug)]
pub(super) enum Kind {
    /// A VM with its number, and true if one of its vCPUs was entered.
    Vm(u32, bool),
    /// A vCPU.
    Vcpu(Box<Vcpu>),
}

#[derive(Debug)]
struct Object {
    file: OwnedFd,
    kind: Kind,
    /// The process with the memory of the guest.
    process: i32,
    /// The thread that used it last, and its descriptor.
    user: i32,
    fd: i32,
}

/// All VMs and vCPUs.
#[derive(Debug, Default)]
pub(super) struct Objects {
    objects: BTreeMap<Key, Object>,
    next: Key,
    /// The descriptors that were seen, by process and number.
    known: HashMap<(i32, i32), Key>,
    /// Descriptors of vCPUs that cannot be recorded.
    refused: HashSet<(i32, i32)>,
    /// The numbers for VMs whose creation was not seen, by process.
    unknown_vms: HashMap<i32, u32>,
    /// The number of VMs so far.
    pub(super) machines: u32,
    /// The number of vCPUs that are not recorded.
    pub(super) unrecorded: u32,
    /// True if the descriptors of a process may not be looked at.
    pub(super) is_hidden: bool,
}

impl Objects {
    /// The number for a new VM.
    fn number(&mut self) -> u32 {
        self.machines = self.machines.saturating_add(1);
        self.machines
    }

    /// Keeps a new VM.
    pub(super) fn add_vm(&mut self, who: Who, fd: i32) {
        let number = self.number();
        if let Some(file) = self.take(who, fd, VM) {
            self.insert(who, fd, file, Kind::Vm(number, false));
        }
    }

    /// Keeps a vCPU. Returns its key, unless it cannot be recorded.
    pub(super) fn add_vcpu(&mut self, who: Who, fd: i32, id: VcpuId) -> Option<Key> {
        let file = self.take(who, fd, VCPU);
        let page = file.as_ref().and_then(|file| Mapping::new(file.as_fd()).ok());
        let Some((file, page)) = file.zip(page) else {
            if self.refused.len() < MOST_KNOWN && self.refused.insert((who.tgid, fd)) {
                self.unrecorded = self.unrecorded.saturating_add(1);
            }
            return None;
        };
        self.refused.remove(&(who.tgid, fd));
        Some(self.insert(who, fd, file, Kind::Vcpu(Box::new(Vcpu::new(id, page)))))
    }

    /// Takes a duplicate of a descriptor whose file has this name.
    fn take(&self, who: Who, fd: i32, name: &str) -> Option<OwnedFd> {
        if self.objects.len() >= MOST_OBJECTS {
            return None;
        }
        let process = sys::open_thread(who.tid, who.tgid).ok()?;
        let file = sys::take_descriptor(&process, fd).ok()?;
        let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        path.to_str()?.starts_with(name).then_some(file)
    }

    fn insert(&mut self, who: Who, fd: i32, file: OwnedFd, kind: Kind) -> Key {
        let key = self.next;
        self.next = self.next.saturating_add(1);
        self.objects.insert(key, Object { file, kind, process: who.tgid, user: who.tid, fd });
        self.know(who, fd, key);
        key
    }

    fn know(&mut self, who: Who, fd: i32, key: Key) {
        if self.known.len() >= MOST_KNOWN {
            self.known.clear();
        }
        self.known.insert((who.tgid, fd), key);
    }

    /// Finds out what a descriptor means now.
    pub(super) fn find(&mut self, who: Who, fd: i32) -> Meaning {
        if let Some(key) = self.known.get(&(who.tgid, fd)).copied()
            && let Some(object) = self.objects.get_mut(&key)
            && object.is_meant(who.tid, fd)
        {
            (object.user, object.fd) = (who.tid, fd);
            return Meaning::Object(key);
        }
        self.identify(who, fd)
    }

    /// Finds out what a descriptor means from the file that it names.
    fn identify(&mut self, who: Who, fd: i32) -> Meaning {
        let path = format!("/proc/{}/fd/{fd}", who.tid);
        let name = match fs::read_link(&path) {
            Ok(name) => name,
            Err(error) => {
                self.is_hidden |= error.kind() == io::ErrorKind::PermissionDenied;
                return Meaning::Other;
            }
        };
        let name = name.to_string_lossy();
        let (is_vm, vcpu) = (name == VM, name.strip_prefix(VCPU).and_then(|id| id.parse().ok()));
        if !is_vm && vcpu.is_none() {
            return if is_kvm_device(&path) { Meaning::System } else { Meaning::Other };
        }
        let known = self
            .objects
            .iter_mut()
            .find(|(_, object)| matches!(object.kind, Kind::Vm(..)) == is_vm && object.is_meant(who.tid, fd));
        if let Some((key, object)) = known {
            (object.user, object.fd) = (who.tid, fd);
            let key = *key;
            self.know(who, fd, key);
            return Meaning::Object(key);
        }
        if self.refused.contains(&(who.tgid, fd)) {
            return Meaning::Other;
        }
        // Its creation was not seen: another program handed it over.
        let added = match vcpu {
            None => self.take(who, fd, VM).map(|file| {
                let number = self.unknown_vm(who.tgid);
                self.insert(who, fd, file, Kind::Vm(number, false))
            }),
            Some(vcpu) => {
                let vm = self.unknown_vm(who.tgid);
                self.add_vcpu(who, fd, VcpuId { vm, vcpu })
            }
        };
        added.map_or(Meaning::Other, Meaning::Object)
    }

    fn unknown_vm(&mut self, tgid: i32) -> u32 {
        if let Some(number) = self.unknown_vms.get(&tgid) {
            return *number;
        }
        let number = self.number();
        self.unknown_vms.insert(tgid, number);
        number
    }

    /// The object of a call, as the observer hears of it.
    pub(super) fn target(&self, meaning: Meaning) -> Option<Target> {
        match meaning {
            Meaning::System => Some(Target::System),
            Meaning::Object(key) => self.objects.get(&key).map(|object| match &object.kind {
                Kind::Vm(number, _) => Target::Vm(*number),
                Kind::Vcpu(vcpu) => Target::Vcpu(vcpu.id),
            }),
            Meaning::Other => None,
        }
    }

    /// True if the guest of an object was entered. A vCPU counts by itself.
    pub(super) fn has_entered(&self, key: Key) -> bool {
        self.objects.get(&key).is_some_and(|object| match &object.kind {
            Kind::Vm(_, has_entered) => *has_entered,
            Kind::Vcpu(vcpu) => vcpu.has_entered,
        })
    }

    /// The vCPU with this key, and the process that it belongs to.
    pub(super) fn vcpu(&mut self, key: Key) -> Option<(&mut Vcpu, i32)> {
        match self.objects.get_mut(&key) {
            Some(Object { kind: Kind::Vcpu(vcpu), process, .. }) => Some((vcpu, *process)),
            _ => None,
        }
    }

    /// Marks a VM as entered.
    pub(super) fn enter(&mut self, vm: u32) {
        for object in self.objects.values_mut() {
            if let Kind::Vm(number, has_entered) = &mut object.kind
                && *number == vm
            {
                *has_entered = true;
            }
        }
    }

    /// Gives up the objects that the program has closed.
    pub(super) fn sweep(&mut self, to: &mut dyn FnMut(Event)) {
        self.end(|object| !object.is_open(), to);
    }

    /// Gives up the objects of a process that has ended, or has executed another program.
    pub(super) fn end_process(&mut self, tgid: i32, to: &mut dyn FnMut(Event)) {
        self.end(|object| object.process == tgid, to);
        self.known.retain(|(process, _), _| *process != tgid);
        self.refused.retain(|(process, _)| *process != tgid);
        self.unknown_vms.remove(&tgid);
    }

    /// Gives up all objects.
    pub(super) fn end_all(&mut self, to: &mut dyn FnMut(Event)) {
        self.end(|_| true, to);
    }

    fn end(&mut self, is_over: impl Fn(&Object) -> bool, to: &mut dyn FnMut(Event)) {
        let before = self.objects.len();
        self.objects.retain(|_, object| {
            let is_over = is_over(object);
            if is_over && let Kind::Vcpu(vcpu) = &mut object.kind {
                if let Some(record) = vcpu.end() {
                    to(Event::Returned(vcpu.id, record));
                }
                if let Some(counters) = vcpu.counters() {
                    to(Event::Counters(vcpu.id, counters));
                }
            }
            !is_over
        });
        if self.objects.len() < before {
            self.known.retain(|_, key| self.objects.contains_key(key));
        }
    }
}

impl Object {
    /// True if a descriptor means this.
    fn is_meant(&self, tid: i32, fd: i32) -> bool {
        sys::is_same_file(tid, fd, self.file.as_fd()).unwrap_or(false)
    }

    /// True if the program still has a descriptor of this.
    fn is_open(&self) -> bool {
        self.is_meant(self.user, self.fd) || {
            // All threads have the same descriptors, except those that have ended.
            let mut threads = numbers(&format!("/proc/{}/task", self.process))
                .into_iter()
                .map(|tid| (tid, numbers(&format!("/proc/{}/task/{tid}/fd", self.process))));
            let (tid, files) = threads.find(|(_, files)| !files.is_empty()).unwrap_or_default();
            files.into_iter().any(|fd| self.is_meant(tid, fd))
        }
    }
}

/// The names in a folder that are numbers.
fn numbers(folder: &str) -> Vec<i32> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

fn is_kvm_device(path: &str) -> bool {
    fs::metadata(path).is_ok_and(|file| {
        let device = file.rdev();
        file.file_type().is_char_device() && (libc::major(device), libc::minor(device)) == KVM_DEVICE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn descriptors_are_told_apart_by_their_files() {
        let own = std::process::id().cast_signed();
        let (who, mut objects) = (Who { tid: own, tgid: own }, Objects::default());
        let null = File::open("/dev/null").unwrap();
        assert_eq!(objects.find(who, null.as_raw_fd()), Meaning::Other);
        assert_eq!((objects.find(who, -1), objects.find(who, i32::MAX)), (Meaning::Other, Meaning::Other));
        if let Ok(kvm) = File::open("/dev/kvm") {
            assert_eq!(objects.find(who, kvm.as_raw_fd()), Meaning::System);
        }
        // None of them is a VM or a vCPU, whatever the program says.
        objects.add_vm(who, null.as_raw_fd());
        let id = VcpuId { vm: 1, vcpu: 0 };
        assert!(objects.add_vcpu(who, null.as_raw_fd(), id).is_none());
        assert!(objects.add_vcpu(who, null.as_raw_fd(), id).is_none());
        assert_eq!((objects.objects.len(), objects.machines, objects.unrecorded), (0, 1, 1));
        objects.sweep(&mut |event| panic!("{event:?}"));
    }
}
