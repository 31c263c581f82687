//! Guidance from another stream.

use burn::config::Config;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::{Device, Tensor};

use gatekit_kernels::channels::merge_maps;

use crate::batch_norm::{BatchStatistics, batch_norm, running_affine};
use crate::config::{ModuleConfig, check_sizes};
use crate::conv::{Activation, convolve, convolve_norm};
use crate::error::ConfigError;

/// Configuration of [`CrossGate`].
#[derive(Config, Debug)]
pub struct CrossGateConfig {
    /// Channels C of both streams, at least 1.
    pub channels: usize,
    /// The projection narrows to `max(1, C / reduction)` channels; at least 1. Default 4.
    #[config(default = 4)]
    pub reduction: usize,
    /// Added to variances, above 0. Default 1e-3.
    #[config(default = 1e-3)]
    pub norm_epsilon: f64,
    /// Weight of new statistics in the running ones, in [0, 1]. Default 0.03.
    #[config(default = 0.03)]
    pub norm_momentum: f64,
}

impl ModuleConfig for CrossGateConfig {
    type Module = CrossGate;

    fn try_init(&self, device: &Device) -> Result<CrossGate, ConfigError> {
        check_sizes(&[("channels", self.channels), ("reduction", self.reduction)])?;
        check_norm(self.norm_epsilon, self.norm_momentum)?;
        let (channels, narrow) = (self.channels, (self.channels / self.reduction).max(1));
        let conv = |from, to| Conv2dConfig::new([from, to], [1, 1]).with_bias(false).init(device);
        let norm = |channels| {
            BatchNormConfig::new(channels)
                .with_epsilon(self.norm_epsilon)
                .with_momentum(self.norm_momentum)
                .init(device)
        };
        Ok(CrossGate {
            reduce: conv(channels, narrow),
            reduce_norm: norm(narrow),
            expand: conv(narrow, channels),
            expand_norm: norm(channels),
            gate: Conv2dConfig::new([channels, channels], [1, 1]).init(device),
        })
    }
}

/// Refuses what batch normalisation cannot use.
///
/// # Errors
///
/// [`ConfigError`] names `norm_epsilon` or `norm_momentum`.
pub(super) fn check_norm(epsilon: f64, momentum: f64) -> Result<(), ConfigError> {
    if !(epsilon.is_finite() && epsilon > 0.0) {
        return Err(ConfigError::new("norm_epsilon", epsilon, "a finite number above 0"));
    }
    if !(0.0..=1.0).contains(&momentum) {
        return Err(ConfigError::new("norm_momentum", momentum, "a number in [0, 1]"));
    }
    Ok(())
}

/// What another stream has to say, gated channel by channel by itself:
/// `u = BN(W2 silu(BN(W1 other)))`, `g = sigmoid(V u + e)`; the receiving stream gets `g u` added.
///
/// The symmetrical cross-gating of PACGNet (arXiv 2512.18291) has one in either direction. Weights start uniform within
/// `1 / sqrt(fan in)`.
#[derive(Module, Debug)]
pub struct CrossGate {
    /// `W1`, `[max(1, C / reduction), C, 1, 1]`.
    pub reduce: Conv2d,
    /// After `W1`.
    pub reduce_norm: BatchNorm,
    /// `W2`, back to C channels.
    pub expand: Conv2d,
    /// After `W2`.
    pub expand_norm: BatchNorm,
    /// `V` and `e`, `[C, C, 1, 1]`.
    pub gate: Conv2d,
}

/// What [`CrossGate`] made of another stream.
#[derive(Debug, Clone)]
pub struct Guidance {
    /// `u`, `[B, C, H, W]`.
    pub guidance: Tensor<4>,
    /// `g`, `[B, C, H, W]`, in (0, 1).
    pub gate: Tensor<4>,
}

impl Guidance {
    /// `BN(x + refined (1 + spatial) + g u)` by running statistics, for `x` and `refined` `[B, C, H, W]` and `spatial`
    /// `[B, 1, H, W]`; one pass where nothing is differentiated.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn exchange(&self, norm: &BatchNorm, [x, refined]: [Tensor<4>; 2], spatial: Tensor<4>) -> Tensor<4> {
        if x.device().is_autodiff() {
            return batch_norm(norm, x + refined * (spatial + 1.0) + self.update(), BatchStatistics::Running);
        }
        let (dims, affine) = (x.dims(), running_affine(norm, &x.device()));
        let flat = |map: Tensor<4>| map.flatten::<3>(2, 3);
        let own = [self.gate.clone(), self.guidance.clone()].map(flat);
        merge_maps([x, refined].map(flat), flat(spatial), own, affine).reshape(dims)
    }

    /// `g u`, `[B, C, H, W]`.
    pub fn update(&self) -> Tensor<4> {
        self.guidance.clone() * self.gate.clone()
    }
}

impl CrossGate {
    /// What `other` `[B, C, H, W]` has to say.
    ///
    /// # Panics
    ///
    /// When `other` does not have C channels.
    pub fn guidance(&self, other: Tensor<4>, statistics: BatchStatistics) -> Guidance {
        let swish = Some(Activation::Swish);
        let narrow = convolve_norm(&self.reduce, &self.reduce_norm, other, statistics, swish);
        let guidance = convolve_norm(&self.expand, &self.expand_norm, narrow, statistics, None);
        let gate = convolve(&self.gate, guidance.clone(), Some(Activation::Sigmoid));
        Guidance { guidance, gate }
    }

    /// `x + g u` for `x` `[B, C, H, W]`.
    ///
    /// # Panics
    ///
    /// As [`guidance`](Self::guidance), and when the shapes differ.
    pub fn forward(&self, x: Tensor<4>, other: Tensor<4>, statistics: BatchStatistics) -> Tensor<4> {
        assert!(
            x.dims() == other.dims(),
            "CrossGate: `x` {:?} and `other` {:?} differ in shape",
            x.dims(),
            other.dims()
        );
        x + self.guidance(other, statistics).update()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, devices, float32, ramp, values};
    use burn::module::Param;

    #[test]
    fn a_closed_gate_leaves_the_stream_as_it_was() {
        for device in devices() {
            let mut cross = CrossGateConfig::new(5).with_reduction(8).init(&device);
            assert_eq!(cross.reduce.weight.dims(), [1, 5, 1, 1]);
            let bias =
                |value: f64, device: &Device| Some(Param::from_tensor(Tensor::full([5], value, device)));
            let map = float32(&ramp(90, 1.0), [2, 5, 3, 3], &device);
            let other = float32(&ramp(90, 0.7), [2, 5, 3, 3], &device);
            cross.gate.bias = bias(-500.0, &device);
            let y = cross.forward(map.clone(), other.clone(), BatchStatistics::Running);
            assert_close(&values(y), &values(map), 0.0);
            cross.gate.bias = bias(500.0, &device);
            let guidance = cross.guidance(other.clone(), BatchStatistics::Batch);
            assert_close(&values(guidance.update()), &values(guidance.guidance), 0.0);
        }
    }

    #[test]
    fn refuses_what_it_cannot_use() {
        let device = devices().remove(0);
        let refused = |config: CrossGateConfig| config.try_init(&device).unwrap_err().field;
        assert_eq!(refused(CrossGateConfig::new(0)), "channels");
        assert_eq!(refused(CrossGateConfig::new(4).with_reduction(0)), "reduction");
        assert_eq!(refused(CrossGateConfig::new(4).with_norm_epsilon(0.0)), "norm_epsilon");
        assert_eq!(refused(CrossGateConfig::new(4).with_norm_momentum(1.5)), "norm_momentum");
    }
}
