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
use std::sync::Mutex;
use std::thread;

use burn::tensor::{Device, Tensor};
use clap::Parser;
use gatekit::core::attention::{CausalAttentionConfig, KvCache};
use gatekit::core::checkpoint::named_parameters;
use gatekit::core::probe::{LinePlot, PlotError};
use gatekit::core::{ConfigError, ModuleConfig};
use gatekit::sequence::gla::GatedLinearAttentionConfig;
use gatekit::sequence::hybrid_linear_attention::{
    DeltaNetConfig, GatedDeltaNetConfig, Hgrn2Config, HgrnConfig, HybridAttentionConfig, HybridConfig,
    HybridForCausalLm, HybridLayerState, HybridMixerConfig, RetentionConfig,
};
use gatekit::sequence::{CausalLm, StreamState, StreamingLm};
use gatekit_examples::progress::ProgressBar;
use gatekit_examples::tasks::{Corpus, Recall};
use gatekit_examples::{ExampleError, Experiment, Results, Training, progress, say, tasks, train};
use rand::RngExt;

/// Six linear attention layers, alone and mixed with full attention.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Steps of training on recall [default: 400, with --quick 4]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Highest learning rate
    #[arg(long, value_name = "RATE", default_value_t = 4e-3)]
    learning_rate: f64,
    /// Only models whose names hold this text, such as "DeltaNet" or "3:1"
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
}

const WIDTH: usize = 64;
const HEADS: usize = 4;
const LAYERS: usize = 4;
const INNER: usize = 128;
/// Numbers of pairs to recall, in training and in test.
const PAIRS: [usize; 3] = [2, 4, 6];
/// Filler, 8 keys and 8 values.
const VOCABULARY: usize = 17;
/// Tokens of a sequence: the pairs, and all of them asked.
const LENGTH: usize = 24;
/// Bytes of a window of text.
const WINDOW: usize = 64;
/// The layers that the paper recommends, which also learn a text.
const RECOMMENDED: [&str; 2] = ["HGRN2", "Gated DeltaNet"];
/// Stacks: a name, and how many linear layers come to how many of attention.
const STACKS: [(&str, Option<(usize, usize)>); 3] =
    [("alone", None), ("3:1", Some((3, 1))), ("1:1", Some((1, 1)))];
/// The model of attention alone.
const ATTENTION: &str = "attention";
/// What is measured on a text.
const BITS: &str = "bits per byte";
/// Lengths at which the states are weighed.
const TOKENS: [usize; 8] = [1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16, 1 << 17];

/// The layers under test, by the names of their papers; states of equal size but HGRN's vector.
fn mixers() -> [(&'static str, HybridMixerConfig); 6] {
    [
        (
            "RetNet",
            RetentionConfig::new(WIDTH)
                .with_num_heads(HEADS)
                .with_expand_v(1.0)
                .with_use_short_conv(true)
                .into(),
        ),
        ("HGRN", HgrnConfig::new(WIDTH).with_use_short_conv(true).into()),
        ("HGRN2", Hgrn2Config::new(WIDTH).with_num_heads(Some(HEADS)).with_use_short_conv(true).into()),
        (
            "GLA",
            GatedLinearAttentionConfig::new(WIDTH)
                .with_num_heads(HEADS)
                .with_expand_k(1.0)
                .with_use_short_conv(true)
                .into(),
        ),
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

/// The models under test whose names hold `only`: name and configuration.
fn models(vocabulary: usize, only: &str) -> Result<Vec<(String, HybridConfig)>, ConfigError> {
    let mut models = Vec::new();
    for (mixer, config) in mixers() {
        for (name, ratio) in STACKS {
            models.push((variant(mixer, name), stack(vocabulary, config.clone(), ratio)?));
        }
    }
    let attention = CausalAttentionConfig::new(WIDTH, HEADS).into();
    models.push((ATTENTION.to_string(), stack(vocabulary, attention, None)?));
    models.retain(|(name, _)| name.contains(only));
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
    let training = |steps| Training {
        steps,
        learning_rate: args.learning_rate,
        warmup: steps / 20,
        weight_decay: 0.01,
        ..Training::default()
    };
    let recall = training(args.steps.unwrap_or_else(|| experiment.steps(400, 4)));
    let bytes = training(experiment.steps(100, 2));
    let corpus = Corpus::shakespeare()?;
    let mut jobs = Vec::new();
    for seed in experiment.seeds() {
        for (task, vocabulary) in [(Task::Recall, VOCABULARY), (Task::Bytes, 256)] {
            for (name, config) in models(vocabulary, &args.only)? {
                if task == Task::Recall || recommended(&name) {
                    device.seed(seed);
                    let model = config.try_init(&device)?;
                    // Reading the weights draws them now: they depend on the seed alone, whatever runs beside them.
                    named_parameters(&model);
                    jobs.push(Job { task, name, seed, model });
                }
            }
        }
    }
    let lab = Lab { device: device.clone(), recall, bytes, corpus, questions: experiment.steps(128, 8) };
    let results = lab.run(jobs);
    let states = states(&device)?;

    say(format!("Recall after {} steps, bits per byte after {}:\n", lab.recall.steps, lab.bytes.steps));
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

/// Whether a model also learns a text.
fn recommended(name: &str) -> bool {
    name == ATTENTION || RECOMMENDED.iter().any(|layer| name.starts_with(&format!("{layer} ")))
}

/// What a model learns.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Task {
    Recall,
    Bytes,
}

/// A model that is to learn something.
struct Job {
    task: Task,
    name: String,
    seed: u64,
    model: HybridForCausalLm,
}

/// A metric and its value.
type Measured = Vec<(String, f64)>;

/// Trains and asks.
struct Lab {
    device: Device,
    recall: Training,
    bytes: Training,
    corpus: Corpus,
    /// Sequences of a measurement.
    questions: usize,
}

impl Lab {
    /// Does all jobs, as many at a time as there are processors: operations of this size fill one.
    fn run(&self, jobs: Vec<Job>) -> Results {
        let steps = |job: &Job| match job.task {
            Task::Recall => self.recall.steps,
            Task::Bytes => self.bytes.steps,
        };
        let bar = progress(jobs.iter().map(steps).sum(), "training");
        let workers = thread::available_parallelism().map_or(1, usize::from).min(jobs.len().max(1));
        let labels: Vec<(String, u64)> = jobs.iter().map(|job| (job.name.clone(), job.seed)).collect();
        let queue = Mutex::new(jobs.into_iter().enumerate());
        let done: Mutex<Vec<(usize, Measured)>> = Mutex::default();
        let locked = "no worker panics while it holds the lock";
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    loop {
                        let next = queue.lock().expect(locked).next();
                        let Some((index, job)) = next else { break };
                        let measured = match job.task {
                            Task::Recall => self.learn_recall(job, &bar),
                            Task::Bytes => self.learn_bytes(job, &bar),
                        };
                        done.lock().expect(locked).push((index, measured));
                    }
                });
            }
        });
        bar.finish_and_clear();
        let mut done = done.into_inner().expect(locked);
        done.sort_by_key(|(index, _)| *index);
        let mut results = Results::new();
        for (index, measured) in done {
            let (name, seed) = &labels[index];
            for (metric, value) in measured {
                results.record(name, &metric, *seed, value);
            }
        }
        results
    }

    /// Trains on recall of any number of pairs, and asks for each.
    fn learn_recall(&self, job: Job, bar: &ProgressBar) -> Measured {
        let task = |pairs| Recall { pairs, vocabulary: VOCABULARY, length: LENGTH };
        let mut random = tasks::random(job.seed);
        let autodiff = self.device.clone().autodiff();
        let (model, _) = train(job.model, &self.recall, &ProgressBar::hidden(), |model, _| {
            let pairs = PAIRS[random.random_range(0..PAIRS.len())];
            let (inputs, labels) = task(pairs).batch(16, &mut random, &autodiff);
            bar.inc(1);
            model.loss(model.forward(inputs, None), labels).expect("every sequence asks something")
        });
        let ask = |pairs| {
            let mut random = tasks::random(job.seed + 1000);
            let (inputs, labels) = task(pairs).batch(self.questions, &mut random, &self.device);
            (recall_of(pairs), tasks::accuracy(model.forward(inputs, None), labels))
        };
        PAIRS.map(ask).into()
    }

    /// Trains on bytes of a text; bits per byte on what was held out.
    fn learn_bytes(&self, job: Job, bar: &ProgressBar) -> Measured {
        let mut random = tasks::random(job.seed);
        let autodiff = self.device.clone().autodiff();
        let (model, _) = train(job.model, &self.bytes, &ProgressBar::hidden(), |model, _| {
            let (inputs, labels) = self.corpus.batch(8, WINDOW, &mut random, &autodiff);
            bar.inc(1);
            model.loss(model.forward(inputs, None), labels).expect("every byte is asked")
        });
        vec![(BITS.into(), self.corpus.bits_per_byte(&model, self.questions / 4, WINDOW, &self.device))]
    }
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
        let empty = LinePlot::new(title, "share of attention layers", metric);
        mixers().iter().fold(empty, |plot, (mixer, _)| {
            let stacks = STACKS.iter().zip([0.0, 0.25, 0.5]);
            let points: Vec<_> = stacks
                .filter_map(|((name, _), share)| {
                    results.mean(&variant(mixer, name), metric).map(|mean| (share, mean))
                })
                .collect();
            match points.is_empty() {
                true => plot,
                false => plot.with_series(mixer, points.into_iter().chain(attention.map(|mean| (1.0, mean)))),
            }
        })
    };
    let pairs = mixers().into_iter().map(|(mixer, _)| (mixer.to_string(), variant(mixer, "alone")));
    let pairs = pairs.chain([(ATTENTION.to_string(), ATTENTION.to_string())]).fold(
        LinePlot::new("Each layer alone", "pairs to recall", "recall"),
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
    for (plot, file) in [
        (against_share("Recall against attention", &most), "hybrid-linear-attention.svg"),
        (pairs, "recall-by-pairs.svg"),
        (against_share("A text's loss against attention", BITS), "bits-per-byte.svg"),
        (weights, "state.svg"),
    ] {
        match plot.write_svg(out.join(file)) {
            // Nothing was measured for it: `--only`.
            Err(PlotError::Empty) => {}
            other => other?,
        }
    }
    Ok(())
}
