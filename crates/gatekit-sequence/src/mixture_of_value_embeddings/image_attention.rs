//! Attention over a grid of codes, with mixed values.

use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use gatekit_core::attention::{AttentionOptions, GridRotaryEmbedding, KvCache, causal_attention};
use gatekit_core::{ConfigError, ModuleConfig};

use super::attention::{Heads, mixed};
use super::init;
use super::mixer::{ValueMixer, ValueMixerConfig};

/// Configuration of [`MoveImageAttention`].
#[derive(Config, Debug)]
pub struct MoveImageAttentionConfig {
    /// Width d.
    pub n_embd: usize,
    /// Query heads H.
    pub n_head: usize,
    /// Side of the grid of codes.
    pub grid_size: usize,
    /// Key and value heads G, each shared by consecutive query heads; divides H. `None`: H.
    pub n_kv_head: Option<usize>,
    /// Channels e of a head, divisible by 4. `None`: d / H.
    pub head_dim: Option<usize>,
    /// Slots M that are mixed into the values; `None`: plain values.
    pub move_slots: Option<usize>,
    /// Whether the ordinary value has a gate too. Default true.
    #[config(default = true)]
    pub gate_standard: bool,
    /// Gates are `gate_scale * sigmoid`. Default 2.
    #[config(default = 2.0)]
    pub gate_scale: f64,
    /// Base of the rotary positions. Default 10000.
    #[config(default = 10000.0)]
    pub rope_base: f64,
}

impl ModuleConfig for MoveImageAttentionConfig {
    type Module = MoveImageAttention;

    fn try_init(&self, device: &Device) -> Result<MoveImageAttention, ConfigError> {
        let width = self.n_embd;
        let heads = Heads::new(width, self.n_head, self.n_kv_head, self.head_dim)?;
        let rotary =
            GridRotaryEmbedding::new(heads.dim, self.grid_size, 1, self.rope_base).map_err(|error| {
                let field = if error.field == "rope_theta" { "rope_base".to_string() } else { error.field };
                ConfigError::new(field, error.got, error.need)
            })?;
        let mixer = |slots| {
            ValueMixerConfig::new(width, heads.value, heads.dim, slots)
                .with_gate_standard(self.gate_standard)
                .with_gate_scale(self.gate_scale)
                .try_init(device)
        };
        Ok(MoveImageAttention {
            wqkv: init::linear(width, (heads.query + 2 * heads.value) * heads.dim, width, device),
            wo: init::output(heads.query * heads.dim, width, device),
            mixer: self.move_slots.map(mixer).transpose()?,
            rotary,
            value_heads: heads.value,
            head_dim: heads.dim,
        })
    }
}

/// Causal attention over a class and the codes of a grid, with mixed values.
///
/// Queries and keys are rotated by the row and the column of their code. The class, at position 0,
/// has a rotation of (cos, sin) = (0, 0): its query and key are 0, so that every later query gives
/// it a score of 0. Sun et al., "Autoregressive Model Beats Diffusion: Llama for Scalable Image
/// Generation" (arXiv 2406.06525), whose code this follows.
#[derive(Module, Debug)]
pub struct MoveImageAttention {
    /// Projection to queries, keys and values, `[d, (H + 2 G) e]`.
    pub wqkv: Linear,
    /// Output projection, `[H e, d]`; starts at 0.
    pub wo: Linear,
    /// What mixes a memory into the values; `None`: plain values.
    pub mixer: Option<ValueMixer>,
    #[module(skip)]
    rotary: GridRotaryEmbedding,
    value_heads: usize,
    head_dim: usize,
}

impl MoveImageAttention {
    /// Whole pictures, the class at position 0.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, time, d]`, normalised; at most one position more than the grid has codes
    /// - `memory`: `[batch, time, M, G, e]`, where the layer has a mixer
    /// - output: `[batch, time, d]`
    ///
    /// # Panics
    ///
    /// When the shapes do not fit, or a memory is given to a layer without a mixer or missing.
    pub fn forward(&self, x: Tensor<3>, memory: Option<Tensor<5>>) -> Tensor<3> {
        let (q, k, v) = self.project(x, memory, 0);
        self.attend(q, k, v)
    }

    /// The cache before the class.
    pub fn empty_cache(&self, batch: usize, device: &Device) -> KvCache {
        let empty = Tensor::zeros([batch, 0, self.value_heads, self.head_dim], device);
        KvCache { keys: empty.clone(), values: empty, position: 0 }
    }

    /// Continues by several positions; shapes as in [`forward`](Self::forward). The cache holds keys
    /// and mixed values.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn prefill(&self, x: Tensor<3>, memory: Option<Tensor<5>>, cache: KvCache) -> (Tensor<3>, KvCache) {
        let (q, k, v) = self.project(x, memory, cache.position);
        let cache = cache.extended(k, v);
        (self.attend(q, cache.keys.clone(), cache.values.clone()), cache)
    }

    /// Rotated queries and keys, and mixed values, of positions from `position` on.
    fn project(
        &self,
        x: Tensor<3>,
        memory: Option<Tensor<5>>,
        position: usize,
    ) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
        let [batch, time, _] = x.dims();
        let (groups, dim) = (self.value_heads, self.head_dim);
        let qkv = self.wqkv.forward(x.clone());
        let heads = qkv.dims()[2] / dim - 2 * groups;
        let qkv = qkv.reshape([batch, time, heads + 2 * groups, dim]);
        let part = |start, count| qkv.clone().narrow(2, start, count);
        let (q, k) =
            (self.rotary.apply(part(0, heads), position), self.rotary.apply(part(heads, groups), position));
        (q, k, mixed(&self.mixer, x, part(heads + groups, groups), memory))
    }

    fn attend(&self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<3> {
        let [batch, time, heads, dim] = q.dims();
        let o = causal_attention(q, k, v, &AttentionOptions::default(), None);
        self.wo.forward(o.reshape([batch, time, heads * dim]))
    }
}
