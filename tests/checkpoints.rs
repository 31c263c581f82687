//! Folders saved by other libraries: their logits, their greedy tokens, and saving them again.
//!
//! One test a folder and device. A folder holds `config.json`, whose `model_type` selects the
//! model (an unknown one fails), the weights, and `expected.safetensors` with `input_ids` `[B, T]`, `logits`
//! `[B, T, vocab]` and `generated` `[B, T + new]`, the greedy continuation. `GATEKIT_CHECKPOINT_DIR`
//! names another folder of folders (or one checkpoint), `GATEKIT_DEVICES` the devices.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit::sequence::{
    AutoModel, GenerateConfig,
    checkpoint::SafetensorsFile,
    from_pretrained, generate,
    lm::{CausalLm, StreamState, StreamingLm},
};
use gatekit_tests::{
    array::{Array, Values},
    failure::{Failure, Result, catch},
    folder,
    trials::{self, Trials},
};
use safetensors::SafeTensors;

const VARIABLE: &str = "GATEKIT_CHECKPOINT_DIR";

/// Relative L2 error allowed to float32 logits.
const TOLERANCE: f64 = 1e-4;

fn main() -> ExitCode {
    trials::main("checkpoints", find)
}

fn find(trials: &mut Trials) -> Result<()> {
    for path in folders(&folder::locate(VARIABLE, "checkpoints")?)? {
        let checkpoint = path.clone();
        let check = move |device: &Device| catch(|| check(&checkpoint, device));
        trials.add(&folder::name(&path), &path, check);
    }
    Ok(())
}

/// The checkpoints in a folder, or the folder itself if it is one.
fn folders(root: &Path) -> Result<Vec<PathBuf>> {
    let resolved = root.canonicalize().unwrap_or_else(|_| root.to_path_buf());
    if resolved.join("config.json").is_file() {
        return Ok(vec![resolved]);
    }
    let folders: Vec<_> = folder::entries(&resolved)?.into_iter().filter(|path| path.is_dir()).collect();
    if folders.is_empty() {
        return Err(Failure(format!("{} holds no checkpoint folder", root.display())));
    }
    Ok(folders)
}

fn model_type(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path.join("config.json"))
        .map_err(|error| Failure(format!("config.json: {error}")))?;
    let config: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| Failure(format!("config.json: {error}")))?;
    let model_type = config["model_type"].as_str();
    model_type.map(str::to_owned).ok_or_else(|| Failure("config.json names no `model_type`".into()))
}

/// What the other library computed.
struct Expected {
    input_ids: TensorData,
    logits: Vec<f64>,
    logits_shape: [usize; 3],
    generated: Vec<i64>,
    generated_length: usize,
}

impl Expected {
    fn read(path: &Path) -> Result<Self> {
        let read = |error: String| Failure(format!("expected.safetensors: {error}"));
        let bytes =
            std::fs::read(path.join("expected.safetensors")).map_err(|error| read(error.to_string()))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| read(error.to_string()))?;
        let array = |name: &str| {
            let view = tensors.tensor(name).map_err(|error| read(format!("{name}: {error}")))?;
            Array::from_view(&view).map_err(|failure| failure.within(name))
        };
        let (input_ids, logits, generated) = (array("input_ids")?, array("logits")?, array("generated")?);
        match (&input_ids.shape[..], &logits.shape[..], &generated.shape[..]) {
            (&[batch, time], &[rows, steps, vocab], &[lines, length])
                if [rows, steps, lines] == [batch, time, batch] && length > time =>
            {
                match (&input_ids.values, logits.values, generated.values) {
                    (Values::Int(_), Values::Float(logits), Values::Int(generated)) => Ok(Self {
                        input_ids: input_ids.to_data(&input_ids.shape),
                        logits: logits.into_iter().map(f64::from).collect(),
                        logits_shape: [batch, time, vocab],
                        generated,
                        generated_length: length,
                    }),
                    _ => Err(read("need I64 ids, F32 logits, I64 generated tokens".into())),
                }
            }
            shapes => Err(read(format!("shapes {shapes:?} do not fit together"))),
        }
    }

    /// The relative L2 error of logits `[B, T, vocab]`.
    fn error(&self, what: &str, logits: Tensor<3>) -> Result<f64> {
        if logits.dims() != self.logits_shape {
            return Err(Failure(format!("{what}: shape {:?}, need {:?}", logits.dims(), self.logits_shape)));
        }
        let got: Vec<f64> = logits.into_data().iter::<f64>().collect();
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let difference = norm(&mut got.iter().zip(&self.logits).map(|(got, want)| got - want));
        let error = difference / norm(&mut self.logits.iter().copied());
        // Not `error > TOLERANCE`: NaN must fail.
        if error <= TOLERANCE {
            Ok(error)
        } else {
            Err(Failure(format!(
                "{what}: logits are off by {error:.2e} (relative L2), allowed {TOLERANCE:.0e}"
            )))
        }
    }
}

/// Logits in one pass, token by token, and in pieces; greedy tokens; saving and loading again.
fn check(path: &Path, device: &Device) -> Result<String> {
    let expected = Expected::read(path)?;
    let [batch, time, _] = expected.logits_shape;
    let model = from_pretrained(path, device).map_err(|error| Failure(error.to_string()))?;
    let ids = Tensor::<2, Int>::from_data(expected.input_ids.clone(), device);

    let logits = model.forward(ids.clone(), None);
    let whole = expected.error("whole sequence", logits.clone())?;
    let mut streamed = 0.0_f64;
    for prefix in [0, 1, time / 2, time - 1] {
        let what = format!("{prefix} tokens at once, then one by one");
        streamed = streamed.max(expected.error(&what, stream(&model, &ids, prefix, batch, device)?)?);
    }
    greedy(&model, &expected, &ids, device)?;
    for max_shard_bytes in [None, Some(20_000)] {
        saved_again(path, &model, max_shard_bytes, &ids, &logits, device)?;
    }
    let new = expected.generated_length - time;
    Ok(format!("logits {whole:.1e} streamed {streamed:.1e} greedy tokens {} equal", batch * new))
}

/// The logits of all tokens, through the streaming state, which is saved and loaded on the way.
fn stream(
    model: &AutoModel,
    ids: &Tensor<2, Int>,
    prefix: usize,
    batch: usize,
    device: &Device,
) -> Result<Tensor<3>> {
    let [_, time] = ids.dims();
    let mut state = model.empty_state(batch, device);
    let mut logits = Vec::new();
    if prefix > 0 {
        let (first, next) = model.prefill(ids.clone().narrow(1, 0, prefix), state);
        logits.push(first);
        state = from_file(model, &next, batch, device)?;
    }
    for at in prefix..time {
        let token = ids.clone().narrow(1, at, 1).squeeze_dim::<1>(1);
        let (one, next) = model.step(token, state);
        logits.push(one.unsqueeze_dim(1));
        state = next;
    }
    Ok(Tensor::cat(logits, 1))
}

/// The same state, after it was in a file.
fn from_file<S: StreamState, M: StreamingLm<State = S>>(
    model: &M,
    state: &S,
    batch: usize,
    device: &Device,
) -> Result<S> {
    let failed = |error: String| Failure(format!("state in a file: {error}"));
    let folder = tempfile::tempdir().map_err(|error| failed(error.to_string()))?;
    let path = folder.path().join("state.safetensors");
    state.save(&path).map_err(|error| failed(error.to_string()))?;
    let loaded = S::load(&path, device).map_err(|error| failed(error.to_string()))?;
    model.check_state(&loaded, batch).map_err(|error| failed(error.to_string()))?;
    match loaded.bytes() == state.bytes() {
        true => Ok(loaded),
        false => Err(failed(format!("{} bytes of {}", loaded.bytes(), state.bytes()))),
    }
}

/// The continuation by the likeliest token: by whole sequences, from the streaming state, and by
/// `generate`.
fn greedy(model: &AutoModel, expected: &Expected, ids: &Tensor<2, Int>, device: &Device) -> Result<()> {
    let [batch, time, vocab] = expected.logits_shape;
    let last = |logits: Tensor<3>| {
        let steps = logits.dims()[1];
        logits.narrow(1, steps - 1, 1).reshape([batch, vocab]).argmax(1)
    };
    let same = |what: &str, tokens: Tensor<2, Int>| {
        let got: Vec<i64> = tokens.into_data().iter::<i64>().collect();
        match got == expected.generated {
            true => Ok(()),
            false => Err(Failure(format!("{what}: greedy tokens {got:?}, need {:?}", expected.generated))),
        }
    };

    let mut tokens = ids.clone();
    for _ in time..expected.generated_length {
        let next = last(model.forward(tokens.clone(), None));
        tokens = Tensor::cat(vec![tokens, next], 1);
    }
    same("whole sequences", tokens)?;

    let (logits, mut state) = model.prefill(ids.clone(), model.empty_state(batch, device));
    let mut next = last(logits);
    let mut tokens = Tensor::cat(vec![ids.clone(), next.clone()], 1);
    for _ in time + 1..expected.generated_length {
        let (logits, after) = model.step(next.squeeze_dim::<1>(1), state);
        state = after;
        next = logits.argmax(1);
        tokens = Tensor::cat(vec![tokens, next.clone()], 1);
    }
    same("streaming", tokens)?;

    let new = expected.generated_length - time;
    let config = GenerateConfig::new(new).with_temperature(0.0);
    for row in expected.generated.chunks(expected.generated_length) {
        let prompt: Vec<usize> = row[..time].iter().map(|id| *id as usize).collect();
        let generation = generate(model, &prompt, &config).map_err(|error| Failure(error.to_string()))?;
        let got = generation.collect::<std::result::Result<Vec<_>, _>>()?;
        if got.iter().map(|token| *token as i64).ne(row[time..].iter().copied()) {
            return Err(Failure(format!("generate: greedy tokens {got:?}, need {:?}", &row[time..])));
        }
    }
    Ok(())
}

/// Saved again the tensors are the same, and loaded again the logits.
fn saved_again(
    path: &Path,
    model: &AutoModel,
    max_shard_bytes: Option<usize>,
    ids: &Tensor<2, Int>,
    logits: &Tensor<3>,
    device: &Device,
) -> Result<()> {
    let folder = tempfile::tempdir().map_err(|error| Failure(error.to_string()))?;
    let failed = |error: gatekit::sequence::CheckpointError| Failure(format!("saved again: {error}"));
    model.save_pretrained(folder.path(), max_shard_bytes).map_err(failed)?;
    if model_type(folder.path())? != model_type(path)? {
        return Err(Failure("saved again: another `model_type`".into()));
    }
    let (before, after) = (tensors(path)?, tensors(folder.path())?);
    if before.keys().ne(after.keys()) {
        let names = |tensors: &BTreeMap<String, TensorData>| tensors.keys().cloned().collect::<Vec<_>>();
        return Err(Failure(format!("saved again: tensors {:?}, need {:?}", names(&after), names(&before))));
    }
    if let Some((name, _)) = before.iter().find(|(name, data)| after[*name] != **data) {
        return Err(Failure(format!("saved again: tensor `{name}` differs")));
    }
    let again = from_pretrained(folder.path(), device).map_err(failed)?;
    match again.forward(ids.clone(), None).into_data() == logits.to_data() {
        true => Ok(()),
        false => Err(Failure("saved and loaded again: other logits".into())),
    }
}

/// All weights of a folder, in one file or in shards.
fn tensors(path: &Path) -> Result<BTreeMap<String, TensorData>> {
    let failed = |error: gatekit::sequence::CheckpointError| Failure(error.to_string());
    let mut tensors = BTreeMap::new();
    for file in folder::entries(path)? {
        let name = folder::name(&file);
        if name.starts_with("model") && name.ends_with(".safetensors") {
            let mut file = SafetensorsFile::open(&file).map_err(failed)?;
            for name in file.names() {
                let data = file.read(&name).map_err(failed)?;
                tensors.insert(name, data);
            }
        }
    }
    Ok(tensors)
}
