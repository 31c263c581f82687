//! The folder of a run, and what lies where in it.

use std::fs;
use std::path::{Path, PathBuf};

use gatekit::sequence::checkpoint::PretrainedConfig;
use gatekit::sequence::{AutoConfig, AutoModel};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::RunIdentity;
use crate::error::RunError;
use gatekit_examples::say;

/// The part of `config.json` that is this program's; around it stand the model's fields under their published names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The device that the run was started on.
    pub device: String,
    /// The text, if it is not the one that ships with the repository.
    pub text: Option<PathBuf>,
    /// Settings, and what identifies the text.
    #[serde(flatten)]
    pub identity: RunIdentity,
}

/// The folder of a run.
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// The folder at `path`, whatever is in it.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_path_buf() }
    }

    /// A folder for a new run. An earlier run in it is moved aside; anything else in it is an error.
    pub fn create(path: &Path) -> Result<Self, RunError> {
        let folder = Self::at(path);
        if folder.is_run() {
            let previous = Self::at(&with_suffix(path, ".previous"));
            if previous.is_run() {
                fs::remove_dir_all(&previous.path).map_err(RunError::io(&previous.path))?;
            }
            fs::rename(path, &previous.path).map_err(RunError::io(path))?;
            say(format_args!("The earlier run in {} is now in {}.", path.display(), previous.path.display()));
        }
        fs::create_dir_all(path).map_err(RunError::io(path))?;
        let mut entries = fs::read_dir(path).map_err(RunError::io(path))?;
        if entries.next().is_some() {
            return Err(RunError::Folder {
                path: path.to_path_buf(),
                reason: "it holds something that is not a run of this program: give another --out".into(),
            });
        }
        Ok(folder)
    }

    /// The folder of a run to go on with, and what that run is.
    pub fn open(path: &Path) -> Result<(Self, RunRecord), RunError> {
        let folder = Self::at(path);
        match folder.record() {
            Ok(record) => Ok((folder, record)),
            Err(reason) => Err(RunError::Folder {
                path: path.to_path_buf(),
                reason: format!("there is no run to resume ({reason})"),
            }),
        }
    }

    /// Whether this program started a run here.
    fn is_run(&self) -> bool {
        self.record().is_ok()
    }

    fn record(&self) -> Result<RunRecord, String> {
        let text = fs::read(self.config()).map_err(|error| format!("config.json: {error}"))?;
        let config: Value = serde_json::from_slice(&text).map_err(|error| format!("config.json: {error}"))?;
        let run = config.get("run").ok_or("config.json has no field `run`")?;
        RunRecord::deserialize(run).map_err(|error| format!("config.json: {error}"))
    }

    /// Writes `config.json`: the model's fields under their published names, and `run`.
    pub fn write_config(&self, model: &AutoConfig, run: &RunRecord) -> Result<(), RunError> {
        let mut config = model.to_published();
        config["run"] = serde_json::to_value(run).expect("plain fields have a JSON form");
        self.write_json(&self.config(), &config)
    }

    /// Writes `model.safetensors`, the weights under their published names.
    pub fn write_weights(&self, model: &AutoModel) -> Result<(), RunError> {
        // Saved elsewhere first, as this folder's config.json holds more than the published fields.
        let saved = tempfile::tempdir_in(&self.path).map_err(RunError::io(&self.path))?;
        model.save_pretrained(saved.path(), None)?;
        let weights = self.path.join("model.safetensors");
        fs::rename(saved.path().join("model.safetensors"), &weights).map_err(RunError::io(&weights))
    }

    /// Writes `results.json`.
    pub fn write_results(&self, results: &impl Serialize) -> Result<(), RunError> {
        self.write_json(&self.path.join("results.json"), results)
    }

    fn write_json(&self, path: &Path, value: &impl Serialize) -> Result<(), RunError> {
        let text = serde_json::to_string_pretty(value).expect("plain fields have a JSON form");
        fs::write(path, text + "\n").map_err(RunError::io(path))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The row-a-step file.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.csv")
    }

    /// The file of gate statistics.
    pub fn gates(&self) -> PathBuf {
        self.path.join("gates.csv")
    }

    fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }
}

/// `runs/a` and `.previous` make `runs/a.previous`.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use burn::prelude::*;
    use gatekit::core::ModuleConfig;
    use gatekit::sequence::{GlaConfig, from_pretrained};

    use super::*;
    use crate::data::TextIdentity;
    use crate::settings::Settings;

    fn record(seed: u64) -> RunRecord {
        RunRecord {
            device: "flex".into(),
            text: None,
            identity: RunIdentity {
                settings: Settings { seed, ..Settings::QUICK },
                text: TextIdentity { text_bytes: 10, text_checksum: "0".into(), held_out_from: 9 },
            },
        }
    }

    #[test]
    fn a_run_is_recognised_moved_aside_and_at_last_replaced() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let path = root.path().join("run");
        for seed in 1..=3 {
            let folder = RunFolder::create(&path).expect("created");
            folder.write_config(&GlaConfig::new(256, 16, 1).into(), &record(seed)).expect("written");
            assert_eq!(RunFolder::open(&path).expect("a run").1, record(seed));
        }
        let previous = RunFolder::open(&root.path().join("run.previous")).expect("a run");
        assert_eq!(previous.1, record(2));
    }

    #[test]
    fn the_library_loads_the_folder() {
        let _alone = crate::random_numbers();
        let root = tempfile::tempdir().expect("a temporary folder");
        let folder = RunFolder::create(&root.path().join("run")).expect("created");
        let config = AutoConfig::from(GlaConfig::new(256, 16, 1).with_intermediate_size(Some(32)));
        let model = config.init(&Device::default());
        folder.write_config(&config, &record(1)).expect("written");
        folder.write_weights(&model).expect("written");

        let loaded = from_pretrained(folder.path(), &Device::default()).expect("loads");
        assert_eq!(loaded.config().to_published(), config.to_published());
        let weights = |model: &AutoModel| gatekit::sequence::checkpoint::named_parameters(model);
        assert_eq!(weights(&loaded), weights(&model));
        // And it is still the folder of a run.
        assert_eq!(RunFolder::open(folder.path()).expect("a run").1, record(1));
    }

    #[test]
    fn a_folder_of_other_things_is_left_alone() {
        let root = tempfile::tempdir().expect("a temporary folder");
        fs::write(root.path().join("letter.txt"), "dear reader").expect("written");
        let refusal = RunFolder::create(root.path()).err().expect("refused").to_string();
        assert!(refusal.contains("--out"), "{refusal}");
        assert!(root.path().join("letter.txt").exists());

        let refusal = RunFolder::open(root.path()).err().expect("refused").to_string();
        assert!(refusal.contains("no run to resume"), "{refusal}");
    }
}
