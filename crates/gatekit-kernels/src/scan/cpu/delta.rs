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

mod job;

use super::ahead::{after, before};
use super::backward::{Upstream, ValueGradients};
use super::forward::state_of;
use super::parallel::{Blocks, STEPS, Task, for_each};
use super::problem::Problem;
use crate::float::{Float, sum16};
use crate::memory::{Filling, filled};
use crate::scratch::{Arena, LINE};
use crate::simd::{Level, Simd};
use job::DeltaJob;

/// Runs the scan forward.
///
/// # Safety
/// `level` must be available; `output` and `state` need the lengths of the problem's, `beta` must be given.
pub(super) unsafe fn forward<F: Float>(
    level: Level,
    problem: &Problem<F>,
    output: Filling<F>,
    state: Filling<F>,
) {
    let blocks = Blocks::new(problem.value_dim, problem.sequences());
    let task = Forward { problem, blocks, output, state };
    let work = 4 * problem.tokens() * problem.heads * problem.state_len();
    unsafe { for_each(level, &task, problem.sequences() * blocks.count, work) };
}

/// The gradients over V, and the values written `beta_t r_t` that the gradients over K are made from.
///
/// # Safety
/// `level` must be available, `beta` must be given.
pub(super) unsafe fn backward<F: Float>(level: Level, upstream: &Upstream<F>) -> (ValueGradients<F>, Vec<F>) {
    let p = upstream.problem;
    let lines = p.value_dim.div_ceil(LINE);
    let strengths = p.tokens() * p.heads;
    let states = p.initial_state.map_or(0, <[F]>::len);
    // SAFETY: the jobs cover all tokens, heads and columns of V.
    let [v, written, beta, state] = unsafe {
        filled([p.v.len(), p.v.len(), strengths * lines, states], |places| {
            let [v, written, beta, state] = places.map(Filling::unwritten);
            let blocks = Blocks::new(p.value_dim, p.sequences());
            let task = Backward { upstream: *upstream, blocks, v, written, beta, state };
            let work = 7 * p.tokens() * p.heads * p.state_len();
            for_each(level, &task, p.sequences() * blocks.count, work);
        })
    };
    let beta =
        beta.chunks_exact(lines).map(|parts| parts.iter().fold(F::default(), |sum, x| sum + *x)).collect();
    (ValueGradients { v, beta: Some(beta), initial_state: p.initial_state.map(|_| state) }, written)
}

/// Outputs and final states.
struct Forward<'a, F> {
    problem: &'a Problem<'a, F>,
    blocks: Blocks,
    output: Filling<'a, F>,
    state: Filling<'a, F>,
}

impl<F: Float> Task for Forward<'_, F> {
    type Float = F;

    fn scratch(&self) -> Vec<usize> {
        DeltaJob::scratch(self.problem, &self.blocks)
    }

    #[inline(always)]
    unsafe fn run<S: Simd<Float = F>>(&self, index: usize, arena: Arena<F>) {
        let p = self.problem;
        let mut job = DeltaJob::new(p, &self.blocks, index, arena);
        job.block.load(state_of(p, p.initial_state, job.segment, job.head), job.state);
        let tokens = job.segment.tokens(p.time);
        for token in tokens.clone().step_by(STEPS) {
            let steps = STEPS.min(tokens.end - token);
            unsafe {
                job.load::<S>(token, steps);
                job.values.load::<S>(p.v, token, &mut job.value[..steps * job.lanes]);
                let arrays = [Some(p.v.as_ptr()), Some(self.output.start().cast_const())];
                job.look_ahead(after(&tokens, token, steps), arrays);
                job.scan_forward::<S, true>(steps);
                job.values.store::<S>(&job.output[..steps * job.lanes], token, &self.output);
            }
        }
        unsafe { job.block.store(job.state, p.state_offset(job.segment, job.head), &self.state) };
    }
}

/// A forward scan for the residuals r, then the scan in reverse.
struct Backward<'a, F> {
    upstream: Upstream<'a, F>,
    blocks: Blocks,
    v: Filling<'a, F>,
    /// First r, then beta * r.
    written: Filling<'a, F>,
    /// `[B, T, H, lines]`: sums over sixteen channels each.
    beta: Filling<'a, F>,
    state: Filling<'a, F>,
}

impl<F: Float> Task for Backward<'_, F> {
    type Float = F;

    fn scratch(&self) -> Vec<usize> {
        DeltaJob::scratch(self.upstream.problem, &self.blocks)
    }

    #[inline(always)]
    unsafe fn run<S: Simd<Float = F>>(&self, index: usize, arena: Arena<F>) {
        let Upstream { problem: p, grad_output, grad_state } = self.upstream;
        let mut job = DeltaJob::new(p, &self.blocks, index, arena);
        let (lanes, lines) = (job.lanes, p.value_dim.div_ceil(LINE));
        let tokens = job.segment.tokens(p.time);
        job.block.load(state_of(p, p.initial_state, job.segment, job.head), job.state);
        for token in tokens.clone().step_by(STEPS) {
            let steps = STEPS.min(tokens.end - token);
            unsafe {
                job.load::<S>(token, steps);
                job.values.load::<S>(p.v, token, &mut job.value[..steps * lanes]);
                let arrays = [Some(p.v.as_ptr()), Some(self.written.start().cast_const())];
                job.look_ahead(after(&tokens, token, steps), arrays);
                job.scan_forward::<S, false>(steps);
                job.values.store::<S>(&job.residual[..steps * lanes], token, &self.written);
            }
        }
        job.block.load(state_of(p, grad_state, job.segment, job.head), job.state);
        for token in tokens.clone().step_by(STEPS).rev() {
            let steps = STEPS.min(tokens.end - token);
            unsafe {
                job.load::<S>(token, steps);
                job.values.load_or_zero::<S>(grad_output, token, &mut job.value[..steps * lanes]);
                let results = [&self.v, &self.written].map(|result| Some(result.start().cast_const()));
                let arrays = [grad_output.map(<[F]>::as_ptr), results[0], results[1]];
                job.look_ahead(before(&tokens, token), arrays);
                job.scan_reverse::<S>(steps);
            }
            for step in 0..steps {
                let token = token + step;
                let beta = job.beta[step];
                // Written by this job's forward scan.
                let written = unsafe { job.values.written(&self.written, token) };
                let error = &mut job.output[step * lanes..(step + 1) * lanes];
                let product = &mut job.residual[step * lanes..(step + 1) * lanes];
                product[written.len()..].fill(F::default());
                for ((product, error), written) in product.iter_mut().zip(&*error).zip(&mut *written) {
                    *product = *written * *error;
                    *written = *written * beta;
                }
                for error in error {
                    *error = *error * beta;
                }
                let sums = (token * p.heads + job.head) * lines + job.from / LINE;
                for (line, x) in product.as_chunks().0.iter().enumerate() {
                    unsafe { self.beta.write(sums + line, &[sum16(x)]) };
                }
            }
            unsafe { job.values.store::<S>(&job.output[..steps * lanes], token, &self.v) };
        }
        if p.initial_state.is_some() {
            unsafe { job.block.store(job.state, p.state_offset(job.segment, job.head), &self.state) };
        }
    }
}
