//! All layers behind one type, and the model made of them.

use burn::config::Config;
use burn::tensor::Device;
use gatekit_core::attention::{CausalAttention, CausalAttentionConfig};
use gatekit_core::scan::ScanForm;
use gatekit_core::{ConfigError, ModuleConfig};

use super::delta_net::{DeltaNet, DeltaNetConfig};
use super::gated_deltanet::{GatedDeltaNet, GatedDeltaNetConfig};
use super::hgrn::{Hgrn, HgrnConfig};
use super::hgrn2::{Hgrn2, Hgrn2Config};
use super::retention::{Retention, RetentionConfig};
use crate::backbone::{CausalModel, ModelState};
use crate::gla::{GatedLinearAttention, GatedLinearAttentionConfig};
use crate::mixer_enum::mixer_enum;
use crate::recurrent::RecurrentMixer;

mixer_enum! {
    /// Any layer of a hybrid stack. Parameters are named as in the layer itself.
    HybridMixer,
    /// The streaming state of a [`HybridMixer`].
    HybridLayerState as "hybrid_linear_attention",
    {
        /// RetNet.
        Retention(Retention) = "retnet",
        /// HGRN.
        Hgrn(Hgrn) = "hgrn",
        /// HGRN2.
        Hgrn2(Hgrn2) = "hgrn2",
        /// DeltaNet.
        DeltaNet(DeltaNet) = "delta_net",
        /// Gated DeltaNet.
        GatedDeltaNet(GatedDeltaNet) = "gated_deltanet",
        /// Gated linear attention.
        GatedLinearAttention(GatedLinearAttention) = "gla",
        /// Softmax attention.
        Attention(CausalAttention) = "attention",
    }
}

/// The language model of linear attention layers, alone or mixed with full attention.
pub type HybridForCausalLm = CausalModel<HybridMixer>;

/// Its streaming state: of constant size in all but the attention layers.
pub type HybridState = ModelState<HybridLayerState>;

impl HybridMixer {
    /// The same layer with another form of its scan; attention has none.
    pub fn with_scan_form(self, form: ScanForm) -> Self {
        match self {
            Self::Retention(layer) => Self::Retention(layer.with_scan_form(form)),
            Self::Hgrn(layer) => Self::Hgrn(layer.with_scan_form(form)),
            Self::Hgrn2(layer) => Self::Hgrn2(layer.with_scan_form(form)),
            Self::DeltaNet(layer) => Self::DeltaNet(layer.with_scan_form(form)),
            Self::GatedDeltaNet(layer) => Self::GatedDeltaNet(layer.with_scan_form(form)),
            Self::GatedLinearAttention(layer) => Self::GatedLinearAttention(layer.with_scan_form(form)),
            Self::Attention(layer) => Self::Attention(layer),
        }
    }
}

impl HybridForCausalLm {
    /// The same model with another form of the scan in every layer. All compute the same function;
    /// a new model has [`ScanForm::Auto`], the fastest on its device.
    pub fn with_scan_form(mut self, form: ScanForm) -> Self {
        for block in &mut self.model.layers {
            block.attn = block.attn.clone().with_scan_form(form);
        }
        self
    }
}

/// Configuration of a [`HybridMixer`].
#[derive(Config, Debug)]
pub enum HybridMixerConfig {
    /// RetNet.
    Retention(RetentionConfig),
    /// HGRN.
    Hgrn(HgrnConfig),
    /// HGRN2.
    Hgrn2(Hgrn2Config),
    /// DeltaNet.
    DeltaNet(DeltaNetConfig),
    /// Gated DeltaNet.
    GatedDeltaNet(GatedDeltaNetConfig),
    /// Gated linear attention.
    GatedLinearAttention(GatedLinearAttentionConfig),
    /// Softmax attention.
    Attention(CausalAttentionConfig),
}

macro_rules! from_layer_config {
    ($($variant:ident($config:ident),)+) => {
        $(impl From<$config> for HybridMixerConfig {
            fn from(config: $config) -> Self {
                Self::$variant(config)
            }
        })+
    };
}

from_layer_config! {
    Retention(RetentionConfig),
    Hgrn(HgrnConfig),
    Hgrn2(Hgrn2Config),
    DeltaNet(DeltaNetConfig),
    GatedDeltaNet(GatedDeltaNetConfig),
    GatedLinearAttention(GatedLinearAttentionConfig),
    Attention(CausalAttentionConfig),
}

impl HybridMixerConfig {
    /// The layer of this name with its defaults: `retnet`, `hgrn`, `hgrn2`, `delta_net`,
    /// `gated_deltanet`, `gla`, or `attention` with heads of 64 channels.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for another name.
    pub fn named(mixer: &str, hidden_size: usize) -> Result<Self, ConfigError> {
        Ok(match mixer {
            "retnet" => RetentionConfig::new(hidden_size).into(),
            "hgrn" => HgrnConfig::new(hidden_size).into(),
            "hgrn2" => Hgrn2Config::new(hidden_size).into(),
            "delta_net" => DeltaNetConfig::new(hidden_size).into(),
            "gated_deltanet" => GatedDeltaNetConfig::new(hidden_size).into(),
            "gla" => GatedLinearAttentionConfig::new(hidden_size).into(),
            "attention" => CausalAttentionConfig::new(hidden_size, (hidden_size / 64).max(1)).into(),
            other => {
                let need = "retnet, hgrn, hgrn2, delta_net, gated_deltanet, gla or attention";
                return Err(ConfigError::new("mixer", other, need));
            }
        })
    }

    /// Width of input and output.
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Retention(config) => config.hidden_size,
            Self::Hgrn(config) => config.hidden_size,
            Self::Hgrn2(config) => config.hidden_size,
            Self::DeltaNet(config) => config.hidden_size,
            Self::GatedDeltaNet(config) => config.hidden_size,
            Self::GatedLinearAttention(config) => config.hidden_size,
            Self::Attention(config) => config.hidden_size,
        }
    }

    /// The same layer with this epsilon in its norm; HGRN2 keeps its own, attention has none.
    pub(super) fn with_eps(mut self, eps: f64) -> Self {
        match &mut self {
            Self::Retention(config) => config.norm_eps = eps,
            Self::Hgrn(config) => config.norm_eps = eps,
            Self::DeltaNet(config) => config.norm_eps = eps,
            Self::GatedDeltaNet(config) => config.norm_eps = eps,
            Self::GatedLinearAttention(config) => config.norm_eps = eps,
            Self::Hgrn2(_) | Self::Attention(_) => {}
        }
        self
    }

    /// Channels of the forget gates' floor, for the layers that take one.
    pub(super) fn floor_channels(&self) -> Result<Option<usize>, ConfigError> {
        match self {
            Self::Hgrn(config) => config.channels().map(Some),
            Self::Hgrn2(config) => Ok(Some(config.hidden_size)),
            _ => Ok(None),
        }
    }
}

impl ModuleConfig for HybridMixerConfig {
    type Module = HybridMixer;

    fn try_init(&self, device: &Device) -> Result<HybridMixer, ConfigError> {
        match self {
            Self::Retention(config) => config.try_init(device).map(HybridMixer::Retention),
            Self::Hgrn(config) => config.try_init(device).map(HybridMixer::Hgrn),
            Self::Hgrn2(config) => config.try_init(device).map(HybridMixer::Hgrn2),
            Self::DeltaNet(config) => config.try_init(device).map(HybridMixer::DeltaNet),
            Self::GatedDeltaNet(config) => config.try_init(device).map(HybridMixer::GatedDeltaNet),
            Self::GatedLinearAttention(config) => {
                config.try_init(device).map(HybridMixer::GatedLinearAttention)
            }
            Self::Attention(config) => config.try_init(device).map(HybridMixer::Attention),
        }
    }
}
