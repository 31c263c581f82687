//! Kimi Linear: what a decay per channel and the delta rule bring, how much attention a stack needs, and what keeps
//! its experts evenly used.
//!
//! After Kimi Team 2025, arXiv 2510.26692. First, two layers of Kimi Delta Attention, of the gated delta rule (one
//! decay a head), of the delta rule (none) and of gated linear attention (decay, but no delta rule) learn to say a
//! sequence backwards and to recall pairs; they are asked at lengths they were trained on and at longer ones. Second,
//! four layers with three, one or no recurrent layers to one of latent attention learn bytes of a text. Third, the
//! load of the experts is measured with and without the update of the routers' selection bias.
//!
//! ```text
//! cargo run --release -p gatekit-examples --example kimi-linear
//! ```
#![deny(missing_docs)]

use std::path::Path;
use std::process::ExitCode;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use clap::Parser;
use gatekit::core::ModuleConfig;
use gatekit::core::attention::LatentCache;
use gatekit::core::probe::LinePlot;
use gatekit::core::router::{BiasBalancer, Routing};
use gatekit::sequence::gla::GatedLinearAttentionConfig;
use gatekit::sequence::hybrid_linear_attention::{
    DeltaNetConfig, GatedDeltaNetConfig, HybridConfig, HybridMixerConfig,
};
use gatekit::sequence::kimi_linear::{KimiLayerState, KimiLinearConfig, KimiLinearForCausalLm};
use gatekit::sequence::{CausalLm, StreamState, StreamingLm};
use gatekit_examples::tasks::{Corpus, Palindrome, Recall};
use gatekit_examples::{ExampleError, Experiment, Results, Trainer, Training, progress, say, tasks};
use rand::RngExt;
use rand::rngs::StdRng;

/// Kimi Delta Attention against its relatives, hybrid stacks, and the balance of experts.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Steps of training on the synthetic tasks [default: 400, with --quick 4]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
}

const SLUG: &str = "kimi-linear";
const WIDTH: usize = 64;
const HEADS: usize = 2;
const HEAD_DIM: usize = WIDTH / HEADS;
/// Width of dense feed-forward layers.
const INNER: usize = 128;
/// Tokens of the synthetic tasks: a separator or filler, and 32 others.
const VOCABULARY: usize = 33;
/// Sequences of a training batch.
const BATCH: usize = 16;
/// Tokens of a window of text.
const WINDOW: usize = 96;

const KDA: &str = "KDA";
const GATED_DELTA: &str = "gated delta rule";
const DELTA: &str = "delta rule";
const GLA: &str = "GLA";
/// Layers of the synthetic tasks: decay per channel, per head, none; and without the delta rule.
const LAYERS: [&str; 4] = [KDA, GATED_DELTA, DELTA, GLA];
/// Stacks of four layers: a name, and every how manieth layer is attention.
const STACKS: [(&str, usize); 3] = [("3:1", 4), ("1:1", 2), ("0:1", 1)];
/// Tokens at which the states are weighed.
const TOKENS: [usize; 6] = [1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15];

/// A task of which there are several sizes: those trained on, then those that are longer than any of them.
#[derive(Clone, Copy)]
enum Task {
    Palindrome,
    Recall,
}

impl Task {
    const ALL: [Self; 2] = [Self::Palindrome, Self::Recall];

    fn name(self) -> &'static str {
        match self {
            Self::Palindrome => "palindrome",
            Self::Recall => "recall",
        }
    }

    /// Tokens to say backwards, or pairs to recall. The first two are trained on.
    fn sizes(self) -> [usize; 3] {
        match self {
            Self::Palindrome => [4, 8, 16],
            Self::Recall => [4, 8, 16],
        }
    }

    fn batch(
        self,
        size: usize,
        count: usize,
        random: &mut StdRng,
        device: &Device,
    ) -> (Tensor<2, Int>, Tensor<2, Int>) {
        match self {
            Self::Palindrome => {
                Palindrome { vocabulary: VOCABULARY, length: size }.batch(count, random, device)
            }
            Self::Recall => {
                let recall = Recall { pairs: size, vocabulary: VOCABULARY, length: 4 * size + 8 };
                recall.batch(count, random, device)
            }
        }
    }

    fn accuracy<M: CausalLm>(self, model: &M, size: usize, count: usize, seed: u64, device: &Device) -> f64 {
        let (inputs, labels) = self.batch(size, count, &mut tasks::random(seed + 1000), device);
        tasks::accuracy(model.forward(inputs, None), labels)
    }

    fn metric(self, size: usize) -> String {
        format!("{} of {size}", self.name())
    }
}

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let device = experiment.device()?;
    let out = experiment.out_dir(SLUG)?;
    let synthetic = Training {
        steps: args.steps.unwrap_or_else(|| experiment.steps(400, 4)),
        learning_rate: 5e-3,
        warmup: experiment.steps(20, 1),
        // The rates and biases of decays take none.
        weight_decay: 0.0,
        ..Training::default()
    };
    let text = Training { steps: experiment.steps(120, 3), learning_rate: 4e-3, ..synthetic.clone() };

    let (mut layers, mut curves) = (Results::new(), Results::new());
    let (mut stacks, mut experts, mut loads) = (Results::new(), Results::new(), Results::new());
    let corpus = Corpus::shakespeare()?;
    for seed in experiment.seeds() {
        for task in Task::ALL {
            for layer in LAYERS {
                let lesson = Lesson { layer, task, training: &synthetic, experiment, seed, device: &device };
                device.seed(seed);
                match relative(layer) {
                    None => lesson.teach(delta_stack().try_init(&device)?, &mut layers, &mut curves)?,
                    Some(mixer) => {
                        let config =
                            HybridConfig::new(VOCABULARY, 2, mixer).with_intermediate_size(Some(INNER));
                        lesson.teach(config.try_init(&device)?, &mut layers, &mut curves)?;
                    }
                }
            }
        }
        for (name, period) in STACKS {
            device.seed(seed);
            let model = hybrid(period).try_init(&device)?;
            let bar = &format!("{name} on bytes");
            let model = read_text(model, &corpus, &text, None, bar, seed, &device, |_, _| {})?;
            let windows = experiment.steps(64, 2);
            stacks.record(
                name,
                "bits per byte",
                seed,
                corpus.bits_per_byte(&model, windows, WINDOW, &device),
            );
        }
        for (name, speed) in [("bias update", Some(0.01)), ("no update", None)] {
            device.seed(seed);
            let model = sparse().try_init(&device)?;
            let bar = &format!("experts, {name}");
            let model = read_text(model, &corpus, &text, speed, bar, seed, &device, |step, routings| {
                loads.record(name, &step.to_string(), seed, largest_load(routings));
            })?;
            let windows = experiment.steps(64, 2);
            experts.record(
                name,
                "bits per byte",
                seed,
                corpus.bits_per_byte(&model, windows, WINDOW, &device),
            );
            let (inputs, _) = corpus.validation(experiment.steps(64, 2), WINDOW, &device);
            let (_, routings) = model.forward_with_routing(inputs);
            experts.record(name, "largest load / mean", seed, largest_load(&routings));
            experts.record(name, "smallest load / mean", seed, smallest_load(&routings));
        }
    }
    weigh(&mut stacks, experiment.seed, &device)?;

    say(format!("Accuracy after {} steps; 16 is twice the longest size trained on:\n", synthetic.steps));
    say(layers.table());
    say(format!(
        "Recurrent layers to one of attention, after {} steps on bytes; state in KiB:\n",
        text.steps
    ));
    say(stacks.table());
    say(format!("Eight experts, two a token, after {} steps on bytes:\n", text.steps));
    say(experts.table());
    for (name, results) in [("layers", &layers), ("stacks", &stacks), ("experts", &experts)] {
        results.write_csv(out.join(format!("{name}.csv")))?;
        results.write_json(out.join(format!("{name}.json")))?;
    }
    plots(&layers, &curves, &stacks, &loads, &out)?;
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

/// The relatives of Kimi Delta Attention, `None` for itself; all with states of the same size.
fn relative(layer: &str) -> Option<HybridMixerConfig> {
    match layer {
        GATED_DELTA => Some(
            GatedDeltaNetConfig::new(WIDTH)
                .with_num_heads(HEADS)
                .with_head_dim(HEAD_DIM)
                .with_expand_v(1.0)
                .into(),
        ),
        DELTA => Some(DeltaNetConfig::new(WIDTH).with_num_heads(HEADS).into()),
        GLA => Some(
            GatedLinearAttentionConfig::new(WIDTH)
                .with_num_heads(HEADS)
                .with_expand_k(1.0)
                .with_use_short_conv(true)
                .into(),
        ),
        _ => None,
    }
}

/// Sizes that all models here share; dense feed-forward layers.
fn small(vocabulary: usize, layers: usize, period: usize) -> KimiLinearConfig {
    KimiLinearConfig::hybrid(vocabulary, WIDTH, layers, period)
        .with_intermediate_size(INNER)
        .with_first_k_dense_replace(layers)
        .with_linear_num_heads(HEADS)
        .with_linear_head_dim(HEAD_DIM)
        .with_num_attention_heads(HEADS)
        .with_kv_lora_rank(HEAD_DIM)
        .with_qk_nope_head_dim(HEAD_DIM / 2)
        .with_qk_rope_head_dim(HEAD_DIM / 2)
        .with_v_head_dim(HEAD_DIM)
}

/// Two layers of Kimi Delta Attention.
fn delta_stack() -> KimiLinearConfig {
    small(VOCABULARY, 2, 0)
}

/// Four layers, every `period`-th of them attention.
fn hybrid(period: usize) -> KimiLinearConfig {
    small(Corpus::VOCABULARY, 4, period)
}

/// A recurrent layer and one of attention, each with eight experts.
fn sparse() -> KimiLinearConfig {
    small(Corpus::VOCABULARY, 2, 2)
        .with_first_k_dense_replace(0)
        .with_num_experts(8)
        .with_num_experts_per_token(2)
        .with_moe_intermediate_size(32)
        .with_routed_scaling_factor(1.0)
}

/// One layer learns one task.
struct Lesson<'a> {
    layer: &'static str,
    task: Task,
    training: &'a Training,
    experiment: &'a Experiment,
    seed: u64,
    device: &'a Device,
}

impl Lesson<'_> {
    /// Trains, asks on the way (`curves`, at the longest size trained on) and afterwards (`results`, at every size).
    fn teach<M: CausalLm>(
        &self,
        model: M,
        results: &mut Results,
        curves: &mut Results,
    ) -> Result<(), ExampleError> {
        let Self { layer, task, training, experiment, seed, device } = *self;
        let questions = experiment.steps(128, 8);
        let between = (training.steps / 10).max(1);
        let mut random = tasks::random(seed);
        let autodiff = device.clone().autodiff();
        let mut trainer = Trainer::new(model, training)?;
        let bar = progress(training.steps, &format!("{layer}: {}", task.name()));
        for step in 1..=training.steps {
            let size = task.sizes()[random.random_range(0..2)];
            let (inputs, labels) = task.batch(size, BATCH, &mut random, &autodiff);
            let loss = trainer.model.loss(trainer.model.forward(inputs, None), labels)?;
            let value = trainer.step(loss);
            bar.set_message(format!("loss {value:.3}"));
            bar.inc(1);
            if step % between == 0 {
                let model = trainer.model.valid();
                let accuracy = task.accuracy(&model, task.sizes()[1], questions / 2, seed, device);
                curves.record(layer, &format!("{} {step}", task.name()), seed, accuracy);
            }
        }
        bar.finish_and_clear();
        let model = trainer.model.valid();
        for size in task.sizes() {
            let accuracy = task.accuracy(&model, size, questions, seed, device);
            results.record(layer, &task.metric(size), seed, accuracy);
        }
        Ok(())
    }
}

/// Trains on bytes; with a `speed` the selection biases move after every step. `watch` sees what the routers of a
/// sparse model decided.
fn read_text(
    model: KimiLinearForCausalLm,
    corpus: &Corpus,
    training: &Training,
    speed: Option<f64>,
    bar: &str,
    seed: u64,
    device: &Device,
    mut watch: impl FnMut(usize, &[Routing]),
) -> Result<KimiLinearForCausalLm, ExampleError> {
    let mut random = tasks::random(seed);
    let autodiff = device.clone().autodiff();
    let mut trainer = Trainer::new(model, training)?;
    let bar = progress(training.steps, bar);
    for step in 1..=training.steps {
        let (inputs, labels) = corpus.batch(8, WINDOW, &mut random, &autodiff);
        let (logits, routings) = trainer.model.forward_with_routing(inputs);
        let loss = trainer.model.loss(logits, labels)?;
        let value = trainer.step(loss);
        watch(step, &routings);
        if let Some(speed) = speed {
            trainer.model = trainer.model.rebalance(&BiasBalancer::new(speed), &routings);
        }
        bar.set_message(format!("loss {value:.3}"));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(trainer.model.valid())
}

/// Every expert's share of the slots, as a multiple of the mean, layer by layer.
fn relative_loads(routing: &Routing) -> Vec<f64> {
    let counts = routing.assignment.tokens_per_expert();
    let mean = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
    counts.into_iter().map(|count| count as f64 / mean).collect()
}

/// Mean over layers of the most loaded expert's.
fn largest_load(routings: &[Routing]) -> f64 {
    let largest = |routing| relative_loads(routing).into_iter().fold(0.0, f64::max);
    routings.iter().map(largest).sum::<f64>() / routings.len() as f64
}

/// Mean over layers of the least loaded expert's.
fn smallest_load(routings: &[Routing]) -> f64 {
    let smallest = |routing| relative_loads(routing).into_iter().fold(f64::INFINITY, f64::min);
    routings.iter().map(smallest).sum::<f64>() / routings.len() as f64
}

/// What the states weigh after so many tokens: caches as long as that, everything else as it is.
fn weigh(results: &mut Results, seed: u64, device: &Device) -> Result<(), ExampleError> {
    for (name, period) in STACKS {
        let model = hybrid(period).try_init(device)?;
        for tokens in TOKENS {
            let mut state = model.empty_state(1, device);
            for layer in &mut state.layers {
                if let KimiLayerState::Latent(cache) = layer {
                    let [batch, _, channels] = cache.latents.dims();
                    *cache = LatentCache { latents: Tensor::zeros([batch, tokens, channels], device) };
                }
            }
            let kib = state.bytes() as f64 / 1024.0;
            results.record(name, &format!("{}K tokens", tokens >> 10), seed, kib);
        }
    }
    Ok(())
}

fn plots(
    layers: &Results,
    curves: &Results,
    stacks: &Results,
    loads: &Results,
    out: &Path,
) -> Result<(), ExampleError> {
    // Metrics are "<label> <number>": a series over the numbers.
    let series = |results: &Results, variant: &str, label: &str| -> Vec<(f64, f64)> {
        let points = results.metrics().into_iter().filter_map(|metric| {
            let number = metric.strip_prefix(label)?.trim().parse().ok()?;
            Some((number, results.mean(variant, metric)?))
        });
        points.collect()
    };
    for task in Task::ALL {
        let name = task.name();
        let title = format!("{name} of {}", task.sizes()[1]);
        let by_step = LAYERS.iter().fold(LinePlot::new(&title, "step", "accuracy"), |plot, layer| {
            plot.with_series(layer, series(curves, layer, name))
        });
        let by_size = LAYERS.iter().fold(
            LinePlot::new(&format!("{name}, trained up to {}", task.sizes()[1]), "size", "accuracy"),
            |plot, layer| plot.with_series(layer, series(layers, layer, &format!("{name} of"))),
        );
        let slug = match task {
            Task::Palindrome => SLUG.to_string(),
            Task::Recall => format!("{SLUG}-recall"),
        };
        by_step.write_svg(out.join(format!("{slug}.svg")))?;
        by_size.write_svg(out.join(format!("{slug}-by-size.svg")))?;
    }
    let weights = STACKS.iter().fold(
        LinePlot::new("Streaming state", "tokens", "KiB").with_log_x(true).with_log_y(true),
        |plot, (name, _)| {
            let points = TOKENS.iter().filter_map(|&tokens| {
                stacks.mean(name, &format!("{}K tokens", tokens >> 10)).map(|kib| (tokens as f64, kib))
            });
            plot.with_series(name, points)
        },
    );
    weights.write_svg(out.join(format!("{SLUG}-state.svg")))?;
    let load = loads
        .variants()
        .into_iter()
        .fold(LinePlot::new("Load of the experts", "step", "largest load / mean"), |plot, name| {
            plot.with_series(name, series(loads, name, ""))
        });
    load.write_svg(out.join(format!("{SLUG}-experts.svg")))?;
    Ok(())
}
