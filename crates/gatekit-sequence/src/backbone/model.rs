//! Blocks, the stack of them, and the language model.

use burn::module::{Module, Param};
use burn::nn::{Embedding, Linear};
use burn::tensor::module::linear;
use burn::tensor::{Bool, Device, Int, Tensor};
use gatekit_core::decay::lower_bounds;
use gatekit_core::feed_forward::SwiGluConfig;
use gatekit_core::moe::MoeLayerConfig;
use gatekit_core::norm::{RmsNorm, RmsNormConfig};
use gatekit_core::sequence::Packing;
use gatekit_core::{ConfigError, InputError, ModuleConfig, init};

use super::{BackboneSize, FeedForward, MixerContext, ModelState, TokenMixer};
use crate::feed_forward::{DecoderFeedForward, DecoderFeedForwardConfig};
use crate::lm::{CausalLm, StreamingLm, expect_tokens};

/// One pre-norm block: `x += attn(RMSNorm(x)); x += mlp(RMSNorm(x))`.
#[derive(Module, Debug)]
pub struct Block<M, F = DecoderFeedForward> {
    /// Norm before the mixer.
    pub attn_norm: RmsNorm,
    /// The token mixer, called `attn` in the published checkpoints whatever it is.
    pub attn: M,
    /// Norm before the feed-forward layer.
    pub mlp_norm: RmsNorm,
    /// The feed-forward layer.
    pub mlp: F,
}

impl<M: TokenMixer, F: FeedForward> Block<M, F> {
    /// The block for a whole batch `[batch, time, hidden_size]`.
    pub fn forward(&self, x: Tensor<3>, context: &MixerContext<'_>) -> Tensor<3> {
        let mixed = self.attn.forward(self.attn_norm.forward(x.clone()), context);
        self.feed_forward(x + mixed)
    }

    fn prefill(&self, x: Tensor<3>, state: M::State, context: &MixerContext<'_>) -> (Tensor<3>, M::State) {
        let (mixed, state) = self.attn.prefill(self.attn_norm.forward(x.clone()), state, context);
        (self.feed_forward(x + mixed), state)
    }

    fn step(&self, x: Tensor<2>, state: M::State, context: &MixerContext<'_>) -> (Tensor<2>, M::State) {
        let (mixed, state) = self.attn.step(self.attn_norm.forward(x.clone()), state, context);
        (self.feed_forward(x + mixed), state)
    }

    fn feed_forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        x.clone() + self.mlp.forward(self.mlp_norm.forward(x))
    }
}

/// Embeddings, blocks and the final norm: everything but the head.
#[derive(Module, Debug)]
pub struct Backbone<M, F = DecoderFeedForward> {
    /// Token embeddings `[vocab_size, hidden_size]`.
    pub embeddings: Embedding,
    /// Raw floors of the forget gates, one row a layer, `[num_hidden_layers, D']`;
    /// [`lower_bounds`](gatekit_core::decay::lower_bounds()) makes the floors of them. `None` in models without.
    pub lower_bounds: Option<Param<Tensor<2>>>,
    /// The blocks, first to last.
    pub layers: Vec<Block<M, F>>,
    /// The norm after the last block.
    pub norm: RmsNorm,
}

/// A language model: [`Backbone`] and head.
#[derive(Module, Debug)]
pub struct CausalModel<M, F = DecoderFeedForward> {
    /// Everything but the head.
    pub model: Backbone<M, F>,
    /// The head; `None` when it is tied to the embeddings.
    pub lm_head: Option<Linear>,
}

impl<M: TokenMixer> CausalModel<M> {
    /// Builds the stack with dense feed-forward layers; `mixer` makes the layer of the given index.
    ///
    /// Weights of linear layers and embeddings start as normal(0, 0.02), norms at 1.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a size of 0, an epsilon that is not positive, or from the mixer.
    pub fn try_new(
        size: &BackboneSize,
        device: &Device,
        mixer: impl FnMut(usize) -> Result<M, ConfigError>,
    ) -> Result<Self, ConfigError> {
        Self::try_with_experts(size, None, device, mixer)
    }

    /// As [`try_new`](Self::try_new), with `experts` in place of every feed-forward layer where they
    /// are given; the width of those in `size` does not count then.
    ///
    /// # Errors
    ///
    /// As [`try_new`](Self::try_new), and [`ConfigError`] for a field `moe.*` of experts that make no layer, are of
    /// another width than the stack, or choose by token ids, which a feed-forward layer does not see.
    pub fn try_with_experts(
        size: &BackboneSize,
        experts: Option<&MoeLayerConfig>,
        device: &Device,
        mixer: impl FnMut(usize) -> Result<M, ConfigError>,
    ) -> Result<Self, ConfigError> {
        let feed_forward = match experts {
            Some(experts) => DecoderFeedForwardConfig::sparse(experts, size.hidden_size)?,
            None => DecoderFeedForwardConfig::Dense(SwiGluConfig::new(
                size.hidden_size,
                size.feed_forward_size()?,
            )),
        };
        Self::try_with_feed_forward(size, device, mixer, |_| feed_forward.try_init(device))
    }
}

impl<M: TokenMixer, F: FeedForward> CausalModel<M, F> {
    /// Builds the stack; `mixer` and `feed_forward` make the layers of the given index. The sizes
    /// of the feed-forward layers in `size` do not count here.
    ///
    /// # Errors
    ///
    /// As [`try_new`](Self::try_new).
    pub fn try_with_feed_forward(
        size: &BackboneSize,
        device: &Device,
        mut mixer: impl FnMut(usize) -> Result<M, ConfigError>,
        mut feed_forward: impl FnMut(usize) -> Result<F, ConfigError>,
    ) -> Result<Self, ConfigError> {
        size.check()?;
        let norm = || RmsNormConfig::new(size.hidden_size).with_eps(size.norm_eps).try_init(device);
        let block = |index| {
            Ok(Block {
                attn_norm: norm()?,
                attn: mixer(index)?,
                mlp_norm: norm()?,
                mlp: feed_forward(index)?,
            })
        };
        let layers = (0..size.num_hidden_layers).map(block).collect::<Result<_, ConfigError>>()?;
        let embeddings = init::embedding(size.vocab_size, size.hidden_size, device);
        let lm_head = (!size.tie_word_embeddings)
            .then(|| init::linear(size.hidden_size, size.vocab_size, false, device));
        let model = Backbone { embeddings, lower_bounds: None, layers, norm: norm()? };
        Ok(Self { model, lm_head })
    }

    /// Token embeddings of `input_ids`, `[batch, time, hidden_size]`.
    ///
    /// # Panics
    ///
    /// When there is no token, and in debug builds for a token outside the vocabulary.
    pub fn embed(&self, input_ids: Tensor<2, Int>) -> Tensor<3> {
        expect_tokens(self, &input_ids);
        self.model.embeddings.forward(input_ids)
    }

    /// What every layer is given besides its input, first to last.
    pub fn contexts<'a>(&self, packing: Option<&'a Packing>) -> Vec<MixerContext<'a>> {
        let floors = self.model.lower_bounds.as_ref().map(|raw| lower_bounds(raw.val()));
        (0..self.model.layers.len())
            .map(|index| MixerContext {
                packing,
                // The first layer's floor is 0, which is none.
                lower_bound: (floors.as_ref().filter(|_| index > 0))
                    .map(|floors| floors.clone().narrow(0, index, 1).squeeze_dim::<1>(0)),
            })
            .collect()
    }

    /// The final norm and the head.
    pub(crate) fn logits<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let x = self.model.norm.forward(x);
        match &self.lm_head {
            Some(head) => head.forward(x),
            None => linear(x, self.model.embeddings.weight.val().transpose(), None),
        }
    }
}

impl<M: TokenMixer, F: FeedForward> CausalLm for CausalModel<M, F> {
    fn forward(&self, input_ids: Tensor<2, Int>, attention_mask: Option<Tensor<2, Bool>>) -> Tensor<3> {
        let packing = attention_mask.and_then(|mask| padding(&mask, input_ids.dims()));
        let x = self.embed(input_ids);
        let contexts = self.contexts(packing.as_ref());
        let layers = self.model.layers.iter().zip(&contexts);
        self.logits(layers.fold(x, |x, (block, context)| block.forward(x, context)))
    }

    fn vocab_size(&self) -> usize {
        self.model.embeddings.weight.lazy_shape()[0]
    }
}

/// How to remove the padding that `mask` describes; `None` without any.
pub(crate) fn padding(mask: &Tensor<2, Bool>, [batch, time]: [usize; 2]) -> Option<Packing> {
    let dims = mask.dims();
    assert!(
        dims == [batch, time],
        "forward: `attention_mask` has [batch, time] = {dims:?}, `input_ids` [{batch}, {time}]"
    );
    let packing = Packing::from_mask(mask).unwrap_or_else(|error| panic!("forward: {error}"));
    (packing.boundaries().time() < batch * time).then_some(packing)
}

impl<M: TokenMixer, F: FeedForward> StreamingLm for CausalModel<M, F> {
    type State = ModelState<M::State>;

    fn empty_state(&self, batch: usize, device: &Device) -> Self::State {
        ModelState {
            layers: self.model.layers.iter().map(|block| block.attn.empty_state(batch, device)).collect(),
        }
    }

    fn check_state(&self, state: &Self::State, batch: usize) -> Result<(), InputError> {
        let need = self.model.layers.len();
        if state.layers.len() != need {
            let got = format!("{} layers", state.layers.len());
            return Err(InputError::new("state", got, format!("{need} layers")));
        }
        for (index, (block, layer)) in self.model.layers.iter().zip(&state.layers).enumerate() {
            block.attn.check_state(layer, batch).map_err(|error| {
                InputError::new(format!("state.layers.{index}.{}", error.field), error.got, error.need)
            })?;
        }
        Ok(())
    }

    fn prefill(&self, input_ids: Tensor<2, Int>, state: Self::State) -> (Tensor<3>, Self::State) {
        let x = self.embed(input_ids);
        let (x, state) = self.stream(x, state, Block::prefill);
        (self.logits(x), state)
    }

    fn step(&self, token: Tensor<1, Int>, state: Self::State) -> (Tensor<2>, Self::State) {
        let x = self.embed(token.unsqueeze_dim(1)).squeeze_dim::<2>(1);
        let (x, state) = self.stream(x, state, Block::step);
        (self.logits(x), state)
    }
}

impl<M: TokenMixer, F: FeedForward> CausalModel<M, F> {
    /// Runs the blocks one after the other, each with its part of the state.
    fn stream<const D: usize>(
        &self,
        mut x: Tensor<D>,
        state: ModelState<M::State>,
        advance: impl Fn(&Block<M, F>, Tensor<D>, M::State, &MixerContext<'_>) -> (Tensor<D>, M::State),
    ) -> (Tensor<D>, ModelState<M::State>) {
        assert!(
            state.layers.len() == self.model.layers.len(),
            "`state` has {} layers, the model {}",
            state.layers.len(),
            self.model.layers.len()
        );
        let batch = x.dims()[0];
        let mut layers = Vec::with_capacity(state.layers.len());
        let blocks = self.model.layers.iter().zip(self.contexts(None));
        for (index, ((block, context), layer)) in blocks.zip(state.layers).enumerate() {
            if let Err(error) = block.attn.check_state(&layer, batch) {
                panic!("`state` of layer {index}: {error}");
            }
            let (next, layer) = advance(block, x, layer, &context);
            x = next;
            layers.push(layer);
        }
        (x, ModelState { layers })
    }
}
