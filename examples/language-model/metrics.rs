//! What is measured while training, as two CSV files that grow a row at a time and survive interruption.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use gatekit::core::probe::GateStatistics;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::RunError;

/// One row of `metrics.csv`: one optimiser step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// Counted from one.
    pub step: usize,
    /// Mean cross entropy of the step's batch before the update, in nats a byte.
    pub loss: f32,
    /// The same in bits a byte.
    pub bits_per_byte: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// Bytes trained on in a second.
    pub bytes_per_second: f64,
    /// Bits per byte on a part of the held-out text after the update, where it was measured.
    pub validation_bits_per_byte: Option<f64>,
}

/// One row of `gates.csv`: how open one gate of one layer is, on a stretch of held-out text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateRow {
    /// Steps taken.
    pub step: usize,
    /// Counted from one, the lowest first.
    pub layer: usize,
    /// `forget` or `output`.
    pub gate: String,
    /// Mean value; 1 is open.
    pub mean: f64,
    /// Standard deviation of the values.
    pub deviation: f64,
    /// Share of values below 0.1.
    pub closed: f64,
    /// Share of values above 0.9.
    pub open: f64,
    /// Mean uncertainty, in bits.
    pub entropy: f64,
}

impl GateRow {
    /// The statistics of one gate.
    pub fn new(step: usize, layer: usize, gate: &str, statistics: &GateStatistics) -> Self {
        let GateStatistics { mean, deviation, closed, open, entropy } = *statistics;
        Self { step, layer, gate: gate.to_string(), mean, deviation, closed, open, entropy }
    }
}

/// A row that knows after which step it was written.
pub trait Row: Clone + Serialize + DeserializeOwned {
    /// The step.
    fn step(&self) -> usize;
}

impl Row for StepRow {
    fn step(&self) -> usize {
        self.step
    }
}

impl Row for GateRow {
    fn step(&self) -> usize {
        self.step
    }
}

/// All rows so far, in memory and in a CSV file.
pub struct Log<R> {
    path: PathBuf,
    rows: Vec<R>,
    writer: csv::Writer<File>,
}

impl<R: Row> Log<R> {
    /// Opens the log for a run that stands at `step`: rows of later steps, and what a killed run left half written,
    /// are dropped from the file.
    pub fn open(path: &Path, step: usize) -> Result<Self, RunError> {
        let rows = match File::open(path) {
            Ok(file) => csv::Reader::from_reader(file)
                .into_deserialize()
                .map_while(Result::ok)
                .take_while(|row: &R| row.step() <= step)
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(RunError::io(path)(error)),
        };

        let unfinished = path.with_extension("csv.unfinished");
        let mut writer = csv::Writer::from_path(&unfinished).map_err(csv_error(&unfinished))?;
        for row in &rows {
            writer.serialize(row).map_err(csv_error(&unfinished))?;
        }
        writer.flush().map_err(RunError::io(&unfinished))?;
        fs::rename(&unfinished, path).map_err(RunError::io(path))?;

        let file = OpenOptions::new().append(true).open(path).map_err(RunError::io(path))?;
        let writer = csv::WriterBuilder::new().has_headers(rows.is_empty()).from_writer(file);
        Ok(Self { path: path.to_path_buf(), rows, writer })
    }

    /// Adds a row.
    pub fn push(&mut self, row: R) -> Result<(), RunError> {
        self.writer.serialize(&row).map_err(csv_error(&self.path))?;
        self.rows.push(row);
        Ok(())
    }

    /// Hands what was added to the operating system: to be done before a checkpoint that counts on it.
    pub fn flush(&mut self) -> Result<(), RunError> {
        self.writer.flush().map_err(RunError::io(&self.path))
    }

    /// All rows.
    pub fn rows(&self) -> &[R] {
        &self.rows
    }
}

fn csv_error(path: &Path) -> impl FnOnce(csv::Error) -> RunError {
    let path = path.to_path_buf();
    move |error| RunError::Io { path, source: error.into() }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn row(step: usize) -> StepRow {
        StepRow {
            step,
            loss: 1.0 / (step as f32 + 0.1),
            bits_per_byte: 2.5,
            learning_rate: 3e-3,
            bytes_per_second: 12_345.6,
            validation_bits_per_byte: step.is_multiple_of(2).then_some(2.25),
        }
    }

    #[test]
    fn rows_after_the_checkpoint_and_half_rows_are_dropped() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("metrics.csv");
        let mut log = Log::open(&path, 0).expect("opened");
        for step in 1..=5 {
            log.push(row(step)).expect("written");
        }
        log.flush().expect("flushed");
        drop(log);
        let mut file = OpenOptions::new().append(true).open(&path).expect("opened");
        file.write_all(b"6,0.25,1.").expect("written");

        let mut log: Log<StepRow> = Log::open(&path, 3).expect("opened");
        assert_eq!(log.rows(), [row(1), row(2), row(3)]);
        log.push(row(4)).expect("written");
        log.flush().expect("flushed");

        let log: Log<StepRow> = Log::open(&path, 100).expect("opened");
        assert_eq!(log.rows(), [row(1), row(2), row(3), row(4)]);
        let text = fs::read_to_string(&path).expect("read");
        assert_eq!(text.matches("bits_per_byte,learning_rate").count(), 1);
    }

    #[test]
    fn a_new_run_starts_empty_over_an_old_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("metrics.csv");
        fs::write(&path, "not,a\nmetrics,file\n").expect("written");
        assert!(Log::<StepRow>::open(&path, 10).expect("opened").rows().is_empty());
    }
}
