//! The streaming state of softmax attention.

use burn::tensor::{Device, Tensor};

/// Rotated keys and values of the tokens so far: the streaming state of
/// [`CausalAttention`](super::CausalAttention).
///
/// With a sliding window w it holds the last w - 1 tokens, all that the next one can see besides
/// itself; positions go on counting from the first token.
#[derive(Debug, Clone)]
pub struct KvCache {
    /// Keys after the rotation, `[batch, tokens, kv_heads, head_dim]`.
    pub keys: Tensor<4>,
    /// Values, `[batch, tokens, kv_heads, head_dim]`.
    pub values: Tensor<4>,
    /// Number of tokens seen, so also the position of the next one.
    pub position: usize,
}

impl KvCache {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.keys.dims()[1]
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of keys and values together, in bytes.
    pub fn bytes(&self) -> usize {
        let size = |tensor: &Tensor<4>| tensor.shape().num_elements() * tensor.dtype().size();
        size(&self.keys) + size(&self.values)
    }

    /// The same cache on another device.
    pub fn to_device(self, device: &Device) -> Self {
        Self { keys: self.keys.to_device(device), values: self.values.to_device(device), ..self }
    }

    /// Old and new tokens one after the other; keys and values `[batch, time, kv_heads, head_dim]`.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn extended(self, keys: Tensor<4>, values: Tensor<4>) -> Self {
        let position = self.position + keys.dims()[1];
        if self.is_empty() {
            return Self { keys, values, position };
        }
        assert!(
            self.keys.dims()[0] == keys.dims()[0],
            "KvCache: the keys held {:?} and the new keys {:?} differ in batch",
            self.keys.dims(),
            keys.dims()
        );
        Self {
            keys: Tensor::cat(vec![self.keys, keys], 1),
            values: Tensor::cat(vec![self.values, values], 1),
            position,
        }
    }

    /// Only the last `count` tokens.
    pub fn last(self, count: usize) -> Self {
        let held = self.len();
        if held <= count {
            return self;
        }
        let cut = |tensor: Tensor<4>| {
            let [batch, _, heads, dim] = tensor.dims();
            match count {
                0 => Tensor::zeros([batch, 0, heads, dim], (&tensor.device(), tensor.dtype())),
                _ => tensor.narrow(1, held - count, count),
            }
        };
        Self { keys: cut(self.keys), values: cut(self.values), position: self.position }
    }
}
