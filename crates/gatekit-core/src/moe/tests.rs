//! The layer against its definition, in training and inference, and under published names.

use burn::module::{Module, Param};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{DType, Device, Tensor, TensorData};
use serde_json::json;

use super::*;
use crate::checkpoint::{
    NamedTensors, TensorLayout, TensorProblem, config_from_json, load_tensors, named_parameters,
};
use crate::config::ModuleConfig;
use crate::router::{Phase, RouterInputs, RouterNoise, ScoringFunc, SecondExpertPolicy, Selection};
use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

const LAYOUTS: [MoeLayout; 5] =
    [MoeLayout::Stacked, MoeLayout::Mixtral, MoeLayout::Qwen3Moe, MoeLayout::Qwen2Moe, MoeLayout::DeepseekV3];

fn config() -> MoeLayerConfig {
    MoeLayerConfig::new(6, 5).with_num_experts(4)
}

/// Every parameter by formula, in the element type given.
fn filled(config: &MoeLayerConfig, device: &Device, dtype: DType) -> MoeLayer {
    let layer = config.init(device);
    let tensors = named_parameters(&layer).into_iter().map(|(name, data)| {
        let values = ramp(data.shape().num_elements(), 0.4 + 0.01 * name.len() as f64);
        let shape = data.shape().to_vec();
        (name, TensorData::new(values, shape).convert_dtype(dtype))
    });
    let tensors: NamedTensors = tensors.collect();
    load_tensors(layer, tensors).unwrap()
}

/// Every token through its experts, one after the other.
fn by_definition(layer: &MoeLayer, x: Tensor<2>) -> Vec<f64> {
    let routing = layer.gate.route(x.clone(), &RouterInputs::default(), Phase::Inference).unwrap();
    let k = routing.assignment.per_token();
    let mut all = Vec::new();
    for token in 0..x.dims()[0] {
        let row = x.clone().narrow(0, token, 1);
        let mut y = row.zeros_like();
        for choice in 0..k {
            let expert = routing.assignment.experts()[token * k + choice];
            let weight = routing.weights.clone().narrow(0, token, 1).narrow(1, choice, 1);
            y = y + layer.experts.forward_expert(row.clone(), expert) * weight;
        }
        if let Some(shared) = &layer.shared_expert {
            y = y + shared.forward(row);
        }
        all.extend(values(y));
    }
    all
}

fn variants() -> Vec<MoeLayerConfig> {
    vec![
        config(),
        config().with_num_experts_per_tok(1).with_norm_topk_prob(false),
        config().with_num_experts_per_tok(4),
        config().with_shared_intermediate_size(3).with_shared_expert_gate(true),
        config()
            .with_scoring_func(ScoringFunc::Sigmoid)
            .with_n_group(2)
            .with_routed_scaling_factor(2.5)
            .with_shared_intermediate_size(7)
            .with_layout(MoeLayout::DeepseekV3),
    ]
}

#[test]
fn many_tokens_and_one_match_the_definition() {
    for device in devices() {
        for config in variants() {
            let layer = filled(&config, &device, DType::F32);
            let x = float32(&ramp(7 * 6, 1.0), [7, 6], &device);
            let want = by_definition(&layer, x.clone());
            assert_close(&values(layer.forward(x.clone())), &want, 1e-5);
            let batch = x.clone().unsqueeze_dim::<3>(0);
            assert_close(&values(layer.forward(batch)), &want, 1e-5);
            for token in 0..7 {
                let one = layer.forward(x.clone().narrow(0, token, 1));
                assert_close(&values(one), &want[token * 6..(token + 1) * 6], 1e-5);
            }
            let none = layer.forward_with_routing(Tensor::<3>::zeros([2, 0, 6], &device));
            assert_eq!((none.0.dims(), none.1.weights.dims()[0]), ([2, 0, 6], 0));
        }
    }
}

#[test]
fn half_precision_stays_close() {
    for device in devices().into_iter().filter(|device| device.supports_dtype(DType::F16)) {
        let layer = filled(&config(), &device, DType::F32);
        let half = filled(&config(), &device, DType::F16);
        let x = float32(&ramp(30, 1.0), [5, 6], &device);
        let y = half.forward(x.clone().cast(DType::F16));
        assert_eq!(y.dtype(), DType::F16);
        assert_close(&values(y), &values(layer.forward(x)), 5e-3);
    }
}

#[test]
fn gradients_match_finite_differences() {
    let device = devices().remove(0);
    for config in variants() {
        for tokens in [1, 3] {
            check_gradients(&ramp(tokens * 6, 1.0), [tokens, 6], &device, |x| {
                let layer = filled(&config, &x.device(), DType::F64);
                layer.forward(x.clone()) * float64(&ramp(tokens * 6, 1.3), [tokens, 6], &x.device())
            });
        }
    }
}

#[test]
fn experts_overflow_in_training_alone() {
    for device in devices() {
        let config = config().with_num_experts_per_tok(1).with_capacity_factor(Some(0.5));
        let mut layer = filled(&config, &device, DType::F32);
        // Every token has the same first expert, which takes ceil(0.5 * 8 / 4) = 1 of them.
        let crate::router::Router::Learned(router) = &mut layer.gate else { panic!("it is learned") };
        router.weight = Param::from_tensor(Tensor::zeros([4, 6], &device));
        let x = float32(&ramp(8 * 6, 1.0), [8, 6], &device);
        let run = |phase| layer.forward_with(x.clone(), &RouterInputs::default(), phase).unwrap();
        let (y, routing) = run(Phase::Training);
        assert_eq!(routing.assignment.kept(), [true, false, false, false, false, false, false, false]);
        assert!(values(y.clone())[..6].iter().all(|y| y.abs() > 0.0));
        assert_eq!(values(y)[6..], [0.0; 42]);
        let (y, routing) = run(Phase::Inference);
        assert_eq!(routing.assignment.kept(), [true; 8]);
        assert_close(&values(y), &by_definition(&layer, x.clone()), 1e-5);
        // The device says which phase it is.
        let inference = layer.forward_with_routing(x.clone()).1;
        assert_eq!(inference.assignment.dropped_share(), 0.0);
        let training = layer.train().forward_with_routing(x.clone().autodiff()).1;
        assert_eq!(training.assignment.dropped_share(), 0.875);
    }
}

#[test]
fn hash_layers_need_ids() {
    for device in devices() {
        let config =
            config().with_num_experts_per_tok(1).with_selection(Selection::Hash).with_vocab_size(Some(9));
        let layer = filled(&config, &device, DType::F32);
        let x = float32(&ramp(12, 1.0), [2, 6], &device);
        let ids = Tensor::from_data(TensorData::from([8i64, 3]), &device);
        let inputs = RouterInputs { token_ids: Some(ids), ..RouterInputs::default() };
        let (y, _) = layer.forward_with(x.clone(), &inputs, Phase::Inference).unwrap();
        let row = |token, expert| values(layer.experts.forward_expert(x.clone().narrow(0, token, 1), expert));
        assert_close(&values(y), &[row(0, 0), row(1, 3)].concat(), 1e-5);
        let missing = layer.forward_with(x.clone(), &RouterInputs::default(), Phase::Inference);
        assert_eq!(missing.unwrap_err().field, "token_ids");
    }
}

/// Names under which a layer of one expert is published.
fn names(config: &MoeLayerConfig) -> Vec<String> {
    let layer = config.init(&devices().remove(0));
    let layout = config.tensor_layout(TensorLayout::default(), "");
    layout.to_published(named_parameters(&layer)).into_keys().collect()
}

#[test]
fn names_are_those_of_the_published_models() {
    let with_shared = |layout| {
        let gated = layout == MoeLayout::Qwen2Moe;
        let shared = usize::from(matches!(layout, MoeLayout::Qwen2Moe | MoeLayout::DeepseekV3));
        config()
            .with_num_experts(1)
            .with_num_experts_per_tok(1)
            .with_shared_intermediate_size(3 * shared)
            .with_shared_expert_gate(gated)
            .with_layout(layout)
    };
    let prefixed = |prefix: &str| {
        ["down_proj", "gate_proj", "up_proj"].map(|part| format!("{prefix}.{part}.weight")).to_vec()
    };
    let one = |name: &str| vec![name.to_string()];
    let want = [
        [one("experts.down_proj"), one("experts.gate_up_proj"), one("gate.weight")].concat(),
        [["w1", "w2", "w3"].map(|part| format!("experts.0.{part}.weight")).to_vec(), one("gate.weight")]
            .concat(),
        [prefixed("experts.0"), one("gate.weight")].concat(),
        [
            prefixed("experts.0"),
            one("gate.weight"),
            prefixed("shared_expert"),
            one("shared_expert_gate.weight"),
        ]
        .concat(),
        [
            prefixed("experts.0"),
            one("gate.e_score_correction_bias"),
            one("gate.weight"),
            prefixed("shared_experts"),
        ]
        .concat(),
    ];
    for (layout, want) in LAYOUTS.into_iter().zip(want) {
        assert_eq!(names(&with_shared(layout)), want, "{layout:?}");
    }
    let noisy = config().with_noise(RouterNoise::Gaussian).with_router_bias(true);
    let more = ["experts.down_proj", "experts.gate_up_proj", "gate.bias", "gate.weight", "w_noise.weight"];
    assert_eq!(names(&noisy), more);
}

#[test]
fn published_tensors_come_back_and_bad_ones_are_named() {
    let device = devices().remove(0);
    for layout in LAYOUTS {
        let config = config().with_layout(layout).with_shared_intermediate_size(3);
        let rules = config.tensor_layout(TensorLayout::default(), "");
        let layer = filled(&config, &device, DType::F32);
        let published = rules.to_published(named_parameters(&layer));
        let loaded = rules.to_module(&layer, published.clone()).unwrap();
        assert_eq!(loaded, named_parameters(&layer), "{layout:?}");
        let part = match layout {
            MoeLayout::Stacked => continue,
            MoeLayout::Mixtral => "w3",
            _ => "up_proj",
        };
        let name = format!("experts.2.{part}.weight");
        let mut missing = published.clone();
        missing.remove(&name);
        let error = rules.to_module(&layer, missing).unwrap_err();
        assert_eq!((error.tensor, error.problem), (name.clone(), TensorProblem::Missing));
        let mut unequal = published.clone();
        unequal.insert(name.clone(), TensorData::new(vec![0.0f32; 24], [4, 6]));
        let error = rules.to_module(&layer, unequal).unwrap_err();
        assert_eq!(error.tensor, name);
        assert!(matches!(error.problem, TensorProblem::Shape { .. }));
    }
}

#[test]
fn the_selection_bias_is_saved_and_not_trained() {
    for device in devices() {
        let device = device.autodiff();
        let config = config().with_layout(MoeLayout::DeepseekV3).with_scoring_func(ScoringFunc::Sigmoid);
        let layer = filled(&config, &device, DType::F32);
        let name = "gate.e_score_correction_bias";
        let before = named_parameters(&layer);
        let x = float32(&ramp(30, 1.0), [5, 6], &device);
        let (y, routing) = layer.forward_with_routing(x);
        let gradients = GradientsParams::from_grads(y.square().sum().backward(), &layer);
        let mut layer = SgdConfig::new().init().step(0.1, layer, gradients);
        let after = named_parameters(&layer);
        assert_eq!(before[name], after[name]);
        assert_ne!(before["gate.weight"], after["gate.weight"]);
        let load = routing.assignment.tokens_per_expert();
        layer.gate.rebalance(&config.balancer(), &load);
        let moved = named_parameters(&layer);
        let (old, new): (Vec<f64>, Vec<f64>) =
            (after[name].iter::<f64>().collect(), moved[name].iter::<f64>().collect());
        let signs = load.iter().map(|count| (10.0 - 4.0 * *count as f64).signum() * 0.001);
        let want: Vec<f64> = old.iter().zip(signs).map(|(old, step)| old + step).collect();
        assert_close(&new, &want, 1e-7);
    }
}

#[test]
fn refuses_bad_configurations() {
    let device = devices().remove(0);
    let bad = [
        (config().with_num_experts_per_tok(5), "num_experts_per_tok"),
        (MoeLayerConfig::new(0, 5), "hidden_size"),
        (MoeLayerConfig::new(6, 0), "moe_intermediate_size"),
        (config().with_capacity_factor(Some(0.0)), "capacity_factor"),
        (config().with_capacity_factor(Some(f64::NAN)), "capacity_factor"),
        (config().with_bias_update_speed(-1.0), "bias_update_speed"),
        (config().with_shared_expert_gate(true), "shared_expert_gate"),
        (
            config().with_num_experts_per_tok(3).with_second_expert_policy(SecondExpertPolicy::Random),
            "second_expert_policy",
        ),
    ];
    for (config, field) in bad {
        assert_eq!(config.try_init(&device).map(drop).unwrap_err().field, field, "{config:?}");
    }
    for (field, value) in [
        ("layout", json!("gpt")),
        ("scoring_func", json!("relu")),
        ("selection", json!("guess")),
        ("capacity_factor", json!("all")),
    ] {
        let error = config_from_json(&config(), &json!({ field: value })).unwrap_err();
        assert_eq!(error.field, field);
    }
    let read = config_from_json(&config(), &json!({ "layout": "deepseek_v3" })).unwrap();
    assert_eq!(read.layout, MoeLayout::DeepseekV3);
}

#[test]
#[should_panic(expected = "has 5 channels in its last axis, the module 6")]
fn wrong_width_panics() {
    let device = devices().remove(0);
    config().init(&device).forward(Tensor::<2>::zeros([2, 5], &device));
}
