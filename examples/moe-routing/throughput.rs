//! Two ways to send tokens to their experts, timed side by side: sorted by expert, and through dense masks.

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor, TensorData, activation::silu};
use gatekit::core::ModuleConfig;
use gatekit::core::dispatch::{Capacity, DispatchPlan, Priority};
use gatekit::core::moe::{MoeLayerConfig, SwiGluExperts};
use gatekit::core::router::{Assignment, Phase, RouterInputs};
use gatekit_examples::{ExampleError, Results};

/// Expert counts.
pub const COUNTS: [usize; 5] = [4, 8, 16, 32, 64];
const CHOSEN: usize = 2;
const WIDTH: usize = 64;
const INNER: usize = 64;
/// GShard's capacity factor.
const CAPACITY: f64 = 1.25;

/// The two ways.
pub const SORTED: &str = "sort and group";
/// GShard's einsums.
pub const MASKED: &str = "dense [N, E, C] masks";

/// One number of experts, ready to be timed.
struct Setting {
    experts: SwiGluExperts,
    x: Tensor<2>,
    kept: Assignment,
    weights: Tensor<2>,
    values: Vec<f32>,
    slots: usize,
    /// Milliseconds of every turn, either way.
    times: [Vec<f64>; 2],
}

impl Setting {
    fn new(tokens: usize, experts: usize, device: &Device) -> Result<Self, ExampleError> {
        let layer = MoeLayerConfig::new(WIDTH, INNER)
            .with_num_experts(experts)
            .with_num_experts_per_tok(CHOSEN)
            .try_init(device)?;
        let x = Tensor::<2>::random([tokens, WIDTH], Distribution::Normal(0.0, 1.0), device);
        let routing = layer.gate.route(x.clone(), &RouterInputs::default(), Phase::Inference)?;
        let capacity = Capacity::new(CAPACITY, Priority::Token)?;
        let slots = capacity.slots(&routing.assignment);
        Ok(Self {
            experts: layer.experts,
            x,
            kept: capacity.apply(routing.assignment, &[]),
            values: routing.weights.to_data().iter::<f32>().collect(),
            weights: routing.weights,
            slots,
            times: [Vec::new(), Vec::new()],
        })
    }

    fn run(&self, way: usize) -> Tensor<2> {
        if way == 1 {
            return through_masks(&self.experts, &self.x, &self.kept, &self.values, self.slots);
        }
        let plan = DispatchPlan::new(&self.kept);
        let outputs = self.experts.forward(plan.gather(self.x.clone()), plan.offsets());
        plan.scatter_combine(outputs, self.weights.clone())
    }
}

/// Records the median milliseconds of `repeats` forward passes of either way by number of experts, and how far the
/// results differ.
///
/// All numbers of experts and both ways take turns, and who begins changes: whatever else the machine does for a while
/// meets all of them, and a median is not moved by a few slow turns.
pub fn measure(tokens: usize, repeats: usize, device: &Device) -> Result<(Results, f64), ExampleError> {
    device.seed(0);
    let settings = COUNTS.iter().map(|experts| Setting::new(tokens, *experts, device));
    let mut settings = settings.collect::<Result<Vec<_>, _>>()?;
    // Warms both up.
    let differences = settings.iter().map(|one| (one.run(0) - one.run(1)).abs().max().into_scalar::<f64>());
    let difference = differences.fold(0.0, f64::max);
    for turn in 0..repeats {
        for setting in &mut settings {
            for way in [turn % 2, 1 - turn % 2] {
                let start = Instant::now();
                let y = setting.run(way);
                device.sync().ok();
                setting.times[way].push(start.elapsed().as_secs_f64() * 1e3);
                drop(y);
            }
        }
    }
    let mut results = Results::new();
    for (experts, setting) in COUNTS.iter().zip(&mut settings) {
        for (name, times) in [SORTED, MASKED].iter().zip(&mut setting.times) {
            results.record(name, &format!("E = {experts}"), 0, median(times));
        }
    }
    Ok((results, difference))
}

/// `dispatch [E C, N]`, the experts on `[E, C, D]`, `combine [N, E C]`: every product counts the zeros in.
fn through_masks(
    experts: &SwiGluExperts,
    x: &Tensor<2>,
    kept: &Assignment,
    weights: &[f32],
    slots: usize,
) -> Tensor<2> {
    let (tokens, count, k) = (kept.tokens(), kept.num_experts(), kept.per_token());
    let columns = count * slots;
    let (mut dispatch, mut combine) = (vec![0.0f32; tokens * columns], vec![0.0f32; tokens * columns]);
    let mut taken = vec![0; count];
    for (slot, expert) in kept.experts().iter().enumerate().filter(|(slot, _)| kept.kept()[*slot]) {
        let place = slot / k * columns + expert * slots + taken[*expert];
        taken[*expert] += 1;
        dispatch[place] = 1.0;
        combine[place] = weights[slot];
    }
    let mask = |values| Tensor::<2>::from_data(TensorData::new(values, [tokens, columns]), &x.device());
    let sent = mask(dispatch).transpose().matmul(x.clone()).reshape([count, slots, WIDTH]);
    let inner = sent.matmul(experts.gate_up_proj.val().swap_dims(1, 2));
    let (gate, up) = (inner.clone().narrow(2, 0, INNER), inner.narrow(2, INNER, INNER));
    let outputs = (silu(gate) * up).matmul(experts.down_proj.val().swap_dims(1, 2));
    mask(combine).matmul(outputs.reshape([columns, WIDTH]))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
