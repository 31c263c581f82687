//! A run from beginning to end: train, measure, plot, write.

use std::f64::consts::LN_2;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use burn::prelude::*;
use gatekit::core::ConfigError;
use gatekit::sequence::AutoModel;
use gatekit_examples::tasks::shakespeare;
use serde::Serialize;

use crate::checkpoint::{Checkpoint, RunIdentity, newest};
use crate::cli::{Args, Cli};
use crate::data::Corpus;
use crate::error::RunError;
use crate::experts::{ExpertLog, is_look};
use crate::interrupt;
use crate::metrics::{GateRow, Log, StepRow};
use crate::model;
use crate::ngram::{Estimates, MAX_ORDER, NGrams};
use crate::plots;
use crate::progress::Progress;
use crate::run_folder::{RunFolder, RunRecord};
use crate::sample;
use crate::settings::{Settings, differences};
use crate::train::Trainer;
use gatekit_examples::{grouped, say};

/// How much of the held-out text the looks during training read.
const LOOK_BYTES: usize = 16 * 1024;
/// Looks at the held-out text and the gates over a whole run, unless told otherwise.
const LOOKS: usize = 20;

/// How a run ended.
pub enum Outcome {
    /// All of it was done.
    Finished,
    /// Ctrl-C came first.
    Interrupted,
}

/// A run that is about to start: flags checked, device found, text read.
pub struct Plan<'a> {
    args: &'a Args,
    /// Longest training time.
    budget: Option<Duration>,
    device: Device,
    corpus: Corpus,
    record: RunRecord,
    /// The folder of the run to resume.
    resumed: Option<RunFolder>,
}

impl<'a> Plan<'a> {
    /// Checks what can be checked before anything is written.
    pub fn new(cli: &'a Cli) -> Result<Self, RunError> {
        let args = &cli.args;
        for (flag, value) in [
            ("--checkpoint-every", args.checkpoint_every),
            ("--validate-every", args.validate_every.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(ConfigError::new(flag, 0, "at least 1").into());
            }
        }
        let budget = match args.minutes {
            None => None,
            Some(minutes) => match Duration::try_from_secs_f64(60.0 * minutes) {
                Ok(budget) if !budget.is_zero() => Some(budget),
                _ => return Err(ConfigError::new("--minutes", minutes, "a positive number").into()),
            },
        };
        sample::check(args)?;
        let device = gatekit::device::parse(&args.device)?;

        let (resumed, earlier) = match args.resume {
            true => {
                let (folder, record) = RunFolder::open(&args.out)?;
                (Some(folder), Some(record))
            }
            false => (None, None),
        };
        let settings = match &earlier {
            Some(record) => cli.resumed_settings(record.identity.settings.clone()),
            None => cli.settings(),
        };
        settings.validate()?;

        let text = args.text.clone().or_else(|| earlier.as_ref().and_then(|record| record.text.clone()));
        let corpus = Corpus::read(&text.clone().unwrap_or_else(shakespeare), settings.context)?;
        let identity = RunIdentity { settings, text: corpus.identity() };
        if let Some(earlier) = &earlier {
            let differences = differences(&earlier.identity, &identity);
            if !differences.is_empty() {
                return Err(RunError::ForeignCheckpoint { path: args.out.clone(), differences });
            }
        }
        let record = RunRecord { device: args.device.clone(), text: text.map(absolute), identity };
        Ok(Self { args, budget, device, corpus, record, resumed })
    }

    /// The settings of the run.
    pub fn settings(&self) -> &Settings {
        &self.record.identity.settings
    }
}

/// So that a run can be resumed from another working directory.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// Runs `plan`.
pub fn run(plan: &Plan) -> Result<Outcome, RunError> {
    interrupt::listen()?;
    let (mut trainer, folder) = open(plan)?;
    let baselines =
        NGrams::train(plan.corpus.training()).bits_per_byte(plan.corpus.bytes(), plan.corpus.held_out_from());
    introduce(plan, &trainer, &folder);

    let mut metrics = Log::open(&folder.metrics(), trainer.steps_done())?;
    let mut gates = Log::open(&folder.gates(), trainer.steps_done())?;
    let sparse = plan.settings().is_sparse();
    let mut loads = sparse.then(|| ExpertLog::open(&folder, trainer.steps_done())).transpose()?;
    let outcome = train(plan, &mut trainer, &folder, &mut metrics, &mut gates, &mut loads);
    // Whatever ended the training: what it measured is drawn.
    let steps = plan.settings().steps;
    plots::loss(folder.path(), metrics.rows(), steps, &baselines)?;
    plots::gates(folder.path(), gates.rows())?;
    let mut evenness = None;
    if let Some(loads) = &loads {
        loads.draw(folder.path())?;
        evenness = loads.summary();
    }
    if let Outcome::Interrupted = outcome? {
        say(format_args!(
            "Stopped after step {}. Go on with the same command and --resume.",
            trainer.steps_done()
        ));
        return Ok(Outcome::Interrupted);
    }

    if let Some((busiest, dropped)) = &evenness {
        let busiest: Vec<String> = busiest.iter().map(|load| format!("{load:.2}")).collect();
        say(format_args!(
            "The busiest expert of each layer has {} times the mean load; {:.1} % of slots are dropped.",
            busiest.join(", "),
            100.0 * dropped,
        ));
    }
    let model = trainer.trained();
    folder.write_weights(&model)?;
    if !plan.args.no_validation {
        validate(plan, &model, &folder, &baselines, evenness)?;
    }
    say(format_args!("The run's folder: {}\n", folder.path().display()));
    if interrupt::asked() {
        return Ok(Outcome::Interrupted);
    }
    sample::write_text(&model, plan.args, plan.settings(), &plan.device)
}

/// A new run and its folder, or the resumed one where it stopped.
fn open(plan: &Plan) -> Result<(Trainer, RunFolder), RunError> {
    let settings = plan.settings();
    if let Some(folder) = &plan.resumed {
        let folder = RunFolder::at(folder.path());
        let trainer = match newest(&folder.checkpoints())? {
            Some(checkpoint) => {
                let checkpoint = Checkpoint::read(&checkpoint, &plan.record.identity)?;
                Trainer::resume(settings, checkpoint, &plan.device)?
            }
            None => Trainer::new(settings, &plan.device)?,
        };
        return Ok((trainer, folder));
    }
    let trainer = Trainer::new(settings, &plan.device)?;
    let folder = RunFolder::create(&plan.args.out)?;
    folder.write_config(&model::config(settings)?, &plan.record)?;
    Ok((trainer, folder))
}

/// Says what is about to happen.
fn introduce(plan: &Plan, trainer: &Trainer, folder: &RunFolder) {
    let settings = plan.settings();
    say(format_args!(
        "{} with {} parameters: {} layers, width {}, {} heads; on {}",
        model::name(settings),
        grouped(trainer.trained().num_params()),
        settings.layers,
        settings.dim,
        settings.heads,
        plan.args.device,
    ));
    say(format_args!(
        "{} bytes to learn from, {} held out; {} steps of {} sequences of {} bytes",
        grouped(plan.corpus.training().len()),
        grouped(plan.corpus.held_out().len()),
        grouped(settings.steps),
        settings.batch_size,
        settings.context,
    ));
    if plan.args.resume {
        say(format_args!("Going on in {} after step {}.", folder.path().display(), trainer.steps_done()));
    }
}

/// The training loop.
fn train(
    plan: &Plan,
    trainer: &mut Trainer,
    folder: &RunFolder,
    metrics: &mut Log<StepRow>,
    gates: &mut Log<GateRow>,
    loads: &mut Option<ExpertLog>,
) -> Result<Outcome, RunError> {
    let Plan { args, corpus, .. } = plan;
    let settings = plan.settings();
    let look_every = args.validate_every.unwrap_or(settings.steps.div_ceil(LOOKS));
    // From the middle: a text's first pages (a title, a list of persons) are like no others.
    let look_bytes = LOOK_BYTES.min(corpus.held_out().len());
    let look_from = corpus.held_out_from() + (corpus.held_out().len() - look_bytes) / 2;
    let look_range = look_from..look_from + look_bytes;

    let started = Instant::now();
    let tokens = settings.batch_size * settings.context;
    let mut progress = Progress::new(settings.steps, trainer.steps_done());
    if trainer.steps_done() == 0 {
        look_at_gates(plan, &trainer.trained(), 0, gates)?;
    }
    while trainer.steps_done() < settings.steps {
        let began = Instant::now();
        let step = trainer.train_step(corpus)?;
        let time = began.elapsed();
        let bits = f64::from(step.loss) / LN_2;
        progress.step(step.number, step.loss, bits, tokens, time);

        let last = step.number == settings.steps;
        let mut validation = None;
        if last || step.number.is_multiple_of(look_every) {
            let model = trainer.trained();
            validation = Some(model::bits_per_byte(
                &model,
                corpus.bytes(),
                look_range.clone(),
                settings,
                &plan.device,
            ));
            look_at_gates(plan, &model, step.number, gates)?;
        }
        metrics.push(StepRow {
            step: step.number,
            loss: step.loss,
            bits_per_byte: bits,
            learning_rate: step.learning_rate,
            bytes_per_second: tokens as f64 / time.as_secs_f64(),
            validation_bits_per_byte: validation,
        })?;

        if let Some(loads) = loads.as_mut().filter(|_| is_look(step.number, settings.steps)) {
            loads.push(step.number, &step.loads)?;
        }

        let interrupted = interrupt::asked();
        let out_of_time = plan.budget.is_some_and(|budget| started.elapsed() >= budget);
        if last || interrupted || out_of_time || step.number.is_multiple_of(args.checkpoint_every) {
            metrics.flush()?;
            gates.flush()?;
            loads.as_mut().map_or(Ok(()), ExpertLog::flush)?;
            trainer.checkpoint().write(&plan.record.identity, &folder.checkpoints())?;
        }
        if interrupted {
            progress.finish();
            return Ok(Outcome::Interrupted);
        }
        if out_of_time && !last {
            progress.finish();
            say(format_args!("The time is up after step {} of {}.", step.number, settings.steps));
            return Ok(Outcome::Finished);
        }
    }
    progress.finish();
    Ok(Outcome::Finished)
}

/// Adds the gates' statistics on a stretch from the middle of the held-out text to the log.
fn look_at_gates(
    plan: &Plan,
    model: &AutoModel,
    step: usize,
    gates: &mut Log<GateRow>,
) -> Result<(), RunError> {
    let text = plan.corpus.held_out();
    let text = &text[text.len() / 2..];
    let text = &text[..text.len().min(4 * plan.settings().context)];
    for row in model::gates(model, text, step, &plan.device) {
        gates.push(row)?;
    }
    Ok(())
}

/// What `results.json` holds.
#[derive(Serialize)]
struct Results {
    model: String,
    parameters: usize,
    held_out_bytes: usize,
    bits_per_byte: f64,
    kneser_ney_bits_per_byte: [f64; MAX_ORDER],
    witten_bell_bits_per_byte: [f64; MAX_ORDER],
    /// Load of the busiest expert over the mean load, a sparse layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    busiest_expert: Option<Vec<f64>>,
    /// Share of slots that were dropped in training.
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<f64>,
}

/// Measures the model on the whole held-out text and prints it beside the n-gram models.
fn validate(
    plan: &Plan,
    model: &AutoModel,
    folder: &RunFolder,
    baselines: &Estimates,
    evenness: Option<(Vec<f64>, f64)>,
) -> Result<(), RunError> {
    let corpus = &plan.corpus;
    let range = corpus.held_out_from()..corpus.bytes().len();
    let bits = model::bits_per_byte(model, corpus.bytes(), range, plan.settings(), &plan.device);
    let name = model::name(plan.settings());

    let row = |name: &str, values: &[f64]| {
        let values: String = values.iter().map(|value| format!("{value:>8.3}")).collect();
        say(format_args!("  {name:<40}{values}"));
    };
    say(format_args!("\nBits per byte on all {} held-out bytes:", grouped(corpus.held_out().len())));
    let orders: String = (1..=MAX_ORDER).map(|order| format!("{order:>8}")).collect();
    say(format_args!("  {:<40}{orders}", "n-gram model of order"));
    row("interpolated Kneser-Ney", &baselines.kneser_ney);
    row("interpolated Witten-Bell", &baselines.witten_bell);
    row(&name, &[bits]);
    let (margin, side) = match bits <= baselines.best() {
        true => (baselines.best() - bits, "below"),
        false => (bits - baselines.best(), "above"),
    };
    say(format_args!("The model is {margin:.3} bits per byte {side} the best n-gram model."));

    let (busiest_expert, dropped) = evenness.unzip();
    folder.write_results(&Results {
        model: name,
        parameters: model.num_params(),
        held_out_bytes: corpus.held_out().len(),
        bits_per_byte: bits,
        kneser_ney_bits_per_byte: baselines.kneser_ney,
        witten_bell_bits_per_byte: baselines.witten_bell,
        busiest_expert,
        dropped,
    })
}
