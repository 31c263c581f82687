//! What the example programs share: flags, training, tasks, tables of results.
//!
//! | module | owns |
//! |---|---|
//! | [`experiment`] | the flags that every experiment has |
//! | [`training`] | AdamW under a warm-up and a cosine, step by step or all at once |
//! | [`tasks`] | synthetic recall and copying, bytes of a text; accuracy, bits per byte, average precision |
//! | [`curves`] | learning the bytes of a text, judged on the way |
//! | [`results`] | measured values by variant, metric and seed: tables, CSV, JSON, bars |
//! | [`robustness`] | how systems of several modalities do when one is removed or noisy |
//! | [`panels`] | small pictures side by side |
//! | [`progress`](mod@progress) | progress bars, lines for the person who watches |
//! | [`error`] | what can stop an experiment |
//!
//! An experiment is then little more than its models:
//!
//! ```no_run
//! use clap::Parser;
//! use gatekit::core::ModuleConfig;
//! use gatekit::sequence::{CausalLm, GlaConfig};
//! use gatekit_examples::tasks::{self, Recall};
//! use gatekit_examples::{ExampleError, Experiment, Results, Training, progress, train};
//!
//! /// Recall with gated linear attention.
//! #[derive(Parser)]
//! struct Args {
//!     #[command(flatten)]
//!     experiment: Experiment,
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     gatekit_examples::exit(run(&Args::parse().experiment))
//! }
//!
//! fn run(experiment: &Experiment) -> Result<(), ExampleError> {
//!     let device = experiment.device()?;
//!     let task = Recall { pairs: 4, vocabulary: 32, length: 24 };
//!     let training = Training { steps: experiment.steps(400, 20), ..Training::default() };
//!     let mut results = Results::new();
//!     for seed in experiment.seeds() {
//!         device.seed(seed);
//!         let model = GlaConfig::new(task.vocabulary, 64, 2).try_init(&device)?;
//!         let mut random = tasks::random(seed);
//!         let bar = progress(training.steps, "GLA");
//!         let (model, _losses) = train(model, &training, &bar, |model, _step| {
//!             let (inputs, labels) = task.batch(16, &mut random, &device.clone().autodiff());
//!             model.loss(model.forward(inputs, None), labels).expect("every row asks something")
//!         });
//!         let (inputs, labels) = task.batch(64, &mut tasks::random(seed + 1000), &device);
//!         results.record("GLA", "accuracy", seed, tasks::accuracy(model.forward(inputs, None), labels));
//!     }
//!     println!("{}", results.table());
//!     results.write_csv(experiment.out_dir("recall")?.join("results.csv"))
//! }
//! ```
#![deny(missing_docs)]

pub mod curves;
pub mod error;
pub mod experiment;
pub mod panels;
pub mod progress;
pub mod results;
pub mod robustness;
pub mod tasks;
pub mod training;

pub use curves::{CurvePoint, TextTraining, learn_text, mean_curve};
pub use error::{ExampleError, exit};
pub use experiment::Experiment;
pub use progress::{grouped, progress, say};
pub use results::Results;
pub use robustness::{Condition, Robustness};
pub use training::{Trainer, Training, train};
