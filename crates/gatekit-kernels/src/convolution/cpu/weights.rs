//! The gradient of the kernel: for every channel and tap a row of sums over the positions, one column an output.

use std::{mem::MaybeUninit, ops::Range};

use super::{
    Sizes,
    patches::{Patches, Runs, SLACK},
    product::{PANEL, Rows, multiply, patches, taps},
};
use crate::{
    grouped::cpu::{
        cut::{for_each, parts},
        tile::{Panel, panel_vectors, panel_width},
    },
    memory::{Filling, filled},
    scratch::Arena,
    simd::{Kernel, Level, Simd},
};

/// Rows of a job, about: with [`PANEL`] positions they stay in the first-level cache.
const ROWS: usize = 144;

/// Jobs that channels are spread over, at least, where there are as many.
const JOBS: usize = 4;

/// The gradient of the kernel `[outputs, channels, kernel]`.
pub(in super::super) fn weight_gradient(sizes: &Sizes, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let Sizes { batch, channels, outputs, .. } = *sizes;
    let (positions, places) = (sizes.positions(), sizes.places());
    let level = Level::best();
    let work = batch * positions * channels * outputs * places;

    let padded = outputs.next_multiple_of(PANEL);
    let turns: Vec<(usize, Range<usize>)> =
        (0..batch).flat_map(|image| parts(positions, 4 * PANEL).map(move |part| (image, part))).collect();
    // SAFETY: every position is in one job, which writes all panels; padding after the last panel is never read.
    let turned = unsafe {
        let mut turned: Vec<f32> = Vec::with_capacity(batch * positions * padded);
        let out = Filling::unwritten(&mut turned.spare_capacity_mut()[..batch * positions * padded]);
        for_each(&turns, work, &[], |(image, part), _: Arena<f32>| {
            level.run(Turn { dy, batch, outputs, positions, image: *image, part: part.clone(), out: &out });
        });
        turned
    };

    let taps = taps(sizes);
    let size = (ROWS / places).max(1).min(channels.div_ceil(JOBS));
    let jobs: Vec<Range<usize>> = parts(channels, size).collect();
    let scratch = [size * places * PANEL + SLACK, size * places * outputs];
    // SAFETY: every channel is in one job, which writes all of its places for every output.
    let [dw] = unsafe {
        filled([outputs * channels * places], |[dw]: [&mut [MaybeUninit<f32>]; 1]| {
            let out = Filling::unwritten(dw);
            for_each(&jobs, work, &scratch, |part, mut arena: Arena<f32>| {
                let [packed, sums] = scratch.map(|len| arena.take(len));
                let patches = patches(sizes, x, &taps);
                let rows = part.start * places..part.end * places;
                let turned = turned.as_ptr();
                level.run(Products { patches, batch, outputs, rows, turned, packed, sums, out: &out });
            });
        })
    };
    dw
}

/// Positions of the gradient of the result, through all images, as rows `[positions, outputs]` in panels of outputs.
struct Turn<'a> {
    dy: &'a [f32],
    batch: usize,
    outputs: usize,
    positions: usize,
    image: usize,
    part: Range<usize>,
    out: &'a Filling<'a>,
}

impl Kernel for Turn<'_> {
    type Float = f32;

    #[inline(always)]
    unsafe fn run<S: Simd<Float = f32>>(self) {
        let Self { dy, batch, outputs, positions, image, part, out } = self;
        for output in (0..outputs).step_by(panel_width::<S>()) {
            let count = (outputs - output).min(panel_width::<S>());
            let width = panel_vectors::<S>(count) * S::LANES;
            let to = unsafe { out.start().add(output * batch * positions + image * positions * width) };
            let line =
                |lane: usize| unsafe { dy.as_ptr().add((image * outputs + output + lane) * positions) };
            for lane in (0..width).step_by(S::LANES) {
                let mut at = part.start;
                if lane + S::LANES <= count {
                    while at + S::LANES <= part.end {
                        unsafe { S::transpose(|i| line(lane + i).add(at), to.add(at * width + lane), width) };
                        at += S::LANES;
                    }
                }
                for at in at..part.end {
                    for i in lane..lane + S::LANES {
                        unsafe {
                            let value = if i < count { *line(i).add(at) } else { 0.0 };
                            to.add(at * width + i).write(value);
                        }
                    }
                }
            }
        }
    }
}

/// Rows of the gradient.
struct Products<'a, 'b> {
    patches: Patches<'a>,
    batch: usize,
    outputs: usize,
    rows: Range<usize>,
    turned: *const f32,
    packed: &'b mut [f32],
    /// `[rows, outputs]`.
    sums: &'b mut [f32],
    out: &'a Filling<'a>,
}

impl Kernel for Products<'_, '_> {
    type Float = f32;

    #[inline(always)]
    unsafe fn run<S: Simd<Float = f32>>(self) {
        let Self { patches, batch, outputs, rows, turned, packed, sums, out } = self;
        let (packed, sums) = (packed.as_mut_ptr(), sums.as_mut_ptr());
        let positions = batch * patches.positions();
        let mut runs = Runs::default();
        for first in (0..positions).step_by(PANEL) {
            let count = (positions - first).min(PANEL);
            patches.find(first, count, &mut runs);
            unsafe { patches.gather::<S>(&runs, rows.clone(), PANEL, packed) };
            for output in (0..outputs).step_by(panel_width::<S>()) {
                let columns = (outputs - output).min(panel_width::<S>());
                let width = panel_vectors::<S>(columns) * S::LANES;
                unsafe {
                    let start = turned.add(output * positions + first * width);
                    let panel = Panel { start, depth: count, columns };
                    let left = Rows { start: packed, stride: PANEL };
                    let place = |row: usize| sums.add(row * outputs + output);
                    multiply::<S>(rows.len(), left, panel, place, first > 0);
                }
            }
        }
        unsafe { transpose::<S>(sums, [rows.len(), outputs], out.start().add(rows.start), patches.depth()) };
    }
}

/// `[rows, columns]` as columns of lines that are `stride` apart.
#[inline(always)]
unsafe fn transpose<S: Simd<Float = f32>>(
    from: *const f32,
    [rows, columns]: [usize; 2],
    to: *mut f32,
    stride: usize,
) {
    for row in (0..rows).step_by(S::LANES) {
        for column in (0..columns).step_by(S::LANES) {
            unsafe {
                if row + S::LANES <= rows && column + S::LANES <= columns {
                    let line = |i: usize| from.add((row + i) * columns + column);
                    S::transpose(line, to.add(column * stride + row), stride);
                } else {
                    for i in row..rows.min(row + S::LANES) {
                        for j in column..columns.min(column + S::LANES) {
                            to.add(j * stride + i).write(*from.add(i * columns + j));
                        }
                    }
                }
            }
        }
    }
}
