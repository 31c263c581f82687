//! Least squares of minimum norm, by singular values.

use super::matrix::{Matrix, add_scaled, dot};
use crate::error::InputError;

/// Sweeps over all pairs of columns; about ten are enough for any matrix.
const MAX_SWEEPS: usize = 60;

/// The `X` `[n, k]` of least norm among those that minimise `||A X - B||_F`, for `A` `[m, n]` and
/// `B` `[m, k]`.
///
/// Singular values up to `max(m, n) * 2.2e-16` of the largest count as 0, so that a rank-deficient
/// `A` has an answer too. One-sided Jacobi rotations, which find small singular values accurately
/// (Demmel and Veselic 1992).
///
/// # Errors
///
/// [`InputError`] for a value that is not finite.
///
/// # Panics
///
/// When `A` and `B` differ in rows.
pub fn lstsq(a: &Matrix, b: &Matrix) -> Result<Matrix, InputError> {
    assert!(a.rows() == b.rows(), "lstsq: `a` has {} rows, `b` {}", a.rows(), b.rows());
    for (name, matrix) in [("a", a), ("b", b)] {
        if let Some(value) = matrix.values().iter().find(|value| !value.is_finite()) {
            return Err(InputError::new(name, value, "finite numbers"));
        }
    }
    // Columns of the taller form are rotated: A = U S V^T, or A^T = V S U^T.
    let wide = a.rows() < a.columns();
    let (scaled, rotation) = rotated(if wide { a.clone() } else { a.transposed() });
    let norms: Vec<f64> =
        (0..scaled.rows()).map(|row| dot(scaled.row(row), scaled.row(row)).sqrt()).collect();
    let largest = norms.iter().copied().fold(0.0, f64::max);
    let cutoff = largest * f64::EPSILON * a.rows().max(a.columns()) as f64;
    let mut x = Matrix::zeros(a.columns(), b.columns());
    for (index, norm) in norms.iter().enumerate().filter(|(_, norm)| **norm > cutoff) {
        // `scaled` holds s u (or s v), `rotation` the other side's unit vector.
        let (left, right) = match wide {
            false => (scaled.row(index), rotation.row(index)),
            true => (rotation.row(index), scaled.row(index)),
        };
        let mut projected = vec![0.0; b.columns()];
        for (row, factor) in left.iter().enumerate() {
            add_scaled(&mut projected, *factor, b.row(row));
        }
        for (row, factor) in right.iter().enumerate() {
            add_scaled(x.row_mut(row), factor / (norm * norm), &projected);
        }
    }
    Ok(x)
}

/// Rotates the rows of `a` until they are orthogonal: `(R a, R)`.
fn rotated(mut a: Matrix) -> (Matrix, Matrix) {
    let count = a.rows();
    let mut rotation = Matrix::from_fn(count, count, |row, column| f64::from(u8::from(row == column)));
    for _ in 0..MAX_SWEEPS {
        let mut changed = false;
        for p in 0..count {
            for q in p + 1..count {
                let (alpha, beta) = (dot(a.row(p), a.row(p)), dot(a.row(q), a.row(q)));
                let gamma = dot(a.row(p), a.row(q));
                if gamma.abs() <= f64::EPSILON * (alpha * beta).sqrt() {
                    continue;
                }
                changed = true;
                let zeta = (beta - alpha) / (2.0 * gamma);
                let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                for matrix in [&mut a, &mut rotation] {
                    rotate(matrix, p, q, cosine, cosine * tangent);
                }
            }
        }
        if !changed {
            break;
        }
    }
    (a, rotation)
}

fn rotate(matrix: &mut Matrix, p: usize, q: usize, cosine: f64, sine: f64) {
    for column in 0..matrix.columns() {
        let (x, y) = (matrix[[p, column]], matrix[[q, column]]);
        matrix[[p, column]] = cosine * x - sine * y;
        matrix[[q, column]] = sine * x + cosine * y;
    }
}
