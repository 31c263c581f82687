//! The elementwise recurrence `h_t = exp(g_t) h_{t-1} + x_t` as fused loops on slices, forward and backward.
//!
//! Channels are the lanes of the vectors. A job scans a block of channels step by step; where blocks and sequences are
//! few, sequences are cut in time too (see [`States`]): a piece's decay is the exponential of the sum of its log decays.

use std::{mem::MaybeUninit, ops::Range};

use crate::{
    float::Float,
    loops::{Loop, run_all},
    memory::{Filling, filled},
    pieces::{Cut, Piece, States},
    simd::{Arithmetic, Target},
};

/// Widths of a block of channels: what a job reads of a step should be some cache lines that follow one another.
const NARROWEST: usize = 64;
const WIDEST: usize = 512;

/// The decays and what they act on, in row-major order. The steps of all sequences follow one another as rows.
#[derive(Debug)]
pub struct Problem<'a, F> {
    /// Channels.
    pub dim: usize,
    /// Rows of every sequence; none is empty, and they cover all rows in order.
    pub sequences: &'a [Range<usize>],
    /// `[rows, dim]`
    pub log_decay: &'a [F],
    /// `[sequences, dim]`
    pub initial_state: Option<&'a [F]>,
}

impl<F: Float> Problem<'_, F> {
    fn cut(&self) -> Cut {
        Cut::new(self.sequences, self.dim, NARROWEST, WIDEST)
    }

    /// A block's part of row `row`.
    #[inline(always)]
    fn part<'r>(&self, values: &'r [F], row: usize, block: &Range<usize>) -> &'r [F] {
        &values[row * self.dim..][block.clone()]
    }

    /// Loads a block's part of the state that a piece starts from.
    #[inline(always)]
    fn load(&self, states: &States<F>, piece: &Piece, block: &Range<usize>, to: &mut [F]) {
        match states.of(piece, self.dim) {
            Some(state) => to.copy_from_slice(&state[block.clone()]),
            None => to.fill(F::default()),
        }
    }

    /// What pieces start from, or in reverse what comes back to their ends, given what is added at every step.
    fn link<'e>(&self, cut: &Cut, added: &[F], edge: Option<&'e [F]>, reverse: bool) -> States<'e, F> {
        States::link(cut, self.dim, edge, reverse, || {
            let fill = |places: [&mut [MaybeUninit<F>]; 2]| {
                let [states, sums] = &places.map(Filling::unwritten);
                let jobs = cut.jobs().map(|job| Own {
                    problem: self,
                    pieces: job.pieces,
                    block: job.channels,
                    added,
                    reverse,
                    states,
                    sums,
                });
                run_all(added.len(), jobs.collect());
            };
            // SAFETY: the jobs cover all pieces and channels.
            let [own, sums] = unsafe { filled([cut.pieces.len() * self.dim; 2], fill) };
            let decay =
                move |piece: usize, channel: usize| F::exp::<Target>(sums[piece * self.dim + channel]);
            (own, decay)
        })
    }
}

/// The states of every step `[rows, dim]` and the final ones `[sequences, dim]`.
pub fn forward<F: Float>(problem: &Problem<F>, x: &[F]) -> [Vec<F>; 2] {
    let cut = problem.cut();
    let starts = problem.link(&cut, x, problem.initial_state, false);
    let fill = |places: [&mut [MaybeUninit<F>]; 2]| {
        let [output, finals] = &places.map(Filling::unwritten);
        let starts = &starts;
        let jobs = cut.jobs().map(|job| Forward {
            problem,
            x,
            pieces: job.pieces,
            block: job.channels,
            starts,
            output,
            finals,
        });
        run_all(x.len(), jobs.collect());
    };
    // SAFETY: the jobs cover all rows and channels; every sequence has a last piece.
    unsafe { filled([x.len(), problem.sequences.len() * problem.dim], fill) }
}

struct Forward<'a, F> {
    problem: &'a Problem<'a, F>,
    x: &'a [F],
    pieces: &'a [Piece],
    block: Range<usize>,
    starts: &'a States<'a, F>,
    output: &'a Filling<'a, F>,
    finals: &'a Filling<'a, F>,
}

impl<F: Float> Loop for Forward<'_, F> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self { problem, x, pieces, block, starts, output, finals } = self;
        let mut h = vec![F::default(); block.len()];
        for piece in pieces {
            problem.load(starts, piece, &block, &mut h);
            for row in piece.rows.clone() {
                let (x, g) = (problem.part(x, row, &block), problem.part(problem.log_decay, row, &block));
                for ((h, x), g) in h.iter_mut().zip(x).zip(g) {
                    *h = h.multiply_add::<A>(g.exp::<A>(), *x);
                }
                // SAFETY: a row's channels of this block belong to this job alone.
                unsafe { output.write(row * problem.dim + block.start, &h) };
            }
            if piece.last {
                // SAFETY: so do those of a sequence's final state.
                unsafe { finals.write(piece.sequence * problem.dim + block.start, &h) };
            }
        }
    }
}

/// Gradients of `x`, of the log decay, and of the initial state (empty if there is none), given the states of every
/// step and the gradients of these and of the final ones: `dh_t = do_t + exp(g_{t+1}) dh_{t+1}`, `dx_t = dh_t`,
/// `dg_t = dh_t exp(g_t) h_{t-1}`.
pub fn backward<F: Float>(
    problem: &Problem<F>,
    h: &[F],
    output: Option<&[F]>,
    state: Option<&[F]>,
) -> [Vec<F>; 3] {
    let none;
    let output = match output {
        Some(output) => output,
        None => {
            none = vec![F::default(); h.len()];
            &none[..]
        }
    };
    let cut = problem.cut();
    let ends = problem.link(&cut, output, state, true);
    let fill = |places: [&mut [MaybeUninit<F>]; 3]| {
        let results = &places.map(Filling::unwritten);
        let ends = &ends;
        let jobs = cut.jobs().map(|job| Backward {
            problem,
            h,
            output,
            pieces: job.pieces,
            block: job.channels,
            ends,
            results,
        });
        run_all(h.len(), jobs.collect());
    };
    // SAFETY: the jobs cover all rows and channels; every sequence has a first piece.
    unsafe { filled([h.len(), h.len(), problem.initial_state.map_or(0, <[F]>::len)], fill) }
}

struct Backward<'a, F> {
    problem: &'a Problem<'a, F>,
    /// The states of every step.
    h: &'a [F],
    /// Their gradients.
    output: &'a [F],
    pieces: &'a [Piece],
    block: Range<usize>,
    ends: &'a States<'a, F>,
    results: &'a [Filling<'a, F>; 3],
}

impl<F: Float> Loop for Backward<'_, F> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self { problem, h, output, pieces, block, ends, results: [dx_result, dg_result, initial] } = self;
        let [mut carried, mut dx, mut dg, zeros] = [(); 4].map(|()| vec![F::default(); block.len()]);
        for piece in pieces {
            problem.load(ends, piece, &block, &mut carried);
            for row in piece.rows.clone().rev() {
                let before = match (piece.first && row == piece.rows.start, problem.initial_state) {
                    (false, _) => problem.part(h, row - 1, &block),
                    (true, Some(states)) => problem.part(states, piece.sequence, &block),
                    (true, None) => &zeros[..],
                };
                let (dy, g) =
                    (problem.part(output, row, &block), problem.part(problem.log_decay, row, &block));
                let given = before.iter().zip(dy).zip(g);
                let results = carried.iter_mut().zip(&mut dx).zip(&mut dg);
                for (((before, dy), g), ((carried, dx), dg)) in given.zip(results) {
                    *dx = *dy + *carried;
                    *carried = *dx * g.exp::<A>();
                    *dg = *carried * *before;
                }
                let at = row * problem.dim + block.start;
                // SAFETY: a row's channels of this block belong to this job alone.
                unsafe {
                    dx_result.write(at, &dx);
                    dg_result.write(at, &dg);
                }
            }
            if piece.first && problem.initial_state.is_some() {
                // SAFETY: so do those of a sequence's initial state.
                unsafe { initial.write(piece.sequence * problem.dim + block.start, &carried) };
            }
        }
    }
}

/// Scans pieces from zero, and sums their log decays.
struct Own<'a, F> {
    problem: &'a Problem<'a, F>,
    pieces: &'a [Piece],
    block: Range<usize>,
    added: &'a [F],
    reverse: bool,
    states: &'a Filling<'a, F>,
    sums: &'a Filling<'a, F>,
}

impl<F: Float> Loop for Own<'_, F> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self { problem, pieces, block, added, reverse, states, sums } = self;
        let [mut state, mut sum] = [(); 2].map(|()| vec![F::default(); block.len()]);
        for piece in pieces {
            state.fill(F::default());
            sum.fill(F::default());
            for step in 0..piece.rows.len() {
                let row = if reverse { piece.rows.end - 1 - step } else { piece.rows.start + step };
                let (x, g) = (problem.part(added, row, &block), problem.part(problem.log_decay, row, &block));
                for (((state, sum), x), g) in state.iter_mut().zip(&mut sum).zip(x).zip(g) {
                    // In reverse a step's decay acts on what it adds as well.
                    *state = if reverse {
                        (*state + *x) * g.exp::<A>()
                    } else {
                        state.multiply_add::<A>(g.exp::<A>(), *x)
                    };
                    *sum += *g;
                }
            }
            let at = piece.index * problem.dim + block.start;
            // SAFETY: a piece's channels of this block belong to this job alone.
            unsafe {
                states.write(at, &state);
                sums.write(at, &sum);
            }
        }
    }
}
