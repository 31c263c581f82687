//! Forget gates of recurrences, given as logarithms: `exp(log_gate)` multiplies the state.
//!
//! A log gate is never positive. The forms here stay accurate where the gate is almost 1 (slow
//! forgetting) and keep finite values and gradients where it is almost 0.

use burn::tensor::{DType, Device, Tensor, TensorData, activation};
use gatekit_kernels::gate::log_sigmoid_scaled;

use crate::common::{assert_broadcasts, widen};
use crate::gate::sigmoid;

/// `log(sigmoid(z)) = min(z, 0) - log1p(exp(-|z|))`, element by element; half precision in float32.
pub fn log_sigmoid_stable<const D: usize>(logits: Tensor<D>) -> Tensor<D> {
    log_sigmoid_scaled(logits, 1.0, None)
}

/// `softplus(z) = log(1 + exp(z)) = max(z, 0) + log1p(exp(-|z|))`, element by element; half
/// precision in float32.
pub fn softplus_stable<const D: usize>(z: Tensor<D>) -> Tensor<D> {
    log_sigmoid_stable(z.neg()).neg()
}

/// `g = max(logsigmoid(z) / normalizer, floor)`: the forget gate of Gated Linear Attention.
///
/// `logits` `[..]`. The normalizer (16 in the paper) makes forgetting slow: at logit 0 the gate is
/// `0.5^(1/16) = 0.958`. `floor`, if given, bounds the log gate from below; the gradient is zero
/// under it. The result is float32 for half-precision logits: decays are summed over time.
/// Yang et al. (arXiv 2312.06635), section 4.4.
///
/// # Panics
///
/// Unless `normalizer > 0` and `floor <= 0`.
pub fn log_sigmoid_gate<const D: usize>(logits: Tensor<D>, normalizer: f64, floor: Option<f64>) -> Tensor<D> {
    assert!(normalizer > 0.0, "log_sigmoid_gate: `normalizer` {normalizer} must be above 0");
    if let Some(floor) = floor {
        assert!(floor <= 0.0, "log_sigmoid_gate: `floor` {floor} must not be above 0");
    }
    log_sigmoid_scaled(widen(logits), normalizer, floor)
}

/// `g = log(lb + (1 - lb) sigmoid(z))`: the lower-bounded forget gate of HGRN and HGRN2.
///
/// `logits` `[..]`; `lower_bound` in [0, 1), of a shape that broadcasts onto the logits. With
/// `e = exp(-|z|)` it is `-log1p((1 - lb) e / (1 + lb e))` for `z >= 0` and `log(e + lb) - log1p(e)`
/// for `z < 0`: the value of `logaddexp(log lb, log1p(-lb) + logsigmoid z)` without its cancellation
/// near a gate of 1, and defined for a bound of 0 too (there `exp(g)` is held at the smallest normal
/// number of its type, `g >= -87.3` in float32). The result is float32 for half-precision logits.
/// Qin et al., HGRN (arXiv 2311.04823), eq. 4; HGRN2 (arXiv 2404.07904).
///
/// The matching write gate `1 - exp(g)` is `(1 - lb) sigmoid(-z)`, see [`lower_bounded_write_gate`].
///
/// # Panics
///
/// When the bound does not broadcast onto the logits. In debug builds also when a bound lies outside
/// [0, 1).
pub fn lower_bounded_log_gate<const D: usize>(logits: Tensor<D>, lower_bound: Tensor<D>) -> Tensor<D> {
    let bound = checked_bound("lower_bounded_log_gate", &logits, lower_bound);
    let z = widen(logits);
    let smallest = if z.dtype() == DType::F64 { f64::MIN_POSITIVE } else { f64::from(f32::MIN_POSITIVE) };
    // |z| whose derivative at 0 is 1 and not 0, so that both branches keep theirs.
    let negative = z.clone().lower_elem(0.0);
    let magnitude = z.clone().mask_where(negative.clone(), z.neg());
    let e = magnitude.neg().exp();
    let open =
        (e.clone() * bound.clone().neg().add_scalar(1.0)) / (e.clone() * bound.clone()).add_scalar(1.0);
    let closing = (e.clone() + bound).clamp_min(smallest).log() - e.log1p();
    open.log1p().neg().mask_where(negative, closing)
}

/// `1 - exp(g) = (1 - lb) sigmoid(-z)`: what HGRN writes with, without subtracting from 1.
///
/// Shapes, result type and panics as [`lower_bounded_log_gate`].
pub fn lower_bounded_write_gate<const D: usize>(logits: Tensor<D>, lower_bound: Tensor<D>) -> Tensor<D> {
    let bound = checked_bound("lower_bounded_write_gate", &logits, lower_bound);
    sigmoid(widen(logits).neg()) * bound.neg().add_scalar(1.0)
}

/// Lower bounds that grow with depth, `[layers, dim]` to `[layers, dim]`.
///
/// `p = softmax(raw)` over layers, bound of layer l `= sum_{m <= l} p_m - p_0`: exactly 0 in layer 0
/// and below 1 everywhere. HGRN (arXiv 2311.04823), section 3.2.
pub fn lower_bounds(raw: Tensor<2>) -> Tensor<2> {
    let shares = activation::softmax(widen(raw), 0);
    let first = shares.clone().narrow(0, 0, 1);
    shares.cumsum(0) - first
}

/// `g = -exp(A_log) softplus(z + dt_bias)` per key channel: the decay gate of Kimi Delta Attention.
///
/// `z` `[batch, time, heads, key]`, `a_log` `[heads]`, `dt_bias` `[heads * key]`. The result is
/// float32 for half-precision inputs. Kimi Linear (arXiv 2510.26692), released code.
///
/// # Panics
///
/// When the sizes do not fit.
pub fn softplus_decay(z: Tensor<4>, a_log: Tensor<1>, dt_bias: Option<Tensor<1>>) -> Tensor<4> {
    let (z, rate) = biased("softplus_decay", z, a_log, dt_bias);
    softplus_stable(z) * rate.neg()
}

/// `g = lower_bound * sigmoid(exp(A_log) (z + dt_bias))` per key channel: the bounded decay gate of
/// Kimi Delta Attention; every log gate lies in `(lower_bound, 0)`.
///
/// Shapes and result type as [`softplus_decay`]; `lower_bound` below 0 (flash-linear-attention: -5).
///
/// # Panics
///
/// When the sizes do not fit, or unless `lower_bound < 0`.
pub fn bounded_decay(
    z: Tensor<4>,
    a_log: Tensor<1>,
    dt_bias: Option<Tensor<1>>,
    lower_bound: f64,
) -> Tensor<4> {
    assert!(lower_bound < 0.0, "bounded_decay: `lower_bound` {lower_bound} must be below 0");
    let (z, rate) = biased("bounded_decay", z, a_log, dt_bias);
    sigmoid(z * rate).mul_scalar(lower_bound)
}

/// `g = -exp(A_log) softplus(z + dt_bias)` per head: the decay gate of the gated delta rule and Mamba-2.
///
/// `z` `[batch, time, heads]`, `a_log` and `dt_bias` `[heads]`. The result is float32 for
/// half-precision inputs. Gated DeltaNet (arXiv 2412.06464), released code.
///
/// # Panics
///
/// When the sizes do not fit.
pub fn softplus_decay_per_head(z: Tensor<3>, a_log: Tensor<1>, dt_bias: Option<Tensor<1>>) -> Tensor<3> {
    softplus_decay(z.unsqueeze_dim(3), a_log, dt_bias).squeeze_dim(3)
}

/// `g_h = log(1 - 2^(-5 - h))` for head h = 0, 1, ..: the fixed decays of retention, `[heads]`.
///
/// From -0.0317 (a memory of about 32 steps) towards 0, doubling the memory with each head.
/// RetNet (arXiv 2307.08621), eq. 8 (its gamma).
pub fn retention_log_decay(heads: usize, device: &Device) -> Tensor<1> {
    let decays: Vec<f64> = (0..heads).map(|head| (-(2f64.powi(-5 - head as i32))).ln_1p()).collect();
    Tensor::from_data(TensorData::new(decays, [heads]), device)
}

/// `z + dt_bias` and `exp(A_log)` `[1, 1, heads, 1]`, both in at least float32.
fn biased(
    function: &str,
    z: Tensor<4>,
    a_log: Tensor<1>,
    dt_bias: Option<Tensor<1>>,
) -> (Tensor<4>, Tensor<4>) {
    let [_, _, heads, key] = z.dims();
    assert!(
        a_log.dims() == [heads],
        "{function}: `a_log` {:?} does not give one rate for each head of `z` {:?}",
        a_log.dims(),
        z.dims()
    );
    let mut z = widen(z);
    if let Some(bias) = dt_bias {
        assert!(
            bias.dims() == [heads * key],
            "{function}: `dt_bias` {:?} does not give one value for each channel of `z` {:?}",
            bias.dims(),
            z.dims()
        );
        z = z + widen(bias).reshape([1, 1, heads, key]);
    }
    (z, widen(a_log).exp().reshape([1, 1, heads, 1]))
}

fn checked_bound<const D: usize>(function: &str, logits: &Tensor<D>, lower_bound: Tensor<D>) -> Tensor<D> {
    assert_broadcasts(function, ("lower_bound", lower_bound.dims()), ("logits", logits.dims()));
    if cfg!(debug_assertions) {
        let outside = lower_bound.to_data().iter::<f64>().find(|bound| !(0.0..1.0).contains(bound));
        assert!(outside.is_none(), "{function}: `lower_bound` holds {outside:?}, outside [0, 1)");
    }
    widen(lower_bound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

    const LOGITS: [f64; 11] = [-100.0, -80.0, -20.0, -3.0, -0.5, 0.0, 0.5, 3.0, 20.0, 80.0, 100.0];

    fn log_sigmoid(z: f64) -> f64 {
        z.min(0.0) - (-z.abs()).exp().ln_1p()
    }

    fn bounded(z: f64, bound: f64) -> f64 {
        if bound == 0.0 {
            return log_sigmoid(z);
        }
        // -log1p of the odds that the gate is closed: no cancellation on either side.
        -((1.0 - bound) / (z.exp() + bound)).ln_1p()
    }

    /// Relative accuracy, also of tiny values.
    #[track_caller]
    fn assert_relative(got: &[f64], expected: &[f64], tolerance: f64) {
        for (got, expected) in got.iter().zip(expected) {
            assert!(
                (got - expected).abs() <= tolerance * expected.abs() + 1e-37,
                "got {got}, expected {expected}"
            );
        }
    }

    #[test]
    fn log_sigmoid_is_accurate_on_both_sides() {
        let expected: Vec<f64> = LOGITS.iter().map(|z| log_sigmoid(*z)).collect();
        for device in devices() {
            assert_relative(&values(log_sigmoid_stable(float32(&LOGITS, [11], &device))), &expected, 1e-6);
            assert_relative(&values(log_sigmoid_stable(float64(&LOGITS, [11], &device))), &expected, 1e-14);
            let mirrored: Vec<f64> = LOGITS.iter().map(|z| -log_sigmoid(-z)).collect();
            assert_relative(&values(softplus_stable(float32(&LOGITS, [11], &device))), &mirrored, 1e-6);
        }
    }

    #[test]
    fn gate_of_gla_is_normalised_and_floored() {
        for device in devices() {
            let z = float32(&LOGITS, [11], &device);
            let expected: Vec<f64> = LOGITS.iter().map(|z| (log_sigmoid(*z) / 16.0).max(-1.0)).collect();
            assert_relative(&values(log_sigmoid_gate(z.clone(), 16.0, Some(-1.0))), &expected, 1e-6);
            let free: Vec<f64> = LOGITS.iter().map(|z| log_sigmoid(*z) / 16.0).collect();
            assert_relative(&values(log_sigmoid_gate(z, 16.0, None)), &free, 1e-6);
        }
    }

    #[test]
    fn lower_bounded_gate_is_accurate_on_both_sides() {
        for device in devices() {
            for bound in [0.0, 1e-6, 0.1, 0.5, 0.999] {
                let expected: Vec<f64> = LOGITS.iter().map(|z| bounded(*z, bound)).collect();
                let exact =
                    lower_bounded_log_gate(float64(&LOGITS, [11], &device), float64(&[bound], [1], &device));
                assert_relative(&values(exact), &expected, 1e-11);
                let single = values(lower_bounded_log_gate(
                    float32(&LOGITS, [11], &device),
                    float32(&[bound], [1], &device),
                ));
                // A bound of 0 ends at the smallest normal gate, e^-87.3 in float32.
                let floor = f64::from(f32::MIN_POSITIVE).ln();
                let floored: Vec<f64> = expected.iter().map(|g| g.max(floor)).collect();
                assert_relative(&single, &floored, if bound > 0.9 { 1e-4 } else { 2e-6 });

                let written: Vec<f64> = LOGITS.iter().map(|z| (1.0 - bound) / (1.0 + z.exp())).collect();
                let write = lower_bounded_write_gate(
                    float64(&LOGITS, [11], &device),
                    float64(&[bound], [1], &device),
                );
                assert_relative(&values(write), &written, 1e-12);
            }
        }
    }

    #[test]
    fn gradients_match_finite_differences_at_extremes_and_at_zero() {
        for device in devices() {
            check_gradients(&LOGITS, [11], &device, log_sigmoid_stable);
            check_gradients(&LOGITS, [11], &device, softplus_stable);
            check_gradients(&LOGITS, [11], &device, |z| log_sigmoid_gate(z, 16.0, None));
            check_gradients(&LOGITS, [11], &device, |z| log_sigmoid_gate(z, 2.0, Some(-5.0)));
            for bound in [0.0, 1e-3, 0.5, 0.99] {
                let bound = float64(&[bound], [1], &device);
                check_gradients(&LOGITS, [11], &device, |z| lower_bounded_log_gate(z, bound.clone()));
                check_gradients(&LOGITS, [11], &device, |z| lower_bounded_write_gate(z, bound.clone()));
            }
            // With respect to the bound.
            let z = float64(&[-100.0, 0.0, 100.0, 1.0], [4], &device);
            check_gradients(&[0.1, 0.5, 0.9, 0.3], [4], &device, |bound| {
                lower_bounded_log_gate(z.clone(), bound)
            });
        }
    }

    #[test]
    fn gradients_are_finite_in_float32_at_a_bound_of_zero() {
        for device in devices() {
            let device = device.autodiff();
            let z = float32(&[-1e4, -100.0, -88.0, 0.0, 88.0, 1e4], [6], &device).require_grad();
            let bound = float32(&[0.0], [1], &device).require_grad();
            let gate = lower_bounded_log_gate(z.clone(), bound.clone());
            assert!(values(gate.clone()).iter().all(|g| g.is_finite() && *g <= 0.0));
            let gradients = gate.sum().backward();
            assert!(values(z.grad(&gradients).unwrap()).iter().all(|g| g.is_finite()));
            assert!(values(bound.grad(&gradients).unwrap()).iter().all(|g| !g.is_nan()));
        }
    }

    #[test]
    fn decay_gates_match_their_equations() {
        let (z, a, bias) = (ramp(2 * 3 * 2 * 2, 4.0), ramp(2, 1.0), ramp(4, 2.0));
        let each = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
            (0..24).map(|i| f(z[i] + bias[i % 4], a[i / 2 % 2].exp())).collect()
        };
        for device in devices() {
            let z_tensor = || float32(&z, [2, 3, 2, 2], &device);
            let (a_tensor, bias_tensor) = (float32(&a, [2], &device), float32(&bias, [4], &device));
            assert_close(
                &values(softplus_decay(z_tensor(), a_tensor.clone(), Some(bias_tensor.clone()))),
                &each(&|z, rate| rate * log_sigmoid(-z)),
                1e-6,
            );
            assert_close(
                &values(bounded_decay(z_tensor(), a_tensor.clone(), Some(bias_tensor), -5.0)),
                &each(&|z, rate| -5.0 / (1.0 + (-rate * z).exp())),
                2e-6,
            );
            let per_head: Vec<f64> =
                (0..24).map(|i| a[i % 2].exp() * log_sigmoid(-(z[i] + [0.5, -1.0][i % 2]))).collect();
            let head_bias = float32(&[0.5, -1.0], [2], &device);
            let z_heads = float32(&z, [4, 3, 2], &device);
            assert_close(
                &values(softplus_decay_per_head(z_heads.clone(), a_tensor.clone(), Some(head_bias))),
                &per_head,
                1e-6,
            );
            let unbiased: Vec<f64> = (0..24).map(|i| a[i % 2].exp() * log_sigmoid(-z[i])).collect();
            assert_close(&values(softplus_decay_per_head(z_heads, a_tensor, None)), &unbiased, 1e-6);
        }
    }

    #[test]
    fn gradients_of_decay_gates_match_finite_differences() {
        for device in devices() {
            let a = float64(&[0.3, -0.7], [2], &device);
            let z: Vec<f64> = [-100.0, -1.0, 0.0, 0.4, 2.0, 100.0, 0.0, 5.0].to_vec();
            check_gradients(&z, [1, 2, 2, 2], &device, |z| softplus_decay(z, a.clone(), None));
            check_gradients(&z, [1, 2, 2, 2], &device, |z| bounded_decay(z, a.clone(), None, -5.0));
            let z = float64(&z, [1, 2, 2, 2], &device);
            check_gradients(&[0.3, -0.7], [2], &device, |a| softplus_decay(z.clone(), a, None));
            let moderate = float64(&ramp(8, 2.0), [1, 2, 2, 2], &device);
            check_gradients(&[0.3, -0.7], [2], &device, |a| bounded_decay(moderate.clone(), a, None, -5.0));
            check_gradients(&ramp(4, 1.0), [4], &device, |bias| {
                softplus_decay(z.clone(), a.clone(), Some(bias))
            });
        }
    }

    #[test]
    fn retention_decays_double_the_memory_from_head_to_head() {
        for device in devices() {
            let expected: Vec<f64> = (0..8).map(|head| (1.0 - 2f64.powi(-5 - head)).ln()).collect();
            assert_relative(&values(retention_log_decay(8, &device)), &expected, 1e-6);
        }
    }

    #[test]
    fn lower_bounds_grow_with_depth_from_zero() {
        let raw = ramp(12, 2.0);
        let mut expected = vec![0.0; 12];
        for column in 0..3 {
            let weights: Vec<f64> = (0..4).map(|layer| raw[layer * 3 + column].exp()).collect();
            let total: f64 = weights.iter().sum();
            for layer in 1..4 {
                expected[layer * 3 + column] = expected[(layer - 1) * 3 + column] + weights[layer] / total;
            }
        }
        for device in devices() {
            let bounds = values(lower_bounds(float32(&raw, [4, 3], &device)));
            assert_close(&bounds, &expected, 1e-6);
            assert_eq!(bounds[..3], [0.0; 3]);
            let weight = float64(&ramp(12, 1.0), [4, 3], &device);
            check_gradients(&raw, [4, 3], &device, |raw| lower_bounds(raw) * weight.clone());
        }
    }

    #[test]
    #[should_panic(expected = "outside [0, 1)")]
    fn bound_of_one_panics_in_debug_builds() {
        let device = devices().remove(0);
        lower_bounded_log_gate(Tensor::<1>::zeros([2], &device), Tensor::ones([2], &device));
    }

    #[test]
    #[should_panic(expected = "`a_log` [3] does not give one rate for each head of `z` [1, 1, 2, 2]")]
    fn sizes_are_checked() {
        let device = devices().remove(0);
        softplus_decay(Tensor::zeros([1, 1, 2, 2], &device), Tensor::zeros([3], &device), None);
    }
}
