//! Task after task through a gate: what stopping the gate in time is worth, and how many experts.
//!
//! Li et al. 2024, arXiv 2406.16437. Six linear tasks in three clusters arrive one at a time, in random order; a gate
//! sends each data set to one linear expert, which moves to the nearest exact fit. Compared are 1, 5, 10 and 20 experts,
//! with a gate that stops learning once it tells the tasks apart and with one that never does, by what is forgotten and
//! by the error on all tasks seen. A second run draws isotropic data for a single expert and sets the measured errors
//! beside the closed formulas. With `--digits` the same is done with networks instead: three tasks of one drawn digit
//! against the rest, and 1, 4 and 7 convolutional experts.
//!
//! ```text
//! cargo run --release -p gatekit-examples --example moe-continual-learning -- --seeds 10
//! cargo run --release -p gatekit-examples --example moe-continual-learning -- --digits
//! ```
#![deny(missing_docs)]

#[path = "moe-continual-learning/deep.rs"]
mod deep;
#[path = "moe-continual-learning/digits.rs"]
mod digits;

use std::path::Path;
use std::process::ExitCode;

use burn::tensor::{Device, Tensor, TensorData};
use clap::Parser;
use gatekit::core::ModuleConfig;
use gatekit::core::linalg::Matrix;
use gatekit::core::probe::{HeatMap, LinePlot};
use gatekit::experts::moe_continual_learning::{
    ContinualMoe, ContinualMoeConfig, Design, ErrorLedger, ExpectedErrorsConfig, MinNormExperts,
    SyntheticTasks, SyntheticTasksConfig, squared_errors,
};
use gatekit_examples::{ExampleError, Experiment, Results, progress, say, tasks};
use rand::RngExt;
use rand::rngs::StdRng;

/// Continual learning with a mixture of experts whose gate stops in time, or does not.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Rounds: data sets that arrive
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(300..=100_000))]
    rounds: u64,
    /// Networks on drawn digits instead of the linear tasks (with --quick both)
    #[arg(long)]
    digits: bool,
    /// With --digits: steps of gradient descent a round [default: 600, with --quick 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    steps: Option<u64>,
}

const EXPERTS: [usize; 4] = [1, 5, 10, 20];
/// Errors are averaged over the last rounds.
const LAST: usize = 200;
/// Rounds and drawn task sequences of the run beside the formulas.
const FORMULA_ROUNDS: usize = 30;
const SEQUENCES: usize = 200;

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

/// What a run left behind.
struct Run {
    ledger: ErrorLedger,
    tasks: Vec<usize>,
    chosen: Vec<usize>,
    stopped_at: Option<usize>,
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let device = experiment.device()?;
    let out = experiment.out_dir("moe-continual-learning")?;
    if args.digits || experiment.quick {
        deep::run(experiment, args.steps.map(|steps| steps as usize), &device, &out)?;
    }
    if args.digits {
        say(format!("Tables and plots are in {}", out.display()));
        return Ok(());
    }
    let rounds = experiment.steps(args.rounds as usize, 300);
    let seeds: Vec<u64> = experiment.seeds().collect();
    let mut results = Results::new();
    let mut runs = Vec::new();
    let bar = progress(seeds.len() * EXPERTS.len() * 2 * rounds, "rounds");
    for &seed in &seeds {
        let world = SyntheticTasksConfig::new().with_seed(seed).try_init()?;
        for experts in EXPERTS {
            for stops in [true, false] {
                let run = learn(&world, experts, stops, rounds, seed, &device)?;
                bar.inc(rounds as u64);
                let name = name(experts, stops);
                measure(&name, &run, &world, seed, &mut results);
                runs.push((name, run));
            }
        }
    }
    bar.finish_and_clear();
    say(format!(
        "Last {LAST} of {rounds} rounds; purity: rounds whose task is of the expert's main cluster:\n"
    ));
    say(results.table());
    results.write_csv(out.join("results.csv"))?;
    results.write_json(out.join("results.json"))?;
    curves(&runs, false).write_svg(out.join("moe-continual-learning.svg"))?;
    curves(&runs, true).write_svg(out.join("forgetting.svg"))?;
    for (name, file) in [(name(20, true), "tasks-stopped.svg"), (name(20, false), "tasks-never.svg")] {
        // Of the first seed.
        if let Some((_, run)) = runs.iter().find(|(of, _)| *of == name) {
            task_map(&name, run).write_svg(out.join(file))?;
        }
    }
    formulas(experiment, &device, &out)?;
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

fn name(experts: usize, stops: bool) -> String {
    let plural = if experts == 1 { "" } else { "s" };
    format!("{experts} expert{plural}, {}", if stops { "gate stops" } else { "never stops" })
}

/// The tasks in random order through a mixture of experts.
fn learn(
    world: &SyntheticTasks,
    experts: usize,
    stops: bool,
    rounds: usize,
    seed: u64,
    device: &Device,
) -> Result<Run, ExampleError> {
    let dims = world.truth().columns();
    let config = ContinualMoeConfig::new(dims, experts)
        .with_min_rounds(80 + 3 * experts)
        .with_early_termination(stops);
    let mut model: ContinualMoe = config.try_init(device)?;
    // Both gates meet the same tasks and the same noise.
    let mut random = tasks::random(seed.wrapping_mul(1000) + 1);
    let mut ledger = ErrorLedger::new(experts, world.truth().rows());
    let (mut seen, mut chosen) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let data = world.draw(&mut random);
        let (x, y) = data.tensors(device);
        let noise = noise(experts, config.noise_bound, &mut random, device);
        let expert = model.round(x, y, noise)?.routing.expert;
        ledger.record(data.task, expert, &squared_errors(&model.experts.weights(), world.truth()))?;
        seen.push(data.task);
        chosen.push(expert);
    }
    Ok(Run { ledger, tasks: seen, chosen, stopped_at: model.terminator().stopped_at() })
}

fn noise(experts: usize, bound: f64, random: &mut StdRng, device: &Device) -> Tensor<1> {
    let values: Vec<f64> = (0..experts).map(|_| bound * random.random::<f64>()).collect();
    Tensor::from_data(TensorData::new(values, [experts]), device)
}

fn measure(name: &str, run: &Run, world: &SyntheticTasks, seed: u64, results: &mut Results) {
    let mean_of_last = |values: &[f64]| {
        let last = &values[values.len().saturating_sub(LAST)..];
        last.iter().sum::<f64>() / last.len() as f64
    };
    results.record(name, "generalisation", seed, mean_of_last(run.ledger.generalization()));
    results.record(name, "forgetting", seed, mean_of_last(run.ledger.forgetting()));
    let clusters = world.clusters();
    let from = run.chosen.len().saturating_sub(LAST);
    let counts = counts(run, from, |task| clusters[task]);
    let own: f64 = counts.iter().map(|row| row.iter().copied().fold(0.0, f64::max)).sum();
    results.record(name, "purity", seed, own / (run.chosen.len() - from) as f64);
    if let Some(round) = run.stopped_at {
        results.record(name, "stopped at", seed, round as f64);
    }
}

/// Rounds from `from` on, by expert and by what `column` makes of the task.
fn counts(run: &Run, from: usize, column: impl Fn(usize) -> usize) -> Vec<Vec<f64>> {
    let (experts, tasks) = (run.ledger.counts().rows(), run.ledger.counts().columns());
    let mut counts = vec![vec![0.0; tasks]; experts];
    for (&expert, &task) in run.chosen[from..].iter().zip(&run.tasks[from..]) {
        counts[expert][column(task)] += 1.0;
    }
    counts
}

/// Errors by round, mean over the seeds, and where half of the gates had stopped.
fn curves(runs: &[(String, Run)], forgetting: bool) -> LinePlot {
    let title = if forgetting { "Forgetting" } else { "Error on all tasks seen" };
    let mut plot = LinePlot::new(title, "round", "squared distance").with_log_y(true);
    let mut ends = Vec::new();
    let shown = EXPERTS.iter().flat_map(|experts| [(*experts, true), (*experts, false)]);
    // A single expert has no gate that could go astray.
    for (experts, stops) in shown.filter(|shown| *shown != (1, false)) {
        let name = name(experts, stops);
        let of: Vec<&Run> = runs.iter().filter(|(of, _)| *of == name).map(|(_, run)| run).collect();
        let mean = |round: usize| {
            let values = of.iter().map(|run| match forgetting {
                true => run.ledger.forgetting()[round],
                false => run.ledger.generalization()[round],
            });
            // Forgetting may be negative: an expert became better on what it had seen.
            (values.sum::<f64>() / of.len() as f64).max(1e-6)
        };
        let rounds = of[0].tasks.len();
        plot = plot.with_series(&name, (10..rounds).step_by(5).map(|round| (round as f64, mean(round - 1))));
        let mut stopped: Vec<usize> = of.iter().filter_map(|run| run.stopped_at).collect();
        stopped.sort_unstable();
        if experts > 1 && 2 * stopped.len() > of.len() {
            let median = stopped[of.len() / 2];
            ends.push((median as f64, mean(median - 1)));
        }
    }
    ends.into_iter().enumerate().fold(plot, |plot, (index, end)| {
        plot.with_series(if index == 0 { "half of the gates stopped" } else { "" }, [end])
    })
}

/// Which task went to which expert in the last rounds.
fn task_map(name: &str, run: &Run) -> HeatMap {
    let counts = counts(run, run.chosen.len().saturating_sub(LAST), |task| task);
    HeatMap::new(&format!("Tasks by expert, {name}"), "task", "expert", "rounds", counts)
}

/// A single expert on isotropic data, measured over many task sequences and expected.
fn formulas(experiment: &Experiment, device: &Device, out: &Path) -> Result<(), ExampleError> {
    let config = SyntheticTasksConfig::new().with_design(Design::Isotropic).with_seed(experiment.seed);
    let world = config.try_init()?;
    let expected = ExpectedErrorsConfig::new(config.input_dim, config.samples).try_init(world.truth())?;
    let sequences = experiment.steps(SEQUENCES, 20);
    let mut random = tasks::random(experiment.seed);
    let mut means = [vec![0.0; FORMULA_ROUNDS], vec![0.0; FORMULA_ROUNDS]];
    let bar = progress(sequences, "sequences");
    for _ in 0..sequences {
        let mut expert = MinNormExperts::new(1, config.input_dim, device);
        let mut ledger = ErrorLedger::new(1, config.num_tasks);
        for _ in 0..FORMULA_ROUNDS {
            let data = world.draw(&mut random);
            let (x, y) = data.tensors(device);
            expert.fit(0, &x, &y)?;
            ledger.record(data.task, 0, &squared_errors(&expert.weights(), world.truth()))?;
        }
        for (mean, values) in means.iter_mut().zip([ledger.generalization(), ledger.forgetting()]) {
            mean.iter_mut().zip(values).for_each(|(mean, value)| *mean += value / sequences as f64);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let rounds = 1..=FORMULA_ROUNDS;
    let generalization: Vec<f64> =
        rounds.clone().map(|t| expected.single_generalization(t)).collect::<Result<_, _>>()?;
    let forgetting: Vec<f64> = rounds.map(|t| expected.single_forgetting(t)).collect::<Result<_, _>>()?;
    let table = Matrix::from_fn(FORMULA_ROUNDS, 4, |row, column| match column {
        0 => means[0][row],
        1 => generalization[row],
        2 => means[1][row],
        _ => forgetting[row],
    });
    say(format!("A single expert on isotropic data, mean of {sequences} task sequences:\n"));
    say("| round | generalisation | expected | forgetting | expected |\n|---:|---:|---:|---:|---:|");
    for round in [1, 2, 5, 10, 20, FORMULA_ROUNDS] {
        let cells: Vec<String> = table.row(round - 1).iter().map(|value| format!("{value:.4}")).collect();
        say(format!("| {round} | {} |", cells.join(" | ")));
    }
    say("");
    let names = ["G, measured", "G, expected", "F, measured", "F, expected"];
    let plot = LinePlot::new("One expert on isotropic data", "round", "squared distance");
    let plot = names.iter().enumerate().fold(plot, |plot, (column, name)| {
        plot.with_series(name, (0..FORMULA_ROUNDS).map(|row| (row as f64 + 1.0, table[[row, column]])))
    });
    Ok(plot.write_svg(out.join("formulas.svg"))?)
}
