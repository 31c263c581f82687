//! The recurrence: one layer of Mamba as the theory has it.
// Parameters have the names of the paper.
#![allow(non_snake_case)]

use std::fmt;

use burn::config::Config;
use burn::module::{Initializer, Module, Param, ParamId};
use burn::serde::{Deserialize, Serialize};
use burn::tensor::module::linear;
use burn::tensor::{DType, Device, Tensor, TensorData};
use gatekit_core::decay::softplus_stable;
use gatekit_core::scan::{
    Decay, Discretisation, ScanForm, ScanOptions, SelectiveOptions, StepDecay, Write, linear_recurrence,
    linear_recurrence_step, selective_scan, selective_scan_step,
};
use gatekit_core::{ConfigError, InputError, ModuleConfig};

use crate::backbone::check_shape;

/// Whether the examples of a prompt are weighed by a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(crate = "burn::serde", rename_all = "lowercase")]
pub enum Gating {
    /// Mamba's: [`selective_gate`](gatekit_core::gate::selective_gate).
    #[default]
    Mamba,
    /// None, every weight is 1: linear attention, called the linear transformer in the paper.
    None,
}

impl fmt::Display for Gating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Mamba => "mamba",
            Self::None => "none",
        })
    }
}

/// Configuration of [`SelectiveSsm`].
#[derive(Config, Debug)]
pub struct SelectiveSsmConfig {
    /// Channels `c` of the input, `d + 1` for prompts of `d` features.
    pub channels: usize,
    /// Rows `m` of `W_B` and `W_C`: numbers of state in every channel; `None`: `c`.
    pub state_dim: Option<usize>,
    /// Whether the state decays by the data.
    #[config(default = "Gating::Mamba")]
    pub gating: Gating,
    /// Start of the first `c - 1` diagonal entries of `W_B` and `W_C`, above 0; the paper takes at
    /// most 0.2.
    #[config(default = 0.2)]
    pub initial_scale: f64,
}

impl ModuleConfig for SelectiveSsmConfig {
    type Module = SelectiveSsm;

    fn try_init(&self, device: &Device) -> Result<SelectiveSsm, ConfigError> {
        let (channels, size) = (self.channels, self.state_dim.unwrap_or(self.channels));
        for (field, size) in [("channels", channels), ("state_dim", size)] {
            if size == 0 {
                return Err(ConfigError::new(field, 0, "at least 1"));
            }
        }
        check_scale(self.initial_scale)?;
        let diagonal = || scaled_diagonal(size, channels, self.initial_scale, device);
        Ok(SelectiveSsm {
            W: gate_weight().init_with([channels, channels], Some(channels), None, device),
            W_B: diagonal(),
            W_C: diagonal(),
            gating: self.gating,
            form: ScanForm::Auto,
        })
    }
}

/// Refuses a start of the diagonals that is not positive.
pub(super) fn check_scale(scale: f64) -> Result<(), ConfigError> {
    match scale.is_finite() && scale > 0.0 {
        true => Ok(()),
        false => Err(ConfigError::new("initial_scale", scale, "a positive number")),
    }
}

/// How the gate's weights start: normal(0, 1 / c) for `c` inputs.
pub(super) fn gate_weight() -> Initializer {
    Initializer::KaimingNormal { gain: 1.0, fan_out_only: false }
}

/// `[size, channels]`, zero but for the first `channels - 1` diagonal entries: the labels' channel
/// takes no part in the attention.
pub(super) fn scaled_diagonal(size: usize, channels: usize, scale: f64, device: &Device) -> Param<Tensor<2>> {
    let init = move |device: &Device, require_grad: bool| {
        let mut values = vec![0.0; size * channels];
        for index in 0..size.min(channels - 1) {
            values[index * channels + index] = scale;
        }
        Tensor::from_data(TensorData::new(values, [size, channels]), device).set_require_grad(require_grad)
    };
    Param::uninitialized(ParamId::new(), init, device.clone(), true, [size, channels].into())
}

/// `x W^T` for a weight `[out, in]`.
pub(super) fn project<const D: usize>(x: Tensor<D>, weight: &Param<Tensor<2>>) -> Tensor<D> {
    linear(x, weight.val().transpose(), None)
}

/// The state space of the theory: exact discretisation, `A = -1`, every channel with a step of its
/// own.
///
/// ```text
/// Delta_ij = softplus(W_j . u_i)    B_i = W_B u_i    C_i = W_C u_i
/// h_i = exp(-Delta_ij) h_{i-1} + (1 - exp(-Delta_ij)) u_ij B_i       per channel j, h: m numbers
/// o_ij = h_i . C_i
/// ```
///
/// As `exp(-softplus(s)) = 1 - sigmoid(s)`, every channel is a convex mix of its state and of what
/// the step brings. With [`Gating::None`] nothing decays, `h_i = h_{i-1} + u_ij B_i`, and `W` takes
/// no part: linear attention.
///
/// Li et al. 2025, arXiv 2510.00399, equations of section 2. `W_B` and `W_C` start at zero but for
/// `initial_scale` on the first `c - 1` diagonal entries, the rows of `W` normal(0, 1 / c).
#[derive(Module, Debug)]
pub struct SelectiveSsm {
    /// Row `j` makes the step of channel `j`, `[c, c]`.
    pub W: Param<Tensor<2>>,
    /// What is written, `[m, c]`.
    pub W_B: Param<Tensor<2>>,
    /// What is read, `[m, c]`.
    pub W_C: Param<Tensor<2>>,
    #[module(skip)]
    gating: Gating,
    #[module(skip)]
    form: ScanForm,
}

impl SelectiveSsm {
    /// A whole batch, continued from a state.
    ///
    /// # Shapes
    ///
    /// - `u`: `[batch, time, c]`
    /// - `state`: `[batch, c, m]`; `None`: zero
    /// - output: `[batch, time, c]` and the state after the last step, float32
    ///
    /// # Panics
    ///
    /// When `u` has no time step or another number of channels, or the state another shape.
    pub fn forward(&self, u: Tensor<3>, state: Option<Tensor<3>>) -> (Tensor<3>, Tensor<3>) {
        let [batch, time, channels] = u.dims();
        assert!(time > 0, "selective ssm: `u` has no time step, shape {:?}", u.dims());
        self.check_channels(channels);
        if let Some(state) = &state {
            self.check_state(state, batch).unwrap_or_else(|error| panic!("selective ssm: {error}"));
        }
        let (b, c) = (project(u.clone(), &self.W_B), project(u.clone(), &self.W_C));
        if self.gating == Gating::None {
            let head = |x: Tensor<3>| x.unsqueeze_dim::<4>(2);
            let options = ScanOptions { scale: Some(1.0), form: self.form, ..ScanOptions::default() };
            let state = state.map(|state| state.swap_dims(1, 2).unsqueeze_dim::<4>(1));
            let scanned = linear_recurrence(
                head(c),
                head(b),
                head(u),
                Decay::None,
                Write::Additive,
                state,
                None,
                &options,
            );
            let state = scanned.final_state.squeeze_dim::<3>(1).swap_dims(1, 2);
            return (scanned.output.squeeze_dim(2), state);
        }
        let delta = softplus_stable(project(u.clone(), &self.W));
        let a = self.rates(&u.device());
        let options = SelectiveOptions { discretisation: Discretisation::ZeroOrderHold, form: self.form };
        let scanned = selective_scan(u, delta, a, b, c, None, None, state, None, &options);
        (scanned.output, scanned.final_state)
    }

    /// One step: `u` `[batch, c]` and `state` `[batch, c, m]` to the output `[batch, c]` and the
    /// next state.
    ///
    /// # Panics
    ///
    /// When `u` has another number of channels, or the state another shape.
    pub fn step(&self, u: Tensor<2>, state: Tensor<3>) -> (Tensor<2>, Tensor<3>) {
        let [batch, channels] = u.dims();
        self.check_channels(channels);
        self.check_state(&state, batch).unwrap_or_else(|error| panic!("selective ssm: {error}"));
        let (b, c) = (project(u.clone(), &self.W_B), project(u.clone(), &self.W_C));
        if self.gating == Gating::None {
            let head = |x: Tensor<2>| x.unsqueeze_dim::<3>(1);
            let state = state.swap_dims(1, 2).unsqueeze_dim::<4>(1);
            let (o, state) =
                linear_recurrence_step(head(c), head(b), head(u), StepDecay::None, None, state, Some(1.0));
            return (o.squeeze_dim(1), state.squeeze_dim::<3>(1).swap_dims(1, 2));
        }
        let delta = softplus_stable(project(u.clone(), &self.W));
        let a = self.rates(&u.device());
        selective_scan_step(u, delta, a, b, c, None, None, state, Discretisation::ZeroOrderHold)
    }

    /// The state before the first step: zeros `[batch, c, m]`, float32.
    pub fn empty_state(&self, batch: usize, device: &Device) -> Tensor<3> {
        Tensor::zeros(self.state_dims(batch), (device, DType::F32))
    }

    /// Checks that a state fits this layer and `batch`.
    ///
    /// # Errors
    ///
    /// [`InputError`] names the shape and the shape it needs.
    pub fn check_state(&self, state: &Tensor<3>, batch: usize) -> Result<(), InputError> {
        check_shape("state", &state.dims(), &self.state_dims(batch))
    }

    /// The same layer with another form of the scan; all compute the same function.
    pub fn with_scan_form(mut self, form: ScanForm) -> Self {
        self.form = form;
        self
    }

    fn state_dims(&self, batch: usize) -> [usize; 3] {
        let [size, channels] = self.W_B.shape().dims();
        [batch, channels, size]
    }

    /// `A = -1`, `[c, m]`.
    fn rates(&self, device: &Device) -> Tensor<2> {
        let [_, channels, size] = self.state_dims(1);
        Tensor::full([channels, size], -1.0, (device, DType::F32))
    }

    fn check_channels(&self, got: usize) {
        let [_, channels, _] = self.state_dims(1);
        assert!(got == channels, "selective ssm: `u` has {got} channels, the layer {channels}");
    }
}
