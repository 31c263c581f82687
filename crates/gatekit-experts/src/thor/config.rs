//! What the model and its layers are made of, and what published files call their parameters.

use burn::config::Config;
use burn::module::Initializer;
use burn::nn::{DropoutConfig, EmbeddingConfig, LayerNorm, LayerNormConfig};
use burn::tensor::Device;
use gatekit_core::attention::{MultiHeadAttention, MultiHeadAttentionConfig};
use gatekit_core::checkpoint::{PretrainedConfig, TensorLayout, check_architecture, config_from_json};
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};
use serde_json::{Value, json};

use super::assignment::ExpertLevel;
use super::feed_forward::{DenseFfn, StochasticExpertsConfig, ThorFeedForward};
use super::layer::{ThorDecoderLayer, ThorEncoderLayer};
use super::loss::ConsistencyLoss;
use super::model::{ThorDecoder, ThorEncoder, ThorModel};

/// More layers than any model has: a larger number in a configuration is a damaged file.
const MAX_LAYERS: usize = 10_000;

/// Configuration of a [`ThorEncoderLayer`] or [`ThorDecoderLayer`].
#[derive(Config, Debug)]
pub struct ThorLayerConfig {
    /// Channels D, a multiple of `num_heads`.
    pub embed_dim: usize,
    /// Channels H inside the feed-forward part, at least 1.
    pub ffn_dim: usize,
    /// Heads of all attention. Default 4.
    #[config(default = 4)]
    pub num_heads: usize,
    /// Experts E; `None`: a feed-forward part without experts. Default 2.
    #[config(default = "Some(2)")]
    pub num_experts: Option<usize>,
    /// Whether norms stand before what they belong to, instead of behind the sum. Default false.
    #[config(default = false)]
    pub normalize_before: bool,
    /// Added to the variance in layer norms, above 0. Default 1e-5.
    #[config(default = 1e-5)]
    pub layer_norm_eps: f64,
    /// Share that is dropped in training behind every part, in [0, 1). Default 0.3.
    #[config(default = 0.3)]
    pub dropout: f64,
}

impl ThorLayerConfig {
    /// An encoder layer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first field that cannot be used.
    pub fn try_init_encoder(&self, device: &Device) -> Result<ThorEncoderLayer, ConfigError> {
        self.check()?;
        Ok(ThorEncoderLayer {
            self_attn: self.attention(device)?,
            self_attn_layer_norm: self.norm(device),
            ffn: self.feed_forward(device)?,
            final_layer_norm: self.norm(device),
            dropout: DropoutConfig::new(self.dropout).init(),
            normalize_before: self.normalize_before,
        })
    }

    /// A decoder layer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first field that cannot be used.
    pub fn try_init_decoder(&self, device: &Device) -> Result<ThorDecoderLayer, ConfigError> {
        self.check()?;
        Ok(ThorDecoderLayer {
            self_attn: self.attention(device)?,
            self_attn_layer_norm: self.norm(device),
            encoder_attn: self.attention(device)?,
            encoder_attn_layer_norm: self.norm(device),
            ffn: self.feed_forward(device)?,
            final_layer_norm: self.norm(device),
            dropout: DropoutConfig::new(self.dropout).init(),
            normalize_before: self.normalize_before,
        })
    }

    /// Adds to `layout` what published files call the parameters of a layer whose names begin with
    /// `prefix`: `fc1.{e}.weight` and so on for experts, without the `ffn.` that stands before them here.
    pub fn tensor_layout(&self, layout: TensorLayout, prefix: &str) -> TensorLayout {
        let layout = match self.num_experts {
            None => layout,
            Some(_) => ["fc1", "fc2"].into_iter().fold(layout, |layout, name| {
                layout
                    .with_experts(&format!("{prefix}ffn.{name}.weight"), &["weight"])
                    .with_experts(&format!("{prefix}ffn.{name}.bias"), &["bias"])
            }),
        };
        layout.with_prefix(&format!("{prefix}ffn."), prefix)
    }

    fn check(&self) -> Result<(), ConfigError> {
        check_sizes(&[("embed_dim", self.embed_dim), ("ffn_dim", self.ffn_dim)])?;
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps.is_finite()) {
            return Err(ConfigError::new("layer_norm_eps", self.layer_norm_eps, "a finite number above 0"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(ConfigError::new("dropout", self.dropout, "a share in [0, 1)"));
        }
        Ok(())
    }

    fn attention(&self, device: &Device) -> Result<MultiHeadAttention, ConfigError> {
        MultiHeadAttentionConfig::new(self.embed_dim, self.num_heads).try_init(device)
    }

    pub(super) fn norm(&self, device: &Device) -> LayerNorm {
        LayerNormConfig::new(self.embed_dim).with_epsilon(self.layer_norm_eps).init(device)
    }

    fn feed_forward(&self, device: &Device) -> Result<ThorFeedForward, ConfigError> {
        let (dim, inner) = (self.embed_dim, self.ffn_dim);
        Ok(match self.num_experts {
            None => ThorFeedForward::Dense(DenseFfn::new(dim, inner, device)),
            Some(experts) => {
                let config = StochasticExpertsConfig::new(dim, inner).with_num_experts(experts);
                ThorFeedForward::Experts(config.try_init(device)?)
            }
        })
    }
}

/// Configuration of [`ThorModel`] and of its training.
#[derive(Config, Debug)]
pub struct ThorConfig {
    /// Tokens of the joint vocabulary.
    pub vocab_size: usize,
    /// Channels D, a multiple of `num_heads`. Default 512.
    #[config(default = 512)]
    pub embed_dim: usize,
    /// Channels H inside the feed-forward parts; 1024 (the default) in small models, 2048 or 4096 in larger.
    #[config(default = 1024)]
    pub ffn_dim: usize,
    /// Experts E of a layer that has some. Default 2.
    #[config(default = 2)]
    pub num_experts: usize,
    /// Heads of all attention; 4 (the default) in small models, 8 or 16 in larger.
    #[config(default = 4)]
    pub num_heads: usize,
    /// Layers of the encoder. Default 6.
    #[config(default = 6)]
    pub encoder_layers: usize,
    /// Layers of the decoder. Default 6.
    #[config(default = 6)]
    pub decoder_layers: usize,
    /// Which layers of encoder and decoder have experts, counted from 0. `None` (the default): the even ones.
    #[config(default = "None")]
    pub expert_layers: Option<Vec<usize>>,
    /// What has an expert of its own in training. Default a pass.
    #[config(default = "ExpertLevel::Pass")]
    pub level: ExpertLevel,
    /// Whether norms stand before what they belong to. Default false.
    #[config(default = false)]
    pub normalize_before: bool,
    /// Added to the variance in layer norms, above 0. Default 1e-5.
    #[config(default = 1e-5)]
    pub layer_norm_eps: f64,
    /// Share that is dropped in training, in [0, 1). Default 0.3.
    #[config(default = 0.3)]
    pub dropout: f64,
    /// Weight of the consistency term. Default 5.
    #[config(default = 5.0)]
    pub consistency_alpha: f64,
    /// Label smoothing, in [0, 1). Default 0.1.
    #[config(default = 0.1)]
    pub label_smoothing: f64,
    /// Token that is padding, in sources and targets. Default 1.
    #[config(default = 1)]
    pub padding_idx: usize,
}

impl ThorConfig {
    /// The loss of this model.
    pub fn loss(&self) -> ConsistencyLoss {
        ConsistencyLoss::new()
            .with_consistency_alpha(self.consistency_alpha)
            .with_label_smoothing(self.label_smoothing)
            .with_padding_idx(self.padding_idx as i64)
    }

    /// Whether layer `index` of the encoder or decoder has experts.
    pub fn has_experts(&self, index: usize) -> bool {
        match &self.expert_layers {
            None => index.is_multiple_of(2),
            Some(layers) => layers.contains(&index),
        }
    }

    /// The configuration of layer `index` of the encoder or decoder.
    pub fn layer(&self, index: usize) -> ThorLayerConfig {
        ThorLayerConfig {
            embed_dim: self.embed_dim,
            ffn_dim: self.ffn_dim,
            num_heads: self.num_heads,
            num_experts: self.has_experts(index).then_some(self.num_experts),
            normalize_before: self.normalize_before,
            layer_norm_eps: self.layer_norm_eps,
            dropout: self.dropout,
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        check_sizes(&[("vocab_size", self.vocab_size), ("num_experts", self.num_experts)])?;
        for (field, layers) in
            [("encoder_layers", self.encoder_layers), ("decoder_layers", self.decoder_layers)]
        {
            if !(1..=MAX_LAYERS).contains(&layers) {
                return Err(ConfigError::new(field, layers, format!("1 to {MAX_LAYERS}")));
            }
        }
        let layers = self.encoder_layers.max(self.decoder_layers);
        let listed = self.expert_layers.iter().flatten();
        if let Some(layer) = listed.into_iter().find(|layer| **layer >= layers) {
            return Err(ConfigError::new("expert_layers", layer, format!("layers 0 .. {layers}")));
        }
        if self.padding_idx >= self.vocab_size {
            let need = format!("a token, 0 .. {}", self.vocab_size);
            return Err(ConfigError::new("padding_idx", self.padding_idx, need));
        }
        if self.vocab_size == 1 && self.label_smoothing > 0.0 {
            let need = "0 with a vocabulary of 1: smoothing spreads over the other tokens";
            return Err(ConfigError::new("label_smoothing", self.label_smoothing, need));
        }
        self.loss().check()
    }
}

impl ModuleConfig for ThorConfig {
    type Module = ThorModel;

    fn try_init(&self, device: &Device) -> Result<ThorModel, ConfigError> {
        self.check()?;
        let normal = Initializer::Normal { mean: 0.0, std: (self.embed_dim as f64).powf(-0.5) };
        let encoder = (0..self.encoder_layers).map(|index| self.layer(index).try_init_encoder(device));
        let encoder = encoder.collect::<Result<Vec<_>, _>>()?;
        let decoder = (0..self.decoder_layers).map(|index| self.layer(index).try_init_decoder(device));
        let decoder = decoder.collect::<Result<Vec<_>, _>>()?;
        let norm = || self.normalize_before.then(|| self.layer(0).norm(device));
        Ok(ThorModel {
            embed_tokens: EmbeddingConfig::new(self.vocab_size, self.embed_dim)
                .with_initializer(normal)
                .init(device),
            encoder: ThorEncoder { layers: encoder, layer_norm: norm() },
            decoder: ThorDecoder { layers: decoder, layer_norm: norm() },
            dropout: DropoutConfig::new(self.dropout).init(),
            padding_idx: self.padding_idx,
        })
    }
}

const MODEL_TYPE: &str = "thor";
const ARCHITECTURE: &str = "ThorModel";

impl PretrainedConfig for ThorConfig {
    /// Reads what [`to_published`](Self::to_published) writes: the released code keeps its configuration
    /// inside of PyTorch checkpoints.
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        check_architecture(json, MODEL_TYPE, ARCHITECTURE)?;
        config_from_json(&Self::new(2), json)
    }

    fn to_published(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        json["model_type"] = json!(MODEL_TYPE);
        json["architectures"] = json!([ARCHITECTURE]);
        json
    }

    /// The released code's names: one tensor an expert, the joint embedding under the encoder's name.
    fn layout(&self) -> TensorLayout {
        let sides = [("encoder", self.encoder_layers), ("decoder", self.decoder_layers)];
        let layers = sides.into_iter().flat_map(|(side, count)| (0..count).map(move |index| (side, index)));
        layers
            .fold(TensorLayout::default(), |layout, (side, index)| {
                self.layer(index).tensor_layout(layout, &format!("{side}.layers.{index}."))
            })
            .with_prefix("embed_tokens.", "encoder.embed_tokens.")
            .with_ignored("decoder.embed_tokens.")
            .with_ignored("decoder.output_projection.")
            .with_ignored("encoder.embed_positions.")
            .with_ignored("decoder.embed_positions.")
            .with_ignored("encoder.version")
            .with_ignored("decoder.version")
    }
}
