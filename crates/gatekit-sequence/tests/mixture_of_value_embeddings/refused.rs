//! What is refused, by the name of the field.

use burn::tensor::{Device, Int, Tensor};
use gatekit_core::checkpoint::PretrainedConfig;
use gatekit_core::{InputError, ModuleConfig};
use gatekit_sequence::GenerateConfig;
use gatekit_sequence::checkpoint::TensorProblem;
use gatekit_sequence::generate::GenerateError;
use gatekit_sequence::lm::{CausalLm, StreamingLm};
use gatekit_sequence::mixture_of_value_embeddings::*;
use serde_json::json;

use super::support::*;
use super::{latent, noisy, picture, small};

#[test]
fn unusable_text_models_name_the_field() {
    let device = Device::flex();
    let slots = |slots| ValueMemory::Global { slots };
    for (field, config) in [
        ("vocab_size", MoveTextConfig::new(0, 2, 4, 16)),
        ("vocab_size", MoveTextConfig::new(usize::MAX, 2, 4, 16)),
        ("n_layer", MoveTextConfig::new(37, 0, 4, 16)),
        ("n_layer", MoveTextConfig::new(37, usize::MAX, 4, 16)),
        ("n_head", MoveTextConfig::new(37, 2, 0, 16)),
        ("n_embd", MoveTextConfig::new(37, 2, 4, 0)),
        ("n_embd", MoveTextConfig::new(37, 2, 4, 18)),
        ("n_kv_head", small().with_n_kv_head(Some(3))),
        ("n_kv_head", small().with_n_kv_head(Some(0))),
        ("head_dim", small().with_head_dim(Some(5))),
        ("head_dim", small().with_head_dim(Some(0))),
        ("head_dim", MoveTextConfig::new(37, 2, 4, 12)),
        ("move_slots", small().with_memory(slots(0))),
        ("move_slots", small().with_memory(slots(usize::MAX))),
        ("value_memory", small().with_value_memory("more".into())),
        ("lave_every", small().with_memory(ValueMemory::LayerWise { every: 0 })),
        ("gate_scale", small().with_gate_scale(0.0)),
        ("gate_scale", small().with_gate_scale(f64::NAN)),
        ("rope_base", small().with_rope_base(-1.0)),
        ("norm_eps", small().with_norm_eps(0.0)),
        ("logit_softcap", small().with_logit_softcap(-15.0)),
        ("mla_d_c", latent().with_mla_d_c(Some(0))),
        ("mla_d_c1", latent().with_mla_d_c1(None)),
        ("mla_d_c1", latent().with_mla_d_c1(Some(0))),
        ("mla_d_rope", latent().with_mla_d_rope(None)),
        ("mla_d_rope", latent().with_mla_d_rope(Some(4))),
        ("mla_d_rope", latent().with_mla_d_rope(Some(3))),
        ("mla_d_rope", latent().with_mla_d_rope(Some(0))),
        ("num_latent_groups", latent().with_num_latent_groups(Some(3))),
        ("num_latent_groups", latent().with_num_latent_groups(Some(0))),
        ("n_kv_head", latent().with_n_kv_head(Some(2))),
    ] {
        let error = config.try_init(&device).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
    assert!(MoveTextConfig::new(37, 1, 4, 12).with_head_dim(Some(4)).try_init(&device).is_ok());
}

#[test]
fn unusable_image_models_name_the_field() {
    let device = Device::flex();
    for (field, config) in [
        ("vocab_size", MoveImageConfig::new(0, 2, 4, 16)),
        ("n_layer", MoveImageConfig::new(11, 0, 4, 16)),
        ("n_head", MoveImageConfig::new(11, 2, 0, 16)),
        ("n_kv_head", picture().with_n_kv_head(Some(3))),
        ("head_dim", picture().with_head_dim(Some(6))),
        ("head_dim", MoveImageConfig::new(11, 2, 4, 24)),
        ("num_classes", picture().with_num_classes(0)),
        ("grid_size", picture().with_grid_size(0)),
        ("grid_size", picture().with_grid_size(usize::MAX)),
        ("ffn_dim", picture().with_ffn_dim(Some(0))),
        ("ffn_dim", picture().with_ffn_dim(Some(usize::MAX))),
        ("move_slots", picture().with_memory(ValueMemory::Global { slots: 0 })),
        ("value_memory", picture().with_value_memory(String::new())),
        ("gate_scale", picture().with_gate_scale(f64::INFINITY)),
        ("rope_base", picture().with_rope_base(0.0)),
        ("norm_eps", picture().with_norm_eps(-1.0)),
        ("dropout", picture().with_dropout(1.0)),
        ("dropout", picture().with_dropout(f64::NAN)),
    ] {
        let error = config.try_init(&device).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
}

#[test]
fn published_configurations_of_other_models_are_refused() {
    let text = small().to_published();
    assert_eq!(MoveTextConfig::from_published(&text).unwrap().to_string(), small().to_string());
    assert_eq!(MoveImageConfig::from_published(&text).unwrap_err().field, "model_type");
    for (field, value) in [
        ("model_type", json!("gla")),
        ("architectures", json!(["GLAForCausalLM"])),
        ("n_layer", json!("three")),
        ("latent_target", json!("k")),
    ] {
        let mut json = text.clone();
        json[field] = value;
        assert_eq!(MoveTextConfig::from_published(&json).unwrap_err().field, field);
    }
}

fn named<T: std::fmt::Debug>(result: Result<T, InputError>, field: &str, got: &str) {
    let error = result.expect_err(field);
    assert_eq!((error.field.as_str(), error.got.as_str()), (field, got), "{error}");
}

fn ids<const B: usize, const T: usize>(ids: [[i64; T]; B], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(ids, device)
}

#[test]
fn ids_outside_the_tables_are_named() {
    for device in devices() {
        let bank = ValueEmbeddingBankConfig::new(5, 3, 2, 4, 16).init(&device);
        named(bank.check_ids(&ids([[1, 2], [5, 0]], &device)), "ids", "5 at [1, 0]");
        named(bank.try_look_up(ids([[1, -1]], &device)).map(|_| ()), "ids", "-1 at [0, 1]");
        named(bank.check_ids(&Tensor::zeros([2, 0], &device)), "ids", "shape [2, 0]");
        named(bank.check_ids(&Tensor::zeros([0, 2], &device)), "ids", "shape [0, 2]");

        let text = small().init(&device);
        named(text.check_ids(&ids([[0, 37]], &device)), "input_ids", "37 at [0, 1]");
        named(text.check_ids(&Tensor::zeros([1, 0], &device)), "input_ids", "shape [1, 0]");
        assert!(text.check_ids(&ids([[0, 36]], &device)).is_ok());

        let image = picture().init(&device);
        let label = |label: i64| Tensor::<1, Int>::from_data([label], &device);
        named(image.check_inputs(&ids([[0, 11]], &device), &label(0)), "codes", "11 at [0, 1]");
        named(image.check_inputs(&ids([[0, 10]], &device), &label(6)), "labels", "6 at [0, 0]");
        named(image.check_inputs(&ids([[0, 10]], &device), &label(-1)), "labels", "-1 at [0, 0]");
        named(image.check_inputs(&ids([[0; 17]], &device), &label(0)), "codes", "17 codes a picture");
        named(image.check_inputs(&ids([[0], [1]], &device), &label(0)), "labels", "shape [1]");
        named(image.check_inputs(&Tensor::zeros([0, 3], &device), &label(0)), "codes", "shape [0, 3]");
        assert!(image.check_inputs(&ids([[0; 16]], &device), &label(5)).is_ok());
        let logits = Tensor::zeros([1, 2, 11], &device);
        named(image.loss(logits, ids([[0, -1]], &device)), "codes", "-1 at [0, 1]");
    }
}

#[test]
fn targets_are_checked() {
    let device = Device::flex();
    let model = small().init(&device);
    let loss =
        |targets: [[i64; 2]; 1]| model.target_loss(Tensor::zeros([1, 2, 37], &device), ids(targets, &device));
    named(loss([[-1, -1]]), "targets", "[1, 2] without one that counts");
    named(loss([[3, 37]]), "targets", "37 at [0, 1]");
    // The trait's labels are ignored at -100, these at -1.
    named(loss([[3, -100]]), "targets", "-100 at [0, 1]");
    assert!(loss([[-1, 3]]).is_ok());
}

#[test]
fn a_memory_of_another_shape_names_both() {
    let device = Device::flex();
    let mixer = ValueMixerConfig::new(8, 2, 3, 4).init(&device);
    let v = noisy([1, 5, 2, 3], 1, &device);
    for shape in [[1, 5, 3, 2, 3], [1, 5, 4, 1, 3], [1, 5, 4, 2, 2], [1, 4, 4, 2, 3]] {
        let error = mixer.check_memory(&v, &Tensor::zeros(shape, &device)).unwrap_err();
        assert_eq!(error.field, "memory");
        assert!(error.got.contains(&format!("{shape:?}")), "{error}");
        assert_eq!(error.need, "[1, 5, 4, 2, 3]");
    }
    let error =
        mixer.check_memory(&noisy([1, 5, 2, 4], 1, &device), &Tensor::zeros([1, 5, 4, 2, 3], &device));
    assert_eq!(error.unwrap_err().field, "v");
}

#[test]
#[should_panic(expected = "input `memory`: got shape [1, 5, 3, 2, 3], need [1, 5, 4, 2, 3]")]
fn mixing_another_memory_panics() {
    let device = Device::flex();
    let mixer = ValueMixerConfig::new(8, 2, 3, 4).init(&device);
    let (x, v) = (noisy([1, 5, 8], 1, &device), noisy([1, 5, 2, 3], 1, &device));
    mixer.forward(x, v, Tensor::zeros([1, 5, 3, 2, 3], &device));
}

#[test]
#[should_panic(expected = "mixes a memory into its values, and got none")]
fn a_missing_memory_panics() {
    let device = Device::flex();
    let layer = MoveAttentionConfig::new(16, 4).with_move_slots(Some(2)).init(&device);
    layer.forward(noisy([1, 3, 16], 1, &device), None, None);
}

#[test]
#[should_panic(expected = "`input_ids` holds no token, shape [1, 0]")]
fn no_token_panics() {
    let device = Device::flex();
    small().init(&device).forward(Tensor::zeros([1, 0], &device), None);
}

#[test]
#[should_panic(expected = "a picture has 16")]
fn a_full_picture_ends() {
    let device = Device::flex();
    let model = picture().init(&device);
    let (_, state) = model.begin(Tensor::from_data([0], &device));
    let (_, state) = model.prefill(Tensor::zeros([1, 15], &device), state);
    model.step(Tensor::from_data([0], &device), state);
}

#[test]
#[should_panic(expected = "has not seen the class")]
fn a_picture_begins_with_its_class() {
    let device = Device::flex();
    let model = picture().init(&device);
    model.step(Tensor::from_data([0], &device), model.empty_state(1, &device));
}

#[test]
fn states_that_do_not_fit_are_named() {
    let device = Device::flex();
    let model = small().init(&device);
    let field = |state: &MoveTextState, batch| model.check_state(state, batch).unwrap_err().field;
    assert_eq!(field(&model.empty_state(1, &device), 2), "state.layers.0.keys");
    let other = MoveTextConfig { n_layer: 2, ..small() }.init(&device);
    assert_eq!(field(&other.empty_state(1, &device), 1), "state");
    assert_eq!(field(&latent().init(&device).empty_state(1, &device), 1), "state.layers.0.cache");
    let mut uneven = model.empty_state(1, &device);
    let (_, longer) = model.prefill(ids([[1, 2]], &device), model.empty_state(1, &device));
    uneven.layers[1] = longer.layers[1].clone();
    assert_eq!(field(&uneven, 1), "state.layers.1.position");

    let values_only = latent().with_latent_target(LatentTarget::V).init(&device);
    let error = values_only.check_state(&latent().init(&device).empty_state(1, &device), 1).unwrap_err();
    assert_eq!(error.field, "state.layers.0.plain");
}

#[test]
fn damaged_caches_are_refused() {
    use gatekit_sequence::backbone::MixerState;

    let device = Device::flex();
    let model = latent().with_latent_target(LatentTarget::V).init(&device);
    let (_, state) = model.prefill(ids([[1, 2, 3]], &device), model.empty_state(1, &device));
    let sound = state.layers[0].to_tensors();
    assert!(MoveCache::from_tensors(sound.clone(), &device).is_ok());
    let refused = |change: &dyn Fn(&mut gatekit_sequence::checkpoint::NamedTensors)| {
        let mut tensors = sound.clone();
        change(&mut tensors);
        let error = MoveCache::from_tensors(tensors, &device).unwrap_err();
        (error.tensor.clone(), error.problem)
    };
    let missing = refused(&|tensors| drop(tensors.remove("rotated")));
    assert_eq!(missing, ("rotated".to_string(), TensorProblem::Missing));
    let extra = refused(&|tensors| drop(tensors.insert("keys".into(), tensors["mixed"].clone())));
    assert_eq!(extra, ("keys".to_string(), TensorProblem::Unexpected));
    let short = Tensor::<3>::zeros([1, 2, 8], &device).to_data();
    let (name, problem) = refused(&|tensors| drop(tensors.insert("plain".into(), short.clone())));
    assert!(name == "plain" && matches!(problem, TensorProblem::Shape { .. }), "{problem:?}");
    let early = burn::tensor::TensorData::from([2_i64]);
    let (name, problem) = refused(&|tensors| drop(tensors.insert("position".into(), early.clone())));
    assert!(name == "position" && matches!(problem, TensorProblem::Value { .. }), "{problem:?}");
}

#[test]
fn generation_that_cannot_start_says_why() {
    let model = picture().init(&Device::flex());
    let refused = |labels: &[usize], guidance, config: GenerateConfig| match model
        .generate(labels, guidance, &config)
        .unwrap_err()
    {
        GenerateError::Config(error) => error.field,
        GenerateError::Input(error) => error.field,
    };
    assert_eq!(refused(&[0], 1.0, GenerateConfig::new(17)), "max_new_tokens");
    assert_eq!(refused(&[0], 1.0, GenerateConfig::new(0)), "max_new_tokens");
    assert_eq!(refused(&[0], f64::NAN, GenerateConfig::new(16)), "guidance");
    assert_eq!(refused(&[0], 1.0, GenerateConfig::new(16).with_temperature(-1.0)), "temperature");
    assert_eq!(refused(&[], 1.0, GenerateConfig::new(16)), "labels");
    assert_eq!(refused(&[0, 6], 1.0, GenerateConfig::new(16)), "labels");
}
