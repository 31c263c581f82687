//! TransNormerLLM: what its decay and its output gate are worth, and what its memory costs.
//!
//! After Qin et al. 2023, arXiv 2307.14995. Models of one size learn the bytes of Shakespeare: TransNormerLLM, the same
//! without decay (every head remembers everything alike), the same without output gates, and softmax attention.
//! Further: time and memory for one more token after contexts of growing length, and the error of the recurrence that
//! divides by powers of the decay, which overflows, against the robust one.
//!
//! ```text
//! cargo run --release -p gatekit-examples --example transnormer-llm
//! ```
#![deny(missing_docs)]

use std::process::ExitCode;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use clap::Parser;
use gatekit::core::ModuleConfig;
use gatekit::core::probe::LinePlot;
use gatekit::core::scan::LightningAttention;
use gatekit::sequence::transnormer::DecaySchedule;
use gatekit::sequence::{CausalLm, SoftmaxConfig, StreamState, StreamingLm, TransNormerConfig};
use gatekit_examples::tasks::Corpus;
use gatekit_examples::{
    CurvePoint, ExampleError, Experiment, Results, TextTraining, Training, learn_text, mean_curve, say,
};

/// TransNormerLLM against the same without decay, without output gates, and softmax attention.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
}

/// Sizes of all models.
const WIDTH: usize = 64;
const LAYERS: usize = 4;
const HEADS: usize = 4;
const INNER: usize = 128;
/// Softmax attention has no output gate; its feed-forward layers have as many parameters more.
const SOFTMAX_INNER: usize = INNER + WIDTH / 3;

const PAPER: &str = "TransNormerLLM";
const NO_DECAY: &str = "without decay";
const NO_GATE: &str = "without output gate";
const SOFTMAX: &str = "softmax attention";

const BITS: &str = "bits per byte";

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse().experiment))
}

fn run(experiment: &Experiment) -> Result<(), ExampleError> {
    let device = experiment.device()?;
    let out = experiment.out_dir("transnormer-llm")?;
    let mut results = Results::new();

    let mut text = Text::new(experiment)?;
    for seed in experiment.seeds() {
        let paper = paper();
        text.learn(PAPER, &paper, seed, &device, &mut results)?;
        let no_decay = paper.clone().with_decay_schedule(DecaySchedule::None);
        text.learn(NO_DECAY, &no_decay, seed, &device, &mut results)?;
        text.learn(NO_GATE, &paper.with_use_output_gate(false), seed, &device, &mut results)?;
        text.learn(SOFTMAX, &softmax(), seed, &device, &mut results)?;
    }

    let contexts: &[usize] =
        if experiment.quick { &[32, 64] } else { &[64, 128, 256, 512, 1024, 2048, 4096] };
    let costs = [
        (PAPER, decoding_costs(&paper().try_init(&device)?, contexts, &device)),
        (SOFTMAX, decoding_costs(&softmax().try_init(&device)?, contexts, &device)),
    ];
    for (name, costs) in &costs {
        for cost in
            costs.iter().filter(|cost| [contexts[0], contexts[contexts.len() - 1]].contains(&cost.context))
        {
            results.record(name, &format!("ms a token after {}", cost.context), 0, cost.milliseconds);
            results.record(name, &format!("KiB after {}", cost.context), 0, cost.kibibytes);
        }
    }
    let errors = recurrence_errors(experiment.steps(600, 400), experiment.seed, &device)?;

    say(results.table());
    if let Some(step) = errors.naive.iter().position(|error| !error.is_finite()) {
        let largest = errors.robust.iter().copied().fold(0.0, f64::max);
        say(format!(
            "Dividing by powers of the decay fails at step {step} (slope {SLOPE}); the largest error of the robust \
             recurrence in {} steps is {largest:.1e}.",
            errors.robust.len()
        ));
    }
    results.write_csv(out.join("results.csv"))?;
    results.write_json(out.join("results.json"))?;
    text.plot().write_svg(out.join("transnormer-llm.svg"))?;
    for (file, title, y, value) in [
        ("time.svg", "Time for one more token", "milliseconds", Cost::time as fn(&Cost) -> f64),
        ("memory.svg", "Memory of the tokens so far", "KiB", Cost::memory),
    ] {
        let plot = LinePlot::new(title, "tokens before", y).with_log_x(true).with_log_y(true);
        let plot = costs.iter().fold(plot, |plot, (name, costs)| {
            plot.with_series(name, costs.iter().map(|cost| (cost.context as f64, value(cost))))
        });
        plot.write_svg(out.join(file))?;
    }
    errors.plot().write_svg(out.join("recurrence.svg"))?;
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

fn paper() -> TransNormerConfig {
    TransNormerConfig::new(Corpus::VOCABULARY, WIDTH, LAYERS).with_num_heads(HEADS).with_glu_dim(INNER)
}

fn softmax() -> SoftmaxConfig {
    SoftmaxConfig::new(Corpus::VOCABULARY, WIDTH, LAYERS)
        .with_num_heads(HEADS)
        .with_intermediate_size(Some(SOFTMAX_INNER))
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
            steps: experiment.steps(300, 6),
            warmup: experiment.steps(20, 2),
            ..Training::default()
        };
        let training = TextTraining {
            training,
            batch: experiment.steps(8, 2),
            time: experiment.steps(128, 32),
            validation: experiment.steps(48, 2),
            every: experiment.steps(25, 3),
        };
        Ok(Self { corpus: Corpus::shakespeare()?, training, curves: Vec::new() })
    }

    fn learn<C: ModuleConfig<Module: CausalLm>>(
        &mut self,
        name: &'static str,
        config: &C,
        seed: u64,
        device: &Device,
        results: &mut Results,
    ) -> Result<(), ExampleError> {
        device.seed(seed);
        let model = config.try_init(device)?;
        results.record(name, "parameters", seed, model.num_params() as f64);
        let (_, curve) = learn_text(model, &self.corpus, &self.training, seed, name, device)?;
        if let Some(last) = curve.last() {
            results.record(name, BITS, seed, last.bits);
        }
        match self.curves.iter_mut().find(|(other, _)| *other == name) {
            Some((_, curves)) => curves.push(curve),
            None => self.curves.push((name, vec![curve])),
        }
        Ok(())
    }

    fn plot(&self) -> LinePlot {
        let plot = LinePlot::new("Bytes of Shakespeare, held-out part", "training steps", BITS);
        self.curves.iter().fold(plot, |plot, (name, curves)| {
            plot.with_series(name, mean_curve(curves, |point| point.step as f64))
        })
    }
}

/// What one more token costs.
struct Cost {
    context: usize,
    milliseconds: f64,
    kibibytes: f64,
}

impl Cost {
    fn time(&self) -> f64 {
        self.milliseconds
    }

    fn memory(&self) -> f64 {
        self.kibibytes
    }
}

/// Costs after contexts of the given lengths, in one stream of a batch of 1.
fn decoding_costs<M: StreamingLm>(model: &M, contexts: &[usize], device: &Device) -> Vec<Cost> {
    const STEPS: usize = 16;
    /// Tokens that are read at a time.
    const PIECE: usize = 256;
    let ids = |count| Tensor::<2, Int>::full([1, count], 7, device);
    let (mut state, mut read) = (model.empty_state(1, device), 0);
    let mut costs = Vec::with_capacity(contexts.len());
    for &context in contexts {
        while read < context {
            let piece = PIECE.min(context - read);
            state = model.prefill(ids(piece), state).1;
            read += piece;
        }
        let kibibytes = state.bytes() as f64 / 1024.0;
        let mut branch = state.clone();
        let mut times: Vec<f64> = (0..STEPS)
            .map(|_| {
                let start = Instant::now();
                let (logits, next) = model.step(ids(1).squeeze_dim(1), branch.clone());
                // Reading back waits for the computation.
                let _ = logits.into_data();
                branch = next;
                start.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        costs.push(Cost { context, milliseconds: times[STEPS / 2], kibibytes });
    }
    costs
}

/// Slope of the recurrence's demonstration: `exp(SLOPE * t)` leaves float32 at `t = 88.7 / SLOPE`.
const SLOPE: f64 = 0.25;

/// Relative errors of the outputs of every step, against float64.
struct Errors {
    naive: Vec<f64>,
    robust: Vec<f64>,
}

impl Errors {
    fn plot(&self) -> LinePlot {
        let points = |errors: &[f64]| -> Vec<(f64, f64)> {
            errors.iter().enumerate().map(|(step, error)| (step as f64, *error)).collect()
        };
        LinePlot::new("Error of the recurrence in float32, slope 0.25", "step", "relative error")
            .with_log_y(true)
            .with_series("dividing by powers of the decay", points(&self.naive))
            .with_series("robust", points(&self.robust))
    }
}

/// The same memory twice in float32: as a sum of `exp(slope t) k_t v_t^T` that `exp(-slope s)` scales at the end, and
/// by Lightning attention.
fn recurrence_errors(time: usize, seed: u64, device: &Device) -> Result<Errors, ExampleError> {
    const SIZE: usize = 8;
    device.seed(seed);
    let draw =
        || Tensor::<4>::random([1, time, 1, SIZE], Distribution::Normal(0.0, 1.0), (device, DType::F32));
    let (q, k, v) = (draw(), draw(), draw());
    let attention = LightningAttention::new(&[SLOPE])?;
    let robust = attention.forward(q.clone(), k.clone(), v.clone(), None, None).output;

    let powers: Vec<f64> = (0..time).map(|step| SLOPE * step as f64).collect();
    let powers = Tensor::<1>::from_data(TensorData::new(powers, [time]), (device, DType::F32));
    let powers = powers.reshape([time, 1]);
    let rows = |x: Tensor<4>| x.reshape([time, SIZE]);
    let keys = rows(k.clone()) * powers.clone().exp();
    let memory = (keys.unsqueeze_dim::<3>(2) * rows(v.clone()).unsqueeze_dim::<3>(1)).cumsum(0);
    let queries = rows(q.clone()) * powers.neg().exp();
    let naive = queries.unsqueeze_dim::<3>(1).matmul(memory).reshape([1, time, 1, SIZE]);

    let exact = exact_outputs(&host(q), &host(k), &host(v), SIZE);
    let error = |got: Tensor<4>| -> Vec<f64> {
        let norm = |row: &mut dyn Iterator<Item = f64>| row.map(|value| value * value).sum::<f64>().sqrt();
        (host(got).chunks(SIZE).zip(exact.chunks(SIZE)))
            .map(|(got, want)| {
                let difference = norm(&mut got.iter().zip(want).map(|(got, want)| got - want));
                difference / norm(&mut want.iter().copied())
            })
            .collect()
    };
    Ok(Errors { naive: error(naive), robust: error(robust) })
}

fn host(x: Tensor<4>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}

/// The recurrence in float64 on the host, which every device can be compared with.
fn exact_outputs(q: &[f64], k: &[f64], v: &[f64], size: usize) -> Vec<f64> {
    let mut memory = vec![0.0; size * size];
    let mut outputs = Vec::with_capacity(q.len());
    for ((q, k), v) in q.chunks(size).zip(k.chunks(size)).zip(v.chunks(size)) {
        for (row, k) in memory.chunks_mut(size).zip(k) {
            for (entry, v) in row.iter_mut().zip(v) {
                *entry = *entry * (-SLOPE).exp() + k * v;
            }
        }
        outputs
            .extend((0..size).map(|column| {
                q.iter().zip(memory.chunks(size)).map(|(q, row)| q * row[column]).sum::<f64>()
            }));
    }
    outputs
}
