//! Off and reset.

use crate::machine::{Machine, Width};
use crate::value::Value;
use moira_proto::platform::{Fixed, Register};

/// PM1 control: ACPI mode is on (ACPI 6.5, 4.8.3.2.1).
const SCI_EN: u64 = 1;
/// PM1 control: the sleep type.
const SLP_TYP_SHIFT: u32 = 10;
/// PM1 control: sleep now.
const SLP_EN: u64 = 1 << 13;
/// How long the firmware may take to enter ACPI mode, and the machine to go off.
const PATIENCE_NS: u64 = 3_000_000_000;
/// Between two looks.
const STEP_NS: u64 = 1_000_000;

/// Sleep types of `\_S5`, for PM1a and PM1b (ACPI 6.5, 7.4.2).
#[must_use]
pub fn sleep_types(s5: &Value) -> Option<(u8, u8)> {
    let [a, b, ..] = s5.package()? else {
        return None;
    };
    let kind = |value: &Value| u8::try_from(value.integer()?).ok().filter(|kind| *kind < 8);
    Some((kind(a)?, kind(b)?))
}

/// The word to write to a PM1 control register that holds `now`.
#[must_use]
pub const fn sleep_word(now: u64, kind: u8) -> u64 {
    now & !(7 << SLP_TYP_SHIFT | SLP_EN) | (kind as u64 & 7) << SLP_TYP_SHIFT | SLP_EN
}

/// Switches ACPI mode on, if it is not.
fn enable_acpi(machine: &mut impl Machine, fixed: &Fixed, control: Register) -> bool {
    let on = |machine: &mut _| Machine::read_register(machine, control, Width::Word) & SCI_EN != 0;
    if on(machine) {
        return true;
    }
    // Without a command port ACPI mode is always on (ACPI 6.5, 5.2.9).
    if fixed.smi_command == 0 || fixed.acpi_enable == 0 {
        return true;
    }
    machine.output(fixed.smi_command, Width::Byte, fixed.acpi_enable.into());
    for _ in 0..PATIENCE_NS / STEP_NS {
        if on(machine) {
            return true;
        }
        machine.wait(STEP_NS);
    }
    false
}

/// Powers the machine off. Returns only if that failed.
pub fn off(machine: &mut impl Machine, fixed: &Fixed, types: (u8, u8)) {
    let Some(a) = fixed.pm1a_control else { return };
    if !enable_acpi(machine, fixed, a) {
        return;
    }
    let registers = [(Some(a), types.0), (fixed.pm1b_control, types.1)];
    for (register, kind) in registers {
        if let Some(register) = register {
            let now = machine.read_register(register, Width::Word);
            machine.write_register(register, Width::Word, sleep_word(now, kind));
        }
    }
    machine.wait(PATIENCE_NS);
}

/// Resets the machine: by the FADT's register, by port 0xcf9, by the keyboard controller, in that order. Returns only if all failed.
pub fn reset(machine: &mut impl Machine, fixed: &Fixed) {
    if let Some((register, value)) = fixed.reset {
        machine.write_register(register, Width::Byte, value.into());
        machine.wait(100 * STEP_NS);
    }
    // Hard reset by the PIIX and ICH families: first the kind, then the edge.
    machine.output(0xcf9, Width::Byte, 2);
    machine.output(0xcf9, Width::Byte, 6);
    machine.wait(100 * STEP_NS);
    // 8042: pulse the line that resets the processor.
    machine.output(0x64, Width::Byte, 0xfe);
    machine.wait(100 * STEP_NS);
}
