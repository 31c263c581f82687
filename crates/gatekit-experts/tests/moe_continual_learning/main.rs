//! Continual learning with a mixture of experts: closed forms, the ledger's definitions, simulation against the
//! formulas, bad input.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

mod input;

use burn::module::Module;
use burn::nn::LinearConfig;
use burn::tensor::{DType, Device, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_core::linalg::Matrix;
use gatekit_core::router::{Phase, RouterConfig, RouterInputs};
use gatekit_experts::moe_continual_learning::{
    ContinualMoe, ContinualMoeConfig, Design, ErrorLedger, ExpectedErrorsConfig, GateTerminatorConfig,
    LocalityLoss, MinNormExperts, SyntheticTasks, SyntheticTasksConfig, Variant, parameter_drift,
    squared_errors,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[allow(deprecated, reason = "NdArray is supported as long as Burn has it")]
fn devices() -> [Device; 2] {
    [Device::ndarray(), Device::flex()]
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

fn close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{got}, want {want}");
    }
}

fn noise(experts: usize, bound: f64, random: &mut StdRng, device: &Device) -> Tensor<1> {
    let draws: Vec<f64> = (0..experts).map(|_| bound * random.random::<f64>()).collect();
    Tensor::from_data(TensorData::new(draws, [experts]), device)
}

fn tasks(design: Design) -> SyntheticTasks {
    SyntheticTasksConfig::new().with_design(design).with_seed(4).try_init().unwrap()
}

/// Some rounds of the synthetic tasks.
fn after_rounds(config: &ContinualMoeConfig, rounds: usize, device: &Device) -> ContinualMoe {
    let (world, mut random) = (tasks(Design::Signal), StdRng::seed_from_u64(9));
    let mut model = config.init(device);
    for _ in 0..rounds {
        let (x, y) = world.draw(&mut random).tensors(device);
        model.round(x, y, noise(config.num_experts, config.noise_bound, &mut random, device)).unwrap();
    }
    model
}

#[test]
fn the_closed_gradient_is_that_of_both_losses() {
    for device in devices() {
        for variant in [Variant::Algorithm, Variant::Simulation] {
            for experts in [1, 2, 5] {
                let config = ContinualMoeConfig::new(10, experts).with_variant(variant);
                let model = after_rounds(&config, 6, &device).train();
                let tracked = device.clone().autodiff();
                let (x, _) = tasks(Design::Signal).draw(&mut StdRng::seed_from_u64(1)).tensors(&tracked);
                let routing = model.router.route(x.clone(), Tensor::zeros([experts], &tracked));
                let drift = Tensor::from_data([0.7f32], &tracked);
                let (locality, load) = model.router.losses(&routing, drift, 7);
                let gradients = (locality + load).backward();
                let want = model.router.theta.val().grad(&gradients).expect("the gate is trained");
                let got = model.router.gradient(x, &routing, 0.7, 7);
                close(&values(&got), &values(&want), 2e-6);
            }
        }
    }
}

#[test]
fn an_expert_that_moved_fits_and_others_stay() {
    for device in devices() {
        let world = tasks(Design::Isotropic);
        let mut experts = MinNormExperts::new(3, 10, &device);
        let data = world.draw(&mut StdRng::seed_from_u64(2));
        let (x, y) = data.tensors(&device);
        let drift = experts.fit(1, &x, &y).unwrap();
        let weights = experts.weights();
        let fitted: Vec<f64> =
            (0..6).map(|row| data.x.row(row).iter().zip(weights.row(1)).map(|(x, w)| x * w).sum()).collect();
        close(&fitted, &data.y, 1e-5);
        assert!(weights.row(0).iter().chain(weights.row(2)).all(|weight| *weight == 0.0));
        let norm = weights.row(1).iter().map(|weight| weight * weight).sum::<f64>().sqrt();
        assert!((drift - norm).abs() < 1e-6);
        // What is fitted needs no further move.
        assert!(experts.fit(1, &x, &y).unwrap() < 1e-5);
        // In float64 by Cholesky: the same expert.
        let mut wide = MinNormExperts::new(3, 10, &device);
        let wide_x = data.x.to_tensor(&device, DType::F64);
        let wide_y = Tensor::from_data(TensorData::new(data.y.clone(), [6]), (&device, DType::F64));
        assert!((wide.fit(1, &wide_x, &wide_y).unwrap() - drift).abs() < 1e-6);
    }
}

#[test]
fn the_ledger_agrees_with_the_definitions() {
    let (experts, count, rounds) = (3, 4, 25);
    let mut random = StdRng::seed_from_u64(7);
    let mut ledger = ErrorLedger::new(experts, count);
    let mut history: Vec<(usize, usize, Matrix)> = Vec::new();
    for _ in 0..rounds {
        let errors = Matrix::from_fn(experts, count, |_, _| random.random::<f64>());
        let (task, expert) = (random.random_range(0..count), random.random_range(0..experts));
        ledger.record(task, expert, &errors).unwrap();
        history.push((task, expert, errors));
    }
    for t in 1..=rounds {
        let now = &history[t - 1].2;
        let earlier = &history[..t - 1];
        let forgotten =
            earlier.iter().map(|(task, expert, then)| now[[*expert, *task]] - then[[*expert, *task]]);
        let forgetting = if t == 1 { 0.0 } else { forgotten.sum::<f64>() / (t - 1) as f64 };
        let all: f64 = history[..t].iter().map(|(task, expert, _)| now[[*expert, *task]]).sum();
        close(
            &[ledger.forgetting()[t - 1], ledger.generalization()[t - 1]],
            &[forgetting, all / t as f64],
            1e-12,
        );
        let (task, expert, errors) = &history[t - 1];
        assert_eq!(ledger.fresh()[t - 1], errors[[*expert, *task]]);
    }
    assert_eq!(ledger.counts().values().iter().sum::<f64>(), rounds as f64);
}

/// The mean errors of many simulated runs on isotropic data with a given routing.
fn simulated(
    world: &SyntheticTasks,
    tasks: &[usize],
    chosen: &[usize],
    experts: usize,
    runs: usize,
) -> Matrix {
    let [_, device] = devices();
    let mut random = StdRng::seed_from_u64(11);
    let mut mean = Matrix::zeros(experts, world.truth().rows());
    for _ in 0..runs {
        let mut model = MinNormExperts::new(experts, world.truth().columns(), &device);
        for (&task, &expert) in tasks.iter().zip(chosen) {
            let (x, y) = world.draw_task(task, &mut random).tensors(&device);
            model.fit(expert, &x, &y).unwrap();
        }
        let errors = squared_errors(&model.weights(), world.truth());
        for row in 0..experts {
            mean.row_mut(row)
                .iter_mut()
                .zip(errors.row(row))
                .for_each(|(mean, error)| *mean += error / runs as f64);
        }
    }
    mean
}

#[test]
fn simulated_errors_are_the_expected_ones() {
    let world = tasks(Design::Isotropic);
    let (order, chosen) = ([0, 1, 2, 4, 1, 0, 5, 2], [0, 1, 1, 1, 0, 0, 2, 1]);
    let expected = ExpectedErrorsConfig::new(10, 6).with_num_experts(4).try_init(world.truth()).unwrap();
    let run = expected.run(&order, &chosen).unwrap();
    let want = run.errors.last().unwrap();
    let got = simulated(&world, &order, &chosen, 4, 1500);
    for (got, want) in got.values().iter().zip(want.values()) {
        // Errors of up to 0.6; a mean of 1500 runs is good to about 2 %.
        assert!((got - want).abs() < 0.06 * want + 1e-4, "{got}, expected {want}");
    }
    // No round reached expert 3.
    close(got.row(3), squared_errors(&Matrix::zeros(1, 10), world.truth()).row(0), 1e-9);
}

#[test]
fn the_formulas_of_a_single_expert_are_means_over_task_sequences() {
    let world = tasks(Design::Isotropic);
    let expected = ExpectedErrorsConfig::new(10, 6).try_init(world.truth()).unwrap();
    let (rounds, sequences) = (7, 8000);
    let mut random = StdRng::seed_from_u64(3);
    let mut means = vec![[0.0; 2]; rounds];
    for _ in 0..sequences {
        let order: Vec<usize> = (0..rounds).map(|_| random.random_range(0..6)).collect();
        let run = expected.run(&order, &vec![0; rounds]).unwrap();
        for (t, mean) in means.iter_mut().enumerate() {
            mean[0] += run.ledger.forgetting()[t] / sequences as f64;
            mean[1] += run.ledger.generalization()[t] / sequences as f64;
        }
    }
    for (t, [forgetting, generalization]) in means.into_iter().enumerate() {
        let want =
            [expected.single_forgetting(t + 1).unwrap(), expected.single_generalization(t + 1).unwrap()];
        close(&[forgetting, generalization], &want, 4e-3);
    }
    assert!((expected.rate() - 0.4).abs() < 1e-12);
}

/// 400 rounds of the synthetic tasks; checks in every round that a stopped gate stays as it is.
fn run(seed: u64, variant: Variant, stops: bool, device: &Device) -> (ContinualMoe, ErrorLedger) {
    let experts = 5;
    let world = SyntheticTasksConfig::new().with_seed(seed).try_init().unwrap();
    let config = ContinualMoeConfig::new(10, experts)
        .with_min_rounds(80 + 3 * experts)
        .with_early_termination(stops)
        .with_variant(variant);
    let mut model = config.init(device);
    let mut random = StdRng::seed_from_u64(seed + 100);
    let mut ledger = ErrorLedger::new(experts, 6);
    let mut frozen: Option<Vec<f64>> = None;
    for round in 1..=400 {
        let data = world.draw(&mut random);
        let (x, y) = data.tensors(device);
        let report = model.round(x, y, noise(experts, 0.3, &mut random, device)).unwrap();
        assert_eq!((report.round, model.rounds()), (round, round));
        let errors = squared_errors(&model.experts.weights(), world.truth());
        ledger.record(data.task, report.routing.expert, &errors).unwrap();
        let theta = values(&model.router.theta.val());
        if report.stopped {
            // No gradient, no update, and the experts still learn.
            assert!(values(&report.gradient).iter().all(|value| *value == 0.0));
            assert_eq!(frozen.get_or_insert_with(|| theta.clone()), &theta);
        } else {
            assert!(frozen.is_none());
        }
    }
    (model, ledger)
}

#[test]
fn experts_specialise_and_gates_stop() {
    let [_, device] = devices();
    for variant in [Variant::Algorithm, Variant::Simulation] {
        // Rounding decides over single runs, so several count together.
        let runs: Vec<_> = (0..6).map(|seed| run(seed, variant, true, &device)).collect();
        let mean = |round: usize| {
            runs.iter().map(|(_, ledger)| ledger.generalization()[round]).sum::<f64>() / runs.len() as f64
        };
        assert!(mean(399) < 0.6 * mean(20), "{variant:?}: from {} to {}", mean(20), mean(399));
        let stopped: Vec<usize> =
            runs.iter().filter_map(|(model, _)| model.terminator().stopped_at()).collect();
        assert!(stopped.iter().all(|round| *round > 95));
        if variant == Variant::Algorithm {
            assert!(stopped.len() >= 3, "{} of 6 gates stopped", stopped.len());
        }
        assert!(!run(0, variant, false, &device).0.terminator().is_stopped());
    }
}

#[test]
fn a_state_goes_on_where_it_was_saved() {
    for device in devices() {
        let config = ContinualMoeConfig::new(10, 4);
        let mut model = after_rounds(&config, 12, &device);
        let saved = model.clone();
        let flags = model.terminator().converged().to_vec();
        let stopped_at = model.terminator().stopped_at();
        let mut resumed = saved.resume(13, &flags, stopped_at).unwrap();
        let mut random = StdRng::seed_from_u64(21);
        for _ in 0..10 {
            let (x, y) = tasks(Design::Signal).draw(&mut random).tensors(&device);
            let noise = noise(4, 0.3, &mut random, &device);
            let first = model.round(x.clone(), y.clone(), noise.clone()).unwrap();
            let second = resumed.round(x, y, noise).unwrap();
            assert_eq!((first.routing.expert, first.drift), (second.routing.expert, second.drift));
        }
        assert_eq!(values(&model.router.theta.val()), values(&resumed.router.theta.val()));
    }
}

#[test]
fn flags_follow_the_gap_test() {
    let config = GateTerminatorConfig::new(3, 2).with_gap_threshold(0.5).with_min_rounds(4);
    let mut terminator = config.try_init().unwrap();
    assert!(!terminator.observe(2, &[0.0; 3], 0));
    assert_eq!(terminator.converged(), [false; 3]);
    assert!(!terminator.observe(3, &[1.0, 0.6, 0.5], 0));
    // Exactly Gamma apart is not nearer.
    assert_eq!(terminator.converged(), [true, true, false]);
    assert!(!terminator.observe(4, &[0.0, 0.0, 9.0], 2));
    assert_eq!(terminator.converged(), [true; 3]);
    assert!(terminator.observe(5, &[0.0, 9.0, 9.0], 0));
    assert!(terminator.observe(6, &[f64::NAN; 3], 0));
    assert_eq!(terminator.stopped_at(), Some(5));
    // The chosen expert without a flag of its own; NaN sets none.
    let mut alone = GateTerminatorConfig::new(2, 0).with_flags_chosen(false).try_init().unwrap();
    for round in 1..20 {
        assert!(!alone.observe(round, &[f64::NAN, 0.0], 1));
    }
    assert_eq!(alone.converged(), [false; 2]);
}

#[test]
fn losses_and_terminator_serve_other_routers() {
    let [_, device] = devices();
    let router = RouterConfig::new(4).with_num_experts(3).with_num_experts_per_tok(2).init(&device);
    let x = Tensor::<2>::random([7, 4], burn::tensor::Distribution::Normal(0.0, 1.0), &device);
    let routing = router.route(x, &RouterInputs::default(), Phase::Inference).unwrap();
    // Fresh scores all lie within 0.3 of one another.
    let mut terminator = GateTerminatorConfig::new(3, 0).with_gap_threshold(0.3).try_init().unwrap();
    assert!(terminator.observe_routing(1, &routing));
    let before = LinearConfig::new(3, 2).init(&device);
    assert_eq!(parameter_drift(&before, &before.clone()), 0.0);
    let mut after = before.clone();
    after.weight = after.weight.map(|weight| weight.add_scalar(0.5));
    assert!((parameter_drift(&before, &after) - 0.5 * 6f64.sqrt()).abs() < 1e-6);
    let scores = routing.scores.unwrap();
    let drift = Tensor::from_data([2.0f32, 0.0, 0.0], &device);
    let loss = values(&LocalityLoss.forward(scores.clone(), drift))[0];
    let want = 2.0 * values(&scores.narrow(1, 0, 1).mean())[0];
    assert!((loss - want).abs() < 1e-6);
}

#[test]
fn constants_of_the_theory_follow_the_scale() {
    let config = ContinualMoeConfig::for_scale(784, 4, 0.05);
    assert!((config.gap_threshold - 0.0236).abs() < 1e-4 && (config.learning_rate - 0.2236).abs() < 1e-4);
    assert_eq!(config.exploration(), 18);
    assert_eq!(ContinualMoeConfig::new(10, 20).exploration(), 40);
}
