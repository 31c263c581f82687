//! The gradients over K: of q, k and the decays, for both kinds of write.

use std::ops::Range;

use super::super::ahead::{Ahead, after, before};
use super::super::forward::{job, load_decay, state_of};
use super::super::packing::{Columns, StateBlock, padded_rows};
use super::super::parallel::{Blocks, STEPS, Task, for_each};
use super::super::problem::Decay;
use super::super::scratch::{Arena, LINE};
use super::super::tile::{Chunk, DecayAxis, Pass, scan};
use super::Upstream;
use crate::float::{Float, sum16};
use crate::memory::{Filling, filled};
use crate::simd::{Level, Simd, dot};

/// Steps between two states that the decay's gradient starts from, a multiple of [`STEPS`].
const MARK: usize = 256;

/// Log decays below this have no visible effect (exp(-30) = 1e-13); their gradient is written as 0.
const FLOOR: f64 = -30.0;

/// The rank-one terms of the state's recurrence, `[B, T, H, V]`.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a, F> {
    /// d_t: what is written under the key.
    pub(super) written: &'a [F],
    /// dv_t of the delta rule: how the error flows through what the key holds.
    pub(super) erased: Option<&'a [F]>,
}

/// Gradients that are made with K as the lanes.
pub(super) struct KeyGradients<F> {
    pub(super) q: Vec<F>,
    pub(super) k: Vec<F>,
    pub(super) decay: Option<Vec<F>>,
}

/// The gradients over K.
///
/// # Safety
/// `level` must be available.
pub(super) unsafe fn over_keys<F: Float>(
    level: Level,
    upstream: &Upstream<F>,
    terms: Terms<F>,
) -> KeyGradients<F> {
    let p = upstream.problem;
    let lines = p.key_dim.div_ceil(LINE);
    let decay_len = match p.decay {
        Decay::None => 0,
        Decay::PerHead(g) => g.len() * lines,
        Decay::PerKey(g) => g.len(),
    };
    let [q, k, decay] = unsafe {
        filled([p.q.len(), p.k.len(), decay_len], |places| {
            let [q, k, decay] = places.map(Filling::unwritten);
            let blocks = Blocks::new(p.key_dim, p.sequences());
            let jobs = p.sequences() * blocks.count;
            let work = 6 * p.tokens() * p.heads * p.state_len();
            if terms.erased.is_some() {
                let task = OverKeys::<F, true> { upstream: *upstream, terms, blocks, q, k, decay };
                for_each(level, &task, jobs, work);
            } else {
                let task = OverKeys::<F, false> { upstream: *upstream, terms, blocks, q, k, decay };
                for_each(level, &task, jobs, work);
            }
        })
    };
    let decay = match p.decay {
        Decay::None => None,
        Decay::PerKey(_) => Some(decay),
        Decay::PerHead(g) => {
            let sum = |parts: &[F]| parts.iter().fold(F::default(), |sum, x| sum + *x);
            Some(
                g.iter()
                    .zip(decay.chunks_exact(lines))
                    .map(|(g, parts)| above_floor(*g, sum(parts)))
                    .collect(),
            )
        }
    };
    KeyGradients { q, k, decay }
}

/// The gradient of a log decay, 0 where the decay is too strong to matter.
#[inline(always)]
fn above_floor<F: Float>(log_decay: F, gradient: F) -> F {
    if log_decay < F::of(FLOOR) { F::default() } else { gradient }
}

/// Gradients of q, k and the decays: a scan forward for q, then one in reverse for k; the states' rows are V, their
/// lanes K. `DELTA`: with the delta rule's second term.
struct OverKeys<'a, F, const DELTA: bool> {
    upstream: Upstream<'a, F>,
    terms: Terms<'a, F>,
    blocks: Blocks,
    q: Filling<'a, F>,
    k: Filling<'a, F>,
    /// `[B, T, H, K]`; for a decay per head `[B, T, H, lines]`, the sums over sixteen channels each.
    decay: Filling<'a, F>,
}

/// A scan over the transposed state, whose outputs leave out a step's own write; `D`: with decay, `R`: in reverse.
struct Keys<const D: bool, const R: bool, const DELTA: bool>;
impl<const D: bool, const R: bool, const DELTA: bool> Pass for Keys<D, R, DELTA> {
    const DECAY: DecayAxis = if D { DecayAxis::Lanes } else { DecayAxis::None };
    const REVERSE: bool = R;
    const STRICT: bool = true;
    const DELTA: bool = DELTA;
}

impl<F: Float, const DELTA: bool> Task for OverKeys<'_, F, DELTA> {
    type Float = F;

    fn scratch(&self) -> Vec<usize> {
        let (rows, stride) = padded_rows(self.upstream.problem.value_dim);
        let lanes = self.blocks.lanes;
        [[rows * lanes].as_slice(), &[STEPS * stride; 3], &[STEPS * lanes; 5], &[lanes]].concat()
    }

    #[inline(always)]
    unsafe fn run<S: Simd<Float = F>>(&self, index: usize, mut arena: Arena<F>) {
        let p = self.upstream.problem;
        let (segment, head, from, lanes) = job(p, &self.blocks, index);
        let (rows, stride) = padded_rows(p.value_dim);
        let mut job = KeyJob {
            over: self,
            head,
            from,
            rows,
            stride,
            lanes,
            keys: Columns::of(head, p.heads, p.key_dim, from, lanes),
            values: Columns::of(head, p.heads, p.value_dim, 0, stride),
            state: arena.take(rows * lanes),
            written: arena.take(STEPS * stride),
            grad: arena.take(STEPS * stride),
            erased: arena.take(STEPS * stride),
            q: arena.take(STEPS * lanes),
            k: arena.take(STEPS * lanes),
            decay: arena.take(STEPS * lanes),
            output: arena.take(STEPS * lanes),
            second: arena.take(STEPS * lanes),
            running: arena.take(lanes),
            marks: Vec::new(),
            ahead: Ahead::new(),
        };
        let block = StateBlock { key_dim: p.key_dim, value_dim: p.value_dim, from, lanes };
        let tokens = segment.tokens(p.time);
        // The last step is a chunk of its own, so that a mark comes before it.
        let last = tokens.end - 1;
        let chunks = (tokens.start..last).step_by(STEPS).map(|token| (token, STEPS.min(last - token)));
        let is_mark = |token: usize| {
            let steps = token - tokens.start;
            !p.decay.is_none() && (token == last || (steps > 0 && steps.is_multiple_of(MARK)))
        };
        if !p.decay.is_none() {
            job.marks.reserve_exact((tokens.len().div_ceil(MARK) + 1) * rows * lanes);
        }

        block.load_transposed(state_of(p, p.initial_state, segment, head), job.state);
        for (token, steps) in chunks.clone().chain([(last, 1)]) {
            if is_mark(token) {
                job.marks.extend_from_slice(job.state);
            }
            job.look_ahead(after(&tokens, token, steps));
            unsafe { job.forward::<S>(token, steps) };
        }
        block.load_transposed(state_of(p, self.upstream.grad_state, segment, head), job.state);
        job.running.fill(F::default());
        for (token, steps) in [(last, 1)].into_iter().chain(chunks.rev()) {
            job.look_ahead(before(&tokens, token));
            unsafe { job.reverse::<S>(token, steps) };
            if is_mark(token) {
                unsafe { job.start_at_mark(token) };
            }
        }
    }
}

/// One segment, head and block of K.
struct KeyJob<'j, F, const DELTA: bool> {
    over: &'j OverKeys<'j, F, DELTA>,
    head: usize,
    from: usize,
    /// V, padded.
    rows: usize,
    /// Of a vector over V.
    stride: usize,
    /// Of K, padded.
    lanes: usize,
    keys: Columns,
    values: Columns,
    /// S, then H: `[rows, lanes]`.
    state: &'j mut [F],
    /// d, do and the delta rule's dv: `[STEPS, stride]`.
    written: &'j mut [F],
    grad: &'j mut [F],
    erased: &'j mut [F],
    /// `[STEPS, lanes]`
    q: &'j mut [F],
    k: &'j mut [F],
    decay: &'j mut [F],
    output: &'j mut [F],
    second: &'j mut [F],
    /// The decay's gradient at the earliest step so far, per lane.
    running: &'j mut [F],
    /// States S at the marks.
    marks: Vec<F>,
    ahead: Ahead<F>,
}

impl<F: Float, const DELTA: bool> KeyJob<'_, F, DELTA> {
    /// What the chunk of these tokens will read and write.
    #[inline(always)]
    fn look_ahead(&mut self, tokens: Range<usize>) {
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
    unsafe fn forward<S: Simd<Float = F>>(&mut self, token: usize, steps: usize) {
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
    unsafe fn start_at_mark(&mut self, token: usize) {
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
    unsafe fn reverse<S: Simd<Float = F>>(&mut self, token: usize, steps: usize) {
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
