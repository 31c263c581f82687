//! What layers with a recurrence share: their streaming state, and how they become token mixers.

use burn::module::{Module, ModuleDisplay};
use burn::tensor::{DType, Device, Tensor, TensorData};
use gatekit_core::checkpoint::{NamedTensors, TensorError, TensorProblem};
use gatekit_core::conv::{ShortConvolution, ShortConvolutionConfig};
use gatekit_core::gate::GateActivation;
use gatekit_core::scan::ScanForm;
use gatekit_core::sequence::Boundaries;
use gatekit_core::{ConfigError, InputError, ModuleConfig};

use crate::backbone::{
    MixerContext, MixerState, TokenMixer, check_shape, no_more_tensors, state_data, take_state_tensor,
    tensor_bytes,
};

/// A layer whose memory of the past has a constant size: the state of a recurrence, and the last
/// inputs of its short convolutions. Every such layer is a [`TokenMixer`].
pub trait RecurrentMixer: Module + ModuleDisplay {
    /// The layer over `x` `[batch, time, hidden_size]`, continued from `state` if there is one.
    ///
    /// With `boundaries` the batch is 1 and holds packed sequences, each from an empty state.
    /// Returns the output, of the shape of `x`, and the state after the last step.
    fn scan(
        &self,
        x: Tensor<3>,
        boundaries: Option<&Boundaries>,
        lower_bound: Option<Tensor<1>>,
        state: Option<RecurrentState>,
    ) -> (Tensor<3>, RecurrentState);

    /// Shape of [`RecurrentState::memory`].
    fn memory_dims(&self, batch: usize) -> [usize; 4];

    /// The short convolutions in the order of [`RecurrentState::windows`]; none without.
    fn convolutions(&self) -> Vec<&ShortConvolution>;

    /// The same layer with another form of its scan. All compute the same function; a new layer
    /// has [`ScanForm::Auto`], the fastest on its device.
    fn with_scan_form(self, form: ScanForm) -> Self;
}

/// The streaming state of a [`RecurrentMixer`].
#[derive(Debug, Clone)]
pub struct RecurrentState {
    /// The state of every head, `[batch, heads, key_dim, value_dim]`, in float32; a recurrence with
    /// a vector state has it as `[batch, 1, 1, channels]`.
    pub memory: Tensor<4>,
    /// The last inputs of each short convolution, `[batch, conv_size - 1, channels]`, in the order of
    /// [`RecurrentMixer::convolutions`].
    pub windows: Vec<Tensor<3>>,
    /// Number of tokens seen, from which rotary positions go on.
    pub position: usize,
}

impl<L: RecurrentMixer> TokenMixer for L {
    type State = RecurrentState;

    fn forward(&self, x: Tensor<3>, context: &MixerContext<'_>) -> Tensor<3> {
        let lower_bound = context.lower_bound.clone();
        match context.packing {
            None => self.scan(x, None, lower_bound, None).0,
            Some(packing) => {
                let packed = packing.pack(x);
                packing.unpack(self.scan(packed, Some(packing.boundaries()), lower_bound, None).0)
            }
        }
    }

    fn prefill(
        &self,
        x: Tensor<3>,
        state: RecurrentState,
        context: &MixerContext<'_>,
    ) -> (Tensor<3>, RecurrentState) {
        self.scan(x, None, context.lower_bound.clone(), Some(state))
    }

    fn step(
        &self,
        x: Tensor<2>,
        state: RecurrentState,
        context: &MixerContext<'_>,
    ) -> (Tensor<2>, RecurrentState) {
        let (y, state) = self.prefill(x.unsqueeze_dim(1), state, context);
        (y.squeeze_dim(1), state)
    }

    fn empty_state(&self, batch: usize, device: &Device) -> RecurrentState {
        let convolutions = self.convolutions().into_iter();
        RecurrentState {
            memory: Tensor::zeros(self.memory_dims(batch), (device, DType::F32)),
            windows: convolutions.map(|convolution| convolution.empty_state(batch, device)).collect(),
            position: 0,
        }
    }

    fn check_state(&self, state: &RecurrentState, batch: usize) -> Result<(), InputError> {
        check_shape("memory", &state.memory.dims(), &self.memory_dims(batch))?;
        let convolutions = self.convolutions();
        if state.windows.len() != convolutions.len() {
            let got = format!("those of {} convolutions", state.windows.len());
            return Err(InputError::new("windows", got, format!("those of {}", convolutions.len())));
        }
        for (index, (window, convolution)) in state.windows.iter().zip(convolutions).enumerate() {
            check_shape(&format!("windows.{index}"), &window.dims(), &convolution.state_dims(batch))?;
        }
        Ok(())
    }
}

impl MixerState for RecurrentState {
    const MIXER: &'static str = "recurrence";

    fn bytes(&self) -> usize {
        tensor_bytes(&self.memory) + self.windows.iter().map(tensor_bytes).sum::<usize>()
    }

    fn to_device(self, device: &Device) -> Self {
        Self {
            memory: self.memory.to_device(device),
            windows: self.windows.into_iter().map(|window| window.to_device(device)).collect(),
            position: self.position,
        }
    }

    fn to_tensors(&self) -> NamedTensors {
        let windows = self.windows.iter().enumerate();
        let windows = windows.map(|(index, window)| (format!("windows.{index}"), state_data(window)));
        let mut tensors: NamedTensors = windows.collect();
        tensors.insert("memory".to_string(), state_data(&self.memory));
        tensors.insert("position".to_string(), TensorData::from([self.position as i64]));
        tensors
    }

    fn from_tensors(mut tensors: NamedTensors, device: &Device) -> Result<Self, TensorError> {
        let mut batch = None;
        let memory = take_state_tensor(&mut tensors, "memory", &mut batch, device)?;
        let position = take_position(&mut tensors)?;
        let windows = (0..tensors.len())
            .map(|index| take_state_tensor(&mut tensors, &format!("windows.{index}"), &mut batch, device))
            .collect::<Result<_, _>>()?;
        no_more_tensors(tensors)?;
        Ok(Self { memory, windows, position })
    }
}

/// Takes the number of tokens seen out of a state's tensors.
fn take_position(tensors: &mut NamedTensors) -> Result<usize, TensorError> {
    let refuse = |problem| Err(TensorError::new("position", problem));
    let Some(data) = tensors.remove("position") else { return refuse(TensorProblem::Missing) };
    match data.as_slice::<i64>() {
        Ok(&[position]) if position >= 0 => Ok(position as usize),
        _ => refuse(TensorProblem::Value {
            got: data.to_string(),
            need: "one integer, the number of tokens seen".to_string(),
        }),
    }
}

/// A state taken apart for one pass over a layer: windows are taken and put back in their order.
pub(crate) struct Passage<'a> {
    boundaries: Option<&'a Boundaries>,
    old_windows: Option<std::vec::IntoIter<Tensor<3>>>,
    windows: Vec<Tensor<3>>,
    /// The recurrence's state, `None`: empty.
    pub memory: Option<Tensor<4>>,
    /// Position of the first step.
    pub position: usize,
}

impl<'a> Passage<'a> {
    pub(crate) fn new(
        x: &Tensor<3>,
        boundaries: Option<&'a Boundaries>,
        state: Option<RecurrentState>,
    ) -> Self {
        assert!(x.dims()[1] > 0, "`x` has no time step, shape {:?}", x.dims());
        let (memory, windows, position) = match state {
            Some(RecurrentState { memory, windows, position }) => (Some(memory), Some(windows), position),
            None => (None, None, 0),
        };
        let old_windows = windows.map(Vec::into_iter);
        Self { boundaries, old_windows, windows: Vec::new(), memory, position }
    }

    /// Convolves `x` `[batch, time, channels]`; without a convolution it passes unchanged.
    pub(crate) fn convolve(&mut self, convolution: Option<&ShortConvolution>, x: Tensor<3>) -> Tensor<3> {
        let Some(convolution) = convolution else { return x };
        let old = self
            .old_windows
            .as_mut()
            .map(|windows| windows.next().expect("`state` has fewer windows than the layer convolutions"));
        let (y, window) = convolution.forward(x, self.boundaries, old);
        self.windows.push(window);
        y
    }

    /// As [`convolve`](Self::convolve) with a convolution that ends in SiLU; without one SiLU remains.
    pub(crate) fn convolve_silu(
        &mut self,
        convolution: Option<&ShortConvolution>,
        x: Tensor<3>,
    ) -> Tensor<3> {
        match convolution {
            Some(convolution) => self.convolve(Some(convolution), x),
            None => GateActivation::Swish.apply(x),
        }
    }

    /// The state after `time` steps.
    pub(crate) fn end(self, memory: Tensor<4>, time: usize) -> RecurrentState {
        let left = self.old_windows.map_or(0, |windows| windows.len());
        assert!(left == 0, "`state` has {left} windows more than the layer convolutions");
        RecurrentState { memory, windows: self.windows, position: self.position + time }
    }
}

/// A layer's short convolution on `channels` channels, without bias; `None` unless it is used.
pub(crate) fn short_convolution(
    used: bool,
    channels: usize,
    size: usize,
    activation: Option<GateActivation>,
    device: &Device,
) -> Result<Option<ShortConvolution>, ConfigError> {
    if !used {
        return Ok(None);
    }
    if size == 0 {
        return Err(ConfigError::new("conv_size", 0, "at least 1"));
    }
    let config = ShortConvolutionConfig::new(channels, size).with_activation(activation);
    config.try_init(device).map(Some)
}

/// `[batch, time, heads * dim]` to `[batch, time, heads, dim]`.
pub(crate) fn heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, time, width] = x.dims();
    x.reshape([batch, time, heads, width / heads])
}

/// `[batch, time, heads, dim]` to `[batch, time, heads * dim]`.
pub(crate) fn side_by_side(x: Tensor<4>) -> Tensor<3> {
    let [batch, time, heads, dim] = x.dims();
    x.reshape([batch, time, heads * dim])
}

/// The width `ratio * hidden_size` of all heads together.
///
/// # Errors
///
/// [`ConfigError`] for `field` unless it is a whole number that the heads divide.
pub(crate) fn expanded(
    field: &str,
    ratio: f64,
    hidden_size: usize,
    heads: usize,
) -> Result<usize, ConfigError> {
    let size = hidden_size as f64 * ratio;
    let whole = size.is_finite() && (1.0..1e15).contains(&size) && (size - size.round()).abs() < 1e-6;
    match whole && (size.round() as usize).is_multiple_of(heads) {
        true => Ok(size.round() as usize),
        false => Err(ConfigError::new(
            field,
            format!("{ratio}, {size} of {hidden_size}"),
            format!("a whole positive number of channels, divisible by {heads} heads"),
        )),
    }
}

/// Refuses sizes of 0.
pub(crate) fn at_least_one(sizes: &[(&str, usize)]) -> Result<(), ConfigError> {
    match sizes.iter().find(|(_, size)| *size == 0) {
        Some((field, _)) => Err(ConfigError::new(*field, 0, "at least 1")),
        None => Ok(()),
    }
}
