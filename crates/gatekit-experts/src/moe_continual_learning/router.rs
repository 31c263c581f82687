//! The gate, with what it remembers of the rounds so far.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor, activation::softmax};
use gatekit_core::router::Assignment;
use gatekit_core::{ConfigError, InputError};

use super::config::{ContinualMoeConfig, Variant};
use super::losses::{CumulativeLoadLoss, LocalityLoss, one_hot};

/// One decision.
#[derive(Debug, Clone)]
pub struct TaskRouting {
    /// Scores `[M]`, without noise.
    pub h: Tensor<1>,
    /// Probabilities `[M]`.
    pub pi: Tensor<1>,
    /// The scores that the gap test looks at, `[M]`: with the noise in [`Variant::Simulation`].
    pub tested: Tensor<1>,
    /// The chosen expert.
    pub expert: usize,
}

/// `h = Theta sum_i x_i`, `pi = softmax(h)`, `m = argmax(h + r)` with r uniform in `[0, lambda]`.
///
/// One decision for a whole data set. In [`Variant::Simulation`] `pi = softmax(h + r)`. Scores and softmax
/// are in at least float32. Li et al. (arXiv 2406.16437), section 3.
#[derive(Module, Debug)]
pub struct TaskRouter {
    /// Theta `[M, d]`, 0 at first.
    pub theta: Param<Tensor<2>>,
    /// Rounds that every expert had, `[M]`; not trained.
    pub counts: Param<Tensor<1>>,
    /// Sums of its probabilities in these rounds, `[M]`; not trained.
    pub prob_sums: Param<Tensor<1>>,
    #[module(skip)]
    config: ContinualMoeConfig,
}

impl TaskRouter {
    /// A gate for experts of any kind; [`ContinualMoe`](super::ContinualMoe) has one for its own.
    ///
    /// # Errors
    ///
    /// As [`ContinualMoeConfig::check`].
    pub fn try_new(config: &ContinualMoeConfig, device: &Device) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self::new(config, device))
    }

    /// The configuration has been checked.
    pub(super) fn new(config: &ContinualMoeConfig, device: &Device) -> Self {
        let zeros = || Initializer::Zeros.init([config.num_experts], device).set_require_grad(false);
        Self {
            theta: Initializer::Zeros.init([config.num_experts, config.input_dim], device),
            counts: zeros(),
            prob_sums: zeros(),
            config: config.clone(),
        }
    }

    /// What the router computes.
    pub fn config(&self) -> &ContinualMoeConfig {
        &self.config
    }

    /// Routes a data set `x` `[s, d]` with noise `[M]`.
    ///
    /// # Panics
    ///
    /// When `x` or the noise have another width.
    pub fn route(&self, x: Tensor<2>, noise: Tensor<1>) -> TaskRouting {
        let [experts, dims] = self.theta.dims();
        assert!(x.dims()[1] == dims, "TaskRouter: `x` {:?}, need [s, {dims}]", x.dims());
        assert!(noise.dims() == [experts], "TaskRouter: `noise` {:?}, need [{experts}]", noise.dims());
        let theta = self.theta.val();
        let sum = x.cast(theta.dtype()).sum_dim(0);
        let h = sum.matmul(theta.transpose()).squeeze_dim::<1>(0);
        let noisy = h.clone() + noise.detach();
        let expert = Assignment::top(&noisy.clone().unsqueeze_dim(0), 1).experts()[0];
        let tested = match self.config.variant {
            Variant::Algorithm => h.clone(),
            Variant::Simulation => noisy,
        };
        TaskRouting { pi: softmax(tested.clone(), 0), h, tested, expert }
    }

    /// The two losses of a decision, locality first, each `[1]`; `drift` `[1]` is how far the chosen expert
    /// moved, `round` counts from 1.
    ///
    /// # Panics
    ///
    /// When the decision is one of a router of other size.
    pub fn losses(&self, routing: &TaskRouting, drift: Tensor<1>, round: usize) -> (Tensor<1>, Tensor<1>) {
        let drifts = one_hot(&routing.pi, routing.expert) * drift;
        let locality = LocalityLoss.forward(routing.pi.clone().unsqueeze_dim(0), drifts);
        let load = self.load_loss().forward(
            routing.pi.clone(),
            routing.expert,
            self.counts.val(),
            self.prob_sums.val(),
            round,
        );
        (locality, load)
    }

    /// The gradient of both losses' sum with respect to Theta, `[M, d]`, in closed form:
    /// `(drift + alpha M f_c / t) pi_c ([k = c] - pi_k) sum_i x_i` in row k, with c the chosen expert.
    ///
    /// # Panics
    ///
    /// As [`route`](Self::route).
    pub fn gradient(&self, x: Tensor<2>, routing: &TaskRouting, drift: f64, round: usize) -> Tensor<2> {
        let count = self.counts.val().slice(routing.expert..routing.expert + 1).into_scalar::<f64>();
        let load = self.load_loss();
        let slope =
            drift + load.weight * self.config.num_experts as f64 * load.share(count, round) / round as f64;
        let pi = routing.pi.clone().detach();
        let chosen = one_hot(&pi, routing.expert);
        let own = (pi.clone() * chosen.clone()).sum();
        let rows = (chosen - pi) * own.mul_scalar(slope);
        let sum = x.cast(rows.dtype()).sum_dim(0);
        rows.unsqueeze_dim::<2>(1).matmul(sum)
    }

    fn load_loss(&self) -> CumulativeLoadLoss {
        let with_counts = self.config.variant == Variant::Algorithm;
        CumulativeLoadLoss { weight: self.config.aux_weight, with_counts }
    }

    /// One step of gradient descent, `Theta <- Theta - eta gradient`, with a gradient `[M, d]`.
    ///
    /// # Panics
    ///
    /// When the gradient has another shape.
    pub fn descend(&mut self, gradient: Tensor<2>) {
        let step = gradient.mul_scalar(self.config.learning_rate);
        self.theta = self.theta.clone().map(|theta| {
            let tracked = theta.is_require_grad();
            (theta.detach() - step.detach()).set_require_grad(tracked)
        });
    }

    /// Counts a decision in, after the round that it was made for.
    ///
    /// # Panics
    ///
    /// When the decision is one of a router of other size.
    pub fn count(&mut self, routing: &TaskRouting) {
        let pi = routing.pi.clone().detach();
        let chosen = one_hot(&pi, routing.expert);
        let share = pi * chosen.clone();
        self.counts = self.counts.clone().map(|counts| (counts + chosen).detach()).set_require_grad(false);
        self.prob_sums = self.prob_sums.clone().map(|sums| (sums + share).detach()).set_require_grad(false);
    }

    /// Refuses counts that are not those of `round - 1` rounds.
    ///
    /// # Errors
    ///
    /// [`InputError`] for counts that are negative, broken or of another sum, and for round 0.
    pub fn check_round(&self, round: usize) -> Result<(), InputError> {
        if round == 0 {
            return Err(InputError::new("round", 0, "at least 1"));
        }
        let counts: Vec<f64> = self.counts.val().to_data().iter::<f64>().collect();
        let whole = counts.iter().all(|count| *count >= 0.0 && count.fract() == 0.0);
        let sum: f64 = counts.iter().sum();
        match whole && sum == (round - 1) as f64 {
            true => Ok(()),
            false => {
                let need = format!("whole numbers that add up to {}, the rounds before {round}", round - 1);
                Err(InputError::new("counts", format!("{counts:?}"), need))
            }
        }
    }
}
