//! The same with networks: one digit against the rest, task after task, by convolutional experts behind the linear gate.

use std::path::Path;

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::activation::{relu, sigmoid};
use burn::tensor::{Device, Tensor, TensorData};
use gatekit::core::conv::convolve;
use gatekit::core::linalg::Matrix;
use gatekit::core::probe::LinePlot;
use gatekit::experts::moe_continual_learning::{ContinualMoeConfig, ErrorLedger, GateTerminator, TaskRouter};
use gatekit_examples::{ExampleError, Experiment, Results, progress, say, tasks};
use indicatif::ProgressBar;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::digits::{PIXELS, SIDE, against_the_rest, mean_picture};
use crate::{name, noise};

/// Each against the rest.
const TASKS: [usize; 3] = [1, 4, 7];
const EXPERTS: [usize; 3] = [1, 4, 7];
/// The scale that the published constants of gap and noise go with.
const SCALE: f64 = 0.05;
/// Errors are averaged over the last rounds.
const LAST: usize = 20;

/// Sizes of the experiment.
struct Sizes {
    rounds: usize,
    steps: usize,
    images: usize,
    tests: usize,
}

/// Two convolutions and three linear maps, LeNet's sizes, to the probability of the task's digit.
#[derive(Module, Debug)]
struct Expert {
    first: Conv2d,
    second: Conv2d,
    pool: MaxPool2d,
    linear: Vec<Linear>,
}

impl Expert {
    fn new(device: &Device) -> Self {
        let inner = 16 * ((SIDE - 4) / 2 - 4).div_euclid(2).pow(2);
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        Self {
            first: Conv2dConfig::new([1, 6], [5, 5]).init(device),
            second: Conv2dConfig::new([6, 16], [5, 5]).init(device),
            pool: MaxPool2dConfig::new([2, 2]).init(),
            linear: vec![linear(inner, 120), linear(120, 84), linear(84, 1)],
        }
    }

    /// Pictures `[count, 1, SIDE, SIDE]` to `[count, 1]`.
    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = self.pool.forward(relu(convolve(&self.first, x, None)));
        let x: Tensor<2> = self.pool.forward(relu(convolve(&self.second, x, None))).flatten(1, 3);
        let [first, second, last] = [0, 1, 2].map(|at| &self.linear[at]);
        sigmoid(last.forward(relu(second.forward(relu(first.forward(x))))))
    }

    fn loss(&self, (x, labels): &(Tensor<4>, Tensor<2>)) -> Tensor<1> {
        (self.forward(x.clone()) - labels.clone()).powi_scalar(2).mean()
    }
}

/// What the tasks of a seed look like.
struct World {
    /// What the gate sees of each task, `[1, PIXELS]`.
    features: Vec<Tensor<2>>,
    /// Pictures and labels of each task.
    tests: Vec<(Tensor<4>, Tensor<2>)>,
}

impl World {
    fn new(sizes: &Sizes, seed: u64, device: &Device) -> Self {
        let mut random = tasks::random(seed.wrapping_mul(1000) + 7);
        let means = TASKS.map(|digit| mean_picture(digit, sizes.tests, &mut random));
        let norm = means.iter().flatten().map(|pixel| pixel * pixel).sum::<f32>().sqrt();
        // As published: over their joint norm, and two of them moved apart.
        let features = means.iter().zip([-0.5, 0.5, 0.0]).map(|(mean, shift)| {
            let values: Vec<f32> = mean.iter().map(|pixel| pixel / norm + shift).collect();
            Tensor::from_data(TensorData::new(values, [1, PIXELS]), device)
        });
        let features = features.collect();
        let tests = TASKS.map(|digit| against_the_rest(digit, sizes.tests, &mut random, device)).into();
        Self { features, tests }
    }
}

/// What a run left behind.
struct Run {
    name: String,
    ledger: ErrorLedger,
    stopped_at: Option<usize>,
}

/// Runs the experiment and writes its tables and plots; `steps` of gradient descent a round.
pub fn run(
    experiment: &Experiment,
    steps: Option<usize>,
    device: &Device,
    out: &Path,
) -> Result<(), ExampleError> {
    let sizes = Sizes {
        rounds: experiment.steps(60, 5),
        steps: steps.unwrap_or(experiment.steps(600, 2)),
        images: experiment.steps(100, 12),
        tests: experiment.steps(200, 12),
    };
    let seeds: Vec<u64> = experiment.seeds().collect();
    let (mut results, mut runs) = (Results::new(), Vec::new());
    let kinds: Vec<(usize, bool)> =
        (EXPERTS.iter().flat_map(|experts| [(*experts, true), (*experts, false)]))
            // A single expert has no gate that could go astray.
            .filter(|kind| *kind != (1, false))
            .collect();
    let bar = progress(seeds.len() * kinds.len() * sizes.rounds, "rounds");
    for &seed in &seeds {
        let world = World::new(&sizes, seed, device);
        for &(experts, stops) in &kinds {
            let run = learn(&world, &sizes, experts, stops, seed, device, &bar)?;
            measure(&run, seed, &mut results);
            runs.push(run);
        }
    }
    bar.finish_and_clear();
    say(format!(
        "Digits: means of the last {LAST} of {} rounds; purity: rounds of an expert's main task:\n",
        sizes.rounds
    ));
    say(results.table());
    results.write_csv(out.join("digits.csv"))?;
    results.write_json(out.join("digits.json"))?;
    Ok(curves(&runs, seeds.len()).write_svg(out.join("digits.svg"))?)
}

/// The tasks in random order; both gates meet the same ones, the same noise and the same experts at first.
fn learn(
    world: &World,
    sizes: &Sizes,
    experts: usize,
    stops: bool,
    seed: u64,
    device: &Device,
    bar: &ProgressBar,
) -> Result<Run, ExampleError> {
    let config = ContinualMoeConfig::new(PIXELS, experts)
        .with_noise_bound(0.005)
        .with_learning_rate(0.3)
        .with_aux_weight(0.3)
        .with_gap_threshold(SCALE.powf(1.25))
        .with_early_termination(stops);
    let mut router = TaskRouter::try_new(&config, device)?;
    let mut terminator: GateTerminator = config.termination().try_init()?;
    device.seed(seed);
    let mut networks: Vec<Expert> = (0..experts).map(|_| Expert::new(device).materialize()).collect();
    let losses = |network: &Expert| -> Vec<f64> {
        world.tests.iter().map(|test| network.loss(test).into_scalar::<f64>()).collect()
    };
    let mut errors: Vec<Vec<f64>> = networks.iter().map(losses).collect();
    let mut random = tasks::random(seed.wrapping_mul(1000) + 1);
    let mut ledger = ErrorLedger::new(experts, TASKS.len());
    for round in 1..=sizes.rounds {
        let task = random.random_range(0..TASKS.len());
        let x = world.features[task].clone();
        let routing = router.route(x.clone(), noise(experts, config.noise_bound, &mut random, device));
        let chosen = routing.expert;
        networks[chosen] = taught(networks[chosen].clone(), TASKS[task], sizes, &mut random, device);
        errors[chosen] = losses(&networks[chosen]);
        let scores: Vec<f64> = routing.tested.to_data().iter::<f64>().collect();
        if !terminator.observe(round, &scores, chosen) {
            // In place of how far the expert moved stands what it still gets wrong.
            let gradient = router.gradient(x, &routing, errors[chosen][task], round);
            router.descend(gradient);
        }
        router.count(&routing);
        ledger.record(
            task,
            chosen,
            &Matrix::from_fn(experts, TASKS.len(), |expert, task| errors[expert][task]),
        )?;
        bar.inc(1);
    }
    Ok(Run { name: name(experts, stops), ledger, stopped_at: terminator.stopped_at() })
}

/// The expert after a round's pictures: steps of plain gradient descent on all of them.
fn taught(expert: Expert, digit: usize, sizes: &Sizes, random: &mut StdRng, device: &Device) -> Expert {
    let data = against_the_rest(digit, sizes.images, random, &device.clone().autodiff());
    let mut optimizer = SgdConfig::new().init();
    let mut expert = expert.train();
    for _ in 0..sizes.steps {
        let gradients = GradientsParams::from_grads(expert.loss(&data).backward(), &expert);
        expert = optimizer.step(0.1, expert, gradients);
    }
    expert.valid()
}

fn measure(run: &Run, seed: u64, results: &mut Results) {
    let mean_of_last = |values: &[f64]| {
        let last = &values[values.len().saturating_sub(LAST)..];
        last.iter().sum::<f64>() / last.len() as f64
    };
    results.record(&run.name, "generalisation", seed, mean_of_last(run.ledger.generalization()));
    results.record(&run.name, "forgetting", seed, mean_of_last(run.ledger.forgetting()));
    let counts = run.ledger.counts();
    let own: f64 = (0..counts.rows()).map(|row| counts.row(row).iter().copied().fold(0.0, f64::max)).sum();
    results.record(&run.name, "purity", seed, own / counts.values().iter().sum::<f64>());
    // A single expert has no gate that stops.
    if let Some(round) = run.stopped_at.filter(|_| counts.rows() > 1) {
        results.record(&run.name, "stopped at", seed, round as f64);
    }
}

/// Test loss on all tasks seen by round, mean over the seeds.
fn curves(runs: &[Run], seeds: usize) -> LinePlot {
    let plot = LinePlot::new("Digits: test loss on all tasks seen", "round", "squared error");
    let kinds = runs.len() / seeds;
    (0..kinds).fold(plot, |plot, kind| {
        let of: Vec<&Run> = runs.iter().skip(kind).step_by(kinds).collect();
        let rounds = of[0].ledger.generalization().len();
        let mean = |round: usize| {
            of.iter().map(|run| run.ledger.generalization()[round]).sum::<f64>() / of.len() as f64
        };
        plot.with_series(&of[0].name, (0..rounds).map(|round| (round as f64 + 1.0, mean(round))))
    })
}
