//! The gate functions on a line of float32 in a CubeCL kernel.

use cubecl::prelude::*;

use super::Activation;

/// `sigmoid(z)` and `sigmoid(-z)`, both accurate relative to their own size, for every `z`.
#[cube]
pub(crate) fn logistic<N: Size>(z: Vector<f32, N>) -> (Vector<f32, N>, Vector<f32, N>) {
    let one = Vector::<f32, N>::new(1.0);
    let e = (-z.abs()).exp();
    let larger = one / (one + e);
    let smaller = e * larger;
    let below = z.less_than(&Vector::new(0.0));
    (select_many(below, smaller, larger), select_many(below, larger, smaller))
}

/// `log(sigmoid(z)) = min(z, 0) - log1p(exp(-|z|))`, for every `z`.
#[cube]
pub(crate) fn log_sigmoid<N: Size>(z: Vector<f32, N>) -> Vector<f32, N> {
    let zero = Vector::<f32, N>::new(0.0);
    let e = (-z.abs()).exp();
    // log1p(e) = 2 atanh(s) with s = e / (2 + e) <= 1/3: the first term left out is below 2e-9.
    let s = e / (Vector::new(2.0) + e);
    let q = s * s;
    let mut p = Vector::<f32, N>::new(1.0 / 15.0);
    p = p * q + Vector::new(1.0 / 13.0);
    p = p * q + Vector::new(1.0 / 11.0);
    p = p * q + Vector::new(1.0 / 9.0);
    p = p * q + Vector::new(1.0 / 7.0);
    p = p * q + Vector::new(1.0 / 5.0);
    p = p * q + Vector::new(1.0 / 3.0);
    p = p * q + Vector::new(1.0);
    let least = select_many(z.less_than(&zero), z, zero);
    least - Vector::new(2.0) * s * p
}

/// The gate values.
#[cube]
pub(crate) fn value<N: Size>(z: Vector<f32, N>, #[comptime] activation: Activation) -> Vector<f32, N> {
    match comptime![activation] {
        Activation::Sigmoid => logistic::<N>(z).0,
        Activation::Swish => z * logistic::<N>(z).0,
        Activation::Relu => select_many(z.greater_than(&Vector::new(0.0)), z, Vector::new(0.0)),
    }
}

/// The gate values and their derivatives.
#[cube]
pub(crate) fn value_and_slope<N: Size>(
    z: Vector<f32, N>,
    #[comptime] activation: Activation,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let one = Vector::<f32, N>::new(1.0);
    let zero = Vector::<f32, N>::new(0.0);
    match comptime![activation] {
        Activation::Sigmoid => {
            let (open, closed) = logistic::<N>(z);
            (open, open * closed)
        }
        Activation::Swish => {
            let (open, closed) = logistic::<N>(z);
            (z * open, open * (z * closed + one))
        }
        Activation::Relu => {
            let above = z.greater_than(&zero);
            (select_many(above, z, zero), select_many(above, one, zero))
        }
    }
}
