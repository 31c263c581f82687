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

/// Records the milliseconds of the fastest of `repeats` forward passes of either way by number of experts (others meet
/// whatever else the machine does), and how far the results differ.
pub fn measure(tokens: usize, repeats: usize, device: &Device) -> Result<(Results, f64), ExampleError> {
    let (mut results, mut difference) = (Results::new(), 0.0f64);
    device.seed(0);
    for experts in COUNTS {
        let layer = MoeLayerConfig::new(WIDTH, INNER)
            .with_num_experts(experts)
            .with_num_experts_per_tok(CHOSEN)
            .try_init(device)?;
        let x = Tensor::<2>::random([tokens, WIDTH], Distribution::Normal(0.0, 1.0), device);
        let routing = layer.gate.route(x.clone(), &RouterInputs::default(), Phase::Inference)?;
        let capacity = Capacity::new(CAPACITY, Priority::Token)?;
        let slots = capacity.slots(&routing.assignment);
        let kept = capacity.apply(routing.assignment.clone(), &[]);
        let weights: Vec<f32> = routing.weights.to_data().iter::<f32>().collect();
        let (mut sorted, mut masked) = (Vec::new(), Vec::new());
        // Taking turns, so that both meet the same neighbours on the machine; the first turn warms up.
        for turn in 0..=repeats {
            let start = Instant::now();
            let plan = DispatchPlan::new(&kept);
            let outputs = layer.experts.forward(plan.gather(x.clone()), plan.offsets());
            let y = plan.scatter_combine(outputs, routing.weights.clone());
            device.sync().ok();
            let by_sorting = start.elapsed().as_secs_f64() * 1e3;
            let start = Instant::now();
            let reference = through_masks(&layer.experts, &x, &kept, &weights, slots);
            device.sync().ok();
            let by_masks = start.elapsed().as_secs_f64() * 1e3;
            if turn == 0 {
                difference = difference.max((y - reference).abs().max().into_scalar::<f64>());
            } else {
                sorted.push(by_sorting);
                masked.push(by_masks);
            }
        }
        let metric = format!("E = {experts}");
        results.record(SORTED, &metric, 0, fastest(&sorted));
        results.record(MASKED, &metric, 0, fastest(&masked));
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

fn fastest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}
