//! What a gate did: statistics as numbers, series over training steps, tables, and SVG plots.

mod attention;
mod bars;
mod calibration;
mod experts;
mod heat_map;
mod plot;
mod statistics;

pub use attention::{AttentionDiagnostics, AttentionDiagnosticsConfig, GateDiagnostics, MassiveActivations};
pub use bars::BarPlot;
pub use calibration::{BinStrategy, calibration_error, conformal_threshold};
pub use experts::ExpertLoad;
pub use heat_map::HeatMap;
pub use plot::{LinePlot, PlotError};
pub use statistics::{GateStatistics, SinkShare};

use std::fmt::Write as _;
use std::path::Path;

/// Collects named series of numbers over steps.
///
/// ```
/// use gatekit_core::probe::Probe;
///
/// let mut probe = Probe::new();
/// for step in 0..3 {
///     probe.record("layer 0", step, 0.5 + 0.1 * step as f64);
/// }
/// assert_eq!(probe.last("layer 0"), Some(0.7));
/// println!("{}", probe.table());
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Probe {
    series: Vec<Series>,
}

/// One name and its points, in the order they were recorded.
#[derive(Debug, Clone, PartialEq)]
struct Series {
    name: String,
    points: Vec<(usize, f64)>,
}

impl Probe {
    /// Without any series.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `value` at `step` to the series `name`, which begins with its first value.
    pub fn record(&mut self, name: &str, step: usize, value: f64) {
        match self.series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push((step, value)),
            None => self.series.push(Series { name: name.to_string(), points: vec![(step, value)] }),
        }
    }

    /// Adds all statistics of a gate at `step`, as `name/mean`, `name/deviation`, `name/closed`,
    /// `name/open` and `name/entropy`.
    pub fn record_gate(&mut self, name: &str, step: usize, statistics: &GateStatistics) {
        for (part, value) in statistics.parts() {
            self.record(&format!("{name}/{part}"), step, value);
        }
    }

    /// Names of the series, in the order of their first value.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.series.iter().map(|series| series.name.as_str())
    }

    /// Points `(step, value)` of a series, empty for an unknown name.
    pub fn points(&self, name: &str) -> &[(usize, f64)] {
        self.series.iter().find(|series| series.name == name).map_or(&[], |series| &series.points)
    }

    /// The latest value of a series.
    pub fn last(&self, name: &str) -> Option<f64> {
        self.points(name).last().map(|(_, value)| *value)
    }

    /// A text table: for every series the number of points, its first, last, lowest and highest value.
    pub fn table(&self) -> String {
        let header = ["series", "points", "first", "last", "lowest", "highest"].map(String::from);
        let rows = self.series.iter().map(|series| {
            let values = || series.points.iter().map(|(_, value)| *value);
            // Every series was made together with its first point.
            let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.4}"));
            [
                series.name.clone(),
                series.points.len().to_string(),
                number(values().next()),
                number(values().next_back()),
                number(values().reduce(f64::min)),
                number(values().reduce(f64::max)),
            ]
        });
        let rows: Vec<[String; 6]> = std::iter::once(header).chain(rows).collect();
        let widths: [usize; 6] = std::array::from_fn(|column| {
            rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        });
        let mut table = String::new();
        for row in rows {
            let mut line = format!("{:<width$}", row[0], width = widths[0]);
            for column in 1..6 {
                let _ = write!(line, "  {:>width$}", row[column], width = widths[column]);
            }
            table.push_str(line.trim_end());
            table.push('\n');
        }
        table
    }

    /// The points as comma-separated values, one row a point: `series,step,value`.
    pub fn to_csv(&self) -> String {
        let mut csv = String::from("series,step,value\n");
        for series in &self.series {
            let name = quoted(&series.name);
            for (step, value) in &series.points {
                let _ = writeln!(csv, "{name},{step},{value}");
            }
        }
        csv
    }

    /// Writes [`to_csv`](Self::to_csv) to a file.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write_csv(&self, path: impl AsRef<Path>) -> std::io::Result<()> {
        std::fs::write(path, self.to_csv())
    }

    /// A plot of all series over their steps.
    pub fn plot(&self, title: &str, y_label: &str) -> LinePlot {
        self.series.iter().fold(LinePlot::new(title, "step", y_label), |plot, series| {
            plot.with_series(&series.name, series.points.iter().map(|(step, value)| (*step as f64, *value)))
        })
    }

    /// Draws [`plot`](Self::plot) to an SVG file.
    ///
    /// # Errors
    ///
    /// [`PlotError`] when there is no point to draw or the file cannot be written.
    pub fn write_svg(&self, path: impl AsRef<Path>, title: &str, y_label: &str) -> Result<(), PlotError> {
        self.plot(title, y_label).write_svg(path)
    }
}

/// A field of a comma-separated file (RFC 4180).
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{devices, float32};

    fn probe() -> Probe {
        let mut probe = Probe::new();
        for (step, loss) in [(0, 2.5), (10, 1.25), (20, 1.5)] {
            probe.record("loss", step, loss);
        }
        probe.record("gate, \"first\"", 10, 0.5);
        probe
    }

    #[test]
    fn series_keep_their_points_in_order() {
        let probe = probe();
        assert_eq!(probe.names().collect::<Vec<_>>(), ["loss", "gate, \"first\""]);
        assert_eq!(probe.points("loss"), [(0, 2.5), (10, 1.25), (20, 1.5)]);
        assert_eq!((probe.last("loss"), probe.last("accuracy")), (Some(1.5), None));
        assert!(probe.points("accuracy").is_empty());
    }

    #[test]
    fn table_is_aligned() {
        let expected = "\
series         points   first    last  lowest  highest
loss                3  2.5000  1.5000  1.2500   2.5000
gate, \"first\"       1  0.5000  0.5000  0.5000   0.5000
";
        assert_eq!(probe().table(), expected);
    }

    #[test]
    fn csv_is_quoted_where_needed() {
        let expected =
            "series,step,value\nloss,0,2.5\nloss,10,1.25\nloss,20,1.5\n\"gate, \"\"first\"\"\",10,0.5\n";
        assert_eq!(probe().to_csv(), expected);
        let path = std::env::temp_dir().join(format!("gatekit-probe-{}.csv", std::process::id()));
        probe().write_csv(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn gates_are_recorded_with_all_their_statistics() {
        let device = devices().remove(0);
        let mut probe = Probe::new();
        probe.record_gate("layer 1", 5, &GateStatistics::of(float32(&[0.0, 1.0], [2], &device)));
        let names: Vec<_> = probe.names().collect();
        assert_eq!(
            names,
            ["layer 1/mean", "layer 1/deviation", "layer 1/closed", "layer 1/open", "layer 1/entropy"]
        );
        assert_eq!(probe.points("layer 1/deviation"), [(5, 0.5)]);
    }

    #[test]
    fn the_plot_holds_every_series() {
        let path = std::env::temp_dir().join(format!("gatekit-probe-{}.svg", std::process::id()));
        probe().write_svg(&path, "Training", "loss").unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        for text in ["Training", "step", "loss", "gate, &quot;first&quot;"] {
            assert!(svg.contains(text), "{text} is missing");
        }
        assert!(matches!(Probe::new().write_svg("unused.svg", "", ""), Err(PlotError::Empty)));
    }
}
