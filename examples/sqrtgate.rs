//! SqrtGate, MuonH and HyperP: outputs, weights and learning rates that keep their size.
//!
//! After Ren et al. 2026, arXiv 2603.28743. The output's RMS of a fresh layer against the number of active experts,
//! with square-root gates and with plain ones; the loss of small language models against the learning rate at several
//! depths, with Muon and weight decay and with MuonH under HyperP's rule; norms of the weights by step; how evenly
//! experts are used against the weight of the balancing loss.
//!
//! ```text
//! cargo run --release -p gatekit-examples --example sqrtgate
//! ```
#![deny(missing_docs)]

#[path = "sqrtgate/model.rs"]
mod model;
#[path = "sqrtgate/optimizers.rs"]
mod optimizers;

use std::process::ExitCode;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Distribution, Tensor};
use clap::Parser;
use gatekit::core::ModuleConfig;
use gatekit::core::probe::{ExpertLoad, LinePlot, Probe};
use gatekit::experts::sqrtgate::{HyperPConfig, Schedule, SqrtGateConfig, frobenius_norm};
use gatekit::sequence::CausalLm;
use gatekit_examples::tasks::{self, Corpus};
use gatekit_examples::{ExampleError, Experiment, Results, exit, progress, say};
use model::{ByteModel, WIDTH};
use optimizers::Steps;

/// Square-root gates, optimisers on the sphere, and the transfer of a learning rate.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
}

/// Where the base learning rate is tuned.
const BASE_DEPTH: usize = 2;
const TIME: usize = 64;
const BATCH: usize = 8;
const MUON: &str = "Muon with decay";
const MUON_H: &str = "MuonH, HyperP";

fn main() -> ExitCode {
    exit(run(&Args::parse().experiment))
}

fn run(experiment: &Experiment) -> Result<(), ExampleError> {
    let device = experiment.device()?;
    let out = experiment.out_dir("sqrtgate")?;
    let power = output_power(experiment, &device)?;
    say("RMS of a fresh layer's output against the number of active experts K:\n");
    say(power.table());
    power.write_csv(out.join("power.csv"))?;

    let corpus = Corpus::shakespeare()?;
    let depths: &[usize] = if experiment.quick { &[1, 2] } else { &[2, 4, 8] };
    let quick = experiment.quick;
    let (mut losses, mut loads, mut norms) = (Results::new(), Results::new(), Probe::new());
    for seed in experiment.seeds() {
        for &depth in depths {
            for method in [MUON, MUON_H] {
                let rates = rates(method, quick);
                let bar = progress(rates.len(), &format!("{method}, depth {depth}"));
                for &rate in rates {
                    let training = Training::new(experiment, &corpus, depth, rate, seed);
                    let watched =
                        seed == experiment.seed && depth == depths[1] && rate == rates[rates.len() / 2];
                    let trained = training.run(method, &device, watched.then_some(&mut norms))?;
                    losses.record(&row(method, depth), &format!("{rate}"), seed, trained.bits);
                    bar.inc(1);
                }
                bar.finish_and_clear();
            }
        }
        for gamma in [0.001, 0.01, 0.1] {
            let training = Training {
                aux_gamma: gamma,
                ..Training::new(experiment, &corpus, depths[0], middle(rates(MUON_H, quick)), seed)
            };
            let trained = training.run(MUON_H, &device, None)?;
            let row = format!("aux {gamma}");
            loads.record(&row, "largest load over mean", seed, trained.load.max_over_mean);
            loads.record(&row, "experts without a token", seed, trained.load.unused);
            loads.record(&row, "bits per byte", seed, trained.bits);
        }
    }
    say("Bits per byte against the base learning rate:\n");
    say(losses.table());
    best_rates(depths, quick, &losses);
    say("\nHow evenly the experts are used, depth 2 on held-out text:\n");
    say(loads.table());
    say("Frobenius norms of weights by step:\n");
    say(norms.table());
    for (results, name) in [(&losses, "losses.csv"), (&loads, "loads.csv")] {
        results.write_csv(out.join(name))?;
    }
    plots(depths, quick, &power, &losses, &norms, &out)?;
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

fn row(method: &str, depth: usize) -> String {
    format!("{method}, depth {depth}")
}

/// The base rates that are tried: on the sphere a rate is the relative step.
fn rates(method: &str, quick: bool) -> &'static [f64] {
    match (quick, method) {
        (true, _) => &[0.08],
        (_, MUON) => &[0.01, 0.02, 0.04, 0.08, 0.16],
        _ => &[0.02, 0.04, 0.08, 0.16, 0.32],
    }
}

fn middle(rates: &[f64]) -> f64 {
    rates[rates.len() / 2]
}

/// Which rate is best at every depth.
fn best_rates(depths: &[usize], quick: bool, losses: &Results) {
    for method in [MUON, MUON_H] {
        let best: Vec<String> = (depths.iter())
            .filter_map(|depth| {
                let loss = |rate: &f64| losses.mean(&row(method, *depth), &format!("{rate}"));
                let known =
                    rates(method, quick).iter().filter_map(|rate| loss(rate).map(|loss| (*rate, loss)));
                let (rate, _) = known.min_by(|a, b| a.1.total_cmp(&b.1))?;
                Some(format!("{rate} at depth {depth}"))
            })
            .collect();
        say(format!("{method}: the best base rate is {}", best.join(", ")));
    }
}

fn plots(
    depths: &[usize],
    quick: bool,
    power: &Results,
    losses: &Results,
    norms: &Probe,
    out: &std::path::Path,
) -> Result<(), ExampleError> {
    let plot = LinePlot::new("A fresh layer", "active experts K", "RMS of the output").with_log_x(true);
    let plot = power.variants().into_iter().fold(plot, |plot, gate| {
        let point = |metric: &str| {
            let k = metric.trim_start_matches("K = ").parse::<f64>().ok()?;
            Some((k, power.mean(gate, metric)?))
        };
        plot.with_series(gate, power.metrics().into_iter().filter_map(point))
    });
    plot.write_svg(out.join("sqrtgate.svg"))?;
    for (method, file) in [(MUON, "sqrtgate-muon.svg"), (MUON_H, "sqrtgate-muonh.svg")] {
        let plot = LinePlot::new(method, "base learning rate", "bits per byte").with_log_x(true);
        let plot = depths.iter().fold(plot, |plot, depth| {
            let loss =
                |rate: &f64| losses.mean(&row(method, *depth), &format!("{rate}")).map(|loss| (*rate, loss));
            plot.with_series(&format!("depth {depth}"), rates(method, quick).iter().filter_map(loss))
        });
        plot.write_svg(out.join(file))?;
    }
    norms.write_svg(out.join("sqrtgate-norms.svg"), "Norms of weights in training", "Frobenius norm")?;
    Ok(())
}

/// The sheet's layer: D 64, width 256 of all active experts, 4 experts an active one, none shared, 64 tokens.
fn output_power(experiment: &Experiment, device: &Device) -> Result<Results, ExampleError> {
    let mut results = Results::new();
    for seed in experiment.seeds() {
        for (gate, sqrt_gate) in [("plain gate", false), ("SqrtGate", true)] {
            for k in [1, 2, 4, 8, 16, 32] {
                device.seed(seed);
                let x = Tensor::<2>::random([64, 64], Distribution::Normal(0.0, 1.0), device);
                let layer = SqrtGateConfig::new(64)
                    .with_intermediate_size(Some(256))
                    .with_sparsity(4)
                    .with_top_k(k)
                    .with_share_expert(false)
                    .with_sqrt_gate(sqrt_gate)
                    .try_init(device)?;
                let rms = layer.forward(x).y.square().mean().sqrt().into_scalar::<f64>();
                results.record(gate, &format!("K = {k}"), seed, rms);
            }
        }
    }
    Ok(results)
}

/// One training of a model.
struct Training<'a> {
    corpus: &'a Corpus,
    depth: usize,
    base_lr: f64,
    aux_gamma: f64,
    steps: usize,
    validation: usize,
    seed: u64,
}

struct Trained {
    bits: f64,
    load: ExpertLoad,
}

impl<'a> Training<'a> {
    fn new(experiment: &Experiment, corpus: &'a Corpus, depth: usize, base_lr: f64, seed: u64) -> Self {
        let (steps, validation) = (experiment.steps(80, 2), experiment.steps(24, 2));
        Self { corpus, depth, base_lr, aux_gamma: 0.1, steps, validation, seed }
    }

    /// The norms of some weights are recorded in `norms`.
    fn run(
        &self,
        method: &str,
        device: &Device,
        mut norms: Option<&mut Probe>,
    ) -> Result<Trained, ExampleError> {
        let on_sphere = method == MUON_H;
        let tokens = (self.steps * BATCH * TIME) as f64;
        // All runs see the same tokens, so the rule is that of the depth.
        let rules = HyperPConfig::new(self.depth, tokens, (BATCH * TIME) as f64, self.steps)
            .with_base_lr(self.base_lr)
            .with_base_depth(if on_sphere { BASE_DEPTH } else { self.depth })
            .with_base_tokens(tokens)
            .with_base_batch_tokens((BATCH * TIME) as f64)
            .with_schedule(Schedule::Linear)
            .try_init()?;
        // Off the sphere: branches are added as they are, gates are plain, and balancing weighs less.
        let moe = SqrtGateConfig::new(WIDTH)
            .with_sparsity(4)
            .with_top_k(2)
            .with_sqrt_gate(on_sphere)
            .with_aux_gamma(if on_sphere { self.aux_gamma } else { 0.001 });
        let scale = if on_sphere { rules.residual_scale() } else { 1.0 };
        device.seed(self.seed);
        let mut model = ByteModel::new(self.depth, scale, &moe, device)?.materialize().train();
        let mut optimizer = if on_sphere { Steps::sphere(&model)? } else { Steps::muon() };
        let mut random = tasks::random(self.seed);
        for step in 0..self.steps {
            if let Some(norms) = norms.as_deref_mut().filter(|_| step % 5 == 0) {
                let moe = &model.blocks[0].moe;
                for (name, stack) in
                    [("gate and up", &moe.experts.gate_up_proj), ("down", &moe.experts.down_proj)]
                {
                    let norm = frobenius_norm(stack.val().inner(), true).narrow(0, 0, 1).into_scalar::<f64>();
                    norms.record(&format!("{method}: {name}"), step, norm);
                }
            }
            let (inputs, labels) = self.corpus.batch(BATCH, TIME, &mut random, &device.clone().autodiff());
            let (logits, balance, _) = model.run(inputs);
            let loss = model.loss(logits, labels)? + balance;
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(rules.lr(step), model, gradients);
        }
        let model = model.valid();
        let bits = self.corpus.bits_per_byte(&model, self.validation, TIME, device);
        let (ids, _) = self.corpus.validation(8, TIME, device);
        let (_, _, routings) = model.run(ids);
        let load = ExpertLoad::of(routings.iter().map(|routing| &routing.assignment));
        Ok(Trained { bits, load })
    }
}
