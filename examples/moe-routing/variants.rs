//! The routers that are compared, all with as many active weights a token.

use burn::tensor::Tensor;
use gatekit::core::moe::{MoeLayerConfig, MoeLayout};
use gatekit::core::router::{
    BalanceLosses, BiasBalancer, CountNormalizer, RouterInitialisation, Routing, ScoringFunc, Selection,
};

use crate::network::{INNER, Task, VOCABULARY, WIDTH};

/// Experts of a layer.
pub const EXPERTS: usize = 8;
/// Experts of a token where it has several.
pub const CHOSEN: usize = 2;
/// Weight of the balancing loss of a layer (Switch).
const LOSS_WEIGHT: f64 = 0.01;
/// Step of the selection bias: ten times DeepSeek-V3's, for a training that is so much shorter.
const BIAS_SPEED: f64 = 0.01;

/// What keeps the experts evenly used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Nothing, or nothing is needed.
    None,
    /// A loss.
    Loss,
    /// A bias on the choice.
    Bias,
}

/// What the feed-forward layers are.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // There are ten.
pub enum Kind {
    /// One SwiGLU.
    Dense,
    /// Tokens go to experts.
    Sparse(MoeLayerConfig),
    /// Experts take tokens.
    ExpertChoice,
}

/// One model of the comparison.
#[derive(Clone, Debug)]
pub struct Variant {
    /// For tables and legends.
    pub name: &'static str,
    /// Its feed-forward layers.
    pub kind: Kind,
    /// How they are balanced.
    pub balance: Balance,
    /// Whether experts are assigned by a table that the frequencies of the tokens balance.
    pub by_frequency: bool,
}

impl Variant {
    fn new(name: &'static str, kind: Kind, balance: Balance) -> Self {
        Self { name, kind, balance, by_frequency: false }
    }

    /// What is added to the loss.
    pub fn balance_loss<'a>(
        &self,
        routings: impl Iterator<Item = &'a Routing>,
        shape: [usize; 2],
    ) -> Option<Tensor<1>> {
        if self.balance != Balance::Loss {
            return None;
        }
        let losses = routings
            .map(|routing| BalanceLosses::new(routing, shape, None, CountNormalizer::Tokens).load_balance);
        losses.reduce(|sum, loss| sum + loss).map(|loss| loss * LOSS_WEIGHT)
    }

    /// What moves the selection biases.
    pub fn balancer(&self) -> Option<BiasBalancer> {
        (self.balance == Balance::Bias).then(|| BiasBalancer::new(BIAS_SPEED))
    }
}

/// Two experts a token, each half as wide as the dense layer.
fn top2() -> MoeLayerConfig {
    MoeLayerConfig::new(WIDTH, INNER / CHOSEN).with_num_experts(EXPERTS).with_num_experts_per_tok(CHOSEN)
}

/// One expert a token, as wide as the dense layer.
fn top1() -> MoeLayerConfig {
    MoeLayerConfig::new(WIDTH, INNER).with_num_experts(EXPERTS).with_num_experts_per_tok(1)
}

/// Names of those that are looked at more closely.
pub const NO_BALANCE: &str = "top-2, no balance";
/// The same with the loss.
pub const WITH_LOSS: &str = "top-2, loss 0.01";
/// DeepSeek-V3's router.
pub const WITH_BIAS: &str = "sigmoid top-2, bias";

/// The models of a task.
pub fn of(task: Task) -> Vec<Variant> {
    let dense = Variant::new("dense", Kind::Dense, Balance::None);
    let loss = Variant::new(WITH_LOSS, Kind::Sparse(top2()), Balance::Loss);
    match task {
        Task::Masked => vec![dense, loss, Variant::new("expert choice", Kind::ExpertChoice, Balance::None)],
        Task::Next => {
            let switch = top1()
                .with_norm_topk_prob(false)
                .with_router_initialisation(RouterInitialisation::TruncatedNormal);
            let deepseek = top2().with_scoring_func(ScoringFunc::Sigmoid).with_layout(MoeLayout::DeepseekV3);
            let hash = top1().with_selection(Selection::Hash).with_vocab_size(Some(VOCABULARY));
            let random = top1().with_selection(Selection::Random);
            vec![
                dense,
                Variant::new("Switch top-1, loss 0.01", Kind::Sparse(switch), Balance::Loss),
                Variant::new(NO_BALANCE, Kind::Sparse(top2()), Balance::None),
                loss,
                Variant::new(WITH_BIAS, Kind::Sparse(deepseek), Balance::Bias),
                Variant { by_frequency: true, ..Variant::new("hash", Kind::Sparse(hash), Balance::None) },
                Variant::new("random", Kind::Sparse(random), Balance::None),
            ]
        }
    }
}
