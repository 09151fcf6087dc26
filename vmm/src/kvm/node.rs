//! The node `/dev/kvm`: what it is, and what to do if it cannot be opened.

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
        (Some(libc::EACCES), None) => "see that you may search /dev (ls -ld /dev)".into(),
        // The kernel's answer if a cgroup's device rules refuse.
        (Some(libc::EPERM), _) => "the device rules of this container or service forbid it: pass the device \
                                   (--device /dev/kvm, or DeviceAllow=/dev/kvm rw in a unit of systemd)"
            .into(),
        (Some(libc::EBUSY), _) => {
            "another hypervisor has the processor's virtualisation: stop its guests".into()
        }
        (Some(libc::EMFILE | libc::ENFILE), _) => "allow more open files (ulimit -n)".into(),
        _ => "see that the kernel's KVM module works (dmesg | grep -i kvm)".into(),
    }
}

/// The next step for a user whom the node's mode, owner and group do not let in.
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
mod tests {
    use super::*;

    const DEVICE: u32 = libc::S_IFCHR;

    fn node(mode: u32, uid: u32, gid: u32) -> Node {
        Node { mode: DEVICE | mode, uid, gid, device: KVM_DEVICE }
    }

    #[test]
    fn permission_advice_fits_the_mode_the_group_and_the_user() {
        let join = "add yourself to its group (sudo usermod -aG kvm $USER) and log in again";
        let root = "it belongs to group root (mode 0600), so membership of group kvm does not help: run this as root, or give";
        for (mode, owner, group, uid, groups, begins, ends) in [
            // The usual node, and a user who is not in its group.
            (0o660, (0, 104), Some("kvm"), 1000, &[1000][..], join, "log in again"),
            (
                0o660,
                (0, 36),
                Some("virt"),
                1000,
                &[1000],
                "add yourself to its group (sudo usermod -aG virt $USER)",
                "",
            ),
            (
                0o660,
                (0, 992),
                None,
                1000,
                &[1000],
                "join its group, which has the number 992 and no name",
                "",
            ),
            // A node that only root may open.
            (0o600, (0, 0), Some("root"), 1000, &[1000, 104], root, "keeps it so"),
            (0o660, (0, 0), Some("root"), 1000, &[1000], "it belongs to group root (mode 0660)", ""),
            (0o600, (0, 0), None, 1000, &[0], "it belongs to group root (mode 0600)", ""),
            // A group without the permission, for a user inside and outside of it.
            (
                0o640,
                (0, 104),
                Some("kvm"),
                1000,
                &[104],
                "its group, kvm, may not write it (mode 0640): sudo chmod g+rw /dev/kvm",
                "keeps it so)",
            ),
            (0o640, (0, 104), Some("kvm"), 1000, &[1], "its group, kvm, may not write it (mode 0640)", join),
            (0o620, (0, 104), Some("kvm"), 1000, &[104], "its group, kvm, may not read it", "keeps it so)"),
            (0o600, (0, 104), Some("kvm"), 1000, &[1], "its group, kvm, may neither read nor write it", join),
            (0o600, (0, 104), None, 1000, &[104], "its group, 104, may neither", "keeps it so)"),
            // The kernel does not look at the group's permissions for the owner, or at those of others for a member.
            (0o466, (7, 104), Some("kvm"), 7, &[104], "its owner has too few permissions (mode 0466)", "kvm"),
            (0o000, (0, 104), Some("kvm"), 0, &[0], "its owner has too few permissions (mode 0000)", "kvm"),
            (0o606, (0, 104), Some("kvm"), 1000, &[104], "its group, kvm, may neither", "keeps it so)"),
            // The mode is not the reason.
            (0o666, (0, 0), Some("root"), 1000, &[1000], "its mode, 0666, permits it, so a security", ""),
            (0o660, (0, 104), Some("kvm"), 1000, &[104], "its mode, 0660, permits it, so a security", ""),
            (0o600, (0, 0), Some("root"), 0, &[0], "its mode, 0600, permits it, so a security", ""),
        ] {
            let user = User { uid, groups: groups.to_vec() };
            let advice = permission_advice(DEVICE | mode, owner, group, &user);
            assert!(
                advice.starts_with(begins) && advice.ends_with(ends),
                "{mode:o} {owner:?} {user:?}: {advice}"
            );
            assert!(!advice.contains('\n') && !advice.contains("  "), "{advice}");
        }
    }

    #[test]
    fn a_group_name_cannot_forge_a_line() {
        let user = User { uid: 1000, groups: vec![] };
        let advice = permission_advice(0o660, (0, 104), Some("k\x1b[31m"), &user);
        assert!(advice.contains("-aG k\\u{1b}[31m "), "{advice}");
    }

    #[test]
    fn each_failure_to_open_the_node_has_its_advice() {
        let user = User { uid: 1000, groups: vec![1000] };
        let kvm = node(0o660, 0, 104);
        for (errno, node, text) in [
            (libc::ENOENT, None, "(sudo modprobe kvm_intel or kvm_amd)"),
            (libc::ENOENT, None, "in a container, pass the device (--device /dev/kvm)"),
            (libc::ENODEV, Some(&kvm), "(sudo modprobe kvm_intel or kvm_amd)"),
            (libc::EACCES, Some(&kvm), "sudo usermod -aG kvm $USER"),
            (libc::EACCES, None, "ls -ld /dev"),
            (libc::EPERM, Some(&kvm), "--device /dev/kvm"),
            (
                libc::EBUSY,
                Some(&kvm),
                "another hypervisor has the processor's virtualisation: stop its guests",
            ),
            (libc::EMFILE, Some(&kvm), "ulimit -n"),
            (libc::ENFILE, Some(&kvm), "ulimit -n"),
            (libc::EIO, Some(&kvm), "dmesg | grep -i kvm"),
        ] {
            let advice = advice(&io::Error::from_raw_os_error(errno), node, Some("kvm"), &user);
            assert!(advice.contains(text), "{errno}: {advice}");
        }
    }

    #[test]
    fn a_node_that_is_not_kvm_is_named() {
        let describe = |kind, device| Node { mode: kind | 0o666, uid: 0, gid: 0, device }.describe();
        assert_eq!(describe(libc::S_IFCHR, (1, 3)), "the character device 1:3, the null device");
        assert_eq!(describe(libc::S_IFCHR, (1, 5)), "the character device 1:5, the zero device");
        assert_eq!(describe(libc::S_IFCHR, (10, 231)), "the character device 10:231");
        assert_eq!(describe(libc::S_IFBLK, (1, 3)), "the block device 1:3");
        assert_eq!(describe(libc::S_IFDIR, (0, 0)), "a directory");
        assert_eq!(describe(libc::S_IFIFO, (0, 0)), "a pipe");
        assert_eq!(describe(libc::S_IFSOCK, (0, 0)), "a socket");
        assert_eq!(describe(libc::S_IFREG, (0, 0)), "a regular file");
        assert!(node(0o660, 0, 0).is_kvm());
        assert!(!Node { mode: libc::S_IFBLK, ..node(0, 0, 0) }.is_kvm());
    }

    #[test]
    fn the_group_name_is_the_one_of_the_number() {
        let groups = "root:x:0:\nbroken\nkvm:x:104:me,you\n:x:105:\n\nodd:x:many:\nlast:x:106";
        let names = [0, 104, 105, 106, 1].map(|gid| name_in(groups, gid));
        assert_eq!(
            names,
            [Some("root"), Some("kvm"), Some(""), Some("last"), None].map(|n| n.map(String::from))
        );
    }
}
