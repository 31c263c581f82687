//! A mix that keeps the power of what it mixes.

use burn::tensor::Tensor;

use crate::common::{assert_broadcasts, widen};
use crate::decay::log_sigmoid_stable;

/// `y = sqrt(1 - share) a + sqrt(share) b`, with a fixed share in [0, 1].
///
/// Of uncorrelated a and b with the same mean square the result has that mean square too, where a sum
/// grows and [`convex_mix`](super::convex_mix) shrinks. `a` and `b` of one shape. A shared expert is mixed
/// so with routed ones of equal power, at share 1/2 (SqrtGate, arXiv 2603.28743).
///
/// # Panics
///
/// When the shapes differ, or the share lies outside [0, 1].
pub fn power_mix<const D: usize>(share: f64, a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    assert!(a.dims() == b.dims(), "power_mix: `a` {:?} and `b` {:?} differ in shape", a.dims(), b.dims());
    assert!((0.0..=1.0).contains(&share), "power_mix: `share` {share} must lie in [0, 1]");
    a.mul_scalar((1.0 - share).sqrt()) + b.mul_scalar(share.sqrt())
}

/// [`power_mix`] with the share `sigmoid(logits)`, which data may decide.
///
/// `a` and `b` of one shape, `logits` broadcast onto them. The roots are computed as
/// `exp(log_sigmoid(±z) / 2)`, so their gradients stay finite where the gate closes.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn gated_power_mix<const D: usize>(logits: Tensor<D>, a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    assert!(
        a.dims() == b.dims(),
        "gated_power_mix: `a` {:?} and `b` {:?} differ in shape",
        a.dims(),
        b.dims()
    );
    assert_broadcasts("gated_power_mix", ("logits", logits.dims()), ("a", a.dims()));
    let dtype = a.dtype();
    let logits = widen(logits);
    let root = |logits: Tensor<D>| log_sigmoid_stable(logits).mul_scalar(0.5).exp();
    (widen(a) * root(logits.clone().neg()) + widen(b) * root(logits)).cast(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

    #[test]
    fn the_ends_are_exact_and_the_power_stays() {
        for device in devices() {
            let (a, b) = (float32(&ramp(8, 2.0), [2, 4], &device), float32(&ramp(8, -1.0), [2, 4], &device));
            assert_eq!(values(power_mix(0.0, a.clone(), b.clone())), values(a.clone()));
            assert_eq!(values(power_mix(1.0, a.clone(), b.clone())), values(b.clone()));
            let half = values((a.clone() + b.clone()) * 0.5f64.sqrt());
            assert_close(&values(power_mix(0.5, a, b)), &half, 1e-6);
            // Orthogonal parts of power 1.
            let a = float32(&[1.0, 1.0, 1.0, 1.0], [1, 4], &device);
            let b = float32(&[1.0, -1.0, 1.0, -1.0], [1, 4], &device);
            for share in [0.0, 0.1, 0.5, 0.9, 1.0] {
                let power = power_mix(share, a.clone(), b.clone()).square().mean();
                assert_close(&values(power), &[1.0], 1e-6);
            }
        }
    }

    #[test]
    fn a_gate_that_data_decides_is_the_same_mix() {
        for device in devices() {
            let (a, b) = (float64(&ramp(6, 2.0), [2, 3], &device), float64(&ramp(6, -1.0), [2, 3], &device));
            let logit = 0.7f64;
            let share = 1.0 / (1.0 + (-logit).exp());
            let got = gated_power_mix(float64(&[logit], [1, 1], &device), a.clone(), b.clone());
            assert_close(&values(got), &values(power_mix(share, a, b)), 1e-12);
            check_gradients(&ramp(6, 3.0), [2, 3], &device, |z| {
                let like = |amplitude| float64(&ramp(6, amplitude), [2, 3], &z.device());
                let (a, b) = (like(2.0), like(-1.0));
                gated_power_mix(z, a, b)
            });
        }
    }

    #[test]
    fn closed_gates_have_finite_gradients() {
        for device in devices() {
            let device = device.autodiff();
            let z = float32(&[-1e4, 1e4], [2], &device).require_grad();
            let y = gated_power_mix(
                z.clone(),
                float32(&[2.0, 2.0], [2], &device),
                float32(&[3.0, 3.0], [2], &device),
            );
            assert_close(&values(y.clone()), &[2.0, 3.0], 1e-6);
            let gradient = values(z.grad(&y.sum().backward()).unwrap());
            assert!(gradient.iter().all(|value| value.is_finite()), "{gradient:?}");
        }
    }

    #[test]
    #[should_panic(expected = "`share` 1.5 must lie in [0, 1]")]
    fn a_share_above_one_is_refused() {
        let device = devices().remove(0);
        let x = || Tensor::<1>::zeros([1], &device);
        power_mix(1.5, x(), x());
    }
}
