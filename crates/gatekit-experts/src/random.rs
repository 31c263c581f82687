//! Draws on the host.

use std::f64::consts::TAU;

use gatekit_core::linalg::Matrix;
use rand::RngExt;
use rand::rngs::StdRng;

/// A draw of normal(0, 1), by Box and Muller.
pub(crate) fn normal(random: &mut StdRng) -> f64 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    radius * (TAU * random.random::<f64>()).cos()
}

/// Draws of normal(0, 1), `[rows, columns]`.
pub(crate) fn normal_matrix(rows: usize, columns: usize, random: &mut StdRng) -> Matrix {
    Matrix::from_fn(rows, columns, |_, _| normal(random))
}
