//! The short causal convolution that linear-attention layers put before their recurrence, and convolutions of maps.

mod image;
mod layer;

use burn::config::Config;
use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::tensor::{Device, Tensor};
use gatekit_kernels::conv::short_convolution;

use crate::common::{indices, widen};
use crate::config::ModuleConfig;
use crate::error::ConfigError;
use crate::gate::GateActivation;
use crate::sequence::Boundaries;

pub use image::{depthwise_conv2d, pointwise_conv2d};
pub use layer::{Activation, convolve, convolve_norm};

/// Configuration of [`ShortConvolution`].
#[derive(Config, Debug)]
pub struct ShortConvolutionConfig {
    /// Channels, at least 1; each has its own filter.
    pub channels: usize,
    /// Taps of a filter W, at least 1. Published models use 4.
    pub kernel_size: usize,
    /// Whether each channel has a bias. Default false.
    #[config(default = false)]
    pub bias: bool,
    /// Applied to the result; `None`: nothing. Default swish.
    #[config(default = "Some(GateActivation::Swish)")]
    pub activation: Option<GateActivation>,
}

impl ModuleConfig for ShortConvolutionConfig {
    type Module = ShortConvolution;

    fn try_init(&self, device: &Device) -> Result<ShortConvolution, ConfigError> {
        for (field, size) in [("channels", self.channels), ("kernel_size", self.kernel_size)] {
            if size == 0 {
                return Err(ConfigError::new(field, size, "at least 1"));
            }
        }
        if let Some(activation) = self.activation {
            activation.check("activation")?;
        }
        // PyTorch's default for Conv1d: uniform within 1 / sqrt(fan in); a depthwise filter sees W values.
        let limit = 1.0 / (self.kernel_size as f64).sqrt();
        let uniform = Initializer::Uniform { min: -limit, max: limit };
        Ok(ShortConvolution {
            weight: uniform.init([self.channels, 1, self.kernel_size], device),
            bias: self.bias.then(|| uniform.init([self.channels], device)),
            activation: self.activation,
        })
    }
}

/// Causal depthwise convolution `y[t,c] = act(sum_j w[c,0,j] x[t-W+1+j,c] + b[c])`, with a streaming state.
///
/// Before the first step stand zeros, or the state: the last W-1 inputs of what came before. So
/// `forward` over a whole sequence, over its pieces with the state handed on, and `step` token by
/// token give the same result. Packed sequences are cut at their boundaries.
///
/// Weight and bias start uniform within `1 / sqrt(W)`, PyTorch's default for such a convolution,
/// which flash-linear-attention's `ShortConvolution` keeps.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct ShortConvolution {
    /// Filters in PyTorch's layout, `[channels, 1, W]`; the last tap meets the current input.
    pub weight: Param<Tensor<3>>,
    /// Bias of each channel, `[channels]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// Applied to the result.
    #[module(skip)]
    pub activation: Option<GateActivation>,
}

impl ShortConvolution {
    /// Convolves whole sequences.
    ///
    /// `x` `[batch, time, channels]`; with `boundaries` it is one packed sequence `[1, time, channels]`
    /// of N segments. `state` `[batch or N, W-1, channels]`, zeros if `None`. Returns the result, of
    /// the shape of `x`, and the new state: the last W-1 inputs of each sequence (or segment), where
    /// a shorter one leaves the tail of its old state in place.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit, or `boundaries` come with a batch of more than one.
    pub fn forward(
        &self,
        x: Tensor<3>,
        boundaries: Option<&Boundaries>,
        state: Option<Tensor<3>>,
    ) -> (Tensor<3>, Tensor<3>) {
        let [batch, time, channels] = x.dims();
        self.check_channels(channels);
        let sequences = boundaries.map_or(batch, Boundaries::segments);
        if let Some(boundaries) = boundaries {
            assert!(
                batch == 1 && time == boundaries.time(),
                "ShortConvolution: packed `x` {:?} must be [1, {}, channels]",
                x.dims(),
                boundaries.time()
            );
        }
        if let Some(state) = &state {
            self.check_state(state, sequences);
        }
        let y = self.convolve(x.clone(), boundaries, state.clone());
        let state = match boundaries {
            _ if self.history() == 0 => Tensor::zeros([sequences, 0, channels], (&x.device(), x.dtype())),
            Some(boundaries) => self.last_of_segments(x, boundaries, state),
            None => self.last_inputs(x, state),
        };
        (y, state)
    }

    /// Convolves one step: `x` `[batch, channels]` and `state` `[batch, W-1, channels]` to the result
    /// `[batch, channels]` and the new state.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn step(&self, x: Tensor<2>, state: Tensor<3>) -> (Tensor<2>, Tensor<3>) {
        let (y, state) = self.forward(x.unsqueeze_dim(1), None, Some(state));
        (y.squeeze_dim(1), state)
    }

    /// The state before the first input: zeros `[batch, W-1, channels]`.
    pub fn empty_state(&self, batch: usize, device: &Device) -> Tensor<3> {
        Tensor::zeros(self.state_dims(batch), device)
    }

    /// Shape of the state, `[batch, W-1, C]`.
    pub fn state_dims(&self, batch: usize) -> [usize; 3] {
        let [channels, _, _] = self.weight.shape().dims();
        [batch, self.history(), channels]
    }

    /// W-1, the inputs before the current one that a filter sees.
    fn history(&self) -> usize {
        let [_, _, taps] = self.weight.shape().dims();
        taps - 1
    }

    /// The filter, the bias and the activation; half precision is summed in float32.
    fn convolve(&self, x: Tensor<3>, boundaries: Option<&Boundaries>, state: Option<Tensor<3>>) -> Tensor<3> {
        let dtype = x.dtype();
        let weight = self.weight.val();
        let [channels, _, taps] = weight.dims();
        // An activation of its own is computed before the result is rounded.
        let apart = self.activation.filter(|activation| *activation != GateActivation::Swish);
        let y = short_convolution(
            if apart.is_some() { widen(x) } else { x },
            weight.reshape([channels, taps]),
            self.bias.as_ref().map(|bias| bias.val()),
            state,
            boundaries.map(Boundaries::shared),
            self.activation == Some(GateActivation::Swish),
        );
        match apart {
            Some(activation) => activation.apply(y).cast(dtype),
            None => y,
        }
    }

    /// The last W-1 inputs of every row, after `state` (zeros if `None`) and `x`.
    fn last_inputs(&self, x: Tensor<3>, state: Option<Tensor<3>>) -> Tensor<3> {
        let (before, [batch, time, channels]) = (self.history(), x.dims());
        if time >= before {
            return x.narrow(1, time - before, before);
        }
        let kept = before - time;
        let old = match state {
            Some(state) => state.cast(x.dtype()).narrow(1, time, kept),
            None => Tensor::zeros([batch, kept, channels], (&x.device(), x.dtype())),
        };
        Tensor::cat(vec![old, x], 1)
    }

    /// The last W-1 inputs of every segment of one row.
    fn last_of_segments(&self, x: Tensor<3>, boundaries: &Boundaries, state: Option<Tensor<3>>) -> Tensor<3> {
        let (before, segments) = (self.history(), boundaries.segments());
        let (device, dtype, channels) = (x.device(), x.dtype(), x.dims()[2]);
        let bounds = boundaries.cu_seqlens().windows(2);
        // Only a segment shorter than the history needs more than its own inputs.
        let short = bounds.clone().any(|bounds| bounds[1] - bounds[0] < before);
        let in_front = if short { segments * before } else { 0 };
        let source = if short {
            let old = match state {
                Some(state) => state.cast(dtype).reshape([1, in_front, channels]),
                None => Tensor::zeros([1, in_front, channels], (&device, dtype)),
            };
            Tensor::cat(vec![old, x], 1)
        } else {
            x
        };
        let last = bounds.enumerate().flat_map(|(segment, bounds)| {
            let own = before.min(bounds[1] - bounds[0]);
            let old = (segment + 1) * before - (before - own)..(segment + 1) * before;
            old.chain(in_front + bounds[1] - own..in_front + bounds[1])
        });
        source.select(1, indices(last.collect(), &device)).reshape([segments, before, channels])
    }

    fn check_channels(&self, got: usize) {
        let [channels, _, _] = self.weight.shape().dims();
        assert!(got == channels, "ShortConvolution: `x` has {got} channels, the filter {channels}");
    }

    fn check_state(&self, state: &Tensor<3>, sequences: usize) {
        let [channels, _, _] = self.weight.shape().dims();
        let need = [sequences, self.history(), channels];
        assert!(state.dims() == need, "ShortConvolution: `state` {:?} must be {need:?}", state.dims());
    }
}

impl ModuleDisplay for ShortConvolution {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [channels, _, taps] = self.weight.shape().dims();
        let activation = self.activation.map_or("none".to_string(), |activation| activation.to_string());
        content
            .add("channels", &channels)
            .add("kernel_size", &taps)
            .add("bias", &self.bias.is_some())
            .add("activation", &activation)
            .optional()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

    const CHANNELS: usize = 3;

    /// One sequence `[time, CHANNELS]` after `history` `[W-1, CHANNELS]`: result and new history.
    fn by_hand(
        x: &[f64],
        history: &[f64],
        weight: &[f64],
        bias: Option<&[f64]>,
        silu: bool,
    ) -> (Vec<f64>, Vec<f64>) {
        let taps = weight.len() / CHANNELS;
        let all: Vec<f64> = history.iter().chain(x).copied().collect();
        let y = (0..x.len())
            .map(|i| {
                let (t, c) = (i / CHANNELS, i % CHANNELS);
                let sum: f64 = (0..taps).map(|j| weight[c * taps + j] * all[(t + j) * CHANNELS + c]).sum();
                let sum = sum + bias.map_or(0.0, |bias| bias[c]);
                if silu { sum / (1.0 + (-sum).exp()) } else { sum }
            })
            .collect();
        (y, all[x.len()..].to_vec())
    }

    fn layer(taps: usize, bias: bool, silu: bool, device: &Device) -> (ShortConvolution, Vec<f64>, Vec<f64>) {
        let (weight, offsets) = (ramp(CHANNELS * taps, 0.8), ramp(CHANNELS, 0.5));
        let mut layer = ShortConvolutionConfig::new(CHANNELS, taps)
            .with_bias(bias)
            .with_activation(silu.then_some(GateActivation::Swish))
            .init(device);
        layer.weight = Param::from_tensor(float32(&weight, [CHANNELS, 1, taps], device));
        layer.bias = bias.then(|| Param::from_tensor(float32(&offsets, [CHANNELS], device)));
        (layer, weight, offsets)
    }

    #[test]
    fn matches_a_computation_by_hand_at_every_length() {
        for device in devices() {
            for (taps, bias, silu) in [(4, true, true), (4, false, false), (1, true, false), (2, false, true)]
            {
                let (layer, weight, offsets) = layer(taps, bias, silu, &device);
                let offsets = bias.then_some(offsets.as_slice());
                // Sequences shorter than the history keep part of it.
                for time in [1, 2, 3, 4, 9] {
                    let x = ramp(2 * time * CHANNELS, 1.5);
                    let state = ramp(2 * (taps - 1) * CHANNELS, 0.9);
                    let mut expected = (Vec::new(), Vec::new());
                    for row in 0..2 {
                        let row_x = &x[row * time * CHANNELS..][..time * CHANNELS];
                        let row_state = &state[row * (taps - 1) * CHANNELS..][..(taps - 1) * CHANNELS];
                        let (y, next) = by_hand(row_x, row_state, &weight, offsets, silu);
                        expected.0.extend(y);
                        expected.1.extend(next);
                    }
                    let x_tensor = float32(&x, [2, time, CHANNELS], &device);
                    let state_tensor = float32(&state, [2, taps - 1, CHANNELS], &device);
                    let (y, next) = layer.forward(x_tensor.clone(), None, Some(state_tensor));
                    assert_eq!(next.dims(), [2, taps - 1, CHANNELS]);
                    assert_close(&values(y), &expected.0, 1e-6);
                    assert_close(&values(next), &expected.1, 1e-6);

                    let zeros = vec![0.0; (taps - 1) * CHANNELS];
                    let (first, _) = by_hand(&x[..time * CHANNELS], &zeros, &weight, offsets, silu);
                    let (fresh, _) = layer.forward(x_tensor, None, None);
                    assert_close(&values(fresh)[..time * CHANNELS], &first, 1e-6);
                }
            }
        }
    }

    #[test]
    fn streaming_equals_the_whole_sequence() {
        for device in devices() {
            for taps in [1, 4] {
                let (layer, _, _) = layer(taps, true, true, &device);
                let x = float32(&ramp(2 * 9 * CHANNELS, 1.0), [2, 9, CHANNELS], &device);
                let (whole, last) = layer.forward(x.clone(), None, None);
                let mut state = layer.empty_state(2, &device);
                let mut pieces = Vec::new();
                let (prefix, after) = layer.forward(x.clone().narrow(1, 0, 2), None, Some(state));
                state = after;
                pieces.push(prefix);
                for t in 2..9 {
                    let (y, after) = layer.step(x.clone().narrow(1, t, 1).squeeze_dim(1), state);
                    state = after;
                    pieces.push(y.unsqueeze_dim(1));
                }
                assert_close(&values(Tensor::cat(pieces, 1)), &values(whole), 1e-6);
                assert_eq!(values(state), values(last));
            }
        }
    }

    #[test]
    fn packed_segments_do_not_see_one_another() {
        for device in devices() {
            for taps in [1, 4] {
                let (layer, _, _) = layer(taps, false, true, &device);
                let boundaries = Boundaries::new(&[0, 1, 3, 8], 8).unwrap();
                let x = float32(&ramp(8 * CHANNELS, 1.0), [1, 8, CHANNELS], &device);
                let state = float32(&ramp(3 * (taps - 1) * CHANNELS, 2.0), [3, taps - 1, CHANNELS], &device);
                for given in [None, Some(state)] {
                    let (packed, last) = layer.forward(x.clone(), Some(&boundaries), given.clone());
                    let (mut outputs, mut states) = (Vec::new(), Vec::new());
                    for (segment, bounds) in boundaries.cu_seqlens().windows(2).enumerate() {
                        let piece = x.clone().narrow(1, bounds[0], bounds[1] - bounds[0]);
                        let own = given.clone().map(|state| {
                            let rows = values(state);
                            let size = (taps - 1) * CHANNELS;
                            float32(&rows[segment * size..][..size], [1, taps - 1, CHANNELS], &device)
                        });
                        let (y, after) = layer.forward(piece, None, own);
                        outputs.extend(values(y));
                        states.extend(values(after));
                    }
                    assert_close(&values(packed), &outputs, 1e-6);
                    assert_close(&values(last), &states, 1e-6);
                }
                // One segment is an ordinary sequence.
                let single = Boundaries::new(&[0, 8], 8).unwrap();
                let (one, _) = layer.forward(x.clone(), Some(&single), None);
                assert_eq!(values(one), values(layer.forward(x.clone(), None, None).0));
            }
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        for device in devices() {
            let boundaries = Boundaries::new(&[0, 2, 5], 5).unwrap();
            let convolve = |x: Tensor<3>, weight: Tensor<3>, state: Tensor<3>, packed: bool| {
                let layer = ShortConvolution {
                    weight: Param::initialized(Default::default(), weight),
                    bias: None,
                    activation: Some(GateActivation::Swish),
                };
                let (y, last) = layer.forward(x, packed.then_some(&boundaries), Some(state));
                let y_weight = float64(&ramp(15, 1.3), [1, 5, 3], &device);
                let [rows, before, _] = last.dims();
                let last_weight = float64(&ramp(rows * before * 3, 0.7), [rows, before, 3], &device);
                (y * y_weight).sum() + (last * last_weight).sum()
            };
            let (x, weight) = (ramp(15, 1.0), ramp(12, 0.8));
            for packed in [false, true] {
                let rows = if packed { 2 } else { 1 };
                let state = ramp(rows * 9, 0.6);
                let x_tensor = float64(&x, [1, 5, 3], &device);
                let weight_tensor = float64(&weight, [3, 1, 4], &device);
                let state_tensor = float64(&state, [rows, 3, 3], &device);
                check_gradients(&x, [1, 5, 3], &device, |x| {
                    convolve(x, weight_tensor.clone(), state_tensor.clone(), packed)
                });
                check_gradients(&weight, [3, 1, 4], &device, |weight| {
                    convolve(x_tensor.clone(), weight, state_tensor.clone(), packed)
                });
                check_gradients(&state, [rows, 3, 3], &device, |state| {
                    convolve(x_tensor.clone(), weight_tensor.clone(), state, packed)
                });
            }
        }
    }

    #[test]
    fn starts_like_pytorchs_convolution() {
        for device in devices() {
            let layer = ShortConvolutionConfig::new(200, 4).with_bias(true).init(&device);
            let weights = values(layer.weight.val());
            assert!(weights.iter().all(|weight| weight.abs() <= 0.5));
            assert!(weights.iter().any(|weight| weight.abs() > 0.4));
            let biases = values(layer.bias.unwrap().val());
            assert!(
                biases.iter().all(|bias| bias.abs() <= 0.5) && biases.iter().any(|bias| bias.abs() > 0.3)
            );
        }
    }

    #[test]
    fn refuses_bad_configurations() {
        let device = devices().remove(0);
        assert_eq!(ShortConvolutionConfig::new(0, 4).try_init(&device).unwrap_err().field, "channels");
        assert_eq!(ShortConvolutionConfig::new(4, 0).try_init(&device).unwrap_err().field, "kernel_size");
    }

    #[test]
    #[should_panic(expected = "`state` [1, 3, 3] must be [2, 3, 3]")]
    fn state_of_another_batch_panics() {
        let device = devices().remove(0);
        let (layer, _, _) = layer(4, false, true, &device);
        let x = Tensor::zeros([2, 5, CHANNELS], &device);
        layer.forward(x, None, Some(layer.empty_state(1, &device)));
    }
}
