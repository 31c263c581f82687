//! Comparison with the double-precision reference at every instruction set of the processor.

use super::backward::backward_at;
use super::forward::forward_at;
use super::problem::{Decay, Problem, Segment};
use super::reference::{Reference, reference};
use super::step::{StepProblem, step_at};
use crate::{float::Float, simd::Level};

/// Uniform draws in [0, 1) from a 64-bit linear congruential generator.
pub(super) struct Draws(u64);

impl Draws {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678_9ABC_DEF1)
    }

    pub(super) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    pub(super) fn centred(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| 2.0 * self.next() - 1.0).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum DecayKind {
    None,
    PerHead,
    PerKey,
}

/// How strong the decays are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Strength {
    /// Around exp(-0.1).
    Slow,
    /// All between exp(-4) and exp(-8).
    Strong,
    /// Slow ones, exact ones (0), and resets (-70, -1000).
    Mixed,
}

/// A random problem's arrays.
pub(super) struct Arrays {
    batch: usize,
    time: usize,
    heads: usize,
    key_dim: usize,
    value_dim: usize,
    segments: Vec<Segment>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    kind: DecayKind,
    decay: Vec<f32>,
    beta: Option<Vec<f32>>,
    initial_state: Option<Vec<f32>>,
    grad_output: Vec<f32>,
    grad_state: Vec<f32>,
}

impl Arrays {
    pub(super) fn new(
        [batch, time, heads, key_dim, value_dim]: [usize; 5],
        segments: Vec<Segment>,
        kind: DecayKind,
        strength: Strength,
        delta: bool,
        initial_state: bool,
    ) -> Self {
        let mut draws = Draws::new((time * 31 + key_dim * 7 + value_dim) as u64);
        let tokens = batch * time * heads;
        let states = segments.len() * heads * key_dim * value_dim;
        let decays = match kind {
            DecayKind::None => 0,
            DecayKind::PerHead => tokens,
            DecayKind::PerKey => tokens * key_dim,
        };
        let decay = (0..decays)
            .map(|_| match (strength, draws.next()) {
                (Strength::Slow, x) => -0.2 * x,
                (Strength::Strong, x) => -4.0 - 4.0 * x,
                (Strength::Mixed, x) if x < 0.02 => -1000.0,
                (Strength::Mixed, x) if x < 0.04 => -70.0,
                (Strength::Mixed, x) if x < 0.06 => 0.0,
                (Strength::Mixed, x) => -0.001 * x,
            })
            .collect();
        let mut k = draws.centred(tokens * key_dim);
        if delta {
            for row in k.chunks_exact_mut(key_dim) {
                let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                row.iter_mut().for_each(|x| *x /= norm);
            }
        }
        Self {
            batch,
            time,
            heads,
            key_dim,
            value_dim,
            q: draws.centred(tokens * key_dim),
            k,
            v: draws.centred(tokens * value_dim),
            kind,
            decay,
            beta: delta.then(|| (0..tokens).map(|_| 2.0 * draws.next()).collect()),
            initial_state: initial_state.then(|| draws.centred(states)),
            grad_output: draws.centred(tokens * value_dim),
            grad_state: draws.centred(states),
            segments,
        }
    }

    pub(super) fn problem(&self) -> Problem<'_> {
        Problem {
            batch: self.batch,
            time: self.time,
            heads: self.heads,
            key_dim: self.key_dim,
            value_dim: self.value_dim,
            segments: &self.segments,
            scale: (self.key_dim as f32).powf(-0.5),
            q: &self.q,
            k: &self.k,
            v: &self.v,
            decay: match self.kind {
                DecayKind::None => Decay::None,
                DecayKind::PerHead => Decay::PerHead(&self.decay),
                DecayKind::PerKey => Decay::PerKey(&self.decay),
            },
            beta: self.beta.as_deref(),
            initial_state: self.initial_state.as_deref(),
        }
    }
}

/// `||got - want|| <= bound * ||want||`, or the difference is at the rounding error of numbers around 1.
fn assert_close<F: Float + Into<f64>>(name: &str, context: &str, got: &[F], want: &[f64], bound: f64) {
    assert_eq!(got.len(), want.len(), "{name} of {context}");
    let difference = got.iter().zip(want).map(|(x, y)| ((*x).into() - y).powi(2)).sum::<f64>().sqrt();
    let norm = want.iter().map(|y| y * y).sum::<f64>().sqrt();
    let limit = bound * (norm + 0.05 * (want.len() as f64).sqrt());
    assert!(
        difference <= limit,
        "{name} of {context}: difference {difference:e}, norm {norm:e}, limit {limit:e}"
    );
}

/// Forward and backward of a problem against the reference, in both types at every level.
fn check(arrays: &Arrays, context: &str) {
    let want = reference(&arrays.problem(), &arrays.grad_output, &arrays.grad_state);
    check_in::<f32>(arrays, context, &want, 2e-6, 1e-5);
    // The decays' sums over hundreds of steps leave some more.
    check_in::<f64>(arrays, context, &want, 2e-14, 1e-13);
}

fn check_in<F: Float + Into<f64>>(
    arrays: &Arrays,
    context: &str,
    want: &Reference,
    bound: f64,
    gradient_bound: f64,
) {
    let of = |values: &[f32]| values.iter().map(|x| F::of(f64::from(*x))).collect::<Vec<F>>();
    let p = arrays.problem();
    let (q, k, v, g) = (of(p.q), of(p.k), of(p.v), of(&arrays.decay));
    let (beta, initial_state) = (p.beta.map(of), p.initial_state.map(of));
    let (grad_output, grad_state) = (of(&arrays.grad_output), of(&arrays.grad_state));
    let problem = Problem {
        batch: p.batch,
        time: p.time,
        heads: p.heads,
        key_dim: p.key_dim,
        value_dim: p.value_dim,
        segments: p.segments,
        scale: F::of(f64::from(p.scale)),
        q: &q,
        k: &k,
        v: &v,
        decay: match arrays.kind {
            DecayKind::None => Decay::None,
            DecayKind::PerHead => Decay::PerHead(&g),
            DecayKind::PerKey => Decay::PerKey(&g),
        },
        beta: beta.as_deref(),
        initial_state: initial_state.as_deref(),
    };
    for level in Level::available() {
        let context = format!("{context} ({level:?}, {})", std::any::type_name::<F>());
        let got = unsafe { forward_at(level, &problem) };
        assert_close("output", &context, &got.output, &want.output, bound);
        assert_close("state", &context, &got.state, &want.state, bound);
        let got = unsafe { backward_at(level, &problem, Some(&grad_output), Some(&grad_state)) };
        assert_close("q", &context, &got.q, &want.q, gradient_bound);
        assert_close("k", &context, &got.k, &want.k, gradient_bound);
        assert_close("v", &context, &got.v, &want.v, gradient_bound);
        assert_eq!(got.decay.is_some(), arrays.kind != DecayKind::None);
        assert_close("decay", &context, &got.decay.unwrap_or_default(), &want.decay, gradient_bound);
        assert_close("beta", &context, &got.beta.unwrap_or_default(), &want.beta, gradient_bound);
        if let Some(got) = got.initial_state {
            assert_close("initial state", &context, &got, &want.initial_state, gradient_bound);
        }
    }
}

const TIMES: [usize; 11] = [1, 2, 15, 16, 17, 63, 64, 65, 130, 300, 1000];

fn check_times(kind: DecayKind, delta: bool) {
    for (i, time) in TIMES.into_iter().enumerate() {
        let initial = i % 2 == 0;
        let arrays =
            Arrays::new([2, time, 2, 20, 24], Segment::rows(2, time), kind, Strength::Slow, delta, initial);
        check(&arrays, &format!("{kind:?}, delta {delta}, {time} steps"));
    }
}

#[test]
fn additive_of_many_lengths() {
    check_times(DecayKind::PerKey, false);
    check_times(DecayKind::PerHead, false);
    check_times(DecayKind::None, false);
}

#[test]
fn delta_rule_of_many_lengths() {
    check_times(DecayKind::PerKey, true);
    check_times(DecayKind::PerHead, true);
    check_times(DecayKind::None, true);
}

fn check_sizes(delta: bool) {
    for key_dim in [1, 3, 8, 17, 40, 70] {
        for value_dim in [1, 3, 16, 17, 48, 66] {
            let kind = [DecayKind::PerKey, DecayKind::PerHead, DecayKind::None][(key_dim + value_dim) % 3];
            let arrays = Arrays::new(
                [1, 70, 2, key_dim, value_dim],
                Segment::rows(1, 70),
                kind,
                Strength::Slow,
                delta,
                true,
            );
            check(&arrays, &format!("{kind:?}, delta {delta}, K = {key_dim}, V = {value_dim}"));
        }
    }
}

#[test]
fn additive_of_many_sizes() {
    check_sizes(false);
}

#[test]
fn delta_rule_of_many_sizes() {
    check_sizes(true);
}

#[test]
fn packed_segments() {
    let boundaries = [0, 1, 33, 34, 100, 164, 165, 200];
    for kind in [DecayKind::PerKey, DecayKind::PerHead, DecayKind::None] {
        for delta in [false, true] {
            let arrays = Arrays::new(
                [1, 200, 3, 20, 24],
                Segment::packed(&boundaries),
                kind,
                Strength::Slow,
                delta,
                true,
            );
            check(&arrays, &format!("packed {kind:?}, delta {delta}"));
        }
    }
}

#[test]
fn strong_and_mixed_decays() {
    for strength in [Strength::Strong, Strength::Mixed] {
        for kind in [DecayKind::PerKey, DecayKind::PerHead] {
            for delta in [false, true] {
                let arrays =
                    Arrays::new([2, 600, 2, 24, 32], Segment::rows(2, 600), kind, strength, delta, true);
                check(&arrays, &format!("{strength:?} {kind:?}, delta {delta}"));
            }
        }
    }
}

#[test]
fn steps_continue_like_the_scan() {
    for (kind, delta) in [(DecayKind::PerKey, false), (DecayKind::PerHead, true), (DecayKind::None, true)] {
        for [key_dim, value_dim] in [[1, 1], [3, 5], [40, 43], [17, 130]] {
            let [batch, heads, time] = [2, 3, 4];
            // Heads as batch rows of one head, so that a step's inputs are contiguous for all of them.
            let arrays = Arrays::new(
                [batch * heads, time, 1, key_dim, value_dim],
                Segment::rows(batch * heads, time),
                kind,
                Strength::Slow,
                delta,
                true,
            );
            let want = reference(&arrays.problem(), &arrays.grad_output, &arrays.grad_state);
            let at = |values: &[f32], width: usize, t: usize| -> Vec<f32> {
                values.chunks_exact(width).skip(t).step_by(time).flatten().copied().collect()
            };
            for level in Level::available() {
                let mut state = arrays.initial_state.clone().unwrap();
                let mut output = vec![0.0; arrays.v.len()];
                for t in 0..time {
                    let (q, k) = (at(&arrays.q, key_dim, t), at(&arrays.k, key_dim, t));
                    let v = at(&arrays.v, value_dim, t);
                    let decay = match kind {
                        DecayKind::None => vec![],
                        DecayKind::PerHead => at(&arrays.decay, 1, t),
                        DecayKind::PerKey => at(&arrays.decay, key_dim, t),
                    };
                    let beta = arrays.beta.as_ref().map(|beta| at(beta, 1, t));
                    let problem = StepProblem {
                        batch,
                        heads,
                        key_dim,
                        value_dim,
                        scale: arrays.problem().scale,
                        q: &q,
                        k: &k,
                        v: &v,
                        decay: match kind {
                            DecayKind::None => Decay::None,
                            DecayKind::PerHead => Decay::PerHead(&decay),
                            DecayKind::PerKey => Decay::PerKey(&decay),
                        },
                        beta: beta.as_deref(),
                    };
                    let got = unsafe { step_at(level, &problem, &mut state) };
                    for (row, got) in got.chunks_exact(value_dim).enumerate() {
                        output[(row * time + t) * value_dim..][..value_dim].copy_from_slice(got);
                    }
                }
                let context = format!("steps, {kind:?}, delta {delta}, {key_dim} x {value_dim} ({level:?})");
                assert_close("output", &context, &output, &want.output, 2e-6);
                assert_close("state", &context, &state, &want.state, 2e-6);
            }
        }
    }
}

/// Runs on a pool of its own with this many threads.
fn with_threads<T: Send>(threads: usize, run: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for kind in [DecayKind::PerKey, DecayKind::PerHead, DecayKind::None] {
        for delta in [false, true] {
            let arrays =
                Arrays::new([1, 300, 2, 70, 100], Segment::rows(1, 300), kind, Strength::Slow, delta, true);
            for level in Level::available() {
                let run = || unsafe {
                    let problem = arrays.problem();
                    let forward = forward_at(level, &problem);
                    (
                        forward,
                        backward_at(level, &problem, Some(&arrays.grad_output), Some(&arrays.grad_state)),
                    )
                };
                let one = with_threads(1, run);
                for threads in [1, 2, 4, 7, 32] {
                    assert!(
                        one == with_threads(threads, run),
                        "{level:?}, {kind:?}, delta {delta}, {threads} threads"
                    );
                }
            }
        }
    }
}

#[test]
fn steps_do_not_depend_on_the_number_of_threads() {
    // Enough work for several threads.
    let [batch, heads, key_dim, value_dim] = [12, 4, 130, 131];
    for (kind, delta) in [(DecayKind::PerKey, false), (DecayKind::PerHead, true), (DecayKind::PerKey, true)] {
        let dims = [batch, 1, heads, key_dim, value_dim];
        let arrays = Arrays::new(dims, Segment::rows(batch, 1), kind, Strength::Slow, delta, true);
        let p = arrays.problem();
        let problem = StepProblem {
            batch,
            heads,
            key_dim,
            value_dim,
            scale: p.scale,
            q: p.q,
            k: p.k,
            v: p.v,
            decay: p.decay,
            beta: p.beta,
        };
        for level in Level::available() {
            let run = || {
                let mut state = arrays.initial_state.clone().unwrap();
                let output = unsafe { step_at(level, &problem, &mut state) };
                (output, state)
            };
            let one = with_threads(1, run);
            for threads in [2, 4, 7] {
                assert!(one == with_threads(threads, run), "{level:?}, {kind:?}, {threads} threads");
            }
        }
    }
}

#[test]
fn absent_gradients_are_zero() {
    let arrays =
        Arrays::new([1, 40, 1, 5, 6], Segment::rows(1, 40), DecayKind::PerKey, Strength::Slow, true, true);
    let problem = arrays.problem();
    let level = Level::best();
    let (no_output, no_state) = (vec![0.0; arrays.grad_output.len()], vec![0.0; arrays.grad_state.len()]);
    unsafe {
        assert_eq!(
            backward_at(level, &problem, None, Some(&arrays.grad_state)),
            backward_at(level, &problem, Some(&no_output), Some(&arrays.grad_state))
        );
        assert_eq!(
            backward_at(level, &problem, Some(&arrays.grad_output), None),
            backward_at(level, &problem, Some(&arrays.grad_output), Some(&no_state))
        );
    }
}

#[test]
fn gradients_of_decays_below_the_floor_are_zero() {
    let arrays = Arrays::new(
        [1, 400, 2, 8, 8],
        Segment::rows(1, 400),
        DecayKind::PerKey,
        Strength::Mixed,
        false,
        true,
    );
    let problem = arrays.problem();
    for level in Level::available() {
        let got = unsafe { backward_at(level, &problem, Some(&arrays.grad_output), None) };
        let (mut floored, mut others) = (0, 0);
        for (g, gradient) in arrays.decay.iter().zip(got.decay.unwrap()) {
            if *g < -30.0 {
                floored += 1;
                assert_eq!(gradient, 0.0);
            } else {
                others += usize::from(gradient != 0.0);
            }
        }
        assert!(floored > 100 && others > 5000);
    }
}

#[test]
#[should_panic(expected = "`v`: got 79 elements, need 80 for the shape [1, 10, 2, 4]")]
fn wrong_length_is_named() {
    let arrays =
        Arrays::new([1, 10, 2, 3, 4], Segment::rows(1, 10), DecayKind::None, Strength::Slow, false, false);
    let mut problem = arrays.problem();
    problem.v = &problem.v[1..];
    super::forward(&problem);
}

#[test]
#[should_panic(expected = "need 5: each token belongs to one segment")]
fn overlapping_segments_are_refused() {
    let segments =
        vec![Segment { row: 0, start: 0, end: 5, state: 0 }, Segment { row: 0, start: 4, end: 10, state: 1 }];
    let arrays = Arrays::new([1, 10, 1, 3, 4], segments, DecayKind::None, Strength::Slow, false, false);
    super::forward(&arrays.problem());
}

/// The reference's reverse pass against central differences of its forward pass, in double precision.
#[test]
fn reference_agrees_with_finite_differences() {
    for (kind, delta) in [(DecayKind::PerKey, false), (DecayKind::PerKey, true), (DecayKind::PerHead, true)] {
        let arrays = Arrays::new([1, 7, 1, 3, 2], Segment::rows(1, 7), kind, Strength::Slow, delta, true);
        let want = reference(&arrays.problem(), &arrays.grad_output, &arrays.grad_state);
        let loss = |problem: &Problem| {
            let r = reference(problem, &arrays.grad_output, &arrays.grad_state);
            let sum = |a: &[f64], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * f64::from(*y)).sum::<f64>();
            sum(&r.output, &arrays.grad_output) + sum(&r.state, &arrays.grad_state)
        };
        type Set = for<'a> fn(&mut Problem<'a>, &'a [f32]);
        let mut inputs: Vec<(&str, &[f32], &[f64], Set)> = vec![
            ("q", &arrays.q, &want.q, |p, x| p.q = x),
            ("k", &arrays.k, &want.k, |p, x| p.k = x),
            ("v", &arrays.v, &want.v, |p, x| p.v = x),
            ("initial state", arrays.initial_state.as_deref().unwrap(), &want.initial_state, |p, x| {
                p.initial_state = Some(x);
            }),
            ("decay", &arrays.decay, &want.decay, |p, x| {
                p.decay = match p.decay {
                    Decay::PerHead(_) => Decay::PerHead(x),
                    _ => Decay::PerKey(x),
                };
            }),
        ];
        if let Some(beta) = &arrays.beta {
            inputs.push(("beta", beta, &want.beta, |p, x| p.beta = Some(x)));
        }
        for (name, input, gradient, set) in inputs {
            for i in 0..input.len() {
                // Both points are single-precision numbers, so the difference quotient is exact in its denominator.
                let loss_at = |shift: f32| {
                    let mut moved = input.to_vec();
                    moved[i] += shift;
                    let mut problem = arrays.problem();
                    set(&mut problem, &moved);
                    (f64::from(moved[i]), loss(&problem))
                };
                let ((x1, y1), (x2, y2)) = (loss_at(-1e-3), loss_at(1e-3));
                let slope = (y2 - y1) / (x2 - x1);
                let difference = (slope - gradient[i]).abs();
                assert!(
                    difference < 1e-4 * (1.0 + slope.abs()),
                    "{name} {i}, {kind:?}: {slope} and {}",
                    gradient[i]
                );
            }
        }
    }
}
