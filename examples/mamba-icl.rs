//! Learning in context with outliers: a selective gate against linear attention.
//!
//! After Li et al. 2025, arXiv 2510.00399. Prompts show labelled examples, a share of them corrupted. One layer of
//! Mamba and the same layer without its gate learn to answer by plain gradient descent, and are then asked on prompts
//! whose outliers lie in directions they have not seen. Further: where the gate opens, what the attention learns, three
//! layers with outliers far from the query and close to it, a real Mamba block on the same prompts, and the logits of
//! a published Mamba folder.
//!
//! ```text
//! cargo run --release -p gatekit-examples --example mamba-icl
//! ```
#![deny(missing_docs)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor};
use clap::Parser;
use gatekit::core::norm::{RmsNorm, RmsNormConfig};
use gatekit::core::probe::LinePlot;
use gatekit::core::{ConfigError, ModuleConfig};
use gatekit::sequence::checkpoint::{SafetensorsFile, load_pretrained};
use gatekit::sequence::mamba::MambaBlock;
use gatekit::sequence::mamba_icl::{
    ContextLearner, Gating, IclPredictor, IclPredictorConfig, IclStackConfig, IclTrainingConfig,
    OutlierLabels, OutlierPlacement, OutlierPrompts, OutlierPromptsConfig, PromptDistribution, error_rate,
    hinge_loss, train,
};
use gatekit::sequence::{CausalLm, MambaConfig, MambaMixerConfig};
use gatekit_examples::{ExampleError, Experiment, Results, Training, progress, say, tasks};

/// In-context classification with outliers: Mamba's gate against linear attention.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// A published Mamba folder with expected logits to compare with [default: the small one that ships here]
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
}

/// What outliers are labelled with, and how it is called.
const LABELS: [(&str, OutlierLabels); 3] = [
    ("flipped", OutlierLabels::Flipped),
    ("target", OutlierLabels::Target(1.0)),
    ("random", OutlierLabels::Random),
];
const PLACEMENTS: [(&str, OutlierPlacement); 3] = [
    ("farthest", OutlierPlacement::Farthest),
    ("random", OutlierPlacement::Random),
    ("closest", OutlierPlacement::Closest),
];
/// The paper's prompts in training and test.
const CONTEXT: usize = 20;
/// Shares of outliers in the table; the plot has all tenths.
const SHARES: [f64; 3] = [0.5, 0.7, 0.8];
/// Start of three layers' diagonals: the paper's 0.2, and steps as large as for one layer, let the products of three
/// layers grow beyond all bounds.
const STACK_SCALE: f64 = 0.05;
/// Width of the real Mamba block.
const WIDTH: usize = 64;

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let device = experiment.device()?;
    let out = experiment.out_dir("mamba-icl")?;
    let mut lab = Lab::new(device, experiment.steps(2000, 200));
    for seed in experiment.seeds() {
        let prompts = OutlierPromptsConfig::new().with_seed(seed).try_init()?;
        for (name, gating, learning_rate, stack_rate) in
            [("Mamba", Gating::Mamba, 0.5, 0.05), ("linear", Gating::None, 0.05, 0.01)]
        {
            let training = IclTrainingConfig::new()
                .with_steps(experiment.steps(1000, 100))
                .with_batch_size(experiment.steps(128, 32))
                .with_learning_rate(learning_rate)
                .with_seed(seed);
            let model = lab.predictor(name, gating, &training, &prompts)?;
            lab.ask(name, &model, &prompts, seed)?;
            if gating == Gating::Mamba {
                lab.look_at_gates(&model, &prompts, seed)?;
            }
            let training = training
                .with_steps(experiment.steps(300, 5))
                .with_batch_size(experiment.steps(64, 8))
                .with_learning_rate(stack_rate);
            lab.three_layers(name, gating, &training, &prompts)?;
        }
        let training = Training {
            steps: experiment.steps(400, 10),
            learning_rate: 3e-3,
            warmup: experiment.steps(20, 2),
            weight_decay: 0.01,
            ..Training::default()
        };
        let block = lab.block(&training, experiment.steps(64, 8), &prompts, seed)?;
        lab.ask("Mamba block", &block, &prompts, seed)?;
    }

    say("Error on unseen outliers, by their labels and share:\n");
    say(lab.table.table());
    say("Three layers, half of the examples outliers: accuracy by their labels and place:\n");
    say(lab.placements.table());
    say(compare_logits(args.checkpoint.as_deref(), &lab.device)?);
    lab.errors.write_csv(out.join("errors.csv"))?;
    lab.table.write_json(out.join("results.json"))?;
    lab.placements.write_csv(out.join("placements.csv"))?;
    let plot = LinePlot::new("Error by the share of outliers", "share of outliers", "error");
    with_means(plot, &lab.errors).write_svg(out.join("mamba-icl.svg"))?;
    let plot =
        LinePlot::new("Where the gate opens", "j-th nearest of its kind", "mean gate").with_log_y(true);
    with_means(plot, &lab.gates).write_svg(out.join("gates.svg"))?;
    let plot = LinePlot::new("Gated attention in training", "step", "sum over examples");
    with_means(plot, &lab.attention).write_svg(out.join("attention.svg"))?;
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

/// A line a variant through the means over the seeds; the metrics are numbers. A plot holds seven lines apart.
fn with_means(plot: LinePlot, results: &Results) -> LinePlot {
    results.variants().into_iter().take(7).fold(plot, |plot, variant| {
        let mut points: Vec<(f64, f64)> = (results.metrics().into_iter())
            .filter_map(|metric| Some((metric.parse().ok()?, results.mean(variant, metric)?)))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        plot.with_series(variant, points)
    })
}

/// Trains and asks.
struct Lab {
    device: Device,
    /// Prompts of a measurement.
    tests: usize,
    /// Errors of a model with one kind of labels; metric: the share of outliers.
    errors: Results,
    /// Some of these, a row a model.
    table: Results,
    placements: Results,
    /// Metric: the distance from the query.
    gates: Results,
    /// Metric: the step.
    attention: Results,
}

impl Lab {
    fn new(device: Device, tests: usize) -> Self {
        let [errors, table, placements, gates, attention] = std::array::from_fn(|_| Results::new());
        Self { device, tests, errors, table, placements, gates, attention }
    }

    /// One layer, trained by plain gradient descent; its attention is looked at on the way.
    fn predictor(
        &mut self,
        name: &str,
        gating: Gating,
        training: &IclTrainingConfig,
        prompts: &OutlierPrompts,
    ) -> Result<IclPredictor, ConfigError> {
        let device = self.device.clone().autodiff();
        device.seed(training.seed);
        let model = IclPredictorConfig::new().with_gating(gating).try_init(&device)?;
        let bar = progress(training.steps, &format!("{name}, seed {}", training.seed));
        let every = (training.steps / 20).max(1);
        let distribution = PromptDistribution::training();
        let watched = prompts.draw(&distribution, 256, &mut tasks::random(training.seed + 1))?;
        let model = train(model, training, prompts, &distribution, &device, |step, loss, model| {
            bar.set_message(format!("loss {loss:.3}"));
            bar.inc(1);
            if step % every == 0 {
                let model = model.valid();
                let prediction = model.forward(watched.prompt(&self.device));
                let terms = values(prediction.gates * prediction.attention);
                for (what, wanted) in [("same pattern", true), ("other", false)] {
                    // The last row of a prompt is the query.
                    let mass: f64 = (watched.matches().iter().enumerate())
                        .filter(|(_, matches)| **matches == wanted)
                        .map(|(index, _)| terms[index / CONTEXT * (CONTEXT + 1) + index % CONTEXT])
                        .sum();
                    self.attention.record(
                        &format!("{name}, {what}"),
                        &step.to_string(),
                        training.seed,
                        mass / 256.0,
                    );
                }
            }
        })?;
        bar.finish_and_clear();
        Ok(model.valid())
    }

    /// A Mamba block between two projections, trained with AdamW.
    fn block(
        &self,
        training: &Training,
        batch: usize,
        prompts: &OutlierPrompts,
        seed: u64,
    ) -> Result<BlockLearner, ConfigError> {
        let inner = self.device.clone().autodiff();
        self.device.seed(seed);
        let model = BlockLearner::try_new(prompts.relevant()[0].len() + 1, &self.device)?;
        let distribution = PromptDistribution::training();
        let mut random = tasks::random(seed);
        let bar = progress(training.steps, &format!("Mamba block, seed {seed}"));
        let (model, _) = gatekit_examples::train(model, training, &bar, |model, _| {
            let batch = prompts
                .draw(&distribution, batch, &mut random)
                .expect("the distribution was drawn from before");
            hinge_loss(model.score(batch.prompt(&inner)), batch.labels(&inner))
        });
        Ok(model)
    }

    /// The error by labels and share of the outliers.
    fn ask(
        &mut self,
        name: &str,
        model: &impl ContextLearner,
        prompts: &OutlierPrompts,
        seed: u64,
    ) -> Result<(), ConfigError> {
        for (labels, outlier_labels) in LABELS {
            for tenth in 0..10 {
                let share = f64::from(tenth) / 10.0;
                let distribution = PromptDistribution::test(share, outlier_labels);
                let error = self.error(model, prompts, &distribution, seed)?;
                self.errors.record(&format!("{name}, {labels}"), &share.to_string(), seed, error);
                if SHARES.contains(&share) {
                    self.table.record(name, &format!("{labels} {share}"), seed, error);
                }
            }
        }
        Ok(())
    }

    fn error(
        &self,
        model: &impl ContextLearner,
        prompts: &OutlierPrompts,
        distribution: &PromptDistribution,
        seed: u64,
    ) -> Result<f64, ConfigError> {
        let batch = prompts.draw(distribution, self.tests, &mut tasks::random(seed + 1000))?;
        let score = model.score(batch.prompt(&self.device));
        Ok(error_rate(score, batch.labels(&self.device)).into_scalar::<f64>())
    }

    /// The mean gate of the j-th nearest clean example, and of the j-th nearest outlier.
    fn look_at_gates(
        &mut self,
        model: &IclPredictor,
        prompts: &OutlierPrompts,
        seed: u64,
    ) -> Result<(), ConfigError> {
        let distribution = PromptDistribution::test(0.5, OutlierLabels::Random);
        let batch = prompts.draw(&distribution, self.tests, &mut tasks::random(seed + 2000))?;
        let gates = values(model.forward(batch.prompt(&self.device)).gates);
        let mut sums = [[(0.0, 0); CONTEXT]; 2];
        for (prompt, outliers) in batch.outliers().chunks(CONTEXT).enumerate() {
            let mut nearest = [0; 2];
            for place in (0..CONTEXT).rev() {
                let kind = usize::from(outliers[place]);
                let (sum, count) = &mut sums[kind][nearest[kind]];
                *sum += gates[prompt * (CONTEXT + 1) + place];
                *count += 1;
                nearest[kind] += 1;
            }
        }
        for (name, sums) in ["clean examples", "outliers"].into_iter().zip(sums) {
            // Of the few prompts with more than that of one kind a mean says little.
            for (index, (sum, count)) in sums.into_iter().enumerate().take(CONTEXT / 2) {
                if count > 0 {
                    self.gates.record(name, &(index + 1).to_string(), seed, sum / f64::from(count));
                }
            }
        }
        Ok(())
    }

    /// Accuracy of three layers by the place of the outliers.
    fn three_layers(
        &mut self,
        name: &str,
        gating: Gating,
        training: &IclTrainingConfig,
        prompts: &OutlierPrompts,
    ) -> Result<(), ConfigError> {
        let device = self.device.clone().autodiff();
        device.seed(training.seed);
        let model =
            IclStackConfig::new().with_gating(gating).with_initial_scale(STACK_SCALE).try_init(&device)?;
        let bar = progress(training.steps, &format!("{name} x 3, seed {}", training.seed));
        let distribution = PromptDistribution::training().with_outlier_probability(0.4);
        let model = train(model, training, prompts, &distribution, &device, |_, loss, _| {
            bar.set_message(format!("loss {loss:.3}"));
            bar.inc(1);
        })?;
        bar.finish_and_clear();
        let model = model.valid();
        for (labels, outlier_labels) in [LABELS[2], LABELS[0]] {
            for (place, placement) in PLACEMENTS {
                let distribution = PromptDistribution::test(0.5, outlier_labels).with_placement(placement);
                let error = self.error(&model, prompts, &distribution, training.seed)?;
                self.placements.record(name, &format!("{labels}, {place}"), training.seed, 1.0 - error);
            }
        }
        Ok(())
    }
}

/// The real block on prompts: rows in, the score of the last row out.
#[derive(Module, Debug)]
struct BlockLearner {
    rows: Linear,
    block: MambaBlock,
    norm: RmsNorm,
    score: Linear,
}

impl BlockLearner {
    fn try_new(width: usize, device: &Device) -> Result<Self, ConfigError> {
        let norm = RmsNormConfig::new(WIDTH);
        let mixer = MambaMixerConfig::new(WIDTH).try_init(device)?;
        Ok(Self {
            rows: LinearConfig::new(width, WIDTH).init(device),
            block: MambaBlock { norm: norm.try_init(device)?, mixer },
            norm: norm.try_init(device)?,
            score: LinearConfig::new(WIDTH, 1).init(device),
        })
    }
}

impl ContextLearner for BlockLearner {
    fn score(&self, prompt: Tensor<3>) -> Tensor<1> {
        let x = self.block.forward(self.rows.forward(prompt), None);
        let [batch, rows, width] = x.dims();
        let last = x.narrow(1, rows - 1, 1).reshape([batch, width]);
        self.score.forward(self.norm.forward(last)).squeeze_dim(1)
    }
}

/// How far the logits of a published folder are from those that its own library computed.
fn compare_logits(folder: Option<&Path>, device: &Device) -> Result<String, ExampleError> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/checkpoints/mamba-tiny");
    let folder = folder.unwrap_or(&shipped);
    let (_, model) = load_pretrained::<MambaConfig>(folder, device)?;
    let mut expected = SafetensorsFile::open(&folder.join("expected.safetensors"))?;
    let ids = Tensor::<2, Int>::from_data(expected.read("input_ids")?, device);
    let want: Vec<f64> = expected.read("logits")?.iter::<f64>().collect();
    let got = values(model.forward(ids, None));
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let error =
        square(&mut got.iter().zip(&want).map(|(got, want)| got - want)) / square(&mut want.iter().copied());
    Ok(format!("Logits of the published folder: relative error {:.1e}", error.sqrt()))
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}
