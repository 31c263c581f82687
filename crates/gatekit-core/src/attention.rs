//! Causal softmax attention with grouped heads, sliding windows, rotary positions and a key/value cache.
//!
//! [`causal_attention`] is the plain function, [`CausalAttention`] the layer.

mod grid;

pub use grid::GridRotaryEmbedding;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{DType, Device, Tensor, TensorData, activation::softmax};

use crate::common::{indices, widen};
use crate::config::ModuleConfig;
use crate::error::ConfigError;
use crate::init;
use crate::sequence::{Boundaries, Packing};

/// Added to scores that must not be seen: softmax turns it into exactly 0.
const HIDDEN: f64 = -1e30;

/// How [`causal_attention`] computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionOptions {
    /// Multiplies the scores; `None` (the default): `D^(-1/2)`.
    pub scale: Option<f64>,
    /// Sliding window w, at least 1: query i sees keys j with `0 <= i - j < w`. `None` (the default): all.
    pub window: Option<usize>,
    /// Queries computed at a time, at least 1. It bounds the scores held in memory to `block_size`
    /// rows a head and never changes the result. Default 256. Under autodiff the scores of all
    /// blocks are kept for the backward pass.
    pub block_size: usize,
}

impl Default for AttentionOptions {
    fn default() -> Self {
        Self { scale: None, window: None, block_size: 256 }
    }
}

/// Causal softmax attention: `o_i = sum_j softmax_j(scale q_i . k_j) v_j` over the keys that query i sees.
///
/// * `q` `[batch, time, heads, D]`
/// * `k` `[batch, keys, groups, D]`, `v` `[batch, keys, groups, Dv]`: `heads` is a multiple of
///   `groups`, and consecutive query heads share a group. `keys >= time`: the queries are the last
///   `time` of the `keys` positions, as in decoding with a cache.
/// * `boundaries`: the row (batch 1, `keys == time`) holds packed sequences, which do not see one another.
/// * returns `[batch, time, heads, Dv]`
///
/// Every query sees at least its own key, so no row is empty. Scores are normalised in at least float32.
///
/// # Panics
///
/// When the shapes do not fit, or a window or block size is 0.
pub fn causal_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    options: &AttentionOptions,
    boundaries: Option<&Boundaries>,
) -> Tensor<4> {
    check(&q, &k, Some(&v), options);
    match boundaries {
        Some(boundaries) => {
            let time = boundaries.time();
            assert!(
                q.dims()[..2] == [1, time] && k.dims()[1] == time,
                "causal_attention: packed `q` {:?} and `k` {:?} must have batch 1 and {time} steps",
                q.dims(),
                k.dims()
            );
            packed(q, k, v, options, boundaries)
        }
        None => blocked(q, k, v, options),
    }
}

/// The attention weights themselves, `[batch, heads, time, keys]`; each row sums to 1.
///
/// For diagnosis: [`causal_attention`] never holds them all. Arguments and panics as there.
pub fn attention_weights(q: Tensor<4>, k: Tensor<4>, options: &AttentionOptions) -> Tensor<4> {
    check(&q, &k, None, options);
    let ([batch, time, heads, _], keys) = (q.dims(), k.dims()[1]);
    let first = keys - time;
    let weights = weights(by_group(q, k.dims()[2]), k.permute([0, 2, 1, 3]), time, first, 0, options);
    weights.reshape([batch, heads, time, keys])
}

/// One block of queries after the other, each with the keys that its window reaches.
fn blocked(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, options: &AttentionOptions) -> Tensor<4> {
    let ([batch, time, heads, _], [_, keys, groups, _], value_dim) = (q.dims(), k.dims(), v.dims()[3]);
    let (k, v) = (k.permute([0, 2, 1, 3]), v.permute([0, 2, 1, 3]));
    let blocks = (0..time)
        .step_by(options.block_size)
        .map(|start| {
            let rows = options.block_size.min(time - start);
            let first = keys - time + start;
            let lowest = options.window.map_or(0, |window| (first + 1).saturating_sub(window));
            let reach = first + rows - lowest;
            let q = by_group(q.clone().narrow(1, start, rows), groups);
            let weights = weights(q, k.clone().narrow(2, lowest, reach), rows, first, lowest, options);
            weights
                .cast(v.dtype())
                .matmul(v.clone().narrow(2, lowest, reach))
                .reshape([batch, heads, rows, value_dim])
                .swap_dims(1, 2)
        })
        .collect::<Vec<_>>();
    concatenate(blocks)
}

/// `[batch, rows, heads, D]` to `[batch, groups, heads / groups * rows, D]`: one matrix product
/// then serves all heads of a group, and keys are never repeated.
fn by_group(q: Tensor<4>, groups: usize) -> Tensor<4> {
    let [batch, rows, heads, dim] = q.dims();
    q.swap_dims(1, 2).reshape([batch, groups, heads / groups * rows, dim])
}

/// Softmax of the scores of `rows` queries a head, the first at position `first`, over keys from
/// position `lowest` on: `[batch, groups, heads / groups * rows, reach]`.
fn weights(
    q: Tensor<4>,
    k: Tensor<4>,
    rows: usize,
    first: usize,
    lowest: usize,
    options: &AttentionOptions,
) -> Tensor<4> {
    let ([batch, groups, group_rows, dim], reach) = (q.dims(), k.dims()[2]);
    let scale = options.scale.unwrap_or((dim as f64).powf(-0.5));
    let scores = widen(q.mul_scalar(scale).matmul(k.swap_dims(2, 3)));
    let scores = match hidden(rows, reach, first - lowest, options.window, scores.dtype(), &scores.device()) {
        Some(hidden) => (scores.reshape([batch, groups * group_rows / rows, rows, reach]) + hidden)
            .reshape([batch, groups, group_rows, reach]),
        None => scores,
    };
    softmax(scores, 3)
}

/// `[1, 1, rows, reach]` to be added to the scores; `None` when every query sees every key.
/// Query i stands at key `i + offset`.
fn hidden(
    rows: usize,
    reach: usize,
    offset: usize,
    window: Option<usize>,
    dtype: DType,
    device: &Device,
) -> Option<Tensor<4>> {
    let device = &device.clone().inner();
    let later = (rows > 1).then(|| Tensor::tril_mask([1, 1, rows, reach], offset as i64, device));
    // The last query has the most keys behind its window.
    let earlier = window
        .filter(|window| offset + rows > *window)
        .map(|window| Tensor::triu_mask([1, 1, rows, reach], offset as i64 - window as i64 + 1, device));
    let mask = match (later, earlier) {
        (Some(later), Some(earlier)) => later.bool_or(earlier),
        (Some(mask), None) | (None, Some(mask)) => mask,
        (None, None) => return None,
    };
    Some(Tensor::zeros([1, 1, rows, reach], (device, dtype)).mask_fill(mask, HIDDEN))
}

/// Packed sequences as batches of sequences of similar length.
///
/// A sequence shorter than its batch is extended by repeating its last token, which causality keeps
/// the real tokens from seeing; the extra results are dropped. Lengths within a batch differ by less
/// than a factor of two, so no more than three quarters of the scores are wasted.
fn packed(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    options: &AttentionOptions,
    boundaries: &Boundaries,
) -> Tensor<4> {
    let segments: Vec<_> = boundaries.cu_seqlens().windows(2).map(|pair| pair[0]..pair[1]).collect();
    let length = segments[0].len();
    if segments.iter().all(|segment| segment.len() == length) {
        let rows = |x: Tensor<4>| {
            let [_, _, heads, dim] = x.dims();
            x.reshape([segments.len(), length, heads, dim])
        };
        let output = blocked(rows(q), rows(k), rows(v), options);
        let [_, _, heads, dim] = output.dims();
        return output.reshape([1, boundaries.time(), heads, dim]);
    }
    let mut batches: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, segment) in segments.iter().enumerate() {
        batches.entry(segment.len().next_power_of_two()).or_default().push(index);
    }
    let device = q.device();
    let mut place = vec![0; boundaries.time()];
    let mut filled = 0;
    let outputs = batches
        .into_values()
        .map(|batch| {
            let longest = batch.iter().map(|index| segments[*index].len()).max().unwrap_or(0);
            let mut tokens = Vec::with_capacity(batch.len() * longest);
            for segment in batch.iter().map(|index| segments[*index].clone()) {
                for step in 0..longest {
                    if step < segment.len() {
                        place[segment.start + step] = filled + tokens.len();
                    }
                    tokens.push((segment.start + step).min(segment.end - 1));
                }
            }
            filled += tokens.len();
            let tokens = indices(tokens, &device);
            let rows = |x: &Tensor<4>| {
                let [_, _, heads, dim] = x.dims();
                x.clone().select(1, tokens.clone()).reshape([batch.len(), longest, heads, dim])
            };
            let output = blocked(rows(&q), rows(&k), rows(&v), options);
            let [_, _, heads, dim] = output.dims();
            output.reshape([1, batch.len() * longest, heads, dim])
        })
        .collect();
    concatenate(outputs).select(1, indices(place, &device))
}

/// Along time; a single part is returned as it is.
fn concatenate(mut parts: Vec<Tensor<4>>) -> Tensor<4> {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 1) }
}

fn check(q: &Tensor<4>, k: &Tensor<4>, v: Option<&Tensor<4>>, options: &AttentionOptions) {
    let ([batch, time, heads, dim], [k_batch, keys, groups, k_dim]) = (q.dims(), k.dims());
    assert!(
        batch == k_batch && dim == k_dim && 0 < time && time <= keys && heads % groups == 0,
        "causal_attention: `k` {:?} does not fit `q` {:?}: need the same batch and head size, at least as \
         many steps (and at least one), and heads that divide among the groups",
        k.dims(),
        q.dims()
    );
    if let Some(v) = v {
        assert!(
            v.dims()[..3] == k.dims()[..3],
            "causal_attention: `v` {:?} differs from `k` {:?} in batch, steps or groups",
            v.dims(),
            k.dims()
        );
    }
    assert!(options.window != Some(0), "causal_attention: a window of 0 sees nothing");
    assert!(options.block_size > 0, "causal_attention: `block_size` must be at least 1");
}

/// Rotary position embedding, half-rotation form, on the first `dim` channels of each head.
///
/// With `x_1`, `x_2` the two halves of these channels and angles `position * theta^(-2i/dim)`:
/// `[x_1 cos - x_2 sin, x_2 cos + x_1 sin]`. Further channels pass unchanged (a partial rotation).
/// Angles are computed in float64, so far positions stay exact; the last table of sines and cosines
/// is kept and shared by clones. Su et al., RoFormer (arXiv 2104.09864), eq. 34, in GPT-NeoX's order
/// of channels.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    dim: usize,
    theta: f64,
    /// 1, or -1 against the usual sense.
    sense: f64,
    table: Arc<Mutex<Option<RotaryTable>>>,
}

/// Cosines and sines `[positions, dim / 2]` of consecutive positions.
#[derive(Debug, Clone)]
struct RotaryTable {
    first: usize,
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl RotaryEmbedding {
    /// For `dim` rotated channels and base `theta` (10000 in the paper).
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when `dim` is odd or 0, or `theta` not a finite number above 0.
    pub fn new(dim: usize, theta: f64) -> Result<Self, ConfigError> {
        if dim == 0 || dim % 2 == 1 {
            return Err(ConfigError::new("head_dim", dim, "an even number of rotated channels, at least 2"));
        }
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(ConfigError::new("rope_theta", theta, "a finite number above 0"));
        }
        Ok(Self { dim, theta, sense: 1.0, table: Arc::default() })
    }

    /// The rotation against the usual sense: `[x_1 cos + x_2 sin, x_2 cos - x_1 sin]`.
    pub fn reversed(self) -> Self {
        Self { sense: -self.sense, table: Arc::default(), ..self }
    }

    /// Rotates `x` `[batch, time, heads, >= dim]`, whose first step stands at position `offset`.
    ///
    /// # Panics
    ///
    /// When a head of `x` has fewer channels than are rotated.
    pub fn apply(&self, x: Tensor<4>, offset: usize) -> Tensor<4> {
        let time = x.dims()[1];
        let table = self.positions(offset, time, &x);
        self.rotate(x, table.cos, table.sin)
    }

    /// Rotates packed sequences `[1, time, heads, >= dim]`: positions start at 0 in every segment.
    ///
    /// # Panics
    ///
    /// When `x` does not have the time of the boundaries, or as [`apply`](Self::apply).
    pub fn apply_packed(&self, x: Tensor<4>, boundaries: &Boundaries) -> Tensor<4> {
        assert!(
            x.dims()[1] == boundaries.time(),
            "RotaryEmbedding: `x` {:?} does not have the {} steps of the boundaries",
            x.dims(),
            boundaries.time()
        );
        let positions = boundaries.position_in_segment();
        let longest = positions.iter().max().map_or(0, |last| last + 1);
        let table = self.positions(0, longest, &x);
        let positions = indices(positions, &table.cos.device());
        self.rotate(x, table.cos.select(0, positions.clone()), table.sin.select(0, positions))
    }

    fn rotate(&self, x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
        let ([_, time, _, width], half, dtype) = (x.dims(), self.dim / 2, x.dtype());
        assert!(
            width >= self.dim,
            "RotaryEmbedding: heads of `x` {:?} have fewer than {} channels",
            x.dims(),
            self.dim
        );
        let x = widen(x);
        let (cos, sin) = (cos.reshape([1, time, 1, half]), sin.reshape([1, time, 1, half]));
        let (first, second) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
        let mut parts =
            vec![first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin];
        if width > self.dim {
            parts.push(x.narrow(3, self.dim, width - self.dim));
        }
        Tensor::cat(parts, 3).cast(dtype)
    }

    /// The table of positions `first .. first + count`, on the device of `x` and in its (widened) type.
    fn positions(&self, first: usize, count: usize, x: &Tensor<4>) -> RotaryTable {
        let device = x.device().inner();
        let dtype = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let mut kept = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let covers = |table: &RotaryTable| {
            table.cos.device() == device
                && table.cos.dtype() == dtype
                && table.first <= first
                && first + count <= table.first + table.cos.dims()[0]
        };
        if !kept.as_ref().is_some_and(covers) {
            // From the start, lengths vary from call to call: round up so that the next one fits too.
            let count = if first == 0 { count.next_power_of_two() } else { count };
            *kept = Some(self.compute(first, count, dtype, &device));
        }
        let table = kept.as_ref().expect("filled above");
        let slice = |part: &Tensor<2>| part.clone().narrow(0, first - table.first, count);
        RotaryTable { first, cos: slice(&table.cos), sin: slice(&table.sin) }
    }

    fn compute(&self, first: usize, count: usize, dtype: DType, device: &Device) -> RotaryTable {
        let half = self.dim / 2;
        let rates: Vec<f64> = (0..half).map(|i| self.theta.powf(-2.0 * i as f64 / self.dim as f64)).collect();
        let (sin, cos): (Vec<f64>, Vec<f64>) = (first..first + count)
            .flat_map(|position| {
                rates.iter().map(move |rate| (self.sense * position as f64 * rate).sin_cos())
            })
            .unzip();
        let tensor = |values| Tensor::from_data(TensorData::new(values, [count, half]), (device, dtype));
        RotaryTable { first, cos: tensor(cos), sin: tensor(sin) }
    }
}

/// Configuration of [`CausalAttention`].
#[derive(Config, Debug)]
pub struct CausalAttentionConfig {
    /// Channels of input and output; a multiple of `num_heads`.
    pub hidden_size: usize,
    /// Query heads, at least 1.
    pub num_heads: usize,
    /// Key and value heads, each shared by consecutive query heads; divides `num_heads`. `None` (the
    /// default): as many as query heads.
    #[config(default = "None")]
    pub num_kv_heads: Option<usize>,
    /// Sliding window w, at least 1: a token sees itself and the w - 1 before it. `None` (the default): all.
    #[config(default = "None")]
    pub window_size: Option<usize>,
    /// Base of the rotary positions; `None`: no positions. Default 10000.
    #[config(default = "Some(10000.0)")]
    pub rope_theta: Option<f64>,
    /// Whether the query, key and value projections have biases. Default false.
    #[config(default = false)]
    pub qkv_bias: bool,
}

impl ModuleConfig for CausalAttentionConfig {
    type Module = CausalAttention;

    fn try_init(&self, device: &Device) -> Result<CausalAttention, ConfigError> {
        let (hidden, heads) = (self.hidden_size, self.num_heads);
        let kv_heads = self.num_kv_heads.unwrap_or(heads);
        if heads == 0 {
            return Err(ConfigError::new("num_heads", heads, "at least 1"));
        }
        if hidden == 0 || hidden % heads != 0 {
            let need = format!("a multiple of num_heads = {heads}, at least one channel a head");
            return Err(ConfigError::new("hidden_size", hidden, need));
        }
        if kv_heads == 0 || heads % kv_heads != 0 {
            return Err(ConfigError::new(
                "num_kv_heads",
                kv_heads,
                format!("a divisor of num_heads = {heads}"),
            ));
        }
        if self.window_size == Some(0) {
            return Err(ConfigError::new("window_size", 0, "at least 1, or null for all tokens"));
        }
        let head_dim = hidden / heads;
        let rotary = self.rope_theta.map(|theta| RotaryEmbedding::new(head_dim, theta)).transpose()?;
        Ok(CausalAttention {
            q_proj: init::linear(hidden, hidden, self.qkv_bias, device),
            k_proj: init::linear(hidden, kv_heads * head_dim, self.qkv_bias, device),
            v_proj: init::linear(hidden, kv_heads * head_dim, self.qkv_bias, device),
            o_proj: init::linear(hidden, hidden, false, device),
            rotary,
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim,
            window_size: self.window_size,
        })
    }
}

/// Causal softmax attention with grouped heads: `y = W_o attention(rope(W_q x), rope(W_k x), W_v x)`.
///
/// Heads are `hidden_size / num_heads` wide, scores scaled by its inverse square root; queries and
/// keys get rotary positions, counted from 0 in each sequence. Weights start normal(0, 0.02),
/// biases 0. Vaswani et al. (arXiv 1706.03762); grouped heads: Ainslie et al. (arXiv 2305.13245).
#[derive(Module, Debug)]
pub struct CausalAttention {
    /// Query projection, `[hidden_size, num_heads * head_dim]`.
    pub q_proj: Linear,
    /// Key projection, `[hidden_size, num_kv_heads * head_dim]`.
    pub k_proj: Linear,
    /// Value projection, `[hidden_size, num_kv_heads * head_dim]`.
    pub v_proj: Linear,
    /// Output projection, `[num_heads * head_dim, hidden_size]`.
    pub o_proj: Linear,
    #[module(skip)]
    rotary: Option<RotaryEmbedding>,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    window_size: Option<usize>,
}

/// Rotated keys and values of the tokens so far: the streaming state of [`CausalAttention`].
///
/// With a sliding window w it holds the last w - 1 tokens, all that the next one can see besides
/// itself; positions go on counting from the first token.
#[derive(Debug, Clone)]
pub struct KvCache {
    /// Keys after the rotation, `[batch, tokens, kv_heads, head_dim]`.
    pub keys: Tensor<4>,
    /// Values, `[batch, tokens, kv_heads, head_dim]`.
    pub values: Tensor<4>,
    /// Number of tokens seen, so also the position of the next one.
    pub position: usize,
}

impl KvCache {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.keys.dims()[1]
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of keys and values together, in bytes.
    pub fn bytes(&self) -> usize {
        let size = |tensor: &Tensor<4>| tensor.shape().num_elements() * tensor.dtype().size();
        size(&self.keys) + size(&self.values)
    }

    /// The same cache on another device.
    pub fn to_device(self, device: &Device) -> Self {
        Self { keys: self.keys.to_device(device), values: self.values.to_device(device), ..self }
    }

    /// Old and new tokens one after the other.
    ///
    /// # Panics
    ///
    /// When the batches differ.
    pub fn extended(self, keys: Tensor<4>, values: Tensor<4>) -> Self {
        let position = self.position + keys.dims()[1];
        if self.is_empty() {
            return Self { keys, values, position };
        }
        assert!(
            self.keys.dims()[0] == keys.dims()[0],
            "KvCache: the keys held {:?} and the new keys {:?} differ in batch",
            self.keys.dims(),
            keys.dims()
        );
        Self {
            keys: Tensor::cat(vec![self.keys, keys], 1),
            values: Tensor::cat(vec![self.values, values], 1),
            position,
        }
    }

    /// Only the last `count` tokens.
    pub fn last(self, count: usize) -> Self {
        let held = self.len();
        if held <= count {
            return self;
        }
        let cut = |tensor: Tensor<4>| {
            let [batch, _, heads, dim] = tensor.dims();
            match count {
                0 => Tensor::zeros([batch, 0, heads, dim], (&tensor.device(), tensor.dtype())),
                _ => tensor.narrow(1, held - count, count),
            }
        };
        Self { keys: cut(self.keys), values: cut(self.values), position: self.position }
    }
}

impl CausalAttention {
    /// Whole sequences: `[batch, time, hidden_size]` to `[batch, time, hidden_size]`.
    ///
    /// With `packing` (made from a padding mask `[batch, time]`) the padded tokens are removed, each
    /// row is computed as a sequence of its own, and the result is 0 at padded positions.
    ///
    /// # Panics
    ///
    /// When `x` does not have `hidden_size` channels or not the shape of the packing.
    pub fn forward(&self, x: Tensor<3>, packing: Option<&Packing>) -> Tensor<3> {
        match packing {
            Some(packing) => {
                let boundaries = packing.boundaries();
                let (q, k, v) = self.project(packing.pack(x));
                let (q, k) = match &self.rotary {
                    Some(rotary) => (rotary.apply_packed(q, boundaries), rotary.apply_packed(k, boundaries)),
                    None => (q, k),
                };
                packing.unpack(self.output(causal_attention(q, k, v, &self.options(), Some(boundaries))))
            }
            None => {
                let (q, k, v) = self.project(x);
                let (q, k) = self.rotated(q, k, 0);
                self.output(causal_attention(q, k, v, &self.options(), None))
            }
        }
    }

    /// The cache before the first token.
    pub fn empty_cache(&self, batch: usize, device: &Device) -> KvCache {
        let empty = Tensor::zeros([batch, 0, self.num_kv_heads, self.head_dim], device);
        KvCache { keys: empty.clone(), values: empty, position: 0 }
    }

    /// Continues sequences by several tokens: `[batch, time, hidden_size]` after what the cache holds.
    ///
    /// Returns the outputs of the new tokens and the new cache. The result equals that of
    /// [`forward`](Self::forward) over all tokens at once.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn prefill(&self, x: Tensor<3>, cache: KvCache) -> (Tensor<3>, KvCache) {
        let (q, k, v) = self.project(x);
        let (q, k) = self.rotated(q, k, cache.position);
        let cache = cache.extended(k, v);
        let (keys, values) = (cache.keys.clone(), cache.values.clone());
        let y = self.output(causal_attention(q, keys, values, &self.options(), None));
        let cache = match self.window_size {
            Some(window) => cache.last(window - 1),
            None => cache,
        };
        (y, cache)
    }

    /// Continues sequences by one token: `[batch, hidden_size]` to `[batch, hidden_size]`.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn step(&self, x: Tensor<2>, cache: KvCache) -> (Tensor<2>, KvCache) {
        let (y, cache) = self.prefill(x.unsqueeze_dim(1), cache);
        (y.squeeze_dim(1), cache)
    }

    /// Attention weights `[batch, heads, time, time]` of whole sequences, for diagnosis.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn weights(&self, x: Tensor<3>) -> Tensor<4> {
        let (q, k, _) = self.project(x);
        let (q, k) = self.rotated(q, k, 0);
        attention_weights(q, k, &self.options())
    }

    /// Queries, keys and values, heads apart.
    fn project(&self, x: Tensor<3>) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
        let [batch, time, _] = x.dims();
        let heads = |projection: &Linear, heads: usize| {
            projection.forward(x.clone()).reshape([batch, time, heads, self.head_dim])
        };
        (
            heads(&self.q_proj, self.num_heads),
            heads(&self.k_proj, self.num_kv_heads),
            heads(&self.v_proj, self.num_kv_heads),
        )
    }

    fn rotated(&self, q: Tensor<4>, k: Tensor<4>, offset: usize) -> (Tensor<4>, Tensor<4>) {
        match &self.rotary {
            Some(rotary) => (rotary.apply(q, offset), rotary.apply(k, offset)),
            None => (q, k),
        }
    }

    fn options(&self) -> AttentionOptions {
        AttentionOptions { window: self.window_size, ..AttentionOptions::default() }
    }

    fn output(&self, o: Tensor<4>) -> Tensor<3> {
        let [batch, time, _, _] = o.dims();
        self.o_proj.forward(o.reshape([batch, time, self.num_heads * self.head_dim]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};
    use burn::module::Param;
    use burn::tensor::Bool;

    /// Naive attention of one sequence: q `[t, heads, dim]`, k, v `[keys, groups, dim]`.
    fn by_hand(
        q: &[f64],
        k: &[f64],
        v: &[f64],
        [heads, groups, dim]: [usize; 3],
        window: usize,
        scale: f64,
    ) -> Vec<f64> {
        let (time, keys) = (q.len() / (heads * dim), k.len() / (groups * dim));
        let mut out = Vec::new();
        for t in 0..time {
            let position = keys - time + t;
            for head in 0..heads {
                let group = head / (heads / groups);
                let query = &q[(t * heads + head) * dim..][..dim];
                let seen: Vec<usize> = (0..=position).filter(|j| position - j < window).collect();
                let scores: Vec<f64> = seen
                    .iter()
                    .map(|j| {
                        let key = &k[(j * groups + group) * dim..][..dim];
                        (scale * query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>()).exp()
                    })
                    .collect();
                let total: f64 = scores.iter().sum();
                out.extend((0..dim).map(|c| {
                    let value = |j: &usize| v[(j * groups + group) * dim + c];
                    seen.iter().zip(&scores).map(|(j, score)| score * value(j)).sum::<f64>() / total
                }));
            }
        }
        out
    }

    #[test]
    fn matches_a_naive_computation_in_blocks_with_windows_and_groups() {
        let ([heads, groups, dim], keys) = ([4, 2, 3], 7);
        for device in devices() {
            for time in [1, 4, 7] {
                for window in [None, Some(1), Some(3), Some(20)] {
                    for block_size in [2, 512] {
                        let (q, k) = (ramp(2 * time * heads * dim, 2.0), ramp(2 * keys * groups * dim, 1.5));
                        let v = ramp(2 * keys * groups * dim, 1.1);
                        let options = AttentionOptions { scale: Some(0.8), window, block_size };
                        let got = causal_attention(
                            float32(&q, [2, time, heads, dim], &device),
                            float32(&k, [2, keys, groups, dim], &device),
                            float32(&v, [2, keys, groups, dim], &device),
                            &options,
                            None,
                        );
                        let expected: Vec<f64> = (0..2)
                            .flat_map(|row| {
                                let part = |x: &[f64]| x[row * x.len() / 2..(row + 1) * x.len() / 2].to_vec();
                                let window = window.unwrap_or(usize::MAX);
                                by_hand(&part(&q), &part(&k), &part(&v), [heads, groups, dim], window, 0.8)
                            })
                            .collect();
                        assert_eq!(got.dims(), [2, time, heads, dim]);
                        assert_close(&values(got), &expected, 2e-6);
                    }
                }
            }
        }
    }

    #[test]
    fn packed_sequences_do_not_see_one_another() {
        let [heads, groups, dim] = [2, 1, 3];
        for device in devices() {
            for cu_seqlens in [vec![0, 1, 5, 12, 14], vec![0, 7, 14], vec![0, 14]] {
                let boundaries = Boundaries::new(&cu_seqlens, 14).unwrap();
                let (q, k, v) = (ramp(14 * heads * dim, 2.0), ramp(14 * dim, 1.5), ramp(14 * dim, 1.1));
                let options = AttentionOptions { window: Some(4), ..AttentionOptions::default() };
                let got = causal_attention(
                    float32(&q, [1, 14, heads, dim], &device),
                    float32(&k, [1, 14, groups, dim], &device),
                    float32(&v, [1, 14, groups, dim], &device),
                    &options,
                    Some(&boundaries),
                );
                let expected: Vec<f64> = cu_seqlens
                    .windows(2)
                    .flat_map(|b| {
                        let (rows, kv) = (b[0] * heads * dim..b[1] * heads * dim, b[0] * dim..b[1] * dim);
                        let scale = 3f64.powf(-0.5);
                        by_hand(&q[rows], &k[kv.clone()], &v[kv], [heads, groups, dim], 4, scale)
                    })
                    .collect();
                assert_close(&values(got), &expected, 2e-6);
            }
        }
    }

    #[test]
    fn large_scores_do_not_overflow() {
        for device in devices() {
            let device = device.autodiff();
            let q = float32(&[1e4, -1e4], [1, 2, 1, 1], &device).require_grad();
            let k = float32(&[1e4, 2e4], [1, 2, 1, 1], &device);
            let v = float32(&[3.0, 5.0], [1, 2, 1, 1], &device);
            let out = causal_attention(q.clone(), k, v, &AttentionOptions::default(), None);
            assert_eq!(values(out.clone()), [3.0, 3.0]);
            let gradients = out.sum().backward();
            assert_eq!(values(q.grad(&gradients).unwrap()), [0.0, 0.0]);
        }
    }

    #[test]
    fn half_precision_is_normalised_in_float32() {
        for device in devices().into_iter().filter(|device| device.supports_dtype(DType::F16)) {
            let tensor = |seed: f64| float32(&ramp(64 * 2, seed), [1, 64, 1, 2], &device);
            let (q, k, v) = (tensor(2.0), tensor(1.5), tensor(1.0));
            let options = AttentionOptions { block_size: 16, ..AttentionOptions::default() };
            let exact = values(causal_attention(q.clone(), k.clone(), v.clone(), &options, None));
            let half = |x: Tensor<4>| x.cast(DType::F16);
            let got = causal_attention(half(q.clone()), half(k), half(v), &options, None);
            assert_eq!(got.dtype(), DType::F16);
            assert_close(&values(got), &exact, 5e-3);
            let rotary = RotaryEmbedding::new(2, 10000.0).unwrap();
            let rotated = rotary.apply(half(q.clone()), 3000);
            assert_eq!(rotated.dtype(), DType::F16);
            assert_close(&values(rotated), &values(rotary.apply(q, 3000)), 3e-3);
        }
    }

    #[test]
    fn weights_sum_to_one_and_give_the_output() {
        for device in devices() {
            let q = float32(&ramp(2 * 5 * 4 * 2, 2.0), [2, 5, 4, 2], &device);
            let k = float32(&ramp(2 * 6 * 2 * 2, 1.0), [2, 6, 2, 2], &device);
            let v = float32(&ramp(2 * 6 * 2 * 2, 1.4), [2, 6, 2, 2], &device);
            let options = AttentionOptions { window: Some(4), ..AttentionOptions::default() };
            let weights = attention_weights(q.clone(), k.clone(), &options);
            assert_eq!(weights.dims(), [2, 4, 5, 6]);
            assert_close(&values(weights.clone().sum_dim(3)), &[1.0; 40], 1e-6);
            let repeated =
                v.clone().swap_dims(1, 2).unsqueeze_dim::<5>(2).repeat_dim(2, 2).reshape([2, 4, 6, 2]);
            let expected = weights.matmul(repeated).swap_dims(1, 2);
            assert_close(&values(causal_attention(q, k, v, &options, None)), &values(expected), 1e-6);
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        let options = AttentionOptions { window: Some(3), block_size: 2, ..AttentionOptions::default() };
        for device in devices() {
            for cu_seqlens in [None, Some(vec![0, 2, 5])] {
                let boundaries =
                    cu_seqlens.map(|cu_seqlens: Vec<usize>| Boundaries::new(&cu_seqlens, 5).unwrap());
                let (q, k, v) = (ramp(20, 1.0), ramp(10, 1.2), ramp(10, 0.9));
                let loss = |q: Tensor<4>, k: Tensor<4>, v: Tensor<4>| {
                    let weight = float64(&ramp(20, 1.3), [1, 5, 2, 2], &device);
                    causal_attention(q, k, v, &options, boundaries.as_ref()) * weight
                };
                let q_tensor = float64(&q, [1, 5, 2, 2], &device);
                let k_tensor = float64(&k, [1, 5, 1, 2], &device);
                let v_tensor = float64(&v, [1, 5, 1, 2], &device);
                check_gradients(&q, [1, 5, 2, 2], &device, |q| loss(q, k_tensor.clone(), v_tensor.clone()));
                check_gradients(&k, [1, 5, 1, 2], &device, |k| loss(q_tensor.clone(), k, v_tensor.clone()));
                check_gradients(&v, [1, 5, 1, 2], &device, |v| loss(q_tensor.clone(), k_tensor.clone(), v));
            }
        }
    }

    #[test]
    fn rotation_matches_its_equation_at_far_positions() {
        let (dim, width, heads) = (4, 5, 2);
        let x = ramp(3 * heads * width, 1.0);
        for device in devices() {
            let rotary = RotaryEmbedding::new(dim, 10000.0).unwrap();
            for offset in [0, 5, 3, 1_000_000] {
                let expected: Vec<f64> = (0..x.len())
                    .map(|i| {
                        let (c, head) = (i % width, i - i % width);
                        if c >= dim {
                            return x[i];
                        }
                        let position = (offset + i / (heads * width)) as f64;
                        let angle = position * 10000f64.powf(-((c % 2) as f64) / 2.0);
                        let (first, second) = (x[head + c % 2], x[head + 2 + c % 2]);
                        if c < 2 {
                            first * angle.cos() - second * angle.sin()
                        } else {
                            second * angle.cos() + first * angle.sin()
                        }
                    })
                    .collect();
                assert_close(
                    &values(rotary.apply(float32(&x, [1, 3, heads, width], &device), offset)),
                    &expected,
                    1e-6,
                );
                let exact = rotary.apply(float64(&x, [1, 3, heads, width], &device), offset);
                assert_close(&values(exact), &expected, 1e-12);
            }
            // Packed: every segment starts again at 0.
            let boundaries = Boundaries::new(&[0, 1, 3], 3).unwrap();
            let x_tensor = float32(&x, [1, 3, heads, width], &device);
            let packed = values(rotary.apply_packed(x_tensor.clone(), &boundaries));
            assert_eq!(packed[..10], values(rotary.apply(x_tensor.clone().narrow(1, 0, 1), 0)));
            assert_eq!(packed[10..], values(rotary.apply(x_tensor.narrow(1, 1, 2), 0)));
        }
    }

    fn layer(device: &Device, window: Option<usize>) -> CausalAttention {
        let mut layer = CausalAttentionConfig::new(8, 4)
            .with_num_kv_heads(Some(2))
            .with_window_size(window)
            .with_qkv_bias(true)
            .init(device);
        layer.q_proj.weight = Param::from_tensor(float32(&ramp(64, 0.9), [8, 8], device));
        layer.k_proj.weight = Param::from_tensor(float32(&ramp(32, 0.8), [8, 4], device));
        layer.v_proj.weight = Param::from_tensor(float32(&ramp(32, 0.7), [8, 4], device));
        layer.o_proj.weight = Param::from_tensor(float32(&ramp(64, 0.6), [8, 8], device));
        layer.k_proj.bias = Some(Param::from_tensor(float32(&ramp(4, 0.5), [4], device)));
        layer
    }

    #[test]
    fn streaming_equals_the_whole_sequence_and_a_window_bounds_the_cache() {
        for device in devices() {
            for window in [None, Some(1), Some(3), Some(100)] {
                let layer = layer(&device, window);
                let x = float32(&ramp(2 * 10 * 8, 1.0), [2, 10, 8], &device);
                let whole = layer.forward(x.clone(), None);
                let cache = layer.empty_cache(2, &device);
                assert!(cache.is_empty() && cache.bytes() == 0);
                let (first, cache) = layer.prefill(x.clone().narrow(1, 0, 4), cache);
                let (second, mut cache) = layer.prefill(x.clone().narrow(1, 4, 2), cache);
                let mut pieces = vec![first, second];
                for t in 6..10 {
                    let (y, next) = layer.step(x.clone().narrow(1, t, 1).squeeze_dim(1), cache);
                    cache = next;
                    pieces.push(y.unsqueeze_dim(1));
                }
                assert_close(&values(Tensor::cat(pieces, 1)), &values(whole), 2e-6);
                let held = window.map_or(10, |window| (window - 1).min(10));
                assert_eq!((cache.position, cache.len()), (10, held));
                // Two rows, keys and values, two heads of two float32 channels.
                assert_eq!(cache.bytes(), 2 * 2 * held * 4 * 4);
                assert_eq!(cache.clone().to_device(&device).len(), held);
            }
        }
    }

    #[test]
    fn padded_tokens_change_nothing_and_get_zero() {
        for device in devices() {
            let layer = layer(&device, Some(3));
            let x = float32(&ramp(2 * 5 * 8, 1.0), [2, 5, 8], &device);
            let mask = [[false, false, true, true, true], [true, true, true, true, false]];
            let packing = Packing::from_mask(&Tensor::<2, Bool>::from_data(mask, &device)).unwrap();
            let got = layer.forward(x.clone(), Some(&packing));
            let first = layer.forward(x.clone().narrow(0, 0, 1).narrow(1, 2, 3), None);
            let second = layer.forward(x.narrow(0, 1, 1).narrow(1, 0, 4), None);
            let zeros = |steps: usize| vec![0.0; steps * 8];
            let expected = [zeros(2), values(first), values(second), zeros(1)].concat();
            assert_close(&values(got), &expected, 1e-6);
        }
    }

    #[test]
    fn weights_of_the_layer_are_causal() {
        for device in devices() {
            let weights = layer(&device, None).weights(float32(&ramp(5 * 8, 1.0), [1, 5, 8], &device));
            assert_eq!(weights.dims(), [1, 4, 5, 5]);
            for (i, weight) in values(weights).into_iter().enumerate() {
                assert_eq!(weight == 0.0, i % 5 > i / 5 % 5, "weight {i}: {weight}");
            }
        }
    }

    #[test]
    fn refuses_bad_configurations() {
        let device = devices().remove(0);
        let field = |config: CausalAttentionConfig| config.try_init(&device).unwrap_err().field;
        assert_eq!(field(CausalAttentionConfig::new(8, 0)), "num_heads");
        assert_eq!(field(CausalAttentionConfig::new(0, 2)), "hidden_size");
        assert_eq!(field(CausalAttentionConfig::new(9, 2)), "hidden_size");
        assert_eq!(field(CausalAttentionConfig::new(8, 4).with_num_kv_heads(Some(3))), "num_kv_heads");
        assert_eq!(field(CausalAttentionConfig::new(8, 4).with_num_kv_heads(Some(0))), "num_kv_heads");
        assert_eq!(field(CausalAttentionConfig::new(8, 4).with_window_size(Some(0))), "window_size");
        assert_eq!(field(CausalAttentionConfig::new(9, 3)), "head_dim");
        assert_eq!(field(CausalAttentionConfig::new(8, 4).with_rope_theta(Some(0.0))), "rope_theta");
        assert!(CausalAttentionConfig::new(9, 3).with_rope_theta(None).try_init(&device).is_ok());
    }

    #[test]
    #[should_panic(expected = "`k` [1, 2, 1, 2] does not fit `q` [1, 3, 1, 2]")]
    fn fewer_keys_than_queries_panic() {
        let device = devices().remove(0);
        let (q, k) = (Tensor::zeros([1, 3, 1, 2], &device), Tensor::zeros([1, 2, 1, 2], &device));
        causal_attention(q, k.clone(), k, &AttentionOptions::default(), None);
    }
}
