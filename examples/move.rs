//! MoVE: what a value memory that all layers share is worth.
//!
//! After Li 2026, arXiv 2601.22887. A small language model learns random facts ("the colour of Iru is teal.", one
//! token a word) beside ordinary text (bytes). Compared are a standard model, one widened to the same products, tables
//! of single layers (LaVE), and one bank for all layers (MoVE) of growing size. Then a model of small pictures with
//! and without a memory. Where do the gates open, and for which tokens?
//!
//! ```text
//! cargo run --release -p gatekit-examples --example move
//! ```
#![deny(missing_docs)]

#[path = "move/facts.rs"]
mod facts;
#[path = "move/gates.rs"]
mod gates;
#[path = "move/pictures.rs"]
mod pictures;
#[path = "move/text.rs"]
mod text;

use std::process::ExitCode;

use burn::module::Module;
use clap::Parser;
use gatekit::core::ConfigError;
use gatekit::core::probe::LinePlot;
use gatekit_examples::{ExampleError, Experiment, Results, say};

use facts::Facts;
use text::Curve;

/// A value memory shared by all layers: facts, text and pictures.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Steps of the text models [default: 300, quick: 12]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Entities that have facts, eight each [default: 240, quick: 40]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    entities: Option<u32>,
    /// Learning rates of the text models, as a share of the paper's recipe
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    rate: f64,
}

/// Relations that every entity has a value for.
const RELATIONS: usize = 8;

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    if !(args.rate.is_finite() && args.rate > 0.0) {
        return Err(ConfigError::new("--rate", args.rate, "a positive number").into());
    }
    let or = |given: Option<u32>, full, quick| {
        given.map_or_else(|| experiment.steps(full, quick), |given| given as usize)
    };
    let (steps, entities) = (or(args.steps, 300, 12), or(args.entities, 240, 40));
    let device = experiment.device()?;
    let out = experiment.out_dir("move")?;
    let text = text::Lab::new(steps, args.rate, device.clone())?;
    let (mut results, mut curves) = (Results::new(), Vec::new());
    for seed in experiment.seeds() {
        let facts = Facts::new(seed, entities, RELATIONS);
        for (name, config) in text::variants(facts.vocabulary()) {
            let (model, curve) = text.train(name, &config, &facts, seed, &mut results)?;
            curves.push(curve);
            if seed == experiment.seed {
                results.record(name, "parameters, thousands", seed, model.num_params() as f64 / 1e3);
            }
            if name == text::PROBED && seed == experiment.seed {
                let probe = gates::probe(&model, &facts, &text);
                say(format!("Gates of {name}: the value's own, and its slots' (mean over all tokens)"));
                say(probe.table());
                probe.plot().write_svg(out.join("gates.svg"))?;
            }
        }
    }
    say("\nText and facts");
    say(results.table());
    results.write_csv(out.join("text.csv"))?;
    results.write_json(out.join("text.json"))?;
    results.bar_plot("Facts recalled", text::RECALL).write_svg(out.join("recall.svg"))?;
    curve_plot(&curves).write_svg(out.join("move.svg"))?;

    let (pictures, losses) = pictures::compare(experiment, &device, &out)?;
    say("Pictures");
    say(pictures.table());
    pictures.write_csv(out.join("pictures.csv"))?;
    losses.write_svg(out.join("pictures.svg"))?;
    say(format!("Plots and tables are in {}", out.display()));
    Ok(())
}

/// Bits of a fact's value over the steps, mean over the seeds.
fn curve_plot(curves: &[Curve]) -> LinePlot {
    let plot = LinePlot::new("What is left to say of a fact", "step", "bits").with_size(800, 520);
    let mut names: Vec<&str> = Vec::new();
    for curve in curves {
        if !names.contains(&curve.name) {
            names.push(curve.name);
        }
    }
    names.into_iter().fold(plot, |plot, name| {
        let runs: Vec<&Curve> = curves.iter().filter(|curve| curve.name == name).collect();
        let mean =
            |index: usize| runs.iter().map(|curve| curve.fact_bits[index].1).sum::<f64>() / runs.len() as f64;
        let points =
            runs[0].fact_bits.iter().enumerate().map(|(index, (step, _))| (*step as f64, mean(index)));
        plot.with_series(name, points.collect::<Vec<_>>())
    })
}
