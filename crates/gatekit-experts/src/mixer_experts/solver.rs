//! Solving `dy/dt = f(y)` for many environments at once.

use burn::tensor::Tensor;
use gatekit_core::ConfigError;
use thiserror::Error;

/// A vector field on the states of n environments, each with B trajectories.
pub trait VectorField {
    /// `dy/dt` `[n, B, D]` at states `[n, B, D]`.
    fn velocity(&self, y: Tensor<3>) -> Tensor<3>;
}

/// A vector field that can be put together from those of other environments.
pub trait StackedField: VectorField + Sized {
    /// The field of all their environments, in this order.
    fn stack(parts: Vec<Self>) -> Self;
}

/// A trajectory that an adaptive solver could not finish.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("the solver stopped at time {time} of {end} after {steps} steps: {reason}")]
pub struct SolveError {
    /// Time reached.
    pub time: f64,
    /// Time wanted.
    pub end: f64,
    /// Steps tried.
    pub steps: usize,
    /// Why it could not go on.
    pub reason: &'static str,
}

/// Solves an initial value problem at equally spaced times.
pub trait OdeSolver {
    /// The trajectory `[n, B, steps + 1, D]` from `y0` `[n, B, D]`, which is its first state. Carries gradients.
    ///
    /// # Errors
    ///
    /// [`SolveError`] from solvers with adaptive steps, when they cannot go on.
    fn solve<F: VectorField>(&self, field: &F, y0: Tensor<3>) -> Result<Tensor<4>, SolveError>;
}

/// The classical Runge-Kutta method of fourth order with fixed steps:
/// `y + dt/6 (k1 + 2 k2 + 2 k3 + k4)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rk4 {
    steps: usize,
    dt: f64,
}

impl Rk4 {
    /// `steps` steps of `dt`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] unless `dt` is a finite number above 0.
    pub fn new(steps: usize, dt: f64) -> Result<Self, ConfigError> {
        check_dt(dt)?;
        Ok(Self { steps, dt })
    }
}

impl OdeSolver for Rk4 {
    fn solve<F: VectorField>(&self, field: &F, y0: Tensor<3>) -> Result<Tensor<4>, SolveError> {
        let mut states = vec![y0];
        for step in 0..self.steps {
            let y = states[step].clone();
            let ahead = |k: &Tensor<3>, share: f64| y.clone() + k.clone().mul_scalar(share * self.dt);
            let k1 = field.velocity(y.clone());
            let k2 = field.velocity(ahead(&k1, 0.5));
            let k3 = field.velocity(ahead(&k2, 0.5));
            let k4 = field.velocity(ahead(&k3, 1.0));
            let slope = k1 + (k2 + k3).mul_scalar(2.0) + k4;
            states.push(y + slope.mul_scalar(self.dt / 6.0));
        }
        Ok(Tensor::stack(states, 2))
    }
}

pub(super) fn check_dt(dt: f64) -> Result<(), ConfigError> {
    match dt.is_finite() && dt > 0.0 {
        true => Ok(()),
        false => Err(ConfigError::new("dt", dt, "a finite number above 0")),
    }
}
