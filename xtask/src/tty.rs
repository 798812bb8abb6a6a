//! The terminal: whether there is one, and raw mode that is always undone.

use std::io::IsTerminal;
use std::sync::Mutex;

/// Whether messages go to a terminal.
pub fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// The settings to return to, kept where a signal handler's thread finds them too.
static SAVED: Mutex<Option<libc::termios>> = Mutex::new(None);

/// Raw mode of the terminal at standard input, from [`raw`] until dropped.
pub struct Raw(());

/// Switches the terminal at standard input to raw mode, so that each key goes to the guest system as it is.
/// Nothing, when standard input is no terminal.
pub fn raw() -> Option<Raw> {
    if !std::io::stdin().is_terminal() {
        return None;
    }
    // SAFETY: all-zero bytes are a valid termios, and tcgetattr fills it before anything reads it.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live termios of this frame.
    if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &mut settings) } != 0 {
        return None;
    }
    *SAVED.lock().ok()? = Some(settings);
    // SAFETY: both calls take a pointer to the live termios of this frame.
    unsafe {
        libc::cfmakeraw(&mut settings);
        // Output keeps its translation: xtask's own messages end lines with a bare newline.
        settings.c_oflag |= libc::OPOST | libc::ONLCR;
        libc::tcsetattr(libc::STDIN_FILENO, libc::TCSADRAIN, &settings);
    }
    Some(Raw(()))
}

/// Returns the terminal to what it was. Does nothing the second time.
pub fn restore() {
    if let Ok(mut saved) = SAVED.lock()
        && let Some(settings) = saved.take()
    {
        // SAFETY: the pointer is to a live termios that tcgetattr filled.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSADRAIN, &settings) };
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}
