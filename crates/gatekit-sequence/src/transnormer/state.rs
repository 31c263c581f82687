//! What a token mixer remembers.

use burn::tensor::{Device, Tensor};
use gatekit_core::checkpoint::{NamedTensors, TensorError};

use crate::backbone::{
    MixerState, no_more_tensors, position_data, state_data, take_position, take_state_tensor, tensor_bytes,
};

/// Streaming state of [`NormLinearAttention`](super::NormLinearAttention): its size does not depend
/// on the tokens so far.
#[derive(Debug, Clone)]
pub struct NormLinearAttentionState {
    /// The matrix `S` of every head, `[batch, H, dk, e]` with `dk = e`, or `2 e` under LRPE. In
    /// float32 (float64 in a model of that type).
    pub recurrent: Tensor<4>,
    /// Tokens so far: the position of the next.
    pub position: usize,
}

impl MixerState for NormLinearAttentionState {
    const MIXER: &'static str = "transnormer";

    fn bytes(&self) -> usize {
        tensor_bytes(&self.recurrent)
    }

    fn to_device(self, device: &Device) -> Self {
        Self { recurrent: self.recurrent.to_device(device), ..self }
    }

    fn to_tensors(&self) -> NamedTensors {
        NamedTensors::from([
            ("recurrent".to_string(), state_data(&self.recurrent)),
            ("position".to_string(), position_data(self.position)),
        ])
    }

    fn from_tensors(mut tensors: NamedTensors, device: &Device) -> Result<Self, TensorError> {
        let recurrent = take_state_tensor(&mut tensors, "recurrent", &mut None, device)?;
        let position = take_position(&mut tensors)?;
        no_more_tensors(tensors)?;
        Ok(Self { recurrent, position })
    }
}
