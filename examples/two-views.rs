//! Two views of speech: which fusion finds forgeries of a kind that it was not trained on?
//!
//! After El Kheir et al. 2025, arXiv 2507.20417. Speech is generated (harmonics with vibrato through formants) and
//! forged in three ways: wandering phases, a missing top band, an artefact with a period of two samples. One view is
//! what an encoder hears that has learned to tell speakers apart, the other cepstra. Detectors over each view alone and
//! over both, fused in four ways, are trained on two kinds of forgery and tested on new voices, on these kinds and on
//! the third; then with a view removed or replaced by noise.
//!
//! ```text
//! cargo run --release -p gatekit-examples --example two-views
//! ```
#![deny(missing_docs)]

#[path = "two-views/clips.rs"]
mod clips;
#[path = "two-views/detectors.rs"]
mod detectors;
#[path = "two-views/encoder.rs"]
mod encoder;
#[path = "two-views/report.rs"]
mod report;
#[path = "two-views/speech.rs"]
mod speech;

use std::process::ExitCode;

use burn::tensor::Device;
use clap::Parser;
use gatekit::core::ModuleConfig;
use gatekit::fusion::two_views::{SpectralConfig, SpectralFrontEnd, SpoofDetector, Strategy};
use gatekit_examples::{Condition, ExampleError, Experiment, Results, Robustness, say};

use clips::Clips;
use detectors::{Detector, VIEWS, Variant, rate};
use encoder::Encoder;
use report::Gates;
use speech::Forgery;

/// Spectral and self-supervised views of speech, fused to detect forgeries.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Steps of every detector's training [default: 300, quick: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    steps: Option<u32>,
    /// Steps of the encoder's training [default: 400, quick: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    encoder_steps: Option<u32>,
}

/// The variants whose robustness is measured.
const ROBUST: [Variant; 3] =
    [Variant::Both(Strategy::Gate), Variant::Both(Strategy::Concat), Variant::Both(Strategy::CrossAttention)];

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let device = experiment.device()?;
    let out = experiment.out_dir("two-views")?;
    let steps = args.steps.map_or_else(|| experiment.steps(300, 10), |steps| steps as usize);
    let encoder_steps = args.encoder_steps.map_or_else(|| experiment.steps(400, 3), |steps| steps as usize);
    let [train, test] = [experiment.steps(256, 16), experiment.steps(192, 12)];
    let front_end = SpectralConfig::new().with_coefficients(20).with_deltas(1).try_init(&device)?;
    let (mut unseen, mut seen, mut gates) = (Results::new(), Results::new(), Gates::default());
    let mut robustness = Robustness::new("Two views", "1 - equal error rate");
    for seed in experiment.seeds() {
        let (encoder, accuracy, [top, bottom]) = encoder::trained(encoder_steps, seed, &device)?;
        say(format!(
            "seed {seed}: the encoder names {:.0}% of its speakers; without the band above 5 kHz its frames change by \
             {top:.2} of their size, without that below 1 kHz by {bottom:.2}",
            100.0 * accuracy
        ));
        let views = (&encoder, &front_end);
        let train = Clips::draw(train.min(64), train, seed + 1000, views, &device)?;
        let test = Clips::draw(test.min(48), test, seed + 2000, views, &device)?;
        let mut sound = Vec::new();
        for third in Forgery::ALL {
            let known: Vec<Forgery> = Forgery::ALL.into_iter().filter(|kind| *kind != third).collect();
            for variant in Variant::ALL {
                let detector = Detector::trained(variant, &train, &known, (steps, seed), &device)?;
                let scores = detector.scores(&test, Condition::Clean, &device)?;
                unseen.record(variant.name(), third.name(), seed, rate(&test, &scores, &[third])?);
                seen.record(variant.name(), third.name(), seed, rate(&test, &scores, &known)?);
                if ROBUST.contains(&variant) {
                    for condition in conditions() {
                        let scores = detector.scores(&test, condition, &device)?;
                        sound.push((variant.name(), condition, 1.0 - rate(&test, &scores, &known)?));
                    }
                }
                if variant == Variant::Both(Strategy::Gate) {
                    gates.add(&detector, &test, &device)?;
                    if third == Forgery::MissingTop {
                        from_the_wave(&encoder, &front_end, detector, &test, &device)?;
                    }
                }
            }
        }
        for variant in ROBUST {
            for condition in conditions() {
                let of =
                    sound.iter().filter(|(name, other, _)| *name == variant.name() && *other == condition);
                let mean = of.map(|(_, _, value)| value).sum::<f64>() / Forgery::ALL.len() as f64;
                robustness.record(variant.name(), condition, seed, mean);
            }
        }
    }
    report::write(&out, &report::with_mean(&unseen), &report::with_mean(&seen), &robustness, &gates)?;
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

fn conditions() -> impl Iterator<Item = Condition<'static>> {
    let spoiled = VIEWS.into_iter().flat_map(|view| [Condition::Removed(view), Condition::Noise(view)]);
    std::iter::once(Condition::Clean).chain(spoiled)
}

/// The whole detector, from the waveform: what it says of one clip of each kind.
fn from_the_wave(
    encoder: &Encoder,
    front_end: &SpectralFrontEnd,
    detector: Detector,
    clips: &Clips,
    device: &Device,
) -> Result<(), ExampleError> {
    let Detector::Both(detector) = detector else { return Ok(()) };
    let whole = SpoofDetector::new(encoder.clone(), front_end.clone(), detector)?;
    let each = clips.waves.len() / (1 + Forgery::ALL.len());
    let waves: Vec<Vec<f32>> = clips.waves.iter().step_by(each).cloned().collect();
    let scores = whole.forward(encoder::batch(&waves, device))?.score().into_data();
    let named = clips.kinds.iter().step_by(each).zip(scores.iter::<f64>());
    let named: Vec<String> = named
        .map(|(kind, score)| format!("{} {score:.1}", kind.map_or("genuine", |kind| kind.name())))
        .collect();
    say(format!("scores of the gate, which has not heard a missing top band: {}", named.join(", ")));
    Ok(())
}
