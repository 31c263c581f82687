//! The forward scan.

use super::ahead::{Ahead, after};
use super::delta;
use super::packing::{Columns, StateBlock, load_head_decay, padded_rows};
use super::parallel::{Blocks, STEPS, Task, for_each};
use super::problem::{Decay, Output, Problem, Segment};
use super::scratch::Arena;
use super::tile::{Chunk, DecayAxis, Pass, scan};
use crate::float::Float;
use crate::memory::{Filling, filled};
use crate::simd::{Level, Simd};

/// Runs the scan from its first step to its last.
///
/// # Panics
/// If an array does not have the length of its shape or the segments do not cover every token once.
pub fn forward<F: Float>(problem: &Problem<F>) -> Output<F> {
    // SAFETY: the level was found on this processor.
    unsafe { forward_at(Level::best(), problem) }
}

/// [`forward`] with given instructions.
///
/// # Safety
/// `level` must be available.
pub(super) unsafe fn forward_at<F: Float>(level: Level, problem: &Problem<F>) -> Output<F> {
    problem.check();
    let outputs = problem.tokens() * problem.heads * problem.value_dim;
    let states = problem.sequences() * problem.state_len();
    // SAFETY: the jobs cover all tokens, heads and columns of V; every segment has one state.
    let [output, state] = unsafe {
        filled([outputs, states], |places| {
            let [output, state] = places.map(Filling::unwritten);
            if problem.beta.is_some() {
                delta::forward(level, problem, output, state);
            } else {
                let blocks = Blocks::new(problem.value_dim, problem.sequences());
                let task = Additive { problem, blocks, output, state };
                let work = 3 * problem.tokens() * problem.heads * problem.state_len();
                for_each(level, &task, problem.sequences() * blocks.count, work);
            }
        })
    };
    Output { output, state }
}

/// The job's segment, head and block of lanes.
pub(super) fn job<'p, F>(
    problem: &'p Problem<F>,
    blocks: &Blocks,
    index: usize,
) -> (&'p Segment, usize, usize, usize) {
    let (sequence, block) = (index / blocks.count, index % blocks.count);
    let (from, lanes) = blocks.get(block);
    (&problem.segments[sequence / problem.heads], sequence % problem.heads, from, lanes)
}

/// The state of a segment and head in `[segments, H, K, V]`, if there is any.
pub(super) fn state_of<'s, F>(
    problem: &Problem<F>,
    states: Option<&'s [F]>,
    segment: &Segment,
    head: usize,
) -> Option<&'s [F]> {
    let offset = problem.state_offset(segment, head);
    states.map(|states| &states[offset..offset + problem.state_len()])
}

/// The decay factors of columns of K, `keys`, of a head.
#[inline(always)]
pub(super) unsafe fn load_decay<S: Simd>(
    problem: &Problem<S::Float>,
    head: usize,
    keys: &Columns,
    token: usize,
    rows: &mut [S::Float],
) {
    unsafe {
        match problem.decay {
            Decay::None => {}
            Decay::PerHead(g) => load_head_decay::<S>(g, head, problem.heads, keys.padded, token, rows),
            Decay::PerKey(g) => keys.load_decay::<S>(g, token, rows),
        }
    }
}

/// Additive writes: outputs over V, so the state's rows are K and its lanes V.
struct Additive<'a, F> {
    problem: &'a Problem<'a, F>,
    blocks: Blocks,
    output: Filling<'a, F>,
    state: Filling<'a, F>,
}

struct Decayed;
impl Pass for Decayed {
    const DECAY: DecayAxis = DecayAxis::Rows;
    const REVERSE: bool = false;
    const STRICT: bool = false;
    const DELTA: bool = false;
}

struct Undecayed;
impl Pass for Undecayed {
    const DECAY: DecayAxis = DecayAxis::None;
    const REVERSE: bool = false;
    const STRICT: bool = false;
    const DELTA: bool = false;
}

impl<F: Float> Task for Additive<'_, F> {
    type Float = F;

    fn scratch(&self) -> Vec<usize> {
        let (rows, stride) = padded_rows(self.problem.key_dim);
        let lanes = self.blocks.lanes;
        [[rows * lanes].as_slice(), &[STEPS * stride; 3], &[STEPS * lanes; 2]].concat()
    }

    #[inline(always)]
    unsafe fn run<S: Simd<Float = F>>(&self, index: usize, mut arena: Arena<F>) {
        let p = self.problem;
        let (segment, head, from, lanes) = job(p, &self.blocks, index);
        let (rows, stride) = padded_rows(p.key_dim);
        let keys = Columns::of(head, p.heads, p.key_dim, 0, stride);
        let values = Columns::of(head, p.heads, p.value_dim, from, lanes);
        let block = StateBlock { key_dim: p.key_dim, value_dim: p.value_dim, from, lanes };

        let state = arena.take(rows * lanes);
        let [q, k, decay] = [(); 3].map(|()| arena.take(STEPS * stride));
        let [v, output] = [(); 2].map(|()| arena.take(STEPS * lanes));

        let mut ahead = Ahead::new();
        block.load(state_of(p, p.initial_state, segment, head), state);
        let tokens = segment.tokens(p.time);
        for token in tokens.clone().step_by(STEPS) {
            let steps = STEPS.min(tokens.end - token);
            unsafe {
                keys.load_scaled::<S>(p.q, p.scale, token, &mut q[..steps * stride]);
                keys.load::<S>(p.k, token, &mut k[..steps * stride]);
                load_decay::<S>(p, head, &keys, token, &mut decay[..steps * stride]);
                values.load::<S>(p.v, token, &mut v[..steps * lanes]);
            }
            let output = &mut output[..steps * lanes];
            output.fill(F::default());
            let arrays = [
                Some((keys, p.q.as_ptr())),
                Some((keys, p.k.as_ptr())),
                p.decay.per_key().map(|g| (keys, g.as_ptr())),
                Some((values, p.v.as_ptr())),
                Some((values, self.output.start().cast_const())),
            ];
            ahead.plan(after(&tokens, token, steps), arrays);
            let chunk = Chunk {
                steps,
                rows,
                row_stride: stride,
                lanes,
                state: state.as_mut_ptr(),
                decay: decay.as_ptr(),
                in_row: k.as_ptr(),
                in_lane: v.as_ptr(),
                out_row: q.as_ptr(),
                out_lane: output.as_mut_ptr(),
                row2: std::ptr::null(),
                lane2: std::ptr::null_mut(),
                ahead: &ahead,
            };
            unsafe {
                match p.decay {
                    Decay::None => scan::<S, Undecayed>(&chunk),
                    _ => scan::<S, Decayed>(&chunk),
                }
                values.store::<S>(output, token, &self.output);
            }
        }
        unsafe { block.store(state, p.state_offset(segment, head), &self.state) };
    }
}
