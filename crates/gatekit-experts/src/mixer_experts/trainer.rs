//! Proximal alternating minimisation with gate refits.

use burn::module::Module;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use gatekit_core::linalg::Matrix;
use gatekit_core::{ConfigError, InputError};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use thiserror::Error;

use super::adabelief::AdaBeliefConfig;
use super::contexts::{ContextTable, rows};
use super::expert::MetaExpert;
use super::field::MixerField;
use super::gate_update::{GateUpdate, KMeansGateUpdate};
use super::losses::{context_objective, environment_losses};
use super::proximal::{add_proximal, snapshot};
use super::solver::{OdeSolver, Rk4, SolveError};
use super::trainer_config::{GateTraining, MixerTrainingConfig};
use crate::random::normal_matrix;

/// The first centroids are drawn within this of 0.
const FIRST_CENTROIDS: f64 = 1e-3;

/// Why a training cannot start or go on.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum MixerError {
    /// A configuration that is no training.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Data that cannot be used, or a cluster on which every expert has diverged.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A trajectory that an adaptive solver could not finish.
    #[error(transparent)]
    Solve(#[from] SolveError),
}

/// What the refits of an outer step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GateReport {
    /// Refits that gave a new gate.
    pub updated: usize,
    /// Refits that found a cluster empty.
    pub empty: usize,
    /// Refits whose k-means did not come to rest.
    pub not_converged: usize,
    /// Losses that were not finite, in the refits that gave a new gate.
    pub replaced: usize,
}

/// What an outer step did.
#[derive(Debug, Clone, PartialEq)]
pub struct OuterStep {
    /// Its number, from 0.
    pub step: usize,
    /// Mean loss of the context steps, without the pull; NaN without one that was finite.
    pub context_loss: f64,
    /// The same of the model steps.
    pub model_loss: f64,
    /// Steps that were not taken because their loss was not finite.
    pub skipped: usize,
    /// The refits.
    pub gate: GateReport,
}

/// Trains a field and the contexts of its environments.
///
/// An outer step keeps copies of both, then takes `context_steps` steps on
/// `mean loss + beta/2 mean (xi - xi_old)^2` and `model_steps` steps on
/// `mean loss + beta/2 mean (theta - theta_old)^2`, with theta all parameters that gradients train. The gate is
/// refitted after every such step. Every step looks at a few environments: one at random and its nearest in mean
/// absolute context distance. Nzoyem et al. (arXiv 2502.05335), algorithm 1.
pub struct MixerTrainer<X: MetaExpert, S: OdeSolver = Rk4> {
    field: MixerField<X>,
    contexts: ContextTable,
    /// `[M, B, steps + 1, D]`, on the device with autodiff, and without.
    observed: [Tensor<4>; 2],
    config: MixerTrainingConfig,
    solver: S,
    update: KMeansGateUpdate,
    model_optimizer: ModuleOptimizer,
    context_optimizer: ModuleOptimizer,
    /// Of the last refit, if it gave a new gate.
    centroids: Option<Matrix>,
    random: StdRng,
    outer: usize,
    steps: usize,
}

impl<X: MetaExpert> MixerTrainer<X> {
    /// Begins with a field, on the observed trajectories `[M, B, steps + 1, D]` of M environments, and with
    /// contexts of 0. Parameters are moved to the autodiff form of `device`.
    ///
    /// # Errors
    ///
    /// [`MixerError`] for a configuration that is no training, for fewer environments than experts (a cluster
    /// would always be empty), and for data of another length or with values that are not finite.
    pub fn new(
        field: MixerField<X>,
        observed: Tensor<4>,
        config: &MixerTrainingConfig,
        device: &Device,
    ) -> Result<Self, MixerError> {
        config.check()?;
        Self::with_solver(field, observed, config, config.solver()?, device)
    }
}

impl<X: MetaExpert, S: OdeSolver> MixerTrainer<X, S> {
    /// As [`new`](MixerTrainer::new), with a solver of one's own in place of [`Rk4`]; it must report
    /// `config.steps` states.
    ///
    /// # Errors
    ///
    /// As [`new`](MixerTrainer::new).
    pub fn with_solver(
        field: MixerField<X>,
        observed: Tensor<4>,
        config: &MixerTrainingConfig,
        solver: S,
        device: &Device,
    ) -> Result<Self, MixerError> {
        config.check()?;
        let environments = observed.dims()[0];
        if environments < field.num_experts() {
            let need = format!("at least {}: one for every expert", field.num_experts());
            return Err(InputError::new("observed", format!("{environments} environments"), need).into());
        }
        check_observed(&observed, config.steps)?;
        let (plain, tracked) = (device.clone().without_autodiff(), device.clone().autodiff());
        let observed = observed.to_data();
        let contexts = ContextTable::new(environments, field.context_size(), &tracked).materialize();
        let by_gradient = config.gate_training == GateTraining::GradientDescent;
        let mut field = field.materialize().train();
        field.gate.gate = field.gate.gate.clone().set_require_grad(by_gradient);
        Ok(Self {
            update: config.gate_update(field.gate.use_gate_bias())?,
            field,
            contexts,
            observed: [Tensor::from_data(observed.clone(), &tracked), Tensor::from_data(observed, &plain)],
            config: config.clone(),
            solver,
            model_optimizer: AdaBeliefConfig::new().init(),
            context_optimizer: AdaBeliefConfig::new().init(),
            centroids: None,
            random: StdRng::seed_from_u64(config.seed),
            outer: 0,
            steps: 0,
        })
    }

    /// The field, in training.
    pub fn field(&self) -> &MixerField<X> {
        &self.field
    }

    /// The contexts, in training.
    pub fn contexts(&self) -> &ContextTable {
        &self.contexts
    }

    /// The field and the contexts, without autodiff.
    pub fn finish(self) -> (MixerField<X>, ContextTable) {
        (self.field.valid(), self.contexts.valid())
    }

    /// One outer step.
    ///
    /// # Errors
    ///
    /// [`MixerError`] when an adaptive solver cannot go on, or every expert has diverged on a cluster.
    pub fn outer_step(&mut self) -> Result<OuterStep, MixerError> {
        let mut report = GateReport::default();
        let mut skipped = 0;
        let (old_contexts, old_field) = (self.contexts.contexts.val().detach(), snapshot(&self.field));
        let mut losses = [Vec::new(), Vec::new()];
        let counts = [self.config.context_steps, self.config.model_steps];
        for (kind, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let loss = match kind {
                    0 => self.context_step(&old_contexts)?,
                    _ => self.model_step(&old_field)?,
                };
                if loss.is_finite() {
                    losses[kind].push(loss)
                } else {
                    skipped += 1
                }
                self.steps += 1;
                self.refit(&mut report)?;
            }
        }
        let step = self.outer;
        self.outer += 1;
        let [context_loss, model_loss] =
            losses.map(|losses| losses.iter().sum::<f64>() / losses.len() as f64);
        Ok(OuterStep { step, context_loss, model_loss, skipped, gate: report })
    }

    /// All outer steps; `after_step` is called after each with what it did, the field and the contexts.
    ///
    /// # Errors
    ///
    /// As [`outer_step`](Self::outer_step).
    pub fn train(
        mut self,
        mut after_step: impl FnMut(&OuterStep, &MixerField<X>, &ContextTable),
    ) -> Result<(MixerField<X>, ContextTable), MixerError> {
        while self.outer < self.config.outer_steps {
            let step = self.outer_step()?;
            after_step(&step, &self.field, &self.contexts);
        }
        Ok(self.finish())
    }

    /// The losses `[m]` of some environments.
    fn losses(&mut self, contexts: Tensor<2>) -> Result<Tensor<1>, SolveError> {
        let environments = self.contexts.environments();
        let first = self.random.random_range(0..environments);
        let chosen = self.contexts.nearest(first, self.config.loss_contributors);
        let (contexts, observed) = (rows(contexts, &chosen), rows(self.observed[0].clone(), &chosen));
        let start = observed.clone().narrow(2, 0, 1).squeeze_dim::<3>(2);
        let trajectory = match self.config.gate_training {
            GateTraining::LeastSquares => self.field.rollout(start, contexts, &self.solver)?,
            GateTraining::GradientDescent => self.solver.solve(&self.field.bind_soft(contexts), start)?,
        };
        Ok(environment_losses(trajectory, observed))
    }

    fn context_step(&mut self, old: &Tensor<2>) -> Result<f64, SolveError> {
        let contexts = self.contexts.contexts.val();
        let losses = self.losses(contexts.clone())?;
        let value = losses.clone().mean().into_scalar::<f64>();
        if value.is_finite() {
            let loss = context_objective(losses, contexts, old.clone(), self.config.proximal_beta);
            let gradients = GradientsParams::from_grads(loss.backward(), &self.contexts);
            let table = self.contexts.clone();
            self.contexts = self.context_optimizer.step(self.config.learning_rate, table, gradients);
        }
        Ok(value)
    }

    fn model_step(&mut self, old: &GradientsParams) -> Result<f64, SolveError> {
        let losses = self.losses(self.contexts.contexts.val().detach())?;
        let loss = losses.mean();
        let value = loss.clone().into_scalar::<f64>();
        if value.is_finite() {
            let gradients = GradientsParams::from_grads(loss.backward(), &self.field);
            let gradients = self.pulled(old, gradients);
            let rate = self.config.model_rate(self.outer);
            self.field = self.model_optimizer.step(rate, self.field.clone(), gradients);
        }
        Ok(value)
    }

    /// The gate is no part of what is pulled, unless gradients train it.
    fn pulled(&self, old: &GradientsParams, gradients: GradientsParams) -> GradientsParams {
        let beta = self.config.proximal_beta;
        match self.config.gate_training {
            GateTraining::LeastSquares => add_proximal(&self.field.experts, old, beta, gradients),
            GateTraining::GradientDescent => add_proximal(&self.field, old, beta, gradients),
        }
    }

    fn refit(&mut self, report: &mut GateReport) -> Result<(), InputError> {
        let by_gradient = self.config.gate_training == GateTraining::GradientDescent;
        // A single expert has nothing to be chosen from.
        if by_gradient
            || self.field.num_experts() == 1
            || !self.steps.is_multiple_of(self.config.gate_update_every)
        {
            return Ok(());
        }
        let contexts = self.contexts.to_matrix();
        let (experts, size) = (self.field.num_experts(), contexts.columns());
        let random = &mut self.random;
        let centroids = self.centroids.take().unwrap_or_else(|| {
            Matrix::from_fn(experts, size, |_, _| FIRST_CENTROIDS * (2.0 * random.random::<f64>() - 1.0))
        });
        let noise = normal_matrix(contexts.rows(), size, random);
        let field = self.field.valid();
        let plain = self.contexts.contexts.val().inner();
        let losses = field.expert_losses(plain, self.observed[1].clone(), &self.solver);
        match self.update.update(&contexts, &losses, &centroids, &noise)? {
            GateUpdate::Updated { gate, centroids, replaced, .. } => {
                self.field.gate.set(&gate);
                self.centroids = Some(centroids);
                report.updated += 1;
                report.replaced += replaced;
            }
            GateUpdate::EmptyCluster { .. } => report.empty += 1,
            GateUpdate::NotConverged { .. } => report.not_converged += 1,
        }
        Ok(())
    }
}

pub(super) fn check_observed(observed: &Tensor<4>, steps: usize) -> Result<(), InputError> {
    let shape = observed.dims();
    if shape[2] != steps + 1 || shape.contains(&0) {
        let need = format!("[M, B, {}, D]: a state at 0 and after each step", steps + 1);
        return Err(InputError::new("observed", format!("shape {shape:?}"), need));
    }
    match observed.to_data().iter::<f64>().find(|value| !value.is_finite()) {
        Some(value) => Err(InputError::new("observed", value, "finite numbers")),
        None => Ok(()),
    }
}
