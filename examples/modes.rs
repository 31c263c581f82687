//! MoDES: how many experts of a trained model can be skipped, and which.
//!
//! After Huang et al. 2025, arXiv 2511.15690. A transformer of six layers with sixteen experts each reads pictures of
//! two digits and a question ("g left?"), and spells the digit that is asked for in the language that is asked for. Then, without further training,
//! experts are skipped: by share, by share and importance with one threshold, by MoDES with a threshold each for text
//! and vision, and by choosing fewer experts for every token. At equal skip ratios, which one still reads?
//!
//! ```text
//! cargo run --release -p gatekit-examples --example modes
//! ```
#![deny(missing_docs)]

#[path = "modes/methods.rs"]
mod methods;
#[path = "modes/model.rs"]
mod model;
#[path = "modes/task.rs"]
mod task;
#[path = "modes/timing.rs"]
mod timing;

use std::process::ExitCode;

use burn::tensor::Device;
use clap::Parser;
use gatekit::core::ModuleConfig;
use gatekit::core::probe::{HeatMap, LinePlot};
use gatekit::experts::modes::{CalibrationLoss, CalibratorConfig, LayerImportance};
use gatekit_examples::{ExampleError, Experiment, Results, Training, progress, say, tasks, train};

use methods::{Bench, Outcome};
use model::{Reader, ReaderConfig};
use task::Batch;

/// Skipping experts of a trained model: accuracy against the share that is skipped.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Steps of the training [default: 700, quick: 6]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    steps: Option<u32>,
}

/// Rows of a training step, of the calibration, and of the test.
const BATCH: usize = 32;
const CALIBRATION: usize = 48;
const TEST: usize = 384;
/// Grid points of each modality.
const GRID: usize = 24;
/// Skip ratios asked for.
const TARGETS: [f64; 6] = [0.25, 0.4, 0.5, 0.6, 0.75, 0.88];

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let device = experiment.device()?;
    let out = experiment.out_dir("modes")?;
    let steps = args.steps.map_or(experiment.steps(700, 6), |steps| steps as usize);
    let config = ReaderConfig::new().with_layers(experiment.steps(6, 2));
    let targets = &TARGETS[..experiment.steps(TARGETS.len(), 2)];
    let (mut accuracy, mut ratios, mut searches) = (Results::new(), Results::new(), Results::new());
    let (mut importance, mut divergence) = (Results::new(), Results::new());
    let mut first = None;
    for seed in experiment.seeds() {
        let (reader, loss) = trained(&config, steps, seed, &device)?;
        say(format!("seed {seed}: training ends at a loss of {loss:.3}"));
        let mut random = tasks::random(seed + 1000);
        let mut draw = |rows| Batch::draw(rows, &mut random, &device);
        let calibration = vec![draw(experiment.steps(CALIBRATION, 8))?];
        let tests = vec![draw(experiment.steps(TEST, 16) / 2)?, draw(experiment.steps(TEST, 16) / 2)?];

        let calibrate = |loss: CalibrationLoss, name: &str| -> Result<LayerImportance, ExampleError> {
            let calibrator = CalibratorConfig::new().with_loss(loss).try_init()?;
            let bar = progress(calibration.len() * (2 * config.layers + 1), name);
            let found = calibrator.calibrate(&reader, &calibration, || bar.inc(1))?;
            bar.finish_and_clear();
            Ok(found.importance)
        };
        let found = [
            calibrate(CalibrationLoss::Kl, "calibration")?,
            calibrate(CalibrationLoss::Mse, "calibration by mse")?,
        ];
        for (found, names) in found.iter().zip([["text", "vision"], ["text, mse", "vision, mse"]]) {
            for (layer, row) in found.rows().iter().enumerate() {
                for (name, value) in names.into_iter().zip(row) {
                    importance.record(name, &format!("layer {}", layer + 1), seed, *value);
                }
            }
        }
        let mut bench = Bench::new(reader, config.clone(), found, calibration, tests, &device)?;
        let grid = experiment.steps(GRID, 4);
        for outcome in bench.outcomes(targets, grid)? {
            let Outcome { method, target, accuracy: right, skipped, loss, evaluations } = outcome;
            let metric = format!("{:.0}%", 100.0 * target);
            accuracy.record(method, &metric, seed, right);
            ratios.record(method, &metric, seed, skipped);
            divergence.record(method, &metric, seed, loss);
            if let Some(evaluations) = evaluations {
                searches.record(method, &metric, seed, evaluations as f64);
                searches.record("exhaustive", &metric, seed, (grid * grid) as f64);
            }
        }
        if first.is_none() {
            first = Some(bench.grid(0.75, grid)?);
        }
    }

    say("\nAnswers that are right in every letter, by the share of slots asked to be skipped:\n");
    say(accuracy.table());
    say("Shares that are skipped on the test questions:\n");
    say(ratios.table());
    say("Divergence of the logits on the calibration questions, nats:\n");
    say(divergence.table());
    say("Importance of the layers:\n");
    say(importance.table());
    say("Pairs of thresholds measured:\n");
    say(searches.table());
    for (name, results) in [
        ("accuracy", &accuracy),
        ("ratios", &ratios),
        ("divergence", &divergence),
        ("importance", &importance),
    ] {
        results.write_csv(out.join(format!("{name}.csv")))?;
    }
    accuracy.write_json(out.join("accuracy.json"))?;
    accuracy_plot(&accuracy, &ratios).write_svg(out.join("modes.svg"))?;
    importance_plot(&importance).write_svg(out.join("modes-importance.svg"))?;
    if let Some(grid) = first {
        say(&grid.stats);
        grid_plot(&grid).write_svg(out.join("modes-grid.svg"))?;
    }
    let (size, rounds) = if experiment.quick { (timing::QUICK, 2) } else { (timing::FULL, 9) };
    let (times, seconds) = timing::measure(size, rounds, &device)?;
    say(times_table(size, &times, seconds));
    LinePlot::new("Time of a layer against skipped slots", "share skipped", "time / time without skipping")
        .with_series("measured", times.iter().copied())
        .with_series("in proportion to the slots left", [(0.0, 1.0), (1.0, 0.0)])
        .write_svg(out.join("modes-time.svg"))?;
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

fn trained(
    config: &ReaderConfig,
    steps: usize,
    seed: u64,
    device: &Device,
) -> Result<(Reader, f64), ExampleError> {
    device.seed(seed);
    let model = config.try_init(device)?;
    let training = Training { steps, warmup: steps / 15, ..Training::default() };
    let (mut random, autodiff) = (tasks::random(seed), device.clone().autodiff());
    let bar = progress(steps, "training");
    let (model, losses) = train(model, &training, &bar, |model, _| {
        model.loss(&Batch::draw(BATCH, &mut random, &autodiff).expect("codes and masks fit"))
    });
    let last = &losses[losses.len() - losses.len().min(20)..];
    Ok((model, last.iter().sum::<f64>() / last.len() as f64))
}

fn accuracy_plot(accuracy: &Results, ratios: &Results) -> LinePlot {
    let plot = LinePlot::new("Answers right against skipped slots", "share skipped", "answers right");
    let whole = accuracy.mean(methods::NOTHING, "0%");
    accuracy.variants().into_iter().filter(|method| *method != methods::NOTHING).fold(plot, |plot, method| {
        let point = |metric: &&str| Some((ratios.mean(method, metric)?, accuracy.mean(method, metric)?));
        let mut points: Vec<_> = accuracy.metrics().iter().filter_map(point).collect();
        points.extend(whole.map(|whole| (0.0, whole)));
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        plot.with_series(method, points)
    })
}

fn importance_plot(importance: &Results) -> LinePlot {
    let plot = LinePlot::new("Importance of the routed experts", "layer", "share of the divergence");
    importance.variants().into_iter().fold(plot, |plot, modality| {
        let metrics = importance.metrics();
        let point =
            |(layer, metric): (usize, &&str)| Some((layer as f64 + 1.0, importance.mean(modality, metric)?));
        plot.with_series(modality, metrics.iter().enumerate().filter_map(point).collect::<Vec<_>>())
    })
}

/// Colours are logarithms, for the divergences span decades.
fn grid_plot(grid: &methods::Grid) -> HeatMap {
    let values = grid.losses.iter().map(|row| row.iter().map(|loss| loss.max(1e-6).log10()).collect());
    let point = |&(i, j): &(usize, usize)| (j as f64, i as f64);
    HeatMap::new(
        "Divergence over both thresholds, and the frontier of 75% skipped",
        "threshold for vision",
        "threshold for text",
        "log10 of nats",
        values.collect(),
    )
    .with_column_values(grid.vision.iter().copied())
    .with_row_values(grid.text.iter().copied())
    .with_first_row_at_bottom(true)
    .with_path("frontier", grid.frontier.iter().map(point).collect::<Vec<_>>())
    .with_points("best", [point(&grid.best)])
}

fn times_table(size: [usize; 5], times: &[(f64, f64)], seconds: f64) -> String {
    let [tokens, width, experts, inner, k] = size;
    let mut table = format!(
        "\nTime of a layer: {tokens} tokens, width {width}, {experts} experts of inner width {inner}, {k} a token; \
         without skipping {:.1} ms\n\n| skipped | time |\n|--------:|-----:|\n",
        1e3 * seconds
    );
    for (ratio, time) in times {
        table += &format!("| {:6.1}% | {time:.2} |\n", 100.0 * ratio);
    }
    table
}
