//! The optimiser.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use gatekit_core::ModuleConfig;
use gatekit_sequence::checkpoint::{NamedTensors, named_parameters};
use gatekit_sequence::lm::CausalLm;
use gatekit_sequence::mixture_of_value_embeddings::*;

use super::{lively_text, small, texts};

fn loss(model: &MoveTextModel, device: &Device) -> Tensor<1> {
    let ids = Tensor::<2, Int>::from_data([[3, 5, 3, 8, 9, 3, 5, 1]], device);
    model.loss(model.forward(ids.clone(), None), ids).unwrap()
}

#[test]
fn rates_follow_the_width() {
    let rates = MoveLearningRates::for_width(768);
    assert_eq!(rates, MoveLearningRates { matrices: 0.02, embeddings: 0.2, head: 0.004 });
    let wide = MoveLearningRates::for_width(3072);
    assert_eq!(wide, MoveLearningRates { matrices: 0.02, embeddings: 0.1, head: 0.002 });
}

/// What a first step changes, by published name.
fn first_step(config: &MoveTextConfig, multiplier: f64) -> (NamedTensors, NamedTensors) {
    let device = Device::flex().autodiff();
    let model = lively_text(config, &device);
    let before = named_parameters(&model);
    let mut optimizer = MoveOptimizer::new(&model, MoveLearningRates::for_width(768));
    let gradients = loss(&model, &device).backward();
    let after = named_parameters(&optimizer.step(multiplier, model, gradients));
    (before, after)
}

fn moved(before: &NamedTensors, after: &NamedTensors, name: &str) -> Vec<f64> {
    let name = before.keys().find(|key| key.ends_with(name)).expect(name);
    before[name].iter::<f64>().zip(after[name].iter::<f64>()).map(|(before, after)| before - after).collect()
}

#[test]
fn tables_move_by_their_rate_where_they_were_read_and_matrices_by_orthogonal_steps() {
    let (before, after) = first_step(&small(), 0.5);
    // Adam's first step is the sign of the gradient times the rate.
    for (name, rate) in [("wte.weight", 0.1), ("value_embeds.weight", 0.1), ("lm_head.weight", 0.002)] {
        let moved = moved(&before, &after, name);
        let largest = moved.iter().fold(0.0, |most: f64, step| most.max(step.abs()));
        assert!((largest / rate - 1.0).abs() < 1e-2, "{name}: {largest}");
    }
    for (name, columns) in [("wte.weight", 16), ("value_embeds.weight", 2 * 16)] {
        for (row, step) in moved(&before, &after, name).chunks(columns).enumerate() {
            let still = step.iter().all(|step| *step == 0.0);
            assert!(!still || ![3, 5, 8, 9].contains(&row), "{name}, row {row}");
            assert!(still || [1, 3, 5, 8, 9].contains(&row), "{name}, row {row}");
        }
    }
    // A step of Muon has singular values of about the rate, times sqrt(out / in) for tall weights.
    let singular = |name: &str, rank: f64| {
        let square: f64 = moved(&before, &after, name).iter().map(|step| step * step).sum();
        (square / rank).sqrt()
    };
    for (name, factor) in
        [("h.0.attn.c_q.weight", 1.0), ("h.1.mlp.c_fc.weight", 2.0), ("h.1.mlp.c_proj.weight", 1.0)]
    {
        // Seven tokens are judged: the gradients have rank 7 at most.
        let size = singular(name, 7.0) / (0.01 * factor);
        assert!((0.6..1.3).contains(&size), "{name}: {size}");
    }
}

#[test]
fn every_parameter_moves_and_the_loss_falls() {
    for config in texts() {
        let device = Device::flex().autodiff();
        device.seed(2);
        let mut model = config.init(&Device::flex()).materialize().train();
        let before = named_parameters(&model);
        let mut optimizer = MoveOptimizer::new(&model, MoveLearningRates::for_width(16));
        let first = loss(&model, &device).into_scalar::<f32>();
        for _ in 0..20 {
            let gradients = loss(&model, &device).backward();
            model = optimizer.step(0.2, model, gradients);
        }
        let last = loss(&model, &device).into_scalar::<f32>();
        assert!(last < 0.7 * first, "{first} to {last}, {config}");
        for (name, after) in named_parameters(&model) {
            assert_ne!(
                before[&name].iter::<f32>().collect::<Vec<_>>(),
                after.iter::<f32>().collect::<Vec<_>>(),
                "{name}"
            );
        }
    }
}
