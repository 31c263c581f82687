//! Softmax attention in the same backbone: what gated mixers are compared with.
//!
//! Pre-norm, rotary positions, SwiGLU, RMSNorm: the "Transformer++" of the linear attention
//! papers (e.g. Yang et al. 2023, arXiv 2312.06635, section 5.1). Its state grows with the tokens,
//! unless a window bounds it.

use burn::config::Config;
use burn::tensor::{Device, Tensor, TensorData};
use gatekit_core::attention::{CausalAttention, CausalAttentionConfig, KvCache};
use gatekit_core::moe::MoeLayerConfig;
use gatekit_core::{ConfigError, InputError, ModuleConfig};
use serde_json::{Value, json};

use crate::backbone::{
    BackboneSize, CausalModel, MixerContext, MixerState, ModelState, TokenMixer, check_shape,
    no_more_tensors, state_data, take_state_tensor,
};
use crate::feed_forward::{experts_layout, publish_experts};
use gatekit_core::checkpoint::{
    NamedTensors, PretrainedConfig, TensorError, TensorLayout, TensorProblem, check_architecture,
    config_from_json, require,
};

/// The language model of softmax attention.
pub type SoftmaxForCausalLm = CausalModel<CausalAttention>;

/// Its streaming state: keys and values of the tokens so far.
pub type SoftmaxState = ModelState<KvCache>;

/// Configuration of [`SoftmaxForCausalLm`]. Field names are those of the released models.
#[derive(Config, Debug)]
pub struct SoftmaxConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width `D`.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of heads; divides `D`.
    #[config(default = 8)]
    pub num_heads: usize,
    /// Number of key and value heads, each shared by consecutive query heads; `None`: `num_heads`.
    pub num_kv_heads: Option<usize>,
    /// Bias on queries, keys and values.
    #[config(default = false)]
    pub qkv_bias: bool,
    /// Every token sees this many tokens, itself included; `None`: all before it.
    pub window_size: Option<usize>,
    /// Base of the rotary positions; `None`: no positions.
    #[config(default = "Some(10000.0)")]
    pub rope_theta: Option<f64>,
    /// Width of the feed-forward layers; `None`: `2/3 * hidden_ratio * D` rounded up to a
    /// multiple of 256.
    pub intermediate_size: Option<usize>,
    /// See `intermediate_size`.
    #[config(default = 4.0)]
    pub hidden_ratio: f64,
    /// Added to the mean square in every RMSNorm.
    #[config(default = 1e-6)]
    pub norm_eps: f64,
    /// The head uses the embeddings' weight.
    #[config(default = false)]
    pub tie_word_embeddings: bool,
    /// Experts in place of every dense feed-forward layer, which then has no width of its own; `None`
    /// (the default): dense. No published model of this kind has them: the field is this library's own.
    pub moe: Option<MoeLayerConfig>,
}

impl ModuleConfig for SoftmaxConfig {
    type Module = SoftmaxForCausalLm;

    fn try_init(&self, device: &Device) -> Result<SoftmaxForCausalLm, ConfigError> {
        let size = BackboneSize {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            intermediate_size: self.intermediate_size,
            hidden_ratio: self.hidden_ratio,
            norm_eps: self.norm_eps,
            tie_word_embeddings: self.tie_word_embeddings,
        };
        let layer = CausalAttentionConfig::new(self.hidden_size, self.num_heads)
            .with_num_kv_heads(self.num_kv_heads)
            .with_qkv_bias(self.qkv_bias)
            .with_window_size(self.window_size)
            .with_rope_theta(self.rope_theta);
        CausalModel::try_with_experts(&size, self.moe.as_ref(), device, |_| layer.try_init(device))
    }
}

const MODEL_TYPE: &str = "transformer";
const ARCHITECTURE: &str = "TransformerForCausalLM";

impl PretrainedConfig for SoftmaxConfig {
    /// Reads the `config.json` of flash-linear-attention's transformer. Refused are norms of
    /// queries and keys (`qk_norm`), norms without weights and other activations than SiLU.
    fn from_published(json: &Value) -> Result<Self, ConfigError> {
        check_architecture(json, MODEL_TYPE, ARCHITECTURE)?;
        require(json, "hidden_act", &["swish".into(), "silu".into()])?;
        require(json, "elementwise_affine", &[true.into()])?;
        require(json, "qk_norm", &[false.into()])?;
        config_from_json(&Self::new(32000, 2048, 24).with_num_heads(32), json)
    }

    fn to_published(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        json["model_type"] = json!(MODEL_TYPE);
        json["architectures"] = json!([ARCHITECTURE]);
        json["hidden_act"] = json!("swish");
        publish_experts(&mut json, self.moe.as_ref());
        json
    }

    fn layout(&self) -> TensorLayout {
        experts_layout(TensorLayout::default(), self.moe.as_ref())
    }
}

impl TokenMixer for CausalAttention {
    type State = KvCache;

    fn forward(&self, x: Tensor<3>, context: &MixerContext<'_>) -> Tensor<3> {
        Self::forward(self, x, context.packing)
    }

    fn prefill(&self, x: Tensor<3>, state: KvCache, _: &MixerContext<'_>) -> (Tensor<3>, KvCache) {
        Self::prefill(self, x, state)
    }

    fn step(&self, x: Tensor<2>, state: KvCache, _: &MixerContext<'_>) -> (Tensor<2>, KvCache) {
        Self::step(self, x, state)
    }

    fn empty_state(&self, batch: usize, device: &Device) -> KvCache {
        self.empty_cache(batch, device)
    }

    fn check_state(&self, state: &KvCache, batch: usize) -> Result<(), InputError> {
        let [_, _, heads, head_dim] = self.empty_cache(batch, &state.keys.device()).keys.dims();
        let need = [batch, state.len(), heads, head_dim];
        check_shape("keys", &state.keys.dims(), &need)?;
        check_shape("values", &state.values.dims(), &need)
    }
}

impl MixerState for KvCache {
    const MIXER: &'static str = "softmax_attention";

    fn bytes(&self) -> usize {
        Self::bytes(self)
    }

    fn to_device(self, device: &Device) -> Self {
        Self::to_device(self, device)
    }

    fn to_tensors(&self) -> NamedTensors {
        NamedTensors::from([
            ("keys".to_string(), state_data(&self.keys)),
            ("values".to_string(), state_data(&self.values)),
            ("position".to_string(), TensorData::from([self.position as i64])),
        ])
    }

    fn from_tensors(mut tensors: NamedTensors, device: &Device) -> Result<Self, TensorError> {
        let mut batch = None;
        let keys: Tensor<4> = take_state_tensor(&mut tensors, "keys", &mut batch, device)?;
        let values: Tensor<4> = take_state_tensor(&mut tensors, "values", &mut batch, device)?;
        if keys.dims() != values.dims() {
            let (got, need) = (values.dims().to_vec(), format!("{:?}, as the keys", keys.dims()));
            return Err(TensorError::new("values", TensorProblem::Shape { got, need }));
        }
        let position =
            tensors.remove("position").ok_or_else(|| TensorError::new("position", TensorProblem::Missing))?;
        no_more_tensors(tensors)?;
        let held = keys.dims()[1];
        match position.as_slice::<i64>() {
            Ok(&[position]) if usize::try_from(position).is_ok_and(|position| position >= held) => {
                Ok(Self { keys, values, position: position as usize })
            }
            _ => {
                let (got, need) =
                    (position.to_string(), format!("one integer of at least {held}, the tokens held"));
                Err(TensorError::new("position", TensorProblem::Value { got, need }))
            }
        }
    }
}
