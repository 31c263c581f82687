//! Linear attention alone and mixed with full attention: six layers, three ratios.
//!
//! After Wang et al. 2025, arXiv 2507.06457. Every layer stands alone in a small model, with one layer of full
//! attention to three of it, and one to one. Each model learns multi-query associative recall from sequences with more
//! or fewer pairs, and is asked for them; beside them stands a model of attention alone. Further: the loss on bytes of
//! a text against the ratio, and what the streaming state weighs after up to 128K tokens.
//!
//! ```text
//! cargo run --release -p gatekit-examples --example hybrid-linear-attention
//! ```
#![deny(missing_docs)]

use std::path::Path;
use std::process::ExitCode;

use burn::tensor::{Device, Tensor};
use clap::Parser;
use gatekit::core::attention::{CausalAttentionConfig, KvCache};
use gatekit::core::probe::LinePlot;
use gatekit::core::{ConfigError, ModuleConfig};
use gatekit::sequence::gla::GatedLinearAttentionConfig;
use gatekit::sequence::hybrid_linear_attention::{
    DeltaNetConfig, GatedDeltaNetConfig, Hgrn2Config, HgrnConfig, HybridAttentionConfig, HybridConfig,
    HybridForCausalLm, HybridLayerState, HybridMixerConfig, RetentionConfig,
};
use gatekit::sequence::{CausalLm, StreamState, StreamingLm};
use gatekit_examples::tasks::{Corpus, Recall};
use gatekit_examples::{ExampleError, Experiment, Results, Training, progress, say, tasks, train};
use rand::RngExt;

/// Six linear attention layers, alone and mixed with full attention.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Steps of training on recall [default: 250, with --quick 4]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
}

const WIDTH: usize = 64;
const HEADS: usize = 4;
const LAYERS: usize = 4;
const INNER: usize = 128;
/// Numbers of pairs to recall, in training and in test.
const PAIRS: [usize; 4] = [2, 4, 8, 16];
/// Filler, 16 keys and 16 values.
const VOCABULARY: usize = 33;
/// Tokens of a sequence: the pairs, and all of them asked.
const LENGTH: usize = 64;
/// Stacks: a name, and how many linear layers come to how many of attention.
const STACKS: [(&str, Option<(usize, usize)>); 3] =
    [("alone", None), ("3:1", Some((3, 1))), ("1:1", Some((1, 1)))];
/// The model of attention alone.
const ATTENTION: &str = "attention";
/// Lengths at which the states are weighed.
const TOKENS: [usize; 8] = [1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16, 1 << 17];

/// The layers under test, by the names of their papers; states of equal size but HGRN's vector.
fn mixers() -> [(&'static str, HybridMixerConfig); 6] {
    [
        ("RetNet", RetentionConfig::new(WIDTH).with_num_heads(HEADS).with_expand_v(1.0).into()),
        ("HGRN", HgrnConfig::new(WIDTH).into()),
        ("HGRN2", Hgrn2Config::new(WIDTH).with_num_heads(Some(HEADS)).into()),
        ("GLA", GatedLinearAttentionConfig::new(WIDTH).with_num_heads(HEADS).with_expand_k(1.0).into()),
        ("DeltaNet", DeltaNetConfig::new(WIDTH).with_num_heads(HEADS).into()),
        (
            "Gated DeltaNet",
            GatedDeltaNetConfig::new(WIDTH)
                .with_num_heads(HEADS)
                .with_head_dim(WIDTH / HEADS)
                .with_expand_v(1.0)
                .into(),
        ),
    ]
}

/// A stack of `mixer` with attention at this ratio.
fn stack(
    vocabulary: usize,
    mixer: HybridMixerConfig,
    ratio: Option<(usize, usize)>,
) -> Result<HybridConfig, ConfigError> {
    let attn = match ratio {
        Some((linear, full)) => {
            Some(HybridAttentionConfig::new(HybridConfig::ratio(linear, full, LAYERS)?, HEADS))
        }
        None => None,
    };
    Ok(HybridConfig::new(vocabulary, LAYERS, mixer).with_attn(attn).with_intermediate_size(Some(INNER)))
}

/// Every model under test: its name and its configuration.
fn models(vocabulary: usize) -> Result<Vec<(String, HybridConfig)>, ConfigError> {
    let mut models = Vec::new();
    for (mixer, config) in mixers() {
        for (name, ratio) in STACKS {
            models.push((variant(mixer, name), stack(vocabulary, config.clone(), ratio)?));
        }
    }
    let attention = CausalAttentionConfig::new(WIDTH, HEADS).into();
    models.push((ATTENTION.to_string(), stack(vocabulary, attention, None)?));
    Ok(models)
}

fn variant(mixer: &str, stack: &str) -> String {
    format!("{mixer} {stack}")
}

fn recall_of(pairs: usize) -> String {
    format!("recall of {pairs}")
}

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let device = experiment.device()?;
    let out = experiment.out_dir("hybrid-linear-attention")?;
    let recall = Training {
        steps: args.steps.unwrap_or_else(|| experiment.steps(250, 4)),
        learning_rate: 4e-3,
        warmup: experiment.steps(20, 1),
        weight_decay: 0.01,
        ..Training::default()
    };
    let bytes = Training { steps: experiment.steps(60, 2), ..recall.clone() };
    let corpus = Corpus::shakespeare()?;
    let mut results = Results::new();
    for seed in experiment.seeds() {
        for (name, config) in models(VOCABULARY)? {
            device.seed(seed);
            let model = config.try_init(&device)?;
            learn_recall(&name, model, &recall, experiment.steps(128, 8), seed, &device, &mut results);
        }
        for (name, config) in models(256)? {
            device.seed(seed);
            let model = config.try_init(&device)?;
            let bits = learn_bytes(&name, model, &bytes, &corpus, experiment.steps(32, 2), seed, &device);
            results.record(&name, "bits per byte", seed, bits);
        }
    }
    let states = states(&device)?;

    say(format!("Recall after {} steps, bits per byte after {}:\n", recall.steps, bytes.steps));
    say(results.table());
    say("Bytes of the streaming state, in KiB:\n");
    say(states.table());
    results.write_csv(out.join("results.csv"))?;
    results.write_json(out.join("results.json"))?;
    states.write_csv(out.join("states.csv"))?;
    plots(&results, &states, &out)?;
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

/// Trains on recall of any number of pairs, and asks for each.
fn learn_recall(
    name: &str,
    model: HybridForCausalLm,
    training: &Training,
    questions: usize,
    seed: u64,
    device: &Device,
    results: &mut Results,
) {
    let task = |pairs| Recall { pairs, vocabulary: VOCABULARY, length: LENGTH };
    let mut random = tasks::random(seed);
    let autodiff = device.clone().autodiff();
    let bar = progress(training.steps, &format!("{name}: recall"));
    let (model, _) = train(model, training, &bar, |model, _| {
        let pairs = PAIRS[random.random_range(0..PAIRS.len())];
        let (inputs, labels) = task(pairs).batch(16, &mut random, &autodiff);
        model.loss(model.forward(inputs, None), labels).expect("every sequence asks something")
    });
    for pairs in PAIRS {
        let (inputs, labels) = task(pairs).batch(questions, &mut tasks::random(seed + 1000), device);
        results.record(name, &recall_of(pairs), seed, tasks::accuracy(model.forward(inputs, None), labels));
    }
}

/// Trains on bytes of a text; bits per byte on what was held out.
fn learn_bytes(
    name: &str,
    model: HybridForCausalLm,
    training: &Training,
    corpus: &Corpus,
    windows: usize,
    seed: u64,
    device: &Device,
) -> f64 {
    let mut random = tasks::random(seed);
    let autodiff = device.clone().autodiff();
    let bar = progress(training.steps, &format!("{name}: bytes"));
    let (model, _) = train(model, training, &bar, |model, _| {
        let (inputs, labels) = corpus.batch(8, LENGTH, &mut random, &autodiff);
        model.loss(model.forward(inputs, None), labels).expect("every byte is asked")
    });
    corpus.bits_per_byte(&model, windows, LENGTH, device)
}

/// What the states weigh after so many tokens: caches as long as that, everything else as it is.
fn states(device: &Device) -> Result<Results, ExampleError> {
    let mut results = Results::new();
    let (_, mixer) = mixers().into_iter().last().expect("there are mixers");
    let attention: HybridMixerConfig = CausalAttentionConfig::new(WIDTH, HEADS).into();
    let stacks = STACKS.map(|(name, ratio)| (name, mixer.clone(), ratio));
    for (name, mixer, ratio) in stacks.into_iter().chain([(ATTENTION, attention, None)]) {
        let model = stack(256, mixer, ratio)?.try_init(device)?;
        for tokens in TOKENS {
            let mut state = model.empty_state(1, device);
            for layer in &mut state.layers {
                if let HybridLayerState::Attention(cache) = layer {
                    let [batch, _, heads, dim] = cache.keys.dims();
                    let full = Tensor::zeros([batch, tokens, heads, dim], device);
                    *cache = KvCache { keys: full.clone(), values: full, position: tokens };
                }
            }
            results.record(name, &format!("{}K", tokens >> 10), 0, state.bytes() as f64 / 1024.0);
        }
    }
    Ok(results)
}

fn plots(results: &Results, states: &Results, out: &Path) -> Result<(), ExampleError> {
    let most = recall_of(PAIRS[PAIRS.len() - 1]);
    let against_share = |title: &str, metric: &str| {
        let attention = results.mean(ATTENTION, metric);
        mixers().iter().fold(LinePlot::new(title, "share of attention layers", metric), |plot, (mixer, _)| {
            let stacks = STACKS.iter().zip([0.0, 0.25, 0.5]);
            let points = stacks.filter_map(|((name, _), share)| {
                results.mean(&variant(mixer, name), metric).map(|mean| (share, mean))
            });
            plot.with_series(mixer, points.chain(attention.map(|mean| (1.0, mean))))
        })
    };
    let pairs = mixers().into_iter().map(|(mixer, _)| (mixer.to_string(), variant(mixer, "alone")));
    let pairs = pairs.chain([(ATTENTION.to_string(), ATTENTION.to_string())]).fold(
        LinePlot::new("Each layer alone", "pairs to recall", "recall").with_log_x(true),
        |plot, (name, variant)| {
            let points = PAIRS.iter().filter_map(|&pairs| {
                results.mean(&variant, &recall_of(pairs)).map(|mean| (pairs as f64, mean))
            });
            plot.with_series(&name, points)
        },
    );
    let weights = states.variants().into_iter().fold(
        LinePlot::new("Streaming state of Gated DeltaNet and attention", "tokens", "KiB")
            .with_log_x(true)
            .with_log_y(true),
        |plot, name| {
            let points = TOKENS.iter().filter_map(|&tokens| {
                states.mean(name, &format!("{}K", tokens >> 10)).map(|kib| (tokens as f64, kib))
            });
            plot.with_series(name, points)
        },
    );
    against_share("Recall against attention", &most).write_svg(out.join("hybrid-linear-attention.svg"))?;
    pairs.write_svg(out.join("recall-by-pairs.svg"))?;
    against_share("A text's loss against attention", "bits per byte")
        .write_svg(out.join("bits-per-byte.svg"))?;
    weights.write_svg(out.join("state.svg"))?;
    Ok(())
}
