//! What an output gate does to softmax attention: loss, attention sink, massive activations.
//!
//! After Qiu et al. 2025, arXiv 2505.06708. Small models learn sequences in which most tokens follow from the one
//! before them, and a token after a trigger repeats the one before the trigger: heads that copy have nothing to do
//! nearly everywhere, which is what makes attention dump its weight on the first token. Compared are no gate, the gate
//! behind the attention (G1) a channel and a head, the gate on the values (G2) and a gate that cannot close.
//!
//! ```text
//! cargo run --release -p gatekit-examples --example gated-attention
//! ```
#![deny(missing_docs)]

use std::process::ExitCode;

use burn::tensor::{Device, Int, Tensor, TensorData};
use clap::Parser;
use gatekit::core::attention::{GateGranularity, GatePosition};
use gatekit::core::gate::GateActivation;
use gatekit::core::probe::{AttentionDiagnosticsConfig, LinePlot};
use gatekit::core::{ConfigError, ModuleConfig};
use gatekit::sequence::backbone::BackboneSize;
use gatekit::sequence::gated_attention::{GatedAttentionConfig, GatedAttentionForCausalLm};
use gatekit::sequence::lm::IGNORED_LABEL;
use gatekit::sequence::{CausalLm, CausalModel};
use gatekit_examples::{ExampleError, Experiment, Results, Training, progress, say, tasks, train};
use rand::RngExt;
use rand::rngs::StdRng;

/// Gated attention on a task that asks heads to attend to nothing.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Layers of the models
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=100))]
    layers: u64,
    /// Steps of the training
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u64).range(20..))]
    steps: u64,
}

const WIDTH: usize = 64;
const HEADS: usize = 4;
/// Sequences of a step, of the measurements, and their tokens.
const BATCH: usize = 16;
const TESTS: usize = 64;
const TIME: usize = 48;
/// Learning rates of the shorter trainings.
const RATES: [f64; 3] = [1e-2, 3e-2, 1e-1];
const RATE: f64 = 3e-3;

/// The variants and their gates.
const VARIANTS: [(&str, GatePosition, GateGranularity, GateActivation); 5] = [
    ("no gate", GatePosition::None, GateGranularity::Elementwise, GateActivation::Sigmoid),
    ("G1 elementwise", GatePosition::Sdpa, GateGranularity::Elementwise, GateActivation::Sigmoid),
    ("G1 headwise", GatePosition::Sdpa, GateGranularity::Headwise, GateActivation::Sigmoid),
    ("G2 elementwise", GatePosition::Value, GateGranularity::Elementwise, GateActivation::Sigmoid),
    ("G1 ns-sigmoid", GatePosition::Sdpa, GateGranularity::Elementwise, GateActivation::NonSparseSigmoid),
];

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let (layer_count, steps) = (args.layers as usize, args.steps as usize);
    let device = experiment.device()?;
    let out = experiment.out_dir("gated-attention")?;
    let task = BackCopy::new();
    let (mut results, mut layers, mut rates) = (Results::new(), Results::new(), Results::new());
    let mut curves = LinePlot::new("Loss on new sequences, first seed", "step", "nats a token");
    let mut histogram = LinePlot::new("Gate scores, first seed", "score", "share of scores");
    for seed in experiment.seeds() {
        for variant in VARIANTS {
            let training = training(experiment.steps(steps, 12), RATE);
            let (model, losses) = trained(variant, layer_count, &task, &training, seed, &device)?;
            measure(variant.0, &model, &task, seed, &device, (&mut results, &mut layers))?;
            if Some(seed) == experiment.seeds().next() {
                curves = curves.with_series(variant.0, smoothed(&losses));
                if let Some(shares) = score_shares(&model, &task, &device) {
                    histogram = histogram.with_series(variant.0, shares);
                }
            }
        }
    }
    // Each learning rate once, in a shorter training.
    for rate in RATES.iter().take(experiment.steps(RATES.len(), 2)) {
        for variant in VARIANTS {
            let training = training(experiment.steps(150, 6), *rate);
            let (model, _) = trained(variant, layer_count, &task, &training, experiment.seed, &device)?;
            let (inputs, labels, _) = task.batch(TESTS, &mut tasks::random(1), &device);
            let loss = model.loss(model.forward(inputs, None), labels)?.into_scalar::<f64>();
            rates.record(variant.0, &format!("rate {rate}"), experiment.seed, loss);
        }
    }

    say("Behind the training; first-token share and gates are means over layers:\n");
    say(results.table());
    say("First-token share by layer:\n");
    say(layers.table());
    say("Loss of a shorter training, by learning rate:\n");
    say(rates.table());
    results.write_csv(out.join("results.csv"))?;
    results.write_json(out.join("results.json"))?;
    layers.write_csv(out.join("layers.csv"))?;
    rates.write_csv(out.join("rates.csv"))?;
    results
        .bar_plot("Attention to the first token", "first token")
        .write_svg(out.join("gated-attention.svg"))?;
    layer_plot(&layers).write_svg(out.join("layers.svg"))?;
    curves.write_svg(out.join("loss.svg"))?;
    histogram.write_svg(out.join("scores.svg"))?;
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

fn training(steps: usize, learning_rate: f64) -> Training {
    Training { steps, learning_rate, warmup: steps / 20, weight_decay: 0.1, ..Training::default() }
}

type Variant = (&'static str, GatePosition, GateGranularity, GateActivation);

fn model(variant: Variant, layers: usize, device: &Device) -> Result<GatedAttentionForCausalLm, ConfigError> {
    let (_, position, granularity, activation) = variant;
    let size = BackboneSize {
        vocab_size: BackCopy::VOCABULARY,
        hidden_size: WIDTH,
        num_hidden_layers: layers,
        intermediate_size: Some(2 * WIDTH),
        hidden_ratio: 4.0,
        norm_eps: 1e-6,
        tie_word_embeddings: false,
    };
    let layer = GatedAttentionConfig::new(WIDTH, HEADS)
        .with_gate_position(position)
        .with_gate_granularity(granularity)
        .with_gate_activation(activation);
    CausalModel::try_new(&size, device, |_| layer.try_init(device))
}

fn trained(
    variant: Variant,
    layers: usize,
    task: &BackCopy,
    training: &Training,
    seed: u64,
    device: &Device,
) -> Result<(GatedAttentionForCausalLm, Vec<f64>), ExampleError> {
    device.seed(seed);
    let model = model(variant, layers, device)?;
    let mut random = tasks::random(seed);
    let bar = progress(training.steps, &format!("{} {:.0e}", variant.0, training.learning_rate));
    let training_device = device.clone().autodiff();
    Ok(train(model, training, &bar, |model, _| {
        let (inputs, labels, _) = task.batch(BATCH, &mut random, &training_device);
        model.loss(model.forward(inputs, None), labels).expect("every token is asked")
    }))
}

fn measure(
    name: &str,
    model: &GatedAttentionForCausalLm,
    task: &BackCopy,
    seed: u64,
    device: &Device,
    (results, layers): (&mut Results, &mut Results),
) -> Result<(), ExampleError> {
    let (inputs, labels, copies) = task.batch(TESTS, &mut tasks::random(seed + 1000), device);
    let logits = model.forward(inputs.clone(), None);
    results.record(name, "loss", seed, model.loss(logits.clone(), labels)?.into_scalar::<f64>());
    results.record(name, "copied", seed, tasks::accuracy(logits, copies));
    let diagnosed = model.diagnose(inputs, &AttentionDiagnosticsConfig::new().with_skip_first_query(true))?;
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let shares: Vec<f64> = diagnosed.iter().map(|layer| layer.first_token_share.mean).collect();
    for (index, share) in shares.iter().enumerate() {
        layers.record(name, &format!("layer {}", index + 1), seed, *share);
    }
    results.record(name, "first token", seed, mean(shares));
    let largest = diagnosed.iter().map(|layer| layer.activations.max).fold(0.0, f64::max);
    results.record(name, "max |h|", seed, largest);
    let gates: Vec<_> = diagnosed.iter().filter_map(|layer| layer.gate.as_ref()).collect();
    if !gates.is_empty() {
        results.record(name, "mean score", seed, mean(gates.iter().map(|gate| gate.mean).collect()));
        results.record(name, "below 0.1", seed, mean(gates.iter().map(|gate| gate.sparsity).collect()));
    }
    Ok(())
}

/// Shares of the scores of all layers in twenty bins of (0, 1); `None` without a gate.
fn score_shares(
    model: &GatedAttentionForCausalLm,
    task: &BackCopy,
    device: &Device,
) -> Option<Vec<(f64, f64)>> {
    let (inputs, _, _) = task.batch(TESTS, &mut tasks::random(2), device);
    let mut x = model.embed(inputs);
    let (mut counts, mut total) = ([0usize; 20], 0usize);
    for block in &model.model.layers {
        let scores = block.attn.gate_scores(block.attn_norm.forward(x.clone()))?;
        for score in scores.into_data().iter::<f64>() {
            counts[((score * 20.0) as usize).min(19)] += 1;
            total += 1;
        }
        x = block.forward(x, &Default::default());
    }
    let share = |(bin, count): (usize, &usize)| ((bin as f64 + 0.5) / 20.0, *count as f64 / total as f64);
    Some(counts.iter().enumerate().map(share).collect())
}

fn layer_plot(layers: &Results) -> LinePlot {
    let plot = LinePlot::new("Attention to the first token by layer", "layer", "share");
    layers.variants().into_iter().fold(plot, |plot, variant| {
        let metrics = layers.metrics();
        let point =
            |(index, metric): (usize, &&str)| Some((index as f64 + 1.0, layers.mean(variant, metric)?));
        plot.with_series(variant, metrics.iter().enumerate().filter_map(point).collect::<Vec<_>>())
    })
}

/// Means of ten steps.
fn smoothed(losses: &[f64]) -> Vec<(f64, f64)> {
    let mean = |(index, part): (usize, &[f64])| {
        ((10 * index + part.len()) as f64, part.iter().sum::<f64>() / part.len() as f64)
    };
    losses.chunks(10).enumerate().map(mean).collect()
}

/// Sequences that begin with a fixed token and go on as a chain: every token has four likely successors. In between
/// stand trigger tokens, and behind each of them once more the token before it.
struct BackCopy {
    successors: Vec<[usize; 4]>,
}

impl BackCopy {
    const VOCABULARY: usize = 32;
    /// Token 0 is the fixed first one; these are the triggers.
    const TRIGGERS: std::ops::RangeInclusive<usize> = 1..=3;
    /// How likely a trigger is.
    const TRIGGERED: f64 = 0.1;

    fn new() -> Self {
        let mut random = tasks::random(12345);
        let first = Self::TRIGGERS.end() + 1;
        let successors = |_| std::array::from_fn(|_| random.random_range(first..Self::VOCABULARY));
        Self { successors: (0..Self::VOCABULARY).map(successors).collect() }
    }

    fn sequence(&self, random: &mut StdRng) -> Vec<usize> {
        let mut tokens = vec![0];
        while tokens.len() < TIME {
            let last = tokens[tokens.len() - 1];
            let next = match tokens.len() {
                2.. if Self::TRIGGERS.contains(&last) => tokens[tokens.len() - 2],
                2.. if random.random_bool(Self::TRIGGERED) => random.random_range(Self::TRIGGERS),
                _ => self.successors[last][random.random_range(0..4)],
            };
            tokens.push(next);
        }
        tokens
    }

    /// `size` sequences, labels for all tokens, and labels for the copied ones alone, `[size, time]` each.
    fn batch(
        &self,
        size: usize,
        random: &mut StdRng,
        device: &Device,
    ) -> (Tensor<2, Int>, Tensor<2, Int>, Tensor<2, Int>) {
        let (mut tokens, mut copies) = (Vec::new(), Vec::new());
        for _ in 0..size {
            let sequence = self.sequence(random);
            for (index, &token) in sequence.iter().enumerate() {
                let copied = index >= 2 && Self::TRIGGERS.contains(&sequence[index - 1]);
                copies.push(if copied { token as i64 } else { IGNORED_LABEL });
                tokens.push(token as i64);
            }
        }
        let tensor = |values| Tensor::from_data(TensorData::new(values, [size, TIME]), device);
        let tokens: Tensor<2, Int> = tensor(tokens);
        (tokens.clone(), tokens, tensor(copies))
    }
}
