//! The rows on disk: appended one by one, so that an interrupted run keeps what it has.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    error::BenchError,
    row::{Key, Row},
};

/// How a run treats the results of an earlier one in its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    /// There must be none.
    Refuse,
    /// Keep them and skip what they hold.
    Resume,
    /// Throw them away.
    Overwrite,
}

/// `results.csv` and its rows.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
    rows: Vec<Row>,
    keys: HashSet<Key>,
}

impl Store {
    /// Opens the folder's rows.
    ///
    /// # Errors
    ///
    /// There are some and `earlier` refuses them, or they are those of another version; the folder
    /// cannot be written.
    pub fn open(folder: &Path, earlier: Earlier) -> Result<Self, BenchError> {
        fs::create_dir_all(folder).map_err(BenchError::io(folder))?;
        let path = folder.join("results.csv");
        let rows = match (path.exists(), earlier) {
            (true, Earlier::Refuse) => return Err(BenchError::Exists { path }),
            (true, Earlier::Resume) => read(&path)?,
            _ => Vec::new(),
        };
        // Written anew: whatever an interruption cut short is gone from then on.
        let whole = path.with_extension("csv.new");
        let mut text = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
        text.write_record(HEADER)
            .and_then(|()| rows.iter().try_for_each(|row| text.serialize(row)))
            .map_err(|error| results(&path, &error))?;
        let text = text.into_inner().map_err(|error| results(&path, &error))?;
        fs::write(&whole, text).and_then(|()| fs::rename(&whole, &path)).map_err(BenchError::io(&path))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(BenchError::io(&path))?;
        // What failed is tried again.
        let keys = rows.iter().filter(|row| row.error.is_empty()).map(Row::key).collect();
        Ok(Self { path, file, rows, keys })
    }

    /// All rows, those of earlier runs first.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Whether a measurement succeeded already.
    pub fn has(&self, key: &Key) -> bool {
        self.keys.contains(key)
    }

    /// Adds the rows of a contest, in place of what an earlier attempt at it left.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn append(&mut self, rows: Vec<Row>) -> Result<(), BenchError> {
        let mut text = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
        for row in &rows {
            text.serialize(row).map_err(|error| results(&self.path, &error))?;
        }
        let text = text.into_inner().map_err(|error| results(&self.path, &error))?;
        // One call, so that an interruption leaves whole lines or the beginning of them.
        self.file.write_all(&text).and_then(|()| self.file.flush()).map_err(BenchError::io(&self.path))?;
        for row in rows {
            self.rows.retain(|earlier| earlier.key() != row.key());
            self.keys.insert(row.key());
            self.rows.push(row);
        }
        Ok(())
    }
}

fn results(path: &Path, error: &dyn std::error::Error) -> BenchError {
    BenchError::Results { path: path.to_path_buf(), reason: error.to_string() }
}

/// The rows of a file; a last line that was cut short is left out, and of repeated measurements the
/// last counts.
fn read(path: &Path) -> Result<Vec<Row>, BenchError> {
    let text = fs::read_to_string(path).map_err(BenchError::io(path))?;
    // An interruption may have left the beginning of a line.
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let mut reader = csv::Reader::from_reader(whole.as_bytes());
    let headers = reader.headers().map_err(|error| results(path, &error))?;
    if !whole.is_empty() && headers.iter().ne(HEADER.iter().copied()) {
        return Err(BenchError::Results {
            path: path.to_path_buf(),
            reason: "its columns are others".into(),
        });
    }
    let mut rows: Vec<Row> = Vec::new();
    for row in reader.deserialize() {
        let row: Row = row.map_err(|error| results(path, &error))?;
        rows.retain(|earlier| earlier.key() != row.key());
        rows.push(row);
    }
    Ok(rows)
}

/// The columns, in the order of [`Row`]'s fields.
const HEADER: &[&str] = &[
    "contest",
    "op",
    "form",
    "device",
    "dtype",
    "pass",
    "batch",
    "time",
    "heads",
    "key_dim",
    "value_dim",
    "threads",
    "median_s",
    "lower_quartile_s",
    "upper_quartile_s",
    "minimum_s",
    "samples",
    "executions",
    "flops",
    "bytes_per_s",
    "input_bytes",
    "extra_bytes",
    "difference",
    "error",
];

/// Writes a file whole or not at all.
///
/// # Errors
///
/// What the operating system says.
pub fn write_whole(path: &Path, text: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{op::Pass, row::samples::row, shape::Shape};

    const SHAPE: Shape = Shape::new(1, 2048, 4, 64);

    fn rows() -> Vec<Row> {
        let mut failed = row("kda", "fla, \"naive\"", "torch", Pass::ForwardBackward, SHAPE, 1.0);
        (failed.median_s, failed.error) = (None, "out of memory,\nsadly".into());
        vec![row("gla", "fused", "flex", Pass::Forward, SHAPE, 0.125), failed]
    }

    #[test]
    fn rows_survive_and_are_skipped_on_resume_unless_they_failed() {
        let folder = tempfile::tempdir().expect("a folder");
        Store::open(folder.path(), Earlier::Refuse).expect("new").append(rows()).expect("written");
        let store = Store::open(folder.path(), Earlier::Resume).expect("resumed");
        assert_eq!(store.rows(), rows());
        assert!(store.has(&rows()[0].key()) && !store.has(&rows()[1].key()));
        assert!(!store.has(&row("gla", "fused", "flex", Pass::Decode, SHAPE, 1.0).key()));
    }

    #[test]
    fn a_line_cut_short_is_dropped_and_the_file_stays_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("results.csv");
        Store::open(folder.path(), Earlier::Refuse)
            .expect("new")
            .append(rows()[..1].to_vec())
            .expect("written");
        let mut file = OpenOptions::new().append(true).open(&path).expect("open");
        file.write_all(b"kda forward,kda,fus").expect("written");
        let mut store = Store::open(folder.path(), Earlier::Resume).expect("resumed");
        assert_eq!(store.rows().len(), 1);
        store.append(rows()[1..].to_vec()).expect("written");
        assert_eq!(Store::open(folder.path(), Earlier::Resume).expect("resumed").rows(), rows());
    }

    #[test]
    fn a_second_attempt_takes_the_place_of_the_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut store = Store::open(folder.path(), Earlier::Refuse).expect("new");
        store.append(rows()).expect("written");
        let again = row("kda", "fla, \"naive\"", "torch", Pass::ForwardBackward, SHAPE, 2.0);
        store.append(vec![again.clone()]).expect("written");
        assert_eq!(store.rows().last(), Some(&again));
        let resumed = Store::open(folder.path(), Earlier::Resume).expect("resumed");
        assert_eq!(resumed.rows(), store.rows());
    }

    #[test]
    fn results_are_neither_lost_nor_misread() {
        let folder = tempfile::tempdir().expect("a folder");
        Store::open(folder.path(), Earlier::Refuse).expect("new").append(rows()).expect("written");
        assert!(matches!(Store::open(folder.path(), Earlier::Refuse), Err(BenchError::Exists { .. })));
        assert!(Store::open(folder.path(), Earlier::Overwrite).expect("anew").rows().is_empty());
        fs::write(folder.path().join("results.csv"), "op,time\ngla,1\n").expect("written");
        assert!(matches!(Store::open(folder.path(), Earlier::Resume), Err(BenchError::Results { .. })));
    }
}
