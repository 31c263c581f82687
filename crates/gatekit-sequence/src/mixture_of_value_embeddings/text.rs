//! The text model.

use burn::module::Module;
use burn::nn::{Embedding, Linear};
use burn::tensor::activation::relu;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::InputError;
use gatekit_core::norm::rms_normalize;
use gatekit_core::sequence::Boundaries;

use super::attention::MoveAttention;
use super::bank::check_range;
use super::cache::MoveCache;
use super::latent::MoveLatentAttention;
use super::memory::ValueEmbeddings;
use super::mixer::ValueMixer;
use crate::backbone::{ModelState, padding};
use crate::lm::{CausalLm, StreamingLm, Targets, expect_tokens};

/// The target that [`MoveTextModel::target_loss`] does not count.
pub const IGNORED_TARGET: i64 = -1;

/// The streaming state of [`MoveTextModel`]: keys and mixed values of the tokens so far.
pub type MoveTextState = ModelState<MoveCache>;

/// The attention of a layer.
#[derive(Module, Debug)]
pub enum TextAttention {
    /// Keys and values of their own.
    Full(MoveAttention),
    /// Keys and values made of a latent.
    Latent(MoveLatentAttention),
}

/// `[batch, time, M, 1, d_c]` without its axis of heads.
fn latent_memory(memory: Option<Tensor<5>>) -> Option<Tensor<4>> {
    memory.map(|memory| memory.squeeze_dim(3))
}

impl TextAttention {
    /// What mixes the memory in; `None` in a layer without one.
    pub fn mixer(&self) -> Option<&ValueMixer> {
        match self {
            Self::Full(attention) => attention.mixer.as_ref(),
            Self::Latent(attention) => attention.mixer.as_ref(),
        }
    }

    fn forward(&self, x: Tensor<3>, memory: Option<Tensor<5>>, boundaries: Option<&Boundaries>) -> Tensor<3> {
        match self {
            Self::Full(attention) => attention.forward(x, memory, boundaries),
            Self::Latent(attention) => attention.forward(x, latent_memory(memory), boundaries).0,
        }
    }

    fn prefill(&self, x: Tensor<3>, memory: Option<Tensor<5>>, cache: MoveCache) -> (Tensor<3>, MoveCache) {
        match (self, cache) {
            (Self::Full(attention), MoveCache::Full(cache)) => {
                let (y, cache) = attention.prefill(x, memory, cache);
                (y, MoveCache::Full(cache))
            }
            (Self::Latent(attention), MoveCache::Latent(cache)) => {
                let (y, cache) = attention.prefill(x, latent_memory(memory), cache);
                (y, MoveCache::Latent(cache))
            }
            _ => unreachable!("the state was checked"),
        }
    }

    fn empty_cache(&self, batch: usize, device: &Device) -> MoveCache {
        match self {
            Self::Full(attention) => MoveCache::Full(attention.empty_cache(batch, device)),
            Self::Latent(attention) => MoveCache::Latent(attention.empty_cache(batch, device)),
        }
    }
}

/// `y = W_2 relu(W_1 x)^2`, four times as wide within.
#[derive(Module, Debug)]
pub struct MoveMlp {
    /// `W_1`, `[d, 4 d]`.
    pub c_fc: Linear,
    /// `W_2`, `[4 d, d]`; starts at 0.
    pub c_proj: Linear,
}

impl MoveMlp {
    /// `[batch, time, d]` to `[batch, time, d]`.
    ///
    /// # Panics
    ///
    /// When `x` does not have `d` channels.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.c_proj.forward(relu(self.c_fc.forward(x)).square())
    }
}

/// One layer: `x += attn(rms(x)); x += mlp(rms(x))`.
#[derive(Module, Debug)]
pub struct MoveBlock {
    /// The attention.
    pub attn: TextAttention,
    /// The feed-forward layer.
    pub mlp: MoveMlp,
}

/// Embeddings and layers.
#[derive(Module, Debug)]
pub struct Transformer {
    /// Token embeddings, `[vocab_size, d]`.
    pub wte: Embedding,
    /// The layers, first to last.
    pub h: Vec<MoveBlock>,
}

/// A language model with a value memory.
///
/// ```text
/// x = rms(E_tok[id])
/// x += attn(rms(x), memory[id]);   x += W_2 relu(W_1 rms(x))^2      (per layer)
/// logits = c tanh(W_head rms(x) / c)
/// ```
///
/// No biases, norms without weights, an untied head. Linear weights and the memory start uniform in
/// `+-sqrt(3 / d)`, output projections and gates' projections at 0, embeddings normal(0, 1), the head
/// normal(0, 0.001). Made by [`MoveTextConfig`](super::MoveTextConfig).
#[derive(Module, Debug)]
pub struct MoveTextModel {
    /// Embeddings and layers.
    pub transformer: Transformer,
    /// The head, `[d, vocab_size]`.
    pub lm_head: Linear,
    /// The memory: one bank for all layers, tables of single layers, or none.
    pub value_embeds: Option<ValueEmbeddings>,
    pub(super) norm_eps: f64,
    pub(super) logit_softcap: f64,
}

impl MoveTextModel {
    /// Mean cross entropy in nats of targets that stand at the position that predicts them; -1 is
    /// not counted. [`CausalLm::loss`] takes labels that are aligned with the inputs instead.
    ///
    /// # Shapes
    ///
    /// - `logits`: `[batch, time, vocab_size]`
    /// - `targets`: `[batch, time]`
    /// - output: `[1]`, in at least float32
    ///
    /// # Errors
    ///
    /// [`InputError`] when every target is -1, or one is neither -1 nor a token.
    ///
    /// # Panics
    ///
    /// When the targets' batch and time are not those of the logits.
    pub fn target_loss(&self, logits: Tensor<3>, targets: Tensor<2, Int>) -> Result<Tensor<1>, InputError> {
        let device = logits.device();
        let targets = Targets::aligned(&targets.to_data(), IGNORED_TARGET, self.vocab_size(), &device)?;
        Ok(targets.cross_entropy(logits))
    }

    /// Bits per byte: the targets' cross entropy in bits, over the bytes of text they stand for.
    /// Targets of -1 and tokens of 0 bytes are not counted, neither above nor below.
    ///
    /// `logits` and `targets` as in [`target_loss`](Self::target_loss); `token_bytes[id]` is the
    /// number of bytes of token `id`.
    ///
    /// # Errors
    ///
    /// [`InputError`] when no target counts, when one is neither -1 nor a token, or when there are
    /// not `vocab_size` token lengths.
    ///
    /// # Panics
    ///
    /// As [`target_loss`](Self::target_loss).
    pub fn bits_per_byte(
        &self,
        logits: Tensor<3>,
        targets: Tensor<2, Int>,
        token_bytes: &[usize],
    ) -> Result<f64, InputError> {
        let vocab_size = self.vocab_size();
        if token_bytes.len() != vocab_size {
            return Err(InputError::new("token_bytes", token_bytes.len(), format!("{vocab_size} lengths")));
        }
        let shape = targets.dims();
        let length =
            |target: i64| usize::try_from(target).ok().and_then(|target| token_bytes.get(target)).copied();
        let targets: Vec<i64> = targets.to_data().iter::<i64>().collect();
        let bytes: usize = targets.iter().filter_map(|target| length(*target)).sum();
        let counted: Vec<i64> = (targets.into_iter())
            .map(|target| if length(target) == Some(0) { IGNORED_TARGET } else { target })
            .collect();
        let counted = TensorData::new(counted, shape);
        let targets = Targets::aligned(&counted, IGNORED_TARGET, vocab_size, &logits.device())?;
        let nats = targets.negative_log_likelihood(logits).to_data().iter::<f64>().sum::<f64>();
        Ok(nats / (std::f64::consts::LN_2 * bytes as f64))
    }

    /// The gates of every layer for a batch of ids `[batch, time]`: `[batch, time, G, M + 1]` where
    /// the ordinary value has a gate (then the first), else `[batch, time, G, M]`; `None` for a
    /// layer without a memory. Costs a forward pass and the gates' projections once more.
    ///
    /// # Panics
    ///
    /// As [`CausalLm::forward`].
    pub fn gate_values(&self, input_ids: Tensor<2, Int>) -> Vec<Option<Tensor<4>>> {
        let mut gates = Vec::new();
        self.run(input_ids, |attn, x, memory| {
            gates.push(attn.mixer().map(|mixer| mixer.gates(x.clone())));
            attn.forward(x, memory, None)
        });
        gates
    }

    /// Logits; `attend` runs the attention of a layer on its normalised input and its memory.
    fn run(
        &self,
        input_ids: Tensor<2, Int>,
        mut attend: impl FnMut(&TextAttention, Tensor<3>, Option<Tensor<5>>) -> Tensor<3>,
    ) -> Tensor<3> {
        let layers = &self.transformer.h;
        let memory = ValueEmbeddings::look_up(&self.value_embeds, &input_ids, layers.len());
        let normalised = |x: &Tensor<3>| rms_normalize(x.clone(), self.norm_eps);
        let mut x = normalised(&self.transformer.wte.forward(input_ids));
        for (block, memory) in layers.iter().zip(memory) {
            x = x.clone() + attend(&block.attn, normalised(&x), memory);
            x = x.clone() + block.mlp.forward(normalised(&x));
        }
        let logits = self.lm_head.forward(normalised(&x));
        match self.logit_softcap {
            0.0 => logits,
            cap => logits.div_scalar(cap).tanh().mul_scalar(cap),
        }
    }
}

impl CausalLm for MoveTextModel {
    fn forward(&self, input_ids: Tensor<2, Int>, attention_mask: Option<Tensor<2, Bool>>) -> Tensor<3> {
        expect_tokens(self, &input_ids);
        let packing = attention_mask.and_then(|mask| padding(&mask, input_ids.dims()));
        match packing {
            None => self.run(input_ids, |attn, x, memory| attn.forward(x, memory, None)),
            Some(packing) => {
                let boundaries = Some(packing.boundaries());
                packing.unpack(
                    self.run(packing.pack_ids(input_ids), |attn, x, memory| {
                        attn.forward(x, memory, boundaries)
                    }),
                )
            }
        }
    }

    fn vocab_size(&self) -> usize {
        self.transformer.wte.weight.lazy_shape()[0]
    }

    fn check_ids(&self, input_ids: &Tensor<2, Int>) -> Result<(), InputError> {
        check_range("input_ids", input_ids, self.vocab_size())
    }
}

impl StreamingLm for MoveTextModel {
    type State = MoveTextState;

    fn empty_state(&self, batch: usize, device: &Device) -> MoveTextState {
        let empty = |block: &MoveBlock| block.attn.empty_cache(batch, device);
        ModelState { layers: self.transformer.h.iter().map(empty).collect() }
    }

    fn check_state(&self, state: &MoveTextState, batch: usize) -> Result<(), InputError> {
        check_caches(state, self.transformer.h.len(), batch, |layer, device| {
            self.transformer.h[layer].attn.empty_cache(batch, device)
        })
    }

    fn prefill(&self, input_ids: Tensor<2, Int>, state: MoveTextState) -> (Tensor<3>, MoveTextState) {
        expect_tokens(self, &input_ids);
        if let Err(error) = self.check_state(&state, input_ids.dims()[0]) {
            panic!("{error}");
        }
        let mut old = state.layers.into_iter();
        let mut layers = Vec::with_capacity(old.len());
        let logits = self.run(input_ids, |attn, x, memory| {
            let cache = old.next().expect("one cache a layer");
            let (y, cache) = attn.prefill(x, memory, cache);
            layers.push(cache);
            y
        });
        (logits, ModelState { layers })
    }

    fn step(&self, token: Tensor<1, Int>, state: MoveTextState) -> (Tensor<2>, MoveTextState) {
        let (logits, state) = self.prefill(token.unsqueeze_dim(1), state);
        (logits.squeeze_dim(1), state)
    }
}

/// Checks one cache a layer against the layers' empty ones.
pub(super) fn check_caches(
    state: &ModelState<MoveCache>,
    layers: usize,
    batch: usize,
    empty: impl Fn(usize, &Device) -> MoveCache,
) -> Result<(), InputError> {
    if state.layers.len() != layers {
        let got = format!("{} layers", state.layers.len());
        return Err(InputError::new("state", got, format!("{layers} layers")));
    }
    let first = state.layers.first().map(MoveCache::position);
    for (layer, cache) in state.layers.iter().enumerate() {
        let within = |error: InputError| {
            InputError::new(format!("state.layers.{layer}.{}", error.field), error.got, error.need)
        };
        cache.check(&empty(layer, &cache.device()), batch).map_err(within)?;
        if Some(cache.position()) != first {
            let need = format!("{}, as in the first layer", first.unwrap_or(0));
            return Err(within(InputError::new("position", cache.position(), need)));
        }
    }
    Ok(())
}
