//! Adaptive computation modules: accuracy against what is computed.
//!
//! After Wójcik et al. 2023, arXiv 2312.10193. A small vision transformer learns to name a shape among clutter. Its
//! projections and MLPs then become chains of four learners with a gate, in three phases, for budgets from
//! 0.125 to 0.75 of the learners' cost. Compared are the dense model, the same model pruned to that width and trained on, and
//! the same modules under choices by chance. Where, and for which patches, is computed? And does a quarter of the
//! learners take a quarter of the time?
//!
//! ```text
//! cargo run --release -p gatekit-examples --example acm
//! ```
#![deny(missing_docs)]

#[path = "acm/plots.rs"]
mod plots;
#[path = "acm/shapes.rs"]
mod shapes;
#[path = "acm/timing.rs"]
mod timing;
#[path = "acm/training.rs"]
mod training;
#[path = "acm/vit.rs"]
mod vit;

use std::process::ExitCode;

use clap::Parser;
use gatekit_examples::{ExampleError, Experiment, Results, say, tasks};

use shapes::CLUTTER;
use training::{Judgement, Study};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Adaptive computation modules in a small vision transformer: accuracy against what is computed.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Measure the time of a layer alone
    #[arg(long)]
    only_time: bool,
}

/// Budgets, in shares of the learners' cost.
const BUDGETS: [f64; 4] = [0.125, 0.25, 0.5, 0.75];
/// The budget that is looked at more closely.
const MIDDLE: f64 = 0.5;
/// Weight of entropy and diversity, as in the paper.
const SPREAD: f64 = 0.05;
/// Little, some and much clutter.
const LEVELS: [(usize, usize); 3] = [(0, 2), (3, 5), (6, CLUTTER)];

const FLOPS: &str = "MFLOPs a picture";
const ACCURACY: &str = "accuracy";

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let device = experiment.device()?;
    let out = experiment.out_dir("acm")?;
    if !args.only_time {
        let mut results = Results::new();
        for seed in experiment.seeds() {
            let study = Study::new(experiment, seed, &device);
            let first = Some(seed) == experiment.seeds().next();
            compare(&study, seed, first, &out, &mut results)?;
            // After every seed, so that an interrupted run leaves something.
            results.write_csv(out.join("results.csv"))?;
            results.write_json(out.join("results.json"))?;
            plots::curves(&results).write_svg(out.join("acm.svg"))?;
        }
        say("Test pictures by model and budget; clutter in strokes; shares of the learners' full cost:\n");
        say(results.table());
    }
    let mut times = Results::new();
    for learners in [4, 8] {
        timing::measure(experiment, learners, &device, &mut tasks::random(experiment.seed), &mut times)?;
    }
    say("Time of one module, in place of an MLP:\n");
    say(times.table());
    times.write_csv(out.join("times.csv"))?;
    plots::times(&times).write_svg(out.join("time.svg"))?;
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

/// All models of one seed.
fn compare(
    study: &Study,
    seed: u64,
    first: bool,
    out: &std::path::Path,
    results: &mut Results,
) -> Result<(), ExampleError> {
    let teacher = study.teacher()?;
    record_dense("dense", &teacher, study, seed, results)?;
    let prepared = study.prepared(&teacher)?;
    for budget in BUDGETS {
        let name = format!("ACM {budget}");
        let tuned = study.tuned(prepared.clone(), budget, SPREAD, &name)?;
        let judgement = study.judge(&tuned, None)?;
        record(&name, &judgement, study, seed, results)?;
        if first && budget == MIDDLE {
            plots::histogram(&judgement).write_svg(out.join("choices.svg"))?;
            plots::pictures(study).write_svg(out.join("pictures.svg"))?;
            plots::patches(study, &judgement).write_svg(out.join("patches.svg"))?;
        }
    }
    for budget in BUDGETS {
        let name = format!("chance {budget}");
        let tuned = study.tuned_by_chance(prepared.clone(), budget, &name);
        record(&name, &study.judge(&tuned, Some(budget))?, study, seed, results)?;
    }
    for budget in BUDGETS {
        record_dense(&format!("pruned {budget}"), &study.pruned(&teacher, budget), study, seed, results)?;
    }
    // What keeps the gates from saying the same to every token?
    let name = format!("ACM {}, no spread", MIDDLE);
    let tuned = study.tuned(prepared, MIDDLE, 0.0, &name)?;
    record(&name, &study.judge(&tuned, None)?, study, seed, results)
}

fn record(
    name: &str,
    judgement: &Judgement,
    study: &Study,
    seed: u64,
    results: &mut Results,
) -> Result<(), ExampleError> {
    accuracies(name, judgement, study, seed, results);
    results.record(name, FLOPS, seed, judgement.megaflops()?);
    results.record(name, "share", seed, judgement.share(|_, _| true));
    let object = |picture: usize, token: usize| study.tests[picture].object[token];
    results.record(name, "at the shape", seed, judgement.share(object));
    results.record(name, "elsewhere", seed, judgement.share(|picture, token| !object(picture, token)));
    results.record(name, "commonest choice", seed, judgement.most_frequent());
    Ok(())
}

fn record_dense(
    name: &str,
    model: &vit::Vit,
    study: &Study,
    seed: u64,
    results: &mut Results,
) -> Result<(), ExampleError> {
    let judgement = Judgement::of(study.judge_dense(model)?);
    accuracies(name, &judgement, study, seed, results);
    results.record(name, FLOPS, seed, model.cost() / 1e6);
    Ok(())
}

fn accuracies(name: &str, judgement: &Judgement, study: &Study, seed: u64, results: &mut Results) {
    let accuracy = judgement.accuracy(&study.tests, 0..=CLUTTER);
    say(format!("{name}, seed {seed}: accuracy {accuracy:.3}"));
    results.record(name, ACCURACY, seed, accuracy);
    for (low, high) in LEVELS {
        let metric = format!("clutter {low}-{high}");
        results.record(name, &metric, seed, judgement.accuracy(&study.tests, low..=high));
    }
}
