//! Measured values by variant, metric and seed.

use std::fs;
use std::path::Path;

use gatekit::core::probe::BarPlot;
use serde_json::{Map, Value, json};

use crate::error::ExampleError;

/// What an experiment measured.
///
/// ```
/// let mut results = gatekit_examples::Results::new();
/// for (seed, bits) in [(0, 2.5), (1, 2.7)] {
///     results.record("gated", "bits per byte", seed, bits);
/// }
/// assert_eq!(results.mean("gated", "bits per byte"), Some(2.6));
/// println!("{}", results.table());
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results {
    rows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq)]
struct Row {
    variant: String,
    metric: String,
    seed: u64,
    value: f64,
}

impl Results {
    /// Without any value.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value.
    pub fn record(&mut self, variant: &str, metric: &str, seed: u64, value: f64) {
        self.rows.push(Row { variant: variant.into(), metric: metric.into(), seed, value });
    }

    /// The values of a variant's metric, in the order in which they were recorded.
    pub fn values(&self, variant: &str, metric: &str) -> Vec<f64> {
        (self.rows.iter())
            .filter(|row| row.variant == variant && row.metric == metric)
            .map(|row| row.value)
            .collect()
    }

    /// Their mean, `None` without a value.
    pub fn mean(&self, variant: &str, metric: &str) -> Option<f64> {
        mean_and_deviation(&self.values(variant, metric)).map(|(mean, _)| mean)
    }

    /// Their sample standard deviation (0 of a single value), `None` without a value.
    pub fn deviation(&self, variant: &str, metric: &str) -> Option<f64> {
        mean_and_deviation(&self.values(variant, metric)).map(|(_, deviation)| deviation)
    }

    /// The variants, in the order of their first value.
    pub fn variants(&self) -> Vec<&str> {
        distinct(self.rows.iter().map(|row| row.variant.as_str()))
    }

    /// The metrics, in the order of their first value.
    pub fn metrics(&self) -> Vec<&str> {
        distinct(self.rows.iter().map(|row| row.metric.as_str()))
    }

    /// A table in Markdown, aligned: a row a variant, a column a metric, `mean ± deviation` over the seeds (the mean
    /// alone for a single value).
    pub fn table(&self) -> String {
        let metrics = self.metrics();
        let header = std::iter::once(String::new()).chain(metrics.iter().map(|metric| metric.to_string()));
        let mut rows: Vec<Vec<String>> = vec![header.collect()];
        for variant in self.variants() {
            let cells = metrics.iter().map(|metric| cell(&self.values(variant, metric)));
            rows.push(std::iter::once(variant.to_string()).chain(cells).collect());
        }
        markdown(&rows)
    }

    /// Writes `variant,metric,seed,value`, one row a value.
    ///
    /// # Errors
    ///
    /// [`ExampleError::Io`] when the file cannot be written.
    pub fn write_csv(&self, path: impl AsRef<Path>) -> Result<(), ExampleError> {
        let path = path.as_ref();
        let failed = |error: csv::Error| ExampleError::io(path)(error.into());
        let mut writer = csv::Writer::from_path(path).map_err(failed)?;
        writer.write_record(["variant", "metric", "seed", "value"]).map_err(failed)?;
        for Row { variant, metric, seed, value } in &self.rows {
            let record = [variant, metric, &seed.to_string(), &value.to_string()];
            writer.write_record(record).map_err(failed)?;
        }
        writer.flush().map_err(ExampleError::io(path))
    }

    /// Writes an object of variants, each an object of metrics with `mean`, `deviation` and `values`.
    ///
    /// # Errors
    ///
    /// [`ExampleError::Io`] when the file cannot be written.
    pub fn write_json(&self, path: impl AsRef<Path>) -> Result<(), ExampleError> {
        let mut variants = Map::new();
        for variant in self.variants() {
            let mut metrics = Map::new();
            for metric in self.metrics() {
                let values = self.values(variant, metric);
                if let Some((mean, deviation)) = mean_and_deviation(&values) {
                    let value = json!({ "mean": mean, "deviation": deviation, "values": values });
                    metrics.insert(metric.to_string(), value);
                }
            }
            variants.insert(variant.to_string(), Value::Object(metrics));
        }
        let path = path.as_ref();
        fs::write(path, format!("{:#}\n", Value::Object(variants))).map_err(ExampleError::io(path))
    }

    /// A bar a variant for one metric, as high as its mean, with the deviation as a whisker.
    pub fn bar_plot(&self, title: &str, metric: &str) -> BarPlot {
        let bars = (self.variants().into_iter()).filter_map(|variant| {
            let (mean, deviation) = mean_and_deviation(&self.values(variant, metric))?;
            Some((variant, mean, deviation))
        });
        bars.fold(BarPlot::new(title, metric), |plot, (name, mean, deviation)| {
            plot.with_bar(name, mean, deviation)
        })
    }
}

/// An aligned table in Markdown: the first row is the header, the first column names the rows.
pub(crate) fn markdown(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(2);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut table = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, (text, &width)) in row.iter().zip(&widths).enumerate() {
            table += &match column {
                0 => format!("| {text:<width$} |"),
                _ => format!(" {text:>width$} |"),
            };
        }
        table.push('\n');
        if index == 0 {
            for (column, &width) in widths.iter().enumerate() {
                table += &match column {
                    0 => format!("|{}|", "-".repeat(width + 2)),
                    _ => format!("{}:|", "-".repeat(width + 1)),
                };
            }
            table.push('\n');
        }
    }
    table
}

/// The names without repetitions, in the order of their first.
pub(crate) fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

pub(crate) fn mean_and_deviation(values: &[f64]) -> Option<(f64, f64)> {
    let count = values.len() as f64;
    let mean = (!values.is_empty()).then(|| values.iter().sum::<f64>() / count)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((mean, if values.len() < 2 { 0.0 } else { (squares / (count - 1.0)).sqrt() }))
}

/// `mean ± deviation`, the mean alone of one value, `-` of none.
pub(crate) fn cell(values: &[f64]) -> String {
    match mean_and_deviation(values) {
        None => "-".to_string(),
        Some((mean, _)) if values.len() == 1 => number(mean, mean),
        Some((mean, deviation)) => format!("{} ± {}", number(mean, mean), number(deviation, mean)),
    }
}

/// A number with as many decimals as suit one of the size of `like`.
fn number(value: f64, like: f64) -> String {
    match like.abs() {
        1e5.. => format!("{value:.3e}"),
        100.0.. => format!("{value:.1}"),
        0.01.. | 0.0 => format!("{value:.3}"),
        _ => format!("{value:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        let mut results = Results::new();
        for (seed, accuracy) in [(4, 0.9), (5, 0.7)] {
            results.record("gated", "accuracy", seed, accuracy);
        }
        results.record("plain, long", "accuracy", 4, 0.25);
        results.record("plain, long", "bytes", 4, 123_456.0);
        results
    }

    #[test]
    fn the_table_has_a_row_a_variant_and_a_column_a_metric() {
        let expected = "\
|             |      accuracy |   bytes |
|-------------|--------------:|--------:|
| gated       | 0.800 ± 0.141 |       - |
| plain, long |         0.250 | 1.235e5 |
";
        assert_eq!(results().table(), expected);
    }

    #[test]
    fn means_and_deviations_are_over_the_seeds() {
        let results = results();
        assert_eq!(results.values("gated", "accuracy"), [0.9, 0.7]);
        assert!((results.mean("gated", "accuracy").expect("values") - 0.8).abs() < 1e-12);
        assert!((results.deviation("gated", "accuracy").expect("values") - 0.02_f64.sqrt()).abs() < 1e-12);
        assert_eq!(results.deviation("plain, long", "accuracy"), Some(0.0));
        assert_eq!(results.mean("gated", "bytes"), None);
    }

    #[test]
    fn files_hold_every_value() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (csv, json) = (folder.path().join("a.csv"), folder.path().join("a.json"));
        results().write_csv(&csv).expect("written");
        let text = fs::read_to_string(csv).expect("read");
        assert_eq!(text.lines().count(), 5);
        assert!(text.contains("\"plain, long\",accuracy,4,0.25"));
        results().write_json(&json).expect("written");
        let value: Value = serde_json::from_slice(&fs::read(json).expect("read")).expect("JSON");
        assert_eq!(value["gated"]["accuracy"]["values"], json!([0.9, 0.7]));
        assert_eq!(value["plain, long"]["bytes"]["mean"], json!(123_456.0));
        assert!(matches!(results().write_csv("/no/such/folder/a.csv"), Err(ExampleError::Io { .. })));
    }

    #[test]
    fn bars_are_the_means() {
        let svg = results().bar_plot("Recall", "accuracy").to_svg().expect("drawn");
        assert!(svg.contains("gated") && svg.contains("plain, long") && svg.contains("Recall"));
    }
}
