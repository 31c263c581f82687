//! Runge-Kutta steps that watch their error.

use burn::tensor::Tensor;
use gatekit_core::ConfigError;

use super::solver::{OdeSolver, SolveError, VectorField, check_dt};

/// Rows of the tableau below the diagonal; the last one is the solution of fifth order, whose slope is the
/// first of the next step.
const STAGES: [&[f64]; 6] = [
    &[1.0 / 5.0],
    &[3.0 / 40.0, 9.0 / 40.0],
    &[44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0],
    &[19372.0 / 6561.0, -25360.0 / 2187.0, 64448.0 / 6561.0, -212.0 / 729.0],
    &[9017.0 / 3168.0, -355.0 / 33.0, 46732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18656.0],
    &[35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0],
];
/// Fifth order minus fourth.
const ERROR: [f64; 7] =
    [71.0 / 57600.0, 0.0, -71.0 / 16695.0, 71.0 / 1920.0, -17253.0 / 339200.0, 22.0 / 525.0, -1.0 / 40.0];
/// A step is changed by at most these factors, and aims a little below the allowed error.
const FACTORS: [f64; 2] = [0.2, 10.0];
const SAFETY: f64 = 0.9;

/// The Runge-Kutta pair of fifth and fourth order of Dormand and Prince (1980), with adaptive steps that
/// land on every time of the trajectory.
///
/// A step is accepted when the root mean square over the state's entries of
/// `error / (atol + rtol max(|y|, |y_new|))` is at most 1 for every trajectory. One step serves them all.
/// Gradients pass through the steps; their sizes are constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DormandPrince {
    steps: usize,
    dt: f64,
    rtol: f64,
    atol: f64,
    max_steps: usize,
}

impl DormandPrince {
    /// Reports the state at `steps` times, `dt` apart; relative tolerance 1e-3, absolute 1e-6, at most 4096
    /// steps, as in the paper.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] unless `dt` is a finite number above 0.
    pub fn new(steps: usize, dt: f64) -> Result<Self, ConfigError> {
        check_dt(dt)?;
        Ok(Self { steps, dt, rtol: 1e-3, atol: 1e-6, max_steps: 4096 })
    }

    /// With other tolerances.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for one that is not a finite number above 0.
    pub fn with_tolerances(mut self, rtol: f64, atol: f64) -> Result<Self, ConfigError> {
        for (field, value) in [("rtol", rtol), ("atol", atol)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(ConfigError::new(field, value, "a finite number above 0"));
            }
        }
        (self.rtol, self.atol) = (rtol, atol);
        Ok(self)
    }

    /// With at most `max_steps` steps, rejected ones included.
    pub fn with_max_steps(mut self, max_steps: usize) -> Self {
        self.max_steps = max_steps;
        self
    }

    /// The largest error of a trajectory, 1 being allowed; NaN when a state is.
    fn error(&self, y: &Tensor<3>, next: &Tensor<3>, slopes: &[Tensor<3>], step: f64) -> f64 {
        let error = combined(slopes, &ERROR).mul_scalar(step).detach();
        let size = y.clone().detach().abs().max_pair(next.clone().detach().abs());
        let scaled = error / size.mul_scalar(self.rtol).add_scalar(self.atol);
        let errors = scaled.square().mean_dim(2).sqrt().into_data();
        // `f64::max` would pass over NaN.
        errors.iter::<f64>().fold(0.0, |most, error| if error <= most { most } else { error })
    }
}

impl OdeSolver for DormandPrince {
    fn solve<F: VectorField>(&self, field: &F, y0: Tensor<3>) -> Result<Tensor<4>, SolveError> {
        let mut states = vec![y0.clone()];
        if self.steps == 0 {
            return Ok(Tensor::stack(states, 2));
        }
        let end = self.dt * self.steps as f64;
        let (mut y, mut slope) = (y0.clone(), field.velocity(y0));
        let (mut tried, mut wanted) = (0, self.dt);
        for report in 0..self.steps {
            let mut left = self.dt;
            while left > 0.0 {
                let stopped = |reason| {
                    let time = self.dt * (report + 1) as f64 - left;
                    Err(SolveError { time, end, steps: tried, reason })
                };
                if tried >= self.max_steps {
                    return stopped("the steps are used up");
                }
                if wanted <= self.dt * 1e-9 {
                    return stopped("the steps became too small: the state may have diverged");
                }
                tried += 1;
                // A remainder that rounding leaves is no step of its own.
                let last = wanted >= left * (1.0 - 1e-9);
                let step = if last { left } else { wanted };
                let mut slopes = vec![slope.clone()];
                let mut next = y.clone();
                for row in STAGES {
                    next = y.clone() + combined(&slopes, row).mul_scalar(step);
                    slopes.push(field.velocity(next.clone()));
                }
                let error = self.error(&y, &next, &slopes, step);
                let factor = match error.is_finite() {
                    true => (SAFETY * error.max(1e-10).powf(-0.2)).clamp(FACTORS[0], FACTORS[1]),
                    false => FACTORS[0],
                };
                if error <= 1.0 {
                    (y, slope) = (next, slopes.swap_remove(STAGES.len()));
                    left = if last { 0.0 } else { left - step };
                    // A step cut short at a time of the trajectory says little about the next one.
                    wanted = if last { wanted.max(step * factor) } else { step * factor };
                } else {
                    wanted = step * factor.min(0.9);
                }
            }
            states.push(y.clone());
        }
        Ok(Tensor::stack(states, 2))
    }
}

/// `sum of weight * slope`, without the weights of 0.
fn combined(slopes: &[Tensor<3>], weights: &[f64]) -> Tensor<3> {
    let terms = slopes.iter().zip(weights).filter(|(_, weight)| **weight != 0.0);
    let terms = terms.map(|(slope, weight)| slope.clone().mul_scalar(*weight));
    terms.reduce(|sum, term| sum + term).expect("every row of the tableau has a weight")
}
