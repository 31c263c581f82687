//! Training of models whose feed-forward layers route: what the routers decided, and the bias
//! that keeps their experts evenly used.

use burn::tensor::{Int, Tensor};
use gatekit_core::router::{BiasBalancer, Routing};

use crate::backbone::{CausalModel, TokenMixer};
use crate::feed_forward::DecoderFeedForward;
use crate::gated_associative_memory::GamLm;
use crate::lm::CausalLm;
use crate::mamba::MambaForCausalLm;
use crate::mixture_of_value_embeddings::MoveTextModel;
use crate::transnormer::TransNormerLlm;

/// A language model that may have sparse feed-forward layers, trained with balanced experts:
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Int, Tensor};
/// use gatekit_core::ModuleConfig;
/// use gatekit_core::moe::MoeLayerConfig;
/// use gatekit_core::router::{BalanceLosses, BiasBalancer, CountNormalizer};
/// use gatekit_sequence::{CausalLm, GlaConfig, RoutedLm};
///
/// fn losses<M: RoutedLm>(model: M, ids: Tensor<2, Int>) -> (M, Tensor<1>) {
///     let (logits, routings) = model.forward_with_routing(ids.clone());
///     let mut loss = model.loss(logits, ids.clone()).unwrap();
///     for routing in &routings {
///         let balance = BalanceLosses::new(routing, ids.dims(), None, CountNormalizer::Tokens);
///         loss = loss + balance.load_balance * 0.01;
///     }
///     // Or without a loss, after the optimiser's step, where the routers have a selection bias.
///     (model.rebalance(&BiasBalancer::new(0.001), &routings), loss)
/// }
///
/// let device = Device::flex();
/// let experts = MoeLayerConfig::new(16, 8).with_num_experts(4).with_selection_bias(Some(true));
/// let model = GlaConfig::new(96, 16, 2).with_num_heads(2).with_moe(Some(experts)).init(&device);
/// let (model, loss) = losses(model, Tensor::from_data([[1, 5, 7, 2]], &device));
/// # let _ = (model, loss);
/// # }
/// ```
pub trait RoutedLm: CausalLm {
    /// As [`forward`](CausalLm::forward) without a mask, with what the router of every sparse layer
    /// decided, first to last; without sparse layers there is none.
    ///
    /// # Shapes
    ///
    /// - `input_ids`: `[batch, time]`
    /// - output: `[batch, time, vocab_size]`; routings of `batch * time` tokens
    ///
    /// # Panics
    ///
    /// As [`forward`](CausalLm::forward).
    fn forward_with_routing(&self, input_ids: Tensor<2, Int>) -> (Tensor<3>, Vec<Routing>) {
        (self.forward(input_ids, None), Vec::new())
    }

    /// Moves the selection bias of every sparse layer against the load that
    /// [`forward_with_routing`](Self::forward_with_routing) reported: after a training step, outside of
    /// backpropagation. Routers without such a bias stay as they are.
    ///
    /// # Panics
    ///
    /// Unless there is one routing a sparse layer.
    fn rebalance(self, balancer: &BiasBalancer, routings: &[Routing]) -> Self {
        let _ = balancer;
        assert!(routings.is_empty(), "rebalance: routings for a model without sparse layers");
        self
    }
}

impl RoutedLm for GamLm {}

impl RoutedLm for MambaForCausalLm {}

impl RoutedLm for MoveTextModel {}

impl RoutedLm for TransNormerLlm {}

impl<M: TokenMixer> RoutedLm for CausalModel<M> {
    fn forward_with_routing(&self, input_ids: Tensor<2, Int>) -> (Tensor<3>, Vec<Routing>) {
        Self::forward_with_routing(self, input_ids)
    }

    fn rebalance(self, balancer: &BiasBalancer, routings: &[Routing]) -> Self {
        Self::rebalance(self, balancer, routings)
    }
}

impl<M: TokenMixer> CausalModel<M> {
    /// [`RoutedLm::forward_with_routing`]: what balancing losses
    /// ([`BalanceLosses`](gatekit_core::router::BalanceLosses)) and [`rebalance`](Self::rebalance)
    /// need.
    ///
    /// # Panics
    ///
    /// As [`forward`](CausalLm::forward).
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

    /// [`RoutedLm::rebalance`].
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
