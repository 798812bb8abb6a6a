//! Progress of whatever takes longer than a second: a spinner on a terminal, plain lines elsewhere.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How long a step may take before anything is shown.
const QUIET: Duration = Duration::from_secs(1);
/// How often a step that writes to no terminal says that it is still at work.
const REMIND: Duration = Duration::from_secs(30);

/// A step under way. Dropping it takes its spinner away.
pub struct Step {
    done: Option<Sender<()>>,
    ticker: Option<JoinHandle<()>>,
    message: Arc<str>,
    since: Instant,
}

/// Starts a step called `message`, for instance "building core for bare metal (once)".
pub fn step(message: impl Into<Arc<str>>) -> Step {
    let message = message.into();
    let (done, wait) = mpsc::channel();
    let shown = message.clone();
    let ticker = std::thread::spawn(move || {
        if wait.recv_timeout(QUIET) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        if crate::tty::stderr_is_terminal() {
            let bar = ProgressBar::new_spinner().with_message(shown.to_string());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            let _ = wait.recv();
            bar.finish_and_clear();
        } else {
            let start = Instant::now();
            eprintln!("{shown} ...");
            while wait.recv_timeout(REMIND) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{shown} ... {} s", start.elapsed().as_secs());
            }
        }
    });
    Step { done: Some(done), ticker: Some(ticker), message, since: Instant::now() }
}

impl Step {
    /// Ends the step and leaves a line about it, with the time it took, when that was over a second.
    pub fn finish(mut self) {
        self.stop();
        if self.since.elapsed() > QUIET {
            eprintln!("{}: {:.1} s", self.message, self.since.elapsed().as_secs_f64());
        }
    }

    fn stop(&mut self) {
        drop(self.done.take());
        if let Some(ticker) = self.ticker.take() {
            // A ticker that panicked has nothing left to clean up.
            let _ = ticker.join();
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.stop();
    }
}
