//! Experts and gate together.

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use gatekit_core::ConfigError;
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::dispatch::DispatchPlan;
use gatekit_core::linalg::Matrix;
use gatekit_core::router::Assignment;

use super::expert::MetaExpert;
use super::gate::ContextGate;
use super::losses::environment_losses;
use super::mixture::SoftField;
use super::solver::{OdeSolver, SolveError, StackedField, VectorField};

/// A mixture of vector fields: `dy/dt = f_i(y, c)` with the one expert i that the gate picks for the
/// environment, and c its context or the i-th piece of `C / E` numbers of it.
///
/// The output is not multiplied by the gate's probability, and neither gate nor contexts take a gradient from
/// the choice: the gate is refitted, see [`KMeansGateUpdate`](super::KMeansGateUpdate). Nzoyem et al.
/// (arXiv 2502.05335), section 3.
#[derive(Module, Debug)]
pub struct MixerField<X: MetaExpert> {
    /// The experts.
    pub experts: Vec<X>,
    /// The gate.
    pub gate: ContextGate,
    split_context: bool,
}

impl<X: MetaExpert> MixerField<X> {
    /// From experts of one's own kind.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the gate is for another number of experts, or the experts for contexts of another
    /// size than the gate gives them.
    pub fn from_experts(
        experts: Vec<X>,
        gate: ContextGate,
        split_context: bool,
    ) -> Result<Self, ConfigError> {
        let count = experts.len();
        if count == 0 || count != gate.num_experts() {
            let need = format!("at least 1, as many as the gate has: {}", gate.num_experts());
            return Err(ConfigError::new("num_experts", count, need));
        }
        let size = gate.context_size();
        if split_context && !size.is_multiple_of(count) {
            return Err(ConfigError::new(
                "context_size",
                size,
                format!("a multiple of num_experts = {count}"),
            ));
        }
        let each = if split_context { size / count } else { size };
        if let Some(expert) = experts.iter().find(|expert| expert.context_size() != each) {
            let need = format!("{each} numbers for every expert");
            return Err(ConfigError::new("context_size", expert.context_size(), need));
        }
        Ok(Self { experts, gate, split_context })
    }

    /// Number of experts E.
    pub fn num_experts(&self) -> usize {
        self.experts.len()
    }

    /// Numbers C of a context.
    pub fn context_size(&self) -> usize {
        self.gate.context_size()
    }

    /// Binds environments to their experts and moves these by the contexts `[M, C]`: once for a trajectory.
    ///
    /// # Panics
    ///
    /// When the contexts have another width.
    pub fn bind(&self, contexts: Tensor<2>) -> BoundField<X::Adapted> {
        let choice = self.gate.choose(contexts.clone());
        let plan = DispatchPlan::new(&choice);
        let sorted = plan.gather(contexts);
        let runs = plan.offsets().windows(2).enumerate().filter(|(_, run)| run[0] < run[1]);
        let parts = runs.map(|(expert, run)| {
            let contexts = sorted.clone().narrow(0, run[0], run[1] - run[0]);
            self.experts[expert].adapt(self.piece(contexts, expert))
        });
        let parts: Vec<_> = parts.collect();
        let field = (!parts.is_empty()).then(|| X::Adapted::stack(parts));
        BoundField { field, plan, choice }
    }

    /// Every expert on every environment, weighted by the gate's probabilities, gradients and all: the mixture
    /// that MixER is compared with.
    ///
    /// # Panics
    ///
    /// When the contexts have another width, and without environments.
    pub fn bind_soft(&self, contexts: Tensor<2>) -> SoftField<X::Adapted> {
        SoftField::new(self.stacked(&contexts), self.gate.probabilities(contexts))
    }

    /// The numbers of the contexts `[n, C]` that one expert sees.
    fn piece(&self, contexts: Tensor<2>, expert: usize) -> Tensor<2> {
        let size = self.experts[expert].context_size();
        if self.split_context { contexts.narrow(1, expert * size, size) } else { contexts }
    }

    /// Expert by expert, each on all environments: `E M` of them.
    fn stacked(&self, contexts: &Tensor<2>) -> X::Adapted {
        let parts = self.experts.iter().enumerate();
        X::Adapted::stack(
            parts.map(|(index, expert)| expert.adapt(self.piece(contexts.clone(), index))).collect(),
        )
    }

    /// `dy/dt` `[M, B, D]` at states `y` `[M, B, D]` with contexts `[M, C]`, and the expert of every environment
    /// `[M]`.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, y: Tensor<3>, contexts: Tensor<2>) -> (Tensor<3>, Tensor<1, Int>) {
        let bound = self.bind(contexts);
        let choice = bound.choice().indices(&y.device()).squeeze_dim(1);
        (bound.velocity(y), choice)
    }

    /// The trajectory `[M, B, steps + 1, D]` from `y0` `[M, B, D]`.
    ///
    /// # Errors
    ///
    /// [`SolveError`] from an adaptive solver that cannot go on.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn rollout<S: OdeSolver>(
        &self,
        y0: Tensor<3>,
        contexts: Tensor<2>,
        solver: &S,
    ) -> Result<Tensor<4>, SolveError> {
        self.bind(contexts).rollout(y0, solver)
    }

    /// The mean squared error of every expert on every environment, `[M, E]`, each expert fed its own piece of
    /// the context; on the host. `observed` is `[M, B, steps + 1, D]`. An expert whose trajectories an adaptive
    /// solver cannot finish has infinite losses.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn expert_losses<S: OdeSolver>(
        &self,
        contexts: Tensor<2>,
        observed: Tensor<4>,
        solver: &S,
    ) -> Matrix {
        let [environments, _, _, _] = observed.dims();
        let experts = self.num_experts();
        if environments == 0 {
            return Matrix::zeros(0, experts);
        }
        let start = || observed.clone().narrow(2, 0, 1).squeeze_dim::<3>(2);
        let together = solver.solve(&self.stacked(&contexts), start().repeat_dim(0, experts));
        let losses: Vec<f64> = match together {
            Ok(trajectory) => {
                let observed = observed.repeat_dim(0, experts);
                environment_losses(trajectory, observed).into_data().iter::<f64>().collect()
            }
            Err(_) => {
                let alone = self.experts.iter().enumerate().map(|(index, expert)| {
                    let field = expert.adapt(self.piece(contexts.clone(), index));
                    match solver.solve(&field, start()) {
                        Ok(trajectory) => {
                            let losses = environment_losses(trajectory, observed.clone());
                            losses.into_data().iter::<f64>().collect()
                        }
                        Err(_) => vec![f64::INFINITY; environments],
                    }
                });
                alone.collect::<Vec<Vec<f64>>>().concat()
            }
        };
        Matrix::new(experts, environments, losses).transposed()
    }

    /// What published states call the tensors: the gate is `gate` itself, the experts are `experts.{i}.`.
    pub fn layout() -> TensorLayout {
        TensorLayout::default().with_prefix("gate.gate", "gate")
    }
}

/// Environments bound to their experts: a vector field on all of them.
#[derive(Debug, Clone)]
pub struct BoundField<F> {
    /// In the order of the experts; none without environments.
    field: Option<F>,
    plan: DispatchPlan,
    choice: Assignment,
}

impl<F: VectorField> BoundField<F> {
    /// The expert of every environment.
    pub fn choice(&self) -> &Assignment {
        &self.choice
    }

    /// The trajectory `[M, B, steps + 1, D]` from `y0` `[M, B, D]`.
    ///
    /// # Errors
    ///
    /// [`SolveError`] from an adaptive solver that cannot go on.
    ///
    /// # Panics
    ///
    /// When there is not one state an environment.
    pub fn rollout<S: OdeSolver>(&self, y0: Tensor<3>, solver: &S) -> Result<Tensor<4>, SolveError> {
        // States are sorted by expert once, not in every step.
        let [environments, batch, size] = y0.dims();
        let sorted = self.sorted(y0);
        let trajectory = match &self.field {
            Some(field) => solver.solve(field, sorted)?,
            None => solver.solve(&Still, sorted)?,
        };
        let times = trajectory.dims()[2];
        Ok(self.restored(trajectory.flatten(1, 3)).reshape([environments, batch, times, size]))
    }

    fn sorted(&self, y: Tensor<3>) -> Tensor<3> {
        let [environments, batch, size] = y.dims();
        self.plan.gather(y.flatten(1, 2)).reshape([environments, batch, size])
    }

    fn restored(&self, rows: Tensor<2>) -> Tensor<2> {
        let weights = Tensor::ones([rows.dims()[0], 1], (&rows.device(), rows.dtype()));
        self.plan.scatter_combine(rows, weights)
    }
}

impl<F: VectorField> VectorField for BoundField<F> {
    fn velocity(&self, y: Tensor<3>) -> Tensor<3> {
        let shape = y.dims();
        let velocity = match &self.field {
            Some(field) => field.velocity(self.sorted(y)),
            None => Still.velocity(y),
        };
        self.restored(velocity.flatten(1, 2)).reshape(shape)
    }
}

/// The field of no environment.
struct Still;

impl VectorField for Still {
    fn velocity(&self, y: Tensor<3>) -> Tensor<3> {
        y.zeros_like()
    }
}
