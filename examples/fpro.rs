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

use std::fs;
use std::process::ExitCode;

use clap::Parser;
use gatekit_examples::{Condition, ExampleError, Experiment, Results, Robustness, say};

use images::Degradation;
use run::{BOTH, FAULTS, Fault, Settings, UNGATED, VARIANTS, unrestored};

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
    /// Train again what an earlier call with the same settings finished (pictures are drawn when the first seed is trained)
    #[arg(long)]
    fresh: bool,
}

/// Names of the prompts.
const PROMPTS: [&str; 2] = ["low prompt", "high prompt"];

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
    let finished = out.join("runs");
    fs::create_dir_all(&finished).map_err(ExampleError::io(&finished))?;
    if args.fresh {
        fs::remove_dir_all(&finished)
            .and_then(|()| fs::create_dir(&finished))
            .map_err(ExampleError::io(&finished))?;
    }
    for (place, seed) in experiment.seeds().enumerate() {
        let before = Degradation::ALL
            .map(|degradation| unrestored(&settings.test_images(degradation, seed), settings.size, &device));
        for (degradation, value) in Degradation::ALL.into_iter().zip(before) {
            ratios.record("not restored", degradation.name(), seed, value);
        }
        for variant in VARIANTS {
            let (reached, model) = settings.reached(variant, seed, &finished, &device)?;
            for (index, degradation) in Degradation::ALL.into_iter().enumerate() {
                ratios.record(variant.name, degradation.name(), seed, reached.psnr[index]);
                gains[index].record(variant.name, "dB", seed, reached.psnr[index] - before[index]);
            }
            let [rain, haze] = reached.psnr;
            let how = if model.is_some() { "trained" } else { "finished earlier" };
            say(format!("{} {seed}: rain {rain:.2} dB, haze {haze:.2} dB, {how}", variant.name));
            ratios.record(variant.name, "both", seed, (rain + haze) / 2.0);
            sizes.record(variant.name, "parameters", seed, reached.parameters as f64);
            sizes.record(variant.name, "ms a step", seed, 1e3 * reached.seconds);
            if variant == BOTH || variant == UNGATED {
                let name = if variant == BOTH { "gated filter" } else { "ungated filter" };
                robustness.record(name, Condition::Clean, seed, (rain + haze) / 2.0);
                for ((low, fault), value) in FAULTS.into_iter().zip(&reached.faults) {
                    let prompt = PROMPTS[usize::from(!low)];
                    let condition = match fault {
                        Fault::Removed => Condition::Removed(prompt),
                        Fault::Noise => Condition::Noise(prompt),
                    };
                    robustness.record(name, condition, seed, *value);
                }
            }
            if let Some(model) = model.filter(|_| variant == BOTH && place == 0) {
                pictures::draw(&model, &settings, seed, &out, &device)?;
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
