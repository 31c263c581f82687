//! The tasks of the paper's simulations.

use burn::config::Config;
use burn::tensor::{Device, Tensor, TensorData};
use gatekit_core::linalg::Matrix;
use gatekit_core::{ConfigError, check_sizes};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::random::{normal, normal_matrix};

/// Length of the short rows of a data set, and of its one long row.
const SHORT: f64 = 0.1;
const SIGNAL: f64 = 6.0;
/// How much smaller than a truth the difference of two of one cluster is.
const WITHIN: f64 = 200.0;
/// Size of the coordinates that only repeat others.
const COPIES: f64 = 1e-3;

/// Where the rows of a data set come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Design {
    /// One row along the task's truth among short random ones, as in the paper's simulation.
    Signal,
    /// All rows standard normal, for which the closed formulas are exact.
    Isotropic,
}

/// Configuration of [`SyntheticTasks`].
#[derive(Config, Debug)]
pub struct SyntheticTasksConfig {
    /// Tasks N. Default 6.
    #[config(default = 6)]
    pub num_tasks: usize,
    /// Clusters K of tasks whose truths are nearly equal, at most N. Default 3.
    #[config(default = 3)]
    pub num_clusters: usize,
    /// Features d. Default 10.
    #[config(default = 10)]
    pub input_dim: usize,
    /// Samples s of a round, `d / 2 <= s < d` for [`Design::Signal`]: the truths live in the first s features.
    /// Default 6.
    #[config(default = 6)]
    pub samples: usize,
    /// Norm sigma_0 of the truths. Default 0.4.
    #[config(default = 0.4)]
    pub scale: f64,
    /// Where the rows come from. Default those of the simulation.
    #[config(default = "Design::Signal")]
    pub design: Design,
    /// Seed of the truths. Default 0.
    #[config(default = 0)]
    pub seed: u64,
}

impl SyntheticTasksConfig {
    /// Draws the truths.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first field that cannot be used.
    pub fn try_init(&self) -> Result<SyntheticTasks, ConfigError> {
        let (dims, samples) = (self.input_dim, self.samples);
        check_sizes(&[
            ("num_tasks", self.num_tasks),
            ("num_clusters", self.num_clusters),
            ("input_dim", dims),
            ("samples", samples),
        ])?;
        if self.num_clusters > self.num_tasks {
            let need = format!("at most num_tasks = {}", self.num_tasks);
            return Err(ConfigError::new("num_clusters", self.num_clusters, need));
        }
        if samples >= dims {
            return Err(ConfigError::new("samples", samples, format!("less than input_dim = {dims}")));
        }
        if self.design == Design::Signal && dims > 2 * samples {
            return Err(ConfigError::new("samples", samples, format!("at least half of input_dim = {dims}")));
        }
        if !(self.scale.is_finite() && self.scale > 0.0) {
            return Err(ConfigError::new("scale", self.scale, "a finite number above 0"));
        }
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut truth = Matrix::zeros(self.num_tasks, dims);
        for task in 0..self.num_tasks {
            let values: Vec<f64> = match task.checked_sub(self.num_clusters) {
                None => unit(samples, &mut random).into_iter().map(|value| self.scale * value).collect(),
                Some(like) => {
                    let center = truth.row(like)[..samples].to_vec();
                    center
                        .into_iter()
                        .map(|value| value + self.scale / WITHIN * normal(&mut random))
                        .collect()
                }
            };
            truth.row_mut(task)[..samples].copy_from_slice(&values);
        }
        Ok(SyntheticTasks { config: self.clone(), truth })
    }
}

/// Linear tasks in clusters: `y = X w*_n` without noise.
///
/// Truths are random directions of norm sigma_0, K of them; task `n >= K` differs from task `n - K` by
/// `normal(0, (sigma_0 / 200)^2)` an entry. With [`Design::Signal`] a data set has s rows of length 0.1 in random
/// directions of the first s features, one of which is replaced by `6 w*_n / ||w*_n||`; every further feature
/// repeats one of the first, times `1e-3` and a normal draw of its own in that round. Li et al.
/// (arXiv 2406.16437), section 5.
#[derive(Debug, Clone)]
pub struct SyntheticTasks {
    config: SyntheticTasksConfig,
    truth: Matrix,
}

/// The data set of one round.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskData {
    /// The task.
    pub task: usize,
    /// `[s, d]`, each entry a float32 number.
    pub x: Matrix,
    /// `[s]`.
    pub y: Vec<f64>,
}

impl TaskData {
    /// `x` `[s, d]` and `y` `[s]` in float32 on a device.
    pub fn tensors(&self, device: &Device) -> (Tensor<2>, Tensor<1>) {
        let y = TensorData::new(self.y.clone(), [self.y.len()]);
        let dtype = burn::tensor::DType::F32;
        (self.x.to_tensor(device, dtype), Tensor::from_data(y, (device, dtype)))
    }
}

impl SyntheticTasks {
    /// The truths `w*`, `[N, d]`.
    pub fn truth(&self) -> &Matrix {
        &self.truth
    }

    /// The cluster of every task.
    pub fn clusters(&self) -> Vec<usize> {
        (0..self.config.num_tasks).map(|task| task % self.config.num_clusters).collect()
    }

    /// A data set of a task drawn uniformly.
    pub fn draw(&self, random: &mut StdRng) -> TaskData {
        let task = random.random_range(0..self.config.num_tasks);
        self.draw_task(task, random)
    }

    /// A data set of a given task.
    ///
    /// # Panics
    ///
    /// When there is no such task.
    pub fn draw_task(&self, task: usize, random: &mut StdRng) -> TaskData {
        let (dims, samples) = (self.config.input_dim, self.config.samples);
        let truth = self.truth.row(task);
        let mut x = match self.config.design {
            Design::Isotropic => normal_matrix(samples, dims, random),
            Design::Signal => {
                let mut x = Matrix::zeros(samples, dims);
                let signal = random.random_range(0..samples);
                let norm = truth.iter().map(|value| value * value).sum::<f64>().sqrt();
                for row in 0..samples {
                    let (direction, length) = match row == signal {
                        true => (truth[..samples].iter().map(|value| value / norm).collect(), SIGNAL),
                        false => (unit(samples, random), SHORT),
                    };
                    let values = x.row_mut(row)[..samples].iter_mut().zip(direction);
                    values.for_each(|(x, value)| *x = length * value);
                }
                for copy in samples..dims {
                    let factor = COPIES * normal(random);
                    for row in 0..samples {
                        x[[row, copy]] = factor * x[[row, copy - samples]];
                    }
                }
                x
            }
        };
        // Labels belong to the numbers that a float32 tensor holds.
        for row in 0..samples {
            x.row_mut(row).iter_mut().for_each(|value| *value = f64::from(*value as f32));
        }
        let y = (0..samples).map(|row| x.row(row).iter().zip(truth).map(|(x, w)| x * w).sum()).collect();
        TaskData { task, x, y }
    }
}

/// A random direction.
fn unit(dims: usize, random: &mut StdRng) -> Vec<f64> {
    let draws: Vec<f64> = (0..dims).map(|_| normal(random)).collect();
    let norm = draws.iter().map(|draw| draw * draw).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    draws.into_iter().map(|draw| draw / norm).collect()
}
