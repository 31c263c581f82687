//! HGRN's layer: an elementwise gated recurrence with a vector state.

use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use gatekit_core::conv::ShortConvolution;
use gatekit_core::decay::{log_sigmoid_stable, lower_bounded_log_gate, lower_bounded_write_gate};
use gatekit_core::gate::{GateActivation, output_gate, sigmoid};
use gatekit_core::norm::{GatedRmsNorm, GatedRmsNormConfig};
use gatekit_core::scan::{ScanForm, elementwise_recurrence};
use gatekit_core::sequence::Boundaries;
use gatekit_core::{ConfigError, ModuleConfig, init};

use super::retention::norm_eps;
use crate::recurrent::{Passage, RecurrentMixer, RecurrentState, at_least_one, expanded, short_convolution};

/// Configuration of [`Hgrn`]. Field names are those of flash-linear-attention's models.
#[derive(Config, Debug)]
pub struct HgrnConfig {
    /// Width `D` of input and output.
    pub hidden_size: usize,
    /// The recurrence has `expand_ratio * D` channels. Default 1.
    #[config(default = 1.0)]
    pub expand_ratio: f64,
    /// Short causal convolutions on input and forget gate, without activation. Default false.
    #[config(default = false)]
    pub use_short_conv: bool,
    /// Width of these convolutions. Default 4.
    #[config(default = 4)]
    pub conv_size: usize,
    /// Added to the mean square in the norm of the output. Default 1e-5.
    #[config(default = 1e-5)]
    pub norm_eps: f64,
}

impl HgrnConfig {
    /// Channels of the recurrence, and so of the forget gates' floor.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an `expand_ratio` that gives no whole number of channels.
    pub fn channels(&self) -> Result<usize, ConfigError> {
        expanded("expand_ratio", self.expand_ratio, self.hidden_size, 1)
    }
}

impl ModuleConfig for HgrnConfig {
    type Module = Hgrn;

    fn try_init(&self, device: &Device) -> Result<Hgrn, ConfigError> {
        at_least_one(&[("hidden_size", self.hidden_size)])?;
        let (width, inner) = (self.hidden_size, self.channels()?);
        let convolution = || short_convolution(self.use_short_conv, inner, self.conv_size, None, device);
        Ok(Hgrn {
            i_proj: init::linear(width, inner, false, device),
            f_proj: init::linear(width, inner, false, device),
            g_proj: init::linear(width, inner, false, device),
            i_conv1d: convolution()?,
            f_conv1d: convolution()?,
            g_norm: GatedRmsNormConfig::new(inner)
                .with_eps(self.norm_eps)
                .with_activation(GateActivation::Swish)
                .try_init(device)
                .map_err(norm_eps)?,
            o_proj: init::linear(inner, width, false, device),
            form: ScanForm::Auto,
        })
    }
}

/// The hierarchically gated recurrence: every channel is a leaky memory, whose gate has a floor that
/// grows with the layer's depth.
///
/// ```text
/// f = W_f x        i = W_i x                         (each convolved first, with convolutions)
/// a = lb + (1 - lb) sigmoid(f)                       forget gate, lb its floor
/// h_t = a_t h_{t-1} + (1 - a_t) silu(i_t)            elementwise
/// y = W_o (RMSNorm(h) * swish(W_g x))                the norm over all channels
/// ```
///
/// The write gate is `1 - a = (1 - lb) sigmoid(-f)`, never subtracted. The floor comes with the
/// context, see [`MixerContext::lower_bound`](crate::backbone::MixerContext::lower_bound). Qin et
/// al. 2023, arXiv 2311.04823, eq. 1 to 5, real-valued as in flash-linear-attention. Weights start
/// normal(0, 0.02), norms at 1.
#[derive(Module, Debug)]
pub struct Hgrn {
    /// Input, `D -> expand_ratio D`.
    pub i_proj: Linear,
    /// Forget gate, `D -> expand_ratio D`.
    pub f_proj: Linear,
    /// Output gate, `D -> expand_ratio D`.
    pub g_proj: Linear,
    /// Short convolution of the input.
    pub i_conv1d: Option<ShortConvolution>,
    /// Short convolution of the forget gate's logits.
    pub f_conv1d: Option<ShortConvolution>,
    /// Norm of the output and its gate.
    pub g_norm: GatedRmsNorm,
    /// Output, `expand_ratio D -> D`.
    pub o_proj: Linear,
    #[module(skip)]
    form: ScanForm,
}

impl RecurrentMixer for Hgrn {
    fn scan(
        &self,
        x: Tensor<3>,
        boundaries: Option<&Boundaries>,
        lower_bound: Option<Tensor<1>>,
        state: Option<RecurrentState>,
    ) -> (Tensor<3>, RecurrentState) {
        let time = x.dims()[1];
        let mut passage = Passage::new(&x, boundaries, state);
        let i = passage.convolve(self.i_conv1d.as_ref(), self.i_proj.forward(x.clone()));
        let f = passage.convolve(self.f_conv1d.as_ref(), self.f_proj.forward(x.clone()));
        let (log_gate, write) = match lower_bound {
            None => (log_sigmoid_stable(f.clone()), sigmoid(f.neg())),
            Some(floor) => {
                let floor = floor.unsqueeze::<3>();
                (lower_bounded_log_gate(f.clone(), floor.clone()), lower_bounded_write_gate(f, floor))
            }
        };
        let input = output_gate(write, i, GateActivation::Swish);
        let memory = passage.memory.take().map(|memory| memory.flatten::<2>(1, 3));
        let scanned = elementwise_recurrence(input, log_gate, memory, boundaries, self.form);
        let y = self.g_norm.forward(scanned.output, Some(self.g_proj.forward(x)));
        let memory = scanned.final_state.unsqueeze_dims::<4>(&[1, 1]);
        (self.o_proj.forward(y), passage.end(memory, time))
    }

    fn memory_dims(&self, batch: usize) -> [usize; 4] {
        [batch, 1, 1, self.i_proj.weight.lazy_shape()[1]]
    }

    fn convolutions(&self) -> Vec<&ShortConvolution> {
        [&self.i_conv1d, &self.f_conv1d].into_iter().flatten().collect()
    }

    fn with_scan_form(mut self, form: ScanForm) -> Self {
        self.form = form;
        self
    }
}
