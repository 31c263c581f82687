//! Configuration of the image model.

use burn::config::Config;
use burn::nn::DropoutConfig;
use burn::tensor::Device;
use gatekit_core::checkpoint::{PretrainedConfig, TensorLayout, check_architecture, config_from_json};
use gatekit_core::feed_forward::SwiGlu;
use gatekit_core::norm::RmsNormConfig;
use gatekit_core::{ConfigError, ModuleConfig};
use serde_json::{Value, json};

use super::attention::Heads;
use super::image::{MoveImageBlock, MoveImageModel};
use super::image_attention::MoveImageAttentionConfig;
use super::init;
use super::memory::{ValueEmbeddings, ValueMemory};

/// More layers than any model has: a larger number in a configuration is a damaged file.
const MAX_LAYERS: usize = 10_000;

/// Larger sides than any picture has, likewise.
const MAX_GRID: usize = 4096;

/// Configuration of [`MoveImageModel`]. Field names are those of the text model where both have one.
#[derive(Config, Debug)]
pub struct MoveImageConfig {
    /// Number of codes of the picture's tokeniser; 16384 in LlamaGen.
    pub vocab_size: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Query heads H.
    pub n_head: usize,
    /// Width d.
    pub n_embd: usize,
    /// Key and value heads G, each shared by consecutive query heads; divides H. `None`: H.
    pub n_kv_head: Option<usize>,
    /// Channels e of a head, divisible by 4. `None`: d / H.
    pub head_dim: Option<usize>,
    /// Classes; one more, the last, means "no class". Default 1000.
    #[config(default = 1000)]
    pub num_classes: usize,
    /// Side of the grid of codes. Default 16.
    #[config(default = 16)]
    pub grid_size: usize,
    /// Width of the feed-forward layers. `None`: two thirds of 4 d, rounded up to a multiple of 256.
    pub ffn_dim: Option<usize>,
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
    /// Added to the mean square in every norm. Default 1e-5.
    #[config(default = 1e-5)]
    pub norm_eps: f64,
    /// Share of channels dropped, while training, from the embeddings and the layers' outputs.
    /// Default 0.1.
    #[config(default = 0.1)]
    pub dropout: f64,
}

impl MoveImageConfig {
    /// GPT-B: 12 layers of width 768, codes of LlamaGen's tokeniser.
    pub fn gpt_b() -> Self {
        Self::new(16384, 12, 12, 768)
    }

    /// GPT-L: 24 layers of width 1024, codes of LlamaGen's tokeniser.
    pub fn gpt_l() -> Self {
        Self::new(16384, 24, 16, 1024)
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
        for (field, size) in [
            ("vocab_size", self.vocab_size),
            ("num_classes", self.num_classes),
            ("ffn_dim", self.ffn_dim.unwrap_or(1)),
        ] {
            init::check_size(field, size)?;
        }
        for (field, size, most) in
            [("n_layer", self.n_layer, MAX_LAYERS), ("grid_size", self.grid_size, MAX_GRID)]
        {
            if size == 0 || size > most {
                return Err(ConfigError::new(field, size, format!("1 to {most}")));
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(ConfigError::new("dropout", self.dropout, "a number in [0, 1)"));
        }
        Ok(())
    }

    fn feed_forward_size(&self) -> usize {
        self.ffn_dim.unwrap_or_else(|| (8 * self.n_embd / 3).next_multiple_of(256))
    }
}

impl ModuleConfig for MoveImageConfig {
    type Module = MoveImageModel;

    fn try_init(&self, device: &Device) -> Result<MoveImageModel, ConfigError> {
        self.check()?;
        let memory = self.memory()?;
        let gate = self.gate_standard.unwrap_or(memory.gates_standard());
        let (width, layers) = (self.n_embd, self.n_layer);
        let heads = Heads::new(width, self.n_head, self.n_kv_head, self.head_dim)?;
        let inner = self.feed_forward_size();
        let norm = || {
            RmsNormConfig::new(width).with_eps(self.norm_eps).try_init(device).map_err(|error| {
                let field = if error.field == "eps" { "norm_eps" } else { "n_embd" };
                ConfigError::new(field, error.got, error.need)
            })
        };
        let dropout = DropoutConfig::new(self.dropout).init();
        let block = |layer| {
            let attention = MoveImageAttentionConfig::new(width, self.n_head, self.grid_size)
                .with_n_kv_head(self.n_kv_head)
                .with_head_dim(self.head_dim)
                .with_move_slots(memory.slots(layer, layers))
                .with_gate_standard(gate)
                .with_gate_scale(self.gate_scale)
                .with_rope_base(self.rope_base);
            Ok(MoveImageBlock {
                attention_norm: norm()?,
                attention: attention.try_init(device)?,
                ffn_norm: norm()?,
                feed_forward: SwiGlu {
                    gate_proj: init::linear(width, inner, width, device),
                    up_proj: init::linear(width, inner, width, device),
                    down_proj: init::output(inner, width, device),
                },
                dropout: dropout.clone(),
            })
        };
        let rows = self.vocab_size + self.num_classes + 1;
        let value = [rows, heads.value, heads.dim];
        Ok(MoveImageModel {
            layers: (0..layers).map(block).collect::<Result<_, ConfigError>>()?,
            cls_embedding: init::embedding(self.num_classes + 1, width, device),
            tok_embeddings: init::embedding(self.vocab_size, width, device),
            norm: norm()?,
            output: init::head(width, self.vocab_size, device),
            value_embeds: ValueEmbeddings::try_new(&memory, layers, value, width, device)?,
            dropout,
            grid_size: self.grid_size,
        })
    }
}

const MODEL_TYPE: &str = "move_image";
const ARCHITECTURE: &str = "MoveForClassConditionalImageGeneration";

impl PretrainedConfig for MoveImageConfig {
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        check_architecture(json, MODEL_TYPE, ARCHITECTURE)?;
        config_from_json(&Self::gpt_b(), json)
    }

    fn to_published(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        json["model_type"] = json!(MODEL_TYPE);
        json["architectures"] = json!([ARCHITECTURE]);
        json
    }

    fn layout(&self) -> TensorLayout {
        TensorLayout::default()
            .with_prefix("cls_embedding.", "cls_embedding.embedding_table.")
            .with_prefix("layers.{}.attention.mixer.", "layers.{}.attention.")
            .with_prefix("layers.{}.feed_forward.gate_proj.", "layers.{}.feed_forward.w1.")
            .with_prefix("layers.{}.feed_forward.up_proj.", "layers.{}.feed_forward.w3.")
            .with_prefix("layers.{}.feed_forward.down_proj.", "layers.{}.feed_forward.w2.")
    }
}
