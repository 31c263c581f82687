//! A tile of a result while it is made: in registers of units, or in matrix units.

use cubecl::prelude::*;

use super::plan::{DEPTH, Plan};
use crate::cube::{
    blocks::{ALIGNMENT, BLOCK, Blocks, UNITS},
    tiles::Tile,
};

/// The sums of a tile, in float32. Either `registers` or `blocks` has them, as the plan says; the other is a single
/// number that no one reads.
#[derive(CubeType)]
pub(super) struct Sums {
    registers: Array<f32>,
    blocks: Blocks,
    #[cube(comptime)]
    plan: Plan,
}

#[cube]
impl Sums {
    /// All zero.
    pub fn zeros(#[comptime] plan: Plan) -> Sums {
        let count = comptime!(plan.tiling.registers());
        let mut registers = Array::<f32>::new(count);
        #[unroll]
        for index in 0..count {
            registers[index] = 0.0;
        }
        Sums { registers, blocks: Blocks::zeros(comptime!(plan.tiling.grid())), plan }
    }

    /// Adds the product of two tiles in shared memory.
    ///
    /// The caller synchronises the cube before (tiles written) and after (tiles overwritten).
    pub fn add<E: Float>(&mut self, left: &Shared<[E]>, right: &Shared<[E]>) {
        let plan = comptime!(self.plan);
        if comptime!(plan.tiling.uses_planes()) {
            self.blocks.product::<E>(
                left,
                0usize,
                comptime!(plan.layouts()[0]),
                right,
                0usize,
                comptime!(plan.layouts()[1]),
                DEPTH,
                comptime!(plan.tiling.grid().all()),
            );
        } else {
            self.add_by_units::<E>(left, right);
        }
    }

    /// Neighbouring units have neighbouring rows and columns, so that what they read lies in different banks.
    fn add_by_units<E: Float>(&mut self, left: &Shared<[E]>, right: &Shared<[E]>) {
        let plan = comptime!(self.plan);
        let rows = comptime!(plan.tiling.own()[0]);
        let cols = comptime!(plan.tiling.own()[1]);
        let left_at = unit_row(plan) * comptime!(plan.layouts()[0].axis_stride());
        let right_at = unit_col(plan) * comptime!(plan.layouts()[1].axis_stride());
        let mut own = Array::<f32>::new(rows);
        for step in 0..DEPTH {
            let left_step = left_at + step * comptime!(plan.layouts()[0].depth_stride());
            let right_step = right_at + step * comptime!(plan.layouts()[1].depth_stride());
            #[unroll]
            for row in 0..rows {
                own[row] = f32::cast_from(
                    left[left_step
                        + comptime!(row * plan.tiling.units()[0] * plan.layouts()[0].axis_stride())],
                );
            }
            #[unroll]
            for col in 0..cols {
                let number = f32::cast_from(
                    right[right_step
                        + comptime!(col * plan.tiling.units()[1] * plan.layouts()[1].axis_stride())],
                );
                #[unroll]
                for row in 0..rows {
                    self.registers[comptime!(row * cols + col)] += own[row] * number;
                }
            }
        }
    }

    /// Writes the tile to its place in the result.
    pub fn store<R: Float>(&self, place: &Tile, result: &mut [R]) {
        let plan = comptime!(self.plan);
        if comptime!(plan.tiling.uses_planes()) {
            self.store_blocks::<R>(place, result);
        } else {
            let rows = comptime!(plan.tiling.own()[0]);
            let cols = comptime!(plan.tiling.own()[1]);
            #[unroll]
            for index in 0..comptime!(rows * cols) {
                let row = unit_row(plan) + comptime!(index / cols * plan.tiling.units()[0]);
                let col = unit_col(plan) + comptime!(index % cols * plan.tiling.units()[1]);
                if row < place.rows && col < place.cols {
                    result[place.start + row * place.row_stride + col] = R::cast_from(self.registers[index]);
                }
            }
        }
    }

    /// From matrix units, through shared memory.
    fn store_blocks<R: Float>(&self, place: &Tile, result: &mut [R]) {
        let grid = comptime!(self.plan.tiling.grid());
        let length = comptime!(grid.stage_len(1));
        let mut stage = Shared::<[f32]>::new_aligned_slice(length, ALIGNMENT);
        let mut other_stage = Shared::<[f32]>::new_aligned_slice(length, ALIGNMENT);
        // By turns through two stages: what is written was read before the last synchronisation.
        #[unroll]
        for strip in 0..comptime!(grid.cols) {
            let turn = if comptime!(strip % 2 == 0) { &mut stage } else { &mut other_stage };
            self.blocks.spill(turn, strip, 1usize);
            sync_cube();
            for round in 0..comptime!(grid.rows * BLOCK * BLOCK / UNITS) {
                let index = UNIT_POS as usize + round * UNITS;
                let row = index / BLOCK;
                let col = index % BLOCK + comptime!(strip * BLOCK);
                if row < place.rows && col < place.cols {
                    result[place.start + row * place.row_stride + col] =
                        R::cast_from(turn[row * comptime!(grid.stage_stride(1)) + index % BLOCK]);
                }
            }
        }
    }
}

/// The unit's first row of a tile.
#[cube]
fn unit_row(#[comptime] plan: Plan) -> usize {
    UNIT_POS as usize / comptime!(plan.tiling.units()[1])
}

/// The unit's first column of a tile.
#[cube]
fn unit_col(#[comptime] plan: Plan) -> usize {
    UNIT_POS as usize % comptime!(plan.tiling.units()[1])
}
