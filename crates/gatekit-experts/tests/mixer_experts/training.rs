//! Training lowers the loss, contexts separate, new systems are adapted to.

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use gatekit_core::ModuleConfig;
use gatekit_core::checkpoint::named_parameters;
use gatekit_experts::mixer_experts::{
    AdaBeliefConfig, AdaptationConfig, ContextTable, DormandPrince, GateTraining, MetaLearner,
    MixerFieldConfig, MixerTrainer, MixerTrainingConfig, adapt,
};

use crate::{close, devices, tensor, values};

const STEPS: usize = 6;
const DT: f64 = 0.2;

/// Rotations and decays of different speeds, two trajectories each: `[2 count, 2, 7, 2]`.
fn observed(count: usize, offset: f64, device: &Device) -> Tensor<4> {
    let mut states = Vec::new();
    for family in 0..2 {
        for system in 0..count {
            let speed = 1.0 + (system as f64 + offset) / count as f64;
            for angle in [0.3f64, 2.0] {
                for step in 0..=STEPS {
                    let t = speed * DT * step as f64;
                    states.extend(match family {
                        0 => [(angle + t).cos(), (angle + t).sin()],
                        _ => [angle.cos() * (-t).exp(), angle.sin() * (-t).exp()],
                    });
                }
            }
        }
    }
    tensor(&states, [2 * count, 2, STEPS + 1, 2], device)
}

fn config() -> MixerTrainingConfig {
    MixerTrainingConfig::new(STEPS, DT)
        .with_outer_steps(10)
        .with_context_steps(4)
        .with_model_steps(4)
        .with_learning_rate(2e-2)
        .with_loss_contributors(3)
}

fn field_config() -> MixerFieldConfig {
    MixerFieldConfig::new(2, 4).with_width(8)
}

#[test]
fn training_lowers_the_loss() {
    for device in devices() {
        for (learner, gate) in [
            (MetaLearner::Geps, GateTraining::LeastSquares),
            (MetaLearner::Coda, GateTraining::LeastSquares),
            (MetaLearner::Geps, GateTraining::GradientDescent),
        ] {
            device.seed(1);
            let field = field_config().with_meta_learner(learner).init(&device).materialize();
            let start = named_parameters(&field)["gate.gate"].clone();
            let config = config().with_gate_training(gate);
            let trainer = MixerTrainer::new(field, observed(3, 0.0, &device), &config, &device).unwrap();
            let mut losses = Vec::new();
            let mut refits = 0;
            let (field, contexts) = trainer
                .train(|step, _, _| {
                    losses.push(step.model_loss);
                    refits += step.gate.updated;
                    let all = step.gate.updated + step.gate.empty + step.gate.not_converged;
                    assert_eq!(all, if gate == GateTraining::LeastSquares { 8 } else { 0 });
                    assert_eq!((step.skipped, step.gate.replaced), (0, 0));
                })
                .unwrap();
            assert!(losses[9] < 0.5 * losses[0], "{learner:?}, {gate:?}: {losses:?}");
            assert!(contexts.to_matrix().values().iter().any(|context| context.abs() > 1e-2));
            assert!(!contexts.contexts.val().device().is_autodiff());
            // The gate moves by refits or by gradients.
            assert_ne!(named_parameters(&field)["gate.gate"], start, "{gate:?} after {refits} refits");
        }
    }
}

#[test]
fn the_pull_holds_model_and_contexts_back() {
    let [_, device] = devices();
    let moved = |beta: f64| {
        device.seed(1);
        let field = MixerFieldConfig::new(1, 2).with_width(8).init(&device).materialize();
        let before = named_parameters(&field);
        let config =
            config().with_proximal_beta(beta).with_outer_steps(1).with_context_steps(20).with_model_steps(20);
        let trainer = MixerTrainer::new(field, observed(3, 0.0, &device), &config, &device).unwrap();
        let (field, contexts) = trainer.train(|_, _, _| ()).unwrap();
        let after = named_parameters(&field);
        let squares = before.iter().filter(|(name, _)| !name.starts_with("gate")).map(|(name, old)| {
            let pairs = old.iter::<f64>().zip(after[name].iter::<f64>());
            pairs.map(|(old, new)| (new - old).powi(2)).sum::<f64>()
        });
        let of_contexts = contexts.to_matrix().values().iter().map(|context| context * context).sum::<f64>();
        [squares.sum::<f64>(), of_contexts]
    };
    let (free, held) = (moved(0.0), moved(1e5));
    assert!(held[0] < 0.2 * free[0] && held[1] < 0.5 * free[1], "{free:?} against {held:?}");
}

#[test]
fn other_solvers_train_too() {
    let [_, device] = devices();
    let field = field_config().init(&device);
    let config = config().with_outer_steps(1).with_context_steps(1).with_model_steps(1);
    let solver = DormandPrince::new(STEPS, DT).unwrap();
    let mut trainer =
        MixerTrainer::with_solver(field, observed(2, 0.0, &device), &config, solver, &device).unwrap();
    let step = trainer.outer_step().unwrap();
    assert!(step.context_loss.is_finite() && step.model_loss.is_finite());
}

#[test]
fn new_systems_are_adapted_to_with_experts_and_gate_as_they_are() {
    let [_, device] = devices();
    device.seed(2);
    let field = field_config().init(&device).materialize();
    let config = config().with_outer_steps(25);
    let trainer = MixerTrainer::new(field, observed(3, 0.0, &device), &config, &device).unwrap();
    let (field, _) = trainer.train(|_, _, _| ()).unwrap();
    let before = named_parameters(&field);
    let solver = config.solver().unwrap();
    let adapted = |steps| {
        let config = AdaptationConfig { steps, learning_rate: 2e-2 };
        adapt(&field, observed(2, 0.4, &device), &solver, &config, &device).unwrap()
    };
    let (first, last) = (adapted(0), adapted(60));
    assert_eq!(named_parameters(&field), before);
    assert!(first.contexts.to_matrix().values().iter().all(|context| *context == 0.0));
    let sum = |losses: &[f64]| losses.iter().sum::<f64>();
    assert!(sum(&last.losses) < 0.8 * sum(&first.losses), "{:?} to {:?}", first.losses, last.losses);
    // The losses are those of the contexts that are handed over.
    let observed = observed(2, 0.4, &device);
    let start = observed.clone().narrow(2, 0, 1).squeeze_dim::<3>(2);
    let trajectory = field.rollout(start, last.contexts.contexts.val(), &solver).unwrap();
    let losses = (trajectory - observed).square().flatten::<2>(1, 3).mean_dim(1);
    close(&values(&losses), &last.losses, 1e-5);
}

#[test]
fn contributors_are_the_nearest_contexts() {
    let [_, device] = devices();
    let mut table = ContextTable::new(4, 2, &device);
    table.contexts =
        table.contexts.map(|old| tensor(&[0.0, 0.0, 3.0, 0.0, 0.0, 1.0, 1.0, 0.0], [4, 2], &old.device()));
    assert_eq!(table.nearest(0, 3), [0, 2, 3]);
    assert_eq!(table.nearest(1, 2), [1, 3]);
    assert_eq!(table.nearest(2, 99).len(), 4);
    assert_eq!(ContextTable::new(3, 2, &device).nearest(2, 3), [2, 0, 1]);
}

/// AdaBelief written out, in float64.
#[test]
fn adabelief_takes_the_published_steps() {
    #[derive(Module, Debug)]
    struct Point {
        x: Param<Tensor<1>>,
    }
    for device in devices() {
        let tracked = device.autodiff();
        let mut point = Point { x: Param::from_tensor(tensor(&[1.0, -2.0, 0.5], [3], &tracked)) };
        let mut optimizer = AdaBeliefConfig::new().init();
        let (mut x, mut m, mut s) = ([1.0f64, -2.0, 0.5], [0.0f64; 3], [0.0f64; 3]);
        for step in 1..=30i32 {
            let value = point.x.val();
            // The gradient of x^2 / 2 + sin x changes from step to step.
            let loss = (value.clone().square().mul_scalar(0.5) - value.cos()).sum();
            let gradients = GradientsParams::from_grads(loss.backward(), &point);
            point = optimizer.step(0.05, point, gradients);
            for place in 0..3 {
                let g = x[place] + x[place].sin();
                m[place] = 0.9 * m[place] + 0.1 * g;
                s[place] = 0.999 * s[place] + 0.001 * (g - m[place]).powi(2) + 1e-16;
                let (mean, spread) =
                    (m[place] / (1.0 - 0.9f64.powi(step)), s[place] / (1.0 - 0.999f64.powi(step)));
                x[place] -= 0.05 * mean / (spread.sqrt() + 1e-16);
            }
            close(&values(&point.x.val()), &x, 2e-4);
        }
    }
}
