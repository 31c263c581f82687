//! Low-rank and bias deltas on frozen projections.

use burn::module::{Initializer, Module};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use gatekit_core::init;

/// `y = W x + b + L2 L1 x`: a projection with an optional tuned bias and an optional low-rank delta.
///
/// `L2` and `b` start at 0, so that the projection starts as it was; the delta is not scaled. Hu et al., "LoRA" (arXiv
/// 2106.09685), eq. 3, without its `alpha / r`; the biases are those of LLaMA-Adapter V2 (arXiv 2304.15010).
#[derive(Module, Debug)]
pub struct LoraLinear {
    /// `W` `[d_in, d_out]` and `b`.
    pub linear: Linear,
    /// `L1` and `L2`.
    pub delta: Option<LoraDelta>,
}

/// `L2 L1 x`.
#[derive(Module, Debug)]
pub struct LoraDelta {
    /// `L1`, `[d_in, r]`.
    pub l1: Linear,
    /// `L2`, `[r, d_out]`, starts at 0.
    pub l2: Linear,
}

impl LoraLinear {
    /// A fresh projection, `W ~ normal(0, 0.02)`, with a bias if `bias`, and a delta of rank `rank` unless that is 0.
    pub fn new(d_in: usize, d_out: usize, bias: bool, rank: usize, device: &Device) -> Self {
        Self { linear: init::linear(d_in, d_out, false, device), delta: None }.tuned(bias, rank, device)
    }

    /// The same projection with a bias (if `bias`) and a delta of rank `rank` (unless 0) where it has none: the same
    /// function at first.
    pub fn tuned(mut self, bias: bool, rank: usize, device: &Device) -> Self {
        let [d_in, d_out] = self.linear.weight.shape().dims();
        if bias && self.linear.bias.is_none() {
            self.linear.bias = Some(Initializer::Zeros.init([d_out], device));
        }
        if rank > 0 && self.delta.is_none() {
            let plain = |from, to| LinearConfig::new(from, to).with_bias(false);
            let l2 = plain(rank, d_out).with_initializer(Initializer::Zeros).init(device);
            self.delta = Some(LoraDelta { l1: plain(d_in, rank).init(device), l2 });
        }
        self
    }

    /// `[.., d_in]` to `[.., d_out]`.
    ///
    /// # Panics
    ///
    /// For another number of channels than `d_in`.
    pub fn forward<const N: usize>(&self, x: Tensor<N>) -> Tensor<N> {
        match &self.delta {
            None => self.linear.forward(x),
            Some(delta) => self.linear.forward(x.clone()) + delta.l2.forward(delta.l1.forward(x)),
        }
    }
}
