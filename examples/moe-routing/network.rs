//! The model of the experiment: attention and one of several feed-forward layers, on either of two tasks.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use gatekit::core::attention::{CausalAttention, CausalAttentionConfig, Positions, masked_attention};
use gatekit::core::dispatch::Capacity;
use gatekit::core::feed_forward::{SwiGlu, SwiGluConfig};
use gatekit::core::moe::{MoeLayer, MoeLayerConfig, SwiGluExperts};
use gatekit::core::probe::ExpertLoad;
use gatekit::core::router::{
    ExpertChoice, ExpertChoiceRouter, ExpertChoiceRouterConfig, Phase, Router, RouterInputs, Routing,
    StochasticAssignment,
};
use gatekit::core::{ConfigError, InputError, ModuleConfig};
use gatekit::sequence::CausalModel;
use gatekit::sequence::backbone::{BackboneSize, FeedForward};

use crate::variants::{CHOSEN, EXPERTS, Kind, Variant};

/// Blocks.
pub const LAYERS: usize = 2;
/// Width of the residual stream.
pub const WIDTH: usize = 64;
/// Width of the dense feed-forward layer, and of the experts of a token together.
pub const INNER: usize = 128;
const HEADS: usize = 4;
/// Bytes, and one more for what is masked: byte 0, which no text holds.
pub const VOCABULARY: usize = 256;

/// What the model learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// The next byte, from those before it.
    Next,
    /// Bytes that are masked, from both sides.
    Masked,
}

/// Experts that choose their tokens.
#[derive(Module, Debug)]
pub struct ChoosingExperts {
    router: ExpertChoiceRouter,
    experts: SwiGluExperts,
}

/// What stands behind the attention.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // There is one a layer.
pub enum Layer {
    /// Every token through the same weights.
    Dense(SwiGlu),
    /// Every token through the experts that its router names.
    Sparse(MoeLayer),
    /// Every token through the experts that took it.
    ExpertChoice(ChoosingExperts),
}

/// What a layer decided.
#[allow(clippy::large_enum_variant)] // There is one a layer.
pub enum Decision {
    /// Tokens, or a table, or chance, named experts.
    Tokens(Routing),
    /// Experts took tokens.
    Experts(ExpertChoice),
}

impl Layer {
    fn new(variant: &Variant, frequencies: &[f64], device: &Device) -> Result<Self, ConfigError> {
        Ok(match &variant.kind {
            Kind::Dense => Self::Dense(SwiGluConfig::new(WIDTH, INNER).try_init(device)?),
            Kind::Sparse(config) => {
                let mut layer = config.try_init(device)?;
                if variant.by_frequency {
                    let table = StochasticAssignment::balanced(frequencies, EXPERTS, device);
                    layer.gate = Router::Assigned(table);
                }
                Self::Sparse(layer)
            }
            Kind::ExpertChoice => {
                let experts = MoeLayerConfig::new(WIDTH, INNER / CHOSEN).with_num_experts(EXPERTS);
                Self::ExpertChoice(ChoosingExperts {
                    router: ExpertChoiceRouterConfig::new(WIDTH)
                        .with_num_experts(EXPERTS)
                        .with_capacity_factor(CHOSEN as f64)
                        .try_init(device)?,
                    experts: experts.try_init(device)?.experts,
                })
            }
        })
    }

    /// `[tokens, width]` to the same, with what was decided.
    fn decide(
        &self,
        x: Tensor<2>,
        ids: &Tensor<1, Int>,
    ) -> Result<(Tensor<2>, Option<Decision>), InputError> {
        match self {
            Self::Dense(layer) => Ok((layer.forward(x), None)),
            Self::Sparse(layer) => {
                let phase = Phase::of(&x.device());
                let inputs = RouterInputs { token_ids: Some(ids.clone()), ..RouterInputs::default() };
                let (y, routing) = layer.forward_with(x, &inputs, phase)?;
                Ok((y, Some(Decision::Tokens(routing))))
            }
            Self::ExpertChoice(layer) => {
                let choice = layer.router.route(x.clone());
                let plan = choice.plan();
                let outputs = layer.experts.forward(plan.gather(x), plan.offsets());
                let y = plan.scatter_combine(outputs, choice.weights.clone());
                Ok((y, Some(Decision::Experts(choice))))
            }
        }
    }
}

impl FeedForward for Layer {
    fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dims = x.dims();
        let x = x.reshape([-1, WIDTH as i32]);
        let none = Tensor::zeros([x.dims()[0]], &x.device());
        self.decide(x, &none).unwrap_or_else(|error| panic!("{error}")).0.reshape(dims)
    }
}

/// The model.
#[derive(Module, Debug)]
pub struct Network {
    model: CausalModel<CausalAttention, Layer>,
}

impl Network {
    /// With the layers of `variant`; `frequencies` are those of the tokens.
    pub fn new(variant: &Variant, frequencies: &[f64], device: &Device) -> Result<Self, ConfigError> {
        let size = BackboneSize {
            vocab_size: VOCABULARY,
            hidden_size: WIDTH,
            num_hidden_layers: LAYERS,
            intermediate_size: Some(INNER),
            hidden_ratio: 4.0,
            norm_eps: 1e-6,
            tie_word_embeddings: false,
        };
        let attention = CausalAttentionConfig::new(WIDTH, HEADS);
        let model = CausalModel::try_with_feed_forward(
            &size,
            device,
            |_| attention.try_init(device),
            |_| Layer::new(variant, frequencies, device),
        )?;
        Ok(Self { model })
    }

    /// Logits `[batch, time, vocabulary]` for `ids` `[batch, time]`, and what every layer decided.
    pub fn forward(&self, ids: Tensor<2, Int>, task: Task) -> Result<(Tensor<3>, Vec<Decision>), InputError> {
        let dims = ids.dims();
        let mut x = self.model.embed(ids.clone());
        let ids = ids.reshape([dims[0] * dims[1]]);
        let mut decisions = Vec::new();
        for block in &self.model.model.layers {
            let normed = block.attn_norm.forward(x.clone());
            x = x + match task {
                Task::Next => block.attn.forward(normed, None),
                Task::Masked => both_sides(&block.attn, normed),
            };
            let shape = x.dims();
            let normed = block.mlp_norm.forward(x.clone()).reshape([dims[0] * dims[1], WIDTH]);
            let (y, decision) = block.mlp.decide(normed, &ids)?;
            x = x + y.reshape(shape);
            decisions.extend(decision);
        }
        let x = self.model.model.norm.forward(x);
        let head = self.model.lm_head.as_ref().expect("the head is not tied");
        Ok((head.forward(x), decisions))
    }

    /// Moves the selection biases.
    pub fn rebalance(&mut self, variant: &Variant, decisions: &[Decision]) {
        let Some(balancer) = variant.balancer() else { return };
        for (block, decision) in self.model.model.layers.iter_mut().zip(decisions) {
            if let (Layer::Sparse(layer), Decision::Tokens(routing)) = (&mut block.mlp, decision) {
                layer.gate.rebalance(&balancer, &routing.assignment.tokens_per_expert());
            }
        }
    }
}

/// The same attention without its mask.
fn both_sides(attention: &CausalAttention, x: Tensor<3>) -> Tensor<3> {
    let projected = attention.project(x, Positions::From(0));
    let mixed = masked_attention(projected.q, projected.k, projected.v, None, false);
    attention.output(mixed, projected.gate_logits)
}

impl Decision {
    /// How evenly the experts are used, and the share of slots that a capacity of one fair share would drop.
    pub fn load(&self, fair: Capacity) -> Load {
        match self {
            Self::Tokens(routing) => {
                let load = ExpertLoad::of([&routing.assignment]);
                let dropped = fair.apply(routing.assignment.clone(), &[]).dropped_share();
                Load { shares: load.shares, max_over_mean: load.max_over_mean, dropped, left_out: 0.0 }
            }
            Self::Experts(choice) => {
                let coverage = choice.coverage();
                let left_out = coverage.iter().filter(|count| **count == 0).count() as f64;
                Load {
                    shares: vec![1.0 / EXPERTS as f64; EXPERTS],
                    max_over_mean: 1.0,
                    dropped: 0.0,
                    left_out: left_out / coverage.len() as f64,
                }
            }
        }
    }

    /// What the tokens' router decided.
    pub fn routing(&self) -> Option<&Routing> {
        match self {
            Self::Tokens(routing) => Some(routing),
            Self::Experts(_) => None,
        }
    }
}

/// How one layer used its experts in one step.
pub struct Load {
    /// Share of the slots of each expert.
    pub shares: Vec<f64>,
    /// The largest of them over their mean.
    pub max_over_mean: f64,
    /// Share of slots that a capacity of one fair share would drop.
    pub dropped: f64,
    /// Share of tokens without an expert.
    pub left_out: f64,
}
