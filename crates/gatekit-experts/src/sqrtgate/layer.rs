//! The layer.

use burn::module::Module;
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Tensor};
use gatekit_core::dispatch::DispatchPlan;
use gatekit_core::gate::power_mix;
use gatekit_core::moe::SwiGluExperts;
use gatekit_core::router::{BalanceLosses, CountNormalizer, Phase, Router, RouterInputs, Routing};

use super::config::SqrtGateConfig;

/// A mixture of experts whose output has the same power for any number of active experts.
///
/// ```text
/// z = logit_scale x W_r^T      the largest K of z, of equal ones the lower index      p = softmax over these K
/// y = sum_k sqrt(p_k) f_k(x)      f(x) = W_out (silu(a) * b), [a, b] = W_in x
/// with a shared expert: y = sqrt(1/2) (y + f_s(x))      with residual_depth L: x + y / sqrt(2 L)
/// ```
///
/// The squares of the gates sum to 1, so outputs of equal RMS that are nearly uncorrelated add up to that
/// RMS; with p itself for a gate the sum would shrink about as `1 / sqrt(K)`. Gates are computed as
/// `exp(log_softmax / 2)`, whose gradient stays finite where p underflows. Router and gates are in at least
/// float32. arXiv 2603.28743; the layout of the parameters is at [`SqrtGateConfig::tensor_layout`].
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Distribution, Tensor};
/// use gatekit_core::ModuleConfig;
/// use gatekit_experts::sqrtgate::SqrtGateConfig;
///
/// let device = Device::flex();
/// let layer = SqrtGateConfig::new(16).with_sparsity(4).with_top_k(4).init(&device);
/// let x = Tensor::<3>::random([2, 5, 16], Distribution::Normal(0.0, 1.0), &device);
/// let output = layer.forward(x);
/// assert_eq!(output.y.dims(), [2, 5, 16]);
/// assert_eq!(output.routing.weights.dims(), [10, 3]);
/// # }
/// ```
#[derive(Module, Debug)]
pub struct SqrtGateMoe {
    /// Scores the routed experts; its weight is `[E, D]`.
    pub router: Router,
    /// The routed experts.
    pub experts: SwiGluExperts,
    /// The expert of every token, a stack of one.
    pub shared: Option<SwiGluExperts>,
    #[module(skip)]
    pub(super) config: SqrtGateConfig,
}

/// What a [`SqrtGateMoe`] returns for N tokens.
#[derive(Debug, Clone)]
pub struct SqrtGateOutput<const A: usize> {
    /// `[.., D]`, with the residual if the layer has one.
    pub y: Tensor<A>,
    /// The experts of every token; its weights are the gates `[N, K]`, after the root.
    pub routing: Routing,
    /// `aux_gamma E sum_e P_e f_e`, `[1]`, to be added to the loss: mean probability times share of the
    /// slots of each expert. Over several devices or micro-batches it is [`global_balance`](super::global_balance)
    /// that counts.
    pub aux_loss: Tensor<1>,
    /// Mean of `logsumexp(z)^2`, `[1]`: watched, not minimised.
    pub router_z: Tensor<1>,
}

impl SqrtGateMoe {
    /// `x` `[.., D]` to `[.., D]`, with what the router decided and its losses.
    ///
    /// # Panics
    ///
    /// When `x` does not have D channels, and in debug builds for a NaN logit.
    pub fn forward<const A: usize>(&self, x: Tensor<A>) -> SqrtGateOutput<A> {
        let (dims, hidden) = (x.dims(), self.config.hidden_size);
        assert!(dims[A - 1] == hidden, "SqrtGateMoe: `x` {dims:?} does not have {hidden} channels");
        let tokens: usize = dims[..A - 1].iter().product();
        if tokens == 0 {
            let routing = self.route(Tensor::zeros([0, hidden], (&x.device(), x.dtype())));
            let losses = BalanceLosses::new(&routing, [0, 0], None, CountNormalizer::Assignments);
            return SqrtGateOutput { y: x, routing, aux_loss: losses.load_balance, router_z: losses.z_loss };
        }
        let rows = x.clone().reshape([tokens, hidden]);
        let routing = self.route(rows.clone());
        let losses = BalanceLosses::new(&routing, [1, tokens], None, CountNormalizer::Assignments);
        let y = self.mixed(rows, &routing).reshape(dims);
        let y = match self.config.residual_depth {
            0 => y,
            depth => x + y.div_scalar((2.0 * depth as f64).sqrt()),
        };
        let aux_loss = losses.load_balance.mul_scalar(self.config.aux_gamma);
        SqrtGateOutput { y, routing, aux_loss, router_z: losses.z_loss }
    }

    /// The experts of tokens `x` `[N, D]`, with their gates for weights.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn route(&self, x: Tensor<2>) -> Routing {
        let x = match self.config.logit_scale {
            1.0 => x,
            // Scaled before the projection, which is the same and leaves the router's logits as they are.
            scale => match x.dtype() {
                DType::F16 | DType::BF16 => x.cast(DType::F32).mul_scalar(scale),
                _ => x.mul_scalar(scale),
            },
        };
        let routing = self
            .router
            .route(x, &RouterInputs::default(), Phase::Inference)
            .expect("a learned router needs neither ids nor draws");
        match (&routing.logits, self.config.sqrt_gate) {
            (Some(logits), true) if logits.dims()[0] > 0 => {
                let kept = logits.clone().gather(1, routing.indices.clone());
                routing.map_weights(|_| log_softmax(kept, 1).mul_scalar(0.5).exp())
            }
            _ => routing,
        }
    }

    /// The experts' outputs, weighted and added up, with the shared expert's.
    fn mixed(&self, x: Tensor<2>, routing: &Routing) -> Tensor<2> {
        let plan = DispatchPlan::new(&routing.assignment);
        let y = self.experts.combine(x.clone(), &plan, routing.weights.clone());
        match &self.shared {
            None => y,
            Some(shared) => {
                let of_all = shared.forward_expert(x, 0);
                if self.config.sqrt_gate { power_mix(0.5, y, of_all) } else { y + of_all }
            }
        }
    }

    /// What the layer is made of.
    pub fn config(&self) -> &SqrtGateConfig {
        &self.config
    }
}
