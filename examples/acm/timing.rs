//! Measured time of gated execution against the full layer.

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor, TensorData};
use gatekit::core::ModuleConfig;
use gatekit::core::dispatch::PrefixPlan;
use gatekit::experts::acm::{Acm, AcmConfig, AcmMode};
use gatekit_examples::{ExampleError, Experiment, Results};
use rand::RngExt;
use rand::rngs::StdRng;

/// Budgets, in shares of all learners; 1 is every token with all of them, gated too.
pub const SHARES: [f64; 4] = [0.25, 0.5, 0.75, 1.0];

/// Times an MLP's module of `learners` learners over random choices of several budgets, in milliseconds, beside all
/// learners at once. The measurements take turns; of each the median counts.
pub fn measure(
    experiment: &Experiment,
    learners: usize,
    device: &Device,
    random: &mut StdRng,
    results: &mut Results,
) -> Result<(), ExampleError> {
    let (tokens, width, inner) =
        (experiment.steps(4096, 256), experiment.steps(512, 64), experiment.steps(2048, 256));
    let layer: Acm = AcmConfig::mlp(width, inner, learners).try_init(device)?;
    let x = Tensor::<3>::random([1, tokens, width], Distribution::Normal(0.0, 1.0), device);
    let plans = SHARES
        .map(|share| {
            let choices: Vec<i64> = (0..tokens).map(|_| binomial(learners, share, random)).collect();
            let choices =
                Tensor::<1, burn::tensor::Int>::from_data(TensorData::new(choices, [tokens]), device);
            PrefixPlan::from_tensor(&choices, learners)
        })
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    let rounds = experiment.steps(9, 2);
    let mut times = vec![Vec::new(); SHARES.len() + 2];
    for round in 0..=rounds {
        let mut clock = |index: usize, run: &dyn Fn() -> Tensor<3>| {
            let start = Instant::now();
            // Reading back waits for the computation.
            let _ = run().slice([0..1, 0..1, 0..1]).into_data();
            // The first round warms up.
            if round > 0 {
                times[index].push(start.elapsed().as_secs_f64() * 1e3);
            }
        };
        clock(0, &|| layer.forward(x.clone(), AcmMode::All).expect("all learners run").y);
        for (index, plan) in plans.iter().enumerate() {
            clock(index + 1, &|| {
                // The gate's own cost belongs to it, whatever it says.
                let gate = layer.gate_of(x.clone(), None, gatekit::core::router::Phase::Inference);
                let _ = gate.expect("there is a gate").choice.into_data();
                layer.learners.forward_chosen(x.clone(), plan)
            });
        }
        clock(SHARES.len() + 1, &|| layer.forward(x.clone(), AcmMode::Gated).expect("a gate is there").y);
    }
    let name = |what: &str| format!("{what}, N = {learners}");
    let mut record = |what: &str, times: &mut Vec<f64>, share: f64| {
        times.sort_by(f64::total_cmp);
        results.record(&name(what), "share of learners", 0, share);
        results.record(&name(what), "milliseconds", 0, times[times.len() / 2]);
    };
    record("all learners", &mut times[0], 1.0);
    for (index, plan) in plans.iter().enumerate() {
        let share = plan.executed() as f64 / (tokens * learners) as f64;
        record(&format!("{} of the budget", SHARES[index]), &mut times[index + 1], share);
    }
    Ok(())
}

/// Successes of `trials` independent trials.
pub fn binomial(trials: usize, probability: f64, random: &mut StdRng) -> i64 {
    (0..trials).map(|_| i64::from(random.random::<f64>() < probability)).sum()
}
