//! The delta rule's scans over a chunk.

use std::ops::Range;

use super::super::ahead::Ahead;
use super::super::forward::{job, load_decay};
use super::super::packing::{Columns, StateBlock, padded_rows};
use super::super::parallel::{Blocks, STEPS};
use super::super::problem::{Problem, Segment};
use super::super::tile::{load, store};
use crate::scratch::Arena;
use crate::{
    float::Float,
    simd::{Simd, dot},
};

/// One segment, head and block of V, with its scratch memory.
pub(super) struct DeltaJob<'j, F> {
    pub(super) problem: &'j Problem<'j, F>,
    pub(super) segment: &'j Segment,
    pub(super) head: usize,
    pub(super) from: usize,
    /// K, padded.
    pub(super) rows: usize,
    /// Of a vector over K.
    pub(super) stride: usize,
    /// Of V, padded.
    pub(super) lanes: usize,
    pub(super) keys: Columns,
    pub(super) values: Columns,
    pub(super) block: StateBlock,
    /// S or H: `[rows, lanes]`.
    pub(super) state: &'j mut [F],
    /// `[STEPS, stride]`; the last two are the first two times the decay, and unused where there is none.
    pub(super) q: &'j mut [F],
    pub(super) k: &'j mut [F],
    pub(super) decay: &'j mut [F],
    pub(super) decayed_q: &'j mut [F],
    pub(super) decayed_k: &'j mut [F],
    /// `[STEPS, lanes]`: v forward, do in reverse.
    pub(super) value: &'j mut [F],
    /// `[STEPS, lanes]`: o forward, e in reverse.
    pub(super) output: &'j mut [F],
    /// `[STEPS, lanes]`: r.
    pub(super) residual: &'j mut [F],
    /// `[STEPS]`: beta, and scale q^T k.
    pub(super) beta: &'j mut [F],
    pub(super) own: &'j mut [F],
    ahead: Ahead<F>,
}

impl<'j, F: Float> DeltaJob<'j, F> {
    /// Lengths of the scratch memory.
    pub(super) fn scratch(problem: &Problem<F>, blocks: &Blocks) -> Vec<usize> {
        let (rows, stride) = padded_rows(problem.key_dim);
        let lanes = blocks.lanes;
        [[rows * lanes].as_slice(), &[STEPS * stride; 5], &[STEPS * lanes; 3], &[STEPS; 2]].concat()
    }

    /// Job `index` of the pairs of a segment and a head times the blocks of V.
    #[inline(always)]
    pub(super) fn new(
        problem: &'j Problem<F>,
        blocks: &Blocks,
        index: usize,
        mut arena: Arena<'j, F>,
    ) -> Self {
        let (segment, head, from, lanes) = job(problem, blocks, index);
        let (rows, stride) = padded_rows(problem.key_dim);
        let Problem { heads, key_dim, value_dim, .. } = *problem;
        Self {
            problem,
            segment,
            head,
            from,
            rows,
            stride,
            lanes,
            keys: Columns::of(head, heads, key_dim, 0, stride),
            values: Columns::of(head, heads, value_dim, from, lanes),
            block: StateBlock { key_dim, value_dim, from, lanes },
            state: arena.take(rows * lanes),
            q: arena.take(STEPS * stride),
            k: arena.take(STEPS * stride),
            decay: arena.take(STEPS * stride),
            decayed_q: arena.take(STEPS * stride),
            decayed_k: arena.take(STEPS * stride),
            value: arena.take(STEPS * lanes),
            output: arena.take(STEPS * lanes),
            residual: arena.take(STEPS * lanes),
            beta: arena.take(STEPS),
            own: arena.take(STEPS),
            ahead: Ahead::new(),
        }
    }

    /// What the chunk of these tokens will read and write: all keys, and these arrays over V.
    #[inline(always)]
    pub(super) fn look_ahead<const N: usize>(
        &mut self,
        tokens: Range<usize>,
        over_values: [Option<*const F>; N],
    ) {
        let p = self.problem;
        let over_keys = [Some(p.q.as_ptr()), Some(p.k.as_ptr()), p.decay.per_key().map(<[F]>::as_ptr)];
        let keys = over_keys.map(|start| start.map(|start| (self.keys, start)));
        let values = over_values.map(|start| start.map(|start| (self.values, start)));
        self.ahead.plan(tokens, keys.into_iter().chain(values));
    }

    /// The operands of a chunk that do not depend on the direction.
    #[inline(always)]
    pub(super) unsafe fn load<S: Simd<Float = F>>(&mut self, token: usize, steps: usize) {
        let (p, stride) = (self.problem, self.stride);
        let len = steps * stride;
        unsafe {
            self.keys.load_scaled::<S>(p.q, p.scale, token, &mut self.q[..len]);
            self.keys.load::<S>(p.k, token, &mut self.k[..len]);
            if !p.decay.is_none() {
                load_decay::<S>(p, self.head, &self.keys, token, &mut self.decay[..len]);
                for at in (0..len).step_by(S::LANES) {
                    let decay = S::load(self.decay.as_ptr().add(at));
                    let (q, k) = (S::load(self.q.as_ptr().add(at)), S::load(self.k.as_ptr().add(at)));
                    S::store(self.decayed_q.as_mut_ptr().add(at), S::mul(q, decay));
                    S::store(self.decayed_k.as_mut_ptr().add(at), S::mul(k, decay));
                }
            }
        }
        for step in 0..steps {
            self.beta[step] = p.beta.map_or(F::of(1.0), |beta| beta[(token + step) * p.heads + self.head]);
            let at = step * stride..(step + 1) * stride;
            self.own[step] = unsafe { dot::<S>(&self.q[at.clone()], &self.k[at]) };
        }
    }

    /// Residuals of a chunk, and with `OUTPUT` its outputs; the state moves on.
    #[inline(always)]
    pub(super) unsafe fn scan_forward<S: Simd<Float = F>, const OUTPUT: bool>(&mut self, steps: usize) {
        let vectors = self.lanes / S::LANES;
        self.ahead.spread(vectors.div_ceil(S::TILE_VECTORS) * steps);
        let mut vector = 0;
        while vector < vectors {
            let width = (vectors - vector).min(S::TILE_VECTORS);
            let lane = vector * S::LANES;
            unsafe {
                match (width, self.problem.decay.is_none()) {
                    (4, false) => self.forward_column::<S, 4, true, OUTPUT>(steps, lane),
                    (3, false) => self.forward_column::<S, 3, true, OUTPUT>(steps, lane),
                    (2, false) => self.forward_column::<S, 2, true, OUTPUT>(steps, lane),
                    (_, false) => self.forward_column::<S, 1, true, OUTPUT>(steps, lane),
                    (4, true) => self.forward_column::<S, 4, false, OUTPUT>(steps, lane),
                    (3, true) => self.forward_column::<S, 3, false, OUTPUT>(steps, lane),
                    (2, true) => self.forward_column::<S, 2, false, OUTPUT>(steps, lane),
                    (_, true) => self.forward_column::<S, 1, false, OUTPUT>(steps, lane),
                }
            }
            vector += width;
        }
    }

    #[inline(always)]
    unsafe fn forward_column<S: Simd<Float = F>, const N: usize, const DECAY: bool, const OUTPUT: bool>(
        &mut self,
        steps: usize,
        lane: usize,
    ) {
        if N > S::TILE_VECTORS {
            return; // never reached, so not compiled either
        }
        let (rows, stride, lanes) = (self.rows, self.stride, self.lanes);
        let state = self.state.as_mut_ptr();
        let (q, k, decay) = (self.q.as_ptr(), self.k.as_ptr(), self.decay.as_ptr());
        let reading = if DECAY { self.decayed_k.as_ptr() } else { k };
        unsafe {
            let state = state.add(lane);
            let mut held = product::<S, N>(state, lanes, reading, rows);
            for step in 0..steps {
                self.ahead.fetch::<S>();
                let at = step * lanes + lane;
                let beta = S::splat(self.beta[step]);
                let mut written = load::<S, N>(self.value.as_ptr().add(at));
                for n in 0..N {
                    written[n] = S::sub(written[n], held[n]);
                }
                store::<S, N>(self.residual.as_mut_ptr().add(at), written);
                for x in &mut written {
                    *x = S::mul(*x, beta);
                }
                let (q, k, decay) = (q.add(step * stride), k.add(step * stride), decay.add(step * stride));
                let next = reading.add((step + 1).min(steps - 1) * stride);
                // Even and odd rows have sums of their own, for two shorter chains of additions.
                let mut output = [[S::splat(F::default()); N]; 2];
                let mut reads = [[S::splat(F::default()); N]; 2];
                for row in (0..rows).step_by(2) {
                    for half in 0..2 {
                        let row = row + half;
                        let (q, k, next) =
                            (S::splat(*q.add(row)), S::splat(*k.add(row)), S::splat(*next.add(row)));
                        let decay = if DECAY { S::splat(*decay.add(row)) } else { k };
                        let mut s = load::<S, N>(state.add(row * lanes));
                        for n in 0..N {
                            if DECAY {
                                s[n] = S::mul(s[n], decay);
                            }
                            s[n] = S::mul_add(k, written[n], s[n]);
                            if OUTPUT {
                                output[half][n] = S::mul_add(s[n], q, output[half][n]);
                            }
                            reads[half][n] = S::mul_add(s[n], next, reads[half][n]);
                        }
                        store::<S, N>(state.add(row * lanes), s);
                    }
                }
                if OUTPUT {
                    store::<S, N>(self.output.as_mut_ptr().add(at), halves::<S, N>(output));
                }
                held = halves::<S, N>(reads);
            }
        }
    }

    /// The errors e of a chunk; the state's gradient moves back.
    #[inline(always)]
    pub(super) unsafe fn scan_reverse<S: Simd<Float = F>>(&mut self, steps: usize) {
        let vectors = self.lanes / S::LANES;
        self.ahead.spread(vectors.div_ceil(S::TILE_VECTORS) * steps);
        let mut vector = 0;
        while vector < vectors {
            let width = (vectors - vector).min(S::TILE_VECTORS);
            let lane = vector * S::LANES;
            unsafe {
                match (width, self.problem.decay.is_none()) {
                    (4, false) => self.reverse_column::<S, 4, true>(steps, lane),
                    (3, false) => self.reverse_column::<S, 3, true>(steps, lane),
                    (2, false) => self.reverse_column::<S, 2, true>(steps, lane),
                    (_, false) => self.reverse_column::<S, 1, true>(steps, lane),
                    (4, true) => self.reverse_column::<S, 4, false>(steps, lane),
                    (3, true) => self.reverse_column::<S, 3, false>(steps, lane),
                    (2, true) => self.reverse_column::<S, 2, false>(steps, lane),
                    (_, true) => self.reverse_column::<S, 1, false>(steps, lane),
                }
            }
            vector += width;
        }
    }

    #[inline(always)]
    unsafe fn reverse_column<S: Simd<Float = F>, const N: usize, const DECAY: bool>(
        &mut self,
        steps: usize,
        lane: usize,
    ) {
        if N > S::TILE_VECTORS {
            return; // never reached, so not compiled either
        }
        let (rows, stride, lanes) = (self.rows, self.stride, self.lanes);
        let state = self.state.as_mut_ptr();
        let (k, decay) = (self.k.as_ptr(), self.decay.as_ptr());
        let (write, erase) =
            if DECAY { (self.decayed_q.as_ptr(), self.decayed_k.as_ptr()) } else { (self.q.as_ptr(), k) };
        unsafe {
            let state = state.add(lane);
            let mut reached = product::<S, N>(state, lanes, k.add((steps - 1) * stride), rows);
            for step in (0..steps).rev() {
                self.ahead.fetch::<S>();
                let at = step * lanes + lane;
                let (beta, own) = (S::splat(self.beta[step]), S::splat(self.own[step]));
                let grad = load::<S, N>(self.value.as_ptr().add(at));
                let mut error = [S::splat(F::default()); N];
                for n in 0..N {
                    error[n] = S::mul_add(own, grad[n], reached[n]);
                }
                store::<S, N>(self.output.as_mut_ptr().add(at), error);
                for x in &mut error {
                    *x = S::mul(*x, beta);
                }
                let (write, erase, decay) =
                    (write.add(step * stride), erase.add(step * stride), decay.add(step * stride));
                let next = k.add(step.saturating_sub(1) * stride);
                let mut reads = [[S::splat(F::default()); N]; 2];
                for row in (0..rows).step_by(2) {
                    for (half, reads) in reads.iter_mut().enumerate() {
                        let row = row + half;
                        let (write, erase) = (S::splat(*write.add(row)), S::splat(*erase.add(row)));
                        let next = S::splat(*next.add(row));
                        let decay = if DECAY { S::splat(*decay.add(row)) } else { next };
                        let mut s = load::<S, N>(state.add(row * lanes));
                        for n in 0..N {
                            if DECAY {
                                s[n] = S::mul(s[n], decay);
                            }
                            s[n] = S::mul_add(write, grad[n], s[n]);
                            s[n] = S::neg_mul_add(erase, error[n], s[n]);
                            reads[n] = S::mul_add(s[n], next, reads[n]);
                        }
                        store::<S, N>(state.add(row * lanes), s);
                    }
                }
                reached = halves::<S, N>(reads);
            }
        }
    }
}

/// The state's product with a vector over its rows, with separate sums of even and odd rows.
#[inline(always)]
unsafe fn product<S: Simd, const N: usize>(
    state: *const S::Float,
    lanes: usize,
    vector: *const S::Float,
    rows: usize,
) -> [S::Vector; N] {
    unsafe {
        let mut sums = [[S::splat(S::Float::default()); N]; 2];
        for row in (0..rows).step_by(2) {
            for (half, sum) in sums.iter_mut().enumerate() {
                let (x, s) =
                    (S::splat(*vector.add(row + half)), load::<S, N>(state.add((row + half) * lanes)));
                for n in 0..N {
                    sum[n] = S::mul_add(s[n], x, sum[n]);
                }
            }
        }
        halves::<S, N>(sums)
    }
}

/// The sum of the two parts.
#[inline(always)]
unsafe fn halves<S: Simd, const N: usize>(parts: [[S::Vector; N]; 2]) -> [S::Vector; N] {
    let [mut sum, odd] = parts;
    for n in 0..N {
        sum[n] = unsafe { S::add(sum[n], odd[n]) };
    }
    sum
}
