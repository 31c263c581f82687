//! From one sensor's sequence to another's, or within one.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, LayerNorm, LayerNormConfig, Linear};
use burn::tensor::activation::relu;
use burn::tensor::{Bool, Device, Tensor};
use gatekit_core::attention::{PackedAttention, PackedAttentionConfig, Seen};
use gatekit_core::cross_modal::zero_masked;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};

use super::{check_shares, linear};

/// Configuration of [`CrossModalEncoder`].
#[derive(Config, Debug)]
pub struct CrossModalEncoderConfig {
    /// Channels d, a multiple of `num_heads`.
    pub dim: usize,
    /// Heads. Default 4.
    #[config(default = 4)]
    pub num_heads: usize,
    /// Layers, at least 1. Default 3.
    #[config(default = 3)]
    pub layers: usize,
    /// Query i sees the keys up to i + |S - T| alone. Default false.
    #[config(default = false)]
    pub attn_mask: bool,
    /// Share of the attention weights that is dropped in training. Default 0.1.
    #[config(default = 0.1)]
    pub attn_dropout: f64,
    /// The same behind the ReLU. Default 0.1.
    #[config(default = 0.1)]
    pub relu_dropout: f64,
    /// The same on what a sublayer adds. Default 0.1.
    #[config(default = 0.1)]
    pub res_dropout: f64,
}

impl ModuleConfig for CrossModalEncoderConfig {
    type Module = CrossModalEncoder;

    fn try_init(&self, device: &Device) -> Result<CrossModalEncoder, ConfigError> {
        let (dim, heads) = (self.dim, self.num_heads);
        check_sizes(&[("dim", dim), ("num_heads", heads), ("layers", self.layers)])?;
        if !dim.is_multiple_of(heads) {
            return Err(ConfigError::new("num_heads", heads, format!("a divisor of dim = {dim}")));
        }
        check_shares(&[
            ("attn_dropout", self.attn_dropout),
            ("relu_dropout", self.relu_dropout),
            ("res_dropout", self.res_dropout),
        ])?;
        let norm = || LayerNormConfig::new(dim).init(device);
        let layer = |_| {
            let attention = PackedAttentionConfig::new(dim, heads).with_dropout(self.attn_dropout);
            Ok(EncoderLayer {
                self_attn: attention.try_init(device)?,
                fc1: linear(dim, 4 * dim, 0.0, device),
                fc2: linear(4 * dim, dim, 0.0, device),
                layer_norms: vec![norm(), norm()],
                relu_dropout: DropoutConfig::new(self.relu_dropout).init(),
                res_dropout: DropoutConfig::new(self.res_dropout).init(),
            })
        };
        Ok(CrossModalEncoder {
            layers: (0..self.layers).map(layer).collect::<Result<_, ConfigError>>()?,
            layer_norm: norm(),
            attn_mask: self.attn_mask,
        })
    }
}

/// What an encoder's queries read from.
#[derive(Debug, Clone)]
pub struct Source {
    /// `[B, S, d]`.
    pub features: Tensor<3>,
    /// `[B, S]`, true for a real step; `None`: all are.
    pub mask: Option<Tensor<2, Bool>>,
}

/// `h += MHA(LN1 h, LN1 s, LN1 s)`, `h += W2 relu(W1 LN2 h)`, four times as wide inside.
#[derive(Module, Debug)]
pub struct EncoderLayer {
    /// From h to the source.
    pub self_attn: PackedAttention,
    /// `W1`, `[d, 4 d]`.
    pub fc1: Linear,
    /// `W2`, `[4 d, d]`.
    pub fc2: Linear,
    /// `LN1` (of h and of the source) and `LN2`.
    pub layer_norms: Vec<LayerNorm>,
    /// Behind the ReLU.
    pub relu_dropout: Dropout,
    /// On what is added.
    pub res_dropout: Dropout,
}

impl EncoderLayer {
    /// `source` `None`: h itself.
    fn forward(&self, h: Tensor<3>, source: Option<&Tensor<3>>, seen: &Seen) -> Tensor<3> {
        let queries = self.layer_norms[0].forward(h.clone());
        let memory = match source {
            Some(source) => self.layer_norms[0].forward(source.clone()),
            None => queries.clone(),
        };
        let h = h + self.res_dropout.forward(self.self_attn.forward(queries, memory, seen));
        let inner = relu(self.fc1.forward(self.layer_norms[1].forward(h.clone())));
        let update = self.fc2.forward(self.relu_dropout.forward(inner));
        h + self.res_dropout.forward(update)
    }
}

/// Pre-norm encoder whose queries are one modality and whose keys and values another, or itself.
///
/// The source is read by every layer as it is, under the layer's first norm; a query without any valid key adds exactly
/// 0 (bias included). A last norm follows; results at masked steps are 0. Weights start Xavier uniform, biases 0.
/// Tsai et al., "Multimodal Transformer for Unaligned Multimodal Language Sequences" (arXiv 1906.00295), eq. 4, and
/// its released code (ReLU, norms).
#[derive(Module, Debug)]
pub struct CrossModalEncoder {
    /// The layers.
    pub layers: Vec<EncoderLayer>,
    /// After the last.
    pub layer_norm: LayerNorm,
    attn_mask: bool,
}

impl CrossModalEncoder {
    /// `x` `[B, T, d]` (positions added already) reads from `source`, `None` for itself; to `[B, T, d]`, 0 where
    /// `x_mask` `[B, T]` is false (`None`: nowhere). What masks hide may be anything.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward(
        &self,
        x: Tensor<3>,
        x_mask: Option<&Tensor<2, Bool>>,
        source: Option<Source>,
    ) -> Tensor<3> {
        let cleared = |x, mask: Option<&Tensor<2, Bool>>| match mask {
            Some(mask) => zero_masked(x, mask),
            None => x,
        };
        let x = cleared(x, x_mask);
        let keys = source.as_ref().map_or(x_mask, |source| source.mask.as_ref());
        let steps = source.as_ref().map_or(x.dims()[1], |source| source.features.dims()[1]);
        let seen = Seen {
            padding: keys.map(|mask| mask.clone().bool_not()),
            ahead: self.attn_mask.then(|| steps.abs_diff(x.dims()[1])),
        };
        let source = source.as_ref().map(|source| cleared(source.features.clone(), source.mask.as_ref()));
        let h = self.layers.iter().fold(x, |h, layer| layer.forward(h, source.as_ref(), &seen));
        cleared(self.layer_norm.forward(h), x_mask)
    }
}
