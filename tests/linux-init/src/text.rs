//! Words on the standard output.

use crate::calls::{call, number};
use core::ffi::CStr;

/// Prints a text.
pub fn say(text: &str) {
    call(number::WRITE, [1, text.as_ptr() as u64, text.len() as u64, 0, 0, 0]);
}

/// Prints `ticks: NAME TICKS ROUNDS`.
pub fn say_ticks(name: &str, ticks: u64, rounds: u64) {
    say("ticks: ");
    say(name);
    say_number(ticks);
    say_number(rounds);
    say("\n");
}

fn say_number(number: u64) {
    let mut digits = [b' '; 21];
    let mut rest = number;
    let mut first = digits.len() - 1;
    while first > 0 {
        if let Some(digit) = digits.get_mut(first) {
            *digit = b'0' + (rest % 10) as u8;
        }
        rest /= 10;
        first -= 1;
        if rest == 0 {
            break;
        }
    }
    say(core::str::from_utf8(digits.get(first..).unwrap_or_default()).unwrap_or_default());
}

/// Prints the first bytes of each line of a file.
pub fn say_file(prefix: &str, path: &CStr, most: usize) {
    let file = call(number::OPEN, [path.as_ptr() as u64, 0, 0, 0, 0, 0]);
    if (file as i64) < 0 {
        return;
    }
    let mut buffer = [0u8; 2048];
    let count = call(number::READ, [file, buffer.as_mut_ptr() as u64, buffer.len() as u64, 0, 0, 0]) as usize;
    let text = core::str::from_utf8(buffer.get(..count).unwrap_or_default()).unwrap_or_default();
    for line in text.lines() {
        say(prefix);
        say(line.get(..most).unwrap_or(line));
        say("\n");
    }
}
