//! The streaming state: the keys and values so far, and the sum of the values.

use burn::tensor::{Device, Tensor};
use gatekit_core::attention::KvCache;
use gatekit_core::checkpoint::{NamedTensors, TensorError, TensorProblem};

use crate::backbone::{MixerState, state_data, take_state_tensor, tensor_bytes};

/// Streaming state of [`AffineScaledAttention`](super::AffineScaledAttention).
#[derive(Debug, Clone)]
pub struct AffineCache {
    /// Keys and values, and the number of tokens.
    pub cache: KvCache,
    /// Sum of the values of every key head, `[batch, G, head_dim]`, float32; `None` without a scale.
    pub value_sum: Option<Tensor<3>>,
}

const VALUE_SUM: &str = "value_sum";

impl MixerState for AffineCache {
    const MIXER: &'static str = "affine_scaled_attention";

    fn bytes(&self) -> usize {
        self.cache.bytes() + self.value_sum.as_ref().map_or(0, tensor_bytes)
    }

    fn to_device(self, device: &Device) -> Self {
        Self {
            cache: self.cache.to_device(device),
            value_sum: self.value_sum.map(|sum| sum.to_device(device)),
        }
    }

    fn to_tensors(&self) -> NamedTensors {
        let mut tensors = self.cache.to_tensors();
        tensors.extend(self.value_sum.as_ref().map(|sum| (VALUE_SUM.to_string(), state_data(sum))));
        tensors
    }

    fn from_tensors(mut tensors: NamedTensors, device: &Device) -> Result<Self, TensorError> {
        let sum = match tensors.remove_entry(VALUE_SUM) {
            None => None,
            Some((name, data)) => {
                let mut alone = NamedTensors::from([(name, data)]);
                let sum: Tensor<3> = take_state_tensor(&mut alone, VALUE_SUM, &mut None, device)?;
                Some(sum)
            }
        };
        let cache = KvCache::from_tensors(tensors, device)?;
        let [batch, _, heads, dim] = cache.values.dims();
        let need = [batch, heads, dim];
        match sum.as_ref().map(Tensor::dims).filter(|got| *got != need) {
            None => Ok(Self { cache, value_sum: sum }),
            Some(got) => {
                let (got, need) = (got.to_vec(), format!("{need:?}, as the values"));
                Err(TensorError::new(VALUE_SUM, TensorProblem::Shape { got, need }))
            }
        }
    }
}
