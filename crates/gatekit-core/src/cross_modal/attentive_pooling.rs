//! From frames to one vector: mean and deviation over time, weighed by attention.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Bool, Device, Tensor};

use super::modality::masked_softmax;
use crate::common::widen;
use crate::config::{ModuleConfig, check_sizes};
use crate::error::ConfigError;

/// Configuration of [`AttentiveStatisticsPooling`].
#[derive(Config, Debug)]
pub struct AttentiveStatisticsPoolingConfig {
    /// Channels D of a frame, at least 1.
    pub d_model: usize,
    /// Inner width of the attention, at least 1. Default 128.
    #[config(default = 128)]
    pub d_attention: usize,
    /// Variances are held at least at this, above 0. Default 1e-6.
    #[config(default = 1e-6)]
    pub variance_floor: f64,
}

impl ModuleConfig for AttentiveStatisticsPoolingConfig {
    type Module = AttentiveStatisticsPooling;

    fn try_init(&self, device: &Device) -> Result<AttentiveStatisticsPooling, ConfigError> {
        check_sizes(&[("d_model", self.d_model), ("d_attention", self.d_attention)])?;
        if !(self.variance_floor.is_finite() && self.variance_floor > 0.0) {
            return Err(ConfigError::new("variance_floor", self.variance_floor, "a finite number above 0"));
        }
        Ok(AttentiveStatisticsPooling {
            attention_in: LinearConfig::new(self.d_model, self.d_attention).init(device),
            attention_out: LinearConfig::new(self.d_attention, 1).init(device),
            variance_floor: self.variance_floor,
        })
    }
}

/// `[mu; sigma]` of frames h: `a = softmax_t(w . tanh(W h_t + b) + b')`, `mu = sum_t a_t h_t`,
/// `sigma = sqrt(max(sum_t a_t (h_t - mu)^2, floor))`.
///
/// Softmax and statistics are computed in at least float32. Weights and biases start uniform within
/// `1 / sqrt(fan in)`. Okabe et al., "Attentive Statistics Pooling for Deep Speaker Embedding"
/// (arXiv 1803.10963), eqs. 3 to 6.
#[derive(Module, Debug)]
pub struct AttentiveStatisticsPooling {
    /// `W` and `b`, `[D, d_attention]`.
    pub attention_in: Linear,
    /// `w` and `b'`, `[d_attention, 1]`.
    pub attention_out: Linear,
    variance_floor: f64,
}

impl AttentiveStatisticsPooling {
    /// Shares a of the frames of `x` `[B, T, D]`: `[B, T]`. Frames where `mask` `[B, T]` is false get 0; without a
    /// frame all shares are 0.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn weights(&self, x: Tensor<3>, mask: Option<&Tensor<2, Bool>>) -> Tensor<2> {
        let dims = x.dims();
        if let Some(mask) = mask {
            assert!(
                mask.dims() == dims[..2],
                "AttentiveStatisticsPooling: `mask` {:?} is not one a frame of `x` {dims:?}",
                mask.dims()
            );
        }
        let scores = self.attention_out.forward(self.attention_in.forward(x).tanh()).squeeze_dim::<2>(2);
        masked_softmax(widen(scores), 1, mask.cloned())
    }

    /// Frames `x` `[B, T, D]`, T at least 1, to `[B, 2D]`: means, then deviations. Frames where `mask` `[B, T]` is
    /// false do not count, whatever they hold; `None`: all count.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit, or there is no frame.
    pub fn forward(&self, x: Tensor<3>, mask: Option<&Tensor<2, Bool>>) -> Tensor<2> {
        let dims = x.dims();
        assert!(dims[1] > 0, "AttentiveStatisticsPooling: `x` {dims:?} has no frame");
        let x = match mask {
            // Replaced, not weighed: what does not count may be NaN.
            Some(mask) if mask.dims() == dims[..2] => {
                x.mask_fill(mask.clone().bool_not().unsqueeze_dim::<3>(2).expand(dims), 0.0)
            }
            _ => x,
        };
        let dtype = x.dtype();
        let a = self.weights(x.clone(), mask).unsqueeze_dim::<3>(2);
        let h = widen(x);
        let mean = (h.clone() * a.clone()).sum_dim(1);
        let variance = ((h - mean.clone()).square() * a).sum_dim(1).clamp_min(self.variance_floor);
        Tensor::cat(vec![mean, variance.sqrt()], 2).squeeze_dim::<2>(1).cast(dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, devices, float32, ramp, values};
    use burn::module::Param;
    use burn::tensor::TensorData;

    /// Two channels, one inner unit: the score of a frame is `2 tanh(h_1 - 0.5)`.
    fn pooling(device: &Device) -> AttentiveStatisticsPooling {
        let mut pooling = AttentiveStatisticsPoolingConfig::new(2).with_d_attention(1).init(device);
        pooling.attention_in.weight = Param::from_tensor(float32(&[1.0, 0.0], [2, 1], device));
        pooling.attention_in.bias = Some(Param::from_tensor(float32(&[-0.5], [1], device)));
        pooling.attention_out.weight = Param::from_tensor(float32(&[2.0], [1, 1], device));
        pooling
    }

    fn by_hand(frames: &[f64]) -> Vec<f64> {
        let powers: Vec<f64> = frames.chunks(2).map(|h| (2.0 * (h[0] - 0.5).tanh()).exp()).collect();
        let sum: f64 = powers.iter().sum();
        let mean = |channel: usize, of: &dyn Fn(f64) -> f64| -> f64 {
            frames.chunks(2).zip(&powers).map(|(h, power)| power / sum * of(h[channel])).sum()
        };
        let means = [0, 1].map(|channel| mean(channel, &|h| h));
        let deviations =
            [0, 1].map(|channel| mean(channel, &|h: f64| (h - means[channel]).powi(2)).max(1e-6).sqrt());
        [means, deviations].concat()
    }

    #[test]
    fn matches_a_computation_by_hand() {
        for device in devices() {
            let frames = ramp(10, 1.5);
            let got = pooling(&device).forward(float32(&frames, [1, 5, 2], &device), None);
            assert_close(&values(got), &by_hand(&frames), 1e-6);
            // A single frame has no deviation: the floor.
            let got = pooling(&device).forward(float32(&frames[..2], [1, 1, 2], &device), None);
            assert_close(&values(got), &[frames[0], frames[1], 1e-3, 1e-3], 1e-6);
        }
    }

    #[test]
    fn frames_that_do_not_count_may_hold_anything() {
        for device in devices() {
            let frames = ramp(6, 1.0);
            let padded: Vec<f64> =
                frames.iter().copied().chain([f64::NAN, f64::INFINITY]).chain([f64::NAN; 8]).collect();
            let x = float32(&padded, [2, 4, 2], &device);
            let mask = TensorData::from([[true, true, true, false], [false; 4]]);
            let mask = Tensor::<2, Bool>::from_data(mask, &device);
            let got = values(pooling(&device).forward(x, Some(&mask)));
            assert_close(&got[..4], &by_hand(&frames), 1e-6);
            assert_close(&got[4..], &[0.0, 0.0, 1e-3, 1e-3], 1e-6);
        }
    }

    #[test]
    fn equal_frames_have_finite_gradients() {
        for device in devices() {
            let autodiff = device.clone().autodiff();
            let x = Tensor::<3>::full([1, 3, 2], 0.75, &autodiff).require_grad();
            let gradients = pooling(&autodiff).forward(x.clone(), None).sum().backward();
            assert!(values(x.grad(&gradients).unwrap()).iter().all(|gradient| gradient.is_finite()));
        }
    }

    #[test]
    fn bad_sizes_are_named() {
        let device = devices().remove(0);
        let refused = |config: AttentiveStatisticsPoolingConfig| config.try_init(&device).unwrap_err().field;
        assert_eq!(refused(AttentiveStatisticsPoolingConfig::new(0)), "d_model");
        assert_eq!(refused(AttentiveStatisticsPoolingConfig::new(1).with_d_attention(0)), "d_attention");
        let config = AttentiveStatisticsPoolingConfig::new(1).with_variance_floor(0.0);
        assert_eq!(refused(config), "variance_floor");
    }

    #[test]
    #[should_panic(expected = "`mask` [1, 3] is not one a frame of `x` [1, 4, 2]")]
    fn another_mask_panics() {
        let device = devices().remove(0);
        let mask = Tensor::<2, Bool>::full([1, 3], true, &device);
        pooling(&device).forward(Tensor::zeros([1, 4, 2], &device), Some(&mask));
    }
}
