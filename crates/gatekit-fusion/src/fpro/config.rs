//! What an FPro is made of.

use burn::config::Config;
use burn::tensor::{Device, Tensor};
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};
use serde::{Deserialize, Serialize};

use super::dynamic_filter::GatedDynamicFilterConfig;
use super::loss::restoration_loss;
use super::model::FPro;
use super::prompts::{PromptModuleConfig, PromptStage};

/// Which prompts a network has: both, or what they are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frequencies {
    /// The transformer alone.
    None,
    /// The low prompt.
    Low,
    /// The high prompt.
    High,
    /// Both.
    Both,
}

impl Frequencies {
    /// Whether there is a low prompt.
    pub fn has_low(self) -> bool {
        matches!(self, Self::Low | Self::Both)
    }

    /// Whether there is a high prompt.
    pub fn has_high(self) -> bool {
        matches!(self, Self::High | Self::Both)
    }
}

/// Configuration of [`FPro`]. The defaults are the published model's, of 22.3 million parameters.
#[derive(Config, Debug)]
pub struct FProConfig {
    /// Channels of the image that comes in. Default 3.
    #[config(default = 3)]
    pub inp_channels: usize,
    /// Channels of the image that goes out, which is added to the one that came in: as many. Default 3.
    #[config(default = 3)]
    pub out_channels: usize,
    /// Channels d at full resolution and of the prompts, even. Default 48.
    #[config(default = 48)]
    pub dim: usize,
    /// Blocks of levels 1, 2, 3, in encoder and decoder alike. Default 2, 3, 6.
    #[config(default = "[2, 3, 6]")]
    pub num_blocks: [usize; 3],
    /// Blocks of the refinement. Default 2.
    #[config(default = 2)]
    pub num_refinement_blocks: usize,
    /// Heads of the attention between channels, divisors of the decoder's widths 2 d, 2 d, 4 d. Default 2, 4, 8.
    #[config(default = "[2, 4, 8]")]
    pub heads: [usize; 3],
    /// Channels in each half of a feed-forward layer, as a multiple of its width, rounded down. Default 3.
    #[config(default = 3.0)]
    pub ffn_expansion_factor: f64,
    /// Pixels of a side of the image, a multiple of 4 `window_size`. Default 256.
    #[config(default = 256)]
    pub image_size: usize,
    /// Pixels of a side of the high modulators' windows. Default 8.
    #[config(default = 8)]
    pub window_size: usize,
    /// Heads of the modulators. Default 2.
    #[config(default = 2)]
    pub prompt_heads: usize,
    /// Groups of channels that share a dynamic filter, a divisor of `dim`. Default 8.
    #[config(default = 8)]
    pub filter_groups: usize,
    /// Side of the dynamic filters, odd. Default 3.
    #[config(default = 3)]
    pub filter_size: usize,
    /// Whether the dynamic filter gates itself. Default true.
    #[config(default = true)]
    pub filter_gate: bool,
    /// Which prompts there are. Default both.
    #[config(default = "Frequencies::Both")]
    pub frequencies: Frequencies,
    /// Weight of the spectrum in the loss, at least 0. Default 0.1.
    #[config(default = 0.1)]
    pub fft_weight: f64,
}

impl FProConfig {
    /// The dynamic filter.
    pub fn filter(&self) -> GatedDynamicFilterConfig {
        GatedDynamicFilterConfig::new(self.dim)
            .with_filter_groups(self.filter_groups)
            .with_filter_size(self.filter_size)
            .with_filter_gate(self.filter_gate)
    }

    /// The prompts of a stage.
    pub fn prompt_module(&self, stage: PromptStage) -> PromptModuleConfig {
        let (shrunk, widened) = match stage {
            PromptStage::D3 => (4, 4),
            PromptStage::D2 => (2, 2),
            PromptStage::D1 | PromptStage::Refinement => (1, 2),
        };
        let side = self.image_size / shrunk;
        PromptModuleConfig::new(self.dim, widened * self.dim, side, side)
            .with_prompt_heads(self.prompt_heads)
            .with_window_size(self.window_size)
            .with_frequencies(self.frequencies)
    }

    /// The training loss of restored images; see [`restoration_loss`].
    ///
    /// # Panics
    ///
    /// As there.
    pub fn loss(&self, restored: Tensor<4>, target: Tensor<4>) -> Tensor<1> {
        restoration_loss(restored, target, self.fft_weight)
    }

    /// Refuses what describes no network.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first field that cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        let [one, two, three] = self.num_blocks;
        check_sizes(&[
            ("inp_channels", self.inp_channels),
            ("out_channels", self.out_channels),
            ("dim", self.dim),
            ("num_blocks", one),
            ("num_blocks", two),
            ("num_blocks", three),
            ("num_refinement_blocks", self.num_refinement_blocks),
            ("image_size", self.image_size),
            ("window_size", self.window_size),
            ("prompt_heads", self.prompt_heads),
            ("filter_groups", self.filter_groups),
            ("filter_size", self.filter_size),
        ])?;
        if self.out_channels != self.inp_channels {
            let need = format!("inp_channels = {}, to which it is added", self.inp_channels);
            return Err(ConfigError::new("out_channels", self.out_channels, need));
        }
        if !self.dim.is_multiple_of(2) {
            return Err(ConfigError::new("dim", self.dim, "an even number"));
        }
        for (heads, level) in self.heads.into_iter().zip([2, 2, 4]) {
            let width = level * self.dim;
            if heads == 0 || !width.is_multiple_of(heads) {
                let need = format!("divisors of the levels' widths; {heads} is none of {width}");
                return Err(ConfigError::new("heads", format!("{:?}", self.heads), need));
            }
        }
        if !(2 * self.dim).is_multiple_of(self.prompt_heads) {
            let need = format!("a divisor of 2 dim = {}", 2 * self.dim);
            return Err(ConfigError::new("prompt_heads", self.prompt_heads, need));
        }
        let hidden = self.dim as f64 * self.ffn_expansion_factor;
        if !(1.0..1e6).contains(&hidden) {
            let need = format!("a number that gives dim = {} a channel or more", self.dim);
            return Err(ConfigError::new("ffn_expansion_factor", self.ffn_expansion_factor, need));
        }
        if !self.image_size.is_multiple_of(4 * self.window_size) {
            let need = format!("a multiple of 4 window_size = {}", 4 * self.window_size);
            return Err(ConfigError::new("image_size", self.image_size, need));
        }
        if !(self.fft_weight.is_finite() && self.fft_weight >= 0.0) {
            return Err(ConfigError::new("fft_weight", self.fft_weight, "a finite number, at least 0"));
        }
        if self.filter_size / 2 >= self.image_size {
            let need = format!("filters that image_size = {} holds", self.image_size);
            return Err(ConfigError::new("filter_size", self.filter_size, need));
        }
        Ok(())
    }
}

impl ModuleConfig for FProConfig {
    type Module = FPro;

    fn try_init(&self, device: &Device) -> Result<FPro, ConfigError> {
        self.check()?;
        FPro::new(self, device)
    }
}
