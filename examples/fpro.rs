//! FPro: do prompts of low and high frequencies help to restore pictures?
//!
//! After Zhou et al., "Seeing the Unseen: A Frequency Prompt Guided Transformer for Image Restoration" (ECCV 2024). Small
//! pictures made by a program are spoilt by rain (bright lines, high frequencies) or by haze (a smooth veil, low ones); one
//! network restores both. Compared: without prompts, with the low or the high prompt alone, with both, and with both but
//! an ungated filter. At test time each prompt is also removed or replaced by noise.
//!
//! ```text
//! cargo run --release -p gatekit-examples --example fpro
//! ```
#![deny(missing_docs)]

#[path = "fpro/images.rs"]
mod images;
#[path = "fpro/pictures.rs"]
mod pictures;
#[path = "fpro/run.rs"]
mod run;

use std::process::ExitCode;
use std::time::Instant;

use burn::module::Module;
use clap::Parser;
use gatekit_examples::{Condition, ExampleError, Experiment, Results, Robustness, say};

use images::Degradation;
use run::{BOTH, Fault, Settings, UNGATED, VARIANTS, measure, unrestored};

/// Restoring pictures with prompts of low and high frequencies: PSNR by degradation.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Steps of each training [default: 300, quick: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    steps: Option<u32>,
    /// Highest learning rate [default: 0.002]
    #[arg(long, value_name = "X")]
    learning_rate: Option<f64>,
}

/// Names of the prompts, and whether it is the low one.
const PROMPTS: [(&str, bool); 2] = [("low prompt", true), ("high prompt", false)];

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let device = experiment.device()?;
    let out = experiment.out_dir("fpro")?;
    let mut settings = Settings::new(experiment.quick);
    settings.steps = args.steps.map_or(settings.steps, |steps| steps as usize);
    settings.learning_rate = args.learning_rate.unwrap_or(settings.learning_rate);
    let (mut ratios, mut sizes) = (Results::new(), Results::new());
    let mut gains = [Results::new(), Results::new()];
    let mut robustness = Robustness::new("FPro", "PSNR in dB");
    let mut drawn = false;
    for seed in experiment.seeds() {
        let tests = Degradation::ALL.map(|degradation| settings.test_images(degradation, seed));
        let before = [0, 1].map(|index| unrestored(&tests[index], settings.size, &device));
        for (degradation, value) in Degradation::ALL.into_iter().zip(before) {
            ratios.record("not restored", degradation.name(), seed, value);
        }
        for variant in VARIANTS {
            let start = Instant::now();
            let model = settings.train(variant, seed, &device)?;
            let seconds = start.elapsed().as_secs_f64();
            let mut reached = [0.0; 2];
            for (index, degradation) in Degradation::ALL.into_iter().enumerate() {
                reached[index] = measure(&model, &tests[index], None, &device)?;
                ratios.record(variant.name, degradation.name(), seed, reached[index]);
                gains[index].record(variant.name, "dB", seed, reached[index] - before[index]);
            }
            let [rain, haze] = reached;
            say(format!("{} {seed}: rain {rain:.2} dB, haze {haze:.2} dB, {seconds:.0} s", variant.name));
            ratios.record(variant.name, "both", seed, (rain + haze) / 2.0);
            sizes.record(variant.name, "parameters", seed, model.num_params() as f64);
            sizes.record(variant.name, "seconds a step", seed, seconds / settings.steps as f64);
            if variant == BOTH || variant == UNGATED {
                let name = if variant == BOTH { "gated filter" } else { "ungated filter" };
                robustness.record(name, Condition::Clean, seed, (rain + haze) / 2.0);
                for (prompt, low) in PROMPTS {
                    device.seed(seed);
                    for (fault, condition) in [
                        (Fault::Removed, Condition::Removed(prompt)),
                        (Fault::Noise, Condition::Noise(prompt)),
                    ] {
                        let mut sum = 0.0;
                        for pairs in &tests {
                            sum += measure(&model, pairs, Some((low, fault)), &device)?;
                        }
                        robustness.record(name, condition, seed, sum / tests.len() as f64);
                    }
                }
            }
            if variant == BOTH && !drawn {
                pictures::draw(&model, &settings, seed, &out, &device)?;
                drawn = true;
            }
        }
    }
    say("\nPSNR of restored test pictures in dB:\n");
    say(ratios.table());
    say("Sizes and time:\n");
    say(sizes.table());
    say("PSNR in dB, mean of rain and haze, with a prompt removed or replaced by noise at test time:\n");
    say(robustness.table());
    ratios.write_csv(out.join("results.csv"))?;
    ratios.write_json(out.join("results.json"))?;
    sizes.write_csv(out.join("sizes.csv"))?;
    robustness.save(&out)?;
    for (degradation, gains) in Degradation::ALL.into_iter().zip(&gains) {
        let title = format!("PSNR gained over the spoilt picture, {}", degradation.name());
        let plot = gains.bar_plot(&title, "dB");
        plot.write_svg(out.join(format!("fpro-{}.svg", degradation.name())))?;
    }
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}
