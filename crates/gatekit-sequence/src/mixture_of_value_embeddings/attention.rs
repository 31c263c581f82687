//! Attention whose values go through the mixer.

use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use gatekit_core::attention::{AttentionOptions, KvCache, RotaryEmbedding, causal_attention};
use gatekit_core::norm::rms_normalize;
use gatekit_core::sequence::Boundaries;
use gatekit_core::{ConfigError, ModuleConfig};

use super::init;
use super::mixer::{ValueMixer, ValueMixerConfig};

/// Machine epsilon of float32, which the text models add in their norms.
pub(super) const EPSILON: f64 = f32::EPSILON as f64;

/// Configuration of [`MoveAttention`].
#[derive(Config, Debug)]
pub struct MoveAttentionConfig {
    /// Width d.
    pub n_embd: usize,
    /// Query heads H.
    pub n_head: usize,
    /// Key and value heads G, each shared by consecutive query heads; divides H. `None`: H.
    pub n_kv_head: Option<usize>,
    /// Channels e of a head, even. `None`: d / H.
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
    /// Added to the mean square of queries and keys. Default: machine epsilon of float32.
    #[config(default = "EPSILON")]
    pub norm_eps: f64,
    /// Tokens that are seen besides oneself; 0 (the default): all before.
    #[config(default = 0)]
    pub window_size: usize,
}

/// Heads of an attention layer, checked.
pub(super) struct Heads {
    pub query: usize,
    pub value: usize,
    pub dim: usize,
}

impl Heads {
    /// Checks the fields that all attention layers here share.
    pub(super) fn new(
        n_embd: usize,
        n_head: usize,
        n_kv_head: Option<usize>,
        head_dim: Option<usize>,
    ) -> Result<Self, ConfigError> {
        for (field, size) in [("n_embd", n_embd), ("n_head", n_head)] {
            init::check_size(field, size)?;
        }
        let value = n_kv_head.unwrap_or(n_head);
        if value == 0 || !n_head.is_multiple_of(value) {
            return Err(ConfigError::new("n_kv_head", value, format!("a divisor of n_head = {n_head}")));
        }
        let dim = match head_dim {
            Some(dim) => dim,
            None if n_embd.is_multiple_of(n_head) => n_embd / n_head,
            None => {
                let need = format!("a multiple of n_head = {n_head}, or a head_dim");
                return Err(ConfigError::new("n_embd", n_embd, need));
            }
        };
        init::check_size("head_dim", dim)?;
        Ok(Self { query: n_head, value, dim })
    }
}

/// The rotation of the text models, which turns channel pairs (a, b) to
/// `(a cos + b sin, b cos - a sin)`: against the usual sense.
pub(super) fn rotation(field: &str, dim: usize, base: f64) -> Result<RotaryEmbedding, ConfigError> {
    let rotary = RotaryEmbedding::new(dim, base).map_err(|error| {
        let field = if error.field == "rope_theta" { "rope_base" } else { field };
        ConfigError::new(field, error.got, error.need)
    })?;
    Ok(rotary.reversed())
}

/// Refuses an epsilon that is not positive.
pub(super) fn check_epsilon(epsilon: f64) -> Result<(), ConfigError> {
    match epsilon.is_finite() && epsilon > 0.0 {
        true => Ok(()),
        false => Err(ConfigError::new("norm_eps", epsilon, "a positive number")),
    }
}

/// Options of an attention that sees `window` tokens besides oneself, 0 for all.
pub(super) fn options(window: usize) -> AttentionOptions {
    let window = (window > 0).then(|| window.saturating_add(1));
    AttentionOptions { window, ..AttentionOptions::default() }
}

impl ModuleConfig for MoveAttentionConfig {
    type Module = MoveAttention;

    fn try_init(&self, device: &Device) -> Result<MoveAttention, ConfigError> {
        let width = self.n_embd;
        let heads = Heads::new(width, self.n_head, self.n_kv_head, self.head_dim)?;
        let rotary = rotation("head_dim", heads.dim, self.rope_base)?;
        check_epsilon(self.norm_eps)?;
        let mixer = |slots| {
            ValueMixerConfig::new(width, heads.value, heads.dim, slots)
                .with_gate_standard(self.gate_standard)
                .with_gate_scale(self.gate_scale)
                .try_init(device)
        };
        Ok(MoveAttention {
            c_q: init::linear(width, heads.query * heads.dim, width, device),
            c_k: init::linear(width, heads.value * heads.dim, width, device),
            c_v: init::linear(width, heads.value * heads.dim, width, device),
            c_proj: init::output(heads.query * heads.dim, width, device),
            mixer: self.move_slots.map(mixer).transpose()?,
            rotary,
            head_dim: heads.dim,
            norm_eps: self.norm_eps,
            window_size: self.window_size,
        })
    }
}

/// Causal attention with mixed values: `y = W_o softmax(q k^T / sqrt(e)) v~`.
///
/// Queries and keys are rotated and then normalised to a root mean square of 1 over a head's
/// channels (no weight); values are neither, and go through the [`ValueMixer`]. Without a memory
/// `v~ = v`.
#[derive(Module, Debug)]
pub struct MoveAttention {
    /// Query projection, `[d, H e]`.
    pub c_q: Linear,
    /// Key projection, `[d, G e]`.
    pub c_k: Linear,
    /// Value projection, `[d, G e]`.
    pub c_v: Linear,
    /// Output projection, `[H e, d]`; starts at 0.
    pub c_proj: Linear,
    /// What mixes a memory into the values; `None`: plain values.
    pub mixer: Option<ValueMixer>,
    #[module(skip)]
    rotary: RotaryEmbedding,
    head_dim: usize,
    norm_eps: f64,
    window_size: usize,
}

/// `v~` of `v`: mixed where the layer has a mixer.
pub(super) fn mixed(
    mixer: &Option<ValueMixer>,
    x: Tensor<3>,
    v: Tensor<4>,
    memory: Option<Tensor<5>>,
) -> Tensor<4> {
    match (mixer, memory) {
        (Some(mixer), Some(memory)) => mixer.forward(x, v, memory),
        (None, None) => v,
        (Some(_), None) => panic!("the layer mixes a memory into its values, and got none"),
        (None, Some(_)) => panic!("the layer has plain values, and got a memory"),
    }
}

impl MoveAttention {
    /// Whole sequences.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, time, d]`, normalised
    /// - `memory`: `[batch, time, M, G, e]`, where the layer has a mixer
    /// - `boundaries`: the row (batch 1) holds packed sequences, which do not see one another
    /// - output: `[batch, time, d]`
    ///
    /// # Panics
    ///
    /// When the shapes do not fit, or a memory is given to a layer without a mixer or missing.
    pub fn forward(
        &self,
        x: Tensor<3>,
        memory: Option<Tensor<5>>,
        boundaries: Option<&Boundaries>,
    ) -> Tensor<3> {
        let (q, k, v) = self.project(x, memory);
        let (q, k) = match boundaries {
            Some(boundaries) => {
                (self.rotary.apply_packed(q, boundaries), self.rotary.apply_packed(k, boundaries))
            }
            None => (self.rotary.apply(q, 0), self.rotary.apply(k, 0)),
        };
        let (q, k) = (self.normalised(q), self.normalised(k));
        self.output(causal_attention(q, k, v, &options(self.window_size), boundaries))
    }

    /// The cache before the first token.
    pub fn empty_cache(&self, batch: usize, device: &Device) -> KvCache {
        let value_heads = self.c_v.weight.lazy_shape()[1] / self.head_dim;
        let empty = Tensor::zeros([batch, 0, value_heads, self.head_dim], device);
        KvCache { keys: empty.clone(), values: empty, position: 0 }
    }

    /// Continues by several tokens; shapes as in [`forward`](Self::forward). The cache holds keys
    /// and mixed values, so a cached token needs no further look-up.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn prefill(&self, x: Tensor<3>, memory: Option<Tensor<5>>, cache: KvCache) -> (Tensor<3>, KvCache) {
        let (q, k, v) = self.project(x, memory);
        let (q, k) = (self.rotary.apply(q, cache.position), self.rotary.apply(k, cache.position));
        let (q, k) = (self.normalised(q), self.normalised(k));
        let cache = cache.extended(k, v);
        let (keys, values) = (cache.keys.clone(), cache.values.clone());
        let y = self.output(causal_attention(q, keys, values, &options(self.window_size), None));
        (y, if self.window_size > 0 { cache.last(self.window_size) } else { cache })
    }

    /// Continues by one token: `x` `[batch, d]` and `memory` `[batch, 1, M, G, e]` to `[batch, d]`.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn step(&self, x: Tensor<2>, memory: Option<Tensor<5>>, cache: KvCache) -> (Tensor<2>, KvCache) {
        let (y, cache) = self.prefill(x.unsqueeze_dim(1), memory, cache);
        (y.squeeze_dim(1), cache)
    }

    /// Queries, keys and mixed values, heads apart.
    fn project(&self, x: Tensor<3>, memory: Option<Tensor<5>>) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
        let [batch, time, _] = x.dims();
        let heads = |projection: &Linear| {
            let heads = projection.weight.lazy_shape()[1] / self.head_dim;
            projection.forward(x.clone()).reshape([batch, time, heads, self.head_dim])
        };
        let (q, k, v) = (heads(&self.c_q), heads(&self.c_k), heads(&self.c_v));
        (q, k, mixed(&self.mixer, x, v, memory))
    }

    fn normalised(&self, x: Tensor<4>) -> Tensor<4> {
        rms_normalize(x, self.norm_eps)
    }

    fn output(&self, o: Tensor<4>) -> Tensor<3> {
        let [batch, time, heads, dim] = o.dims();
        self.c_proj.forward(o.reshape([batch, time, heads * dim]))
    }
}
