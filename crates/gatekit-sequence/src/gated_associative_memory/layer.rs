//! One block: token mixer and feed-forward layer, each after a layer norm.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig};
use burn::tensor::{Device, Tensor};
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::mlp::{Mlp, MlpConfig};
use gatekit_core::sequence::Boundaries;
use gatekit_core::{ConfigError, ModuleConfig};

use super::mixer::{GamMixer, GamMixerConfig};

/// The feed-forward layer is this many times as wide as the block.
const EXPANSION: usize = 4;

/// Configuration of [`GamBlock`].
#[derive(Config, Debug)]
pub struct GamBlockConfig {
    /// The token mixer, whose width is the block's.
    pub mixer: GamMixerConfig,
    /// Share of the feed-forward layer's output that is dropped in training, in [0, 1).
    #[config(default = 0.1)]
    pub dropout: f64,
}

impl ModuleConfig for GamBlockConfig {
    type Module = GamBlock;

    fn try_init(&self, device: &Device) -> Result<GamBlock, ConfigError> {
        let width = self.mixer.embed_dim;
        let mixer = self.mixer.try_init(device)?;
        let inner = width.checked_mul(EXPANSION).ok_or_else(|| {
            ConfigError::new("embed_dim", width, format!("a size of which {EXPANSION} fit"))
        })?;
        let norm = || LayerNormConfig::new(width).init(device);
        Ok(GamBlock {
            ln1: norm(),
            mixer,
            ln2: norm(),
            ffn: MlpConfig::new(width, inner).with_dropout(self.dropout).try_init(device)?,
        })
    }
}

/// `x = x + mixer(LN(x))`, then `x = x + dropout(W_2 gelu(W_1 LN(x) + b_1) + b_2)`.
///
/// Layer norms have weight, bias and an epsilon of 1e-5; the feed-forward layer is four times as
/// wide, its GELU exact. Acharya (arXiv 2509.00605), section 3.4.
#[derive(Module, Debug)]
pub struct GamBlock {
    /// Norm before the mixer.
    pub ln1: LayerNorm,
    /// The token mixer.
    pub mixer: GamMixer,
    /// Norm before the feed-forward layer.
    pub ln2: LayerNorm,
    /// The feed-forward layer.
    pub ffn: Mlp,
}

impl GamBlock {
    /// Whole sequences; shapes and panics as [`GamMixer::forward`], whose history this passes on.
    pub fn forward(
        &self,
        x: Tensor<3>,
        boundaries: Option<&Boundaries>,
        history: Option<Tensor<3>>,
    ) -> (Tensor<3>, Tensor<3>) {
        let (mixed, history) = self.mixer.forward(self.ln1.forward(x.clone()), boundaries, history);
        (self.feed_forward(x + mixed), history)
    }

    /// One step: `x` and the output are `[batch, C]`. Panics as [`GamMixer::step`].
    pub fn step(&self, x: Tensor<2>, history: Tensor<3>) -> (Tensor<2>, Tensor<3>) {
        let (mixed, history) = self.mixer.step(self.ln1.forward(x.clone()), history);
        (self.feed_forward(x + mixed), history)
    }

    fn feed_forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        x.clone() + self.ffn.forward(self.ln2.forward(x))
    }

    /// What the published files call the tensors of a block whose names begin with `prefix`
    /// (`blocks.{}.`): those of the mixer stand in the block itself, gates and memory have no
    /// module of their own, and the feed-forward layer is a list.
    pub fn layout(prefix: &str) -> TensorLayout {
        let named = |name: &str| format!("{prefix}{name}");
        [
            ("mixer.", ""),
            ("fusion.gate.", "gate."),
            ("memory_bank.weight", "memory_bank"),
            ("ffn.up.", "ffn.0."),
            ("ffn.down.", "ffn.2."),
        ]
        .into_iter()
        .fold(TensorLayout::default(), |layout, (module, published)| {
            layout.with_prefix(&named(module), &named(published))
        })
    }
}
