//! What a scale and a shift of the attention weights do: loss, stability, attention sink.
//!
//! After Bae et al. 2026, arXiv 2602.23057. Small byte models of one text, alike but for what becomes of the softmax's
//! weights: nothing, a learned sink, an output gate, the affine form with either activation of its scale, and with the
//! gate. Then each once more at learning rates up to where training suffers.
//!
//! ```text
//! cargo run --release -p gatekit-examples --example affine-scaled-attention
//! ```
#![deny(missing_docs)]

use std::process::ExitCode;

use burn::tensor::{Device, Tensor};
use clap::Parser;
use gatekit::core::ModuleConfig;
use gatekit::core::attention::{BiasCount, OutputGateKind};
use gatekit::core::probe::LinePlot;
use gatekit::sequence::CausalLm;
use gatekit::sequence::affine_scaled::{
    AffineScaledForCausalLm, AffineScaledModelConfig, AttentionVariant, ScaleActivation,
};
use gatekit::sequence::checkpoint::named_gradients;
use gatekit_examples::tasks::Corpus;
use gatekit_examples::{ExampleError, Experiment, Results, Training, progress, say, tasks, train};

/// Affine-scaled attention on bytes of a text.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
}

const WIDTH: usize = 64;
const LAYERS: usize = 2;
const HEADS: usize = 4;
/// Windows of a step and their bytes.
const BATCH: usize = 8;
const TIME: usize = 64;
/// Windows of the measurements.
const TESTS: usize = 32;
const RATE: f64 = 3e-3;
/// Learning rates of the shorter trainings.
const RATES: [f64; 3] = [1e-2, 3e-2, 1e-1];
/// The gradient's norm is taken every so many steps.
const EVERY: usize = 10;

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse().experiment))
}

/// What is compared.
fn variants() -> Vec<(&'static str, AffineScaledModelConfig)> {
    let config = AffineScaledModelConfig::new(256, WIDTH, LAYERS, 2 * WIDTH).with_num_heads(HEADS);
    let softmax = || config.clone().with_variant(AttentionVariant::Softmax);
    vec![
        ("softmax", softmax()),
        ("sink", config.clone().with_variant(AttentionVariant::Sink)),
        ("gate", softmax().with_output_gate(OutputGateKind::Elementwise)),
        ("affine", config.clone()),
        ("affine, visible", config.clone().with_bias_count(BiasCount::Visible)),
        ("affine, no shift", config.clone().with_bias_count(BiasCount::None)),
        ("affine, sigmoid", config.clone().with_alpha_activation(ScaleActivation::Sigmoid)),
        ("affine and gate", config.with_output_gate(OutputGateKind::Elementwise)),
    ]
}

fn run(experiment: &Experiment) -> Result<(), ExampleError> {
    let device = experiment.device()?;
    let out = experiment.out_dir("affine-scaled-attention")?;
    let corpus = Corpus::shakespeare()?;
    let (mut results, mut rates) = (Results::new(), Results::new());
    let mut plots = Plots::new();
    for seed in experiment.seeds() {
        for (name, config) in variants() {
            let training = training(experiment.steps(400, 10), RATE);
            let trained = Trained::new(name, &config, &corpus, &training, seed, &device)?;
            trained.measure(name, &corpus, seed, &device, &mut results);
            if Some(seed) == experiment.seeds().next() {
                plots.add(name, &trained, &corpus, &device);
            }
        }
    }
    for rate in RATES.iter().take(experiment.steps(RATES.len(), 1)) {
        for (name, config) in variants() {
            let training = training(experiment.steps(150, 5), *rate);
            let trained = Trained::new(name, &config, &corpus, &training, experiment.seed, &device)?;
            let bits = corpus.bits_per_byte(&trained.model, TESTS, TIME, &device);
            rates.record(name, &format!("rate {rate}"), experiment.seed, bits);
        }
    }

    say("Behind the training; shares and sums are means over layers, heads and queries:\n");
    say(results.table());
    say("Bits per byte of a shorter training, by learning rate:\n");
    say(rates.table());
    results.write_csv(out.join("results.csv"))?;
    results.write_json(out.join("results.json"))?;
    rates.write_csv(out.join("rates.csv"))?;
    plots.write(&out)?;
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

fn training(steps: usize, learning_rate: f64) -> Training {
    Training { steps, learning_rate, warmup: steps / 20, weight_decay: 0.1, ..Training::default() }
}

/// A trained model and what was seen on the way.
struct Trained {
    model: AffineScaledForCausalLm,
    losses: Vec<f64>,
    /// Steps and norms of the whole gradient.
    norms: Vec<(f64, f64)>,
    /// Steps and means over layers and heads of the moving averages.
    averages: Vec<(f64, f64)>,
}

impl Trained {
    fn new(
        name: &str,
        config: &AffineScaledModelConfig,
        corpus: &Corpus,
        training: &Training,
        seed: u64,
        device: &Device,
    ) -> Result<Self, ExampleError> {
        device.seed(seed);
        let model = config.try_init(device)?;
        let mut random = tasks::random(seed);
        let training_device = device.clone().autodiff();
        let (mut norms, mut averages) = (Vec::new(), Vec::new());
        let bar = progress(training.steps, &format!("{name} {:.0e}", training.learning_rate));
        let (model, losses) = train(model, training, &bar, |model, step| {
            let (inputs, labels) = corpus.batch(BATCH, TIME, &mut random, &training_device);
            let loss = |model: &AffineScaledForCausalLm| {
                let logits = model.forward(inputs.clone(), None);
                model.loss(logits, labels.clone()).expect("every byte is asked")
            };
            if step % EVERY == 0 {
                // A look at the gradient must not move the averages.
                let mut still = model.clone();
                still.set_training(false);
                norms.push((step as f64, norm(&still, loss(&still))));
                averages.extend(mean_of(&model.moving_averages()).map(|mean| (step as f64, mean)));
            }
            loss(model)
        });
        Ok(Self { model, losses, norms, averages })
    }

    fn measure(&self, name: &str, corpus: &Corpus, seed: u64, device: &Device, results: &mut Results) {
        let mut record = |metric: &str, value: f64| results.record(name, metric, seed, value);
        record("bits per byte", corpus.bits_per_byte(&self.model, TESTS, TIME, device));
        let norms: Vec<f64> = self.norms.iter().map(|(_, norm)| *norm).collect();
        let (mean, deviation) = moments(&norms);
        record("gradient", mean);
        record("its deviation", deviation);
        let layers = self.layers(corpus, device);
        let over_layers =
            |value: &dyn Fn(&Layer) -> f64| layers.iter().map(value).sum::<f64>() / layers.len() as f64;
        record("first token", over_layers(&|layer| layer.first_token));
        record("sum of weights", over_layers(&|layer| moments(&layer.sums).0));
        record("its spread", over_layers(&|layer| moments(&layer.sums).1));
        if layers.iter().any(|layer| !layer.alpha.is_empty()) {
            record("alpha", over_layers(&|layer| moments(&layer.alpha).0));
        }
    }

    /// Weights and scales of every layer on held-out windows.
    fn layers(&self, corpus: &Corpus, device: &Device) -> Vec<Layer> {
        let (inputs, _) = corpus.validation(TESTS, TIME, device);
        let mut x = self.model.embed(inputs);
        let mut layers = Vec::new();
        for block in &self.model.model.layers {
            let normed = block.attn_norm.forward(x.clone());
            let (weights, alpha) = match block.attn.scale_values(normed.clone()) {
                Some(values) => (values.weights, numbers(values.alpha)),
                None => (block.attn.attention.weights(normed), Vec::new()),
            };
            layers.push(Layer {
                // The first query has nothing but the first key.
                first_token: moments(&numbers(weights.clone().narrow(2, 1, TIME - 1).narrow(3, 0, 1))).0,
                sums: numbers(weights.clone().sum_dim(3)),
                sums_by_position: numbers(weights.sum_dim(3).mean_dim(1).mean_dim(0)),
                alpha,
            });
            x = block.forward(x, &Default::default());
        }
        layers
    }
}

/// What a layer's attention did.
struct Layer {
    first_token: f64,
    /// Sums of the rows of weights.
    sums: Vec<f64>,
    /// Their means over rows and heads, by position.
    sums_by_position: Vec<f64>,
    alpha: Vec<f64>,
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

fn mean_of(averages: &[Tensor<1>]) -> Option<f64> {
    let values: Vec<f64> = averages.iter().flat_map(|average| numbers(average.clone())).collect();
    (!values.is_empty()).then(|| moments(&values).0)
}

fn moments(values: &[f64]) -> (f64, f64) {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    (mean, (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt())
}

/// Norm of the gradient of all parameters.
fn norm(model: &AffineScaledForCausalLm, loss: Tensor<1>) -> f64 {
    let gradients = named_gradients(model, &loss.backward());
    let squares = gradients.values().flat_map(|gradient| gradient.iter::<f64>().map(|value| value * value));
    squares.sum::<f64>().sqrt()
}

/// Plots of the first seed.
struct Plots {
    loss: LinePlot,
    gradient: LinePlot,
    average: LinePlot,
    sums: LinePlot,
    alpha: LinePlot,
}

impl Plots {
    fn new() -> Self {
        Self {
            loss: LinePlot::new("Training loss", "step", "nats a byte"),
            gradient: LinePlot::new("Norm of the gradient", "step", "norm").with_log_y(true),
            average: LinePlot::new("Moving average of the scale", "step", "m"),
            sums: LinePlot::new("Sum of the attention weights", "position", "sum"),
            alpha: LinePlot::new("Scales", "alpha", "share"),
        }
    }

    fn add(&mut self, name: &str, trained: &Trained, corpus: &Corpus, device: &Device) {
        let layers = trained.layers(corpus, device);
        let mean = |(index, part): (usize, &[f64])| ((EVERY * index + part.len()) as f64, moments(part).0);
        let losses: Vec<_> = trained.losses.chunks(EVERY).enumerate().map(mean).collect();
        let add = |plot: &mut LinePlot, points: Vec<(f64, f64)>| {
            if !points.is_empty() {
                *plot = plot.clone().with_series(name, points);
            }
        };
        add(&mut self.loss, losses);
        add(&mut self.gradient, trained.norms.clone());
        add(&mut self.average, trained.averages.clone());
        let sum = |position: usize| {
            layers.iter().map(|layer| layer.sums_by_position[position]).sum::<f64>() / layers.len() as f64
        };
        add(&mut self.sums, (0..TIME).map(|position| (position as f64 + 1.0, sum(position))).collect());
        let alphas: Vec<f64> = layers.iter().flat_map(|layer| layer.alpha.iter().copied()).collect();
        let mut counts = [0usize; 20];
        alphas.iter().for_each(|alpha| counts[((alpha * 20.0) as usize).min(19)] += 1);
        let share =
            |(bin, count): (usize, &usize)| ((bin as f64 + 0.5) / 20.0, *count as f64 / alphas.len() as f64);
        if !alphas.is_empty() {
            add(&mut self.alpha, counts.iter().enumerate().map(share).collect());
        }
    }

    fn write(&self, out: &std::path::Path) -> Result<(), ExampleError> {
        self.sums.write_svg(out.join("affine-scaled-attention.svg"))?;
        self.loss.write_svg(out.join("loss.svg"))?;
        self.gradient.write_svg(out.join("gradient.svg"))?;
        self.average.write_svg(out.join("average.svg"))?;
        Ok(self.alpha.write_svg(out.join("alpha.svg"))?)
    }
}
