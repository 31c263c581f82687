//! What a report prints.

use crate::{
    figure::{Figure, Unit},
    row::{COPY, Row},
};

/// Columns of text, the first ones to the left and numbers to the right.
fn align(lines: &[Vec<String>], left: usize) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells =
            line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column < left {
                true => format!("{cell:<width$}"),
                false => format!("{cell:>width$}"),
            });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A time with three digits and its unit.
pub fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-3 => (s * 1e6, "us"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s "),
    };
    let digits = match value {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

fn bytes(count: usize) -> String {
    match count as f64 {
        c if c < 1e6 => format!("{:.0} kB", c / 1e3),
        c if c < 1e9 => format!("{:.1} MB", c / 1e6),
        c => format!("{:.2} GB", c / 1e9),
    }
}

/// The rows of a contest: times, rates, memory, and the ratio to every peer.
pub fn contest(name: &str, rows: &[Row], peers: &[&str]) -> String {
    let several_shapes = rows.iter().any(|row| row.op == rows[0].op && row.shape() != rows[0].shape());
    let several_ops = rows.iter().any(|row| row.op != COPY && row.op != rows[0].op);
    let ratio = |row: &Row, peer: &str| {
        if row.op == COPY || row.device == peer {
            return None;
        }
        let theirs = rows.iter().find(|other| other.device == peer && other.op == row.op)?.median_s?;
        Some(format!("{:.2}x", theirs / row.median_s?))
    };
    let present: Vec<&&str> =
        peers.iter().filter(|peer| rows.iter().any(|row| row.device == **peer)).collect();
    let mut lines = vec![
        ["  device", "form", "median", "quartiles", "times", "GFLOP/s", "GB/s", "extra memory"]
            .map(str::to_owned)
            .to_vec(),
    ];
    lines[0].extend(present.iter().map(|peer| format!("over {peer}")));
    for row in rows {
        let form = match (several_shapes, several_ops) {
            (true, _) => format!("{} {}", row.form, row.shape()),
            (_, true) => format!("{}, {}", row.op, row.form),
            _ => row.form.clone(),
        };
        let mut line = vec![format!("  {}", row.device), form];
        if row.error.is_empty() {
            let quartiles = row.lower_quartile_s.zip(row.upper_quartile_s);
            line.extend([
                row.median_s.map_or(String::new(), time),
                quartiles
                    .map_or(String::new(), |(lower, upper)| format!("{} .. {}", time(lower), time(upper))),
                row.samples.to_string(),
                row.flops.map_or(String::new(), |rate| format!("{:.1}", rate / 1e9)),
                row.bytes_per_s.map_or(String::new(), |rate| format!("{:.1}", rate / 1e9)),
                row.extra_bytes.map_or(String::new(), bytes),
            ]);
            line.extend(present.iter().map(|peer| ratio(row, peer).unwrap_or_default()));
            lines.push(line);
        } else {
            line.push(format!("failed: {}", row.error));
            lines.push(line);
        }
    }
    // A failure's text must not widen the column of medians.
    let (failed, timed): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line.len() == 3);
    let failed: String = failed.iter().map(|line| format!("{}\n", line.join("  "))).collect();
    format!("{name}\n{}{failed}", align(&timed, 2))
}

/// The headline figures, a line each.
pub fn headline(figures: &[Figure]) -> String {
    let mut lines =
        vec![["figure", "device", "op", "bar", "aim", "reached", "measured"].map(str::to_owned).to_vec()];
    for figure in figures {
        let goal = |value: f64| {
            let value = match figure.unit {
                Unit::Times => format!("{value}x"),
                Unit::Share => figure.unit.show(value),
            };
            if figure.at_most { format!("<= {value}") } else { format!(">= {value}") }
        };
        let cases: Vec<String> = figure
            .cases
            .iter()
            .map(|(shape, value)| format!("{} ({shape})", figure.unit.show(*value)))
            .collect();
        lines.push(vec![
            figure.figure.to_owned(),
            figure.device.clone(),
            figure.op.clone(),
            goal(figure.bar),
            goal(figure.aim),
            figure.verdict.name().to_owned(),
            cases.join(", "),
        ]);
    }
    align(&lines, usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{headline::figures, op::Pass, row::samples::row, shape::Shape};

    #[test]
    fn a_contest_shows_times_ratios_and_failures() {
        let shape = Shape::new(1, 2048, 4, 64);
        let mut failed = row("gla", "portable", "flex", Pass::Forward, shape, 1.0);
        (failed.median_s, failed.error) = (None, "out of memory".into());
        let rows = [
            row("gla", "fused", "flex", Pass::Forward, shape, 0.0021),
            row("gla", "PyTorch, chunked", "torch", Pass::Forward, shape, 0.042),
            failed,
        ];
        let text = contest("gla forward", &rows, &["torch", "ggml"]);
        for words in ["2.10 ms", "20.00x", "over torch", "failed: out of memory", "1.89 ms .. 2.31 ms"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(!text.contains("ggml"));
    }

    #[test]
    fn times_have_three_digits() {
        assert_eq!([2.41e-5, 0.5, 12.34].map(time), ["24.1 us", "500 ms", "12.3 s "]);
    }

    #[test]
    fn goals_stand_beside_what_was_measured() {
        let shape = Shape::new(1, 2048, 4, 64);
        let rows = [
            row("gla", "fused", "flex", Pass::ForwardBackward, shape, 0.01),
            row("gla", "PyTorch, chunked", "torch", Pass::ForwardBackward, shape, 0.05),
        ];
        let text = headline(&figures(&rows));
        for words in [">= 4x", ">= 10x", "bar", "5.00x (1x2048x4x64)"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
