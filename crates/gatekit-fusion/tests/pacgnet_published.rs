//! PACGNet's published checkpoints: files as the released code saves them, made from the weights of the golden cases.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use gatekit_core::batch_norm::BatchStatistics;
use gatekit_core::checkpoint::{CheckpointError, NamedTensors, SafetensorsFile, TensorProblem};
use gatekit_core::{ModuleConfig, checkpoint::named_parameters};
use gatekit_fusion::pacgnet::{PacgNet, PacgNetConfig};
use serde_json::Value;
use tempfile::TempDir;

#[allow(deprecated)] // NdArray is one of the devices that are tested.
fn devices() -> [Device; 2] {
    [Device::flex(), Device::ndarray()]
}

/// A network that an independent reference computed.
struct Case {
    file: SafetensorsFile,
    config: PacgNetConfig,
}

impl Case {
    fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/pacgnet");
        let file =
            SafetensorsFile::open(&folder.join(format!("pacgnet--{name}.safetensors"))).expect("a case");
        let config: Value =
            serde_json::from_str(file.metadata("config").expect("a configuration")).expect("JSON");
        let sizes = |field: &str| -> Vec<usize> {
            let sizes = config[field].as_array().expect("a list");
            sizes.iter().map(|size| size.as_u64().expect("a size") as usize).collect()
        };
        let size = |field: &str| config[field].as_u64().expect("a size") as usize;
        let config = PacgNetConfig::new(size("num_classes"))
            .with_channels(sizes("channels"))
            .with_depths(sizes("depths"))
            .with_reg_max(size("reg_max"))
            .with_min_gate_channels(size("min_gate_channels"))
            .with_min_head_channels(size("min_head_channels"));
        Self { file, config }
    }

    /// The names and values of a released file: weights and running statistics, a counter beside each of these, and the
    /// bins of the head.
    fn published(&mut self) -> NamedTensors {
        let mut tensors = NamedTensors::new();
        for name in self.file.names() {
            let kind = ["param.", "buffer."].into_iter().find_map(|kind| name.strip_prefix(kind));
            let Some(published) = kind else { continue };
            if let Some(norm) = published.strip_suffix("running_mean") {
                let counter = TensorData::new(vec![4321i64], [] as [usize; 0]);
                tensors.insert(format!("{norm}num_batches_tracked"), counter);
            }
            tensors.insert(published.to_string(), self.file.read(&name).expect("read"));
        }
        let bins = self.config.reg_max;
        let values: Vec<f32> = (0..bins).map(|bin| bin as f32).collect();
        tensors.insert("model.38.dfl.conv.weight".into(), TensorData::new(values, [1, bins, 1, 1]));
        tensors
    }

    #[track_caller]
    fn assert_same(&mut self, model: &PacgNet, device: &Device) {
        let mut input = |name: &str| -> Tensor<4> {
            Tensor::from_data(self.file.read(&format!("input.{name}")).expect("read"), device)
        };
        let (rgb, ir) = (input("rgb"), input("ir"));
        let output = model.forward(rgb, ir, None, BatchStatistics::Running);
        let levels = ["fused_p3", "fused_p4", "fused_p5"].into_iter().zip(output.fused.levels);
        let maps = ["p3", "p4", "p5"].into_iter().zip(output.detections.maps);
        for (name, got) in levels.chain(maps) {
            self.close(name, got.into_data());
        }
        self.close("angle", output.detections.angle.into_data());
    }

    #[track_caller]
    fn close(&mut self, name: &str, got: TensorData) {
        let want = self.file.read(&format!("output.{name}")).expect("read");
        assert_eq!(got.shape(), want.shape(), "{name}");
        let (got, want): (Vec<f64>, Vec<f64>) = (got.iter::<f64>().collect(), want.iter::<f64>().collect());
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
        let error = square(&mut got.iter().zip(&want).map(|(got, want)| got - want));
        let size = square(&mut want.iter().copied());
        assert!(error.sqrt() <= 2e-5 * size.sqrt() + 1e-6, "{name}: {}", (error / size).sqrt());
    }
}

fn write(folder: &TempDir, tensors: NamedTensors) -> PathBuf {
    let path = folder.path().join("pacgnet.safetensors");
    SafetensorsFile::write(&path, tensors, HashMap::from([("format".into(), "pt".into())])).expect("written");
    path
}

#[test]
fn a_released_file_gives_the_outputs_of_the_released_network() {
    let folder = TempDir::new().expect("a temporary folder");
    for name in ["tiny", "two-images"] {
        let mut case = Case::open(name);
        let published = case.published();
        let counters = published.keys().filter(|name| name.ends_with("num_batches_tracked")).count();
        assert!(counters > 60, "{counters} counters");
        for part in [
            "model.0.conv.weight",
            "model.8.fusion_layers.0.norm_rgb_out.running_var",
            "model.38.cv4.2.2.bias",
        ] {
            assert!(published.contains_key(part), "{part}");
        }
        let path = write(&folder, published);
        for device in devices() {
            let model = case.config.init(&device).load_published(&path).expect("loaded");
            case.assert_same(&model, &device);
        }
    }
}

#[test]
fn what_is_saved_has_the_published_names_and_is_loaded_again() {
    let folder = TempDir::new().expect("a temporary folder");
    let mut case = Case::open("tiny");
    let mut published = case.published();
    let device = Device::flex();
    let model = case.config.init(&device).load_published(write(&folder, published.clone())).expect("loaded");
    let path = folder.path().join("saved.safetensors");
    model.save_published(&path).expect("saved");
    let mut saved = SafetensorsFile::open(&path).expect("a file");
    published.retain(|name, _| !name.ends_with("num_batches_tracked") && !name.contains(".dfl."));
    let mut names = saved.names();
    names.sort();
    assert_eq!(names, published.keys().cloned().collect::<Vec<_>>());
    for (name, want) in &published {
        assert_eq!(saved.read(name).expect("read"), *want, "{name}");
    }
    let again = case.config.init(&device).load_published(&path).expect("loaded");
    assert_eq!(named_parameters(&again), named_parameters(&model));
    case.assert_same(&again, &device);
}

#[test]
fn files_of_another_network_are_refused() {
    let folder = TempDir::new().expect("a temporary folder");
    let mut case = Case::open("tiny");
    let published = case.published();
    let config = case.config.clone();
    let device = Device::flex();
    let refused = |config: &PacgNetConfig, tensors: NamedTensors| {
        let path = write(&folder, tensors);
        match config.init(&device).load_published(&path).expect_err("refused") {
            CheckpointError::Tensor { path: of, source } => {
                assert_eq!(of, path);
                source
            }
            other => panic!("{other}"),
        }
    };
    let changed = |change: fn(&mut NamedTensors)| {
        let mut tensors = published.clone();
        change(&mut tensors);
        refused(&config, tensors)
    };

    let error = changed(|tensors| drop(tensors.remove("model.13.fusion_layers.0.norm_ir_out.running_mean")));
    assert_eq!(error.tensor, "model.13.fusion_layers.0.norm_ir_out.running_mean");
    assert_eq!(error.problem, TensorProblem::Missing);
    let error =
        changed(|tensors| drop(tensors.insert("model.39.conv.weight".into(), TensorData::from([1.0f32]))));
    assert_eq!((error.tensor.as_str(), error.problem), ("model.39.conv.weight", TensorProblem::Unexpected));
    let error = changed(|tensors| {
        drop(tensors.insert("model.23.softmax_gate.bias".into(), TensorData::from([0.0f32, f32::NAN])));
    });
    assert_eq!(error.tensor, "model.23.softmax_gate.bias");
    assert!(matches!(error.problem, TensorProblem::NotFinite { index: 1, .. }), "{error}");
    let error = refused(&PacgNetConfig { num_classes: 3, ..case.config.clone() }, published.clone());
    assert!(error.tensor.starts_with("model.38.cv3.0.") && error.to_string().contains("shape"), "{error}");

    let missing = folder.path().join("none.safetensors");
    assert!(matches!(case.config.init(&device).load_published(&missing), Err(CheckpointError::Io { .. })));
    let path = write(&folder, published);
    let bytes = std::fs::read(&path).expect("read");
    std::fs::write(&path, &bytes[..bytes.len() - 5]).expect("written");
    let error = case.config.init(&device).load_published(&path).expect_err("refused");
    assert!(matches!(&error, CheckpointError::Malformed { .. }), "{error}");
}
