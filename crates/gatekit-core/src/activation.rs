//! Activations that are no gates: feature maps of linear attention, and the exact GELU.

use std::f64::consts::SQRT_2;
use std::fmt;

use burn::tensor::{Tensor, activation::relu};

use crate::common::widen;
use crate::error::ConfigError;
use crate::gate::GateActivation;

/// What linear attention applies to its queries and keys, element by element.
///
/// In configuration files it is its name: `"silu"` (or `"swish"`), `"relu"`, `"elu"`, `"1+elu"`, `"none"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureMap {
    /// `x sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
    /// See [`elu`].
    Elu,
    /// `1 + elu(x)`, positive everywhere: the map of "Transformers are RNNs" (arXiv 2006.16236), eq. 7.
    OnePlusElu,
    /// `x`.
    None,
}

impl FeatureMap {
    /// All maps.
    pub const ALL: [Self; 5] = [Self::Silu, Self::Relu, Self::Elu, Self::OnePlusElu, Self::None];

    /// Reads a name as the type's description lists them.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an unknown name.
    pub fn parse(name: &str) -> Result<Self, ConfigError> {
        let known = Self::ALL.into_iter().find(|map| map.name() == name);
        known.or((name == "swish").then_some(Self::Silu)).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(Self::name).collect();
            ConfigError::new("feature_map", format!("`{name}`"), format!("one of {}", names.join(", ")))
        })
    }

    /// Its name in configuration files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Relu => "relu",
            Self::Elu => "elu",
            Self::OnePlusElu => "1+elu",
            Self::None => "none",
        }
    }

    /// The map of `x`, of any shape.
    pub fn apply<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Silu => GateActivation::Swish.apply(x),
            Self::Relu => relu(x),
            Self::Elu => elu(x),
            Self::OnePlusElu => relu(x.clone()) + x.clamp_max(0.0).exp(),
            Self::None => x,
        }
    }
}

impl fmt::Display for FeatureMap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// `elu(x) = max(x, 0) + exp(min(x, 0)) - 1`, element by element.
///
/// The exponential never sees a positive number, so values and gradients stay finite for any
/// finite `x`. Clevert et al., "Fast and Accurate Deep Network Learning by Exponential Linear
/// Units" (arXiv 1511.07289), eq. 15.
pub fn elu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    relu(x.clone()) + x.clamp_max(0.0).exp().sub_scalar(1.0)
}

/// `gelu(x) = x (1 + erf(x / sqrt 2)) / 2`, element by element, with its exact derivative.
///
/// (The derivative of [`burn::tensor::activation::gelu`] is, on some backends, that of the
/// approximation with tanh.) Half precision is computed in float32. Hendrycks and Gimpel,
/// "Gaussian Error Linear Units" (arXiv 1606.08415), section 2.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let dtype = x.dtype();
    let x = widen(x);
    let share = x.clone().div_scalar(SQRT_2).erf().add_scalar(1.0).mul_scalar(0.5);
    (x * share).cast(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, values};

    const X: [f64; 9] = [-100.0, -3.0, -0.7, -1e-3, 1e-3, 0.4, 2.0, 7.0, 100.0];

    fn by_hand(map: FeatureMap, x: f64) -> f64 {
        match map {
            FeatureMap::Silu => x / (1.0 + (-x).exp()),
            FeatureMap::Relu => x.max(0.0),
            FeatureMap::Elu => x.max(0.0) + x.min(0.0).exp_m1(),
            FeatureMap::OnePlusElu => x.max(0.0) + x.min(0.0).exp(),
            FeatureMap::None => x,
        }
    }

    #[test]
    fn maps_match_their_equations() {
        for device in devices() {
            for map in FeatureMap::ALL {
                let expected: Vec<f64> = X.iter().map(|x| by_hand(map, *x)).collect();
                assert_close(&values(map.apply(float32(&X, [9], &device))), &expected, 1e-6);
                assert_close(&values(map.apply(float64(&X, [9], &device))), &expected, 1e-12);
                check_gradients(&X, [9], &device, |x| map.apply(x));
            }
        }
    }

    #[test]
    fn gradients_are_finite_far_out_and_one_at_zero() {
        for device in devices() {
            let x = float32(&[-1e30, 0.0, 1e30], [3], &device.autodiff()).require_grad();
            let gradients = elu(x.clone()).sum().backward();
            assert_eq!(values(x.grad(&gradients).unwrap()), [0.0, 1.0, 1.0]);
        }
    }

    #[test]
    fn gelu_and_its_derivative_are_exact() {
        // x and gelu(x) from the error function in 30 digits.
        let table = [
            (-6.0, -5.919525870226207e-9),
            (-3.0, -0.004049694094890287),
            (-1.0, -0.15865525393145707),
            (-0.5, -0.15426876936299344),
            (0.0, 0.0),
            (0.5, 0.34573123063700656),
            (1.0, 0.8413447460685429),
            (3.0, 2.99595030590511),
            (30.0, 30.0),
        ];
        let (x, expected): (Vec<f64>, Vec<f64>) = table.into_iter().unzip();
        for device in devices() {
            assert_close(&values(gelu(float64(&x, [9], &device))), &expected, 1e-12);
            assert_close(&values(gelu(float32(&x, [9], &device))), &expected, 1e-6);
            check_gradients(&x, [9], &device, gelu);
        }
    }

    #[test]
    fn names_are_read_back() {
        for map in FeatureMap::ALL {
            assert_eq!(FeatureMap::parse(&map.to_string()).unwrap(), map);
        }
        assert_eq!(FeatureMap::parse("swish").unwrap(), FeatureMap::Silu);
        let error = FeatureMap::parse("2+elu").unwrap_err();
        assert!(error.got.contains("2+elu") && error.need.contains("1+elu"), "{error}");
    }
}
