//! Sizes of the model, from code or from published files.

use burn::config::Config;
use burn::nn::EmbeddingConfig;
use burn::tensor::Device;
use gatekit_core::checkpoint::{PretrainedConfig, TensorLayout, config_from_json};
use gatekit_core::norm::RmsNormConfig;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes, init};
use serde_json::{Value, json};

use super::attention::InjectedAttentionConfig;
use super::bind::BindNetworkConfig;
use super::layout;
use super::lora::LoraLinear;
use super::model::{Block, FeedForward, ImageBindLlm, Llama};

/// What `config.json` calls the model.
const MODEL_TYPE: &str = "imagebind-llm";

/// Configuration of [`ImageBindLlm`]. The defaults are LLaMA 7B in pre-training.
#[derive(Config, Debug)]
pub struct ImageBindLlmConfig {
    /// Channels M of the joint embedding. Default 1024.
    #[config(default = 1024)]
    pub modality_dim: usize,
    /// Channels D of the language model. Default 4096.
    #[config(default = 4096)]
    pub d_model: usize,
    /// Heads H: a divisor of D that leaves each an even number of channels. Default 32.
    #[config(default = 32)]
    pub heads: usize,
    /// Layers of the language model. Default 32.
    #[config(default = 32)]
    pub layers: usize,
    /// Tokens it knows; 0 is padding. Default 32000.
    #[config(default = 32000)]
    pub vocab: usize,
    /// Inner channels of its feed-forward layers. Default 11008.
    #[config(default = 11008)]
    pub ffn_hidden: usize,
    /// Added to the mean square in its norms. Default 1e-6.
    #[config(default = 1e-6)]
    pub norm_eps: f64,
    /// Inner channels of the bind network's blocks. `None` (the default): 4 D.
    #[config(default = "None")]
    pub bind_hidden: Option<usize>,
    /// Blocks of the bind network. Default 3.
    #[config(default = 3)]
    pub bind_blocks: usize,
    /// Layer norms and biases in the bind network's blocks. Default false.
    #[config(default = false)]
    pub legacy_bridge: bool,
    /// How many of the last layers are injected, at least 1. `None` (the default): all.
    #[config(default = "None")]
    pub query_layers: Option<usize>,
    /// Rank of the low-rank deltas, 0 for none. Default 0, as in pre-training; 16 in fine-tuning.
    #[config(default = 0)]
    pub lora_rank: usize,
    /// Biases on the maps of queries and outputs and the three of a feed-forward layer. Default false, as in
    /// pre-training; true in fine-tuning.
    #[config(default = false)]
    pub bias_tuning: bool,
    /// Where the gates' logits start. Default 0: the injected term is silent.
    #[config(default = 0.0)]
    pub gate_start: f64,
}

impl ImageBindLlmConfig {
    /// The same model for fine-tuning: low-rank deltas of rank 16, and biases.
    pub fn fine_tuned(self) -> Self {
        self.with_lora_rank(16).with_bias_tuning(true)
    }

    /// How many of the last layers are injected.
    pub fn injected_layers(&self) -> usize {
        self.query_layers.unwrap_or(self.layers)
    }

    /// Takes over the sizes in the `params.json` beside the released LLaMA weights: `dim`, `n_heads`, `n_layers`,
    /// `norm_eps`, `multiple_of` (which says how 8 D / 3 is rounded up to the feed-forward width) and, unless it is -1,
    /// `vocab_size`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names a field that is missing or no number of its kind.
    pub fn with_llama_params(mut self, params: &Value) -> Result<Self, ConfigError> {
        let size = |field: &str| {
            let value = &params[field];
            let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
            size.ok_or_else(|| ConfigError::new(field, value, "a positive integer"))
        };
        (self.d_model, self.heads, self.layers) = (size("dim")?, size("n_heads")?, size("n_layers")?);
        let multiple = size("multiple_of")?;
        check_sizes(&[("dim", self.d_model), ("multiple_of", multiple)])?;
        self.ffn_hidden = (8 * self.d_model / 3).next_multiple_of(multiple);
        let eps = &params["norm_eps"];
        self.norm_eps = eps.as_f64().ok_or_else(|| ConfigError::new("norm_eps", eps, "a number"))?;
        if params["vocab_size"] != json!(-1) && !params["vocab_size"].is_null() {
            self.vocab = size("vocab_size")?;
        }
        Ok(self)
    }

    /// What the published files call the tensors.
    pub fn tensor_layout(&self) -> TensorLayout {
        layout::of_model(self)
    }

    /// The bind network's part.
    pub fn bind_network(&self) -> BindNetworkConfig {
        BindNetworkConfig::new(self.modality_dim, self.d_model)
            .with_bind_hidden(self.bind_hidden)
            .with_bind_blocks(self.bind_blocks)
            .with_legacy_bridge(self.legacy_bridge)
    }

    fn check(&self) -> Result<(), ConfigError> {
        check_sizes(&[("vocab", self.vocab), ("layers", self.layers), ("ffn_hidden", self.ffn_hidden)])?;
        let injected = self.injected_layers();
        if injected == 0 || injected > self.layers {
            let need = format!("1 to {}, the number of `layers`", self.layers);
            return Err(ConfigError::new("query_layers", injected, need));
        }
        Ok(())
    }

    fn block(&self, injected: bool, device: &Device) -> Result<Block, ConfigError> {
        let (dim, hidden, rank, bias) = (self.d_model, self.ffn_hidden, self.lora_rank, self.bias_tuning);
        let norm = || {
            let norm = RmsNormConfig::new(dim).with_eps(self.norm_eps).try_init(device);
            norm.map_err(|error| if error.field == "eps" { renamed(error, "norm_eps") } else { error })
        };
        let attention = InjectedAttentionConfig::new(dim, self.heads)
            .with_injected(injected)
            .with_lora_rank(rank)
            .with_bias_tuning(bias)
            .with_gate_start(self.gate_start);
        Ok(Block {
            attention_norm: norm()?,
            attention: attention.try_init(device)?,
            ffn_norm: norm()?,
            feed_forward: FeedForward {
                w1: LoraLinear::new(dim, hidden, bias, rank, device),
                w2: LoraLinear::new(hidden, dim, bias, rank, device),
                w3: LoraLinear::new(dim, hidden, bias, rank, device),
            },
        })
    }
}

fn renamed(error: ConfigError, field: &str) -> ConfigError {
    ConfigError { field: field.to_string(), ..error }
}

impl ModuleConfig for ImageBindLlmConfig {
    type Module = ImageBindLlm;

    fn try_init(&self, device: &Device) -> Result<ImageBindLlm, ConfigError> {
        self.check()?;
        let injected = self.injected_layers();
        let bind = self.bind_network().try_init(device)?;
        let layers = (0..self.layers)
            .map(|layer| self.block(layer + injected >= self.layers, device))
            .collect::<Result<_, _>>()?;
        let norm = RmsNormConfig::new(self.d_model).with_eps(self.norm_eps).try_init(device)?;
        Ok(ImageBindLlm {
            bind,
            prefix_query: EmbeddingConfig::new(injected, self.d_model).init(device),
            llama: Llama {
                tok_embeddings: init::embedding(self.vocab, self.d_model, device),
                layers,
                norm,
                output: init::linear(self.d_model, self.vocab, false, device),
            },
        })
    }
}

/// `config.json` holds the fields of the configuration under their own names and `model_type` "imagebind-llm"; the
/// release has no such file, only LLaMA's `params.json` (see [`ImageBindLlmConfig::with_llama_params`]).
impl PretrainedConfig for ImageBindLlmConfig {
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        match json["model_type"].as_str() {
            Some(MODEL_TYPE) => config_from_json(&Self::new(), json),
            _ => Err(ConfigError::new("model_type", &json["model_type"], format!("\"{MODEL_TYPE}\""))),
        }
    }

    fn to_published(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        json["model_type"] = json!(MODEL_TYPE);
        json
    }

    fn layout(&self) -> TensorLayout {
        self.tensor_layout()
    }
}
