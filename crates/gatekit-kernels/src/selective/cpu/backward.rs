//! The backward pass: the states are scanned again, one kept a chunk; then, from the last chunk to the first, those of
//! a chunk are filled in and the gradient of the state is scanned in reverse.

use std::{mem::MaybeUninit, ops::Range};

use super::{carry, problem::Problem};
use crate::{
    float::{Float, dot},
    loops::{JOB, Loop, run_all},
    memory::{Filling, filled},
    pieces::{Piece, States},
    simd::Arithmetic,
};

/// Numbers of the states of a chunk of a block: what a chunk keeps of them stays in the second-level cache.
const CHUNK: usize = 1 << 15;

/// Gradients of the arguments; that of an absent initial state is empty.
pub(crate) struct Gradients<F> {
    pub x: Vec<F>,
    pub delta: Vec<F>,
    pub a: Vec<F>,
    pub b: Vec<F>,
    pub c: Vec<F>,
    pub initial_state: Vec<F>,
}

/// Gradients of the arguments, given those of the output and of the final states.
pub(crate) fn backward<F: Float>(
    problem: &Problem<F>,
    output: Option<&[F]>,
    state: Option<&[F]>,
) -> Gradients<F> {
    let none;
    let output = match output {
        Some(output) => output,
        None => {
            none = vec![F::default(); problem.x.len()];
            &none[..]
        }
    };
    let cut = problem.cut();
    let starts = carry::starts(problem, &cut);
    let ends = carry::ends(problem, &cut, output, state);
    let (inputs, numbers) = (problem.x.len(), problem.b.len());
    let initial = problem.initial_state.map_or(0, <[F]>::len);
    let lens = [
        inputs,
        inputs,
        cut.groups.len() * problem.state_len(),
        cut.blocks.len() * numbers,
        cut.blocks.len() * numbers,
        initial,
    ];
    let fill = |places: [&mut [MaybeUninit<F>]; 6]| {
        let results = &places.map(Filling::unwritten);
        let (starts, ends) = (&starts, &ends);
        let jobs = cut.jobs().map(|job| Backward {
            problem,
            output,
            pieces: job.pieces,
            group: job.group,
            channels: job.channels,
            block: job.block,
            starts,
            ends,
            results,
        });
        run_all(problem.work(), jobs.collect());
    };
    // SAFETY: the jobs cover all rows and channels, every block has its rows of the parts of `b` and `c`, every group
    // its part of `a`, and every sequence a first piece.
    let [x, delta, a, b, c, initial_state] = unsafe { filled(lens, fill) };
    let [a, b, c] =
        [(a, problem.state_len()), (b, numbers), (c, numbers)].map(|(parts, len)| sum(parts, len));
    Gradients { x, delta, a, b, c, initial_state }
}

struct Backward<'a, F> {
    problem: &'a Problem<'a, F>,
    /// Gradient of the output.
    output: &'a [F],
    pieces: &'a [Piece],
    group: usize,
    channels: Range<usize>,
    block: usize,
    starts: &'a States<'a, F>,
    ends: &'a States<'a, F>,
    /// In the order of [`Gradients`]; of `a` a part a group, of `b` and `c` a part a block.
    results: &'a [Filling<'a, F>; 6],
}

impl<F: Float> Loop for Backward<'_, F> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self { problem, pieces, ref channels, starts, ends, .. } = self;
        let (width, len) = (channels.len(), channels.len() * problem.size);
        let steps = (CHUNK / len).clamp(32, 64);
        let longest = pieces.iter().map(|piece| piece.rows.len()).max().unwrap_or(0);
        let kept = longest.div_ceil(steps);
        // Of a chunk: the decays of every step, and the states before and after.
        let (mut decays, mut states) =
            (vec![F::default(); steps * len], vec![F::default(); (steps + 1) * len]);
        let mut saved = vec![F::default(); kept * len];
        let [mut a, mut da, mut ds, mut part] = [(); 4].map(|()| vec![F::default(); len]);
        let [mut dx, mut ddelta] = [(); 2].map(|()| vec![F::default(); width]);
        let [mut db, mut dc] = [(); 2].map(|()| vec![F::default(); problem.size]);
        problem.load(problem.a, channels, &mut a);

        for piece in pieces {
            let chunk = |index: usize| {
                let start = piece.rows.start + index * steps;
                start..piece.rows.end.min(start + steps)
            };
            let chunks = piece.rows.len().div_ceil(steps);
            problem.load_state(starts, piece, channels, &mut ds);
            for index in 0..chunks {
                saved[index * len..][..len].copy_from_slice(&ds);
                if index + 1 < chunks {
                    for row in chunk(index) {
                        problem.advance::<A>(row, channels, &a, &mut ds);
                    }
                }
            }

            problem.load_state(ends, piece, channels, &mut ds);
            for index in (0..chunks).rev() {
                let rows = chunk(index);
                states[..len].copy_from_slice(&saved[index * len..][..len]);
                for (step, row) in rows.clone().enumerate() {
                    let (before, after) = states[step * len..][..2 * len].split_at_mut(len);
                    self.fill_in::<A>(row, &a, before, after, &mut decays[step * len..][..len]);
                }
                for (step, row) in rows.enumerate().rev() {
                    let x = problem.channels_of(problem.x, row, channels);
                    let delta = problem.channels_of(problem.delta, row, channels);
                    let dy = problem.channels_of(self.output, row, channels);
                    dx.fill(F::default());
                    ddelta.fill(F::default());
                    for n in 0..problem.size {
                        let own = n * width..(n + 1) * width;
                        let before = &states[step * len..][own.clone()];
                        let after = &states[(step + 1) * len..][own.clone()];
                        let decay = &mut decays[step * len..][own.clone()];
                        reverse::<F, A>(
                            [before, &a[own.clone()], dy, delta],
                            [problem.b[row * problem.size + n], problem.c[row * problem.size + n]],
                            decay,
                            [&mut ds[own.clone()], &mut dx, &mut ddelta, &mut da[own]],
                        );
                        db[n] = dot::<F, A>(decay, x);
                        dc[n] = dot::<F, A>(after, dy);
                    }
                    let at = row * problem.channels + channels.start;
                    let part = self.block * problem.b.len() + row * problem.size;
                    // SAFETY: a row's channels of this block, and the block's own row, belong to this job alone.
                    unsafe {
                        self.results[0].write(at, &dx);
                        self.results[1].write(at, &ddelta);
                        self.results[3].write(part, &db);
                        self.results[4].write(part, &dc);
                    }
                }
            }
            if piece.first && problem.initial_state.is_some() {
                problem.store(&ds, width, &mut part);
                self.write_state(5, piece.sequence, &part);
            }
        }
        problem.store(&da, width, &mut part);
        self.write_state(2, self.group, &part);
    }
}

impl<F: Float> Backward<'_, F> {
    /// Writes this block's part of `[.., channels, N]`.
    #[inline(always)]
    fn write_state(&self, result: usize, index: usize, values: &[F]) {
        let problem = self.problem;
        // SAFETY: the block's part of a state of its own group or sequence belongs to this job alone.
        unsafe {
            self.results[result]
                .write(index * problem.state_len() + self.channels.start * problem.size, values);
        }
    }

    /// The states after a step, from those before it, and its decays.
    #[inline(always)]
    fn fill_in<A: Arithmetic>(&self, row: usize, a: &[F], before: &[F], after: &mut [F], decay: &mut [F]) {
        let problem = self.problem;
        let width = self.channels.len();
        let x = problem.channels_of(problem.x, row, &self.channels);
        let delta = problem.channels_of(problem.delta, row, &self.channels);
        let given =
            before.chunks_exact(width).zip(a.chunks_exact(width)).zip(problem.numbers_of(problem.b, row));
        let results = after.chunks_exact_mut(width).zip(decay.chunks_exact_mut(width));
        for (((before, a), b), (after, decay)) in given.zip(results) {
            let given = before.iter().zip(a).zip(x).zip(delta);
            for ((((before, a), x), delta), (after, decay)) in given.zip(after.iter_mut().zip(decay)) {
                *decay = (*delta * *a).exp::<A>();
                *after = before.multiply_add::<A>(*decay, *x * *b);
            }
        }
    }
}

/// The reverse step of one number of the states of a block. `decay` becomes the gradient of the state after the step,
/// `ds` that of the state before it.
#[inline(always)]
fn reverse<F: Float, A: Arithmetic>(
    [before, a, dy, delta]: [&[F]; 4],
    [b, c]: [F; 2],
    decay: &mut [F],
    [ds, dx, ddelta, da]: [&mut [F]; 4],
) {
    let given = before.iter().zip(a).zip(dy).zip(delta);
    let results = ds.iter_mut().zip(dx).zip(ddelta).zip(da).zip(decay);
    for ((((before, a), dy), delta), ((((ds, dx), ddelta), da), decay)) in given.zip(results) {
        let after = dy.multiply_add::<A>(c, *ds);
        *dx = after.multiply_add::<A>(b, *dx);
        *ds = after * *decay;
        *decay = after;
        let exponent = *ds * *before;
        *ddelta = exponent.multiply_add::<A>(*a, *ddelta);
        *da = exponent.multiply_add::<A>(*delta, *da);
    }
}

/// The sum of the parts of length `len` in their order.
fn sum<F: Float>(parts: Vec<F>, len: usize) -> Vec<F> {
    if parts.len() == len {
        return parts;
    }
    let mut sums = parts[..len].to_vec();
    let jobs = sums
        .chunks_mut(JOB)
        .enumerate()
        .map(|(index, sums)| Sum { sums, parts: &parts[index * JOB..], len })
        .collect();
    run_all(parts.len(), jobs);
    sums
}

struct Sum<'a, F> {
    sums: &'a mut [F],
    parts: &'a [F],
    len: usize,
}

impl<F: Float> Loop for Sum<'_, F> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        for part in self.parts.chunks(self.len).skip(1) {
            self.sums.iter_mut().zip(part).for_each(|(sum, value)| *sum += *value);
        }
    }
}
