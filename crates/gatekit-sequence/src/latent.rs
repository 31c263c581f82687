//! Multi-head latent attention as a token mixer.

use burn::tensor::{Device, Tensor};
use gatekit_core::InputError;
use gatekit_core::attention::{LatentAttention, LatentCache};
use gatekit_core::checkpoint::{NamedTensors, TensorError};

use crate::backbone::{
    MixerContext, MixerState, TokenMixer, check_shape, no_more_tensors, state_data, take_state_tensor,
};

impl TokenMixer for LatentAttention {
    type State = LatentCache;

    fn forward(&self, x: Tensor<3>, context: &MixerContext<'_>) -> Tensor<3> {
        Self::forward(self, x, context.packing)
    }

    fn prefill(&self, x: Tensor<3>, state: LatentCache, _: &MixerContext<'_>) -> (Tensor<3>, LatentCache) {
        Self::prefill(self, x, state)
    }

    fn step(&self, x: Tensor<2>, state: LatentCache, _: &MixerContext<'_>) -> (Tensor<2>, LatentCache) {
        Self::step(self, x, state)
    }

    fn empty_state(&self, batch: usize, device: &Device) -> LatentCache {
        self.empty_cache(batch, device)
    }

    fn check_state(&self, state: &LatentCache, batch: usize) -> Result<(), InputError> {
        check_shape("latents", &state.latents.dims(), &self.cache_dims(batch, state.len()))
    }
}

impl MixerState for LatentCache {
    const MIXER: &'static str = "latent_attention";

    fn bytes(&self) -> usize {
        Self::bytes(self)
    }

    fn to_device(self, device: &Device) -> Self {
        Self::to_device(self, device)
    }

    fn to_tensors(&self) -> NamedTensors {
        NamedTensors::from([("latents".to_string(), state_data(&self.latents))])
    }

    fn from_tensors(mut tensors: NamedTensors, device: &Device) -> Result<Self, TensorError> {
        let latents = take_state_tensor(&mut tensors, "latents", &mut None, device)?;
        no_more_tensors(tensors)?;
        Ok(Self { latents })
    }
}
