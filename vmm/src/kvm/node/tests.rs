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
        (0o660, (0, 992), None, 1000, &[1000], "join its group, which has the number 992 and no name", ""),
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
        (libc::EBUSY, Some(&kvm), "another hypervisor uses the processor's virtualisation: stop its guests"),
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
    assert_eq!(names, [Some("root"), Some("kvm"), Some(""), Some("last"), None].map(|n| n.map(String::from)));
}
