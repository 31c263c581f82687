//! The progress bar; where nobody watches (a pipe, a log file), a line now and then instead.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use gatekit_examples::say;

/// Lines printed over a whole run when there is no terminal.
const LINES: usize = 20;

/// A progress bar with loss, bits per byte, tokens per second and the time left.
pub struct Progress {
    bar: ProgressBar,
    steps: usize,
    /// Running mean of the bits per byte over about the last twenty steps.
    smooth_bits: f64,
    shown: usize,
    tokens: usize,
    time: Duration,
}

impl Progress {
    /// A bar for `steps` steps of which `done` are done.
    pub fn new(steps: usize, done: usize) -> Self {
        let style =
            ProgressStyle::with_template("{bar:24.cyan/dim} {pos}/{len}  {msg}  {elapsed}, {eta} left")
                .expect("the template is well formed")
                .progress_chars("━━─");
        let bar = ProgressBar::new(steps as u64).with_style(style).with_position(done as u64);
        bar.reset_eta();
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar, steps, smooth_bits: 0.0, shown: 0, tokens: 0, time: Duration::ZERO }
    }

    /// Shows step `step` (counted from one), which took `time` for `tokens` tokens.
    pub fn step(&mut self, step: usize, loss: f32, bits: f64, tokens: usize, time: Duration) {
        self.tokens += tokens;
        self.time += time;
        self.shown += 1;
        self.smooth_bits += (bits - self.smooth_bits) / self.shown.min(20) as f64;
        let message = format!(
            "loss {loss:.3}  {:.3} bits/byte  {:.0} tokens/s",
            self.smooth_bits,
            self.tokens as f64 / self.time.as_secs_f64()
        );
        if self.bar.is_hidden() && (step.is_multiple_of(self.steps.div_ceil(LINES)) || step == self.steps) {
            say(format_args!("step {step}/{}  {message}", self.steps));
        }
        self.bar.set_message(message);
        self.bar.set_position(step as u64);
    }

    /// Leaves the bar as it stands.
    pub fn finish(&self) {
        self.bar.abandon();
    }
}
