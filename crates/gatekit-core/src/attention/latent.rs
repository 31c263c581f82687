//! Multi-head latent attention: keys and values are compressed into one small vector a token.

use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

use super::{AttentionOptions, RotaryEmbedding, attention_weights, causal_attention, pairs_to_halves};
use crate::config::{ModuleConfig, check_sizes};
use crate::error::ConfigError;
use crate::init;
use crate::norm::{RmsNorm, RmsNormConfig};
use crate::sequence::{Boundaries, Packing};

/// Epsilon of the norms of the latents, in every published model.
const LATENT_NORM_EPS: f64 = 1e-6;

/// Configuration of [`LatentAttention`]. Field names are those of the released models.
#[derive(Config, Debug)]
pub struct LatentAttentionConfig {
    /// Channels `D` of input and output.
    pub hidden_size: usize,
    /// Heads `H`.
    pub num_attention_heads: usize,
    /// Channels of the latent from which keys and values are made.
    #[config(default = 512)]
    pub kv_lora_rank: usize,
    /// Channels of the latent from which queries are made; `None` (the default): queries come
    /// from the input by one projection.
    pub q_lora_rank: Option<usize>,
    /// Channels of a head's query and key that come from the latent and are never rotated.
    #[config(default = 128)]
    pub qk_nope_head_dim: usize,
    /// Channels of a head's query, and of the one key that all heads share, that rotate where
    /// there are positions.
    #[config(default = 64)]
    pub qk_rope_head_dim: usize,
    /// Channels of a head's value.
    #[config(default = 128)]
    pub v_head_dim: usize,
    /// Base of the rotary positions (10000 in DeepSeek-V3); `None` (the default): no positions, as
    /// in Kimi Linear.
    pub rope_theta: Option<f64>,
    /// Which channels rotate together: neighbours `(2j, 2j + 1)` (the default, as released), or
    /// channel j of one half with channel j of the other.
    #[config(default = true)]
    pub rope_interleave: bool,
    /// Biases on the projections to the latents and on the output. Default false.
    #[config(default = false)]
    pub attention_bias: bool,
}

impl LatentAttentionConfig {
    fn check(&self) -> Result<(), ConfigError> {
        check_sizes(&[
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("kv_lora_rank", self.kv_lora_rank),
            ("q_lora_rank", self.q_lora_rank.unwrap_or(1)),
            ("qk_nope_head_dim", self.qk_nope_head_dim),
            ("qk_rope_head_dim", self.qk_rope_head_dim),
            ("v_head_dim", self.v_head_dim),
        ])?;
        if self.rope_theta.is_some() && self.qk_rope_head_dim % 2 == 1 {
            return Err(ConfigError::new("qk_rope_head_dim", self.qk_rope_head_dim, "an even number"));
        }
        Ok(())
    }
}

impl ModuleConfig for LatentAttentionConfig {
    type Module = LatentAttention;

    fn try_init(&self, device: &Device) -> Result<LatentAttention, ConfigError> {
        self.check()?;
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        let (rank, nope, rope) = (self.kv_lora_rank, self.qk_nope_head_dim, self.qk_rope_head_dim);
        let linear = |from, to| init::linear(from, to, false, device);
        let biased = |from, to| init::linear(from, to, self.attention_bias, device);
        let norm = |dim| RmsNormConfig::new(dim).with_eps(LATENT_NORM_EPS).try_init(device);
        let query = heads * (nope + rope);
        Ok(LatentAttention {
            q_proj: self.q_lora_rank.is_none().then(|| linear(width, query)),
            q_a_proj: self.q_lora_rank.map(|rank| biased(width, rank)),
            q_a_layernorm: self.q_lora_rank.map(norm).transpose()?,
            q_b_proj: self.q_lora_rank.map(|rank| linear(rank, query)),
            kv_a_proj_with_mqa: biased(width, rank + rope),
            kv_a_layernorm: norm(rank)?,
            kv_b_proj: linear(rank, heads * (nope + self.v_head_dim)),
            o_proj: biased(heads * self.v_head_dim, width),
            rotary: self.rope_theta.map(|theta| RotaryEmbedding::new(rope, theta)).transpose()?,
            interleaved: self.rope_interleave,
            num_heads: heads,
            rank,
            nope_dim: nope,
            rope_dim: rope,
            value_dim: self.v_head_dim,
        })
    }
}

/// Multi-head latent attention.
///
/// ```text
/// [q_n, q_s] = W_q x per head               or  W_qb RMSNorm(W_qa x) with a query latent
/// [c, k_s]   = W_kva x                      c <- RMSNorm(c); k_s is one key for all heads
/// [k_n, v]   = W_kvb c per head
/// o = softmax((q_n . k_n + rope(q_s) . rope(k_s)) / sqrt(dn + dr)) v,    causal
/// y = W_o o
/// ```
///
/// without the rotations where there are no positions. Streaming keeps `c` and `k_s` alone,
/// `kv_lora_rank + qk_rope_head_dim` numbers a token; a step folds `W_kvb` into the query and the
/// output, so that keys and values are never made again ([`prefill`](Self::prefill) picks the form
/// with fewer products). Both inner norms have an epsilon of 1e-6; weights start normal(0, 0.02).
///
/// DeepSeek-V2 (arXiv 2405.04434), section 2.1; without positions: Kimi Linear (arXiv 2510.26692).
#[derive(Module, Debug)]
pub struct LatentAttention {
    /// Queries, `D -> H (dn + dr)`; `None` with a query latent.
    pub q_proj: Option<Linear>,
    /// Query latent, `D -> q_lora_rank`.
    pub q_a_proj: Option<Linear>,
    /// Norm of the query latent.
    pub q_a_layernorm: Option<RmsNorm>,
    /// Queries from their latent, `q_lora_rank -> H (dn + dr)`.
    pub q_b_proj: Option<Linear>,
    /// Latent and shared key, `D -> kv_lora_rank + dr`.
    pub kv_a_proj_with_mqa: Linear,
    /// Norm of the latent.
    pub kv_a_layernorm: RmsNorm,
    /// Keys and values of every head from the latent, `kv_lora_rank -> H (dn + dv)`.
    pub kv_b_proj: Linear,
    /// Output, `H dv -> D`.
    pub o_proj: Linear,
    #[module(skip)]
    rotary: Option<RotaryEmbedding>,
    interleaved: bool,
    num_heads: usize,
    rank: usize,
    nope_dim: usize,
    rope_dim: usize,
    value_dim: usize,
}

/// The streaming state of [`LatentAttention`].
#[derive(Debug, Clone)]
pub struct LatentCache {
    /// Normalised latent and (rotated) shared key of every token so far, side by side,
    /// `[batch, tokens, kv_lora_rank + qk_rope_head_dim]`. Their number is the next position.
    pub latents: Tensor<3>,
}

impl LatentCache {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.latents.dims()[1]
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.latents.shape().num_elements() * self.latents.dtype().size()
    }

    /// The same cache on another device.
    pub fn to_device(self, device: &Device) -> Self {
        Self { latents: self.latents.to_device(device) }
    }
}

/// Queries of every head: the part that meets the latents' keys `[batch, time, H, dn]`, and the
/// part that meets the shared key `[batch, time, H, dr]`.
struct Queries {
    nope: Tensor<4>,
    rope: Tensor<4>,
}

impl LatentAttention {
    /// Whole sequences: `[batch, time, D]` to `[batch, time, D]`.
    ///
    /// With `packing` (made from a padding mask `[batch, time]`) the padded tokens are removed, each
    /// row is computed as a sequence of its own, and the result is 0 at padded positions.
    ///
    /// # Panics
    ///
    /// When `x` does not have `D` channels or not the shape of the packing.
    pub fn forward(&self, x: Tensor<3>, packing: Option<&Packing>) -> Tensor<3> {
        match packing {
            Some(packing) => {
                let boundaries = packing.boundaries();
                let x = packing.pack(x);
                let rotate = |rotary: &RotaryEmbedding, x: Tensor<4>| rotary.apply_packed(x, boundaries);
                let (q, latents) = (self.queries(x.clone(), rotate), self.latents(x, rotate));
                packing.unpack(self.output(self.expanded(q, latents, Some(boundaries))))
            }
            None => {
                let (q, latents) = self.project(x, 0);
                self.output(self.expanded(q, latents, None))
            }
        }
    }

    /// The cache before the first token.
    pub fn empty_cache(&self, batch: usize, device: &Device) -> LatentCache {
        LatentCache { latents: Tensor::zeros(self.cache_dims(batch, 0), device) }
    }

    /// Shape of the cache's latents after a number of tokens.
    pub fn cache_dims(&self, batch: usize, tokens: usize) -> [usize; 3] {
        [batch, tokens, self.rank + self.rope_dim]
    }

    /// Continues sequences by several tokens: `[batch, time, D]` after what the cache holds.
    ///
    /// Returns the outputs of the new tokens and the new cache. The result equals that of
    /// [`forward`](Self::forward) over all tokens at once.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn prefill(&self, x: Tensor<3>, cache: LatentCache) -> (Tensor<3>, LatentCache) {
        let [batch, time, _] = x.dims();
        let need = self.cache_dims(batch, cache.len());
        assert!(
            cache.latents.dims() == need,
            "LatentAttention: the cache {:?} must be {need:?}",
            cache.latents.dims()
        );
        let (q, new) = self.project(x, cache.len());
        let latents = if cache.is_empty() { new } else { Tensor::cat(vec![cache.latents, new], 1) };
        let o = match self.absorbing_is_cheaper(time, latents.dims()[1]) {
            true => self.absorbed(q, latents.clone()),
            false => self.expanded(q, latents.clone(), None),
        };
        (self.output(o), LatentCache { latents })
    }

    /// Continues sequences by one token: `[batch, D]` to `[batch, D]`.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn step(&self, x: Tensor<2>, cache: LatentCache) -> (Tensor<2>, LatentCache) {
        let (y, cache) = self.prefill(x.unsqueeze_dim(1), cache);
        (y.squeeze_dim(1), cache)
    }

    /// Attention weights `[batch, H, time, time]` of whole sequences, for diagnosis.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn weights(&self, x: Tensor<3>) -> Tensor<4> {
        let (q, latents) = self.project(x, 0);
        let (k, _) = self.keys_and_values(latents);
        attention_weights(Tensor::cat(vec![q.nope, q.rope], 3), k, &self.options())
    }

    /// Queries and latents of tokens from position `offset` on.
    fn project(&self, x: Tensor<3>, offset: usize) -> (Queries, Tensor<3>) {
        let rotate = |rotary: &RotaryEmbedding, x: Tensor<4>| rotary.apply(x, offset);
        (self.queries(x.clone(), rotate), self.latents(x, rotate))
    }

    fn queries(&self, x: Tensor<3>, rotate: impl Fn(&RotaryEmbedding, Tensor<4>) -> Tensor<4>) -> Queries {
        let [batch, time, _] = x.dims();
        let q = match (&self.q_proj, &self.q_a_proj, &self.q_a_layernorm, &self.q_b_proj) {
            (None, Some(down), Some(norm), Some(up)) => up.forward(norm.forward(down.forward(x))),
            (Some(projection), ..) => projection.forward(x),
            _ => unreachable!("queries come from one projection or from a latent"),
        };
        let q = q.reshape([batch, time, self.num_heads, self.nope_dim + self.rope_dim]);
        let rope = q.clone().narrow(3, self.nope_dim, self.rope_dim);
        Queries { nope: q.narrow(3, 0, self.nope_dim), rope: self.rotated(rope, rotate) }
    }

    /// What the cache holds of the tokens `x`, `[batch, time, rank + dr]`.
    fn latents(&self, x: Tensor<3>, rotate: impl Fn(&RotaryEmbedding, Tensor<4>) -> Tensor<4>) -> Tensor<3> {
        let compressed = self.kv_a_proj_with_mqa.forward(x);
        let latent = self.kv_a_layernorm.forward(compressed.clone().narrow(2, 0, self.rank));
        let key = compressed.narrow(2, self.rank, self.rope_dim).unsqueeze_dim::<4>(2);
        Tensor::cat(vec![latent, self.rotated(key, rotate).squeeze_dim(2)], 2)
    }

    fn rotated(&self, x: Tensor<4>, rotate: impl Fn(&RotaryEmbedding, Tensor<4>) -> Tensor<4>) -> Tensor<4> {
        match &self.rotary {
            None => x,
            Some(rotary) if self.interleaved => rotate(rotary, pairs_to_halves(x)),
            Some(rotary) => rotate(rotary, x),
        }
    }

    /// Attention with keys and values made from the latents, `[batch, time, H, dv]`.
    fn expanded(&self, q: Queries, latents: Tensor<3>, boundaries: Option<&Boundaries>) -> Tensor<4> {
        let (k, v) = self.keys_and_values(latents);
        causal_attention(Tensor::cat(vec![q.nope, q.rope], 3), k, v, &self.options(), boundaries)
    }

    fn keys_and_values(&self, latents: Tensor<3>) -> (Tensor<4>, Tensor<4>) {
        let [batch, keys, _] = latents.dims();
        let heads = self.num_heads;
        let made = self.kv_b_proj.forward(latents.clone().narrow(2, 0, self.rank));
        let made = made.reshape([batch, keys, heads, self.nope_dim + self.value_dim]);
        let shared = latents.narrow(2, self.rank, self.rope_dim).unsqueeze_dim::<4>(2).expand([
            batch,
            keys,
            heads,
            self.rope_dim,
        ]);
        let k = Tensor::cat(vec![made.clone().narrow(3, 0, self.nope_dim), shared], 3);
        (k, made.narrow(3, self.nope_dim, self.value_dim))
    }

    /// The same attention over the latents themselves, one key and value for all heads:
    /// `q_n . W_k c = (W_k^T q_n) . c`, and the values' projection follows the weighted sum.
    fn absorbed(&self, q: Queries, latents: Tensor<3>) -> Tensor<4> {
        let (nope, value) = (self.nope_dim, self.value_dim);
        let weight = self.kv_b_proj.weight.val();
        let weight = weight.reshape([self.rank, self.num_heads, nope + value]).swap_dims(0, 1);
        let to_latent = weight.clone().narrow(2, 0, nope).swap_dims(1, 2);
        let q = Tensor::cat(vec![per_head(q.nope, to_latent), q.rope], 3);
        let keys = latents.unsqueeze_dim::<4>(2);
        let values = keys.clone().narrow(3, 0, self.rank);
        per_head(causal_attention(q, keys, values, &self.options(), None), weight.narrow(2, nope, value))
    }

    /// Products a head of both forms, for `time` queries over `keys` tokens.
    fn absorbing_is_cheaper(&self, time: usize, keys: usize) -> bool {
        let projection = self.rank * (self.nope_dim + self.value_dim);
        let absorbed = time * projection + time * keys * (2 * self.rank + self.rope_dim);
        let expanded = keys * projection + time * keys * (self.nope_dim + self.rope_dim + self.value_dim);
        absorbed < expanded
    }

    fn options(&self) -> AttentionOptions {
        let scale = ((self.nope_dim + self.rope_dim) as f64).powf(-0.5);
        AttentionOptions { scale: Some(scale), ..AttentionOptions::default() }
    }

    fn output(&self, o: Tensor<4>) -> Tensor<3> {
        let [batch, time, heads, dim] = o.dims();
        self.o_proj.forward(o.reshape([batch, time, heads * dim]))
    }
}

/// `[batch, time, H, n]` times a matrix a head `[H, n, m]`: `[batch, time, H, m]`.
fn per_head(x: Tensor<4>, weight: Tensor<3>) -> Tensor<4> {
    let ([batch, time, heads, n], m) = (x.dims(), weight.dims()[2]);
    let x = x.permute([2, 0, 1, 3]).reshape([heads, batch * time, n]);
    x.matmul(weight).reshape([heads, batch, time, m]).permute([1, 2, 0, 3])
}

#[cfg(test)]
mod tests;
