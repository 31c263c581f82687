//! Latent attention whose compressed values go through the mixer.

use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::module::linear;
use burn::tensor::{Device, Tensor};
use gatekit_core::attention::{RotaryEmbedding, causal_attention};
use gatekit_core::norm::rms_normalize;
use gatekit_core::sequence::Boundaries;
use gatekit_core::{ConfigError, ModuleConfig};
use serde::{Deserialize, Serialize};

use super::attention::{EPSILON, Heads, check_epsilon, mixed, options, rotation};
use super::cache::MoveLatentCache;
use super::init;
use super::mixer::{ValueMixer, ValueMixerConfig};

/// What the mixed latent replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LatentTarget {
    /// Keys and values are made of the mixed latent.
    Kv,
    /// Values are; keys are made of the plain one, which the cache then holds too.
    V,
}

/// Configuration of [`MoveLatentAttention`].
#[derive(Config, Debug)]
pub struct MoveLatentAttentionConfig {
    /// Width d.
    pub n_embd: usize,
    /// Heads H.
    pub n_head: usize,
    /// Width of the latent of keys and values.
    pub mla_d_c: usize,
    /// Width of the latent of queries.
    pub mla_d_c1: usize,
    /// Rotated channels of a head, even and fewer than e.
    pub mla_d_rope: usize,
    /// Channels e of a head. `None`: d / H.
    pub head_dim: Option<usize>,
    /// Groups that the latent and the slots are cut into, each with its own gates; divides
    /// `mla_d_c`. `None`: H.
    pub num_latent_groups: Option<usize>,
    /// What the mixed latent replaces. Default: keys and values.
    #[config(default = "LatentTarget::Kv")]
    pub latent_target: LatentTarget,
    /// Slots M that are mixed into the latent; `None`: the plain latent.
    pub move_slots: Option<usize>,
    /// Whether the ordinary latent has a gate too. Default true.
    #[config(default = true)]
    pub gate_standard: bool,
    /// Gates are `gate_scale * sigmoid`. Default 2.
    #[config(default = 2.0)]
    pub gate_scale: f64,
    /// Base of the rotary positions. Default 10000.
    #[config(default = 10000.0)]
    pub rope_base: f64,
    /// Added to the mean square of queries and keys. Default: machine epsilon of float32.
    #[config(default = "EPSILON")]
    pub norm_eps: f64,
    /// Tokens that are seen besides oneself; 0 (the default): all before.
    #[config(default = 0)]
    pub window_size: usize,
}

impl ModuleConfig for MoveLatentAttentionConfig {
    type Module = MoveLatentAttention;

    fn try_init(&self, device: &Device) -> Result<MoveLatentAttention, ConfigError> {
        let width = self.n_embd;
        let Heads { query: heads, dim, .. } = Heads::new(width, self.n_head, None, self.head_dim)?;
        for (field, size) in [("mla_d_c", self.mla_d_c), ("mla_d_c1", self.mla_d_c1)] {
            init::check_size(field, size)?;
        }
        let rotary = rotation("mla_d_rope", self.mla_d_rope, self.rope_base)?;
        if self.mla_d_rope >= dim {
            let need = format!("fewer than the {dim} channels of a head");
            return Err(ConfigError::new("mla_d_rope", self.mla_d_rope, need));
        }
        let groups = self.num_latent_groups.unwrap_or(heads);
        if groups == 0 || !self.mla_d_c.is_multiple_of(groups) {
            let need = format!("a divisor of mla_d_c = {}", self.mla_d_c);
            return Err(ConfigError::new("num_latent_groups", groups, need));
        }
        check_epsilon(self.norm_eps)?;
        let mixer = |slots| {
            ValueMixerConfig::new(width, groups, self.mla_d_c / groups, slots)
                .with_gate_standard(self.gate_standard)
                .with_gate_scale(self.gate_scale)
                .try_init(device)
        };
        let down = self.mla_d_c + self.mla_d_c1 + self.mla_d_rope;
        let expanded = heads * (2 * dim - self.mla_d_rope);
        Ok(MoveLatentAttention {
            w_down: init::linear(width, down, width, device),
            w_ukv: init::linear(self.mla_d_c, expanded, width, device),
            w_uq: init::linear(self.mla_d_c1, heads * dim, width, device),
            c_proj: init::output(heads * dim, width, device),
            mixer: self.move_slots.map(mixer).transpose()?,
            rotary,
            n_head: heads,
            head_dim: dim,
            latent_groups: groups,
            rotated: self.mla_d_rope,
            latent_target: self.latent_target,
            norm_eps: self.norm_eps,
            window_size: self.window_size,
        })
    }
}

/// Latent attention with a mixed latent.
///
/// ```text
/// [c_kv, c_q, k_r] = W_down x
/// c~ = g_0 c_kv + sum_i g_i m_i                      group by group
/// [k_n, v] = W_ukv c~ (per head)     q = W_uq c_q    k = [k_n, rotate(k_r)], k_r for all heads
/// y = W_o softmax(rms(q) rms(k)^T / sqrt(e)) v
/// ```
///
/// The last channels of a query are rotated before its norm. The cache holds `c~` and the rotated
/// `k_r`, so it is as large as without a memory; with [`LatentTarget::V`] it also holds `c_kv`, of
/// which the keys are made.
#[derive(Module, Debug)]
pub struct MoveLatentAttention {
    /// To the latents and the shared key, `[d, d_c + d_c1 + d_rope]`.
    pub w_down: Linear,
    /// Latent to keys and values, `[d_c, H (e - d_rope + e)]`.
    pub w_ukv: Linear,
    /// Latent to queries, `[d_c1, H e]`.
    pub w_uq: Linear,
    /// Output projection, `[H e, d]`; starts at 0.
    pub c_proj: Linear,
    /// What mixes a memory into the latent; `None`: the plain latent.
    pub mixer: Option<ValueMixer>,
    #[module(skip)]
    rotary: RotaryEmbedding,
    n_head: usize,
    head_dim: usize,
    latent_groups: usize,
    rotated: usize,
    #[module(skip)]
    latent_target: LatentTarget,
    norm_eps: f64,
    window_size: usize,
}

/// Where a piece of a sequence stands.
#[derive(Clone, Copy)]
enum Place<'a> {
    /// After so many tokens.
    At(usize),
    /// In packed sequences.
    Packed(&'a Boundaries),
}

impl MoveLatentAttention {
    /// Whole sequences: the output and the mixed latent `c~`.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, time, d]`, normalised
    /// - `memory`: `[batch, time, M, d_c]`, where the layer has a mixer
    /// - `boundaries`: the row (batch 1) holds packed sequences, which do not see one another
    /// - output: `[batch, time, d]` and `[batch, time, d_c]`
    ///
    /// # Panics
    ///
    /// When the shapes do not fit, or a memory is given to a layer without a mixer or missing.
    pub fn forward(
        &self,
        x: Tensor<3>,
        memory: Option<Tensor<4>>,
        boundaries: Option<&Boundaries>,
    ) -> (Tensor<3>, Tensor<3>) {
        let place = boundaries.map_or(Place::At(0), Place::Packed);
        let (q, latents) = self.project(x, memory, place);
        let y = self.attend(q, &latents, boundaries);
        (y, latents.mixed)
    }

    /// The cache before the first token.
    pub fn empty_cache(&self, batch: usize, device: &Device) -> MoveLatentCache {
        let empty = |channels| Tensor::zeros([batch, 0, channels], device);
        let latent = self.w_ukv.weight.lazy_shape()[0];
        MoveLatentCache {
            mixed: empty(latent),
            plain: (self.latent_target == LatentTarget::V).then(|| empty(latent)),
            rotated: empty(self.rotated),
            position: 0,
        }
    }

    /// Continues by several tokens; shapes as in [`forward`](Self::forward).
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn prefill(
        &self,
        x: Tensor<3>,
        memory: Option<Tensor<4>>,
        cache: MoveLatentCache,
    ) -> (Tensor<3>, MoveLatentCache) {
        let (q, latents) = self.project(x, memory, Place::At(cache.position));
        let cache = cache.extended(latents);
        let y = self.attend(q, &cache, None);
        (y, if self.window_size > 0 { cache.last(self.window_size) } else { cache })
    }

    /// Continues by one token: `x` `[batch, d]` and `memory` `[batch, 1, M, d_c]` to `[batch, d]`.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn step(
        &self,
        x: Tensor<2>,
        memory: Option<Tensor<4>>,
        cache: MoveLatentCache,
    ) -> (Tensor<2>, MoveLatentCache) {
        let (y, cache) = self.prefill(x.unsqueeze_dim(1), memory, cache);
        (y.squeeze_dim(1), cache)
    }

    /// Queries, and what a cache holds of the tokens.
    fn project(
        &self,
        x: Tensor<3>,
        memory: Option<Tensor<4>>,
        place: Place<'_>,
    ) -> (Tensor<4>, MoveLatentCache) {
        let [batch, time, _] = x.dims();
        let ([latent, _], groups) = (self.w_ukv.weight.val().dims(), self.latent_groups);
        let query_latent = self.w_uq.weight.lazy_shape()[0];
        let down = self.w_down.forward(x.clone());
        let plain = down.clone().narrow(2, 0, latent);
        let c_q = down.clone().narrow(2, latent, query_latent);
        let k_r = down.narrow(2, latent + query_latent, self.rotated);

        let memory = memory.map(|memory| {
            let [memory_batch, memory_time, slots, width] = memory.dims();
            assert!(
                width == latent,
                "MoveLatentAttention: `memory` {:?} has {width} channels, the latent {latent}",
                memory.dims()
            );
            memory.reshape([memory_batch, memory_time, slots, groups, latent / groups])
        });
        let grouped = plain.clone().reshape([batch, time, groups, latent / groups]);
        let mixed = mixed(&self.mixer, x, grouped, memory).reshape([batch, time, latent]);

        let rotate = |x: Tensor<4>| match place {
            Place::At(position) => self.rotary.apply(x, position),
            Place::Packed(boundaries) => self.rotary.apply_packed(x, boundaries),
        };
        let q = self.w_uq.forward(c_q).reshape([batch, time, self.n_head, self.head_dim]);
        let unrotated = self.head_dim - self.rotated;
        let turned = rotate(q.clone().narrow(3, unrotated, self.rotated));
        let q = Tensor::cat(vec![q.narrow(3, 0, unrotated), turned], 3);
        let rotated = rotate(k_r.unsqueeze_dim(2)).squeeze_dim(2);
        let plain = (self.latent_target == LatentTarget::V).then_some(plain);
        (rms_normalize(q, self.norm_eps), MoveLatentCache { mixed, plain, rotated, position: time })
    }

    /// Attention of the queries over what `held` describes.
    fn attend(&self, q: Tensor<4>, held: &MoveLatentCache, boundaries: Option<&Boundaries>) -> Tensor<3> {
        let [batch, time, heads, dim] = q.dims();
        let keys = held.len();
        let unrotated = dim - self.rotated;
        let (k, v) = match &held.plain {
            None => {
                let kv = self.w_ukv.forward(held.mixed.clone());
                let kv = kv.reshape([batch, keys, heads, unrotated + dim]);
                (kv.clone().narrow(3, 0, unrotated), kv.narrow(3, unrotated, dim))
            }
            Some(plain) => {
                let [latent, _] = self.w_ukv.weight.dims();
                let weight = self.w_ukv.weight.val().reshape([latent, heads, unrotated + dim]);
                let part = |x: &Tensor<3>, start: usize, count: usize| {
                    let weight = weight.clone().narrow(2, start, count).reshape([latent, heads * count]);
                    linear(x.clone(), weight, None).reshape([batch, keys, heads, count])
                };
                (part(plain, 0, unrotated), part(&held.mixed, unrotated, dim))
            }
        };
        let shared = held.rotated.clone().unsqueeze_dim::<4>(2).expand([batch, keys, heads, self.rotated]);
        let k = rms_normalize(Tensor::cat(vec![k, shared], 3), self.norm_eps);
        let y = causal_attention(q, k, v, &options(self.window_size), boundaries);
        self.c_proj.forward(y.reshape([batch, time, heads * dim]))
    }
}
