//! What passes from one piece of a sequence to the next, where sequences are cut in time.
//!
//! A piece multiplies the state it starts from by `exp(a sum delta)` and adds what it comes to from a state of zero. So
//! all pieces are first scanned from zero, at once; linking them is then a short recurrence. Backward it is the same
//! with the gradient of the state, from the last piece to the first.

use std::{mem::MaybeUninit, ops::Range};

use super::problem::Problem;
use crate::{
    float::Float,
    loops::{Loop, run_all},
    memory::{Filling, filled},
    pieces::{Cut, Piece},
    simd::{Arithmetic, Target},
};

/// The states that pieces start from, or in reverse their gradients; zeros where there are none.
#[derive(Debug)]
pub(super) enum States<'a, F> {
    /// Of whole sequences, `[sequences, channels, N]`.
    Whole(Option<&'a [F]>),
    /// Of pieces, `[pieces, channels, N]`.
    Pieces(Vec<F>),
}

impl<'a, F: Float> States<'a, F> {
    /// The state before each piece.
    pub fn starts(problem: &Problem<'a, F>, cut: &Cut) -> Self {
        if !cut.is_split() {
            return Self::Whole(problem.initial_state);
        }
        let pieces = Link { problem, cut, edge: problem.initial_state, gradient: None }.all(cut.pieces.iter());
        Self::Pieces(pieces)
    }

    /// The gradient of the state after each piece, given those of the output and of the final state.
    pub fn ends(problem: &Problem<F>, cut: &Cut, gradient: &[F], state: Option<&'a [F]>) -> Self {
        if !cut.is_split() {
            return Self::Whole(state);
        }
        let link = Link { problem, cut, edge: state, gradient: Some(gradient) };
        Self::Pieces(link.all(cut.pieces.iter().rev()))
    }

    /// A block's part for a piece, transposed.
    #[inline(always)]
    pub fn load(&self, problem: &Problem<F>, piece: &Piece, block: &Range<usize>, to: &mut [F]) {
        let (states, index) = match self {
            Self::Whole(None) => return to.fill(F::default()),
            Self::Whole(Some(states)) => (*states, piece.sequence),
            Self::Pieces(states) => (&states[..], piece.index),
        };
        problem.load(&states[index * problem.state_len()..][..problem.state_len()], block, to);
    }
}

/// How the states of pieces are found.
struct Link<'a, F> {
    problem: &'a Problem<'a, F>,
    cut: &'a Cut,
    /// What sequences start from, `[sequences, channels, N]`.
    edge: Option<&'a [F]>,
    /// In reverse: the gradient of the output.
    gradient: Option<&'a [F]>,
}

impl<F: Float> Link<'_, F> {
    /// The state that each piece starts from, with the pieces in the order of the recurrence.
    fn all<'p>(&self, order: impl Iterator<Item = &'p Piece>) -> Vec<F> {
        let (problem, len) = (self.problem, self.problem.state_len());
        let [own, sums] = self.own();
        let mut states = vec![F::default(); own.len()];
        let mut before: Option<&Piece> = None;
        for piece in order {
            let state = piece.index * len..(piece.index + 1) * len;
            match before.filter(|before| before.sequence == piece.sequence) {
                None => {
                    if let Some(edge) = self.edge {
                        states[state].copy_from_slice(&edge[piece.sequence * len..][..len]);
                    }
                }
                Some(before) => {
                    for i in 0..len {
                        let sum = sums[before.index * problem.channels + i / problem.size];
                        let decay = (sum * problem.a[i]).exp::<Target>();
                        let at = before.index * len + i;
                        states[state.start + i] = states[at].multiply_add::<Target>(decay, own[at]);
                    }
                }
            }
            before = Some(piece);
        }
        states
    }

    /// What every piece comes to from zero, and the sums of its steps `delta`.
    fn own(&self) -> [Vec<F>; 2] {
        let (problem, pieces) = (self.problem, self.cut.pieces.len());
        let fill = |places: [&mut [MaybeUninit<F>]; 2]| {
            let [states, sums] = &places.map(Filling::unwritten);
            let jobs = self.cut.jobs().map(|job| Own {
                problem,
                pieces: job.pieces,
                block: job.channels,
                gradient: self.gradient,
                states,
                sums,
            });
            run_all(problem.work(), jobs.collect());
        };
        // SAFETY: the jobs cover all pieces and channels.
        unsafe { filled([pieces * problem.state_len(), pieces * problem.channels], fill) }
    }
}

/// Scans pieces from zero.
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
                let delta = problem.channels_of(problem.delta, row, &block);
                let states = s.chunks_exact_mut(width).zip(a.chunks_exact(width));
                match gradient {
                    None => {
                        let x = problem.channels_of(problem.x, row, &block);
                        for ((s, a), b) in states.zip(problem.numbers_of(problem.b, row)) {
                            forward::<F, A>(s, a, x, delta, *b);
                        }
                    }
                    Some(gradient) => {
                        let dy = problem.channels_of(gradient, row, &block);
                        for ((s, a), c) in states.zip(problem.numbers_of(problem.c, row)) {
                            backward::<F, A>(s, a, dy, delta, *c);
                        }
                    }
                }
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

#[inline(always)]
fn forward<F: Float, A: Arithmetic>(s: &mut [F], a: &[F], x: &[F], delta: &[F], b: F) {
    for (((s, a), x), delta) in s.iter_mut().zip(a).zip(x).zip(delta) {
        *s = s.multiply_add::<A>((*delta * *a).exp::<A>(), *x * b);
    }
}

#[inline(always)]
fn backward<F: Float, A: Arithmetic>(ds: &mut [F], a: &[F], dy: &[F], delta: &[F], c: F) {
    for (((ds, a), dy), delta) in ds.iter_mut().zip(a).zip(dy).zip(delta) {
        *ds = dy.multiply_add::<A>(c, *ds) * (*delta * *a).exp::<A>();
    }
}
