//! The functions that make gate values of logits.

use std::fmt;

use burn::tensor::{DType, Tensor, activation};
use gatekit_kernels::gate::Activation;
use serde::{Deserialize, Serialize};

use crate::activation::gelu;
use crate::decay::log_sigmoid_stable;
use crate::error::ConfigError;

/// How logits become gate values.
///
/// In configuration files it is its name: `"sigmoid"`, `"hardsigmoid"`, `"ns-sigmoid"`, `"tanh"`,
/// `"swish"` (or `"silu"`), `"gelu"`, `"relu"`, `"identity"`; with a temperature `"sigmoid/0.5"`, `"tanh/2"`;
/// with a scale `"2*sigmoid"`; with a width `"linear-clipping/5"`.
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
    /// `z (1 + erf(z / sqrt 2)) / 2`, exact; bounded below by -0.170.
    Gelu,
    /// `max(z, 0)`.
    Relu,
    /// `z`: a bilinear gate.
    Identity,
    /// `sigmoid(z / temperature)`; towards temperature 0 a step. The temperature is above 0.
    TemperedSigmoid(f64),
    /// `tanh(z / temperature)`. The temperature is above 0.
    TemperedTanh(f64),
    /// `scale sigmoid(z)`, in (0, scale); with scale 2 it lets pass unchanged at `z = 0` and can
    /// also amplify. The scale is above 0.
    ScaledSigmoid(f64),
    /// `clamp(z / (2 w) + 1 / 2, 0, 1)`: exactly closed up to `-w` and exactly open from `w` on, straight
    /// between. The width w is above 0. [`HardSigmoid`](Self::HardSigmoid) is that of width 3.
    LinearClipping(f64),
}

impl GateActivation {
    /// Every activation without a temperature or scale.
    pub const PLAIN: [GateActivation; 8] = [
        GateActivation::Sigmoid,
        GateActivation::HardSigmoid,
        GateActivation::NonSparseSigmoid,
        GateActivation::Tanh,
        GateActivation::Swish,
        GateActivation::Gelu,
        GateActivation::Relu,
        GateActivation::Identity,
    ];

    /// Reads a name as the type's description lists them; case does not matter.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an unknown name, or a temperature or scale that is not a finite number above 0.
    pub fn parse(name: &str) -> Result<Self, ConfigError> {
        let lower = name.trim().to_lowercase();
        let unknown = || {
            let names: Vec<_> = Self::PLAIN.iter().map(Self::name).collect();
            let need = format!(
                "one of {}, sigmoid or tanh over a temperature (sigmoid/0.5), a scaled sigmoid (2*sigmoid), or \
                 linear-clipping with a width (linear-clipping/5)",
                names.join(", ")
            );
            ConfigError::new("activation", format!("`{name}`"), need)
        };
        let number = |text: &str| text.trim().parse::<f64>().map_err(|_| unknown());
        if let Some((scale, base)) = lower.split_once('*') {
            let scaled = Self::ScaledSigmoid(number(scale)?);
            scaled.check("activation")?;
            return if base.trim() == "sigmoid" { Ok(scaled) } else { Err(unknown()) };
        }
        let parsed = match lower.split_once('/') {
            None if lower == "silu" => Self::Swish,
            None => Self::PLAIN.into_iter().find(|plain| plain.name() == lower).ok_or_else(unknown)?,
            Some((base, temperature)) => {
                let temperature = number(temperature)?;
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

    /// The name without a temperature or scale.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sigmoid | Self::TemperedSigmoid(_) | Self::ScaledSigmoid(_) => "sigmoid",
            Self::HardSigmoid => "hardsigmoid",
            Self::NonSparseSigmoid => "ns-sigmoid",
            Self::Tanh | Self::TemperedTanh(_) => "tanh",
            Self::Swish => "swish",
            Self::Gelu => "gelu",
            Self::Relu => "relu",
            Self::Identity => "identity",
            Self::LinearClipping(_) => "linear-clipping",
        }
    }

    /// Refuses a temperature or scale that is not a finite number above 0, naming the
    /// configuration's `field`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] as said; activations without such a number always pass.
    pub fn check(&self, field: &str) -> Result<(), ConfigError> {
        let (number, what) = match self {
            Self::TemperedSigmoid(temperature) | Self::TemperedTanh(temperature) => {
                (*temperature, "temperature")
            }
            Self::ScaledSigmoid(scale) => (*scale, "scale"),
            Self::LinearClipping(width) => (*width, "width"),
            _ => return Ok(()),
        };
        match number > 0.0 && number.is_finite() {
            true => Ok(()),
            false => Err(ConfigError::new(field, self, format!("a finite {what} above 0"))),
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
            Self::Gelu => gelu(logits),
            Self::Relu => activation::relu(logits),
            Self::Identity => logits,
            Self::TemperedSigmoid(temperature) => sigmoid(logits.div_scalar(temperature)),
            Self::TemperedTanh(temperature) => logits.div_scalar(temperature).tanh(),
            Self::ScaledSigmoid(scale) => sigmoid(logits).mul_scalar(scale),
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
        if let Self::ScaledSigmoid(scale) = self {
            write!(formatter, "{scale}*")?;
        }
        formatter.write_str(self.name())?;
        match self {
            Self::TemperedSigmoid(number) | Self::TemperedTanh(number) | Self::LinearClipping(number) => {
                write!(formatter, "/{number}")
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
