//! One of two, or a share of both: a gate made from the two that it mixes.

use burn::config::Config;
use burn::module::{Initializer, Module};
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::activation::sigmoid;
use super::functions::highway;
use crate::config::{ModuleConfig, check_sizes};
use crate::error::ConfigError;

/// What has a gate of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateLevel {
    /// A sample: `[B, 1, 1]`, from the largest value of every channel over time.
    Batch,
    /// A step: `[B, T, 1]`.
    BatchSeq,
    /// A step and channel: `[B, T, D]`.
    BatchSeqFeature,
}

/// Configuration of [`ConvexGate`].
#[derive(Config, Debug)]
pub struct ConvexGateConfig {
    /// Channels D of either input, at least 1.
    pub d_model: usize,
    /// What has a gate of its own. Default a step and channel.
    #[config(default = "GateLevel::BatchSeqFeature")]
    pub level: GateLevel,
    /// Inner width H of a two-layer network, at least 1; `None` (the default): one linear map.
    #[config(default = "None")]
    pub hidden: Option<usize>,
    /// Share of the joined input that is dropped in training, in [0, 1). Default 0.
    #[config(default = 0.0)]
    pub dropout: f64,
}

impl ModuleConfig for ConvexGateConfig {
    type Module = ConvexGate;

    fn try_init(&self, device: &Device) -> Result<ConvexGate, ConfigError> {
        let width = self.hidden.unwrap_or(1);
        check_sizes(&[("d_model", self.d_model), ("hidden", width)])?;
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(ConfigError::new("dropout", self.dropout, "a share in [0, 1)"));
        }
        let joined = 2 * self.d_model;
        let gates = match self.level {
            GateLevel::Batch | GateLevel::BatchSeq => 1,
            GateLevel::BatchSeqFeature => self.d_model,
        };
        Ok(ConvexGate {
            inner: self.hidden.map(|hidden| xavier_normal(joined, hidden, device)),
            outer: xavier_normal(self.hidden.unwrap_or(joined), gates, device),
            dropout: DropoutConfig::new(self.dropout).init(),
            level: self.level,
        })
    }
}

/// Weights Xavier normal, biases as in any linear layer.
fn xavier_normal(from: usize, to: usize, device: &Device) -> Linear {
    let weight = Initializer::XavierNormal { gain: 1.0 }.init_with([from, to], Some(from), Some(to), device);
    Linear { weight, ..LinearConfig::new(from, to).init(device) }
}

/// `y = g a + (1 - g) b` with a gate that sees both: `g = sigmoid(A_2 relu(A_1 u + a_1) + a_2)`, or
/// `g = sigmoid(A_2 u + a_2)` without an inner layer, `u = [a; b]`.
///
/// The gate belongs to a sample, a step, or a step and channel ([`GateLevel`]); the gate of a sample sees
/// `u = [max_t a; max_t b]`. `1 - g` is computed as `sigmoid(-z)`, which a wide open gate does not round away.
/// Dropout acts on u, in training only. Weights start Xavier normal, biases uniform within `1 / sqrt(fan in)`.
/// Zhang et al., "Improving Medical Predictions by Irregular Multimodal Electronic Health Records Modeling"
/// (arXiv 2210.12156), section 3.1 (two layers, three levels).
#[derive(Module, Debug)]
pub struct ConvexGate {
    /// `A_1`, `[2D, H]`.
    pub inner: Option<Linear>,
    /// `A_2`, from H (or 2D) to one gate or D.
    pub outer: Linear,
    /// On u.
    pub dropout: Dropout,
    #[module(skip)]
    level: GateLevel,
}

/// What [`ConvexGate`] made of its inputs.
#[derive(Debug, Clone)]
pub struct ConvexMixture {
    /// `g a + (1 - g) b`, `[B, T, D]`.
    pub mixture: Tensor<3>,
    /// g in [0, 1], the share of a: `[B, 1, 1]`, `[B, T, 1]` or `[B, T, D]`.
    pub gate: Tensor<3>,
}

impl ConvexGate {
    /// What has a gate of its own.
    pub fn level(&self) -> GateLevel {
        self.level
    }

    /// Mixes `a` and `b`, both `[B, T, D]` with T at least 1.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, a: Tensor<3>, b: Tensor<3>) -> ConvexMixture {
        let logits = self.logits(a.clone(), b.clone());
        ConvexMixture { gate: sigmoid(logits.clone()), mixture: highway(b, a, logits) }
    }

    /// The logits z of `g = sigmoid(z)`, in the shape of the gate.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn logits(&self, a: Tensor<3>, b: Tensor<3>) -> Tensor<3> {
        assert!(
            a.dims() == b.dims() && a.dims()[1] > 0,
            "ConvexGate: `a` {:?} and `b` {:?} must have one shape and at least one step",
            a.dims(),
            b.dims()
        );
        let joined = match self.level {
            GateLevel::Batch => vec![a.max_dim(1), b.max_dim(1)],
            GateLevel::BatchSeq | GateLevel::BatchSeqFeature => vec![a, b],
        };
        let u = self.dropout.forward(Tensor::cat(joined, 2));
        let u = match &self.inner {
            Some(inner) => relu(inner.forward(u)),
            None => u,
        };
        self.outer.forward(u)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};
    use burn::module::Param;
    use burn::tensor::DType;

    const LEVELS: [GateLevel; 3] = [GateLevel::Batch, GateLevel::BatchSeq, GateLevel::BatchSeqFeature];

    #[test]
    fn matches_a_computation_by_hand() {
        let logistic = |z: f64| 1.0 / (1.0 + (-z).exp());
        let (a, b) = ([0.5, -1.0, 2.0, 0.25], [1.5, 0.5, -0.5, 1.0]);
        for device in devices() {
            let tensor = |values: &[f64]| float32(values, [1, 2, 2], &device);
            // One linear map, one gate a step: z = a_1 - b_2 + 0.5.
            let mut gate = ConvexGateConfig::new(2).with_level(GateLevel::BatchSeq).init(&device);
            gate.outer.weight = Param::from_tensor(float32(&[1.0, 0.0, 0.0, -1.0], [4, 1], &device));
            gate.outer.bias = Some(Param::from_tensor(float32(&[0.5], [1], &device)));
            let g = [logistic(0.5), logistic(1.5)];
            let mixed: Vec<f64> = (0..4).map(|i| g[i / 2] * a[i] + (1.0 - g[i / 2]) * b[i]).collect();
            let output = gate.forward(tensor(&a), tensor(&b));
            assert_close(&values(output.gate), &g, 1e-6);
            assert_close(&values(output.mixture), &mixed, 1e-6);
            // Two layers, one gate a sample: u = [2, 0.25, 1.5, 1], inner [relu(u_1 - u_3), relu(-u_4)] = [0.5, 0].
            let mut gate =
                ConvexGateConfig::new(2).with_level(GateLevel::Batch).with_hidden(Some(2)).init(&device);
            gate.inner = Some(Linear {
                weight: Param::from_tensor(float32(
                    &[1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, -1.0],
                    [4, 2],
                    &device,
                )),
                bias: None,
            });
            gate.outer.weight = Param::from_tensor(float32(&[3.0, 100.0], [2, 1], &device));
            gate.outer.bias = Some(Param::from_tensor(float32(&[-1.0], [1], &device)));
            let g = logistic(0.5);
            let mixed: Vec<f64> = a.iter().zip(&b).map(|(a, b)| g * a + (1.0 - g) * b).collect();
            let output = gate.forward(tensor(&a), tensor(&b));
            assert_eq!(output.gate.dims(), [1, 1, 1]);
            assert_close(&values(output.mixture), &mixed, 1e-6);
        }
    }

    #[test]
    fn a_gate_that_is_quite_open_or_closed_passes_one_side_alone() {
        for device in devices() {
            for level in LEVELS {
                let mut gate = ConvexGateConfig::new(3).with_level(level).with_hidden(Some(4)).init(&device);
                let [gates] = gate.outer.bias.as_ref().unwrap().dims();
                let (a, b) = (ramp(18, 1.0), ramp(18, 0.7));
                let tensor = |values: &[f64]| float32(values, [2, 3, 3], &device);
                for (logit, side) in [(1e4, &a), (-1e4, &b)] {
                    gate.outer.bias = Some(Param::from_tensor(Tensor::full([gates], logit, &device)));
                    let output = gate.forward(tensor(&a), tensor(&b));
                    assert_eq!(values(output.mixture), values(tensor(side)));
                }
            }
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        for device in devices() {
            for level in LEVELS {
                for hidden in [None, Some(5)] {
                    device.seed(4);
                    let autodiff = device.clone().autodiff();
                    let config = ConvexGateConfig::new(2).with_level(level).with_hidden(hidden);
                    let gate = config.init(&autodiff).materialize();
                    let gate = gate.map(&mut ToFloat64);
                    let plain = gate.valid();
                    let b = ramp(12, 0.8);
                    check_gradients(&ramp(12, 1.0), [2, 3, 2], &device, |a| {
                        let gate = if a.device().is_autodiff() { &gate } else { &plain };
                        let b = float64(&b, [2, 3, 2], &a.device());
                        gate.forward(a, b).mixture.square()
                    });
                }
            }
        }
    }

    struct ToFloat64;

    impl burn::module::ModuleMapper for ToFloat64 {
        fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
            parameter.map(|tensor| tensor.cast(DType::F64))
        }
    }

    #[test]
    fn drops_in_training_only() {
        let device = devices().remove(0);
        device.seed(1);
        let gate = ConvexGateConfig::new(8).with_dropout(0.5).init(&device.clone().autodiff());
        let ones = |device: &Device| Tensor::<3>::ones([1, 4, 8], device);
        let gates =
            |gate: &ConvexGate, device: &Device| values(gate.forward(ones(device), ones(device)).gate);
        let trained = gates(&gate, &device.clone().autodiff());
        assert!(trained[..8] != trained[8..16], "every step drops others");
        let plain = gates(&gate.valid(), &device);
        assert_eq!(plain[..8], plain[8..16]);
    }

    #[test]
    fn refuses_bad_configurations_and_shapes() {
        let device = devices().remove(0);
        let refused = |config: ConvexGateConfig| config.try_init(&device).unwrap_err().field;
        assert_eq!(refused(ConvexGateConfig::new(0)), "d_model");
        assert_eq!(refused(ConvexGateConfig::new(2).with_hidden(Some(0))), "hidden");
        assert_eq!(refused(ConvexGateConfig::new(2).with_dropout(1.0)), "dropout");
        let gate = ConvexGateConfig::new(2).init(&device);
        for shapes in [[[1, 2, 2], [1, 3, 2]], [[1, 0, 2], [1, 0, 2]]] {
            let [a, b] = shapes.map(|shape| Tensor::<3>::zeros(shape, &device));
            let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| gate.forward(a, b)));
            let text = *panic.unwrap_err().downcast::<String>().unwrap();
            assert!(text.contains(&format!("{:?}", shapes[1])), "{text}");
        }
    }
}
