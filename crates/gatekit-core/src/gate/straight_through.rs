//! Choices of exactly one of several that gradients pass: straight-through one-hot and Gumbel-softmax.

use burn::tensor::{Int, Tensor, activation::softmax};

use crate::common::widen;

/// Position of the largest value along the last axis, `[.., C]` to `[.., 1]`.
///
/// Of equal values it is the lower one, on every backend. NaN comes last: it is chosen only where all values are NaN
/// or negative infinity and it stands first. Carries no gradient.
///
/// # Panics
///
/// When the last axis is empty.
pub fn first_argmax<const D: usize>(scores: Tensor<D>) -> Tensor<D, Int> {
    let (dims, device) = (scores.dims(), scores.device());
    let count = dims[D - 1];
    assert!(count > 0, "first_argmax: the last axis of {dims:?} is empty");
    if dims.contains(&0) {
        return Tensor::zeros(reduced(dims), &device);
    }
    let scores = scores.detach();
    let scores = scores.clone().mask_fill(scores.is_nan(), f64::NEG_INFINITY);
    let largest = scores.clone().max_dim(D - 1);
    let mut along = [1; D];
    along[D - 1] = count;
    let positions = Tensor::<1, Int>::arange(0..count as i64, &device).reshape(along).expand(dims);
    positions.mask_fill(scores.lower(largest), count as i64).min_dim(D - 1)
}

/// `onehot(argmax)` along the last axis, in the type of `scores` and without a gradient; ties as [`first_argmax`].
///
/// # Panics
///
/// When the last axis is empty.
pub fn one_hot_argmax<const D: usize>(scores: Tensor<D>) -> Tensor<D> {
    one_hot(first_argmax(scores.clone()), scores.dims()[D - 1]).cast(scores.dtype())
}

/// `z = onehot(argmax p) - stopgrad(p) + p` along the last axis: in value exactly 0 or 1, trained as if it were `p`.
///
/// The straight-through estimator (Bengio et al., arXiv 1308.3432) for a choice of one. `soft` `[.., C]` are usually
/// probabilities; of equal ones the lower index is chosen ([`first_argmax`]).
///
/// # Panics
///
/// When the last axis is empty.
pub fn straight_through_one_hot<const D: usize>(soft: Tensor<D>) -> Tensor<D> {
    let hard = one_hot_argmax(soft.clone());
    // The soft values cancel exactly: a sum in another order would round.
    (soft.clone() - soft.detach()) + hard
}

/// `p = softmax((logits + noise) / tau)` along the last axis: a random choice that gradients pass (Gumbel-softmax).
///
/// `logits` and `noise` `[.., C]` of one shape, `noise` standard Gumbel ([`gumbel_noise`]): then class c is the largest
/// with probability `softmax(logits)_c`. With `hard` the value is one-hot and the gradient that of `p`
/// ([`straight_through_one_hot`]). Without noise (zeros) it is the deterministic gate. Computed in at least float32,
/// given back in the type of `logits`. Jang et al. (arXiv 1611.01144), eq. 2; Maddison et al. (arXiv 1611.00712), eq. 1.
///
/// # Panics
///
/// When the shapes differ, the last axis is empty, or unless `tau > 0`.
pub fn gumbel_softmax<const D: usize>(
    logits: Tensor<D>,
    noise: Tensor<D>,
    tau: f64,
    hard: bool,
) -> Tensor<D> {
    assert!(
        logits.dims() == noise.dims(),
        "gumbel_softmax: `noise` {:?} is not of the shape of `logits` {:?}",
        noise.dims(),
        logits.dims()
    );
    assert!(tau > 0.0, "gumbel_softmax: `tau` {tau} must be above 0");
    let dtype = logits.dtype();
    let soft = softmax((widen(logits) + widen(noise)).div_scalar(tau), D - 1);
    if hard { straight_through_one_hot(soft) } else { soft }.cast(dtype)
}

/// Standard Gumbel noise `-log(-log u)` from uniform numbers `u` in [0, 1], of any shape.
///
/// `u` is held within `[1e-7, 1 - 1e-7]`, so the noise lies between about -2.8 and 16.
pub fn gumbel_noise<const D: usize>(uniform: Tensor<D>) -> Tensor<D> {
    widen(uniform).clamp(1e-7, 1.0 - 1e-7).log().neg().log().neg()
}

/// 1 at `index` `[.., 1]` and 0 elsewhere, `[.., classes]`, in the device's float type and without a gradient.
pub fn one_hot<const D: usize>(index: Tensor<D, Int>, classes: usize) -> Tensor<D> {
    let mut dims = index.dims();
    dims[D - 1] = classes;
    let mut along = [1; D];
    along[D - 1] = classes;
    if dims.contains(&0) {
        return Tensor::zeros(dims, &index.device());
    }
    let positions = Tensor::<1, Int>::arange(0..classes as i64, &index.device()).reshape(along);
    positions.expand(dims).equal(index.expand(dims)).float()
}

/// The shape of a reduction along the last axis.
fn reduced<const D: usize>(mut dims: [usize; D]) -> [usize; D] {
    dims[D - 1] = 1;
    dims
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

    #[test]
    fn of_equal_values_the_lower_index_is_chosen_and_nan_is_last() {
        let (nan, low) = (f64::NAN, f64::NEG_INFINITY);
        let rows =
            [[1.0, 3.0, 3.0, 2.0], [0.0; 4], [nan, 1.0, nan, 1.0], [nan; 4], [nan, low, low, -5.0], [low; 4]];
        for device in devices() {
            let scores = float32(&rows.concat(), [2, 3, 4], &device);
            let index: Vec<i64> = first_argmax(scores.clone()).into_data().iter::<i64>().collect();
            assert_eq!(index, [1, 0, 1, 0, 3, 0]);
            let hard = values(one_hot_argmax(scores));
            for (row, index) in hard.chunks_exact(4).zip(index) {
                let expected: Vec<f64> = (0..4).map(|at| f64::from(u8::from(at == index))).collect();
                assert_eq!(row, expected);
            }
        }
    }

    #[test]
    fn one_class_and_no_rows_are_fine() {
        for device in devices() {
            assert_eq!(values(straight_through_one_hot(float32(&[0.3, -2.0], [2, 1], &device))), [1.0, 1.0]);
            assert_eq!(one_hot_argmax(Tensor::<3>::zeros([2, 0, 3], &device)).dims(), [2, 0, 3]);
            assert_eq!(first_argmax(Tensor::<3>::zeros([2, 0, 3], &device)).dims(), [2, 0, 1]);
        }
    }

    #[test]
    fn the_value_is_hard_and_the_gradient_soft() {
        let logits = ramp(12, 1.5);
        let cotangent = ramp(12, 1.0);
        for device in devices() {
            let grad = |hard: bool| {
                let autodiff = device.clone().autodiff();
                let x = float64(&logits, [3, 4], &autodiff).require_grad();
                let noise = float64(&ramp(12, 0.7), [3, 4], &autodiff);
                let z = gumbel_softmax(x.clone(), noise, 0.8, hard);
                let gradients = (z.clone() * float64(&cotangent, [3, 4], &autodiff)).sum().backward();
                (values(z), values(x.grad(&gradients).expect("it depends on the logits")))
            };
            let ((soft, slope), (hard, same_slope)) = (grad(false), grad(true));
            assert_close(&slope, &same_slope, 1e-12);
            for (soft, hard) in soft.chunks_exact(4).zip(hard.chunks_exact(4)) {
                let best = (0..4).fold(0, |best, at| if soft[at] > soft[best] { at } else { best });
                assert!((0..4).all(|at| hard[at] == f64::from(u8::from(at == best))), "{hard:?} {soft:?}");
                assert!((soft.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            }
            check_gradients(&logits, [3, 4], &device, |x| {
                let noise = float64(&ramp(12, 0.7), [3, 4], &x.device());
                gumbel_softmax(x.clone(), noise, 0.8, false) * float64(&cotangent, [3, 4], &x.device())
            });
        }
    }

    #[test]
    fn gumbel_noise_chooses_with_the_softmax_probabilities() {
        for device in devices() {
            device.seed(11);
            let rows = 20_000;
            let logits = float32(&[0.5, -1.0, 1.0], [1, 3], &device).expand([rows, 3]);
            let uniform = Tensor::random([rows, 3], Distribution::Uniform(0.0, 1.0), &device);
            let chosen = gumbel_softmax(logits.clone(), gumbel_noise(uniform), 0.5, true);
            let expected = values(softmax(logits, 1).narrow(0, 0, 1));
            assert_close(&values(chosen.mean_dim(0)), &expected, 0.015);
            let ends = values(gumbel_noise(float32(&[0.0, 1.0], [2], &device)));
            assert!(ends[0] < -2.7 && ends[1] > 15.0 && ends.iter().all(|end| end.is_finite()), "{ends:?}");
        }
    }

    #[test]
    fn large_logits_stay_finite() {
        for device in devices() {
            let logits = float32(&[1e4, -1e4, 0.0], [1, 3], &device);
            let z = gumbel_softmax(logits.clone(), logits.zeros_like(), 0.1, true);
            assert_eq!(values(z), [1.0, 0.0, 0.0]);
        }
    }

    #[test]
    #[should_panic(expected = "`noise` [1, 2] is not of the shape of `logits` [1, 3]")]
    fn noise_of_another_shape_is_refused() {
        let device = devices().remove(0);
        gumbel_softmax(Tensor::<2>::zeros([1, 3], &device), Tensor::zeros([1, 2], &device), 1.0, true);
    }

    #[test]
    #[should_panic(expected = "`tau` 0 must be above 0")]
    fn no_temperature_is_refused() {
        let device = devices().remove(0);
        gumbel_softmax(Tensor::<2>::zeros([1, 3], &device), Tensor::zeros([1, 3], &device), 0.0, true);
    }
}
