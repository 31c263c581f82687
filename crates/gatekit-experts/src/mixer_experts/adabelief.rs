//! AdaBelief.

use burn::config::Config;
use burn::grad_clipping::GradientClippingConfig;
use burn::optim::{AdaptiveMomentumState, LearningRate, ModuleOptimizer, Optimizer};
use burn::tensor::{Device, Tensor};

/// Configuration of [`AdaBelief`].
#[derive(Config, Debug)]
pub struct AdaBeliefConfig {
    /// Share of the old mean of the gradients. Default 0.9.
    #[config(default = 0.9)]
    pub beta_1: f64,
    /// Share of the old mean of their squared deviations. Default 0.999.
    #[config(default = 0.999)]
    pub beta_2: f64,
    /// Keeps deviations and their root above 0. Default 1e-16.
    #[config(default = 1e-16)]
    pub epsilon: f64,
    /// Clipping of the gradients, each parameter's alone. Default none.
    pub grad_clipping: Option<GradientClippingConfig>,
}

impl AdaBeliefConfig {
    /// The bare optimiser, for a group of parameters.
    pub fn build(&self) -> AdaBelief {
        AdaBelief { beta_1: self.beta_1, beta_2: self.beta_2, epsilon: self.epsilon }
    }

    /// An optimiser for a whole module.
    pub fn init(&self) -> ModuleOptimizer {
        let optimizer = ModuleOptimizer::from(self.build());
        match &self.grad_clipping {
            Some(clipping) => optimizer.with_grad_clipping(clipping.init()),
            None => optimizer,
        }
    }
}

/// Adam that divides by how far gradients lie from their mean, not from 0: where they agree, steps are large.
///
/// ```text
/// m = b1 m + (1 - b1) g          s = b2 s + (1 - b2) (g - m)^2 + eps
/// theta = theta - lr (m / (1 - b1^t)) / (sqrt(s / (1 - b2^t)) + eps)
/// ```
///
/// Zhuang et al. (arXiv 2010.07468), algorithm 2. It implements Burn's optimiser trait and so works with its
/// learner, parameter groups and records.
#[derive(Debug, Clone)]
pub struct AdaBelief {
    beta_1: f64,
    beta_2: f64,
    epsilon: f64,
}

impl Optimizer for AdaBelief {
    /// Steps, mean of the gradients, mean of their squared deviations from it.
    type State<const D: usize> = AdaptiveMomentumState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<AdaptiveMomentumState<D>>,
    ) -> (Tensor<D>, Option<AdaptiveMomentumState<D>>) {
        let state =
            state.unwrap_or_else(|| AdaptiveMomentumState::new(0, grad.zeros_like(), grad.zeros_like()));
        let time = state.time + 1;
        let mean = state.moment_1.mul_scalar(self.beta_1) + grad.clone().mul_scalar(1.0 - self.beta_1);
        let squared = (grad - mean.clone()).square().mul_scalar(1.0 - self.beta_2);
        let deviation = (state.moment_2.mul_scalar(self.beta_2) + squared).add_scalar(self.epsilon);
        let [of_mean, of_deviation] = [self.beta_1, self.beta_2].map(|beta| 1.0 - beta.powi(time as i32));
        let scale = deviation.clone().div_scalar(of_deviation).sqrt().add_scalar(self.epsilon);
        let delta = mean.clone().mul_scalar(lr / of_mean) / scale;
        (tensor - delta, Some(AdaptiveMomentumState::new(time, mean, deviation)))
    }

    fn to_device<const D: usize>(
        state: AdaptiveMomentumState<D>,
        device: &Device,
    ) -> AdaptiveMomentumState<D> {
        state.to_device(device)
    }
}
