//! Qwen3-Next: layers, streaming, published form, bad input.

mod support;

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_sequence::backbone::{MixerContext, TokenMixer};
use gatekit_sequence::checkpoint::{
    PretrainedConfig, load_pretrained, load_tensors, named_gradients, named_parameters, save_pretrained,
};
use gatekit_sequence::hybrid_linear_attention::GatedDeltaNetConfig;
use gatekit_sequence::lm::{CausalLm, StreamState, StreamingLm};
use gatekit_sequence::qwen3_next::{
    PackedGatedDeltaNetConfig, Qwen3NextConfig, Qwen3NextForCausalLm, Qwen3NextLayer, Qwen3NextState,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::*;

/// Two linear layers, one of attention; the second layer dense.
fn small() -> Qwen3NextConfig {
    Qwen3NextConfig::new(37, 16, 3)
        .with_full_attention_interval(3)
        .with_num_attention_heads(4)
        .with_num_key_value_heads(2)
        .with_head_dim(8)
        .with_linear_num_key_heads(2)
        .with_linear_num_value_heads(4)
        .with_linear_key_head_dim(4)
        .with_linear_value_head_dim(6)
        .with_num_experts(4)
        .with_num_experts_per_tok(2)
        .with_moe_intermediate_size(8)
        .with_shared_expert_intermediate_size(12)
        .with_mlp_only_layers(vec![1])
        .with_intermediate_size(24)
}

fn model(device: &Device) -> Qwen3NextForCausalLm {
    enlivened(small().init(device))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_division_equals_the_whole(pieces in prop::collection::vec(1usize..12, 1..6)) {
        for device in devices() {
            let model = model(&device);
            let ids = tokens(2, pieces.iter().sum(), &device);
            let whole = values(&model.forward(ids.clone(), None));
            let mut state = model.empty_state(2, &device);
            let (mut logits, mut start) = (Vec::new(), 0);
            for &piece in &pieces {
                let part = ids.clone().narrow(1, start, piece);
                let (scores, next) = match piece {
                    1 => {
                        let (scores, next) = model.step(part.squeeze_dim(1), state);
                        (scores.unsqueeze_dim(1), next)
                    }
                    _ => model.prefill(part, state),
                };
                (state, start) = (next, start + piece);
                logits.push(scores);
            }
            assert_close(&values(&Tensor::cat(logits, 1)), &whole, 2e-5, &format!("{pieces:?}"));
        }
    }
}

/// The packed layer is Gated DeltaNet with its rows in another order.
#[test]
fn unpacked_weights_give_the_same_layer() {
    let (keys, shared, k, v, width) = (2, 2, 4, 6, 16);
    for device in devices() {
        let packed = PackedGatedDeltaNetConfig::new(width, keys, keys * shared)
            .with_linear_key_head_dim(k)
            .with_linear_value_head_dim(v);
        let packed = enlivened(packed.init(&device));
        let tensors = named_parameters(&packed);
        let rows = |name: &str| -> Vec<Vec<f32>> {
            let data: Vec<f32> = tensors[name].iter::<f32>().collect();
            data.chunks(data.len() / tensors[name].shape()[0]).map(<[f32]>::to_vec).collect()
        };
        let (qkvz, ba, conv) =
            (rows("in_proj_qkvz.weight"), rows("in_proj_ba.weight"), rows("conv1d.weight"));
        // Rows `from .. to` of every key head.
        let of_heads = |rows: &[Vec<f32>], from: usize, to: usize| -> Vec<f32> {
            let stride = rows.len() / keys;
            (0..keys).flat_map(|head| rows[head * stride + from..head * stride + to].concat()).collect()
        };
        let (key, value) = (keys * k, keys * shared * v);
        let (v0, z0) = (2 * k, 2 * k + shared * v);
        let plain = GatedDeltaNetConfig::new(width)
            .with_num_heads(keys)
            .with_num_v_heads(Some(keys * shared))
            .with_head_dim(k)
            .with_expand_v(v as f64 / k as f64)
            .with_norm_eps(1e-6)
            .init(&device);
        let mut unpacked = named_parameters(&plain);
        for (name, data) in &mut unpacked {
            let new: Vec<f32> = match name.as_str() {
                "q_proj.weight" => of_heads(&qkvz, 0, k),
                "k_proj.weight" => of_heads(&qkvz, k, 2 * k),
                "v_proj.weight" => of_heads(&qkvz, v0, z0),
                "g_proj.weight" => of_heads(&qkvz, z0, z0 + shared * v),
                "b_proj.weight" => of_heads(&ba, 0, shared),
                "a_proj.weight" => of_heads(&ba, shared, 2 * shared),
                "q_conv1d.weight" => conv[..key].concat(),
                "k_conv1d.weight" => conv[key..2 * key].concat(),
                "v_conv1d.weight" => conv[2 * key..2 * key + value].concat(),
                "o_norm.weight" => rows("norm.weight").concat(),
                "o_proj.weight" => rows("out_proj.weight").concat(),
                same => rows(same).concat(),
            };
            *data = TensorData::new(new, data.shape().clone());
        }
        let plain = load_tensors(plain, unpacked).unwrap();
        let mut state = 9;
        let data: Vec<f32> = (0..2 * 7 * width).map(|_| noise(&mut state)).collect();
        let x = Tensor::<3>::from_data(TensorData::new(data, [2, 7, width]), &device);
        let context = MixerContext::default();
        let want = values(&TokenMixer::forward(&plain, x.clone(), &context));
        assert_close(&values(&TokenMixer::forward(&packed, x, &context)), &want, 1e-5, "packed");
    }
}

#[test]
fn padding_does_not_reach_real_tokens() {
    for device in devices() {
        let model = model(&device);
        let real = tokens(1, 6, &device);
        let want = values(&model.forward(real.clone(), None));
        let padded = Tensor::cat(vec![Tensor::<2, Int>::full([1, 3], 5, &device), real], 1);
        let mask = [[false, false, false, true, true, true, true, true, true]];
        let logits = model.forward(padded, Some(Tensor::<2, Bool>::from_data(mask, &device)));
        assert_close(&values(&logits.narrow(1, 3, 6)), &want, 1e-5, "padded");
    }
}

#[test]
fn it_trains() {
    let device = Device::flex().autodiff();
    let model = model(&device);
    let ids = tokens(2, 9, &device);
    let gradients = model.loss(model.forward(ids.clone(), None), ids).unwrap().backward();
    let trained = named_gradients(&model, &gradients);
    for name in named_parameters(&model).into_keys() {
        let gradient = trained.get(&name).unwrap_or_else(|| panic!("{name} has no gradient"));
        assert!(gradient.iter::<f32>().all(f32::is_finite), "{name}");
        assert!(gradient.iter::<f32>().any(|value| value != 0.0), "{name} has only zeros");
    }
}

#[test]
fn a_saved_state_continues_and_others_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let device = Device::flex();
    let model = model(&device);
    let (_, state) = model.prefill(tokens(2, 6, &device), model.empty_state(2, &device));
    state.save(&path).unwrap();
    let loaded = Qwen3NextState::load(&path, &device).unwrap();
    model.check_state(&loaded, 2).unwrap();
    let token = || Tensor::<1, Int>::from_data([5, 9], &device);
    assert_eq!(values(&model.step(token(), loaded).0), values(&model.step(token(), state).0));

    let mut swapped = model.empty_state(1, &device);
    swapped.layers.swap(0, 2);
    let error = model.check_state(&swapped, 1).unwrap_err();
    assert_eq!(error.field, "state.layers.0.mixer");
    assert!(error.to_string().contains("full_attention") && error.to_string().contains("linear_attention"));
}

/// Published names and parts; what is written loads again and gives equal logits.
#[test]
fn folders_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::flex();
    for config in [small(), small().with_tie_word_embeddings(true).with_attention_bias(true)] {
        let model: Qwen3NextForCausalLm = enlivened(config.init(&device));
        save_pretrained(folder.path(), &config, &model, None).unwrap();
        let (read, loaded) = load_pretrained::<Qwen3NextConfig>(folder.path(), &device).unwrap();
        assert_eq!(read.layers().unwrap(), config.layers().unwrap());
        let ids = tokens(2, 8, &device);
        assert_eq!(values(&loaded.forward(ids.clone(), None)), values(&model.forward(ids, None)));
    }
    let config = small();
    let names = |name: &str, shape: &[usize]| config.layout().published_names(name, shape);
    assert_eq!(
        names("model.layers.0.attn.in_proj_ba.weight", &[8, 16]),
        ["model.layers.0.linear_attn.in_proj_ba.weight"]
    );
    assert_eq!(names("model.layers.2.attn.q_norm.weight", &[8]), ["model.layers.2.self_attn.q_norm.weight"]);
    assert_eq!(
        names("model.layers.2.mlp_norm.weight", &[8]),
        ["model.layers.2.post_attention_layernorm.weight"]
    );
    assert_eq!(
        names("model.layers.0.mlp.experts.gate_up_proj", &[1, 16, 16]),
        ["gate_proj", "up_proj"].map(|part| format!("model.layers.0.mlp.experts.0.{part}.weight"))
    );
}

fn published() -> Value {
    let mut json = small().to_published();
    json["layer_types"] = json!(["linear_attention", "full_attention", "linear_attention"]);
    json
}

#[test]
fn published_forms_are_read() {
    use Qwen3NextLayer::{FullAttention, LinearAttention};
    let read = |json: &Value| Qwen3NextConfig::from_published(json).unwrap();
    assert_eq!(read(&published()).layers().unwrap(), [LinearAttention, FullAttention, LinearAttention]);
    // The form of older files: no list of layers, the rotation beside the other fields.
    let mut old = published();
    for field in ["layer_types", "rope_parameters"] {
        old.as_object_mut().unwrap().remove(field);
    }
    old["rope_theta"] = json!(10_000_000);
    old["partial_rotary_factor"] = json!(0.5);
    old["rope_scaling"] = Value::Null;
    let config = read(&old);
    assert_eq!((config.rope_theta, config.partial_rotary_factor), (1e7, 0.5));
    assert_eq!(config.layers().unwrap(), [LinearAttention, LinearAttention, FullAttention]);
    assert_eq!(read(&small().to_published()).to_published(), small().to_published());
}

#[test]
fn published_configurations_that_ask_for_more_are_refused() {
    let refused = |edit: &dyn Fn(&mut Value), field: &str| {
        let mut json = published();
        edit(&mut json);
        assert_eq!(Qwen3NextConfig::from_published(&json).unwrap_err().field, field);
    };
    refused(&|json| json["model_type"] = json!("qwen3_moe"), "model_type");
    refused(&|json| json["architectures"] = json!(["Qwen3MoeForCausalLM"]), "architectures");
    refused(&|json| json["hidden_act"] = json!("gelu"), "hidden_act");
    refused(&|json| json["quantization_config"] = json!({"bits": 4}), "quantization_config");
    refused(&|json| json["rope_parameters"]["rope_type"] = json!("yarn"), "rope_parameters.rope_type");
    refused(&|json| json["rope_scaling"] = json!({"type": "linear", "factor": 2}), "rope_scaling.type");
    refused(&|json| json["layer_types"] = json!(["mamba"]), "layer_types");
    refused(&|json| json["num_experts"] = json!(-3), "num_experts");
}

#[test]
fn configurations_that_cannot_be_built_are_refused() {
    let device = Device::flex();
    let refused = |config: Qwen3NextConfig, field: &str| {
        assert_eq!(config.try_init(&device).unwrap_err().field, field);
    };
    refused(small().with_full_attention_interval(0), "full_attention_interval");
    refused(small().with_layer_types(Some(vec![Qwen3NextLayer::FullAttention])), "layer_types");
    refused(small().with_decoder_sparse_step(0), "decoder_sparse_step");
    refused(small().with_mlp_only_layers(vec![3]), "mlp_only_layers");
    refused(small().with_linear_num_value_heads(3), "linear_num_value_heads");
    refused(small().with_linear_num_key_heads(0), "linear_num_key_heads");
    refused(small().with_linear_conv_kernel_dim(0), "linear_conv_kernel_dim");
    refused(small().with_num_attention_heads(0), "num_attention_heads");
    refused(small().with_num_key_value_heads(3), "num_key_value_heads");
    refused(small().with_partial_rotary_factor(0.0), "partial_rotary_factor");
    refused(small().with_num_experts_per_tok(5), "num_experts_per_tok");
    refused(small().with_moe_intermediate_size(0), "moe_intermediate_size");
    refused(small().with_rms_norm_eps(0.0), "rms_norm_eps");
}
