//! The additive scan's gradients over V.

use super::super::ahead::{Ahead, before};
use super::super::forward::{job, load_decay, state_of};
use super::super::packing::{Columns, StateBlock, padded_rows};
use super::super::parallel::{Blocks, STEPS, Task, for_each};
use super::super::scratch::Arena;
use super::super::tile::{Chunk, DecayAxis, Pass, scan};
use super::{Upstream, ValueGradients};
use crate::float::Float;
use crate::memory::{Filling, filled};
use crate::simd::{Level, Simd};

/// The gradients of v and of the initial state.
///
/// # Safety
/// `level` must be available.
pub(super) unsafe fn over_values<F: Float>(level: Level, upstream: &Upstream<F>) -> ValueGradients<F> {
    let p = upstream.problem;
    let states = p.initial_state.map_or(0, <[F]>::len);
    let [v, state] = unsafe {
        filled([p.v.len(), states], |places| {
            let [v, state] = places.map(Filling::unwritten);
            let blocks = Blocks::new(p.value_dim, p.sequences());
            let task = OverValues { upstream: *upstream, blocks, v, state };
            let work = 3 * p.tokens() * p.heads * p.state_len();
            for_each(level, &task, p.sequences() * blocks.count, work);
        })
    };
    ValueGradients { v, beta: None, initial_state: p.initial_state.map(|_| state) }
}

/// The additive scan's gradients of v and of the initial state: one scan in reverse, the state's rows K, its lanes V.
struct OverValues<'a, F> {
    upstream: Upstream<'a, F>,
    blocks: Blocks,
    v: Filling<'a, F>,
    state: Filling<'a, F>,
}

/// A scan in reverse whose outputs include a step's own write; `D`: with decay.
struct ReverseValues<const D: bool>;
impl<const D: bool> Pass for ReverseValues<D> {
    const DECAY: DecayAxis = if D { DecayAxis::Rows } else { DecayAxis::None };
    const REVERSE: bool = true;
    const STRICT: bool = false;
    const DELTA: bool = false;
}

impl<F: Float> Task for OverValues<'_, F> {
    type Float = F;

    fn scratch(&self) -> Vec<usize> {
        let (rows, stride) = padded_rows(self.upstream.problem.key_dim);
        let lanes = self.blocks.lanes;
        [[rows * lanes].as_slice(), &[STEPS * stride; 3], &[STEPS * lanes; 2]].concat()
    }

    #[inline(always)]
    unsafe fn run<S: Simd<Float = F>>(&self, index: usize, mut arena: Arena<F>) {
        let Upstream { problem: p, grad_output, grad_state } = self.upstream;
        let (segment, head, from, lanes) = job(p, &self.blocks, index);
        let (rows, stride) = padded_rows(p.key_dim);
        let keys = Columns::of(head, p.heads, p.key_dim, 0, stride);
        let values = Columns::of(head, p.heads, p.value_dim, from, lanes);
        let block = StateBlock { key_dim: p.key_dim, value_dim: p.value_dim, from, lanes };

        let state = arena.take(rows * lanes);
        let [q, k, decay] = [(); 3].map(|()| arena.take(STEPS * stride));
        let [grad, v] = [(); 2].map(|()| arena.take(STEPS * lanes));

        let mut ahead = Ahead::new();
        block.load(state_of(p, grad_state, segment, head), state);
        let tokens = segment.tokens(p.time);
        for token in tokens.clone().step_by(STEPS).rev() {
            let steps = STEPS.min(tokens.end - token);
            unsafe {
                keys.load_scaled::<S>(p.q, p.scale, token, &mut q[..steps * stride]);
                keys.load::<S>(p.k, token, &mut k[..steps * stride]);
                load_decay::<S>(p, head, &keys, token, &mut decay[..steps * stride]);
                values.load_or_zero::<S>(grad_output, token, &mut grad[..steps * lanes]);
            }
            let v = &mut v[..steps * lanes];
            v.fill(F::default());
            let arrays = [
                Some((keys, p.q.as_ptr())),
                Some((keys, p.k.as_ptr())),
                p.decay.per_key().map(|g| (keys, g.as_ptr())),
                grad_output.map(|grad| (values, grad.as_ptr())),
                Some((values, self.v.start().cast_const())),
            ];
            ahead.plan(before(&tokens, token), arrays);
            let chunk = Chunk {
                steps,
                rows,
                row_stride: stride,
                lanes,
                state: state.as_mut_ptr(),
                decay: decay.as_ptr(),
                in_row: q.as_ptr(),
                in_lane: grad.as_ptr(),
                out_row: k.as_ptr(),
                out_lane: v.as_mut_ptr(),
                row2: std::ptr::null(),
                lane2: std::ptr::null_mut(),
                ahead: &ahead,
            };
            unsafe {
                if p.decay.is_none() {
                    scan::<S, ReverseValues<false>>(&chunk);
                } else {
                    scan::<S, ReverseValues<true>>(&chunk);
                }
                values.store::<S>(v, token, &self.v);
            }
        }
        if p.initial_state.is_some() {
            unsafe { block.store(state, p.state_offset(segment, head), &self.state) };
        }
    }
}
