//! The gate of a soft "last write wins": every step is weighed against all that come after it.

use burn::tensor::Tensor;

use crate::common::widen;
use crate::decay::log_sigmoid_stable;

/// `G_i = sigmoid(z_i) prod_{j > i} (1 - sigmoid(z_j))` along the last axis.
///
/// `logits` `[.., steps]` to `[.., steps]`, values in (0, 1). A step writes with its own gate, and
/// every later step that writes takes a share of that away: the gates of all steps and the share
/// `prod_j (1 - sigmoid(z_j))` that nobody took add up to 1. With logits near 0 the weights fall by
/// half a step towards the past; a step with a very negative logit is skipped and costs the others
/// nothing. It is what the selective scan of Mamba with `A = -1` and exact discretisation gives
/// each step in its last state (Li et al., arXiv 2510.00399, section 3).
///
/// Computed by [`selective_log_gate`]; the result is float32 for half-precision logits.
///
/// # Panics
///
/// When there is no step.
pub fn selective_gate<const D: usize>(logits: Tensor<D>) -> Tensor<D> {
    selective_log_gate(logits).exp()
}

/// `log G_i = log sigmoid(z_i) + sum_{j > i} log sigmoid(-z_j)` along the last axis: the logarithm
/// of [`selective_gate`], accurate where the gate itself is too small for its type.
///
/// Shapes, result type and panics as there.
pub fn selective_log_gate<const D: usize>(logits: Tensor<D>) -> Tensor<D> {
    let dims = logits.dims();
    let (axis, steps) = (D - 1, dims[D - 1]);
    assert!(steps > 0, "selective_gate: `logits` has no step, shape {dims:?}");
    let logits = widen(logits);
    let opens = log_sigmoid_stable(logits.clone());
    if steps == 1 {
        return opens;
    }
    // Summed from the last step backwards: the total minus a prefix would cancel.
    let closes = log_sigmoid_stable(logits.neg()).narrow(axis, 1, steps - 1);
    let later = closes.flip([axis]).cumsum(axis).flip([axis]);
    let mut last = dims;
    last[axis] = 1;
    let nothing_later = Tensor::zeros(last, (&later.device(), later.dtype()));
    opens + Tensor::cat(vec![later, nothing_later], axis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

    fn by_hand(logits: &[f64]) -> Vec<f64> {
        let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
        (0..logits.len())
            .map(|i| logits[i + 1..].iter().fold(sigmoid(logits[i]), |gate, z| gate * sigmoid(-z)))
            .collect()
    }

    #[test]
    fn matches_the_product_of_gates() {
        let logits = ramp(14, 3.0);
        let expected: Vec<f64> = logits.chunks(7).flat_map(by_hand).collect();
        for device in devices() {
            assert_close(&values(selective_gate(float32(&logits, [2, 7], &device))), &expected, 1e-6);
            assert_close(&values(selective_gate(float64(&logits, [2, 7], &device))), &expected, 1e-14);
            let single = float64(&logits, [14, 1], &device);
            let sigmoid: Vec<f64> = logits.iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect();
            assert_close(&values(selective_gate(single)), &sigmoid, 1e-14);
        }
    }

    #[test]
    fn gates_and_what_nobody_took_add_up_to_one() {
        for device in devices() {
            for amplitude in [0.1, 5.0, 200.0] {
                let logits = float64(&ramp(40, amplitude), [40], &device);
                let rest = log_sigmoid_stable(logits.clone().neg()).sum().exp();
                assert_close(&values(selective_gate(logits).sum() + rest), &[1.0], 1e-12);
            }
        }
    }

    #[test]
    fn logarithms_stay_accurate_where_the_gate_is_zero_in_float32() {
        // The products are near e^-900; the last steps hardly take anything.
        let logits = [-3.0, 300.0, 300.0, 300.0, -20.0, -20.0];
        let expected = [-903.048_587_351_573_7, -600.0, -300.0, 0.0, -20.0, -20.0];
        for device in devices() {
            let got = values(selective_log_gate(float32(&logits, [6], &device)));
            assert_close(&got, &expected, 1e-6);
            // What is left of the sum for the fourth step: the two small gates after it.
            assert!((got[3] + 2.0 * (-20f64).exp()).abs() < 1e-14, "{}", got[3]);
        }
    }

    #[test]
    fn gradients_match_finite_differences_also_at_closed_and_open_gates() {
        let logits = [-100.0, 0.0, 0.5, 100.0, -30.0, 2.0, -1.0, 0.0];
        for device in devices() {
            let weights = float64(&ramp(8, 1.3), [2, 4], &device);
            check_gradients(&logits, [2, 4], &device, |z| selective_gate(z) * weights.clone());
            check_gradients(&logits, [2, 4], &device, |z| selective_log_gate(z) * weights.clone());
        }
    }

    #[test]
    #[should_panic(expected = "has no step")]
    fn no_step_panics() {
        selective_gate(Tensor::<2>::zeros([2, 0], &devices().remove(0)));
    }
}
