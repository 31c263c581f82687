//! Experts in place of the feed-forward layers of the stacks that were published dense.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_core::attention::BiasCount;
use gatekit_core::checkpoint::{PretrainedConfig, named_parameters};
use gatekit_core::moe::{MoeLayerConfig, MoeLayout};
use gatekit_core::router::{BalanceLosses, BiasBalancer, CountNormalizer, ScoringFunc, Selection};
use gatekit_sequence::auto::AutoNetwork;
use gatekit_sequence::hybrid_linear_attention::{HybridConfig, RetentionConfig};
use gatekit_sequence::{
    AffineScaledModelConfig, AutoConfig, AutoModel, CausalLm, GamConfig, GatedAttentionModelConfig,
    GlaConfig, MambaConfig, RoutedLm, SoftmaxConfig, StreamingLm, TransNormerConfig, from_pretrained,
};

const WIDTH: usize = 16;

fn experts() -> MoeLayerConfig {
    MoeLayerConfig::new(WIDTH, 12).with_num_experts(4).with_selection_bias(Some(true))
}

/// Every stack that can have experts, with them or without.
fn stacks(moe: Option<MoeLayerConfig>) -> Vec<AutoConfig> {
    vec![
        // Shifted over the visible tokens, as otherwise later ones change earlier outputs.
        AffineScaledModelConfig::new(32, WIDTH, 2, 24)
            .with_num_heads(2)
            .with_bias_count(BiasCount::Visible)
            .with_moe(moe.clone())
            .into(),
        GatedAttentionModelConfig::new(32, WIDTH, 2, 24)
            .with_num_attention_heads(2)
            .with_moe(moe.clone())
            .into(),
        GlaConfig::new(32, WIDTH, 2)
            .with_num_heads(2)
            .with_intermediate_size(Some(24))
            .with_moe(moe.clone())
            .into(),
        HybridConfig::new(32, 2, RetentionConfig::new(WIDTH).with_num_heads(2).into())
            .with_intermediate_size(Some(24))
            .with_moe(moe.clone())
            .into(),
        SoftmaxConfig::new(32, WIDTH, 2)
            .with_num_heads(2)
            .with_intermediate_size(Some(24))
            .with_moe(moe)
            .into(),
    ]
}

fn ids(batch: usize, time: usize, device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i64> = (0..batch * time).map(|index| (index * index + 3 * index) as i64 % 32).collect();
    Tensor::from_data(TensorData::new(ids, [batch, time]), device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

#[test]
fn every_layer_routes_and_streams() {
    let device = Device::flex();
    for config in stacks(Some(experts())) {
        let name = config.name();
        let model = config.init(&device);
        let (logits, routings) = model.forward_with_routing(ids(2, 7, &device));
        assert_eq!(values(logits.clone()), values(model.forward(ids(2, 7, &device), None)), "{name}");
        assert_eq!(routings.len(), 2, "{name}");
        for routing in &routings {
            assert_eq!((routing.assignment.tokens(), routing.assignment.per_token()), (14, 2));
        }
        let (first, state) = model.prefill(ids(2, 7, &device).narrow(1, 0, 6), model.empty_state(2, &device));
        let last = ids(2, 7, &device).narrow(1, 6, 1).squeeze_dim::<1>(1);
        let (last, _) = model.step(last, state);
        let streamed = Tensor::cat(vec![first, last.unsqueeze_dim(1)], 1);
        let largest = (streamed - logits).abs().max().into_scalar::<f32>();
        assert!(largest < 2e-5, "{name}: {largest}");
    }
}

#[test]
fn folders_hold_the_experts_and_dense_ones_do_not_mention_them() {
    let device = Device::flex();
    for (layout, shared) in [(MoeLayout::Stacked, 0), (MoeLayout::Qwen3Moe, 5)] {
        let moe = experts().with_layout(layout).with_shared_intermediate_size(shared);
        for (sparse, dense) in stacks(Some(moe)).into_iter().zip(stacks(None)) {
            assert!(dense.to_published().get("moe").is_none(), "{}", dense.name());
            let model = sparse.init(&device);
            let folder = tempfile::tempdir().unwrap();
            model.save_pretrained(folder.path(), None).unwrap();
            let loaded: AutoModel = from_pretrained(folder.path(), &device).unwrap();
            assert_eq!(named_parameters(&loaded), named_parameters(&model), "{}", sparse.name());
            assert_eq!(loaded.config().to_published(), sparse.to_published());
            let names = sparse.layout().to_published(named_parameters(&model));
            let expert = match layout {
                MoeLayout::Stacked => "model.layers.1.mlp.experts.gate_up_proj",
                _ => "model.layers.1.mlp.experts.3.up_proj.weight",
            };
            assert!(names.contains_key(expert) && names.contains_key("model.layers.0.mlp.gate.weight"));
            assert_eq!(names.contains_key("model.layers.0.mlp.shared_experts.up_proj.weight"), shared > 0);
        }
    }
}

#[test]
fn experts_that_do_not_fit_are_refused_by_name() {
    let device = Device::flex();
    for (moe, field) in [
        (MoeLayerConfig::new(WIDTH + 1, 12), "moe.hidden_size"),
        (experts().with_num_experts(0), "moe.num_experts"),
        (experts().with_num_experts_per_tok(5), "moe.num_experts_per_tok"),
        (experts().with_num_experts_per_tok(0), "moe.num_experts_per_tok"),
        (experts().with_capacity_factor(Some(f64::NAN)), "moe.capacity_factor"),
        (
            MoeLayerConfig::new(WIDTH, 12)
                .with_num_experts_per_tok(1)
                .with_selection(Selection::Hash)
                .with_vocab_size(Some(32)),
            "moe.selection",
        ),
    ] {
        for config in stacks(Some(moe.clone())) {
            let error = config.try_init(&device).map(drop).expect_err("refused");
            assert_eq!(error.field, field, "{}: {error}", config.name());
        }
    }
}

/// What a program does with any model.
fn train<M: RoutedLm>(
    mut model: M,
    steps: usize,
    loss_weight: f64,
    speed: f64,
    device: &Device,
) -> (M, Vec<f32>) {
    let mut optimizer = AdamConfig::new().init();
    let (batch, mut losses) = (ids(4, 16, device), Vec::new());
    for _ in 0..steps {
        let (logits, routings) = model.forward_with_routing(batch.clone());
        let mut loss = model.loss(logits, batch.clone()).unwrap();
        losses.push(loss.clone().into_scalar::<f32>());
        for routing in &routings {
            let balance = BalanceLosses::new(routing, [4, 16], None, CountNormalizer::Tokens).load_balance;
            loss = loss + balance * loss_weight;
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(0.01, model, gradients);
        model = model.rebalance(&BiasBalancer::new(speed), &routings);
    }
    (model, losses)
}

/// Mean over layers of the busiest expert's load over the mean load.
fn imbalance<M: RoutedLm>(model: &M, device: &Device) -> f64 {
    let (_, routings) = model.forward_with_routing(ids(4, 16, device));
    let largest = routings.iter().map(|routing| {
        let counts = routing.assignment.tokens_per_expert();
        let total: usize = counts.iter().sum();
        (counts.iter().max().unwrap() * counts.len()) as f64 / total as f64
    });
    largest.sum::<f64>() / routings.len() as f64
}

#[test]
fn any_model_trains_with_balanced_experts() {
    let device = Device::flex().autodiff();
    for moe in [experts(), experts().with_scoring_func(ScoringFunc::Sigmoid)] {
        for config in stacks(Some(moe)) {
            device.seed(3);
            let model = config.init(&device);
            let (model, losses) = train(model, 40, 0.02, 0.01, &device);
            assert!(losses[39] < 0.8 * losses[0], "{}: {losses:?}", config.name());
            let after = imbalance(&model, &device);
            assert!(after < 1.6, "{}: busiest expert {after}", config.name());
            let bias = named_parameters(&model).remove("model.layers.1.mlp.gate.e_score_correction_bias");
            let bias: Vec<f32> = bias.expect("a bias").iter::<f32>().collect();
            assert!(bias.iter().any(|bias| *bias != 0.0), "{}", config.name());
        }
    }
}

#[test]
fn models_without_experts_report_none() {
    let device = Device::flex();
    let dense: Vec<AutoConfig> = vec![
        GamConfig::new(32, WIDTH, 1).with_block_size(16).with_num_memory_slots(4).into(),
        MambaConfig::new(32, WIDTH, 1).into(),
        TransNormerConfig::new(32, WIDTH, 1).with_num_heads(2).with_glu_dim(16).into(),
        GlaConfig::new(32, WIDTH, 1).with_num_heads(2).with_intermediate_size(Some(24)).into(),
    ];
    for config in dense {
        let model = config.init(&device);
        let (logits, routings) = model.forward_with_routing(ids(1, 5, &device));
        assert_eq!(values(logits), values(model.forward(ids(1, 5, &device), None)), "{}", config.name());
        assert!(routings.is_empty());
        let before = named_parameters(&model);
        let model = model.rebalance(&BiasBalancer::new(1.0), &routings);
        assert_eq!(named_parameters(&model), before);
        if let AutoNetwork::Gla(model) = model.network() {
            let mlp = &model.model.layers[0].mlp;
            assert!(mlp.dense().is_some() && mlp.sparse().is_none());
        }
    }
}

#[test]
#[should_panic(expected = "routings for a model without sparse layers")]
fn routings_of_another_model_are_refused() {
    let device = Device::flex();
    let sparse = stacks(Some(experts())).remove(2).init(&device);
    let (_, routings) = sparse.forward_with_routing(ids(1, 5, &device));
    let dense = AutoConfig::from(MambaConfig::new(32, WIDTH, 1)).init(&device);
    let _ = dense.rebalance(&BiasBalancer::new(0.1), &routings);
}
