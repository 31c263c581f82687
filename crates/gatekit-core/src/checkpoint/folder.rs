//! A folder: configuration and weights, in one file or in shards.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::mem::take;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, TensorData};
use serde_json::{Value, json};

use super::config::PretrainedConfig;
use super::error::{CheckpointError, TensorError, TensorProblem};
use super::file::{SafetensorsFile, commit, stage, write_text};
use super::layout::{check_published, join};
use super::sizes::check_sizes;
use super::tensors::{Source, apply, collect};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// No real configuration or index is longer.
const MAX_JSON_BYTES: u64 = 100_000_000;
/// Weights read before they are handed to the module: what loading needs beyond the model itself.
const BATCH_BYTES: usize = 256 << 20;

/// Loads a model from a folder in the published layout.
///
/// The configuration is read from `config.json`, the weights from `model.safetensors` or, without
/// that, from the shards of `model.safetensors.index.json`. F16, BF16 and F64 weights become
/// float32. Names and shapes are compared before any weight is read or allocated, and no more than
/// 256 MiB (or one tensor) of weights are held beyond the model's own.
///
/// # Errors
///
/// [`CheckpointError`] names the file, and the tensor or field: a missing file, a truncated file
/// or one whose header contradicts it, a configuration of another architecture, a tensor that is
/// missing, unexpected, of another shape or of an element type that is no float, a value that is
/// not finite.
pub fn load_pretrained<C: PretrainedConfig>(
    folder: impl AsRef<Path>,
    device: &Device,
) -> Result<(C, C::Module), CheckpointError> {
    let folder = folder.as_ref();
    let config_path = folder.join(CONFIG);
    let refuse = |error| CheckpointError::config(&config_path, error);
    let json = read_json(&config_path)?;
    let weights = Weights::open(folder);
    check_sizes(&json, weights.as_ref().ok().map(|weights| weights.shapes.len())).map_err(refuse)?;
    let config = C::from_published(&json).map_err(refuse)?;
    let mut weights = weights?;
    let mut module = config.try_init(device).map_err(refuse)?;
    let layout = config.layout();
    check_published(&module, &layout, &weights.shapes).map_err(|error| weights.locate(error))?;
    let (mut tensors, mut bytes) = (BTreeMap::new(), 0);
    for parameter in collect(&module, Source::Shapes) {
        let shape = parameter.shape.to_vec();
        let pieces = layout.pieces(&parameter.name, &shape);
        let parts = pieces.map(|piece| weights.read(&piece.name)).collect::<Result<_, _>>()?;
        let data = join(parts, shape);
        bytes += data.bytes().len();
        tensors.insert(parameter.name, data);
        if bytes >= BATCH_BYTES {
            module = apply(module, take(&mut tensors)).map_err(|error| weights.locate(error))?;
            bytes = 0;
        }
    }
    module = apply(module, tensors).map_err(|error| weights.locate(error))?;
    Ok((config, module))
}

/// Saves a model to a folder in the published layout, which is created if need be.
///
/// Weights of more than `max_shard_bytes` (`None`: no limit) are split into shards with an index.
/// Every file is first written beside its place and flushed; only when all of them are complete
/// are they renamed. Weight files of an earlier save that the new one does not replace are removed.
///
/// # Errors
///
/// [`CheckpointError`] when a file cannot be written.
pub fn save_pretrained<C: PretrainedConfig>(
    folder: impl AsRef<Path>,
    config: &C,
    module: &C::Module,
    max_shard_bytes: Option<usize>,
) -> Result<(), CheckpointError> {
    let folder = folder.as_ref();
    fs::create_dir_all(folder).map_err(|error| CheckpointError::io(folder, error))?;

    let max_bytes = max_shard_bytes.unwrap_or(usize::MAX);
    let mut shards = vec![Vec::new()];
    let (mut shard_bytes, mut total_bytes) = (0usize, 0usize);
    let layout = config.layout();
    let tensors = collect(module, Source::Values).into_iter();
    for tensor in tensors.flat_map(|tensor| layout.publish(tensor)) {
        let bytes = tensor.byte_len();
        if shard_bytes > 0 && shard_bytes.saturating_add(bytes) > max_bytes {
            shards.push(Vec::new());
            shard_bytes = 0;
        }
        shard_bytes += bytes;
        total_bytes += bytes;
        shards.last_mut().expect("there is always a shard").push(tensor);
    }

    let count = shards.len();
    let shard_name = |index: usize| match count {
        1 => WEIGHTS.to_string(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    };
    let mut weight_map = BTreeMap::new();
    let mut staged = Vec::with_capacity(count);
    for (index, tensors) in shards.into_iter().enumerate() {
        let name = shard_name(index);
        weight_map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), name.clone())));
        let path = folder.join(name);
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        staged.push((stage(&path, tensors, metadata)?, path));
    }
    for (file, path) in staged {
        commit(file, &path)?;
    }
    let mut written: BTreeSet<String> = (0..count).map(shard_name).collect();
    if count > 1 {
        let index = json!({ "metadata": { "total_size": total_bytes }, "weight_map": weight_map });
        write_text(&folder.join(INDEX), &pretty(&index))?;
        written.insert(INDEX.to_string());
    }
    write_text(&folder.join(CONFIG), &pretty(&config.to_published()))?;
    remove_stale(folder, &written)
}

fn pretty(json: &Value) -> String {
    format!("{json:#}\n")
}

/// Removes weight files of an earlier save: a reader could not tell them from the new ones.
fn remove_stale(folder: &Path, written: &BTreeSet<String>) -> Result<(), CheckpointError> {
    let io = |error| CheckpointError::io(folder, error);
    for entry in fs::read_dir(folder).map_err(io)? {
        let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
        let is_shard = name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors");
        if (is_shard || name == WEIGHTS || name == INDEX) && !written.contains(&name) {
            let path = folder.join(name);
            fs::remove_file(&path).map_err(|error| CheckpointError::io(&path, error))?;
        }
    }
    Ok(())
}

/// The weight files of a folder, opened, with their headers read.
struct Weights {
    files: Vec<WeightFile>,
    /// Shape of every tensor.
    shapes: BTreeMap<String, Vec<usize>>,
    /// Which of the files holds a tensor.
    location: BTreeMap<String, usize>,
    /// What to name for a tensor that no file has.
    root: PathBuf,
}

struct WeightFile {
    path: PathBuf,
    file: SafetensorsFile,
}

impl Weights {
    fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let single = folder.join(WEIGHTS);
        let index = folder.join(INDEX);
        let is_sharded = !single.exists() && index.exists();
        let (root, weight_map) = match is_sharded {
            true => (index.clone(), Some(read_index(&index)?)),
            false => (single.clone(), None),
        };
        let paths: BTreeSet<PathBuf> = match &weight_map {
            Some(map) => map.values().map(|name| folder.join(name)).collect(),
            None => BTreeSet::from([single]),
        };
        let mut weights =
            Self { files: Vec::new(), shapes: BTreeMap::new(), location: BTreeMap::new(), root };
        for path in paths {
            let file = SafetensorsFile::open(&path)?;
            for name in file.names() {
                let shape = file.shape(&name).unwrap_or_default().to_vec();
                if weights.shapes.insert(name.clone(), shape).is_some() {
                    return Err(CheckpointError::malformed(
                        &path,
                        format!("`{name}` is in another shard, too"),
                    ));
                }
                weights.location.insert(name, weights.files.len());
            }
            weights.files.push(WeightFile { path, file });
        }
        for (name, file) in weight_map.into_iter().flatten() {
            let path = folder.join(file);
            if weights.path_of(&name) != Some(&path) {
                return Err(TensorError::new(name, TensorProblem::Missing).at(&path));
            }
        }
        Ok(weights)
    }

    fn path_of(&self, name: &str) -> Option<&PathBuf> {
        self.location.get(name).map(|&index| &self.files[index].path)
    }

    fn read(&mut self, name: &str) -> Result<TensorData, CheckpointError> {
        match self.location.get(name) {
            Some(&index) => self.files[index].file.read(name),
            None => Err(TensorError::new(name, TensorProblem::Missing).at(&self.root)),
        }
    }

    fn locate(&self, error: TensorError) -> CheckpointError {
        let path = self.path_of(&error.tensor).unwrap_or(&self.root);
        error.at(path)
    }
}

/// The index's map from tensor to shard. Shards lie in the folder itself.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let json = read_json(path)?;
    let map: BTreeMap<String, String> = serde_json::from_value(json["weight_map"].clone())
        .map_err(|error| CheckpointError::malformed(path, format!("`weight_map`: {error}")))?;
    for file in map.values() {
        let is_plain = Path::new(file).file_name().is_some_and(|name| name == file.as_str());
        if !is_plain {
            let reason = format!("`weight_map`: `{file}` is not the name of a file in this folder");
            return Err(CheckpointError::malformed(path, reason));
        }
    }
    match map.is_empty() {
        true => Err(CheckpointError::malformed(path, "`weight_map` is empty")),
        false => Ok(map),
    }
}

fn read_json(path: &Path) -> Result<Value, CheckpointError> {
    let io = |error| CheckpointError::io(path, error);
    let mut text = Vec::new();
    let file = File::open(path).map_err(io)?;
    let read = file.take(MAX_JSON_BYTES + 1).read_to_end(&mut text).map_err(io)?;
    if read as u64 > MAX_JSON_BYTES {
        return Err(io(ErrorKind::FileTooLarge.into()));
    }
    serde_json::from_slice(&text)
        .map_err(|error| CheckpointError::malformed(path, format!("no JSON: {error}")))
}
