//! Mixtral and Qwen3-MoE: published folders, streaming, padding, training, bad configurations.

mod support;

use std::path::{Path, PathBuf};

use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_core::checkpoint::{PretrainedConfig, SafetensorsFile};
use gatekit_core::router::{BalanceLosses, CountNormalizer};
use gatekit_sequence::checkpoint::{NamedTensors, named_parameters};
use gatekit_sequence::lm::{CausalLm, StreamState, StreamingLm};
use gatekit_sequence::mixtral::{MixtralConfig, MixtralForCausalLm};
use gatekit_sequence::qwen3_moe::Qwen3MoeConfig;
use gatekit_sequence::{load_pretrained, save_pretrained};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::*;

fn mixtral() -> MixtralConfig {
    MixtralConfig::new(37, 16, 2)
        .with_intermediate_size(12)
        .with_num_attention_heads(4)
        .with_num_key_value_heads(2)
        .with_num_local_experts(4)
}

fn qwen3_moe() -> Qwen3MoeConfig {
    Qwen3MoeConfig::new(37, 16, 3)
        .with_intermediate_size(20)
        .with_num_attention_heads(4)
        .with_num_key_value_heads(2)
        .with_num_experts(5)
        .with_num_experts_per_tok(3)
        .with_moe_intermediate_size(7)
        .with_norm_topk_prob(true)
}

/// Models that together use every optional part. Both families are one type.
fn models(device: &Device) -> Vec<(&'static str, MixtralForCausalLm)> {
    let qwen = qwen3_moe().with_head_dim(Some(6)).with_attention_bias(true).with_mlp_only_layers(vec![1]);
    vec![
        ("mixtral", enlivened(mixtral().init(device))),
        (
            "mixtral with a window, tied",
            enlivened(mixtral().with_sliding_window(Some(3)).with_tie_word_embeddings(true).init(device)),
        ),
        ("qwen3_moe", enlivened(qwen.init(device))),
        (
            "qwen3_moe, every other layer sparse, a window",
            enlivened(
                qwen3_moe()
                    .with_decoder_sparse_step(2)
                    .with_norm_topk_prob(false)
                    .with_sliding_window(Some(4))
                    .with_use_sliding_window(true)
                    .init(device),
            ),
        ),
    ]
}

fn streamed(model: &MixtralForCausalLm, ids: &Tensor<2, Int>, pieces: &[usize]) -> Tensor<3> {
    let mut state = model.empty_state(ids.dims()[0], &ids.device());
    let (mut logits, mut start) = (Vec::new(), 0);
    for &piece in pieces {
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
    assert!(state.bytes() > 0);
    Tensor::cat(logits, 1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_splits_equal_the_whole(pieces in prop::collection::vec(1usize..9, 1..6)) {
        for device in devices() {
            for (name, model) in models(&device) {
                let ids = tokens(2, pieces.iter().sum(), &device);
                let got = values(&streamed(&model, &ids, &pieces));
                let want = values(&model.forward(ids, None));
                assert_close(&got, &want, 2e-5, &format!("{name} in {pieces:?}"));
            }
        }
    }
}

#[test]
fn padding_changes_nothing() {
    for device in devices() {
        for (name, model) in models(&device) {
            let ids = tokens(2, 9, &device);
            let mask: Vec<bool> = (0..18).map(|index| index < 9 || (12..17).contains(&index)).collect();
            let mask = Tensor::<2, Bool>::from_data(TensorData::new(mask, [2, 9]), &device);
            let logits = model.forward(ids.clone(), Some(mask));
            let full = model.forward(ids.clone().narrow(0, 0, 1), None);
            assert_close(&values(&logits.clone().narrow(0, 0, 1)), &values(&full), 2e-5, name);
            let short = model.forward(ids.narrow(0, 1, 1).narrow(1, 3, 5), None);
            let padded = logits.narrow(0, 1, 1).narrow(1, 3, 5);
            assert_close(&values(&padded), &values(&short), 2e-5, name);
        }
    }
}

#[test]
fn one_token_is_a_sequence() {
    for device in devices() {
        for (name, model) in models(&device) {
            let ids = tokens(1, 1, &device);
            let want = values(&model.forward(ids.clone(), None));
            assert_close(&values(&streamed(&model, &ids, &[1])), &want, 2e-5, name);
        }
    }
}

#[test]
fn routings_are_those_of_the_sparse_layers() {
    for device in devices() {
        let (_, model) = models(&device).remove(2);
        let ids = tokens(2, 5, &device);
        let (logits, routings) = model.forward_with_routing(ids.clone());
        assert_close(&values(&logits), &values(&model.forward(ids, None)), 1e-6, "logits");
        assert_eq!(routings.len(), 2, "layer 1 is dense");
        for routing in routings {
            assert_eq!((routing.assignment.tokens(), routing.assignment.per_token()), (10, 3));
        }
    }
}

#[test]
fn training_lowers_loss_and_imbalance() {
    let device = Device::flex().autodiff();
    device.seed(7);
    let mut model = mixtral().with_router_jitter_noise(0.05).init(&device);
    let mut optimizer = AdamConfig::new().init();
    let ids = tokens(4, 16, &device);
    let losses = |model: &MixtralForCausalLm| {
        let (logits, routings) = model.forward_with_routing(ids.clone());
        let balance = routings
            .iter()
            .map(|routing| BalanceLosses::new(routing, [4, 16], None, CountNormalizer::Tokens).load_balance)
            .reduce(|sum, loss| sum + loss)
            .expect("two sparse layers");
        (model.loss(logits, ids.clone()).expect("labels are tokens"), balance)
    };
    let first = losses(&model);
    for _ in 0..60 {
        let (loss, balance) = losses(&model);
        let gradients = GradientsParams::from_grads((loss + balance * 0.01).backward(), &model);
        model = optimizer.step(0.01, model, gradients);
    }
    let last = losses(&model);
    let number = |loss: Tensor<1>| loss.into_scalar::<f32>();
    assert!(number(last.0) < 0.3 * number(first.0));
    // 2 a layer is perfectly even.
    assert!(number(last.1) < 5.0, "balance of two layers, top-2");
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/checkpoints").join(name)
}

/// Logits as another library computed them, whole and token by token; greedy tokens; saving again.
fn check_folder<C>(name: &str)
where
    C: PretrainedConfig<Module = MixtralForCausalLm>,
{
    let folder = folder(name);
    let mut expected = SafetensorsFile::open(&folder.join("expected.safetensors")).unwrap();
    let logits = expected.read("logits").unwrap();
    let want: Vec<f32> = logits.iter::<f32>().collect();
    for device in devices() {
        let (config, model) = load_pretrained::<C>(&folder, &device).unwrap();
        let ids = Tensor::<2, Int>::from_data(expected.read("input_ids").unwrap(), &device);
        let time = ids.dims()[1];
        let whole = model.forward(ids.clone(), None);
        assert_close(&values(&whole), &want, 1e-4, "whole");
        assert_close(&values(&streamed(&model, &ids, &vec![1; time])), &want, 1e-4, "token by token");

        let generated = expected.read("generated").unwrap();
        let [_, length] = generated.shape()[..] else { panic!("generated is [batch, length]") };
        let generated: Vec<i64> = generated.iter::<i64>().collect();
        let (logits, mut state) = model.prefill(ids.clone(), model.empty_state(2, &device));
        let mut scores = logits.narrow(1, time - 1, 1).squeeze_dim::<2>(1);
        for place in time..length {
            let token = scores.argmax(1).squeeze_dim::<1>(1);
            let got: Vec<i64> = token.to_data().iter::<i64>().collect();
            assert_eq!(got, [generated[place], generated[length + place]], "{name}: token {place}");
            (scores, state) = model.step(token, state);
        }

        let saved = tempfile::tempdir().unwrap();
        save_pretrained(saved.path(), &config, &model, None).unwrap();
        let names = |folder: &Path| {
            let mut file = SafetensorsFile::open(&folder.join("model.safetensors")).unwrap();
            let names = file.names();
            names.into_iter().map(|name| (name.clone(), file.read(&name).unwrap())).collect::<NamedTensors>()
        };
        assert_eq!(names(saved.path()), names(&folder), "{name}: tensors as they were");
        let (_, again) = load_pretrained::<C>(saved.path(), &device).unwrap();
        assert_eq!(values(&again.forward(ids, None)), values(&whole));
    }
}

#[test]
fn mixtral_folder() {
    check_folder::<MixtralConfig>("mixtral-tiny");
}

#[test]
fn qwen3_moe_folder() {
    check_folder::<Qwen3MoeConfig>("qwen3-moe-tiny");
}

#[test]
fn published_names_of_layers() {
    let device = Device::flex();
    let qwen = qwen3_moe().with_mlp_only_layers(vec![0]);
    let names = qwen.layout().to_published(named_parameters(&qwen.init(&device)));
    assert!(names.contains_key("model.layers.0.mlp.gate_proj.weight"));
    assert!(names.contains_key("model.layers.1.mlp.experts.4.down_proj.weight"));
    assert!(names.contains_key("model.layers.1.self_attn.q_norm.weight"));
    let mixtral = mixtral();
    let names = mixtral.layout().to_published(named_parameters(&mixtral.init(&device)));
    assert!(names.contains_key("model.layers.1.block_sparse_moe.experts.3.w2.weight"));
    assert!(names.contains_key("model.layers.1.block_sparse_moe.gate.weight"));
}

#[test]
fn published_configurations_are_read() {
    let released = json!({
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "head_dim": 128,
        "num_experts": 128, "rope_theta": 1000000.0, "rope_scaling": null, "sliding_window": null,
        "norm_topk_prob": true, "hidden_act": "silu",
    });
    let config = Qwen3MoeConfig::from_published(&released).unwrap();
    assert_eq!((config.num_experts, config.rope_theta, config.head_dim), (128, 1e6, Some(128)));
    let newer = json!({
        "model_type": "qwen3_moe", "num_local_experts": 64, "sliding_window": 9,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
    });
    let config = Qwen3MoeConfig::from_published(&newer).unwrap();
    assert_eq!((config.num_experts, config.rope_theta), (64, 5.0));
    assert_eq!(config.attention().window_size, None, "the window does not count");
    let again = Qwen3MoeConfig::from_published(&config.to_published()).unwrap();
    assert_eq!(again.to_published(), config.to_published());

    let released = json!({
        "model_type": "mixtral", "sliding_window": 4096, "rope_theta": 1000000.0, "num_local_experts": 8,
        "router_jitter_noise": 0.1,
    });
    let config = MixtralConfig::from_published(&released).unwrap();
    assert_eq!((config.attention().window_size, config.experts().noise_epsilon), (Some(4096), 0.1));
    let again = MixtralConfig::from_published(&config.to_published()).unwrap();
    assert_eq!(again.to_published(), config.to_published());
}

#[test]
fn bad_configurations_are_refused() {
    let device = Device::flex();
    let field = |model_type: &str, changes: Value| {
        let mut json = match model_type {
            "mixtral" => mixtral().to_published(),
            _ => qwen3_moe().to_published(),
        };
        for (name, value) in changes.as_object().unwrap() {
            json[name] = value.clone();
        }
        let built = match model_type {
            "mixtral" => MixtralConfig::from_published(&json).and_then(|config| config.try_init(&device)),
            _ => Qwen3MoeConfig::from_published(&json).and_then(|config| config.try_init(&device)),
        };
        built.map(drop).unwrap_err().field
    };
    for model in ["mixtral", "qwen3_moe"] {
        for (name, value) in [
            ("model_type", json!("gpt2")),
            ("architectures", json!(["GPT2LMHeadModel"])),
            ("hidden_act", json!("gelu")),
            ("quantization_config", json!({"bits": 4})),
            ("rope_scaling", json!(7)),
            ("hidden_size", json!(0)),
            ("hidden_size", json!("wide")),
            ("num_attention_heads", json!(3)),
            ("num_key_value_heads", json!(3)),
            ("num_hidden_layers", json!(1_000_000)),
            ("rms_norm_eps", json!(-1.0)),
            ("head_dim", json!(0)),
            ("num_experts_per_tok", json!(9)),
            ("vocab_size", json!(0)),
        ] {
            let got = field(model, json!({ name: value }));
            let also = match name {
                // Heads that do not divide the width are its fault.
                "num_attention_heads" => "hidden_size",
                _ => name,
            };
            assert!(got == name || got == also, "{model}: {name} was refused as {got}");
        }
        for scaled in ["rope_scaling", "rope_parameters"] {
            let got = field(model, json!({ scaled: {"rope_type": "yarn", "factor": 4.0} }));
            assert!(got.starts_with(scaled), "{model}: {got}");
        }
    }
    assert_eq!(field("mixtral", json!({"num_local_experts": 0})), "num_local_experts");
    assert_eq!(field("mixtral", json!({"num_local_experts": 1_000_000})), "num_local_experts");
    assert_eq!(field("mixtral", json!({"intermediate_size": 0})), "intermediate_size");
    assert_eq!(field("mixtral", json!({"router_jitter_noise": -0.1})), "router_jitter_noise");
    assert_eq!(field("mixtral", json!({"sliding_window": 0})), "sliding_window");
    assert_eq!(field("qwen3_moe", json!({"num_local_experts": 4})), "num_local_experts");
    assert_eq!(field("qwen3_moe", json!({"decoder_sparse_step": 0})), "decoder_sparse_step");
    assert_eq!(field("qwen3_moe", json!({"mlp_only_layers": [3]})), "mlp_only_layers");
    assert_eq!(field("qwen3_moe", json!({"moe_intermediate_size": 0})), "moe_intermediate_size");
}
