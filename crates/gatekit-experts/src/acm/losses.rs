//! What the learners, the gates and the whole model are trained on, in three phases.

use burn::config::Config;
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use gatekit_core::{ConfigError, InputError};
use serde::{Deserialize, Serialize};

/// Keeps logarithms of 0 finite.
const TINY: f64 = 1e-20;

/// Phase 1: `mean (h_n - o)^2` over tokens, n = 0 .. N and features, `[1]`.
///
/// Partial sums `h` `[batch, time, N + 1, d]`, the replaced module's output `target` o `[batch, time, d]`: every
/// partial sum is to be a valid output. Wójcik et al. (arXiv 2312.10193), eq. 4.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn distill(h: Tensor<4>, target: Tensor<3>) -> Tensor<1> {
    let error = error_of("distill", h, target);
    error.powi_scalar(2).mean()
}

/// Phase 2: how many learners a token should use, `[batch, time]`; no gradient.
///
/// ```text
/// e_k = ||h_k - o||        flat_k = e_k / e_{k+1} < gating_error_factor, k = 0 .. N - 1
/// label = j + 1 with j the first flat k; N where none is flat, or where already k = 0 is
/// ```
///
/// A perfect learner, `e_{k+1} = 0`, makes the ratio infinite and is not flat, nor is 0 / 0. Shapes as [`distill`];
/// `gating_error_factor` is 1.2 in the paper. Wójcik et al. (arXiv 2312.10193), section 3.3, the rule as released.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn gate_labels(h: Tensor<4>, target: Tensor<3>, gating_error_factor: f64) -> Tensor<2, Int> {
    let [batch, time, sums, _] = h.dims();
    let blocks = sums - 1;
    let device = h.device();
    if batch * time == 0 {
        return Tensor::zeros([batch, time], &device);
    }
    let error = error_of("gate_labels", h.detach(), target.detach());
    let error = error.powi_scalar(2).sum_dim(3).squeeze_dim::<3>(3).sqrt();
    let (here, next) = (error.clone().narrow(2, 0, blocks), error.narrow(2, 1, blocks));
    // A product instead of the ratio: nothing is below 0.
    let flat: Tensor<3, Bool> = here.lower(next.mul_scalar(gating_error_factor));
    let labels = Tensor::<1, Int>::arange(1..blocks as i64 + 1, &device).reshape([1, 1, blocks]);
    let first = labels.expand([batch, time, blocks]).mask_fill(flat.bool_not(), blocks as i64);
    let first = first.min_dim(2).squeeze_dim::<2>(2);
    // Where the first learner gains little already, j = 0.
    first.clone().mask_fill(first.equal_elem(1), blocks as i64)
}

/// Phase 2: `mean -log(z_label + 1e-20)` over tokens, `[1]`, of a gate `[batch, time, N + 1]` and labels
/// `[batch, time]`.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn gate_loss(gate: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<1> {
    let [batch, time, _] = gate.dims();
    assert!(
        labels.dims() == [batch, time],
        "gate_loss: `labels` {:?} for a gate {:?}",
        labels.dims(),
        gate.dims()
    );
    wide(gate).gather(2, labels.unsqueeze_dim::<3>(2)).add_scalar(TINY).log().mean().neg()
}

/// Gates `[batch, time, N + 1]` of A modules as one tensor `[batch, time, A, N + 1]`.
///
/// # Errors
///
/// [`InputError`] for no gate, or gates that differ in tokens or in the number of learners.
pub fn stack_gates(gates: &[Tensor<3>]) -> Result<Tensor<4>, InputError> {
    let first = gates.first().ok_or_else(|| InputError::new("gates", "none", "at least one"))?.dims();
    if let Some((module, other)) = gates.iter().enumerate().find(|(_, gate)| gate.dims() != first) {
        let got = format!("{:?} of module {module}", other.dims());
        return Err(InputError::new(
            "gates",
            got,
            format!("{first:?}, as of module 0: equal tokens and learners"),
        ));
    }
    Ok(Tensor::stack(gates.to_vec(), 2))
}

/// `sum_a c_a mean_{b,t}(sum_k k G) / sum_a c_a N`, `[1]`: the share of the learners' full cost that is used.
///
/// Gates G `[batch, time, A, N + 1]`; `costs` c of one learner of every module. Wójcik et al. (arXiv 2312.10193),
/// eq. 6.
///
/// # Errors
///
/// [`InputError`] unless there is one cost a module, finite, none below 0 and one above.
pub fn compute_share(gates: Tensor<4>, costs: &[f64]) -> Result<Tensor<1>, InputError> {
    let [_, _, modules, choices] = gates.dims();
    if costs.len() != modules {
        return Err(InputError::new("costs", costs.len(), format!("one for each of {modules} modules")));
    }
    let full: f64 = costs.iter().sum::<f64>() * (choices - 1) as f64;
    if !(full > 0.0 && full.is_finite()) || costs.iter().any(|cost| *cost < 0.0) {
        return Err(InputError::new("costs", format!("{costs:?}"), "finite, none below 0 and one above"));
    }
    let gates = wide(gates);
    let costs =
        Tensor::<1>::from_data(TensorData::new(costs.to_vec(), [modules]), (&gates.device(), gates.dtype()));
    // In shares of the full cost: FLOPs of large layers are far from 1.
    let weights = costs.div_scalar(full).reshape([1, 1, modules, 1]);
    let tokens = (gates.dims()[0] * gates.dims()[1]) as f64;
    Ok((numbered(gates) * weights).sum().div_scalar(tokens))
}

/// How far from the budget the model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BudgetLoss {
    /// `|share - target|`.
    L1,
    /// Its square.
    L2,
    /// The square of a hundred times the gap: in percent.
    L2Scaled,
}

impl BudgetLoss {
    /// The loss of a `share` `[1]` of the cost where `target` was to be used.
    pub fn apply(self, share: Tensor<1>, target: f64) -> Tensor<1> {
        let gap = share.sub_scalar(target);
        match self {
            Self::L1 => gap.abs(),
            Self::L2 => gap.powi_scalar(2),
            Self::L2Scaled => gap.mul_scalar(100.0).powi_scalar(2),
        }
    }
}

/// `mean sum_k p log(p + 1e-20) / log(N + 1)`, `[1]`, with p the choices of a sequence: gates
/// `[batch, time, A, N + 1]` summed over time and normalised, the mean over sequences and modules.
///
/// The negative entropy, between -1 and 0: a loss that asks for all depths within a sequence. Wójcik et al.
/// (arXiv 2312.10193), eq. 7.
pub fn gate_entropy(gates: Tensor<4>) -> Tensor<1> {
    let classes = gates.dims()[3];
    let summed = wide(gates).sum_dim(1);
    let p = summed.clone() / summed.sum_dim(3);
    let entropy = (p.clone() * p.add_scalar(TINY).log()).sum_dim(3);
    entropy.mean().div_scalar((classes as f64).ln())
}

/// `-2 mean_{b,b'} |load_b - load_b'|`, `[1]`, with `load_b = mean_{t,a,k} k G`: a loss that asks for samples which
/// differ in cost.
///
/// Gates G `[batch, time, A, N + 1]`; pairs of a sample with itself count. Wójcik et al. (arXiv 2312.10193), eq. 8.
pub fn compute_diversity(gates: Tensor<4>) -> Tensor<1> {
    let [batch, time, modules, classes] = gates.dims();
    let load = numbered(wide(gates)).reshape([batch, time * modules * classes]).mean_dim(1);
    let difference = load.clone().expand([batch, batch]) - load.swap_dims(0, 1).expand([batch, batch]);
    difference.abs().mean().mul_scalar(-2.0)
}

/// Phase 3: what is asked of the gates besides the task.
#[derive(Config, Debug)]
pub struct AcmObjective {
    /// How the distance from the budget counts. Default `l1`.
    #[config(default = "BudgetLoss::L1")]
    pub budget_loss: BudgetLoss,
    /// Share of the learners' full cost that is to be used, in [0, 1].
    pub budget_target: f64,
    /// Weight of the budget. Default 0.1.
    #[config(default = 0.1)]
    pub budget_weight: f64,
    /// Weight of [`gate_entropy`]. Default 0.05.
    #[config(default = 0.05)]
    pub entropy_weight: f64,
    /// Weight of [`compute_diversity`]. Default 0.05.
    #[config(default = 0.05)]
    pub diversity_weight: f64,
}

/// The losses of phase 3, each `[1]`.
#[derive(Debug, Clone)]
pub struct AcmLosses {
    /// [`compute_share`].
    pub compute_share: Tensor<1>,
    /// Its distance from the target.
    pub budget: Tensor<1>,
    /// [`gate_entropy`].
    pub entropy: Tensor<1>,
    /// [`compute_diversity`].
    pub diversity: Tensor<1>,
    /// The task's loss and these three, weighted.
    pub total: Tensor<1>,
}

impl AcmObjective {
    /// Refuses targets and weights that are none.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a target outside [0, 1] or a weight that is not finite.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(0.0..=1.0).contains(&self.budget_target) {
            return Err(ConfigError::new("budget_target", self.budget_target, "a share in [0, 1]"));
        }
        for (field, weight) in [
            ("budget_weight", self.budget_weight),
            ("entropy_weight", self.entropy_weight),
            ("diversity_weight", self.diversity_weight),
        ] {
            if !weight.is_finite() {
                return Err(ConfigError::new(field, weight, "a finite number"));
            }
        }
        Ok(())
    }

    /// `L = L_task + w_b L_b + w_e L_e + w_d L_d` of the task's loss `[1]`, the gates `[batch, time, A, N + 1]`
    /// ([`stack_gates`]) and the `costs` of one learner of each of the A modules.
    ///
    /// # Errors
    ///
    /// [`InputError`] as [`compute_share`], and for a configuration that [`check`](Self::check) refuses.
    pub fn losses(&self, task: Tensor<1>, gates: Tensor<4>, costs: &[f64]) -> Result<AcmLosses, InputError> {
        self.check().map_err(|error| InputError::new(error.field, error.got, error.need))?;
        let share = compute_share(gates.clone(), costs)?;
        let budget = self.budget_loss.apply(share.clone(), self.budget_target);
        let (entropy, diversity) = (gate_entropy(gates.clone()), compute_diversity(gates));
        let total = wide(task)
            + budget.clone().mul_scalar(self.budget_weight)
            + entropy.clone().mul_scalar(self.entropy_weight)
            + diversity.clone().mul_scalar(self.diversity_weight);
        Ok(AcmLosses { compute_share: share, budget, entropy, diversity, total })
    }
}

/// `h - o` of every partial sum.
fn error_of(function: &str, h: Tensor<4>, target: Tensor<3>) -> Tensor<4> {
    let ([batch, time, sums, d], of) = (h.dims(), target.dims());
    assert!(
        of == [batch, time, d] && sums > 1,
        "{function}: `target` {of:?} does not fit `h` {:?}, [batch, time, N + 1, d]",
        h.dims()
    );
    wide(h) - wide(target).unsqueeze_dim::<4>(2)
}

/// `k G`.
fn numbered(gates: Tensor<4>) -> Tensor<4> {
    let choices = gates.dims()[3];
    let k = Tensor::<1, Int>::arange(0..choices as i64, &gates.device());
    gates.clone() * k.float().cast(gates.dtype()).reshape([1, 1, 1, choices])
}

/// Losses are computed in at least float32.
fn wide<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(DType::F32),
        _ => x,
    }
}
