//! The norm in backend operations.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};

use super::{NormArguments, NormSpec};
use crate::{precision::cast, primitive::Primitive};

/// `[.., dim]` as `[rows, dim]`, and the shape it had.
fn rows<B: Backend>(x: FloatTensor<B>) -> (Primitive<B>, Vec<usize>) {
    let x = Primitive::<B>(x);
    let dims = x.dims();
    let (dim, leading) = dims.split_last().expect("a norm runs over an axis");
    (x.reshape([leading.iter().product(), *dim]), dims)
}

/// `x / sqrt(mean(x^2) + eps)`, and the factor on every row `[rows, 1]`.
fn normalised<B: Backend>(x: Primitive<B>, eps: f64) -> (Primitive<B>, Primitive<B>) {
    let inverse = (x.clone() * x.clone()).mean(1).add_scalar(eps).sqrt().recip();
    (x * inverse.clone(), inverse)
}

/// The forward pass.
pub(super) fn forward<B: Backend>(arguments: NormArguments<B>, spec: NormSpec) -> FloatTensor<B> {
    let dtype = arguments.x.dtype();
    let arguments = arguments.widened();
    let (x, dims) = rows::<B>(arguments.x);
    let dim = x.dims()[1];
    let (x, _) = normalised(x, spec.eps);
    let y = x * Primitive(arguments.weight).reshape([1, dim]);
    match spec.gate {
        Some(activation) => y * activation.portable_value(rows::<B>(arguments.logits).0),
        None => y,
    }
    .reshape(dims)
    .cast(dtype)
    .0
}

/// Gradients of `x`, the weight and the logits.
///
/// With `n = x / r` for the root mean square `r` and `u` the gradient of `n * weight`:
/// `dx = (u w - n mean(u w n)) / r` and `dw = sum u n` over rows.
pub(super) fn backward<B: Backend>(
    arguments: NormArguments<B>,
    gradient: FloatTensor<B>,
    spec: NormSpec,
) -> NormArguments<B> {
    let dtypes = arguments.dtypes();
    let arguments = arguments.widened();
    let gradient = cast::<B>(gradient, arguments.x.dtype());
    let (x, dims) = rows::<B>(arguments.x);
    let dim = x.dims()[1];
    let (n, inverse) = normalised(x, spec.eps);
    let weight = Primitive::<B>(arguments.weight).reshape([1, dim]);
    let (gradient, _) = rows::<B>(gradient);
    let (u, logits) = match spec.gate {
        Some(activation) => {
            let (value, slope) = activation.portable_value_and_slope(rows::<B>(arguments.logits).0);
            let logits = gradient.clone() * n.clone() * weight.clone() * slope;
            (gradient * value, logits.reshape(dims.clone()))
        }
        None => {
            let none = gradient.zeros([1]);
            (gradient, none)
        }
    };
    let weight_gradient = (u.clone() * n.clone()).sum(0).reshape([dim]);
    let u = u * weight;
    let along = (u.clone() * n.clone()).mean(1);
    let x = (u - n * along) * inverse;
    NormArguments { x: x.reshape(dims).0, weight: weight_gradient.0, logits: logits.0 }.narrowed(dtypes)
}
