//! The short convolution in backend operations.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};

use super::{ConvolutionArguments, ConvolutionSpec};
use crate::{gate::Activation, primitive::Primitive};

/// Where the steps of all sequences stand when each has its `before` earlier inputs in front of it.
///
/// Rows of one sequence need no rearrangement of steps.
struct Layout {
    before: usize,
    /// Lengths of the sequences of one row.
    lengths: Vec<usize>,
}

impl Layout {
    fn new(time: usize, taps: usize, spec: &ConvolutionSpec) -> Self {
        let lengths = match &spec.boundaries {
            Some(boundaries) => boundaries.windows(2).map(|pair| pair[1] - pair[0]).collect(),
            None => vec![time],
        };
        Self { before: taps - 1, lengths }
    }

    /// The steps with their history in front: `[batch, time + before * sequences, channels]`.
    fn extend<B: Backend>(&self, x: &Primitive<B>, state: Option<Primitive<B>>) -> Primitive<B> {
        let dims = x.dims();
        let (batch, channels) = (dims[0], dims[2]);
        let in_front = self.before * self.lengths.len();
        if in_front == 0 {
            return x.clone();
        }
        let history = match state {
            Some(state) => state.reshape([batch, in_front, channels]),
            None => x.zeros([batch, in_front, channels]),
        };
        let source = Primitive::cat(vec![history, x.clone()], 1);
        if self.lengths.len() > 1 { source.select(1, self.order()) } else { source }
    }

    /// For every place of the extended steps its place in `[all histories, all steps]`.
    fn order(&self) -> Vec<usize> {
        let (mut history, mut step) = (0, self.before * self.lengths.len());
        let mut order = Vec::new();
        for length in &self.lengths {
            order.extend(history..history + self.before);
            order.extend(step..step + length);
            history += self.before;
            step += length;
        }
        order
    }

    /// Gradients of the extended steps as gradients of the steps and of the histories.
    fn split<B: Backend>(&self, extended: Primitive<B>) -> (Primitive<B>, Primitive<B>) {
        let dims = extended.dims();
        let (in_front, channels) = (self.before * self.lengths.len(), dims[2]);
        let source = if self.lengths.len() > 1 && in_front > 0 {
            let mut inverse = vec![0; dims[1]];
            for (place, from) in self.order().into_iter().enumerate() {
                inverse[from] = place;
            }
            extended.select(1, inverse)
        } else {
            extended
        };
        let sequences = dims[0] * self.lengths.len();
        let history = match in_front {
            0 => source.zeros([sequences, 0, channels]),
            _ => source.narrow(1, 0..in_front).reshape([sequences, self.before, channels]),
        };
        (source.narrow(1, in_front..dims[1]), history)
    }

    /// The filter's results of the steps themselves: a step's result stands `before` places before
    /// its place among the extended steps, those in between mix two sequences.
    fn keep<B: Backend>(&self, filtered: Primitive<B>) -> Primitive<B> {
        if self.lengths.len() == 1 {
            return filtered;
        }
        let mut place = 0;
        let mut kept = Vec::new();
        for length in &self.lengths {
            kept.extend(place..place + length);
            place += self.before + length;
        }
        filtered.select(1, kept)
    }

    /// The inverse of [`keep`](Self::keep): gradients at the places of the results, 0 in between.
    fn spread<B: Backend>(&self, gradient: Primitive<B>) -> Primitive<B> {
        let count = self.lengths.len();
        if count == 1 {
            return gradient;
        }
        let (mut from, mut mask, mut step) = (Vec::new(), Vec::new(), 0);
        for (index, length) in self.lengths.iter().enumerate() {
            from.extend(step..step + length);
            mask.extend(std::iter::repeat_n(1.0, *length));
            step += length;
            if index + 1 < count {
                from.extend(std::iter::repeat_n(0, self.before));
                mask.extend(std::iter::repeat_n(0.0, self.before));
            }
        }
        let places = from.len();
        let mask = gradient.constant(mask, [1, places, 1]);
        gradient.select(1, from) * mask
    }
}

/// Tap `tap` of every filter, `[1, 1, channels]`.
fn filter_tap<B: Backend>(weight: &Primitive<B>, tap: usize) -> Primitive<B> {
    let channels = weight.dims()[0];
    weight.narrow(1, tap..tap + 1).reshape([1, 1, channels])
}

/// The convolution before its activation.
fn preactivation<B: Backend>(
    extended: &Primitive<B>,
    weight: &Primitive<B>,
    bias: Option<Primitive<B>>,
    layout: &Layout,
) -> Primitive<B> {
    let (channels, taps) = (weight.dims()[0], weight.dims()[1]);
    let places = extended.dims()[1] - layout.before;
    let filtered = (0..taps)
        .map(|tap| extended.narrow(1, tap..tap + places) * filter_tap(weight, tap))
        .reduce(|sum, term| sum + term)
        .expect("a filter has at least one tap");
    let y = layout.keep(filtered);
    match bias {
        Some(bias) => y + bias.reshape([1, 1, channels]),
        None => y,
    }
}

/// The forward pass.
pub(super) fn forward<B: Backend>(
    arguments: ConvolutionArguments<B>,
    spec: &ConvolutionSpec,
) -> FloatTensor<B> {
    let dtype = arguments.x.dtype();
    let arguments = arguments.widened();
    let (x, weight) = (Primitive::<B>(arguments.x), Primitive::<B>(arguments.weight));
    let layout = Layout::new(x.dims()[1], weight.dims()[1], spec);
    let extended = layout.extend(&x, spec.has_state.then_some(Primitive(arguments.state)));
    let y = preactivation(&extended, &weight, spec.has_bias.then_some(Primitive(arguments.bias)), &layout);
    let y = if spec.silu { Activation::Swish.portable_value(y) } else { y };
    y.cast(dtype).0
}

/// Gradients of all arguments, a single zero for what is absent.
pub(super) fn backward<B: Backend>(
    arguments: ConvolutionArguments<B>,
    gradient: FloatTensor<B>,
    spec: &ConvolutionSpec,
) -> ConvolutionArguments<B> {
    let dtypes = arguments.dtypes();
    let arguments = arguments.widened();
    let (x, weight) = (Primitive::<B>(arguments.x), Primitive::<B>(arguments.weight));
    let (channels, taps) = (weight.dims()[0], weight.dims()[1]);
    let layout = Layout::new(x.dims()[1], taps, spec);
    let extended = layout.extend(&x, spec.has_state.then_some(Primitive(arguments.state)));
    let gradient = Primitive::<B>(gradient).cast(x.dtype());
    let gradient = if spec.silu {
        let bias = spec.has_bias.then_some(Primitive(arguments.bias));
        let z = preactivation(&extended, &weight, bias, &layout);
        gradient * Activation::Swish.portable_value_and_slope(z).1
    } else {
        gradient
    };
    let none = || x.zeros([1]);
    let over_steps = |x: Primitive<B>| x.sum(1).sum(0);
    let bias = if spec.has_bias { over_steps(gradient.clone()).reshape([channels]) } else { none() };

    let spread = layout.spread(gradient);
    let places = spread.dims()[1];
    let weights = (0..taps)
        .map(|tap| over_steps(spread.clone() * extended.narrow(1, tap..tap + places)).reshape([channels, 1]))
        .collect();
    let inputs = (0..taps)
        .map(|tap| pad(spread.clone() * filter_tap(&weight, tap), tap, places + layout.before))
        .reduce(|sum, term| sum + term)
        .expect("a filter has at least one tap");
    let (x, state) = layout.split(inputs);
    let state = if spec.has_state { state } else { none() };
    let weight = Primitive::cat(weights, 1).0;
    ConvolutionArguments { x: x.0, weight, bias: bias.0, state: state.0 }.narrowed(dtypes)
}

/// `x` with `before` zeros in front and zeros behind up to `length`, along axis 1.
fn pad<B: Backend>(x: Primitive<B>, before: usize, length: usize) -> Primitive<B> {
    let dims = x.dims();
    let front = (before > 0).then(|| x.zeros([dims[0], before, dims[2]]));
    Primitive::cat(front.into_iter().chain([x]).collect(), 1).pad_end(1, length)
}
