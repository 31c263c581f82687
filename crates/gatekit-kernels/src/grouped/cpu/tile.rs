//! Register tiles: a few rows of the left operand times a panel of the right one.

use crate::simd::Simd;

/// Rows of a full tile.
pub(super) const ROWS: usize = 6;

/// Columns of a full panel.
#[inline(always)]
pub(crate) const fn panel_width<S: Simd>() -> usize {
    S::TILE_VECTORS * S::LANES
}

/// Vectors of a panel that has `columns` columns: a power of two, the last ones padded with zeros.
#[inline(always)]
pub(crate) fn panel_vectors<S: Simd>(columns: usize) -> usize {
    columns.div_ceil(S::LANES).next_power_of_two().min(S::TILE_VECTORS)
}

/// Rows of the left operand, some of its depth.
pub(crate) trait Left<F>: Copy {
    /// Floats from one position of the depth to the next.
    const STEP: usize;

    /// Where rows `row .. row + R` begin.
    ///
    /// # Safety
    /// They must be there.
    unsafe fn rows<const R: usize>(&self, row: usize) -> [*const F; R];
}

/// Packed tiles `[tile, depth, ROWS]`.
#[derive(Clone, Copy)]
pub(super) struct Packed<F> {
    pub(super) start: *const F,
    pub(super) depth: usize,
}

impl<F: Copy> Left<F> for Packed<F> {
    const STEP: usize = ROWS;

    #[inline(always)]
    unsafe fn rows<const R: usize>(&self, row: usize) -> [*const F; R] {
        let start = unsafe { self.start.add(row / ROWS * ROWS * self.depth + row % ROWS) };
        std::array::from_fn(|r| unsafe { start.add(r) })
    }
}

/// One panel of the right operand, `[depth, vectors]`.
#[derive(Clone, Copy)]
pub(crate) struct Panel<F> {
    pub(crate) start: *const F,
    pub(crate) depth: usize,
    /// Columns that are not padding.
    pub(crate) columns: usize,
}

/// All `rows` of the left operand times a panel of `N` vectors: to, or added to, the rows that `out` points at.
///
/// Every element of the result is one chain of multiply-adds along the depth, whatever the tile it is in.
///
/// # Safety
/// See [`Simd`]; operands and results must be there.
#[inline(always)]
pub(crate) unsafe fn column<S: Simd, L: Left<S::Float>, const N: usize>(
    rows: usize,
    left: L,
    panel: Panel<S::Float>,
    out: impl Fn(usize) -> *mut S::Float,
    add: bool,
) {
    if N > S::TILE_VECTORS {
        return; // never reached, so not compiled either
    }
    let mut row = 0;
    while row < rows {
        row += unsafe {
            match rows - row {
                1 => tile::<S, L, 1, N>(row, left, panel, &out, add),
                2 => tile::<S, L, 2, N>(row, left, panel, &out, add),
                3 => tile::<S, L, 3, N>(row, left, panel, &out, add),
                4..ROWS => tile::<S, L, 4, N>(row, left, panel, &out, add),
                _ => tile::<S, L, ROWS, N>(row, left, panel, &out, add),
            }
        };
    }
}

/// `R` rows of the result; says how many.
#[inline(always)]
unsafe fn tile<S: Simd, L: Left<S::Float>, const R: usize, const N: usize>(
    row: usize,
    left: L,
    panel: Panel<S::Float>,
    out: &impl Fn(usize) -> *mut S::Float,
    add: bool,
) -> usize {
    unsafe {
        let mut sums = [[S::splat(S::Float::default()); N]; R];
        let rows = left.rows::<R>(row);
        for k in 0..panel.depth {
            let from = panel.start.add(k * N * S::LANES);
            let mut right = [S::splat(S::Float::default()); N];
            for (n, right) in right.iter_mut().enumerate() {
                *right = S::load(from.add(n * S::LANES));
            }
            for r in 0..R {
                let left = S::splat(*rows[r].add(k * L::STEP));
                for n in 0..N {
                    sums[r][n] = S::mul_add(left, right[n], sums[r][n]);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            let to = out(row + r);
            for (n, sum) in sums.into_iter().enumerate() {
                let to = to.add(n * S::LANES);
                match panel.columns.saturating_sub(n * S::LANES) {
                    0 => {}
                    columns if columns >= S::LANES => {
                        let sum = if add { S::add(S::load(to), sum) } else { sum };
                        S::store(to, sum);
                    }
                    columns => {
                        let sum = if add { S::add(S::load_first(to, columns), sum) } else { sum };
                        S::store_first(to, sum, columns);
                    }
                }
            }
        }
    }
    R
}
