//! PACGNet on generated night scenes: does gating two sensors find more than adding them?
//!
//! ```text
//! cargo run --release --example pacgnet
//! cargo run --release --example pacgnet -- --ablations --seeds 3
//! ```
//!
//! Every finished run is kept in the output folder, so that a call that was interrupted goes on where it was. With
//! `--fresh` everything is trained again.

mod measure;
mod pictures;
mod report;
mod run;

use clap::Parser;
use gatekit::fusion::pacgnet::{Ablation, NightScenes, PacgNetConfig};
use gatekit_examples::{ExampleError, Experiment, say};

use crate::run::{Run, Settings};

/// Trains PACGNet and what it is compared with on generated pairs of images, and measures how much they find: by day,
/// by night, at thermal crossover, and with one sensor noisy or missing.
#[derive(Parser)]
#[command(mut_arg("seeds", |seeds| seeds.help("How many seeds, counted on from the first [default: 1]")))]
struct Args {
    #[command(flatten)]
    experiment: Experiment,

    /// Every ablation instead of added streams alone: RGB, infrared, added streams, cross-gating, pyramidal gating
    #[arg(long)]
    ablations: bool,

    /// Optimiser steps of a run [default: 1500, with --quick 6]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,

    /// Train again what an earlier call has finished
    #[arg(long)]
    fresh: bool,
}

fn main() -> std::process::ExitCode {
    gatekit_examples::exit(run(Args::parse()))
}

/// The detector of the experiment: a small PACGNet.
fn config(ablation: Ablation, quick: bool) -> PacgNetConfig {
    let channels = if quick { vec![2, 4, 8, 16, 32] } else { vec![4, 8, 16, 32, 64] };
    PacgNetConfig::new(gatekit::fusion::pacgnet::night_scenes::CLASSES)
        .with_channels(channels)
        .with_depths(vec![1; 4])
        .with_reg_max(8)
        .with_min_gate_channels(4)
        .with_ablation(ablation)
}

fn run(args: Args) -> Result<(), ExampleError> {
    let mut experiment = args.experiment;
    // A run takes minutes: one seed unless more are asked for.
    experiment.seeds.get_or_insert(1);
    let quick = experiment.quick;
    let device = experiment.device()?;
    let out = experiment.out_dir("pacgnet")?;
    let settings = Settings {
        steps: args.steps.map_or(experiment.steps(1500, 6), |steps| steps as usize),
        batch: experiment.steps(8, 4),
        size: 64,
        train: experiment.steps(300, 12),
        test: experiment.steps(100, 6),
        quick,
    };
    let ablations: &[Ablation] =
        if args.ablations { &Ablation::ALL } else { &[Ablation::Added, Ablation::Full] };
    let runs: Vec<(u64, Ablation)> =
        experiment.seeds().flat_map(|seed| ablations.iter().map(move |&ablation| (seed, ablation))).collect();

    let mut measured = Vec::new();
    for (number, (seed, ablation)) in runs.iter().enumerate() {
        let run = Run { ablation: *ablation, seed: *seed, settings: settings.clone() };
        let label = format!("{}/{} {}, seed {seed}", number + 1, runs.len(), run.name());
        measured.push(run.finished_or(&out, args.fresh, &device, &label)?);
    }
    report::tables(&measured, &out)?;
    report::plots(&measured, &out)?;

    let first = experiment.seeds().next().unwrap_or(experiment.seed);
    let run = Run { ablation: Ablation::Full, seed: first, settings };
    let model = run.model(&out, &device)?;
    let scenes = NightScenes::new(run.settings.size, run.test_seed())?;
    pictures::draw(&model, &config(Ablation::Full, quick), &scenes, run.settings.test, &out, &device)?;
    say(format!("tables, plots and pictures: {}", out.display()));
    Ok(())
}
