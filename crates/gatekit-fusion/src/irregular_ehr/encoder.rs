//! Two streams that listen to one another in every layer.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Embedding, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use gatekit_core::attention::{PackedAttention, PackedAttentionConfig, Seen};
use gatekit_core::{ConfigError, ModuleConfig, check_sizes, init};

use super::config::check_dropout;

/// Configuration of [`InterleavedEncoder`].
#[derive(Config, Debug)]
pub struct InterleavedEncoderConfig {
    /// The longest stream Q. Default 48.
    #[config(default = 48)]
    pub grid: usize,
    /// Channels D of both streams, a multiple of `heads`. Default 128.
    #[config(default = 128)]
    pub d_model: usize,
    /// Heads of every attention. Default 8.
    #[config(default = 8)]
    pub heads: usize,
    /// Layers. Default 3.
    #[config(default = 3)]
    pub cross_layers: usize,
    /// Share that is dropped in training of the attention weights, the inner channels and what is added to a stream, in
    /// [0, 1). Default 0.1.
    #[config(default = 0.1)]
    pub dropout: f64,
}

impl InterleavedEncoderConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check_sizes(&[
            ("grid", self.grid),
            ("d_model", self.d_model),
            ("heads", self.heads),
            ("cross_layers", self.cross_layers),
        ])?;
        if !self.d_model.is_multiple_of(self.heads) {
            let need = format!("a multiple of heads = {}", self.heads);
            return Err(ConfigError::new("d_model", self.d_model, need));
        }
        check_dropout(self.dropout)
    }

    pub(super) fn attention(&self, device: &Device) -> Result<PackedAttention, ConfigError> {
        let config = PackedAttentionConfig::new(self.d_model, self.heads).with_dropout(self.dropout);
        config.try_init(device)
    }

    /// One for each stream.
    pub(super) fn norms(&self, device: &Device) -> Vec<LayerNorm> {
        (0..2).map(|_| LayerNormConfig::new(self.d_model).init(device)).collect()
    }

    pub(super) fn linears(&self, from: usize, to: usize, device: &Device) -> Vec<Linear> {
        (0..2).map(|_| LinearConfig::new(from, to).init(device)).collect()
    }

    /// `normal(0, 0.02)`.
    pub(super) fn positions(&self, device: &Device) -> Embedding {
        init::embedding(self.grid, self.d_model, device)
    }
}

impl ModuleConfig for InterleavedEncoderConfig {
    type Module = InterleavedEncoder;

    fn try_init(&self, device: &Device) -> Result<InterleavedEncoder, ConfigError> {
        self.check()?;
        let width = self.d_model;
        let layer = |_| {
            Ok(InterleavedLayer {
                self_attns: (0..2).map(|_| self.attention(device)).collect::<Result<_, ConfigError>>()?,
                cross_attn_1: self.attention(device)?,
                cross_attn_2: self.attention(device)?,
                pre_self_attn_layer_norm: self.norms(device),
                pre_encoder_attn_layer_norm: self.norms(device),
                pre_ffn_layer_norm: self.norms(device),
                fc1: self.linears(width, 4 * width, device),
                fc2: self.linears(4 * width, width, device),
                dropout: DropoutConfig::new(self.dropout).init(),
            })
        };
        Ok(InterleavedEncoder {
            embed_positions_q_1: self.positions(device),
            layers: (0..self.cross_layers).map(layer).collect::<Result<_, ConfigError>>()?,
            layer_norm: self.norms(device),
            dropout: DropoutConfig::new(self.dropout).init(),
        })
    }
}

/// A layer of both streams: stream 0 is the text, stream 1 the series.
#[derive(Module, Debug)]
pub struct InterleavedLayer {
    /// Of each stream to itself.
    pub self_attns: Vec<PackedAttention>,
    /// Of the text to the series.
    pub cross_attn_1: PackedAttention,
    /// Of the series to the text.
    pub cross_attn_2: PackedAttention,
    /// Before the self-attention of each stream.
    pub pre_self_attn_layer_norm: Vec<LayerNorm>,
    /// Before the cross-attention, of each stream.
    pub pre_encoder_attn_layer_norm: Vec<LayerNorm>,
    /// Before the feed-forward part of each stream.
    pub pre_ffn_layer_norm: Vec<LayerNorm>,
    /// `W_1` of each stream, `[D, 4 D]`.
    pub fc1: Vec<Linear>,
    /// `W_2` of each stream, `[4 D, D]`.
    pub fc2: Vec<Linear>,
    /// On the inner channels and on what is added, in training.
    pub dropout: Dropout,
}

impl InterleavedLayer {
    fn forward(&self, x: [Tensor<3>; 2]) -> [Tensor<3>; 2] {
        let add = |x: Tensor<3>, y: Tensor<3>| x + self.dropout.forward(y);
        let x = per_stream(x, |stream, x| {
            let y = attend_to_itself(&self.pre_self_attn_layer_norm[stream], &self.self_attns[stream], &x);
            add(x, y)
        });
        let n = per_stream(x.clone(), |stream, x| self.pre_encoder_attn_layer_norm[stream].forward(x));
        let cross = [&self.cross_attn_1, &self.cross_attn_2];
        let x = per_stream(x, |stream, x| {
            let heard = cross[stream].forward(n[stream].clone(), n[1 - stream].clone(), &Seen::all());
            add(x, heard)
        });
        per_stream(x, |stream, x| {
            let n = self.pre_ffn_layer_norm[stream].forward(x.clone());
            let inner = self.dropout.forward(relu(self.fc1[stream].forward(n)));
            add(x, self.fc2[stream].forward(inner))
        })
    }
}

/// The same to both streams.
pub(super) fn per_stream(
    x: [Tensor<3>; 2],
    mut work: impl FnMut(usize, Tensor<3>) -> Tensor<3>,
) -> [Tensor<3>; 2] {
    let [text, series] = x;
    [work(0, text), work(1, series)]
}

/// `SelfAttn(LN x)`.
pub(super) fn attend_to_itself(norm: &LayerNorm, attention: &PackedAttention, x: &Tensor<3>) -> Tensor<3> {
    let n = norm.forward(x.clone());
    attention.forward(n.clone(), n, &Seen::all())
}

/// `sqrt(D) x + P`, P the first rows of a table of positions.
pub(super) fn with_positions(positions: &Embedding, stream: usize, x: Tensor<3>) -> Tensor<3> {
    let [_, steps, width] = x.dims();
    let table = positions.weight.val();
    let [longest, channels] = table.dims();
    let name = ["text", "series"][stream];
    assert!(
        steps <= longest && width == channels,
        "`{name}` {:?} does not fit the table of positions [{longest}, {channels}]",
        x.dims()
    );
    x.mul_scalar((width as f64).sqrt()) + table.narrow(0, 0, steps).unsqueeze::<3>()
}

/// Interleaved fusion of the streams 0 (text) and 1 (series). First `x_m = sqrt(D) x_m + P`, then in every layer
/// `x_m += SelfAttn_m(LN x_m)`; `x_0 += Cross_1(LN' x_0, LN' x_1)` and `x_1 += Cross_2(LN' x_1, LN' x_0)`, both of the
/// values before; `x_m += W_2 relu(W_1 LN'' x_m)`. A last LN for each stream.
///
/// Attentions ([`PackedAttention`]) see everything. Attention maps start Xavier uniform with biases 0, positions
/// `normal(0, 0.02)`, the linear layers uniform within `1 / sqrt(fan in)`. Section 3.3 of the paper.
#[derive(Module, Debug)]
pub struct InterleavedEncoder {
    /// P, `[Q, D]`, of both streams.
    pub embed_positions_q_1: Embedding,
    /// The layers.
    pub layers: Vec<InterleavedLayer>,
    /// The last of each stream.
    pub layer_norm: Vec<LayerNorm>,
    /// On the sum of stream and positions, in training.
    pub dropout: Dropout,
}

impl InterleavedEncoder {
    /// `text` `[B, T, D]` and `series` `[B, S, D]`, neither longer than the table of positions, to the same shapes, in
    /// this order.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, text: Tensor<3>, series: Tensor<3>) -> [Tensor<3>; 2] {
        let x = per_stream([text, series], |stream, x| {
            self.dropout.forward(with_positions(&self.embed_positions_q_1, stream, x))
        });
        let x = self.layers.iter().fold(x, |x, layer| layer.forward(x));
        per_stream(x, |stream, x| self.layer_norm[stream].forward(x))
    }
}
