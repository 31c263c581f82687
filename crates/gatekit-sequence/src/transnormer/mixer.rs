//! The token mixer.

use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Bool, DType, Device, Tensor};
use gatekit_core::activation::FeatureMap;
use gatekit_core::gate::{GateActivation, output_gate};
use gatekit_core::lrpe::{Lrpe, LrpeConfig};
use gatekit_core::scan::{LightningAttention, ScanForm};
use gatekit_core::simple_rms_norm::{SimpleRmsNorm, SimpleRmsNormConfig};
use gatekit_core::{ConfigError, InputError, ModuleConfig, init};

use super::state::NormLinearAttentionState;
use crate::backbone::check_shape;

/// Configuration of [`NormLinearAttention`]. Field names are those of the released models.
#[derive(Config, Debug)]
pub struct NormLinearAttentionConfig {
    /// Width `D` of input and output; divisible by `num_heads`.
    pub embed_dim: usize,
    /// Width of all heads' queries (and of their keys, values and gates); divisible by `num_heads`.
    pub hidden_dim: usize,
    /// Number of heads `H`.
    pub num_heads: usize,
    /// One slope per head, at least 0: `exp(-slope)` of its memory survives a step. See
    /// [`slope_rates`](super::slope_rates).
    pub slope_rate: Vec<f64>,
    /// Trained relative positions in this layer.
    #[config(default = false)]
    pub use_lrpe: bool,
    /// Activation of queries and keys: `silu`, `relu`, `elu`, `1+elu` or `none`.
    #[config(default = "String::from(\"silu\")")]
    pub linear_act_fun: String,
    /// Biases in the projections.
    #[config(default = false)]
    pub bias: bool,
    /// Added to the mean square in the norm.
    #[config(default = 1e-6)]
    pub norm_eps: f64,
    /// The output gate `u`; without it (an ablation) the projection has three parts.
    #[config(default = true)]
    pub use_output_gate: bool,
    /// Steps that the attention computes together. Never changes the result.
    #[config(default = 256)]
    pub block_size: usize,
}

impl ModuleConfig for NormLinearAttentionConfig {
    type Module = NormLinearAttention;

    fn try_init(&self, device: &Device) -> Result<NormLinearAttention, ConfigError> {
        let heads = self.num_heads;
        if heads == 0 {
            return Err(ConfigError::new("num_heads", 0, "at least 1"));
        }
        for (field, size) in [("embed_dim", self.embed_dim), ("hidden_dim", self.hidden_dim)] {
            if size == 0 || !size.is_multiple_of(heads) {
                let need = format!("a positive multiple of {heads}, the number of heads");
                return Err(ConfigError::new(field, size, need));
            }
        }
        if self.slope_rate.len() != heads {
            let got = format!("{} slopes", self.slope_rate.len());
            return Err(ConfigError::new("slope_rate", got, format!("one for each of {heads} heads")));
        }
        let attention = LightningAttention::new(&self.slope_rate)?.with_block_size(self.block_size)?;
        let feature_map = FeatureMap::parse(&self.linear_act_fun)
            .map_err(|error| ConfigError::new("linear_act_fun", error.got, error.need))?;
        let norm = SimpleRmsNormConfig::new().with_eps(self.norm_eps).try_init(device);
        let parts = if self.use_output_gate { 4 } else { 3 };
        let linear = |from, to| init::linear(from, to, self.bias, device);
        let lrpe = self.use_lrpe.then(|| LrpeConfig::new(heads, self.hidden_dim / heads).try_init(device));
        Ok(NormLinearAttention {
            qkvu_proj: linear(self.embed_dim, parts * self.hidden_dim),
            lrpe: lrpe.transpose()?,
            norm: norm.map_err(|error| ConfigError::new("norm_eps", error.got, error.need))?,
            out_proj: linear(self.hidden_dim, self.embed_dim),
            num_heads: heads,
            head_dim: self.hidden_dim / heads,
            use_output_gate: self.use_output_gate,
            feature_map,
            attention,
        })
    }
}

/// Linear attention with a constant decay, a norm and an output gate without activation.
///
/// ```text
/// [q, k, v, u] = W_qkvu x                          q = act(q), k = act(k)
/// q = lrpe(q), k = lrpe(k)                         (where LRPE is on)
/// o_s = sum_{t <= s} exp(-slope (s - t)) (q_s . k_t) v_t        per head
/// y = W_out (u * SRMSNorm(o))                      the norm over all heads together
/// ```
///
/// There is no denominator and no factor on the scores. With the decay the positions are the
/// paper's LRPE-d. Weights start as normal(0, 0.02), biases at 0. Qin et al. (arXiv 2307.14995),
/// sections 3.1 to 3.3; as released.
#[derive(Module, Debug)]
pub struct NormLinearAttention {
    /// Queries, keys, values and gates, in this order, `D -> 4 hidden_dim`.
    pub qkvu_proj: Linear,
    /// Positions of queries and keys.
    pub lrpe: Option<Lrpe>,
    /// Norm of all heads' output together.
    pub norm: SimpleRmsNorm,
    /// Output, `hidden_dim -> D`.
    pub out_proj: Linear,
    num_heads: usize,
    head_dim: usize,
    use_output_gate: bool,
    #[module(skip)]
    feature_map: FeatureMap,
    #[module(skip)]
    attention: LightningAttention,
}

/// What the projection of an input holds, heads apart but for the gate.
struct Projected {
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    u: Option<Tensor<3>>,
}

impl NormLinearAttention {
    /// A whole batch.
    ///
    /// Shapes and panics as [`forward_with_state`](Self::forward_with_state).
    pub fn forward(&self, x: Tensor<3>, padding_mask: Option<Tensor<2, Bool>>) -> Tensor<3> {
        self.forward_with_state(x, padding_mask, None).0
    }

    /// A whole batch, continued from a state.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, time, D]`
    /// - `padding_mask`: `[batch, time]`, `true` for real tokens. The values of the others are set
    ///   to zero; decay and positions still run over them
    /// - `initial_state`: as [`empty_state`](Self::empty_state); `None`: empty
    /// - output: `[batch, time, D]` and the state after the last step
    ///
    /// # Panics
    ///
    /// When `x` has no time step or its width is not `D`, or mask or state have another shape.
    pub fn forward_with_state(
        &self,
        x: Tensor<3>,
        padding_mask: Option<Tensor<2, Bool>>,
        initial_state: Option<NormLinearAttentionState>,
    ) -> (Tensor<3>, NormLinearAttentionState) {
        let [batch, time, _] = x.dims();
        assert!(time > 0, "transnormer: `x` has no time step, shape {:?}", x.dims());
        let (recurrent, position) = match initial_state {
            None => (None, 0),
            Some(state) => {
                self.assert_state(&state, batch);
                (Some(state.recurrent), state.position)
            }
        };
        let Projected { q, k, v, u } = self.project(x, position);
        let v = match padding_mask {
            None => v,
            Some(mask) => {
                assert!(
                    mask.dims() == [batch, time],
                    "transnormer: `padding_mask` has [batch, time] = {:?}, `x` [{batch}, {time}]",
                    mask.dims()
                );
                let shape = v.dims();
                v.mask_fill(mask.bool_not().reshape([batch, time, 1, 1]).expand(shape), 0.0)
            }
        };
        let scanned = self.attention.forward(q, k, v, recurrent, None);
        let state = NormLinearAttentionState { recurrent: scanned.final_state, position: position + time };
        (self.output(scanned.output, u), state)
    }

    /// Continues by one token: `x` and the output are `[batch, D]`.
    ///
    /// # Panics
    ///
    /// When the width of `x` is not `D`, or the state has another shape than
    /// [`empty_state`](Self::empty_state).
    pub fn step(
        &self,
        x: Tensor<2>,
        state: NormLinearAttentionState,
    ) -> (Tensor<2>, NormLinearAttentionState) {
        self.assert_state(&state, x.dims()[0]);
        let Projected { q, k, v, u } = self.project(x.unsqueeze_dim(1), state.position);
        let (output, recurrent) =
            self.attention.step(q.squeeze_dim(1), k.squeeze_dim(1), v.squeeze_dim(1), state.recurrent);
        let state = NormLinearAttentionState { recurrent, position: state.position + 1 };
        (self.output(output.unsqueeze_dim(1), u).squeeze_dim(1), state)
    }

    /// The state before the first token.
    pub fn empty_state(&self, batch: usize, device: &Device) -> NormLinearAttentionState {
        let recurrent = Tensor::zeros(self.state_dims(batch), (device, DType::F32));
        NormLinearAttentionState { recurrent, position: 0 }
    }

    /// Checks that a state fits this layer and `batch`.
    ///
    /// # Errors
    ///
    /// [`InputError`] with the shape and the one it needs: `[batch, H, dk, e]`, where LRPE doubles
    /// `dk`.
    pub fn check_state(&self, state: &NormLinearAttentionState, batch: usize) -> Result<(), InputError> {
        check_shape("recurrent", &state.recurrent.dims(), &self.state_dims(batch))
    }

    /// The same layer with another form of the scan; see [`ScanForm`].
    pub fn with_scan_form(mut self, form: ScanForm) -> Self {
        self.attention = self.attention.with_scan_form(form);
        self
    }

    /// The slope of every head.
    pub fn slope_rate(&self) -> &[f64] {
        self.attention.slope_rate()
    }

    fn state_dims(&self, batch: usize) -> [usize; 4] {
        let keys = if self.lrpe.is_some() { 2 * self.head_dim } else { self.head_dim };
        [batch, self.num_heads, keys, self.head_dim]
    }

    fn assert_state(&self, state: &NormLinearAttentionState, batch: usize) {
        if let Err(error) = self.check_state(state, batch) {
            panic!("transnormer: `initial_state`: {error}");
        }
    }

    fn project(&self, x: Tensor<3>, position: usize) -> Projected {
        let [batch, time, _] = x.dims();
        let width = self.num_heads * self.head_dim;
        let projected = self.qkvu_proj.forward(x);
        let part = |index| projected.clone().narrow(2, index * width, width);
        let heads = |index| part(index).reshape([batch, time, self.num_heads, self.head_dim]);
        let positioned = |x: Tensor<4>| match &self.lrpe {
            Some(lrpe) => lrpe.forward(x, position),
            None => x,
        };
        Projected {
            q: positioned(self.feature_map.apply(heads(0))),
            k: positioned(self.feature_map.apply(heads(1))),
            v: heads(2),
            u: self.use_output_gate.then(|| part(3)),
        }
    }

    fn output(&self, scanned: Tensor<4>, u: Option<Tensor<3>>) -> Tensor<3> {
        let [batch, time, heads, channels] = scanned.dims();
        let o = self.norm.forward(scanned.reshape([batch, time, heads * channels]));
        self.out_proj.forward(match u {
            Some(u) => output_gate(o, u, GateActivation::Identity),
            None => o,
        })
    }
}
