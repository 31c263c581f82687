//! Orthogonalisation, and steps that stay on the sphere.

use burn::optim::Optimizer;
use gatekit_experts::sqrtgate::{
    AdamHConfig, MuonHConfig, MuonHState, frobenius_norm, newton_schulz, sphere_step,
};

use super::*;

#[test]
fn singular_values_come_near_one() {
    for device in devices() {
        for shape in [[4, 9], [9, 4], [5, 5]] {
            let x = newton_schulz(
                Tensor::random(shape, burn::tensor::Distribution::Normal(0.0, 1.0), &device),
                1e-8,
            );
            let gram = if shape[0] > shape[1] {
                x.clone().transpose().matmul(x)
            } else {
                x.clone().matmul(x.transpose())
            };
            let n = gram.dims()[0];
            let eye = Tensor::<2>::eye(n, &device);
            let error = rms(&(gram - eye));
            assert!(error < 0.1, "{shape:?}: {error}");
        }
    }
}

#[test]
fn a_stack_is_orthogonalised_matrix_by_matrix_and_transposes_commute() {
    for device in devices() {
        let stack = wave([3, 4, 6], 1.0, &device);
        let got = newton_schulz(stack.clone(), 1e-8);
        for matrix in 0..3 {
            let alone = stack.clone().narrow(0, matrix, 1).squeeze_dim::<2>(0);
            let part = got.clone().narrow(0, matrix, 1).squeeze_dim::<2>(0);
            assert_close(&values(part), &values(newton_schulz(alone.clone(), 1e-8)), 1e-5);
            let turned = newton_schulz(alone.clone().transpose(), 1e-8).transpose();
            assert_close(&values(turned), &values(newton_schulz(alone, 1e-8)), 1e-5);
        }
        assert_eq!(values(newton_schulz(Tensor::<2>::zeros([2, 3], &device), 1e-8)), [0.0; 6]);
        assert_eq!(newton_schulz(Tensor::<3>::zeros([0, 2, 3], &device), 1e-8).dims(), [0, 2, 3]);
    }
}

#[test]
fn steps_keep_the_norm_and_have_the_asked_length() {
    for device in devices() {
        for per_matrix in [true, false] {
            let weight = wave([3, 4, 5], 1.0, &device);
            let scale = Tensor::<3>::from_data([[[1.0]], [[0.1]], [[3.0]]], &device);
            let weight = weight * scale;
            let update = wave([3, 4, 5], -2.0, &device);
            let radius = values(frobenius_norm(weight.clone(), per_matrix));
            assert_eq!(radius.len(), if per_matrix { 3 } else { 1 });
            let mut moved = weight.clone();
            for _ in 0..50 {
                moved = sphere_step(moved, update.clone(), 0.1, 1e-8, per_matrix);
            }
            assert_close(&values(frobenius_norm(moved, per_matrix)), &radius, 1e-5);
            // A small step is as long as its rate says, up to what leads off the sphere.
            let step = sphere_step(weight.clone(), update.clone(), 1e-3, 1e-8, per_matrix) - weight.clone();
            for (length, radius) in values(frobenius_norm(step, per_matrix)).iter().zip(&radius) {
                assert!((1e-4..1.001e-3).contains(&(length / radius)), "{length} of {radius}");
            }
        }
    }
}

#[test]
fn the_two_ways_differ_for_a_stack_alone() {
    let device = Device::flex();
    let weight = wave([2, 3, 4], 1.0, &device) * Tensor::<3>::from_data([[[1.0]], [[5.0]]], &device);
    let gradient = wave([2, 3, 4], -1.0, &device);
    let step = |per_matrix| {
        let muon = MuonHConfig::new().with_per_matrix(per_matrix).build();
        muon.step(0.1, weight.clone(), gradient.clone(), None).0
    };
    let (each, all) = (step(true), step(false));
    assert_ne!(values(each.clone()), values(all.clone()));
    let norms = |x: Tensor<3>| values(frobenius_norm(x, true));
    assert_close(&norms(each), &norms(weight.clone()), 1e-5);
    assert!((norms(all)[0] / norms(weight)[0] - 1.0).abs() > 1e-3, "one sphere lets power move");
}

#[test]
fn no_gradient_moves_nothing_and_a_huge_rate_only_turns() {
    for device in devices() {
        let weight = wave([4, 3], 1.0, &device);
        let muon = MuonHConfig::new().build();
        let (same, state) = muon.step(0.1, weight.clone(), Tensor::zeros([4, 3], &device), None);
        assert_close(&values(same), &values(weight.clone()), 1e-6);
        assert_eq!(values(state.unwrap().momentum), [0.0; 12]);
        let (turned, _) = muon.step(1e6, weight.clone(), wave([4, 3], -2.0, &device), None);
        let norm = |x: Tensor<2>| values(frobenius_norm(x, true))[0];
        assert!((norm(turned) - norm(weight)).abs() < 1e-4);
    }
}

#[test]
fn momentum_adds_up() {
    let device = Device::flex();
    let gradient = || wave([3, 4], 1.0, &device);
    let muon = MuonHConfig::new().with_momentum(0.5).with_nesterov(false).build();
    let (_, first) = muon.update(gradient(), None);
    let (_, second) = muon.update(gradient(), Some(first.clone()));
    assert_eq!(values(first), values(gradient()));
    assert_close(&values(second), &values(gradient() * 1.5), 1e-6);
    let ahead = MuonHConfig::new().with_momentum(0.5).build();
    // In the same direction, looking ahead changes the length alone, which the update has not.
    let (a, _) = ahead.update(gradient(), None);
    let (b, _) = muon.update(gradient(), None);
    assert_close(&values(a), &values(b), 1e-5);
}

#[test]
fn decay_moves_the_radius_and_nothing_else() {
    let device = Device::flex();
    let (weight, gradient) = (wave([3, 4], 1.0, &device), wave([3, 4], -1.0, &device));
    let step = |decay: f64| {
        let muon = MuonHConfig::new().with_weight_decay(decay).build();
        muon.step(0.1, weight.clone(), gradient.clone(), None).0
    };
    assert_close(&values(step(1.0)), &values(step(0.0) * 0.9), 1e-5);
}

#[test]
fn adam_corrects_its_first_moments() {
    let device = Device::flex();
    let gradient = wave([3, 4], 0.01, &device);
    let adam = AdamHConfig::new().with_epsilon(1e-12).build();
    let (update, state) = adam.update(gradient.clone(), None);
    assert_eq!(state.step, 1);
    // After one step the update is the sign of the gradient.
    assert_close(&values(update), &values(gradient.clone().sign()), 1e-4);
    let (update, state) = adam.update(gradient.clone(), Some(state));
    assert_eq!(state.step, 2);
    assert_close(&values(update), &values(gradient.sign()), 1e-4);
}

#[test]
#[should_panic(expected = "MuonH: the gradient has shape [4, 3], the parameter [3, 4]")]
fn a_gradient_of_another_shape_panics() {
    let device = Device::flex();
    let muon = MuonHConfig::new().build();
    muon.step(0.1, wave([3, 4], 1.0, &device), wave([4, 3], 1.0, &device), None);
}

#[test]
#[should_panic(expected = "MuonH: the gradient has shape [3, 4], the momentum [4, 4]")]
fn a_state_of_another_parameter_panics() {
    let device = Device::flex();
    let momentum = wave([4, 4], 1.0, &device);
    let state = Some(MuonHState { momentum });
    MuonHConfig::new().build().step(0.1, wave([3, 4], 1.0, &device), wave([3, 4], 1.0, &device), state);
}

#[test]
#[should_panic(expected = "newton_schulz: a tensor of shape [5] is no matrix")]
fn a_vector_is_no_matrix() {
    newton_schulz(Tensor::<1>::ones([5], &Device::flex()), 1e-8);
}
