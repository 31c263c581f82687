//! Irregular records: a stay's vital signs and notes on a grid of hours, and whether it ends gravely.
//!
//! After Zhang et al. 2022, arXiv 2210.12156. A hidden severity drives a smooth channel, measured often and noisily; a
//! channel of steps, measured rarely, whose last value holds until it changes; and notes of a few words. Compared are
//! what is carried forward alone, what attention interpolates alone, gates between the two for a stay, an hour, and an hour
//! and channel, the two in equal halves, and two streams that meet at the end instead of interleaved ones.
//!
//! ```text
//! cargo run --release -p gatekit-examples --example irregular-ehr
//! ```
#![deny(missing_docs)]

#[path = "irregular-ehr/gates.rs"]
mod gates;
#[path = "irregular-ehr/stays.rs"]
mod stays;

use std::process::ExitCode;

use burn::tensor::Device;
use clap::Parser;
use gatekit::core::gate::GateLevel;
use gatekit::core::probe::LinePlot;
use gatekit::core::{InputError, ModuleConfig};
use gatekit::fusion::irregular_ehr::{
    BagOfWords, BagOfWordsConfig, EhrBatch, EhrNetwork, EhrTrainer, EhrTrainingConfig, F1Score,
    IrregularEhrConfig, SeriesMixing, Stay, StayLoader, StreamFusion,
};
use gatekit_examples::{Condition, ExampleError, Experiment, Results, Robustness, progress, say, tasks};

use gates::Gates;
use stays::{CHANNELS, HOURS};

/// Gates between two views of an irregular series.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Passes over the training stays [default: 12, quick: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    epochs: Option<u32>,
}

/// Stays to learn from, to choose the epoch by, and to test on.
const TRAIN: usize = 800;
const VALIDATION: usize = 200;
const TEST: usize = 600;
const BATCH: usize = 32;
const WIDTH: usize = 32;
const NOTE_DIM: usize = 16;
const LEARNING_RATE: f64 = 2e-3;
const THRESHOLD: f64 = 0.5;
/// Shares of the observations that are left out of test stays; training stays have any.
const MISSING: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 0.9];
/// The share at which gates and robustness are measured.
const USUAL: usize = 1;

/// How the two views are mixed and the streams fused.
#[derive(Clone, Copy)]
struct Variant {
    name: &'static str,
    mixing: SeriesMixing,
    level: GateLevel,
    fusion: StreamFusion,
}

impl Variant {
    const fn new(name: &'static str, mixing: SeriesMixing, level: GateLevel) -> Self {
        Self { name, mixing, level, fusion: StreamFusion::Interleaved }
    }

    /// Also measured without a modality.
    fn is_compared(&self) -> bool {
        [FINEST, HALVES, LATE].contains(&self.name)
    }
}

const FINEST: &str = "gate an hour and channel";
const HALVES: &str = "equal halves";
const LATE: &str = "late fusion";

const VARIANTS: [Variant; 7] = [
    Variant::new("imputation only", SeriesMixing::Imputation, GateLevel::Batch),
    Variant::new("interpolation only", SeriesMixing::Interpolation, GateLevel::Batch),
    Variant::new(HALVES, SeriesMixing::EqualHalves, GateLevel::Batch),
    Variant::new("gate a stay", SeriesMixing::Gated, GateLevel::Batch),
    Variant::new("gate an hour", SeriesMixing::Gated, GateLevel::BatchSeq),
    Variant::new(FINEST, SeriesMixing::Gated, GateLevel::BatchSeqFeature),
    Variant {
        name: LATE,
        mixing: SeriesMixing::Gated,
        level: GateLevel::BatchSeqFeature,
        fusion: StreamFusion::Late,
    },
];

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let device = experiment.device()?;
    let out = experiment.out_dir("irregular-ehr")?;
    let epochs = args.epochs.map_or(experiment.steps(12, 1), |epochs| epochs as usize);
    let (mut results, mut hours, mut seen) = (Results::new(), Results::new(), Results::new());
    let mut robustness = Robustness::new("Irregular records", "F1");
    let (mut channels, mut shown) = (None, Vec::new());
    for seed in experiment.seeds() {
        let data = Data::draw(experiment, seed);
        for variant in &VARIANTS {
            let test = Test {
                network: trained(variant, &data, epochs, seed, &device)?,
                variant,
                seed,
                device: &device,
            };
            for (missing, stays) in MISSING.iter().zip(&data.tests) {
                let f1 = test.f1(stays, |batch| batch)?;
                results.record(variant.name, &missing_name(*missing), seed, f1);
            }
            if variant.is_compared() {
                test.compare(&data.tests[USUAL], &mut robustness)?;
            }
            if variant.mixing == SeriesMixing::Gated && variant.fusion == StreamFusion::Interleaved {
                let stays: Vec<&Stay> = data.tests[USUAL].iter().collect();
                let gates = Gates::of(&test.network, &stays, &loader(variant)?, &device)?;
                gates::record(&gates, variant.name, seed, &mut hours, &mut seen);
                if variant.name == FINEST && channels.is_none() {
                    channels = Some(gates);
                    shown.clone_from(&data.tests[USUAL]);
                }
            }
        }
    }
    say("\nF1 by the share of observations that is missing at test time:\n");
    say(results.table());
    say(format!("Mean gate by the observations in an hour, {} missing:\n", missing_name(MISSING[USUAL])));
    say(seen.table());
    say(format!("F1 without a modality, {} of the observations missing:\n", missing_name(MISSING[USUAL])));
    say(robustness.table());
    for (name, table) in [("results", &results), ("gates", &seen), ("gates-by-hour", &hours)] {
        table.write_csv(out.join(format!("{name}.csv")))?;
    }
    results.write_json(out.join("results.json"))?;
    robustness.save(&out)?;
    f1_plot(&results).write_svg(out.join("irregular-ehr.svg"))?;
    gates::by_hour_plot(&hours, &shown).write_svg(out.join("irregular-ehr-hours.svg"))?;
    if let Some(gates) = channels {
        gates::by_channel_plot(&gates).write_svg(out.join("irregular-ehr-channels.svg"))?;
    }
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

/// Stays of one seed; no patient is in two of the parts.
struct Data {
    train: Vec<Stay>,
    validation: Vec<Stay>,
    /// By [`MISSING`].
    tests: Vec<Vec<Stay>>,
}

impl Data {
    fn draw(experiment: &Experiment, seed: u64) -> Self {
        let mut random = tasks::random(seed);
        let mut any = |count| stays::draw(experiment.steps(count, 32), 0.0..=0.9, &mut random);
        let (train, validation) = (any(TRAIN), any(VALIDATION));
        let mut random = tasks::random(seed + 1000);
        let tests =
            MISSING.map(|missing| stays::draw(experiment.steps(TEST, 32), missing..=missing, &mut random));
        Self { train, validation, tests: tests.into() }
    }
}

fn config(variant: &Variant) -> IrregularEhrConfig {
    IrregularEhrConfig::new()
        .with_d_in(CHANNELS)
        .with_grid(HOURS)
        .with_embed_time(16)
        .with_time_heads(4)
        .with_d_model(WIDTH)
        .with_heads(4)
        .with_cross_layers(1)
        .with_note_dim(NOTE_DIM)
        .with_gate_level(variant.level)
        .with_mixing(variant.mixing)
        .with_fusion(variant.fusion)
}

fn loader(variant: &Variant) -> Result<StayLoader, ExampleError> {
    Ok(StayLoader::new(&config(variant))?)
}

/// The words start from nothing, so they learn in every epoch, as fast as all else.
fn trained(
    variant: &Variant,
    data: &Data,
    epochs: usize,
    seed: u64,
    device: &Device,
) -> Result<EhrNetwork<BagOfWords>, ExampleError> {
    device.seed(seed);
    let encoder = BagOfWordsConfig::new(stays::vocabulary(), NOTE_DIM).try_init(device)?;
    let network = EhrNetwork { encoder, model: config(variant).try_init(device)? };
    let recipe = EhrTrainingConfig::new()
        .with_learning_rate(LEARNING_RATE)
        .with_note_learning_rate(LEARNING_RATE)
        .with_epochs(epochs)
        .with_unfrozen_epochs((0..epochs).collect())
        .with_batch_size(BATCH)
        .with_accumulation(1)
        .with_threshold(THRESHOLD);
    let trainer = EhrTrainer::new(network, loader(variant)?, recipe, device)?;
    let bar = progress(epochs, &format!("{} {seed}", variant.name));
    let (train, validation): (Vec<_>, Vec<_>) =
        (data.train.iter().collect(), data.validation.iter().collect());
    let (network, _) = trainer.fit(&train, &validation, &mut tasks::random(seed), |epoch| {
        bar.set_message(format!("loss {:.3}, F1 {:.3}", epoch.loss, epoch.validation_f1));
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    Ok(network)
}

/// A trained network under test.
struct Test<'a> {
    network: EhrNetwork<BagOfWords>,
    variant: &'a Variant,
    seed: u64,
    device: &'a Device,
}

impl Test<'_> {
    fn f1(&self, stays: &[Stay], change: impl FnMut(EhrBatch) -> EhrBatch) -> Result<f64, ExampleError> {
        let (stays, loader): (Vec<&Stay>, _) = (stays.iter().collect(), loader(self.variant)?);
        let answers: Result<_, InputError> =
            self.network.answers_to(&stays, &loader, 64, self.device, change);
        Ok(F1Score::macro_mean(&answers?, THRESHOLD))
    }

    /// With each modality, without it, and with noise for it.
    fn compare(&self, stays: &[Stay], robustness: &mut Robustness) -> Result<(), ExampleError> {
        let mut random = tasks::random(self.seed + 2000);
        let noisy = [
            stays::with_noise_for_series(stays, &mut random),
            stays::with_noise_for_notes(stays, &mut random),
        ];
        let name = match self.variant.name {
            FINEST => "gated, interleaved",
            HALVES => "equal halves, interleaved",
            _ => "gated, late fusion",
        };
        let mut record = |condition, f1| robustness.record(name, condition, self.seed, f1);
        record(Condition::Clean, self.f1(stays, |batch| batch)?);
        record(Condition::Removed("series"), self.f1(stays, |batch| batch.without_series(0.0))?);
        record(Condition::Removed("notes"), self.f1(stays, |batch| batch.without_notes())?);
        record(Condition::Noise("series"), self.f1(&noisy[0], |batch| batch)?);
        record(Condition::Noise("notes"), self.f1(&noisy[1], |batch| batch)?);
        Ok(())
    }
}

fn missing_name(missing: f64) -> String {
    format!("{:.0}%", 100.0 * missing)
}

fn f1_plot(results: &Results) -> LinePlot {
    let plot = LinePlot::new("F1 against missing observations", "share missing", "F1");
    results.variants().into_iter().fold(plot, |plot, variant| {
        let point = |missing: &f64| Some((*missing, results.mean(variant, &missing_name(*missing))?));
        plot.with_series(variant, MISSING.iter().filter_map(point).collect::<Vec<_>>())
    })
}
