//! Products of small matrices by a whole cube: the one place that knows how.
//!
//! A product accumulates into a grid of 16 x 16 blocks in registers, from operands in shared memory. Two
//! implementations stand behind the same interface and are told apart by [`Grid::planes`]:
//!
//! * **units**: each of the 256 units holds one element of every block. Work is then spread evenly whatever set of
//!   blocks takes part, so triangles cost what they should and no unit diverges. Per step of the contraction a unit
//!   reads `rows + cols` numbers for `rows * cols` multiply-adds; the rows are broadcasts, the columns consecutive,
//!   neither conflicts in the banks of shared memory.
//! * **matrix units**: each plane holds whole blocks as cooperative-matrix fragments (half-precision operands, float32
//!   accumulators), block `b` on plane `b mod planes`: a block is one fragment of side 16 or 2 x 2 of side 8, as
//!   [`Planes::side`] says. Fragments of the right operand are loaded once for all of a plane's blocks in a column.
//!   Planes past the last block have nothing to do but wait at the same barriers.
//!
//! Because a fragment's layout is the device's secret, elementwise work on accumulators goes through shared memory:
//! [`Blocks::spill`] and [`Blocks::fill`].

use cubecl::{cmma, prelude::*};

pub(crate) use super::planes::Planes;

/// Units of a cube of every kernel here: a block's elements, and eight planes of 32.
pub(crate) const UNITS: usize = 256;

/// Side of a block of accumulators, and the length of a sub-chunk.
pub(crate) const BLOCK: usize = 16;

/// Bytes that the address of shared memory for operands and accumulators is a multiple of: what NVIDIA's `wmma` asks of
/// fragments.
pub(crate) const ALIGNMENT: usize = 32;

/// Shape of a grid of blocks, and what computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Grid {
    /// Blocks one below the other.
    pub rows: usize,
    /// Blocks side by side; `rows * cols` is at most 32.
    pub cols: usize,
    /// Planes of the cube that work with matrix units; without, products are by the units themselves.
    pub planes: Option<Planes>,
}

/// A set of blocks of a grid: bit `row * cols + col`.
pub(crate) type Active = u32;

impl Grid {
    pub const fn new(rows: usize, cols: usize, planes: Option<Planes>) -> Self {
        assert!(rows * cols <= 32);
        Self { rows, cols, planes }
    }

    const fn blocks(self) -> usize {
        self.rows * self.cols
    }

    /// Blocks that a plane holds.
    const fn held(self) -> usize {
        match self.planes {
            Some(planes) => self.blocks().div_ceil(planes.count),
            None => 0,
        }
    }

    /// Columns that the blocks of a plane lie in: those of the first so many.
    fn held_columns(self) -> usize {
        let planes = self.planes.map_or(1, |planes| planes.count);
        let period = (1..=self.cols).find(|period| (period * planes).is_multiple_of(self.cols));
        period.unwrap_or(self.cols).min(self.held())
    }

    /// Side of a fragment.
    const fn side(self) -> usize {
        match self.planes {
            Some(planes) => planes.side,
            None => BLOCK,
        }
    }

    /// Fragments along the side of a block.
    const fn parts(self) -> usize {
        BLOCK / self.side()
    }

    /// Fragments of accumulators that a plane holds.
    const fn fragments(self) -> usize {
        self.held() * self.parts() * self.parts()
    }

    /// The blocks for which `take(row, col)` holds.
    pub fn active(self, take: impl Fn(usize, usize) -> bool) -> Active {
        (0..self.blocks())
            .filter(|block| take(block / self.cols, block % self.cols))
            .fold(0, |set, block| set | 1 << block)
    }

    /// All blocks.
    pub fn all(self) -> Active {
        self.active(|_, _| true)
    }

    /// Distance between the rows of the shared memory that `columns` columns of blocks are spilled to. Matrix units
    /// store rows of whole 16-byte words; units like an odd distance, which meets no bank twice.
    pub const fn stage_stride(self, columns: usize) -> usize {
        columns * BLOCK + if self.planes.is_none() { 1 } else { 4 }
    }

    /// Numbers of shared memory that `columns` columns of blocks are spilled to.
    pub const fn stage_len(self, columns: usize) -> usize {
        self.rows * BLOCK * self.stage_stride(columns)
    }
}

/// How an operand's first axis, the rows of a left operand or the columns of a right one, lies in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Layout {
    /// `[contraction, axis]` with this distance between rows.
    DepthMajor(usize),
    /// `[axis, contraction]` with this distance between rows.
    AxisMajor(usize),
}

impl Layout {
    /// Depth-major rows of `blocks` blocks: padded so that rows stay 16-byte words of half-precision numbers.
    pub const fn operand(blocks: usize) -> Self {
        Self::DepthMajor(operand_stride(blocks))
    }

    /// Distance between neighbours in the contraction.
    pub const fn depth_stride(self) -> usize {
        match self {
            Self::DepthMajor(stride) => stride,
            Self::AxisMajor(_) => 1,
        }
    }

    /// Distance between neighbours along the axis.
    pub const fn axis_stride(self) -> usize {
        match self {
            Self::DepthMajor(_) => 1,
            Self::AxisMajor(stride) => stride,
        }
    }

    const fn stride(self) -> usize {
        match self {
            Self::DepthMajor(stride) | Self::AxisMajor(stride) => stride,
        }
    }

    fn matrix_layout(self, ident: cmma::MatrixIdent) -> cmma::MatrixLayout {
        match (self, ident == cmma::MatrixIdent::A) {
            (Self::DepthMajor(_), true) | (Self::AxisMajor(_), false) => cmma::MatrixLayout::ColMajor,
            (Self::DepthMajor(_), false) | (Self::AxisMajor(_), true) => cmma::MatrixLayout::RowMajor,
        }
    }
}

/// Distance between the rows of an operand of `blocks` blocks.
pub(crate) const fn operand_stride(blocks: usize) -> usize {
    blocks * BLOCK + 8
}

/// Accumulators of a product, in float32.
#[derive(CubeType)]
pub(crate) struct Blocks {
    registers: Array<f32>,
    fragments: Sequence<cmma::Matrix<f32>>,
    #[cube(comptime)]
    grid: Grid,
}

#[cube]
impl Blocks {
    /// All zero.
    pub fn zeros(#[comptime] grid: Grid) -> Blocks {
        let registers = Array::<f32>::new(comptime!(if grid.planes.is_none() { grid.blocks() } else { 1 }));
        let mut fragments = Sequence::<cmma::Matrix<f32>>::new();
        #[unroll]
        for _ in 0..comptime!(grid.fragments()) {
            fragments.push(cmma::Matrix::<f32>::from_value(
                cmma::MatrixIdent::Accumulator,
                comptime!(grid.side()),
                comptime!(grid.side()),
                comptime!(grid.side()),
                cmma::MatrixLayout::Undefined,
                0.0,
            ));
        }
        let mut blocks = Blocks { registers, fragments, grid };
        blocks.clear();
        blocks
    }

    /// Sets all to zero.
    pub fn clear(&mut self) {
        let grid = comptime!(self.grid);
        if comptime!(grid.planes.is_none()) {
            #[unroll]
            for index in 0..comptime!(grid.blocks()) {
                self.registers[index] = 0.0;
            }
        } else {
            #[unroll]
            for index in 0..comptime!(grid.fragments()) {
                cmma::fill(self.fragments.index_mut(index), 0.0);
            }
        }
    }

    /// Adds `lhs rhs` in the blocks of `active`: `lhs` has the grid's rows, `rhs` its columns, and they contract over
    /// `depth`, a multiple of 16.
    ///
    /// The caller synchronises the cube before (operands written) and after (operands overwritten).
    pub fn product<E: Float>(
        &mut self,
        lhs: &Shared<[E]>,
        lhs_at: usize,
        #[comptime] lhs_layout: Layout,
        rhs: &Shared<[E]>,
        rhs_at: usize,
        #[comptime] rhs_layout: Layout,
        #[comptime] depth: usize,
        #[comptime] active: Active,
    ) {
        if comptime!(self.grid.planes.is_none()) {
            self.product_by_units::<E>(lhs, lhs_at, lhs_layout, rhs, rhs_at, rhs_layout, depth, active);
        } else {
            self.product_by_planes::<E>(lhs, lhs_at, lhs_layout, rhs, rhs_at, rhs_layout, depth, active);
        }
    }

    fn product_by_units<E: Float>(
        &mut self,
        lhs: &Shared<[E]>,
        lhs_at: usize,
        #[comptime] lhs_layout: Layout,
        rhs: &Shared<[E]>,
        rhs_at: usize,
        #[comptime] rhs_layout: Layout,
        #[comptime] depth: usize,
        #[comptime] active: Active,
    ) {
        let grid = comptime!(self.grid);
        let row = UNIT_POS as usize / BLOCK;
        let col = UNIT_POS as usize % BLOCK;
        let lhs_at = lhs_at + row * comptime!(lhs_layout.axis_stride());
        let rhs_at = rhs_at + col * comptime!(rhs_layout.axis_stride());
        let mut left = Array::<f32>::new(comptime!(grid.rows));
        for step in 0..depth {
            let lhs_step = lhs_at + step * comptime!(lhs_layout.depth_stride());
            let rhs_step = rhs_at + step * comptime!(rhs_layout.depth_stride());
            #[unroll]
            for m in 0..comptime!(grid.rows) {
                if comptime!((0..grid.cols).any(|n| active >> (m * grid.cols + n) & 1 == 1)) {
                    left[m] = f32::cast_from(lhs[lhs_step + comptime!(m * BLOCK * lhs_layout.axis_stride())]);
                }
            }
            #[unroll]
            for n in 0..comptime!(grid.cols) {
                if comptime!((0..grid.rows).any(|m| active >> (m * grid.cols + n) & 1 == 1)) {
                    let right =
                        f32::cast_from(rhs[rhs_step + comptime!(n * BLOCK * rhs_layout.axis_stride())]);
                    #[unroll]
                    for m in 0..comptime!(grid.rows) {
                        if comptime!(active >> (m * grid.cols + n) & 1 == 1) {
                            self.registers[comptime!(m * grid.cols + n)] += left[m] * right;
                        }
                    }
                }
            }
        }
    }

    fn product_by_planes<E: Float>(
        &mut self,
        lhs: &Shared<[E]>,
        lhs_at: usize,
        #[comptime] lhs_layout: Layout,
        rhs: &Shared<[E]>,
        rhs_at: usize,
        #[comptime] rhs_layout: Layout,
        #[comptime] depth: usize,
        #[comptime] active: Active,
    ) {
        let grid = comptime!(self.grid);
        let parts = comptime!(grid.parts());
        let columns = comptime!(grid.held_columns());
        #[unroll]
        for step in 0..comptime!(depth / grid.side()) {
            let lhs_step = lhs_at + comptime!(step * grid.side() * lhs_layout.depth_stride());
            let rhs_step = rhs_at + comptime!(step * grid.side() * rhs_layout.depth_stride());
            let mut right = Sequence::<cmma::Matrix<E>>::new();
            #[unroll]
            for index in 0..columns {
                let n = held_block(index, grid) % comptime!(grid.cols);
                let from = rhs_step + n * comptime!(BLOCK * rhs_layout.axis_stride());
                #[unroll]
                for part in 0..parts {
                    let at = from + comptime!(part * grid.side() * rhs_layout.axis_stride());
                    right.push(fragment::<E>(rhs, at, cmma::MatrixIdent::B, rhs_layout, grid));
                }
            }
            #[unroll]
            for index in 0..comptime!(grid.held()) {
                let block = held_block(index, grid);
                // Blocks past the grid have no bit.
                let taken = block < comptime!(grid.blocks()) && (active >> block as u32) & 1 == 1;
                if taken {
                    let m = block / comptime!(grid.cols);
                    let from = lhs_step + m * comptime!(BLOCK * lhs_layout.axis_stride());
                    #[unroll]
                    for row in 0..parts {
                        let at = from + comptime!(row * grid.side() * lhs_layout.axis_stride());
                        let left = fragment::<E>(lhs, at, cmma::MatrixIdent::A, lhs_layout, grid);
                        #[unroll]
                        for col in 0..parts {
                            let sum = self.fragments.index(comptime!((index * parts + row) * parts + col));
                            let right = right.index(comptime!(index % columns * parts + col));
                            cmma::execute(&left, right, sum, sum);
                        }
                    }
                }
            }
        }
    }

    /// The unit's element of block `index`, row `unit / 16` and column `unit % 16`, where units hold elements: they need
    /// no shared memory for elementwise work.
    pub fn register(&self, #[comptime] index: usize) -> f32 {
        self.registers[index]
    }

    /// Writes `count` columns of blocks from column `first` on to shared memory, row-major with
    /// [`Grid::stage_stride`]. The caller synchronises the cube before and after.
    pub fn spill(&self, stage: &mut Shared<[f32]>, #[comptime] first: usize, #[comptime] count: usize) {
        self.spill_to::<f32>(stage, comptime!(self.grid.stage_stride(count)), first, count);
    }

    /// [`spill`](Self::spill) with another distance between rows; matrix units write float32 only.
    pub fn spill_to<T: Float>(
        &self,
        stage: &mut Shared<[T]>,
        #[comptime] stride: usize,
        #[comptime] first: usize,
        #[comptime] count: usize,
    ) {
        let grid = comptime!(self.grid);
        if comptime!(grid.planes.is_none()) {
            let row = UNIT_POS as usize / BLOCK;
            let col = UNIT_POS as usize % BLOCK;
            let at = row * stride + col;
            #[unroll]
            for m in 0..comptime!(grid.rows) {
                #[unroll]
                for n in 0..count {
                    stage[at + comptime!(m * BLOCK * stride + n * BLOCK)] =
                        T::cast_from(self.registers[comptime!(m * grid.cols + first + n)]);
                }
            }
        } else {
            let parts = comptime!(grid.parts());
            #[unroll]
            for index in 0..comptime!(grid.held()) {
                let block = held_block(index, grid);
                let n = block % comptime!(grid.cols);
                if block < comptime!(grid.blocks()) && n >= first && n < comptime!(first + count) {
                    let from = stage_place(block, first, stride, grid);
                    #[unroll]
                    for part in 0..comptime!(parts * parts) {
                        let at = from + comptime!((part / parts * stride + part % parts) * grid.side());
                        cmma::store(
                            &mut stage[at..at + comptime!((grid.side() - 1) * stride + grid.side())],
                            self.fragments.index(comptime!(index * parts * parts + part)),
                            comptime!(stride as u32),
                            cmma::MatrixLayout::RowMajor,
                        );
                    }
                }
            }
        }
    }

    /// The inverse of [`spill`](Self::spill).
    pub fn fill(&mut self, stage: &Shared<[f32]>, #[comptime] first: usize, #[comptime] count: usize) {
        let grid = comptime!(self.grid);
        let stride = comptime!(grid.stage_stride(count));
        if comptime!(grid.planes.is_none()) {
            let row = UNIT_POS as usize / BLOCK;
            let col = UNIT_POS as usize % BLOCK;
            let at = row * stride + col;
            #[unroll]
            for m in 0..comptime!(grid.rows) {
                #[unroll]
                for n in 0..count {
                    self.registers[comptime!(m * grid.cols + first + n)] =
                        stage[at + comptime!(m * BLOCK * stride + n * BLOCK)];
                }
            }
        } else {
            let parts = comptime!(grid.parts());
            #[unroll]
            for index in 0..comptime!(grid.held()) {
                let block = held_block(index, grid);
                let n = block % comptime!(grid.cols);
                if block < comptime!(grid.blocks()) && n >= first && n < comptime!(first + count) {
                    let from = stage_place(block, first, stride, grid);
                    #[unroll]
                    for part in 0..comptime!(parts * parts) {
                        let at = from + comptime!((part / parts * stride + part % parts) * grid.side());
                        cmma::load_with_layout(
                            self.fragments.index_mut(comptime!(index * parts * parts + part)),
                            &stage[at..at + comptime!((grid.side() - 1) * stride + grid.side())],
                            comptime!(stride as u32),
                            cmma::MatrixLayout::RowMajor,
                        );
                    }
                }
            }
        }
    }
}

/// Block `index` of those that the unit's plane holds, perhaps past the last of the grid.
#[cube]
fn held_block(#[comptime] index: usize, #[comptime] grid: Grid) -> usize {
    PLANE_POS as usize + comptime!(index * grid.planes.map_or(0, |planes| planes.count))
}

/// Where a block starts in the shared memory that columns from `first` on are spilled to.
#[cube]
fn stage_place(
    block: usize,
    #[comptime] first: usize,
    #[comptime] stride: usize,
    #[comptime] grid: Grid,
) -> usize {
    block / comptime!(grid.cols) * comptime!(BLOCK * stride) + (block % comptime!(grid.cols) - first) * BLOCK
}

/// The fragment of an operand from element `at` on.
#[cube]
fn fragment<E: Float>(
    operand: &Shared<[E]>,
    at: usize,
    #[comptime] ident: cmma::MatrixIdent,
    #[comptime] layout: Layout,
    #[comptime] grid: Grid,
) -> cmma::Matrix<E> {
    cmma::Matrix::<E>::from_slice(
        ident,
        comptime!(grid.side()),
        comptime!(grid.side()),
        comptime!(grid.side()),
        comptime!(layout.matrix_layout(ident)),
        &operand[at..at + comptime!((grid.side() - 1) * layout.stride() + grid.side())],
        comptime!(layout.stride() as u32),
    )
}
