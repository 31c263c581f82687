//! The feed-forward layer of GPT: two projections with a GELU between.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use crate::activation::gelu;
use crate::config::ModuleConfig;
use crate::error::ConfigError;

/// Configuration of [`Mlp`].
#[derive(Config, Debug)]
pub struct MlpConfig {
    /// Channels of input and output, at least 1.
    pub hidden_size: usize,
    /// Channels in between, at least 1; usually four times as many.
    pub intermediate_size: usize,
    /// Share of the output's channels that are dropped in training, in [0, 1). Default 0.
    #[config(default = 0.0)]
    pub dropout: f64,
}

impl ModuleConfig for MlpConfig {
    type Module = Mlp;

    fn try_init(&self, device: &Device) -> Result<Mlp, ConfigError> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        for (field, size) in [("hidden_size", hidden), ("intermediate_size", inner)] {
            if size == 0 {
                return Err(ConfigError::new(field, size, "at least 1"));
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(ConfigError::new("dropout", self.dropout, "a share in [0, 1)"));
        }
        Ok(Mlp {
            up: LinearConfig::new(hidden, inner).init(device),
            down: LinearConfig::new(inner, hidden).init(device),
            dropout: DropoutConfig::new(self.dropout).init(),
        })
    }
}

/// `y = dropout(W_2 gelu(W_1 x + b_1) + b_2)`, with the exact [`gelu`].
///
/// Weights and biases start uniform within `1 / sqrt(fan in)`. Dropout acts on autodiff devices
/// only, that is in training.
#[derive(Module, Debug)]
pub struct Mlp {
    /// First projection, `[hidden_size, intermediate_size]`.
    pub up: Linear,
    /// Second projection, `[intermediate_size, hidden_size]`.
    pub down: Linear,
    /// Applied to the output in training.
    pub dropout: Dropout,
}

impl Mlp {
    /// `[.., hidden_size]` to `[.., hidden_size]`.
    ///
    /// # Panics
    ///
    /// When the last axis of `x` does not have `hidden_size` channels.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.dropout.forward(self.down.forward(gelu(self.up.forward(x))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, devices, float32, ramp, values};
    use burn::module::Param;

    #[test]
    fn matches_a_computation_by_hand() {
        // W_1 [1, 2] and W_2 [2, 1] with biases; gelu(1) and gelu(-0.5) from the error function.
        let expected = 2.0 * 0.8413447460685429 + 3.0 * -0.15426876936299344 + 0.25;
        for device in devices() {
            let mut layer = MlpConfig::new(1, 2).init(&device);
            layer.up.weight = Param::from_tensor(float32(&[0.5, -0.5], [1, 2], &device));
            layer.up.bias = Some(Param::from_tensor(float32(&[0.5, 0.0], [2], &device)));
            layer.down.weight = Param::from_tensor(float32(&[2.0, 3.0], [2, 1], &device));
            layer.down.bias = Some(Param::from_tensor(float32(&[0.25], [1], &device)));
            assert_close(&values(layer.forward(float32(&[1.0], [1, 1], &device))), &[expected], 1e-6);
        }
    }

    #[test]
    fn drops_in_training_only() {
        for device in devices() {
            device.seed(5);
            let layer = MlpConfig::new(8, 16).with_dropout(0.5).init(&device.clone().autodiff());
            let x = ramp(64 * 8, 1.0);
            let trained = values(layer.forward(float32(&x, [64, 8], &device.clone().autodiff())));
            let plain = values(layer.valid().forward(float32(&x, [64, 8], &device)));
            let dropped = trained.iter().filter(|value| **value == 0.0).count() as f64 / trained.len() as f64;
            assert!((dropped - 0.5).abs() < 0.1, "{dropped}");
            for (trained, plain) in trained.iter().zip(&plain).filter(|(trained, _)| **trained != 0.0) {
                assert!((trained - 2.0 * plain).abs() < 1e-5, "{trained} {plain}");
            }
            assert!(plain.iter().all(|value| *value != 0.0));
        }
    }

    #[test]
    fn refuses_bad_configurations() {
        let device = devices().remove(0);
        assert_eq!(MlpConfig::new(0, 4).try_init(&device).unwrap_err().field, "hidden_size");
        assert_eq!(MlpConfig::new(4, 0).try_init(&device).unwrap_err().field, "intermediate_size");
        for dropout in [-0.1, 1.0, f64::NAN] {
            let config = MlpConfig::new(4, 4).with_dropout(dropout);
            assert_eq!(config.try_init(&device).unwrap_err().field, "dropout");
        }
    }
}
