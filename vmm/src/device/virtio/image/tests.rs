use super::*;
use std::fs;
use std::os::unix::fs::FileExt;
use tempfile::NamedTempFile;

fn refused(path: &Path, read_only: bool) -> String {
    Image::open(path, read_only, false).unwrap_err().to_string()
}

#[test]
fn an_unusable_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name| folder.path().join(name);
    assert!(refused(&path("none"), false).contains("does not exist: create it (truncate -s 64M FILE)"));
    for read_only in [false, true] {
        assert!(refused(folder.path(), read_only).contains("neither a file nor a block device"));
        assert!(refused(Path::new("/dev/null"), read_only).contains("neither a file nor a block device"));
        let socket = path(if read_only { "a" } else { "b" });
        let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let refusal = refused(&socket, read_only);
        assert!(refusal.contains("neither a file nor a block device"), "{refusal}");
    }
    fs::write(path("empty"), b"").unwrap();
    assert!(refused(&path("empty"), false).contains("is empty"));
    fs::write(path("odd"), [0; 513]).unwrap();
    assert!(refused(&path("odd"), false).contains("has a size of 513"));
    assert!(refused(&path("odd"), true).contains("truncate -s 1024"));
}

#[test]
fn machines_can_share_an_image_only_read_only() {
    let image = NamedTempFile::new().unwrap();
    image.as_file().write_at(&[0; 512], 0).unwrap();
    let path = image.path();
    let writer = Image::open(path, false, false).unwrap();
    for read_only in [false, true] {
        assert!(refused(path, read_only).contains("is in use by another machine"));
    }
    drop(writer);
    let _readers = [Image::open(path, true, false).unwrap(), Image::open(path, true, false).unwrap()];
    assert!(refused(path, false).contains("is in use by another machine"));
}

#[test]
fn an_image_without_write_permission_can_be_used_read_only() {
    use std::os::unix::fs::PermissionsExt;
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(512).unwrap();
    fs::set_permissions(image.path(), fs::Permissions::from_mode(0o444)).unwrap();
    assert_eq!(Image::open(image.path(), true, false).unwrap().size, 512);
    // A privileged user may write every file, and is not refused.
    if let Err(error) = Image::open(image.path(), false, false) {
        assert!(error.to_string().contains("use it read-only (FILE,ro)"));
    }
}

#[test]
fn a_file_in_another_format_is_refused_with_the_command_that_converts_it() {
    let at = |offset: usize, signature: &[u8]| {
        let mut bytes = vec![0; 4096];
        bytes[offset..offset + signature.len()].copy_from_slice(signature);
        bytes
    };
    let last = 4096 - 512;
    let convert = |format: &str| format!("qemu-img convert -f {format} -O raw FILE NEW");
    let disk = |name: &str| format!("a disk image of the format {name}");
    let table: &[(Vec<u8>, String, String)] = &[
        (at(0, b"QFI\xfb\0\0\0\x01"), disk("qcow"), convert("qcow")),
        (at(0, b"QFI\xfb\0\0\0\x02"), disk("qcow2"), convert("qcow2")),
        (at(0, b"QFI\xfb\0\0\0\x03"), disk("qcow2"), convert("qcow2")),
        (at(0, b"QED\0"), disk("QED"), convert("qed")),
        (at(0, b"vhdxfile"), disk("VHDX"), convert("vhdx")),
        (at(0, b"KDMV\x01\0\0\0"), disk("VMDK"), convert("vmdk")),
        (at(0, b"# Disk DescriptorFile\n"), disk("VMDK"), convert("vmdk")),
        (at(0x40, b"\x7f\x10\xda\xbe"), disk("VDI"), convert("vdi")),
        (at(0, b"WithoutFreeSpace"), disk("Parallels"), convert("parallels")),
        (at(0, b"conectix"), disk("VHD"), convert("vpc")),
        (at(last, b"conectix"), disk("VHD"), convert("vpc")),
        (at(last, b"koly\0\0\0\x04\0\0\x02\0"), disk("DMG"), convert("dmg")),
        (at(0, b"\x1f\x8b\x08\0"), "a file that gzip compressed".into(), "gunzip FILE".into()),
        (at(0, b"\xfd7zXZ\0"), "a file that xz compressed".into(), "xz -d FILE".into()),
        (at(0, b"\x28\xb5\x2f\xfd"), "a file that zstd compressed".into(), "zstd -d FILE".into()),
        (at(0, b"\x04\x22\x4d\x18"), "a file that lz4 compressed".into(), "lz4 -d FILE".into()),
        (at(0, b"BZh91AY&SY"), "a file that bzip2 compressed".into(), "bzip2 -d FILE".into()),
        (at(0, b"PK\x03\x04"), "an archive of the format zip".into(), "unzip FILE".into()),
    ];
    let image = NamedTempFile::new().unwrap();
    for (bytes, name, command) in table {
        for read_only in [false, true] {
            fs::write(image.path(), bytes).unwrap();
            let refusal = refused(image.path(), read_only);
            let expected = format!("is {name}, and no raw image: make a raw image of it ({command})");
            assert!(refusal.contains(&expected), "{refusal}");
            assert!(Image::open(image.path(), read_only, true).is_ok() || bytes.len() % 512 != 0);
        }
    }
    // The size of a compressed file is seldom a multiple of a sector. That is not its fault.
    fs::write(image.path(), b"\x1f\x8b\x08\0 and more").unwrap();
    assert!(refused(image.path(), false).contains("is a file that gzip compressed"));
    assert_eq!(fs::read(image.path()).unwrap(), b"\x1f\x8b\x08\0 and more", "a refused file is not changed");
}

#[test]
fn raw_images_are_accepted() {
    let image = NamedTempFile::new().unwrap();
    let mut boot_sector = vec![0; 4096];
    boot_sector[..3].copy_from_slice(&[0xeb, 0x63, 0x90]);
    boot_sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut iso = vec![0; 0x9000];
    iso[0x8001..0x8006].copy_from_slice(b"CD001");
    // Signatures at other places, and the signature of qcow with an unknown version.
    let mut text = vec![b' '; 2048];
    text[1024..1032].copy_from_slice(b"conectix");
    text[4..8].copy_from_slice(b"QED\0");
    let qcow = [&b"QFI\xfb\0\0\0\x09"[..], &[0; 504]].concat();
    for bytes in [boot_sector, iso, text, qcow, vec![0; 512]] {
        fs::write(image.path(), bytes).unwrap();
        assert!(Image::open(image.path(), false, false).is_ok());
    }
}

#[test]
fn a_file_behind_a_loop_device_is_found() {
    let sys = tempfile::tempdir().unwrap();
    let (mine, other) = (NamedTempFile::new().unwrap(), NamedTempFile::new().unwrap());
    let link = sys.path().join("link");
    std::os::unix::fs::symlink(mine.path(), &link).unwrap();
    let attach = |device: &str, file: &Path| {
        let folder = sys.path().join(device).join("loop");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("backing_file"), format!("{}\n", file.display())).unwrap();
    };
    fs::create_dir(sys.path().join("loop0")).unwrap();
    attach("loop1", Path::new("/nowhere (deleted)"));
    attach("sda", mine.path());
    let found = || loop_device::attached(sys.path(), &mine.as_file().metadata().unwrap());
    attach("loop2", other.path());
    assert_eq!(found(), None);
    attach("loop7", &link);
    assert_eq!(found().as_deref(), Some("loop7"));
    assert_eq!(loop_device::attached(Path::new("/nowhere"), &mine.as_file().metadata().unwrap()), None);
}
