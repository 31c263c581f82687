//! The layer: projections, convolutions, gates, scan, gated norm.

use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{DType, Device, Tensor};
use gatekit_core::conv::{ShortConvolution, ShortConvolutionConfig};
use gatekit_core::decay::log_sigmoid_gate;
use gatekit_core::gate::GateActivation;
use gatekit_core::norm::{GatedRmsNorm, GatedRmsNormConfig};
use gatekit_core::scan::{ScanForm, ScanOptions, StepDecay, gated_linear_attention, linear_recurrence_step};
use gatekit_core::sequence::{Boundaries, Packing};
use gatekit_core::{ConfigError, InputError, ModuleConfig, init};

use crate::backbone::{
    MixerContext, MixerState, TokenMixer, check_shape, no_more_tensors, state_data, take_state_tensor,
    tensor_bytes,
};
use crate::recurrent::{expanded, heads};
use gatekit_core::checkpoint::{NamedTensors, TensorError};

/// Configuration of [`GatedLinearAttention`]. Field names are those of the released models.
#[derive(Config, Debug)]
pub struct GatedLinearAttentionConfig {
    /// Width `D` of input and output.
    pub hidden_size: usize,
    /// Number of heads `H`.
    #[config(default = 4)]
    pub num_heads: usize,
    /// Number of key and value heads; fewer than `num_heads`: keys, values and decays are shared
    /// by `num_heads / num_kv_heads` consecutive query heads. `None`: `num_heads`.
    pub num_kv_heads: Option<usize>,
    /// Keys of all heads together are `expand_k * D` wide; must be an integer divisible by `H`.
    #[config(default = 0.5)]
    pub expand_k: f64,
    /// Values of all heads together are `expand_v * D` wide; must be an integer divisible by `H`.
    #[config(default = 1.0)]
    pub expand_v: f64,
    /// Activation of queries and keys, after the convolution: `relu`, `silu`, `sigmoid`, ...;
    /// `None`: none.
    pub feature_map: Option<String>,
    /// Short causal convolutions, followed by SiLU, on queries, keys and values.
    #[config(default = false)]
    pub use_short_conv: bool,
    /// Width of these convolutions.
    #[config(default = 4)]
    pub conv_size: usize,
    /// Whether they have a bias.
    #[config(default = false)]
    pub conv_bias: bool,
    /// Whether the output is gated.
    #[config(default = true)]
    pub use_output_gate: bool,
    /// Activation of the output gate: `swish`, `silu` (the same function), `sigmoid`, `relu`, ...
    ///
    /// With `swish` the norm's weight is called `g_norm_swish_gate.weight`, else `g_norm.weight`,
    /// as in the released models.
    #[config(default = "String::from(\"swish\")")]
    pub gate_fn: String,
    /// Rank of the projection that makes the decay.
    #[config(default = 16)]
    pub gate_low_rank_dim: usize,
    /// Divides the log decay: `tau`. Larger: slower forgetting.
    #[config(default = 16.0)]
    pub gate_logit_normalizer: f64,
    /// Lower bound of the log decay after the division, at most 0. `None`: none.
    pub clamp_min: Option<f64>,
    /// Added to the mean square in the norm of the output.
    #[config(default = 1e-5)]
    pub norm_eps: f64,
    /// Steps that the scan treats at once. Never changes the result.
    #[config(default = 64)]
    pub chunk_size: usize,
    /// Tiles within a chunk; divides `chunk_size`. Never changes the result.
    #[config(default = 16)]
    pub sub_chunk_size: usize,
}

/// Sizes that follow from a configuration.
struct Sizes {
    /// Keys of all query heads.
    key: usize,
    /// Values of all query heads.
    value: usize,
    /// Key and value heads.
    kv_heads: usize,
    /// Keys of the key heads.
    kv_key: usize,
    /// Values of the value heads.
    kv_value: usize,
}

impl GatedLinearAttentionConfig {
    fn sizes(&self) -> Result<Sizes, ConfigError> {
        let heads = self.num_heads;
        for (field, size) in [
            ("hidden_size", self.hidden_size),
            ("num_heads", heads),
            ("gate_low_rank_dim", self.gate_low_rank_dim),
        ] {
            if size == 0 {
                return Err(ConfigError::new(field, 0, "at least 1"));
            }
        }
        let expanded = |field, ratio| expanded(field, ratio, self.hidden_size, heads);
        let (key, value) = (expanded("expand_k", self.expand_k)?, expanded("expand_v", self.expand_v)?);
        let kv_heads = self.num_kv_heads.unwrap_or(heads);
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(ConfigError::new("num_kv_heads", kv_heads, format!("a divisor of {heads} heads")));
        }
        let groups = heads / kv_heads;
        Ok(Sizes { key, value, kv_heads, kv_key: key / groups, kv_value: value / groups })
    }

    fn check(&self) -> Result<(), ConfigError> {
        let tau = self.gate_logit_normalizer;
        if !(tau.is_finite() && tau > 0.0) {
            return Err(ConfigError::new("gate_logit_normalizer", tau, "a positive number"));
        }
        if let Some(floor) = self.clamp_min.filter(|floor| !(floor.is_finite() && *floor <= 0.0)) {
            return Err(ConfigError::new("clamp_min", floor, "at most 0, or null"));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return Err(ConfigError::new("norm_eps", self.norm_eps, "a positive number"));
        }
        if self.use_short_conv && self.conv_size == 0 {
            return Err(ConfigError::new("conv_size", 0, "at least 1"));
        }
        let (chunk, sub_chunk) = (self.chunk_size, self.sub_chunk_size);
        if sub_chunk == 0 {
            return Err(ConfigError::new("sub_chunk_size", sub_chunk, "at least 1"));
        }
        if chunk == 0 || !chunk.is_multiple_of(sub_chunk) {
            return Err(ConfigError::new(
                "chunk_size",
                chunk,
                format!("a multiple of {sub_chunk}, the sub-chunk"),
            ));
        }
        Ok(())
    }
}

fn activation(field: &str, name: &str) -> Result<GateActivation, ConfigError> {
    GateActivation::parse(name).map_err(|error| ConfigError::new(field, error.got, error.need))
}

impl ModuleConfig for GatedLinearAttentionConfig {
    type Module = GatedLinearAttention;

    fn try_init(&self, device: &Device) -> Result<GatedLinearAttention, ConfigError> {
        let sizes = self.sizes()?;
        self.check()?;
        let width = self.hidden_size;
        let linear = |from, to, bias| init::linear(from, to, bias, device);
        let convolution = |channels| {
            self.use_short_conv
                .then(|| {
                    ShortConvolutionConfig::new(channels, self.conv_size)
                        .with_bias(self.conv_bias)
                        .with_activation(Some(GateActivation::Swish))
                        .try_init(device)
                })
                .transpose()
        };
        let gate_activation = activation("gate_fn", &self.gate_fn)?;
        let norm = GatedRmsNormConfig::new(sizes.value / self.num_heads)
            .with_eps(self.norm_eps)
            .with_activation(gate_activation)
            .try_init(device)?;
        let (g_norm_swish_gate, g_norm) = match self.use_output_gate && self.gate_fn == "swish" {
            true => (Some(norm), None),
            false => (None, Some(norm)),
        };
        Ok(GatedLinearAttention {
            q_proj: linear(width, sizes.key, false),
            k_proj: linear(width, sizes.kv_key, false),
            v_proj: linear(width, sizes.kv_value, false),
            q_conv1d: convolution(sizes.key)?,
            k_conv1d: convolution(sizes.kv_key)?,
            v_conv1d: convolution(sizes.kv_value)?,
            gk_proj: vec![
                linear(width, self.gate_low_rank_dim, false),
                linear(self.gate_low_rank_dim, sizes.kv_key, true),
            ],
            g_proj: self.use_output_gate.then(|| linear(width, sizes.value, false)),
            g_norm_swish_gate,
            g_norm,
            o_proj: linear(sizes.value, width, false),
            num_heads: self.num_heads,
            num_kv_heads: sizes.kv_heads,
            key_dim: sizes.key / self.num_heads,
            value_dim: sizes.value / self.num_heads,
            feature_map: self
                .feature_map
                .as_deref()
                .map(|name| activation("feature_map", name))
                .transpose()?,
            gate_activation,
            gate_logit_normalizer: self.gate_logit_normalizer,
            clamp_min: self.clamp_min,
            scan: ScanOptions {
                chunk_size: self.chunk_size,
                sub_chunk_size: self.sub_chunk_size,
                ..ScanOptions::default()
            },
        })
    }
}

/// Gated linear attention with a decay per key channel that depends on the data.
///
/// ```text
/// q = W_q x   k = W_k x   v = W_v x              (each: SiLU(conv(.)) with short convolutions)
/// g = logsigmoid(W_2 (W_1 x) + b_2) / tau        (then max(g, clamp_min) if set)
/// S_t = diag(exp g_t) S_{t-1} + k_t v_t^T        o_t = K^-1/2 S_t^T q_t       per head
/// y = W_o (RMSNorm_head(o) * swish(W_g x))
/// ```
///
/// Yang et al. 2023, arXiv 2312.06635, eq. 3 (recurrence), section 4.4 (layer); as released, with
/// an RMSNorm and no bias in the output gate. Linear weights start as normal(0, 0.02), biases at
/// 0, so that the decay starts at `0.5^(1/tau)`, 0.958 by default.
#[derive(Module, Debug)]
pub struct GatedLinearAttention {
    /// Queries, `D -> expand_k D`.
    pub q_proj: Linear,
    /// Keys, `D -> expand_k D * num_kv_heads / H`.
    pub k_proj: Linear,
    /// Values, `D -> expand_v D * num_kv_heads / H`.
    pub v_proj: Linear,
    /// Short convolution of the queries.
    pub q_conv1d: Option<ShortConvolution>,
    /// Short convolution of the keys.
    pub k_conv1d: Option<ShortConvolution>,
    /// Short convolution of the values.
    pub v_conv1d: Option<ShortConvolution>,
    /// Decay logits in two steps, `D -> gate_low_rank_dim -> ` width of the keys (with bias).
    pub gk_proj: Vec<Linear>,
    /// Output gate, `D -> expand_v D`.
    pub g_proj: Option<Linear>,
    /// Norm of every head's output, under this name when the output gate's activation is `swish`.
    pub g_norm_swish_gate: Option<GatedRmsNorm>,
    /// Norm of every head's output, under this name otherwise.
    pub g_norm: Option<GatedRmsNorm>,
    /// Output, `expand_v D -> D`.
    pub o_proj: Linear,
    num_heads: usize,
    num_kv_heads: usize,
    /// Keys of one head.
    key_dim: usize,
    /// Values of one head.
    value_dim: usize,
    #[module(skip)]
    feature_map: Option<GateActivation>,
    #[module(skip)]
    gate_activation: GateActivation,
    gate_logit_normalizer: f64,
    clamp_min: Option<f64>,
    #[module(skip)]
    scan: ScanOptions,
}

/// Streaming state of [`GatedLinearAttention`]: its size does not depend on the tokens so far.
#[derive(Debug, Clone)]
pub struct GlaLayerState {
    /// The matrix `S` of every head, `[batch, H, K, V]`, float32.
    pub recurrent: Tensor<4>,
    /// The convolutions' last inputs; `None` without convolutions, or before the first token.
    pub windows: Option<ConvolutionWindows>,
}

/// The last `conv_size - 1` inputs of the three convolutions, `[batch, conv_size - 1, channels]`.
#[derive(Debug, Clone)]
pub struct ConvolutionWindows {
    /// Of the queries.
    pub q: Tensor<3>,
    /// Of the keys.
    pub k: Tensor<3>,
    /// Of the values.
    pub v: Tensor<3>,
}

/// What the gates of a layer let through.
#[derive(Debug, Clone)]
pub struct GateValues {
    /// Decay `alpha = exp(g)` in (0, 1), `[batch, time, num_kv_heads, K]`: the share of the memory
    /// in each key channel that survives the step.
    pub forget: Tensor<4>,
    /// Output gate after its activation, `[batch, time, H, V]`.
    pub output: Option<Tensor<4>>,
}

impl GatedLinearAttention {
    /// A whole batch.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, time, D]`
    /// - `packing`: from a mask `[batch, time]`; padded tokens are removed, the output is 0 there
    /// - output: `[batch, time, D]`
    ///
    /// # Panics
    ///
    /// When the width of `x` is not `D`, or its batch and time are not those of the packing.
    pub fn forward(&self, x: Tensor<3>, packing: Option<&Packing>) -> Tensor<3> {
        self.forward_with_state(x, packing, None).0
    }

    /// A whole batch, continued from a state.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, time, D]`
    /// - `packing`: from a mask `[batch, time]`; padded tokens are removed, the output is 0 there
    /// - `initial_state`: as [`empty_state`](TokenMixer::empty_state); `None`: empty
    /// - output: `[batch, time, D]` and the state after every row's last (real) token
    ///
    /// # Panics
    ///
    /// When `x` has no time step or its width is not `D`, or the state's shapes are not those of the
    /// empty state.
    pub fn forward_with_state(
        &self,
        x: Tensor<3>,
        packing: Option<&Packing>,
        initial_state: Option<GlaLayerState>,
    ) -> (Tensor<3>, GlaLayerState) {
        assert!(x.dims()[1] > 0, "gla: `x` has no time step, shape {:?}", x.dims());
        match packing {
            None => self.scan(x, None, initial_state),
            Some(packing) => {
                let (y, state) = self.scan(packing.pack(x), Some(packing.boundaries()), initial_state);
                (packing.unpack(y), state)
            }
        }
    }

    /// The same layer with another form of the scan. All compute the same function; a new layer
    /// has [`ScanForm::Auto`], the fastest on its device.
    pub fn with_scan_form(mut self, form: ScanForm) -> Self {
        self.scan.form = form;
        self
    }

    /// The gates' values for `x` `[batch, time, D]`, for probes. Costs the gates' projections.
    pub fn gates(&self, x: Tensor<3>) -> GateValues {
        let output = self.g_proj.as_ref().map(|projection| {
            let logits = projection.forward(x.clone());
            self.gate_activation.apply(heads(logits, self.num_heads))
        });
        GateValues { forget: heads(self.log_decay(x), self.num_kv_heads).exp(), output }
    }

    /// The layer on a batch or, with boundaries, on packed sequences.
    fn scan(
        &self,
        x: Tensor<3>,
        boundaries: Option<&Boundaries>,
        state: Option<GlaLayerState>,
    ) -> (Tensor<3>, GlaLayerState) {
        let (recurrent, windows) = match state {
            Some(state) => (Some(state.recurrent), state.windows),
            None => (None, None),
        };
        let ([q, k, v], windows) = self
            .project(x.clone(), windows, |convolution, x, window| convolution.forward(x, boundaries, window));
        let scanned = gated_linear_attention(
            heads(q, self.num_heads),
            self.shared(k),
            self.shared(v),
            self.shared(self.log_decay(x.clone())),
            recurrent,
            boundaries,
            &self.scan,
        );
        (self.output(scanned.output, x), GlaLayerState { recurrent: scanned.final_state, windows })
    }

    /// Queries, keys and values, convolved and mapped; `convolve` runs over whole sequences or one step.
    fn project<const D: usize>(
        &self,
        x: Tensor<D>,
        windows: Option<ConvolutionWindows>,
        convolve: impl Fn(&ShortConvolution, Tensor<D>, Option<Tensor<3>>) -> (Tensor<D>, Tensor<3>),
    ) -> ([Tensor<D>; 3], Option<ConvolutionWindows>) {
        let q = self.q_proj.forward(x.clone());
        let k = self.k_proj.forward(x.clone());
        let v = self.v_proj.forward(x);
        let (q, k, v, windows) = match (&self.q_conv1d, &self.k_conv1d, &self.v_conv1d) {
            (Some(q_conv1d), Some(k_conv1d), Some(v_conv1d)) => {
                let (q_window, k_window, v_window) = match windows {
                    Some(windows) => (Some(windows.q), Some(windows.k), Some(windows.v)),
                    None => (None, None, None),
                };
                let (q, q_window) = convolve(q_conv1d, q, q_window);
                let (k, k_window) = convolve(k_conv1d, k, k_window);
                let (v, v_window) = convolve(v_conv1d, v, v_window);
                (q, k, v, Some(ConvolutionWindows { q: q_window, k: k_window, v: v_window }))
            }
            _ => {
                assert!(
                    windows.is_none(),
                    "`state` has convolution windows, but this layer has no convolutions"
                );
                (q, k, v, None)
            }
        };
        match self.feature_map {
            Some(map) => ([map.apply(q), map.apply(k), v], windows),
            None => ([q, k, v], windows),
        }
    }

    /// Log decay `g`, as wide as the keys.
    fn log_decay<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let logits = self.gk_proj.iter().fold(x, |x, projection| projection.forward(x));
        log_sigmoid_gate(logits, self.gate_logit_normalizer, self.clamp_min)
    }

    /// `[B, T, G * dim]` to `[B, T, H, dim]`: every key head serves `H / G` consecutive query heads.
    fn shared(&self, x: Tensor<3>) -> Tensor<4> {
        let x = heads(x, self.num_kv_heads);
        let [batch, time, groups, dim] = x.dims();
        match self.num_heads / groups {
            1 => x,
            repeats => {
                let shape = [batch, time, self.num_heads, dim];
                x.unsqueeze_dim::<5>(3).expand([batch, time, groups, repeats, dim]).reshape(shape)
            }
        }
    }

    /// Gated norm of the heads' output `[B, T, H, V]`, and the last projection.
    fn output(&self, scanned: Tensor<4>, x: Tensor<3>) -> Tensor<3> {
        let [batch, time, _, _] = scanned.dims();
        let gate = self.g_proj.as_ref().map(|projection| heads(projection.forward(x), self.num_heads));
        let norm = self.g_norm_swish_gate.as_ref().or(self.g_norm.as_ref()).expect("one of the two norms");
        let normed = norm.forward(scanned, gate);
        self.o_proj.forward(normed.reshape([batch, time, self.num_heads * self.value_dim]))
    }
}

impl TokenMixer for GatedLinearAttention {
    type State = GlaLayerState;

    fn forward(&self, x: Tensor<3>, context: &MixerContext<'_>) -> Tensor<3> {
        Self::forward(self, x, context.packing)
    }

    fn prefill(
        &self,
        x: Tensor<3>,
        state: GlaLayerState,
        _: &MixerContext<'_>,
    ) -> (Tensor<3>, GlaLayerState) {
        self.forward_with_state(x, None, Some(state))
    }

    fn step(&self, x: Tensor<2>, state: GlaLayerState, _: &MixerContext<'_>) -> (Tensor<2>, GlaLayerState) {
        let ([q, k, v], windows) = self.project(x.clone(), state.windows, |convolution, x, window| {
            let window = window.unwrap_or_else(|| convolution.empty_state(x.dims()[0], &x.device()));
            convolution.step(x, window)
        });
        let one_step = |x: Tensor<2>| x.unsqueeze_dim::<3>(1);
        let (output, recurrent) = linear_recurrence_step(
            heads(one_step(q), self.num_heads).squeeze_dim(1),
            self.shared(one_step(k)).squeeze_dim(1),
            self.shared(one_step(v)).squeeze_dim(1),
            StepDecay::PerKey(self.shared(one_step(self.log_decay(x.clone()))).squeeze_dim(1)),
            None,
            state.recurrent,
            self.scan.scale,
        );
        let y = self.output(output.unsqueeze_dim(1), one_step(x)).squeeze_dim(1);
        (y, GlaLayerState { recurrent, windows })
    }

    fn empty_state(&self, batch: usize, device: &Device) -> GlaLayerState {
        let shape = [batch, self.num_heads, self.key_dim, self.value_dim];
        let windows = match (&self.q_conv1d, &self.k_conv1d, &self.v_conv1d) {
            (Some(q), Some(k), Some(v)) => Some(ConvolutionWindows {
                q: q.empty_state(batch, device),
                k: k.empty_state(batch, device),
                v: v.empty_state(batch, device),
            }),
            _ => None,
        };
        GlaLayerState { recurrent: Tensor::zeros(shape, (device, DType::F32)), windows }
    }

    fn check_state(&self, state: &GlaLayerState, batch: usize) -> Result<(), InputError> {
        let need = [batch, self.num_heads, self.key_dim, self.value_dim];
        check_shape("recurrent", &state.recurrent.dims(), &need)?;
        let convolutions = (&self.q_conv1d, &self.k_conv1d, &self.v_conv1d);
        let need = match convolutions {
            (Some(q), Some(k), Some(v)) => Some([q, k, v].map(|convolution| convolution.state_dims(batch))),
            _ => None,
        };
        match (&state.windows, need) {
            (None, None) => Ok(()),
            (Some(got), Some([q, k, v])) => {
                check_shape("windows.q", &got.q.dims(), &q)?;
                check_shape("windows.k", &got.k.dims(), &k)?;
                check_shape("windows.v", &got.v.dims(), &v)
            }
            (Some(_), None) => {
                Err(InputError::new("windows", "convolution windows", "none: no convolutions here"))
            }
            (None, Some(_)) => Err(InputError::new("windows", "none", "the windows of three convolutions")),
        }
    }
}

impl MixerState for GlaLayerState {
    const MIXER: &'static str = "gated_linear_attention";

    fn bytes(&self) -> usize {
        let windows = self.windows.as_ref();
        tensor_bytes(&self.recurrent)
            + windows.map_or(0, |w| tensor_bytes(&w.q) + tensor_bytes(&w.k) + tensor_bytes(&w.v))
    }

    fn to_device(self, device: &Device) -> Self {
        Self {
            recurrent: self.recurrent.to_device(device),
            windows: self.windows.map(|windows| ConvolutionWindows {
                q: windows.q.to_device(device),
                k: windows.k.to_device(device),
                v: windows.v.to_device(device),
            }),
        }
    }

    fn to_tensors(&self) -> NamedTensors {
        let mut tensors = NamedTensors::from([("recurrent".to_string(), state_data(&self.recurrent))]);
        if let Some(windows) = &self.windows {
            for (name, window) in [("q", &windows.q), ("k", &windows.k), ("v", &windows.v)] {
                tensors.insert(format!("windows.{name}"), state_data(window));
            }
        }
        tensors
    }

    fn from_tensors(mut tensors: NamedTensors, device: &Device) -> Result<Self, TensorError> {
        let mut batch = None;
        let recurrent = take_state_tensor(&mut tensors, "recurrent", &mut batch, device)?;
        let convolves = !tensors.is_empty();
        let mut window = |name: &str| take_state_tensor(&mut tensors, name, &mut batch, device);
        let windows = match convolves {
            true => Some(ConvolutionWindows {
                q: window("windows.q")?,
                k: window("windows.k")?,
                v: window("windows.v")?,
            }),
            false => None,
        };
        no_more_tensors(tensors)?;
        Ok(Self { recurrent, windows })
    }
}
