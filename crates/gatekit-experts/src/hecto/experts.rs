//! Experts of different kinds behind one signature.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Bool, Device, Tensor};
use gatekit_core::dispatch::Expert;
use gatekit_core::gate::sigmoid;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};

use super::config::{ExpertKind, HectoConfig};

/// An expert that reads a sequence, or what it needs of it.
pub trait SequenceExpert {
    /// Channels of the output.
    fn num_outputs(&self) -> usize;

    /// # Shapes
    ///
    /// - `x`: `[batch, time, input_dim]`, the sentence vector at position 0
    /// - `mask`: `[batch, time]`, true where a token counts; padding stands right
    /// - output: `[batch, num_outputs]`
    fn forward(&self, x: Tensor<3>, mask: Tensor<2, Bool>) -> Tensor<2>;
}

/// `y = W_2 tanh(W_1 c + b_1) + b_2` of the sentence vector `c`: it does not see the other tokens.
#[derive(Module, Debug)]
pub struct FfnnExpert {
    /// First projection.
    pub fc1: Linear,
    /// Second projection.
    pub fc2: Linear,
}

impl SequenceExpert for FfnnExpert {
    fn num_outputs(&self) -> usize {
        self.fc2.weight.shape().dims::<2>()[1]
    }

    fn forward(&self, x: Tensor<3>, _mask: Tensor<2, Bool>) -> Tensor<2> {
        self.fc2.forward(self.fc1.forward(first(x)).tanh())
    }
}

/// The sentence vector of `x` `[batch, time, dim]`.
pub(super) fn first(x: Tensor<3>) -> Tensor<2> {
    x.narrow(1, 0, 1).squeeze_dim(1)
}

/// Configuration of [`Gru`].
#[derive(Config, Debug)]
pub struct GruConfig {
    /// Width of the input.
    pub input_dim: usize,
    /// Width of the state.
    pub hidden_dim: usize,
}

impl ModuleConfig for GruConfig {
    type Module = Gru;

    fn try_init(&self, device: &Device) -> Result<Gru, ConfigError> {
        check_sizes(&[("input_dim", self.input_dim), ("hidden_dim", self.hidden_dim)])?;
        let bound = 1.0 / (self.hidden_dim as f64).sqrt();
        let uniform = Initializer::Uniform { min: -bound, max: bound };
        let gates = 3 * self.hidden_dim;
        Ok(Gru {
            weight_ih_l0: uniform.init([gates, self.input_dim], device),
            weight_hh_l0: uniform.init([gates, self.hidden_dim], device),
            bias_ih_l0: uniform.init([gates], device),
            bias_hh_l0: uniform.init([gates], device),
        })
    }
}

/// A gated recurrent unit with PyTorch's gates and names, whose last state is that of the last real token.
///
/// ```text
/// r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
/// z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
/// n = tanh(W_in x + b_in + r (W_hn h + b_hn))
/// h' = (1 - z) n + z h,   h_0 = 0
/// ```
///
/// The reset gate acts behind the hidden product. Cho et al. (arXiv 1406.1078) in the form of PyTorch's
/// `nn.GRU`. Starts uniform within `1 / sqrt(hidden_dim)`.
#[derive(Module, Debug)]
pub struct Gru {
    /// Input weights of r, z, n in this order, `[3 hidden_dim, input_dim]`.
    pub weight_ih_l0: Param<Tensor<2>>,
    /// Hidden weights, `[3 hidden_dim, hidden_dim]`.
    pub weight_hh_l0: Param<Tensor<2>>,
    /// Input biases, `[3 hidden_dim]`.
    pub bias_ih_l0: Param<Tensor<1>>,
    /// Hidden biases, `[3 hidden_dim]`.
    pub bias_hh_l0: Param<Tensor<1>>,
}

impl Gru {
    /// The last state.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, time, input_dim]`
    /// - `mask`: `[batch, time]`; where it is false the state is kept
    /// - output: `[batch, hidden_dim]`
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, x: Tensor<3>, mask: Tensor<2, Bool>) -> Tensor<2> {
        let [batch, time, width] = x.dims();
        let [gates, hidden] = self.weight_hh_l0.shape().dims();
        let [_, need] = self.weight_ih_l0.shape().dims();
        assert!(
            width == need && mask.dims() == [batch, time],
            "Gru: `x` {:?} with `mask` {:?}, need [batch, time, {need}] and [batch, time]",
            [batch, time, width],
            mask.dims()
        );
        // The input's share of all steps in one product.
        let input = x.reshape([batch * time, width]).matmul(self.weight_ih_l0.val().transpose());
        let input = (input + self.bias_ih_l0.val().unsqueeze_dim(0)).reshape([batch, time, gates]);
        let (recurrent, bias) = (self.weight_hh_l0.val().transpose(), self.bias_hh_l0.val().unsqueeze_dim(0));
        let mut state = Tensor::<2>::zeros([batch, hidden], (&input.device(), input.dtype()));
        for step in 0..time {
            let from_input: Tensor<2> = input.clone().narrow(1, step, 1).squeeze_dim(1);
            let from_state = state.clone().matmul(recurrent.clone()) + bias.clone();
            let both =
                from_input.clone().narrow(1, 0, 2 * hidden) + from_state.clone().narrow(1, 0, 2 * hidden);
            let both = sigmoid(both);
            let (reset, update) = (both.clone().narrow(1, 0, hidden), both.narrow(1, hidden, hidden));
            let candidate = from_input.narrow(1, 2 * hidden, hidden);
            let candidate = (candidate + reset * from_state.narrow(1, 2 * hidden, hidden)).tanh();
            let next = candidate.clone() + update * (state.clone() - candidate);
            let real = mask.clone().narrow(1, step, 1).expand([batch, hidden]);
            state = state.mask_where(real, next);
        }
        state
    }
}

/// `y = W_o h_T + b_o` with the last state `h_T` of a [`Gru`] over the tokens.
#[derive(Module, Debug)]
pub struct GruExpert {
    /// The recurrence.
    pub gru: Gru,
    /// The output's projection.
    pub out: Linear,
}

impl SequenceExpert for GruExpert {
    fn num_outputs(&self) -> usize {
        self.out.weight.shape().dims::<2>()[1]
    }

    fn forward(&self, x: Tensor<3>, mask: Tensor<2, Bool>) -> Tensor<2> {
        self.out.forward(self.gru.forward(x, mask))
    }
}

/// An expert of a configured kind.
#[derive(Module, Debug)]
pub enum HectoExpert {
    /// Feed-forward.
    Ffnn(FfnnExpert),
    /// Recurrent.
    Gru(GruExpert),
}

impl HectoExpert {
    /// A fresh expert of this kind and the configuration's widths.
    pub(super) fn try_new(
        kind: ExpertKind,
        config: &HectoConfig,
        device: &Device,
    ) -> Result<Self, ConfigError> {
        let (input, hidden, outputs) = (config.input_dim, config.hidden_dim, config.num_outputs);
        let linear = |d_in, d_out| LinearConfig::new(d_in, d_out).init(device);
        Ok(match kind {
            ExpertKind::Ffnn => {
                Self::Ffnn(FfnnExpert { fc1: linear(input, hidden), fc2: linear(hidden, outputs) })
            }
            ExpertKind::Gru => Self::Gru(GruExpert {
                gru: GruConfig::new(input, hidden).try_init(device)?,
                out: linear(hidden, outputs),
            }),
        })
    }

    /// What it is.
    pub fn kind(&self) -> ExpertKind {
        match self {
            Self::Ffnn(_) => ExpertKind::Ffnn,
            Self::Gru(_) => ExpertKind::Gru,
        }
    }
}

impl SequenceExpert for HectoExpert {
    fn num_outputs(&self) -> usize {
        match self {
            Self::Ffnn(expert) => expert.num_outputs(),
            Self::Gru(expert) => expert.num_outputs(),
        }
    }

    fn forward(&self, x: Tensor<3>, mask: Tensor<2, Bool>) -> Tensor<2> {
        match self {
            Self::Ffnn(expert) => expert.forward(x, mask),
            Self::Gru(expert) => expert.forward(x, mask),
        }
    }
}

/// Rows of states and mask, so that the core's dispatch can send them.
impl Expert<(Tensor<3>, Tensor<2, Bool>)> for HectoExpert {
    fn d_output(&self) -> usize {
        self.num_outputs()
    }

    fn forward(&self, (x, mask): (Tensor<3>, Tensor<2, Bool>)) -> Tensor<2> {
        SequenceExpert::forward(self, x, mask)
    }
}
