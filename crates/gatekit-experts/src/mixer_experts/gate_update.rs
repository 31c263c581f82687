//! The gate, refitted.

use gatekit_core::linalg::{KMeans, Matrix, greedy_match, kmeans_l1, lstsq};
use gatekit_core::{ConfigError, InputError};

/// Refits the gate to the contexts: a pure function.
///
/// 1. k-means with mean absolute distances on the contexts;
/// 2. of every cluster the median over its members of each expert's loss;
/// 3. clusters in order take the expert of smallest median that is still free;
/// 4. `G = argmin ||X G - target||_F` of least norm, with `X = [xi + noise_level n, 1]` and the matched experts
///    one-hot as target.
///
/// Nzoyem et al. (arXiv 2502.05335), section 3.2.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KMeansGateUpdate {
    noise_level: f64,
    max_kmeans: usize,
    convergence_tol: f64,
    use_gate_bias: bool,
}

/// How a refit ended.
#[derive(Debug, Clone, PartialEq)]
pub enum GateUpdate {
    /// There is a new gate.
    Updated {
        /// G, `[C + 1, E]` or `[C, E]`.
        gate: Matrix,
        /// Centroids `[E, C]`, to begin the next refit with.
        centroids: Matrix,
        /// The cluster of every environment, `[M]`.
        assignment: Vec<usize>,
        /// The expert of every cluster, `[E]`.
        experts: Vec<usize>,
        /// Rounds of k-means.
        iterations: usize,
        /// Losses that were not finite, and counted as infinite.
        replaced: usize,
    },
    /// A cluster had no environment; the gate stays, the next refit draws its centroids anew.
    EmptyCluster {
        /// The cluster.
        cluster: usize,
        /// Rounds of k-means.
        iterations: usize,
    },
    /// k-means did not come to rest in time; the gate stays, the next refit draws its centroids anew.
    NotConverged {
        /// Rounds of k-means.
        iterations: usize,
    },
}

impl KMeansGateUpdate {
    /// `noise_level` of the contexts in the solve (1e-4 in the paper), at most `max_kmeans` rounds (20) until
    /// the centroids rest within `convergence_tol` (1e-4).
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a noise level or a tolerance that is negative or not finite, and for no round.
    pub fn new(
        noise_level: f64,
        max_kmeans: usize,
        convergence_tol: f64,
        use_gate_bias: bool,
    ) -> Result<Self, ConfigError> {
        for (field, value) in [("noise_level", noise_level), ("convergence_tol", convergence_tol)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(ConfigError::new(field, value, "a finite number, at least 0"));
            }
        }
        if max_kmeans == 0 {
            return Err(ConfigError::new("max_kmeans", 0, "at least 1"));
        }
        Ok(Self { noise_level, max_kmeans, convergence_tol, use_gate_bias })
    }

    /// From contexts `[M, C]`, the loss of every expert on every environment `[M, E]`, centroids `[E, C]` and
    /// standard normal draws `[M, C]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for centroids, losses or draws of another shape, contexts or draws that are not finite,
    /// and a cluster for which no expert has a finite loss.
    pub fn update(
        &self,
        contexts: &Matrix,
        losses: &Matrix,
        centroids: &Matrix,
        noise: &Matrix,
    ) -> Result<GateUpdate, InputError> {
        let (environments, size, experts) = (contexts.rows(), contexts.columns(), losses.columns());
        check_shape("losses", losses, [environments, experts])?;
        check_shape("centroids", centroids, [experts, size])?;
        check_shape("noise", noise, [environments, size])?;
        for (name, matrix) in [("contexts", contexts), ("centroids", centroids), ("noise", noise)] {
            if let Some(value) = matrix.values().iter().find(|value| !value.is_finite()) {
                return Err(InputError::new(name, value, "finite numbers"));
            }
        }
        let clusters = kmeans_l1(contexts, centroids.clone(), self.max_kmeans, self.convergence_tol);
        let (assignment, centroids, iterations) = match clusters {
            KMeans::Converged { assignment, centroids, rounds } => (assignment, centroids, rounds),
            KMeans::EmptyCluster { cluster, rounds } => {
                return Ok(GateUpdate::EmptyCluster { cluster, iterations: rounds });
            }
            KMeans::NotConverged { rounds } => return Ok(GateUpdate::NotConverged { iterations: rounds }),
        };
        let medians = cluster_medians(losses, &assignment)?;
        let matched = greedy_match(&medians);
        let bias = usize::from(self.use_gate_bias);
        let inputs = Matrix::from_fn(environments, size + bias, |row, column| match column < size {
            true => contexts[[row, column]] + self.noise_level * noise[[row, column]],
            false => 1.0,
        });
        let target = Matrix::from_fn(environments, experts, |row, column| {
            f64::from(u8::from(matched[assignment[row]] == column))
        });
        Ok(GateUpdate::Updated {
            gate: lstsq(&inputs, &target)?,
            centroids,
            assignment,
            experts: matched,
            iterations,
            replaced: losses.values().iter().filter(|loss| !loss.is_finite()).count(),
        })
    }
}

/// The median loss of every expert in every cluster, `[E, E]`.
fn cluster_medians(losses: &Matrix, assignment: &[usize]) -> Result<Matrix, InputError> {
    let experts = losses.columns();
    let mut medians = Matrix::zeros(experts, experts);
    for cluster in 0..experts {
        let members = || (0..losses.rows()).filter(|row| assignment[*row] == cluster);
        if !members().any(|row| losses.row(row).iter().any(|loss| loss.is_finite())) {
            let got =
                format!("no finite loss among the {} environments of cluster {cluster}", members().count());
            return Err(InputError::new("losses", got, "an expert that has not diverged"));
        }
        for expert in 0..experts {
            let of_expert = members().map(|row| losses[[row, expert]]);
            medians[[cluster, expert]] = median(of_expert.map(finite_or_infinite).collect());
        }
    }
    Ok(medians)
}

/// A diverged rollout may end in NaN or either infinity.
fn finite_or_infinite(loss: f64) -> f64 {
    if loss.is_finite() { loss } else { f64::INFINITY }
}

/// The mean of the two middle values when their number is even.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => 0.5 * values[middle - 1] + 0.5 * values[middle],
    }
}

fn check_shape(name: &str, matrix: &Matrix, [rows, columns]: [usize; 2]) -> Result<(), InputError> {
    match (matrix.rows(), matrix.columns()) == (rows, columns) {
        true => Ok(()),
        false => {
            let got = format!("shape [{}, {}]", matrix.rows(), matrix.columns());
            Err(InputError::new(name, got, format!("[{rows}, {columns}]")))
        }
    }
}
