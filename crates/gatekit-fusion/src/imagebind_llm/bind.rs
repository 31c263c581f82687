//! The bind network: residual gated feed-forward blocks behind a projection.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::feed_forward::SwiGlu;
use gatekit_core::norm::{RmsNorm, RmsNormConfig};
use gatekit_core::{ConfigError, InputError, ModuleConfig, check_sizes};

use super::layout;

/// Epsilon of the blocks' RMS norms, whatever the language model's is.
const RMS_EPS: f64 = 1e-6;
/// Epsilon of the blocks' layer norms.
const LAYER_NORM_EPS: f64 = 1e-5;

/// Configuration of [`BindNetwork`].
#[derive(Config, Debug)]
pub struct BindNetworkConfig {
    /// Channels M of the joint embedding; 1024 for ImageBind.
    pub modality_dim: usize,
    /// Channels D of the language model; 4096 for LLaMA 7B.
    pub d_model: usize,
    /// Inner channels of a block. `None` (the default): 4 D.
    #[config(default = "None")]
    pub bind_hidden: Option<usize>,
    /// Blocks, at least 1. Default 3.
    #[config(default = 3)]
    pub bind_blocks: usize,
    /// Layer norms and biases in the blocks instead of RMS norms without. Default false.
    #[config(default = false)]
    pub legacy_bridge: bool,
}

impl BindNetworkConfig {
    /// What the published files call the tensors.
    pub fn tensor_layout(&self) -> TensorLayout {
        layout::of_bind_network(TensorLayout::default(), "", self.bind_blocks)
    }

    fn block(&self, hidden: usize, device: &Device) -> Result<BindBlock, ConfigError> {
        let (dim, bias) = (self.d_model, self.legacy_bridge);
        let norm = match self.legacy_bridge {
            true => BindNorm::Layer(LayerNormConfig::new(dim).with_epsilon(LAYER_NORM_EPS).init(device)),
            false => BindNorm::Rms(RmsNormConfig::new(dim).with_eps(RMS_EPS).try_init(device)?),
        };
        let linear = |from, to| LinearConfig::new(from, to).with_bias(bias).init(device);
        let feed_forward = SwiGlu {
            gate_proj: linear(dim, hidden),
            up_proj: linear(dim, hidden),
            down_proj: linear(hidden, dim),
        };
        Ok(BindBlock { norm, feed_forward })
    }
}

impl ModuleConfig for BindNetworkConfig {
    type Module = BindNetwork;

    fn try_init(&self, device: &Device) -> Result<BindNetwork, ConfigError> {
        check_sizes(&[
            ("modality_dim", self.modality_dim),
            ("d_model", self.d_model),
            ("bind_blocks", self.bind_blocks),
        ])?;
        let hidden = self.bind_hidden.unwrap_or(4 * self.d_model);
        check_sizes(&[("bind_hidden", hidden)])?;
        Ok(BindNetwork {
            proj: LinearConfig::new(self.modality_dim, self.d_model).init(device),
            blocks: (0..self.bind_blocks).map(|_| self.block(hidden, device)).collect::<Result<_, _>>()?,
        })
    }
}

/// `h = W_0 x + b_0`, then for every block `h <- h + F2(silu(F1 n) * F3 n)` with `n = norm(h)`.
///
/// Weights start as in a linear layer of PyTorch, uniform within `1 / sqrt(inputs)`; norms at 1. Paper, section 3.2.
#[derive(Module, Debug)]
pub struct BindNetwork {
    /// `W_0` and `b_0`, `[M, D]`.
    pub proj: Linear,
    /// The blocks, first to last.
    pub blocks: Vec<BindBlock>,
}

impl BindNetwork {
    /// Joint embeddings `[B, M]` to vectors of the language model's width, `[B, 1, D]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for features of another width than M.
    pub fn forward(&self, feats: Tensor<2>) -> Result<Tensor<3>, InputError> {
        let ([batch, width], [need, _]) = (feats.dims(), self.proj.weight.shape().dims());
        if width != need || batch == 0 {
            let got = format!("shape {:?}", feats.dims());
            return Err(InputError::new("feats", got, format!("[batch, {need}] with at least one row")));
        }
        let h = self.proj.forward(feats);
        Ok(self.blocks.iter().fold(h, |h, block| block.forward(h)).unsqueeze_dim(1))
    }
}

/// A residual gated feed-forward block of [`BindNetwork`].
#[derive(Module, Debug)]
pub struct BindBlock {
    /// The norm before it.
    pub norm: BindNorm,
    /// `F1` (gate), `F3` (up) and `F2` (down).
    pub feed_forward: SwiGlu,
}

impl BindBlock {
    /// `h + F2(silu(F1 n) * F3 n)` with `n = norm(h)`; `[B, D]` to `[B, D]`.
    ///
    /// # Panics
    ///
    /// For another width than D.
    pub fn forward(&self, h: Tensor<2>) -> Tensor<2> {
        let n = match &self.norm {
            BindNorm::Rms(norm) => norm.forward(h.clone()),
            BindNorm::Layer(norm) => norm.forward(h.clone()),
        };
        h + self.feed_forward.forward(n)
    }
}

/// The norm of a block.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum BindNorm {
    /// `h / sqrt(mean(h^2) + 1e-6) * weight`.
    Rms(RmsNorm),
    /// `(h - mean) / sqrt(variance + 1e-5) * weight + bias`: the legacy bridge.
    Layer(LayerNorm),
}
