//! Gated associative memory: what its two paths and their gates are worth.
//!
//! After Acharya 2025, arXiv 2509.00605. Models of one size learn the bytes of Shakespeare: gated associative memory,
//! the three ablations of its fusion, and softmax attention. Further: how open the gates of every layer are, the time
//! of one block over the length of the sequence, and a task that asks for a token 5 or 40 tokens back, where the
//! receptive field is 9.
//!
//! ```text
//! cargo run --release -p gatekit-examples --example gated-associative-memory
//! ```
#![deny(missing_docs)]

use std::process::ExitCode;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use clap::Parser;
use gatekit::core::probe::LinePlot;
use gatekit::core::{ModuleConfig, init};
use gatekit::sequence::backbone::MixerContext;
use gatekit::sequence::gated_associative_memory::Fusion;
use gatekit::sequence::lm::IGNORED_LABEL;
use gatekit::sequence::{CausalLm, GamConfig, GamLm, SoftmaxConfig, SoftmaxForCausalLm};
use gatekit_examples::tasks::{self, Corpus};
use gatekit_examples::{
    CurvePoint, ExampleError, Experiment, Results, TextTraining, Training, learn_text, mean_curve, progress,
    say, train,
};
use rand::RngExt;
use rand::rngs::StdRng;

/// Gated associative memory against its ablations and softmax attention.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
}

/// Sizes of all models.
const WIDTH: usize = 64;
const LAYERS: usize = 4;
const SLOTS: usize = 64;
/// Positions that the models of the text have.
const POSITIONS: usize = 128;
const HEADS: usize = 4;
/// So wide a SwiGLU makes a block with attention as large as one with memory and gates.
const SOFTMAX_INNER: usize = 149;

const SOFTMAX: &str = "softmax attention";
const BITS: &str = "bits per byte";

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse().experiment))
}

fn run(experiment: &Experiment) -> Result<(), ExampleError> {
    let device = experiment.device()?;
    let out = experiment.out_dir("gated-associative-memory")?;
    let (mut results, mut gates) = (Results::new(), Results::new());

    let mut text = Text::new(experiment)?;
    let gap_task = |gap| FixedGap { gap, vocabulary: 32, length: 48 };
    for seed in experiment.seeds() {
        for fusion in Fusion::ALL {
            let name = name(fusion);
            device.seed(seed);
            let model =
                text.learn(name, memory(fusion, Corpus::VOCABULARY, &device)?, seed, &device, &mut results)?;
            if fusion == Fusion::Gated {
                let (ids, _) = text.corpus.validation(4, text.training.time, &device);
                record_gates(&model, ids, seed, &mut gates);
            }
        }
        device.seed(seed);
        text.learn(SOFTMAX, softmax(Corpus::VOCABULARY, &device)?, seed, &device, &mut results)?;

        for gap in [5, 40] {
            let (task, metric) = (gap_task(gap), format!("right at gap {gap}"));
            device.seed(seed);
            let model = memory(Fusion::Gated, task.vocabulary, &device)?;
            let accuracy = task.learn(model, experiment, seed, &format!("gated, gap {gap}"), &device)?;
            results.record(name(Fusion::Gated), &metric, seed, accuracy);
            device.seed(seed);
            let model = softmax(task.vocabulary, &device)?;
            let accuracy = task.learn(model, experiment, seed, &format!("softmax, gap {gap}"), &device)?;
            results.record(SOFTMAX, &metric, seed, accuracy);
        }
    }

    let lengths: &[usize] = if experiment.quick { &[32, 64] } else { &[64, 128, 256, 512, 1024, 2048] };
    let times = [
        (name(Fusion::Gated), memory_block_times(lengths, &device)?),
        (SOFTMAX, attention_block_times(lengths, &device)?),
    ];

    say(results.table());
    say("Mean openness of the gates:\n");
    say(gates.table());
    for (name, times) in &times {
        let [(from, first), .., (to, last)] = times[..] else { continue };
        let slope = (last / first).ln() / (to / from).ln();
        say(format!(
            "One block of {name}: {last:.0} ms at length {to}; slope {slope:.2} from length {from}."
        ));
    }
    results.write_csv(out.join("results.csv"))?;
    results.write_json(out.join("results.json"))?;
    gates.write_csv(out.join("gates.csv"))?;
    text.plot("training steps", |point| point.step as f64)
        .write_svg(out.join("gated-associative-memory.svg"))?;
    text.plot("seconds of training", |point| point.seconds).write_svg(out.join("seconds.svg"))?;
    let plot = LinePlot::new("One block, forward and backward", "sequence length", "milliseconds");
    let plot = times.iter().fold(plot.with_log_x(true).with_log_y(true), |plot, (name, times)| {
        plot.with_series(name, times.iter().copied())
    });
    plot.write_svg(out.join("time.svg"))?;
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

fn name(fusion: Fusion) -> &'static str {
    match fusion {
        Fusion::Gated => "gated",
        Fusion::Sum => "sum",
        Fusion::Global => "global only",
        Fusion::Local => "local only",
    }
}

/// A model whose embeddings start as those of the baseline, so that nothing but the blocks differs.
fn memory(fusion: Fusion, vocabulary: usize, device: &Device) -> Result<GamLm, ExampleError> {
    let mut model = GamConfig::new(vocabulary, WIDTH, LAYERS)
        .with_block_size(POSITIONS)
        .with_num_memory_slots(SLOTS)
        .with_fusion(fusion)
        .with_dropout(0.0)
        .try_init(device)?;
    model.token_embedding = init::embedding(vocabulary, WIDTH, device);
    model.pos_embedding = init::embedding(POSITIONS, WIDTH, device);
    Ok(model)
}

fn softmax(vocabulary: usize, device: &Device) -> Result<SoftmaxForCausalLm, ExampleError> {
    let config = SoftmaxConfig::new(vocabulary, WIDTH, LAYERS)
        .with_num_heads(HEADS)
        .with_intermediate_size(Some(SOFTMAX_INNER))
        .with_tie_word_embeddings(true);
    Ok(config.try_init(device)?)
}

/// The text and how to learn it, and what was learned so far.
struct Text {
    corpus: Corpus,
    training: TextTraining,
    curves: Vec<(&'static str, Vec<Vec<CurvePoint>>)>,
}

impl Text {
    fn new(experiment: &Experiment) -> Result<Self, ExampleError> {
        let training = Training {
            steps: experiment.steps(250, 4),
            warmup: experiment.steps(20, 2),
            ..Training::default()
        };
        let training = TextTraining {
            training,
            batch: experiment.steps(8, 2),
            time: experiment.steps(POSITIONS, 32),
            validation: experiment.steps(48, 2),
            every: experiment.steps(25, 2),
        };
        Ok(Self { corpus: Corpus::shakespeare()?, training, curves: Vec::new() })
    }

    fn learn<M: CausalLm>(
        &mut self,
        name: &'static str,
        model: M,
        seed: u64,
        device: &Device,
        results: &mut Results,
    ) -> Result<M, ExampleError> {
        results.record(name, "parameters", seed, model.num_params() as f64);
        let (model, curve) = learn_text(model, &self.corpus, &self.training, seed, name, device)?;
        if let Some(last) = curve.last() {
            results.record(name, BITS, seed, last.bits);
            results.record(name, "seconds", seed, last.seconds);
        }
        match self.curves.iter_mut().find(|(other, _)| *other == name) {
            Some((_, curves)) => curves.push(curve),
            None => self.curves.push((name, vec![curve])),
        }
        Ok(model)
    }

    fn plot(&self, x_label: &str, x: impl Fn(&CurvePoint) -> f64) -> LinePlot {
        let plot = LinePlot::new("Bytes of Shakespeare, held-out part", x_label, BITS);
        self.curves.iter().fold(plot, |plot, (name, curves)| plot.with_series(name, mean_curve(curves, &x)))
    }
}

/// Mean openness of both gates in every block, one row a block.
fn record_gates(model: &GamLm, ids: Tensor<2, Int>, seed: u64, gates: &mut Results) {
    for (values, layer) in model.gate_values(ids).into_iter().zip(1..) {
        let Some(values) = values else { continue };
        let layer = format!("layer {layer}");
        gates.record(&layer, "local gate", seed, values.local.mean().into_scalar::<f64>());
        gates.record(&layer, "global gate", seed, values.global.mean().into_scalar::<f64>());
    }
}

/// A mark and a token among random ones; the mark again, `gap` tokens later, asks for that token.
struct FixedGap {
    gap: usize,
    vocabulary: usize,
    length: usize,
}

impl FixedGap {
    /// Inputs and labels `[size, length]`; token 0 is the mark.
    fn batch(&self, size: usize, random: &mut StdRng, device: &Device) -> (Tensor<2, Int>, Tensor<2, Int>) {
        let (mut inputs, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..size {
            let mut row: Vec<i64> =
                (0..self.length).map(|_| random.random_range(1..self.vocabulary as i64)).collect();
            let first = random.random_range(0..self.length - self.gap - 1);
            let (again, answer) = (first + self.gap, first + self.gap + 1);
            (row[first], row[again]) = (0, 0);
            row[answer] = row[first + 1];
            labels.extend((0..self.length).map(|at| if at == answer { row[at] } else { IGNORED_LABEL }));
            inputs.extend(row);
        }
        let tensor = |values| Tensor::from_data(TensorData::new(values, [size, self.length]), device);
        (tensor(inputs), tensor(labels))
    }

    /// Trains `model` and asks it: the share of right answers.
    fn learn<M: CausalLm>(
        &self,
        model: M,
        experiment: &Experiment,
        seed: u64,
        name: &str,
        device: &Device,
    ) -> Result<f64, ExampleError> {
        let training = Training {
            steps: experiment.steps(300, 4),
            warmup: experiment.steps(20, 2),
            weight_decay: 0.0,
            ..Training::default()
        };
        let mut random = tasks::random(seed);
        let autodiff = device.clone().autodiff();
        let bar = progress(training.steps, name);
        let (model, _) = train(model, &training, &bar, |model, _| {
            let (inputs, labels) = self.batch(experiment.steps(32, 4), &mut random, &autodiff);
            model.loss(model.forward(inputs, None), labels).expect("every row asks something")
        });
        let (inputs, labels) =
            self.batch(experiment.steps(512, 16), &mut tasks::random(seed + 1_000_000), device);
        Ok(tasks::accuracy(model.forward(inputs, None), labels))
    }
}

/// Milliseconds of a forward and backward pass of `block` over `[1, length, WIDTH]`, the best of three.
fn block_times(
    lengths: &[usize],
    device: &Device,
    block: impl Fn(Tensor<3>) -> Tensor<3>,
) -> Vec<(f64, f64)> {
    let autodiff = device.clone().autodiff();
    let time = |length| {
        let x =
            Tensor::<3>::random([1, length, WIDTH], Distribution::Normal(0.0, 1.0), &autodiff).require_grad();
        let start = Instant::now();
        let gradients = block(x.clone()).sum().backward();
        // Reading back waits for the computation.
        let _ = x.grad(&gradients).map(Tensor::into_data);
        start.elapsed().as_secs_f64() * 1e3
    };
    let best = |length| (0..3).map(|_| time(length)).fold(f64::INFINITY, f64::min);
    lengths.iter().map(|&length| (length as f64, best(length))).collect()
}

fn memory_block_times(lengths: &[usize], device: &Device) -> Result<Vec<(f64, f64)>, ExampleError> {
    let model = memory(Fusion::Gated, Corpus::VOCABULARY, device)?.train();
    Ok(block_times(lengths, device, |x| model.blocks[0].forward(x, None, None).0))
}

fn attention_block_times(lengths: &[usize], device: &Device) -> Result<Vec<(f64, f64)>, ExampleError> {
    let model = softmax(Corpus::VOCABULARY, device)?.train();
    Ok(block_times(lengths, device, |x| model.model.layers[0].forward(x, &MixerContext::default())))
}
