//! Rows that are put together from other rows: what the operation computes, and where it goes from there.

mod autodiff;
mod backend;
#[cfg(feature = "cubecl")]
pub(crate) mod cube;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod host;
mod map;
mod portable;

use std::sync::Arc;

use burn::{backend::Dispatch, tensor::Tensor};

pub use backend::RowsBackend;
pub use map::RowMap;

use crate::precision::check_dtypes;

/// `y_t = sum over the sources s of target t of x_s`: rows that are picked, permuted or added up.
///
/// Differentiable in `x`. The gradient is the same operation with the [transposed](RowMap::transposed) map, so that
/// neither direction scatters: every row of a result is written once, its sources are added in the order of the map, in
/// at least float32.
///
/// # Shapes
///
/// - `x`: `[sources, width]`; result `[targets, width]` in its type; a target without sources is a row of zeros
///
/// # Panics
///
/// When `x` is not in floating point or has another number of rows than the map has sources.
pub fn combine_rows(x: Tensor<2>, map: &Arc<RowMap>) -> Tensor<2> {
    let [rows, width] = x.dims();
    assert!(rows == map.sources(), "combine_rows: `x` has {rows} rows, the map {} sources", map.sources());
    check_dtypes("combine_rows", x.dtype(), [None; 0]);
    if map.members().is_empty() || width == 0 {
        return Tensor::zeros([map.targets(), width], (&x.device(), x.dtype()));
    }
    Tensor::from_dispatch(<Dispatch as RowsBackend>::combine_rows(x.into_dispatch(), map.clone()))
}
