//! One layer: token mixer and channel mixer.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Bool, Device, Tensor};
use gatekit_core::glu::{SimpleGlu, SimpleGluConfig};
use gatekit_core::simple_rms_norm::{SimpleRmsNorm, SimpleRmsNormConfig};
use gatekit_core::{ConfigError, ModuleConfig};

use super::mixer::{NormLinearAttention, NormLinearAttentionConfig};
use super::state::NormLinearAttentionState;

/// Configuration of [`TransNormerLayer`].
#[derive(Config, Debug)]
pub struct TransNormerLayerConfig {
    /// The token mixer; its width, biases and epsilon are those of the layer.
    pub token_mixer: NormLinearAttentionConfig,
    /// Inner width of the channel mixer.
    pub glu_dim: usize,
}

impl ModuleConfig for TransNormerLayerConfig {
    type Module = TransNormerLayer;

    fn try_init(&self, device: &Device) -> Result<TransNormerLayer, ConfigError> {
        let mixer = &self.token_mixer;
        if self.glu_dim == 0 {
            return Err(ConfigError::new("glu_dim", 0, "at least 1"));
        }
        // The mixer refuses an epsilon that is no positive number, and a width of 0.
        let token_mixer = mixer.try_init(device)?;
        let norm = SimpleRmsNormConfig::new().with_eps(mixer.norm_eps).try_init(device)?;
        let channel_mixer =
            SimpleGluConfig::new(mixer.embed_dim, self.glu_dim).with_bias(mixer.bias).try_init(device)?;
        Ok(TransNormerLayer { token_norm: norm.clone(), token_mixer, channel_norm: norm, channel_mixer })
    }
}

/// `x = x + mixer(SRMSNorm(x))`, then `x = x + SGLU(SRMSNorm(x))`.
///
/// Qin et al. (arXiv 2307.14995), eq. 14.
#[derive(Module, Debug)]
pub struct TransNormerLayer {
    /// Norm before the token mixer; it has no parameters.
    pub token_norm: SimpleRmsNorm,
    /// The token mixer.
    pub token_mixer: NormLinearAttention,
    /// Norm before the channel mixer.
    pub channel_norm: SimpleRmsNorm,
    /// The channel mixer.
    pub channel_mixer: SimpleGlu,
}

impl TransNormerLayer {
    /// A whole batch `[batch, time, D]`, continued from a state if there is one; shapes and panics
    /// as [`NormLinearAttention::forward_with_state`].
    pub fn forward_with_state(
        &self,
        x: Tensor<3>,
        padding_mask: Option<Tensor<2, Bool>>,
        initial_state: Option<NormLinearAttentionState>,
    ) -> (Tensor<3>, NormLinearAttentionState) {
        let normed = self.token_norm.forward(x.clone());
        let (mixed, state) = self.token_mixer.forward_with_state(normed, padding_mask, initial_state);
        (self.mix_channels(x + mixed), state)
    }

    /// Continues by one token: `x` and the output are `[batch, D]`. Panics as
    /// [`NormLinearAttention::step`].
    pub fn step(
        &self,
        x: Tensor<2>,
        state: NormLinearAttentionState,
    ) -> (Tensor<2>, NormLinearAttentionState) {
        let (mixed, state) = self.token_mixer.step(self.token_norm.forward(x.clone()), state);
        (self.mix_channels(x + mixed), state)
    }

    fn mix_channels<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        x.clone() + self.channel_mixer.forward(self.channel_norm.forward(x))
    }
}
