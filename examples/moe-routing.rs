//! Routers of mixtures of experts: what they cost in loss, how evenly they use their experts, and what the experts
//! become good at.
//!
//! A small language model learns the bytes of a text with dense feed-forward layers and with eight experts under
//! several routers, all with the same active weights a token: Switch's (one expert), Mixtral's (two), DeepSeek-V3's (two
//! by sigmoid scores with a selection bias), a balanced hash table, and chance. Experts that choose their tokens see the
//! whole batch, later bytes included, so they are compared on masked bytes instead. Then: which characters go to which
//! expert, and what sorting tokens by expert saves over dense masks.
//!
//! ```text
//! cargo run --release -p gatekit-examples --example moe-routing
//! ```
#![deny(missing_docs)]

#[path = "moe-routing/learning.rs"]
mod learning;
#[path = "moe-routing/network.rs"]
mod network;
#[path = "moe-routing/plots.rs"]
mod plots;
#[path = "moe-routing/specialisation.rs"]
mod specialisation;
#[path = "moe-routing/throughput.rs"]
mod throughput;
#[path = "moe-routing/variants.rs"]
mod variants;

use std::process::ExitCode;

use clap::Parser;
use gatekit_examples::tasks::Corpus;
use gatekit_examples::{ExampleError, Experiment, Results, Training, say};

use learning::{Learned, judge, learn};
use network::{Load, Task};
use plots::{Curves, load_maps};
use specialisation::Choices;
use variants::{NO_BALANCE, WITH_BIAS, WITH_LOSS};

/// Routers of mixtures of experts: loss, balance, specialisation, speed.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Steps of training [default: 400, with --quick 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    steps: Option<u32>,
    /// Highest learning rate
    #[arg(long, value_name = "X", default_value_t = 3e-3)]
    learning_rate: f64,
}

/// Every operation of a CPU backend allocates its result: an allocator that keeps large blocks saves returning them to
/// the system.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SLUG: &str = "moe-routing";

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let device = experiment.device()?;
    let out = experiment.out_dir(SLUG)?;
    let corpus = Corpus::shakespeare()?;
    let steps = args.steps.map_or(experiment.steps(400, 8), |steps| steps as usize);
    let learning_rate = args.learning_rate;
    let training = Training { steps, learning_rate, warmup: steps / 20, ..Training::default() };
    let windows = experiment.steps(64, 8);

    let (mut next, mut masked) = (Results::new(), Results::new());
    let (mut losses, mut loads, mut drops) = (Curves::new(), Curves::new(), Curves::new());
    let mut watched: Vec<(&str, Vec<Vec<Load>>)> = Vec::new();
    for seed in experiment.seeds() {
        let first = Some(seed) == experiment.seeds().next();
        for variant in variants::of(Task::Next) {
            let learned = learn(&variant, Task::Next, &corpus, &training, seed, &device)?;
            let (bits, _) = judge(&learned.network, Task::Next, &corpus, windows, &device)?;
            next.record(variant.name, "bits per byte", seed, bits);
            losses.add(variant.name, learned.bits.clone());
            if !learned.loads[0].is_empty() {
                let by_step = |of: fn(&Load) -> f64| means(&learned, of);
                let (largest, dropped) = (by_step(|load| load.max_over_mean), by_step(|load| load.dropped));
                next.record(variant.name, "largest load / mean", seed, at_the_end(&largest));
                next.record(variant.name, "dropped at capacity 1", seed, at_the_end(&dropped));
                loads.add(variant.name, largest);
                drops.add(variant.name, dropped);
            }
            let choices = Choices::of(&learned.network, &corpus, windows, &device)?;
            if let Some((information, chance)) = choices.information(seed) {
                next.record(variant.name, "I(expert; byte)", seed, information);
                next.record(variant.name, "of shuffled bytes", seed, chance);
            }
            if first && variant.name == WITH_LOSS {
                let map = choices.map("Where the characters go: last layer, top-2 with a balancing loss");
                map.map_or(Ok(()), |map| map.write_svg(out.join(format!("{SLUG}-characters.svg"))))?;
            }
            if first && [NO_BALANCE, WITH_LOSS, WITH_BIAS].contains(&variant.name) {
                watched.push((variant.name, learned.loads));
            }
        }
        for variant in variants::of(Task::Masked) {
            let learned = learn(&variant, Task::Masked, &corpus, &training, seed, &device)?;
            let (bits, left_out) = judge(&learned.network, Task::Masked, &corpus, windows, &device)?;
            masked.record(variant.name, "bits per masked byte", seed, bits);
            if !learned.loads[0].is_empty() {
                let largest = means(&learned, |load| load.max_over_mean);
                masked.record(variant.name, "largest load / mean", seed, at_the_end(&largest));
                masked.record(variant.name, "bytes without expert", seed, left_out);
            }
        }
    }
    let (speed, difference) =
        throughput::measure(experiment.steps(1024, 128), experiment.steps(21, 2), &device)?;

    say(format!(
        "The next byte after {steps} steps; loads are means over layers and the last tenth of the steps:\n"
    ));
    say(next.table());
    say("Masked bytes from both sides:\n");
    say(masked.table());
    say(
        "Milliseconds of the experts' forward pass, median, two experts a token, width 64, by number of experts:\n",
    );
    say(speed.table());
    say(format!("Both ways agree within {difference:.1e}."));
    for (name, results) in [("next", &next), ("masked", &masked), ("throughput", &speed)] {
        results.write_csv(out.join(format!("{name}.csv")))?;
        results.write_json(out.join(format!("{name}.json")))?;
    }
    losses.plot("Loss", "bits per byte", 30).write_svg(out.join(format!("{SLUG}.svg")))?;
    loads
        .plot("The busiest expert", "load over mean load", 60)
        .write_svg(out.join(format!("{SLUG}-load.svg")))?;
    drops
        .plot("Slots that a capacity of one fair share would drop", "share of slots", 60)
        .write_svg(out.join(format!("{SLUG}-dropped.svg")))?;
    load_maps(&watched, &out)?;
    plots::speed(&speed).write_svg(out.join(format!("{SLUG}-speed.svg")))?;
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

/// A figure of every step, as the mean over layers.
fn means(learned: &Learned, of: fn(&Load) -> f64) -> Vec<f64> {
    let mean = |layers: &Vec<Load>| layers.iter().map(of).sum::<f64>() / layers.len() as f64;
    learned.loads.iter().map(mean).collect()
}

/// Mean over the last tenth of the steps.
fn at_the_end(values: &[f64]) -> f64 {
    let last = &values[values.len() - values.len().div_ceil(10)..];
    last.iter().sum::<f64>() / last.len() as f64
}
