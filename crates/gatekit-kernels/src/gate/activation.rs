//! The gate functions: in backend operations, and for one float of a fused loop.

use burn::backend::Backend;

use crate::primitive::Primitive;
#[cfg(any(feature = "ndarray", feature = "flex"))]
use crate::{
    loops::{Loop, logistic},
    simd::Arithmetic,
};

/// How logits `z` become gate values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `1 / (1 + exp(-z))`.
    Sigmoid,
    /// `z sigmoid(z)`, also called SiLU.
    Swish,
    /// `max(z, 0)`; its slope at 0 is 0.
    Relu,
}

impl Activation {
    /// The gate values.
    pub(crate) fn portable_value<B: Backend>(self, z: Primitive<B>) -> Primitive<B> {
        match self {
            Self::Sigmoid => portable_logistic(z).0,
            Self::Swish => z.clone() * portable_logistic(z).0,
            Self::Relu => z.clamp_min(0.0),
        }
    }

    /// The gate values and their derivatives.
    pub(crate) fn portable_value_and_slope<B: Backend>(
        self,
        z: Primitive<B>,
    ) -> (Primitive<B>, Primitive<B>) {
        match self {
            Self::Sigmoid => {
                let (open, closed) = portable_logistic(z);
                (open.clone(), open * closed)
            }
            Self::Swish => {
                let (open, closed) = portable_logistic(z.clone());
                (z.clone() * open.clone(), open * (z * closed).add_scalar(1.0))
            }
            Self::Relu => (z.clone().clamp_min(0.0), z.positive()),
        }
    }
}

/// `sigmoid(z)` and `sigmoid(-z)`, both accurate relative to their own size.
fn portable_logistic<B: Backend>(z: Primitive<B>) -> (Primitive<B>, Primitive<B>) {
    let e = z.clone().abs().neg().exp();
    let larger = e.clone().add_scalar(1.0).recip();
    let smaller = e * larger.clone();
    let open = larger.clone().or_below(&z, 0.0, smaller.clone());
    (open, smaller.or_below(&z, 0.0, larger))
}

/// A gate function on one float.
#[cfg(any(feature = "ndarray", feature = "flex"))]
pub(crate) trait Gate {
    /// Whether there is a gate at all.
    const IS_GATE: bool = true;

    /// The gate value.
    fn value<A: Arithmetic>(z: f32) -> f32;

    /// The gate value and its derivative.
    fn value_and_slope<A: Arithmetic>(z: f32) -> (f32, f32);
}

/// A loop over slices that passes a gate.
#[cfg(any(feature = "ndarray", feature = "flex"))]
pub(crate) trait GatedLoop {
    /// Runs it. Implementations are `#[inline(always)]`.
    fn run<A: Arithmetic, G: Gate>(self);
}

/// A [`GatedLoop`] with its activation; `None` is no gate: the factor 1.
#[cfg(any(feature = "ndarray", feature = "flex"))]
pub(crate) struct Gated<L>(pub Option<Activation>, pub L);

#[cfg(any(feature = "ndarray", feature = "flex"))]
impl<L: GatedLoop> Loop for Gated<L> {
    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        match self.0 {
            None => self.1.run::<A, Open>(),
            Some(Activation::Sigmoid) => self.1.run::<A, Sigmoid>(),
            Some(Activation::Swish) => self.1.run::<A, Swish>(),
            Some(Activation::Relu) => self.1.run::<A, Relu>(),
        }
    }
}

#[cfg(any(feature = "ndarray", feature = "flex"))]
pub(crate) use functions::{Open, Relu, Sigmoid, Swish};

#[cfg(any(feature = "ndarray", feature = "flex"))]
mod functions {
    use super::{Arithmetic, Gate, logistic};

    pub(crate) struct Open;
    pub(crate) struct Sigmoid;
    pub(crate) struct Swish;
    pub(crate) struct Relu;

    impl Gate for Open {
        const IS_GATE: bool = false;

        #[inline(always)]
        fn value<A: Arithmetic>(_: f32) -> f32 {
            1.0
        }

        #[inline(always)]
        fn value_and_slope<A: Arithmetic>(_: f32) -> (f32, f32) {
            (1.0, 0.0)
        }
    }

    impl Gate for Sigmoid {
        #[inline(always)]
        fn value<A: Arithmetic>(z: f32) -> f32 {
            logistic::<A>(z).0
        }

        #[inline(always)]
        fn value_and_slope<A: Arithmetic>(z: f32) -> (f32, f32) {
            let (open, closed) = logistic::<A>(z);
            (open, open * closed)
        }
    }

    impl Gate for Swish {
        #[inline(always)]
        fn value<A: Arithmetic>(z: f32) -> f32 {
            z * logistic::<A>(z).0
        }

        #[inline(always)]
        fn value_and_slope<A: Arithmetic>(z: f32) -> (f32, f32) {
            let (open, closed) = logistic::<A>(z);
            (z * open, open * A::mul_add(z, closed, 1.0))
        }
    }

    impl Gate for Relu {
        #[inline(always)]
        fn value<A: Arithmetic>(z: f32) -> f32 {
            if z <= 0.0 { 0.0 } else { z }
        }

        #[inline(always)]
        fn value_and_slope<A: Arithmetic>(z: f32) -> (f32, f32) {
            if z <= 0.0 { (0.0, 0.0) } else { (z, 1.0) }
        }
    }
}
