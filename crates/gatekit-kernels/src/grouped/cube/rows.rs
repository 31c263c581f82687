//! Rows added to the rows that they belong to, in one launch and always in the same order.

use burn::{backend::Backend, tensor::DType};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::{
    cube::{address, allocate, grid, into_contiguous, line, upload},
    grouped::portable_experts,
    primitive::Primitive,
};

/// Adds rows `[rows, width]` to the rows of zeros `[count, width]` that they belong to.
pub(super) fn add_rows<B: Backend<FloatTensorPrimitive = CubeTensor>>(
    rows: Primitive<B>,
    to: &[usize],
    count: usize,
) -> Primitive<B> {
    let shape = rows.dims();
    if rows.dtype() != DType::F32 || shape[1] * count == 0 {
        return portable_experts::add_rows(rows, to, count);
    }
    let rows = into_contiguous(rows.0);
    let sums = allocate(&rows, [count, shape[1]], DType::F32);
    let line = line(shape[1], &[&rows]);
    let (cubes, cube) = grid(&sums, count * shape[1] / line);
    // SAFETY: a unit writes one line if the sums have it, and reads rows that exist.
    unsafe {
        add_rows_kernel::launch_unchecked(
            &sums.client,
            cubes,
            cube,
            address(&[&rows, &sums]),
            line,
            rows.clone().into_buffer_arg(),
            upload(&rows, &members(to, count)),
            sums.clone().into_buffer_arg(),
            count,
            shape[1] / line,
        );
    }
    Primitive(sums)
}

/// Where the rows of each of `count` sums begin in this list, and its end: `count + 1` places; then the rows.
fn members(to: &[usize], count: usize) -> Vec<u32> {
    let mut list = vec![0; count + 1 + to.len()];
    to.iter().for_each(|sum| list[sum + 1] += 1);
    list[0] = count as u32 + 1;
    for sum in 0..count {
        list[sum + 1] += list[sum];
    }
    let mut next = list[..count].to_vec();
    for (row, sum) in to.iter().enumerate() {
        list[next[*sum] as usize] = row as u32;
        next[*sum] += 1;
    }
    list
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn add_rows_kernel<N: Size>(
    rows: &[Vector<f32, N>],
    members: &[u32],
    sums: &mut [Vector<f32, N>],
    count: usize,
    lines: usize,
) {
    let line = ABSOLUTE_POS % lines;
    let row = ABSOLUTE_POS / lines;
    if row < count {
        let mut sum = Vector::<f32, N>::new(0.0);
        for place in members[row] as usize..members[row + 1] as usize {
            sum += rows[members[place] as usize * lines + line];
        }
        sums[row * lines + line] = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::members;

    #[test]
    fn every_row_is_in_the_list_of_its_sum() {
        assert_eq!(members(&[2, 0, 2, 1, 2], 4), [5, 6, 7, 10, 10, 1, 3, 0, 2, 4]);
        assert_eq!(members(&[], 2), [3, 3, 3]);
    }
}
