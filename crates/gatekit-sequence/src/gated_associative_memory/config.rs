//! The model's configuration and the form in which it is saved.

use burn::config::Config;
use burn::tensor::Device;
use gatekit_core::checkpoint::{PretrainedConfig, TensorLayout, check_architecture, config_from_json};
use gatekit_core::{ConfigError, ModuleConfig};
use serde_json::{Value, json};

use super::layer::{GamBlock, GamBlockConfig};
use super::mixer::{Fusion, GamMixerConfig};
use super::model::GamLm;

/// More layers than any model has: a larger number in a configuration is a damaged file.
const MAX_LAYERS: usize = 10_000;

/// Configuration of [`GamLm`]. Field names are those of the released code's arguments.
#[derive(Config, Debug)]
pub struct GamConfig {
    /// Number of tokens; 10000 in the paper.
    pub vocab_size: usize,
    /// Width `C`; 512 in the paper.
    pub embed_dim: usize,
    /// Number of blocks; 6 in the paper.
    pub num_layers: usize,
    /// Longest sequence: the number of learned positions.
    #[config(default = 256)]
    pub block_size: usize,
    /// Rows `M` of every block's memory.
    #[config(default = 512)]
    pub num_memory_slots: usize,
    /// Taps `K` of every block's convolution.
    #[config(default = 3)]
    pub conv_kernel_size: usize,
    /// How the two paths become one: `gated`, or `sum`, `global`, `local` in ablations.
    #[config(default = "Fusion::Gated")]
    pub fusion: Fusion,
    /// Share that is dropped in training after the embeddings and at the end of every block, in [0, 1).
    #[config(default = 0.1)]
    pub dropout: f64,
}

impl GamConfig {
    /// The configuration of one block.
    pub fn block(&self) -> GamBlockConfig {
        let mixer = GamMixerConfig::new(self.embed_dim)
            .with_num_memory_slots(self.num_memory_slots)
            .with_conv_kernel_size(self.conv_kernel_size)
            .with_fusion(self.fusion);
        GamBlockConfig::new(mixer).with_dropout(self.dropout)
    }

    /// Tokens that a token can depend on, itself included: `1 + num_layers * (K - 1)`.
    pub fn receptive_field(&self) -> usize {
        1 + self.num_layers * self.conv_kernel_size.saturating_sub(1)
    }
}

impl ModuleConfig for GamConfig {
    type Module = GamLm;

    fn try_init(&self, device: &Device) -> Result<GamLm, ConfigError> {
        for (field, size) in [
            ("vocab_size", self.vocab_size),
            ("num_layers", self.num_layers),
            ("block_size", self.block_size),
        ] {
            if size == 0 {
                return Err(ConfigError::new(field, 0, "at least 1"));
            }
        }
        if self.num_layers > MAX_LAYERS {
            return Err(ConfigError::new("num_layers", self.num_layers, format!("at most {MAX_LAYERS}")));
        }
        let blocks = (0..self.num_layers)
            .map(|_| self.block().try_init(device))
            .collect::<Result<_, ConfigError>>()?;
        Ok(GamLm::new(self, blocks, device))
    }
}

const MODEL_TYPE: &str = "gam";
const ARCHITECTURE: &str = "GAM_Model";

impl PretrainedConfig for GamConfig {
    /// Reads what [`to_published`](Self::to_published) writes. The released code saves weights
    /// without a configuration; `model_type` is `gam` here, the fields have the code's names.
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        check_architecture(json, MODEL_TYPE, ARCHITECTURE)?;
        config_from_json(&Self::new(10_000, 512, 6), json)
    }

    fn to_published(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        json["model_type"] = json!(MODEL_TYPE);
        json["architectures"] = json!([ARCHITECTURE]);
        json
    }

    /// The released code's names.
    fn layout(&self) -> TensorLayout {
        GamBlock::layout("blocks.{}.")
    }
}
