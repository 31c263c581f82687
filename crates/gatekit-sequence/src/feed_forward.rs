//! The feed-forward layer of decoders that are sparse in some layers.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::feed_forward::{SwiGlu, SwiGluConfig};
use gatekit_core::moe::{MoeLayer, MoeLayerConfig};
use gatekit_core::router::{Routing, Selection};
use gatekit_core::{ConfigError, ModuleConfig};
use serde_json::Value;

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

    /// The dense layer, if it is one.
    pub fn dense(&self) -> Option<&SwiGlu> {
        match self {
            Self::Dense(dense) => Some(dense),
            Self::Sparse(_) => None,
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

/// What every feed-forward layer of a stack is made from.
#[derive(Debug, Clone)]
pub(crate) enum DecoderFeedForwardConfig {
    Dense(SwiGluConfig),
    Sparse(MoeLayerConfig),
}

impl DecoderFeedForwardConfig {
    /// Experts for a stack of width `hidden_size`; errors name the field as `moe.*`.
    pub(crate) fn sparse(experts: &MoeLayerConfig, hidden_size: usize) -> Result<Self, ConfigError> {
        if experts.hidden_size != hidden_size {
            let need = format!("{hidden_size}, the width of the model");
            return Err(ConfigError::new("moe.hidden_size", experts.hidden_size, need));
        }
        if experts.selection == Selection::Hash {
            let need = "learned or random: a feed-forward layer does not see token ids";
            return Err(ConfigError::new("moe.selection", "hash", need));
        }
        Ok(Self::Sparse(experts.clone()))
    }

    pub(crate) fn try_init(&self, device: &Device) -> Result<DecoderFeedForward, ConfigError> {
        match self {
            Self::Dense(dense) => dense.try_init(device).map(DecoderFeedForward::Dense),
            Self::Sparse(sparse) => {
                let layer = sparse.try_init(device).map_err(|error| error.within("moe"))?;
                Ok(DecoderFeedForward::Sparse(layer))
            }
        }
    }
}

/// What the experts of a configuration's `moe` are called in checkpoints, before the rules that rename the
/// layers themselves.
pub(crate) fn experts_layout(layout: TensorLayout, experts: Option<&MoeLayerConfig>) -> TensorLayout {
    match experts {
        Some(experts) => experts.tensor_layout(layout, "model.layers.{}.mlp."),
        None => layout,
    }
}

/// Leaves `moe` out of the published form of a model without experts, whose other readers do not know it.
pub(crate) fn publish_experts(json: &mut Value, experts: Option<&MoeLayerConfig>) {
    if let Some(fields) = json.as_object_mut().filter(|_| experts.is_none()) {
        fields.remove("moe");
    }
}
