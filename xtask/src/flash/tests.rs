//! The whole command on a pretended machine: folders for sysfs, files for devices.

use super::*;
use tempfile::TempDir;

/// What has the signature of a boot sector.
const IMAGE: &[u8] = &{
    let mut image = [0xa5; 3000];
    (image[510], image[511]) = (0x55, 0xaa);
    image
};

/// A machine with a stick `sdz` of 8 sectors (4 KiB) that has one partition.
struct Pretended {
    folder: TempDir,
}

impl Pretended {
    fn new() -> Pretended {
        let machine = Pretended { folder: tempfile::tempdir().unwrap() };
        for (file, text) in [
            ("block/sdz/size", "8\n"),
            ("block/sdz/removable", "1\n"),
            ("block/sdz/dev", "8:400\n"),
            ("block/sdz/device/vendor", "ACME    \n"),
            ("block/sdz/device/model", "Stick\n"),
            ("block/sdz/sdz1/partition", "1\n"),
            ("block/sdz/sdz1/dev", "8:401\n"),
            ("mountinfo", "25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"),
            ("swaps", "Filename Type Size Used Priority\n"),
            ("dev/sdz", ""),
            ("image", ""),
        ] {
            machine.put(file, text.as_bytes());
        }
        machine.put("dev/sdz", &[0; 4096]);
        machine.put("image", IMAGE);
        machine
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn put(&self, file: &str, bytes: &[u8]) {
        let path = self.path(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Runs the command with `answer` typed; what was shown, or the error.
    fn flash(&self, device: &str, again: Option<&str>, answer: &str) -> Result<String, String> {
        let args = FlashArgs {
            image: self.path("image"),
            device: self.path(device),
            yes_really: again.map(|again| self.path(again)),
        };
        let mut shown = Vec::new();
        flash(&args, &Machine::fake(self.folder.path()), &mut answer.as_bytes(), &mut shown)
            .map(|()| String::from_utf8(shown).unwrap())
            .map_err(|error| format!("{error:#}"))
    }

    #[track_caller]
    fn refuses(&self, device: &str, again: Option<&str>, answer: &str, reason: &str) {
        let error = self.flash(device, again, answer).unwrap_err();
        assert!(error.contains(reason), "{error}");
        assert_eq!(fs::read(self.path("dev/sdz")).unwrap(), vec![0; 4096], "something was written");
    }
}

#[test]
fn writes_and_verifies_after_the_name_was_typed() {
    let machine = Pretended::new();
    let shown = machine.flash("dev/sdz", None, "sdz\n").unwrap();
    for word in ["ACME Stick", "4.00 KiB", "removable", "read back the same"] {
        assert!(shown.contains(word), "{shown}");
    }
    let device = fs::read(machine.path("dev/sdz")).unwrap();
    assert_eq!((&device[..3000], device.len()), (IMAGE, 4096));
}

#[test]
fn asks_and_takes_nothing_for_a_yes() {
    let machine = Pretended::new();
    for answer in ["", "\n", "yes\n", "sdzz\n", "sda\n"] {
        machine.refuses("dev/sdz", None, answer, "not confirmed");
    }
}

#[test]
fn refuses_what_is_mounted() {
    let machine = Pretended::new();
    machine.put("mountinfo", b"30 25 8:401 / /media/stick rw shared:2 - vfat /dev/sdz1 rw\n");
    machine.refuses("dev/sdz", Some("dev/sdz"), "sdz\n", "sdz1 is mounted on /media/stick");
    machine.put("mountinfo", b"30 25 0:44 / /data rw - btrfs /dev/sdz rw\n");
    machine.refuses("dev/sdz", None, "sdz\n", "sdz is mounted on /data");
}

#[test]
fn refuses_swap_and_parts_of_volumes() {
    let machine = Pretended::new();
    machine.put("swaps", b"Filename Type Size Used Priority\n/dev/sdz1 partition 8 0 -2\n");
    machine.refuses("dev/sdz", None, "sdz\n", "swap space");
    let machine = Pretended::new();
    machine.put("block/sdz/sdz1/holders/dm-0", b"");
    machine.refuses("dev/sdz", None, "sdz\n", "part of dm-0");
}

#[test]
fn refuses_when_it_cannot_know_the_mounts() {
    let machine = Pretended::new();
    fs::remove_file(machine.path("mountinfo")).unwrap();
    machine.refuses("dev/sdz", None, "sdz\n", "mount table");
}

#[test]
fn refuses_what_is_not_removable_unless_named_twice() {
    let machine = Pretended::new();
    machine.put("block/sdz/removable", b"0\n");
    machine.refuses("dev/sdz", None, "sdz\n", "not removable");
    machine.refuses("dev/sdz", Some("dev/sdy"), "sdz\n", "--yes-really");
    machine.refuses("dev/sdz", Some("dev/sdz"), "no\n", "not confirmed");
    assert!(machine.flash("dev/sdz", Some("dev/sdz"), "sdz\n").unwrap().contains("NOT removable"));
}

#[test]
fn refuses_what_does_not_boot() {
    let machine = Pretended::new();
    for (text, at) in [(&b"EFI PART"[..], 512), (b"CD001", 0x8001)] {
        let mut image = vec![0; at];
        image.extend(text);
        machine.put("image", &image);
        assert_eq!(size_of_bootable(&machine.path("image")).unwrap(), image.len() as u64);
    }
    for text in [&b"# Moira\n"[..], b"", &[0; 3000]] {
        machine.put("image", text);
        machine.refuses("dev/sdz", None, "sdz\n", "no image that boots");
    }
    fs::remove_file(machine.path("image")).unwrap();
    machine.refuses("dev/sdz", None, "sdz\n", "No such file");
}

#[test]
fn refuses_what_is_too_small() {
    let machine = Pretended::new();
    machine.put("block/sdz/size", b"5\n");
    machine.refuses("dev/sdz", None, "sdz\n", "too small");
}

#[test]
fn refuses_what_is_no_whole_block_device() {
    let machine = Pretended::new();
    machine.refuses("dev", None, "sdz\n", "not a block device");
    machine.refuses("dev/nothing", None, "sdz\n", "no device");
    machine.put("dev/sdz1", b"");
    machine.put("block/sdz1/partition", b"1\n");
    machine.refuses("dev/sdz1", None, "sdz1\n", "is a partition");
    machine.put("dev/file", b"");
    machine.refuses("dev/file", None, "file\n", "does not know the size");
}

#[test]
fn what_is_wrong_with_a_device_is_told_without_an_image() {
    let machine = Pretended::new();
    let checked = |device: &str, again: Option<&str>| {
        let again = again.map(|again| machine.path(again));
        let pretended = Machine::fake(machine.folder.path());
        check_on(&pretended, &machine.path(device), again.as_deref()).map_err(|error| format!("{error:#}"))
    };
    checked("dev/sdz", None).unwrap();
    assert!(checked("dev/nosuch", None).unwrap_err().contains("no device"));
    machine.put("block/sdz/removable", b"0\n");
    assert!(checked("dev/sdz", None).unwrap_err().contains("not removable"));
    checked("dev/sdz", Some("dev/sdz")).unwrap();
    machine.put("swaps", b"Filename Type Size Used Priority\n/dev/sdz1 partition 8 0 -2\n");
    assert!(checked("dev/sdz", Some("dev/sdz")).unwrap_err().contains("in use"));
}

#[test]
fn a_device_that_gives_back_something_else_is_an_error() {
    let machine = Pretended::new();
    let args = FlashArgs { image: machine.path("image"), device: machine.path("dev/sdz"), yes_really: None };
    let pretended = Machine::fake(machine.folder.path()).forgetful();
    let error = flash(&args, &pretended, &mut "sdz\n".as_bytes(), &mut Vec::new()).unwrap_err();
    assert!(format!("{error:#}").contains("does not give back"), "{error:#}");
}

#[test]
fn links_lead_to_the_device() {
    let machine = Pretended::new();
    fs::create_dir_all(machine.path("dev/by-id")).unwrap();
    std::os::unix::fs::symlink("../sdz", machine.path("dev/by-id/usb-stick")).unwrap();
    assert!(machine.flash("dev/by-id/usb-stick", Some("dev/sdz"), "sdz\n").is_ok());
}
