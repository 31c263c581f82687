//! The grouped product in CubeCL: one launch for all groups, and one for each of the two gradients.
//!
//! A cube makes one tile of a result. The host cuts the rows of every group into tiles and tells each cube its group
//! and its rows in a table of three numbers, so that uneven groups cost tiles, not launches, and groups without rows
//! cost nothing. The gradient of the weight sums over the rows of a group within a cube, always in the same order.
//!
//! * [`plan`]: the tile sizes, and what a device must have.
//! * [`table`]: which rows a cube works on.
//! * [`kernel`]: the kernel of all three products; [`sums`]: a tile of a result while it is made.
//! * [`few`]: a kernel for the result where no group has more than a few rows.
//! * [`launch`]: from tensors to kernel launches.

mod few;
mod kernel;
mod launch;
mod plan;
mod sums;
mod table;

use burn::backend::Backend;
use burn_cubecl::tensor::CubeTensor;

use super::{ExpertArguments, ExpertSpec, GroupedBackend, portable, portable_experts};
use launch::Problem;

/// The grouped product.
pub(super) fn matmul<B: Backend<FloatTensorPrimitive = CubeTensor>>(
    x: CubeTensor,
    weight: CubeTensor,
    offsets: &[usize],
) -> CubeTensor {
    match Problem::new(&x, &weight, offsets) {
        Some(problem) => problem.result(x, weight),
        None => portable::forward::<B>(x, weight, offsets),
    }
}

/// Gradients of `x` and the weight.
pub(super) fn matmul_backward<B: Backend<FloatTensorPrimitive = CubeTensor>>(
    x: CubeTensor,
    weight: CubeTensor,
    gradient: CubeTensor,
    offsets: &[usize],
) -> (CubeTensor, CubeTensor) {
    match Problem::new(&x, &weight, offsets) {
        Some(problem) => problem.gradients(x, weight, gradient),
        None => portable::backward::<B>(x, weight, gradient, offsets),
    }
}

/// The outputs and the inner rows of gated experts, which are kept whether or not they are asked for.
pub(super) fn experts<B: GroupedBackend<FloatTensorPrimitive = CubeTensor>>(
    arguments: ExpertArguments<B>,
    spec: &ExpertSpec,
    _keep: bool,
) -> (CubeTensor, CubeTensor) {
    portable_experts::forward(arguments, spec)
}

/// Gradients of the arguments of gated experts.
pub(super) fn experts_backward<B: GroupedBackend<FloatTensorPrimitive = CubeTensor>>(
    arguments: ExpertArguments<B>,
    kept: CubeTensor,
    gradient: CubeTensor,
    spec: &ExpertSpec,
) -> ExpertArguments<B> {
    portable_experts::backward(arguments, kept, gradient, spec)
}
