//! A matrix product on slices of memory, by one thread.

use super::{
    pack::{Part, panels, tiles, transposed_panels},
    tile::{Left, Packed, Panel, ROWS, column, panel_vectors, panel_width},
};
use crate::{
    float::Float,
    scratch::Arena,
    simd::{Kernel, Level, Simd},
};

/// Depth that is packed together: a panel of it streams through the first-level cache.
const DEPTH: usize = 512;

/// Columns that are packed together, a multiple of every panel's.
const COLUMNS: usize = 512;

/// Rows that are multiplied with all panels before the next, a multiple of [`ROWS`]: they stay in the second-level cache.
const BLOCK: usize = 16 * ROWS;

/// Lengths of the scratch memory that [`Product::run`] takes.
pub(super) const SCRATCH: [usize; 2] = [DEPTH * COLUMNS, BLOCK * DEPTH];

/// Lines of contiguous elements.
#[derive(Clone, Copy)]
pub(super) struct Lines<'a, F> {
    /// The first element.
    pub(super) start: *const F,
    /// From one line to the next.
    pub(super) stride: usize,
    /// Which lines, in their order; `None`: as they stand.
    pub(super) picked: Option<&'a [usize]>,
}

impl<'a, F> Lines<'a, F> {
    /// As they stand.
    pub(super) fn all(start: *const F, stride: usize) -> Self {
        Self { start, stride, picked: None }
    }

    /// Lines of some indices.
    pub(super) fn picked(start: *const F, stride: usize, picked: &'a [usize]) -> Self {
        Self { start, stride, picked: Some(picked) }
    }

    /// The start of a line.
    ///
    /// # Safety
    /// It must be there.
    #[inline(always)]
    pub(super) unsafe fn line(&self, index: usize) -> *const F {
        let index = self.picked.map_or(index, |picked| picked[index]);
        unsafe { self.start.add(index * self.stride) }
    }
}

/// Rows of the left operand where they stand.
#[derive(Clone, Copy)]
struct Standing<'a, F> {
    lines: Lines<'a, F>,
    row: usize,
    from: usize,
}

impl<F: Copy> Left<F> for Standing<'_, F> {
    const STEP: usize = 1;

    #[inline(always)]
    unsafe fn rows<const R: usize>(&self, row: usize) -> [*const F; R] {
        std::array::from_fn(|r| unsafe { self.lines.line(self.row + row + r).add(self.from) })
    }
}

/// `out = left right`, or `out += left right`.
pub(super) struct Product<'a, F> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) depth: usize,
    /// `[rows, depth]`, or `[depth, rows]` where it is transposed.
    pub(super) left: Lines<'a, F>,
    pub(super) left_transposed: bool,
    /// `[depth, columns]`, or `[columns, depth]` where it is transposed.
    pub(super) right: Lines<'a, F>,
    pub(super) right_transposed: bool,
    /// `[rows, columns]`; the same line may be picked more than once where products are added.
    pub(super) out: Lines<'a, F>,
    pub(super) add: bool,
}

impl<F: Float> Product<'_, F> {
    /// Computes it. Every element is summed along the depth in an order that depends on nothing but the depth.
    ///
    /// # Safety
    /// The processor must have the instructions of the level; operands and results must be there, and nothing else may
    /// access the results meanwhile.
    pub(super) unsafe fn run(self, level: Level, scratch: &mut [&mut [F]; 2]) {
        if self.rows > 0 && self.columns > 0 {
            unsafe { level.run(Job { product: self, scratch }) };
        }
    }
}

/// The scratch memory of products.
pub(super) fn scratch<'a, F>(arena: &mut Arena<'a, F>) -> [&'a mut [F]; 2] {
    SCRATCH.map(|len| arena.take(len))
}

struct Job<'a, 'b, 'c, F> {
    product: Product<'a, F>,
    scratch: &'b mut [&'c mut [F]; 2],
}

impl<F: Float> Kernel for Job<'_, '_, '_, F> {
    type Float = F;

    #[inline(always)]
    unsafe fn run<S: Simd<Float = F>>(self) {
        let Self { product, scratch: [packed, left] } = self;
        let (packed, left) = (packed.as_mut_ptr(), left.as_mut_ptr());
        for column in (0..product.columns).step_by(COLUMNS) {
            let columns = (product.columns - column).min(COLUMNS);
            for k in (0..product.depth.max(1)).step_by(DEPTH) {
                let depth = (product.depth - k).min(DEPTH);
                unsafe {
                    if product.right_transposed {
                        let part = Part { line: column, lines: columns, from: k, len: depth };
                        transposed_panels::<S>(&product.right, part, packed);
                    } else {
                        let part = Part { line: k, lines: depth, from: column, len: columns };
                        panels::<S>(&product.right, part, packed);
                    }
                }
                for row in (0..product.rows).step_by(BLOCK) {
                    let block =
                        Block { row, rows: (product.rows - row).min(BLOCK), column, columns, k, depth };
                    unsafe {
                        if product.left_transposed {
                            let part = Part { line: k, lines: depth, from: row, len: block.rows };
                            tiles::<S>(&product.left, part, left);
                            block.multiply::<S>(&product, Packed { start: left, depth }, packed);
                        } else {
                            let left = Standing { lines: product.left, row, from: k };
                            block.multiply::<S>(&product, left, packed);
                        }
                    }
                }
            }
        }
    }
}

/// What is multiplied at a time.
struct Block {
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
    k: usize,
    depth: usize,
}

impl Block {
    #[inline(always)]
    unsafe fn multiply<S: Simd>(
        &self,
        product: &Product<S::Float>,
        left: impl Left<S::Float>,
        mut packed: *const S::Float,
    ) {
        let add = product.add || self.k > 0;
        let mut done = 0;
        while done < self.columns {
            let columns = (self.columns - done).min(panel_width::<S>());
            let panel = Panel { start: packed, depth: self.depth, columns };
            let out =
                |row: usize| unsafe { product.out.line(self.row + row).add(self.column + done).cast_mut() };
            let vectors = panel_vectors::<S>(columns);
            unsafe {
                match vectors {
                    1 => column::<S, _, 1>(self.rows, left, panel, out, add),
                    2 => column::<S, _, 2>(self.rows, left, panel, out, add),
                    _ => column::<S, _, 4>(self.rows, left, panel, out, add),
                }
                packed = packed.add(self.depth * vectors * S::LANES);
            }
            done += columns;
        }
    }
}
