//! Losses beyond the golden cases.

use burn::tensor::Tensor;
use gatekit_experts::jei_dnn::{
    GateObjective, ModuleWeighting, best_exits, exit_gate_loss, inference_module_loss, positive_weights,
    warmup_loss,
};

use super::*;

const BATCH: usize = 6;

fn exit_logits(device: &Device) -> Tensor<3> {
    float(&ramp(BATCH * 4 * CLASSES, 2.0), [BATCH, 4, CLASSES], device)
}

fn truth(device: &Device) -> Tensor<1, Int> {
    labels(&[0, 1, 2, 2, 1, 0], device)
}

/// Probabilities that spread differently in every row; the last row leaves nowhere before the end.
fn probs(device: &Device) -> Tensor<2> {
    let rows = [
        [0.7, 0.2, 0.1, 0.0],
        [0.0, 0.5, 0.0, 0.5],
        [0.25, 0.25, 0.25, 0.25],
        [1.0, 0.0, 0.0, 0.0],
        [1e-20, 2e-20, 0.0, 1.0],
        [0.0, 0.0, 0.0, 1.0],
    ];
    float(&rows.concat(), [BATCH, 4], device)
}

fn module_loss(weighting: ModuleWeighting, device: &Device) -> (f64, Vec<f64>) {
    let logits = exit_logits(&device.clone().autodiff()).require_grad();
    let device = logits.device();
    let loss = inference_module_loss(logits.clone(), probs(&device), &truth(&device), weighting).unwrap();
    let gradient = logits.grad(&loss.backward()).unwrap();
    (loss.into_scalar::<f64>(), values(gradient))
}

#[test]
fn rescaling_keeps_the_total_and_follows_the_exits() {
    for device in devices() {
        let (uniform, even) = module_loss(ModuleWeighting::Uniform, &device);
        let (rescaled, led) = module_loss(ModuleWeighting::Rescaled, &device);
        let (_, paper) = module_loss(ModuleWeighting::ExitProbability, &device);
        assert!((uniform - rescaled).abs() < 1e-5 * uniform, "{uniform} {rescaled}");
        let norm = |gradient: &[f64], row: usize, exit: usize| {
            let part = &gradient[(row * 4 + exit) * CLASSES..][..CLASSES];
            part.iter().map(|g| g * g).sum::<f64>().sqrt()
        };
        for row in 0..BATCH {
            assert_eq!(norm(&led, row, 3), 0.0, "the final head is not trained");
        }
        // Row 3 leaves at exit 0 for sure: it alone is trained there, and more than evenly.
        assert!(norm(&led, 3, 0) > norm(&even, 3, 0));
        assert_eq!((norm(&led, 3, 1), norm(&led, 3, 2)), (0.0, 0.0));
        // The last row leaves at none of them and trains them equally; so does the even third.
        for row in [2, 5] {
            for exit in 0..3 {
                assert!((norm(&led, row, exit) - norm(&even, row, exit)).abs() < 1e-6);
            }
        }
        // Tiny probabilities are rescaled, not lost: in row 4 exit 1 gets twice the weight of exit 0.
        let ratio = |exit: usize| norm(&led, 4, exit) / norm(&even, 4, exit);
        assert!((ratio(1) / ratio(0) - 2.0).abs() < 1e-4, "{} {}", ratio(1), ratio(0));
        assert!(norm(&paper, 5, 0) == 0.0 && norm(&paper, 3, 0) > 0.0);
    }
}

#[test]
fn certain_answers_keep_finite_gradients() {
    for device in devices() {
        let device = device.autodiff();
        let mut logits = vec![0.0; 4 * CLASSES];
        logits[0] = 1e3; // Exit 0 is certain, right, and the only one that is left at.
        logits[CLASSES + 1] = 200.0; // Exit 1 is certain and wrong.
        let logits = float(&logits, [1, 4, CLASSES], &device).require_grad();
        let probs = float(&[1.0, 0.0, 0.0, 0.0], [1, 4], &device);
        let loss =
            inference_module_loss(logits.clone(), probs, &labels(&[0], &device), ModuleWeighting::Rescaled);
        let gradient = values(logits.grad(&loss.unwrap().backward()).unwrap());
        assert!(gradient.iter().all(|value| value.is_finite() && value.abs() < 10.0), "{gradient:?}");
    }
}

#[test]
fn the_cheapest_good_enough_exit_wins_and_the_first_on_ties() {
    for device in devices() {
        // Exit 0 wrong, exits 1 and 2 right, exit 2 surer, the final head surest.
        let rows = [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 4.0, 0.0], [0.0, 6.0, 0.0]];
        let logits = float(&rows.concat(), [1, 4, CLASSES], &device);
        let best = |objective, price| {
            let config = config().with_gate_objective(objective).with_cost_tradeoff(price);
            best_exits(&logits, &labels(&[1], &device), &config).unwrap().as_slice()[0]
        };
        assert_eq!(best(GateObjective::ZeroOne, 0.0), 1, "the first of those that are right");
        assert_eq!(best(GateObjective::ZeroOne, 10.0), 0, "too dear");
        assert_eq!(best(GateObjective::Probability, 0.0), 3);
        assert_eq!(best(GateObjective::Probability, 0.5), 2);
        assert_eq!(best(GateObjective::CrossEntropy, 0.0), 3);
        assert_eq!(best(GateObjective::CrossEntropy, 0.7), 2);
        assert_eq!(best(GateObjective::CrossEntropy, 9.0), 0);
    }
}

#[test]
fn gates_learn_targets_and_leave_classifiers_alone() {
    for device in devices() {
        let device = device.autodiff();
        let logits = exit_logits(&device).require_grad();
        let gates = float(&ramp(BATCH * EXITS, 1.0), [BATCH, EXITS], &device).require_grad();
        let config = config().with_pos_weights(Some(vec![0.5, 2.0, 3.0]));
        let loss = exit_gate_loss(gates.clone(), &logits, &truth(&device), &config).unwrap();
        let targets: Vec<i64> = loss.targets.clone().into_data().iter::<i64>().collect();
        for (place, target) in targets.iter().enumerate() {
            assert_eq!(*target == 1, place % EXITS >= loss.best_exits.as_slice()[place / EXITS]);
        }
        let gradients = loss.loss.backward();
        assert!(logits.grad(&gradients).is_none(), "no gradient to the classifiers");
        // The gradient of BCE is w (sigmoid(o) - t) over the mean's count.
        let want: Vec<f64> = (ramp(BATCH * EXITS, 1.0).iter().zip(&targets).enumerate())
            .map(|(place, (logit, target))| {
                let weight = if *target == 1 { [0.5, 2.0, 3.0][place % EXITS] } else { 1.0 };
                weight * (1.0 / (1.0 + (-logit).exp()) - *target as f64) / (BATCH * EXITS) as f64
            })
            .collect();
        assert_close(&values(gates.grad(&gradients).unwrap()), &want, 1e-6);
    }
}

#[test]
fn positive_weights_are_bounded_and_count_best_exits() {
    for device in devices() {
        // Six samples that are all right at once: free exits make exit 0 the best of all.
        let mut rows = vec![0.0; BATCH * 4 * CLASSES];
        for row in 0..BATCH * 4 {
            rows[row * CLASSES] = 5.0;
        }
        let logits = float(&rows, [BATCH, 4, CLASSES], &device);
        let best = best_exits(&logits, &labels(&[0; BATCH], &device), &config()).unwrap();
        assert_eq!(best.counts(), [6, 0, 0, 0]);
        assert_eq!(positive_weights(&best), [0.0, 5.0, 5.0]);
    }
}

#[test]
fn warm_up_weighs_early_exits_most() {
    for device in devices() {
        let logits = exit_logits(&device.clone().autodiff()).require_grad();
        let device = logits.device();
        let loss = warmup_loss(logits.clone(), &truth(&device)).unwrap();
        let gradient = values(logits.grad(&loss.backward()).unwrap());
        let plain = exit_logits(&device).require_grad();
        let even =
            inference_module_loss(plain.clone(), probs(&device), &truth(&device), ModuleWeighting::Uniform);
        let even = values(plain.grad(&even.unwrap().backward()).unwrap());
        for exit in 0..EXITS {
            let at = exit * CLASSES;
            // The even loss is a mean over three exits, the warm-up's a sum with weights 4, 3, 2.
            assert!((gradient[at] / even[at] - 3.0 * (4 - exit) as f64).abs() < 1e-3);
        }
    }
}
