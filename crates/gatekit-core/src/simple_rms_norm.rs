//! Root-mean-square normalisation without a weight.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::config::ModuleConfig;
use crate::error::ConfigError;
use crate::norm::rms_normalize;

/// Configuration of [`SimpleRmsNorm`].
#[derive(Config, Debug)]
pub struct SimpleRmsNormConfig {
    /// Added to the mean square, above 0. Default 1e-6.
    #[config(default = 1e-6)]
    pub eps: f64,
}

impl ModuleConfig for SimpleRmsNormConfig {
    type Module = SimpleRmsNorm;

    fn try_init(&self, _: &Device) -> Result<SimpleRmsNorm, ConfigError> {
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            return Err(ConfigError::new("eps", self.eps, "a finite number above 0"));
        }
        Ok(SimpleRmsNorm { eps: self.eps })
    }
}

/// `y = x / sqrt(mean(x^2) + eps)`, the mean over the last axis: a norm without parameters.
///
/// Half-precision inputs are normalised in float32 and returned in their own type. Qin et al.,
/// TransNormerLLM (arXiv 2307.14995), eq. 12 ("SRMSNorm").
#[derive(Module, Debug)]
pub struct SimpleRmsNorm {
    /// Added to the mean square.
    pub eps: f64,
}

impl SimpleRmsNorm {
    /// `[.., dim]` to `[.., dim]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        rms_normalize(x, self.eps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};
    use burn::tensor::DType;

    #[test]
    fn matches_its_equation_and_has_no_parameters() {
        let x = ramp(12, 2.0);
        let expected: Vec<f64> = (x.chunks(4))
            .flat_map(|row| {
                let mean = row.iter().map(|x| x * x).sum::<f64>() / 4.0;
                row.iter().map(move |x| x / (mean + 1e-2).sqrt())
            })
            .collect();
        for device in devices() {
            let norm = SimpleRmsNormConfig::new().with_eps(1e-2).init(&device);
            assert_eq!(norm.num_params(), 0);
            assert_close(&values(norm.forward(float32(&x, [3, 4], &device))), &expected, 1e-6);
            let weight = float64(&ramp(12, 1.0), [3, 4], &device);
            check_gradients(&x, [3, 4], &device, |x| norm.forward(x) * weight.clone());
        }
    }

    #[test]
    fn zeros_stay_zero_and_half_precision_does_not_overflow() {
        for device in devices() {
            let norm = SimpleRmsNormConfig::new().init(&device);
            let zero = float32(&[0.0; 4], [1, 4], &device.clone().autodiff()).require_grad();
            let y = norm.forward(zero.clone());
            let gradients = y.clone().sum().backward();
            assert_eq!(values(y), [0.0; 4]);
            assert!(values(zero.grad(&gradients).unwrap()).iter().all(|slope| slope.is_finite()));
            if device.supports_dtype(DType::F16) {
                // The squares are beyond the largest half-precision number.
                let large = float32(&[3000.0, -3000.0], [1, 2], &device).cast(DType::F16);
                assert_close(&values(norm.forward(large)), &[1.0, -1.0], 1e-3);
            }
        }
    }

    #[test]
    fn refuses_an_epsilon_that_is_not_positive() {
        let device = devices().remove(0);
        for eps in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(SimpleRmsNormConfig::new().with_eps(eps).try_init(&device).unwrap_err().field, "eps");
        }
    }
}
