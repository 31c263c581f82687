//! Unlike experts under a top-1 gate: does the choice say which kind of reasoning an input needs?
//!
//! After Pandey, Chopra, Bhat, Abhyudaya 2025, arXiv 2506.22919. Token sequences of two kinds are mixed, each with a
//! marker: of one kind it is asked whether a key word is there (a bag of words suffices), of the other whether A comes
//! before B (order matters). The sentence vector is the mean of the embeddings, so order is invisible to a
//! feed-forward expert. Compared are a feed-forward net and a GRU under one gate, two of either kind, and what the
//! diversity weight and the estimator change.
//!
//! ```text
//! cargo run --release -p gatekit-examples --example hecto
//! ```
#![deny(missing_docs)]

use std::process::ExitCode;

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use clap::Parser;
use gatekit::core::probe::HeatMap;
use gatekit::core::{InputError, ModuleConfig};
use gatekit::experts::hecto::{
    Estimator, ExpertKind, ExpertUsage, HectoConfig, HectoHead, HectoLossConfig, HectoOutput, HectoTargets,
};
use gatekit_examples::{ExampleError, Experiment, Results, Training, progress, say, tasks, train};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// A GRU and a feed-forward net behind one gate.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Steps of every training [default: 700, quick: 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    steps: Option<u32>,
}

const WIDTH: usize = 24;
const BATCH: usize = 64;
const ENTROPY: f64 = 0.01;
const DIVERSITY: f64 = 0.2;
const FFNN: ExpertKind = ExpertKind::Ffnn;
const GRU: ExpertKind = ExpertKind::Gru;

/// A pair of experts and how their gate is trained.
struct Variant {
    name: &'static str,
    experts: [ExpertKind; 2],
    diversity: f64,
    estimator: Estimator,
}

const VARIANTS: [Variant; 6] = [
    Variant {
        name: "Hecto",
        experts: [FFNN, GRU],
        diversity: DIVERSITY,
        estimator: Estimator::StraightThrough,
    },
    Variant {
        name: "two FFNNs",
        experts: [FFNN; 2],
        diversity: DIVERSITY,
        estimator: Estimator::StraightThrough,
    },
    Variant {
        name: "two GRUs",
        experts: [GRU; 2],
        diversity: DIVERSITY,
        estimator: Estimator::StraightThrough,
    },
    Variant {
        name: "no diversity",
        experts: [FFNN, GRU],
        diversity: 0.0,
        estimator: Estimator::StraightThrough,
    },
    Variant { name: "switch", experts: [FFNN, GRU], diversity: DIVERSITY, estimator: Estimator::Switch },
    Variant { name: "no estimator", experts: [FFNN, GRU], diversity: DIVERSITY, estimator: Estimator::None },
];

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let steps = args.steps.map_or_else(|| experiment.steps(700, 20), |steps| steps as usize);
    let device = experiment.device()?;
    let out = experiment.out_dir("hecto")?;
    let (mut results, mut choices) = (Results::new(), Results::new());
    for seed in experiment.seeds() {
        for variant in &VARIANTS {
            let reader = trained(variant, steps, seed, &device)?;
            measure(&reader, variant, seed, &device, (&mut results, &mut choices))?;
        }
    }
    say(
        "Accuracy by kind (chance: 0.5), share of each kind that goes to the GRU, entropy of the gate in nats:\n",
    );
    say(results.table());
    say("The same shares, seed by seed:\n");
    say(choices.table());
    results.write_csv(out.join("results.csv"))?;
    results.write_json(out.join("results.json"))?;
    choices.write_csv(out.join("choices.csv"))?;
    results.bar_plot("Which comes first?", ORDER_ACCURACY).write_svg(out.join("hecto.svg"))?;
    choice_plot(&choices).write_svg(out.join("choices.svg"))?;
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

const BAG_ACCURACY: &str = "accuracy, bag";
const ORDER_ACCURACY: &str = "accuracy, order";
const KINDS: [&str; 2] = ["bag to GRU", "order to GRU"];

/// An embedding table with the mean of the tokens as sentence vector, and the head.
#[derive(Module, Debug)]
struct Reader {
    embedding: Embedding,
    head: HectoHead,
}

impl Reader {
    fn forward(&self, batch: &Sentences) -> Result<HectoOutput, InputError> {
        let [count, _] = batch.tokens.dims();
        let states = self.embedding.forward(batch.tokens.clone());
        let real = batch.mask.clone().float().cast(states.dtype());
        let mean =
            (states.clone() * real.clone().unsqueeze_dim(2)).sum_dim(1) / real.sum_dim(1).unsqueeze_dim(2);
        let first = Tensor::<2, Bool>::full([count, 1], true, &batch.mask.device());
        let mask = Tensor::cat(vec![first, batch.mask.clone()], 1);
        self.head.forward(Tensor::cat(vec![mean, states], 1), mask)
    }
}

fn trained(variant: &Variant, steps: usize, seed: u64, device: &Device) -> Result<Reader, ExampleError> {
    device.seed(seed);
    let head = HectoConfig::new()
        .with_encoder_dim(WIDTH)
        .with_input_dim(WIDTH)
        .with_hidden_dim(WIDTH)
        .with_num_outputs(2)
        .with_experts(variant.experts.to_vec())
        .with_estimator(variant.estimator);
    let embedding = EmbeddingConfig::new(Sentences::VOCABULARY, WIDTH).init(device);
    let reader = Reader { embedding, head: head.try_init(device)? };
    let loss = HectoLossConfig::new().with_entropy_weight(ENTROPY).with_diversity_weight(variant.diversity);
    let loss = loss.try_init(2)?;
    let training = Training {
        steps,
        learning_rate: 3e-3,
        warmup: steps / 20,
        weight_decay: 0.01,
        ..Training::default()
    };
    let mut random = tasks::random(seed);
    let autodiff = device.clone().autodiff();
    let bar = progress(steps, &format!("{} {seed}", variant.name));
    let (reader, _) = train(reader, &training, &bar, |reader, _| {
        let batch = Sentences::draw(BATCH, &mut random, &autodiff);
        let output = reader.forward(&batch).expect("sentences are well formed");
        let targets = HectoTargets::Labels(batch.labels);
        loss.forward(output.y, output.probs, &targets).expect("labels are classes").total
    });
    Ok(reader)
}

fn measure(
    reader: &Reader,
    variant: &Variant,
    seed: u64,
    device: &Device,
    (results, choices): (&mut Results, &mut Results),
) -> Result<(), ExampleError> {
    let batch = Sentences::draw(1024, &mut tasks::random(seed + 1000), device);
    let output = reader.forward(&batch)?;
    let answers = output.y.argmax(1).squeeze_dim::<1>(1).equal(batch.labels.clone());
    let (mut right, mut count) = ([0.0; 2], [0.0; 2]);
    let kinds: Vec<i64> = batch.kinds.to_data().iter::<i64>().collect();
    for (kind, answer) in kinds.iter().zip(answers.into_data().iter::<bool>()) {
        count[*kind as usize] += 1.0;
        right[*kind as usize] += f64::from(u8::from(answer));
    }
    for (kind, name) in [BAG_ACCURACY, ORDER_ACCURACY].into_iter().enumerate() {
        results.record(variant.name, name, seed, right[kind] / count[kind]);
    }
    let usage = ExpertUsage::of(&output.probs, &output.choice, &batch.kinds, 2)?;
    if variant.experts == [FFNN, GRU] {
        for (kind, name) in KINDS.into_iter().enumerate() {
            results.record(variant.name, name, seed, usage.shares[kind][1]);
            choices.record(&format!("{} {seed}", variant.name), name, seed, usage.shares[kind][1]);
        }
    }
    results.record(variant.name, "entropy", seed, usage.mean_entropy());
    Ok(())
}

/// A row a variant and seed, a column a kind.
fn choice_plot(choices: &Results) -> HeatMap {
    let mut rows: Vec<&str> = choices.variants();
    rows.sort_by_key(|row| VARIANTS.iter().position(|variant| row.starts_with(variant.name)));
    let share = |row: &str, kind| choices.mean(row, kind).unwrap_or(f64::NAN);
    let shares = rows.iter().map(|row| KINDS.iter().map(|kind| share(row, kind)).collect()).collect();
    HeatMap::new("Who goes to the GRU", "kind of sentence", "variant and seed", "share", shares)
        .with_row_labels(rows)
        .with_column_labels(["bag", "order"])
        .with_range(0.0, 1.0)
}

/// Sentences of two kinds, each with its marker at the first place.
struct Sentences {
    /// `[batch, time]`, padded right.
    tokens: Tensor<2, Int>,
    /// True where a token counts.
    mask: Tensor<2, Bool>,
    /// Whether the key word is there, or A comes before B.
    labels: Tensor<1, Int>,
    /// 0: bag, 1: order.
    kinds: Tensor<1, Int>,
}

impl Sentences {
    const VOCABULARY: usize = 24;
    /// Padding is token 0, the markers are 1 and 2.
    const KEY: i64 = 3;
    const A: i64 = 4;
    const B: i64 = 5;
    const LONGEST: usize = 10;

    /// Both kinds hold A and B in some order, and the key word every other time: the marker alone says what is asked.
    fn draw(count: usize, random: &mut StdRng, device: &Device) -> Self {
        let (mut tokens, mut mask, mut labels, mut kinds) = (vec![], vec![], vec![], vec![]);
        for _ in 0..count {
            let (kind, key) = (random.random_range(0..2i64), random.random::<bool>());
            let length = random.random_range(Self::LONGEST - 4..Self::LONGEST);
            let mut words = vec![Self::A, Self::B];
            words.extend(key.then_some(Self::KEY));
            while words.len() < length {
                words.push(random.random_range(Self::B + 1..Self::VOCABULARY as i64));
            }
            words.shuffle(random);
            let place = |word| words.iter().position(|other| *other == word);
            let label = if kind == 0 { key } else { place(Self::A) < place(Self::B) };
            tokens.push(1 + kind);
            tokens.extend(&words);
            tokens.resize(tokens.len() + Self::LONGEST - 1 - length, 0);
            mask.extend((0..Self::LONGEST).map(|at| at <= length));
            labels.push(i64::from(label));
            kinds.push(kind);
        }
        Self {
            tokens: Tensor::from_data(TensorData::new(tokens, [count, Self::LONGEST]), device),
            mask: Tensor::from_data(TensorData::new(mask, [count, Self::LONGEST]), device),
            labels: Tensor::from_data(TensorData::new(labels, [count]), device),
            kinds: Tensor::from_data(TensorData::new(kinds, [count]), device),
        }
    }
}
