//! The model's configuration and its published form.

use burn::config::Config;
use burn::tensor::Device;
use gatekit_core::checkpoint::{
    PretrainedConfig, TensorLayout, check_architecture, config_from_json, require,
};
use gatekit_core::{ConfigError, ModuleConfig};
use serde_json::{Value, json};

use super::layer::TransNormerLayerConfig;
use super::mixer::NormLinearAttentionConfig;
use super::model::TransNormerLlm;
use super::slopes::{DecaySchedule, slope_rates};

/// More layers than any model has: a larger number in a configuration is a damaged file.
const MAX_LAYERS: usize = 10_000;

/// Configuration of [`TransNormerLlm`].
///
/// Field names are those of the released models, where `embed_dim`, `num_layers` and `num_heads`
/// are called `decoder_embed_dim`, `decoder_layers` and `decoder_attention_heads`.
#[derive(Config, Debug)]
pub struct TransNormerConfig {
    /// Number of tokens; 64000 in the paper.
    pub vocab_size: usize,
    /// Width `D`, divisible by `num_heads`; 1024 (385M), 2048 (1B) and 4096 (7B) in the paper.
    pub embed_dim: usize,
    /// Number of layers `L`; 24 (385M) in the paper.
    pub num_layers: usize,
    /// Width of all heads' queries, divisible by `num_heads`; `None`: `embed_dim`, as in every
    /// released model.
    pub hidden_dim: Option<usize>,
    /// Number of heads `H`.
    #[config(default = 8)]
    pub num_heads: usize,
    /// Inner width of the channel mixers; 2816 (385M) in the paper.
    #[config(default = 2816)]
    pub glu_dim: usize,
    /// One 0 or 1 per layer: trained relative positions there? `None`: in the first layer alone.
    pub linear_use_lrpe_list: Option<Vec<usize>>,
    /// Activation of queries and keys: `silu`, `relu`, `elu`, `1+elu` or `none`.
    #[config(default = "String::from(\"silu\")")]
    pub linear_act_fun: String,
    /// Biases in the projections of all layers.
    #[config(default = false)]
    pub bias: bool,
    /// Added to the mean square in every norm.
    #[config(default = 1e-6)]
    pub norm_eps: f64,
    /// If false, embeddings are multiplied by `sqrt(D)`.
    #[config(default = false)]
    pub no_scale_embedding: bool,
    /// The decays of heads and layers.
    #[config(default = "DecaySchedule::Geometric")]
    pub decay_schedule: DecaySchedule,
    /// The output gates `u`.
    #[config(default = true)]
    pub use_output_gate: bool,
    /// Steps that the attention computes together. Never changes the result.
    #[config(default = 256)]
    pub block_size: usize,
}

impl TransNormerConfig {
    /// The configuration of one layer, counted from 0.
    pub fn layer(&self, layer: usize) -> TransNormerLayerConfig {
        let use_lrpe = match &self.linear_use_lrpe_list {
            Some(list) => list.get(layer) == Some(&1),
            None => layer == 0,
        };
        let slopes = slope_rates(self.decay_schedule, self.num_heads, layer, self.num_layers);
        let hidden_dim = self.hidden_dim.unwrap_or(self.embed_dim);
        let token_mixer = NormLinearAttentionConfig::new(self.embed_dim, hidden_dim, self.num_heads, slopes)
            .with_use_lrpe(use_lrpe)
            .with_linear_act_fun(self.linear_act_fun.clone())
            .with_bias(self.bias)
            .with_norm_eps(self.norm_eps)
            .with_use_output_gate(self.use_output_gate)
            .with_block_size(self.block_size);
        TransNormerLayerConfig::new(token_mixer, self.glu_dim)
    }

    fn check(&self) -> Result<(), ConfigError> {
        for (field, size) in
            [("vocab_size", self.vocab_size), ("num_heads", self.num_heads), ("num_layers", self.num_layers)]
        {
            if size == 0 {
                return Err(ConfigError::new(field, 0, "at least 1"));
            }
        }
        if self.num_layers > MAX_LAYERS {
            return Err(ConfigError::new("num_layers", self.num_layers, format!("at most {MAX_LAYERS}")));
        }
        let Some(list) = &self.linear_use_lrpe_list else { return Ok(()) };
        if list.len() != self.num_layers {
            let (got, need) =
                (format!("{} entries", list.len()), format!("one for each of {} layers", self.num_layers));
            return Err(ConfigError::new("linear_use_lrpe_list", got, need));
        }
        match list.iter().find(|&&entry| entry > 1) {
            Some(entry) => Err(ConfigError::new("linear_use_lrpe_list", entry, "0 or 1 for every layer")),
            None => Ok(()),
        }
    }
}

impl ModuleConfig for TransNormerConfig {
    type Module = TransNormerLlm;

    fn try_init(&self, device: &Device) -> Result<TransNormerLlm, ConfigError> {
        self.check()?;
        let layers = (0..self.num_layers)
            .map(|layer| self.layer(layer).try_init(device))
            .collect::<Result<_, ConfigError>>()?;
        Ok(TransNormerLlm::new(self, layers, device))
    }
}

const MODEL_TYPE: &str = "transnormer";
const ARCHITECTURE: &str = "TransnormerForCausalLM";
/// Published names of fields that are called otherwise here.
const RENAMED: [(&str, &str); 3] = [
    ("decoder_embed_dim", "embed_dim"),
    ("decoder_layers", "num_layers"),
    ("decoder_attention_heads", "num_heads"),
];

impl PretrainedConfig for TransNormerConfig {
    /// Reads the `config.json` of a released model. Refused are other norms than `simplermsnorm`;
    /// the fields that the released models do not have (`norm_eps`, `decay_schedule`, ...) are read
    /// where they are given.
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        check_architecture(json, MODEL_TYPE, ARCHITECTURE)?;
        require(json, "norm_type", &["simplermsnorm".into()])?;
        let mut fields = json.clone();
        for (published, field) in RENAMED {
            if !json[published].is_null() {
                fields[field] = json[published].clone();
            }
        }
        if fields["linear_use_lrpe_list"] == json!([]) {
            fields["linear_use_lrpe_list"] = Value::Null;
        }
        let defaults = Self::new(64000, 1024, 24);
        config_from_json(&defaults, &fields).map_err(|error| {
            let published = RENAMED.iter().find(|(_, field)| error.field == *field);
            let field = published.map_or(error.field, |(published, _)| published.to_string());
            ConfigError { field, ..error }
        })
    }

    fn to_published(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        for (published, field) in RENAMED {
            json[published] = json[field].take();
            json.as_object_mut().map(|fields| fields.remove(field));
        }
        let use_lrpe = |layer| usize::from(self.layer(layer).token_mixer.use_lrpe);
        json["hidden_dim"] = json!(self.hidden_dim.unwrap_or(self.embed_dim));
        json["linear_use_lrpe_list"] = json!((0..self.num_layers).map(use_lrpe).collect::<Vec<_>>());
        json["norm_type"] = json!("simplermsnorm");
        json["model_type"] = json!(MODEL_TYPE);
        json["architectures"] = json!([ARCHITECTURE]);
        json
    }

    /// The module's own names; a mask that some checkpoints hold is passed over.
    fn layout(&self) -> TensorLayout {
        TensorLayout::default().with_ignored("model._linear_attn_mask")
    }
}
