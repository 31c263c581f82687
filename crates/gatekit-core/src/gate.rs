//! How a gate value is made from logits, and how it is applied.
//!
//! Made: [`GateActivation`] (with temperatures), [`hard_gate`] and [`gumbel_sigmoid`] with a
//! straight-through gradient, [`lower_bounded_gate`]. Applied: [`output_gate`], [`convex_mix`],
//! [`highway`], [`gated_residual`], and as modules with parameters [`OutputGate`], [`Highway`] and
//! [`TanhGate`]. All of them keep finite values and gradients at any finite logit: a gate may be
//! exactly 0 or 1.

use std::fmt;

use burn::config::Config;
use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::nn::Linear;
use burn::tensor::{DType, Device, Tensor, activation};
use gatekit_kernels::gate::{Activation, gated_product};
use serde::{Deserialize, Serialize};

use crate::common::{assert_broadcasts, widen};
use crate::config::ModuleConfig;
use crate::decay::log_sigmoid_stable;
use crate::error::ConfigError;
use crate::init;

/// How logits become gate values.
///
/// In configuration files it is its name: `"sigmoid"`, `"hardsigmoid"`, `"ns-sigmoid"`, `"tanh"`,
/// `"swish"` (or `"silu"`), `"relu"`, `"identity"`; with a temperature `"sigmoid/0.5"`, `"tanh/2"`,
/// with a width `"linear-clipping/5"`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum GateActivation {
    /// `1 / (1 + exp(-z))`, in (0, 1).
    Sigmoid,
    /// `clamp(z / 6 + 1 / 2, 0, 1)`: exactly closed below -3 and exactly open above 3.
    HardSigmoid,
    /// `1 / 2 + sigmoid(z) / 2`, in (1/2, 1): a gate that cannot close, the control of
    /// "Gated Attention for Large Language Models" (arXiv 2505.06708).
    NonSparseSigmoid,
    /// `tanh(z)`, in (-1, 1).
    Tanh,
    /// `z sigmoid(z)`, also called SiLU; bounded below by -0.279.
    Swish,
    /// `max(z, 0)`.
    Relu,
    /// `z`: a bilinear gate.
    Identity,
    /// `sigmoid(z / temperature)`; towards temperature 0 a step. The temperature is above 0.
    TemperedSigmoid(f64),
    /// `tanh(z / temperature)`. The temperature is above 0.
    TemperedTanh(f64),
    /// `clamp(z / (2 w) + 1 / 2, 0, 1)`: exactly closed up to `-w` and exactly open from `w` on, straight
    /// between. The width w is above 0. [`HardSigmoid`](Self::HardSigmoid) is that of width 3.
    LinearClipping(f64),
}

impl GateActivation {
    /// Every activation without a temperature.
    pub const PLAIN: [GateActivation; 7] = [
        GateActivation::Sigmoid,
        GateActivation::HardSigmoid,
        GateActivation::NonSparseSigmoid,
        GateActivation::Tanh,
        GateActivation::Swish,
        GateActivation::Relu,
        GateActivation::Identity,
    ];

    /// Reads a name as the type's description lists them; case does not matter.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an unknown name or a temperature that is not a finite number above 0.
    pub fn parse(name: &str) -> Result<Self, ConfigError> {
        let lower = name.trim().to_lowercase();
        let unknown = || {
            let names: Vec<_> = Self::PLAIN.iter().map(Self::name).collect();
            let need = format!(
                "one of {}, sigmoid or tanh over a temperature: sigmoid/0.5, linear-clipping/5",
                names.join(", ")
            );
            ConfigError::new("activation", format!("`{name}`"), need)
        };
        let parsed = match lower.split_once('/') {
            None if lower == "silu" => Self::Swish,
            None => Self::PLAIN.into_iter().find(|plain| plain.name() == lower).ok_or_else(unknown)?,
            Some((base, temperature)) => {
                let temperature: f64 = temperature.trim().parse().map_err(|_| unknown())?;
                match base.trim() {
                    "sigmoid" => Self::TemperedSigmoid(temperature),
                    "tanh" => Self::TemperedTanh(temperature),
                    "linear-clipping" => Self::LinearClipping(temperature),
                    _ => return Err(unknown()),
                }
            }
        };
        parsed.check("activation").map(|()| parsed)
    }

    /// The name without a temperature.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sigmoid | Self::TemperedSigmoid(_) => "sigmoid",
            Self::HardSigmoid => "hardsigmoid",
            Self::NonSparseSigmoid => "ns-sigmoid",
            Self::Tanh | Self::TemperedTanh(_) => "tanh",
            Self::Swish => "swish",
            Self::Relu => "relu",
            Self::Identity => "identity",
            Self::LinearClipping(_) => "linear-clipping",
        }
    }

    /// Refuses a temperature that is not a finite number above 0, naming the configuration's `field`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] as said, and for such a width; activations without either always pass.
    pub fn check(&self, field: &str) -> Result<(), ConfigError> {
        match self {
            Self::TemperedSigmoid(temperature) | Self::TemperedTanh(temperature)
                if !(*temperature > 0.0 && temperature.is_finite()) =>
            {
                Err(ConfigError::new(field, self, "a finite temperature above 0"))
            }
            Self::LinearClipping(width) if !(*width > 0.0 && width.is_finite()) => {
                Err(ConfigError::new(field, self, "a finite width above 0"))
            }
            _ => Ok(()),
        }
    }

    /// The gate values of `logits`, element by element.
    pub fn apply<const D: usize>(&self, logits: Tensor<D>) -> Tensor<D> {
        match *self {
            Self::Sigmoid => sigmoid(logits),
            Self::HardSigmoid => logits.div_scalar(6.0).add_scalar(0.5).clamp(0.0, 1.0),
            Self::NonSparseSigmoid => sigmoid(logits).mul_scalar(0.5).add_scalar(0.5),
            Self::Tanh => logits.tanh(),
            Self::Swish => logits.clone() * sigmoid(logits),
            Self::Relu => activation::relu(logits),
            Self::Identity => logits,
            Self::TemperedSigmoid(temperature) => sigmoid(logits.div_scalar(temperature)),
            Self::TemperedTanh(temperature) => logits.div_scalar(temperature).tanh(),
            Self::LinearClipping(width) => logits.div_scalar(2.0 * width).add_scalar(0.5).clamp(0.0, 1.0),
        }
    }

    /// Its name among the operations that apply a gate in one pass, if they know it.
    pub(crate) fn fused(&self) -> Option<Activation> {
        match self {
            Self::Sigmoid => Some(Activation::Sigmoid),
            Self::Swish => Some(Activation::Swish),
            Self::Relu => Some(Activation::Relu),
            _ => None,
        }
    }
}

impl fmt::Display for GateActivation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())?;
        match self {
            Self::TemperedSigmoid(temperature)
            | Self::TemperedTanh(temperature)
            | Self::LinearClipping(temperature) => {
                write!(formatter, "/{temperature}")
            }
            _ => Ok(()),
        }
    }
}

impl From<GateActivation> for String {
    fn from(activation: GateActivation) -> Self {
        activation.to_string()
    }
}

impl TryFrom<String> for GateActivation {
    type Error = ConfigError;

    fn try_from(name: String) -> Result<Self, ConfigError> {
        Self::parse(&name)
    }
}

/// `1 / (1 + exp(-z))`, element by element, as accurate as the type allows.
///
/// Burn's own sigmoid works in float32 whatever the type; in float64 this one is
/// `exp(logsigmoid(z))` instead, which stays accurate where the gate is almost closed.
pub fn sigmoid<const D: usize>(logits: Tensor<D>) -> Tensor<D> {
    match logits.dtype() {
        DType::F64 => log_sigmoid_stable(logits).exp(),
        _ => activation::sigmoid(logits),
    }
}

/// `g = lb + (1 - lb) sigmoid(z)`: a gate that never closes below `lb`.
///
/// `logits` `[..]`, `lower_bound` in [0, 1), of a shape that broadcasts onto the logits. HGRN
/// (arXiv 2311.04823), eq. 4. For recurrences take its logarithm from
/// [`lower_bounded_log_gate`](crate::decay::lower_bounded_log_gate), which is exact for small gates.
///
/// # Panics
///
/// When the shapes do not broadcast.
pub fn lower_bounded_gate<const D: usize>(logits: Tensor<D>, lower_bound: Tensor<D>) -> Tensor<D> {
    assert_broadcasts("lower_bounded_gate", ("lower_bound", lower_bound.dims()), ("logits", logits.dims()));
    let open = lower_bound.clone().neg().add_scalar(1.0);
    lower_bound + open * sigmoid(logits)
}

/// A gate of exactly 0 or 1, `g = 1 where z > 0`, that is trained as if it were `sigmoid(z)`.
///
/// The straight-through estimator (Bengio et al., arXiv 1308.3432): the value is hard, the gradient
/// that of the sigmoid.
pub fn hard_gate<const D: usize>(logits: Tensor<D>) -> Tensor<D> {
    harden(logits.clone(), sigmoid(logits))
}

/// `g = sigmoid((z + noise) / temperature)`: a random gate that gradients pass (Gumbel-sigmoid).
///
/// `logits` and `noise` `[..]` of one shape. The noise is logistic, the difference of two Gumbel
/// variables (see [`logistic_noise`]); then `g > 1/2` with probability `sigmoid(z)`. With `hard` the
/// value is 0 or 1 and the gradient that of the soft gate (straight-through). Without noise (zeros)
/// it is the deterministic gate used after training. Maddison et al. (arXiv 1611.00712), app. B;
/// Jang et al. (arXiv 1611.01144).
///
/// # Panics
///
/// When the shapes differ, or unless `temperature > 0`.
pub fn gumbel_sigmoid<const D: usize>(
    logits: Tensor<D>,
    noise: Tensor<D>,
    temperature: f64,
    hard: bool,
) -> Tensor<D> {
    assert!(
        logits.dims() == noise.dims(),
        "gumbel_sigmoid: `noise` {:?} is not of the shape of `logits` {:?}",
        noise.dims(),
        logits.dims()
    );
    assert!(temperature > 0.0, "gumbel_sigmoid: `temperature` {temperature} must be above 0");
    let shifted = (logits + noise).div_scalar(temperature);
    let soft = sigmoid(shifted.clone());
    if hard { harden(shifted, soft) } else { soft }
}

/// Logistic noise `log u - log(1 - u)` from uniform numbers `u` in [0, 1].
///
/// `u` is held within `[1e-7, 1 - 1e-7]`, so the noise lies within about ±16.
pub fn logistic_noise<const D: usize>(uniform: Tensor<D>) -> Tensor<D> {
    let u = widen(uniform).clamp(1e-7, 1.0 - 1e-7);
    u.clone().log() - u.neg().log1p()
}

/// The step of `z > 0` with the gradient of `soft`. The soft values cancel exactly, so the result
/// is exactly 0 or 1 (a sum in another order would round).
fn harden<const D: usize>(logits: Tensor<D>, soft: Tensor<D>) -> Tensor<D> {
    let step = logits.detach().greater_elem(0.0).float().cast(soft.dtype());
    (soft.clone() - soft.detach()) + step
}

/// `y = x * act(logits)`.
///
/// `x` `[..]`; `logits` broadcast onto `x` (`[.., heads, 1]` gates whole heads).
///
/// # Panics
///
/// When the shapes do not broadcast.
pub fn output_gate<const D: usize>(x: Tensor<D>, logits: Tensor<D>, activation: GateActivation) -> Tensor<D> {
    assert_broadcasts("output_gate", ("logits", logits.dims()), ("x", x.dims()));
    match activation.fused() {
        Some(activation) if logits.dims() == x.dims() => gated_product(x, logits, activation),
        _ => x * activation.apply(logits),
    }
}

/// `y = gate * a + (1 - gate) * b`, exactly `a` at gate 1 and exactly `b` at gate 0 (finite inputs).
///
/// `a` and `b` of one shape, `gate` broadcasts onto it.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn convex_mix<const D: usize>(gate: Tensor<D>, a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    assert!(a.dims() == b.dims(), "convex_mix: `a` {:?} and `b` {:?} differ in shape", a.dims(), b.dims());
    assert_broadcasts("convex_mix", ("gate", gate.dims()), ("a", a.dims()));
    let rest = gate.clone().neg().add_scalar(1.0);
    gate * a + rest * b
}

/// `y = t * transformed + (1 - t) * x` with the transform gate `t = sigmoid(logits)`.
///
/// The carry gate is computed as `sigmoid(-logits)`: `1 - t` would round away when `t` is near 1.
/// Srivastava et al., "Highway Networks" (arXiv 1505.00387), eq. 3.
///
/// # Panics
///
/// When `x` and `transformed` differ in shape or the logits do not broadcast onto them.
pub fn highway<const D: usize>(x: Tensor<D>, transformed: Tensor<D>, logits: Tensor<D>) -> Tensor<D> {
    assert!(
        x.dims() == transformed.dims(),
        "highway: `x` {:?} and `transformed` {:?} differ in shape",
        x.dims(),
        transformed.dims()
    );
    assert_broadcasts("highway", ("logits", logits.dims()), ("x", x.dims()));
    transformed * sigmoid(logits.clone()) + x * sigmoid(logits.neg())
}

/// `y = x + act(logits) * update`: a residual connection that the gate can switch off.
///
/// # Panics
///
/// When `x` and `update` differ in shape or the logits do not broadcast onto them.
pub fn gated_residual<const D: usize>(
    x: Tensor<D>,
    update: Tensor<D>,
    logits: Tensor<D>,
    activation: GateActivation,
) -> Tensor<D> {
    assert!(
        x.dims() == update.dims(),
        "gated_residual: `x` {:?} and `update` {:?} differ in shape",
        x.dims(),
        update.dims()
    );
    x + output_gate(update, logits, activation)
}

/// Configuration of [`OutputGate`].
#[derive(Config, Debug)]
pub struct OutputGateConfig {
    /// Channels of the input that decides, at least 1.
    pub input_size: usize,
    /// Channels of what is gated, at least 1.
    pub gated_size: usize,
    /// Whether the projection has a bias. Default false.
    #[config(default = false)]
    pub bias: bool,
    /// Activation of the gate. Default sigmoid.
    #[config(default = "GateActivation::Sigmoid")]
    pub activation: GateActivation,
}

impl ModuleConfig for OutputGateConfig {
    type Module = OutputGate;

    fn try_init(&self, device: &Device) -> Result<OutputGate, ConfigError> {
        check_size("input_size", self.input_size)?;
        check_size("gated_size", self.gated_size)?;
        self.activation.check("activation")?;
        Ok(OutputGate {
            gate_proj: init::linear(self.input_size, self.gated_size, self.bias, device),
            activation: self.activation,
        })
    }
}

/// `y = x * act(W input [+ b])`: features gated by a projection of another input.
///
/// Weights start normal(0, 0.02), so a sigmoid gate starts half open.
#[derive(Module, Debug)]
pub struct OutputGate {
    /// Projection of the input to the logits, `[input_size, gated_size]`.
    pub gate_proj: Linear,
    /// Activation of the gate.
    #[module(skip)]
    pub activation: GateActivation,
}

impl OutputGate {
    /// `x` `[.., gated_size]` and `input` `[.., input_size]` to `[.., gated_size]`.
    ///
    /// # Panics
    ///
    /// When the sizes or leading axes do not fit.
    pub fn forward<const D: usize>(&self, x: Tensor<D>, input: Tensor<D>) -> Tensor<D> {
        output_gate(x, self.gate_proj.forward(input), self.activation)
    }

    /// The gate values of `input` `[.., input_size]`: `[.., gated_size]`.
    pub fn gate<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.activation.apply(self.gate_proj.forward(input))
    }
}

/// Configuration of [`Highway`].
#[derive(Config, Debug)]
pub struct HighwayConfig {
    /// Channels, at least 1.
    pub hidden_size: usize,
    /// Start value of the gate's bias. Default -1: the layer starts by carrying its input.
    #[config(default = -1.0)]
    pub bias_init: f64,
}

impl ModuleConfig for HighwayConfig {
    type Module = Highway;

    fn try_init(&self, device: &Device) -> Result<Highway, ConfigError> {
        check_size("hidden_size", self.hidden_size)?;
        if !self.bias_init.is_finite() {
            return Err(ConfigError::new("bias_init", self.bias_init, "a finite number"));
        }
        let mut gate_proj = init::linear(self.hidden_size, self.hidden_size, false, device);
        let bias = Initializer::Constant { value: self.bias_init };
        gate_proj.bias = Some(bias.init([self.hidden_size], device));
        Ok(Highway { gate_proj })
    }
}

/// [`highway`] with the transform gate `t = sigmoid(W x + b)` of the layer's own input.
///
/// Srivastava et al., "Highway Networks" (arXiv 1505.00387), sections 2 and 2.2 (the negative bias).
#[derive(Module, Debug)]
pub struct Highway {
    /// Projection of the input to the gate's logits, `[hidden_size, hidden_size]`.
    pub gate_proj: Linear,
}

impl Highway {
    /// The input `x` and the layer's result `transformed`, both `[.., hidden_size]`, to their mixture.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward<const D: usize>(&self, x: Tensor<D>, transformed: Tensor<D>) -> Tensor<D> {
        let logits = self.gate_proj.forward(x.clone());
        highway(x, transformed, logits)
    }
}

/// Configuration of [`TanhGate`].
#[derive(Config, Debug)]
pub struct TanhGateConfig {
    /// One gate a channel of the last axis; `None` (the default): one for all.
    #[config(default = "None")]
    pub channels: Option<usize>,
}

impl ModuleConfig for TanhGateConfig {
    type Module = TanhGate;

    fn try_init(&self, device: &Device) -> Result<TanhGate, ConfigError> {
        let channels = self.channels.unwrap_or(1);
        check_size("channels", channels)?;
        Ok(TanhGate { gate: Initializer::Zeros.init([channels], device) })
    }
}

/// `y = tanh(gate) * x` with a learned `gate` that starts at 0.
///
/// What it gates is silent at first, so a new branch leaves a trained model as it was; its gradient
/// is not zero. Flamingo (arXiv 2204.14198), section 2.2; LLaMA-Adapter (arXiv 2303.16199).
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct TanhGate {
    /// Logit, `[1]` or `[channels]`.
    pub gate: Param<Tensor<1>>,
}

impl TanhGate {
    /// `[..]` to `[..]`: `tanh(gate) * x`.
    ///
    /// # Panics
    ///
    /// When there is one gate a channel and the last axis of `x` has another number of channels.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let gate = self.gate.val().tanh().unsqueeze::<D>();
        assert_broadcasts("TanhGate", ("gate", gate.dims()), ("x", x.dims()));
        x * gate
    }

    /// `x + tanh(gate) * update`: exactly `x` at the start.
    ///
    /// # Panics
    ///
    /// When the shapes differ, or as [`forward`](Self::forward).
    pub fn residual<const D: usize>(&self, x: Tensor<D>, update: Tensor<D>) -> Tensor<D> {
        assert!(
            x.dims() == update.dims(),
            "TanhGate: `x` {:?} and `update` {:?} differ in shape",
            x.dims(),
            update.dims()
        );
        x + self.forward(update)
    }
}

fn check_size(field: &str, size: usize) -> Result<(), ConfigError> {
    if size == 0 { Err(ConfigError::new(field, size, "at least 1")) } else { Ok(()) }
}

impl ModuleDisplay for TanhGate {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [channels] = self.gate.shape().dims();
        content.add("channels", &channels).optional()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};
    use burn::tensor::TensorData;

    fn logistic(z: f64) -> f64 {
        1.0 / (1.0 + (-z).exp())
    }

    fn by_hand(activation: GateActivation, z: f64) -> f64 {
        match activation {
            GateActivation::Sigmoid => logistic(z),
            GateActivation::HardSigmoid => (z / 6.0 + 0.5).clamp(0.0, 1.0),
            GateActivation::NonSparseSigmoid => 0.5 + 0.5 * logistic(z),
            GateActivation::Tanh => z.tanh(),
            GateActivation::Swish => z * logistic(z),
            GateActivation::Relu => z.max(0.0),
            GateActivation::Identity => z,
            GateActivation::TemperedSigmoid(t) => logistic(z / t),
            GateActivation::TemperedTanh(t) => (z / t).tanh(),
            GateActivation::LinearClipping(w) => (z / (2.0 * w) + 0.5).clamp(0.0, 1.0),
        }
    }

    fn all() -> Vec<GateActivation> {
        let with_a_number = [
            GateActivation::TemperedSigmoid(0.5),
            GateActivation::TemperedTanh(2.0),
            GateActivation::LinearClipping(4.5),
        ];
        GateActivation::PLAIN.into_iter().chain(with_a_number).collect()
    }

    #[test]
    fn activations_match_their_equations() {
        let z = [-1000.0, -100.0, -4.0, -0.7, 0.0, 0.3, 2.0, 5.0, 100.0, 1000.0];
        for device in devices() {
            for activation in all() {
                let expected: Vec<f64> = z.iter().map(|z| by_hand(activation, *z)).collect();
                assert_close(&values(activation.apply(float32(&z, [10], &device))), &expected, 2e-6);
                assert_close(&values(activation.apply(float64(&z, [10], &device))), &expected, 1e-12);
            }
        }
    }

    #[test]
    fn gradients_of_activations_match_finite_differences() {
        let device = devices().remove(0);
        for activation in all() {
            // Away from the corners of the hard sigmoid and of the rectifier.
            check_gradients(&[-100.0, -4.0, -0.7, 0.3, 2.0, 5.0, 100.0], [7], &device, |z| {
                activation.apply(z)
            });
        }
        check_gradients(&[0.0], [1], &device, sigmoid);
        check_gradients(&[0.0], [1], &device, |z| GateActivation::Swish.apply(z));
    }

    #[test]
    fn names_are_read_back() {
        for activation in all() {
            let text = serde_roundtrip(activation);
            assert_eq!(text, activation);
            assert_eq!(GateActivation::parse(&activation.to_string()).unwrap(), activation);
        }
        assert_eq!(GateActivation::parse("SiLU").unwrap(), GateActivation::Swish);
        for bad in ["", "sigmoidal", "sigmoid/0", "tanh/-1", "sigmoid/inf", "relu/2", "sigmoid/x"] {
            assert_eq!(GateActivation::parse(bad).unwrap_err().field, "activation", "{bad}");
        }
        assert!(
            GateActivation::TemperedTanh(0.0).check("gate_fn").unwrap_err().to_string().contains("gate_fn")
        );
    }

    fn serde_roundtrip(activation: GateActivation) -> GateActivation {
        let config = OutputGateConfig::new(1, 1).with_activation(activation);
        let path = std::env::temp_dir().join(format!(
            "gatekit-gate-{}-{}.json",
            std::process::id(),
            activation.name()
        ));
        config.save(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(&format!("\"{activation}\"")), "{text}");
        let loaded = OutputGateConfig::load(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        loaded.activation
    }

    #[test]
    fn hard_gates_are_exactly_zero_or_one_and_learn_as_sigmoids() {
        let z = ramp(101, 3.0);
        for device in devices() {
            let logits = float32(&z, [101], &device.clone().autodiff()).require_grad();
            let gate = hard_gate(logits.clone());
            let gradients = gate.clone().sum().backward();
            let expected: Vec<f64> = z.iter().map(|z| if *z > 0.0 { 1.0 } else { 0.0 }).collect();
            assert_eq!(values(gate), expected);
            let slopes: Vec<f64> = z.iter().map(|z| logistic(*z) * logistic(-z)).collect();
            assert_close(&values(logits.grad(&gradients).unwrap()), &slopes, 1e-6);

            let extreme = float32(&[-1e30, 1e30], [2], &device.autodiff()).require_grad();
            let gate = hard_gate(extreme.clone());
            let gradients = gate.clone().sum().backward();
            assert_eq!(values(gate), [0.0, 1.0]);
            assert_eq!(values(extreme.grad(&gradients).unwrap()), [0.0, 0.0]);
        }
    }

    #[test]
    fn gumbel_sigmoid_opens_with_the_sigmoids_probability() {
        let device = devices().remove(0);
        // Evenly spread uniforms stand for the draw: the share of open gates is then exact to 1 / n.
        let n = 2000;
        let uniform: Vec<f64> = (0..n).map(|i| (i as f64 + 0.5) / n as f64).collect();
        for z in [-2.0, 0.0, 0.8] {
            let noise = logistic_noise(float64(&uniform, [n], &device));
            let gate = gumbel_sigmoid(Tensor::full_like(&noise, z), noise, 0.5, true);
            let gates = values(gate);
            assert!(gates.iter().all(|gate| *gate == 0.0 || *gate == 1.0));
            let share = gates.iter().sum::<f64>() / n as f64;
            assert!((share - logistic(z)).abs() < 2.0 / n as f64, "{share} at {z}");
        }
        let (z, noise) = (ramp(5, 2.0), ramp(5, 1.0));
        let soft: Vec<f64> = z.iter().zip(&noise).map(|(z, e)| logistic((z + e) / 0.7)).collect();
        let gate = gumbel_sigmoid(float64(&z, [5], &device), float64(&noise, [5], &device), 0.7, false);
        assert_close(&values(gate), &soft, 1e-12);
        let ends = values(logistic_noise(float32(&[0.0, 1.0], [2], &device)));
        assert!(ends.iter().all(|end| end.is_finite() && end.abs() > 15.0));
    }

    #[test]
    fn gates_are_applied_by_their_equations() {
        let (a, b, z) = (ramp(6, 1.0), ramp(6, 2.0), ramp(6, 3.0));
        for device in devices() {
            let tensor = |values: &[f64]| float32(values, [2, 3], &device);
            let each = |f: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> {
                (0..6).map(|i| f(a[i], b[i], z[i])).collect()
            };
            let swish = GateActivation::Swish;
            assert_close(
                &values(output_gate(tensor(&a), tensor(&z), swish)),
                &each(&|a, _, z| a * z * logistic(z)),
                1e-6,
            );
            assert_close(
                &values(convex_mix(sigmoid(tensor(&z)), tensor(&a), tensor(&b))),
                &each(&|a, b, z| logistic(z) * a + (1.0 - logistic(z)) * b),
                1e-6,
            );
            assert_close(
                &values(highway(tensor(&a), tensor(&b), tensor(&z))),
                &each(&|a, b, z| logistic(z) * b + (1.0 - logistic(z)) * a),
                1e-6,
            );
            assert_close(
                &values(gated_residual(tensor(&a), tensor(&b), tensor(&z), GateActivation::Tanh)),
                &each(&|a, b, z| a + z.tanh() * b),
                1e-6,
            );
            let bound = float32(&[0.2, 0.0, 0.9], [1, 3], &device);
            let bounded: Vec<f64> =
                (0..6).map(|i| [0.2, 0.0, 0.9][i % 3] + [0.8, 1.0, 0.1][i % 3] * logistic(z[i])).collect();
            assert_close(&values(lower_bounded_gate(tensor(&z), bound)), &bounded, 1e-6);
            // A head's gate reaches all its channels.
            let head = float32(&[0.0, 3.0], [2, 1], &device);
            let headwise: Vec<f64> = (0..6).map(|i| a[i] * logistic([0.0, 3.0][i / 3])).collect();
            assert_close(&values(output_gate(tensor(&a), head, GateActivation::Sigmoid)), &headwise, 1e-6);
        }
    }

    #[test]
    fn closed_and_open_gates_are_exact_and_have_finite_gradients() {
        for device in devices() {
            let device = device.autodiff();
            let x = float32(&[0.1, -0.3], [2], &device).require_grad();
            let y = float32(&[0.7, 1.9], [2], &device);
            let logits = float32(&[-1e4, 1e4], [2], &device).require_grad();
            let out = highway(x.clone(), y.clone(), logits.clone());
            let gradients = out.clone().sum().backward();
            assert_eq!(values(out), values(float32(&[0.1, 1.9], [2], &device)));
            assert_eq!(values(x.grad(&gradients).unwrap()), [1.0, 0.0]);
            assert_eq!(values(logits.grad(&gradients).unwrap()), [0.0, 0.0]);

            let mixed = convex_mix(float32(&[0.0, 1.0], [2], &device), y.clone(), x.clone());
            assert_eq!(values(mixed), values(float32(&[0.1, 1.9], [2], &device)));
            for activation in all() {
                let logits = float32(&[-1e4, 1e4], [2], &device).require_grad();
                let gradients = output_gate(y.clone(), logits.clone(), activation).sum().backward();
                let slopes = values(logits.grad(&gradients).unwrap());
                assert!(slopes.iter().all(|slope| slope.is_finite()), "{activation}: {slopes:?}");
            }
        }
    }

    #[test]
    fn zero_initialised_gate_is_silent_but_learns() {
        for device in devices() {
            let device = device.autodiff();
            let (x, update) = (ramp(6, 1.0), ramp(6, 2.0));
            let (x_tensor, update_tensor) = (float32(&x, [2, 3], &device), float32(&update, [2, 3], &device));
            let scalar = TanhGateConfig::new().init(&device);
            let out = scalar.residual(x_tensor.clone(), update_tensor.clone());
            assert_eq!(values(out.clone()), values(x_tensor));
            let gradients = out.sum().backward();
            let slope = values(scalar.gate.val().grad(&gradients).unwrap());
            assert_close(&slope, &[update.iter().sum()], 1e-6);

            let mut channels = TanhGateConfig::new().with_channels(Some(3)).init(&device);
            channels.gate = Param::from_data(TensorData::from([0.5f32, -1.0, 2.0]), &device);
            let expected: Vec<f64> = (0..6).map(|i| update[i] * [0.5f64, -1.0, 2.0][i % 3].tanh()).collect();
            assert_close(&values(channels.forward(update_tensor)), &expected, 1e-6);
        }
    }

    #[test]
    fn modules_gate_by_a_projection() {
        for device in devices() {
            let gate = OutputGateConfig::new(2, 3).with_bias(true).init(&device);
            let (x, input) =
                (float32(&ramp(6, 1.0), [2, 3], &device), float32(&ramp(4, 2.0), [2, 2], &device));
            let expected = x.clone() * gate.gate(input.clone());
            assert_close(&values(gate.forward(x, input)), &values(expected), 1e-6);

            // All weights zero: the transform gate is sigmoid of the bias alone.
            let mut layer = HighwayConfig::new(3).init(&device);
            layer.gate_proj.weight = Param::from_tensor(Tensor::zeros([3, 3], &device));
            let (a, b) = (ramp(6, 1.0), ramp(6, 2.0));
            let t = logistic(-1.0);
            let expected: Vec<f64> = a.iter().zip(&b).map(|(a, b)| t * b + (1.0 - t) * a).collect();
            let got = layer.forward(float32(&a, [2, 3], &device), float32(&b, [2, 3], &device));
            assert_close(&values(got), &expected, 1e-6);
        }
    }

    #[test]
    fn refuses_bad_configurations() {
        let device = devices().remove(0);
        let field = |result: Result<_, ConfigError>| result.map(|_: ()| ()).unwrap_err().field;
        assert_eq!(field(OutputGateConfig::new(0, 1).try_init(&device).map(drop)), "input_size");
        assert_eq!(field(OutputGateConfig::new(1, 0).try_init(&device).map(drop)), "gated_size");
        assert_eq!(field(HighwayConfig::new(0).try_init(&device).map(drop)), "hidden_size");
        let infinite = HighwayConfig::new(1).with_bias_init(f64::INFINITY);
        assert_eq!(field(infinite.try_init(&device).map(drop)), "bias_init");
        let none = TanhGateConfig::new().with_channels(Some(0));
        assert_eq!(field(none.try_init(&device).map(drop)), "channels");
        let frozen = OutputGateConfig::new(1, 1).with_activation(GateActivation::TemperedSigmoid(f64::NAN));
        assert_eq!(field(frozen.try_init(&device).map(drop)), "activation");
    }

    #[test]
    #[should_panic(expected = "`logits` [2, 2] does not broadcast onto `x` [2, 3]")]
    fn shapes_are_checked() {
        let device = devices().remove(0);
        let (x, logits) = (Tensor::<2>::zeros([2, 3], &device), Tensor::zeros([2, 2], &device));
        output_gate(x, logits, GateActivation::Sigmoid);
    }
}
