//! Captions for what a language model has never seen: one vector added behind its heads, through gates that start at 0.
//!
//! After Han, Zhang, Shao et al. 2023, arXiv 2309.03905. A small decoder learns captions as text ("a red ball and a
//! blue cup"). Then it is frozen, and a bind network with its gates learns from images and their captions alone. Does
//! training start from the language model's loss? Does it describe sounds, which share the space with images but for a
//! gap, with the visual cache and without? And an image of one thing mixed with the sound of another?
//!
//! ```text
//! cargo run --release -p gatekit-examples --example imagebind-llm
//! ```
#![deny(missing_docs)]

#[path = "imagebind-llm/captioning.rs"]
mod captioning;
#[path = "imagebind-llm/learning.rs"]
mod learning;
#[path = "imagebind-llm/world.rs"]
mod world;

use std::path::Path;
use std::process::ExitCode;

use burn::tensor::Tensor;
use clap::Parser;
use gatekit::core::probe::LinePlot;
use gatekit::fusion::imagebind_llm::ImageBindLlm;
use gatekit_examples::{ExampleError, Experiment, Results, Robustness, say};

use captioning::{NEIGHBOURS, SHARES, Test};
use learning::{Learned, mean};
use world::World;

/// A joint embedding space in words.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Steps on images, after half as many on text [default: 900, quick: 40]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(20..))]
    steps: Option<u32>,
    /// Highest learning rate on images
    #[arg(long, value_name = "X", default_value_t = 3e-3)]
    rate: f64,
}

const ZERO: &str = "gate from 0";
const ONE: &str = "gate from 1";
/// Steps of the picture of the early losses.
const EARLY: usize = 100;

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let steps = args.steps.map_or_else(|| experiment.steps(900, 40), |steps| steps as usize);
    let device = experiment.device()?;
    let out = experiment.out_dir("imagebind-llm")?;
    let (mut results, mut shares) = (Results::new(), Results::new());
    let mut robustness = Robustness::new("ImageBind-LLM", "caption accuracy");
    let mut runs = Vec::new();
    for seed in experiment.seeds() {
        let world = World::new(seed);
        let text = learning::language_model(steps / 2, seed, &device)?;
        let test = Test::new(&world, experiment.steps(480, 48), seed, &device)?;
        for (variant, start) in [(ZERO, 0.0), (ONE, 1.0)] {
            let model = with_gates(text.clone(), start);
            let learned = learning::images(model, &world, steps, args.rate, (variant, seed), &device)?;
            record_losses(&mut results, variant, seed, &learned);
            record_captions(&mut results, variant, seed, &learned.model, &test)?;
            test.robustness(&learned.model, variant, seed, &mut robustness)?;
            if start == 0.0 {
                record_shares(&mut shares, seed, &learned.model, &test)?;
            }
            runs.push((variant, learned));
        }
    }
    say("Losses in nats, captions that are word for word right, and the gates at the end:\n");
    say(results.table());
    say("Sounds described rightly, by neighbours and share of the retrieved vector:\n");
    say(shares.table());
    say("An image and a sound of one thing, either removed or replaced by noise:\n");
    say(robustness.table());
    results.write_csv(out.join("results.csv"))?;
    results.write_json(out.join("results.json"))?;
    shares.write_csv(out.join("cache.csv"))?;
    robustness.save(&out)?;
    plots(&runs, &shares, &out)?;
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

/// The model with all gates at `start`.
fn with_gates(mut model: ImageBindLlm, start: f64) -> ImageBindLlm {
    for layer in &mut model.llama.layers {
        if let Some(gate) = &mut layer.attention.gate {
            gate.gate = gate.gate.clone().map(|gate| Tensor::full_like(&gate, start));
        }
    }
    model
}

fn record_losses(results: &mut Results, variant: &str, seed: u64, learned: &Learned) {
    let highest = learned.losses.iter().take(EARLY).fold(f64::MIN, |highest, loss| highest.max(*loss));
    let last = &learned.losses[learned.losses.len() - learned.losses.len() / 10..];
    for (metric, value) in [
        ("text alone", learned.text_loss),
        ("step 0", learned.losses[0]),
        ("highest early", highest),
        ("last tenth", mean(last)),
    ] {
        results.record(variant, metric, seed, value);
    }
}

fn record_captions(
    results: &mut Results,
    variant: &str,
    seed: u64,
    model: &ImageBindLlm,
    test: &Test,
) -> Result<(), ExampleError> {
    let mixed = test.mixed(test.first_images.clone(), test.second_sounds.clone())?;
    let cached = |feats: Tensor<2>| test.enhanced(feats, 10, 0.5);
    for (metric, scenes, feats) in [
        ("image", &test.single, test.images.clone()),
        ("image of two", &test.pairs, test.pair_images.clone()),
        ("sound", &test.single, test.sounds.clone()),
        ("sound, cache", &test.single, cached(test.sounds.clone())?),
        ("image + sound", &test.pairs, mixed.clone()),
        ("image + sound, cache", &test.pairs, cached(mixed)?),
    ] {
        results.record(variant, metric, seed, test.accuracy(model, scenes, feats)?);
    }
    results.record(variant, "|tanh gate|", seed, mean(&model.gates().concat()));
    Ok(())
}

fn record_shares(
    shares: &mut Results,
    seed: u64,
    model: &ImageBindLlm,
    test: &Test,
) -> Result<(), ExampleError> {
    for neighbours in NEIGHBOURS {
        for share in SHARES {
            let feats = test.enhanced(test.sounds.clone(), neighbours, share)?;
            let accuracy = test.accuracy(model, &test.single, feats)?;
            shares.record(&series(neighbours), &format!("{share}"), seed, accuracy);
        }
    }
    Ok(())
}

fn series(neighbours: usize) -> String {
    format!("K = {neighbours}")
}

fn plots(runs: &[(&str, Learned)], shares: &Results, out: &Path) -> Result<(), ExampleError> {
    let of = |variant: &str| -> Vec<&Learned> {
        runs.iter().filter(|(name, _)| *name == variant).map(|(_, learned)| learned).collect()
    };
    let over_seeds = |learned: &[&Learned], value: &dyn Fn(&Learned, usize) -> f64, steps: usize| {
        let at = |step| mean(&learned.iter().map(|learned| value(learned, step)).collect::<Vec<_>>());
        (0..steps).map(|step| (step as f64, at(step))).collect::<Vec<_>>()
    };
    let zero = of(ZERO);
    let steps = zero[0].losses.len();
    let early = EARLY.min(steps);
    let loss = |learned: &Learned, step: usize| learned.losses[step];
    let level = mean(&zero.iter().map(|learned| learned.text_loss).collect::<Vec<_>>());
    LinePlot::new("Early losses on images with captions", "step", "nats a token")
        .with_series(ZERO, over_seeds(&zero, &loss, early))
        .with_series(ONE, over_seeds(&of(ONE), &loss, early))
        .with_series("text alone", [(0.0, level), (early as f64 - 1.0, level)])
        .write_svg(out.join("imagebind-llm.svg"))?;
    let layers = zero[0].gates[0].len();
    (0..layers)
        .fold(LinePlot::new("How far the gates open", "step", "mean |tanh(gate)|"), |plot, layer| {
            let gate = move |learned: &Learned, step: usize| learned.gates[step][layer];
            plot.with_series(&format!("layer {}", layer + 1), over_seeds(&zero, &gate, steps))
        })
        .write_svg(out.join("gates.svg"))?;
    (NEIGHBOURS.into_iter())
        .fold(
            LinePlot::new("Sounds with the visual cache", "cache_weight", "accuracy"),
            |plot, neighbours| {
                let name = series(neighbours);
                let accuracy = |share: f64| shares.mean(&name, &format!("{share}")).unwrap_or(f64::NAN);
                plot.with_series(&name, SHARES.map(|share| (share, accuracy(share))))
            },
        )
        .write_svg(out.join("cache.svg"))?;
    Ok(())
}
