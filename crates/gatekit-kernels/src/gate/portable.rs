//! The gates in backend operations.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};

use super::Activation;
use crate::{
    precision::{narrow, widen},
    primitive::Primitive,
};

/// `x * act(logits)`.
pub(super) fn product<B: Backend>(
    x: FloatTensor<B>,
    logits: FloatTensor<B>,
    activation: Activation,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let [x, logits] = widen::<B, 2>([x, logits]).map(Primitive::<B>);
    (x * activation.portable_value(logits)).cast(dtype).0
}

/// Gradients of `x` and of the logits.
pub(super) fn product_backward<B: Backend>(
    x: FloatTensor<B>,
    logits: FloatTensor<B>,
    gradient: FloatTensor<B>,
    activation: Activation,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtypes = [x.dtype(), logits.dtype()];
    let [x, logits, gradient] = widen::<B, 3>([x, logits, gradient]).map(Primitive::<B>);
    let (value, slope) = activation.portable_value_and_slope(logits);
    let gradients = [gradient.clone() * value, gradient * x * slope];
    narrow::<B, 2>(gradients.map(|gradient| gradient.0), dtypes).into()
}

/// `logsigmoid(z) / normalizer` without its floor, and `exp(-|z|)`.
fn scaled<B: Backend>(z: Primitive<B>, normalizer: f64) -> (Primitive<B>, Primitive<B>) {
    let e = z.clone().abs().neg().exp();
    ((z.clamp_max(0.0) - e.clone().log1p()).scale(1.0 / normalizer), e)
}

/// `max(logsigmoid(z) / normalizer, floor)`.
pub(super) fn log_sigmoid<B: Backend>(
    logits: FloatTensor<B>,
    normalizer: f64,
    floor: Option<f64>,
) -> FloatTensor<B> {
    let dtype = logits.dtype();
    let [z] = widen::<B, 1>([logits]);
    let (gate, _) = scaled::<B>(Primitive(z), normalizer);
    floor.map_or(gate.clone(), |floor| gate.clamp_min(floor)).cast(dtype).0
}

/// Gradient of the logits: `sigmoid(-z) / normalizer` above the floor.
pub(super) fn log_sigmoid_backward<B: Backend>(
    logits: FloatTensor<B>,
    gradient: FloatTensor<B>,
    normalizer: f64,
    floor: Option<f64>,
) -> FloatTensor<B> {
    let dtype = logits.dtype();
    let [z, gradient] = widen::<B, 2>([logits, gradient]).map(Primitive::<B>);
    let (gate, e) = scaled(z.clone(), normalizer);
    let larger = e.clone().add_scalar(1.0).recip();
    let closed = (e * larger.clone()).or_below(&z, 0.0, larger);
    let slope = closed.scale(1.0 / normalizer);
    let slope = match floor {
        Some(floor) => slope * gate.at_least(floor),
        None => slope,
    };
    (gradient * slope).cast(dtype).0
}
