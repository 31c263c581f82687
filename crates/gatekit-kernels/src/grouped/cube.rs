//! The grouped product in CubeCL: one launch for all groups, and one for each of the two gradients.
//!
//! A cube makes one tile of a result. The host cuts the rows of every group into tiles and tells each cube its group
//! and its rows in a table of three numbers, so that uneven groups cost tiles, not launches, and groups without rows
//! cost nothing. The gradient of the weight sums over the rows of a group within a cube, always in the same order.
//!
//! * [`plan`]: the tile sizes, and what a device must have.
//! * [`table`]: which rows a cube works on.
//! * [`kernel`]: the kernel of all three products.
//! * [`few`]: one for the result where no group has more than a few rows.
//! * [`launch`]: from tensors to kernel launches.

mod few;
mod kernel;
mod launch;
mod plan;
mod table;

use burn_cubecl::{CubeBackend, tensor::CubeTensor};

use super::portable;
use launch::Problem;

/// The forward pass.
pub(super) fn forward(x: CubeTensor, weight: CubeTensor, offsets: &[usize]) -> CubeTensor {
    match Problem::new(&x, &weight, offsets) {
        Some(problem) => problem.result(x, weight),
        None => portable::forward::<CubeBackend>(x, weight, offsets),
    }
}

/// Gradients of `x` and the weight.
pub(super) fn backward(
    x: CubeTensor,
    weight: CubeTensor,
    gradient: CubeTensor,
    offsets: &[usize],
) -> (CubeTensor, CubeTensor) {
    match Problem::new(&x, &weight, offsets) {
        Some(problem) => problem.gradients(x, weight, gradient),
        None => portable::backward::<CubeBackend>(x, weight, gradient, offsets),
    }
}
