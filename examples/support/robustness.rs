//! How well systems of several modalities do when one is removed or noisy at test time.

use std::fs;
use std::path::Path;

use crate::error::ExampleError;
use crate::results::{cell, distinct, markdown, mean_and_deviation};

/// What happened to a modality at test time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition<'a> {
    /// All modalities as in training.
    Clean,
    /// This modality was not there.
    Removed(&'a str),
    /// Noise stood in this modality's place.
    Noise(&'a str),
}

impl Condition<'_> {
    /// `clean`, `removed` or `noise`, and the modality.
    fn parts(&self) -> (&'static str, &str) {
        match self {
            Self::Clean => ("clean", ""),
            Self::Removed(modality) => ("removed", modality),
            Self::Noise(modality) => ("noise", modality),
        }
    }

    /// The row of a table.
    fn label(&self) -> String {
        match self {
            Self::Clean => "clean".into(),
            Self::Removed(modality) => format!("{modality} removed"),
            Self::Noise(modality) => format!("{modality} replaced by noise"),
        }
    }
}

/// What a system's variants reach under every [`Condition`], by one metric of which more is better.
///
/// ```
/// use gatekit_examples::{Condition, Robustness};
///
/// let mut robustness = Robustness::new("TouchFormer", "accuracy");
/// for (variant, clean, without) in [("gated", 0.93, 0.88), ("equal weights", 0.92, 0.61)] {
///     robustness.record(variant, Condition::Clean, 0, clean);
///     robustness.record(variant, Condition::Removed("sound"), 0, without);
/// }
/// assert_eq!(robustness.mean("gated", Condition::Removed("sound")), Some(0.88));
/// println!("{}", robustness.table());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Robustness {
    system: String,
    metric: String,
    rows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq)]
struct Row {
    variant: String,
    kind: &'static str,
    modality: String,
    label: String,
    seed: u64,
    value: f64,
}

impl Robustness {
    /// Of `system`, by `metric`, without any value yet.
    pub fn new(system: &str, metric: &str) -> Self {
        Self { system: system.into(), metric: metric.into(), rows: Vec::new() }
    }

    /// Adds what `variant` reached under `condition`.
    pub fn record(&mut self, variant: &str, condition: Condition<'_>, seed: u64, value: f64) {
        let (kind, modality) = condition.parts();
        self.rows.push(Row {
            variant: variant.into(),
            kind,
            modality: modality.into(),
            label: condition.label(),
            seed,
            value,
        });
    }

    /// The mean over the seeds, `None` without a value.
    pub fn mean(&self, variant: &str, condition: Condition<'_>) -> Option<f64> {
        mean_and_deviation(&self.values(variant, &condition.label())).map(|(mean, _)| mean)
    }

    /// A table in Markdown: a row a condition, the clean one first and the others in the order of their first value; a
    /// column a variant; `mean ± deviation` over the seeds.
    pub fn table(&self) -> String {
        let variants = distinct(self.rows.iter().map(|row| row.variant.as_str()));
        let (clean, others): (Vec<&Row>, Vec<&Row>) = self.rows.iter().partition(|row| row.kind == "clean");
        let conditions = distinct(clean.iter().chain(&others).map(|row| row.label.as_str()));
        let header = std::iter::once("").chain(variants.iter().copied()).map(String::from).collect();
        let rows = conditions.iter().map(|condition| {
            let cells = variants.iter().map(|variant| cell(&self.values(variant, condition)));
            std::iter::once(condition.to_string()).chain(cells).collect()
        });
        markdown(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
    }

    fn values(&self, variant: &str, condition: &str) -> Vec<f64> {
        let rows = self.rows.iter().filter(|row| row.variant == variant && row.label == condition);
        rows.map(|row| row.value).collect()
    }

    /// Writes `robustness.csv` (`system,metric,variant,condition,modality,seed,value`, one row a value; condition is
    /// `clean`, `removed` or `noise`) and `robustness.md` (the table under a line that names system and metric).
    ///
    /// # Errors
    ///
    /// [`ExampleError::Io`] when a file cannot be written.
    pub fn save(&self, out: impl AsRef<Path>) -> Result<(), ExampleError> {
        let path = out.as_ref().join("robustness.csv");
        let failed = |error: csv::Error| ExampleError::io(&path)(error.into());
        let mut writer = csv::Writer::from_path(&path).map_err(failed)?;
        let header = ["system", "metric", "variant", "condition", "modality", "seed", "value"];
        writer.write_record(header).map_err(failed)?;
        for Row { variant, kind, modality, seed, value, .. } in &self.rows {
            let (seed, value) = (seed.to_string(), value.to_string());
            let record: [&str; 7] = [&self.system, &self.metric, variant, kind, modality, &seed, &value];
            writer.write_record(record).map_err(failed)?;
        }
        writer.flush().map_err(ExampleError::io(&path))?;
        let path = out.as_ref().join("robustness.md");
        let text = format!("{}, {}:\n\n{}", self.system, self.metric, self.table());
        fs::write(&path, text).map_err(ExampleError::io(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn robustness() -> Robustness {
        let mut robustness = Robustness::new("A, B", "accuracy");
        robustness.record("gated", Condition::Removed("sound"), 3, 0.5);
        for (seed, value) in [(3, 0.9), (4, 0.7)] {
            robustness.record("summed", Condition::Clean, seed, value);
        }
        robustness.record("gated", Condition::Clean, 3, 0.75);
        robustness.record("summed", Condition::Noise("sound"), 3, 0.25);
        robustness
    }

    #[test]
    fn the_table_begins_with_the_clean_row_and_keeps_the_order_of_variants() {
        let expected = "\
|                         | gated |        summed |
|-------------------------|------:|--------------:|
| clean                   | 0.750 | 0.800 ± 0.141 |
| sound removed           | 0.500 |             - |
| sound replaced by noise |     - |         0.250 |
";
        assert_eq!(robustness().table(), expected);
        assert_eq!(Robustness::new("A", "b").mean("gated", Condition::Clean), None);
    }

    #[test]
    fn means_are_of_one_variant_under_one_condition() {
        let robustness = robustness();
        let mean = |variant, condition| robustness.mean(variant, condition);
        assert!((mean("summed", Condition::Clean).expect("two values") - 0.8).abs() < 1e-12);
        assert_eq!(mean("gated", Condition::Removed("sound")), Some(0.5));
        assert_eq!(mean("gated", Condition::Noise("sound")), None);
        assert_eq!(mean("gated", Condition::Removed("touch")), None);
    }

    #[test]
    fn files_hold_every_value_and_the_table() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        robustness().save(folder.path()).expect("written");
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect("read");
        let text = read("robustness.csv");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 6);
        assert_eq!(lines[0], "system,metric,variant,condition,modality,seed,value");
        assert_eq!(lines[1], "\"A, B\",accuracy,gated,removed,sound,3,0.5");
        assert_eq!(lines[2], "\"A, B\",accuracy,summed,clean,,3,0.9");
        assert_eq!(read("robustness.md"), format!("A, B, accuracy:\n\n{}", robustness().table()));
        let nowhere = folder.path().join("nowhere");
        assert!(matches!(robustness().save(nowhere), Err(ExampleError::Io { .. })));
    }
}
