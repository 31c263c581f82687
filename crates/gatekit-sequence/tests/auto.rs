//! The model that a folder's `config.json` selects.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_core::checkpoint::{NamedTensors, PretrainedConfig, SafetensorsFile, named_parameters};
use gatekit_sequence::auto::{AutoNetwork, model_types};
use gatekit_sequence::hybrid_linear_attention::{HybridAttentionConfig, HybridConfig};
use gatekit_sequence::{
    AutoConfig, AutoModel, AutoState, CausalLm, CheckpointError, GamConfig, GlaConfig, MambaConfig,
    SoftmaxConfig, StreamState, StreamingLm, from_pretrained,
};
use serde_json::{Value, json};
use tempfile::TempDir;

fn gla() -> AutoModel {
    AutoConfig::from(GlaConfig::new(32, 16, 2).with_num_heads(2).with_intermediate_size(Some(32)))
        .init(&Device::flex())
}

fn softmax() -> AutoModel {
    AutoConfig::from(SoftmaxConfig::new(32, 16, 2).with_num_heads(2).with_intermediate_size(Some(32)))
        .init(&Device::flex())
}

fn ids() -> Tensor<2, Int> {
    Tensor::from_data([[3, 1, 4, 1, 5]], &Device::flex())
}

fn logits(model: &AutoModel) -> Vec<f32> {
    model.forward(ids(), None).into_data().iter::<f32>().collect()
}

/// A saved folder whose `config.json` was changed.
struct Folder(TempDir);

impl Folder {
    fn of(model: &AutoModel) -> Self {
        let folder = TempDir::new().unwrap();
        model.save_pretrained(folder.path(), None).unwrap();
        Self(folder)
    }

    fn config(&self) -> PathBuf {
        self.0.path().join("config.json")
    }

    fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut json: Value = serde_json::from_slice(&fs::read(self.config()).unwrap()).unwrap();
        change(&mut json);
        fs::write(self.config(), json.to_string()).unwrap();
    }

    fn load(&self) -> Result<AutoModel, CheckpointError> {
        from_pretrained(self.0.path(), &Device::flex())
    }

    /// The field at fault, and what the whole error says.
    fn refused(&self) -> (String, String) {
        match self.load().expect_err("refused") {
            CheckpointError::Config { path, source } => {
                assert_eq!(path, self.config());
                (source.field.clone(), source.to_string())
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_saved_model_loads_as_the_same_model() {
    for model in [gla(), softmax()] {
        let folder = Folder::of(&model);
        let again = folder.load().unwrap();
        assert_eq!(logits(&again), logits(&model));
        assert_eq!(named_parameters(&again), named_parameters(&model));
        assert_eq!(again.config().to_published(), model.config().to_published());
        assert_eq!(again.config().name(), model.config().name());
    }
}

/// The parameters are called as in the model itself: nothing of the selection is in their names.
#[test]
fn the_selection_leaves_no_trace_in_the_names() {
    let model = gla();
    let AutoNetwork::Gla(inner) = model.network() else { panic!("{model:?}") };
    assert_eq!(named_parameters(&model), named_parameters(inner));
    assert_eq!(model.num_params(), inner.num_params());
    assert_eq!(model.devices(), inner.devices());
    assert!(model.to_string().contains("Gla"));
}

#[test]
fn without_a_model_type_the_architecture_selects() {
    let folder = Folder::of(&gla());
    folder.change(|json| json["model_type"] = Value::Null);
    assert!(matches!(folder.load().unwrap().network(), AutoNetwork::Gla(_)));
    folder.change(|json| json["architectures"] = json!(["LlamaForCausalLM"]));
    let (field, text) = folder.refused();
    assert_eq!(field, "architectures");
    assert!(text.contains("LlamaForCausalLM") && text.contains("MixtralForCausalLM"), "{text}");
}

#[test]
fn unknown_models_are_refused_with_the_known_ones() {
    let folder = Folder::of(&gla());
    for unknown in [json!("rwkv7"), json!(7), json!(["gla"])] {
        folder.change(|json| json["model_type"] = unknown.clone());
        let (field, text) = folder.refused();
        assert_eq!(field, "model_type");
        assert!(model_types().iter().all(|known| text.contains(known)), "{text}");
        assert!(text.contains(&unknown.to_string()), "{text}");
    }
    for no_object in ["[]", "7", "null"] {
        fs::write(folder.config(), no_object).unwrap();
        assert!(folder.load().is_err());
    }
}

/// fla's `gla` with some layers of attention is a hybrid stack.
#[test]
fn gla_with_attention_is_a_hybrid_stack() {
    let layer = GlaConfig::new(32, 16, 2).with_num_heads(2).layer();
    let config = HybridConfig::new(32, 2, layer.into())
        .with_attn(Some(HybridAttentionConfig::new(vec![1], 2)))
        .with_intermediate_size(Some(32));
    let model = AutoConfig::from(config).init(&Device::flex());
    let folder = Folder::of(&model);
    folder.change(|json| assert_eq!(json["model_type"], "gla"));
    let again = folder.load().unwrap();
    assert!(matches!(again.network(), AutoNetwork::Hybrid(_)));
    assert_eq!(logits(&again), logits(&model));
}

#[test]
fn scaled_rotations_and_quantised_weights_are_refused() {
    for model in [gla(), softmax()] {
        let folder = Folder::of(&model);
        let refused = |field: &str, value: Value| {
            let sound = fs::read(folder.config()).unwrap();
            folder.change(|json| json[field] = value);
            let (named, text) = folder.refused();
            fs::write(folder.config(), sound).unwrap();
            assert!(named.starts_with(field), "{text}");
        };
        refused("quantization_config", json!({ "quant_method": "gptq", "bits": 4 }));
        refused("rope_scaling", json!({ "rope_type": "yarn", "factor": 4.0 }));
        refused("rope_scaling", json!({ "type": "linear", "factor": 2.0 }));
        refused("rope_scaling", json!({ "factor": 2.0 }));
        refused("rope_scaling", json!("dynamic"));
        refused("rope_parameters", json!({ "rope_type": "llama3", "rope_theta": 1e4 }));
        for (field, sound) in [
            ("rope_scaling", json!({ "rope_type": "default" })),
            ("rope_parameters", json!({ "rope_type": "default", "rope_theta": 10_000.0 })),
            ("rope_scaling", Value::Null),
            ("quantization_config", Value::Null),
        ] {
            folder.change(|json| json[field] = sound);
            folder.load().unwrap();
        }
    }
}

#[test]
fn a_state_is_saved_loaded_and_goes_on() {
    for model in [gla(), softmax()] {
        let device = Device::flex();
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("state.safetensors");
        let (_, state) = model.prefill(ids(), model.empty_state(1, &device));
        state.save(&path).unwrap();
        let loaded = AutoState::load(&path, &device).unwrap();
        assert_eq!((loaded.mixer(), loaded.bytes()), (state.mixer(), state.bytes()));
        model.check_state(&loaded, 1).unwrap();
        let token = Tensor::<1, Int>::from_data([9], &device);
        let (expected, _) = model.step(token.clone(), state.to_device(&device));
        let (found, _) = model.step(token, loaded);
        assert_eq!(found.into_data(), expected.into_data());
    }
}

#[test]
fn a_state_of_another_mixer_is_refused_naming_both() {
    let device = Device::flex();
    let state = gla().empty_state(1, &device);
    let error = softmax().check_state(&state, 1).unwrap_err().to_string();
    assert!(error.contains("gated_linear_attention") && error.contains("softmax_attention"), "{error}");
    let room = softmax().check_room(&state, 1).unwrap_err().to_string();
    assert!(room.contains("gated_linear_attention"), "{room}");

    let mamba = AutoConfig::from(MambaConfig::new(32, 16, 2)).init(&device);
    let step = || mamba.step(Tensor::from_data([1], &device), state);
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(step)).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("gated_linear_attention") && text.contains("mamba"), "{text}");
}

#[test]
fn files_that_hold_no_known_state_are_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state.safetensors");
    let load = |path: &Path| AutoState::load(path, &Device::flex()).unwrap_err().to_string();
    assert!(load(&path).contains("state.safetensors"));
    let tensors = NamedTensors::from([("x".to_string(), TensorData::from([1.0f32]))]);
    SafetensorsFile::write(&path, tensors.clone(), Default::default()).unwrap();
    assert!(load(&path).contains("`mixer` is nothing"));
    let metadata = [("mixer".to_string(), "abacus".to_string())].into();
    SafetensorsFile::write(&path, tensors, metadata).unwrap();
    let text = load(&path);
    assert!(
        text.contains("abacus") && text.contains("mamba") && text.contains("softmax_attention"),
        "{text}"
    );
}

/// A model with learned positions says where they end, through the selection as by itself.
#[test]
fn the_end_of_learned_positions_shows_through() {
    let config = GamConfig::new(32, 8, 1).with_block_size(6).with_num_memory_slots(4).with_dropout(0.0);
    let model = AutoConfig::from(config).init(&Device::flex());
    let (_, state) = model.prefill(ids(), model.empty_state(1, &Device::flex()));
    model.check_room(&state, 1).unwrap();
    assert!(model.check_room(&state, 2).unwrap_err().got.contains('7'));
    gla().check_room(&gla().empty_state(1, &Device::flex()), usize::MAX).unwrap();
}
