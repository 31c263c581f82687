//! What is minimised.

use burn::tensor::{DType, Tensor};

/// The mean squared error of every environment's trajectories `[M, B, T, D]` against the observed ones, `[M]`, in
/// at least float32.
///
/// # Panics
///
/// When the shapes differ.
pub fn environment_losses(trajectory: Tensor<4>, observed: Tensor<4>) -> Tensor<1> {
    assert!(
        trajectory.dims() == observed.dims(),
        "environment_losses: `trajectory` {:?} and `observed` {:?} differ in shape",
        trajectory.dims(),
        observed.dims()
    );
    let error = widen(trajectory) - widen(observed);
    error.square().flatten::<2>(1, 3).mean_dim(1).squeeze_dim(1)
}

/// `mean of the environments' losses + beta / 2 * mean (xi - xi_old)^2`, `[1]`, from losses `[m]` and contexts
/// `[M, C]`: what a context step minimises. Nzoyem et al. (arXiv 2502.05335), algorithm 1.
///
/// # Panics
///
/// When the contexts differ in shape.
pub fn context_objective(losses: Tensor<1>, contexts: Tensor<2>, old: Tensor<2>, beta: f64) -> Tensor<1> {
    assert!(
        contexts.dims() == old.dims(),
        "context_objective: `contexts` {:?} and `old` {:?} differ in shape",
        contexts.dims(),
        old.dims()
    );
    losses.mean() + (contexts - old).square().mean().mul_scalar(0.5 * beta)
}

fn widen<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(DType::F32),
        _ => x,
    }
}
