//! Training in turns.

use burn::tensor::Tensor;
use gatekit_core::InputError;
use gatekit_core::checkpoint::named_parameters;
use gatekit_experts::jei_dnn::{
    AlternatingTrainer, ExitLearner, ExitPhase, ExitReport, ExitSamples, ModuleWeighting, SgdExitLearner,
};

use super::*;

/// Says its validation accuracies from a list and writes down what it is told.
struct Scripted {
    accuracies: Vec<[f64; 2]>,
    judged: usize,
    steps: Vec<ExitPhase>,
    kept: Vec<(usize, usize)>,
    frozen: Vec<(usize, usize)>,
    report: ExitReport,
}

impl Scripted {
    fn new(accuracies: &[[f64; 2]]) -> Self {
        let device = Device::flex();
        let exits = lively(&config(), &device);
        let features = Tensor::ones([1, 4, WIDTH], &device);
        let report = ExitReport::of(&exits, features, &labels(&[0], &device)).unwrap();
        let accuracies = accuracies.to_vec();
        Self { accuracies, judged: 0, steps: vec![], kept: vec![], frozen: vec![], report }
    }
}

impl ExitLearner for Scripted {
    type Batch = ();

    fn num_exits(&self) -> usize {
        2
    }

    fn step(&mut self, phase: ExitPhase, _batch: ()) -> Result<f64, InputError> {
        self.steps.push(phase);
        Ok(self.steps.len() as f64)
    }

    fn accuracies(&mut self) -> Result<Vec<f64>, InputError> {
        self.judged += 1;
        Ok(self.accuracies[self.judged - 1].to_vec())
    }

    fn keep_best(&mut self, exit: usize) {
        self.kept.push((self.judged, exit));
    }

    fn freeze_best(&mut self, exit: usize) {
        self.frozen.push((self.judged, exit));
    }

    fn begin_phases(&mut self, _frozen: bool) {
        self.steps.clear();
    }

    fn end_epoch(&mut self, _epoch: usize) -> Result<ExitReport, InputError> {
        Ok(self.report.clone())
    }
}

#[test]
fn the_warm_up_waits_for_every_exit_and_keeps_the_best() {
    let trainer = AlternatingTrainer::new(&config().with_max_warmup_epochs(9)).unwrap();
    // Exit 0 gains last in epoch 2; exit 1 in epoch 3, where a tie is no gain.
    let mut learner =
        Scripted::new(&[[0.5, 0.2], [0.6, 0.2], [0.6, 0.4], [0.5, 0.4], [0.9, 0.3], [0.9, 0.9]]);
    let history = trainer.warm_up(&mut learner, |_| [(), ()]).unwrap();
    assert_eq!(history.len(), 5);
    assert_eq!(learner.kept, [(1, 0), (1, 1), (2, 0), (3, 1)]);
    assert_eq!(learner.frozen, [(4, 0), (5, 1)]);
    assert_eq!(learner.steps, [ExitPhase::WarmUp; 10]);
    let short = AlternatingTrainer::new(&config().with_max_warmup_epochs(2)).unwrap();
    let mut learner = Scripted::new(&[[0.5, 0.2], [0.6, 0.3]]);
    assert_eq!(short.warm_up(&mut learner, |_| [()]).unwrap().len(), 2);
    assert!(learner.frozen.is_empty());
}

#[test]
fn phases_take_turns_across_epochs_gates_first() {
    use ExitPhase::{Classifiers, Gates};
    let config = config().with_max_warmup_epochs(0).with_epochs(3).with_phase_batches(2);
    let mut learner = Scripted::new(&[]);
    let report = AlternatingTrainer::new(&config).unwrap().train(&mut learner, |_| [(); 3]).unwrap();
    let want = [Gates, Gates, Classifiers, Classifiers, Gates, Gates, Classifiers, Classifiers, Gates];
    assert_eq!(learner.steps, want);
    // Losses are the scripted steps 1 to 9, averaged by phase and epoch.
    assert_eq!(report.losses, [(1.5, 3.0), (5.5, 4.0), (9.0, 7.5)]);
    assert_eq!(report.epochs.len(), 3);

    let config = config.with_freeze_classifiers(true);
    let mut learner = Scripted::new(&[]);
    let report = AlternatingTrainer::new(&config).unwrap().train(&mut learner, |_| [(); 3]).unwrap();
    assert_eq!(learner.steps, [Gates; 9]);
    assert!(report.losses.iter().all(|(gates, classifiers)| gates.is_finite() && classifiers.is_nan()));
}

/// Features whose later stages tell the class more clearly.
fn samples(count: usize, device: &Device) -> ExitSamples {
    let noise = ramp(count * 4 * WIDTH, 1.0);
    let truth: Vec<i64> = (0..count as i64).map(|i| (i * 7 + i / 5) % 3).collect();
    let mut features = vec![0.0; count * 4 * WIDTH];
    for (sample, label) in truth.iter().enumerate() {
        for stage in 0..4 {
            let at = (sample * 4 + stage) * WIDTH;
            (0..WIDTH).for_each(|channel| features[at + channel] = noise[at + channel]);
            features[at + *label as usize] += 0.5 + 0.8 * stage as f64;
        }
    }
    ExitSamples { features: float(&features, [count, 4, WIDTH], device), labels: labels(&truth, device) }
}

fn batches(data: &ExitSamples) -> Vec<ExitSamples> {
    let rows: Vec<usize> = (0..data.labels.dims()[0]).collect();
    rows.chunks(32).map(|rows| data.select(rows)).collect()
}

#[test]
fn training_lowers_losses_and_leaves_the_final_head() {
    for device in devices() {
        device.seed(3);
        let data = samples(256, &device);
        let config = config()
            .with_phase_batches(4)
            .with_epochs(12)
            .with_learning_rate(0.05)
            .with_max_warmup_epochs(4)
            .with_cost_tradeoff(0.5);
        let exits = lively(&config, &device);
        let before = named_parameters(&exits);
        let mut learner = SgdExitLearner::new(exits, data.clone()).unwrap();
        let start = learner.validate().unwrap();
        assert!(learner.conformal().is_none());
        let report =
            AlternatingTrainer::new(&config).unwrap().train(&mut learner, |_| batches(&data)).unwrap();
        let end = learner.validate().unwrap();
        assert!(end.accuracy > start.accuracy + 0.2, "{} {}", start.accuracy, end.accuracy);
        let (first, last) = (report.losses[0], report.losses[11]);
        assert!(last.0 < first.0 && last.1 < first.1, "{:?}", report.losses);
        assert!(learner.conformal().is_some());
        assert_ne!(learner.exits().config().pos_weights, None);
        let after = named_parameters(&learner.exits());
        for (name, value) in before {
            let same = value.iter::<f32>().eq(after[&name].iter::<f32>());
            assert_eq!(same, name.starts_with("head."), "{name}");
        }
    }
}

#[test]
fn a_phase_moves_its_own_parameters_alone() {
    for device in devices() {
        let data = samples(32, &device);
        let mut learner = SgdExitLearner::new(lively(&config(), &device), data.clone()).unwrap();
        let mut step = |phase, freeze: Option<usize>| {
            if let Some(exit) = freeze {
                learner.keep_best(exit);
                learner.freeze_best(exit);
            }
            let before = named_parameters(&learner.exits());
            assert!(learner.step(phase, data.clone()).unwrap().is_finite());
            let after = named_parameters(&learner.exits());
            let moved = |name: &&String| !before[*name].iter::<f32>().eq(after[*name].iter::<f32>());
            before
                .keys()
                .filter(moved)
                .map(|name| name.split(".w").next().unwrap().to_string())
                .collect::<Vec<_>>()
        };
        assert!(step(ExitPhase::Gates, None).iter().all(|name| name.starts_with("gates.")));
        let moved = step(ExitPhase::Classifiers, None);
        assert!(moved.len() >= 3 && moved.iter().all(|name| name.starts_with("intermediate_heads.")));
        let moved = step(ExitPhase::WarmUp, Some(1));
        assert!(moved.iter().all(|name| name.contains("heads.0") || name.contains("heads.2")), "{moved:?}");
    }
}

#[test]
fn frozen_classifiers_come_back_with_their_best_weights() {
    for device in devices() {
        let data = samples(32, &device);
        let mut learner = SgdExitLearner::new(lively(&config(), &device), data.clone()).unwrap();
        let weights = |learner: &SgdExitLearner, exit: usize| {
            values(learner.exits().intermediate_heads[exit].weight.val())
        };
        let best = weights(&learner, 0);
        learner.keep_best(0);
        learner.step(ExitPhase::WarmUp, data.clone()).unwrap();
        assert_ne!(weights(&learner, 0), best);
        learner.freeze_best(0);
        assert_eq!(weights(&learner, 0), best);
        learner.step(ExitPhase::Classifiers, data.clone()).unwrap();
        assert_eq!(weights(&learner, 0), best);
        learner.begin_phases(false);
        learner.step(ExitPhase::Classifiers, data.clone()).unwrap();
        assert_ne!(weights(&learner, 0), best);
        learner.begin_phases(true);
        let before = weights(&learner, 2);
        learner.step(ExitPhase::Classifiers, data).unwrap();
        assert_eq!(weights(&learner, 2), before);
    }
}

#[test]
fn every_weighting_and_objective_trains() {
    use gatekit_experts::jei_dnn::GateObjective;
    let device = Device::flex();
    let data = samples(64, &device);
    for weighting in [ModuleWeighting::Rescaled, ModuleWeighting::ExitProbability, ModuleWeighting::Uniform] {
        for objective in [GateObjective::CrossEntropy, GateObjective::ZeroOne, GateObjective::Probability] {
            let config = config()
                .with_module_weighting(weighting)
                .with_gate_objective(objective)
                .with_phase_batches(1)
                .with_epochs(2)
                .with_max_warmup_epochs(1);
            let mut learner = SgdExitLearner::new(lively(&config, &device), data.clone()).unwrap();
            let trainer = AlternatingTrainer::new(&config).unwrap();
            let report = trainer.train(&mut learner, |_| batches(&data)).unwrap();
            assert!(report.losses.iter().all(|(a, b)| a.is_finite() && b.is_finite()));
        }
    }
}
