//! The closed form of one layer, read at the query.
// Parameters have the names of the paper.
#![allow(non_snake_case)]

use burn::config::Config;
use burn::module::{Module, Param};
use burn::tensor::module::linear;
use burn::tensor::{Device, Tensor};
use gatekit_core::gate::selective_gate;
use gatekit_core::{ConfigError, ModuleConfig};

use super::ssm::{Gating, check_scale, gate_weight, project, scaled_diagonal};
use super::training::{ContextLearner, assert_prompt};
use crate::lm::float32;

/// Configuration of [`IclPredictor`].
#[derive(Config, Debug)]
pub struct IclPredictorConfig {
    /// Features `d` of an example; the rows of a prompt are `d + 1` wide. 30 in the paper.
    #[config(default = 30)]
    pub input_dim: usize,
    /// Rows `m` of `W_B` and `W_C`; `None`: `d + 1`. With fewer than `d` the start leaves the last
    /// features out.
    pub state_dim: Option<usize>,
    /// Whether the examples are weighed by a gate.
    #[config(default = "Gating::Mamba")]
    pub gating: Gating,
    /// Start of the first `d` diagonal entries of `W_B` and `W_C`, above 0; the paper takes at most
    /// 0.2.
    #[config(default = 0.2)]
    pub initial_scale: f64,
}

impl ModuleConfig for IclPredictorConfig {
    type Module = IclPredictor;

    fn try_init(&self, device: &Device) -> Result<IclPredictor, ConfigError> {
        let width = row_width(self.input_dim)?;
        let size = self.state_dim.unwrap_or(width);
        if size == 0 {
            return Err(ConfigError::new("state_dim", 0, "at least 1"));
        }
        check_scale(self.initial_scale)?;
        let diagonal = || scaled_diagonal(size, width, self.initial_scale, device);
        Ok(IclPredictor {
            W_B: diagonal(),
            W_C: diagonal(),
            w: gate_weight().init_with([width], Some(width), None, device),
            gating: self.gating,
        })
    }
}

/// `d + 1`.
pub(super) fn row_width(input_dim: usize) -> Result<usize, ConfigError> {
    match input_dim {
        0 => Err(ConfigError::new("input_dim", 0, "at least 1")),
        _ => input_dim
            .checked_add(1)
            .ok_or_else(|| ConfigError::new("input_dim", input_dim, "a number that fits into memory")),
    }
}

/// One layer of Mamba on a prompt of labelled examples, in closed form.
///
/// ```text
/// a_i = (W_B p_i) . (W_C p_query)      s_i = w . p_i
/// G_i = sigmoid(s_i) prod_{j > i} (1 - sigmoid(s_j))       over all rows, the query included
/// F = sum_i G_i y_i a_i
/// ```
///
/// It is the labels' channel of a [`SelectiveSsm`](super::SelectiveSsm) at the query, with `w` the
/// last row of its `W`; the query's own term is 0 as its label is. With [`Gating::None`] every
/// `G_i` is 1 and `w` takes no part.
///
/// Li et al. 2025, arXiv 2510.00399, section 3. `W_B` and `W_C` start at zero but for
/// `initial_scale` on the first `d` diagonal entries, `w` as normal(0, 1 / (d + 1)).
#[derive(Module, Debug)]
pub struct IclPredictor {
    /// What an example writes, `[m, d + 1]`.
    pub W_B: Param<Tensor<2>>,
    /// What the query reads, `[m, d + 1]`.
    pub W_C: Param<Tensor<2>>,
    /// The gate's logits, `[d + 1]`.
    pub w: Param<Tensor<1>>,
    #[module(skip)]
    gating: Gating,
}

/// What [`IclPredictor`] makes of a prompt, in float32 (float64 for a prompt in float64).
#[derive(Debug, Clone)]
pub struct Prediction {
    /// `F`, `[batch]`; its sign is the predicted label.
    pub score: Tensor<1>,
    /// `G`, `[batch, l + 1]`, the query last.
    pub gates: Tensor<2>,
    /// `a`, `[batch, l + 1]`, the query last.
    pub attention: Tensor<2>,
}

impl IclPredictor {
    /// Predicts the query's label from `prompt` `[batch, l + 1, d + 1]`: rows `(x_i, y_i)` with
    /// labels of -1 or 1, and last the query `(x, 0)`.
    ///
    /// # Panics
    ///
    /// When the prompt has no row or rows of another width; in debug builds also when
    /// [`check_prompt`](super::check_prompt) refuses its labels.
    pub fn forward(&self, prompt: Tensor<3>) -> Prediction {
        let [_, width] = self.W_B.shape().dims();
        assert_prompt(&prompt, width);
        let [batch, rows, _] = prompt.dims();
        let query = prompt.clone().narrow(1, rows - 1, 1);
        // (W_B p_i) . (W_C p_query) = p_i . (W_B^T W_C p_query): one product a row.
        let direction = linear(project(query, &self.W_C), self.W_B.val(), None);
        let attention = prompt.clone().matmul(direction.swap_dims(1, 2)).squeeze_dim::<2>(2);
        let attention = float32(attention);
        let labels = float32(prompt.clone().narrow(2, width - 1, 1).squeeze_dim::<2>(2));
        let gates = match self.gating {
            Gating::Mamba => selective_gate(self.logits(prompt)),
            Gating::None => Tensor::ones([batch, rows], (&attention.device(), attention.dtype())),
        };
        let score = (gates.clone() * attention.clone() * labels).sum_dim(1).squeeze_dim(1);
        Prediction { score, gates, attention }
    }

    /// The gate's logits `w . p_i`, `[batch, l + 1]`.
    fn logits(&self, prompt: Tensor<3>) -> Tensor<2> {
        linear(prompt, self.w.val().unsqueeze_dim::<2>(1), None).squeeze_dim(2)
    }
}

impl ContextLearner for IclPredictor {
    fn score(&self, prompt: Tensor<3>) -> Tensor<1> {
        self.forward(prompt).score
    }
}
