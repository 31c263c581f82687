//! A gate a position.

use burn::config::Config;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};

use crate::config::{ModuleConfig, check_sizes};
use crate::conv::{Activation, convolve};
use crate::error::ConfigError;

/// Configuration of [`SpatialGate`].
#[derive(Config, Debug)]
pub struct SpatialGateConfig {
    /// Channels of the guiding map, at least 1.
    pub channels: usize,
}

impl ModuleConfig for SpatialGateConfig {
    type Module = SpatialGate;

    fn try_init(&self, device: &Device) -> Result<SpatialGate, ConfigError> {
        check_sizes(&[("channels", self.channels)])?;
        Ok(SpatialGate { conv: Conv2dConfig::new([self.channels, 1], [1, 1]).init(device) })
    }
}

/// `g = sigmoid(w . guide + b)`: how open a position is, seen from a guiding feature map.
///
/// Weights start uniform within `1 / sqrt(C)`. PACGNet (arXiv 2512.18291) opens positions by `1 + g`.
#[derive(Module, Debug)]
pub struct SpatialGate {
    /// The projection to one channel, `[1, C, 1, 1]`.
    pub conv: Conv2d,
}

impl SpatialGate {
    /// The gate of `guide` `[B, C, H, W]`: `[B, 1, H, W]`, in (0, 1).
    ///
    /// # Panics
    ///
    /// When `guide` has another number of channels.
    pub fn gate(&self, guide: Tensor<4>) -> Tensor<4> {
        convolve(&self.conv, guide, Some(Activation::Sigmoid))
    }

    /// `x * g` for `x` `[B, C', H, W]`.
    ///
    /// # Panics
    ///
    /// As [`gate`](Self::gate), and when the maps differ in size.
    pub fn forward(&self, x: Tensor<4>, guide: Tensor<4>) -> Tensor<4> {
        assert_same_size("SpatialGate", ("guide", &guide), ("x", &x));
        x * self.gate(guide)
    }

    /// `x * (1 + g)` for `x` `[B, C', H, W]`: positions are raised, none is closed.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn amplify(&self, x: Tensor<4>, guide: Tensor<4>) -> Tensor<4> {
        assert_same_size("SpatialGate", ("guide", &guide), ("x", &x));
        x * (self.gate(guide) + 1.0)
    }
}

/// Maps that meet position by position.
pub(super) fn assert_same_size(of: &str, a: (&str, &Tensor<4>), b: (&str, &Tensor<4>)) {
    let ([batch, _, height, width], other) = (a.1.dims(), b.1.dims());
    assert!(
        [batch, height, width] == [other[0], other[2], other[3]],
        "{of}: `{}` {:?} and `{}` {:?} differ in batch, height or width",
        a.0,
        a.1.dims(),
        b.0,
        other
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, devices, float32, ramp, values};
    use burn::module::Param;

    #[test]
    fn positions_are_opened_by_the_guide() {
        for device in devices() {
            let mut gate = SpatialGateConfig::new(2).init(&device);
            gate.conv.weight = Param::from_tensor(float32(&[1.0, -2.0], [1, 2, 1, 1], &device));
            gate.conv.bias = Some(Param::from_tensor(float32(&[0.5], [1], &device)));
            // Logits 0.5 + a - 2 b.
            let guide = float32(&[0.0, 300.0, -300.0, 0.0, 0.0, 0.25], [1, 2, 1, 3], &device);
            let want = [1.0 / (1.0 + (-0.5f64).exp()), 1.0, 0.0];
            assert_close(&values(gate.gate(guide.clone())), &want, 1e-6);
            let x = ramp(9, 1.0);
            let map = float32(&x, [1, 3, 1, 3], &device);
            let closed: Vec<f64> = x.iter().enumerate().map(|(i, x)| x * want[i % 3]).collect();
            let raised: Vec<f64> = x.iter().zip(&closed).map(|(x, closed)| x + closed).collect();
            assert_close(&values(gate.forward(map.clone(), guide.clone())), &closed, 1e-6);
            assert_close(&values(gate.amplify(map, guide)), &raised, 1e-6);
        }
    }

    #[test]
    fn bad_sizes_are_named() {
        let device = devices().remove(0);
        assert_eq!(SpatialGateConfig::new(0).try_init(&device).unwrap_err().field, "channels");
        let gate = SpatialGateConfig::new(2).init(&device);
        let (x, guide) = (Tensor::ones([1, 3, 4, 4], &device), Tensor::ones([1, 2, 2, 4], &device));
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| gate.forward(x, guide)));
        let text = *panic.unwrap_err().downcast::<String>().unwrap();
        assert!(text.contains("`guide` [1, 2, 2, 4]") && text.contains("`x` [1, 3, 4, 4]"), "{text}");
    }
}
