//! The language model.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig};
use burn::tensor::module::linear;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::InputError;
use gatekit_core::sequence::Boundaries;

use super::config::GamConfig;
use super::layer::GamBlock;
use super::mixer::GamGates;
use super::state::GamBlockState;
use crate::backbone::{ModelState, padding};
use crate::lm::{CausalLm, IGNORED_LABEL, StreamingLm, Targets, expect_tokens};

/// The streaming state of a [`GamLm`], of constant size: one state a block.
pub type GamState = ModelState<GamBlockState>;

/// Gated associative memory as a language model.
///
/// ```text
/// h = dropout(E[ids] + P[0 .. T])
/// h = block(h)                                     (num_layers times)
/// logits = LN(h) E^T
/// ```
///
/// Embeddings and positions start as normal(0, 1). A token depends on the last
/// `1 + num_layers * (K - 1)` tokens alone. Sequences, streamed ones included, are at most
/// `block_size` tokens long. The paper trains with AdamW (3e-4, betas 0.9 and 0.95, weight decay
/// 0.1), 100 steps of warm-up, a cosine to 0 and gradients clipped to norm 1. Acharya (arXiv
/// 2509.00605).
#[derive(Module, Debug)]
pub struct GamLm {
    /// Token embeddings `[vocab_size, C]`, the head too.
    pub token_embedding: Embedding,
    /// Positions `[block_size, C]`.
    pub pos_embedding: Embedding,
    /// Applied to the embeddings in training.
    pub dropout: Dropout,
    /// The blocks, first to last.
    pub blocks: Vec<GamBlock>,
    /// The norm after the last block.
    pub ln_f: LayerNorm,
}

impl GamLm {
    /// `config` is checked and has made the blocks.
    pub(super) fn new(config: &GamConfig, blocks: Vec<GamBlock>, device: &Device) -> Self {
        let width = config.embed_dim;
        Self {
            token_embedding: EmbeddingConfig::new(config.vocab_size, width).init(device),
            pos_embedding: EmbeddingConfig::new(config.block_size, width).init(device),
            dropout: DropoutConfig::new(config.dropout).init(),
            blocks,
            ln_f: LayerNormConfig::new(width).init(device),
        }
    }

    /// Longest sequence, in tokens.
    pub fn block_size(&self) -> usize {
        self.pos_embedding.weight.lazy_shape()[0]
    }

    /// Checks that `time` more tokens fit after `position`.
    ///
    /// # Errors
    ///
    /// [`InputError`] with the length that is asked for and the longest.
    pub fn check_length(&self, position: usize, time: usize) -> Result<(), InputError> {
        let (length, longest) = (position.saturating_add(time), self.block_size());
        if length <= longest {
            return Ok(());
        }
        let got = match position {
            0 => format!("{time} tokens"),
            _ => format!("{time} tokens after {position}, {length} together"),
        };
        Err(InputError::new("input_ids", got, format!("at most {longest}, the number of learned positions")))
    }

    /// Mean cross entropy against given targets: position `t` is judged by target `t`, the next
    /// token. A target of [`IGNORED_LABEL`] is not counted.
    ///
    /// # Shapes
    ///
    /// - `logits`: `[batch, time, vocab_size]`; `targets`: `[batch, time]`; output: `[1]`, in nats
    ///
    /// # Errors
    ///
    /// [`InputError`] when every target is ignored, or one is neither -100 nor a token.
    ///
    /// # Panics
    ///
    /// When the targets' batch and time are not those of the logits.
    pub fn loss_of_targets(
        &self,
        logits: Tensor<3>,
        targets: Tensor<2, Int>,
    ) -> Result<Tensor<1>, InputError> {
        let targets =
            Targets::aligned(&targets.to_data(), IGNORED_LABEL, self.vocab_size(), &logits.device())?;
        Ok(targets.cross_entropy(logits))
    }

    /// How open the gates of every block are for `input_ids` `[batch, time]`, for probes: one entry
    /// a block, `None` in the ablations.
    pub fn gate_values(&self, input_ids: Tensor<2, Int>) -> Vec<Option<GamGates>> {
        let mut x = self.embed(input_ids, 0, None);
        let mut values = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            values.push(block.mixer.gates(block.ln1.forward(x.clone())));
            x = block.forward(x, None, None).0;
        }
        values
    }

    /// Token and position embeddings; positions count on from `position`, or in every segment from 0.
    fn embed(
        &self,
        input_ids: Tensor<2, Int>,
        position: usize,
        boundaries: Option<&Boundaries>,
    ) -> Tensor<3> {
        expect_tokens(self, &input_ids);
        let [_, time] = input_ids.dims();
        let positions: Vec<usize> = match boundaries {
            Some(boundaries) => boundaries.position_in_segment(),
            None => (position..position + time).collect(),
        };
        let longest = positions.iter().max().map_or(0, |last| last + 1 - position);
        self.check_length(position, longest).unwrap_or_else(|error| panic!("{error}"));
        let positions: Vec<i64> = positions.into_iter().map(|position| position as i64).collect();
        let positions = Tensor::from_data(TensorData::new(positions, [1, time]), &input_ids.device());
        let embedded = self.token_embedding.forward(input_ids) + self.pos_embedding.forward(positions);
        self.dropout.forward(embedded)
    }

    fn logits<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        linear(self.ln_f.forward(x), self.token_embedding.weight.val().transpose(), None)
    }

    /// Runs the blocks one after the other, each with its part of the state.
    fn stream<const D: usize>(
        &self,
        mut x: Tensor<D>,
        state: GamState,
        time: usize,
        advance: impl Fn(&GamBlock, Tensor<D>, Tensor<3>) -> (Tensor<D>, Tensor<3>),
    ) -> (Tensor<D>, GamState) {
        let mut layers = Vec::with_capacity(self.blocks.len());
        for (block, state) in self.blocks.iter().zip(state.layers) {
            let (next, history) = advance(block, x, state.history);
            x = next;
            layers.push(GamBlockState { history, position: state.position + time });
        }
        (x, ModelState { layers })
    }

    /// The position of the next token, from a state that fits.
    fn position(&self, state: &GamState, batch: usize) -> usize {
        self.check_state(state, batch).unwrap_or_else(|error| panic!("{error}"));
        state.layers.first().map_or(0, |layer| layer.position)
    }
}

impl CausalLm for GamLm {
    /// As in the trait; padded tokens are removed and take no positions.
    ///
    /// # Panics
    ///
    /// As in the trait, and when a row has more (real) tokens than there are learned positions.
    fn forward(&self, input_ids: Tensor<2, Int>, attention_mask: Option<Tensor<2, Bool>>) -> Tensor<3> {
        let packing = attention_mask.and_then(|mask| padding(&mask, input_ids.dims()));
        let boundaries = packing.as_ref().map(|packing| packing.boundaries());
        let input_ids = match &packing {
            Some(packing) => packing.pack_ids(input_ids),
            None => input_ids,
        };
        let x = self.embed(input_ids, 0, boundaries);
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x, boundaries, None).0);
        let logits = self.logits(x);
        match &packing {
            Some(packing) => packing.unpack(logits),
            None => logits,
        }
    }

    fn vocab_size(&self) -> usize {
        self.token_embedding.weight.lazy_shape()[0]
    }
}

impl StreamingLm for GamLm {
    type State = GamState;

    fn empty_state(&self, batch: usize, device: &Device) -> GamState {
        let empty = |block: &GamBlock| GamBlockState {
            history: block.mixer.empty_history(batch, device),
            position: 0,
        };
        ModelState { layers: self.blocks.iter().map(empty).collect() }
    }

    fn check_state(&self, state: &GamState, batch: usize) -> Result<(), InputError> {
        let need = self.blocks.len();
        if state.layers.len() != need {
            let got = format!("{} layers", state.layers.len());
            return Err(InputError::new("state", got, format!("{need} layers")));
        }
        let position = state.layers[0].position;
        for (index, (block, layer)) in self.blocks.iter().zip(&state.layers).enumerate() {
            let field = |name: &str| format!("state.layers.{index}.{name}");
            block
                .mixer
                .check_history(&layer.history, batch)
                .map_err(|error| InputError::new(field(&error.field), error.got, error.need))?;
            if layer.position != position {
                let need = format!("{position}, as in the first layer");
                return Err(InputError::new(field("position"), layer.position, need));
            }
        }
        let longest = self.block_size();
        match position <= longest {
            true => Ok(()),
            false => Err(InputError::new("state.layers.0.position", position, format!("at most {longest}"))),
        }
    }

    fn check_room(&self, state: &GamState, tokens: usize) -> Result<(), InputError> {
        self.check_length(state.layers.first().map_or(0, |layer| layer.position), tokens)
    }

    /// As in the trait.
    ///
    /// # Panics
    ///
    /// As in the trait, and when the tokens so far and the new ones are more than there are learned
    /// positions; [`check_room`](StreamingLm::check_room) tells beforehand.
    fn prefill(&self, input_ids: Tensor<2, Int>, state: GamState) -> (Tensor<3>, GamState) {
        let [batch, time] = input_ids.dims();
        let x = self.embed(input_ids, self.position(&state, batch), None);
        let (x, state) =
            self.stream(x, state, time, |block, x, history| block.forward(x, None, Some(history)));
        (self.logits(x), state)
    }

    fn step(&self, token: Tensor<1, Int>, state: GamState) -> (Tensor<2>, GamState) {
        let position = self.position(&state, token.dims()[0]);
        let x = self.embed(token.unsqueeze_dim(1), position, None).squeeze_dim::<2>(1);
        let (x, state) = self.stream(x, state, 1, |block, x, history| block.step(x, history));
        (self.logits(x), state)
    }
}
