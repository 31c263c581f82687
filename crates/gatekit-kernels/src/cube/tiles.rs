//! Tiles of global tensors in shared memory.

use cubecl::prelude::*;

use super::blocks::UNITS;

/// Where a tile of a row-major tensor lies.
#[derive(CubeType)]
pub(crate) struct Tile {
    /// Element of its first row and column, a multiple of the vector size.
    pub start: usize,
    /// Elements between its rows.
    pub row_stride: usize,
    /// Rows that exist; the others are read as zeros.
    pub rows: usize,
    /// Columns that exist.
    pub cols: usize,
}

/// Shape of a tile in shared memory and how it lies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TileShape {
    pub rows: usize,
    /// A multiple of every vector size, 16 at least.
    pub cols: usize,
    /// Distance between rows, or between columns of a transposed tile.
    pub stride: usize,
    pub transposed: bool,
}

impl TileShape {
    pub const fn new(rows: usize, cols: usize, stride: usize) -> Self {
        Self { rows, cols, stride, transposed: false }
    }

    /// Element `(row, col)` at `col * stride + row`.
    pub const fn transposed(rows: usize, cols: usize, stride: usize) -> Self {
        Self { rows, cols, stride, transposed: true }
    }
}

/// Reads a tile into shared memory, `N` neighbouring elements at a time, neighbouring units neighbouring vectors.
///
/// Loads are not behind branches, so that a unit has all of its own in flight at once: what lies outside is read from
/// the tensor's first element and dropped.
#[cube]
pub(crate) fn load<F: Float, N: Size, E: Float>(
    source: &[Vector<F, N>],
    tile: &Tile,
    target: &mut Shared<[E]>,
    at: usize,
    #[comptime] shape: TileShape,
) {
    load_by::<F, N, E>(source, tile, target, at, shape, UNITS);
}

/// [`load`] by a cube of so many units.
#[cube]
pub(crate) fn load_by<F: Float, N: Size, E: Float>(
    source: &[Vector<F, N>],
    tile: &Tile,
    target: &mut Shared<[E]>,
    at: usize,
    #[comptime] shape: TileShape,
    #[comptime] units: usize,
) {
    let width = N::value();
    let vectors = comptime!(shape.cols / width);
    let total = comptime!(shape.rows * vectors);
    #[unroll]
    for round in 0..comptime!(total.div_ceil(units)) {
        let index = UNIT_POS as usize + comptime!(round * units);
        let row = index / vectors;
        let col = (index % vectors) * width;
        let inside = row < tile.rows && col < tile.cols && index < total;
        let place = select(inside, (tile.start + row * tile.row_stride + col) / width, 0usize);
        let vector = source[place];
        if index < total {
            #[unroll]
            for lane in 0..width {
                let value = select(inside, E::cast_from(vector.extract(lane)), E::new(0.0));
                if comptime!(shape.transposed) {
                    target[at + (col + lane) * comptime!(shape.stride) + row] = value;
                } else {
                    target[at + row * comptime!(shape.stride) + col + lane] = value;
                }
            }
        }
    }
}
