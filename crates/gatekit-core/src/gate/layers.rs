//! Gates with parameters of their own.

use burn::config::Config;
use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

use super::activation::GateActivation;
use super::functions::{highway, output_gate};
use crate::common::assert_broadcasts;
use crate::config::ModuleConfig;
use crate::error::ConfigError;
use crate::init;

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
    /// One gate a channel (or head: see [`TanhGate::forward_along`]); `None` (the default): one for all.
    #[config(default = "None")]
    pub channels: Option<usize>,
    /// Where the logits start, a finite number. Default 0: silent.
    #[config(default = 0.0)]
    pub start: f64,
}

impl ModuleConfig for TanhGateConfig {
    type Module = TanhGate;

    fn try_init(&self, device: &Device) -> Result<TanhGate, ConfigError> {
        let channels = self.channels.unwrap_or(1);
        check_size("channels", channels)?;
        if !self.start.is_finite() {
            return Err(ConfigError::new("start", self.start, "a finite number"));
        }
        Ok(TanhGate { gate: Initializer::Constant { value: self.start }.init([channels], device) })
    }
}

/// `y = tanh(gate) * x` with a learned `gate` that starts at 0 (or where its configuration says).
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
        self.forward_along(x, D - 1)
    }

    /// `tanh(gate) * x` with one gate for each place of `axis`: of `x` `[batch, time, heads, dim]`, axis 2 has a gate
    /// a head.
    ///
    /// # Panics
    ///
    /// When `x` has no such axis, or there is more than one gate and the axis has another size.
    pub fn forward_along<const D: usize>(&self, x: Tensor<D>, axis: usize) -> Tensor<D> {
        assert!(axis < D, "TanhGate: `x` {:?} has no axis {axis}", x.dims());
        let mut shape = [1; D];
        shape[axis] = self.gate.val().dims()[0];
        let gate = self.gate.val().tanh().reshape(shape);
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
