//! Sequence and structure of generated proteins: does it help that both branches hear of one another at every level?
//!
//! ```text
//! cargo run --release -p gatekit-examples --example bihierarchical-fusion
//! ```
//!
//! Chains of 40 to 80 residues are folded on a lattice, their letters come from a chain of two states. A residue is
//! labelled when it carries a motif in the sequence *and* is near, in space, a residue far away in the chain that has a
//! given letter (first order) or carries the motif itself (second order). Six models of about equal size learn both
//! labels: a transformer over the sequence, message passing over the graph, both joined at the end, one after the other,
//! and both with a fusion after every level that goes back into either, by votes and by attention.

#[path = "bihierarchical-fusion/measure.rs"]
mod measure;
#[path = "bihierarchical-fusion/network.rs"]
mod network;
#[path = "bihierarchical-fusion/proteins.rs"]
mod proteins;

use burn::module::Module;
use clap::Parser;
use gatekit::core::probe::LinePlot;
use gatekit_examples::{Condition, ExampleError, Experiment, Results, Robustness, say};

use crate::measure::{Data, Sizes};
use crate::network::{Network, Variant};
use crate::proteins::{Branch, Fault, ORDERS};

/// Compares models of sequence alone, graph alone, and both, fused late, serially, and at every level.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,

    /// Optimiser steps of a model [default: 600, with --quick 6]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    steps: Option<u64>,

    /// Highest learning rate, for every model
    #[arg(long, value_name = "RATE", default_value_t = 6e-3)]
    learning_rate: f64,
}

/// Whose robustness is measured.
const FUSIONS: [Variant; 3] = [Variant::Local, Variant::Global, Variant::Late];
const DEPTHS: [&str; 2] = ["buried", "exposed"];

fn main() -> std::process::ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let device = experiment.device()?;
    let out = experiment.out_dir("bihierarchical-fusion")?;
    let sizes = Sizes {
        levels: experiment.steps(3, 2),
        width: experiment.steps(20, 8),
        steps: args.steps.map_or(experiment.steps(600, 6), |steps| steps as usize),
        learning_rate: args.learning_rate,
        batch: experiment.steps(8, 2),
        train: experiment.steps(400, 8),
        test: experiment.steps(150, 6),
    };
    let parameters = Network::new(Variant::Local, sizes.levels, sizes.width, &device)?.num_params();

    let (mut found, mut weights) = (Results::new(), Results::new());
    let mut robustness = Robustness::new("Bidirectional hierarchical fusion", "average precision");
    for seed in experiment.seeds() {
        let data = Data::draw(&sizes, seed);
        for (order, share) in ORDERS.iter().zip(data.shares()) {
            found.record("chance", order, seed, share);
        }
        for variant in Variant::ALL {
            let label = format!("{}, seed {seed}", variant.name());
            let model = data.teach(variant, &sizes, parameters, &device, &label)?;
            let clean = data.precision(&model, Fault::None, &device)?;
            for (order, value) in ORDERS.iter().zip(clean) {
                found.record(variant.name(), order, seed, value);
            }
            found.record(variant.name(), "parameters", seed, model.num_params() as f64);
            say(format!("{label}: {:.3} {:.3}", clean[0], clean[1]));
            for (level, depths) in data.weights(&model, &device)?.into_iter().enumerate() {
                for (depth, value) in DEPTHS.iter().zip(depths) {
                    weights.record(depth, &format!("level {}", level + 1), seed, value);
                }
            }
            if FUSIONS.contains(&variant) {
                for (condition, fault) in conditions() {
                    let [first, second] = data.precision(&model, fault, &device)?;
                    robustness.record(variant.name(), condition, seed, (first + second) / 2.0);
                }
            }
        }
    }

    say("\nAverage precision of residues' labels:\n");
    say(found.table());
    say(verdict(&found));
    say("\nMean of both labels with a branch removed or replaced by noise at test time:\n");
    say(robustness.table());
    say("Weight of the structure branch in the votes:\n");
    say(weights.table());
    found.write_csv(out.join("results.csv"))?;
    found.write_json(out.join("results.json"))?;
    weights.write_csv(out.join("weights.csv"))?;
    robustness.save(&out)?;
    let file = |name: &str| out.join(format!("bihierarchical-fusion{name}.svg"));
    for (order, name) in ORDERS.iter().zip(["", "-second"]) {
        let title = format!("Labels of the {order}");
        let mut bars = Results::new();
        for variant in found.variants() {
            for (seed, value) in found.values(variant, order).into_iter().enumerate() {
                bars.record(variant, "average precision", seed as u64, value);
            }
        }
        bars.bar_plot(&title, "average precision").write_svg(file(name))?;
    }
    weights_plot(&weights).write_svg(file("-weights"))?;
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

/// What is measured in [`Robustness`].
fn conditions() -> [(Condition<'static>, Fault); 5] {
    [
        (Condition::Clean, Fault::None),
        (Condition::Removed("sequence"), Fault::Removed(Branch::Sequence)),
        (Condition::Noise("sequence"), Fault::Noise(Branch::Sequence)),
        (Condition::Removed("structure"), Fault::Removed(Branch::Structure)),
        (Condition::Noise("structure"), Fault::Noise(Branch::Structure)),
    ]
}

/// Whether fusion at every level was better than the best of the others.
fn verdict(found: &Results) -> String {
    let lines = ORDERS.map(|order| {
        let mean = |variant: &Variant| found.mean(variant.name(), order).unwrap_or(f64::NAN);
        let best = |variants: &[Variant]| {
            let best = variants.iter().copied().max_by(|a, b| mean(a).total_cmp(&mean(b)));
            best.unwrap_or(Variant::Local)
        };
        let (both, other) = (best(&Variant::ALL[4..]), best(&Variant::ALL[..4]));
        let spread = |variant: Variant| found.deviation(variant.name(), order).unwrap_or(0.0);
        let gain = mean(&both) - mean(&other);
        let word = match gain {
            _ if found.values(both.name(), order).len() < 2 => "of one seed, which says nothing about chance",
            _ if gain.abs() <= spread(both).max(spread(other)) => "within the spread of the seeds",
            _ if gain > 0.0 => "fusion at every level helps",
            _ => "fusion at every level does not help",
        };
        format!("{order}: {} minus {}: {gain:+.3}, {word}", both.name(), other.name())
    });
    lines.join("\n")
}

fn weights_plot(weights: &Results) -> LinePlot {
    let plot = LinePlot::new("Weight of the structure branch", "level", "mean weight");
    weights.variants().into_iter().fold(plot, |plot, depth| {
        let levels = weights.metrics();
        let point =
            |(level, metric): (usize, &&str)| Some((level as f64 + 1.0, weights.mean(depth, metric)?));
        plot.with_series(depth, levels.iter().enumerate().filter_map(point).collect::<Vec<_>>())
    })
}
