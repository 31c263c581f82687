//! A segment, a head and a block of K: the two scans of [`OverKeys`] over a chunk.

use std::ops::Range;

use super::super::super::ahead::Ahead;
use super::super::super::forward::load_decay;
use super::super::super::packing::Columns;
use super::super::super::problem::Decay;
use super::super::super::tile::{Chunk, DecayAxis, Pass, scan};
use super::super::Upstream;
use super::{OverKeys, above_floor};
use crate::float::{Float, sum16};
use crate::scratch::LINE;
use crate::simd::{Simd, dot};

/// One segment, head and block of K.
pub(super) struct KeyJob<'j, F, const DELTA: bool> {
    pub(super) over: &'j OverKeys<'j, F, DELTA>,
    pub(super) head: usize,
    pub(super) from: usize,
    /// V, padded.
    pub(super) rows: usize,
    /// Of a vector over V.
    pub(super) stride: usize,
    /// Of K, padded.
    pub(super) lanes: usize,
    pub(super) keys: Columns,
    pub(super) values: Columns,
    /// S, then H: `[rows, lanes]`.
    pub(super) state: &'j mut [F],
    /// d, do and the delta rule's dv: `[STEPS, stride]`.
    pub(super) written: &'j mut [F],
    pub(super) grad: &'j mut [F],
    pub(super) erased: &'j mut [F],
    /// `[STEPS, lanes]`
    pub(super) q: &'j mut [F],
    pub(super) k: &'j mut [F],
    pub(super) decay: &'j mut [F],
    pub(super) output: &'j mut [F],
    pub(super) second: &'j mut [F],
    /// The decay's gradient at the earliest step so far, per lane.
    pub(super) running: &'j mut [F],
    /// States S at the marks.
    pub(super) marks: Vec<F>,
    pub(super) ahead: Ahead<F>,
}

/// A scan over the transposed state, whose outputs leave out a step's own write; `D`: with decay, `R`: in reverse.
struct Keys<const D: bool, const R: bool, const DELTA: bool>;
impl<const D: bool, const R: bool, const DELTA: bool> Pass for Keys<D, R, DELTA> {
    const DECAY: DecayAxis = if D { DecayAxis::Lanes } else { DecayAxis::None };
    const REVERSE: bool = R;
    const STRICT: bool = true;
    const DELTA: bool = DELTA;
}

impl<F: Float, const DELTA: bool> KeyJob<'_, F, DELTA> {
    /// What the chunk of these tokens will read and write.
    #[inline(always)]
    pub(super) fn look_ahead(&mut self, tokens: Range<usize>) {
        let Upstream { problem: p, grad_output, .. } = self.over.upstream;
        let (terms, keys, values) = (self.over.terms, self.keys, self.values);
        let arrays = [
            Some((values, terms.written.as_ptr())),
            grad_output.map(|grad| (values, grad.as_ptr())),
            terms.erased.map(|erased| (values, erased.as_ptr())),
            Some((keys, p.q.as_ptr())),
            Some((keys, p.k.as_ptr())),
            p.decay.per_key().map(|g| (keys, g.as_ptr())),
            Some((keys, self.over.q.start().cast_const())),
            Some((keys, self.over.k.start().cast_const())),
            p.decay.per_key().map(|_| (keys, self.over.decay.start().cast_const())),
        ];
        self.ahead.plan(tokens, arrays);
    }

    #[inline(always)]
    unsafe fn load<S: Simd<Float = F>>(&mut self, token: usize, steps: usize) {
        let (p, terms) = (self.over.upstream.problem, self.over.terms);
        let (rows, lanes) = (steps * self.stride, steps * self.lanes);
        unsafe {
            self.values.load::<S>(terms.written, token, &mut self.written[..rows]);
            self.values.load_or_zero::<S>(self.over.upstream.grad_output, token, &mut self.grad[..rows]);
            if DELTA {
                self.values.load_or_zero::<S>(terms.erased, token, &mut self.erased[..rows]);
            }
            self.keys.load_scaled::<S>(p.q, p.scale, token, &mut self.q[..lanes]);
            self.keys.load::<S>(p.k, token, &mut self.k[..lanes]);
            load_decay::<S>(p, self.head, &self.keys, token, &mut self.decay[..lanes]);
        }
        self.output[..lanes].fill(F::default());
    }

    /// dq of a chunk, the q part of the decay's gradient, and for the delta rule the part of dk that erases.
    #[inline(always)]
    pub(super) unsafe fn forward<S: Simd<Float = F>>(&mut self, token: usize, steps: usize) {
        unsafe { self.load::<S>(token, steps) };
        let over = self.over;
        let p = over.upstream.problem;
        let (stride, lanes) = (self.stride, self.lanes);
        self.second[..steps * lanes].fill(F::default());
        let chunk = Chunk {
            steps,
            rows: self.rows,
            row_stride: self.stride,
            lanes,
            state: self.state.as_mut_ptr(),
            decay: self.decay.as_ptr(),
            in_row: self.written.as_ptr(),
            in_lane: self.k.as_ptr(),
            out_row: self.grad.as_ptr(),
            out_lane: self.output.as_mut_ptr(),
            row2: self.erased.as_ptr(),
            lane2: self.second.as_mut_ptr(),
            ahead: &self.ahead,
        };
        unsafe {
            if p.decay.is_none() {
                scan::<S, Keys<false, false, DELTA>>(&chunk);
            } else {
                scan::<S, Keys<true, false, DELTA>>(&chunk);
            }
        }
        let scale = unsafe { S::splat(p.scale) };
        for step in 0..steps {
            let row = step * stride..(step + 1) * stride;
            unsafe {
                let own = S::splat(dot::<S>(&self.written[row.clone()], &self.grad[row]));
                for at in (step * lanes..(step + 1) * lanes).step_by(S::LANES) {
                    let (q, k) = (self.q.as_mut_ptr().add(at), S::load(self.k.as_ptr().add(at)));
                    let (output, second) =
                        (self.output.as_mut_ptr().add(at), self.second.as_mut_ptr().add(at));
                    let dq = S::load(output);
                    S::store(output, S::mul(scale, S::mul_add(own, k, dq)));
                    let mut product = S::mul(S::load(q), dq);
                    if DELTA {
                        let erased = S::load(second);
                        product = S::neg_mul_add(k, erased, product);
                        S::store(second, S::sub(S::splat(F::default()), erased));
                    }
                    S::store(q, product);
                }
            }
        }
        unsafe {
            self.keys.store::<S>(&self.output[..steps * lanes], token, &over.q);
            if DELTA {
                self.keys.store::<S>(&self.second[..steps * lanes], token, &over.k);
            }
            match p.decay {
                Decay::None => {}
                Decay::PerHead(_) => {
                    for step in 0..steps {
                        let at = self.line_offset(token + step);
                        for (line, x) in lines(&self.q[step * lanes..(step + 1) * lanes]).enumerate() {
                            over.decay.write(at + line, &[sum16(x)]);
                        }
                    }
                }
                Decay::PerKey(_) => self.keys.store::<S>(&self.q[..steps * lanes], token, &over.decay),
            }
        }
    }

    /// Where the sums over sixteen channels of a token start in the gradient of decays per head.
    #[inline(always)]
    fn line_offset(&self, token: usize) -> usize {
        let p = self.over.upstream.problem;
        (token * p.heads + self.head) * p.key_dim.div_ceil(LINE) + self.from / LINE
    }

    /// The gradient of the decay of the step after a mark: the sums over V of H * S.
    #[inline(always)]
    pub(super) unsafe fn start_at_mark(&mut self, token: usize) {
        let start = self.marks.len() - self.state.len();
        self.running.fill(F::default());
        for (h, s) in self.state.chunks_exact(self.lanes).zip(self.marks[start..].chunks_exact(self.lanes)) {
            for lane in 0..self.lanes {
                self.running[lane] += h[lane] * s[lane];
            }
        }
        self.marks.truncate(start);
        let gradient = &self.over.decay;
        match self.over.upstream.problem.decay {
            Decay::None => {}
            Decay::PerHead(_) => {
                let at = self.line_offset(token);
                for (line, x) in self.running.as_chunks_mut::<LINE>().0.iter_mut().enumerate() {
                    x[0] = sum16(x);
                    unsafe { gradient.write(at + line, &x[..1]) };
                }
            }
            Decay::PerKey(g) => {
                let at = self.keys.at(token);
                // Written by this job's scan in reverse.
                let sums = unsafe { gradient.written(at, self.keys.width) };
                for ((sum, running), g) in sums.iter_mut().zip(&*self.running).zip(&g[at..]) {
                    *sum = above_floor(*g, *running);
                }
            }
        }
    }

    /// dk of a chunk, and the decay's gradient.
    #[inline(always)]
    pub(super) unsafe fn reverse<S: Simd<Float = F>>(&mut self, token: usize, steps: usize) {
        unsafe { self.load::<S>(token, steps) };
        let over = self.over;
        let p = over.upstream.problem;
        let (stride, lanes) = (self.stride, self.lanes);
        let chunk = Chunk {
            steps,
            rows: self.rows,
            row_stride: self.stride,
            lanes,
            state: self.state.as_mut_ptr(),
            decay: self.decay.as_ptr(),
            in_row: self.grad.as_ptr(),
            in_lane: self.q.as_ptr(),
            out_row: self.written.as_ptr(),
            out_lane: self.output.as_mut_ptr(),
            row2: self.erased.as_ptr(),
            lane2: self.k.as_mut_ptr(),
            ahead: &self.ahead,
        };
        unsafe {
            if p.decay.is_none() {
                scan::<S, Keys<false, true, DELTA>>(&chunk);
            } else {
                scan::<S, Keys<true, true, DELTA>>(&chunk);
            }
        }
        for step in 0..steps {
            let row = step * stride..(step + 1) * stride;
            unsafe {
                let own = S::splat(dot::<S>(&self.written[row.clone()], &self.grad[row]));
                for at in (step * lanes..(step + 1) * lanes).step_by(S::LANES) {
                    let (k, output) = (self.k.as_mut_ptr().add(at), self.output.as_mut_ptr().add(at));
                    let dk = S::load(output);
                    S::store(k, S::mul(S::load(k), dk));
                    S::store(output, S::mul_add(own, S::load(self.q.as_ptr().add(at)), dk));
                }
            }
        }
        if DELTA {
            for (step, dk) in self.output.chunks_exact(lanes).take(steps).enumerate() {
                // Written by this job's forward scan.
                let erased = unsafe { self.keys.written(&over.k, token + step) };
                for (x, dk) in erased.iter_mut().zip(dk) {
                    *x += *dk;
                }
            }
        } else {
            unsafe { self.keys.store::<S>(&self.output[..steps * lanes], token, &over.k) };
        }
        match p.decay {
            Decay::None => {}
            Decay::PerHead(_) => {
                for step in (0..steps).rev() {
                    let width = lanes / LINE;
                    // Written by this job's forward scan.
                    let sums = unsafe { over.decay.written(self.line_offset(token + step), width) };
                    for (line, x) in lines(&self.k[step * lanes..(step + 1) * lanes]).enumerate() {
                        let running = &mut self.running[line * LINE];
                        *running += sums[line] - sum16(x);
                        sums[line] = *running;
                    }
                }
            }
            Decay::PerKey(g) => {
                for (step, k) in self.k.chunks_exact(lanes).take(steps).enumerate().rev() {
                    // Written by this job's forward scan.
                    let sums = unsafe { self.keys.written(&over.decay, token + step) };
                    let g = &g[self.keys.at(token + step)..][..sums.len()];
                    for (((sum, running), k), g) in sums.iter_mut().zip(&mut *self.running).zip(k).zip(g) {
                        *running += *sum - *k;
                        *sum = above_floor(*g, *running);
                    }
                }
            }
        }
    }
}

/// A padded row, sixteen floats at a time.
#[inline(always)]
fn lines<F>(row: &[F]) -> impl Iterator<Item = &[F; LINE]> {
    row.as_chunks().0.iter()
}
