//! A mixture-of-experts layer that skips.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::moe::{MoeLayer, MoeLayerConfig};
use gatekit_core::router::{Phase, RouterInputs, Routing};
use gatekit_core::{ConfigError, InputError, ModuleConfig};

use super::{Bypass, ExpertSkipper, ExpertSkipperConfig, SkipDecision, TokenModalities};

/// Configuration of [`SkippingMoeLayer`].
#[derive(Config, Debug)]
pub struct SkippingMoeLayerConfig {
    /// The layer that is wrapped.
    pub moe: MoeLayerConfig,
    /// Slots of text tokens with a score below are skipped; at least 0. Default 0: none.
    #[config(default = 0.0)]
    pub threshold_text: f64,
    /// The same for vision tokens. Default 0: none.
    #[config(default = 0.0)]
    pub threshold_vision: f64,
    /// Whose routed experts are all off, for calibration. Default nobody's.
    #[config(default = "Bypass::None")]
    pub bypass: Bypass,
}

impl SkippingMoeLayerConfig {
    /// As [`MoeLayerConfig::tensor_layout`], for the names of a [`SkippingMoeLayer`] that begin with
    /// `prefix`: those of the wrapped layer, and `importance`.
    pub fn tensor_layout(&self, layout: TensorLayout, prefix: &str) -> TensorLayout {
        (self.moe.tensor_layout(layout, &format!("{prefix}layer.")))
            .with_prefix(&format!("{prefix}layer."), prefix)
            .with_prefix(&format!("{prefix}skipper."), prefix)
    }
}

impl ModuleConfig for SkippingMoeLayerConfig {
    type Module = SkippingMoeLayer;

    fn try_init(&self, device: &Device) -> Result<SkippingMoeLayer, ConfigError> {
        let skipper = ExpertSkipperConfig::new(self.moe.num_experts)
            .with_threshold_text(self.threshold_text)
            .with_threshold_vision(self.threshold_vision)
            .with_bypass(self.bypass);
        let layer = self.moe.try_init(device).map_err(|error| error.within("moe"))?;
        Ok(SkippingMoeLayer { layer, skipper: skipper.try_init(device)? })
    }
}

/// `y = sum over kept k of w_k f_k(x) + shared(x)`: a [`MoeLayer`] whose routing loses its skipped
/// slots before tokens are sorted by expert.
///
/// For inference, prefill and decoding alike: the router draws no noise and no expert overflows. To
/// train, use the [`layer`](Self::layer) inside.
#[derive(Module, Debug)]
pub struct SkippingMoeLayer {
    /// The layer that is wrapped.
    pub layer: MoeLayer,
    /// What it skips.
    pub skipper: ExpertSkipper,
}

/// What a pass through a [`SkippingMoeLayer`] yields.
#[derive(Debug, Clone)]
pub struct SkippedForward<const A: usize> {
    /// The result, of the shape of the input.
    pub y: Tensor<A>,
    /// What the router chose, nothing skipped yet.
    pub routing: Routing,
    /// What the thresholds say.
    pub decision: SkipDecision,
}

impl SkippingMoeLayer {
    /// Wraps a layer; skips nothing as long as no thresholds are set.
    pub fn new(layer: MoeLayer, device: &Device) -> Self {
        let skipper = ExpertSkipperConfig::new(layer.gate.num_experts()).init(device);
        Self { layer, skipper }
    }

    /// `[.., D]` to `[.., D]`; `modalities` has one entry a token of the flattened `x`.
    ///
    /// # Errors
    ///
    /// As [`forward_with`](Self::forward_with).
    ///
    /// # Panics
    ///
    /// When the last axis of `x` does not have D channels.
    pub fn forward<const A: usize>(
        &self,
        x: Tensor<A>,
        modalities: &TokenModalities,
    ) -> Result<Tensor<A>, InputError> {
        Ok(self.forward_with(x, modalities, &RouterInputs::default())?.y)
    }

    /// As [`forward`](Self::forward), with what was decided, and with what the router needs besides
    /// the tokens.
    ///
    /// # Errors
    ///
    /// [`InputError`] when `modalities` has another number of tokens than `x`, the importance is
    /// negative or not finite, or as [`Router::route`](gatekit_core::router::Router::route).
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_with<const A: usize>(
        &self,
        x: Tensor<A>,
        modalities: &TokenModalities,
        inputs: &RouterInputs,
    ) -> Result<SkippedForward<A>, InputError> {
        let dims = x.dims();
        let tokens: usize = dims[..A - 1].iter().product();
        let flat = match tokens {
            // A reshape would read the 0 as "this axis as it is".
            0 => Tensor::zeros([0, dims[A - 1]], (&x.device(), x.dtype())),
            _ => x.clone().reshape([tokens, dims[A - 1]]),
        };
        let routing = self.layer.gate.route(flat, inputs, Phase::Inference)?;
        let (pruned, decision) = self.skipper.prune(routing.clone(), modalities)?;
        Ok(SkippedForward { y: self.layer.forward_routed(x, &pruned), routing, decision })
    }
}
