//! Labels and losses at their edges.

use burn::tensor::{Tensor, TensorData};
use gatekit_experts::acm::{
    AcmObjective, BudgetLoss, compute_diversity, compute_share, distill, gate_entropy, gate_labels,
    gate_loss, stack_gates,
};

use super::{choice, close, devices, integers, values, waves};

#[test]
fn labels_name_the_first_learner_that_gains_little() {
    // Errors of h_0 .. h_3 of one token with one feature and target 0.
    let cases: [([f64; 4], i64); 9] = [
        ([8.0, 4.0, 2.0, 1.0], 3), // none is flat
        ([8.0, 4.0, 3.9, 1.0], 2), // flat at k = 1
        ([8.0, 4.0, 2.0, 1.9], 3), // flat at k = 2
        ([4.0, 3.9, 1.0, 0.9], 3), // already the first gains little
        ([4.0, 1.0, 0.0, 0.0], 3), // a perfect learner is not flat, nor 0 / 0
        ([4.0, 0.0, 1.0, 0.5], 2), // it gets worse: flat at k = 1
        ([0.0, 0.0, 0.0, 0.0], 3), // 0 / 0 everywhere
        ([0.0, 1.0, 1.0, 1.0], 3), // flat at k = 0
        ([1.2, 1.0, 0.5, 0.1], 3), // exactly the factor is not flat
    ];
    for device in devices() {
        let errors: Vec<f64> = cases.iter().flat_map(|(errors, _)| *errors).collect();
        let h = Tensor::<4>::from_data(TensorData::new(errors, [1, cases.len(), 4, 1]), &device);
        let target = Tensor::<3>::zeros([1, cases.len(), 1], &device);
        let expected: Vec<i64> = cases.iter().map(|(_, label)| *label).collect();
        let factor = 1.2f32 as f64;
        assert_eq!(integers(gate_labels(h, target, factor)), expected);
        // One learner leaves no choice; no token no label.
        let one = gate_labels(waves([1, 3, 2, 2], 0.1, &device), waves([1, 3, 2], 0.2, &device), 1.2);
        assert_eq!(integers(one), [1; 3]);
        let none = gate_labels(Tensor::zeros([2, 0, 3, 2], &device), Tensor::zeros([2, 0, 2], &device), 1.2);
        assert_eq!(none.dims(), [2, 0]);
    }
}

#[test]
fn losses_are_their_formulas() {
    for device in devices() {
        let h = waves([1, 2, 3, 2], 0.3, &device);
        let target = waves([1, 2, 2], 1.0, &device);
        let (sums, o) = (values(h.clone()), values(target.clone()));
        let expected: f64 = (0..12).map(|i| (sums[i] - o[i / 6 * 2 + i % 2]).powi(2)).sum::<f64>() / 12.0;
        close(&values(distill(h, target)), &[expected], 1e-6);

        let probs = Tensor::<3>::from_data([[[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]]], &device);
        let loss = gate_loss(probs.clone(), choice(&[1, 0, 0], [1, 3], &device));
        close(&values(loss), &[-(0.8f64.ln() + 0.5f64.ln()) / 3.0], 1e-6);
        // A class of probability 0 is bad, not infinite.
        let loss = values(gate_loss(probs, choice(&[1, 0, 1], [1, 3], &device)));
        assert!(loss[0].is_finite() && loss[0] > 15.0, "{loss:?}");
    }
}

#[test]
fn budgets_entropy_and_diversity_have_their_extremes() {
    for device in devices() {
        // Two samples, two tokens, one module, two learners.
        let gates = |choices: [usize; 4]| {
            let values: Vec<f64> =
                choices.iter().flat_map(|k| (0..3).map(move |i| f64::from(u8::from(i == *k)))).collect();
            Tensor::<4>::from_data(TensorData::new(values, [2, 2, 1, 3]), &device)
        };
        let share = |choices| values(compute_share(gates(choices), &[1e9]).unwrap())[0];
        close(&[share([0; 4]), share([2; 4]), share([0, 1, 2, 1])], &[0.0, 1.0, 0.5], 1e-6);
        let entropy = |choices| values(gate_entropy(gates(choices)))[0];
        close(&[entropy([1; 4]), entropy([0, 1, 1, 1])], &[0.0, -(2f64.ln() / 3f64.ln()) / 2.0], 1e-6);
        let diversity = |choices| values(compute_diversity(gates(choices)))[0];
        // Loads 0 and 2 / 3: the four pairs have the distances 0, 2/3, 2/3, 0.
        close(&[diversity([1; 4]), diversity([0, 0, 2, 2])], &[0.0, -2.0 / 3.0], 1e-6);
        let gap = |loss: BudgetLoss| values(loss.apply(Tensor::<1>::from_data([0.7], &device), 0.4))[0];
        close(
            &[gap(BudgetLoss::L1), gap(BudgetLoss::L2), gap(BudgetLoss::L2Scaled)],
            &[0.3, 0.09, 900.0],
            1e-5,
        );
    }
}

#[test]
fn modules_count_by_their_cost() {
    for device in devices() {
        let gate = |k: usize| {
            let row: Vec<f64> = (0..3).map(|i| f64::from(u8::from(i == k))).collect();
            Tensor::<3>::from_data(TensorData::new(row, [1, 1, 3]), &device)
        };
        let gates = stack_gates(&[gate(2), gate(0)]).unwrap();
        assert_eq!(gates.dims(), [1, 1, 2, 3]);
        close(&values(compute_share(gates.clone(), &[3.0, 1.0]).unwrap()), &[0.75], 1e-6);
        let task = Tensor::<1>::from_data([2.0], &device);
        let losses = AcmObjective::new(0.5).losses(task, gates, &[3.0, 1.0]).unwrap();
        close(&values(losses.total), &[2.0 + 0.1 * 0.25], 1e-6);
    }
}
