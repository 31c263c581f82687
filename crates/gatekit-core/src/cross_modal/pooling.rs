//! Sequences of unlike length: what counts of them, and what is left of it in the end.

use burn::tensor::{Bool, Int, Tensor};

use crate::common::widen;

/// 0 at every step that is masked: `x` `[B, T, D]`, `mask` `[B, T]`, true where a step counts. Values are replaced,
/// so that NaN at a masked step is gone and takes no gradient.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn zero_masked(x: Tensor<3>, mask: &Tensor<2, Bool>) -> Tensor<3> {
    assert_mask("zero_masked", &x, mask);
    let dims = x.dims();
    x.mask_fill(mask.clone().bool_not().unsqueeze_dim::<3>(2).expand(dims), 0.0)
}

/// Mean over the steps that count: `x` `[B, T, D]`, `mask` `[B, T]`, to `[B, D]`; 0 where no step counts.
///
/// What is masked may be anything, NaN as well, and gets no gradient. The sum is taken in at least float32.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn masked_mean(x: Tensor<3>, mask: &Tensor<2, Bool>) -> Tensor<2> {
    let dtype = x.dtype();
    let x = widen(zero_masked(x, mask));
    let count = mask.clone().float().cast(x.dtype()).sum_dim(1).clamp_min(1.0);
    (x.sum_dim(1).squeeze_dim::<2>(1) / count).cast(dtype)
}

/// The last step that counts: `x` `[B, T, D]`, `mask` `[B, T]`, to `[B, D]`; 0 where no step counts.
///
/// What is masked may be anything, NaN as well, and gets no gradient.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn last_valid_step(x: Tensor<3>, mask: &Tensor<2, Bool>) -> Tensor<2> {
    assert_mask("last_valid_step", &x, mask);
    let [batch, steps, _] = x.dims();
    let places = Tensor::<1, Int>::arange(1..steps as i64 + 1, &mask.device()).unsqueeze::<2>();
    let places = places.expand([batch, steps]).mask_fill(mask.clone().bool_not(), 0);
    let last = places.clone().max_dim(1).expand([batch, steps]).equal(places);
    // Of a row without a step that counts all places are 0.
    zero_masked(x, &last.bool_and(mask.clone())).sum_dim(1).squeeze_dim::<2>(1)
}

fn assert_mask(of: &str, x: &Tensor<3>, mask: &Tensor<2, Bool>) {
    assert!(
        x.dims()[..2] == mask.dims(),
        "{of}: `mask` {:?} does not fit `x` {:?} in batch or steps",
        mask.dims(),
        x.dims()
    );
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, ramp, values};

    fn mask(values: &[bool], shape: [usize; 2], device: &Device) -> Tensor<2, Bool> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
    }

    #[test]
    fn only_what_counts_is_pooled() {
        let nan = f64::NAN;
        for device in devices() {
            let x =
                [1.0, 2.0, 3.0, 4.0, nan, nan, nan, nan, 5.0, 6.0, nan, nan, nan, nan, nan, nan, nan, nan];
            let x = float32(&x, [3, 3, 2], &device);
            let mask = mask(&[true, true, false, false, true, false, false, false, false], [3, 3], &device);
            assert_close(&values(masked_mean(x.clone(), &mask)), &[2.0, 3.0, 5.0, 6.0, 0.0, 0.0], 1e-6);
            assert_close(&values(last_valid_step(x.clone(), &mask)), &[3.0, 4.0, 5.0, 6.0, 0.0, 0.0], 1e-6);
            let kept = [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 5.0, 6.0];
            assert_close(&values(zero_masked(x, &mask))[..10], &kept, 0.0);
        }
    }

    #[test]
    fn a_single_step_is_its_own_mean_and_the_last() {
        for device in devices() {
            let x = float32(&[1.5, -2.0], [1, 1, 2], &device);
            let mask = mask(&[true], [1, 1], &device);
            assert_eq!(values(masked_mean(x.clone(), &mask)), [1.5, -2.0]);
            assert_eq!(values(last_valid_step(x, &mask)), [1.5, -2.0]);
        }
    }

    #[test]
    fn gradients_reach_what_counts() {
        let device = devices().remove(0);
        let steps = [true, true, false, true, false, false];
        check_gradients(&ramp(12, 1.0), [2, 3, 2], &device, |x| {
            let mask = mask(&steps, [2, 3], &x.device());
            masked_mean(x.clone(), &mask) * 3.0 + last_valid_step(x, &mask).square()
        });
    }

    #[test]
    fn shapes_are_named() {
        let device = devices().remove(0);
        let (x, mask) = (Tensor::<3>::zeros([2, 3, 4], &device), mask(&[true; 4], [2, 2], &device));
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| masked_mean(x, &mask)));
        let text = *panic.unwrap_err().downcast::<String>().unwrap();
        assert!(text.contains("`mask` [2, 2]") && text.contains("`x` [2, 3, 4]"), "{text}");
    }
}
