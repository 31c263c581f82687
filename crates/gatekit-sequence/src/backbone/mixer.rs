//! What stands in a block: the mixer, and the feed-forward layer behind it.

use burn::module::{Module, ModuleDisplay};
use burn::tensor::{Device, Tensor};
use gatekit_core::InputError;
use gatekit_core::feed_forward::SwiGlu;
use gatekit_core::sequence::Packing;

use super::MixerState;

/// What a layer is given besides its input.
#[derive(Debug, Clone, Default)]
pub struct MixerContext<'a> {
    /// How to remove padded tokens, `None` without padding and when streaming.
    pub packing: Option<&'a Packing>,
    /// This layer's floor of the forget gates, `[D']`; `None` in the first layer, and in models
    /// without floors. See [`Backbone::lower_bounds`](super::Backbone::lower_bounds).
    pub lower_bound: Option<Tensor<1>>,
}

/// A layer that treats every position by itself: what stands after the mixer in a block.
pub trait FeedForward: Module + ModuleDisplay {
    /// `[.., hidden_size]` to `[.., hidden_size]`.
    fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D>;
}

impl FeedForward for SwiGlu {
    fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        Self::forward(self, x)
    }
}

/// A layer that moves information between positions, causally.
pub trait TokenMixer: Module + ModuleDisplay {
    /// What the layer remembers of the tokens so far.
    type State: MixerState;

    /// A whole batch.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, time, hidden_size]`
    /// - `context.packing`: from a mask `[batch, time]`; padded tokens are removed, the output is 0
    ///   there
    /// - output: `[batch, time, hidden_size]`
    fn forward(&self, x: Tensor<3>, context: &MixerContext<'_>) -> Tensor<3>;

    /// Continues by several tokens: `x` and the output are `[batch, time, hidden_size]`.
    fn prefill(
        &self,
        x: Tensor<3>,
        state: Self::State,
        context: &MixerContext<'_>,
    ) -> (Tensor<3>, Self::State);

    /// Continues by one token: `x` and the output are `[batch, hidden_size]`.
    fn step(&self, x: Tensor<2>, state: Self::State, context: &MixerContext<'_>) -> (Tensor<2>, Self::State);

    /// The state before the first token.
    fn empty_state(&self, batch: usize, device: &Device) -> Self::State;

    /// Checks that a state fits this layer and `batch`.
    ///
    /// # Errors
    ///
    /// [`InputError`] names the part, its shape and the shape it needs.
    fn check_state(&self, state: &Self::State, batch: usize) -> Result<(), InputError>;
}
