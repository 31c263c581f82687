//! Checkpoints: everything that the next step depends on, so that a resumed run continues as if it had never stopped.
//!
//! A checkpoint is one folder, `checkpoints/step-00000050`, with the weights, the optimiser's and the scheduler's state
//! in Burn's own format and a manifest that says what they are and what their bytes must add up to. It is written under
//! another name and then renamed, so a run that dies while writing leaves the previous checkpoint as the newest.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::lr_scheduler::LrSchedulerRecord;
use burn::optim::OptimizerRecord;
use burn::store::{ModuleRecord, RecordError};
use burn::tensor::Bytes;
use serde::{Deserialize, Serialize};

use crate::data::TextIdentity;
use crate::error::RunError;
use crate::settings::{Settings, differences};

/// How many checkpoints are kept: the newest and, should it be damaged, one to go back to.
const KEPT: usize = 2;
const MANIFEST: &str = "manifest.json";
const PREFIX: &str = "step-";
const UNFINISHED: &str = ".unfinished-";

/// What makes two runs the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// The flags that change what is computed.
    #[serde(flatten)]
    pub settings: Settings,
    /// The text.
    #[serde(flatten)]
    pub text: TextIdentity,
}

/// The table of contents of a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    step: usize,
    run: RunIdentity,
    files: Vec<FileEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct FileEntry {
    name: String,
    bytes: usize,
    checksum: String,
}

/// The state of training after `step` steps.
pub struct Checkpoint {
    /// Steps taken.
    pub step: usize,
    /// The weights, with their identities: the optimiser's state is keyed by them.
    pub model: ModuleRecord,
    /// The optimiser's moments.
    pub optimizer: OptimizerRecord,
    /// Where the learning-rate schedule stands.
    pub scheduler: LrSchedulerRecord,
}

impl Checkpoint {
    /// Writes this checkpoint into the folder `checkpoints` and deletes all but the newest two. Returns its folder.
    pub fn write(self, run: &RunIdentity, checkpoints: &Path) -> Result<PathBuf, RunError> {
        fs::create_dir_all(checkpoints).map_err(RunError::io(checkpoints))?;
        let folder = checkpoints.join(format!("{PREFIX}{:08}", self.step));
        let unfinished = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(checkpoints)
            .map_err(RunError::io(checkpoints))?;

        let step = self.step;
        let serialise = |bytes: Result<Bytes, RecordError>| {
            bytes.map_err(|error| RunError::Folder { path: folder.clone(), reason: error.to_string() })
        };
        let mut files = Vec::new();
        for (name, bytes) in [
            ("model.bpk", serialise(self.model.into_bytes())?),
            ("optimizer.bpk", serialise(self.optimizer.into_bytes())?),
            ("scheduler.bpk", serialise(self.scheduler.into_bytes())?),
        ] {
            write_durably(&unfinished.path().join(name), &bytes)?;
            files.push(FileEntry { name: name.to_string(), bytes: bytes.len(), checksum: checksum(&bytes) });
        }
        let manifest = Manifest { step, run: run.clone(), files };
        let manifest = serde_json::to_vec_pretty(&manifest).expect("plain fields have a JSON form");
        write_durably(&unfinished.path().join(MANIFEST), &manifest)?;

        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(RunError::io(&folder))?;
        }
        fs::rename(unfinished.keep(), &folder).map_err(RunError::io(&folder))?;
        remove_old(checkpoints)?;
        Ok(folder)
    }

    /// Reads the checkpoint in `folder`, which must be whole and belong to `run`.
    pub fn read(folder: &Path, run: &RunIdentity) -> Result<Self, RunError> {
        let damaged = |reason: String| RunError::DamagedCheckpoint { path: folder.to_path_buf(), reason };
        let manifest =
            fs::read(folder.join(MANIFEST)).map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
        let manifest: Manifest =
            serde_json::from_slice(&manifest).map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;

        let differences = differences(&manifest.run, run);
        if !differences.is_empty() {
            return Err(RunError::ForeignCheckpoint { path: folder.to_path_buf(), differences });
        }

        let file = |name: &str| -> Result<Bytes, RunError> {
            let entry = (manifest.files.iter())
                .find(|entry| entry.name == name)
                .ok_or_else(|| damaged(format!("{MANIFEST} does not list {name}")))?;
            let bytes = fs::read(folder.join(name)).map_err(|error| damaged(format!("{name}: {error}")))?;
            if bytes.len() != entry.bytes {
                return Err(damaged(format!(
                    "{name} has {} bytes, and {MANIFEST} promises {}",
                    bytes.len(),
                    entry.bytes
                )));
            }
            if checksum(&bytes) != entry.checksum {
                return Err(damaged(format!("the checksum of {name} is not the one in {MANIFEST}")));
            }
            Ok(Bytes::from_bytes_vec(bytes))
        };
        let unreadable = |name: &str| {
            let damaged = &damaged;
            let name = name.to_string();
            move |error: RecordError| damaged(format!("{name}: {error}"))
        };
        Ok(Self {
            step: manifest.step,
            model: ModuleRecord::from_bytes(file("model.bpk")?).map_err(unreadable("model.bpk"))?,
            optimizer: OptimizerRecord::from_bytes(file("optimizer.bpk")?)
                .map_err(unreadable("optimizer.bpk"))?,
            scheduler: LrSchedulerRecord::from_bytes(file("scheduler.bpk")?)
                .map_err(unreadable("scheduler.bpk"))?,
        })
    }
}

/// The folder of the newest checkpoint in `checkpoints`, if there is one.
pub fn newest(checkpoints: &Path) -> Result<Option<PathBuf>, RunError> {
    Ok(list(checkpoints)?.pop())
}

/// All checkpoints, oldest first: their names have one length, so they sort by step.
fn list(checkpoints: &Path) -> Result<Vec<PathBuf>, RunError> {
    let mut found = named(checkpoints, PREFIX)?;
    found.sort();
    Ok(found)
}

fn named(checkpoints: &Path, prefix: &str) -> Result<Vec<PathBuf>, RunError> {
    if !checkpoints.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(checkpoints).map_err(RunError::io(checkpoints))? {
        let entry = entry.map_err(RunError::io(checkpoints))?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Deletes what is older than the checkpoints to keep, and what a killed run left half written.
fn remove_old(checkpoints: &Path) -> Result<(), RunError> {
    let mut old = list(checkpoints)?;
    old.truncate(old.len().saturating_sub(KEPT));
    old.extend(named(checkpoints, UNFINISHED)?);
    for folder in old {
        fs::remove_dir_all(&folder).map_err(RunError::io(&folder))?;
    }
    Ok(())
}

/// Writes a file and waits until it is on the disk.
fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), RunError> {
    let mut file = File::create(path).map_err(RunError::io(path))?;
    file.write_all(bytes).map_err(RunError::io(path))?;
    file.sync_all().map_err(RunError::io(path))
}

/// FNV-1a with 64 bits, in hexadecimal: enough to notice damage (it is no defence against forgery).
pub fn checksum(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use burn::nn::LinearConfig;
    use burn::optim::AdamWConfig;
    use burn::prelude::*;

    use super::*;

    fn run() -> RunIdentity {
        RunIdentity {
            settings: Settings::QUICK,
            text: TextIdentity { text_bytes: 1000, text_checksum: checksum(b"text"), held_out_from: 900 },
        }
    }

    fn at_step(step: usize) -> Checkpoint {
        let _alone = crate::random_numbers();
        Checkpoint {
            step,
            model: LinearConfig::new(3, 2).init(&Device::default()).into_record(),
            optimizer: AdamWConfig::new().init().to_record(),
            scheduler: LrSchedulerRecord::new().with_scalar("step", step as u64),
        }
    }

    fn refusal(folder: &Path, run: &RunIdentity) -> String {
        Checkpoint::read(folder, run).err().expect("refused").to_string()
    }

    #[test]
    fn what_was_written_is_read_back_and_two_checkpoints_are_kept() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let checkpoints = root.path().join("checkpoints");
        assert_eq!(newest(&checkpoints).expect("no folder yet"), None);
        for step in [5, 10, 100] {
            at_step(step).write(&run(), &checkpoints).expect("written");
        }
        let folders = list(&checkpoints).expect("listed");
        assert_eq!(folders.len(), 2);
        let newest = newest(&checkpoints).expect("listed").expect("one");
        assert!(newest.ends_with("step-00000100"));

        let read = Checkpoint::read(&newest, &run()).expect("whole");
        assert_eq!(read.step, 100);
        assert_eq!(read.model.len(), 2);
        assert_eq!(read.scheduler.scalar::<u64>("step"), Some(100));
    }

    #[test]
    fn leftovers_of_a_killed_run_are_no_checkpoint_and_are_removed() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let leftover = root.path().join(".unfinished-abc");
        fs::create_dir(&leftover).expect("created");
        assert_eq!(newest(root.path()).expect("listed"), None);
        at_step(1).write(&run(), root.path()).expect("written");
        assert!(!leftover.exists());
    }

    #[test]
    fn a_checkpoint_cut_short_is_refused() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let folder = at_step(1).write(&run(), root.path()).expect("written");
        let weights = folder.join("model.bpk");
        let whole = fs::read(&weights).expect("read");

        fs::write(&weights, &whole[..whole.len() - 1]).expect("written");
        let message = refusal(&folder, &run());
        assert!(message.contains("cut short") && message.contains("model.bpk has"), "{message}");

        let mut changed = whole.clone();
        *changed.last_mut().expect("not empty") ^= 1;
        fs::write(&weights, changed).expect("written");
        assert!(refusal(&folder, &run()).contains("checksum of model.bpk"));

        fs::remove_file(&weights).expect("removed");
        assert!(refusal(&folder, &run()).contains("model.bpk: "));

        fs::write(&weights, whole).expect("written");
        assert!(Checkpoint::read(&folder, &run()).is_ok());

        let manifest = folder.join(MANIFEST);
        let text = fs::read(&manifest).expect("read");
        fs::write(&manifest, &text[..text.len() / 2]).expect("written");
        assert!(refusal(&folder, &run()).contains("cut short"));
    }

    #[test]
    fn a_checkpoint_of_another_run_is_refused_naming_the_fields() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let folder = at_step(1).write(&run(), root.path()).expect("written");
        let mut other = run();
        other.settings.heads = 7;
        other.text.text_checksum = checksum(b"another text");
        let message = refusal(&folder, &other);
        assert!(message.contains("heads: 2 there, 7 here"), "{message}");
        assert!(message.contains("text_checksum"), "{message}");
        assert!(!message.contains("dim:"), "{message}");
    }
}
