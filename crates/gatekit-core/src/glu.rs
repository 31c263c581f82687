//! The gated linear unit without an activation.

use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

use crate::config::ModuleConfig;
use crate::error::ConfigError;
use crate::gate::{GateActivation, output_gate};
use crate::init;

/// Configuration of [`SimpleGlu`].
#[derive(Config, Debug)]
pub struct SimpleGluConfig {
    /// Channels of input and output, at least 1.
    pub hidden_size: usize,
    /// Channels in between, at least 1.
    pub intermediate_size: usize,
    /// Whether the projections have biases. Default false.
    #[config(default = false)]
    pub bias: bool,
}

impl ModuleConfig for SimpleGluConfig {
    type Module = SimpleGlu;

    fn try_init(&self, device: &Device) -> Result<SimpleGlu, ConfigError> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        for (field, size) in [("hidden_size", hidden), ("intermediate_size", inner)] {
            if size == 0 {
                return Err(ConfigError::new(field, size, "at least 1"));
            }
        }
        let linear = |from, to| init::linear(from, to, self.bias, device);
        Ok(SimpleGlu { l1: linear(hidden, inner), l2: linear(hidden, inner), l3: linear(inner, hidden) })
    }
}

/// `y = W_3 (W_1 x * W_2 x)`: each half of a product gates the other.
///
/// Weights start normal(0, 0.02), biases at 0. Field names are those of TransNormerLLM's
/// checkpoints. Qin et al. (arXiv 2307.14995), "SGLU"; the bilinear layer of Shazeer, "GLU Variants
/// Improve Transformer" (arXiv 2002.05202), eq. 5.
#[derive(Module, Debug)]
pub struct SimpleGlu {
    /// First factor, `[hidden_size, intermediate_size]`.
    pub l1: Linear,
    /// Second factor, `[hidden_size, intermediate_size]`.
    pub l2: Linear,
    /// Projection back, `[intermediate_size, hidden_size]`.
    pub l3: Linear,
}

impl SimpleGlu {
    /// `[.., hidden_size]` to `[.., hidden_size]`.
    ///
    /// # Panics
    ///
    /// When the last axis of `x` does not have `hidden_size` channels.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let gate = self.l1.forward(x.clone());
        self.l3.forward(output_gate(self.l2.forward(x), gate, GateActivation::Identity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, devices, float32, ramp, values};
    use burn::module::Param;

    #[test]
    fn matches_a_computation_by_hand() {
        let (x, bias) = (ramp(6, 1.0), ramp(4, 0.3));
        let (w1, w2, w3) = (ramp(12, 0.8), ramp(12, 0.6), ramp(12, 0.7));
        let mut expected = Vec::new();
        for row in x.chunks(3) {
            let project = |w: &[f64], j: usize| (0..3).map(|i| row[i] * w[i * 4 + j]).sum::<f64>();
            let inner: Vec<f64> = (0..4).map(|j| (project(&w1, j) + bias[j]) * project(&w2, j)).collect();
            expected.extend((0..3).map(|k| (0..4).map(|j| inner[j] * w3[j * 3 + k]).sum::<f64>()));
        }
        for device in devices() {
            let mut layer = SimpleGluConfig::new(3, 4).with_bias(true).init(&device);
            for (linear, weight, shape) in
                [(&mut layer.l1, &w1, [3, 4]), (&mut layer.l2, &w2, [3, 4]), (&mut layer.l3, &w3, [4, 3])]
            {
                linear.weight = Param::from_tensor(float32(weight, shape, &device));
            }
            layer.l1.bias = Some(Param::from_tensor(float32(&bias, [4], &device)));
            assert_close(&values(layer.forward(float32(&x, [2, 3], &device))), &expected, 1e-6);
        }
    }

    #[test]
    fn sizes_and_biases_follow_the_configuration() {
        let device = devices().remove(0);
        assert!(SimpleGluConfig::new(3, 4).init(&device).l2.bias.is_none());
        assert_eq!(SimpleGluConfig::new(0, 4).try_init(&device).unwrap_err().field, "hidden_size");
        assert_eq!(SimpleGluConfig::new(4, 0).try_init(&device).unwrap_err().field, "intermediate_size");
    }
}
