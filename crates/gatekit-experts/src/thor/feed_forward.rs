//! The experts, and the feed-forward layer that has them or has not.

use burn::config::Config;
use burn::module::{Initializer, Module};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use gatekit_core::dispatch::{DispatchPlan, GroupedLinear};
use gatekit_core::router::Assignment;
use gatekit_core::{ConfigError, InputError, ModuleConfig, check_sizes};

use super::assignment::ExpertAssignment;

/// Configuration of [`StochasticFfn`].
#[derive(Config, Debug)]
pub struct StochasticExpertsConfig {
    /// Channels D of input and output, at least 1.
    pub embed_dim: usize,
    /// Channels H in between, at least 1.
    pub ffn_dim: usize,
    /// Experts E, at least 1; 2 in the released script.
    #[config(default = 2)]
    pub num_experts: usize,
}

impl ModuleConfig for StochasticExpertsConfig {
    type Module = StochasticFfn;

    fn try_init(&self, device: &Device) -> Result<StochasticFfn, ConfigError> {
        let (dim, inner, experts) = (self.embed_dim, self.ffn_dim, self.num_experts);
        check_sizes(&[("embed_dim", dim), ("ffn_dim", inner), ("num_experts", experts)])?;
        // Every expert draws values of its own, in the bounds of its own two widths.
        let linear = |from, to| {
            let xavier = Initializer::XavierUniform { gain: 1.0 };
            GroupedLinear {
                weight: xavier.init_with([experts, to, from], Some(from), Some(to), device),
                bias: Some(Initializer::Zeros.init([experts, to], device)),
            }
        };
        Ok(StochasticFfn { fc1: linear(dim, inner), fc2: linear(inner, dim), num_experts: experts })
    }
}

/// `y_{b,t} = f_{e(b,t)}(x_{b,t})` with `f_e(u) = W2_e relu(W1_e u + b1_e) + b2_e`: feed-forward experts,
/// one a token, with weight 1, named by the caller.
///
/// Only the experts that an assignment names are computed; the others get no gradient (zeros, as they are
/// stacked). Weights start Xavier uniform, biases 0. Published checkpoints keep one tensor an expert,
/// `fc1.{e}.weight` and so on; see [`ThorConfig`](super::ThorConfig) for the layout.
#[derive(Module, Debug)]
pub struct StochasticFfn {
    /// First projections, `[E, H, D]`, biases `[E, H]`.
    pub fc1: GroupedLinear,
    /// Second projections, `[E, D, H]`, biases `[E, D]`.
    pub fc2: GroupedLinear,
    num_experts: usize,
}

impl StochasticFfn {
    /// `x` `[batch, time, D]` to `[batch, time, D]`, every token through its expert.
    ///
    /// # Errors
    ///
    /// [`InputError`] when the assignment is one of other tokens or names an expert that does not exist,
    /// with its position.
    ///
    /// # Panics
    ///
    /// When `x` does not have D channels.
    pub fn forward(&self, x: Tensor<3>, experts: &ExpertAssignment) -> Result<Tensor<3>, InputError> {
        let [batch, time, dim] = x.dims();
        experts.check(self.num_experts, [batch, time])?;
        if batch * time == 0 {
            return Ok(x);
        }
        let rows = x.reshape([batch * time, dim]);
        let y = match experts {
            ExpertAssignment::Pass(expert) => self.forward_expert(rows, *expert),
            ExpertAssignment::Mean => {
                let outputs = (0..self.num_experts).map(|expert| self.forward_expert(rows.clone(), expert));
                let sum = outputs.reduce(|sum, output| sum + output).expect("there is an expert");
                sum.div_scalar(self.num_experts as f64)
            }
            _ => self.dispatched(rows, experts.per_token([batch, time]).unwrap_or_default())?,
        };
        Ok(y.reshape([batch, time, dim]))
    }

    /// All rows through one expert, `[N, D]` to `[N, D]`.
    ///
    /// # Panics
    ///
    /// When there is no such expert, or `x` does not have D channels.
    pub fn forward_expert(&self, x: Tensor<2>, expert: usize) -> Tensor<2> {
        self.fc2.forward_expert(relu(self.fc1.forward_expert(x, expert)), expert)
    }

    fn dispatched(&self, rows: Tensor<2>, experts: Vec<usize>) -> Result<Tensor<2>, InputError> {
        let (tokens, device, dtype) = (rows.dims()[0], rows.device(), rows.dtype());
        let plan = DispatchPlan::new(&Assignment::new(experts, 1, self.num_experts)?);
        let inner = relu(self.fc1.forward(plan.gather(rows), plan.offsets()));
        let outputs = self.fc2.forward(inner, plan.offsets());
        Ok(plan.scatter_combine(outputs, Tensor::ones([tokens, 1], (&device, dtype))))
    }

    /// Number of experts E.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }
}

/// The layer without experts: `y = W2 relu(W1 x + b1) + b2`.
#[derive(Module, Debug)]
pub struct DenseFfn {
    /// First projection, `[D, H]`.
    pub fc1: Linear,
    /// Second projection, `[H, D]`.
    pub fc2: Linear,
}

impl DenseFfn {
    pub(super) fn new(dim: usize, inner: usize, device: &Device) -> Self {
        let linear = |from, to| Linear {
            bias: Some(Initializer::Zeros.init([to], device)),
            ..LinearConfig::new(from, to)
                .with_bias(false)
                .with_initializer(Initializer::XavierUniform { gain: 1.0 })
                .init(device)
        };
        Self { fc1: linear(dim, inner), fc2: linear(inner, dim) }
    }

    /// `[.., D]` to `[.., D]`.
    ///
    /// # Panics
    ///
    /// When `x` does not have D channels.
    pub fn forward<const A: usize>(&self, x: Tensor<A>) -> Tensor<A> {
        self.fc2.forward(relu(self.fc1.forward(x)))
    }
}

/// The feed-forward part of a layer: every other one has experts.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // There is one a layer, and modules are not moved about.
pub enum ThorFeedForward {
    /// Without experts.
    Dense(DenseFfn),
    /// With them.
    Experts(StochasticFfn),
}

impl ThorFeedForward {
    /// `[batch, time, D]` to `[batch, time, D]`; a layer without experts does not look at `experts`.
    ///
    /// # Errors
    ///
    /// [`InputError`] when a layer with experts is given none, or as [`StochasticFfn::forward`].
    ///
    /// # Panics
    ///
    /// When `x` does not have D channels.
    pub fn forward(&self, x: Tensor<3>, experts: Option<&ExpertAssignment>) -> Result<Tensor<3>, InputError> {
        match (self, experts) {
            (Self::Dense(dense), _) => Ok(dense.forward(x)),
            (Self::Experts(layer), Some(experts)) => layer.forward(x, experts),
            (Self::Experts(_), None) => {
                Err(InputError::new("experts", "none", "an assignment for a layer with experts"))
            }
        }
    }

    /// Number of experts; `None` without.
    pub fn num_experts(&self) -> Option<usize> {
        match self {
            Self::Dense(_) => None,
            Self::Experts(layer) => Some(layer.num_experts()),
        }
    }
}
