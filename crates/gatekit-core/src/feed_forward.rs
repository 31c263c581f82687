//! The gated feed-forward layer of today's language models.

use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

use crate::config::ModuleConfig;
use crate::error::ConfigError;
use crate::gate::{GateActivation, output_gate};
use crate::init;

/// Configuration of [`SwiGlu`].
#[derive(Config, Debug)]
pub struct SwiGluConfig {
    /// Channels of input and output, at least 1.
    pub hidden_size: usize,
    /// Channels in between, at least 1; published models take about `8 / 3 hidden_size`.
    pub intermediate_size: usize,
}

impl ModuleConfig for SwiGluConfig {
    type Module = SwiGlu;

    fn try_init(&self, device: &Device) -> Result<SwiGlu, ConfigError> {
        for (field, size) in
            [("hidden_size", self.hidden_size), ("intermediate_size", self.intermediate_size)]
        {
            if size == 0 {
                return Err(ConfigError::new(field, size, "at least 1"));
            }
        }
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        Ok(SwiGlu {
            gate_proj: init::linear(hidden, inner, false, device),
            up_proj: init::linear(hidden, inner, false, device),
            down_proj: init::linear(inner, hidden, false, device),
        })
    }
}

/// `y = W_down (silu(W_gate x) * W_up x)`, without biases (projections that are given one have it).
///
/// Weights start normal(0, 0.02). Shazeer, "GLU Variants Improve Transformer" (arXiv 2002.05202), eq. 6.
#[derive(Module, Debug)]
pub struct SwiGlu {
    /// Projection to the gate's logits, `[hidden_size, intermediate_size]`.
    pub gate_proj: Linear,
    /// Projection to what is gated, `[hidden_size, intermediate_size]`.
    pub up_proj: Linear,
    /// Projection back, `[intermediate_size, hidden_size]`.
    pub down_proj: Linear,
}

impl SwiGlu {
    /// `[.., hidden_size]` to `[.., hidden_size]`.
    ///
    /// # Panics
    ///
    /// When the last axis of `x` does not have `hidden_size` channels.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let logits = self.gate_proj.forward(x.clone());
        self.down_proj.forward(output_gate(self.up_proj.forward(x), logits, GateActivation::Swish))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, devices, float32, ramp, values};
    use burn::module::Param;

    /// `x [rows, n] W [n, m]` in float64.
    fn product(x: &[f64], weight: &[f64], n: usize, m: usize) -> Vec<f64> {
        x.chunks(n)
            .flat_map(|row| (0..m).map(move |j| (0..n).map(|i| row[i] * weight[i * m + j]).sum()))
            .collect()
    }

    #[test]
    fn matches_a_computation_by_hand() {
        let (x, gate, up, down) = (ramp(6, 1.0), ramp(12, 0.8), ramp(12, 0.6), ramp(12, 0.7));
        let logits = product(&x, &gate, 3, 4);
        let mixed: Vec<f64> =
            product(&x, &up, 3, 4).iter().zip(&logits).map(|(u, z)| u * z / (1.0 + (-z).exp())).collect();
        let expected = product(&mixed, &down, 4, 3);
        for device in devices() {
            let mut layer = SwiGluConfig::new(3, 4).init(&device);
            layer.gate_proj.weight = Param::from_tensor(float32(&gate, [3, 4], &device));
            layer.up_proj.weight = Param::from_tensor(float32(&up, [3, 4], &device));
            layer.down_proj.weight = Param::from_tensor(float32(&down, [4, 3], &device));
            assert_close(&values(layer.forward(float32(&x, [2, 3], &device))), &expected, 1e-6);
            assert_close(&values(layer.forward(float32(&x, [1, 2, 3], &device))), &expected, 1e-6);
        }
    }

    #[test]
    fn refuses_empty_sizes() {
        let device = devices().remove(0);
        assert_eq!(SwiGluConfig::new(0, 4).try_init(&device).unwrap_err().field, "hidden_size");
        assert_eq!(SwiGluConfig::new(4, 0).try_init(&device).unwrap_err().field, "intermediate_size");
    }
}
