//! One tile of one of the products.

use cubecl::{ir::ElemType, prelude::*};

use super::{
    plan::{DEPTH, Plan, Product},
    sums::Sums,
};
use crate::cube::{
    blocks::ALIGNMENT,
    tiles::{Tile, load_by},
};

/// `tiles`: three numbers each: group, first row, rows.
///
/// * [`Product::Result`]: `left` is `x`, `right` the weight `[groups, width, depth]`.
/// * [`Product::InputGradient`]: `left` is the gradient of the result, `right` the weight `[groups, depth, width]`.
/// * [`Product::WeightGradient`]: `left` is the gradient of the result, of rows of `height` numbers, `right` is `x`, of
///   rows of `width`, and the result `[tiles, height, width]`.
///
/// Cubes: tiles of the table, tiles along the columns of the result, tiles along the rows of a group's matrix.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn product_kernel<F: Float, R: Float, E: Float, NL: Size, NR: Size>(
    left: &[Vector<F, NL>],
    right: &[Vector<F, NR>],
    tiles: &[u32],
    result: &mut [R],
    height: usize,
    width: usize,
    depth: usize,
    #[comptime] plan: Plan,
    #[define(F)] _input: ElemType,
    #[define(R)] _sum: ElemType,
    #[define(E)] _operand: ElemType,
) {
    let number = CUBE_POS_X as usize;
    let group = tiles[number * 3] as usize;
    let first = tiles[number * 3 + 1] as usize;
    let rows = tiles[number * 3 + 2] as usize;
    let col = CUBE_POS_Y as usize * comptime!(plan.width());
    let row = CUBE_POS_Z as usize * comptime!(plan.height());
    let is_weight = comptime!(plan.product == Product::WeightGradient);
    let depth = if comptime!(is_weight) { rows } else { depth };

    let left_shape = comptime!(plan.shapes()[0]);
    let right_shape = comptime!(plan.shapes()[1]);
    let units = comptime!(plan.tiling.count());
    let mut left_tile = Shared::<[E]>::new_aligned_slice(comptime!(plan.lengths()[0]), ALIGNMENT);
    let mut right_tile = Shared::<[E]>::new_aligned_slice(comptime!(plan.lengths()[1]), ALIGNMENT);
    let mut sums = Sums::zeros(plan);

    for step in 0..depth.div_ceil(DEPTH) {
        let from = step * DEPTH;
        let left_place = if comptime!(is_weight) {
            Tile {
                start: (first + from) * height + row,
                row_stride: height,
                rows: depth - from,
                cols: height - row,
            }
        } else {
            Tile { start: first * depth + from, row_stride: depth, rows, cols: depth - from }
        };
        let right_place = if comptime!(is_weight) {
            Tile {
                start: (first + from) * width + col,
                row_stride: width,
                rows: depth - from,
                cols: width - col,
            }
        } else if comptime!(plan.product == Product::InputGradient) {
            Tile {
                start: (group * depth + from) * width + col,
                row_stride: width,
                rows: depth - from,
                cols: width - col,
            }
        } else {
            Tile {
                start: (group * width + col) * depth + from,
                row_stride: depth,
                rows: width - col,
                cols: depth - from,
            }
        };
        load_by::<F, NL, E>(left, &left_place, &mut left_tile, 0usize, left_shape, units);
        load_by::<F, NR, E>(right, &right_place, &mut right_tile, 0usize, right_shape, units);
        sync_cube();
        sums.add::<E>(&left_tile, &right_tile);
        sync_cube();
    }

    let place = if comptime!(is_weight) {
        Tile {
            start: (number * height + row) * width + col,
            row_stride: width,
            rows: height - row,
            cols: width - col,
        }
    } else {
        Tile { start: first * width + col, row_stride: width, rows, cols: width - col }
    };
    sums.store::<R>(&place, result);
}
