//! Training of models whose feed-forward layers route: what the routers decided, and the bias
//! that keeps their experts evenly used.

use burn::tensor::{Int, Tensor};
use gatekit_core::router::{BiasBalancer, Routing};

use crate::backbone::{CausalModel, TokenMixer};
use crate::feed_forward::DecoderFeedForward;

impl<M: TokenMixer> CausalModel<M, DecoderFeedForward> {
    /// As [`forward`](crate::lm::CausalLm::forward) without a mask, with what the router of every
    /// sparse layer decided, first to last: what balancing losses
    /// ([`BalanceLosses`](gatekit_core::router::BalanceLosses)) and [`rebalance`](Self::rebalance)
    /// need.
    ///
    /// # Shapes
    ///
    /// - `input_ids`: `[batch, time]`
    /// - output: `[batch, time, vocab_size]`; routings of `batch * time` tokens
    ///
    /// # Panics
    ///
    /// As [`forward`](crate::lm::CausalLm::forward).
    pub fn forward_with_routing(&self, input_ids: Tensor<2, Int>) -> (Tensor<3>, Vec<Routing>) {
        let mut x = self.embed(input_ids);
        let mut routings = Vec::new();
        for (block, context) in self.model.layers.iter().zip(self.contexts(None)) {
            x = x.clone() + block.attn.forward(block.attn_norm.forward(x), &context);
            let (y, routing) = block.mlp.forward_with_routing(block.mlp_norm.forward(x.clone()));
            x = x + y;
            routings.extend(routing);
        }
        (self.logits(x), routings)
    }

    /// Moves the selection bias of every sparse layer against the load that
    /// [`forward_with_routing`](Self::forward_with_routing) reported: after a training step, outside of
    /// backpropagation. Routers without such a bias stay as they are.
    ///
    /// # Panics
    ///
    /// Unless there is one routing a sparse layer.
    pub fn rebalance(mut self, balancer: &BiasBalancer, routings: &[Routing]) -> Self {
        let mut routings = routings.iter();
        for block in &mut self.model.layers {
            if let DecoderFeedForward::Sparse(layer) = &mut block.mlp {
                let routing = routings.next().expect("rebalance: fewer routings than sparse layers");
                layer.gate.rebalance(balancer, &routing.assignment.tokens_per_expert());
            }
        }
        assert!(routings.next().is_none(), "rebalance: more routings than sparse layers");
        self
    }
}
