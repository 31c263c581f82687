//! The result where no group has more than a few rows: every matrix is read once and every number of it is used a few
//! times, which needs neither tiles in shared memory nor products of blocks. So are the steps of a model that
//! generates.

use cubecl::{ir::ElemType, prelude::*};

use crate::cube::blocks::UNITS;

/// Units that share the columns of a result and read neighbouring numbers of them.
const LANES: usize = 32;

/// Columns of the result of `LANES` units: rows of the weight.
const COLUMNS: usize = 4;

/// Columns of the result of a cube.
pub(super) const WIDTH: usize = UNITS / LANES * COLUMNS;

/// Rows of a group, at most.
pub(super) const ROWS: usize = 4;

/// Bytes of shared memory, for so many rows.
pub(super) const fn shared_bytes(rows: usize) -> usize {
    rows * COLUMNS * UNITS * 4
}

/// `tiles`: three numbers each: group, first row, rows, `most` of them at most. `vectors`: those of a row of `x`.
///
/// Cubes: tiles, and parts of the columns of the result.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn few_rows_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    tiles: &[u32],
    result: &mut [F],
    width: usize,
    vectors: usize,
    #[comptime] most: usize,
    #[define(F)] _input: ElemType,
) {
    let number = CUBE_POS_X as usize;
    let group = tiles[number * 3] as usize;
    let first = tiles[number * 3 + 1] as usize;
    let rows = tiles[number * 3 + 2] as usize;
    let unit = UNIT_POS as usize;
    let first_col = CUBE_POS_Y as usize * WIDTH;
    let own_col = first_col + unit / LANES * COLUMNS;

    let mut sums = Array::<Vector<f32, N>>::new(comptime!(most * COLUMNS));
    #[unroll]
    for index in 0..comptime!(most * COLUMNS) {
        sums[index] = Vector::new(0.0);
    }
    let mut own = Array::<Vector<f32, N>>::new(most);
    let mut place = unit % LANES;
    while place < vectors {
        // Rows and columns past the last read the last, and their sums are dropped.
        #[unroll]
        for row in 0..most {
            own[row] = Vector::cast_from(x[(first + min(row, rows - 1)) * vectors + place]);
        }
        #[unroll]
        for col in 0..COLUMNS {
            let at = group * width + min(own_col + col, width - 1);
            let numbers = Vector::<f32, N>::cast_from(weight[at * vectors + place]);
            #[unroll]
            for row in 0..most {
                sums[comptime!(row * COLUMNS + col)] += own[row] * numbers;
            }
        }
        place += LANES;
    }

    let mut parts = Shared::<[f32]>::new_slice(comptime!(most * COLUMNS * UNITS));
    #[unroll]
    for index in 0..comptime!(most * COLUMNS) {
        let mut sum = 0.0f32;
        #[unroll]
        for lane in 0..N::value() {
            sum += sums[index].extract(lane);
        }
        parts[comptime!(index * UNITS) + unit] = sum;
    }
    sync_cube();
    let row = unit / WIDTH;
    let col = unit % WIDTH;
    if row < rows && first_col + col < width {
        let from = (row * COLUMNS + col % COLUMNS) * UNITS + col / COLUMNS * LANES;
        let mut sum = 0.0f32;
        for lane in 0..LANES {
            // Each unit begins elsewhere, so that no two meet in a bank.
            sum += parts[from + (lane + unit) % LANES];
        }
        result[(first + row) * width + first_col + col] = F::cast_from(sum);
    }
}
