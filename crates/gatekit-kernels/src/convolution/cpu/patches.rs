//! Patches of an image as rows of a matrix.

use crate::simd::Simd;

/// What a sum over channels and taps reads: `x[image, c, i s + dy, j s + dx]` for position `(i, j)` of an image's grid,
/// channel c and tap `(dy, dx)`; zeros outside of the planes. Positions are counted through all images.
#[derive(Clone, Copy)]
pub(super) struct Patches<'a> {
    /// Images of `channels` planes.
    pub(super) x: &'a [f32],
    pub(super) channels: usize,
    pub(super) plane: [usize; 2],
    /// Offsets `(dy, dx)`.
    pub(super) taps: &'a [[isize; 2]],
    pub(super) stride: usize,
    /// Rows and columns of positions.
    pub(super) grid: [usize; 2],
}

/// Successive positions of one row of the grid, for one tap.
#[derive(Clone, Copy)]
struct Run {
    /// The first of them among the columns.
    column: usize,
    /// Where they begin in the first channel, before or after its plane where they are outside.
    from: isize,
    /// Those from `low` to `high` are inside.
    low: usize,
    high: usize,
    len: usize,
}

/// The runs of some positions, tap by tap.
#[derive(Default)]
pub(super) struct Runs {
    runs: Vec<Run>,
    of_tap: usize,
}

impl Patches<'_> {
    /// Channels and taps.
    pub(super) fn depth(&self) -> usize {
        self.channels * self.taps.len()
    }

    /// Positions of an image.
    pub(super) fn positions(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// Where the positions `first .. first + count` read.
    pub(super) fn find(&self, first: usize, count: usize, runs: &mut Runs) {
        let (positions, columns) = (self.positions(), self.grid[1]);
        let [height, width] = self.plane.map(|size| size as isize);
        let stride = self.stride as isize;
        runs.runs.clear();
        runs.of_tap = (first + count - 1) / columns - first / columns + 1;
        for [dy, dx] in self.taps {
            let mut at = 0;
            while at < count {
                let (image, place) = ((first + at) / positions, (first + at) % positions);
                let (i, j) = (place / columns, place % columns);
                let len = (columns - j).min(count - at);
                let (y, x) = (i as isize * stride + dy, j as isize * stride + dx);
                let inside = (0..height).contains(&y);
                // Positions p with 0 <= x + p stride < width.
                let low = if x < 0 { (-x + stride - 1) / stride } else { 0 };
                let high = if x < width { (width - x + stride - 1) / stride } else { 0 };
                let high = if inside { high.clamp(0, len as isize) } else { 0 };
                let low = low.min(high);
                let from = (image * self.channels) as isize * height * width + y * width + x;
                runs.runs.push(Run { column: at, from, low: low as usize, high: high as usize, len });
                at += len;
            }
        }
    }

    /// Rows `depth` of the matrix `[channels and taps, positions]` at the positions of `runs`, `width` apart.
    ///
    /// # Safety
    /// See [`Simd`]. The rows must be there, and [`SLACK`] floats after the last.
    #[inline(always)]
    pub(super) unsafe fn gather<S: Simd<Float = f32>>(
        &self,
        runs: &Runs,
        depth: std::ops::Range<usize>,
        width: usize,
        mut to: *mut f32,
    ) {
        // Where no place of the kernel is seen there is nothing to gather.
        let (plane, taps) = (self.plane[0] * self.plane[1], self.taps.len().max(1));
        let (mut channel, mut tap) = (depth.start / taps, depth.start % taps);
        for _ in depth {
            let start = channel * plane;
            for run in &runs.runs[tap * runs.of_tap..][..runs.of_tap] {
                unsafe {
                    let to = to.add(run.column);
                    zeros::<S>(to, run.low);
                    if run.high > run.low {
                        // A run may begin before its plane, what is inside of it does not.
                        let inside = run.from + (run.low * self.stride) as isize;
                        let from = (start as isize + inside) as usize;
                        self.copy::<S>(from, run.high - run.low, to.add(run.low));
                    }
                    if run.len > run.high {
                        zeros::<S>(to.add(run.high), run.len - run.high);
                    }
                }
            }
            tap += 1;
            if tap == taps {
                (channel, tap) = (channel + 1, 0);
            }
            to = unsafe { to.add(width) };
        }
    }

    /// `count` floats from `from` on, a stride apart; whole vectors are written.
    #[inline(always)]
    unsafe fn copy<S: Simd<Float = f32>>(&self, from: usize, count: usize, to: *mut f32) {
        let source = unsafe { self.x.as_ptr().add(from) };
        if self.stride == 1 && from + count.next_multiple_of(S::LANES) <= self.x.len() {
            for at in (0..count).step_by(S::LANES) {
                unsafe { S::store(to.add(at), S::load(source.add(at))) };
            }
        } else if self.stride == 2 && from + 2 * count.next_multiple_of(BLOCK) <= self.x.len() {
            for at in (0..count).step_by(BLOCK) {
                unsafe {
                    let pairs = source.add(2 * at).cast::<[[f32; 2]; BLOCK]>().read_unaligned();
                    to.add(at).cast::<[f32; BLOCK]>().write_unaligned(pairs.map(|[even, _]| even));
                }
            }
        } else {
            for at in 0..count {
                unsafe { to.add(at).write(*source.add(self.stride * at)) };
            }
        }
    }
}

/// Floats of every second place that are taken together.
const BLOCK: usize = 16;

/// Floats that may be written after the last row.
pub(super) const SLACK: usize = 64;

/// `count` zeros, and perhaps some more.
#[inline(always)]
unsafe fn zeros<S: Simd<Float = f32>>(to: *mut f32, count: usize) {
    for at in (0..count).step_by(S::LANES) {
        unsafe { S::store(to.add(at), S::splat(0.0)) };
    }
}
