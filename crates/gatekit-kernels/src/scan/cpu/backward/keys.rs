//! The gradients over K: of q, k and the decays, for both kinds of write.

mod job;

use super::super::ahead::{Ahead, after, before};
use super::super::forward::{job, state_of};
use super::super::packing::{Columns, StateBlock, padded_rows};
use super::super::parallel::{Blocks, STEPS, Task, for_each};
use super::super::problem::Decay;
use super::Upstream;
use crate::float::Float;
use crate::memory::{Filling, filled};
use crate::scratch::{Arena, LINE};
use crate::simd::{Level, Simd};
use job::KeyJob;

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
