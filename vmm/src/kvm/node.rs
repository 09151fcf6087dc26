//! The node `/dev/kvm`: describes it, and advises the user if it cannot be opened.

use crate::error::Error;
use crate::host::{User, printable_text};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

/// The path of the node, which kvm-ioctls opens.
const PATH: &str = "/dev/kvm";
/// The device number of KVM: a miscellaneous device, and KVM_MINOR (Linux `include/linux/miscdevice.h`).
const KVM_DEVICE: (u32, u32) = (10, 232);
/// Permission to read and to write, in one class of a mode.
const READ_AND_WRITE: u32 = 0o6;

/// The advice if the kernel has no KVM to offer.
const NO_KVM: &str = "load the kernel's module (sudo modprobe kvm_intel or kvm_amd); if that fails, switch on virtualisation \
                      in the firmware, or nested virtualisation if this is a virtual machine";

/// The result of `stat` that matters here.
#[derive(Clone, Copy, Debug)]
struct Node {
    /// The type and the permissions.
    mode: u32,
    /// The owner.
    uid: u32,
    /// The group.
    gid: u32,
    /// The major and minor number of a device.
    device: (u32, u32),
}

impl Node {
    fn find() -> io::Result<Self> {
        let found = fs::metadata(PATH)?;
        let device = (libc::major(found.rdev()), libc::minor(found.rdev()));
        Ok(Self { mode: found.mode(), uid: found.uid(), gid: found.gid(), device })
    }

    fn is_kvm(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFCHR && self.device == KVM_DEVICE
    }

    /// A noun phrase for what the node is.
    fn describe(&self) -> String {
        let (major, minor) = self.device;
        let name = match self.device {
            (1, 3) => ", the null device",
            (1, 5) => ", the zero device",
            _ => "",
        };
        match self.mode & libc::S_IFMT {
            libc::S_IFCHR => format!("the character device {major}:{minor}{name}"),
            libc::S_IFBLK => format!("the block device {major}:{minor}"),
            libc::S_IFDIR => "a directory".into(),
            libc::S_IFIFO => "a pipe".into(),
            libc::S_IFSOCK => "a socket".into(),
            _ => "a regular file".into(),
        }
    }
}

/// The error for a failed attempt to open `/dev/kvm`.
pub(crate) fn open_failed(source: io::Error) -> Error {
    let node = Node::find();
    match &node {
        Ok(node) if !node.is_kvm() => Error::NotKvm { found: node.describe() },
        _ => {
            let group = node.as_ref().ok().and_then(|node| group_name(node.gid));
            let advice = advice(&source, node.ok().as_ref(), group.as_deref(), &User::current());
            Error::OpenKvm { source, advice }
        }
    }
}

/// The error for a node that was opened, and does not answer KVM_GET_API_VERSION.
pub(crate) fn does_not_answer() -> Error {
    let found = Node::find().map_or_else(|error| error.to_string(), |node| node.describe());
    Error::NotKvm { found }
}

/// The next step for the user, after the node could not be opened.
fn advice(error: &io::Error, node: Option<&Node>, group: Option<&str>, user: &User) -> String {
    match (error.raw_os_error(), node) {
        // A container has no node unless it is passed in.
        (Some(libc::ENOENT), _) => format!("{NO_KVM}; in a container, pass the device (--device /dev/kvm)"),
        // udev makes the node before the module is loaded.
        (Some(libc::ENODEV | libc::ENXIO), _) => NO_KVM.into(),
        (Some(libc::EACCES), Some(node)) => permission_advice(node.mode, (node.uid, node.gid), group, user),
        (Some(libc::EACCES), None) => "check that you may search /dev (ls -ld /dev)".into(),
        // The kernel's answer if a cgroup's device rules refuse.
        (Some(libc::EPERM), _) => "the device rules of this container or service forbid it: pass the device \
                                   (--device /dev/kvm, or DeviceAllow=/dev/kvm rw in a unit of systemd)"
            .into(),
        (Some(libc::EBUSY), _) => {
            "another hypervisor uses the processor's virtualisation: stop its guests".into()
        }
        (Some(libc::EMFILE | libc::ENFILE), _) => "allow more open files (ulimit -n)".into(),
        _ => "check that the kernel's KVM module works (dmesg | grep -i kvm)".into(),
    }
}

/// The next step for a user to whom the node's mode, owner and group deny access.
///
/// The kernel looks at one class of the mode only: that of the owner, else that of the group, else that of others.
fn permission_advice(mode: u32, (uid, gid): (u32, u32), group: Option<&str>, user: &User) -> String {
    let permissions = mode & 0o777;
    let is_member = user.groups.contains(&gid);
    let (class, shift) = match () {
        () if user.uid == uid => ("owner", 6),
        () if is_member => ("group", 3),
        () => ("others", 0),
    };
    if (permissions >> shift) & READ_AND_WRITE == READ_AND_WRITE {
        return format!(
            "its mode, {permissions:04o}, permits it, so a security policy or a nodev mount forbids it (dmesg, findmnt -T {PATH})"
        );
    }
    if class == "owner" {
        return format!("its owner has too few permissions (mode {permissions:04o}): sudo chmod u+rw {PATH}");
    }
    if gid == 0 {
        return format!(
            "it belongs to group root (mode {permissions:04o}), so membership of group kvm does not help: run this as root, \
             or give it to that group (sudo groupadd -f kvm; sudo chgrp kvm {PATH}; sudo chmod 660 {PATH}; \
             sudo usermod -aG kvm $USER) and log in again; the udev rule KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\" \
             keeps it so"
        );
    }
    let name = group.map_or_else(|| gid.to_string(), printable_text);
    let join = match (is_member, group) {
        (true, _) => String::new(),
        (false, Some(_)) => {
            format!("add yourself to its group (sudo usermod -aG {name} $USER) and log in again")
        }
        (false, None) => format!(
            "join its group, which has the number {gid} and no name here: in a container, start it with --group-add {gid}; \
             otherwise name it (sudo groupadd -g {gid} NAME), add yourself (sudo usermod -aG NAME $USER) and log in again"
        ),
    };
    let lacks = match (permissions >> 3) & READ_AND_WRITE {
        READ_AND_WRITE => return join,
        0o4 => "may not write it",
        0o2 => "may not read it",
        _ => "may neither read nor write it",
    };
    let then = if is_member { String::new() } else { format!("; then {join}") };
    format!(
        "its group, {name}, {lacks} (mode {permissions:04o}): sudo chmod g+rw {PATH} (the udev rule KERNEL==\"kvm\", \
         MODE=\"0660\" keeps it so){then}"
    )
}

/// The name of a group in `/etc/group`, if it has one.
fn group_name(gid: u32) -> Option<String> {
    name_in(&fs::read_to_string("/etc/group").ok()?, gid)
}

/// The name of a group in a text in the format of `group(5)`.
fn name_in(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests;
