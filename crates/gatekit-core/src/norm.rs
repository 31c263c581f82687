//! Root-mean-square normalisation, alone and followed by an output gate, and L2 normalisation.

use burn::config::Config;
use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::tensor::{Device, Tensor};
use gatekit_kernels::gate::Activation;
use gatekit_kernels::norm::rms_norm;

use crate::common::{assert_last_axis, widen};
use crate::config::ModuleConfig;
use crate::error::ConfigError;
use crate::gate::{GateActivation, output_gate};

/// Configuration of [`RmsNorm`].
#[derive(Config, Debug)]
pub struct RmsNormConfig {
    /// Channels of the last axis, at least 1.
    pub dim: usize,
    /// Added to the mean square, above 0. Default 1e-5.
    #[config(default = 1e-5)]
    pub eps: f64,
    /// The weight is stored minus 1, so weight decay draws the scale to 1. Default false.
    #[config(default = false)]
    pub zero_centered: bool,
}

impl ModuleConfig for RmsNormConfig {
    type Module = RmsNorm;

    fn try_init(&self, device: &Device) -> Result<RmsNorm, ConfigError> {
        check(self.dim, self.eps)?;
        let start = if self.zero_centered { Initializer::Zeros } else { Initializer::Ones };
        let weight = start.init([self.dim], device);
        Ok(RmsNorm { weight, eps: self.eps, zero_centered: self.zero_centered })
    }
}

/// `y = x / sqrt(mean(x^2) + eps) * weight`, the mean over the last axis.
///
/// The weight starts at 1; zero-centred, the factor is `1 + weight` (in at least float32) and the
/// weight starts at 0, as in Gemma and Qwen3-Next. Half-precision inputs are normalised in float32 and returned in their
/// own type. Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), eq. 4.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct RmsNorm {
    /// Scale of each channel, `[dim]`.
    pub weight: Param<Tensor<1>>,
    /// Added to the mean square.
    pub eps: f64,
    /// Whether the factor is `1 + weight`.
    pub zero_centered: bool,
}

impl RmsNorm {
    /// `[.., dim]` to `[.., dim]`.
    ///
    /// # Panics
    ///
    /// When the last axis of `x` does not have `dim` channels.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let weight = self.weight.val();
        let weight = if self.zero_centered { widen(weight).add_scalar(1.0) } else { weight };
        scaled(x, weight, self.eps, None)
    }
}

/// Configuration of [`GatedRmsNorm`].
#[derive(Config, Debug)]
pub struct GatedRmsNormConfig {
    /// Channels of the last axis, at least 1.
    pub dim: usize,
    /// Added to the mean square, above 0. Default 1e-5.
    #[config(default = 1e-5)]
    pub eps: f64,
    /// Activation of the gate. Default swish.
    #[config(default = "GateActivation::Swish")]
    pub activation: GateActivation,
}

impl ModuleConfig for GatedRmsNormConfig {
    type Module = GatedRmsNorm;

    fn try_init(&self, device: &Device) -> Result<GatedRmsNorm, ConfigError> {
        check(self.dim, self.eps)?;
        self.activation.check("activation")?;
        Ok(GatedRmsNorm {
            weight: Initializer::Ones.init([self.dim], device),
            eps: self.eps,
            activation: self.activation,
        })
    }
}

/// `y = x / sqrt(mean(x^2) + eps) * weight * act(gate_logits)`: the output gate of linear attention.
///
/// The norm runs over the last axis (one head's channels) and its weight, which starts at 1, is
/// shared by all heads. Gated Linear Attention (arXiv 2312.06635) uses swish, Kimi Linear (arXiv
/// 2510.26692) sigmoid. Half-precision inputs are computed in float32.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct GatedRmsNorm {
    /// Scale of each channel, `[dim]`.
    pub weight: Param<Tensor<1>>,
    /// Added to the mean square.
    pub eps: f64,
    /// Activation of the gate.
    #[module(skip)]
    pub activation: GateActivation,
}

impl GatedRmsNorm {
    /// `x` and `gate_logits` `[.., dim]` to `[.., dim]`; without logits it is a plain [`RmsNorm`].
    ///
    /// # Panics
    ///
    /// When the last axis of `x` does not have `dim` channels, or the logits do not broadcast onto `x`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>, gate_logits: Option<Tensor<D>>) -> Tensor<D> {
        let (dtype, weight) = (x.dtype(), self.weight.val());
        match (gate_logits, self.activation.fused()) {
            (None, _) => scaled(x, weight, self.eps, None),
            (Some(logits), Some(activation)) if logits.dims() == x.dims() => {
                scaled(x, weight, self.eps, Some((logits, activation)))
            }
            // An activation of its own is computed before the result is rounded.
            (Some(logits), _) => {
                let normalised = scaled(widen(x), weight, self.eps, None);
                output_gate(normalised, widen(logits), self.activation).cast(dtype)
            }
        }
    }
}

/// `x / sqrt(sum(x^2) + 1e-6)` over the last axis: the normalisation of queries and keys in delta rules.
///
/// A zero vector stays zero, with finite gradients. Half-precision inputs are computed in float32.
/// Source: flash-linear-attention's `l2norm`, eps included.
pub fn l2_normalize<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let dtype = x.dtype();
    let x = widen(x);
    let inverse = x.clone().square().sum_dim(D - 1).add_scalar(1e-6).sqrt().recip();
    (x * inverse).cast(dtype)
}

/// `x / sqrt(mean(x^2) + eps)` over the last axis: the norm without a weight.
///
/// A zero vector stays zero. Half-precision inputs are computed in float32 and returned in their own
/// type.
///
/// # Panics
///
/// When the last axis is empty.
pub fn rms_normalize<const D: usize>(x: Tensor<D>, eps: f64) -> Tensor<D> {
    let dim = x.dims()[D - 1];
    assert!(dim > 0, "rms_normalize: the last axis of `x` {:?} is empty", x.dims());
    let weight = Tensor::ones([dim], (&x.device(), x.dtype()));
    rms_norm(x, weight, eps, None)
}

/// The norm, summed in at least float32, with a gate of the shape of `x` if given.
fn scaled<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    eps: f64,
    gate: Option<(Tensor<D>, Activation)>,
) -> Tensor<D> {
    let [dim] = weight.dims();
    assert_last_axis("RMS norm", x.dims(), dim);
    rms_norm(x, weight, eps, gate)
}

fn check(dim: usize, eps: f64) -> Result<(), ConfigError> {
    if dim == 0 {
        return Err(ConfigError::new("dim", dim, "at least 1"));
    }
    if !(eps > 0.0 && eps.is_finite()) {
        return Err(ConfigError::new("eps", eps, "a finite number above 0"));
    }
    Ok(())
}

impl ModuleDisplay for RmsNorm {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [dim] = self.weight.shape().dims();
        let content = content.add("dim", &dim).add("eps", &self.eps);
        match self.zero_centered {
            true => content.add("zero_centered", &true).optional(),
            false => content.optional(),
        }
    }
}

impl ModuleDisplay for GatedRmsNorm {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [dim] = self.weight.shape().dims();
        content
            .add("dim", &dim)
            .add("eps", &self.eps)
            .add("activation", &self.activation.to_string())
            .optional()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float64, ramp, values};
    use burn::tensor::{DType, TensorData};

    fn expected(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
        x.chunks(weight.len())
            .flat_map(|row| {
                let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
                row.iter().zip(weight).map(move |(x, w)| x / (mean + eps).sqrt() * w)
            })
            .collect()
    }

    #[test]
    fn matches_a_computation_by_hand() {
        let (x, weight) = (ramp(24, 1.3), ramp(4, 0.4));
        for device in devices() {
            let mut norm = RmsNormConfig::new(4).with_eps(1e-3).init(&device);
            norm.weight = Param::from_data(TensorData::new(weight.clone(), [4]), &device);
            let input = Tensor::<3>::from_data(TensorData::new(x.clone(), [2, 3, 4]), &device);
            assert_close(&values(norm.forward(input)), &expected(&x, &weight, 1e-3), 1e-6);
        }
    }

    #[test]
    fn zero_centred_weights_scale_by_one_more() {
        let (x, weight) = (ramp(24, 1.3), ramp(4, 0.4));
        let shifted: Vec<f64> = weight.iter().map(|weight| weight + 1.0).collect();
        for device in devices() {
            let mut norm = RmsNormConfig::new(4).with_eps(1e-3).with_zero_centered(true).init(&device);
            let input = Tensor::<3>::from_data(TensorData::new(x.clone(), [2, 3, 4]), &device);
            assert_close(&values(norm.forward(input.clone())), &expected(&x, &[1.0; 4], 1e-3), 1e-6);
            norm.weight = Param::from_data(TensorData::new(weight.clone(), [4]), &device);
            assert_close(&values(norm.forward(input)), &expected(&x, &shifted, 1e-3), 1e-6);
            assert_eq!(format!("{norm}"), "RmsNorm {dim: 4, eps: 0.001, zero_centered: true, params: 4}");
        }
    }

    #[test]
    fn the_norm_without_a_weight_is_that_with_ones() {
        let x = ramp(24, 1.3);
        for device in devices() {
            let input = float64(&x, [2, 3, 4], &device);
            assert_close(&values(rms_normalize(input, 1e-3)), &expected(&x, &[1.0; 4], 1e-3), 1e-12);
            assert_eq!(values(rms_normalize(Tensor::<2>::zeros([1, 3], &device), 1e-7)), [0.0; 3]);
            check_gradients(&x, [2, 3, 4], &device, |x| {
                rms_normalize(x, 1e-3) * float64(&ramp(24, 0.8), [2, 3, 4], &device)
            });
        }
    }

    #[test]
    fn gate_multiplies_the_normalised_values() {
        let (x, logits, weight) = (ramp(12, 1.3), ramp(12, 3.0), ramp(4, 0.4));
        for device in devices() {
            let mut norm = GatedRmsNormConfig::new(4).with_activation(GateActivation::Sigmoid).init(&device);
            norm.weight = Param::from_data(TensorData::new(weight.clone(), [4]), &device);
            let x_tensor = Tensor::<2>::from_data(TensorData::new(x.clone(), [3, 4]), &device);
            let logits_tensor = Tensor::<2>::from_data(TensorData::new(logits.clone(), [3, 4]), &device);
            let plain = expected(&x, &weight, 1e-5);
            assert_close(&values(norm.forward(x_tensor.clone(), None)), &plain, 1e-6);
            let gated: Vec<f64> = plain.iter().zip(&logits).map(|(y, z)| y / (1.0 + (-z).exp())).collect();
            assert_close(&values(norm.forward(x_tensor, Some(logits_tensor))), &gated, 1e-6);
        }
    }

    #[test]
    fn half_precision_is_normalised_in_float32() {
        // The squares of these values overflow float16.
        for device in devices().into_iter().filter(|device| device.supports_dtype(DType::F16)) {
            let x = Tensor::<1>::from_data(TensorData::from([300.0f32, -400.0]), &device).cast(DType::F16);
            let normalised = RmsNormConfig::new(2).init(&device).forward(x.clone());
            assert_eq!(normalised.dtype(), DType::F16);
            let root_mean_square = 125_000f64.sqrt();
            assert_close(&values(normalised), &[300.0 / root_mean_square, -400.0 / root_mean_square], 2e-3);
            assert_close(&values(l2_normalize(x)), &[0.6, -0.8], 1e-3);
        }
    }

    #[test]
    fn l2_normalisation_matches_and_leaves_zero_alone() {
        for device in devices() {
            let x = float64(&[3.0, 4.0, 0.0, 0.0], [2, 2], &device);
            let n = (25.0f64 + 1e-6).sqrt();
            assert_close(&values(l2_normalize(x)), &[3.0 / n, 4.0 / n, 0.0, 0.0], 1e-12);
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        let device = devices().remove(0);
        check_gradients(&ramp(6, 0.9), [2, 3], &device, |x| l2_normalize(x) * weights(&[2, 3]));
        // At zero the slope 1 / sqrt(1e-6) turns within a thousandth: too sharp for differences.
        let zero = float64(&[0.0; 3], [1, 3], &device.clone().autodiff()).require_grad();
        let gradients = (l2_normalize(zero.clone()) * weights(&[1, 3])).sum().backward();
        let expected = values(weights(&[1, 3]) * 1000.0);
        assert_close(&values(zero.grad(&gradients).unwrap()), &expected, 1e-9);
        let eps = 1e-3;
        check_gradients(&ramp(6, 0.9), [2, 3], &device, |x| {
            let weight = float64(&[0.5, -1.0, 2.0], [3], &x.device());
            scaled(x, weight, eps, None) * weights(&[2, 3])
        });
    }

    /// Uneven output weights, so that no gradient cancels by symmetry.
    fn weights(shape: &[usize; 2]) -> Tensor<2> {
        let device = devices().remove(0);
        float64(&ramp(shape[0] * shape[1], 1.7), *shape, &device)
    }

    #[test]
    fn refuses_bad_configurations() {
        let device = devices().remove(0);
        assert_eq!(RmsNormConfig::new(0).try_init(&device).unwrap_err().field, "dim");
        assert_eq!(RmsNormConfig::new(2).with_eps(0.0).try_init(&device).unwrap_err().field, "eps");
        assert_eq!(GatedRmsNormConfig::new(2).with_eps(f64::NAN).try_init(&device).unwrap_err().field, "eps");
    }

    #[test]
    #[should_panic(expected = "has 3 channels in its last axis, the module 4")]
    fn wrong_width_panics() {
        let device = devices().remove(0);
        RmsNormConfig::new(4).init(&device).forward(Tensor::<2>::zeros([2, 3], &device));
    }

    #[test]
    fn prints_like_a_burn_module() {
        let device = devices().remove(0);
        let norm = GatedRmsNormConfig::new(6).init(&device);
        assert_eq!(format!("{norm}"), "GatedRmsNorm {dim: 6, eps: 0.00001, activation: swish, params: 6}");
    }
}
