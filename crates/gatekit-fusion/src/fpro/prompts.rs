//! Prompts made, and brought to decoder features.

use burn::config::Config;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};
use gatekit_core::conv::pointwise_conv2d;
use gatekit_core::{ConfigError, ModuleConfig};

use super::config::Frequencies;
use super::generators::{
    HighPromptGenerator, HighPromptGeneratorConfig, LowPromptGenerator, LowPromptGeneratorConfig,
};
use super::modulators::{
    HighPromptModulator, HighPromptModulatorConfig, LowPromptModulator, LowPromptModulatorConfig,
};

/// Configuration of [`PromptModule`].
#[derive(Config, Debug)]
pub struct PromptModuleConfig {
    /// Channels d of the prompts.
    pub dim: usize,
    /// Channels C of the features, a multiple of `prompt_heads`.
    pub decoder_dim: usize,
    /// Rows H of the features, a multiple of `window_size`.
    pub height: usize,
    /// Columns W of the features, a multiple of `window_size`.
    pub width: usize,
    /// Heads of the modulators. Default 2.
    #[config(default = 2)]
    pub prompt_heads: usize,
    /// Pixels of a window's side. Default 8.
    #[config(default = 8)]
    pub window_size: usize,
    /// Which prompts there are. Default both.
    #[config(default = "Frequencies::Both")]
    pub frequencies: Frequencies,
}

impl ModuleConfig for PromptModuleConfig {
    type Module = PromptModule;

    fn try_init(&self, device: &Device) -> Result<PromptModule, ConfigError> {
        let (dim, channels) = (self.dim, self.decoder_dim);
        let (height, width, heads) = (self.height, self.width, self.prompt_heads);
        let modulator_hi = HighPromptModulatorConfig::new(dim, channels)
            .with_prompt_heads(heads)
            .with_window_size(self.window_size)
            .try_init(device)?;
        for (field, side) in [("height", height), ("width", width)] {
            if !side.is_multiple_of(self.window_size) {
                let need = format!("a multiple of window_size = {}", self.window_size);
                return Err(ConfigError::new(field, side, need));
            }
        }
        let (high, low) = (self.frequencies.has_high(), self.frequencies.has_low());
        let of_low = LowPromptModulatorConfig::new(dim, channels).with_prompt_heads(heads);
        Ok(PromptModule {
            high_generator: match high {
                true => Some(HighPromptGeneratorConfig::new(dim, height, width).try_init(device)?),
                false => None,
            },
            low_generator: match low {
                true => Some(LowPromptGeneratorConfig::new(dim, height, width).try_init(device)?),
                false => None,
            },
            modulator_hi: high.then_some(modulator_hi),
            modulator_lo: if low { Some(of_low.try_init(device)?) } else { None },
            simple_fusion: Conv2dConfig::new([2 * channels, channels], [1, 1]).init(device),
        })
    }
}

/// `W [y_high; y_low] + b`: what both prompts add to decoder features, merged by a 1x1 convolution. A prompt that there is
/// not contributes 0.
///
/// Zhou et al. (ECCV 2024).
#[derive(Module, Debug)]
pub struct PromptModule {
    /// Makes the high prompt.
    pub high_generator: Option<HighPromptGenerator>,
    /// Makes the low prompt.
    pub low_generator: Option<LowPromptGenerator>,
    /// Attention to the high prompt.
    pub modulator_hi: Option<HighPromptModulator>,
    /// The low prompt's global token.
    pub modulator_lo: Option<LowPromptModulator>,
    /// `W` `[C, 2 C, 1, 1]` and `b`.
    pub simple_fusion: Conv2d,
}

/// The prompts of one place of the network, `[B, d, H, W]`.
#[derive(Debug, Clone)]
pub struct Prompts {
    /// Of the low frequencies.
    pub low: Option<Tensor<4>>,
    /// Of the high frequencies.
    pub high: Option<Tensor<4>>,
}

/// Where prompts act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PromptStage {
    /// After the decoder's third level, at a quarter of the resolution.
    D3,
    /// After the second level, at half of the resolution.
    D2,
    /// After the first level.
    D1,
    /// After the refinement.
    Refinement,
}

impl PromptStage {
    /// All of them, in the order in which they act.
    pub const ALL: [Self; 4] = [Self::D3, Self::D2, Self::D1, Self::Refinement];
}

impl PromptModule {
    /// The prompts of the low and high part of the first features, each `[B, d, any, any]`.
    ///
    /// # Panics
    ///
    /// When the channels do not fit.
    pub fn prompts(&self, low: Tensor<4>, high: Tensor<4>) -> Prompts {
        Prompts {
            low: self.low_generator.as_ref().map(|generator| generator.forward(low)),
            high: self.high_generator.as_ref().map(|generator| generator.forward(high)),
        }
    }

    /// What the prompts add to features `x` `[B, C, H, W]`, of the same shape. A prompt that is absent (or unknown to the
    /// module) contributes nothing.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn modulate(&self, prompts: Prompts, x: Tensor<4>) -> Tensor<4> {
        let weight = self.simple_fusion.weight.val();
        let (dims @ [_, channels, _, _], [out, _, _, _]) = (x.dims(), weight.dims());
        assert!(channels == out, "PromptModule: `x` {dims:?} does not have {out} channels");
        let mut y = match &self.simple_fusion.bias {
            Some(bias) => bias.val().reshape([1, out, 1, 1]),
            None => Tensor::zeros([1, out, 1, 1], (&x.device(), x.dtype())),
        };
        // The low half is the same at every pixel: its part of the product is made once an image.
        if let (Some(prompt), Some(modulator)) = (prompts.low, &self.modulator_lo) {
            let low = modulator.forward(prompt);
            y = y + pointwise_conv2d(low, weight.clone().narrow(1, out, out), None);
        }
        match (prompts.high, &self.modulator_hi) {
            (Some(prompt), Some(modulator)) => {
                let high = modulator.forward(x, prompt);
                pointwise_conv2d(high, weight.narrow(1, 0, out), None) + y
            }
            _ => y.expand(dims),
        }
    }

    /// `low` and `high` `[B, d, any, any]`, features `x` `[B, C, H, W]` to what is added to them, `[B, C, H, W]`.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, low: Tensor<4>, high: Tensor<4>, x: Tensor<4>) -> Tensor<4> {
        self.modulate(self.prompts(low, high), x)
    }
}
