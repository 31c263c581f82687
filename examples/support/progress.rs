//! Lines and bars for the person who watches. A reader that went away (`| head`) must not end hours of training, so
//! unlike `println!` nothing here fails.

use std::fmt::Display;
use std::io::Write;
use std::time::Duration;

pub use indicatif::ProgressBar;
use indicatif::ProgressStyle;

/// A line on the standard output.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A bar over `len` steps with a name, a message and the time left. Where nobody watches (a pipe, a log file) it is
/// not drawn; the name is printed instead.
pub fn progress(len: usize, label: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:24} {bar:24.cyan/dim} {pos}/{len}  {msg}  {eta} left")
        .expect("the template is well formed")
        .progress_chars("━━─");
    let bar = ProgressBar::new(len as u64).with_style(style).with_prefix(label.to_string());
    if bar.is_hidden() {
        say(label);
    } else {
        bar.enable_steady_tick(Duration::from_millis(500));
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
