//! The forward scan.

use super::additive::Additive;
use super::delta;
use super::packing::{Columns, load_head_decay};
use super::parallel::Blocks;
use super::problem::{Decay, Output, Problem, Segment};
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
                let (written, start, end) = (Some(problem.v), problem.initial_state, Some(state));
                Additive::<F, false> { problem, written, start, output, end }.run(level);
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
