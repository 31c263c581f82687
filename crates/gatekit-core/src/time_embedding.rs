//! Real times as features.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use crate::common::widen;
use crate::config::{ModuleConfig, check_sizes};
use crate::error::ConfigError;

/// Configuration of [`TimeEmbedding`].
#[derive(Config, Debug)]
pub struct TimeEmbeddingConfig {
    /// Features E of a time, at least 2.
    pub embed_time: usize,
}

impl ModuleConfig for TimeEmbeddingConfig {
    type Module = TimeEmbedding;

    fn try_init(&self, device: &Device) -> Result<TimeEmbedding, ConfigError> {
        check_sizes(&[("embed_time", self.embed_time)])?;
        if self.embed_time < 2 {
            let need = "at least 2: one linear feature and a periodic one";
            return Err(ConfigError::new("embed_time", self.embed_time, need));
        }
        Ok(TimeEmbedding {
            linear: LinearConfig::new(1, 1).init(device),
            periodic: LinearConfig::new(1, self.embed_time - 1).init(device),
        })
    }
}

/// `phi(t) = [w_0 t + b_0; sin(w t + b)]`: one linear feature, for what lasts, and E - 1 periodic ones.
///
/// All weights and biases start uniform in [-1, 1]. Sines are of at least float32. Kazemi et al., "Time2Vec: Learning
/// a Vector Representation of Time" (arXiv 1907.05321), eq. 1.
#[derive(Module, Debug)]
pub struct TimeEmbedding {
    /// `w_0`, `b_0`.
    pub linear: Linear,
    /// `w`, `b` of the E - 1 sines.
    pub periodic: Linear,
}

impl TimeEmbedding {
    /// Features E of a time.
    pub fn embed_time(&self) -> usize {
        1 + self.periodic.weight.dims()[1]
    }

    /// `times` `[B, L]`, in any unit, to `[B, L, E]`.
    pub fn forward(&self, times: Tensor<2>) -> Tensor<3> {
        let times = times.unsqueeze_dim::<3>(2);
        let lasting = self.linear.forward(times.clone());
        let phases = self.periodic.forward(times);
        let dtype = phases.dtype();
        Tensor::cat(vec![lasting, widen(phases).sin().cast(dtype)], 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, devices, float32, values};
    use burn::module::Param;

    fn set(weight: &[f64], bias: &[f64], device: &Device) -> Linear {
        let count = weight.len();
        Linear {
            weight: Param::from_tensor(float32(weight, [1, count], device)),
            bias: Some(Param::from_tensor(float32(bias, [count], device))),
        }
    }

    #[test]
    fn one_feature_is_linear_and_the_others_are_sines() {
        for device in devices() {
            let mut embedding = TimeEmbeddingConfig::new(3).init(&device);
            embedding.linear = set(&[2.0], &[-0.5], &device);
            embedding.periodic = set(&[3.0, -40.0], &[0.25, 1.0], &device);
            assert_eq!(embedding.embed_time(), 3);
            let times = [0.0, 1.0, 0.3, -2.0];
            let got = embedding.forward(float32(&times, [2, 2], &device));
            assert_eq!(got.dims(), [2, 2, 3]);
            let expected: Vec<f64> = (times.iter())
                .flat_map(|t| [2.0 * t - 0.5, (3.0 * t + 0.25).sin(), (-40.0 * t + 1.0).sin()])
                .collect();
            assert_close(&values(got), &expected, 1e-5);
        }
    }

    #[test]
    fn weights_start_between_minus_one_and_one_and_time_is_differentiated() {
        let device = devices().remove(0);
        device.seed(1);
        let autodiff = device.autodiff();
        let embedding = TimeEmbeddingConfig::new(65).init(&autodiff);
        let weights = values(embedding.periodic.weight.val());
        assert!(weights.iter().all(|w| w.abs() <= 1.0) && weights.iter().any(|w| w.abs() > 0.5));
        let times = float32(&[0.5], [1, 1], &autodiff).require_grad();
        let gradients = embedding.forward(times.clone()).sum().backward();
        assert!(values(times.grad(&gradients).expect("it depends on the time"))[0] != 0.0);
    }

    #[test]
    fn refuses_fewer_than_two_features() {
        let device = devices().remove(0);
        for embed_time in [0, 1] {
            let error = TimeEmbeddingConfig::new(embed_time).try_init(&device).unwrap_err();
            assert_eq!(error.field, "embed_time");
        }
    }
}
