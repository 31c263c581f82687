//! Early exits: compute against quality.
//!
//! After Regol, Chataoui, Coates 2024, arXiv 2310.09163. A network of six blocks learns which arm of a spiral a point
//! lies on: near the centre that is a sector, further out it takes depth. The network is frozen, and exits are put
//! behind its blocks: with gates that learn together with the classifiers (JEI-DNN), with gates that learn after
//! them, and with thresholds on the confidence instead of gates. What does each answer at which mean cost, how well
//! do its confidences mean what they say, which points leave where, and how much time is saved in fact?
//!
//! ```text
//! cargo run --release -p gatekit-examples --example jei-dnn
//! ```
#![deny(missing_docs)]

#[path = "jei-dnn/backbone.rs"]
mod backbone;
#[path = "jei-dnn/plots.rs"]
mod plots;
#[path = "jei-dnn/policies.rs"]
mod policies;
#[path = "jei-dnn/spiral.rs"]
mod spiral;

use std::process::ExitCode;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use clap::Parser;
use gatekit::core::ModuleConfig;
use gatekit::experts::jei_dnn::{
    AlternatingTrainer, DynamicNetwork, EarlyExits, ExitLearner, ExitPhase, ExitReport, ExitSamples,
    JeiDnnConfig, ModuleWeighting, SgdExitLearner, normalised_costs,
};
use gatekit_examples::{ExampleError, Experiment, Results, progress, say, tasks};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use backbone::{Backbone, Network, WIDTH};
use policies::Outcome;
use spiral::{CLASSES, Points};

/// Early exits on a spiral: accuracy, calibration and time against cost.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Steps of the network's training [default: 800, quick: 40]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    steps: Option<u32>,
    /// Epochs of the exits' training after the warm-up [default: 12, quick: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    epochs: Option<u32>,
}

/// Prices of the whole network's cost, in nats.
const TRADEOFFS: [f64; 6] = [0.01, 0.1, 0.5, 1.0, 2.0, 4.0];
/// Confidences that a threshold policy leaves at.
const THRESHOLDS: [f64; 8] = [0.35, 0.5, 0.65, 0.8, 0.9, 0.97, 0.99, 0.999];
/// Mean costs at which the curves are compared.
const COSTS: [f64; 3] = [0.32, 0.36, 0.4];
const JOINT: &str = "JEI-DNN";
const AFTER: &str = "gates after classifiers";
const CONFIDENCE: &str = "confidence thresholds";
const BATCH: usize = 128;
/// Learning rates of the exits: in the warm-up, whose loss weighs early exits up to six times, and after it.
const WARM_UP_RATE: f64 = 4e-3;
const RATE: f64 = 0.1;

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

/// A policy at one setting on one seed.
struct Run {
    policy: &'static str,
    /// Its place among the policy's settings.
    setting: usize,
    seed: u64,
    outcome: Outcome,
    /// Time of `infer` over that of the whole network, where measured.
    time: Option<f64>,
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let or = |given: Option<u32>, full, quick| {
        given.map_or_else(|| experiment.steps(full, quick), |given| given as usize)
    };
    let (steps, epochs) = (or(args.steps, 800, 40), or(args.epochs, 12, 2));
    let device = experiment.device()?;
    let out = experiment.out_dir("jei-dnn")?;
    let tradeoffs = &TRADEOFFS[..experiment.steps(TRADEOFFS.len(), 2)];
    let (mut runs, mut stages, mut difficulty) = (Vec::new(), Results::new(), Vec::new());
    for seed in experiment.seeds() {
        let lab = Lab::new(seed, steps, experiment, &device)?;
        difficulty = lab.test.difficulty.clone();
        lab.measure(seed, epochs, tradeoffs, &mut stages, &mut runs)?;
    }

    say("The network, and every exit for all points (classifiers trained alone):\n");
    say(stages.table());
    let table = table(&runs, tradeoffs);
    say("Every policy at its settings; time is that of answering 4096 points, over the whole network's:\n");
    say(table.table());
    let compared = compared(&runs);
    say("At the same mean cost (straight between settings):\n");
    say(compared.table());
    table.write_csv(out.join("results.csv"))?;
    table.write_json(out.join("results.json"))?;
    stages.write_csv(out.join("stages.csv"))?;
    compared.write_csv(out.join("compared.csv"))?;
    plots::accuracy(&runs).write_svg(out.join("jei-dnn.svg"))?;
    plots::calibration(&runs).write_svg(out.join("calibration.svg"))?;
    plots::exits_by_difficulty(&runs, &difficulty, tradeoffs).write_svg(out.join("difficulty.svg"))?;
    plots::time(&runs).write_svg(out.join("time.svg"))?;
    say(format!("Plots and tables are in {}", out.display()));
    Ok(())
}

/// A frozen network, its features of the training points, and points to judge by.
struct Lab {
    network: Network,
    config: JeiDnnConfig,
    train: ExitSamples,
    validation: ExitSamples,
    test: Points,
    device: Device,
}

impl Lab {
    fn new(seed: u64, steps: usize, experiment: &Experiment, device: &Device) -> Result<Self, ExampleError> {
        let network = backbone::trained(seed, steps, device)?;
        let costs = normalised_costs(&network.backbone);
        let config = JeiDnnConfig::new(costs.len() - 1, WIDTH, CLASSES, costs)
            .with_phase_batches(experiment.steps(16, 2))
            .with_learning_rate(RATE)
            .with_min_learning_rate(2e-3)
            .with_max_warmup_epochs(experiment.steps(24, 1))
            .with_warmup_patience(3);
        // Points that no other part has seen; the test points are the same for all seeds.
        let mut random = tasks::random(1_000 + seed);
        let draw = |random: &mut _, count| Points::draw(count, random, device);
        let (train, validation) =
            (draw(&mut random, experiment.steps(4096, 512)), draw(&mut random, experiment.steps(2048, 256)));
        let test = draw(&mut tasks::random(77), experiment.steps(4096, 512));
        let exits = config.try_init(device)?;
        let whole = DynamicNetwork::new(network.backbone.clone(), exits)?;
        let samples =
            |points: Points| ExitSamples { features: whole.features(points.inputs), labels: points.labels };
        let (train, validation) = (samples(train), samples(validation));
        Ok(Self { network, config, train, validation, test, device: device.clone() })
    }

    fn test_features(&self) -> Tensor<3> {
        let exits = self.config.init(&self.device);
        let whole = DynamicNetwork { backbone: self.network.backbone.clone(), exits };
        whole.features(self.test.inputs.clone())
    }

    /// Trains exits, fresh or `from` others, under a configuration.
    fn exits(
        &self,
        config: &JeiDnnConfig,
        from: Option<&EarlyExits>,
        seed: u64,
        label: &str,
    ) -> Result<EarlyExits, ExampleError> {
        self.device.seed(seed);
        let fresh = || -> Result<_, ExampleError> {
            Ok(config.try_init(&self.device)?.with_head(self.network.head.clone()))
        };
        let exits = match from {
            Some(exits) => exits.clone().with_config(config.clone())?,
            None => fresh()?,
        };
        let mut learner = SgdExitLearner::new(exits, self.validation.clone())?;
        let epochs = config.epochs + config.max_warmup_epochs;
        let bar = progress(epochs * self.batches(&mut tasks::random(0)).len(), label);
        let mut random = tasks::random(seed);
        AlternatingTrainer::new(config)?.train(&mut learner, |_| {
            let bar = &bar;
            self.batches(&mut random).into_iter().map(move |rows| {
                bar.inc(1);
                self.train.select(&rows)
            })
        })?;
        bar.finish_and_clear();
        Ok(learner.exits())
    }

    /// Trains the classifiers on all samples alike, without regard to gates.
    fn classifiers_alone(
        &self,
        config: &JeiDnnConfig,
        from: &EarlyExits,
        seed: u64,
    ) -> Result<EarlyExits, ExampleError> {
        let config = config.clone().with_module_weighting(ModuleWeighting::Uniform);
        let mut learner =
            SgdExitLearner::new(from.clone().with_config(config.clone())?, self.validation.clone())?;
        let mut random = tasks::random(seed);
        let bar = progress(config.epochs, "classifiers alone");
        for epoch in 0..config.epochs {
            for rows in self.batches(&mut random) {
                learner.step(ExitPhase::Classifiers, self.train.select(&rows))?;
            }
            learner.end_epoch(epoch)?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(learner.exits())
    }

    /// The training samples in a new order, cut into batches.
    fn batches(&self, random: &mut StdRng) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.train.labels.dims()[0]).collect();
        order.shuffle(random);
        order.chunks(BATCH).map(<[usize]>::to_vec).collect()
    }

    fn measure(
        &self,
        seed: u64,
        epochs: usize,
        tradeoffs: &[f64],
        stages: &mut Results,
        runs: &mut Vec<Run>,
    ) -> Result<(), ExampleError> {
        let features = self.test_features();
        // Both begin with the same warm-up, and their classifiers learn in as many steps under the same schedule; only
        // the weights of their losses differ.
        let warm = self.exits(
            &self.config.clone().with_epochs(0).with_learning_rate(WARM_UP_RATE),
            None,
            seed,
            "warm-up",
        )?;
        let (half, rest) = (epochs.div_ceil(2), self.config.clone().with_max_warmup_epochs(0));
        let classifiers = self.classifiers_alone(&rest.clone().with_epochs(half), &warm, seed + 1)?;
        let all = ExitReport::of(&classifiers, features.clone(), &self.test.labels)?;
        for (exit, accuracy) in all.exit_accuracies.iter().enumerate() {
            let name =
                if exit + 1 == all.exit_accuracies.len() { "network".into() } else { format!("exit {exit}") };
            stages.record(&name, "accuracy", seed, *accuracy);
            stages.record(&name, "cost", seed, self.config.cost_per_exit[exit]);
        }
        for (setting, threshold) in THRESHOLDS.iter().enumerate() {
            let outcome = policies::confidence(&classifiers, features.clone(), &self.test, *threshold)?;
            runs.push(Run { policy: CONFIDENCE, setting, seed, outcome, time: None });
        }
        for (setting, tradeoff) in tradeoffs.iter().enumerate() {
            let priced = self
                .config
                .clone()
                .with_cost_tradeoff(*tradeoff)
                .with_epochs(epochs)
                .with_max_warmup_epochs(0);
            for (policy, from, config) in
                [(JOINT, &warm, priced.clone()), (AFTER, &classifiers, priced.with_freeze_classifiers(true))]
            {
                let exits = self.exits(&config, Some(from), seed + 2, &format!("{policy} {tradeoff}"))?;
                let outcome = policies::gates(&exits, features.clone(), &self.test)?;
                let time = (policy == JOINT).then(|| self.time(exits)).transpose()?;
                runs.push(Run { policy, setting, seed, outcome, time });
            }
        }
        Ok(())
    }

    /// Time of `infer` on the test points over that of the whole network without exits; the best of nine.
    fn time(&self, exits: EarlyExits) -> Result<f64, ExampleError> {
        let network = DynamicNetwork::new(self.network.backbone.clone(), exits)?;
        let whole =
            |backbone: &Backbone| self.network.head.forward(backbone.forward(self.test.inputs.clone()));
        let (mut stopped, mut full) = (Vec::new(), Vec::new());
        for _ in 0..9 {
            let start = Instant::now();
            network.infer(self.test.inputs.clone())?.logits.into_data();
            stopped.push(start.elapsed().as_secs_f64());
            let start = Instant::now();
            whole(&network.backbone).into_data();
            full.push(start.elapsed().as_secs_f64());
        }
        let best = |times: Vec<f64>| times.into_iter().fold(f64::INFINITY, f64::min);
        Ok(best(stopped) / best(full))
    }
}

fn table(runs: &[Run], tradeoffs: &[f64]) -> Results {
    let mut table = Results::new();
    for run in runs {
        let name = match run.policy {
            CONFIDENCE => format!("confidence {}", THRESHOLDS[run.setting]),
            policy => format!("{policy}, price {}", tradeoffs[run.setting]),
        };
        table.record(&name, "accuracy", run.seed, run.outcome.accuracy);
        table.record(&name, "mean cost", run.seed, run.outcome.cost);
        table.record(&name, "ECE", run.seed, run.outcome.ece);
        if let Some(time) = run.time {
            table.record(&name, "time", run.seed, time);
        }
    }
    table
}

/// Accuracy and calibration error of every policy at the same mean costs.
fn compared(runs: &[Run]) -> Results {
    let mut table = Results::new();
    for policy in [JOINT, AFTER, CONFIDENCE] {
        let mut seeds: Vec<u64> = runs.iter().map(|run| run.seed).collect();
        seeds.dedup();
        for seed in seeds {
            let curve = |value: fn(&Outcome) -> f64| -> Vec<(f64, f64)> {
                let of = runs.iter().filter(|run| run.policy == policy && run.seed == seed);
                of.map(|run| (run.outcome.cost, value(&run.outcome))).collect()
            };
            for (name, curve) in
                [("accuracy", curve(|outcome| outcome.accuracy)), ("ECE", curve(|outcome| outcome.ece))]
            {
                for cost in COSTS {
                    if let Some(value) = policies::at(&curve, cost) {
                        table.record(policy, &format!("{name} at {cost}"), seed, value);
                    }
                }
            }
        }
    }
    table
}
