//! What a block remembers.

use burn::tensor::{Device, Tensor};
use gatekit_core::checkpoint::{NamedTensors, TensorError};

use crate::backbone::{
    MixerState, no_more_tensors, position_data, state_data, take_position, take_state_tensor, tensor_bytes,
};

/// Streaming state of a [`GamBlock`](super::GamBlock): its size does not depend on the tokens so far.
#[derive(Debug, Clone)]
pub struct GamBlockState {
    /// The mixer's last K-1 inputs, `[batch, K-1, C]`, after the block's first norm.
    pub history: Tensor<3>,
    /// Tokens so far: the position of the next.
    pub position: usize,
}

impl MixerState for GamBlockState {
    const MIXER: &'static str = "gated_associative_memory";

    fn bytes(&self) -> usize {
        tensor_bytes(&self.history)
    }

    fn to_device(self, device: &Device) -> Self {
        Self { history: self.history.to_device(device), ..self }
    }

    fn to_tensors(&self) -> NamedTensors {
        NamedTensors::from([
            ("history".to_string(), state_data(&self.history)),
            ("position".to_string(), position_data(self.position)),
        ])
    }

    fn from_tensors(mut tensors: NamedTensors, device: &Device) -> Result<Self, TensorError> {
        let history = take_state_tensor(&mut tensors, "history", &mut None, device)?;
        let position = take_position(&mut tensors)?;
        no_more_tensors(tensors)?;
        Ok(Self { history, position })
    }
}
