//! Batch normalisation that is told which statistics to use.
//!
//! Burn's own forward pass decides by the device; gates are also differentiated under running statistics.

use burn::nn::BatchNorm;
use burn::tensor::{Device, Tensor};
use gatekit_kernels::channels::{ChannelNormSpec, channel_norm, channel_statistics};
use gatekit_kernels::gate::Activation;
use serde::{Deserialize, Serialize};

/// What batch normalisation divides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchStatistics {
    /// Mean and variance of the batch, which also move the running ones: training.
    Batch,
    /// The running mean and variance: inference, or training with frozen statistics.
    Running,
}

impl BatchStatistics {
    /// Those of the batch on a device with autodiff, else the running ones.
    pub fn of(device: &Device) -> Self {
        if device.is_autodiff() { Self::Batch } else { Self::Running }
    }
}

/// `y = gamma (x - mean) / sqrt(variance + epsilon) + beta`, a channel at a time.
///
/// `x` `[B, C, ..]` to the same shape. Mean and variance (biased) are taken over all axes but the channels, or are the
/// running ones. [`BatchStatistics::Batch`] moves the running ones by `momentum` towards the batch's mean and unbiased
/// variance, as PyTorch does. Ioffe and Szegedy (arXiv 1502.03167), algorithm 1.
///
/// # Panics
///
/// When `x` does not have the C channels of the layer.
pub fn batch_norm<const D: usize>(norm: &BatchNorm, x: Tensor<D>, statistics: BatchStatistics) -> Tensor<D> {
    batch_norm_with(norm, x, statistics, None)
}

/// `act(y)` of [`batch_norm`]'s `y`, in one pass where the device has one.
///
/// # Panics
///
/// As [`batch_norm`].
pub fn batch_norm_with<const D: usize>(
    norm: &BatchNorm,
    x: Tensor<D>,
    statistics: BatchStatistics,
    activation: Option<Activation>,
) -> Tensor<D> {
    let [channels] = norm.gamma.shape().dims();
    assert!(
        x.dims()[1] == channels,
        "batch_norm: `x` {:?} does not have the {channels} channels of the layer on axis 1",
        x.dims()
    );
    let (device, dims) = (x.device(), x.dims());
    let places = dims[2..].iter().product();
    let x = x.reshape([dims[0], channels, places]);
    let of_x = statistics == BatchStatistics::Batch;
    let [mean, variance] = match of_x {
        true => channel_statistics(x.clone()).into(),
        false => [&norm.running_mean, &norm.running_var].map(|state| state.value_sync().to_device(&device)),
    };
    if of_x {
        let count = (dims[0] * places) as f64;
        let unbiased = variance.clone().mul_scalar(count / (count - 1.0).max(1.0));
        for (state, value) in [(&norm.running_mean, mean.clone()), (&norm.running_var, unbiased)] {
            let running = state.value_sync().to_device(&device).mul_scalar(1.0 - norm.momentum);
            state.update((running + value.mul_scalar(norm.momentum)).detach());
        }
    }
    let parameters = [norm.gamma.val(), norm.beta.val()];
    let spec = ChannelNormSpec { epsilon: norm.epsilon, of_x, activation };
    channel_norm(x, parameters, [mean, variance], spec).reshape(dims)
}

/// The normalisation by running statistics as `scale x + shift`, `[C]` each: `scale = gamma / sqrt(variance + epsilon)`,
/// `shift = beta - mean scale`.
pub(crate) fn running_affine(norm: &BatchNorm, device: &Device) -> [Tensor<1>; 2] {
    let [mean, variance] =
        [&norm.running_mean, &norm.running_var].map(|state| state.value_sync().to_device(device));
    let scale = norm.gamma.val() / (variance + norm.epsilon).sqrt();
    let shift = norm.beta.val() - mean * scale.clone();
    [scale, shift]
}

#[cfg(test)]
mod tests {
    use burn::nn::BatchNormConfig;

    use super::*;
    use crate::test_util::{assert_close, devices, float32, values};

    #[test]
    fn the_batch_is_normalised_and_moves_the_running_statistics() {
        for device in devices() {
            let norm = BatchNormConfig::new(2).with_momentum(0.25).with_epsilon(1e-12).init(&device);
            // Channel 0: 0, 2, 4, 6; channel 1: all 5 but for one 9.
            let x = float32(&[0.0, 2.0, 5.0, 5.0, 4.0, 6.0, 5.0, 9.0], [2, 2, 2], &device);
            let y = values(batch_norm(&norm, x.clone(), BatchStatistics::Batch));
            let (a, b) = (5f64.sqrt(), 3f64.sqrt());
            assert_close(
                &y,
                &[-3.0 / a, -1.0 / a, -1.0 / b, -1.0 / b, 1.0 / a, 3.0 / a, -1.0 / b, 3.0 / b],
                1e-5,
            );
            assert_close(&values(norm.running_mean.value_sync()), &[0.75, 1.5], 1e-6);
            assert_close(&values(norm.running_var.value_sync()), &[0.75 + 5.0 / 3.0, 0.75 + 1.0], 1e-6);

            let y = values(batch_norm(&norm, x, BatchStatistics::Running));
            assert_close(&y[..2], &[-0.75 / 2.416_667f64.sqrt(), 1.25 / 2.416_667f64.sqrt()], 1e-5);
        }
    }

    #[test]
    fn a_single_value_does_not_divide_by_zero() {
        let device = devices().remove(0);
        let norm = BatchNormConfig::new(1).init(&device);
        let y = batch_norm(&norm, float32(&[3.0], [1, 1], &device), BatchStatistics::Batch);
        assert_eq!(values(y), [0.0]);
        assert!(values(norm.running_var.value_sync())[0].is_finite());
    }
}
