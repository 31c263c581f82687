//! Shares of modalities.

use burn::config::Config;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Bool, Device, Tensor};
use gatekit_kernels::channels::mix_maps;

use super::spatial::assert_same_size;
use crate::common::{assert_broadcasts, widen};
use crate::config::{ModuleConfig, check_sizes};
use crate::conv::convolve;
use crate::error::ConfigError;

/// Softmax over axis `dim` among the entries that are `admissible`; the others get exactly 0.
///
/// `logits` of any shape; `admissible` broadcasts onto it, `None` for all. Where nothing is admissible all weights are
/// 0, not NaN. Computed in at least float32; the result has the type of `logits`. Logits that are not admissible may be
/// anything, NaN as well, and get no gradient.
///
/// # Panics
///
/// When `admissible` does not broadcast.
pub fn masked_softmax<const D: usize>(
    logits: Tensor<D>,
    dim: usize,
    admissible: Option<Tensor<D, Bool>>,
) -> Tensor<D> {
    let dtype = logits.dtype();
    let wide = widen(logits);
    let Some(admissible) = admissible else {
        return burn::tensor::activation::softmax(wide, dim).cast(dtype);
    };
    assert_broadcasts("masked_softmax", ("admissible", admissible.dims()), ("logits", wide.dims()));
    let left_out = admissible.bool_not().expand(wide.dims());
    // Replaced, not multiplied: what is left out may be NaN.
    let known = wide.mask_fill(left_out.clone(), 0.0);
    let largest = known.clone().detach().mask_fill(left_out.clone(), f64::from(f32::MIN)).max_dim(dim);
    // Where nothing is admissible the largest is no number to subtract.
    let largest = largest.clone().mask_fill(largest.lower_elem(f64::from(f32::MIN) / 2.0), 0.0);
    let powers = (known - largest).mask_fill(left_out.clone(), 0.0).exp().mask_fill(left_out, 0.0);
    let sum = powers.clone().sum_dim(dim);
    let none = sum.clone().equal_elem(0.0);
    (powers / sum.mask_fill(none, 1.0)).cast(dtype)
}

/// `sum_m weights_m features_m`: M features of one shape, and weights with M entries on axis `dim` that otherwise
/// broadcast onto a feature.
///
/// # Panics
///
/// When the number of features is not that of the weights, or shapes do not fit.
pub fn weighted_sum<const D: usize>(features: &[Tensor<D>], weights: Tensor<D>, dim: usize) -> Tensor<D> {
    assert!(
        weights.dims()[dim] == features.len() && !features.is_empty(),
        "weighted_sum: `weights` {:?} do not have one entry on axis {dim} for each of {} features",
        weights.dims(),
        features.len()
    );
    let share = |m: usize| {
        let weight = weights.clone().narrow(dim, m, 1);
        assert_broadcasts("weighted_sum", ("weights", weight.dims()), ("features", features[m].dims()));
        features[m].clone() * weight
    };
    (1..features.len()).map(share).fold(share(0), |sum, part| sum + part)
}

/// Configuration of [`ModalitySoftmax`].
#[derive(Config, Debug)]
pub struct ModalitySoftmaxConfig {
    /// Channels of the context that decides, at least 1.
    pub channels: usize,
    /// Modalities M, at least 1.
    pub num_modalities: usize,
}

impl ModuleConfig for ModalitySoftmaxConfig {
    type Module = ModalitySoftmax;

    fn try_init(&self, device: &Device) -> Result<ModalitySoftmax, ConfigError> {
        check_sizes(&[("channels", self.channels), ("num_modalities", self.num_modalities)])?;
        let conv = Conv2dConfig::new([self.channels, self.num_modalities], [1, 1]).init(device);
        Ok(ModalitySoftmax { conv })
    }
}

/// Shares of M modalities at every position, `w = softmax over m of (W context + b)`, and what they mix.
///
/// Weights start uniform within `1 / sqrt(C)`. PACGNet (arXiv 2512.18291).
#[derive(Module, Debug)]
pub struct ModalitySoftmax {
    /// The projection to one logit a modality, `[M, C, 1, 1]`.
    pub conv: Conv2d,
}

impl ModalitySoftmax {
    /// The shares at every position of `context` `[B, C, H, W]`: `[B, M, H, W]`. A modality that is not `present`
    /// (`[B, M]`, `None` for all) gets 0; if none is, all get 0.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn weights(&self, context: Tensor<4>, present: Option<Tensor<2, Bool>>) -> Tensor<4> {
        let present = present.map(|present| {
            let [batch, modalities] = present.dims();
            present.reshape([batch, modalities, 1, 1])
        });
        masked_softmax(convolve(&self.conv, context, None), 1, present)
    }

    /// The shares of M groups of channels of `z` `[B, M C', H, W]` at every position, seen from `z` itself, and the groups
    /// mixed by them and raised by `1 + spatial` (`[B, 1, H, W]`), `[B, C', H, W]`.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn mix_groups(&self, z: Tensor<4>, spatial: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let weights = self.weights(z.clone(), None);
        let ([_, groups, ..], [batch, channels, height, width]) = (weights.dims(), z.dims());
        if z.device().is_autodiff() {
            let mixed = weighted_sum(&z.chunk(groups, 1), weights.clone(), 1);
            return (mixed * (spatial + 1.0), weights);
        }
        let flat = |map: Tensor<4>| map.flatten::<3>(2, 3);
        let mixed = mix_maps(flat(z), flat(weights.clone()), flat(spatial));
        (mixed.reshape([batch, channels / groups, height, width]), weights)
    }

    /// The mixture of M feature maps `[B, C', H, W]` and the shares.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward(
        &self,
        context: Tensor<4>,
        features: &[Tensor<4>],
        present: Option<Tensor<2, Bool>>,
    ) -> (Tensor<4>, Tensor<4>) {
        for feature in features {
            assert_same_size("ModalitySoftmax", ("context", &context), ("features", feature));
        }
        let weights = self.weights(context, present);
        (weighted_sum(features, weights.clone(), 1), weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};
    use burn::tensor::TensorData;

    fn mask<const D: usize>(values: &[bool], shape: [usize; D], device: &Device) -> Tensor<D, Bool> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
    }

    #[test]
    fn what_is_left_out_has_no_share() {
        for device in devices() {
            let logits = float32(&[1.0, 2.0, f64::NAN, 500.0, -800.0, 800.0, 3.0, 4.0, 5.0], [3, 3], &device);
            let admissible =
                mask(&[true, true, false, true, true, false, false, false, false], [3, 3], &device);
            let weights = values(masked_softmax(logits.clone(), 1, Some(admissible)));
            let share = 1.0 / (1.0 + 1f64.exp());
            assert_close(&weights, &[share, 1.0 - share, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], 1e-6);
            let all = values(masked_softmax(logits.narrow(0, 2, 1), 1, None));
            assert!((all.iter().sum::<f64>() - 1.0).abs() < 1e-6 && all[2] > all[1]);
        }
    }

    #[test]
    fn shares_are_differentiated_among_those_present() {
        let device = devices().remove(0);
        let present = [true, false, true, true, true, true];
        check_gradients(&ramp(6, 1.5), [2, 3], &device, |logits| {
            let present = mask(&present, [2, 3], &logits.device());
            let context = float64(&[0.3, -1.0, 2.0, 0.7, 0.1, -0.4], [2, 3], &logits.device());
            masked_softmax(logits, 1, Some(present)) * context
        });
    }

    #[test]
    fn features_are_mixed_by_their_shares() {
        for device in devices() {
            let layer = ModalitySoftmaxConfig::new(3, 2).init(&device);
            let context = float32(&ramp(2 * 3 * 2 * 2, 2.0), [2, 3, 2, 2], &device);
            let maps = [1.0, 3.0].map(|value| Tensor::<4>::full([2, 5, 2, 2], value, &device));
            let present = mask(&[true, true, false, true], [2, 2], &device);
            let (mixed, weights) = layer.forward(context, &maps, Some(present));
            let (mixed, weights) = (values(mixed), values(weights));
            assert_eq!(&mixed[20..], &[3.0; 20], "alone a modality passes whole");
            for position in 0..4 {
                assert!((weights[position] + weights[4 + position] - 1.0).abs() < 1e-6);
                assert!((mixed[position] - weights[position] - 3.0 * weights[4 + position]).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn refuses_sizes_of_zero() {
        let device = devices().remove(0);
        assert_eq!(ModalitySoftmaxConfig::new(0, 2).try_init(&device).unwrap_err().field, "channels");
        assert_eq!(ModalitySoftmaxConfig::new(2, 0).try_init(&device).unwrap_err().field, "num_modalities");
    }
}
