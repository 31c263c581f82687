//! How a gate is applied, and gates that are more than an activation.

use burn::tensor::Tensor;
use gatekit_kernels::gate::gated_product;

use super::activation::{GateActivation, sigmoid};
use crate::common::{assert_broadcasts, widen};

/// `g = lb + (1 - lb) sigmoid(z)`: a gate that never closes below `lb`.
///
/// `logits` `[..]`, `lower_bound` in [0, 1), of a shape that broadcasts onto the logits. HGRN
/// (arXiv 2311.04823), eq. 4. For recurrences take its logarithm from
/// [`lower_bounded_log_gate`](crate::decay::lower_bounded_log_gate), which is exact for small gates.
///
/// # Panics
///
/// When the shapes do not broadcast.
pub fn lower_bounded_gate<const D: usize>(logits: Tensor<D>, lower_bound: Tensor<D>) -> Tensor<D> {
    assert_broadcasts("lower_bounded_gate", ("lower_bound", lower_bound.dims()), ("logits", logits.dims()));
    let open = lower_bound.clone().neg().add_scalar(1.0);
    lower_bound + open * sigmoid(logits)
}

/// A gate of exactly 0 or 1, `g = 1 where z > 0`, that is trained as if it were `sigmoid(z)`.
///
/// The straight-through estimator (Bengio et al., arXiv 1308.3432): the value is hard, the gradient
/// that of the sigmoid.
pub fn hard_gate<const D: usize>(logits: Tensor<D>) -> Tensor<D> {
    harden(logits.clone(), sigmoid(logits))
}

/// `g = sigmoid((z + noise) / temperature)`: a random gate that gradients pass (Gumbel-sigmoid).
///
/// `logits` and `noise` `[..]` of one shape. The noise is logistic, the difference of two Gumbel
/// variables (see [`logistic_noise`]); then `g > 1/2` with probability `sigmoid(z)`. With `hard` the
/// value is 0 or 1 and the gradient that of the soft gate (straight-through). Without noise (zeros)
/// it is the deterministic gate used after training. Maddison et al. (arXiv 1611.00712), app. B;
/// Jang et al. (arXiv 1611.01144).
///
/// # Panics
///
/// When the shapes differ, or unless `temperature > 0`.
pub fn gumbel_sigmoid<const D: usize>(
    logits: Tensor<D>,
    noise: Tensor<D>,
    temperature: f64,
    hard: bool,
) -> Tensor<D> {
    assert!(
        logits.dims() == noise.dims(),
        "gumbel_sigmoid: `noise` {:?} is not of the shape of `logits` {:?}",
        noise.dims(),
        logits.dims()
    );
    assert!(temperature > 0.0, "gumbel_sigmoid: `temperature` {temperature} must be above 0");
    let shifted = (logits + noise).div_scalar(temperature);
    let soft = sigmoid(shifted.clone());
    if hard { harden(shifted, soft) } else { soft }
}

/// Logistic noise `log u - log(1 - u)` from uniform numbers `u` in [0, 1].
///
/// `u` is held within `[1e-7, 1 - 1e-7]`, so the noise lies within about ±16.
pub fn logistic_noise<const D: usize>(uniform: Tensor<D>) -> Tensor<D> {
    let u = widen(uniform).clamp(1e-7, 1.0 - 1e-7);
    u.clone().log() - u.neg().log1p()
}

/// The step of `z > 0` with the gradient of `soft`. The soft values cancel exactly, so the result
/// is exactly 0 or 1 (a sum in another order would round).
fn harden<const D: usize>(logits: Tensor<D>, soft: Tensor<D>) -> Tensor<D> {
    let step = logits.detach().greater_elem(0.0).float().cast(soft.dtype());
    (soft.clone() - soft.detach()) + step
}

/// `y = x * act(logits)`.
///
/// `x` `[..]`; `logits` broadcast onto `x` (`[.., heads, 1]` gates whole heads).
///
/// # Panics
///
/// When the shapes do not broadcast.
pub fn output_gate<const D: usize>(x: Tensor<D>, logits: Tensor<D>, activation: GateActivation) -> Tensor<D> {
    assert_broadcasts("output_gate", ("logits", logits.dims()), ("x", x.dims()));
    match activation.fused() {
        Some(activation) if logits.dims() == x.dims() => gated_product(x, logits, activation),
        _ => x * activation.apply(logits),
    }
}

/// `y = gate * a + (1 - gate) * b`, exactly `a` at gate 1 and exactly `b` at gate 0 (finite inputs).
///
/// `a` and `b` of one shape, `gate` broadcasts onto it.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn convex_mix<const D: usize>(gate: Tensor<D>, a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    assert!(a.dims() == b.dims(), "convex_mix: `a` {:?} and `b` {:?} differ in shape", a.dims(), b.dims());
    assert_broadcasts("convex_mix", ("gate", gate.dims()), ("a", a.dims()));
    let rest = gate.clone().neg().add_scalar(1.0);
    gate * a + rest * b
}

/// `y = t * transformed + (1 - t) * x` with the transform gate `t = sigmoid(logits)`.
///
/// The carry gate is computed as `sigmoid(-logits)`: `1 - t` would round away when `t` is near 1.
/// Srivastava et al., "Highway Networks" (arXiv 1505.00387), eq. 3.
///
/// # Panics
///
/// When `x` and `transformed` differ in shape or the logits do not broadcast onto them.
pub fn highway<const D: usize>(x: Tensor<D>, transformed: Tensor<D>, logits: Tensor<D>) -> Tensor<D> {
    assert!(
        x.dims() == transformed.dims(),
        "highway: `x` {:?} and `transformed` {:?} differ in shape",
        x.dims(),
        transformed.dims()
    );
    assert_broadcasts("highway", ("logits", logits.dims()), ("x", x.dims()));
    transformed * sigmoid(logits.clone()) + x * sigmoid(logits.neg())
}

/// `y = x + act(logits) * update`: a residual connection that the gate can switch off.
///
/// # Panics
///
/// When `x` and `update` differ in shape or the logits do not broadcast onto them.
pub fn gated_residual<const D: usize>(
    x: Tensor<D>,
    update: Tensor<D>,
    logits: Tensor<D>,
    activation: GateActivation,
) -> Tensor<D> {
    assert!(
        x.dims() == update.dims(),
        "gated_residual: `x` {:?} and `update` {:?} differ in shape",
        x.dims(),
        update.dims()
    );
    x + output_gate(update, logits, activation)
}
