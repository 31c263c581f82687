//! The selective scan in backend operations: some steps at a time as a parallel prefix, chunk after chunk.
//!
//! Tensors of a chunk are `[batch, steps, N, channels]`: no more than one chunk's states are held at a time.

use std::ops::Range;

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};

use super::{SelectiveArguments, SelectiveSpec, SelectiveStep};
use crate::{prefix::prefix, primitive::Primitive, scan::GradientOf};

/// Steps of a chunk: with the state before them a power of two, which the prefix needs the fewest passes for.
const STEPS: usize = 31;

/// The arguments in the type they are summed in, each with an axis for those it lacks.
struct Problem<B: Backend> {
    /// `[batch, time, 1, channels]`
    x: Primitive<B>,
    /// `[batch, time, 1, channels]`
    delta: Primitive<B>,
    /// `[1, 1, N, channels]`
    a: Primitive<B>,
    /// `[batch, time, N, 1]`
    b: Primitive<B>,
    /// `[batch, time, N, 1]`
    c: Primitive<B>,
    /// `[batch or segments, 1, N, channels]`
    initial_state: Option<Primitive<B>>,
    /// Steps of each sequence of a row, and whether a row has several.
    sequences: Vec<Range<usize>>,
    packed: bool,
}

impl<B: Backend> Problem<B> {
    fn new(arguments: SelectiveArguments<B>, spec: &SelectiveSpec) -> Self {
        let arguments = arguments.widened();
        let rows = |x| {
            let x = Primitive::<B>(x);
            let dims = x.dims();
            x.reshape([dims[0], dims[1], 1, dims[2]])
        };
        let columns = |x| {
            let x = Primitive::<B>(x);
            let dims = x.dims();
            x.reshape([dims[0], dims[1], dims[2], 1])
        };
        let x = rows(arguments.x);
        let a = Primitive::<B>(arguments.a).transpose();
        let dims = a.dims();
        Self {
            sequences: spec.sequences(x.dims()[1]),
            packed: spec.boundaries.is_some(),
            x,
            delta: rows(arguments.delta),
            a: a.reshape([1, 1, dims[0], dims[1]]),
            b: columns(arguments.b),
            c: columns(arguments.c),
            initial_state: spec.has_initial_state.then(|| states_in(Primitive(arguments.initial_state))),
        }
    }

    /// Those of `states`, or zeros, that a sequence has.
    fn state(&self, states: Option<&Primitive<B>>, sequence: usize) -> Primitive<B> {
        match states {
            Some(states) if self.packed => states.narrow(0, sequence..sequence + 1),
            Some(states) => states.clone(),
            None => {
                let (x, a) = (self.x.dims(), self.a.dims());
                self.x.zeros([x[0], 1, a[2], a[3]])
            }
        }
    }

    /// The states of a chunk's steps and, before them, the state it starts from: `[batch, 1 + steps, N, channels]`;
    /// and the decays of the steps.
    fn states(&self, state: Primitive<B>, steps: &Range<usize>) -> (Primitive<B>, Primitive<B>) {
        let decay = (at(&self.delta, steps) * self.a.clone()).exp();
        let writes = at(&self.x, steps) * at(&self.b, steps);
        let none = state.zeros(state.dims());
        let states =
            prefix(Primitive::cat(vec![none, decay.clone()], 1), Primitive::cat(vec![state, writes], 1));
        (states, decay)
    }
}

/// `[states, channels, N]` as `[states, 1, N, channels]`.
fn states_in<B: Backend>(states: Primitive<B>) -> Primitive<B> {
    let states = states.transpose();
    let dims = states.dims();
    states.reshape([dims[0], 1, dims[1], dims[2]])
}

/// The inverse of [`states_in`], of all sequences.
fn states_out<B: Backend>(states: Vec<Primitive<B>>) -> Primitive<B> {
    let states = Primitive::cat(states, 0);
    let dims = states.dims();
    states.reshape([dims[0], dims[2], dims[3]]).transpose()
}

/// Some steps of axis 1.
fn at<B: Backend>(x: &Primitive<B>, steps: &Range<usize>) -> Primitive<B> {
    x.narrow(1, steps.clone())
}

/// A sequence's steps in chunks.
fn chunks(steps: &Range<usize>) -> impl DoubleEndedIterator<Item = Range<usize>> {
    let end = steps.end;
    steps.clone().step_by(STEPS).map(move |start| start..end.min(start + STEPS))
}

/// Per-chunk results in the order of time, `[batch, time, 1, channels]` or `[batch, time, N, 1]`, without that axis.
fn join<B: Backend>(parts: Vec<Primitive<B>>) -> Primitive<B> {
    let joined = Primitive::cat(parts, 1);
    let dims = joined.dims();
    joined.reshape([dims[0], dims[1], dims[2] * dims[3]])
}

/// Output and final state.
pub(super) fn forward<B: Backend>(
    arguments: SelectiveArguments<B>,
    spec: &SelectiveSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = arguments.x.dtype();
    let problem = Problem::new(arguments, spec);
    let (mut outputs, mut finals) = (vec![], vec![]);
    for (index, sequence) in problem.sequences.iter().enumerate() {
        let mut state = problem.state(problem.initial_state.as_ref(), index);
        for steps in chunks(sequence) {
            let count = steps.len();
            let (states, _) = problem.states(state, &steps);
            outputs.push((at(&states, &(1..count + 1)) * at(&problem.c, &steps)).sum(2));
            state = at(&states, &(count..count + 1));
        }
        finals.push(state);
    }
    (join(outputs).cast(dtype).0, states_out(finals).0)
}

/// Gradients of all arguments, a single zero for an absent initial state.
///
/// With `ds_t` the gradient of the state after step `t` and `e_t = exp(delta_t a)`:
/// `ds_t = c_t dy_t + e_{t+1} ds_{t+1}`, the same recurrence in reverse; `dx_t = ds_t b_t`, `db_t = x_t ds_t`,
/// `dc_t = s_t dy_t`, and the exponent's gradient `ds_t e_t s_{t-1}` goes to `delta_t` and `a`.
pub(super) fn backward<B: Backend>(
    arguments: SelectiveArguments<B>,
    gradient: FloatTensor<B>,
    of: GradientOf,
    spec: &SelectiveSpec,
) -> SelectiveArguments<B> {
    let dtypes = arguments.dtypes();
    let problem = Problem::new(arguments, spec);
    let Problem { x, delta, a, b, c, .. } = &problem;
    let (output_gradient, state_gradient) = {
        let gradient = Primitive::<B>(gradient).cast(x.dtype());
        match of {
            GradientOf::Output => (gradient.reshape(x.dims()), None),
            GradientOf::FinalState => (x.zeros(x.dims()), Some(states_in(gradient))),
        }
    };

    let (mut dx, mut ddelta, mut db, mut dc, mut initial) = (vec![], vec![], vec![], vec![], vec![]);
    let mut da = a.zeros(a.dims());
    for (index, sequence) in problem.sequences.iter().enumerate() {
        let mut state = problem.state(problem.initial_state.as_ref(), index);
        let mut starts = vec![];
        for steps in chunks(sequence) {
            starts.push(state.clone());
            let (states, _) = problem.states(state, &steps);
            state = at(&states, &(steps.len()..steps.len() + 1));
        }

        let mut own = [(); 4].map(|()| Vec::with_capacity(starts.len()));
        let mut carried = problem.state(state_gradient.as_ref(), index);
        let kept = carried.zeros(carried.dims()).add_scalar(1.0);
        for (steps, start) in chunks(sequence).rev().zip(starts.into_iter().rev()) {
            let count = steps.len();
            let (states, decay) = problem.states(start, &steps);
            let dy = at(&output_gradient, &steps);
            // In reverse order the chunk starts from what comes back from the steps after it.
            let mut decays = vec![kept.clone(); 2];
            if count > 1 {
                decays.insert(0, decay.narrow(1, 1..count));
            }
            let decays = Primitive::cat(decays, 1);
            let gradients = Primitive::cat(vec![at(c, &steps) * dy.clone(), carried], 1);
            let ds = prefix(decays.flip(1), gradients.flip(1)).flip(1).narrow(1, 0..count);
            let through = ds.clone() * decay;
            carried = through.narrow(1, 0..1);
            let exponent = through * at(&states, &(0..count));

            let [dx, ddelta, db, dc] = &mut own;
            dx.push((ds.clone() * at(b, &steps)).sum(2));
            ddelta.push((exponent.clone() * a.clone()).sum(2));
            db.push((ds * at(x, &steps)).sum(3));
            dc.push((at(&states, &(1..count + 1)) * dy).sum(3));
            da = da + (exponent * at(delta, &steps)).sum(1).sum(0);
        }
        for (all, own) in [&mut dx, &mut ddelta, &mut db, &mut dc].into_iter().zip(own) {
            all.extend(own.into_iter().rev());
        }
        initial.push(carried);
    }

    let dims = a.dims();
    SelectiveArguments {
        x: join(dx).0,
        delta: join(ddelta).0,
        a: da.reshape([dims[2], dims[3]]).transpose().0,
        b: join(db).0,
        c: join(dc).0,
        initial_state: if spec.has_initial_state { states_out(initial).0 } else { x.zeros([1]).0 },
    }
    .narrowed(dtypes)
}

/// One step: `y` `[batch, channels]` and the state `[batch, channels, N]`.
pub(super) fn step<B: Backend>(arguments: SelectiveStep<B>) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = arguments.x.dtype();
    let SelectiveStep { x, delta, a, b, c, state } = arguments.widened();
    let state = Primitive::<B>(state);
    let dims = state.dims();
    let (batch, channels, size) = (dims[0], dims[1], dims[2]);
    let of_channel = |x| Primitive::<B>(x).reshape([batch, channels, 1]);
    let of_state = |x| Primitive::<B>(x).reshape([batch, 1, size]);

    let exponents = of_channel(delta) * Primitive::<B>(a).reshape([1, channels, size]);
    let state = state * exponents.exp() + of_channel(x) * of_state(b);
    let y = (state.clone() * of_state(c)).sum(2).reshape([batch, channels]);
    (y.cast(dtype).0, state.0)
}
