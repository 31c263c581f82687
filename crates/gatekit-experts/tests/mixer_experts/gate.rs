//! Refits of the gate.

use gatekit_core::linalg::{Matrix, lstsq};
use gatekit_experts::mixer_experts::{ContextGate, GateUpdate, KMeansGateUpdate};

use crate::{close, devices, drawn, values};

fn update() -> KMeansGateUpdate {
    KMeansGateUpdate::new(1e-4, 20, 1e-4, true).unwrap()
}

/// Three environments around each of two places, the second cluster first.
fn contexts() -> Matrix {
    Matrix::new(6, 2, vec![5.0, 5.0, 0.0, 0.1, 5.2, 5.0, 0.1, 0.0, 5.0, 5.1, 0.0, -0.1])
}

fn centroids() -> Matrix {
    Matrix::new(2, 2, vec![0.0, 0.0, 4.0, 4.0])
}

#[test]
fn clusters_take_the_expert_that_serves_them_best() {
    // Expert 0 is best everywhere; cluster 0 comes first and takes it. One outlier leaves the median as it is.
    let losses = Matrix::new(6, 2, vec![0.1, 0.2, 0.1, 9.0, 0.1, 0.2, 99.0, 9.0, 0.1, 0.2, 0.1, 9.0]);
    let outcome = update().update(&contexts(), &losses, &centroids(), &Matrix::zeros(6, 2)).unwrap();
    let GateUpdate::Updated { gate, centroids, assignment, experts, iterations, replaced } = outcome else {
        panic!("it is updated: {outcome:?}");
    };
    assert_eq!((assignment, experts, iterations, replaced), (vec![1, 0, 1, 0, 1, 0], vec![0, 1], 2, 0));
    close(centroids.values(), &[0.1 / 3.0, 0.0, 15.2 / 3.0, 15.1 / 3.0], 1e-12);
    // The least-squares gate sends every environment to the expert of its cluster.
    let [_, device] = devices();
    let mut fitted = ContextGate::new(2, 2, true, &device);
    fitted.set(&gate);
    let chosen = fitted.choose(contexts().to_tensor(&device, burn::tensor::DType::F32));
    assert_eq!(chosen.experts(), [1, 0, 1, 0, 1, 0]);
    let x = Matrix::from_fn(6, 3, |row, column| if column < 2 { contexts()[[row, column]] } else { 1.0 });
    let target = Matrix::from_fn(6, 2, |row, column| f64::from(u8::from((row + 1) % 2 == column)));
    close(gate.values(), lstsq(&x, &target).unwrap().values(), 1e-12);
}

#[test]
fn noise_enters_the_solve_alone() {
    let losses = Matrix::from_fn(6, 2, |row, column| if row % 2 == column { 0.0 } else { 1.0 });
    let noise = Matrix::from_fn(6, 2, |row, column| (row as f64 - 2.0) * (column as f64 + 1.0));
    let loud = KMeansGateUpdate::new(0.5, 20, 1e-4, false).unwrap();
    let outcome = loud.update(&contexts(), &losses, &centroids(), &noise).unwrap();
    let GateUpdate::Updated { gate, assignment, .. } = outcome else { panic!("it is updated") };
    assert_eq!(assignment, [1, 0, 1, 0, 1, 0]);
    let x = Matrix::from_fn(6, 2, |row, column| contexts()[[row, column]] + 0.5 * noise[[row, column]]);
    let target = Matrix::from_fn(6, 2, |row, column| f64::from(u8::from(row % 2 == column)));
    close(gate.values(), lstsq(&x, &target).unwrap().values(), 1e-12);
}

#[test]
fn equal_contexts_and_restless_centroids_change_nothing() {
    let losses = Matrix::zeros(6, 2);
    let alike = update().update(&Matrix::zeros(6, 2), &losses, &centroids(), &Matrix::zeros(6, 2)).unwrap();
    assert_eq!(alike, GateUpdate::EmptyCluster { cluster: 1, iterations: 1 });
    let hasty = KMeansGateUpdate::new(1e-4, 2, 1e-4, true).unwrap();
    let outcome = hasty.update(&contexts(), &losses, &centroids(), &Matrix::zeros(6, 2)).unwrap();
    assert_eq!(outcome, GateUpdate::NotConverged { iterations: 2 });
}

#[test]
fn diverged_losses_count_as_infinite() {
    let mut losses = Matrix::from_fn(6, 2, |_, column| column as f64);
    for row in [1, 3, 5] {
        losses[[row, 0]] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][row / 2];
    }
    let outcome = update().update(&contexts(), &losses, &centroids(), &Matrix::zeros(6, 2)).unwrap();
    let GateUpdate::Updated { experts, replaced, .. } = outcome else { panic!("it is updated") };
    // Cluster 0 takes the expert that has not diverged there, cluster 1 the one that is left.
    assert_eq!((experts, replaced), (vec![1, 0], 3));
    for row in [1, 3, 5] {
        losses[[row, 1]] = f64::NAN;
    }
    let error = update().update(&contexts(), &losses, &centroids(), &Matrix::zeros(6, 2)).unwrap_err();
    assert!(error.field == "losses" && error.got.contains("cluster 0"), "{error}");
}

#[test]
fn fewer_environments_than_numbers_have_a_gate_of_least_norm() {
    let contexts = Matrix::new(2, 4, vec![1.0, 0.0, 0.0, 2.0, -1.0, 0.0, 0.0, 2.0]);
    let centroids = Matrix::new(2, 4, vec![1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0, 1.0]);
    let losses = Matrix::new(2, 2, vec![0.0, 1.0, 1.0, 0.0]);
    let exact = KMeansGateUpdate::new(0.0, 20, 1e-4, false).unwrap();
    let outcome = exact.update(&contexts, &losses, &centroids, &Matrix::zeros(2, 4)).unwrap();
    let GateUpdate::Updated { gate, .. } = outcome else { panic!("it is updated") };
    close(gate.values(), &[0.5, -0.5, 0.0, 0.0, 0.0, 0.0, 0.25, 0.25], 1e-12);
}

#[test]
fn probabilities_are_a_softmax_with_the_bias_last() {
    for device in devices() {
        let gate = ContextGate::new(3, 4, true, &device);
        let contexts = drawn([5, 3], &device);
        let routing = gate.route(contexts.clone());
        assert_eq!(values(&routing.weights), [1.0; 5]);
        let (g, x) = (Matrix::of(&gate.gate.val()), Matrix::of(&contexts));
        let mut want = Vec::new();
        for row in 0..5 {
            let logit = |expert: usize| -> f64 {
                g[[3, expert]] + (0..3).map(|place| x[[row, place]] * g[[place, expert]]).sum::<f64>()
            };
            let total: f64 = (0..4).map(|expert| logit(expert).exp()).sum();
            want.extend((0..4).map(|expert| logit(expert).exp() / total));
        }
        close(&values(&routing.scores.unwrap()), &want, 1e-6);
        assert!(g.values().iter().all(|weight| weight.abs() <= 0.5));
    }
}
