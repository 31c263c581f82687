//! Models of gated and of affine-scaled attention: streaming, padding, folders, and what is refused.

mod support;

use std::fs;

use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor};
use gatekit_core::attention::{BiasCount, GateLayout, OutputGateKind};
use gatekit_core::sequence::Packing;
use gatekit_core::{ConfigError, ModuleConfig};
use gatekit_sequence::affine_scaled::{
    AffineScaledAttentionConfig, AffineScaledModelConfig, AttentionVariant, ScaleActivation,
};
use gatekit_sequence::checkpoint::{
    CheckpointError, PretrainedConfig, TensorProblem, load_tensors, named_parameters,
};
use gatekit_sequence::gated_attention::{
    FusedGatedAttentionConfig, GatedAttentionConfig, GatedAttentionModelConfig,
};
use gatekit_sequence::lm::{CausalLm, StreamState, StreamingLm};
use gatekit_sequence::{load_pretrained, save_pretrained};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::*;
use tempfile::TempDir;

fn gated() -> GatedAttentionModelConfig {
    GatedAttentionModelConfig::new(37, 16, 2, 24)
        .with_num_attention_heads(4)
        .with_num_key_value_heads(Some(2))
}

fn gated_variants() -> Vec<GatedAttentionModelConfig> {
    vec![
        gated(),
        gated().with_gate(OutputGateKind::Headwise).with_qkv_bias(true).with_tie_word_embeddings(true),
        gated()
            .with_gate_layout(GateLayout::Head)
            .with_head_dim(Some(8))
            .with_zero_centered_norm(true)
            .with_partial_rotary_factor(0.25),
        gated().with_gate(OutputGateKind::None).with_use_qk_norm(false).with_rope_theta(None),
    ]
}

fn affine() -> AffineScaledModelConfig {
    AffineScaledModelConfig::new(37, 16, 2, 24).with_num_heads(4).with_num_kv_heads(Some(2))
}

fn affine_variants() -> Vec<AffineScaledModelConfig> {
    vec![
        affine().with_bias_count(BiasCount::Visible).with_clip_width(1.0),
        affine()
            .with_bias_count(BiasCount::Visible)
            .with_alpha_activation(ScaleActivation::Sigmoid)
            .with_output_gate(OutputGateKind::Elementwise),
        affine().with_variant(AttentionVariant::Sink).with_tie_word_embeddings(true),
        affine().with_variant(AttentionVariant::Softmax).with_output_gate(OutputGateKind::Headwise),
    ]
}

/// Logits of every position when `ids` comes in pieces, and the state after them.
fn in_pieces<M: StreamingLm>(model: &M, ids: &Tensor<2, Int>, pieces: &[usize]) -> (Vec<f32>, M::State) {
    let mut state = model.empty_state(ids.dims()[0], &ids.device());
    let (mut logits, mut start) = (Vec::new(), 0);
    for &length in pieces {
        let piece = ids.clone().narrow(1, start, length);
        let (scores, next) = match length {
            1 => {
                let (scores, next) = model.step(piece.squeeze_dim::<1>(1), state);
                (scores.unsqueeze_dim(1), next)
            }
            _ => model.prefill(piece, state),
        };
        state = next;
        start += length;
        logits.push(scores);
    }
    (values(&Tensor::cat(logits, 1)), state)
}

fn assert_streams<M: StreamingLm>(model: &M, device: &Device, pieces: &[usize], what: &str) {
    let ids = tokens(2, pieces.iter().sum(), device);
    let whole = values(&model.forward(ids.clone(), None));
    assert_close(&in_pieces(model, &ids, pieces).0, &whole, 1e-5, &format!("{what} in {pieces:?}"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_splits_equal_the_whole(pieces in prop::collection::vec(1usize..9, 1..6)) {
        let device = &devices()[1];
        for config in gated_variants() {
            assert_streams(&enlivened(config.init(device)), device, &pieces, &config.to_string());
        }
        for config in affine_variants() {
            assert_streams(&enlivened(config.init(device)), device, &pieces, &config.to_string());
        }
    }
}

#[test]
fn the_shift_over_the_sequence_counts_the_tokens_so_far() {
    for device in devices() {
        // One layer: in deeper ones the earlier tokens were computed when the sequence was shorter.
        let ids = tokens(2, 9, &device);
        let single = enlivened(AffineScaledModelConfig { num_hidden_layers: 1, ..affine() }.init(&device));
        let (mut state, mut whole) = (single.empty_state(2, &device), Vec::new());
        for position in 0..9 {
            let token = ids.clone().narrow(1, position, 1).squeeze_dim::<1>(1);
            let (scores, next) = single.step(token, state);
            state = next;
            let logits = single.forward(ids.clone().narrow(1, 0, position + 1), None);
            whole = values(&logits.clone().narrow(1, position, 1));
            assert_close(&values(&scores), &whole, 1e-5, &format!("step {position}"));
        }
        // A prefill is a whole pass over its tokens.
        let (scores, _) = single.prefill(ids.clone(), single.empty_state(2, &device));
        assert_close(&values(&scores.narrow(1, 8, 1)), &whole, 1e-5, "prefill");
    }
}

fn assert_padding_changes_nothing<M: CausalLm>(model: &M, device: &Device, what: &str) {
    let ids = tokens(2, 6, device);
    let mask = [[false, true, true, true, true, false], [true; 6]];
    let padded = model.forward(ids.clone(), Some(Tensor::<2, Bool>::from_data(mask, device)));
    let row = |tensor: &Tensor<3>, row: usize| values(&tensor.clone().narrow(0, row, 1));
    let first = model.forward(ids.clone().narrow(0, 0, 1).narrow(1, 1, 4), None);
    assert_close(&values(&padded.clone().narrow(0, 0, 1).narrow(1, 1, 4)), &values(&first), 1e-5, what);
    let second = model.forward(ids.narrow(0, 1, 1), None);
    assert_close(&row(&padded, 1), &values(&second), 1e-5, what);
}

#[test]
fn padded_tokens_reach_nothing() {
    for device in devices() {
        for config in gated_variants() {
            let model = enlivened(config.init(&device));
            assert_padding_changes_nothing(&model, &device, &config.to_string());
        }
        for config in affine_variants().into_iter().chain([affine()]) {
            let model = enlivened(config.init(&device));
            assert_padding_changes_nothing(&model, &device, &config.to_string());
        }
    }
}

#[test]
fn rows_without_a_token_give_zero_and_leave_the_average_alone() {
    for device in devices() {
        let device = device.autodiff();
        let layer = AffineScaledAttentionConfig::new(8, 2).init(&device);
        let layer = enlivened(layer);
        let twin = layer.clone().valid().train();
        let x = Tensor::<3>::random([2, 4, 8], burn::tensor::Distribution::Default, &device);
        let mask = Tensor::<2, Bool>::from_data([[false; 4], [true; 4]], &device);
        assert!(Packing::from_mask(&mask).is_err());
        let packing = Packing::from_mask_with_empty_rows(&mask).unwrap();
        let got = layer.forward(x.clone(), Some(&packing));
        assert_eq!(values(&got.clone().narrow(0, 0, 1)), vec![0.0; 32]);
        let alone = twin.forward(x.narrow(0, 1, 1), None);
        assert_close(&values(&got.narrow(0, 1, 1)), &values(&alone), 1e-6, "row");
        let average = |layer: &gatekit_sequence::AffineScaledAttention| {
            values(&layer.alpha_moving_average.as_ref().unwrap().average())
        };
        assert_close(&average(&layer), &average(&twin), 1e-6, "average");
    }
}

#[test]
fn averages_move_in_training_alone_and_are_saved() {
    for device in devices() {
        let config = affine();
        let mut model = enlivened(config.init(&device.clone().autodiff()));
        let averages = |model: &gatekit_sequence::AffineScaledForCausalLm| -> Vec<f32> {
            model.moving_averages().iter().flat_map(values).collect()
        };
        let ids = tokens(2, 5, &device.clone().autodiff());
        let before = averages(&model);
        model.forward(ids.clone(), None);
        let moved = averages(&model);
        assert!(before.iter().zip(&moved).all(|(before, moved)| before != moved));
        model.set_training(false);
        model.forward(ids.clone(), None);
        assert_eq!(averages(&model), moved);
        let still = model.valid();
        let logits = still.forward(ids.inner(), None);
        assert_eq!(averages(&still), moved);

        let folder = TempDir::new().unwrap();
        save_pretrained(folder.path(), &config, &still, None).unwrap();
        let (read, loaded) = load_pretrained::<AffineScaledModelConfig>(folder.path(), &device).unwrap();
        assert_eq!(read.to_string(), config.to_string());
        assert_eq!(averages(&loaded), moved);
        let again = loaded.forward(tokens(2, 5, &device), None);
        assert_eq!(values(&again), values(&logits));
    }
}

#[test]
fn the_future_gets_nothing_from_the_shift() {
    for device in devices() {
        for count in [BiasCount::Sequence, BiasCount::Visible, BiasCount::None] {
            let model = enlivened(affine().with_bias_count(count).init(&device));
            let ids = tokens(1, 7, &device);
            let other = Tensor::cat(vec![ids.clone().narrow(1, 0, 6), Tensor::zeros([1, 1], &device)], 1);
            let earlier = |ids| values(&model.forward(ids, None).narrow(1, 0, 6));
            assert_eq!(earlier(ids), earlier(other));
        }
    }
}

#[test]
fn states_are_saved_checked_and_sized() {
    let device = &devices()[1];
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state.safetensors");
    let model = enlivened(affine().with_bias_count(BiasCount::Visible).init(device));
    let ids = tokens(2, 8, device);
    let (_, state) = in_pieces(&model, &ids, &[5]);
    // Two layers, two rows, two key heads of four float32 channels: keys, values and the sum.
    assert_eq!(state.bytes(), 2 * 2 * 2 * 4 * 4 * (5 + 5 + 1));
    state.save(&path).unwrap();
    let read = <_ as StreamState>::load(&path, device).unwrap();
    model.check_state(&read, 2).unwrap();
    let token = ids.clone().narrow(1, 5, 1).squeeze_dim::<1>(1);
    let next = |state| values(&model.step(token.clone(), state).0);
    assert_eq!(next(read.clone()), next(state.clone()));
    assert_eq!(model.check_state(&read, 3).unwrap_err().field, "state.layers.0.keys");

    let softmax = affine().with_variant(AttentionVariant::Softmax).init(device);
    assert_eq!(softmax.check_state(&read, 2).unwrap_err().field, "state.layers.0.value_sum");
    let (_, plain) = in_pieces(&softmax, &ids, &[5]);
    assert_eq!(model.check_state(&plain, 2).unwrap_err().field, "state.layers.0.value_sum");
    let mut wrong = read;
    wrong.layers[1].value_sum = Some(Tensor::zeros([2, 1, 4], device));
    assert_eq!(model.check_state(&wrong, 2).unwrap_err().field, "state.layers.1.value_sum");
    wrong.save(&path).unwrap();
    let error = gatekit_sequence::affine_scaled::AffineScaledState::load(&path, device).unwrap_err();
    assert!(error.to_string().contains("layers.1.value_sum"), "{error}");
}

#[test]
fn gated_models_are_saved_under_published_names() {
    for device in devices() {
        for config in gated_variants() {
            let folder = TempDir::new().unwrap();
            let model = enlivened(config.init(&device));
            save_pretrained(folder.path(), &config, &model, None).unwrap();
            let (_, loaded) = load_pretrained::<GatedAttentionModelConfig>(folder.path(), &device).unwrap();
            let ids = tokens(1, 6, &device);
            assert_eq!(values(&loaded.forward(ids.clone(), None)), values(&model.forward(ids, None)));
            let names = config.layout().to_published(named_parameters(&model));
            for name in ["model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"] {
                assert!(names.contains_key(name), "{name}");
            }
            assert!(names.keys().all(|name| !name.contains(".attn")), "{:?}", names.keys());
        }
    }
}

/// Changes a field of the folder's configuration.
fn edit(folder: &TempDir, change: impl FnOnce(&mut Value)) {
    let path = folder.path().join("config.json");
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn a_layout_is_never_guessed() {
    let device = &devices()[1];
    let folder = TempDir::new().unwrap();
    let config = gated();
    save_pretrained(folder.path(), &config, &enlivened(config.init(device)), None).unwrap();
    let load = || load_pretrained::<GatedAttentionModelConfig>(folder.path(), device).unwrap_err();
    edit(&folder, |json| {
        json.as_object_mut().unwrap().remove("gate_layout");
    });
    assert!(load().to_string().contains("gate_layout"), "{}", load());
    edit(&folder, |json| json["gate_layout"] = json!("sideways"));
    assert!(load().to_string().contains("gate_layout"), "{}", load());
    // A headwise gate needs fewer rows: the error says what both layouts need.
    edit(&folder, |json| {
        json["gate_layout"] = json!("head");
        json["elementwise_attn_output_gate"] = json!(false);
        json["headwise_attn_output_gate"] = json!(true);
        json["gate"] = json!("headwise");
    });
    let error = load();
    let CheckpointError::Tensor { .. } = &error else { panic!("{error}") };
    let text = error.to_string();
    for needle in [
        "q_proj.weight",
        "[32, 16]",
        "kv-group 2 groups x (2 queries x 4 + 2 gates x 1)",
        "head 4 heads x (4",
    ] {
        assert!(text.contains(needle), "{text} lacks {needle}");
    }
}

#[test]
fn rows_of_a_fused_projection_are_checked() {
    let config = FusedGatedAttentionConfig::new(16, 4).with_num_key_value_heads(Some(2));
    config.check_query_rows(32).unwrap();
    let error = config.check_query_rows(20).unwrap_err();
    assert_eq!((error.field.as_str(), error.got.as_str()), ("q_proj.weight", "20 rows"));
    assert!(error.need.contains("kv-group 2 groups") && error.need.contains("head 4 heads"), "{error}");
    config.clone().with_gate(OutputGateKind::Headwise).check_query_rows(20).unwrap();
    config.with_gate(OutputGateKind::None).check_query_rows(16).unwrap();
}

fn published(json: Value) -> Result<GatedAttentionModelConfig, ConfigError> {
    let mut whole = json!({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]});
    whole.as_object_mut().unwrap().extend(json.as_object().unwrap().clone());
    GatedAttentionModelConfig::from_published(&whole)
}

#[test]
fn published_configurations_are_read() {
    let read = published(json!({
        "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 8, "attention_bias": true,
        "elementwise_attn_output_gate": true, "headwise_attn_output_gate": false, "gate_layout": "kv-group",
    }))
    .unwrap();
    assert_eq!((read.hidden_size, read.num_attention_heads, read.head_dim), (2048, 16, Some(128)));
    assert_eq!((read.gate, read.gate_layout), (OutputGateKind::Elementwise, GateLayout::KvGroup));
    assert!(read.qkv_bias && read.use_qk_norm);
    assert_eq!(published(json!({})).unwrap().gate, OutputGateKind::None);

    let field = |json| published(json).unwrap_err().field;
    assert_eq!(field(json!({"headwise_attn_output_gate": true})), "gate_layout");
    assert_eq!(field(json!({"rope_scaling": {"rope_type": "yarn"}})), "rope_scaling");
    assert_eq!(field(json!({"quantization_config": {}})), "quantization_config");
    assert_eq!(field(json!({"hidden_act": "gelu"})), "hidden_act");
    assert_eq!(field(json!({"use_sliding_window": true})), "use_sliding_window");
    assert_eq!(field(json!({"model_type": "llama"})), "model_type");
    assert_eq!(field(json!({"gate": "sideways"})), "gate");
    let both = json!({
        "headwise_attn_output_gate": true, "elementwise_attn_output_gate": true, "gate_layout": "head"
    });
    assert_eq!(field(both), "elementwise_attn_output_gate");
}

#[test]
fn a_gate_that_is_not_configured_is_refused() {
    let device = &devices()[1];
    use gatekit_core::attention::GatePosition;
    let gated = GatedAttentionConfig::new(8, 2).init(device);
    let published = GatedAttentionConfig::layout().to_published(named_parameters(&gated));
    assert!(published.contains_key("gate_proj.weight"));
    let plain = GatedAttentionConfig::new(8, 2).with_gate_position(GatePosition::None).init(device);
    assert!(plain.gate_scores(Tensor::zeros([1, 2, 8], device)).is_none());
    let tensors = GatedAttentionConfig::layout().to_module(&plain, published).unwrap();
    let error = load_tensors(plain, tensors).unwrap_err();
    assert_eq!(error.tensor, "gate_proj.weight");
    assert!(matches!(error.problem, TensorProblem::Unexpected));
}

#[test]
fn bad_configurations_are_refused() {
    let device = &devices()[1];
    let field = |config: GatedAttentionConfig| config.try_init(device).unwrap_err().field;
    let layer = || GatedAttentionConfig::new(16, 4);
    use gatekit_core::attention::{GateGranularity, GatePosition};
    let dense = || layer().with_gate_position(GatePosition::Dense);
    assert_eq!(field(layer().with_num_kv_heads(Some(3))), "num_kv_heads");
    assert_eq!(field(layer().with_head_dim(Some(5))), "head_dim");
    assert_eq!(field(layer().with_rms_norm_eps(0.0)), "rms_norm_eps");
    assert_eq!(field(dense().with_gate_granularity(GateGranularity::Headwise)), "gate_granularity");
    assert_eq!(field(dense().with_gate_head_shared(true)), "gate_granularity");

    let fused = || FusedGatedAttentionConfig::new(16, 4);
    let field = |config: FusedGatedAttentionConfig| config.try_init(device).unwrap_err().field;
    assert_eq!(field(fused().with_num_key_value_heads(Some(3))), "num_key_value_heads");
    assert_eq!(field(fused().with_partial_rotary_factor(0.25)), "partial_rotary_factor");
    assert_eq!(field(FusedGatedAttentionConfig::new(16, 0)), "num_attention_heads");

    let field = |config: AffineScaledModelConfig| config.try_init(device).unwrap_err().field;
    assert_eq!(field(affine().with_momentum(1.0)), "momentum");
    assert_eq!(field(affine().with_momentum(-0.1)), "momentum");
    assert_eq!(field(affine().with_clip_width(0.0)), "clip_width");
    assert_eq!(field(affine().with_num_kv_heads(Some(3))), "num_kv_heads");
    assert_eq!(field(affine().with_rms_norm_eps(f64::NAN)), "rms_norm_eps");
    let mut json = affine().to_published();
    json["variant"] = json!("sideways");
    assert_eq!(AffineScaledModelConfig::from_published(&json).unwrap_err().field, "variant");
    json["variant"] = json!("sink");
    json["vocab_size"] = Value::Null;
    assert_eq!(AffineScaledModelConfig::from_published(&json).unwrap_err().field, "vocab_size");
}

#[test]
fn scales_are_measured() {
    for device in devices() {
        for count in [BiasCount::Sequence, BiasCount::Visible, BiasCount::None] {
            let config = AffineScaledAttentionConfig::new(8, 2).with_bias_count(count);
            let layer = enlivened(config.init(&device));
            let x = Tensor::<3>::random([2, 5, 8], burn::tensor::Distribution::Default, &device);
            let measured = layer.scale_values(x.clone()).unwrap();
            assert_eq!(measured.alpha.dims(), [2, 5, 2]);
            let sums = measured.weights.clone().sum_dim(3).squeeze_dim::<3>(3);
            assert_close(&values(&sums), &values(&measured.row_mass), 1e-5, "row mass");
            // The weights give the output.
            let projected = layer.attention.project(x.clone(), gatekit_core::attention::Positions::From(0));
            let o = measured.weights.matmul(projected.v.swap_dims(1, 2)).swap_dims(1, 2);
            let expected = layer.attention.output(o, None);
            assert_close(&values(&layer.forward(x, None)), &values(&expected), 1e-5, "output");
        }
        let softmax =
            AffineScaledAttentionConfig::new(8, 2).with_variant(AttentionVariant::Softmax).init(&device);
        assert!(softmax.scale_values(Tensor::zeros([1, 2, 8], &device)).is_none());
    }
}
