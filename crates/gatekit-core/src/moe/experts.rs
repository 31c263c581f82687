//! The experts, one on top of the other.

use std::sync::Arc;

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Device, Tensor};
use gatekit_kernels::gate::Activation;

use crate::dispatch::{DispatchPlan, SortedSlots, gated_experts};
use crate::gate::{GateActivation, output_gate};
use crate::init;

/// `f_e(x) = down_e (silu(gate_e x) * up_e x)`, without biases. Starts normal(0, 0.02).
#[derive(Module, Debug)]
pub struct SwiGluExperts {
    /// Gate and up projections, `[E, 2H, D]`, the gate's rows first.
    pub gate_up_proj: Param<Tensor<3>>,
    /// Projections back, `[E, D, H]`.
    pub down_proj: Param<Tensor<3>>,
}

impl SwiGluExperts {
    /// E experts of inner width H.
    pub(super) fn new(experts: usize, hidden: usize, inner: usize, device: &Device) -> Self {
        let normal = Initializer::Normal { mean: 0.0, std: init::STANDARD_DEVIATION };
        Self {
            gate_up_proj: normal.init([experts, 2 * inner, hidden], device),
            down_proj: normal.init([experts, hidden, inner], device),
        }
    }

    /// Rows sorted by expert, `[M, D]` to `[M, D]`; `offsets` `[E + 1]` says where each expert's begin.
    ///
    /// # Panics
    ///
    /// As [`gated_experts`], and when the offsets do not rise from 0.
    pub fn forward(&self, x: Tensor<2>, offsets: &[usize]) -> Tensor<2> {
        let slots = Arc::new(SortedSlots::each(offsets.to_vec()));
        let weights = Tensor::ones([x.dims()[0], 1], (&x.device(), x.dtype()));
        gated_experts(x, weights, &slots, self.gate_up_proj.val(), self.down_proj.val(), Activation::Swish)
    }

    /// Tokens `[N, D]` through the experts of a plan, added up with its weights (`[N, K]`, or `[E, C]` where experts
    /// chose), `[N, D]`: gather, experts and combination in one.
    ///
    /// # Panics
    ///
    /// As [`gated_experts`].
    pub fn combine(&self, x: Tensor<2>, plan: &DispatchPlan, weights: Tensor<2>) -> Tensor<2> {
        let wide = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let weights = weights.cast(wide);
        gated_experts(
            x,
            weights,
            plan.slots(),
            self.gate_up_proj.val(),
            self.down_proj.val(),
            Activation::Swish,
        )
    }

    /// All rows through one expert, `[N, D]` to `[N, D]`.
    ///
    /// # Panics
    ///
    /// When there is no such expert, or `x` has another width.
    pub fn forward_expert(&self, x: Tensor<2>, expert: usize) -> Tensor<2> {
        let of_expert =
            |weight: &Param<Tensor<3>>| weight.val().narrow(0, expert, 1).squeeze_dim::<2>(0).transpose();
        gated(x.matmul(of_expert(&self.gate_up_proj))).matmul(of_expert(&self.down_proj))
    }
}

/// `silu(first half) * second half` of the last axis.
fn gated(inner: Tensor<2>) -> Tensor<2> {
    let width = inner.dims()[1] / 2;
    let (gate, up) = (inner.clone().narrow(1, 0, width), inner.narrow(1, width, width));
    output_gate(up, gate, GateActivation::Swish)
}
