//! One test for each thing the checker refuses: the line, the sentence and the hint.

use super::*;

const HEAD: &str = "[system]\ndescription = \"test\"\ncpus = 2\n";
const CONSOLE: &str = "[tasks.console]\nlevel = 5\npassive = true\nserves = true\n";

fn known() -> Known {
    Known { images: ["root", "console", "client", "planner", "moira-scheduler"].map(str::to_owned).into() }
}

/// Checks `HEAD` and `text`; findings as (line, message, hint), lines counted in `text` from 1.
fn findings(text: &str) -> Vec<(usize, String, String)> {
    let source = format!("{HEAD}{text}");
    match check(Path::new("t.toml"), &source, &known()) {
        Ok(_) => Vec::new(),
        Err(report) => report
            .findings()
            .iter()
            .map(|finding| {
                let line = report.line(finding).saturating_sub(HEAD.lines().count());
                (line, finding.message.clone(), finding.hint.clone())
            })
            .collect(),
    }
}

/// Expects exactly one finding.
#[track_caller]
fn one(text: &str, line: usize, message: &str, hint: &str) {
    let found = findings(text);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].0, line, "{found:#?}");
    assert!(found[0].1.contains(message), "{found:#?}");
    assert!(found[0].2.contains(hint), "{found:#?}");
}

/// A client with `rest`, and the console.
fn client(rest: &str) -> String {
    format!("[tasks.client]\nlevel = 1\nslack = true\n{rest}\n{CONSOLE}")
}

#[test]
fn a_right_system_passes() {
    assert_eq!(findings(&client("calls = [\"console\"]\nargs = [\"a\"]\nslots = 30")), vec![]);
}

#[test]
fn text_that_is_no_toml() {
    let found = findings("[tasks.console\nlevel = 1\n");
    assert_eq!((found.len(), found[0].0), (1, 1), "{found:?}");
}

#[test]
fn unknown_keys() {
    one(&client("levle = 3"), 4, "unknown key `levle`", "did you mean `level`?");
    one("[sistem]\n", 1, "unknown key `sistem`", "`system`");
    one(&client("time = { slise = \"1ms\", period = \"1ms\" }"), 4, "unknown key `slise`", "`slice`");
    one(&client("zebra = 1"), 4, "unknown key `zebra`", "known here: ");
}

#[test]
fn policies_that_are_none() {
    let scheduler = |policy: &str| {
        format!(
            "{CONSOLE}[tasks.scheduler]\nrole = \"scheduler\"\nlevel = 3\ntime = {{ slice = \"1ms\", period = \"10ms\" }}\nargs = [\"policy={policy}\"]\n"
        )
    };
    one(&scheduler("lotery"), 5, "`policy=lotery`, and there is no such policy", "lottery");
    assert_eq!(findings(&scheduler("lottery")), vec![]);
}

#[test]
fn missing_keys() {
    one("[tasks.console]\nslack = true\n", 1, "missing field `level`", "add it");
}

#[test]
fn wrong_types_and_words() {
    one(&client("args = 3"), 4, "invalid type", "another type");
    one(&client("restart = \"sometimes\""), 4, "unknown variant", "words");
}

#[test]
fn duplicate_names() {
    one(&format!("{CONSOLE}{CONSOLE}"), 5, "duplicate key", "once");
    let text = client("calls = [\"console\", \"console\"]");
    one(&text, 4, "two capabilities named `console`", "by name");
    let text = client("untyped = { console = \"4KiB\" }\ncalls = [\"console\"]");
    one(&text, 4, "two capabilities named `console`", "rename");
}

#[test]
fn bad_names() {
    one("[tasks.Console]\nimage = \"console\"\nlevel = 1\nslack = true\n", 1, "bad name `Console`", "a-z");
    one("[tasks.root]\nlevel = 1\nslack = true\n", 1, "`root` is taken", "archive");
    one(&format!("{CONSOLE}[files]\nconsole = \"x\"\n"), 6, "has the name of an image", "rename");
}

#[test]
fn no_tasks() {
    one("", 0, "without tasks", "[tasks.NAME]");
}

#[test]
fn missing_tasks() {
    one(&client("calls = [\"consle\"]"), 4, "calls `consle`", "did you mean `console`?");
    one(&client("signals = [\"nobody\"]"), 4, "signals `nobody`", "[tasks.nobody]");
    one(&client("controls = [\"nobody\"]"), 4, "holds `nobody`", "[tasks.nobody]");
}

#[test]
fn missing_images() {
    one(&client("image = \"clint\""), 4, "no image `clint`", "did you mean `client`?");
    one("[tasks.ghost]\nlevel = 1\nslack = true\n", 1, "no image `ghost`", "image = ");
}

#[test]
fn level_inversions() {
    let text = client("calls = [\"console\"]").replace("level = 5", "level = 1");
    one(&text, 4, "`client` on level 1 calls `console` on level 1", "strictly uphill");
    one(&CONSOLE.replace("level = 5", "level = 8"), 2, "level 8", "0 to 7");
}

#[test]
fn call_cycles() {
    let text = client("serves = true\ncalls = [\"console\"]") + "calls = [\"client\"]\n";
    one(&text, 5, "client → console → client", "may reach itself");
    one(&format!("{CONSOLE}calls = [\"console\"]\n"), 5, "console → console", "uphill");
}

#[test]
fn calls_to_nobody_and_to_other_cpus() {
    let text = client("calls = [\"console\"]").replace("serves = true\n", "").replace("passive = true", "slack = true");
    one(&text, 4, "which serves nothing", "serves = true");
    one(&client("calls = [\"console\"]\ncpu = 1"), 4, "on CPU 1 calls `console` on CPU 0", "ring");
}

#[test]
fn time() {
    one("[tasks.client]\nlevel = 1\n", 1, "would never run", "slack = true");
    one("[tasks.client]\nlevel = 1\npassive = true\n", 3, "passive and serves nothing", "serves");
    one(&format!("{CONSOLE}slack = true\n"), 3, "time of its own", "remove");
    let contract = |text: &str| format!("[tasks.client]\nlevel = 1\ntime = {{ {text} }}\n");
    one(&contract("slice = \"2ms\", period = \"1ms\""), 3, "a slice of 2 ms", "at most its period, 1 ms");
    one(&contract("slice = \"0ms\", period = \"1ms\""), 3, "a slice of 0 ns", "more than nothing");
    one(&contract("slice = \"1us\", period = \"2us\""), 3, "a period of 2 us", "100 us");
    one(&contract("slice = \"1ms\", period = \"2ms\", latency = \"3ms\""), 3, "latency bound of 3 ms", "2 ms");
    one(&contract("slice = \"1 minute\", period = \"2ms\""), 3, "bad time `1 minute`", "\"2ms\"");
}

#[test]
fn too_much_promised() {
    let task = |name: &str, slice: u32, cpu: u32| {
        format!(
            "[tasks.{name}]\nimage = \"client\"\nlevel = 1\ncpu = {cpu}\ntime = {{ slice = \"{slice}ms\", period = \"10ms\" }}\n"
        )
    };
    let over = format!("{}{}", task("a", 5, 0), task("b", 6, 0));
    one(&over, 10, "CPU 0 is promised 110.0 %", "b 60.0 %, a 50.0 %");
    assert_eq!(findings(&format!("{}{}", task("a", 5, 0), task("b", 6, 1))), vec![]);
    assert_eq!(findings(&format!("{}{}", task("a", 4, 0), task("b", 6, 0))), vec![]);
}

#[test]
fn cpus() {
    one(&client("cpu = 2"), 4, "`client` on CPU 2", "raise `cpus`");
    let source = HEAD.replace("cpus = 2", "cpus = 0") + CONSOLE;
    let report = check(Path::new("t.toml"), &source, &known()).unwrap_err();
    assert!(report.to_string().contains("t.toml:3: 0 CPUs"), "{report}");
}

#[test]
fn roles() {
    one("[tasks.planner]\nlevel = 1\nslack = true\nrole = \"planner\"\n", 4, "no window of its own", "time = ");
    let window = "level = 1\ntime = { slice = \"1ms\", period = \"10ms\" }\nrole = \"planner\"\n";
    let two = format!("[tasks.planner]\n{window}[tasks.client]\n{window}");
    one(&two, 4, "same role", "one planner");
    let supervisor = window.replace("planner", "supervisor").replace("level = 1", "level = 3");
    let text = format!("[tasks.client]\n{supervisor}[tasks.console]\nlevel = 3\nslack = true\nrestart = \"always\"\n");
    one(&text, 8, "cannot send its faults to the supervisor on level 3", "above it");
}

#[test]
fn slots() {
    one(&client("slots = 8"), 4, "8 slots", "16 to 65534");
    one(&client("calls = [\"console\"]\nslots = 16"), 5, "16 slots", "17 to");
}

#[test]
fn sizes() {
    one(&client("memory = { heap = \"1MB\" }"), 4, "bad size `1MB`", "\"1MiB\"");
    one(&client("memory = { heap = 100 }"), 4, "heap of `client`: 100 bytes", "whole pages");
    one(&client("memory = { stack = \"0KiB\" }"), 4, "stack of `client`", "whole pages");
    one(&client("untyped = { x = \"12KiB\" }"), 4, "untyped memory `x` of 12 KiB", "the next one is 16 KiB");
    one(&client("blocks = { x = \"512KiB\" }"), 4, "blocks `x` of 512 KiB", "whole MiB");
    one(&client("blocks = { x = \"61GiB\" }"), 4, "blocks `x` of 61 GiB", "60 GiB");
    one(&client("restart = \"never\"\nrestart-limit = 3"), 5, "not made anew", "on-failure");
    one(&client("restart-delay = \"1ms\""), 4, "not made anew", "always");
    one(&client("untyped = { x = \"1KiB\" }"), 4, "untyped memory `x` of 1 KiB", "4 KiB");
    one(&format!("{CONSOLE}[regions.x]\nsize = \"5000\"\n"), 6, "region `x`", "whole pages");
    let source = format!("{HEAD}memory = \"1MiB\"\n{}", client("untyped = { x = \"2MiB\" }"));
    let report = check(Path::new("t.toml"), &source, &known()).unwrap_err();
    assert!(report.to_string().contains("t.toml:4: 1 MiB of memory is too little"), "{report}");
}

#[test]
fn references_to_regions_and_files() {
    one(&client("maps = { ring = \"rw\" }"), 4, "no region `ring`", "[regions.ring]");
    one(&client("maps = { ring = \"rx\" }"), 4, "unknown variant", "words");
    one(&client("files = [\"kernel\"]"), 4, "no file `kernel`", "[files]");
}

#[test]
fn devices_have_one_owner() {
    one(&client("ports = { a = \"0x3f8-0x3f0\" }"), 4, "bad port range", "0x3f8-0x3ff");
    one(&client("ports = { a = \"0x10000\" }"), 4, "bad port range", "0xffff");
    let both = client("ports = { a = \"0x3f8-0x3ff\" }") + "ports = { b = \"0x3ff\" }\n";
    one(&both, 9, "both claim these ports", "one task");
    let both = client("interrupts = { a = { gsi = 4 } }") + "interrupts = { b = { gsi = 4 } }\n";
    one(&both, 9, "both claim this interrupt", "one task");
    one(&client("interrupts = { a = { gsi = 5000 } }"), 4, "interrupt 5000", "0 to 1023");
    let twice =
        "device-memory = { a = { address = 0xfed00000, size = \"8KiB\" }, b = { address = 0xfed01000, size = 4096 } }";
    one(&client(twice), 4, "claims this device memory twice", "one task");
    one(&client("device-memory = { a = { address = 1, size = 4096 } }"), 4, "bad range", "4 KiB");
    one(&client("device-memory = { a = { address = 4096, size = 0 } }"), 4, "bad range", "4 KiB");
}

#[test]
fn notifications_have_64_bits() {
    let lines: Vec<String> = (0..65).map(|gsi| format!("i{gsi} = {{ gsi = {gsi} }}")).collect();
    one(&client(&format!("interrupts = {{ {} }}", lines.join(", "))), 1, "needs 65 bits", "64 bits");
}

#[test]
fn all_findings_come_at_once_in_the_order_of_the_file() {
    let found = findings(&client("calls = [\"nobody\"]\ncpu = 7"));
    assert_eq!(found.iter().map(|finding| finding.0).collect::<Vec<_>>(), [4, 5]);
}
