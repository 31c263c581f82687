//! The delta rule's scans over V: forward, and in reverse the gradients of v and beta.
//!
//! ```text
//! forward:    r_t = v_t - (exp(g_t) k_t)^T S_{t-1}      S_t = diag(exp g_t) S_{t-1} + k_t (beta_t r_t)^T
//! in reverse: e_t = (H_t + scale q_t do_t^T)^T k_t      dv_t = beta_t e_t
//!             H_{t-1} = diag(exp g_t) (H_t + scale q_t do_t^T - k_t dv_t^T)
//! ```
//!
//! A step needs a product with the whole state before it can change it, so the state cannot be cut along K and blocks
//! of it live in the first-level cache. The product for the next step is made in the same pass that writes the state:
//! one load, one store and at most four multiply-adds an element and step.

use super::backward::{Upstream, ValueGradients};
use super::forward::{job, load_decay, state_of};
use super::memory::{Arena, Columns, Filling, LINE, ROWS, StateBlock, filled};
use super::parallel::{Blocks, STEPS, for_each};
use super::problem::{Problem, Segment};
use super::simd::{Level, Simd, Task, dot, sum16};
use super::tile::{load, store};

/// Runs the scan forward.
///
/// # Safety
/// `level` must be available; `output` and `state` need the lengths of the problem's, `beta` must be given.
pub(super) unsafe fn forward(level: Level, problem: &Problem, output: Filling, state: Filling) {
    let blocks = Blocks::new(problem.value_dim, problem.sequences());
    let task = Forward { problem, blocks, output, state };
    let work = 4 * problem.tokens() * problem.heads * problem.state_len();
    unsafe { for_each(level, &task, problem.sequences() * blocks.count, work) };
}

/// The gradients over V, and the values written `beta_t r_t` that the gradients over K are made from.
///
/// # Safety
/// `level` must be available, `beta` must be given.
pub(super) unsafe fn backward(level: Level, upstream: &Upstream) -> (ValueGradients, Vec<f32>) {
    let p = upstream.problem;
    let lines = p.value_dim.div_ceil(LINE);
    let strengths = p.tokens() * p.heads;
    let states = p.initial_state.map_or(0, <[f32]>::len);
    // SAFETY: the jobs cover all tokens, heads and columns of V.
    let [v, written, beta, state] = unsafe {
        filled([p.v.len(), p.v.len(), strengths * lines, states], |[v, written, beta, state]| {
            let blocks = Blocks::new(p.value_dim, p.sequences());
            let task = Backward { upstream: *upstream, blocks, v, written, beta, state };
            let work = 7 * p.tokens() * p.heads * p.state_len();
            for_each(level, &task, p.sequences() * blocks.count, work);
        })
    };
    let beta = beta.chunks_exact(lines).map(|parts| parts.iter().fold(0.0, |sum, x| sum + x)).collect();
    (ValueGradients { v, beta: Some(beta), initial_state: p.initial_state.map(|_| state) }, written)
}

/// Outputs and final states.
struct Forward<'a> {
    problem: &'a Problem<'a>,
    blocks: Blocks,
    output: Filling<'a>,
    state: Filling<'a>,
}

impl Task for Forward<'_> {
    fn scratch(&self) -> Vec<usize> {
        DeltaJob::scratch(self.problem, &self.blocks)
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, index: usize, arena: Arena) {
        let p = self.problem;
        let mut job = DeltaJob::new(p, &self.blocks, index, arena);
        job.block.load(state_of(p, p.initial_state, job.segment, job.head), job.state);
        let tokens = job.segment.tokens(p.time);
        for token in tokens.clone().step_by(STEPS) {
            let steps = STEPS.min(tokens.end - token);
            job.load::<S>(token, steps);
            job.values.load(p.v, token, &mut job.value[..steps * job.lanes]);
            unsafe {
                job.scan_forward::<S, true>(steps);
                job.values.store(&job.output[..steps * job.lanes], token, &self.output);
            }
        }
        unsafe { job.block.store(job.state, p.state_offset(job.segment, job.head), &self.state) };
    }
}

/// A forward scan for the residuals r, then the scan in reverse.
struct Backward<'a> {
    upstream: Upstream<'a>,
    blocks: Blocks,
    v: Filling<'a>,
    /// First r, then beta * r.
    written: Filling<'a>,
    /// `[B, T, H, lines]`: sums over sixteen channels each.
    beta: Filling<'a>,
    state: Filling<'a>,
}

impl Task for Backward<'_> {
    fn scratch(&self) -> Vec<usize> {
        DeltaJob::scratch(self.upstream.problem, &self.blocks)
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, index: usize, arena: Arena) {
        let Upstream { problem: p, grad_output, grad_state } = self.upstream;
        let mut job = DeltaJob::new(p, &self.blocks, index, arena);
        let (lanes, lines) = (job.lanes, p.value_dim.div_ceil(LINE));
        let tokens = job.segment.tokens(p.time);
        job.block.load(state_of(p, p.initial_state, job.segment, job.head), job.state);
        for token in tokens.clone().step_by(STEPS) {
            let steps = STEPS.min(tokens.end - token);
            job.load::<S>(token, steps);
            job.values.load(p.v, token, &mut job.value[..steps * lanes]);
            unsafe {
                job.scan_forward::<S, false>(steps);
                job.values.store(&job.residual[..steps * lanes], token, &self.written);
            }
        }
        job.block.load(state_of(p, grad_state, job.segment, job.head), job.state);
        for token in tokens.clone().step_by(STEPS).rev() {
            let steps = STEPS.min(tokens.end - token);
            job.load::<S>(token, steps);
            job.values.load_or_zero(grad_output, token, &mut job.value[..steps * lanes]);
            unsafe { job.scan_reverse::<S>(steps) };
            for step in 0..steps {
                let token = token + step;
                let beta = job.beta[step];
                // Written by this job's forward scan.
                let written = unsafe { self.written.written(job.values.at(token), job.values.width) };
                let error = &mut job.output[step * lanes..(step + 1) * lanes];
                let product = &mut job.residual[step * lanes..(step + 1) * lanes];
                product[written.len()..].fill(0.0);
                for ((product, error), written) in product.iter_mut().zip(&mut *error).zip(written) {
                    *product = *written * *error;
                    *written *= beta;
                    *error *= beta;
                }
                let sums = (token * p.heads + job.head) * lines + job.from / LINE;
                for (line, x) in product.as_chunks().0.iter().enumerate() {
                    unsafe { self.beta.write(sums + line, &[sum16(x)]) };
                }
            }
            unsafe { job.values.store(&job.output[..steps * lanes], token, &self.v) };
        }
        if p.initial_state.is_some() {
            unsafe { job.block.store(job.state, p.state_offset(job.segment, job.head), &self.state) };
        }
    }
}

/// One segment, head and block of V, with its scratch memory.
struct DeltaJob<'j> {
    problem: &'j Problem<'j>,
    segment: &'j Segment,
    head: usize,
    from: usize,
    /// K, padded.
    rows: usize,
    /// Of V, padded.
    lanes: usize,
    keys: Columns,
    values: Columns,
    block: StateBlock,
    /// S or H: `[rows, lanes]`.
    state: &'j mut [f32],
    /// `[STEPS, rows]`; the last two are the first two times the decay, and unused where there is none.
    q: &'j mut [f32],
    k: &'j mut [f32],
    decay: &'j mut [f32],
    decayed_q: &'j mut [f32],
    decayed_k: &'j mut [f32],
    /// `[STEPS, lanes]`: v forward, do in reverse.
    value: &'j mut [f32],
    /// `[STEPS, lanes]`: o forward, e in reverse.
    output: &'j mut [f32],
    /// `[STEPS, lanes]`: r.
    residual: &'j mut [f32],
    /// `[STEPS]`: beta, and scale q^T k.
    beta: &'j mut [f32],
    own: &'j mut [f32],
}

impl<'j> DeltaJob<'j> {
    fn scratch(problem: &Problem, blocks: &Blocks) -> Vec<usize> {
        let rows = problem.key_dim.next_multiple_of(ROWS);
        let lanes = blocks.lanes;
        [[rows * lanes].as_slice(), &[STEPS * rows; 5], &[STEPS * lanes; 3], &[STEPS; 2]].concat()
    }

    #[inline(always)]
    fn new(problem: &'j Problem, blocks: &Blocks, index: usize, mut arena: Arena<'j>) -> Self {
        let (segment, head, from, lanes) = job(problem, blocks, index);
        let rows = problem.key_dim.next_multiple_of(ROWS);
        let Problem { heads, key_dim, value_dim, .. } = *problem;
        Self {
            problem,
            segment,
            head,
            from,
            rows,
            lanes,
            keys: Columns::of(head, heads, key_dim, 0, rows),
            values: Columns::of(head, heads, value_dim, from, lanes),
            block: StateBlock { key_dim, value_dim, from, lanes },
            state: arena.take(rows * lanes),
            q: arena.take(STEPS * rows),
            k: arena.take(STEPS * rows),
            decay: arena.take(STEPS * rows),
            decayed_q: arena.take(STEPS * rows),
            decayed_k: arena.take(STEPS * rows),
            value: arena.take(STEPS * lanes),
            output: arena.take(STEPS * lanes),
            residual: arena.take(STEPS * lanes),
            beta: arena.take(STEPS),
            own: arena.take(STEPS),
        }
    }

    /// The operands of a chunk that do not depend on the direction.
    #[inline(always)]
    fn load<S: Simd>(&mut self, token: usize, steps: usize) {
        let (p, rows) = (self.problem, self.rows);
        let len = steps * rows;
        self.keys.load_scaled(p.q, p.scale, token, &mut self.q[..len]);
        self.keys.load(p.k, token, &mut self.k[..len]);
        if !p.decay.is_none() {
            load_decay::<S>(p, self.head, &self.keys, token, &mut self.decay[..len]);
            for (x, (y, decay)) in self.decayed_q[..len].iter_mut().zip(self.q.iter().zip(&*self.decay)) {
                *x = y * decay;
            }
            for (x, (y, decay)) in self.decayed_k[..len].iter_mut().zip(self.k.iter().zip(&*self.decay)) {
                *x = y * decay;
            }
        }
        for step in 0..steps {
            self.beta[step] = p.beta.map_or(1.0, |beta| beta[(token + step) * p.heads + self.head]);
            let at = step * rows..(step + 1) * rows;
            self.own[step] = dot::<S>(&self.q[at.clone()], &self.k[at]);
        }
    }

    /// Residuals of a chunk, and with `OUTPUT` its outputs; the state moves on.
    #[inline(always)]
    unsafe fn scan_forward<S: Simd, const OUTPUT: bool>(&mut self, steps: usize) {
        let vectors = self.lanes / S::LANES;
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
    unsafe fn forward_column<S: Simd, const N: usize, const DECAY: bool, const OUTPUT: bool>(
        &mut self,
        steps: usize,
        lane: usize,
    ) {
        if N > S::TILE_VECTORS {
            return; // never reached, so not compiled either
        }
        let (rows, lanes) = (self.rows, self.lanes);
        let state = self.state.as_mut_ptr();
        let (q, k, decay) = (self.q.as_ptr(), self.k.as_ptr(), self.decay.as_ptr());
        let reading = if DECAY { self.decayed_k.as_ptr() } else { k };
        unsafe {
            let state = state.add(lane);
            let mut held = product::<S, N>(state, lanes, reading, rows);
            for step in 0..steps {
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
                let (q, k, decay) = (q.add(step * rows), k.add(step * rows), decay.add(step * rows));
                let next = reading.add((step + 1).min(steps - 1) * rows);
                // Even and odd rows have sums of their own, for two shorter chains of additions.
                let mut output = [[S::splat(0.0); N]; 2];
                let mut reads = [[S::splat(0.0); N]; 2];
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
    unsafe fn scan_reverse<S: Simd>(&mut self, steps: usize) {
        let vectors = self.lanes / S::LANES;
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
    unsafe fn reverse_column<S: Simd, const N: usize, const DECAY: bool>(
        &mut self,
        steps: usize,
        lane: usize,
    ) {
        if N > S::TILE_VECTORS {
            return; // never reached, so not compiled either
        }
        let (rows, lanes) = (self.rows, self.lanes);
        let state = self.state.as_mut_ptr();
        let (k, decay) = (self.k.as_ptr(), self.decay.as_ptr());
        let (write, erase) =
            if DECAY { (self.decayed_q.as_ptr(), self.decayed_k.as_ptr()) } else { (self.q.as_ptr(), k) };
        unsafe {
            let state = state.add(lane);
            let mut reached = product::<S, N>(state, lanes, k.add((steps - 1) * rows), rows);
            for step in (0..steps).rev() {
                let at = step * lanes + lane;
                let (beta, own) = (S::splat(self.beta[step]), S::splat(self.own[step]));
                let grad = load::<S, N>(self.value.as_ptr().add(at));
                let mut error = [S::splat(0.0); N];
                for n in 0..N {
                    error[n] = S::mul_add(own, grad[n], reached[n]);
                }
                store::<S, N>(self.output.as_mut_ptr().add(at), error);
                for x in &mut error {
                    *x = S::mul(*x, beta);
                }
                let (write, erase, decay) =
                    (write.add(step * rows), erase.add(step * rows), decay.add(step * rows));
                let next = k.add(step.saturating_sub(1) * rows);
                let mut reads = [[S::splat(0.0); N]; 2];
                for row in (0..rows).step_by(2) {
                    for half in 0..2 {
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
                            reads[half][n] = S::mul_add(s[n], next, reads[half][n]);
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
    state: *const f32,
    lanes: usize,
    vector: *const f32,
    rows: usize,
) -> [S::Vector; N] {
    unsafe {
        let mut sums = [[S::splat(0.0); N]; 2];
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
