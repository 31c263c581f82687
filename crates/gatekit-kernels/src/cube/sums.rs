//! Sums over the rows that the cubes of another kernel left, in an order that depends on the shape
//! alone.

use burn::{
    backend::TensorMetadata,
    tensor::{DType, Shape},
};
use burn_cubecl::tensor::CubeTensor;
use cubecl::{ir::ElemType, prelude::*};

use super::{address, allocate, element, grid, line};

/// Rows that one unit adds up: few enough that it takes little time, so that their sums are rows again.
const GROUP: usize = 32;

/// The sum of the rows of `parts` `[rows, ..]` in float32, as a tensor of `shape`.
pub(crate) fn sum_rows(parts: CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    let mut parts = parts;
    let columns = shape.num_elements();
    loop {
        let rows = parts.shape().num_elements() / columns;
        let groups = rows.div_ceil(GROUP);
        let sums = match groups {
            1 => allocate(&parts, shape.clone(), dtype),
            _ => allocate(&parts, [groups, columns], DType::F32),
        };
        let line = line(columns, &[&parts, &sums]);
        let (count, cube) = grid(&parts, groups * columns / line);
        // SAFETY: a unit writes one line if the sums have it, and reads rows that exist.
        unsafe {
            sum_rows_kernel::launch_unchecked(
                &sums.client,
                count,
                cube,
                address(&[&parts]),
                line,
                parts.into_buffer_arg(),
                sums.clone().into_buffer_arg(),
                rows,
                columns / line,
                element(&sums),
            );
        }
        if groups == 1 {
            return sums;
        }
        parts = sums;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn sum_rows_kernel<E: Float, N: Size>(
    parts: &[Vector<f32, N>],
    sums: &mut [Vector<E, N>],
    rows: usize,
    columns: usize,
    #[define(E)] _element: ElemType,
) {
    if ABSOLUTE_POS < sums.len() {
        let group = ABSOLUTE_POS / columns;
        let column = ABSOLUTE_POS % columns;
        let mut sum = Vector::<f32, N>::new(0.0);
        for row in group * GROUP..min(rows, group * GROUP + GROUP) {
            sum += parts[row * columns + column];
        }
        sums[ABSOLUTE_POS] = Vector::cast_from(sum);
    }
}
