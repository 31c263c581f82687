//! Parts of matrices, read into shared memory as operands of products and scaled on the way, and the way back from a
//! product's accumulators.

use cubecl::prelude::*;

use super::super::{
    blocks::{BLOCK, Blocks, Grid, Layout, Planes, UNITS, operand_stride},
    decay::{CHUNK, SUB_CHUNKS},
};

/// Summed indices of a product that are in shared memory at a time.
pub(super) const DEPTH: usize = BLOCK;

/// A matrix within a tensor; elements beyond its rows and columns count as zero.
#[derive(CubeType, Clone, Copy)]
pub(super) struct View {
    /// Place of the first element.
    pub origin: usize,
    /// Elements from one row to the next.
    pub row: usize,
    /// Elements from one column to the next.
    pub column: usize,
    pub rows: usize,
    pub columns: usize,
}

#[cube]
impl View {
    /// Without the first rows and columns.
    pub fn from(&self, row: usize, column: usize) -> View {
        View {
            origin: self.at(row, column),
            row: self.row,
            column: self.column,
            rows: select(row < self.rows, self.rows - row, 0usize),
            columns: select(column < self.columns, self.columns - column, 0usize),
        }
    }

    /// The transposed matrix.
    pub fn transpose(&self) -> View {
        View {
            origin: self.origin,
            row: self.column,
            column: self.row,
            rows: self.columns,
            columns: self.rows,
        }
    }

    /// The first `rows` rows.
    pub fn above(&self, rows: usize) -> View {
        View { origin: self.origin, row: self.row, column: self.column, rows, columns: self.columns }
    }

    /// Place of an element.
    pub fn at(&self, row: usize, column: usize) -> usize {
        self.origin + row * self.row + column * self.column
    }

    /// Whether there is such an element.
    pub fn has(&self, row: usize, column: usize) -> bool {
        row < self.rows && column < self.columns
    }

    /// An element. Not behind a branch, so that a unit has all of its loads in flight at once: what lies outside is
    /// read from the tensor's first element and dropped.
    pub fn read<F: Float>(&self, x: &[F], row: usize, column: usize) -> f32 {
        let inside = self.has(row, column);
        let value = x[select(inside, self.at(row, column), 0usize)];
        select(inside, f32::cast_from(value), 0.0f32)
    }
}

/// An operand in shared memory, `[DEPTH, columns]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Operand {
    columns: usize,
    /// Whether neighbouring elements of the tensor are those of a column, not of a row: neighbouring units read them.
    by_columns: bool,
}

impl Operand {
    /// Of `blocks` blocks, filled row by row.
    pub const fn by_rows(blocks: usize) -> Self {
        Self { columns: blocks * BLOCK, by_columns: false }
    }

    /// Of `blocks` blocks, filled column by column.
    pub const fn by_columns(blocks: usize) -> Self {
        Self { columns: blocks * BLOCK, by_columns: true }
    }

    pub const fn stride(self) -> usize {
        operand_stride(self.columns / BLOCK)
    }

    pub const fn len(self) -> usize {
        DEPTH * self.stride()
    }

    pub const fn layout(self) -> Layout {
        Layout::DepthMajor(self.stride())
    }
}

/// Row and column of an element of an operand.
#[cube]
fn element(index: usize, #[comptime] shape: Operand) -> (usize, usize) {
    if comptime!(shape.by_columns) {
        (index % DEPTH, index / DEPTH)
    } else {
        (index / shape.columns, index % shape.columns)
    }
}

/// Reads an operand.
#[cube]
pub(super) fn fill<F: Float, E: Float>(
    to: &mut Shared<[E]>,
    x: &[F],
    view: &View,
    #[comptime] shape: Operand,
) {
    fill_times::<F, F, E>(to, x, view, x, view, false, shape);
}

/// Reads an operand times another matrix, element by element, where `scaled`.
#[cube]
pub(super) fn fill_times<F: Float, G: Float, E: Float>(
    to: &mut Shared<[E]>,
    x: &[F],
    view: &View,
    factors: &[G],
    factors_view: &View,
    #[comptime] scaled: bool,
    #[comptime] shape: Operand,
) {
    for round in 0..comptime!(DEPTH * shape.columns / UNITS) {
        let index = round * UNITS + UNIT_POS as usize;
        let (row, column) = element(index, shape);
        let mut value = view.read(x, row, column);
        if comptime!(scaled) {
            value *= factors_view.read(factors, row, column);
        }
        to[row * comptime!(shape.stride()) + column] = E::cast_from(value);
    }
}

/// Adds the product of two operands over [`DEPTH`] indices.
#[cube]
pub(super) fn add_product<E: Float>(
    sum: &mut Blocks,
    left: &Shared<[E]>,
    #[comptime] left_shape: Operand,
    right: &Shared<[E]>,
    #[comptime] right_shape: Operand,
    #[comptime] grid: Grid,
) {
    sum.product::<E>(
        left,
        0usize,
        comptime!(left_shape.layout()),
        right,
        0usize,
        comptime!(right_shape.layout()),
        DEPTH,
        comptime!(grid.all()),
    );
}

/// A grid of `columns` columns of blocks, as high as a chunk.
pub(super) const fn chunk_grid(columns: usize, planes: Option<Planes>) -> Grid {
    Grid::new(SUB_CHUNKS, columns, planes)
}

/// Numbers of shared memory that one column of blocks is spilled to, 1 where none needs to be.
pub(super) const fn stage_len(planes: Option<Planes>) -> usize {
    if planes.is_none() { 1 } else { chunk_grid(1, planes).stage_len(1) }
}

/// The unit's elements of a column of blocks: rows `unit / 16 + 16 m`, column `unit % 16`. With matrix units they come
/// through shared memory, and cubes synchronise within.
#[cube]
pub(super) fn own_elements(
    blocks: &Blocks,
    stage: &mut Shared<[f32]>,
    #[comptime] column: usize,
    #[comptime] grid: Grid,
) -> Array<f32> {
    let mut own = Array::<f32>::new(SUB_CHUNKS);
    if comptime!(grid.planes.is_none()) {
        #[unroll]
        for m in 0..SUB_CHUNKS {
            own[m] = blocks.register(comptime!(m * grid.cols + column));
        }
    } else {
        sync_cube();
        blocks.spill(stage, column, 1usize);
        sync_cube();
        #[unroll]
        for m in 0..SUB_CHUNKS {
            let row = UNIT_POS as usize / BLOCK + comptime!(m * BLOCK);
            own[m] = stage[row * comptime!(grid.stage_stride(1)) + UNIT_POS as usize % BLOCK];
        }
    }
    own
}

/// Writes `scale` times the accumulators where the view has elements. Cubes synchronise within.
#[cube]
pub(super) fn write_out<F: Float>(
    blocks: &Blocks,
    stage: &mut Shared<[f32]>,
    to: &mut [F],
    scale: f32,
    view: &View,
    #[comptime] grid: Grid,
) {
    #[unroll]
    for column in 0..comptime!(grid.cols) {
        let own = own_elements(blocks, stage, column, grid);
        #[unroll]
        for m in 0..SUB_CHUNKS {
            let row = UNIT_POS as usize / BLOCK + comptime!(m * BLOCK);
            let column = UNIT_POS as usize % BLOCK + comptime!(column * BLOCK);
            if view.has(row, column) {
                to[view.at(row, column)] = F::cast_from(scale * own[m]);
            }
        }
    }
}

/// Blocks of a chunk's steps.
pub(super) const STEP_BLOCKS: usize = CHUNK / BLOCK;
