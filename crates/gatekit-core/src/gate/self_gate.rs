//! A gate computed from the signal that it gates.

use burn::config::Config;
use burn::module::Module;
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};

use super::activation::GateActivation;
use crate::config::{ModuleConfig, check_sizes};
use crate::conv::convolve;
use crate::error::ConfigError;

/// Configuration of [`SelfGate`].
#[derive(Config, Debug)]
pub struct SelfGateConfig {
    /// Channels of the signal, at least 1.
    pub channels: usize,
    /// Heights and widths, odd, of the convolutions that make the logits, one after the other. Default one of 1x1.
    #[config(default = "vec![[1, 1]]")]
    pub kernels: Vec<[usize; 2]>,
    /// Whether the convolutions are depthwise: each channel gated by itself alone. Default false.
    #[config(default = false)]
    pub depthwise: bool,
    /// Whether the convolutions have biases. Default false.
    #[config(default = false)]
    pub bias: bool,
    /// Activation of the gate. Default sigmoid.
    #[config(default = "GateActivation::Sigmoid")]
    pub activation: GateActivation,
}

impl ModuleConfig for SelfGateConfig {
    type Module = SelfGate;

    fn try_init(&self, device: &Device) -> Result<SelfGate, ConfigError> {
        check_sizes(&[("channels", self.channels), ("kernels", self.kernels.len())])?;
        self.activation.check("activation")?;
        let even = self.kernels.iter().find(|kernel| kernel.iter().any(|side| side.is_multiple_of(2)));
        if let Some(kernel) = even {
            return Err(ConfigError::new("kernels", format!("{kernel:?}"), "odd heights and widths"));
        }
        let convolution = |&[height, width]: &[usize; 2]| {
            Conv2dConfig::new([self.channels; 2], [height, width])
                .with_groups(if self.depthwise { self.channels } else { 1 })
                .with_padding(PaddingConfig2d::Explicit(height / 2, width / 2, height / 2, width / 2))
                .with_bias(self.bias)
                .init(device)
        };
        Ok(SelfGate { body: self.kernels.iter().map(convolution).collect(), activation: self.activation })
    }
}

/// `y = f * act(L f)`: a signal gated by what convolutions L make of it.
///
/// With one 1x1 convolution and a sigmoid a vector (a map of one pixel) is gated by itself; with separable depthwise
/// convolutions every position by its neighbourhood. Weights start as PyTorch's convolutions do. Zhou et al., "Seeing the
/// Unseen: A Frequency Prompt Guided Transformer for Image Restoration" (ECCV 2024) has all three forms.
#[derive(Module, Debug)]
pub struct SelfGate {
    /// The convolutions of L, each keeping size and channels.
    pub body: Vec<Conv2d>,
    /// Activation of the gate.
    #[module(skip)]
    pub activation: GateActivation,
}

impl SelfGate {
    /// `f` `[B, C, H, W]` to the same shape.
    ///
    /// # Panics
    ///
    /// When `f` has another number of channels.
    pub fn forward(&self, f: Tensor<4>) -> Tensor<4> {
        self.forward_with_gate(f).0
    }

    /// The gated signal and the gate values, both of the shape of `f` `[B, C, H, W]`.
    ///
    /// # Panics
    ///
    /// When `f` has another number of channels.
    pub fn forward_with_gate(&self, f: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let logits = self.body.iter().fold(f.clone(), |x, convolution| convolve(convolution, x, None));
        let gate = self.activation.apply(logits);
        (f * gate.clone(), gate)
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Param;

    use super::*;
    use crate::activation::gelu;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

    fn set(gate: &mut SelfGate, device: &Device, double: bool) {
        for (index, convolution) in gate.body.iter_mut().enumerate() {
            let shape: [usize; 4] = convolution.weight.shape().dims();
            let tensor = if double { float64 } else { float32 };
            convolution.weight =
                Param::from_tensor(tensor(&ramp(shape.iter().product(), 0.4 + index as f64), shape, device));
            if let Some(bias) = &mut convolution.bias {
                let tensor = if double { float64::<1> } else { float32::<1> };
                *bias = Param::from_tensor(tensor(&ramp(shape[0], 0.3), [shape[0]], device));
            }
        }
    }

    #[test]
    fn a_vector_gates_itself() {
        for device in devices() {
            let mut gate = SelfGateConfig::new(3).init(&device);
            set(&mut gate, &device, false);
            let (f, weight) = (ramp(6, 1.0), values(gate.body[0].weight.val()));
            let expected: Vec<f64> = (0..6)
                .map(|i| {
                    let row = &f[i / 3 * 3..][..3];
                    let logit: f64 = (0..3).map(|j| weight[i % 3 * 3 + j] * row[j]).sum();
                    f[i] / (1.0 + (-logit).exp())
                })
                .collect();
            let (y, open) = gate.forward_with_gate(float32(&f, [2, 3, 1, 1], &device));
            assert_close(&values(y), &expected, 1e-6);
            assert!(values(open).iter().all(|gate| (0.0..=1.0).contains(gate)));
        }
    }

    #[test]
    fn depthwise_gates_see_their_channel_alone() {
        for device in devices() {
            let mut gate = SelfGateConfig::new(2)
                .with_kernels(vec![[1, 3], [3, 1]])
                .with_depthwise(true)
                .with_bias(true)
                .with_activation(GateActivation::Gelu)
                .init(&device);
            set(&mut gate, &device, false);
            let f = float32(&ramp(2 * 2 * 5 * 4, 1.0), [2, 2, 5, 4], &device);
            let logits = gate.body[1].forward(gate.body[0].forward(f.clone()));
            assert_close(&values(gate.forward(f.clone())), &values(f.clone() * gelu(logits)), 1e-6);
            // The other channel does not matter.
            let muted = Tensor::cat(vec![f.clone().narrow(1, 0, 1), f.clone().narrow(1, 1, 1) * 0.0], 1);
            let first = |y: Tensor<4>| values(y.narrow(1, 0, 1));
            assert_close(&first(gate.forward(muted)), &first(gate.forward(f)), 1e-6);
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        for device in devices() {
            let mut gate = SelfGateConfig::new(2)
                .with_kernels(vec![[3, 1], [1, 1]])
                .with_activation(GateActivation::Gelu)
                .init(&device);
            set(&mut gate, &device, true);
            check_gradients(&ramp(12, 1.0), [1, 2, 3, 2], &device, |f| gate.forward(f));
        }
    }

    #[test]
    fn refuses_bad_configurations() {
        let device = devices().remove(0);
        let field = |config: SelfGateConfig| config.try_init(&device).unwrap_err().field;
        assert_eq!(field(SelfGateConfig::new(0)), "channels");
        assert_eq!(field(SelfGateConfig::new(2).with_kernels(vec![])), "kernels");
        assert_eq!(field(SelfGateConfig::new(2).with_kernels(vec![[3, 2]])), "kernels");
        assert_eq!(
            field(SelfGateConfig::new(2).with_activation(GateActivation::TemperedTanh(0.0))),
            "activation"
        );
    }
}
