//! What is refused: layers, registrations, gradients.

use burn::optim::Optimizer;
use gatekit_experts::sqrtgate::{
    AdamHConfig, Guarded, MuonHConfig, SkippedGradient, SphereGroup, SphereOptimizerConfig,
};

use super::optimizer::{config, optimizer};
use super::*;

#[test]
fn unusable_layers_name_the_field() {
    let device = Device::flex();
    let base = || SqrtGateConfig::new(6).with_intermediate_size(Some(12)).with_sparsity(3).with_top_k(3);
    for (field, config) in [
        ("hidden_size", SqrtGateConfig::new(0)),
        ("intermediate_size", base().with_intermediate_size(Some(0))),
        ("sparsity", base().with_sparsity(0)),
        ("sparsity", base().with_sparsity(1 << 20)),
        ("top_k", base().with_top_k(0)),
        ("top_k", base().with_top_k(13)),
        ("share_expert", base().with_top_k(1)),
        ("logit_scale", base().with_logit_scale(0.0)),
        ("logit_scale", base().with_logit_scale(f64::NAN)),
        ("aux_gamma", base().with_aux_gamma(-0.1)),
        ("aux_gamma", base().with_aux_gamma(f64::INFINITY)),
    ] {
        let error = config.try_init(&device).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
    // 4 D is the default width, and K may divide it with a rest.
    assert_eq!(SqrtGateConfig::new(6).with_top_k(5).expert_width(), 4);
    assert_eq!(base().routed(), [8, 2]);
    assert_eq!(base().with_share_expert(false).routed(), [9, 3]);
}

#[test]
fn unusable_optimisers_name_the_field() {
    for (field, config) in [
        ("momentum", MuonHConfig::new().with_momentum(1.0)),
        ("weight_decay", MuonHConfig::new().with_weight_decay(-1.0)),
        ("epsilon", MuonHConfig::new().with_epsilon(0.0)),
    ] {
        assert_eq!(config.check().unwrap_err().field, field);
    }
    assert_eq!(AdamHConfig::new().with_beta1(1.0).check().unwrap_err().field, "beta1");
    assert_eq!(AdamHConfig::new().with_beta2(-0.1).check().unwrap_err().field, "beta2");
    let model = Model::new(&Device::flex());
    let refused = |config: SphereOptimizerConfig| config.try_init(&model).err().unwrap().field;
    assert_eq!(refused(config().with_muon_h(MuonHConfig::new().with_momentum(2.0))), "muon_h.momentum");
    assert_eq!(refused(config().with_adam_h(AdamHConfig::new().with_epsilon(-1.0))), "adam_h.epsilon");
    assert_eq!(refused(config().with_adam_betas((0.9, 1.0))), "adam_betas");
    assert_eq!(refused(config().with_adam_epsilon(0.0)), "adam.epsilon");
}

#[test]
fn a_weight_of_zeros_is_refused_at_registration() {
    let device = Device::flex();
    let mut model = Model::new(&device);
    model.head.weight = model.head.weight.map(|weight| weight.zeros_like().require_grad());
    let error = config().try_init(&model).err().unwrap();
    assert_eq!(error.field, "head.weight");
    assert!(error.to_string().contains("zero has no sphere"), "{error}");

    let mut model = Model::new(&device);
    let stack = model.moe.experts.down_proj.val().inner();
    let [_, rows, columns] = stack.dims();
    let stack = stack.slice_assign([1..2, 0..rows, 0..columns], Tensor::zeros([1, rows, columns], &device));
    model.moe.experts.down_proj = Param::from_tensor(Tensor::from_inner(stack).require_grad());
    let error = config().try_init(&model).err().unwrap();
    assert_eq!(error.field, "moe.experts.down_proj");
    assert!(error.to_string().contains("matrix 1 of 3"), "{error}");
    // On one sphere the stack as a whole has a direction.
    assert!(config().with_muon_h(MuonHConfig::new().with_per_matrix(false)).try_init(&model).is_ok());
}

#[test]
fn a_parameter_in_two_groups_is_refused() {
    let model = Model::new(&Device::flex());
    let twice = config().with_embeddings(vec!["embed".into(), "head.weight".into()]);
    let error = twice.try_init(&model).err().unwrap();
    assert_eq!(error.field, "head.weight");
    assert!(error.to_string().contains("one group"), "{error}");

    // One parameter under two paths.
    #[derive(Module, Debug)]
    struct Tied {
        embed: Embedding,
        head: Embedding,
    }
    let tied = Tied { embed: model.embed.clone(), head: model.embed.clone() };
    let error = config().try_init(&tied).err().unwrap();
    assert_eq!(error.field, "head.weight");
    assert!(error.to_string().contains("`embed.weight`"), "{error}");
    let together = SphereOptimizerConfig::new().with_embeddings(vec!["embed".into(), "head".into()]);
    let registered = together.try_init(&tied).unwrap();
    assert_eq!(registered.group("embed.weight"), Some(SphereGroup::Adam));
}

#[test]
fn names_of_nothing_and_vectors_on_spheres_are_refused() {
    let model = Model::new(&Device::flex());
    let refused = |config: SphereOptimizerConfig| config.try_init(&model).err().unwrap();
    assert_eq!(refused(config().with_heads(vec!["hea".into()])).field, "heads");
    assert_eq!(refused(config().with_matrices(vec!["moe.gate".into()])).field, "matrices");
    assert_eq!(refused(config().with_embeddings(vec![String::new()])).field, "embeddings");
    let error = refused(config().with_matrices(vec!["norm".into()]));
    assert_eq!(error.field, "norm.weight");
    assert!(error.to_string().contains("a matrix"), "{error}");
}

fn spoiled(model: &Model, value: f64) -> GradientsParams {
    let mut gradients = model.gradients();
    let id = model.moe.experts.down_proj.id;
    let gradient = gradients.remove::<3>(id).unwrap();
    let device = gradient.device();
    let bad = Tensor::<3>::full([1, 1, 1], value, &device);
    gradients.register(id, gradient.slice_assign([0..1, 0..1, 0..1], bad));
    gradients
}

#[test]
fn no_step_is_taken_for_a_gradient_that_is_not_finite() {
    for device in devices() {
        for value in [f64::NAN, f64::INFINITY] {
            let model = Model::new(&device);
            let mut optimizer = optimizer(&model);
            let before = (values(model.head.weight.val()), values(model.embed.weight.val()));
            let gradients = spoiled(&model, value);
            let (model, skipped) = optimizer.step(0.1, model, gradients).unwrap();
            assert_eq!((values(model.head.weight.val()), values(model.embed.weight.val())), before);
            let at_fault =
                SkippedGradient { parameter: "moe.experts.down_proj".into(), shape: vec![3, 6, 4] };
            assert_eq!(skipped, std::slice::from_ref(&at_fault));
            assert!(at_fault.to_string().contains("`moe.experts.down_proj` [3, 6, 4]"));
            assert!(optimizer.to_record().is_empty(), "nor has the state moved");

            // In the hands of a learner it skips that parameter alone, and reports it.
            let report = optimizer.skipped();
            let mut learner = optimizer.into_module_optimizer();
            let experts = values(model.moe.experts.down_proj.val());
            let gradients = spoiled(&model, value);
            let model = learner.step(0.1, model, gradients);
            assert_eq!(values(model.moe.experts.down_proj.val()), experts);
            assert_ne!(values(model.head.weight.val()), before.0);
            assert_eq!(report.count(), 1);
            assert_eq!(report.take(), [at_fault]);
            assert_eq!(report.count(), 0);
        }
    }
}

#[test]
fn a_gradient_of_another_shape_is_named() {
    let model = Model::new(&Device::flex());
    let mut optimizer = optimizer(&model);
    let mut gradients = model.gradients();
    let id = model.head.weight.id;
    let gradient = gradients.remove::<2>(id).unwrap();
    gradients.register(id, gradient.transpose());
    let error = optimizer.step(0.1, model, gradients).err().unwrap();
    assert_eq!(error.field, "gradient of `head.weight`");
    assert!(error.to_string().contains("[7, 6]") && error.to_string().contains("[6, 7]"), "{error}");
}

#[test]
fn a_guard_keeps_parameter_and_state() {
    let device = Device::flex();
    let guarded = Guarded::new(MuonHConfig::new().build());
    let weight = wave([2, 3], 1.0, &device);
    let (moved, state) = guarded.step(0.1, weight.clone(), wave([2, 3], -1.0, &device), None);
    assert_ne!(values(moved.clone()), values(weight));
    let momentum = values(state.as_ref().unwrap().momentum.clone());
    let bad = Tensor::full([2, 3], f64::NAN, &device);
    let (same, state) = guarded.step(0.1, moved.clone(), bad, state);
    assert_eq!(values(same), values(moved));
    assert_eq!(values(state.unwrap().momentum), momentum);
    assert_eq!(guarded.skipped().take()[0].shape, [2, 3]);
}

#[test]
#[should_panic(expected = "SqrtGateMoe: `x` [2, 5] does not have 6 channels")]
fn another_width_panics() {
    let device = Device::flex();
    SqrtGateConfig::new(6).init(&device).forward(Tensor::<2>::zeros([2, 5], &device));
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "NaN")]
fn a_nan_score_panics_in_debug_builds() {
    let device = Device::flex();
    SqrtGateConfig::new(6).init(&device).forward(Tensor::<2>::full([2, 6], f64::NAN, &device));
}
