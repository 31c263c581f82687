//! Convolutions as matrix products over panels of positions.

use std::{mem::MaybeUninit, ops::Range};

use rayon::prelude::*;

use super::{
    Finish, Sizes,
    patches::{Patches, Runs, SLACK},
};
use crate::{
    grouped::cpu::{
        cut::{for_each, parts},
        tile::{Left, Panel, column, panel_vectors, panel_width},
    },
    memory::{Filling, filled},
    scratch::Arena,
    simd::{Kernel, Level, Simd},
};

/// Depth of a panel: with [`PANEL`] columns it stays in the first-level cache.
const DEPTH: usize = 144;

/// Columns of the widest panel.
pub(super) const PANEL: usize = 64;

/// Jobs that positions are spread over, about.
const JOBS: usize = 32;

/// Rows of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) start: *const f32,
    pub(super) stride: usize,
}

impl Left<f32> for Rows {
    const STEP: usize = 1;

    #[inline(always)]
    unsafe fn rows<const R: usize>(&self, row: usize) -> [*const f32; R] {
        std::array::from_fn(|r| unsafe { self.start.add((row + r) * self.stride) })
    }
}

/// All rows of `left` times a panel.
///
/// # Safety
/// As [`column`].
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd<Float = f32>>(
    rows: usize,
    left: Rows,
    panel: Panel<f32>,
    out: impl Fn(usize) -> *mut f32,
    add: bool,
) {
    unsafe {
        match panel_vectors::<S>(panel.columns) {
            1 => column::<S, _, 1>(rows, left, panel, out, add),
            2 => column::<S, _, 2>(rows, left, panel, out, add),
            _ => column::<S, _, 4>(rows, left, panel, out, add),
        }
    }
}

/// Sums over patches, for every output a row of weights `[channels, taps]`.
struct Sums<'a> {
    patches: Patches<'a>,
    weight: &'a [f32],
    outputs: usize,
    finish: Finish<'a>,
    /// The plane that a position `(i, j)` is written to, at `(i s + offset, j s + offset)`.
    plane: [usize; 2],
    offset: [usize; 2],
    step: usize,
}

impl Sums<'_> {
    /// Computes all of them.
    ///
    /// # Safety
    /// `out` must hold `[batch, outputs, plane]`, and nothing else may access the positions meanwhile.
    unsafe fn run(&self, batch: usize, out: &Filling) {
        let positions = batch * self.patches.positions();
        let size = positions.div_ceil(JOBS).next_multiple_of(PANEL);
        let jobs: Vec<Range<usize>> = parts(positions, size).collect();
        let work = positions * self.outputs * self.patches.depth();
        let level = Level::best();
        let scratch = [DEPTH * PANEL + SLACK, self.outputs * PANEL];
        for_each(&jobs, work, &scratch, |positions, mut arena: Arena<f32>| {
            let [packed, tile] = scratch.map(|len| arena.take(len));
            let job = Job { sums: self, positions: positions.clone(), packed, tile, out };
            // SAFETY: the level is this processor's; no other job has these positions.
            unsafe { level.run(job) };
        });
    }
}

struct Job<'a, 'b> {
    sums: &'a Sums<'a>,
    /// Through all images.
    positions: Range<usize>,
    packed: &'b mut [f32],
    tile: &'b mut [f32],
    out: &'a Filling<'a>,
}

impl Kernel for Job<'_, '_> {
    type Float = f32;

    #[inline(always)]
    unsafe fn run<S: Simd<Float = f32>>(self) {
        let Self { sums, positions, packed, tile, out } = self;
        let (packed, tile) = (packed.as_mut_ptr(), tile.as_mut_ptr());
        let (depth, plane, grid) =
            (sums.patches.depth(), sums.plane[0] * sums.plane[1], sums.patches.positions());
        let mut runs = Runs::default();
        for first in positions.clone().step_by(panel_width::<S>()) {
            let count = (positions.end - first).min(panel_width::<S>());
            let width = panel_vectors::<S>(count) * S::LANES;
            sums.patches.find(first, count, &mut runs);
            let (image, at) = (first / grid, first % grid);
            // Where the panel stands in the result as it is computed, it is computed there.
            let direct = sums.step == 1 && at + count <= grid;
            let planes = unsafe { out.start().add(image * sums.outputs * plane + at) };
            let place =
                |row: usize| unsafe { if direct { planes.add(row * plane) } else { tile.add(row * PANEL) } };
            for k in (0..depth.max(1)).step_by(DEPTH) {
                let part = k..depth.min(k + DEPTH);
                unsafe {
                    sums.patches.gather::<S>(&runs, part.clone(), width, packed);
                    let panel = Panel { start: packed, depth: part.len(), columns: count };
                    let left = Rows { start: sums.weight.as_ptr().add(k), stride: depth };
                    multiply::<S>(sums.outputs, left, panel, place, k > 0);
                }
            }
            for row in 0..sums.outputs {
                // SAFETY: just written.
                let values = unsafe { std::slice::from_raw_parts_mut(place(row), count) };
                sums.finish.apply::<S::Arithmetic>(row, values);
                if !direct {
                    unsafe { sums.spread(first, row, values, out.start()) };
                }
            }
        }
    }
}

impl Sums<'_> {
    /// Writes an output of the positions from `first` on where they belong.
    #[inline(always)]
    unsafe fn spread(&self, first: usize, output: usize, values: &[f32], out: *mut f32) {
        let (plane, columns) = (self.plane[0] * self.plane[1], self.patches.grid[1]);
        let mut done = 0;
        while done < values.len() {
            let (image, place) =
                ((first + done) / self.patches.positions(), (first + done) % self.patches.positions());
            let (i, j) = (place / columns, place % columns);
            let run = &values[done..values.len().min(done + columns - j)];
            let [i, j] = [i * self.step + self.offset[0], j * self.step + self.offset[1]];
            let start = (image * self.outputs + output) * plane + i * self.plane[1] + j;
            for (at, value) in run.iter().enumerate() {
                unsafe { out.add(start + at * self.step).write(*value) };
            }
            done += run.len();
        }
    }
}

/// The convolution `[batch, outputs, result]`.
pub(in super::super) fn forward(sizes: &Sizes, x: &[f32], weight: &[f32], finish: Finish) -> Vec<f32> {
    let taps = taps(sizes);
    let patches = patches(sizes, x, &taps);
    let sums = Sums {
        patches,
        weight,
        outputs: sizes.outputs,
        finish,
        plane: sizes.result,
        offset: [0; 2],
        step: 1,
    };
    let elements = sizes.batch * sizes.outputs * sizes.positions();
    // SAFETY: every position of every image is in one job, which writes all of its outputs.
    let [y] = unsafe {
        filled([elements], |[y]: [&mut [MaybeUninit<f32>]; 1]| sums.run(sizes.batch, &Filling::unwritten(y)))
    };
    y
}

/// Places of the kernel as offsets.
pub(super) fn taps(sizes: &Sizes) -> Vec<[isize; 2]> {
    let padding = sizes.padding as isize;
    let rows = 0..sizes.kernel[0] as isize;
    rows.flat_map(|u| (0..sizes.kernel[1] as isize).map(move |v| [u - padding, v - padding])).collect()
}

/// What the convolution reads.
pub(super) fn patches<'a>(sizes: &Sizes, x: &'a [f32], taps: &'a [[isize; 2]]) -> Patches<'a> {
    let Sizes { channels, image, result, stride, .. } = *sizes;
    Patches { x, channels, plane: image, taps, stride, grid: result }
}

/// The gradient of the image, given that of the result: pixels whose places are apart by multiples of the stride see the
/// same places of the kernel, so each such phase is a convolution of the gradient by itself.
pub(in super::super) fn image_gradient(sizes: &Sizes, weight: &[f32], dy: &[f32]) -> Vec<f32> {
    let Sizes { batch, channels, image, stride, .. } = *sizes;
    let phases = |axis: usize| 0..stride.min(image[axis]);
    // SAFETY: every pixel is in one phase, whose sums write all of its channels.
    let [dx] = unsafe {
        filled([batch * channels * sizes.pixels()], |[dx]: [&mut [MaybeUninit<f32>]; 1]| {
            let dx = Filling::unwritten(dx);
            for (row, column) in phases(0).flat_map(|row| phases(1).map(move |column| (row, column))) {
                let (taps, places) = phase(sizes, [row, column]);
                let weight = turned(sizes, weight, &places);
                let grid = [(image[0] - row).div_ceil(stride), (image[1] - column).div_ceil(stride)];
                let patches = Patches {
                    x: dy,
                    channels: sizes.outputs,
                    plane: sizes.result,
                    taps: &taps,
                    stride: 1,
                    grid,
                };
                let sums = Sums {
                    patches,
                    weight: &weight,
                    outputs: channels,
                    finish: Finish::NONE,
                    plane: image,
                    offset: [row, column],
                    step: stride,
                };
                sums.run(batch, &dx);
            }
        })
    };
    dx
}

/// What the pixels of a phase see: offsets in the gradient, and places of the kernel.
fn phase(sizes: &Sizes, at: [usize; 2]) -> (Vec<[isize; 2]>, Vec<usize>) {
    let (stride, padding) = (sizes.stride as isize, sizes.padding as isize);
    let along = |axis: usize| {
        let from = at[axis] as isize + padding;
        let fits = move |place: &isize| (from - place).rem_euclid(stride) == 0;
        (0..sizes.kernel[axis] as isize).filter(fits).map(move |place| (place, (from - place) / stride))
    };
    let all = along(0).flat_map(|(u, dy)| along(1).map(move |(v, dx)| ([dy, dx], u, v)));
    all.map(|(offset, u, v)| (offset, (u * sizes.kernel[1] as isize + v) as usize)).unzip()
}

/// The kernel at some places, as `[channels, outputs, places]`.
fn turned(sizes: &Sizes, weight: &[f32], places: &[usize]) -> Vec<f32> {
    let all = sizes.places();
    let mut turned = vec![0.0; sizes.channels * sizes.outputs * places.len()];
    let row = (sizes.outputs * places.len()).max(1);
    let fill = |(channel, row): (usize, &mut [f32])| {
        for (output, to) in row.chunks_exact_mut(places.len()).enumerate() {
            let from = &weight[(output * sizes.channels + channel) * all..][..all];
            to.iter_mut().zip(places).for_each(|(to, place)| *to = from[*place]);
        }
    };
    if places.is_empty() {
        return turned;
    }
    if turned.len() < 1 << 15 {
        turned.chunks_exact_mut(row).enumerate().for_each(fill);
    } else {
        turned.par_chunks_exact_mut(row).with_min_len(16).enumerate().for_each(fill);
    }
    turned
}
