//! The gated feed-forward layer of image models.

use burn::config::Config;
use burn::module::Module;
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};

use crate::config::{ModuleConfig, check_sizes};
use crate::conv::convolve;
use crate::error::ConfigError;
use crate::gate::{GateActivation, output_gate};

/// Configuration of [`GluConv`].
#[derive(Config, Debug)]
pub struct GluConvConfig {
    /// Channels C of input and output, at least 1.
    pub channels: usize,
    /// Channels h of each half in between, at least 1.
    pub hidden_channels: usize,
    /// Side of the depthwise convolution, odd. Default 3.
    #[config(default = 3)]
    pub kernel_size: usize,
    /// Whether the convolutions have biases. Default false.
    #[config(default = false)]
    pub bias: bool,
    /// Activation of the gate. Default the exact GELU.
    #[config(default = "GateActivation::Gelu")]
    pub activation: GateActivation,
}

impl ModuleConfig for GluConvConfig {
    type Module = GluConv;

    fn try_init(&self, device: &Device) -> Result<GluConv, ConfigError> {
        let (channels, hidden, kernel) = (self.channels, self.hidden_channels, self.kernel_size);
        check_sizes(&[("channels", channels), ("hidden_channels", hidden), ("kernel_size", kernel)])?;
        if kernel.is_multiple_of(2) {
            return Err(ConfigError::new("kernel_size", kernel, "an odd number"));
        }
        self.activation.check("activation")?;
        let convolution = |channels: [usize; 2], kernel: usize, groups: usize| {
            let half = kernel / 2;
            Conv2dConfig::new(channels, [kernel, kernel])
                .with_groups(groups)
                .with_padding(PaddingConfig2d::Explicit(half, half, half, half))
                .with_bias(self.bias)
                .init(device)
        };
        Ok(GluConv {
            project_in: convolution([channels, 2 * hidden], 1, 1),
            dwconv: convolution([2 * hidden, 2 * hidden], kernel, 2 * hidden),
            project_out: convolution([hidden, channels], 1, 1),
            activation: self.activation,
        })
    }
}

/// `y = W_out (act(a) * b)` with `[a; b] = dw(W_in x)`: half of the channels, each mixed with its neighbourhood, gates
/// the other half.
///
/// `W_in` and `W_out` are 1x1 convolutions, `dw` a depthwise one that keeps the size. Weights start as PyTorch's
/// convolutions do; field names are those of Restormer's checkpoints. Zamir et al., "Restormer" (arXiv 2111.09881),
/// eq. 2.
#[derive(Module, Debug)]
pub struct GluConv {
    /// `W_in`, `[2 h, C, 1, 1]`.
    pub project_in: Conv2d,
    /// `dw`, `[2 h, 1, k, k]`.
    pub dwconv: Conv2d,
    /// `W_out`, `[C, h, 1, 1]`.
    pub project_out: Conv2d,
    /// Activation of the gate.
    #[module(skip)]
    pub activation: GateActivation,
}

impl GluConv {
    /// `[B, C, H, W]` to the same shape.
    ///
    /// # Panics
    ///
    /// When `x` has another number of channels.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let halves = convolve(&self.dwconv, convolve(&self.project_in, x, None), None);
        let hidden = halves.dims()[1] / 2;
        let (a, b) = (halves.clone().narrow(1, 0, hidden), halves.narrow(1, hidden, hidden));
        convolve(&self.project_out, output_gate(b, a, self.activation), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::gelu;
    use crate::test_util::{assert_close, devices, float32, ramp, values};

    #[test]
    fn half_of_the_channels_gates_the_other() {
        for device in devices() {
            let layer = GluConvConfig::new(3, 4).with_bias(true).init(&device);
            let x = float32(&ramp(2 * 3 * 5 * 4, 1.0), [2, 3, 5, 4], &device);
            // Burn's own convolutions.
            let inner = layer.dwconv.forward(layer.project_in.forward(x.clone()));
            let (a, b) = (inner.clone().narrow(1, 0, 4), inner.narrow(1, 4, 4));
            let expected = layer.project_out.forward(gelu(a) * b);
            assert_close(&values(layer.forward(x)), &values(expected), 1e-5);
        }
    }

    #[test]
    fn a_closed_half_lets_nothing_pass() {
        let device = devices().remove(0);
        let mut layer = GluConvConfig::new(2, 3).init(&device);
        let [out, taps] = [6, 9];
        let mut weight = ramp(out * taps, 1.0);
        weight[..3 * taps].fill(0.0);
        layer.dwconv.weight = burn::module::Param::from_tensor(float32(&weight, [6, 1, 3, 3], &device));
        let y = layer.forward(float32(&ramp(2, 1.0), [1, 2, 1, 1], &device));
        assert_eq!(values(y), [0.0, 0.0]);
    }

    #[test]
    fn refuses_bad_configurations() {
        let device = devices().remove(0);
        let field = |config: GluConvConfig| config.try_init(&device).unwrap_err().field;
        assert_eq!(field(GluConvConfig::new(0, 1)), "channels");
        assert_eq!(field(GluConvConfig::new(1, 0)), "hidden_channels");
        assert_eq!(field(GluConvConfig::new(1, 1).with_kernel_size(2)), "kernel_size");
        assert_eq!(
            field(GluConvConfig::new(1, 1).with_activation(GateActivation::LinearClipping(0.0))),
            "activation"
        );
    }
}
