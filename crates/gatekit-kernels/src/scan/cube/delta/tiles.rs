//! Blocks of tensors in shared memory, and their products.
//!
//! An operand of a product lies in shared memory with the summed index first, so that the units
//! read neighbouring elements; a product's result is spread over the units as `16 x 16` of them,
//! unit `(a, b)` with the rows `a, a + 16, ..` and the columns `b, b + 16, ..`.

use burn_cubecl::cubecl::{self, prelude::*};

/// Units of a cube.
pub(super) const UNITS: usize = 256;
/// Units along each side of a product's result.
pub(super) const SIDE: usize = 16;
/// Summed indices that a tile holds at a time.
pub(super) const DEPTH: usize = 16;

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

/// What is left of `length` after `first` entries.
#[cube]
pub(super) fn rest(length: usize, first: usize) -> usize {
    let mut left = 0usize.runtime();
    if first < length {
        left = length - first;
    }
    left
}

#[cube]
impl View {
    /// Without the first rows and columns.
    pub fn from(&self, row: usize, column: usize) -> View {
        View {
            origin: self.origin + row * self.row + column * self.column,
            row: self.row,
            column: self.column,
            rows: rest(self.rows, row),
            columns: rest(self.columns, column),
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
}

/// A block of shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    pub rows: usize,
    pub columns: usize,
    /// Whether neighbouring elements of the tensor are those of a column, not of a row.
    pub columns_first: bool,
}

impl Tile {
    /// A tile filled row by row.
    pub const fn by_rows(rows: usize, columns: usize) -> Self {
        Self { rows, columns, columns_first: false }
    }

    /// A tile filled column by column.
    pub const fn by_columns(rows: usize, columns: usize) -> Self {
        Self { rows, columns, columns_first: true }
    }

    /// From one row to the next: odd, so that a column lies in different banks.
    pub const fn stride(self) -> usize {
        self.columns + 1
    }

    pub const fn len(self) -> usize {
        self.rows * self.stride()
    }
}

/// Row and column of an element of a tile.
#[cube]
fn place(index: usize, #[comptime] tile: Tile) -> (usize, usize) {
    if comptime!(tile.columns_first) {
        (index % tile.rows, index / tile.rows)
    } else {
        (index / tile.columns, index % tile.columns)
    }
}

/// Reads a tile. Each unit writes the elements that it scales in [`scale`].
#[cube]
pub(super) fn fill<E: Float>(to: &mut Shared<[f32]>, x: &[E], view: &View, #[comptime] tile: Tile) {
    for step in 0..comptime!((tile.rows * tile.columns).div_ceil(UNITS)) {
        let index = step * UNITS + UNIT_POS as usize;
        if index < comptime!(tile.rows * tile.columns) {
            let (row, column) = place(index, tile);
            let mut value = 0.0f32.runtime();
            if row < view.rows && column < view.columns {
                value = f32::cast_from(x[view.origin + row * view.row + column * view.column]);
            }
            to[row * comptime!(tile.stride()) + column] = value;
        }
    }
}

/// Multiplies a tile that was just filled by another matrix, element by element.
#[cube]
pub(super) fn scale<E: Float>(to: &mut Shared<[f32]>, x: &[E], view: &View, #[comptime] tile: Tile) {
    for step in 0..comptime!((tile.rows * tile.columns).div_ceil(UNITS)) {
        let index = step * UNITS + UNIT_POS as usize;
        if index < comptime!(tile.rows * tile.columns) {
            let (row, column) = place(index, tile);
            if row < view.rows && column < view.columns {
                let factor = f32::cast_from(x[view.origin + row * view.row + column * view.column]);
                to[row * comptime!(tile.stride()) + column] *= factor;
            }
        }
    }
}

/// Sizes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Product {
    /// From one summed index to the next in the left and in the right operand.
    pub strides: [usize; 2],
    /// Rows and columns of the result that a unit holds.
    pub rows: usize,
    pub columns: usize,
}

impl Product {
    pub const fn of(left: Tile, right: Tile) -> Self {
        Self {
            strides: [left.stride(), right.stride()],
            rows: left.columns / SIDE,
            columns: right.columns / SIDE,
        }
    }
}

/// `sum[i, j] += sum_r left[r, i] right[first + r, j]` over [`DEPTH`] indices `r`.
#[cube]
pub(super) fn multiply(
    sum: &mut Array<f32>,
    left: &Shared<[f32]>,
    right: &Shared<[f32]>,
    first: usize,
    #[comptime] product: Product,
) {
    let (a, b) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    for r in 0..DEPTH {
        let mut rows = Array::<f32>::new(product.rows);
        #[unroll]
        for x in 0..product.rows {
            rows[x] = left[r * comptime!(product.strides[0]) + a + x * SIDE];
        }
        #[unroll]
        for y in 0..product.columns {
            let column = right[(first + r) * comptime!(product.strides[1]) + b + y * SIDE];
            #[unroll]
            for x in 0..product.rows {
                sum[x * product.columns + y] += rows[x] * column;
            }
        }
    }
}
