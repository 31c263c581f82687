//! The gates in backend operations.

use burn::backend::{Backend, tensor::FloatTensor};

use super::Activation;
use crate::primitive::Primitive;

/// `x * act(logits)`.
pub(super) fn product<B: Backend>(
    x: FloatTensor<B>,
    logits: FloatTensor<B>,
    activation: Activation,
) -> FloatTensor<B> {
    (Primitive::<B>(x) * activation.portable_value(Primitive(logits))).0
}

/// Gradients of `x` and of the logits.
pub(super) fn product_backward<B: Backend>(
    x: FloatTensor<B>,
    logits: FloatTensor<B>,
    gradient: FloatTensor<B>,
    activation: Activation,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let gradient = Primitive::<B>(gradient);
    let (value, slope) = activation.portable_value_and_slope(Primitive(logits));
    ((gradient.clone() * value).0, (gradient * Primitive(x) * slope).0)
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
    let (gate, _) = scaled::<B>(Primitive(logits), normalizer);
    floor.map_or(gate.clone(), |floor| gate.clamp_min(floor)).0
}

/// Gradient of the logits: `sigmoid(-z) / normalizer` above the floor.
pub(super) fn log_sigmoid_backward<B: Backend>(
    logits: FloatTensor<B>,
    gradient: FloatTensor<B>,
    normalizer: f64,
    floor: Option<f64>,
) -> FloatTensor<B> {
    let z = Primitive::<B>(logits);
    let (gate, e) = scaled(z.clone(), normalizer);
    let larger = e.clone().add_scalar(1.0).recip();
    let closed = (e * larger.clone()).or_below(&z, 0.0, larger);
    let slope = closed.scale(1.0 / normalizer);
    let slope = match floor {
        Some(floor) => slope * gate.at_least(floor),
        None => slope,
    };
    (Primitive(gradient) * slope).0
}
