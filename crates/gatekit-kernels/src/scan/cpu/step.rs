//! One token of every sequence: the step of decoding.

use super::packing::{Columns, load_head_decay};
use super::parallel::{Blocks, Task, for_each};
use super::problem::{Decay, expect_shape};
use super::tile::{load, store};
use crate::float::Float;
use crate::memory::{Filling, filled};
use crate::scratch::{Arena, LINE};
use crate::simd::{Level, Plain, Simd, Single, Target};

/// Inputs of one step of the scan that [`Problem`](super::Problem) defines.
#[derive(Clone, Debug)]
pub struct StepProblem<'a, F = f32> {
    /// Sequences, B.
    pub batch: usize,
    /// Heads, H.
    pub heads: usize,
    /// Width of queries and keys, K.
    pub key_dim: usize,
    /// Width of values, V.
    pub value_dim: usize,
    /// Factor on the queries.
    pub scale: F,
    /// Queries `[B, H, K]`.
    pub q: &'a [F],
    /// Keys `[B, H, K]`.
    pub k: &'a [F],
    /// Values `[B, H, V]`.
    pub v: &'a [F],
    /// Log decays, here `[B, H]` or `[B, H, K]`.
    pub decay: Decay<'a, F>,
    /// Write strengths `[B, H]` of the delta rule; without them the write is additive.
    pub beta: Option<&'a [F]>,
}

/// Advances the states `[B, H, K, V]` in place by one token and returns its outputs `[B, H, V]`.
///
/// # Panics
/// If an array does not have the length of its shape.
pub fn step<F: Float>(problem: &StepProblem<F>, state: &mut [F]) -> Vec<F> {
    // SAFETY: the level was found on this processor.
    unsafe { step_at(Level::best(), problem, state) }
}

/// [`step`] with given instructions.
///
/// # Safety
/// `level` must be available.
pub(super) unsafe fn step_at<F: Float>(level: Level, problem: &StepProblem<F>, state: &mut [F]) -> Vec<F> {
    let StepProblem { batch, heads, key_dim, value_dim, .. } = *problem;
    for (name, size) in [("batch", batch), ("heads", heads), ("key_dim", key_dim), ("value_dim", value_dim)] {
        assert!(size > 0, "`{name}`: got 0, need at least 1");
    }
    expect_shape("q", problem.q.len(), &[batch, heads, key_dim]);
    expect_shape("k", problem.k.len(), &[batch, heads, key_dim]);
    expect_shape("v", problem.v.len(), &[batch, heads, value_dim]);
    expect_shape("state", state.len(), &[batch, heads, key_dim, value_dim]);
    match problem.decay {
        Decay::None => {}
        Decay::PerHead(g) => expect_shape("decay", g.len(), &[batch, heads]),
        Decay::PerKey(g) => expect_shape("decay", g.len(), &[batch, heads, key_dim]),
    }
    if let Some(beta) = problem.beta {
        expect_shape("beta", beta.len(), &[batch, heads]);
    }
    let blocks = Blocks::new(value_dim, batch * heads);
    let work = 3 * state.len();
    let state = Filling::of(state);
    // SAFETY: the jobs cover all sequences, heads and columns of V.
    let [output] = unsafe {
        filled([problem.v.len()], |places| {
            let [output] = places.map(Filling::unwritten);
            for_each(level, &Step { problem, blocks, state, output }, batch * heads * blocks.count, work);
        })
    };
    output
}

/// A sequence, a head and a block of V: works on the state where it is.
struct Step<'a, F> {
    problem: &'a StepProblem<'a, F>,
    blocks: Blocks,
    state: Filling<'a, F>,
    output: Filling<'a, F>,
}

impl<F: Float> Task for Step<'_, F> {
    type Float = F;

    fn scratch(&self) -> Vec<usize> {
        vec![self.problem.key_dim.next_multiple_of(LINE); 4]
    }

    #[inline(always)]
    unsafe fn run<S: Simd<Float = F>>(&self, index: usize, mut arena: Arena<F>) {
        let p = self.problem;
        let (sequence, block) = (index / self.blocks.count, index % self.blocks.count);
        let (from, lanes) = self.blocks.get(block);
        // A sequence and head of [B, H, K] is a token of a single head.
        let padded = p.key_dim.next_multiple_of(LINE);
        let keys = Columns::of(0, 1, p.key_dim, 0, padded);
        let [q, k, decay, reading] = [(); 4].map(|()| arena.take(padded));
        unsafe {
            keys.load_scaled::<S>(p.q, p.scale, sequence, q);
            keys.load::<S>(p.k, sequence, k);
            match p.decay {
                Decay::None => decay.fill(F::of(1.0)),
                Decay::PerHead(g) => load_head_decay::<S>(g, 0, 1, padded, sequence, decay),
                Decay::PerKey(g) => keys.load_decay::<S>(g, sequence, decay),
            }
        }
        for (x, (k, decay)) in reading.iter_mut().zip(k.iter().zip(&*decay)) {
            *x = *k * *decay;
        }
        let head = Head {
            q,
            k,
            decay,
            reading,
            rows: p.key_dim,
            stride: p.value_dim,
            beta: p.beta.map(|beta| beta[sequence]),
        };

        let end = p.value_dim.min(from + lanes);
        let mut at = from;
        unsafe {
            let state = self.state.start().add(sequence * p.key_dim * p.value_dim);
            let v = p.v.as_ptr().add(sequence * p.value_dim);
            let output = self.output.start().add(sequence * p.value_dim);
            while at < end {
                let (state, v, output) = (state.add(at), v.add(at), output.add(at));
                let rest = end - at;
                at += if rest >= 4 * S::LANES {
                    head.columns::<S, 4>(state, v, output)
                } else if rest >= S::LANES {
                    head.columns::<S, 1>(state, v, output)
                } else if rest >= Plain::<F>::LANES {
                    head.columns::<Plain<F>, 1>(state, v, output)
                } else {
                    head.columns::<Single<Target, F>, 1>(state, v, output)
                };
            }
        }
    }
}

/// What all columns of a state are updated with.
struct Head<'a, F> {
    q: &'a [F],
    k: &'a [F],
    decay: &'a [F],
    /// k times the decay.
    reading: &'a [F],
    /// K
    rows: usize,
    /// V: from one row of the state to the next.
    stride: usize,
    beta: Option<F>,
}

impl<F: Float> Head<'_, F> {
    /// Updates `N` vectors of columns and writes their outputs; returns the number of columns.
    #[inline(always)]
    unsafe fn columns<S: Simd<Float = F>, const N: usize>(
        &self,
        state: *mut F,
        v: *const F,
        output: *mut F,
    ) -> usize {
        unsafe {
            let mut written = load::<S, N>(v);
            if let Some(beta) = self.beta {
                let mut held = [S::splat(F::default()); N];
                for row in 0..self.rows {
                    let (x, s) = (S::splat(self.reading[row]), load::<S, N>(state.add(row * self.stride)));
                    for n in 0..N {
                        held[n] = S::mul_add(s[n], x, held[n]);
                    }
                }
                for n in 0..N {
                    written[n] = S::mul(S::sub(written[n], held[n]), S::splat(beta));
                }
            }
            let mut sum = [S::splat(F::default()); N];
            for row in 0..self.rows {
                let (q, k, decay) = (S::splat(self.q[row]), S::splat(self.k[row]), S::splat(self.decay[row]));
                let mut s = load::<S, N>(state.add(row * self.stride));
                for n in 0..N {
                    s[n] = S::mul_add(k, written[n], S::mul(s[n], decay));
                    sum[n] = S::mul_add(s[n], q, sum[n]);
                }
                store::<S, N>(state.add(row * self.stride), s);
            }
            store::<S, N>(output, sum);
        }
        N * S::LANES
    }
}
