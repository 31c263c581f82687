//! Materials by touch: what a gate a sensor is worth when sensors are missing or give noise.
//!
//! After Lyu et al. 2025, arXiv 2511.19509. Four sensors give sequences of unlike length; six materials in three pairs
//! differ by where two of the four sensors, other ones in every pair, have a peak in their spectra. Compared are the
//! means of all sensors under two layers, TouchFormer with equal weights, with its gates (MAG), and with its gates and the
//! regularisation across instances (MAG + CER): clean, with each sensor replaced by strong noise, and with one, two and
//! three sensors missing.
//!
//! ```text
//! cargo run --release -p gatekit-examples --example touchformer
//! ```
#![deny(missing_docs)]

#[path = "touchformer/materials.rs"]
mod materials;
#[path = "touchformer/network.rs"]
mod network;

use std::path::Path;

use burn::tensor::{Device, Tensor};
use clap::Parser;
use gatekit::core::probe::{HeatMap, LinePlot};
use gatekit::fusion::touchformer::{Evaluation, TouchBatch, TouchFormer};
use gatekit_examples::{Condition, ExampleError, Experiment, Results, Robustness, say, tasks};

use crate::materials::{Fault, MATERIALS, SENSORS, Touch, batch, materials, touches};
use crate::network::{Sizes, Trained, Variant, config, trained};

/// Four touch sensors behind gates.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Passes over the training touches [default: 25, quick: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    epochs: Option<u32>,
    /// Train with sensors that never fail
    #[arg(long)]
    clean_training: bool,
}

/// Instances that are judged at once.
const AT_ONCE: usize = 100;

fn main() -> std::process::ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let device = experiment.device()?;
    let out = experiment.out_dir("touchformer")?;
    let sizes = Sizes {
        dim: experiment.steps(16, 8),
        epochs: args.epochs.map_or_else(|| experiment.steps(25, 2), |epochs| epochs as usize),
        train: experiment.steps(600, 96),
        validation: experiment.steps(150, 24),
        test: experiment.steps(300, 24),
        failures: !args.clean_training,
    };
    let mut measured = Measured::new();
    for seed in experiment.seeds() {
        let mut random = tasks::random(seed.wrapping_add(1000));
        let [train, validation, test] =
            [sizes.train, sizes.validation, sizes.test].map(|count| touches(count, &mut random));
        for variant in Variant::ALL {
            let model = trained(variant, &sizes, (&train, &validation), seed, &device)?;
            measured.judge(&model, variant, &test, seed, &device)?;
        }
    }
    measured.report(&sizes, &out)
}

/// All that is measured.
struct Measured {
    robustness: Robustness,
    results: Results,
    gates: Results,
    /// Cosines between the embeddings of materials, summed over the seeds, with and without the regularisation.
    cosines: [(Vec<Vec<f64>>, usize); 2],
}

impl Measured {
    fn new() -> Self {
        Self {
            robustness: Robustness::new("TouchFormer", "accuracy"),
            results: Results::new(),
            gates: Results::new(),
            cosines: std::array::from_fn(|_| (vec![vec![0.0; MATERIALS]; MATERIALS], 0)),
        }
    }

    fn judge(
        &mut self,
        model: &Trained,
        variant: Variant,
        test: &[Touch],
        seed: u64,
        device: &Device,
    ) -> Result<(), ExampleError> {
        // The noise of the tests is the same for all variants.
        let batches = |fault| {
            device.seed(seed.wrapping_add(2000));
            let chunks =
                test.chunks(AT_ONCE).map(|touches| batch(&touches.iter().collect::<Vec<_>>(), fault, device));
            chunks.collect::<Vec<TouchBatch>>()
        };
        let accuracy = |fault| {
            let batches = batches(fault);
            batches.iter().map(|batch| model.accuracy(batch) * batch.labels.dims()[0] as f64).sum::<f64>()
                / test.len() as f64
        };
        let name = variant.name();
        self.robustness.record(name, Condition::Clean, seed, accuracy(Fault::None));
        for (sensor, title) in SENSORS.iter().enumerate() {
            self.robustness.record(
                name,
                Condition::Removed(title),
                seed,
                accuracy(Fault::Missing(&[sensor])),
            );
            self.robustness.record(name, Condition::Noise(title), seed, accuracy(Fault::Noise(sensor)));
        }
        for count in 0..SENSORS.len() {
            let chosen = choices(count);
            let mean = chosen.iter().map(|missing| accuracy(Fault::Missing(missing))).sum::<f64>();
            self.results.record(name, &missing(count), seed, mean / chosen.len() as f64);
        }
        let noise = (0..SENSORS.len()).map(|sensor| accuracy(Fault::Noise(sensor))).sum::<f64>();
        self.results.record(name, "one noisy", seed, noise / SENSORS.len() as f64);
        self.results.record(name, "parameters", seed, model.parameters() as f64);
        let Trained::TouchFormer(model) = model else { return Ok(()) };
        if variant == Variant::MagCer {
            self.record_gates(model, &batches(Fault::None), "clean", None, seed)?;
            for sensor in 0..SENSORS.len() {
                self.record_gates(model, &batches(Fault::Noise(sensor)), "noise", Some(sensor), seed)?;
            }
        }
        if let Some(place) = [Variant::Mag, Variant::MagCer].iter().position(|of| *of == variant) {
            let cosines = cosines(model, &batches(Fault::None), &materials(test));
            let (sum, count) = &mut self.cosines[place];
            let rows = sum.iter_mut().flatten().zip(cosines.into_iter().flatten());
            rows.for_each(|(sum, cosine)| *sum += cosine);
            *count += 1;
        }
        Ok(())
    }

    /// Mean gates and how often they keep, of all sensors or of one.
    fn record_gates(
        &mut self,
        model: &TouchFormer,
        batches: &[TouchBatch],
        condition: &str,
        of: Option<usize>,
        seed: u64,
    ) -> Result<(), ExampleError> {
        let evaluation = Evaluation::of(model, batches)?;
        for sensor in (0..SENSORS.len()).filter(|sensor| of.is_none_or(|of| of == *sensor)) {
            let metric = |what: &str| format!("{what}, {condition}");
            self.gates.record(SENSORS[sensor], &metric("mean gate"), seed, evaluation.mean_gates[sensor]);
            self.gates.record(SENSORS[sensor], &metric("kept"), seed, evaluation.kept[sensor]);
        }
        Ok(())
    }

    fn report(&self, sizes: &Sizes, out: &Path) -> Result<(), ExampleError> {
        say(
            "Accuracy with sensors missing (mean over all choices) or one replaced by noise (chance: 0.167):\n",
        );
        say(self.results.table());
        say("Sensor by sensor:\n");
        say(self.robustness.table());
        say("Gates of MAG + CER on clean sensors, and of the sensor that gives noise:\n");
        say(self.gates.table());
        self.results.write_csv(out.join("results.csv"))?;
        self.results.write_json(out.join("results.json"))?;
        self.gates.write_csv(out.join("gates.csv"))?;
        self.robustness.save(out)?;
        self.missing_plot().write_svg(out.join("touchformer.svg"))?;
        self.gate_plot(config(Variant::MagCer, sizes).gate_threshold).write_svg(out.join("gates.svg"))?;
        for ((sum, count), (title, file)) in
            self.cosines.iter().zip([("MAG", "embeddings-mag.svg"), ("MAG + CER", "embeddings-cer.svg")])
        {
            let means = sum.iter().map(|row| row.iter().map(|sum| sum / *count as f64).collect()).collect();
            let names: Vec<String> =
                (0..MATERIALS).map(|m| format!("{}{}", m / 2 + 1, ["a", "b"][m % 2])).collect();
            HeatMap::new(&format!("Embeddings, {title}"), "material", "material", "mean cosine", means)
                .with_row_labels(names.clone())
                .with_column_labels(names)
                .with_range(-0.2, 1.0)
                .with_size(560, 480)
                .write_svg(out.join(file))?;
        }
        say(format!("Tables and plots are in {}", out.display()));
        Ok(())
    }

    fn missing_plot(&self) -> LinePlot {
        Variant::ALL.iter().fold(
            LinePlot::new("Accuracy without sensors", "missing sensors", "accuracy"),
            |plot, variant| {
                let point = |count: usize| {
                    let mean = self.results.mean(variant.name(), &missing(count));
                    (count as f64, mean.unwrap_or(f64::NAN))
                };
                plot.with_series(variant.name(), (0..SENSORS.len()).map(point))
            },
        )
    }

    fn gate_plot(&self, threshold: f64) -> LinePlot {
        let series = |metric: &str| {
            let value = |sensor: usize| self.gates.mean(SENSORS[sensor], metric).unwrap_or(f64::NAN);
            (0..SENSORS.len()).map(|sensor| (sensor as f64 + 1.0, value(sensor))).collect::<Vec<_>>()
        };
        LinePlot::new(
            "Gates of MAG + CER",
            "sensor (1 sound, 2 normal force, 3 friction, 4 acceleration)",
            "mean gate",
        )
        .with_series("clean", series("mean gate, clean"))
        .with_series("replaced by noise", series("mean gate, noise"))
        .with_series("threshold", [(1.0, threshold), (SENSORS.len() as f64, threshold)])
    }
}

/// A column's name.
fn missing(count: usize) -> String {
    if count == 0 { "all there".into() } else { format!("{count} missing") }
}

/// All choices of `count` sensors.
fn choices(count: usize) -> Vec<Vec<usize>> {
    let sensors = |set: u32| (0..SENSORS.len()).filter(|sensor| set >> sensor & 1 == 1).collect::<Vec<_>>();
    (0..1u32 << SENSORS.len()).map(sensors).filter(|chosen| chosen.len() == count).collect()
}

/// Mean cosine between the embeddings of touches of two materials.
fn cosines(model: &TouchFormer, batches: &[TouchBatch], materials: &[usize]) -> Vec<Vec<f64>> {
    let embeddings = batches.iter().map(|batch| model.forward(&batch.inputs, &batch.mask).embedding);
    let embeddings = Tensor::cat(embeddings.collect(), 0);
    let cosines: Vec<f64> =
        embeddings.clone().matmul(embeddings.transpose()).into_data().iter::<f64>().collect();
    let mut means = vec![vec![0.0; MATERIALS]; MATERIALS];
    let mut counts = vec![vec![0.0; MATERIALS]; MATERIALS];
    for (i, &a) in materials.iter().enumerate() {
        for (j, &b) in materials.iter().enumerate().filter(|(j, _)| *j != i) {
            means[a][b] += cosines[i * materials.len() + j];
            counts[a][b] += 1.0;
        }
    }
    for (mean, count) in means.iter_mut().flatten().zip(counts.into_iter().flatten()) {
        *mean /= count;
    }
    means
}
