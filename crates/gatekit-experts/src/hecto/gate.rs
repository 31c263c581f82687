//! The choice of one expert.

use burn::config::Config;
use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Int, Tensor};
use gatekit_core::gate::{first_argmax, one_hot_argmax, straight_through_one_hot};
use gatekit_core::router::Phase;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes, widen};

use super::config::Estimator;

/// Configuration of [`Top1Gate`].
#[derive(Config, Debug)]
pub struct Top1GateConfig {
    /// Width of the sentence vector.
    pub input_dim: usize,
    /// Experts to choose from.
    #[config(default = 2)]
    pub num_experts: usize,
    /// Temperature tau, above 0.
    #[config(default = 1.5)]
    pub temperature: f64,
    /// How the gate learns.
    #[config(default = "Estimator::StraightThrough")]
    pub estimator: Estimator,
}

impl ModuleConfig for Top1GateConfig {
    type Module = Top1Gate;

    fn try_init(&self, device: &Device) -> Result<Top1Gate, ConfigError> {
        check_sizes(&[("input_dim", self.input_dim), ("num_experts", self.num_experts)])?;
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return Err(ConfigError::new("temperature", self.temperature, "a finite number above 0"));
        }
        let bound = 1.0 / (self.input_dim as f64).sqrt();
        let uniform = Initializer::Uniform { min: -bound, max: bound };
        Ok(Top1Gate {
            weight: uniform.init([self.num_experts, self.input_dim], device),
            bias: uniform.init([self.num_experts], device),
            config: self.clone(),
        })
    }
}

/// Chooses one expert: `p = softmax((c W^T + b) / tau)`, `i* = argmax p`, the first on ties.
///
/// The combination `m` of the experts' outputs is, after the [`Estimator`],
///
/// - straight-through: `onehot(i*) - stopgrad(p) + p` in training, `onehot(i*)` in evaluation;
/// - switch: `onehot(i*) p`;
/// - none: `onehot(i*)`.
///
/// Computed in at least float32. Starts uniform within `1 / sqrt(input_dim)`. Pandey et al.
/// (arXiv 2506.22919).
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Top1Gate {
    /// `[E, input_dim]`, as it is published.
    pub weight: Param<Tensor<2>>,
    /// `[E]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    config: Top1GateConfig,
}

/// What a [`Top1Gate`] decided.
#[derive(Debug, Clone)]
pub struct Top1Choice {
    /// Probabilities `[batch, E]`.
    pub probs: Tensor<2>,
    /// The expert of every row, `[batch]`.
    pub choice: Tensor<1, Int>,
    /// Weights of the experts' outputs, `[batch, E]`.
    pub combine: Tensor<2>,
}

impl Top1Gate {
    /// The choice for sentence vectors `cls` `[batch, input_dim]`.
    ///
    /// # Panics
    ///
    /// When `cls` has another width.
    pub fn forward(&self, cls: Tensor<2>, phase: Phase) -> Top1Choice {
        let ([batch, width], need) = (cls.dims(), self.config.input_dim);
        assert!(width == need, "Top1Gate: `cls` [{batch}, {width}] has {width} channels, the module {need}");
        let logits = widen(cls).matmul(widen(self.weight.val()).transpose());
        let logits = logits + widen(self.bias.val()).unsqueeze_dim(0);
        let probs = softmax(logits.div_scalar(self.config.temperature), 1);
        let choice = first_argmax(probs.clone()).squeeze_dim(1);
        let combine = match (self.config.estimator, phase) {
            (Estimator::StraightThrough, Phase::Training) => straight_through_one_hot(probs.clone()),
            (Estimator::Switch, _) => one_hot_argmax(probs.clone()) * probs.clone(),
            (Estimator::StraightThrough | Estimator::None, _) => one_hot_argmax(probs.clone()),
        };
        Top1Choice { probs, choice, combine }
    }

    /// The configuration.
    pub fn config(&self) -> &Top1GateConfig {
        &self.config
    }
}

impl ModuleDisplay for Top1Gate {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .add("input_dim", &self.config.input_dim)
            .add("num_experts", &self.config.num_experts)
            .add("temperature", &self.config.temperature)
            .optional()
    }
}
