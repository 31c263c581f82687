//! The feed-forward layer of decoders that are sparse in some layers.

use burn::module::Module;
use burn::tensor::Tensor;
use gatekit_core::feed_forward::SwiGlu;
use gatekit_core::moe::MoeLayer;
use gatekit_core::router::Routing;

use crate::backbone::FeedForward;

/// A feed-forward layer that is one dense SwiGLU or a mixture of experts.
///
/// The variants leave no trace in parameter names: `mlp.gate_proj.weight` or `mlp.gate.weight`.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // There is one a layer, and modules are not moved about.
pub enum DecoderFeedForward {
    /// Every token through the same weights.
    Dense(SwiGlu),
    /// Every token through a few of many experts.
    Sparse(MoeLayer),
}

impl DecoderFeedForward {
    /// `[.., hidden_size]` to `[.., hidden_size]`, and what the router decided, if there is one.
    ///
    /// # Panics
    ///
    /// As [`MoeLayer::forward`].
    pub fn forward_with_routing<const D: usize>(&self, x: Tensor<D>) -> (Tensor<D>, Option<Routing>) {
        match self {
            Self::Dense(dense) => (dense.forward(x), None),
            Self::Sparse(sparse) => {
                let (y, routing) = sparse.forward_with_routing(x);
                (y, Some(routing))
            }
        }
    }

    /// The mixture of experts, if it is one.
    pub fn sparse(&self) -> Option<&MoeLayer> {
        match self {
            Self::Dense(_) => None,
            Self::Sparse(sparse) => Some(sparse),
        }
    }
}

impl FeedForward for DecoderFeedForward {
    fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Dense(dense) => dense.forward(x),
            Self::Sparse(sparse) => sparse.forward(x),
        }
    }
}
