//! What a layer remembers of the tokens so far.

use burn::tensor::{Device, Tensor};
use gatekit_core::checkpoint::{NamedTensors, TensorError};

use crate::backbone::{MixerState, no_more_tensors, state_data, take_state_tensor, tensor_bytes};

/// Streaming state of [`MambaMixer`](super::MambaMixer): its size does not depend on the tokens so far.
#[derive(Debug, Clone)]
pub struct MambaState {
    /// The last `K - 1` inputs of the convolution, oldest first, `[batch, K - 1, I]`.
    pub conv: Tensor<3>,
    /// The state space of every channel, `[batch, I, N]`, float32.
    pub ssm: Tensor<3>,
}

impl MixerState for MambaState {
    const MIXER: &'static str = "mamba";

    fn bytes(&self) -> usize {
        tensor_bytes(&self.conv) + tensor_bytes(&self.ssm)
    }

    fn to_device(self, device: &Device) -> Self {
        Self { conv: self.conv.to_device(device), ssm: self.ssm.to_device(device) }
    }

    fn to_tensors(&self) -> NamedTensors {
        NamedTensors::from([
            ("conv".to_string(), state_data(&self.conv)),
            ("ssm".to_string(), state_data(&self.ssm)),
        ])
    }

    fn from_tensors(mut tensors: NamedTensors, device: &Device) -> Result<Self, TensorError> {
        let mut batch = None;
        let conv = take_state_tensor(&mut tensors, "conv", &mut batch, device)?;
        let ssm = take_state_tensor(&mut tensors, "ssm", &mut batch, device)?;
        no_more_tensors(tensors)?;
        Ok(Self { conv, ssm })
    }
}
