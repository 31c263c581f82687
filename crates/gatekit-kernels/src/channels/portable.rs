//! The normalisation of channels in backend operations.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};

use super::{ChannelArguments, ChannelNormSpec};
use crate::{
    precision::{cast, widen},
    primitive::Primitive,
};

/// Means over batch and places, `[1, channels, 1]`.
fn means<B: Backend>(x: Primitive<B>) -> Primitive<B> {
    x.mean(2).mean(0)
}

/// Mean and variance.
pub(super) fn statistics<B: Backend>(x: FloatTensor<B>) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = x.dtype();
    let [x] = widen::<B, 1>([x]);
    let x = Primitive::<B>(x);
    let channels = x.dims()[1];
    let mean = means(x.clone());
    let away = x - mean.clone();
    let variance = means(away.clone() * away);
    let flat = |values: Primitive<B>| values.reshape([channels]).cast(dtype).0;
    (flat(mean), flat(variance))
}

/// The arguments as the passes take them.
struct Parts<B: Backend> {
    /// `(x - mean) / sqrt(variance + epsilon)`.
    normal: Primitive<B>,
    /// `gamma / sqrt(variance + epsilon)`, `[1, channels, 1]`.
    scale: Primitive<B>,
    /// What the activation is applied to.
    before: Primitive<B>,
}

impl<B: Backend> Parts<B> {
    fn new(arguments: ChannelArguments<B>, spec: ChannelNormSpec) -> Self {
        let ChannelArguments { x, gamma, beta, mean, variance } = arguments;
        let [x, gamma, beta, mean, variance] =
            widen::<B, 5>([x, gamma, beta, mean, variance]).map(Primitive::<B>);
        let channels = x.dims()[1];
        let [gamma, beta, mean, variance] =
            [gamma, beta, mean, variance].map(|values| values.reshape([1, channels, 1]));
        let inverse = variance.add_scalar(spec.epsilon).sqrt().recip();
        let normal = (x - mean) * inverse.clone();
        let before = normal.clone() * gamma.clone() + beta;
        Self { normal, scale: gamma * inverse, before }
    }
}

/// The forward pass.
pub(super) fn forward<B: Backend>(arguments: ChannelArguments<B>, spec: ChannelNormSpec) -> FloatTensor<B> {
    let dtype = arguments.x.dtype();
    let before = Parts::new(arguments, spec).before;
    let y = match spec.activation {
        Some(activation) => activation.portable_value(before),
        None => before,
    };
    y.cast(dtype).0
}

/// Gradients of `x`, `gamma` and `beta`.
pub(super) fn backward<B: Backend>(
    arguments: ChannelArguments<B>,
    gradient: FloatTensor<B>,
    spec: ChannelNormSpec,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let dtypes = [arguments.x.dtype(), arguments.gamma.dtype(), arguments.beta.dtype()];
    let Parts { normal, scale, before } = Parts::new(arguments, spec);
    let gradient = Primitive::<B>(gradient).cast(normal.dtype());
    let gradient = match spec.activation {
        Some(activation) => gradient * activation.portable_value_and_slope(before).1,
        None => gradient,
    };
    let dims = normal.dims();
    let count = (dims[0] * dims[2]) as f64;
    let (of_beta, of_gamma) = (means(gradient.clone()), means(gradient.clone() * normal.clone()));
    let of_x = match spec.of_x {
        true => scale * (gradient - of_beta.clone() - normal * of_gamma.clone()),
        false => scale * gradient,
    };
    let flat = |values: Primitive<B>, dtype| values.scale(count).reshape([dims[1]]).cast(dtype).0;
    (cast::<B>(of_x.0, dtypes[0]), flat(of_gamma, dtypes[1]), flat(of_beta, dtypes[2]))
}

/// `scale (base + refined (1 + spatial) + gate guidance) + shift`.
pub(super) fn merge<B: Backend>(maps: [FloatTensor<B>; 5], rows: [FloatTensor<B>; 2]) -> FloatTensor<B> {
    let [base, refined, spatial, gate, guidance] = maps.map(Primitive::<B>);
    let channels = base.dims()[1];
    let [scale, shift] = rows.map(|row| Primitive::<B>(row).reshape([1, channels, 1]));
    let sum = base + refined * spatial.add_scalar(1.0) + gate * guidance;
    (sum * scale + shift).0
}

/// `(1 + spatial) sum_m weights_m x_m`.
pub(super) fn mix<B: Backend>(
    x: FloatTensor<B>,
    weights: FloatTensor<B>,
    spatial: FloatTensor<B>,
) -> FloatTensor<B> {
    let (x, weights) = (Primitive::<B>(x), Primitive::<B>(weights));
    let groups = weights.dims()[1];
    let channels = x.dims()[1] / groups;
    let part = |m: usize| x.narrow(1, m * channels..(m + 1) * channels) * weights.narrow(1, m..m + 1);
    let sum = (1..groups).fold(part(0), |sum, m| sum + part(m));
    (sum * Primitive::<B>(spatial).add_scalar(1.0)).0
}
