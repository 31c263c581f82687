//! Sums whose terms are gated one by one, for every head.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::module::linear;
use burn::tensor::{Device, Tensor};

use super::activation::GateActivation;
use crate::common::{assert_last_axis, widen};
use crate::config::ModuleConfig;
use crate::error::ConfigError;

/// `y[b, t, h] = sum_i gates[b, t, h, i] * terms[b, t, i, h]`: every head weighs the terms by itself.
///
/// * `gates` `[batch, time, heads, terms]`, of any sign and size: nothing normalises over the terms
/// * `terms` `[batch, time, terms, heads, dim]`
/// * returns `[batch, time, heads, dim]`, in the type of the terms
///
/// Half-precision terms are summed in float32.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn gated_sum(gates: Tensor<4>, terms: Tensor<5>) -> Tensor<4> {
    let ([batch, time, heads, count], [_, _, _, _, dim]) = (gates.dims(), terms.dims());
    assert!(
        terms.dims()[..4] == [batch, time, count, heads],
        "gated_sum: `terms` {:?} does not fit `gates` {:?}: need [batch, time, terms, heads, dim] and \
         [batch, time, heads, terms]",
        terms.dims(),
        gates.dims()
    );
    let dtype = terms.dtype();
    let gates = widen(gates).swap_dims(2, 3).unsqueeze_dim::<5>(4);
    (widen(terms) * gates).sum_dim(2).reshape([batch, time, heads, dim]).cast(dtype)
}

/// Configuration of [`GatedSum`].
#[derive(Config, Debug)]
pub struct GatedSumConfig {
    /// Channels of the input that decides, at least 1.
    pub input_size: usize,
    /// Heads, each with gates of its own, at least 1.
    pub heads: usize,
    /// Terms of the sum, at least 1.
    pub terms: usize,
    /// Activation of the gates. Default: twice the sigmoid, which starts at 1.
    #[config(default = "GateActivation::ScaledSigmoid(2.0)")]
    pub activation: GateActivation,
}

impl ModuleConfig for GatedSumConfig {
    type Module = GatedSum;

    fn try_init(&self, device: &Device) -> Result<GatedSum, ConfigError> {
        for (field, size) in [("input_size", self.input_size), ("heads", self.heads), ("terms", self.terms)] {
            if size == 0 {
                return Err(ConfigError::new(field, size, "at least 1"));
            }
        }
        self.activation.check("activation")?;
        Ok(GatedSum {
            weight: Initializer::Zeros.init([self.heads * self.terms, self.input_size], device),
            heads: self.heads,
            activation: self.activation,
        })
    }
}

/// `y_h = sum_i g_{h,i} term_{i,h}` with `g = act(W x)`: a sum that a projection of the input gates,
/// head by head and term by term.
///
/// The weight starts at 0, so with the default activation the layer starts as the plain sum. Rows of
/// the weight belong to (head, term), the head first. "MoVE: Mixture of Value Embeddings"
/// (arXiv 2601.22887) mixes value embeddings so.
#[derive(Module, Debug)]
pub struct GatedSum {
    /// Projection to the gates' logits, `[heads * terms, input_size]`.
    pub weight: Param<Tensor<2>>,
    heads: usize,
    /// Activation of the gates.
    #[module(skip)]
    pub activation: GateActivation,
}

impl GatedSum {
    /// Heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Terms of the sum.
    pub fn terms(&self) -> usize {
        self.weight.lazy_shape()[0] / self.heads
    }

    /// The gates of `x` `[batch, time, input_size]`: `[batch, time, heads, terms]`, in at least float32.
    ///
    /// # Panics
    ///
    /// When `x` does not have `input_size` channels.
    pub fn gates(&self, x: Tensor<3>) -> Tensor<4> {
        let weight = self.weight.val();
        let ([batch, time, _], [rows, input_size]) = (x.dims(), weight.dims());
        assert_last_axis("GatedSum", x.dims(), input_size);
        let logits = widen(linear(x, weight.transpose(), None));
        self.activation.apply(logits).reshape([batch, time, self.heads, rows / self.heads])
    }

    /// `x` `[batch, time, input_size]` and `terms` `[batch, time, terms, heads, dim]` to
    /// `[batch, time, heads, dim]`.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, x: Tensor<3>, terms: Tensor<5>) -> Tensor<4> {
        gated_sum(self.gates(x), terms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};
    use burn::tensor::DType;

    const SHAPE: [usize; 5] = [2, 3, 4, 2, 5];

    fn by_hand(gates: &[f64], terms: &[f64]) -> Vec<f64> {
        let [batch, time, count, heads, dim] = SHAPE;
        let mut sums = Vec::new();
        for step in 0..batch * time {
            for (head, channel) in (0..heads).flat_map(|head| (0..dim).map(move |channel| (head, channel))) {
                let term = |i: usize| terms[((step * count + i) * heads + head) * dim + channel];
                sums.push((0..count).map(|i| gates[(step * heads + head) * count + i] * term(i)).sum());
            }
        }
        sums
    }

    #[test]
    fn matches_a_computation_by_hand() {
        let [batch, time, count, heads, _] = SHAPE;
        let (x, terms) = (ramp(batch * time * 3, 1.5), ramp(240, 1.0));
        let weight = ramp(heads * count * 3, 2.0);
        for activation in [GateActivation::ScaledSigmoid(2.0), GateActivation::Tanh] {
            let gate = |z: f64| match activation {
                GateActivation::Tanh => z.tanh(),
                _ => 2.0 / (1.0 + (-z).exp()),
            };
            let gates: Vec<f64> = x
                .chunks(3)
                .flat_map(|x| weight.chunks(3).map(|row| x.iter().zip(row).map(|(x, w)| x * w).sum()))
                .map(gate)
                .collect();
            for device in devices() {
                let mut layer =
                    GatedSumConfig::new(3, heads, count).with_activation(activation).init(&device);
                assert_eq!((layer.heads(), layer.terms()), (heads, count));
                layer.weight = Param::from_tensor(float32(&weight, [heads * count, 3], &device));
                let input = float32(&x, [batch, time, 3], &device);
                assert_close(&values(layer.gates(input.clone())), &gates, 1e-6);
                let sum = layer.forward(input, float32(&terms, SHAPE, &device));
                assert_close(&values(sum), &by_hand(&gates, &terms), 2e-6);
            }
        }
    }

    #[test]
    fn a_fresh_layer_is_the_plain_sum() {
        for device in devices() {
            let terms = float32(&ramp(240, 1.0), SHAPE, &device);
            let layer = GatedSumConfig::new(3, 2, 4).init(&device);
            let sum = layer.forward(float32(&ramp(18, 1.0), [2, 3, 3], &device), terms.clone());
            assert_close(&values(sum), &values(terms.sum_dim(2)), 1e-6);
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        for device in devices() {
            let (gates, terms) = (ramp(48, 1.3), ramp(240, 0.9));
            let weight = || float64(&ramp(60, 1.1), [2, 3, 2, 5], &device);
            check_gradients(&gates, [2, 3, 2, 4], &device, |gates| {
                gated_sum(gates, float64(&terms, SHAPE, &device)) * weight()
            });
            check_gradients(&terms, SHAPE, &device, |terms| {
                gated_sum(float64(&gates, [2, 3, 2, 4], &device), terms) * weight()
            });
        }
    }

    #[test]
    fn half_precision_is_summed_in_float32() {
        for device in devices().into_iter().filter(|device| device.supports_dtype(DType::F16)) {
            // In half precision 2048 + 1 is 2048.
            let terms: Vec<f64> = (0..64).map(|i| if i == 0 { 2048.0 } else { 1.0 }).collect();
            let terms = float32(&terms, [1, 1, 64, 1, 1], &device).cast(DType::F16);
            let sum = gated_sum(Tensor::ones([1, 1, 1, 64], (&device, DType::F16)), terms);
            assert_eq!(sum.dtype(), DType::F16);
            assert!((values(sum)[0] - 2111.0).abs() <= 1.0);
        }
    }

    #[test]
    fn refuses_bad_configurations() {
        let device = devices().remove(0);
        let field = |config: GatedSumConfig| config.try_init(&device).unwrap_err().field;
        assert_eq!(field(GatedSumConfig::new(0, 1, 1)), "input_size");
        assert_eq!(field(GatedSumConfig::new(1, 0, 1)), "heads");
        assert_eq!(field(GatedSumConfig::new(1, 1, 0)), "terms");
        let scaled = GateActivation::ScaledSigmoid(0.0);
        assert_eq!(field(GatedSumConfig::new(1, 1, 1).with_activation(scaled)), "activation");
    }

    #[test]
    #[should_panic(expected = "`terms` [1, 2, 3, 2, 4] does not fit `gates` [1, 2, 2, 4]")]
    fn shapes_are_checked() {
        let device = devices().remove(0);
        gated_sum(Tensor::zeros([1, 2, 2, 4], &device), Tensor::zeros([1, 2, 3, 2, 4], &device));
    }
}
