//! What moves in which phase, and how.

use std::collections::BTreeSet;

use burn::module::Module;
use gatekit_core::checkpoint::{NamedTensors, named_parameters};
use gatekit_fusion::imagebind_llm::{CaptionBatch, Phase, PhaseConfig};

use super::*;

fn phases() -> [PhaseConfig; 2] {
    let quick = |config: PhaseConfig| {
        config.with_base_rate(0.02).with_effective_batch(256).with_epochs(4).with_warmup_epochs(1)
    };
    [quick(PhaseConfig::pretrain()), quick(PhaseConfig::finetune())]
}

fn published(config: &ImageBindLlmConfig, model: &ImageBindLlm) -> NamedTensors {
    config.tensor_layout().to_published(named_parameters(model))
}

#[test]
fn phases_move_their_own_parameters_and_learn() {
    for device in devices() {
        for phase in phases() {
            device.seed(9);
            let config = config().with_lora_rank(2).with_bias_tuning(true);
            let model = lively(&config, &device);
            let before = published(&config, &model);
            let autodiff = device.clone().autodiff();
            let pairs = [(vec![1], vec![3, 4, 2]), (vec![1, 7], vec![5, 2]), (vec![1], vec![6, 3, 4, 2])];
            let batch = CaptionBatch::new(&pairs, 16, &autodiff).unwrap();
            let feats = ramp([3, 6], 0.5, &autodiff);
            let mut trainer = phase.try_init(model, &config.tensor_layout(), 10).unwrap();
            let mut losses = Vec::new();
            for _ in 0..trainer.steps() {
                let visual = trainer.model.visual(feats.clone()).unwrap();
                let logits = trainer.model.forward(batch.tokens.clone(), Some(visual)).unwrap();
                let loss = trainer.model.loss(logits, &batch.labels).unwrap();
                losses.push(trainer.step(loss));
            }
            assert!(losses[39] < 0.9 * losses[0], "{phase:?}: {} {}", losses[0], losses[39]);
            let after = published(&config, &trainer.into_model());
            for (name, data) in &before {
                assert_eq!(*data != after[name], phase.phase.trains(name), "{name} in {:?}", phase.phase);
            }
        }
    }
}

#[test]
fn phases_choose_by_published_names() {
    let config = config().with_lora_rank(2).with_bias_tuning(true);
    let model = config.init(&Device::flex());
    let names: BTreeSet<String> = published(&config, &model).into_keys().collect();
    let of = |phase: Phase| -> Vec<&String> { names.iter().filter(|name| phase.trains(name)).collect() };
    // Projection, three blocks of a norm and three maps, two gates, the prefixes.
    assert_eq!(of(Phase::Pretrain).len(), 2 + 3 * 4 + 2 + 1);
    // Seven norms; in three layers five biases and seven deltas.
    assert_eq!(of(Phase::Finetune).len(), 7 + 3 * (5 + 14));
    assert!(of(Phase::Pretrain).iter().all(|name| !of(Phase::Finetune).contains(name)));
}

#[test]
fn biases_and_vectors_do_not_decay() {
    let device = Device::flex();
    let config = config().with_lora_rank(2).with_bias_tuning(true).with_gate_start(0.5);
    for phase in phases() {
        let mut model = lively(&config, &device);
        let ones = Tensor::<1>::ones([8], &device);
        let wo = &mut model.llama.layers[1].attention.wo.linear;
        wo.bias = wo.bias.clone().map(|bias| bias.map(|_| ones));
        let before = published(&config, &model);
        let phase = phase.with_warmup_epochs(0);
        let (rate, decay) = (phase.peak(), phase.weight_decay);
        let mut trainer = phase.try_init(model, &config.tensor_layout(), 1).unwrap();
        // A loss that is 0 whatever the parameters: only decay moves them.
        let autodiff = device.clone().autodiff();
        let visual = trainer.model.visual(ramp([1, 6], 0.1, &autodiff)).unwrap();
        let logits = trainer.model.forward(ids(&[&[1, 2]], &autodiff), Some(visual)).unwrap();
        trainer.step(logits.sum().mul_scalar(0.0));
        let after = published(&config, &trainer.into_model());
        for (name, data) in before.into_iter().filter(|(name, _)| phase.phase.trains(name)) {
            let decays = data.shape().len() > 1 && !name.ends_with("bias");
            let factor = if decays { 1.0 - rate * decay } else { 1.0 };
            for (got, want) in after[&name].iter::<f64>().zip(data.iter::<f64>()) {
                assert!((got - factor * want).abs() < 1e-6, "{name}: {got} from {want}");
            }
        }
    }
}

#[test]
fn rates_warm_up_and_fall_along_half_a_cosine() {
    let config = PhaseConfig::pretrain();
    assert_eq!((config.peak(), config.rate(0.0)), (1e-4 * 32.0 / 256.0, 0.0));
    let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-12, "{got} {want}");
    close(config.rate(2.5), 0.5 * config.peak());
    close(config.rate(5.0), config.peak());
    close(config.rate(77.5), 0.5 * config.peak());
    close(config.rate(150.0), 0.0);
    let tuning = PhaseConfig::finetune().with_min_rate(1e-6);
    close(tuning.rate(4.0), 1e-6);
    close(tuning.rate(9.0), 1e-6);
    assert_eq!((tuning.weight_decay, tuning.base_rate, tuning.betas), (0.02, 1e-3, (0.9, 0.95)));
}

#[test]
fn a_loss_that_is_no_number_moves_nothing() {
    let device = Device::flex();
    let model = lively(&config(), &device);
    let before = named_parameters(&model);
    let phase = PhaseConfig::pretrain().with_warmup_epochs(0);
    let mut trainer = phase.try_init(model, &config().tensor_layout(), 2).unwrap();
    let logits = trainer.model.forward(ids(&[&[1, 2]], &device.autodiff()), None).unwrap();
    let loss = trainer.step(logits.sum().mul_scalar(f64::NAN));
    assert!(loss.is_nan());
    assert_eq!(named_parameters(&trainer.model.valid()), before);
}

#[test]
fn text_alone_leaves_what_lies_behind_the_gates_without_a_gradient() {
    let model = lively(&config(), &Device::flex()).train();
    let tokens = ids(&[&[1, 2, 3]], &Device::flex().autodiff());
    let logits = model.forward(tokens.clone(), None).unwrap();
    let gradients = model.loss(logits, &tokens).unwrap().backward();
    assert!(model.bind.proj.weight.val().grad(&gradients).is_none());
    assert!(model.llama.output.weight.val().grad(&gradients).is_some());
}

#[test]
fn batches_hide_prompts_and_padding() {
    let device = Device::flex();
    let pairs = [(vec![1, 9], vec![4, 5, 2]), (vec![1], vec![7, 2])];
    let rows = |tensor: Tensor<2, Int>| -> Vec<i64> { tensor.into_data().iter::<i64>().collect() };
    let batch = CaptionBatch::new(&pairs, 96, &device).unwrap();
    assert_eq!(rows(batch.tokens), [1, 9, 4, 5, 2, 1, 7, 2, 0, 0]);
    assert_eq!(rows(batch.labels), [0, 0, 4, 5, 2, 0, 7, 2, 0, 0]);
    let cut = CaptionBatch::new(&pairs, 3, &device).unwrap();
    assert_eq!(rows(cut.tokens), [1, 9, 4, 1, 7, 2]);
    assert_eq!(rows(cut.labels), [0, 0, 4, 0, 7, 2]);
    let refused =
        |pairs: &[(Vec<usize>, Vec<usize>)], most| CaptionBatch::new(pairs, most, &device).unwrap_err().field;
    assert_eq!(refused(&[], 9), "pairs");
    assert_eq!(refused(&[(vec![], vec![3])], 9), "pairs");
    assert_eq!(refused(&pairs, 1), "max_tokens");
}
