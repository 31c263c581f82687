//! Experts that pick tokens.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData, activation::softmax};

use super::select::{assert_numbers, top_of};
use crate::common::{assert_last_axis, widen};
use crate::config::ModuleConfig;
use crate::dispatch::DispatchPlan;
use crate::error::ConfigError;
use crate::init;

/// Configuration of [`ExpertChoiceRouter`].
#[derive(Config, Debug)]
pub struct ExpertChoiceRouterConfig {
    /// Channels D of a token.
    pub hidden_size: usize,
    /// Experts E. Default 8.
    #[config(default = 8)]
    pub num_experts: usize,
    /// Tokens an expert takes, in multiples of its fair share N / E. Default 2.
    #[config(default = 2.0)]
    pub capacity_factor: f64,
}

impl ModuleConfig for ExpertChoiceRouterConfig {
    type Module = ExpertChoiceRouter;

    fn try_init(&self, device: &Device) -> Result<ExpertChoiceRouter, ConfigError> {
        for (field, size) in [("hidden_size", self.hidden_size), ("num_experts", self.num_experts)] {
            if size == 0 {
                return Err(ConfigError::new(field, size, "at least 1"));
            }
        }
        if !(self.capacity_factor.is_finite() && self.capacity_factor > 0.0) {
            return Err(ConfigError::new("capacity_factor", self.capacity_factor, "a finite number above 0"));
        }
        let normal = Initializer::Normal { mean: 0.0, std: init::STANDARD_DEVIATION };
        let weight = normal.init([self.num_experts, self.hidden_size], device);
        Ok(ExpertChoiceRouter { weight, capacity_factor: self.capacity_factor })
    }
}

/// Every expert takes the C tokens with its largest scores, `s = softmax(x W^T)` over the experts.
///
/// `C = clamp(floor(capacity_factor N / E), 1, N)`. The load is even by construction, but a token
/// may get no expert or all, and which ones depends on the whole batch, later tokens included: it
/// is **not for causal decoding**. Zhou et al., "Mixture-of-Experts with Expert Choice Routing"
/// (arXiv 2202.09368), section 3.2.
#[derive(Module, Debug)]
pub struct ExpertChoiceRouter {
    /// Score projection `[E, D]`.
    pub weight: Param<Tensor<2>>,
    capacity_factor: f64,
}

/// What the experts picked.
#[derive(Debug, Clone)]
pub struct ExpertChoice {
    /// Scores `[N, E]`.
    pub scores: Tensor<2>,
    /// Tokens `[E, C]`, the best first; of equal scores the lower index.
    pub indices: Tensor<2, Int>,
    /// Their scores `[E, C]`: the weights of the outputs.
    pub weights: Tensor<2>,
    tokens: usize,
    picked: Vec<usize>,
}

impl ExpertChoiceRouter {
    /// Tokens that every expert takes of `tokens`.
    pub fn capacity(&self, tokens: usize) -> usize {
        let [experts, _] = self.weight.lazy_shape().dims();
        let share = (self.capacity_factor * tokens as f64 / experts as f64).floor() as usize;
        share.max(1).min(tokens)
    }

    /// Lets the experts pick from tokens `x` `[N, D]`.
    ///
    /// # Panics
    ///
    /// When `x` has another width, and in debug builds for a NaN score (in other builds it is
    /// picked last).
    pub fn route(&self, x: Tensor<2>) -> ExpertChoice {
        let [experts, hidden] = self.weight.lazy_shape().dims();
        assert_last_axis("ExpertChoiceRouter", x.dims(), hidden);
        let (tokens, capacity, device) = (x.dims()[0], self.capacity(x.dims()[0]), x.device());
        let x = widen(x);
        let zeros = |shape: [usize; 2]| Tensor::zeros(shape, (&device, x.dtype()));
        let position = |picked: &[usize]| {
            let picked: Vec<i64> = picked.iter().map(|token| *token as i64).collect();
            Tensor::from_data(TensorData::new(picked, [experts, capacity]), &device)
        };
        if tokens == 0 {
            let (scores, weights) = (zeros([0, experts]), zeros([experts, 0]));
            return ExpertChoice { scores, indices: position(&[]), weights, tokens, picked: Vec::new() };
        }
        let scores = softmax(x.matmul(widen(self.weight.val()).transpose()), 1);
        let by_expert = scores.clone().transpose();
        assert_numbers("ExpertChoiceRouter: the scores", &scores);
        let picked = top_of(by_expert.clone(), capacity, None);
        let indices = position(&picked);
        let weights = by_expert.gather(1, indices.clone());
        ExpertChoice { scores, indices, weights, tokens, picked }
    }
}

impl ExpertChoice {
    /// How to send the tokens to the experts: `combine` its outputs with [`weights`](Self::weights).
    pub fn plan(&self) -> DispatchPlan {
        let [experts, capacity] = self.indices.dims();
        let offsets = (0..=experts).map(|expert| expert * capacity).collect();
        let slots = (0..self.picked.len()).collect();
        DispatchPlan::from_parts(self.tokens, self.picked.len(), self.picked.clone(), slots, offsets)
    }

    /// How many experts took each token, `[N]`.
    pub fn coverage(&self) -> Vec<usize> {
        let mut coverage = vec![0; self.tokens];
        for token in &self.picked {
            coverage[*token] += 1;
        }
        coverage
    }
}
