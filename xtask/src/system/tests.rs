//! Whole systems in a repository made up for the purpose.

use super::*;
use moira_proto::system::{Grant, Restart};
use tempfile::TempDir;

const MANIFEST: &str = r#"
[system]
description = "test"

[options]
kernel = "data/kernel"
extra = ""
greeting = "hello"

[files]
guest-kernel = "${kernel}"
guest-extra = "${extra}"

[regions.ring]
size = "8KiB"

[tasks.client]
level = 1
time = { slice = "1ms", period = "10ms", latency = "5ms" }
slack = true
calls = ["console"]
signals = ["console"]
args = ["say=${greeting}"]
files = ["guest-kernel", "guest-extra"]
maps = { ring = "ro" }
untyped = { objects = "1MiB" }
slots = 200

[tasks.other]
image = "client"
level = 1
slack = true
calls = ["console"]

[tasks.console]
level = 5
passive = true
serves = true
restart = "always"
ports = { uart = "0x3f8-0x3ff" }
interrupts = { uart-irq = { gsi = 4, level = true } }

[tasks.watch]
image = "client"
level = 7
role = "supervisor"
time = { slice = "100us", period = "10ms" }
"#;

/// A repository with one member that builds three programs, and one system.
fn repository(manifest: &str) -> (TempDir, HashMap<String, PathBuf>, PackOptions) {
    let folder = tempfile::tempdir().unwrap();
    let put = |file: &str, bytes: &[u8]| {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    put("Cargo.toml", b"[workspace]\nmembers = [\"a\", \"b\", \"c\"]\n");
    let member = |name: &str, rest: &str| {
        let text = format!("[package]\nname = \"{name}\"\n{rest}");
        put(&format!("{name}/Cargo.toml"), text.as_bytes());
    };
    let image = "[package.metadata.moira]\nimage = true\n";
    member("a", &format!("{image}[[bin]]\nname = \"root\"\n[[bin]]\nname = \"console\"\n"));
    member("b", &format!("{image}[[bin]]\nname = \"moira-client\"\n"));
    // A host's tool runs on no kernel of ours.
    member("c", "[[bin]]\nname = \"tool\"\n");
    put("initrd/systems/test.toml", manifest.as_bytes());
    put("data/kernel", b"a kernel");
    let mut images = HashMap::new();
    for (number, name) in [(1, "root"), (2, "console"), (3, "moira-client")] {
        // An ELF header, one program header and one segment of a byte.
        let mut image = vec![0_u8; 200];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (image[32], image[54], image[56], image[64 + 8], image[64 + 32], image[120]) = (64, 56, 1, 120, 1, number);
        put(&format!("out/{name}"), &image);
        images.insert(name.to_owned(), folder.path().join("out").join(name));
    }
    let options = PackOptions { root: folder.path().to_owned(), ..PackOptions::default() };
    (folder, images, options)
}

fn files(path: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    cpio_reader::iter_files(&bytes)
        .map(|entry| (entry.name().trim_end_matches('\0').to_owned(), entry.file().to_vec()))
        .collect()
}

#[test]
fn packs_root_first_then_the_manifest_and_each_image_once() {
    let (_folder, images, options) = repository(MANIFEST);
    let path = pack("test", &images, &options).unwrap();
    assert_eq!(path, options.root.join("target/systems/test.cpio"));
    let files = files(&path);
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["root", "system", "client", "console", "guest-kernel"]);
    assert_eq!((files[0].1.len(), files[0].1[120]), (121, 1));
    assert_eq!(files[4].1, b"a kernel");
    let system: System = postcard::from_bytes(&files[1].1).unwrap();
    assert_eq!(system, describe(&options.root, "test", &Options::new()).unwrap());
}

#[test]
fn is_written_only_when_something_changed() {
    let (_folder, images, options) = repository(MANIFEST);
    let path = pack("test", &images, &options).unwrap();
    let time = || fs::metadata(&path).unwrap().modified().unwrap();
    let first = time();
    pack("test", &images, &options).unwrap();
    assert_eq!(time(), first);
    fs::write(options.root.join("data/kernel"), b"another").unwrap();
    pack("test", &images, &options).unwrap();
    assert_eq!(files(&path)[4].1, b"another");
}

#[test]
fn options_make_an_archive_of_their_own() {
    let (_folder, images, mut options) = repository(MANIFEST);
    let plain = pack("test", &images, &options).unwrap();
    options.options.insert("greeting".to_owned(), "servus".to_owned());
    let other = pack("test", &images, &options).unwrap();
    assert_ne!(plain, other);
    assert_ne!(fs::read(plain).unwrap(), fs::read(other).unwrap());
}

#[test]
fn compiles_what_the_manifest_says() {
    let (_folder, _, options) = repository(MANIFEST);
    let given = Options::from([("greeting".to_owned(), "servus".to_owned())]);
    let system = describe(&options.root, "test", &given).unwrap();
    let order: Vec<&str> = system.tasks.iter().map(|task| task.name.as_str()).collect();
    assert_eq!(order, ["watch", "console", "client", "other"]);
    assert_eq!(system.regions, [("ring".to_owned(), 8192)]);
    let [watch, console, client, other] = &system.tasks[..] else { panic!("four tasks") };
    assert_eq!(watch.grants, [("console-control".to_owned(), Grant::Control { task: "console".to_owned() })]);
    assert_eq!((console.restart, console.serves, console.time.context), (Restart::Always, true, false));
    assert_eq!(
        console.grants,
        [
            ("uart".to_owned(), Grant::Ports { first: 0x3f8, last: 0x3ff }),
            ("uart-irq".to_owned(), Grant::Interrupt { gsi: 4, level: true, active_low: false, bits: 1 }),
        ]
    );
    assert_eq!((client.time.slice_ns, client.time.period_ns), (1_000_000, 10_000_000));
    assert_eq!((client.time.latency_ns, client.time.extra), (5_000_000, true));
    assert_eq!((client.arguments[0].as_str(), client.table_bits), ("say=servus", 13));
    let console = || "console".to_owned();
    assert_eq!(
        client.grants,
        [
            (console(), Grant::Call { task: console(), badge: 1 }),
            // Bit 0 is the console's interrupt.
            ("console-signal".to_owned(), Grant::Signal { task: console(), bits: 2 }),
            // `guest-extra` is empty, so it and its capability are left out.
            ("guest-kernel".to_owned(), Grant::File { file: "guest-kernel".to_owned() }),
            ("ring".to_owned(), Grant::Region { region: "ring".to_owned(), writable: false }),
            ("objects".to_owned(), Grant::Untyped { size_bits: 20 }),
        ]
    );
    assert_eq!(other.grants, [(console(), Grant::Call { task: console(), badge: 2 })]);
    assert!(system.memory > (1 << 20) + 4 * (80 << 10));
}

#[test]
fn every_wrong_manifest_is_reported_with_file_and_line() {
    let (folder, _, _) = repository(&MANIFEST.replace("level = 5", "level = 9"));
    fs::write(folder.path().join("initrd/systems/second.toml"), "[system]\n").unwrap();
    let error = check_all(folder.path()).unwrap_err().to_string();
    let line = MANIFEST.lines().position(|line| line == "level = 5").unwrap() + 1;
    assert!(error.contains(&format!("initrd/systems/test.toml:{line}: level 9")), "{error}");
    assert!(error.contains("initrd/systems/second.toml:1: missing field `description`"), "{error}");
    let (folder, _, _) = repository(MANIFEST);
    check_all(folder.path()).unwrap();
}

#[test]
fn what_cannot_be_packed_is_named() {
    let (folder, mut images, mut options) = repository(MANIFEST);
    let error = pack("tset", &images, &options).unwrap_err().to_string();
    assert!(error.contains("no system `tset`") && error.contains("did you mean `test`?"), "{error}");
    fs::remove_file(folder.path().join("data/kernel")).unwrap();
    let error = pack("test", &images, &options).unwrap_err().to_string();
    assert!(error.contains("cannot read `guest-kernel`"), "{error}");
    options.options.insert("colour".to_owned(), "red".to_owned());
    let error = pack("test", &images, &options).unwrap_err().to_string();
    assert!(error.contains("no option `colour`"), "{error}");
    options.options.clear();
    images.remove("console");
    let error = pack("test", &images, &options).unwrap_err().to_string();
    assert!(error.contains("the image `console` was not built"), "{error}");
}

#[test]
fn names_and_images_are_listed() {
    let (folder, _, _) = repository(MANIFEST);
    assert_eq!(names(folder.path()).unwrap(), ["test"]);
    assert_eq!(images(folder.path(), "test", &Options::new()).unwrap(), ["root", "moira-client", "console"]);
    assert!(graph(folder.path(), "test", &Options::new()).unwrap().contains(">watch</text>"));
}

#[test]
fn only_images_for_the_kernel_can_be_tasks() {
    let (folder, _, _) = repository(&MANIFEST.replacen("image = \"client\"", "image = \"tool\"", 1));
    assert!(check_all(folder.path()).unwrap_err().to_string().contains("no image `tool`"));
}

/// What the how-to shows must be right.
#[test]
fn the_examples_of_the_how_to_pass_the_check() {
    let page = include_str!("../../../docs/how-to/describe-a-system.md");
    let known = Known { images: ["root", "console", "hello", "vmm"].map(str::to_owned).into() };
    let examples: Vec<&str> = page
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("```").map(|(example, _)| example))
        .filter(|example| example.contains("[system]"))
        .collect();
    assert!(!examples.is_empty());
    for example in examples {
        let text = options::substitute(example, &Options::new()).unwrap();
        if let Err(report) = check::check(Path::new("describe-a-system.md"), &text, &known) {
            panic!("{report}");
        }
    }
}

#[test]
fn a_task_makes_room_for_another() {
    let source = "[tasks.a]\ntime = { slice = \"9ms\", period = \"10ms\" }\n[tasks.b]\ntime = { slice = \"1ms\", period = \"10ms\" }\n";
    let addition = Addition { tasks: "[tasks.c]\n".into(), squeezed: Some(("a".into(), 900)) };
    assert_eq!(addition.to(source), source.replace("9ms", "8100000ns") + "[tasks.c]\n");
    assert_eq!(Addition::default().to(source), source);
}

/// What the page on systems shows as a whole one is one of `initrd/systems`, where a case boots it (`tests/cases/pages.toml`).
#[test]
fn systems_in_the_pages_are_systems() {
    let root = crate::paths::root();
    let known: Vec<String> = names(&root)
        .unwrap()
        .iter()
        .map(|name| fs::read_to_string(root.join(format!("initrd/systems/{name}.toml"))).unwrap())
        .collect();
    let text = fs::read_to_string(root.join("docs/how-to/describe-a-system.md")).unwrap();
    let blocks = text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let systems: Vec<&str> = blocks.filter(|block| block.starts_with("[system]")).collect();
    for shown in &systems {
        assert!(known.iter().any(|system| system == shown), "no file of initrd/systems has this:\n{shown}");
    }
    assert_eq!(systems.len(), 2);
}

#[test]
fn a_system_is_named_without_the_files_ending() {
    let root = crate::paths::root();
    let refused = |name: &str| settings(&root, name, &Options::new()).unwrap_err().to_string();
    assert!(refused("first.toml").ends_with("; a system is named without .toml: `first`"));
    assert!(refused("initrd/systems/first.toml").ends_with("; a system is named without .toml: `first`"));
    assert!(refused("mine.toml").ends_with("`mine`, and there is none of that name"));
    assert!(refused("frist").ends_with("did you mean `first`?"));
}
