//! One token of every sequence: the step of decoding.

use crate::{
    float::{Float, dot},
    loops::{JOB, Loop, run_all},
    simd::Arithmetic,
};

/// Inputs of one step of the scan that [`Problem`](super::Problem) defines, for every sequence.
#[derive(Debug)]
pub(crate) struct StepProblem<'a, F> {
    pub channels: usize,
    /// Numbers of the state of a channel, N.
    pub size: usize,
    /// `[sequences, channels]`
    pub x: &'a [F],
    /// `[sequences, channels]`
    pub delta: &'a [F],
    /// `[channels, N]`
    pub a: &'a [F],
    /// `[sequences, N]`
    pub b: &'a [F],
    /// `[sequences, N]`
    pub c: &'a [F],
}

/// Advances the states `[sequences, channels, N]` in place and returns the outputs `[sequences, channels]`.
pub(crate) fn step<F: Float>(problem: &StepProblem<F>, states: &mut [F]) -> Vec<F> {
    let mut output = vec![F::default(); problem.x.len()];
    let channels = (JOB / problem.size).clamp(1, problem.channels);
    let mut rest = &mut states[..];
    let mut jobs = vec![];
    for (sequence, output) in output.chunks_mut(problem.channels).enumerate() {
        for (block, output) in output.chunks_mut(channels).enumerate() {
            let (states, others) = std::mem::take(&mut rest).split_at_mut(output.len() * problem.size);
            rest = others;
            jobs.push(Step { problem, sequence, first: block * channels, states, output });
        }
    }
    run_all(problem.x.len() * problem.size, jobs);
    output
}

/// Some channels of a sequence.
struct Step<'a, F> {
    problem: &'a StepProblem<'a, F>,
    sequence: usize,
    first: usize,
    states: &'a mut [F],
    output: &'a mut [F],
}

impl<F: Float> Loop for Step<'_, F> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self { problem, sequence, first, states, output } = self;
        let size = problem.size;
        let channels = sequence * problem.channels + first;
        let (b, c) = (&problem.b[sequence * size..][..size], &problem.c[sequence * size..][..size]);
        let inputs = problem.x[channels..].iter().zip(&problem.delta[channels..]);
        let rows = states.chunks_exact_mut(size).zip(problem.a[first * size..].chunks_exact(size));
        for (((states, a), (x, delta)), output) in rows.zip(inputs).zip(output) {
            for ((s, a), b) in states.iter_mut().zip(a).zip(b) {
                *s = s.multiply_add::<A>((*delta * *a).exp::<A>(), *x * *b);
            }
            *output = dot::<F, A>(states, c);
        }
    }
}
