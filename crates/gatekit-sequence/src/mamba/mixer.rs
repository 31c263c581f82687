//! The layer: projection, convolution, selective scan, gate.
// Parameters have the names they are published under, `A_log` and `D` among them.
#![allow(non_snake_case)]

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Bool, DType, Device, Tensor};
use gatekit_core::InputError;
use gatekit_core::conv::ShortConvolution;
use gatekit_core::decay::softplus_stable;
use gatekit_core::scan::{Discretisation, ScanForm, SelectiveOptions, selective_scan, selective_scan_step};

use super::state::MambaState;
use crate::backbone::check_shape;
use crate::lm::float32;

/// The mixer of Mamba: a selective state space between two projections.
///
/// ```text
/// [h, z] = W_in x                                             each I wide
/// h = silu(conv(h))                                           causal, K taps, per channel
/// [r, B, C] = W_x h      Delta = softplus(W_dt r + b_dt)      r: R, B and C: N wide
/// s_t = exp(Delta_t A) * s_{t-1} + (Delta_t h_t) B_t^T        A = -exp(A_log), s: [I, N]
/// y_t = s_t C_t + D * h_t
/// out = W_out (y * silu(z))
/// ```
///
/// The decay is exact, the write follows Euler's rule. With a mask, `h` is 0 at padded tokens
/// before and after the convolution: what they hold reaches nothing. As they write nothing but
/// keep their step, one that stands after a real token lets the state decay by
/// `exp(A softplus(b_dt))`, as in the published model; padding in front of a row changes nothing.
///
/// Gu and Dao 2023, arXiv 2312.00752, algorithm 2 and figure 3. `A_log` starts at `log(1..N)` in
/// every channel, `D` at 1, `W_dt` uniform within `R^-1/2`, `b_dt` so that `softplus(b_dt)` is
/// log-uniform in `[0.001, 0.1]`, convolution and the other projections uniform within the inverse
/// root of their inputs.
#[derive(Module, Debug)]
pub struct MambaMixer {
    /// Channels and gate, `D -> 2 I`.
    pub in_proj: Linear,
    /// Convolution of the channels, with SiLU.
    pub conv1d: ShortConvolution,
    /// What the scan takes from the token, `I -> R + 2 N`.
    pub x_proj: Linear,
    /// The steps' logits, `R -> I`, with bias.
    pub dt_proj: Linear,
    /// Logarithm of the rates, `[I, N]`.
    pub A_log: Param<Tensor<2>>,
    /// Skip connection of every channel, `[I]`.
    pub D: Param<Tensor<1>>,
    /// Output, `I -> D`.
    pub out_proj: Linear,
    #[module(skip)]
    pub(super) form: ScanForm,
}

/// What the scan takes from the tokens, `[.., I]` (`delta`) and `[.., N]`.
struct Selection<const D: usize> {
    delta: Tensor<D>,
    b: Tensor<D>,
    c: Tensor<D>,
}

impl MambaMixer {
    /// A whole batch.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, time, D]`
    /// - `attention_mask`: `[batch, time]`, `true` for real tokens; see [`MambaMixer`]
    /// - output: `[batch, time, D]`
    ///
    /// # Panics
    ///
    /// When `x` has no time step or its width is not `D`, or the mask has another batch or time.
    pub fn forward(&self, x: Tensor<3>, attention_mask: Option<&Tensor<2, Bool>>) -> Tensor<3> {
        self.forward_with_state(x, attention_mask, None).0
    }

    /// A whole batch, continued from a state.
    ///
    /// # Shapes
    ///
    /// - `x`, `attention_mask`: as [`forward`](Self::forward)
    /// - `state`: as [`empty_state`](Self::empty_state); `None`: empty
    /// - output: `[batch, time, D]` and the state after the last token
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward), and when the state's shapes are not those of the empty state.
    pub fn forward_with_state(
        &self,
        x: Tensor<3>,
        attention_mask: Option<&Tensor<2, Bool>>,
        state: Option<MambaState>,
    ) -> (Tensor<3>, MambaState) {
        let [batch, time, _] = x.dims();
        assert!(time > 0, "mamba: `x` has no time step, shape {:?}", x.dims());
        if let Some(state) = &state {
            self.check_state(state, batch).unwrap_or_else(|error| panic!("mamba: {error}"));
        }
        let (conv, ssm) = state.map_or((None, None), |state| (Some(state.conv), Some(state.ssm)));
        let (h, z) = self.channels_and_gate(x);
        let padded = attention_mask.map(|mask| padded(mask, h.dims()));
        let silenced = |h: Tensor<3>| match &padded {
            Some(padded) => h.mask_fill(padded.clone(), 0.0),
            None => h,
        };
        let (h, conv) = self.conv1d.forward(silenced(h), None, conv);
        let h = silenced(h);
        let Selection { delta, b, c } = self.select(h.clone());
        let scanned = selective_scan(
            h,
            delta,
            self.rates(),
            b,
            c,
            Some(self.D.val()),
            Some(z),
            ssm,
            None,
            &SelectiveOptions { discretisation: Discretisation::Euler, form: self.form },
        );
        (self.out_proj.forward(scanned.output), MambaState { conv, ssm: scanned.final_state })
    }

    /// Continues by one token: `x` and the output are `[batch, D]`.
    ///
    /// # Panics
    ///
    /// When the width of `x` is not `D`, or the state's shapes are not those of the
    /// [`empty_state`](Self::empty_state).
    pub fn step(&self, x: Tensor<2>, state: MambaState) -> (Tensor<2>, MambaState) {
        self.check_state(&state, x.dims()[0]).unwrap_or_else(|error| panic!("mamba: {error}"));
        let (h, z) = self.channels_and_gate(x);
        let (h, conv) = self.conv1d.step(h, state.conv);
        let Selection { delta, b, c } = self.select(h.clone());
        let (y, ssm) = selective_scan_step(
            h,
            delta,
            self.rates(),
            b,
            c,
            Some(self.D.val()),
            Some(z),
            state.ssm,
            Discretisation::Euler,
        );
        (self.out_proj.forward(y), MambaState { conv, ssm })
    }

    /// The state before the first token: zeros.
    pub fn empty_state(&self, batch: usize, device: &Device) -> MambaState {
        let [channels, size] = self.A_log.shape().dims();
        MambaState {
            conv: self.conv1d.empty_state(batch, device),
            ssm: Tensor::zeros([batch, channels, size], (device, DType::F32)),
        }
    }

    /// Checks that a state fits this layer and `batch`.
    ///
    /// # Errors
    ///
    /// [`InputError`] names the part (`conv`, `ssm`), its shape and the shape it needs.
    pub fn check_state(&self, state: &MambaState, batch: usize) -> Result<(), InputError> {
        let [channels, size] = self.A_log.shape().dims();
        check_shape("conv", &state.conv.dims(), &self.conv1d.state_dims(batch))?;
        check_shape("ssm", &state.ssm.dims(), &[batch, channels, size])
    }

    /// The steps `Delta` that the layer takes at `x` `[batch, time, D]`: `[batch, time, I]`, for
    /// probes. A step near 0 passes a token over, a large one overwrites the state with it.
    pub fn steps(&self, x: Tensor<3>) -> Tensor<3> {
        let (h, _) = self.channels_and_gate(x);
        self.select(self.conv1d.forward(h, None, None).0).delta
    }

    /// The same layer with another form of the scan. All compute the same function; a new layer has
    /// [`ScanForm::Auto`], the fastest on its device.
    pub fn with_scan_form(mut self, form: ScanForm) -> Self {
        self.form = form;
        self
    }

    fn channels_and_gate<const D: usize>(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<D>) {
        let [channels, _] = self.A_log.shape().dims();
        let both = self.in_proj.forward(x);
        (both.clone().narrow(D - 1, 0, channels), both.narrow(D - 1, channels, channels))
    }

    fn select<const D: usize>(&self, h: Tensor<D>) -> Selection<D> {
        let [_, size] = self.A_log.shape().dims();
        let parts = self.x_proj.forward(h);
        let rank = parts.dims()[D - 1] - 2 * size;
        let part = |start, length| parts.clone().narrow(D - 1, start, length);
        let logits = self.dt_proj.forward(part(0, rank));
        Selection { delta: softplus_stable(logits), b: part(rank, size), c: part(rank + size, size) }
    }

    /// `A`, in at least float32.
    fn rates(&self) -> Tensor<2> {
        float32(self.A_log.val()).exp().neg()
    }
}

/// `true` at every channel of a padded token, `[batch, time, I]`.
fn padded(mask: &Tensor<2, Bool>, [batch, time, channels]: [usize; 3]) -> Tensor<3, Bool> {
    let dims = mask.dims();
    assert!(
        dims == [batch, time],
        "mamba: `attention_mask` has [batch, time] = {dims:?}, `x` [{batch}, {time}]"
    );
    mask.clone().bool_not().unsqueeze_dim::<3>(2).expand([batch, time, channels])
}
