//! What describes no module, fits no module or cannot be run is refused by name.

use burn::nn::LinearConfig;
use burn::tensor::Tensor;
use gatekit_core::checkpoint::{load_tensors, named_parameters};
use gatekit_core::router::Phase;
use gatekit_core::{ConfigError, ModuleConfig};
use gatekit_experts::acm::{
    Acm, AcmActivation, AcmBias, AcmBlockConfig, AcmConfig, AcmGateConfig, AcmLearners, AcmLearnersConfig,
    AcmMode, AcmObjective, Acmize, AcmizeConfig, DenseBlockConfig, compute_share, distillation_loss,
    gate_pretraining_loss, stack_gates,
};

use super::{choice, devices, waves};

#[test]
fn configurations_of_no_module_are_refused() {
    let device = &devices()[1];
    let config = || AcmConfig::new(6, 3);
    let field = |config: AcmConfig| config.try_init(device).unwrap_err().field;
    assert_eq!(field(config().with_num_blocks(0)), "num_blocks");
    assert_eq!(field(AcmConfig::new(6, 0)), "block_dim");
    assert_eq!(field(AcmConfig::new(0, 3)), "hidden_dim");
    assert_eq!(field(AcmConfig::new(6, usize::MAX)), "block_dim");
    assert_eq!(field(AcmConfig::new(6, 1 << 20).with_num_blocks(1 << 20)), "num_blocks * block_dim");
    assert_eq!(field(config().with_gate_depth(0)), "gate_depth");
    assert_eq!(field(config().with_gate_depth(1 << 19)), "gate_depth");
    assert_eq!(field(config().with_gating_hidden_dim(0)), "gating_hidden_dim");
    for tau in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(field(config().with_gs_tau(tau)), "gs_tau");
        assert_eq!(field(config().with_gs_tau(tau).with_gated(false)), "gs_tau");
    }
    let error = config().with_min_choice(5).try_init(device).unwrap_err();
    assert_eq!((error.field.as_str(), error.got.as_str()), ("min_choice", "5"));
    assert!(config().with_min_choice(4).try_init(device).is_ok());

    let block = || AcmBlockConfig::new(8, 2, 4).with_num_heads(2);
    let field = |config: AcmBlockConfig| config.try_init(device).unwrap_err().field;
    assert_eq!(field(block().with_num_heads(3)), "num_heads");
    assert_eq!(field(block().with_num_heads(0)), "num_heads");
    assert_eq!(field(block().with_layer_norm_eps(0.0)), "layer_norm_eps");
    assert_eq!(field(block().with_attention_min_choice(9)), "attention_min_choice");
    assert_eq!(field(block().with_ffn_min_choice(9)), "ffn_min_choice");
    assert_eq!(field(AcmBlockConfig::new(8, 0, 4).with_num_heads(2)), "attention_block_dim");
    assert_eq!(field(AcmBlockConfig::new(8, 2, 0).with_num_heads(2)), "ffn_block_dim");
    let dense = DenseBlockConfig::new(8, 16).with_num_heads(5);
    assert_eq!(dense.try_init(device).unwrap_err().field, "num_heads");

    for target in [-0.1, 1.1, f64::NAN] {
        assert_eq!(AcmObjective::new(target).check().unwrap_err().field, "budget_target");
    }
    let weight = AcmObjective::new(0.5).with_entropy_weight(f64::NAN);
    assert_eq!(weight.check().unwrap_err().field, "entropy_weight");
    assert!(AcmObjective::new(0.0).check().is_ok() && AcmObjective::new(1.0).check().is_ok());

    let wide: Result<Acm, ConfigError> =
        LinearConfig::new(4, 6).init(device).acmize(&AcmizeConfig::new(), device);
    assert_eq!(wide.unwrap_err().field, "d_output");
    let none = LinearConfig::new(4, 4).init(device).acmize(&AcmizeConfig::new().with_num_blocks(0), device);
    assert_eq!(none.unwrap_err().field, "num_blocks");
}

#[test]
fn words_are_read_as_published() {
    let config =
        AcmLearnersConfig::new(6, 3).with_bias(AcmBias::OutOnly).with_activation(AcmActivation::Identity);
    let json = serde_json::to_value(&config).unwrap();
    assert_eq!((json["bias"].as_str(), json["activation"].as_str()), (Some("out_only"), Some("identity")));
    for word in ["sometimes", "hidden-only", ""] {
        let mut json = json.clone();
        json["bias"] = word.into();
        assert!(serde_json::from_value::<AcmLearnersConfig>(json).is_err(), "{word}");
    }
}

#[test]
fn tensors_that_contradict_one_another_are_refused() {
    for device in devices() {
        let (d, blocks, b) = (4, 3, 2);
        let matrix = |rows, columns| Tensor::<2>::zeros([rows, columns], &device);
        let vector = |length| Some(Tensor::<1>::zeros([length], &device));
        let build = |w1: [usize; 2], b1: Option<usize>, w2: [usize; 2], b2: Option<usize>, bias| {
            let of = |length: Option<usize>| length.and_then(vector);
            let first = (matrix(w1[0], w1[1]), of(b1));
            let second = (matrix(w2[0], w2[1]), of(b2));
            AcmLearners::from_tensors(first, second, blocks, bias, AcmActivation::Gelu)
        };
        let (w1, w2, inner, out) =
            ([d, blocks * b], [blocks * b, d], Some(blocks * b), Some((blocks + 1) * d));
        let learners = build(w1, inner, w2, out, AcmBias::Both).unwrap();
        assert_eq!((learners.hidden_dim(), learners.num_blocks(), learners.block_dim()), (d, blocks, b));
        assert_eq!(learners.bias(), AcmBias::Both);
        let field = |result: Result<AcmLearners, gatekit_core::InputError>| result.unwrap_err().field;
        assert_eq!(field(build([d, 7], None, [7, d], None, AcmBias::None)), "num_blocks");
        assert_eq!(field(build(w1, None, [8, d], None, AcmBias::None)), "w2");
        assert_eq!(field(build(w1, None, [6, 5], None, AcmBias::None)), "w2");
        assert_eq!(field(build(w1, Some(5), w2, None, AcmBias::HiddenOnly)), "b1");
        assert_eq!(field(build(w1, inner, w2, Some(blocks * d), AcmBias::Both)), "b2");
        // The word for the biases against what is there.
        assert_eq!(field(build(w1, inner, w2, None, AcmBias::None)), "b1");
        assert_eq!(field(build(w1, None, w2, None, AcmBias::HiddenOnly)), "b1");
        assert_eq!(field(build(w1, inner, w2, out, AcmBias::HiddenOnly)), "b2");
        assert_eq!(field(build(w1, None, w2, None, AcmBias::OutOnly)), "b2");
    }
}

#[test]
fn checkpoints_of_another_module_are_refused() {
    let device = &devices()[1];
    let config = |bias| AcmLearnersConfig::new(4, 2).with_num_blocks(3).with_bias(bias);
    let saved = |bias| named_parameters(&config(bias).init(device));
    let load = |bias, tensors| load_tensors(config(bias).init(device), tensors);
    assert!(load(AcmBias::Both, saved(AcmBias::Both)).is_ok());
    let error = load(AcmBias::HiddenOnly, saved(AcmBias::Both)).unwrap_err().to_string();
    assert!(error.contains("b2"), "{error}");
    let error = load(AcmBias::Both, saved(AcmBias::HiddenOnly)).unwrap_err().to_string();
    assert!(error.contains("b2"), "{error}");
    let wide = named_parameters(&AcmLearnersConfig::new(4, 3).with_num_blocks(3).init(device));
    assert!(load(AcmBias::HiddenOnly, wide).is_err());
}

#[test]
fn calls_that_cannot_be_answered_are_refused() {
    for device in devices() {
        let acm: Acm = AcmConfig::new(6, 3).init(&device);
        let x = waves([2, 3, 6], 0.2, &device);
        let error = acm.forward(x.clone(), AcmMode::Fixed(5)).unwrap_err();
        assert_eq!(
            (error.field.as_str(), error.got.as_str(), error.need.as_str()),
            ("k", "5", "at most the 4 learners")
        );
        let bare: Acm = AcmConfig::new(6, 3).with_gated(false).init(&device);
        assert_eq!(bare.forward(x.clone(), AcmMode::Gated).unwrap_err().field, "mode");
        assert!(bare.forward(x.clone(), AcmMode::All).is_ok());
        let missing = acm.forward_with(x.clone(), AcmMode::Gated, None, Phase::Training).unwrap_err();
        assert_eq!((missing.field.as_str(), missing.got.as_str()), ("gumbel", "none"));
        let noise = Some(Tensor::zeros([2, 3, 4], &device));
        let wrong = acm.forward_with(x.clone(), AcmMode::Gated, noise, Phase::Training).unwrap_err();
        assert_eq!((wrong.field.as_str(), wrong.got.as_str()), ("gumbel", "[2, 3, 4]"));
        for (values, shape) in [(vec![5; 6], [2, 3]), (vec![-1; 6], [2, 3]), (vec![1; 4], [2, 2])] {
            let given = acm.forward_given(x.clone(), choice(&values, shape, &device));
            assert_eq!(given.unwrap_err().field, "choice");
        }
        let gate = AcmGateConfig::new(5);
        assert_eq!(bare.add_gate(&gate).unwrap_err().field, "hidden_dim");
    }
}

#[test]
fn losses_over_modules_that_do_not_match_are_refused() {
    for device in devices() {
        let gate = |learners: usize| Tensor::<3>::ones([2, 3, learners + 1], &device);
        let error = stack_gates(&[gate(4), gate(3)]).unwrap_err();
        assert!(error.need.contains("equal tokens and learners"), "{error}");
        assert_eq!(stack_gates(&[]).unwrap_err().field, "gates");
        let gates = stack_gates(&[gate(4), gate(4)]).unwrap();
        for costs in [&[1.0][..], &[0.0, 0.0], &[1.0, -1.0], &[f64::NAN, 1.0], &[f64::INFINITY, 1.0]] {
            assert_eq!(compute_share(gates.clone(), costs).unwrap_err().field, "costs");
        }
        let task = Tensor::<1>::zeros([1], &device);
        let target = AcmObjective::new(2.0).losses(task, gates, &[1.0, 1.0]).unwrap_err();
        assert_eq!(target.field, "budget_target");
        let acm: Acm = AcmConfig::new(6, 3).init(&device);
        assert_eq!(distillation_loss(&[&acm], &[]).unwrap_err().field, "records");
        assert_eq!(distillation_loss(&[], &[]).unwrap_err().field, "records");
        let factor = gate_pretraining_loss(&[&acm], &[], f64::NAN, Phase::Training).unwrap_err();
        assert_eq!(factor.field, "gating_error_factor");
    }
}

#[test]
#[should_panic(expected = "`x` [1, 2, 5] needs 6 channels")]
fn another_width_panics() {
    let device = &devices()[1];
    let acm: Acm = AcmConfig::new(6, 3).init(device);
    let _ = acm.forward(Tensor::zeros([1, 2, 5], device), AcmMode::All);
}
