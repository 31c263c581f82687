//! The closed-form backward pass.
//!
//! With H_t the gradient of S_t by all later steps, and the rank-one writes and reads of the forward scan transposed,
//! every gradient is a scan again:
//!
//! ```text
//! G_t = H_t + scale q_t do_t^T            H_{t-1} = diag(exp g_t) (G_t - k_t dv_t^T)      (the last term: delta rule)
//! dv_t = [beta_t] G_t^T k_t               dq_t = scale S_t do_t           dk_t = G_t d_t [- S'_t dv_t]
//! ```
//!
//! where d_t, the value written, is v_t or the delta rule's residual times beta_t. Gradients over V are made with V as
//! the lanes, by jobs of one kind ([`OverValues`] or [`delta::backward`]), gradients over K with K as the lanes, by jobs
//! of another ([`OverKeys`]); a forward and a reverse scan each.
//!
//! The gradient of the decays needs no state: with dq', dk' the parts of the gradients that come from other steps,
//!
//! ```text
//! dg_t = rowsum(H_m * S_m) + sum_{t <= s <= m} (q_s * dq'_s - k_s * dk'_s)
//! ```
//!
//! for any step m >= t of the segment. Leaving out the steps' products with themselves keeps it accurate under strong
//! decay, where they would cancel; starting anew at every [`MARK`] steps bounds the rounding error of long sums. Of the
//! states, the forward scan over the keys keeps these only.

use super::delta;
use super::forward::{job, load_decay, state_of};
use super::memory::{Arena, Columns, Filling, LINE, ROWS, StateBlock, filled};
use super::parallel::{Blocks, STEPS, for_each};
use super::problem::{Decay, Gradients, Problem, expect_shape};
use super::simd::{Level, Simd, Task, dot, sum16};
use super::tile::{Chunk, DecayAxis, Pass, scan};

/// Steps between two states that the decay's gradient starts from, a multiple of [`STEPS`].
const MARK: usize = 256;

/// Log decays below this have no visible effect (exp(-30) = 1e-13); their gradient is written as 0.
const FLOOR: f32 = -30.0;

/// Gradients of all inputs, from those of the output `[B, T, H, V]` and of the final state `[segments, H, K, V]`; an
/// absent one is 0. The gradient of a log decay below -30 is 0.
///
/// # Panics
/// As [`forward`](super::forward()), and if a gradient does not have the length of its shape.
pub fn backward(problem: &Problem, grad_output: Option<&[f32]>, grad_state: Option<&[f32]>) -> Gradients {
    // SAFETY: the level was found on this processor.
    unsafe { backward_at(Level::best(), problem, grad_output, grad_state) }
}

/// [`backward`] with given instructions.
///
/// # Safety
/// `level` must be available.
pub(super) unsafe fn backward_at(
    level: Level,
    problem: &Problem,
    grad_output: Option<&[f32]>,
    grad_state: Option<&[f32]>,
) -> Gradients {
    problem.check();
    let Problem { batch, time, heads, key_dim, value_dim, segments, .. } = *problem;
    if let Some(grad) = grad_output {
        expect_shape("grad_output", grad.len(), &[batch, time, heads, value_dim]);
    }
    if let Some(grad) = grad_state {
        expect_shape("grad_state", grad.len(), &[segments.len(), heads, key_dim, value_dim]);
    }
    let upstream = Upstream { problem, grad_output, grad_state };
    // SAFETY: the level is the caller's promise; the jobs of each kind write every element of what they are given.
    unsafe {
        let (values, erased) = if problem.beta.is_some() {
            let (values, written) = delta::backward(level, &upstream);
            (values, Some(written))
        } else {
            (over_values(level, &upstream), None)
        };
        let terms = match &erased {
            Some(written) => Terms { written, erased: Some(&values.v) },
            None => Terms { written: problem.v, erased: None },
        };
        let keys = over_keys(level, &upstream, terms);
        Gradients {
            q: keys.q,
            k: keys.k,
            v: values.v,
            decay: keys.decay,
            beta: values.beta,
            initial_state: values.initial_state,
        }
    }
}

/// The problem and what is known of its results' gradients.
#[derive(Clone, Copy)]
pub(super) struct Upstream<'a> {
    pub(super) problem: &'a Problem<'a>,
    pub(super) grad_output: Option<&'a [f32]>,
    pub(super) grad_state: Option<&'a [f32]>,
}

/// Gradients that are made with V as the lanes.
pub(super) struct ValueGradients {
    pub(super) v: Vec<f32>,
    pub(super) beta: Option<Vec<f32>>,
    pub(super) initial_state: Option<Vec<f32>>,
}

/// Gradients that are made with K as the lanes.
struct KeyGradients {
    q: Vec<f32>,
    k: Vec<f32>,
    decay: Option<Vec<f32>>,
}

unsafe fn over_values(level: Level, upstream: &Upstream) -> ValueGradients {
    let p = upstream.problem;
    let states = p.initial_state.map_or(0, <[f32]>::len);
    let [v, state] = unsafe {
        filled([p.v.len(), states], |[v, state]| {
            let blocks = Blocks::new(p.value_dim, p.sequences());
            let task = OverValues { upstream: *upstream, blocks, v, state };
            let work = 3 * p.tokens() * p.heads * p.state_len();
            for_each(level, &task, p.sequences() * blocks.count, work);
        })
    };
    ValueGradients { v, beta: None, initial_state: p.initial_state.map(|_| state) }
}

/// The additive scan's gradients of v and of the initial state: one scan in reverse, the state's rows K, its lanes V.
struct OverValues<'a> {
    upstream: Upstream<'a>,
    blocks: Blocks,
    v: Filling<'a>,
    state: Filling<'a>,
}

/// A scan in reverse whose outputs include a step's own write; `D`: with decay.
struct ReverseValues<const D: bool>;
impl<const D: bool> Pass for ReverseValues<D> {
    const DECAY: DecayAxis = if D { DecayAxis::Rows } else { DecayAxis::None };
    const REVERSE: bool = true;
    const STRICT: bool = false;
    const DELTA: bool = false;
}

impl Task for OverValues<'_> {
    fn scratch(&self) -> Vec<usize> {
        let rows = self.upstream.problem.key_dim.next_multiple_of(ROWS);
        let lanes = self.blocks.lanes;
        [[rows * lanes].as_slice(), &[STEPS * rows; 3], &[STEPS * lanes; 2]].concat()
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, index: usize, mut arena: Arena) {
        let Upstream { problem: p, grad_output, grad_state } = self.upstream;
        let (segment, head, from, lanes) = job(p, &self.blocks, index);
        let rows = p.key_dim.next_multiple_of(ROWS);
        let keys = Columns::of(head, p.heads, p.key_dim, 0, rows);
        let values = Columns::of(head, p.heads, p.value_dim, from, lanes);
        let block = StateBlock { key_dim: p.key_dim, value_dim: p.value_dim, from, lanes };

        let state = arena.take(rows * lanes);
        let [q, k, decay] = [(); 3].map(|()| arena.take(STEPS * rows));
        let [grad, v] = [(); 2].map(|()| arena.take(STEPS * lanes));

        block.load(state_of(p, grad_state, segment, head), state);
        let tokens = segment.tokens(p.time);
        for token in tokens.clone().step_by(STEPS).rev() {
            let steps = STEPS.min(tokens.end - token);
            keys.load_scaled(p.q, p.scale, token, &mut q[..steps * rows]);
            keys.load(p.k, token, &mut k[..steps * rows]);
            load_decay::<S>(p, head, &keys, token, &mut decay[..steps * rows]);
            values.load_or_zero(grad_output, token, &mut grad[..steps * lanes]);
            let v = &mut v[..steps * lanes];
            v.fill(0.0);
            let chunk = Chunk {
                steps,
                rows,
                lanes,
                state: state.as_mut_ptr(),
                decay: decay.as_ptr(),
                in_row: q.as_ptr(),
                in_lane: grad.as_ptr(),
                out_row: k.as_ptr(),
                out_lane: v.as_mut_ptr(),
                row2: std::ptr::null(),
                lane2: std::ptr::null_mut(),
            };
            unsafe {
                if p.decay.is_none() {
                    scan::<S, ReverseValues<false>>(&chunk);
                } else {
                    scan::<S, ReverseValues<true>>(&chunk);
                }
                values.store(v, token, &self.v);
            }
        }
        if p.initial_state.is_some() {
            unsafe { block.store(state, p.state_offset(segment, head), &self.state) };
        }
    }
}

/// The rank-one terms of the state's recurrence, `[B, T, H, V]`.
#[derive(Clone, Copy)]
struct Terms<'a> {
    /// d_t: what is written under the key.
    written: &'a [f32],
    /// dv_t of the delta rule: how the error flows through what the key holds.
    erased: Option<&'a [f32]>,
}

unsafe fn over_keys(level: Level, upstream: &Upstream, terms: Terms) -> KeyGradients {
    let p = upstream.problem;
    let lines = p.key_dim.div_ceil(LINE);
    let decay_len = match p.decay {
        Decay::None => 0,
        Decay::PerHead(g) => g.len() * lines,
        Decay::PerKey(g) => g.len(),
    };
    let [q, k, decay] = unsafe {
        filled([p.q.len(), p.k.len(), decay_len], |[q, k, decay]| {
            let blocks = Blocks::new(p.key_dim, p.sequences());
            let jobs = p.sequences() * blocks.count;
            let work = 6 * p.tokens() * p.heads * p.state_len();
            if terms.erased.is_some() {
                let task = OverKeys::<true> { upstream: *upstream, terms, blocks, q, k, decay };
                for_each(level, &task, jobs, work);
            } else {
                let task = OverKeys::<false> { upstream: *upstream, terms, blocks, q, k, decay };
                for_each(level, &task, jobs, work);
            }
        })
    };
    let decay = match p.decay {
        Decay::None => None,
        Decay::PerKey(_) => Some(decay),
        Decay::PerHead(g) => {
            let sum = |parts: &[f32]| parts.iter().fold(0.0, |sum, x| sum + x);
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
fn above_floor(log_decay: f32, gradient: f32) -> f32 {
    if log_decay < FLOOR { 0.0 } else { gradient }
}

/// Gradients of q, k and the decays: a scan forward for q, then one in reverse for k; the states' rows are V, their
/// lanes K. `DELTA`: with the delta rule's second term.
struct OverKeys<'a, const DELTA: bool> {
    upstream: Upstream<'a>,
    terms: Terms<'a>,
    blocks: Blocks,
    q: Filling<'a>,
    k: Filling<'a>,
    /// `[B, T, H, K]`; for a decay per head `[B, T, H, lines]`, the sums over sixteen channels each.
    decay: Filling<'a>,
}

/// A scan over the transposed state, whose outputs leave out a step's own write; `D`: with decay, `R`: in reverse.
struct Keys<const D: bool, const R: bool, const DELTA: bool>;
impl<const D: bool, const R: bool, const DELTA: bool> Pass for Keys<D, R, DELTA> {
    const DECAY: DecayAxis = if D { DecayAxis::Lanes } else { DecayAxis::None };
    const REVERSE: bool = R;
    const STRICT: bool = true;
    const DELTA: bool = DELTA;
}

impl<const DELTA: bool> Task for OverKeys<'_, DELTA> {
    fn scratch(&self) -> Vec<usize> {
        let rows = self.upstream.problem.value_dim.next_multiple_of(ROWS);
        let lanes = self.blocks.lanes;
        [[rows * lanes].as_slice(), &[STEPS * rows; 3], &[STEPS * lanes; 5], &[lanes]].concat()
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, index: usize, mut arena: Arena) {
        let p = self.upstream.problem;
        let (segment, head, from, lanes) = job(p, &self.blocks, index);
        let rows = p.value_dim.next_multiple_of(ROWS);
        let mut job = KeyJob {
            over: self,
            head,
            from,
            rows,
            lanes,
            keys: Columns::of(head, p.heads, p.key_dim, from, lanes),
            values: Columns::of(head, p.heads, p.value_dim, 0, rows),
            state: arena.take(rows * lanes),
            written: arena.take(STEPS * rows),
            grad: arena.take(STEPS * rows),
            erased: arena.take(STEPS * rows),
            q: arena.take(STEPS * lanes),
            k: arena.take(STEPS * lanes),
            decay: arena.take(STEPS * lanes),
            output: arena.take(STEPS * lanes),
            second: arena.take(STEPS * lanes),
            running: arena.take(lanes),
            marks: Vec::new(),
        };
        let block = StateBlock { key_dim: p.key_dim, value_dim: p.value_dim, from, lanes };
        let tokens = segment.tokens(p.time);
        let is_mark = |end: usize| {
            !p.decay.is_none() && (end == tokens.end || (end - tokens.start).is_multiple_of(MARK))
        };
        if !p.decay.is_none() {
            job.marks.reserve_exact(tokens.len().div_ceil(MARK) * rows * lanes);
        }

        block.load_transposed(state_of(p, p.initial_state, segment, head), job.state);
        for token in tokens.clone().step_by(STEPS) {
            let steps = STEPS.min(tokens.end - token);
            unsafe { job.forward::<S>(token, steps) };
            if is_mark(token + steps) {
                job.marks.extend_from_slice(job.state);
            }
        }
        block.load_transposed(state_of(p, self.upstream.grad_state, segment, head), job.state);
        for token in tokens.clone().step_by(STEPS).rev() {
            let steps = STEPS.min(tokens.end - token);
            if is_mark(token + steps) {
                job.start_at_mark();
            }
            unsafe { job.reverse::<S>(token, steps) };
        }
    }
}

/// One segment, head and block of K.
struct KeyJob<'j, const DELTA: bool> {
    over: &'j OverKeys<'j, DELTA>,
    head: usize,
    from: usize,
    /// V, padded.
    rows: usize,
    /// Of K, padded.
    lanes: usize,
    keys: Columns,
    values: Columns,
    /// S, then H: `[rows, lanes]`.
    state: &'j mut [f32],
    /// d, do and the delta rule's dv: `[STEPS, rows]`.
    written: &'j mut [f32],
    grad: &'j mut [f32],
    erased: &'j mut [f32],
    /// `[STEPS, lanes]`
    q: &'j mut [f32],
    k: &'j mut [f32],
    decay: &'j mut [f32],
    output: &'j mut [f32],
    second: &'j mut [f32],
    /// The decay's gradient at the earliest step so far, per lane.
    running: &'j mut [f32],
    /// States S at the marks.
    marks: Vec<f32>,
}

impl<const DELTA: bool> KeyJob<'_, DELTA> {
    #[inline(always)]
    fn load<S: Simd>(&mut self, token: usize, steps: usize) {
        let (p, terms) = (self.over.upstream.problem, self.over.terms);
        let (rows, lanes) = (steps * self.rows, steps * self.lanes);
        self.values.load(terms.written, token, &mut self.written[..rows]);
        self.values.load_or_zero(self.over.upstream.grad_output, token, &mut self.grad[..rows]);
        if DELTA {
            self.values.load_or_zero(terms.erased, token, &mut self.erased[..rows]);
        }
        self.keys.load_scaled(p.q, p.scale, token, &mut self.q[..lanes]);
        self.keys.load(p.k, token, &mut self.k[..lanes]);
        load_decay::<S>(p, self.head, &self.keys, token, &mut self.decay[..lanes]);
        self.output[..lanes].fill(0.0);
    }

    /// dq of a chunk, the q part of the decay's gradient, and for the delta rule the part of dk that erases.
    #[inline(always)]
    unsafe fn forward<S: Simd>(&mut self, token: usize, steps: usize) {
        self.load::<S>(token, steps);
        let over = self.over;
        let p = over.upstream.problem;
        let (rows, lanes) = (self.rows, self.lanes);
        self.second[..steps * lanes].fill(0.0);
        let chunk = Chunk {
            steps,
            rows,
            lanes,
            state: self.state.as_mut_ptr(),
            decay: self.decay.as_ptr(),
            in_row: self.written.as_ptr(),
            in_lane: self.k.as_ptr(),
            out_row: self.grad.as_ptr(),
            out_lane: self.output.as_mut_ptr(),
            row2: self.erased.as_ptr(),
            lane2: self.second.as_mut_ptr(),
        };
        unsafe {
            if p.decay.is_none() {
                scan::<S, Keys<false, false, DELTA>>(&chunk);
            } else {
                scan::<S, Keys<true, false, DELTA>>(&chunk);
            }
        }
        for step in 0..steps {
            let (at, row) = (step * lanes..(step + 1) * lanes, step * rows..(step + 1) * rows);
            let own = dot::<S>(&self.written[row.clone()], &self.grad[row]);
            let (q, k) = (&mut self.q[at.clone()], &self.k[at.clone()]);
            let (output, second) = (&mut self.output[at.clone()], &mut self.second[at]);
            for lane in 0..lanes {
                q[lane] *= output[lane];
                output[lane] = p.scale * (output[lane] + own * k[lane]);
            }
            if DELTA {
                for lane in 0..lanes {
                    q[lane] -= k[lane] * second[lane];
                    second[lane] = -second[lane];
                }
            }
        }
        unsafe {
            self.keys.store(&self.output[..steps * lanes], token, &over.q);
            if DELTA {
                self.keys.store(&self.second[..steps * lanes], token, &over.k);
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
                Decay::PerKey(_) => self.keys.store(&self.q[..steps * lanes], token, &over.decay),
            }
        }
    }

    /// Where the sums over sixteen channels of a token start in the gradient of decays per head.
    #[inline(always)]
    fn line_offset(&self, token: usize) -> usize {
        let p = self.over.upstream.problem;
        (token * p.heads + self.head) * p.key_dim.div_ceil(LINE) + self.from / LINE
    }

    /// The gradient of the decay just after a mark: the sums over V of H * S.
    #[inline(always)]
    fn start_at_mark(&mut self) {
        let start = self.marks.len() - self.state.len();
        self.running.fill(0.0);
        for (h, s) in self.state.chunks_exact(self.lanes).zip(self.marks[start..].chunks_exact(self.lanes)) {
            for lane in 0..self.lanes {
                self.running[lane] += h[lane] * s[lane];
            }
        }
        if let Decay::PerHead(_) = self.over.upstream.problem.decay {
            for line in self.running.chunks_exact_mut(LINE) {
                line[0] = sum16(line.as_ref().try_into().expect("sixteen lanes"));
            }
        }
        self.marks.truncate(start);
    }

    /// dk of a chunk, and the decay's gradient.
    #[inline(always)]
    unsafe fn reverse<S: Simd>(&mut self, token: usize, steps: usize) {
        self.load::<S>(token, steps);
        let over = self.over;
        let p = over.upstream.problem;
        let (rows, lanes) = (self.rows, self.lanes);
        let chunk = Chunk {
            steps,
            rows,
            lanes,
            state: self.state.as_mut_ptr(),
            decay: self.decay.as_ptr(),
            in_row: self.grad.as_ptr(),
            in_lane: self.q.as_ptr(),
            out_row: self.written.as_ptr(),
            out_lane: self.output.as_mut_ptr(),
            row2: self.erased.as_ptr(),
            lane2: self.k.as_mut_ptr(),
        };
        unsafe {
            if p.decay.is_none() {
                scan::<S, Keys<false, true, DELTA>>(&chunk);
            } else {
                scan::<S, Keys<true, true, DELTA>>(&chunk);
            }
        }
        for step in 0..steps {
            let (at, row) = (step * lanes..(step + 1) * lanes, step * rows..(step + 1) * rows);
            let own = dot::<S>(&self.written[row.clone()], &self.grad[row]);
            let (q, k, output) = (&self.q[at.clone()], &mut self.k[at.clone()], &mut self.output[at]);
            for lane in 0..lanes {
                k[lane] *= output[lane];
                output[lane] += own * q[lane];
            }
        }
        if DELTA {
            for (step, dk) in self.output.chunks_exact(lanes).take(steps).enumerate() {
                // Written by this job's forward scan.
                let erased = unsafe { over.k.written(self.keys.at(token + step), self.keys.width) };
                for (x, dk) in erased.iter_mut().zip(dk) {
                    *x += dk;
                }
            }
        } else {
            unsafe { self.keys.store(&self.output[..steps * lanes], token, &over.k) };
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
                    let at = self.keys.at(token + step);
                    // Written by this job's forward scan.
                    let sums = unsafe { over.decay.written(at, self.keys.width) };
                    let g = &g[at..at + self.keys.width];
                    for (((sum, running), k), g) in sums.iter_mut().zip(&mut *self.running).zip(k).zip(g) {
                        *running += *sum - k;
                        *sum = above_floor(*g, *running);
                    }
                }
            }
        }
    }
}

/// A padded row, sixteen floats at a time.
#[inline(always)]
fn lines(row: &[f32]) -> impl Iterator<Item = &[f32; LINE]> {
    row.as_chunks().0.iter()
}
