//! The same model as in `language-model`, trained with Burn's own learner instead of a loop of one's own: metrics,
//! checkpoints after every epoch, and a progress display come with it (a dashboard with the feature `dashboard`).
//!
//! ```text
//! cargo run --release --example learner --features learner
//! cargo run --release --example learner --features dashboard
//! ```
#![deny(missing_docs)]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn::data::dataloader::DataLoaderBuilder;
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::{Dataset, DatasetError};
use burn::grad_clipping::GradientClippingConfig;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::optim::AdamWConfig;
use burn::prelude::*;
use burn::train::metric::{LossMetric, PerplexityMetric};
use burn::train::{InferenceStep, Learner, SequenceOutput, SupervisedTraining, TrainOutput, TrainStep};
use clap::Parser;
use gatekit::core::ModuleConfig;
use gatekit::sequence::{CausalLm, GlaConfig, GlaForCausalLm, save_pretrained};

/// One token a byte.
const VOCABULARY: usize = 256;

/// Trains a byte-level language model with Burn's learner.
#[derive(Debug, Parser)]
struct Args {
    /// Where to compute
    #[arg(long, default_value = "flex")]
    device: String,
    /// The text to learn from; its last tenth is for validation [default: the Shakespeare that ships here]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Passes over the text
    #[arg(long, value_name = "N", default_value_t = 1)]
    epochs: usize,
    /// Bytes of a sequence
    #[arg(long, value_name = "N", default_value_t = 128)]
    context: usize,
    /// Sequences of a step
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch_size: usize,
    /// Width of the model
    #[arg(long, value_name = "N", default_value_t = 128)]
    dim: usize,
    /// Number of blocks
    #[arg(long, value_name = "N", default_value_t = 4)]
    layers: usize,
    /// Seed of weights and order
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Where checkpoints, metrics and the trained model go
    #[arg(long, value_name = "DIR", default_value = "runs/learner")]
    out: PathBuf,
}

/// What the learner needs to know of a language model: how to make a loss of a batch.
#[derive(Module, Debug)]
struct Trained {
    model: GlaForCausalLm,
}

impl Trained {
    /// Every byte but the last of each row predicts its successor.
    fn predict(&self, ids: Tensor<2, Int>) -> SequenceOutput {
        let [batch, time] = ids.dims();
        let logits = self.model.forward(ids.clone(), None);
        let loss =
            self.model.loss(logits.clone(), ids.clone()).expect("bytes are tokens, and every row has two");
        SequenceOutput::new(
            loss,
            logits.slice([0..batch, 0..time - 1, 0..VOCABULARY]),
            None,
            ids.slice([0..batch, 1..time]),
        )
    }
}

impl TrainStep for Trained {
    type Input = Tensor<2, Int>;
    type Output = SequenceOutput;

    fn step(&self, ids: Tensor<2, Int>) -> TrainOutput<SequenceOutput> {
        let output = self.predict(ids);
        TrainOutput::new(self, output.loss.backward(), output)
    }
}

impl InferenceStep for Trained {
    type Input = Tensor<2, Int>;
    type Output = SequenceOutput;

    fn step(&self, ids: Tensor<2, Int>) -> SequenceOutput {
        self.predict(ids)
    }
}

/// A text, cut into sequences.
struct Sequences {
    text: Vec<u8>,
    context: usize,
}

impl Dataset<Vec<u8>> for Sequences {
    fn get(&self, index: usize) -> Result<Vec<u8>, DatasetError> {
        Ok(self.text[index * self.context..(index + 1) * self.context].to_vec())
    }

    fn len(&self) -> usize {
        self.text.len() / self.context
    }
}

/// Sequences of one length to a tensor `[batch, context]`.
struct Stack;

impl Batcher<Vec<u8>, Tensor<2, Int>> for Stack {
    fn batch(&self, sequences: Vec<Vec<u8>>, device: &Device) -> Tensor<2, Int> {
        let shape = [sequences.len(), sequences[0].len()];
        let ids: Vec<i32> = sequences.concat().into_iter().map(i32::from).collect();
        Tensor::from_data(TensorData::new(ids, shape), device)
    }
}

fn main() -> ExitCode {
    match train(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn train(args: &Args) -> Result<(), Box<dyn Error>> {
    if args.epochs == 0 || args.batch_size == 0 || args.context < 2 {
        return Err("--epochs and --batch-size must be at least 1, --context at least 2".into());
    }
    let device = gatekit::device::parse(&args.device)?;
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/shakespeare.txt");
    let path = args.text.as_deref().unwrap_or(&shipped);
    let mut text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let valid = text.split_off(text.len() - text.len() / 10);
    if valid.len() < args.context {
        return Err(format!("{} is too short: its last tenth must fill a sequence", path.display()).into());
    }
    let sequences = |text| Sequences { text, context: args.context };
    let (train, valid) = (sequences(text), sequences(valid));

    let config = GlaConfig::new(VOCABULARY, args.dim, args.layers)
        .with_use_short_conv(true)
        .with_intermediate_size(Some((8 * args.dim).div_ceil(3).next_multiple_of(32)));
    let training = device.clone().autodiff();
    training.seed(args.seed);
    let model = Trained { model: config.try_init(&training)? };
    let optimizer = AdamWConfig::new()
        .with_beta_2(0.99)
        .with_epsilon(1e-8)
        .with_weight_decay(0.05)
        .with_grad_clipping(Some(GradientClippingConfig::Norm(1.0)))
        .init();
    let steps = args.epochs * train.len().div_ceil(args.batch_size);
    let schedule = CosineAnnealingLrSchedulerConfig::new(3e-3, steps).with_min_lr(3e-4).init()?;

    let loader = |device| DataLoaderBuilder::new(Stack).batch_size(args.batch_size).set_device(device);
    let result = SupervisedTraining::new(
        &args.out,
        loader(training).shuffle(args.seed).build(train),
        loader(device).build(valid),
    )
    .metrics((LossMetric::new(), PerplexityMetric::new()))
    .with_default_checkpointers()
    .num_epochs(args.epochs)
    .summary()
    .launch(Learner::new(model, optimizer, schedule));

    save_pretrained(args.out.join("model"), &config, &result.model.model, None)?;
    Ok(())
}
