//! The elementwise recurrence as a parallel prefix.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};

use crate::{
    precision::{narrow, widen},
    prefix::prefix,
    primitive::Primitive,
    scan::{ElementwiseSpec, GradientOf},
};

/// First and last step of every sequence: all rows share one, packed rows have several.
fn sequences(spec: &ElementwiseSpec, time: usize) -> Vec<(usize, usize)> {
    match &spec.boundaries {
        Some(boundaries) => boundaries.windows(2).map(|pair| (pair[0], pair[1])).collect(),
        None => vec![(0, time)],
    }
}

/// `[1, time, 1]`: 0 at the given steps, 1 elsewhere.
fn cleared<B: Backend>(like: &Primitive<B>, steps: impl Iterator<Item = usize>) -> Primitive<B> {
    let time = like.dims()[1];
    let mut values = vec![1.0; time];
    steps.for_each(|step| values[step] = 0.0);
    like.constant(values, [1, time, 1])
}

/// States `[batch or segments, dim]` placed at step `place` of their sequence, 0 elsewhere:
/// `[batch, time, dim]`.
fn placed<B: Backend>(
    states: &Primitive<B>,
    x: &Primitive<B>,
    spec: &ElementwiseSpec,
    place: fn(&(usize, usize)) -> usize,
) -> Primitive<B> {
    let dims = x.dims();
    let (batch, time, dim) = (dims[0], dims[1], dims[2]);
    let mut parts = vec![];
    let mut end = 0;
    for (index, sequence) in sequences(spec, time).iter().enumerate() {
        let step = place(sequence);
        if step > end {
            parts.push(x.zeros([batch, step - end, dim]));
        }
        let own = match &spec.boundaries {
            Some(_) => states.narrow(0, index..index + 1),
            None => states.clone(),
        };
        parts.push(own.reshape([batch, 1, dim]));
        end = step + 1;
    }
    if end < time {
        parts.push(x.zeros([batch, time - end, dim]));
    }
    Primitive::cat(parts, 1)
}

/// The steps `place` of all sequences: the inverse of [`placed`].
fn taken<B: Backend>(
    x: &Primitive<B>,
    spec: &ElementwiseSpec,
    place: fn(&(usize, usize)) -> usize,
) -> Primitive<B> {
    let dims = x.dims();
    let (batch, dim) = (dims[0], dims[2]);
    let parts = sequences(spec, dims[1])
        .iter()
        .map(|sequence| {
            let step = place(sequence);
            x.narrow(1, step..step + 1).reshape([batch, dim])
        })
        .collect();
    Primitive::cat(parts, 0)
}

fn first(sequence: &(usize, usize)) -> usize {
    sequence.0
}

fn last(sequence: &(usize, usize)) -> usize {
    sequence.1 - 1
}

/// All `h_t` and the final states.
pub(crate) fn elementwise_forward<B: Backend>(
    x: FloatTensor<B>,
    log_decay: FloatTensor<B>,
    initial_state: FloatTensor<B>,
    spec: &ElementwiseSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = x.dtype();
    let [x, log_decay, initial_state] = widen::<B, 3>([x, log_decay, initial_state]);
    let x = Primitive::<B>(x);
    let a = Primitive::<B>(log_decay).exp();
    let starts = sequences(spec, x.dims()[1]);
    // A sequence starts from its own state alone: that state enters with its first step.
    let x = if spec.has_initial_state {
        x.clone() + a.clone() * placed(&Primitive(initial_state), &x, spec, first)
    } else {
        x
    };
    let a = a.clone() * cleared(&a, starts.iter().map(first));
    let h = prefix(a, x);
    let final_state = taken(&h, spec, last);
    (h.cast(dtype).0, final_state.0)
}

/// Gradients of `x`, the log decay and the initial state.
///
/// `dh_t = do_t + a_{t+1} dh_{t+1}` is the same recurrence in reverse; `dx = dh`,
/// `dg_t = dh_t a_t h_{t-1}`, `dh_0 = a_1 dh_1`.
pub(crate) fn elementwise_backward<B: Backend>(
    output: FloatTensor<B>,
    log_decay: FloatTensor<B>,
    initial_state: FloatTensor<B>,
    gradient: FloatTensor<B>,
    of: GradientOf,
    spec: &ElementwiseSpec,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    // The output is of the type of `x`, as the gradient of `x` is to be.
    let dtypes = [output.dtype(), log_decay.dtype(), initial_state.dtype()];
    let [output, log_decay, initial_state, gradient] =
        widen::<B, 4>([output, log_decay, initial_state, gradient]);
    let h = Primitive::<B>(output);
    let a = Primitive::<B>(log_decay).exp();
    let time = h.dims()[1];
    let gradient = match of {
        GradientOf::Output => Primitive::<B>(gradient),
        GradientOf::FinalState => placed(&Primitive::<B>(gradient), &h, spec, last),
    };

    let starts = sequences(spec, time);
    let inner = a.clone() * cleared(&a, starts.iter().map(first));
    // Step t hands a_{t+1} of its gradient on within its sequence.
    let dx = prefix(earlier(&inner).flip(1), gradient.flip(1)).flip(1);

    let start_gradient = a * dx.clone();
    let mut previous = delayed(&h) * cleared(&h, starts.iter().map(first));
    if spec.has_initial_state {
        previous = previous + placed(&Primitive(initial_state), &h, spec, first);
    }
    let log_decay = start_gradient.clone() * previous;
    let initial = if spec.has_initial_state { taken(&start_gradient, spec, first).0 } else { h.zeros([1]).0 };
    narrow::<B, 3>([dx.0, log_decay.0, initial], dtypes).into()
}

/// Every step moved one step earlier, a zero at the end.
fn earlier<B: Backend>(x: &Primitive<B>) -> Primitive<B> {
    match x.dims()[1] {
        1 => x.zeros(x.dims()),
        time => x.narrow(1, 1..time).pad_end(1, time),
    }
}

/// Every step moved one step later, a zero at the start.
fn delayed<B: Backend>(x: &Primitive<B>) -> Primitive<B> {
    let mut dims = x.dims();
    let time = dims[1];
    dims[1] = 1;
    let start = x.zeros(dims);
    match time {
        1 => start,
        _ => Primitive::cat(vec![start, x.narrow(1, 0..time - 1)], 1),
    }
}
