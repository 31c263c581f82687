//! What alternates in the stack: Kimi Delta Attention and latent attention.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gatekit_core::InputError;
use gatekit_core::checkpoint::{NamedTensors, TensorError};
use gatekit_core::latent_attention::{LatentAttention, LatentCache};

use super::layer::KimiDeltaAttention;
use crate::backbone::{MixerContext, MixerState, TokenMixer};
use crate::recurrent::RecurrentState;

/// The token mixer of one layer.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "one a layer")]
pub enum KimiMixer {
    /// A recurrence of constant size.
    Delta(KimiDeltaAttention),
    /// Softmax attention over every token so far.
    Latent(LatentAttention),
}

/// The streaming state of one layer.
#[derive(Debug, Clone)]
pub enum KimiLayerState {
    /// Of [`KimiMixer::Delta`]; its size does not depend on the tokens so far.
    Delta(RecurrentState),
    /// Of [`KimiMixer::Latent`]; it grows with every token.
    Latent(LatentCache),
}

impl KimiLayerState {
    fn kind(&self) -> &'static str {
        match self {
            Self::Delta(_) => "a state of Kimi Delta Attention",
            Self::Latent(_) => "a cache of latent attention",
        }
    }
}

impl KimiMixer {
    fn kind(&self) -> &'static str {
        match self {
            Self::Delta(_) => "a state of Kimi Delta Attention",
            Self::Latent(_) => "a cache of latent attention",
        }
    }

    fn refuse(&self, state: &KimiLayerState) -> InputError {
        InputError::new("kind", state.kind(), self.kind())
    }
}

impl TokenMixer for KimiMixer {
    type State = KimiLayerState;

    fn forward(&self, x: Tensor<3>, context: &MixerContext<'_>) -> Tensor<3> {
        match self {
            Self::Delta(layer) => TokenMixer::forward(layer, x, context),
            Self::Latent(layer) => TokenMixer::forward(layer, x, context),
        }
    }

    fn prefill(
        &self,
        x: Tensor<3>,
        state: KimiLayerState,
        context: &MixerContext<'_>,
    ) -> (Tensor<3>, KimiLayerState) {
        match (self, state) {
            (Self::Delta(layer), KimiLayerState::Delta(state)) => {
                let (y, state) = TokenMixer::prefill(layer, x, state, context);
                (y, KimiLayerState::Delta(state))
            }
            (Self::Latent(layer), KimiLayerState::Latent(state)) => {
                let (y, state) = TokenMixer::prefill(layer, x, state, context);
                (y, KimiLayerState::Latent(state))
            }
            (_, state) => panic!("`state`: {}", self.refuse(&state)),
        }
    }

    fn step(
        &self,
        x: Tensor<2>,
        state: KimiLayerState,
        context: &MixerContext<'_>,
    ) -> (Tensor<2>, KimiLayerState) {
        match (self, state) {
            (Self::Delta(layer), KimiLayerState::Delta(state)) => {
                let (y, state) = TokenMixer::step(layer, x, state, context);
                (y, KimiLayerState::Delta(state))
            }
            (Self::Latent(layer), KimiLayerState::Latent(state)) => {
                let (y, state) = TokenMixer::step(layer, x, state, context);
                (y, KimiLayerState::Latent(state))
            }
            (_, state) => panic!("`state`: {}", self.refuse(&state)),
        }
    }

    fn empty_state(&self, batch: usize, device: &Device) -> KimiLayerState {
        match self {
            Self::Delta(layer) => KimiLayerState::Delta(layer.empty_state(batch, device)),
            Self::Latent(layer) => KimiLayerState::Latent(layer.empty_state(batch, device)),
        }
    }

    fn check_state(&self, state: &KimiLayerState, batch: usize) -> Result<(), InputError> {
        match (self, state) {
            (Self::Delta(layer), KimiLayerState::Delta(state)) => layer.check_state(state, batch),
            (Self::Latent(layer), KimiLayerState::Latent(state)) => layer.check_state(state, batch),
            (_, state) => Err(self.refuse(state)),
        }
    }
}

impl MixerState for KimiLayerState {
    const MIXER: &'static str = "kimi_linear";

    fn bytes(&self) -> usize {
        match self {
            Self::Delta(state) => MixerState::bytes(state),
            Self::Latent(state) => MixerState::bytes(state),
        }
    }

    fn to_device(self, device: &Device) -> Self {
        match self {
            Self::Delta(state) => Self::Delta(MixerState::to_device(state, device)),
            Self::Latent(state) => Self::Latent(MixerState::to_device(state, device)),
        }
    }

    fn to_tensors(&self) -> NamedTensors {
        match self {
            Self::Delta(state) => state.to_tensors(),
            Self::Latent(state) => state.to_tensors(),
        }
    }

    fn from_tensors(tensors: NamedTensors, device: &Device) -> Result<Self, TensorError> {
        match tensors.contains_key("latents") {
            true => LatentCache::from_tensors(tensors, device).map(Self::Latent),
            false => RecurrentState::from_tensors(tensors, device).map(Self::Delta),
        }
    }
}
