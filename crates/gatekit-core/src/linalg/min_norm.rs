//! The nearest solution of a linear system.

use burn::tensor::DType;

use super::matrix::{Matrix, add_scaled, dot};
use crate::error::InputError;

/// How [`min_norm_step`] solves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Factorization {
    /// `X^T = Q R`: the error grows with the condition number of `X`.
    Qr,
    /// `X X^T = L L^T`: half the work, but the error grows with the square of it.
    Cholesky,
}

impl Factorization {
    /// What suits data of this precision: Cholesky where it has digits to lose, else QR.
    pub fn of(dtype: DType) -> Self {
        if dtype == DType::F64 { Self::Cholesky } else { Self::Qr }
    }
}

/// `w + X^T (X X^T)^-1 (y - X w)`: of all solutions of `X w = y` the one nearest to `w`, where
/// gradient descent on the squared error ends when it starts at `w`.
///
/// `x` `[s, d]` with `s < d`, `y` `[s]`, `w` and the result `[d]`. `precision` is the relative error of
/// the entries of `x` (its type's epsilon): a row that lies in the span of the others up to that is
/// refused, as its direction would be made of rounding errors.
///
/// # Errors
///
/// [`InputError`] for `s >= d` (there may be no solution), for rows that depend on one another, and for
/// values that are not finite.
///
/// # Panics
///
/// When the sizes of `y` or `w` do not fit.
pub fn min_norm_step(
    x: &Matrix,
    y: &[f64],
    w: &[f64],
    factorization: Factorization,
    precision: f64,
) -> Result<Vec<f64>, InputError> {
    let (samples, dims) = (x.rows(), x.columns());
    assert!(y.len() == samples, "min_norm_step: `y` has {} values, `x` {samples} rows", y.len());
    assert!(w.len() == dims, "min_norm_step: `w` has {} values, `x` {dims} columns", w.len());
    if samples >= dims {
        let need = format!("fewer samples than the {dims} dimensions: the system may have no solution");
        return Err(InputError::new("x", format!("{samples} samples of {dims} dimensions"), need));
    }
    for (name, values) in [("x", x.values()), ("y", y), ("w", w)] {
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(InputError::new(name, value, "finite numbers"));
        }
    }
    let residual: Vec<f64> = (0..samples).map(|row| y[row] - dot(x.row(row), w)).collect();
    let tolerance = precision.max(f64::EPSILON) * dims as f64;
    let mut moved = w.to_vec();
    match factorization {
        Factorization::Qr => {
            let (q, r) = orthonormal(x, tolerance)?;
            // R^T z = residual, from the first row on.
            let mut z = residual;
            for row in 0..samples {
                z[row] = (z[row] - dot(&r.row(row)[..row], &z[..row])) / r[[row, row]];
            }
            z.iter().enumerate().for_each(|(row, z)| add_scaled(&mut moved, *z, q.row(row)));
        }
        Factorization::Cholesky => {
            let z = solve_gram(x, residual, tolerance)?;
            z.iter().enumerate().for_each(|(row, z)| add_scaled(&mut moved, *z, x.row(row)));
        }
    }
    Ok(moved)
}

/// Orthonormal rows `Q` and the lower triangle `R^T` with `X = R^T Q`, by Gram and Schmidt, twice.
fn orthonormal(x: &Matrix, tolerance: f64) -> Result<(Matrix, Matrix), InputError> {
    let (samples, dims) = (x.rows(), x.columns());
    let (mut q, mut r) = (Matrix::zeros(samples, dims), Matrix::zeros(samples, samples));
    for row in 0..samples {
        let mut left = x.row(row).to_vec();
        // Once leaves rounding errors of what was taken away.
        for _ in 0..2 {
            for earlier in 0..row {
                let share = dot(&left, q.row(earlier));
                add_scaled(&mut left, -share, q.row(earlier));
                r[[row, earlier]] += share;
            }
        }
        let norm = dot(&left, &left).sqrt();
        if norm <= tolerance * dot(x.row(row), x.row(row)).sqrt() {
            return Err(dependent(x, row));
        }
        r[[row, row]] = norm;
        q.row_mut(row).iter_mut().zip(&left).for_each(|(q, left)| *q = left / norm);
    }
    Ok((q, r))
}

/// `(X X^T)^-1 b`.
fn solve_gram(x: &Matrix, b: Vec<f64>, tolerance: f64) -> Result<Vec<f64>, InputError> {
    let samples = x.rows();
    let mut lower = Matrix::zeros(samples, samples);
    for row in 0..samples {
        for column in 0..=row {
            let taken = dot(&lower.row(row)[..column], &lower.row(column)[..column]);
            let left = dot(x.row(row), x.row(column)) - taken;
            if row > column {
                lower[[row, column]] = left / lower[[column, column]];
                continue;
            }
            // The Gram matrix itself is rounded: of a smaller pivot no digit is right.
            let lowest = (tolerance * tolerance).max(f64::EPSILON * samples as f64);
            if left <= lowest * dot(x.row(row), x.row(row)) {
                return Err(dependent(x, row));
            }
            lower[[row, row]] = left.sqrt();
        }
    }
    let mut z = b;
    for row in 0..samples {
        z[row] = (z[row] - dot(&lower.row(row)[..row], &z[..row])) / lower[[row, row]];
    }
    for row in (0..samples).rev() {
        let later: f64 = (row + 1..samples).map(|later| lower[[later, row]] * z[later]).sum();
        z[row] = (z[row] - later) / lower[[row, row]];
    }
    Ok(z)
}

fn dependent(x: &Matrix, row: usize) -> InputError {
    let got = format!("row {row} of {} in the span of those before it", x.rows());
    InputError::new("x", got, "independent rows: fewer samples")
}
