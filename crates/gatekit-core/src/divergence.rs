//! How far two predictions lie apart: divergences between the distributions of two sets of logits.
//!
//! Everything is computed from log-softmax in at least float32, so a divergence stays finite however
//! far the logits lie apart.

use burn::tensor::{Bool, Tensor, activation::log_softmax};

use crate::common::widen;

/// Stands for logits of minus infinity: a probability of 0 whose logarithm can be multiplied.
const LOWEST: f64 = -1e30;

/// `KL(p || q) = sum_v p_v (log p_v - log q_v)` in nats with `p = softmax(p_logits / temperature)` and
/// `q = softmax(q_logits / temperature)`, one a distribution.
///
/// * `p_logits`, `q_logits` `[.., V]` of one shape; an entry may be minus infinity
/// * `mask` `[.., 1]`: true where a distribution counts; elsewhere the divergence is 0 and passes no
///   gradient, whatever the logits (NaN too). `None`: all count
/// * `temperature` above 0
/// * returns `[.., 1]`, at least 0 up to rounding; gradients flow into both
///
/// It is not symmetric: p, mostly the reference, says which entries matter. Kullback and Leibler, "On
/// Information and Sufficiency" (1951), eq. 2.4.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use gatekit_core::divergence::{kl, symmetric_kl};
///
/// let device = Device::flex();
/// let p = Tensor::<2>::from_data([[0.0, 0.0], [1000.0, -1000.0]], &device);
/// let q = Tensor::<2>::from_data([[0.0, 0.0], [-1000.0, 1000.0]], &device);
/// let apart: Vec<f64> = kl(p.clone(), q.clone(), None, 1.0).into_data().iter::<f64>().collect();
/// assert_eq!(apart, [0.0, 2000.0]);
/// let mean = symmetric_kl(p, q, None, 1.0).mean();
/// # let _ = mean;
/// # }
/// ```
///
/// # Panics
///
/// When shapes do not fit, or unless the temperature is a finite number above 0.
pub fn kl<const D: usize>(
    p_logits: Tensor<D>,
    q_logits: Tensor<D>,
    mask: Option<&Tensor<D, Bool>>,
    temperature: f64,
) -> Tensor<D> {
    let [log_p, log_q] = log_probabilities("kl", p_logits, q_logits, mask, temperature);
    masked((log_p.clone().exp() * (log_p - log_q)).sum_dim(D - 1), mask)
}

/// `KL(p || q) + KL(q || p) = sum_v (p_v - q_v) (log p_v - log q_v)`, one a distribution: what keeps two
/// predictions together without either being the reference.
///
/// Arguments, result and panics as [`kl`]. (THOR, arXiv 2110.04260, weighs half of it.) Jeffreys, "An
/// Invariant Form for the Prior Probability in Estimation Problems" (1946).
///
/// # Panics
///
/// As [`kl`].
pub fn symmetric_kl<const D: usize>(
    p_logits: Tensor<D>,
    q_logits: Tensor<D>,
    mask: Option<&Tensor<D, Bool>>,
    temperature: f64,
) -> Tensor<D> {
    let [log_p, log_q] = log_probabilities("symmetric_kl", p_logits, q_logits, mask, temperature);
    let apart = log_p.clone().exp() - log_q.clone().exp();
    masked((apart * (log_p - log_q)).sum_dim(D - 1), mask)
}

fn log_probabilities<const D: usize>(
    function: &str,
    p_logits: Tensor<D>,
    q_logits: Tensor<D>,
    mask: Option<&Tensor<D, Bool>>,
    temperature: f64,
) -> [Tensor<D>; 2] {
    let dims = p_logits.dims();
    assert!(
        dims == q_logits.dims(),
        "{function}: `p_logits` {dims:?} and `q_logits` {:?} differ in shape",
        q_logits.dims()
    );
    if let Some(mask) = mask {
        let mut need = dims;
        need[D - 1] = 1;
        assert!(mask.dims() == need, "{function}: `mask` has shape {:?}, need {need:?}", mask.dims());
    }
    assert!(
        temperature > 0.0 && temperature.is_finite(),
        "{function}: `temperature` {temperature} must be a finite number above 0"
    );
    [p_logits, q_logits].map(|logits| {
        let logits = widen(logits);
        // What does not count may hold anything: 0 times NaN would be NaN, in the gradient too.
        let logits = match mask {
            Some(mask) => logits.mask_fill(mask.clone().bool_not().expand(dims), 0.0),
            None => logits,
        };
        log_softmax(logits.clamp_min(LOWEST).div_scalar(temperature), D - 1)
    })
}

fn masked<const D: usize>(divergence: Tensor<D>, mask: Option<&Tensor<D, Bool>>) -> Tensor<D> {
    match mask {
        Some(mask) => divergence.mask_fill(mask.clone().bool_not(), 0.0),
        None => divergence,
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

    /// KL of each row of `width` logits, in float64.
    fn by_hand(p: &[f64], q: &[f64], width: usize, temperature: f64) -> Vec<f64> {
        let softmax = |row: &[f64]| {
            let row: Vec<f64> = row.iter().map(|z| (z / temperature).exp()).collect();
            let sum: f64 = row.iter().sum();
            row.into_iter().map(|e| e / sum).collect::<Vec<f64>>()
        };
        (p.chunks(width).zip(q.chunks(width)))
            .map(|(p, q)| softmax(p).iter().zip(softmax(q)).map(|(p, q)| p * (p / q).ln()).sum())
            .collect()
    }

    #[test]
    fn divergences_match_their_equations_at_any_temperature() {
        let (p, q) = (ramp(24, 2.0), ramp(24, -1.3));
        for device in devices() {
            for temperature in [0.5, 1.0, 4.0] {
                let forth = by_hand(&p, &q, 4, temperature);
                let back = by_hand(&q, &p, 4, temperature);
                let both: Vec<f64> = forth.iter().zip(&back).map(|(a, b)| a + b).collect();
                assert!(forth.iter().zip(&back).any(|(a, b)| (a - b).abs() > 1e-3), "kl is not symmetric");
                let p3 = || float64(&p, [2, 3, 4], &device);
                let q3 = || float64(&q, [2, 3, 4], &device);
                let got = kl(p3(), q3(), None, temperature);
                assert_eq!(got.dims(), [2, 3, 1]);
                assert_close(&values(got), &forth, 1e-12);
                assert_close(&values(symmetric_kl(p3(), q3(), None, temperature)), &both, 1e-12);
                assert_close(&values(symmetric_kl(q3(), p3(), None, temperature)), &both, 1e-12);
                let single =
                    kl(float32(&p, [6, 4], &device), float32(&q, [6, 4], &device), None, temperature);
                assert_close(&values(single), &forth, 1e-5);
            }
        }
    }

    #[test]
    fn gradients_flow_into_both() {
        let q = ramp(12, -1.3);
        for device in devices() {
            let fixed = |like: &Tensor<2>| float64(&q, [3, 4], &like.device());
            check_gradients(&ramp(12, 2.0), [3, 4], &device, |x| kl(x.clone(), fixed(&x), None, 2.0));
            check_gradients(&ramp(12, 2.0), [3, 4], &device, |x| kl(fixed(&x), x, None, 2.0));
            check_gradients(&ramp(12, 2.0), [3, 4], &device, |x| {
                symmetric_kl(x.clone(), fixed(&x), None, 1.0)
            });
        }
    }

    #[test]
    fn equal_predictions_do_not_diverge() {
        for device in devices() {
            let x = || float32(&ramp(12, 30.0), [3, 4], &device);
            assert_eq!(values(kl(x(), x(), None, 1.0)), [0.0; 3]);
            assert_eq!(values(symmetric_kl(x(), x(), None, 1.0)), [0.0; 3]);
            // One entry alone is always certain.
            let one = |value| float32(&[value], [1, 1], &device);
            assert_eq!(values(symmetric_kl(one(3.0), one(-8.0), None, 1.0)), [0.0]);
        }
    }

    #[test]
    fn large_gaps_and_impossible_entries_stay_finite() {
        for device in devices() {
            let device = device.autodiff();
            let p = float32(&[1e4, -1e4, 0.0, f64::NEG_INFINITY, 1.0, 2.0], [2, 3], &device).require_grad();
            let q = float32(&[-1e4, 1e4, 0.0, f64::NEG_INFINITY, 2.0, 1.0], [2, 3], &device).require_grad();
            let apart = symmetric_kl(p.clone(), q.clone(), None, 1.0);
            let gradients = apart.clone().sum().backward();
            let expected = 2.0 * (1f64.exp() - 1.0) / (1f64.exp() + 1.0);
            assert_close(&values(apart), &[4e4, expected], 1e-5);
            assert_close(&values(kl(p.clone(), q.clone(), None, 1.0)), &[2e4, expected / 2.0], 1e-5);
            for leaf in [p, q] {
                let gradient = values(leaf.grad(&gradients).unwrap());
                assert!(gradient.iter().all(|value| value.is_finite()), "{gradient:?}");
            }
        }
    }

    #[test]
    fn what_is_masked_counts_nowhere() {
        for device in devices() {
            let device = device.autodiff();
            let p = float32(&[0.0, 1.0, f64::NAN, f64::INFINITY], [2, 2], &device).require_grad();
            let q = float32(&[1.0, 0.0, 0.0, 0.0], [2, 2], &device).require_grad();
            let mask = Tensor::<2, Bool>::from_data([[true], [false]], &device);
            for divergence in [kl, symmetric_kl] {
                let apart = divergence(p.clone(), q.clone(), Some(&mask), 1.0);
                let got = values(apart.clone());
                assert!(got[0] > 0.1 && got[1] == 0.0, "{got:?}");
                let gradients = apart.sum().backward();
                let of_p = values(p.grad(&gradients).unwrap());
                assert!(of_p[0] != 0.0 && of_p[2..] == [0.0, 0.0], "{of_p:?}");
            }
        }
    }

    #[test]
    fn half_precision_is_computed_in_float32() {
        for device in devices().into_iter().filter(|device| device.supports_dtype(DType::F16)) {
            let half = |values: &[f64]| float32(values, [1, 3], &device).cast(DType::F16);
            let (p, q) = ([0.5, -1.0, 0.25], [0.0, 1.0, 0.5]);
            let got = kl(half(&p), half(&q), None, 1.0);
            assert_eq!(got.dtype(), DType::F32);
            assert_close(&values(got), &by_hand(&p, &q, 3, 1.0), 1e-6);
        }
    }

    #[test]
    #[should_panic(expected = "kl: `p_logits` [1, 2] and `q_logits` [1, 3] differ in shape")]
    fn other_vocabularies_are_refused() {
        let device = devices().remove(0);
        kl(Tensor::<2>::zeros([1, 2], &device), Tensor::zeros([1, 3], &device), None, 1.0);
    }

    #[test]
    #[should_panic(expected = "symmetric_kl: `mask` has shape [2, 2], need [2, 1]")]
    fn a_mask_of_entries_is_refused() {
        let device = devices().remove(0);
        let x = || Tensor::<2>::zeros([2, 2], &device);
        symmetric_kl(x(), x(), Some(&x().greater_elem(0.0)), 1.0);
    }

    #[test]
    #[should_panic(expected = "`temperature` 0 must be a finite number above 0")]
    fn a_temperature_of_zero_is_refused() {
        let device = devices().remove(0);
        kl(Tensor::<2>::zeros([1, 2], &device), Tensor::zeros([1, 2], &device), None, 0.0);
    }
}
