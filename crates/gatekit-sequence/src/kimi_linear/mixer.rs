//! What alternates in the stack: Kimi Delta Attention and latent attention.

use gatekit_core::attention::LatentAttention;
use gatekit_core::scan::ScanForm;

use super::layer::KimiDeltaAttention;
use crate::mixer_enum::mixer_enum;
use crate::recurrent::RecurrentMixer;

mixer_enum! {
    /// The token mixer of one layer. Parameters are named as in the layer itself.
    KimiMixer,
    /// The streaming state of a [`KimiMixer`].
    KimiLayerState as "kimi_linear",
    {
        /// A recurrence, with a state of constant size.
        Delta(KimiDeltaAttention) = "kimi_delta_attention",
        /// Softmax attention over every token so far, with a compressed cache.
        Latent(LatentAttention) = "latent_attention",
    }
}

impl KimiMixer {
    /// The same layer with another form of its scan; attention has none.
    pub fn with_scan_form(self, form: ScanForm) -> Self {
        match self {
            Self::Delta(layer) => Self::Delta(layer.with_scan_form(form)),
            Self::Latent(layer) => Self::Latent(layer),
        }
    }
}
