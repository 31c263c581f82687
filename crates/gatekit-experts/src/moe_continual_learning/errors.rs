//! Forgetting and generalisation by definition.

use gatekit_core::InputError;
use gatekit_core::linalg::Matrix;

/// `||w_m - w*_n||^2` for experts `[M, d]` and truths `[N, d]`: `[M, N]`.
///
/// # Panics
///
/// When the two differ in width.
pub fn squared_errors(experts: &Matrix, truth: &Matrix) -> Matrix {
    assert!(
        experts.columns() == truth.columns(),
        "squared_errors: experts of {} numbers, truths of {}",
        experts.columns(),
        truth.columns()
    );
    Matrix::from_fn(experts.rows(), truth.rows(), |expert, task| {
        experts.row(expert).iter().zip(truth.row(task)).map(|(w, truth)| (w - truth).powi(2)).sum()
    })
}

/// Measures a run round by round, from the error of every expert on every task.
///
/// With `E_t[m, n]` the error of expert m on task n after round t, which had task `n_t` and expert `m_t`:
///
/// ```text
/// fresh_t = E_t[m_t, n_t]
/// F_t = 1/(t-1) sum over k < t of (E_t[m_k, n_k] - fresh_k)        forgetting, F_1 = 0
/// G_t = 1/t sum over k <= t of E_t[m_k, n_k]                       generalisation
/// ```
///
/// Li et al. (arXiv 2406.16437), section 3. The errors are squared distances there
/// ([`squared_errors`]); expected errors and test losses of networks serve as well.
#[derive(Debug, Clone)]
pub struct ErrorLedger {
    /// Rounds that had each expert and task, `[M, N]`.
    counts: Matrix,
    fresh: Vec<f64>,
    forgetting: Vec<f64>,
    generalization: Vec<f64>,
}

impl ErrorLedger {
    /// For M experts and N tasks, without a round.
    pub fn new(num_experts: usize, num_tasks: usize) -> Self {
        let counts = Matrix::zeros(num_experts, num_tasks);
        Self { counts, fresh: Vec::new(), forgetting: Vec::new(), generalization: Vec::new() }
    }

    /// Takes a round: its task, its expert, and the errors `[M, N]` after it.
    ///
    /// # Errors
    ///
    /// [`InputError`] for a task or an expert that is none.
    ///
    /// # Panics
    ///
    /// When the errors have another shape.
    pub fn record(&mut self, task: usize, expert: usize, errors: &Matrix) -> Result<(), InputError> {
        let (experts, tasks) = (self.counts.rows(), self.counts.columns());
        assert!(
            (errors.rows(), errors.columns()) == (experts, tasks),
            "ErrorLedger: `errors` has {} rows of {}, need {experts} of {tasks}",
            errors.rows(),
            errors.columns()
        );
        check_index("tasks", task, tasks)?;
        check_index("chosen", expert, experts)?;
        let total = |counts: &Matrix| -> f64 {
            let pairs = counts.values().iter().zip(errors.values()).filter(|(count, _)| **count > 0.0);
            pairs.map(|(count, error)| count * error).sum()
        };
        let earlier = self.fresh.len();
        let forgotten = total(&self.counts) - self.fresh.iter().sum::<f64>();
        self.forgetting.push(if earlier == 0 { 0.0 } else { forgotten / earlier as f64 });
        self.counts[[expert, task]] += 1.0;
        self.fresh.push(errors[[expert, task]]);
        self.generalization.push(total(&self.counts) / self.fresh.len() as f64);
        Ok(())
    }

    /// `fresh_t` of every round.
    pub fn fresh(&self) -> &[f64] {
        &self.fresh
    }

    /// `F_t` of every round.
    pub fn forgetting(&self) -> &[f64] {
        &self.forgetting
    }

    /// `G_t` of every round.
    pub fn generalization(&self) -> &[f64] {
        &self.generalization
    }

    /// How many rounds had each expert and task, `[M, N]`.
    pub fn counts(&self) -> &Matrix {
        &self.counts
    }
}

pub(super) fn check_index(name: &str, index: usize, bound: usize) -> Result<(), InputError> {
    match index < bound {
        true => Ok(()),
        false => Err(InputError::new(name, index, format!("0 .. {bound}"))),
    }
}
