//! Rows put together in one launch: a unit adds its elements of all sources of a row, in their order.

use burn::{
    backend::{Backend, tensor::FloatTensor},
    tensor::DType,
};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{RowMap, portable};
use crate::cube::{address, allocate, grid, into_contiguous, line, upload};

/// The result, in the type of `x`. Float32 has a kernel.
pub(crate) fn combine<B: Backend<FloatTensorPrimitive = CubeTensor>>(
    x: FloatTensor<B>,
    map: &RowMap,
) -> CubeTensor {
    if x.dtype != DType::F32 {
        return portable::combine::<B>(x, map);
    }
    let rows = into_contiguous(x);
    let (targets, width) = (map.targets(), burn::backend::TensorMetadata::shape(&rows)[1]);
    let sums = allocate(&rows, [targets, width], DType::F32);
    let line = line(width, &[&rows]);
    let (cubes, cube) = grid(&sums, targets * width / line);
    // SAFETY: a unit writes one line if the sums have it, and reads rows that exist.
    unsafe {
        combine_rows_kernel::launch_unchecked(
            &sums.client,
            cubes,
            cube,
            address(&[&rows, &sums]),
            line,
            rows.clone().into_buffer_arg(),
            upload(&rows, &list(map)),
            sums.clone().into_buffer_arg(),
            targets,
            width / line,
        );
    }
    sums
}

/// Where the sources of every target begin in this list, and its end; then the sources.
fn list(map: &RowMap) -> Vec<u32> {
    let first = map.targets() + 1;
    let starts = (0..map.targets()).map(|target| map.range(target).start).chain([map.members().len()]);
    starts
        .map(|start| first + start)
        .chain(map.members().iter().copied())
        .map(|number| number as u32)
        .collect()
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn combine_rows_kernel<N: Size>(
    rows: &[Vector<f32, N>],
    members: &[u32],
    sums: &mut [Vector<f32, N>],
    targets: usize,
    lines: usize,
) {
    let line = ABSOLUTE_POS % lines;
    let row = ABSOLUTE_POS / lines;
    if row < targets {
        let mut sum = Vector::<f32, N>::new(0.0);
        for place in members[row] as usize..members[row + 1] as usize {
            sum += rows[members[place] as usize * lines + line];
        }
        sums[row * lines + line] = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::{RowMap, list};

    #[test]
    fn every_source_is_in_the_list_of_its_target() {
        assert_eq!(list(&RowMap::adding(&[2, 0, 2, 1, 2], 4)), [5, 6, 7, 10, 10, 1, 3, 0, 2, 4]);
        assert_eq!(list(&RowMap::adding(&[], 2)), [3, 3, 3]);
        assert_eq!(list(&RowMap::picking(5, vec![4, 4])), [3, 4, 5, 4, 4]);
    }
}
