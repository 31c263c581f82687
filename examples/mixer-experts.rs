//! Many dynamical systems at once: experts by family, a gate refitted without gradients, and when that is worse than
//! a single network.
//!
//! Nzoyem et al. 2025, arXiv 2502.05335. Environments are systems of three families (Lotka-Volterra, a damped pendulum,
//! van der Pol), each with parameters of its own, seen as a few trajectories. MixER with three experts is compared with
//! a single meta-learner of about as many weights, and with three experts under a softmax gate that gradients train; by
//! the error on new trajectories and on new systems. Then the same with systems of one family alone, where the paper
//! says that MixER is worse than the single meta-learner.
//!
//! ```text
//! cargo run --release -p gatekit-examples --example mixer-experts
//! ```
#![deny(missing_docs)]

#[path = "mixer-experts/systems.rs"]
mod systems;

use std::process::ExitCode;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use clap::Parser;
use gatekit::core::ModuleConfig;
use gatekit::core::probe::{HeatMap, LinePlot};
use gatekit::experts::mixer_experts::{
    AdaptationConfig, ContextTable, GateTraining, MixerError, MixerExpert, MixerField, MixerFieldConfig,
    MixerTrainer, MixerTrainingConfig, OdeSolver, adapt, environment_losses,
};
use gatekit_examples::{ExampleError, Experiment, Results, progress, say};
use systems::{Family, World};

/// A mixture of vector fields on systems of several families, and of one.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Outer steps of the training: 12 on the contexts and 12 on the model each
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(2..=10_000))]
    outer_steps: u64,
    /// Steps from one refit of the gate to the next
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=100))]
    gate_update_every: u64,
    /// Systems of a family; the run with a single family has three times as many
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(2..=64))]
    systems: u64,
    /// AdaBelief's rate
    #[arg(long, value_name = "RATE", default_value_t = 1e-2)]
    rate: f64,
    /// Time from one state of a trajectory to the next
    #[arg(long, value_name = "TIME", default_value_t = 0.1)]
    dt: f64,
}

/// Time steps of a trajectory.
const STEPS: usize = 20;
/// Trajectories of an environment to learn from, and to be judged by.
const TRAJECTORIES: usize = 4;
/// Width of the experts, and of the single network that has about as many weights as three of them.
const WIDTH: usize = 16;
const SINGLE_WIDTH: usize = 28;

/// The compared models: name, experts, width, and what trains the gate.
const MODELS: [(&str, usize, usize, GateTraining); 3] = [
    ("MixER", 3, WIDTH, GateTraining::LeastSquares),
    ("one GEPS", 1, SINGLE_WIDTH, GateTraining::LeastSquares),
    ("softmax gate", 3, WIDTH, GateTraining::GradientDescent),
];

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse()))
}

/// A trained model.
struct Trained {
    field: MixerField<MixerExpert>,
    contexts: ContextTable,
    gate_training: GateTraining,
    /// Loss by outer step.
    losses: Vec<f64>,
    /// The expert of every environment by outer step.
    choices: Vec<Vec<usize>>,
}

fn run(args: &Args) -> Result<(), ExampleError> {
    let experiment = &args.experiment;
    let device = experiment.device()?;
    let out = experiment.out_dir("mixer-experts")?;
    let per_family = experiment.steps(args.systems as usize, 3);
    let panels = [
        (
            "three families",
            vec![
                (Family::LotkaVolterra, per_family),
                (Family::Pendulum, per_family),
                (Family::VanDerPol, per_family),
            ],
        ),
        ("one family", vec![(Family::LotkaVolterra, 3 * per_family)]),
    ];
    for (panel, families) in panels {
        let mut results = Results::new();
        let mut curves =
            LinePlot::new(&format!("Training loss, {panel}, first seed"), "outer step", "mean squared error")
                .with_log_y(true);
        for seed in experiment.seeds() {
            let world = World::draw(&families, TRAJECTORIES, STEPS, args.dt, seed, &device);
            for model in MODELS {
                let trained = train(args, model, &world, seed, panel, &device)?;
                judge(model.0, &trained, &world, args, seed, &device, &mut results)?;
                if seed == experiment.seed {
                    let points = trained.losses.iter().enumerate().map(|(step, loss)| (step as f64, *loss));
                    curves = curves.with_series(model.0, points);
                    if panel == "three families" && model.0 == "MixER" {
                        choice_map(&trained, &world).write_svg(out.join("choices.svg"))?;
                    }
                }
            }
        }
        say(format!("{panel}: mean squared error of rollouts in units of each family's mean square:\n"));
        say(results.table());
        let slug = panel.replace(' ', "-");
        results.write_csv(out.join(format!("{slug}.csv")))?;
        results.write_json(out.join(format!("{slug}.json")))?;
        results
            .bar_plot(&format!("Error on new trajectories, {panel}"), "new trajectories")
            .write_svg(out.join(format!("{slug}.svg")))?;
        curves.write_svg(out.join(format!("loss-{slug}.svg")))?;
    }
    say(format!("Tables and plots are in {}", out.display()));
    Ok(())
}

fn failed(error: MixerError) -> ExampleError {
    match error {
        MixerError::Config(error) => error.into(),
        MixerError::Input(error) => error.into(),
        MixerError::Solve(error) => unreachable!("fixed steps always end: {error}"),
    }
}

fn train(
    args: &Args,
    (name, experts, width, gate_training): (&'static str, usize, usize, GateTraining),
    world: &World,
    seed: u64,
    panel: &str,
    device: &Device,
) -> Result<Trained, ExampleError> {
    device.seed(seed);
    let field = MixerFieldConfig::new(experts, 6).with_width(width).try_init(device)?.materialize();
    let outer_steps = args.experiment.steps(args.outer_steps as usize, 2);
    let config = MixerTrainingConfig::new(STEPS, args.dt)
        .with_outer_steps(outer_steps)
        .with_learning_rate(args.rate)
        .with_loss_contributors(world.environments() / 3)
        .with_gate_training(gate_training)
        .with_gate_update_every(args.gate_update_every as usize)
        .with_seed(seed);
    let mut trainer = MixerTrainer::new(field, world.training.clone(), &config, device).map_err(failed)?;
    let (mut losses, mut choices) = (Vec::new(), Vec::new());
    let bar = progress(outer_steps, &format!("{name}, {panel}"));
    for _ in 0..outer_steps {
        let step = trainer.outer_step().map_err(failed)?;
        losses.push(step.model_loss);
        choices.push(trainer.field().gate.choose(trainer.contexts().contexts.val()).experts().to_vec());
        bar.set_message(format!("loss {:.4}, {} refits", step.model_loss, step.gate.updated));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (field, contexts) = trainer.finish();
    Ok(Trained { field, contexts, gate_training, losses, choices })
}

/// The error of every environment on trajectories `[M, B, T, D]`.
fn errors(
    args: &Args,
    trained: &Trained,
    contexts: &ContextTable,
    observed: &Tensor<4>,
) -> Result<Vec<f64>, ExampleError> {
    let contexts = contexts.contexts.val();
    let solver = MixerTrainingConfig::new(STEPS, args.dt).solver()?;
    let start = observed.clone().narrow(2, 0, 1).squeeze_dim::<3>(2);
    let trajectory = match trained.gate_training {
        GateTraining::LeastSquares => trained.field.rollout(start, contexts, &solver),
        GateTraining::GradientDescent => solver.solve(&trained.field.bind_soft(contexts), start),
    };
    let trajectory = trajectory.map_err(|error| failed(error.into()))?;
    Ok(environment_losses(trajectory, observed.clone()).into_data().iter::<f64>().collect())
}

fn judge(
    name: &str,
    trained: &Trained,
    world: &World,
    args: &Args,
    seed: u64,
    device: &Device,
    results: &mut Results,
) -> Result<(), ExampleError> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    results.record(name, "seen", seed, mean(&errors(args, trained, &trained.contexts, &world.training)?));
    results.record(
        name,
        "new trajectories",
        seed,
        mean(&errors(args, trained, &trained.contexts, &world.test)?),
    );
    if trained.gate_training == GateTraining::LeastSquares {
        let config = AdaptationConfig { steps: args.experiment.steps(300, 10), learning_rate: args.rate };
        let solver = MixerTrainingConfig::new(STEPS, args.dt).solver()?;
        let new =
            adapt(&trained.field, world.new_training.clone(), &solver, &config, device).map_err(failed)?;
        results.record(
            name,
            "new systems",
            seed,
            mean(&errors(args, trained, &new.contexts, &world.new_test)?),
        );
    }
    // A single family makes every choice pure.
    if trained.field.num_experts() > 1 && world.names().windows(2).any(|pair| pair[0] != pair[1]) {
        let choices = trained.field.gate.choose(trained.contexts.contexts.val());
        results.record(name, "purity", seed, world.purity(choices.experts()));
    }
    Ok(())
}

/// The expert of every environment by outer step.
fn choice_map(trained: &Trained, world: &World) -> HeatMap {
    let stride = trained.choices.len().div_ceil(100).max(1);
    let shown: Vec<usize> = (0..trained.choices.len()).step_by(stride).collect();
    let rows = (0..world.environments())
        .map(|environment| shown.iter().map(|step| trained.choices[*step][environment] as f64).collect())
        .collect();
    HeatMap::new("The gate's choice, first seed", "outer step", "system", "expert", rows)
        .with_row_labels(world.names())
        .with_column_values(shown.into_iter().map(|step| step as f64))
}
