//! Matrices on spheres: norms, orthogonalisation, and the step that stays on the sphere.

use burn::tensor::{DType, Tensor};

/// The coefficients (a, b, c) of the five steps of [`newton_schulz`].
const COEFFICIENTS: [[f64; 3]; 5] = [
    [4.0848, -6.8946, 2.9270],
    [3.9505, -6.3029, 2.6377],
    [3.7418, -5.5913, 2.3037],
    [2.8769, -3.1427, 1.2046],
    [2.8366, -3.0525, 1.2012],
];

/// Half precision as float32, all else as it is.
pub(super) fn widen<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(DType::F32),
        _ => x,
    }
}

/// Frobenius norms `sqrt(sum w^2)` in at least float32, with axes of 1 in place of those that were summed:
/// of every matrix (the last two axes) of a stack with `per_matrix`, else of the whole tensor.
pub fn frobenius_norm<const D: usize>(x: Tensor<D>, per_matrix: bool) -> Tensor<D> {
    let first = if per_matrix { D.saturating_sub(2) } else { 0 };
    (first..D).fold(widen(x).square(), |sum, axis| sum.sum_dim(axis)).sqrt()
}

/// Brings the singular values of every matrix `[.., out, in]` near 1, by five steps of an odd quintic
/// iteration: `A = X X^T`, `X = a X + (b A + c A A) X`, begun at `X = U / (|U| + epsilon)`.
///
/// Matrices with more rows than columns are transposed on the way. Singular vectors stay as they are, and
/// a matrix of zeros stays zero. Computed in at least float32. Jordan et al., "Muon" (2024), with the
/// coefficients of SqrtGate's released code.
///
/// # Panics
///
/// For a tensor with less than two axes.
pub fn newton_schulz<const D: usize>(update: Tensor<D>, epsilon: f64) -> Tensor<D> {
    assert!(D >= 2, "newton_schulz: a tensor of shape {:?} is no matrix", update.dims());
    let (dims, dtype) = (update.dims(), update.dtype());
    let [rows, columns] = [dims[D - 2], dims[D - 1]];
    let stack: usize = dims[..D - 2].iter().product();
    if stack * rows * columns == 0 {
        return update;
    }
    let x = widen(update).reshape([stack, rows, columns]);
    let x = if rows > columns { x.swap_dims(1, 2) } else { x };
    let norm = frobenius_norm(x.clone(), true).add_scalar(epsilon);
    let x = COEFFICIENTS.into_iter().fold(x / norm, |x, [a, b, c]| {
        let gram = x.clone().matmul(x.clone().swap_dims(1, 2));
        let polynomial = gram.clone().mul_scalar(b) + gram.clone().matmul(gram).mul_scalar(c);
        x.clone().mul_scalar(a) + polynomial.matmul(x)
    });
    let x = if rows > columns { x.swap_dims(1, 2) } else { x };
    x.reshape(dims).cast(dtype)
}

/// A step along `update`, as long as `rate` times the weight's norm, and back to the weight's sphere:
///
/// ```text
/// W' = W - rate |W| U / max(|U|, epsilon)        result: W' |W| / max(|W'|, epsilon)
/// ```
///
/// `weight` and `update` `[..]` of one shape; one sphere a matrix with `per_matrix`, else one for all. The
/// norm of the result is that of the weight; a weight of zeros has no direction and stays zero.
///
/// # Panics
///
/// When the shapes differ.
pub fn sphere_step<const D: usize>(
    weight: Tensor<D>,
    update: Tensor<D>,
    rate: f64,
    epsilon: f64,
    per_matrix: bool,
) -> Tensor<D> {
    assert!(
        weight.dims() == update.dims(),
        "sphere_step: `weight` {:?} and `update` {:?} differ in shape",
        weight.dims(),
        update.dims()
    );
    let dtype = weight.dtype();
    let (weight, update) = (widen(weight), widen(update));
    let radius = frobenius_norm(weight.clone(), per_matrix);
    let length = frobenius_norm(update.clone(), per_matrix).clamp_min(epsilon);
    let moved = weight - update * (radius.clone() / length).mul_scalar(rate);
    let length = frobenius_norm(moved.clone(), per_matrix).clamp_min(epsilon);
    (moved * (radius / length)).cast(dtype)
}
