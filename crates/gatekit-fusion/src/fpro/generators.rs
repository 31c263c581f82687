//! Prompts of the low and high frequencies of a feature map.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor};
use gatekit_core::fourier::{Spectrum, irfft2, rfft2};
use gatekit_core::gate::{GateActivation, SelfGate, SelfGateConfig};
use gatekit_core::resize::{Interpolation, resize};
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};

/// Learned maps start normal with this deviation.
const DEVIATION: f64 = 0.02;

/// Configuration of [`HighPromptGenerator`].
#[derive(Config, Debug)]
pub struct HighPromptGeneratorConfig {
    /// Channels d.
    pub dim: usize,
    /// Rows H of the prompt.
    pub height: usize,
    /// Columns W of the prompt.
    pub width: usize,
}

impl ModuleConfig for HighPromptGeneratorConfig {
    type Module = HighPromptGenerator;

    fn try_init(&self, device: &Device) -> Result<HighPromptGenerator, ConfigError> {
        let (dim, height, width) = (self.dim, self.height, self.width);
        check_sizes(&[("dim", dim), ("height", height), ("width", width)])?;
        let normal = Initializer::Normal { mean: 0.0, std: DEVIATION };
        Ok(HighPromptGenerator {
            weight: normal.init([1, dim, height, width], device),
            gate: SelfGateConfig::new(dim)
                .with_kernels(vec![[1, 3], [3, 1]])
                .with_depthwise(true)
                .with_bias(true)
                .with_activation(GateActivation::Gelu)
                .try_init(device)?,
        })
    }
}

/// `y = GELU(dw_{3x1}(dw_{1x3}(f))) * f * M` with `f` the high part, resized bilinearly: gated in space, weighed by a
/// learned map.
///
/// M starts normal(0, 0.02). Zhou et al. (ECCV 2024).
#[derive(Module, Debug)]
pub struct HighPromptGenerator {
    /// M, `[1, d, H, W]`.
    pub weight: Param<Tensor<4>>,
    /// Separable and depthwise, with biases.
    pub gate: SelfGate,
}

impl HighPromptGenerator {
    /// `high` `[B, d, any, any]` to `[B, d, H, W]`.
    ///
    /// # Panics
    ///
    /// When the channels do not fit.
    pub fn forward(&self, high: Tensor<4>) -> Tensor<4> {
        let map = self.weight.val();
        let [_, dim, height, width] = map.dims();
        assert_channels("HighPromptGenerator", "high", &high, dim);
        self.gate.forward(resize(high, [height, width], Interpolation::Bilinear)) * map
    }
}

/// Configuration of [`LowPromptGenerator`].
#[derive(Config, Debug)]
pub struct LowPromptGeneratorConfig {
    /// Channels d.
    pub dim: usize,
    /// Rows H of the prompt.
    pub height: usize,
    /// Columns W of the prompt.
    pub width: usize,
}

impl ModuleConfig for LowPromptGeneratorConfig {
    type Module = LowPromptGenerator;

    fn try_init(&self, device: &Device) -> Result<LowPromptGenerator, ConfigError> {
        let (dim, height, width) = (self.dim, self.height, self.width);
        check_sizes(&[("dim", dim), ("height", height), ("width", width)])?;
        let normal = Initializer::Normal { mean: 0.0, std: DEVIATION };
        Ok(LowPromptGenerator {
            complex_weight: normal.init([1, dim, height, width / 2 + 1, 2], device),
            gate: SelfGateConfig::new(2 * dim)
                .with_bias(true)
                .with_activation(GateActivation::Gelu)
                .try_init(device)?,
            width,
        })
    }
}

/// `y = irfft2(Z * (s GELU(W s + b)))` with `s = [Re; Im]` of the spectrum of the low part, resized bicubically: gated in
/// the Fourier domain, weighed by a learned complex map.
///
/// Z starts normal(0, 0.02). Zhou et al. (ECCV 2024).
#[derive(Module, Debug)]
pub struct LowPromptGenerator {
    /// Z, `[1, d, H, W / 2 + 1, 2]`, real and imaginary part last.
    pub complex_weight: Param<Tensor<5>>,
    /// `W` and `b`, a 1x1 convolution over the 2 d channels of the spectrum.
    pub gate: SelfGate,
    width: usize,
}

impl LowPromptGenerator {
    /// `low` `[B, d, any, any]` to `[B, d, H, W]`.
    ///
    /// # Panics
    ///
    /// When the channels do not fit.
    pub fn forward(&self, low: Tensor<4>) -> Tensor<4> {
        let weight = self.complex_weight.val();
        let ([_, dim, height, columns, _], dtype) = (weight.dims(), low.dtype());
        assert_channels("LowPromptGenerator", "low", &low, dim);
        let Spectrum { re, im } = rfft2(resize(low, [height, self.width], Interpolation::Bicubic));
        let gated = self.gate.forward(Tensor::cat(vec![re, im], 1));
        let (re, im) = (gated.clone().narrow(1, 0, dim), gated.narrow(1, dim, dim));
        let part = |index: usize| weight.clone().narrow(4, index, 1).reshape([1, dim, height, columns]);
        let (a, b) = (part(0), part(1));
        let spectrum = Spectrum { re: re.clone() * a.clone() - im.clone() * b.clone(), im: re * b + im * a };
        irfft2(spectrum, self.width).cast(dtype)
    }
}

/// Panics unless `x` has `dim` channels.
pub(super) fn assert_channels(of: &str, name: &str, x: &Tensor<4>, dim: usize) {
    assert!(x.dims()[1] == dim, "{of}: `{name}` {:?} does not have {dim} channels", x.dims());
}
