//! Causal rotary attention with a visual value that every token gets.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gatekit_core::attention::{
    AttentionOptions, KvCache, RotaryEmbedding, causal_attention, pairs_to_halves,
};
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::gate::{TanhGate, TanhGateConfig};
use gatekit_core::{ConfigError, InputError, ModuleConfig, check_sizes};

use super::layout;
use super::lora::LoraLinear;

/// Base of the rotary positions.
const THETA: f64 = 10000.0;

/// Configuration of [`InjectedAttention`].
#[derive(Config, Debug)]
pub struct InjectedAttentionConfig {
    /// Channels D.
    pub d_model: usize,
    /// Heads H: a divisor of D that leaves each an even number of channels.
    pub heads: usize,
    /// Whether there is a gate for a visual value. Default true.
    #[config(default = true)]
    pub injected: bool,
    /// Rank of the low-rank deltas, 0 (the default) for none.
    #[config(default = 0)]
    pub lora_rank: usize,
    /// Biases on the maps of queries and outputs. Default false.
    #[config(default = false)]
    pub bias_tuning: bool,
    /// Where the gates' logits start. Default 0.
    #[config(default = 0.0)]
    pub gate_start: f64,
}

impl InjectedAttentionConfig {
    /// What the published files call the tensors.
    pub fn tensor_layout() -> TensorLayout {
        layout::of_attention(TensorLayout::default(), "")
    }
}

impl ModuleConfig for InjectedAttentionConfig {
    type Module = InjectedAttention;

    fn try_init(&self, device: &Device) -> Result<InjectedAttention, ConfigError> {
        let (dim, heads, rank, bias) = (self.d_model, self.heads, self.lora_rank, self.bias_tuning);
        check_sizes(&[("d_model", dim), ("heads", heads)])?;
        if rank > 0 {
            check_sizes(&[("lora_rank", rank)])?;
        }
        if !dim.is_multiple_of(heads) {
            return Err(ConfigError::new("heads", heads, format!("a divisor of `d_model` = {dim}")));
        }
        if !(dim / heads).is_multiple_of(2) {
            let got = format!("{heads}: heads of {} channels", dim / heads);
            let need = format!("heads of an even number of channels of `d_model` = {dim}");
            return Err(ConfigError::new("heads", got, need));
        }
        let gate = || {
            let gate = TanhGateConfig::new().with_channels(Some(heads)).with_start(self.gate_start);
            let gate = gate.try_init(device);
            gate.map_err(|error| ConfigError { field: "gate_start".to_string(), ..error })
        };
        Ok(InjectedAttention {
            wq: LoraLinear::new(dim, dim, bias, rank, device),
            wk: LoraLinear::new(dim, dim, false, rank, device),
            wv: LoraLinear::new(dim, dim, false, rank, device),
            wo: LoraLinear::new(dim, dim, bias, rank, device),
            gate: self.injected.then(gate).transpose()?,
            rotary: RotaryEmbedding::new(dim / heads, THETA)?,
            heads,
        })
    }
}

/// `o = softmax(q k^T / sqrt(e) + causal) v + tanh(gate) W_v prompt`, then `W_o o + b_o`: every token of the layer gets
/// the same visual vector, scaled by a number a head that starts at 0.
///
/// `q, k, v = (W_q x + b_q), W_k x, W_v x`, each with its low-rank delta if it has one, `e = D / H`, rotary positions on
/// neighbouring channels of q and k. The prompt goes through `W_v` without the delta. Paper, section 3.3, in the
/// released form: behind the heads, not at the word tokens.
#[derive(Module, Debug)]
pub struct InjectedAttention {
    /// Queries.
    pub wq: LoraLinear,
    /// Keys.
    pub wk: LoraLinear,
    /// Values, of the tokens and of the prompt.
    pub wv: LoraLinear,
    /// Outputs.
    pub wo: LoraLinear,
    /// A logit a head, `[H]`; `None` in a layer that is not injected.
    pub gate: Option<TanhGate>,
    #[module(skip)]
    rotary: RotaryEmbedding,
    heads: usize,
}

impl InjectedAttention {
    /// A whole sequence, positions from 0.
    ///
    /// `x` `[B, T, D]`, `prompt` `[B, 1, D]` or none, to `[B, T, D]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for a prompt of another shape, or one where the layer has no gate.
    ///
    /// # Panics
    ///
    /// For `x` of another width, or without a token.
    pub fn forward(&self, x: Tensor<3>, prompt: Option<Tensor<3>>) -> Result<Tensor<3>, InputError> {
        let [batch, _, _] = x.dims();
        let injected = prompt.map(|prompt| self.injection(prompt, batch)).transpose()?;
        Ok(self.attend(x, injected.as_ref(), None).0)
    }

    /// The gated visual value `tanh(gate) W_v prompt` of a prompt `[B, 1, D]`, `[B, 1, H, e]`: the same for all tokens,
    /// so that decoding computes it once.
    ///
    /// # Errors
    ///
    /// [`InputError`] for another shape than `[batch, 1, D]`, or a layer without a gate.
    pub fn injection(&self, prompt: Tensor<3>, batch: usize) -> Result<Tensor<4>, InputError> {
        let [dim, _] = self.wv.linear.weight.shape().dims();
        if prompt.dims() != [batch, 1, dim] {
            let got = format!("shape {:?}", prompt.dims());
            return Err(InputError::new("visual", got, format!("[{batch}, 1, {dim}]")));
        }
        let Some(gate) = &self.gate else {
            return Err(InputError::new("visual", "a prompt", "none: the layer has no gate"));
        };
        Ok(gate.forward_along(self.split(self.wv.linear.forward(prompt)), 2))
    }

    /// Tokens that follow those of `cache` (none: from position 0), with what [`injection`](Self::injection) made.
    ///
    /// `x` `[B, T, D]` to `[B, T, D]`, and the cache with these tokens. In any division of a sequence the results are
    /// those of the whole.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn attend(
        &self,
        x: Tensor<3>,
        injected: Option<&Tensor<4>>,
        cache: Option<KvCache>,
    ) -> (Tensor<3>, KvCache) {
        let dims = x.dims();
        let start = cache.as_ref().map_or(0, |cache| cache.position);
        let rotated = |x| self.rotary.apply(pairs_to_halves(self.split(x)), start);
        let q = rotated(self.wq.forward(x.clone()));
        let (k, v) = (rotated(self.wk.forward(x.clone())), self.split(self.wv.forward(x)));
        let cache = match cache {
            Some(cache) => cache.extended(k, v),
            None => KvCache { keys: k, values: v, position: dims[1] },
        };
        let options = AttentionOptions::default();
        let o = causal_attention(q, cache.keys.clone(), cache.values.clone(), &options, None);
        let o = match injected {
            Some(injected) => o.clone() + injected.clone().expand(o.dims()),
            None => o,
        };
        (self.wo.forward(o.reshape(dims)), cache)
    }

    fn split(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, time, dim] = x.dims();
        x.reshape([batch, time, self.heads, dim / self.heads])
    }
}
