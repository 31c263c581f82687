use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use serde_json::{Value, json};

use super::super::{
    CheckpointError, NamedTensors, PretrainedConfig, TensorLayout, TensorProblem, load_pretrained,
    load_tensors, named_parameters, save_pretrained,
};
use crate::{ConfigError, ModuleConfig, init};

/// Two layers, each with a stack of experts, a projection and a vector.
#[derive(Module, Debug)]
struct Model {
    layers: Vec<Layer>,
}

#[derive(Module, Debug)]
struct Layer {
    attn: Linear,
    experts: Experts,
    decay: Param<Tensor<1>>,
}

#[derive(Module, Debug)]
struct Experts {
    gate_up_proj: Param<Tensor<3>>,
}

#[derive(Config, Debug)]
struct ModelConfig {
    experts: usize,
}

impl ModuleConfig for ModelConfig {
    type Module = Model;

    fn try_init(&self, device: &Device) -> Result<Model, ConfigError> {
        let random = |shape: [usize; 3]| Tensor::random(shape, Distribution::Default, device);
        let layer = || Layer {
            attn: init::linear(3, 2, false, device),
            experts: Experts { gate_up_proj: Param::from_tensor(random([self.experts, 4, 3])) },
            decay: Param::from_tensor(random([1, 1, 5]).reshape([5])),
        };
        Ok(Model { layers: vec![layer(), layer()] })
    }
}

impl PretrainedConfig for ModelConfig {
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        super::super::config_from_json(&Self::new(2), json)
    }

    fn to_published(&self) -> Value {
        json!({ "experts": self.experts })
    }

    fn layout(&self) -> TensorLayout {
        TensorLayout::default()
            .with_experts("layers.{}.experts.gate_up_proj", &["w1.weight", "w3.weight"])
            .with_prefix("layers.", "model.layers.")
            .with_prefix("model.layers.{}.attn.", "model.layers.{}.self_attn.q_proj.")
            .with_shape("model.layers.{}.decay", &[1, 0, 1])
            .with_ignored("rotary.")
    }
}

fn published(config: &ModelConfig) -> (Model, NamedTensors) {
    let model = config.init(&Device::default());
    let tensors = config.layout().to_published(named_parameters(&model));
    (model, tensors)
}

#[test]
fn counters_are_passed_over_by_their_last_segment() {
    let config = ModelConfig::new(2);
    let (model, mut tensors) = published(&config);
    let layout = config.layout().with_ignored_last("num_batches_tracked");
    tensors.insert("model.layers.0.bn.num_batches_tracked".into(), TensorData::from([7i64]));
    tensors.insert("num_batches_tracked".into(), TensorData::from([7i64]));
    let names = layout.to_module(&model, tensors.clone()).expect("all parts are there");
    assert_eq!(names.keys().collect::<Vec<_>>(), named_parameters(&model).keys().collect::<Vec<_>>());
    tensors.insert("model.num_batches_tracked.weight".into(), TensorData::from([7i64]));
    let names = layout.to_module(&model, tensors).expect("all parts are there");
    assert!(names.contains_key("model.num_batches_tracked.weight"));
}

#[test]
fn every_part_has_its_published_name_and_shape() {
    let (model, tensors) = published(&ModelConfig::new(2));
    let shapes: Vec<(&str, &[usize])> =
        tensors.iter().map(|(name, data)| (name.as_str(), &data.shape()[..])).take(6).collect();
    let want: [(&str, &[usize]); 6] = [
        ("model.layers.0.decay", &[1, 5, 1]),
        ("model.layers.0.experts.0.w1.weight", &[2, 3]),
        ("model.layers.0.experts.0.w3.weight", &[2, 3]),
        ("model.layers.0.experts.1.w1.weight", &[2, 3]),
        ("model.layers.0.experts.1.w3.weight", &[2, 3]),
        ("model.layers.0.self_attn.q_proj.weight", &[2, 3]),
    ];
    assert_eq!(shapes, want);
    let stacked = model.layers[0].experts.gate_up_proj.val();
    let part = stacked.slice([1..2, 2..4, 0..3]).into_data();
    assert_eq!(part.bytes(), tensors["model.layers.0.experts.1.w3.weight"].bytes());
}

#[test]
fn stacked_vectors_are_cut_too() {
    let layout = TensorLayout::default().with_experts("fc.bias", &["bias"]).with_prefix("fc.", "fc1.");
    assert_eq!(layout.published_names("fc.bias", &[2, 5]), ["fc1.0.bias", "fc1.1.bias"]);
    let stacked = TensorData::new((0..6).map(|i| i as f32).collect(), [2, 3]);
    let cut = layout.to_published(NamedTensors::from([("fc.bias".to_string(), stacked)]));
    assert_eq!(cut["fc1.1.bias"].shape()[..], [3]);
    assert_eq!(cut["fc1.1.bias"].iter::<f32>().collect::<Vec<_>>(), [3.0, 4.0, 5.0]);
}

#[test]
fn what_is_cut_is_put_together_again() {
    let config = ModelConfig::new(3);
    let (model, tensors) = published(&config);
    let other = config.init(&Device::default());
    let tensors = config.layout().to_module(&other, tensors).unwrap();
    let other = load_tensors(other, tensors).unwrap();
    assert_eq!(named_parameters(&model), named_parameters(&other));
}

#[test]
fn folders_use_the_published_names() {
    let folder = tempfile::tempdir().unwrap();
    let config = ModelConfig::new(3);
    let (model, tensors) = published(&config);
    for max_shard_bytes in [None, Some(100)] {
        save_pretrained(folder.path(), &config, &model, max_shard_bytes).unwrap();
        let (_, loaded) = load_pretrained::<ModelConfig>(folder.path(), &Device::default()).unwrap();
        assert_eq!(config.layout().to_published(named_parameters(&loaded)), tensors);
    }
}

#[test]
fn a_missing_expert_is_named() {
    let config = ModelConfig::new(3);
    let (model, mut tensors) = published(&config);
    tensors.remove("model.layers.1.experts.2.w1.weight");
    let error = config.layout().to_module(&model, tensors).unwrap_err();
    assert_eq!(error.tensor, "model.layers.1.experts.2.w1.weight");
    assert!(matches!(error.problem, TensorProblem::Missing), "{error}");
}

#[test]
fn an_expert_of_another_shape_is_named() {
    let config = ModelConfig::new(3);
    let (model, mut tensors) = published(&config);
    tensors.insert("model.layers.0.experts.1.w3.weight".into(), TensorData::zeros::<f32, _>([2, 4]));
    let error = config.layout().to_module(&model, tensors).unwrap_err();
    assert_eq!(error.tensor, "model.layers.0.experts.1.w3.weight");
    assert!(matches!(error.problem, TensorProblem::Shape { .. }), "{error}");
}

#[test]
fn an_expert_too_many_is_refused_and_what_is_ignored_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let config = ModelConfig::new(2);
    let (model, mut tensors) = published(&config);
    tensors.insert("rotary.inv_freq".into(), TensorData::zeros::<f32, _>([4]));
    let taken = config.layout().to_module(&model, tensors.clone()).unwrap();
    assert!(load_tensors(model.clone(), taken).is_ok());

    tensors.insert("model.layers.0.experts.2.w1.weight".into(), TensorData::zeros::<f32, _>([2, 3]));
    let taken = config.layout().to_module(&model, tensors).unwrap();
    assert_eq!(load_tensors(model, taken).unwrap_err().tensor, "model.layers.0.experts.2.w1.weight");

    let (larger, _) = published(&ModelConfig::new(3));
    save_pretrained(folder.path(), &ModelConfig::new(3), &larger, None).unwrap();
    std::fs::write(folder.path().join("config.json"), "{\"experts\": 2}").unwrap();
    match load_pretrained::<ModelConfig>(folder.path(), &Device::default()) {
        Err(CheckpointError::Tensor { source, .. }) => {
            assert_eq!(source.tensor, "model.layers.0.experts.2.w1.weight");
        }
        other => panic!("{other:?}"),
    }
}
