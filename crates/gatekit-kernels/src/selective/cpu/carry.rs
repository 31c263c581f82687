//! What passes from one piece of a sequence to the next, where sequences are cut in time: a piece's decay is
//! `exp(a sum delta)`.

use std::{mem::MaybeUninit, ops::Range};

use super::problem::Problem;
use crate::{
    float::Float,
    loops::{Loop, run_all},
    memory::{Filling, filled},
    pieces::{Cut, Piece, States},
    simd::{Arithmetic, Target},
};

/// The state before each piece.
pub(super) fn starts<'a, F: Float>(problem: &Problem<'a, F>, cut: &Cut) -> States<'a, F> {
    link(problem, cut, problem.initial_state, None)
}

/// The gradient of the state after each piece, given those of the output and of the final states.
pub(super) fn ends<'a, F: Float>(
    problem: &Problem<F>,
    cut: &Cut,
    output: &[F],
    state: Option<&'a [F]>,
) -> States<'a, F> {
    link(problem, cut, state, Some(output))
}

fn link<'a, F: Float>(
    problem: &Problem<F>,
    cut: &Cut,
    edge: Option<&'a [F]>,
    gradient: Option<&[F]>,
) -> States<'a, F> {
    States::link(cut, problem.state_len(), edge, gradient.is_some(), || {
        let [own, sums] = own(problem, cut, gradient);
        let decay = move |piece: usize, number: usize| {
            let sum = sums[piece * problem.channels + number / problem.size];
            (sum * problem.a[number]).exp::<Target>()
        };
        (own, decay)
    })
}

/// What every piece comes to from zero, and the sums of its steps `delta`.
fn own<F: Float>(problem: &Problem<F>, cut: &Cut, gradient: Option<&[F]>) -> [Vec<F>; 2] {
    let pieces = cut.pieces.len();
    let fill = |places: [&mut [MaybeUninit<F>]; 2]| {
        let [states, sums] = &places.map(Filling::unwritten);
        let jobs = cut.jobs().map(|job| Own {
            problem,
            pieces: job.pieces,
            block: job.channels,
            gradient,
            states,
            sums,
        });
        run_all(problem.work(), jobs.collect());
    };
    // SAFETY: the jobs cover all pieces and channels.
    unsafe { filled([pieces * problem.state_len(), pieces * problem.channels], fill) }
}

/// Scans pieces from zero, in reverse if the gradient of the output is given.
struct Own<'a, F> {
    problem: &'a Problem<'a, F>,
    pieces: &'a [Piece],
    block: Range<usize>,
    gradient: Option<&'a [F]>,
    states: &'a Filling<'a, F>,
    sums: &'a Filling<'a, F>,
}

impl<F: Float> Loop for Own<'_, F> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self { problem, pieces, block, gradient, states, sums } = self;
        let (width, len) = (block.len(), block.len() * problem.size);
        let [mut a, mut s, mut end] = [(); 3].map(|()| vec![F::default(); len]);
        let mut sum = vec![F::default(); width];
        problem.load(problem.a, &block, &mut a);
        for piece in pieces {
            s.fill(F::default());
            sum.fill(F::default());
            for step in 0..piece.rows.len() {
                let row = match gradient {
                    None => piece.rows.start + step,
                    Some(_) => piece.rows.end - 1 - step,
                };
                match gradient {
                    None => problem.advance::<A>(row, &block, &a, &mut s),
                    Some(gradient) => {
                        let dy = problem.channels_of(gradient, row, &block);
                        let delta = problem.channels_of(problem.delta, row, &block);
                        let states = s.chunks_exact_mut(width).zip(a.chunks_exact(width));
                        for ((s, a), c) in states.zip(problem.numbers_of(problem.c, row)) {
                            retreat::<F, A>(s, a, dy, delta, *c);
                        }
                    }
                }
                let delta = problem.channels_of(problem.delta, row, &block);
                sum.iter_mut().zip(delta).for_each(|(sum, delta)| *sum += *delta);
            }
            problem.store(&s, width, &mut end);
            // SAFETY: a piece's channels of this block belong to this job alone.
            unsafe {
                states.write(piece.index * problem.state_len() + block.start * problem.size, &end);
                sums.write(piece.index * problem.channels + block.start, &sum);
            }
        }
    }
}

/// The gradient of the state before a step from that of the state after it, but for what the step's output adds.
#[inline(always)]
fn retreat<F: Float, A: Arithmetic>(ds: &mut [F], a: &[F], dy: &[F], delta: &[F], c: F) {
    for (((ds, a), dy), delta) in ds.iter_mut().zip(a).zip(dy).zip(delta) {
        *ds = dy.multiply_add::<A>(c, *ds) * (*delta * *a).exp::<A>();
    }
}
