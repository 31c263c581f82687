//! Products of the matrices over a chunk's pairs of steps with its rows.

use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::layout::{CHUNK, Sizes, locate};
use super::tiles::{DEPTH, Product, SIDE, Tile, fill, multiply, scale};

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Apply {
    pub sizes: Sizes,
    /// Width of the rows.
    pub width: usize,
    /// Whether the matrix is transposed.
    pub transposed: bool,
    /// Whether the rows are scaled by `beta`.
    pub beta: bool,
    /// Whether the rows are scaled by the decay from the chunk's start.
    pub decayed: bool,
}

impl Apply {
    pub fn blocks(self) -> usize {
        self.width.div_ceil(CHUNK)
    }
}

const MATRIX: Tile = Tile::by_columns(DEPTH, CHUNK);
const TRANSPOSED: Tile = Tile::by_rows(DEPTH, CHUNK);
const ROWS: Tile = Tile::by_rows(DEPTH, CHUNK);
const PRODUCT: Product = Product::of(MATRIX, ROWS);

/// Writes `matrix x` or `matrix^T x`, a cube a chunk, head and 64 columns.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn apply_kernel<X: Float, B: Float>(
    chunks: &[u32],
    matrix: &[f32],
    x: &[X],
    beta: &[B],
    from_start: &[f32],
    output: &mut [f32],
    count: usize,
    #[comptime] apply: Apply,
    #[define(X, B)] _types: [ElemType; 2],
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let sizes = comptime!(apply.sizes);
    let blocks = comptime!(apply.blocks());
    let head = CUBE_POS / blocks % sizes.heads;
    let place = locate(chunks, CUBE_POS / comptime!(blocks * sizes.heads), head, sizes);
    let column = CUBE_POS % blocks * CHUNK;
    let rows = place.rows(apply.width, sizes);

    let mut left = Shared::<[f32]>::new_slice(comptime!(MATRIX.len()));
    let mut right = Shared::<[f32]>::new_slice(comptime!(ROWS.len()));
    let mut sum = Array::<f32>::new(comptime!(PRODUCT.rows * PRODUCT.columns));
    for slice in 0..comptime!(CHUNK / DEPTH) {
        let step = slice * DEPTH;
        sync_cube();
        if comptime!(apply.transposed) {
            fill(&mut left, matrix, &place.pairs().from(step, 0usize), TRANSPOSED);
        } else {
            fill(&mut left, matrix, &place.pairs().transpose().from(step, 0usize), MATRIX);
        }
        fill(&mut right, x, &rows.from(step, column), ROWS);
        if comptime!(apply.beta) {
            scale(&mut right, beta, &place.values(apply.width, sizes).from(step, column), ROWS);
        }
        if comptime!(apply.decayed) {
            scale(&mut right, from_start, &place.decays(sizes).from(step, column), ROWS);
        }
        sync_cube();
        multiply(&mut sum, &left, &right, 0usize, PRODUCT);
    }

    let (a, b) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    #[unroll]
    for x in 0..comptime!(PRODUCT.rows) {
        #[unroll]
        for y in 0..comptime!(PRODUCT.columns) {
            let row = a + x * SIDE;
            let column = column + b + y * SIDE;
            if row < place.steps && column < apply.width {
                output[rows.origin + row * rows.row + column] = sum[comptime!(x * PRODUCT.columns + y)];
            }
        }
    }
}
