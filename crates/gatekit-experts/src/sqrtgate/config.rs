//! What the layer is made of.

use burn::config::Config;
use burn::module::{Initializer, Param};
use burn::tensor::{Device, Tensor};
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::moe::SwiGluExperts;
use gatekit_core::router::{RouterConfig, RouterInitialisation, TopkOrder};
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};

use super::layer::SqrtGateMoe;

/// Configuration of [`SqrtGateMoe`].
///
/// There are `E = S K` experts of width `H = intermediate_size / K` (integer division). With a shared
/// expert one is taken out: `E - 1` routed experts, `K - 1` routed choices, and a shared one of width H.
/// Active parameters do not depend on K.
#[derive(Config, Debug)]
pub struct SqrtGateConfig {
    /// Channels D of input and output, at least 1.
    pub hidden_size: usize,
    /// Width of all active experts together. `None` (the default): `4 D`.
    #[config(default = "None")]
    pub intermediate_size: Option<usize>,
    /// Experts an active expert S, at least 1. Default 8.
    #[config(default = 8)]
    pub sparsity: usize,
    /// Active experts K, the granularity; at most `intermediate_size`. Default 8.
    #[config(default = 8)]
    pub top_k: usize,
    /// Whether one of the K is always active; needs K of 2 or more. Default true.
    #[config(default = true)]
    pub share_expert: bool,
    /// Whether gates are the roots of the probabilities and the shared expert is mixed at equal power;
    /// otherwise gates are the probabilities and the shared expert is added. Default true.
    #[config(default = true)]
    pub sqrt_gate: bool,
    /// Multiplies the router's logits, above 0. Default 1.
    #[config(default = 1.0)]
    pub logit_scale: f64,
    /// Weight of the balancing loss, at least 0; 0.1 (the default) on the sphere, 0.001 off it.
    #[config(default = 0.1)]
    pub aux_gamma: f64,
    /// Layers L of the model: the layer returns `x + y / sqrt(2 L)`. 0 (the default): it returns y.
    #[config(default = 0)]
    pub residual_depth: usize,
}

impl SqrtGateConfig {
    /// Width of all active experts together.
    pub fn active_width(&self) -> usize {
        self.intermediate_size.unwrap_or_else(|| self.hidden_size.saturating_mul(4))
    }

    /// Width H of an expert.
    pub fn expert_width(&self) -> usize {
        self.active_width() / self.top_k.max(1)
    }

    /// Routed experts, and how many of them are active for a token.
    pub fn routed(&self) -> [usize; 2] {
        let shared = usize::from(self.share_expert);
        let experts = self.sparsity.saturating_mul(self.top_k);
        [experts.saturating_sub(shared), self.top_k.saturating_sub(shared)]
    }

    /// Adds to `layout` what the released code calls the tensors of a layer whose names begin with `prefix`:
    /// `mods_in.weight` `[E, 2H, D]`, `mods_out.weight` `[E, D, H]`, `shared_mod_in.weight` `[2H, D]`,
    /// `shared_mod_out.weight` `[D, H]`, beside `router.weight` `[E, D]`.
    pub fn tensor_layout(&self, layout: TensorLayout, prefix: &str) -> TensorLayout {
        let (hidden, width) = (self.hidden_size, self.expert_width());
        layout
            .with_prefix(&format!("{prefix}experts.gate_up_proj"), &format!("{prefix}mods_in.weight"))
            .with_prefix(&format!("{prefix}experts.down_proj"), &format!("{prefix}mods_out.weight"))
            .with_prefix(&format!("{prefix}shared.gate_up_proj"), &format!("{prefix}shared_mod_in.weight"))
            .with_prefix(&format!("{prefix}shared.down_proj"), &format!("{prefix}shared_mod_out.weight"))
            .with_shape(&format!("{prefix}shared_mod_in.weight"), &[2 * width, hidden])
            .with_shape(&format!("{prefix}shared_mod_out.weight"), &[hidden, width])
    }

    fn check(&self) -> Result<(), ConfigError> {
        let (k, width) = (self.top_k, self.active_width());
        check_sizes(&[
            ("hidden_size", self.hidden_size),
            ("intermediate_size", width),
            ("sparsity", self.sparsity),
            ("top_k", k),
        ])?;
        if k > width {
            let need = format!("at most intermediate_size = {width}: every expert needs a channel");
            return Err(ConfigError::new("top_k", k, need));
        }
        if self.share_expert && k == 1 {
            let need = "false with top_k = 1: no routed expert would be left";
            return Err(ConfigError::new("share_expert", true, need));
        }
        if self.routed()[0] < 1 {
            let need = "an expert to route to: sparsity * top_k - 1 of at least 1";
            return Err(ConfigError::new("sparsity", self.sparsity, need));
        }
        if !(self.logit_scale > 0.0 && self.logit_scale.is_finite()) {
            return Err(ConfigError::new("logit_scale", self.logit_scale, "a finite number above 0"));
        }
        if !(self.aux_gamma >= 0.0 && self.aux_gamma.is_finite()) {
            return Err(ConfigError::new("aux_gamma", self.aux_gamma, "a finite number, at least 0"));
        }
        Ok(())
    }
}

impl ModuleConfig for SqrtGateConfig {
    type Module = SqrtGateMoe;

    /// Builds the layer. All weights start uniform within `1 / sqrt(fan in)`, so that a matrix has a norm of
    /// about `sqrt(out / 3)` whatever its width.
    fn try_init(&self, device: &Device) -> Result<SqrtGateMoe, ConfigError> {
        self.check()?;
        let [experts, active] = self.routed();
        let router = RouterConfig::new(self.hidden_size)
            .with_num_experts(experts)
            .with_num_experts_per_tok(active)
            .with_topk_order(TopkOrder::TopkThenScore)
            .with_initialisation(RouterInitialisation::Uniform)
            .try_init(device)
            .map_err(|error| ConfigError::new("sparsity", self.sparsity, error))?;
        Ok(SqrtGateMoe {
            router,
            experts: self.experts(experts, device),
            shared: self.share_expert.then(|| self.experts(1, device)),
            config: self.clone(),
        })
    }
}

impl SqrtGateConfig {
    fn experts(&self, experts: usize, device: &Device) -> SwiGluExperts {
        let (hidden, width) = (self.hidden_size, self.expert_width());
        let uniform = |shape: [usize; 3]| -> Param<Tensor<3>> {
            let bound = (shape[2] as f64).powf(-0.5);
            Initializer::Uniform { min: -bound, max: bound }.init(shape, device)
        };
        SwiGluExperts {
            gate_up_proj: uniform([experts, 2 * width, hidden]),
            down_proj: uniform([experts, hidden, width]),
        }
    }
}
