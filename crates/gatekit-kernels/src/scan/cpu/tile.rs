//! The additive scan over one chunk, a block of the state at a time held in registers.
//!
//! A state has *rows* and *lanes* (the vectorised index): K rows and V lanes to make outputs over V, the transpose to
//! make outputs over K. One kernel does every pass of the scan:
//!
//! ```text
//! forward:    S = a * S + in_row in_lane^T        out_lane += S^T out_row
//! in reverse: S = S + in_row in_lane^T            out_lane += S^T out_row        then S = a * S
//! ```
//!
//! which costs three multiply-adds an element and step, and no memory traffic for the state: a block of it stays in
//! registers for the whole chunk. Products of decays are never divided, so nothing can overflow.

use super::ahead::Ahead;
use crate::simd::Simd;

/// How a pass runs; all of it is fixed at compile time.
pub(super) trait Pass {
    /// Where the decay varies.
    const DECAY: DecayAxis;
    /// Time runs backwards; the decay then acts after a step's write.
    const REVERSE: bool;
    /// The output of a step leaves out the write of the same step.
    const STRICT: bool;
    /// There is a second, subtracted rank-one term of the delta rule: forward it is a second output `out2 += S'^T
    /// out_row2` of the decayed state, in reverse a second write `- in_row2 in_lane2^T`.
    const DELTA: bool;
}

/// Along which index of the state block the decay of a step varies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum DecayAxis {
    /// There is none.
    None,
    /// `[steps, rows]`
    Rows,
    /// `[steps, lanes]`
    Lanes,
}

/// Operands of a chunk, all contiguous and padded.
pub(super) struct Chunk<'a, F> {
    pub(super) steps: usize,
    pub(super) rows: usize,
    /// From one step to the next in `[steps, rows]`.
    pub(super) row_stride: usize,
    pub(super) lanes: usize,
    /// `[rows, lanes]`
    pub(super) state: *mut F,
    /// `[steps, rows]` or `[steps, lanes]`, see [`Pass::DECAY`].
    pub(super) decay: *const F,
    /// `[steps, rows]`
    pub(super) in_row: *const F,
    /// `[steps, lanes]`
    pub(super) in_lane: *const F,
    /// `[steps, rows]`
    pub(super) out_row: *const F,
    /// `[steps, lanes]`, added to.
    pub(super) out_lane: *mut F,
    /// `[steps, rows]`: `out_row2` forward, `in_row2` in reverse.
    pub(super) row2: *const F,
    /// `[steps, lanes]`: `out2` (added to) forward, `in_lane2` in reverse.
    pub(super) lane2: *mut F,
    /// What to fetch meanwhile.
    pub(super) ahead: &'a Ahead<F>,
}

/// Runs a pass over the whole state.
///
/// # Safety
/// See [`Simd`]; the operands must be as [`Chunk`] says (those that the pass does not use may be null), `rows` a
/// multiple of 8 and `lanes` of 16.
#[inline(always)]
pub(super) unsafe fn scan<S: Simd, P: Pass>(chunk: &Chunk<S::Float>) {
    let vectors = chunk.lanes / S::LANES;
    let widest = widest::<S, P>();
    chunk.ahead.spread(tiles::<S, P>(vectors, chunk.rows) * chunk.steps);
    let mut vector = 0;
    while vector < vectors {
        let lane = vector * S::LANES;
        let width = (vectors - vector).min(widest);
        unsafe {
            match width {
                4 => column::<S, P, 4, 4>(chunk, lane),
                3 => column::<S, P, 4, 3>(chunk, lane),
                2 if S::TILE_VECTORS == 2 => column::<S, P, 4, 2>(chunk, lane),
                2 => column::<S, P, 8, 2>(chunk, lane),
                _ => column::<S, P, 8, 1>(chunk, lane),
            }
        }
        vector += width;
    }
}

/// Tiles of a state.
#[inline(always)]
fn tiles<S: Simd, P: Pass>(vectors: usize, rows: usize) -> usize {
    let widest = widest::<S, P>();
    let of = |width: usize| if width > 2 || width == S::TILE_VECTORS { rows / 4 } else { rows / 8 };
    let rest = vectors % widest;
    vectors / widest * of(widest) + if rest > 0 { of(rest) } else { 0 }
}

/// Most vectors of a tile: the second term of the delta rule needs registers too.
#[inline(always)]
const fn widest<S: Simd, P: Pass>() -> usize {
    if P::DELTA { 2 } else { S::TILE_VECTORS }
}

/// All rows of `N` vectors of lanes: the chunk's output there stays in the nearest cache.
#[inline(always)]
unsafe fn column<S: Simd, P: Pass, const R: usize, const N: usize>(chunk: &Chunk<S::Float>, lane: usize) {
    if N > widest::<S, P>() {
        return; // never reached, so not compiled either
    }
    for row in (0..chunk.rows).step_by(R) {
        unsafe { tile::<S, P, R, N>(chunk, row, lane) };
    }
}

/// `R` rows of `N` vectors of lanes.
#[inline(always)]
unsafe fn tile<S: Simd, P: Pass, const R: usize, const N: usize>(
    chunk: &Chunk<S::Float>,
    row: usize,
    lane: usize,
) {
    let lanes = chunk.lanes;
    unsafe {
        let mut state = [[S::splat(S::Float::default()); N]; R];
        for (r, state) in state.iter_mut().enumerate() {
            *state = load::<S, N>(chunk.state.add((row + r) * lanes + lane));
        }
        for step in 0..chunk.steps {
            let t = if P::REVERSE { chunk.steps - 1 - step } else { step };
            chunk.ahead.fetch::<S>();
            let (at_row, at_lane) = (t * chunk.row_stride + row, t * lanes + lane);
            let input = load::<S, N>(chunk.in_lane.add(at_lane));
            let mut output = load::<S, N>(chunk.out_lane.add(at_lane));
            let mut second = if P::DELTA { load::<S, N>(chunk.lane2.add(at_lane)) } else { input };
            let lane_decay =
                if P::DECAY == DecayAxis::Lanes { load::<S, N>(chunk.decay.add(at_lane)) } else { input };
            for (r, state) in state.iter_mut().enumerate() {
                let in_row = S::splat(*chunk.in_row.add(at_row + r));
                let out_row = S::splat(*chunk.out_row.add(at_row + r));
                let row2 = if P::DELTA { S::splat(*chunk.row2.add(at_row + r)) } else { in_row };
                let row_decay =
                    if P::DECAY == DecayAxis::Rows { S::splat(*chunk.decay.add(at_row + r)) } else { in_row };
                for n in 0..N {
                    let decay = match P::DECAY {
                        DecayAxis::None => None,
                        DecayAxis::Rows => Some(row_decay),
                        DecayAxis::Lanes => Some(lane_decay[n]),
                    };
                    let mut s = state[n];
                    if P::REVERSE {
                        if P::STRICT {
                            output[n] = S::mul_add(s, out_row, output[n]);
                        }
                        s = S::mul_add(in_row, input[n], s);
                        if !P::STRICT {
                            output[n] = S::mul_add(s, out_row, output[n]);
                        }
                        if P::DELTA {
                            s = S::neg_mul_add(row2, second[n], s);
                        }
                        if let Some(decay) = decay {
                            s = S::mul(s, decay);
                        }
                    } else {
                        if let Some(decay) = decay {
                            s = S::mul(s, decay);
                        }
                        if P::DELTA {
                            second[n] = S::mul_add(s, row2, second[n]);
                        }
                        if P::STRICT {
                            output[n] = S::mul_add(s, out_row, output[n]);
                        }
                        s = S::mul_add(in_row, input[n], s);
                        if !P::STRICT {
                            output[n] = S::mul_add(s, out_row, output[n]);
                        }
                    }
                    state[n] = s;
                }
            }
            store::<S, N>(chunk.out_lane.add(at_lane), output);
            if P::DELTA && !P::REVERSE {
                store::<S, N>(chunk.lane2.add(at_lane), second);
            }
        }
        for (r, state) in state.into_iter().enumerate() {
            store::<S, N>(chunk.state.add((row + r) * lanes + lane), state);
        }
    }
}

/// `N` consecutive vectors.
#[inline(always)]
pub(super) unsafe fn load<S: Simd, const N: usize>(from: *const S::Float) -> [S::Vector; N] {
    unsafe {
        let mut vectors = [S::splat(S::Float::default()); N];
        for (n, vector) in vectors.iter_mut().enumerate() {
            *vector = S::load(from.add(n * S::LANES));
        }
        vectors
    }
}

/// Writes `N` consecutive vectors.
#[inline(always)]
pub(super) unsafe fn store<S: Simd, const N: usize>(to: *mut S::Float, vectors: [S::Vector; N]) {
    for (n, vector) in vectors.into_iter().enumerate() {
        unsafe { S::store(to.add(n * S::LANES), vector) };
    }
}
