//! Configuration of the text model.

use burn::config::Config;
use burn::tensor::Device;
use gatekit_core::checkpoint::{PretrainedConfig, TensorLayout, check_architecture, config_from_json};
use gatekit_core::{ConfigError, ModuleConfig};
use serde_json::{Value, json};

use super::attention::{EPSILON, Heads, MoveAttentionConfig, check_epsilon};
use super::init;
use super::latent::{LatentTarget, MoveLatentAttentionConfig};
use super::memory::{ValueEmbeddings, ValueMemory};
use super::text::{MoveBlock, MoveMlp, MoveTextModel, TextAttention, Transformer};

/// More layers than any model has: a larger number in a configuration is a damaged file.
const MAX_LAYERS: usize = 10_000;

/// Configuration of [`MoveTextModel`]. Field names are nanochat's, with those of the memory added.
#[derive(Config, Debug)]
pub struct MoveTextConfig {
    /// Number of tokens; 65536 in the paper.
    pub vocab_size: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Query heads H.
    pub n_head: usize,
    /// Width d.
    pub n_embd: usize,
    /// Key and value heads G, each shared by consecutive query heads; divides H. `None`: H. Latent
    /// attention has none of its own.
    pub n_kv_head: Option<usize>,
    /// Channels e of a head, even. `None`: d / H.
    pub head_dim: Option<usize>,
    /// `"move"` (the default): one bank for all layers; `"lave"`: tables of single layers;
    /// `"none"`: a standard model. [`ValueMemory`] says what each is.
    #[config(default = "String::from(\"move\")")]
    pub value_memory: String,
    /// Slots M of the bank. `None`: half the layers, which the paper calls x1.
    pub move_slots: Option<usize>,
    /// Distance of the layers with a table of their own: 2 (the default) is the paper's x1, 1 its x2.
    #[config(default = 2)]
    pub lave_every: usize,
    /// Whether the ordinary value has a gate too. `None`: in MoVE, not in LaVE.
    pub gate_standard: Option<bool>,
    /// Gates are `gate_scale * sigmoid`. Default 2.
    #[config(default = 2.0)]
    pub gate_scale: f64,
    /// Base of the rotary positions. Default 10000.
    #[config(default = 10000.0)]
    pub rope_base: f64,
    /// Added to the mean square in every norm. Default: machine epsilon of float32.
    #[config(default = "EPSILON")]
    pub norm_eps: f64,
    /// Tokens that are seen besides oneself; 0 (the default): all before.
    #[config(default = 0)]
    pub window_size: usize,
    /// Logits are `c tanh(z / c)` with this c; 0: as they are. Default 15.
    #[config(default = 15.0)]
    pub logit_softcap: f64,
    /// Width of the latent of keys and values; with it every layer has latent attention. `None`
    /// (the default): keys and values of their own.
    pub mla_d_c: Option<usize>,
    /// Width of the latent of queries; needed with `mla_d_c`.
    pub mla_d_c1: Option<usize>,
    /// Rotated channels of a head; needed with `mla_d_c`.
    pub mla_d_rope: Option<usize>,
    /// Groups of the latent, each with its own gates. `None`: H.
    pub num_latent_groups: Option<usize>,
    /// What the mixed latent replaces. Default: keys and values.
    #[config(default = "LatentTarget::Kv")]
    pub latent_target: LatentTarget,
}

impl MoveTextConfig {
    /// The paper's smallest model: 12 layers of width 768.
    pub fn d12() -> Self {
        Self::new(65536, 12, 6, 768)
    }

    /// The paper's middle model: 20 layers of width 1280.
    pub fn d20() -> Self {
        Self::new(65536, 20, 10, 1280)
    }

    /// The paper's largest model: 32 layers of width 2048.
    pub fn d32() -> Self {
        Self::new(65536, 32, 16, 2048)
    }

    /// The same model with another memory.
    pub fn with_memory(mut self, memory: ValueMemory) -> Self {
        self.value_memory = memory.kind().to_string();
        match memory {
            ValueMemory::None => {}
            ValueMemory::LayerWise { every } => self.lave_every = every,
            ValueMemory::Global { slots } => self.move_slots = Some(slots),
        }
        self
    }

    /// The memory that the fields describe.
    ///
    /// # Errors
    ///
    /// As [`ValueMemory::parse`].
    pub fn memory(&self) -> Result<ValueMemory, ConfigError> {
        ValueMemory::parse(&self.value_memory, self.move_slots, self.lave_every, self.n_layer)
    }

    fn check(&self) -> Result<(), ConfigError> {
        for (field, size) in [("vocab_size", self.vocab_size), ("n_layer", self.n_layer)] {
            init::check_size(field, size)?;
        }
        if self.n_layer > MAX_LAYERS {
            return Err(ConfigError::new("n_layer", self.n_layer, format!("at most {MAX_LAYERS}")));
        }
        if !(self.logit_softcap.is_finite() && self.logit_softcap >= 0.0) {
            return Err(ConfigError::new("logit_softcap", self.logit_softcap, "a positive number, or 0"));
        }
        check_epsilon(self.norm_eps)
    }

    /// The attention of a layer that mixes `slots` slots.
    fn attention(
        &self,
        slots: Option<usize>,
        gate: bool,
        device: &Device,
    ) -> Result<TextAttention, ConfigError> {
        let Some(mla_d_c) = self.mla_d_c else {
            let config = MoveAttentionConfig::new(self.n_embd, self.n_head)
                .with_n_kv_head(self.n_kv_head)
                .with_head_dim(self.head_dim)
                .with_move_slots(slots)
                .with_gate_standard(gate)
                .with_gate_scale(self.gate_scale)
                .with_rope_base(self.rope_base)
                .with_norm_eps(self.norm_eps)
                .with_window_size(self.window_size);
            return config.try_init(device).map(TextAttention::Full);
        };
        let needed = |field: &str, size: Option<usize>| {
            size.ok_or_else(|| ConfigError::new(field, "null", "a width, with mla_d_c"))
        };
        let mla_d_c1 = needed("mla_d_c1", self.mla_d_c1)?;
        let mla_d_rope = needed("mla_d_rope", self.mla_d_rope)?;
        if self.n_kv_head.is_some_and(|heads| heads != self.n_head) {
            let got = self.n_kv_head.unwrap_or_default();
            return Err(ConfigError::new("n_kv_head", got, "null with mla_d_c: latent attention has n_head"));
        }
        MoveLatentAttentionConfig::new(self.n_embd, self.n_head, mla_d_c, mla_d_c1, mla_d_rope)
            .with_head_dim(self.head_dim)
            .with_num_latent_groups(self.num_latent_groups)
            .with_latent_target(self.latent_target)
            .with_move_slots(slots)
            .with_gate_standard(gate)
            .with_gate_scale(self.gate_scale)
            .with_rope_base(self.rope_base)
            .with_norm_eps(self.norm_eps)
            .with_window_size(self.window_size)
            .try_init(device)
            .map(TextAttention::Latent)
    }
}

impl ModuleConfig for MoveTextConfig {
    type Module = MoveTextModel;

    fn try_init(&self, device: &Device) -> Result<MoveTextModel, ConfigError> {
        self.check()?;
        let memory = self.memory()?;
        let gate = self.gate_standard.unwrap_or(memory.gates_standard());
        let (width, layers) = (self.n_embd, self.n_layer);
        let heads = Heads::new(width, self.n_head, self.n_kv_head, self.head_dim)?;
        let block = |layer| {
            Ok(MoveBlock {
                attn: self.attention(memory.slots(layer, layers), gate, device)?,
                mlp: MoveMlp {
                    c_fc: init::linear(width, 4 * width, width, device),
                    c_proj: init::output(4 * width, width, device),
                },
            })
        };
        let h = (0..layers).map(block).collect::<Result<_, ConfigError>>()?;
        let value = match self.mla_d_c {
            Some(latent) => [self.vocab_size, 1, latent],
            None => [self.vocab_size, heads.value, heads.dim],
        };
        Ok(MoveTextModel {
            transformer: Transformer { wte: init::embedding(self.vocab_size, width, device), h },
            lm_head: init::head(width, self.vocab_size, device),
            value_embeds: ValueEmbeddings::try_new(&memory, layers, value, width, device)?,
            norm_eps: self.norm_eps,
            logit_softcap: self.logit_softcap,
        })
    }
}

const MODEL_TYPE: &str = "move";
const ARCHITECTURE: &str = "MoveForCausalLM";

impl PretrainedConfig for MoveTextConfig {
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        check_architecture(json, MODEL_TYPE, ARCHITECTURE)?;
        config_from_json(&Self::d12(), json)
    }

    fn to_published(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        json["model_type"] = json!(MODEL_TYPE);
        json["architectures"] = json!([ARCHITECTURE]);
        json
    }

    fn layout(&self) -> TensorLayout {
        TensorLayout::default().with_prefix("transformer.h.{}.attn.mixer.", "transformer.h.{}.attn.")
    }
}
