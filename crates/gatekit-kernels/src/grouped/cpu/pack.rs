//! Operands as the tiles read them.

use super::{
    product::Lines,
    tile::{ROWS, panel_vectors, panel_width},
};
use crate::simd::Simd;

/// A part of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// First line.
    pub(super) line: usize,
    /// Number of lines.
    pub(super) lines: usize,
    /// First element of every line.
    pub(super) from: usize,
    /// Number of elements.
    pub(super) len: usize,
}

/// Lines that are asked for before they are read.
const AHEAD: usize = 8;

/// Asks for elements of a line that is read soon: lines are too far apart for the processor to see it coming.
#[inline(always)]
unsafe fn ahead<S: Simd>(matrix: &Lines<S::Float>, part: Part, line: usize, from: usize, len: usize) {
    if line + AHEAD < part.lines {
        let start = unsafe { matrix.line(part.line + line + AHEAD).add(part.from + from) };
        for place in (0..len).step_by(64 / size_of::<S::Float>()) {
            unsafe { S::prefetch(start.add(place)) };
        }
    }
}

/// Lines along the columns, one for each position of the depth, as panels `[panel, depth, columns]`.
///
/// # Safety
/// See [`Simd`]; the part must be there, and the panels.
#[inline(always)]
pub(super) unsafe fn panels<S: Simd>(matrix: &Lines<S::Float>, part: Part, mut to: *mut S::Float) {
    let mut column = 0;
    while column < part.len {
        let count = (part.len - column).min(panel_width::<S>());
        let width = panel_vectors::<S>(count) * S::LANES;
        for k in 0..part.lines {
            unsafe {
                let from = matrix.line(part.line + k).add(part.from + column);
                ahead::<S>(matrix, part, k, column, count);
                let to = to.add(k * width);
                if count == panel_width::<S>() {
                    for lane in (0..panel_width::<S>()).step_by(S::LANES) {
                        S::store(to.add(lane), S::load(from.add(lane)));
                    }
                } else {
                    std::ptr::copy_nonoverlapping(from, to, count);
                    (count..width).for_each(|lane| to.add(lane).write(S::Float::default()));
                }
            }
        }
        to = unsafe { to.add(part.lines * width) };
        column += count;
    }
}

/// Lines along the depth, one for each column, as panels `[panel, depth, columns]`.
///
/// # Safety
/// As [`panels`].
#[inline(always)]
pub(super) unsafe fn transposed_panels<S: Simd>(matrix: &Lines<S::Float>, part: Part, mut to: *mut S::Float) {
    let mut column = 0;
    while column < part.lines {
        let count = (part.lines - column).min(panel_width::<S>());
        let width = panel_vectors::<S>(count) * S::LANES;
        for lane in (0..width).step_by(S::LANES) {
            let full = lane + S::LANES <= count;
            let line = |i: usize| unsafe { matrix.line(part.line + column + lane + i).add(part.from) };
            let mut k = 0;
            if full {
                while k + S::LANES <= part.len {
                    unsafe { S::transpose(|i| line(i).add(k), to.add(k * width + lane), width) };
                    k += S::LANES;
                }
            }
            for k in k..part.len {
                for i in 0..S::LANES {
                    unsafe {
                        let value = if lane + i < count { *line(i).add(k) } else { S::Float::default() };
                        to.add(k * width + lane + i).write(value);
                    }
                }
            }
        }
        to = unsafe { to.add(part.len * width) };
        column += count;
    }
}

/// Lines along the rows of a left operand, one for each position of the depth, as tiles `[tile, depth, ROWS]`.
///
/// # Safety
/// As [`panels`].
#[inline(always)]
pub(super) unsafe fn tiles<S: Simd>(matrix: &Lines<S::Float>, part: Part, to: *mut S::Float) {
    for k in 0..part.lines {
        unsafe {
            ahead::<S>(matrix, part, k, 0, part.len);
            let from = matrix.line(part.line + k).add(part.from);
            let mut to = to.add(k * ROWS);
            let mut row = 0;
            while row + ROWS <= part.len {
                let piece = from.add(row).cast::<[S::Float; ROWS]>().read_unaligned();
                to.cast::<[S::Float; ROWS]>().write_unaligned(piece);
                to = to.add(part.lines * ROWS);
                row += ROWS;
            }
            for r in 0..part.len - row {
                to.add(r).write(*from.add(row + r));
            }
        }
    }
}
