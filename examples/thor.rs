//! THOR: experts that are drawn at random, with and without the term that makes them agree.
//!
//! After Zuo et al. 2021, arXiv 2110.04260. Small encoder-decoders learn, from few sentences, to reverse a sentence and
//! to replace every letter by its cipher: without experts, with a learned router (Switch, balanced), with experts drawn
//! at random, and with the consistency term besides (THOR). Every step passes its batch twice in all of them.
//!
//! ```text
//! cargo run --release -p gatekit-examples --example thor
//! ```
#![deny(missing_docs)]

#[path = "thor/switch.rs"]
mod switch;
#[path = "thor/task.rs"]
mod task;

use std::process::ExitCode;

use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::lr_scheduler::noam::NoamLrSchedulerConfig;
use burn::module::Module;
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use clap::Parser;
use gatekit::core::probe::LinePlot;
use gatekit::core::{ConfigError, ModuleConfig};
use gatekit::experts::thor::{ConsistencyLoss, ExpertDraw, ExpertLevel, ThorConfig, ThorModel, ThorTrainer};
use gatekit_examples::{ExampleError, Experiment, Results, exit, progress, say, tasks};
use switch::SwitchModel;
use task::{Cipher, MARK, PADDING, Pairs, VOCABULARY};

/// THOR against random experts, a learned router, and no experts.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,

    /// Optimiser steps of every model [default: 1000, quick: 6]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,

    /// Numbers of experts [default: 2,8, quick: 2]
    #[arg(long, value_name = "E,E", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(2..=64))]
    experts: Vec<u32>,
}

const WIDTH: usize = 64;
const INNER: usize = 128;
const WARMUP: usize = 60;
const PEAK: f64 = 5e-3;
const ALPHA: f64 = 5.0;
/// Weight of Switch's balancing loss.
const BALANCE: f64 = 0.01;
const LOSS: &str = "validation loss";
const RIGHT: &str = "sentences right";
const APART: &str = "experts apart";

const DENSE: &str = "dense";
const SWITCH: &str = "Switch";
const RANDOM: &str = "random";
const THOR: &str = "THOR";

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let device = experiment.device()?;
    let out = experiment.out_dir("thor")?;
    let counts: Vec<usize> = match (args.experts.is_empty(), experiment.quick) {
        (false, _) => args.experts.iter().map(|experts| *experts as usize).collect(),
        (true, true) => vec![2],
        (true, false) => vec![2, 8],
    };
    let steps = args.steps.map_or(experiment.steps(1000, 6), |steps| steps as usize);
    let mut results = Results::new();
    let mut apart: Vec<(String, Vec<Vec<(f64, f64)>>)> = Vec::new();
    for seed in experiment.seeds() {
        let run = Run {
            steps,
            batch: experiment.steps(32, 4),
            every: (steps / 10).max(1),
            cipher: Cipher::new(experiment.steps(256, 16), experiment.steps(200, 8), seed),
            seed,
            device: &device,
        };
        run.thor(DENSE, 1, 0.0, &mut results, &mut apart)?;
        for &experts in &counts {
            run.switch(experts, &mut results)?;
            run.thor(RANDOM, experts, 0.0, &mut results, &mut apart)?;
            run.thor(THOR, experts, ALPHA, &mut results, &mut apart)?;
        }
    }
    say(results.table());
    results.write_csv(out.join("results.csv"))?;
    results.write_json(out.join("results.json"))?;

    let plot = LinePlot::new("Cipher from few sentences, held-out", "experts", LOSS).with_log_x(true);
    let plot = [SWITCH, RANDOM, THOR].iter().fold(plot, |plot, method| {
        let at =
            |experts: usize| results.mean(&variant(method, experts), LOSS).map(|loss| (experts as f64, loss));
        plot.with_series(method, counts.iter().filter_map(|experts| at(*experts)))
    });
    let dense = results.mean(DENSE, LOSS);
    let ends = counts.first().into_iter().chain(counts.last()).map(|experts| *experts as f64);
    plot.with_series(DENSE, ends.filter_map(|end| dense.map(|loss| (end, loss))))
        .write_svg(out.join("thor.svg"))?;
    let plot = LinePlot::new("Two drawings of the experts", "training steps", "symmetric KL, nats");
    let plot = apart.iter().fold(plot, |plot, (name, curves)| plot.with_series(name, mean(curves)));
    plot.write_svg(out.join("thor-apart.svg"))?;
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

fn variant(method: &str, experts: usize) -> String {
    if method == DENSE { DENSE.to_string() } else { format!("{method}, {experts} experts") }
}

/// The mean of curves with the same steps.
fn mean(curves: &[Vec<(f64, f64)>]) -> Vec<(f64, f64)> {
    let points = curves.iter().map(Vec::len).min().unwrap_or(0);
    let value = |index: usize| curves.iter().map(|curve| curve[index].1).sum::<f64>() / curves.len() as f64;
    (0..points).map(|index| (curves[0][index].0, value(index))).collect()
}

fn model_config(experts: usize) -> ThorConfig {
    ThorConfig::new(VOCABULARY)
        .with_embed_dim(WIDTH)
        .with_ffn_dim(INNER)
        .with_num_experts(experts)
        .with_encoder_layers(1)
        .with_decoder_layers(1)
        .with_dropout(0.1)
        .with_padding_idx(PADDING as usize)
}

/// Adam under the inverse square root schedule.
fn training() -> Result<(ModuleOptimizer, ModuleLrScheduler), ConfigError> {
    let factor = PEAK * ((WIDTH * WARMUP) as f64).sqrt();
    let schedule = NoamLrSchedulerConfig::new(factor).with_warmup_steps(WARMUP).with_model_size(WIDTH).init();
    let schedule = schedule.map_err(|reason| ConfigError::new("warmup", WARMUP, reason))?;
    Ok((AdamConfig::new().with_beta_2(0.98).with_epsilon(1e-8).init(), schedule))
}

struct Run<'a> {
    steps: usize,
    batch: usize,
    /// Steps from one look at the experts to the next.
    every: usize,
    cipher: Cipher,
    seed: u64,
    device: &'a Device,
}

impl Run<'_> {
    /// Experts by chance; with one expert it is the dense model.
    fn thor(
        &self,
        method: &str,
        experts: usize,
        alpha: f64,
        results: &mut Results,
        apart: &mut Vec<(String, Vec<Vec<(f64, f64)>>)>,
    ) -> Result<(), ExampleError> {
        let (name, device) = (variant(method, experts), self.device.clone().autodiff());
        let config = model_config(experts).with_consistency_alpha(alpha);
        self.device.seed(self.seed);
        let model = config.try_init(self.device)?.materialize();
        let (optimizer, mut schedule) = training()?;
        let draw = ExpertDraw::new(experts, ExpertLevel::Pass, self.seed)?;
        let mut trainer = ThorTrainer::new(model, optimizer, config.loss(), draw)?;
        let held_out = self.cipher.held_out(self.device);
        let mut random = tasks::random(self.seed);
        let mut curve = Vec::new();
        let bar = progress(self.steps, &name);
        for step in 0..self.steps {
            if experts > 1 && step % self.every == 0 {
                curve.push((step as f64, self.spread(&trainer.model.valid(), &held_out)?));
            }
            let batch = self.cipher.batch(self.batch, &mut random, &device).checked(&trainer.model);
            let report = trainer.step(schedule.step(), &[batch])?;
            bar.set_message(format!("loss {:.3}", report.cross_entropy[0]));
            bar.inc(1);
        }
        bar.finish_and_clear();
        let model = trainer.model.valid();
        if experts > 1 {
            let last = self.spread(&model, &held_out)?;
            curve.push((self.steps as f64, last));
            match apart.iter_mut().find(|(known, _)| *known == name) {
                Some((_, curves)) => curves.push(curve),
                None => apart.push((name.clone(), vec![curve])),
            }
        }
        // One expert a sentence, as at inference.
        let [rows, time] = held_out.target.dims();
        let mut draw = ExpertDraw::new(experts, ExpertLevel::Sentence, self.seed + 1)?;
        let drawn = model.draw(&mut draw, rows, held_out.source.dims()[1], time);
        let logits = model.forward(held_out.source.clone(), held_out.target_input.clone(), &drawn)?;
        results.record(&name, LOSS, self.seed, judged(logits, &held_out)?);
        let decoded = model.greedy(held_out.source.clone(), MARK, MARK, time, &drawn)?;
        results.record(&name, RIGHT, self.seed, self.cipher.right(&decoded));
        if experts > 1 {
            let mean = model.mean_expert(held_out.source.clone(), held_out.target_input.clone())?;
            results.record(&name, "loss of the mean expert", self.seed, judged(mean, &held_out)?);
            results.record(&name, APART, self.seed, self.spread(&model, &held_out)?);
        }
        Ok(())
    }

    /// Symmetric divergence of two drawings, in nats a token.
    fn spread(&self, model: &ThorModel, held_out: &Pairs) -> Result<f64, ExampleError> {
        let experts = model.num_experts().unwrap_or(1);
        let mut draw = ExpertDraw::new(experts, ExpertLevel::Sentence, 77)?;
        let Pairs { source, target_input, target } = held_out.clone();
        Ok(model.spread(source, target_input, &target, &mut draw)?.symmetric_kl)
    }

    /// Experts by a router that is learned.
    fn switch(&self, experts: usize, results: &mut Results) -> Result<(), ExampleError> {
        let (name, device) = (variant(SWITCH, experts), self.device.clone().autodiff());
        let config = model_config(experts);
        self.device.seed(self.seed);
        let mut model = SwitchModel::new(&config, self.device)?.materialize().train();
        let (mut optimizer, mut schedule) = training()?;
        let loss = config.loss().with_consistency_alpha(0.0);
        let held_out = self.cipher.held_out(self.device);
        let mut random = tasks::random(self.seed);
        let bar = progress(self.steps, &name);
        for _ in 0..self.steps {
            let batch = self.cipher.batch(self.batch, &mut random, &device);
            let pass = || model.forward(batch.source.clone(), batch.target_input.clone());
            let ((a, of_a), (b, of_b)) = (pass(), pass());
            let parts = loss.forward([a, b], &batch.target)?;
            let fit = parts.loss.div_scalar(parts.sample_size as f64);
            let whole = fit + (of_a + of_b).mul_scalar(BALANCE);
            let gradients = GradientsParams::from_grads(whole.backward(), &model);
            model = optimizer.step(schedule.step(), model, gradients);
            bar.inc(1);
        }
        bar.finish_and_clear();
        let model = model.valid();
        let (logits, _) = model.forward(held_out.source.clone(), held_out.target_input.clone());
        results.record(&name, LOSS, self.seed, judged(logits, &held_out)?);
        results.record(&name, RIGHT, self.seed, self.cipher.right(&self.decoded(&model, &held_out)));
        Ok(())
    }

    /// The likeliest sentences, token by token; without a cache, the sentences are short.
    fn decoded(&self, model: &SwitchModel, held_out: &Pairs) -> Vec<Vec<i64>> {
        let [rows, time] = held_out.target.dims();
        let mut sentences = vec![vec![MARK]; rows];
        for position in 0..time {
            let flat: Vec<i64> = sentences.concat();
            let input = burn::tensor::TensorData::new(flat, [rows, position + 1]);
            let (logits, _) = model.forward(held_out.source.clone(), Tensor::from_data(input, self.device));
            let last = logits.narrow(1, position, 1).argmax(2).into_data();
            sentences.iter_mut().zip(last.iter::<i64>()).for_each(|(sentence, token)| sentence.push(token));
        }
        let until_the_end =
            |sentence: Vec<i64>| sentence.into_iter().skip(1).take_while(|token| *token != MARK).collect();
        sentences.into_iter().map(until_the_end).collect()
    }
}

/// Cross entropy of the held-out targets, in nats a token, without smoothing.
fn judged(logits: Tensor<3>, held_out: &Pairs) -> Result<f64, ExampleError> {
    let plain = ConsistencyLoss::new().with_label_smoothing(0.0).with_padding_idx(PADDING);
    let parts = plain.forward([logits.clone(), logits], &held_out.target)?;
    Ok(parts.loss.into_scalar::<f64>() / 2.0 / parts.sample_size as f64)
}
