//! HGRN2's layer: the gate of HGRN, with what it forgets as key of a matrix state.

use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use gatekit_core::conv::ShortConvolution;
use gatekit_core::gate::GateActivation;
use gatekit_core::norm::{RmsNorm, RmsNormConfig};
use gatekit_core::scan::{ScanForm, ScanOptions, hgrn2};
use gatekit_core::sequence::Boundaries;
use gatekit_core::{ConfigError, ModuleConfig, init};

use crate::recurrent::{
    Passage, RecurrentMixer, RecurrentState, at_least_one, heads, short_convolution, side_by_side,
};

/// Channels of a head where the number of heads is not given.
const HEAD_DIM: usize = 128;

/// Added to the mean square in the norm: what the released models were trained with, whatever their
/// configuration says.
const NORM_EPS: f64 = 1e-5;

/// Configuration of [`Hgrn2`]. Field names are those of flash-linear-attention's models.
#[derive(Config, Debug)]
pub struct Hgrn2Config {
    /// Width `D` of input and output.
    pub hidden_size: usize,
    /// Number of heads, which divides `D`; `None` (the default): `D / 128`.
    #[config(default = "None")]
    pub num_heads: Option<usize>,
    /// Short causal convolutions on queries, forget gate and input, without activation. Default false.
    #[config(default = false)]
    pub use_short_conv: bool,
    /// Width of these convolutions. Default 4.
    #[config(default = 4)]
    pub conv_size: usize,
}

impl Hgrn2Config {
    /// The number of heads.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] unless it is at least 1 and divides `hidden_size`.
    pub fn heads(&self) -> Result<usize, ConfigError> {
        let width = self.hidden_size;
        match self.num_heads {
            Some(heads) if heads > 0 && width.is_multiple_of(heads) => Ok(heads),
            None if width.is_multiple_of(HEAD_DIM) => Ok(width / HEAD_DIM),
            Some(heads) => {
                Err(ConfigError::new("num_heads", heads, format!("a divisor of hidden_size = {width}")))
            }
            None => {
                let need = format!("a number, as hidden_size = {width} is no multiple of {HEAD_DIM}");
                Err(ConfigError::new("num_heads", "null", need))
            }
        }
    }
}

impl ModuleConfig for Hgrn2Config {
    type Module = Hgrn2;

    fn try_init(&self, device: &Device) -> Result<Hgrn2, ConfigError> {
        at_least_one(&[("hidden_size", self.hidden_size)])?;
        let (width, num_heads) = (self.hidden_size, self.heads()?);
        let linear = || init::linear(width, width, false, device);
        let convolution = || short_convolution(self.use_short_conv, width, self.conv_size, None, device);
        Ok(Hgrn2 {
            q_proj: linear(),
            f_proj: linear(),
            i_proj: linear(),
            q_conv1d: convolution()?,
            f_conv1d: convolution()?,
            i_conv1d: convolution()?,
            g_norm: RmsNormConfig::new(width).with_eps(NORM_EPS).try_init(device)?,
            o_proj: linear(),
            num_heads,
            scan: ScanOptions::default(),
        })
    }
}

/// Gated linear attention whose write key is what the forget gate takes away.
///
/// ```text
/// q = silu(W_q x)    f = W_f x    v = W_i x                (each convolved first, with convolutions)
/// a = lb + (1 - lb) sigmoid(f)                             forget gate per key channel, lb its floor
/// S_t = diag(a_t) S_{t-1} + (1 - a_t) v_t^T        o_t = K^-1/2 S_t^T q_t        per head
/// y = W_o RMSNorm(o)                                       the norm over all heads together
/// ```
///
/// The floor comes with the context, see
/// [`MixerContext::lower_bound`](crate::backbone::MixerContext::lower_bound). Qin et al. 2024,
/// arXiv 2404.07904, eq. 5; the norm's eps is 1e-5 always. Weights start normal(0, 0.02), norms at 1.
#[derive(Module, Debug)]
pub struct Hgrn2 {
    /// Queries, `D -> D`.
    pub q_proj: Linear,
    /// Forget gate, `D -> D`.
    pub f_proj: Linear,
    /// Values, `D -> D`.
    pub i_proj: Linear,
    /// Short convolution of the queries.
    pub q_conv1d: Option<ShortConvolution>,
    /// Short convolution of the forget gate's logits.
    pub f_conv1d: Option<ShortConvolution>,
    /// Short convolution of the values.
    pub i_conv1d: Option<ShortConvolution>,
    /// Norm of the output.
    pub g_norm: RmsNorm,
    /// Output, `D -> D`.
    pub o_proj: Linear,
    num_heads: usize,
    #[module(skip)]
    scan: ScanOptions,
}

impl RecurrentMixer for Hgrn2 {
    fn scan(
        &self,
        x: Tensor<3>,
        boundaries: Option<&Boundaries>,
        lower_bound: Option<Tensor<1>>,
        state: Option<RecurrentState>,
    ) -> (Tensor<3>, RecurrentState) {
        let [_, time, width] = x.dims();
        let mut passage = Passage::new(&x, boundaries, state);
        let q = passage.convolve(self.q_conv1d.as_ref(), self.q_proj.forward(x.clone()));
        let f = passage.convolve(self.f_conv1d.as_ref(), self.f_proj.forward(x.clone()));
        let v = passage.convolve(self.i_conv1d.as_ref(), self.i_proj.forward(x));
        let scanned = hgrn2(
            heads(GateActivation::Swish.apply(q), self.num_heads),
            heads(f, self.num_heads),
            heads(v, self.num_heads),
            lower_bound.map(|floor| floor.reshape([self.num_heads, width / self.num_heads])),
            passage.memory.take(),
            boundaries,
            &self.scan,
        );
        let y = self.g_norm.forward(side_by_side(scanned.output));
        (self.o_proj.forward(y), passage.end(scanned.final_state, time))
    }

    fn memory_dims(&self, batch: usize) -> [usize; 4] {
        let head_dim = self.q_proj.weight.lazy_shape()[0] / self.num_heads;
        [batch, self.num_heads, head_dim, head_dim]
    }

    fn convolutions(&self) -> Vec<&ShortConvolution> {
        [&self.q_conv1d, &self.f_conv1d, &self.i_conv1d].into_iter().flatten().collect()
    }

    fn with_scan_form(mut self, form: ScanForm) -> Self {
        self.scan.form = form;
        self
    }
}
