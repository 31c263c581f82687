//! Expected errors by closed formulas.

use burn::config::Config;
use gatekit_core::linalg::Matrix;
use gatekit_core::{ConfigError, InputError, check_sizes};

use super::errors::{ErrorLedger, check_index, squared_errors};

/// Configuration of [`ExpectedErrors`].
#[derive(Config, Debug)]
pub struct ExpectedErrorsConfig {
    /// Features d of a sample.
    pub input_dim: usize,
    /// Samples s of a round, `1 <= s < d`.
    pub samples: usize,
    /// Experts M. Default 1.
    #[config(default = 1)]
    pub num_experts: usize,
}

impl ExpectedErrorsConfig {
    /// For truths `[N, d]`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for sizes of 0, for `s >= d`, and for truths of another width or none.
    pub fn try_init(&self, truth: &Matrix) -> Result<ExpectedErrors, ConfigError> {
        let sizes =
            [("input_dim", self.input_dim), ("samples", self.samples), ("num_experts", self.num_experts)];
        check_sizes(&sizes)?;
        if self.samples >= self.input_dim {
            let need = format!("less than input_dim = {}", self.input_dim);
            return Err(ConfigError::new("samples", self.samples, need));
        }
        if truth.columns() != self.input_dim || truth.rows() == 0 {
            let need = format!("the width of the truths, of which there are {}", truth.rows());
            return Err(ConfigError::new("input_dim", self.input_dim, need));
        }
        let rate = 1.0 - self.samples as f64 / self.input_dim as f64;
        Ok(ExpectedErrors { experts: self.num_experts, rate, truth: truth.clone() })
    }
}

/// The expected errors of a whole run.
#[derive(Debug, Clone)]
pub struct ExpectedRun {
    /// After every round, the error of every expert on every task, `[M, N]`.
    pub errors: Vec<Matrix>,
    /// Forgetting and generalisation of these errors.
    pub ledger: ErrorLedger,
}

/// What errors are to be expected when the rows of every data set are isotropic Gaussian.
///
/// With `r = 1 - s/d`, for given tasks and routing, exactly: `e_0[m, n] = ||w*_n||^2`, and in a round with task
/// `n_t` and expert `m_t`
///
/// ```text
/// e[m_t, n] <- r e[m_t, n] + (1 - r) ||w*_{n_t} - w*_n||^2
/// ```
///
/// while other experts stay: an expert's error decays with its own number of rounds, and it forgets nothing as
/// long as it sees one cluster. After Li et al. (arXiv 2406.16437), whose theorems have this shape.
#[derive(Debug, Clone)]
pub struct ExpectedErrors {
    experts: usize,
    rate: f64,
    truth: Matrix,
}

impl ExpectedErrors {
    /// The factor `r = 1 - s/d` that one round leaves of an error.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// The errors of a run whose round t has task `tasks[t]` and expert `chosen[t]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for no round at all, lists of unequal length, and a task or an expert that is none.
    pub fn run(&self, tasks: &[usize], chosen: &[usize]) -> Result<ExpectedRun, InputError> {
        if tasks.is_empty() {
            return Err(InputError::new("tasks", "no round", "at least 1"));
        }
        if tasks.len() != chosen.len() {
            let got = format!("{} experts for {} tasks", chosen.len(), tasks.len());
            return Err(InputError::new("chosen", got, "one expert a round"));
        }
        let apart = squared_errors(&self.truth, &self.truth);
        let start = squared_errors(&Matrix::zeros(self.experts, self.truth.columns()), &self.truth);
        let mut ledger = ErrorLedger::new(self.experts, self.truth.rows());
        let mut errors: Vec<Matrix> = Vec::with_capacity(tasks.len());
        for (&task, &expert) in tasks.iter().zip(chosen) {
            check_index("tasks", task, self.truth.rows())?;
            check_index("chosen", expert, self.experts)?;
            let mut present = errors.last().unwrap_or(&start).clone();
            for (error, apart) in present.row_mut(expert).iter_mut().zip(apart.row(task)) {
                *error = self.rate * *error + (1.0 - self.rate) * apart;
            }
            ledger.record(task, expert, &present)?;
            errors.push(present);
        }
        Ok(ExpectedRun { errors, ledger })
    }

    /// `E F_t` of a single expert when tasks are drawn uniformly:
    /// `1/(t-1) sum over k < t of [(r^t - r^k) size + (r^k - r^t + (1 - r)(1 - r^(t-k))) gap]`, 0 for t = 1.
    ///
    /// # Errors
    ///
    /// [`InputError`] for `t = 0`.
    pub fn single_forgetting(&self, t: usize) -> Result<f64, InputError> {
        check_rounds(t)?;
        let (size, gap) = self.size_and_gap();
        let power = |exponent: usize| self.rate.powi(exponent as i32);
        let terms = (1..t).map(|k| {
            let fallen = power(k) - power(t);
            (fallen + (1.0 - self.rate) * (1.0 - power(t - k))) * gap - fallen * size
        });
        Ok(if t == 1 { 0.0 } else { terms.sum::<f64>() / (t - 1) as f64 })
    }

    /// `E G_t` of a single expert when tasks are drawn uniformly: `r^t size + (1 - r^t)(1 - 1/t) gap`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for `t = 0`.
    pub fn single_generalization(&self, t: usize) -> Result<f64, InputError> {
        check_rounds(t)?;
        let (size, gap) = self.size_and_gap();
        let left = self.rate.powi(t as i32);
        Ok(left * size + (1.0 - left) * (1.0 - 1.0 / t as f64) * gap)
    }

    /// Mean squared norm of the truths, and mean squared distance of two of them.
    fn size_and_gap(&self) -> (f64, f64) {
        let tasks = self.truth.rows() as f64;
        let norms = squared_errors(&Matrix::zeros(1, self.truth.columns()), &self.truth);
        let apart = squared_errors(&self.truth, &self.truth);
        let sum = |matrix: &Matrix| matrix.values().iter().sum::<f64>();
        (sum(&norms) / tasks, sum(&apart) / (tasks * tasks))
    }
}

fn check_rounds(t: usize) -> Result<(), InputError> {
    match t {
        0 => Err(InputError::new("rounds", 0, "at least 1")),
        _ => Ok(()),
    }
}
