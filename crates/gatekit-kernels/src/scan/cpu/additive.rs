//! The additive scan with V as the lanes and K as the rows of the state: forward it makes outputs, in reverse the
//! gradients of v and of the initial state.

use super::ahead::{Ahead, after, before};
use super::forward::{job, load_decay, state_of};
use super::packing::{Columns, StateBlock, padded_rows};
use super::parallel::{Blocks, STEPS, Task, for_each};
use super::problem::Problem;
use super::tile::{Chunk, DecayAxis, Pass, scan};
use crate::float::Float;
use crate::memory::Filling;
use crate::scratch::Arena;
use crate::simd::{Level, Simd};

/// A scan over all segments and heads.
pub(super) struct Additive<'a, F, const REVERSE: bool> {
    pub(super) problem: &'a Problem<'a, F>,
    /// What each step writes, `[B, T, H, V]`: v, or in reverse the gradient of the output. Absent: 0.
    pub(super) written: Option<&'a [F]>,
    /// The states that it starts from, `[segments, H, K, V]`. Absent: 0.
    pub(super) start: Option<&'a [F]>,
    /// What each step reads, `[B, T, H, V]`.
    pub(super) output: Filling<'a, F>,
    /// The states that it ends with, where they are asked for.
    pub(super) end: Option<Filling<'a, F>>,
}

/// The scan cut into jobs.
struct Jobs<'a, F, const REVERSE: bool> {
    scan: Additive<'a, F, REVERSE>,
    blocks: Blocks,
}

/// A step's output includes its own write; `D`: with decay.
struct Direction<const D: bool, const REVERSE: bool>;
impl<const D: bool, const REVERSE: bool> Pass for Direction<D, REVERSE> {
    const DECAY: DecayAxis = if D { DecayAxis::Rows } else { DecayAxis::None };
    const REVERSE: bool = REVERSE;
    const STRICT: bool = false;
    const DELTA: bool = false;
}

impl<F: Float, const REVERSE: bool> Additive<'_, F, REVERSE> {
    /// Runs it.
    ///
    /// # Safety
    /// `level` must be available, and the arrays as long as their shapes.
    pub(super) unsafe fn run(self, level: Level) {
        let p = self.problem;
        let blocks = Blocks::new(p.value_dim, p.sequences());
        let work = 3 * p.tokens() * p.heads * p.state_len();
        unsafe { for_each(level, &Jobs { scan: self, blocks }, p.sequences() * blocks.count, work) };
    }
}

impl<F: Float, const REVERSE: bool> Task for Jobs<'_, F, REVERSE> {
    type Float = F;

    fn scratch(&self) -> Vec<usize> {
        let (rows, stride) = padded_rows(self.scan.problem.key_dim);
        let lanes = self.blocks.lanes;
        [[rows * lanes].as_slice(), &[STEPS * stride; 3], &[STEPS * lanes; 2]].concat()
    }

    #[inline(always)]
    unsafe fn run<S: Simd<Float = F>>(&self, index: usize, mut arena: Arena<F>) {
        let Additive { problem: p, written, start, output, end } = &self.scan;
        let (segment, head, from, lanes) = job(p, &self.blocks, index);
        let (rows, stride) = padded_rows(p.key_dim);
        let keys = Columns::of(head, p.heads, p.key_dim, 0, stride);
        let values = Columns::of(head, p.heads, p.value_dim, from, lanes);
        let block = StateBlock { key_dim: p.key_dim, value_dim: p.value_dim, from, lanes };

        let state = arena.take(rows * lanes);
        let [q, k, decay] = [(); 3].map(|()| arena.take(STEPS * stride));
        let [input, read] = [(); 2].map(|()| arena.take(STEPS * lanes));
        let mut ahead = Ahead::new();

        block.load(state_of(p, *start, segment, head), state);
        let tokens = segment.tokens(p.time);
        let chunks = tokens.len().div_ceil(STEPS);
        for chunk in 0..chunks {
            let token = tokens.start + STEPS * if REVERSE { chunks - 1 - chunk } else { chunk };
            let steps = STEPS.min(tokens.end - token);
            unsafe {
                keys.load_scaled::<S>(p.q, p.scale, token, &mut q[..steps * stride]);
                keys.load::<S>(p.k, token, &mut k[..steps * stride]);
                load_decay::<S>(p, head, &keys, token, &mut decay[..steps * stride]);
                values.load_or_zero::<S>(*written, token, &mut input[..steps * lanes]);
            }
            let read = &mut read[..steps * lanes];
            read.fill(F::default());
            let arrays = [
                Some((keys, p.q.as_ptr())),
                Some((keys, p.k.as_ptr())),
                p.decay.per_key().map(|g| (keys, g.as_ptr())),
                written.map(|written| (values, written.as_ptr())),
                Some((values, output.start().cast_const())),
            ];
            let next = if REVERSE { before(&tokens, token) } else { after(&tokens, token, steps) };
            ahead.plan(next, arrays);
            let (in_row, out_row) = if REVERSE { (&*q, &*k) } else { (&*k, &*q) };
            let chunk = Chunk {
                steps,
                rows,
                row_stride: stride,
                lanes,
                state: state.as_mut_ptr(),
                decay: decay.as_ptr(),
                in_row: in_row.as_ptr(),
                in_lane: input.as_ptr(),
                out_row: out_row.as_ptr(),
                out_lane: read.as_mut_ptr(),
                row2: std::ptr::null(),
                lane2: std::ptr::null_mut(),
                ahead: &ahead,
            };
            unsafe {
                if p.decay.is_none() {
                    scan::<S, Direction<false, REVERSE>>(&chunk);
                } else {
                    scan::<S, Direction<true, REVERSE>>(&chunk);
                }
                values.store::<S>(read, token, output);
            }
        }
        if let Some(end) = end {
            unsafe { block.store(state, p.state_offset(segment, head), end) };
        }
    }
}
