//! The forward pass.

use std::{mem::MaybeUninit, ops::Range};

use super::{carry, problem::Problem};
use crate::{
    float::Float,
    loops::{Loop, run_all},
    memory::{Filling, filled},
    pieces::{Piece, States},
    simd::Arithmetic,
};

/// Output `[rows, channels]` and final states `[sequences, channels, N]`.
pub(crate) fn forward<F: Float>(problem: &Problem<F>) -> [Vec<F>; 2] {
    let cut = problem.cut();
    let starts = carry::starts(problem, &cut);
    let lens = [problem.x.len(), problem.sequences.len() * problem.state_len()];
    let fill = |places: [&mut [MaybeUninit<F>]; 2]| {
        let [y, finals] = &places.map(Filling::unwritten);
        let starts = &starts;
        let jobs = cut.jobs().map(|job| Forward {
            problem,
            pieces: job.pieces,
            block: job.channels,
            starts,
            y,
            finals,
        });
        run_all(problem.work(), jobs.collect());
    };
    // SAFETY: the jobs cover all rows and channels; every sequence has a last piece.
    unsafe { filled(lens, fill) }
}

struct Forward<'a, F> {
    problem: &'a Problem<'a, F>,
    pieces: &'a [Piece],
    block: Range<usize>,
    starts: &'a States<'a, F>,
    y: &'a Filling<'a, F>,
    finals: &'a Filling<'a, F>,
}

impl<F: Float> Loop for Forward<'_, F> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self { problem, pieces, block, starts, y: output, finals } = self;
        let (width, len) = (block.len(), block.len() * problem.size);
        let [mut a, mut s, mut end] = [(); 3].map(|()| vec![F::default(); len]);
        let mut y = vec![F::default(); width];
        problem.load(problem.a, &block, &mut a);
        for piece in pieces {
            problem.load_state(starts, piece, &block, &mut s);
            for row in piece.rows.clone() {
                let x = problem.channels_of(problem.x, row, &block);
                let delta = problem.channels_of(problem.delta, row, &block);
                let numbers =
                    problem.numbers_of(problem.b, row).iter().zip(problem.numbers_of(problem.c, row));
                y.fill(F::default());
                for ((s, a), (b, c)) in s.chunks_exact_mut(width).zip(a.chunks_exact(width)).zip(numbers) {
                    step::<F, A>(s, a, x, delta, *b, *c, &mut y);
                }
                // SAFETY: a row's channels of this block belong to this job alone.
                unsafe { output.write(row * problem.channels + block.start, &y) };
            }
            if piece.last {
                problem.store(&s, width, &mut end);
                // SAFETY: so do those of a sequence's final state.
                unsafe {
                    finals.write(piece.sequence * problem.state_len() + block.start * problem.size, &end)
                };
            }
        }
    }
}

/// Advances one number of the states of a block, and adds what the output reads of it.
#[inline(always)]
fn step<F: Float, A: Arithmetic>(s: &mut [F], a: &[F], x: &[F], delta: &[F], b: F, c: F, y: &mut [F]) {
    for ((((s, a), x), delta), y) in s.iter_mut().zip(a).zip(x).zip(delta).zip(y) {
        let decay = (*delta * *a).exp::<A>();
        *s = s.multiply_add::<A>(decay, *x * b);
        *y = s.multiply_add::<A>(c, *y);
    }
}
