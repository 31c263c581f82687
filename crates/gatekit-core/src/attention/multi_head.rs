//! The attention layer of encoders and decoders: to itself or to another sequence, with padding.

use burn::config::Config;
use burn::module::{Initializer, Module};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Bool, Device, Tensor};

use super::cache::KvCache;
use super::masked::masked_attention;
use crate::config::{ModuleConfig, check_sizes};
use crate::error::ConfigError;

/// Configuration of [`MultiHeadAttention`].
#[derive(Config, Debug)]
pub struct MultiHeadAttentionConfig {
    /// Channels of input and output, a multiple of `num_heads`.
    pub embed_dim: usize,
    /// Heads, at least 1.
    pub num_heads: usize,
    /// Channels of the sequence that is attended to. `None` (the default): `embed_dim`.
    #[config(default = "None")]
    pub memory_dim: Option<usize>,
    /// Whether all projections have biases. Default true.
    #[config(default = true)]
    pub bias: bool,
}

impl ModuleConfig for MultiHeadAttentionConfig {
    type Module = MultiHeadAttention;

    fn try_init(&self, device: &Device) -> Result<MultiHeadAttention, ConfigError> {
        let (dim, heads) = (self.embed_dim, self.num_heads);
        let memory = self.memory_dim.unwrap_or(dim);
        check_sizes(&[("embed_dim", dim), ("num_heads", heads), ("memory_dim", memory)])?;
        if dim % heads != 0 {
            return Err(ConfigError::new("num_heads", heads, format!("a divisor of embed_dim = {dim}")));
        }
        let linear = |from, gain| {
            let config = LinearConfig::new(from, dim).with_bias(false);
            Linear {
                bias: self.bias.then(|| Initializer::Zeros.init([dim], device)),
                ..config.with_initializer(Initializer::XavierUniform { gain }).init(device)
            }
        };
        let part = 0.5f64.sqrt();
        Ok(MultiHeadAttention {
            q_proj: linear(dim, part),
            k_proj: linear(memory, part),
            v_proj: linear(memory, part),
            out_proj: linear(dim, 1.0),
            num_heads: heads,
        })
    }
}

/// `y = W_o concat_h softmax(q_h k_h^T / sqrt(e)) v_h` with `q = W_q x`, `k = W_k m`, `v = W_v m`: tokens x
/// read from a memory m, their own sequence or another, of which some places may be padding.
///
/// Heads are e channels wide. Weights start Xavier uniform, those of q, k and v with gain `1 / sqrt 2`;
/// biases 0. Vaswani et al. (arXiv 1706.03762), section 3.2. Causal attention with rotary positions,
/// windows and gates is [`CausalAttention`](super::CausalAttention).
#[derive(Module, Debug)]
pub struct MultiHeadAttention {
    /// Query projection, `[embed_dim, embed_dim]`.
    pub q_proj: Linear,
    /// Key projection, `[memory_dim, embed_dim]`.
    pub k_proj: Linear,
    /// Value projection, `[memory_dim, embed_dim]`.
    pub v_proj: Linear,
    /// Output projection, `[embed_dim, embed_dim]`.
    pub out_proj: Linear,
    num_heads: usize,
}

impl MultiHeadAttention {
    /// `x` `[batch, time, embed_dim]` reads from `memory` `[batch, keys, memory_dim]`; `padding`
    /// `[batch, keys]` is true where the memory is padding. `causal`: `x` are the last `time` tokens of
    /// the memory. To `[batch, time, embed_dim]`.
    ///
    /// # Panics
    ///
    /// As [`masked_attention`].
    pub fn forward(
        &self,
        x: Tensor<3>,
        memory: Tensor<3>,
        padding: Option<&Tensor<2, Bool>>,
        causal: bool,
    ) -> Tensor<3> {
        let memory = self.remember(memory);
        self.read(x, &memory, padding, causal)
    }

    /// Keys and values of a memory `[batch, keys, memory_dim]`, made once for many readings.
    ///
    /// # Panics
    ///
    /// When `memory` has another width.
    pub fn remember(&self, memory: Tensor<3>) -> KvCache {
        let position = memory.dims()[1];
        let keys = self.heads(self.k_proj.forward(memory.clone()));
        KvCache { keys, values: self.heads(self.v_proj.forward(memory)), position }
    }

    /// As [`forward`](Self::forward), from keys and values that [`remember`](Self::remember) made; those
    /// of a further token are added with [`KvCache::extended`].
    ///
    /// # Panics
    ///
    /// As [`masked_attention`].
    pub fn read(
        &self,
        x: Tensor<3>,
        memory: &KvCache,
        padding: Option<&Tensor<2, Bool>>,
        causal: bool,
    ) -> Tensor<3> {
        let [batch, time, dim] = x.dims();
        if batch * time == 0 {
            return x;
        }
        let q = self.heads(self.q_proj.forward(x));
        let o = masked_attention(q, memory.keys.clone(), memory.values.clone(), padding, causal);
        self.out_proj.forward(o.reshape([batch, time, dim]))
    }

    fn heads(&self, y: Tensor<3>) -> Tensor<4> {
        let [batch, time, dim] = y.dims();
        y.reshape([batch, time, self.num_heads, dim / self.num_heads])
    }
}
