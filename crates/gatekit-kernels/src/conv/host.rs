//! The short convolution as fused loops over steps, for the backends on host memory.
//!
//! A step of all channels is a contiguous row: every loop runs over the channels of a row, and a
//! tap is a row of one weight a channel. A job computes some successive steps, and what the filter
//! sees outside them it reads again.

use std::mem::MaybeUninit;

use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Shape},
};

use super::{ConvolutionArguments, ConvolutionSpec, portable};
use crate::{
    gate::{Gate, Swish},
    host::HostBackend,
    loops::{JOB, Loop, accumulate, run_all, sum_rows},
    memory::filled,
    precision::cast,
    simd::Arithmetic,
};

/// The arguments as rows.
struct Problem<'a> {
    channels: usize,
    taps: usize,
    /// All steps, `[rows, channels]`.
    x: &'a [f32],
    /// `[taps, channels]`.
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    /// The inputs before each sequence, `[sequences, taps - 1, channels]`.
    history: Option<&'a [f32]>,
    silu: bool,
}

/// Steps `from..to` of a sequence.
#[derive(Clone, Copy)]
struct Piece {
    sequence: usize,
    /// The row of the sequence's first step.
    start: usize,
    /// Steps of the whole sequence.
    length: usize,
    from: usize,
    to: usize,
}

impl Piece {
    /// All sequences in the order of their rows, cut into jobs of about `steps` steps.
    ///
    /// `steps` depends on the shape of the problem alone: so does the order of the sums over steps.
    fn jobs(batch: usize, time: usize, spec: &ConvolutionSpec, steps: usize) -> Vec<Vec<Piece>> {
        let sequences: Vec<(usize, usize)> = match &spec.boundaries {
            Some(boundaries) => boundaries.windows(2).map(|pair| (pair[0], pair[1] - pair[0])).collect(),
            None => (0..batch).map(|row| (row * time, time)).collect(),
        };
        let (mut jobs, mut job, mut room) = (Vec::new(), Vec::new(), steps);
        for (sequence, (start, length)) in sequences.into_iter().enumerate() {
            let mut from = 0;
            while from < length {
                let to = length.min(from + room);
                job.push(Piece { sequence, start, length, from, to });
                room -= to - from;
                from = to;
                if room == 0 {
                    jobs.push(std::mem::take(&mut job));
                    room = steps;
                }
            }
        }
        jobs.extend((!job.is_empty()).then_some(job));
        jobs
    }

    fn steps(pieces: &[Piece]) -> usize {
        pieces.iter().map(|piece| piece.to - piece.from).sum()
    }
}

impl Problem<'_> {
    /// Steps of a job; some, so that what is computed twice at its ends stays a small share.
    fn steps(&self) -> usize {
        (JOB / self.channels).max(4 * self.taps)
    }

    fn row<'r>(&self, rows: &'r [f32], index: usize) -> &'r [f32] {
        &rows[index * self.channels..][..self.channels]
    }

    fn tap(&self, tap: usize) -> &[f32] {
        self.row(self.weight, tap)
    }

    /// What tap `tap` meets at a step: an earlier step of the sequence, or one before it if given.
    fn input(&self, piece: &Piece, step: usize, tap: usize) -> Option<&[f32]> {
        let before = self.taps - 1;
        match (step + tap).checked_sub(before) {
            Some(step) => Some(self.row(self.x, piece.start + step)),
            None => self.history.map(|history| self.row(history, piece.sequence * before + step + tap)),
        }
    }

    /// The result of a step before its activation.
    #[inline(always)]
    fn preactivation<A: Arithmetic>(&self, piece: &Piece, step: usize, sum: &mut [f32]) {
        match self.bias {
            Some(bias) => sum.copy_from_slice(bias),
            None => sum.fill(0.0),
        }
        for tap in 0..self.taps {
            if let Some(input) = self.input(piece, step, tap) {
                accumulate::<A>(sum, self.tap(tap), input);
            }
        }
    }
}

/// Calls `run` with the arguments as rows.
fn with_problem<B: HostBackend, R>(
    arguments: &ConvolutionArguments<B>,
    spec: &ConvolutionSpec,
    run: impl FnOnce(&Problem) -> R,
) -> R {
    let ConvolutionArguments { x, weight, bias, state } = arguments;
    let filters = weight.shape();
    let bias = spec.has_bias.then(|| B::read(bias));
    let history = spec.has_state.then(|| B::read(state));
    run(&Problem {
        channels: filters[0],
        taps: filters[1],
        x: &B::read(x),
        weight: &transposed(&B::read(weight), filters[1]),
        bias: bias.as_deref(),
        history: history.as_deref(),
        silu: spec.silu,
    })
}

/// `[rows, columns]` as `[columns, rows]`.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns;
    let mut transposed = vec![0.0; values.len()];
    for (row, values) in values.chunks_exact(columns).enumerate() {
        for (column, value) in values.iter().enumerate() {
            transposed[column * rows + row] = *value;
        }
    }
    transposed
}

/// Cuts `values` into the rows of each job.
fn split<'a, T>(mut values: &'a mut [T], jobs: &[Vec<Piece>], channels: usize) -> Vec<&'a mut [T]> {
    jobs.iter()
        .map(|pieces| {
            let (own, rest) = std::mem::take(&mut values).split_at_mut(Piece::steps(pieces) * channels);
            values = rest;
            own
        })
        .collect()
}

/// Whether the fused loops compute this convolution; the others are left to the portable form.
fn is_fused<B: HostBackend>(arguments: &ConvolutionArguments<B>) -> bool {
    arguments.x.dtype() != DType::F64 && arguments.x.shape().num_elements() > 0
}

/// The forward pass.
pub(super) fn forward<B: HostBackend>(
    arguments: ConvolutionArguments<B>,
    spec: &ConvolutionSpec,
) -> FloatTensor<B> {
    if !is_fused(&arguments) {
        return portable::forward(arguments, spec);
    }
    let dtype = arguments.x.dtype();
    let arguments = arguments.widened();
    let shape = arguments.x.shape();
    let y = with_problem(&arguments, spec, |problem| {
        let jobs = Piece::jobs(shape[0], shape[1], spec, problem.steps());
        let fill = |[y]: [&mut [MaybeUninit<f32>]; 1]| {
            let rows = split(y, &jobs, problem.channels);
            let work = jobs.iter().zip(rows).map(|(pieces, y)| Forward { problem, pieces, y }).collect();
            run_all(problem.x.len(), work);
        };
        // SAFETY: the pieces cover all steps, and every job writes all of its rows.
        let [y] = unsafe { filled([problem.x.len()], fill) };
        y
    });
    cast::<B>(B::write(y, shape), dtype)
}

struct Forward<'a> {
    problem: &'a Problem<'a>,
    pieces: &'a [Piece],
    y: &'a mut [MaybeUninit<f32>],
}

impl Loop for Forward<'_> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self { problem, pieces, y } = self;
        let mut sum = vec![0.0f32; problem.channels];
        let mut rows = y.chunks_exact_mut(problem.channels);
        for piece in pieces {
            for (step, y) in (piece.from..piece.to).zip(&mut rows) {
                problem.preactivation::<A>(piece, step, &mut sum);
                if problem.silu {
                    for (y, sum) in y.iter_mut().zip(&sum) {
                        y.write(Swish::value::<A>(*sum));
                    }
                } else {
                    y.write_copy_of_slice(&sum);
                }
            }
        }
    }
}

/// Gradients of all arguments, a single zero for what is absent.
pub(super) fn backward<B: HostBackend>(
    arguments: ConvolutionArguments<B>,
    gradient: FloatTensor<B>,
    spec: &ConvolutionSpec,
) -> ConvolutionArguments<B> {
    if !is_fused(&arguments) {
        return portable::backward(arguments, gradient, spec);
    }
    let dtypes = arguments.dtypes();
    let arguments = arguments.widened();
    let gradient = cast::<B>(gradient, arguments.x.dtype());
    let dy = B::read(&gradient);
    let shape = arguments.x.shape();
    let (dx, dweight, dbias, dhistory) = with_problem(&arguments, spec, |problem| {
        let (channels, taps) = (problem.channels, problem.taps);
        let jobs = Piece::jobs(shape[0], shape[1], spec, problem.steps());
        // A job leaves one row of sums a tap, and one for the bias.
        let sums = (taps + 1) * channels;
        let mut parts = vec![0.0; jobs.len() * sums];
        let mut dhistory = vec![0.0; problem.history.map_or(0, <[f32]>::len)];
        let fill = |[dx]: [&mut [MaybeUninit<f32>]; 1]| {
            let rows = split(dx, &jobs, channels);
            let mut rest = &mut dhistory[..];
            let work = jobs
                .iter()
                .zip(rows.into_iter().zip(parts.chunks_exact_mut(sums)))
                .map(|(pieces, (dx, sums))| {
                    // The history of a sequence belongs to the job with its first step.
                    let firsts = pieces.iter().filter(|piece| piece.from == 0).count();
                    let own = if problem.history.is_some() { firsts * (taps - 1) * channels } else { 0 };
                    let (dhistory, others) = std::mem::take(&mut rest).split_at_mut(own);
                    rest = others;
                    Backward { problem, pieces, dy: &dy, dx, sums, dhistory }
                })
                .collect();
            run_all(problem.x.len(), work);
        };
        // SAFETY: the pieces cover all steps, and every job writes all of its rows.
        let [dx] = unsafe { filled([problem.x.len()], fill) };
        let sums = sum_rows(&parts, sums);
        let (dweight, dbias) = sums.split_at(taps * channels);
        (dx, transposed(dweight, channels), dbias.to_vec(), dhistory)
    });
    let absent = || B::write(vec![0.0], Shape::new([1]));
    ConvolutionArguments {
        x: B::write(dx, shape),
        weight: B::write(dweight, arguments.weight.shape()),
        bias: if spec.has_bias { B::write(dbias, arguments.bias.shape()) } else { absent() },
        state: if spec.has_state { B::write(dhistory, arguments.state.shape()) } else { absent() },
    }
    .narrowed(dtypes)
}

struct Backward<'a> {
    problem: &'a Problem<'a>,
    pieces: &'a [Piece],
    /// Of all steps.
    dy: &'a [f32],
    dx: &'a mut [MaybeUninit<f32>],
    /// `[taps + 1, channels]`: gradients of the taps and of the bias; starts at 0.
    sums: &'a mut [f32],
    /// Of the sequences that begin in this job, or empty; starts at 0.
    dhistory: &'a mut [f32],
}

impl Loop for Backward<'_> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self { problem, pieces, dy, dx, sums, dhistory } = self;
        let (channels, taps) = (problem.channels, problem.taps);
        let before = taps - 1;
        let mut dx_rows = dx.chunks_exact_mut(channels);
        let mut histories = dhistory.chunks_exact_mut((before * channels).max(1));
        let mut sum = vec![0.0f32; channels];
        let mut inner = Vec::new();
        for piece in pieces {
            // The gradients before the activation: of these steps, and of those that see them.
            let seen = piece.length.min(piece.to + before);
            let given = &dy[(piece.start + piece.from) * channels..(piece.start + seen) * channels];
            let inner = if problem.silu {
                inner.clear();
                inner.extend_from_slice(given);
                for (step, gradient) in (piece.from..seen).zip(inner.chunks_exact_mut(channels)) {
                    problem.preactivation::<A>(piece, step, &mut sum);
                    for (gradient, z) in gradient.iter_mut().zip(&sum) {
                        *gradient *= Swish::value_and_slope::<A>(*z).1;
                    }
                }
                &inner[..]
            } else {
                given
            };

            for (step, dx) in (piece.from..piece.to).zip(&mut dx_rows) {
                sum.fill(0.0);
                for later in step..seen.min(step + taps) {
                    let gradient = problem.row(inner, later - piece.from);
                    accumulate::<A>(&mut sum, problem.tap(before - (later - step)), gradient);
                }
                dx.write_copy_of_slice(&sum);

                let gradient = problem.row(inner, step - piece.from);
                let (taps, bias) = sums.split_at_mut(before * channels + channels);
                for (tap, sum) in taps.chunks_exact_mut(channels).enumerate() {
                    if let Some(input) = problem.input(piece, step, tap) {
                        accumulate::<A>(sum, input, gradient);
                    }
                }
                bias.iter_mut().zip(gradient).for_each(|(bias, gradient)| *bias += gradient);
            }

            if piece.from == 0
                && let Some(history) = histories.next()
            {
                for (place, row) in history.chunks_exact_mut(channels).enumerate() {
                    for step in 0..seen.min(place + 1) {
                        accumulate::<A>(row, problem.tap(place - step), problem.row(inner, step));
                    }
                }
            }
        }
    }
}
