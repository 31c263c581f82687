//! Folders in the published layout: read, written, and refused.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData, bf16, f16};
use gatekit_core::ModuleConfig;
use gatekit_sequence::checkpoint::{
    CheckpointError, NamedTensors, SafetensorsFile, TensorError, TensorProblem, load_tensors,
    named_parameters,
};
use gatekit_sequence::gla::{GlaConfig, GlaForCausalLm};
use gatekit_sequence::lm::{CausalLm, StreamingLm};
use gatekit_sequence::{GenerateConfig, SoftmaxConfig, generate, load_pretrained, save_pretrained};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use support::*;
use tempfile::TempDir;

/// A folder that flash-linear-attention saved.
fn gla_tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/checkpoints/gla-tiny")
}

fn load(folder: &Path, device: &Device) -> Result<GlaForCausalLm, CheckpointError> {
    load_pretrained::<GlaConfig>(folder, device).map(|(_, model)| model)
}

#[test]
fn a_folder_saved_by_another_library_computes_the_same() {
    let expected = fs::read(gla_tiny().join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let ints = |name: &str| -> Vec<Vec<i64>> {
        let view = expected.tensor(name).unwrap();
        let values: Vec<i64> =
            view.data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect();
        values.chunks(view.shape()[1]).map(<[i64]>::to_vec).collect()
    };
    let (rows, generated) = (ints("input_ids"), ints("generated"));
    let time = rows[0].len();
    let logits = expected.tensor("logits").unwrap();
    let want: Vec<f32> = logits.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();

    for device in devices() {
        let model = load(&gla_tiny(), &device).unwrap();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(rows.concat(), [rows.len(), time]), &device);
        assert_close(&values(&model.forward(ids.clone(), None)), &want, 1e-4, "whole");

        let mut state = model.empty_state(rows.len(), &device);
        let mut steps = Vec::new();
        for position in 0..time {
            let (scores, next) = model.step(ids.clone().narrow(1, position, 1).squeeze_dim::<1>(1), state);
            steps.push(scores.unsqueeze_dim::<3>(1));
            state = next;
        }
        assert_close(&values(&Tensor::cat(steps, 1)), &want, 1e-4, "step by step");

        for (row, want) in rows.iter().zip(&generated) {
            let prompt: Vec<usize> = row.iter().map(|&token| token as usize).collect();
            let config = GenerateConfig::new(want.len() - time).with_temperature(0.0);
            let tokens: Vec<i64> =
                generate(&model, &prompt, &config).unwrap().map(|token| token.unwrap() as i64).collect();
            assert_eq!(tokens, want[time..]);
        }
    }
}

/// Names of the files of a folder.
fn files(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_string).into()
}

#[test]
fn what_is_saved_is_loaded() {
    for device in devices() {
        for config in variants() {
            let folder = TempDir::new().unwrap();
            let model = lively(&config, &device);
            save_pretrained(folder.path(), &config, &model, None).unwrap();
            assert_eq!(files(folder.path()), names(["config.json", "model.safetensors"]));
            let (read, loaded) = load_pretrained::<GlaConfig>(folder.path(), &device).unwrap();
            assert_eq!(read.to_string(), config.to_string());
            assert_eq!(named_parameters(&loaded), named_parameters(&model));
            let ids = tokens(2, 9, &device);
            assert_eq!(values(&loaded.forward(ids.clone(), None)), values(&model.forward(ids, None)));
        }
        let folder = TempDir::new().unwrap();
        let config = SoftmaxConfig::new(37, 16, 2)
            .with_num_heads(4)
            .with_num_kv_heads(Some(2))
            .with_qkv_bias(true)
            .with_window_size(Some(7));
        let model = config.init(&device);
        save_pretrained(folder.path(), &config, &model, None).unwrap();
        let (read, loaded) = load_pretrained::<SoftmaxConfig>(folder.path(), &device).unwrap();
        assert_eq!(read.to_string(), config.to_string());
        assert_eq!(named_parameters(&loaded), named_parameters(&model));
    }
}

#[test]
fn the_other_librarys_folder_survives_a_round_trip() {
    let device = Device::flex();
    let folder = TempDir::new().unwrap();
    let (config, model) = load_pretrained::<GlaConfig>(gla_tiny(), &device).unwrap();
    save_pretrained(folder.path(), &config, &model, None).unwrap();
    let read = |folder: &Path| {
        let bytes = fs::read(folder.join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<_> = tensors
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, view.shape().to_vec(), view.data().to_vec()))
            .collect();
        tensors.sort();
        tensors
    };
    assert_eq!(read(folder.path()), read(&gla_tiny()));
}

#[test]
fn large_models_are_saved_in_shards() {
    let device = Device::flex();
    let folder = TempDir::new().unwrap();
    let config = variants().remove(1);
    let model = lively(&config, &device);
    save_pretrained(folder.path(), &config, &model, Some(4000)).unwrap();
    let found = files(folder.path());
    assert!(found.contains("model-00001-of-00007.safetensors"), "{found:?}");
    assert!(
        found.contains("model.safetensors.index.json") && !found.contains("model.safetensors"),
        "{found:?}"
    );
    for name in found.iter().filter(|name| name.ends_with(".safetensors")) {
        let file = SafetensorsFile::open(&folder.path().join(name)).unwrap();
        let bytes: usize =
            file.names().iter().map(|name| 4 * file.shape(name).unwrap().iter().product::<usize>()).sum();
        assert!(bytes <= 4000, "{name}: {bytes}");
    }
    let index: Value =
        serde_json::from_slice(&fs::read(folder.path().join("model.safetensors.index.json")).unwrap())
            .unwrap();
    assert_eq!(index["metadata"]["total_size"], json!(4 * model.num_params()));
    assert_eq!(named_parameters(&load(folder.path(), &device).unwrap()), named_parameters(&model));

    // Saved again in another division, the files of the first are gone.
    let other = lively(&config, &device);
    save_pretrained(folder.path(), &config, &other, None).unwrap();
    assert_eq!(files(folder.path()), names(["config.json", "model.safetensors"]));
    save_pretrained(folder.path(), &config, &model, Some(1 << 14)).unwrap();
    assert_eq!(
        files(folder.path()),
        names([
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json"
        ])
    );
    assert_eq!(named_parameters(&load(folder.path(), &device).unwrap()), named_parameters(&model));
}

#[test]
fn a_model_in_training_is_saved_and_loaded() {
    let device = Device::flex().autodiff();
    let folder = TempDir::new().unwrap();
    let model = lively(&plain(), &device);
    save_pretrained(folder.path(), &plain(), &model, None).unwrap();
    let loaded = load(folder.path(), &device).unwrap();
    assert_eq!(named_parameters(&loaded), named_parameters(&model));
    let ids = tokens(1, 5, &device);
    let gradients = loaded.loss(loaded.forward(ids.clone(), None), ids).unwrap().backward();
    assert!(loaded.model.embeddings.weight.grad(&gradients).is_some());
}

/// A folder with a plain model, to be damaged.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let device = Device::flex();
        save_pretrained(folder.path(), &plain(), &lively(&plain(), &device), None).unwrap();
        Self(folder)
    }

    fn weights(&self) -> PathBuf {
        self.0.path().join("model.safetensors")
    }

    fn tensors(&self) -> NamedTensors {
        let mut file = SafetensorsFile::open(&self.weights()).unwrap();
        file.names().into_iter().map(|name| (name.clone(), file.read(&name).unwrap())).collect()
    }

    fn write(&self, tensors: NamedTensors) {
        SafetensorsFile::write(&self.weights(), tensors, Default::default()).unwrap();
    }

    fn error(&self) -> CheckpointError {
        load(self.0.path(), &Device::flex()).expect_err("a damaged folder")
    }

    /// The error about a tensor of the weights' file.
    fn tensor_error(&self) -> TensorError {
        match self.error() {
            CheckpointError::Tensor { path, source } => {
                assert_eq!(path, self.weights());
                source
            }
            other => panic!("expected an error about a tensor, got {other}"),
        }
    }

    /// The reason why the weights' file is malformed.
    fn reason(&self) -> String {
        match self.error() {
            CheckpointError::Malformed { path, reason } => {
                assert_eq!(path, self.weights());
                reason
            }
            other => panic!("expected a malformed file, got {other}"),
        }
    }
}

#[test]
fn missing_files_are_named() {
    for name in ["config.json", "model.safetensors"] {
        let folder = Folder::new();
        fs::remove_file(folder.0.path().join(name)).unwrap();
        let error = folder.error();
        assert!(matches!(error, CheckpointError::Io { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn truncated_and_overlong_files_are_refused() {
    let folder = Folder::new();
    let bytes = fs::read(folder.weights()).unwrap();
    for length in [0, 1, 7, 8, 9, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(folder.weights(), &bytes[..length]).unwrap();
        let reason = folder.reason();
        assert!(reason.contains("truncated") || reason.contains("promises a header"), "{length}: {reason}");
    }
    fs::write(folder.weights(), [&bytes[..], &[0]].concat()).unwrap();
    assert!(folder.reason().contains("overlong"));
}

#[test]
fn headers_that_lie_are_refused() {
    let folder = Folder::new();
    let write = |header: &str, data: usize| {
        let length = (header.len() as u64).to_le_bytes();
        fs::write(folder.weights(), [&length[..], header.as_bytes(), &vec![0; data]].concat()).unwrap();
    };
    let entry = |dtype: &str, shape: Value, offsets: Value| {
        json!({ "model.norm.weight": { "dtype": dtype, "shape": shape, "data_offsets": offsets } })
            .to_string()
    };
    for (header, data) in [
        ("{".to_string(), 0),
        ("[]".to_string(), 0),
        ("\u{0}\u{1}".to_string(), 4),
        (entry("F32", json!([16]), json!([0, 60])), 60),
        (entry("F32", json!([16]), json!([4, 68])), 68),
        (entry("F32", json!([16]), json!([64, 0])), 64),
        (entry("F32", json!([-16]), json!([0, 64])), 64),
        (entry("F32", json!([u64::MAX, u64::MAX]), json!([0, 64])), 64),
        (entry("F32", json!([1u64 << 40]), json!([0, 1u64 << 42])), 64),
        (entry("F99", json!([16]), json!([0, 64])), 64),
        ("[".repeat(100_000), 0),
    ] {
        write(&header, data);
        let reason = folder.reason();
        assert!(reason.contains("header") || reason.contains("truncated"), "{reason}");
    }
    for length in [u64::MAX, 1 << 60, 200_000_000] {
        fs::write(folder.weights(), [&length.to_le_bytes()[..], &[b' '; 64]].concat()).unwrap();
        assert!(folder.reason().contains("promises a header"), "{length}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let folder = Folder::new();
    let sound = folder.tensors();
    let name = "model.layers.1.attn.gk_proj.1.weight";
    let with = |edit: &dyn Fn(&mut NamedTensors)| {
        let mut tensors = sound.clone();
        edit(&mut tensors);
        folder.write(tensors);
        folder.tensor_error()
    };
    let missing = with(&|tensors| drop(tensors.remove(name)));
    assert_eq!(missing, TensorError::new(name, TensorProblem::Missing));

    let extra = with(&|tensors| drop(tensors.insert("model.layers.2.x".into(), sound[name].clone())));
    assert_eq!(extra, TensorError::new("model.layers.2.x", TensorProblem::Unexpected));

    // The transposed shape is another shape.
    let transposed = with(&|tensors| {
        drop(tensors.insert(name.into(), TensorData::new(vec![0f32; 8 * 4], [4, 8])));
    });
    let need = "[8, 4]".to_string();
    assert_eq!(transposed, TensorError::new(name, TensorProblem::Shape { got: vec![4, 8], need }));

    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = with(&|tensors| {
            let mut values: Vec<f32> = sound[name].iter().collect();
            values[5] = bad;
            drop(tensors.insert(name.into(), TensorData::new(values, [8, 4])));
        });
        assert_eq!(error.tensor, name);
        assert!(matches!(error.problem, TensorProblem::NotFinite { index: 5, .. }), "{error}");
    }
}

#[test]
fn every_float_type_is_read_as_float32() {
    let folder = Folder::new();
    let sound = folder.tensors();
    let device = Device::flex();
    for (kind, tolerance) in [("f16", 1e-3), ("bf16", 1e-2), ("f64", 0.0)] {
        let converted = sound.iter().map(|(name, data)| {
            let (values, shape) = (data.iter::<f32>(), data.shape().clone());
            let data = match kind {
                "f16" => TensorData::new(values.map(f16::from_f32).collect(), shape),
                "bf16" => TensorData::new(values.map(bf16::from_f32).collect(), shape),
                _ => TensorData::new(values.map(f64::from).collect(), shape),
            };
            (name.clone(), data)
        });
        folder.write(converted.collect());
        let loaded = named_parameters(&load(folder.0.path(), &device).unwrap());
        assert_eq!(loaded.len(), sound.len());
        for (name, want) in &sound {
            let want: Vec<f32> = want.iter().collect();
            assert_close(&loaded[name].try_to_vec::<f32>().unwrap(), &want, tolerance, name);
        }
    }
    // A float64 that float32 cannot hold.
    let mut tensors = sound.clone();
    tensors.insert("model.norm.weight".into(), TensorData::new(vec![1e300f64; 16], [16]));
    folder.write(tensors);
    assert!(matches!(folder.tensor_error().problem, TensorProblem::NotFinite { .. }));
}

#[test]
fn other_element_types_are_refused() {
    let folder = Folder::new();
    let bytes = fs::read(folder.weights()).unwrap();
    let header_length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(bytes[8..8 + header_length].to_vec()).unwrap();
    // The same bytes, called integers.
    let header = header.replace("\"F32\"", "\"I32\"");
    fs::write(folder.weights(), [&bytes[..8], header.as_bytes(), &bytes[8 + header_length..]].concat())
        .unwrap();
    assert!(matches!(folder.tensor_error().problem, TensorProblem::Dtype { got } if got == "I32"));

    let tensors = NamedTensors::from([("x".to_string(), TensorData::from([1i32, 2]))]);
    let error = SafetensorsFile::write(&folder.weights(), tensors, Default::default()).unwrap_err();
    assert!(error.to_string().contains("`x`"), "{error}");
}

#[test]
fn damaged_configurations_are_refused() {
    let folder = Folder::new();
    let path = folder.0.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    fs::write(&path, "{ \"model_type\": ").unwrap();
    assert!(matches!(folder.error(), CheckpointError::Malformed { .. }));

    let mut field = |name: &str, value: Value| {
        let before = config[name].take();
        config[name] = value;
        fs::write(&path, config.to_string()).unwrap();
        config[name] = before;
        folder.error()
    };
    for (name, value) in [
        ("model_type", json!("rwkv7")),
        ("architectures", json!(["RWKV7ForCausalLM"])),
        ("num_heads", json!(3)),
        ("attn", json!({ "layers": [0] })),
        ("hidden_size", json!("wide")),
    ] {
        match field(name, value) {
            CheckpointError::Config { path: at, source } => {
                assert_eq!(at, path);
                // Three heads do not divide the keys' width.
                let want = if name == "num_heads" { "expand_k" } else { name };
                assert_eq!(source.field, want, "{source}");
            }
            other => panic!("{name}: {other}"),
        }
    }
    // Sizes that the weights do not have are refused before anything of that size is allocated.
    for (name, tensor) in [
        ("vocab_size", "model.embeddings.weight"),
        ("intermediate_size", "model.layers.0.mlp.gate_proj.weight"),
    ] {
        match field(name, json!(1u64 << 30)) {
            CheckpointError::Tensor { source, .. } => {
                assert_eq!(source.tensor, tensor);
                assert!(matches!(source.problem, TensorProblem::Shape { .. }), "{source}");
            }
            other => panic!("{name}: {other}"),
        }
    }
    // And sizes that no model has, or more layers than there are tensors, before anything is made of them.
    for (name, value) in [("vocab_size", 1u64 << 40), ("num_heads", u64::MAX), ("num_hidden_layers", 9_999)] {
        match field(name, json!(value)) {
            CheckpointError::Config { source, .. } => assert_eq!(source.field, name, "{source}"),
            other => panic!("{name}: {other}"),
        }
    }
}

#[test]
fn damaged_indices_are_refused() {
    let folder = TempDir::new().unwrap();
    let device = Device::flex();
    save_pretrained(folder.path(), &plain(), &lively(&plain(), &device), Some(6000)).unwrap();
    let path = folder.path().join("model.safetensors.index.json");
    let sound: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let error = |edit: &dyn Fn(&mut Value)| {
        let mut index = sound.clone();
        edit(&mut index);
        fs::write(&path, index.to_string()).unwrap();
        load(folder.path(), &device).expect_err("a damaged index")
    };
    let name = "model.embeddings.weight";
    for elsewhere in ["../model-00001-of-00002.safetensors", "/etc/hostname", "a/b", "..", ""] {
        let error = error(&|index| index["weight_map"][name] = json!(elsewhere));
        assert!(matches!(error, CheckpointError::Malformed { .. }), "{elsewhere}: {error}");
    }
    for map in [Value::Null, json!({}), json!([1]), json!({ "x": 1 })] {
        let error = error(&|index| index["weight_map"] = map.clone());
        assert!(matches!(error, CheckpointError::Malformed { .. }), "{error}");
    }
    let absent = error(&|index| index["weight_map"][name] = json!("model-00009-of-00009.safetensors"));
    assert!(matches!(absent, CheckpointError::Io { .. }), "{absent}");
    let unknown = error(&|index| index["weight_map"]["model.x"] = index["weight_map"][name].clone());
    assert!(unknown.to_string().contains("`model.x`: missing"), "{unknown}");

    // A tensor that two shards have.
    let shard = |i: usize| {
        sound["weight_map"].as_object().unwrap().values().map(|v| v.as_str().unwrap()).nth(i).unwrap()
    };
    let (first, last) = (shard(0), shard(sound["weight_map"].as_object().unwrap().len() - 1));
    assert_ne!(first, last);
    let mut file = SafetensorsFile::open(&folder.path().join(first)).unwrap();
    let mut tensors: NamedTensors =
        file.names().into_iter().map(|name| (name.clone(), file.read(&name).unwrap())).collect();
    let mut other = SafetensorsFile::open(&folder.path().join(last)).unwrap();
    let doubled = other.names()[0].clone();
    tensors.insert(doubled.clone(), other.read(&doubled).unwrap());
    SafetensorsFile::write(&folder.path().join(first), tensors, Default::default()).unwrap();
    let twice = error(&|_| {});
    assert!(twice.to_string().contains("another shard"), "{twice}");
}

#[test]
fn a_failed_save_leaves_the_old_file() {
    let folder = Folder::new();
    let before = fs::read(folder.weights()).unwrap();
    let tensors = NamedTensors::from([("x".to_string(), TensorData::from([true, false]))]);
    SafetensorsFile::write(&folder.weights(), tensors, Default::default()).unwrap_err();
    assert_eq!(fs::read(folder.weights()).unwrap(), before);
    assert_eq!(files(folder.0.path()), names(["config.json", "model.safetensors"]));

    let file = folder.0.path().join("config.json").join("folder");
    let model = plain().init(&Device::flex());
    let error = save_pretrained(&file, &plain(), &model, None).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { .. }), "{error}");
}

#[test]
fn tensors_are_loaded_by_name() {
    let device = Device::flex();
    let tensors = named_parameters(&lively(&plain(), &device));
    let fresh = plain().init(&device);
    let loaded = load_tensors(fresh.clone(), tensors.clone()).unwrap();
    assert_eq!(named_parameters(&loaded), tensors);

    let mut whole_numbers = tensors.clone();
    whole_numbers.insert("model.norm.weight".into(), TensorData::new(vec![1i32; 16], [16]));
    let error = load_tensors(fresh, whole_numbers).unwrap_err();
    assert_eq!(error.tensor, "model.norm.weight");
    assert!(matches!(error.problem, TensorProblem::Dtype { .. }), "{error}");
}
