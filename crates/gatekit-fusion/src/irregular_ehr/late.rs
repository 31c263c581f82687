//! What interleaved fusion is compared with.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Embedding, LayerNorm, Linear};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use gatekit_core::ConfigError;
use gatekit_core::attention::PackedAttention;

use super::encoder::{
    InterleavedEncoder, InterleavedEncoderConfig, attend_to_itself, per_stream, with_positions,
};

/// Layers of two streams that do not hear of one another: self-attention and a feed-forward part of inner width 6 D, so
/// that there are as many weights as in an interleaved layer, where the inner width is 4 D.
#[derive(Module, Debug)]
pub struct LateFusionEncoder {
    /// Positions of both streams.
    pub positions: Embedding,
    /// The layers.
    pub layers: Vec<SeparateLayer>,
    /// The last of each stream.
    pub layer_norm: Vec<LayerNorm>,
    /// On the sum of stream and positions, in training.
    pub dropout: Dropout,
}

/// A layer of both streams.
#[derive(Module, Debug)]
pub struct SeparateLayer {
    /// Of each stream to itself.
    pub attention: Vec<PackedAttention>,
    /// Before the attention of each stream.
    pub attention_norm: Vec<LayerNorm>,
    /// Before the feed-forward part of each stream.
    pub inner_norm: Vec<LayerNorm>,
    /// Of each stream, `[D, 6 D]`.
    pub fc1: Vec<Linear>,
    /// Of each stream, `[6 D, D]`.
    pub fc2: Vec<Linear>,
    /// On the inner channels and on what is added, in training.
    pub dropout: Dropout,
}

impl LateFusionEncoder {
    /// With the widths of `config`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field.
    pub fn new(config: &InterleavedEncoderConfig, device: &Device) -> Result<Self, ConfigError> {
        config.check()?;
        let width = config.d_model;
        let dropout = || DropoutConfig::new(config.dropout).init();
        let layer = |_| {
            Ok(SeparateLayer {
                attention: (0..2).map(|_| config.attention(device)).collect::<Result<_, ConfigError>>()?,
                attention_norm: config.norms(device),
                inner_norm: config.norms(device),
                fc1: config.linears(width, 6 * width, device),
                fc2: config.linears(6 * width, width, device),
                dropout: dropout(),
            })
        };
        Ok(Self {
            positions: config.positions(device),
            layers: (0..config.cross_layers).map(layer).collect::<Result<_, ConfigError>>()?,
            layer_norm: config.norms(device),
            dropout: dropout(),
        })
    }

    /// As [`InterleavedEncoder::forward`].
    ///
    /// # Panics
    ///
    /// As there.
    pub fn forward(&self, text: Tensor<3>, series: Tensor<3>) -> [Tensor<3>; 2] {
        let x = per_stream([text, series], |stream, x| {
            self.dropout.forward(with_positions(&self.positions, stream, x))
        });
        let x = self.layers.iter().fold(x, |x, layer| {
            per_stream(x, |stream, x| {
                let heard = attend_to_itself(&layer.attention_norm[stream], &layer.attention[stream], &x);
                let x = x + layer.dropout.forward(heard);
                let n = layer.inner_norm[stream].forward(x.clone());
                let inner = layer.dropout.forward(relu(layer.fc1[stream].forward(n)));
                x + layer.dropout.forward(layer.fc2[stream].forward(inner))
            })
        });
        per_stream(x, |stream, x| self.layer_norm[stream].forward(x))
    }
}

/// A fusion of either kind; the variants leave no trace in parameter names.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // There is one a model.
pub enum StreamEncoder {
    /// As published.
    Interleaved(InterleavedEncoder),
    /// Joined at the end.
    Late(LateFusionEncoder),
}

impl StreamEncoder {
    /// As [`InterleavedEncoder::forward`].
    ///
    /// # Panics
    ///
    /// As there.
    pub fn forward(&self, text: Tensor<3>, series: Tensor<3>) -> [Tensor<3>; 2] {
        match self {
            Self::Interleaved(encoder) => encoder.forward(text, series),
            Self::Late(encoder) => encoder.forward(text, series),
        }
    }
}
