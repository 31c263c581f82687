//! What a router computes, field by field.

use burn::config::Config;
use burn::tensor::{Device, Tensor, activation::softmax};
use serde::{Deserialize, Serialize};

use super::{LearnedRouter, Router, StochasticAssignment};
use crate::config::ModuleConfig;
use crate::error::ConfigError;
use crate::gate::sigmoid;

/// More experts than any model has: a larger number in a configuration is a damaged file.
const MAX_EXPERTS: usize = 1 << 16;

/// How logits become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoringFunc {
    /// Softmax over the experts.
    Softmax,
    /// A sigmoid an expert.
    Sigmoid,
}

impl ScoringFunc {
    /// The scores of logits `[N, E]`.
    pub fn apply(self, logits: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Softmax => softmax(logits, 1),
            Self::Sigmoid => sigmoid(logits),
        }
    }
}

/// What comes first: the scores or the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TopkOrder {
    /// Scores over all experts, the largest kept (Switch, GShard, Mixtral, DeepSeek).
    ScoreThenTopk,
    /// The largest logits, softmax over these alone (Shazeer, GPT-OSS).
    TopkThenScore,
}

/// What a group of experts is worth in group-limited selection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupScore {
    /// The sum of its two largest values (DeepSeek-V3).
    Top2Sum,
    /// Its largest value (DeepSeek-V2).
    Max,
}

/// Noise in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterNoise {
    /// None.
    None,
    /// On the logits, with a learned scale (Shazeer).
    Gaussian,
    /// On the tokens that the router sees, uniform factors around 1 (Switch).
    Jitter,
}

/// What becomes of the second expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecondExpertPolicy {
    /// It is always used.
    All,
    /// In training it is used with probability `min(1, 2 w_2)` (GShard).
    Random,
}

/// Where the choice comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// From learned scores.
    Learned,
    /// From a table of token ids.
    Hash,
    /// From uniform draws.
    Random,
}

/// How the score projection starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterInitialisation {
    /// `normal(0, 0.02)`.
    Normal,
    /// Normal of variance `0.1 / D`, truncated at two deviations (Switch).
    TruncatedNormal,
    /// Uniform within `1 / sqrt(D)`, as projections start in Burn and PyTorch (SqrtGate).
    Uniform,
}

/// Configuration of a [`Router`].
///
/// With logits `z = x W^T (+ b)` and scores `s = softmax(z)` or `sigmoid(z)`, the K experts of the
/// largest `c` are chosen in falling order, of equal ones the lower index. `c` is `z` for
/// [`TopkOrder::TopkThenScore`], else `s`, plus the selection bias. Their weights are `softmax` of
/// the chosen logits, or the chosen scores, divided by their sum with `norm_topk_prob`; times
/// `routed_scaling_factor`.
#[derive(Config, Debug)]
pub struct RouterConfig {
    /// Channels D of a token.
    pub hidden_size: usize,
    /// Experts E. Default 8.
    #[config(default = 8)]
    pub num_experts: usize,
    /// Experts a token K, `1 <= K <= E`. Default 2.
    #[config(default = 2)]
    pub num_experts_per_tok: usize,
    /// How logits become scores. Default softmax.
    #[config(default = "ScoringFunc::Softmax")]
    pub scoring_func: ScoringFunc,
    /// What comes first. Default the scores.
    #[config(default = "TopkOrder::ScoreThenTopk")]
    pub topk_order: TopkOrder,
    /// Divide the K weights by their sum (plus 1e-20); passed over by [`TopkOrder::TopkThenScore`].
    /// Default true.
    #[config(default = true)]
    pub norm_topk_prob: bool,
    /// Multiplies the weights last; 2.5 in DeepSeek-V3. Default 1.
    #[config(default = 1.0)]
    pub routed_scaling_factor: f64,
    /// Groups of consecutive experts of equal size. Default 1.
    #[config(default = 1)]
    pub n_group: usize,
    /// Groups that a token may choose from. Default 1.
    #[config(default = 1)]
    pub topk_group: usize,
    /// What a group is worth. Default the sum of its two largest values.
    #[config(default = "GroupScore::Top2Sum")]
    pub group_score: GroupScore,
    /// Whether the score projection has a bias. Default false.
    #[config(default = false)]
    pub router_bias: bool,
    /// Whether there is a bias for selection alone, `e_score_correction_bias`, moved by a
    /// [`BiasBalancer`](super::BiasBalancer) outside of backpropagation. Default false.
    #[config(default = false)]
    pub selection_bias: bool,
    /// Noise in training. Default none.
    #[config(default = "RouterNoise::None")]
    pub noise: RouterNoise,
    /// Smallest scale of Gaussian noise; with jitter the factors lie within `1 -+ noise_epsilon`. Default 0.01.
    #[config(default = 0.01)]
    pub noise_epsilon: f64,
    /// What becomes of the second expert; other than all needs K = 2. Default all.
    #[config(default = "SecondExpertPolicy::All")]
    pub second_expert_policy: SecondExpertPolicy,
    /// Where the choice comes from. Hash and random choose one expert (K = 1) with weight 1 and
    /// have no logits. Default learned scores.
    #[config(default = "Selection::Learned")]
    pub selection: Selection,
    /// Entries of the hash table; needed for [`Selection::Hash`].
    pub vocab_size: Option<usize>,
    /// How the score projection starts. Default normal(0, 0.02).
    #[config(default = "RouterInitialisation::Normal")]
    pub initialisation: RouterInitialisation,
}

impl RouterConfig {
    /// Refuses what no router can do.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first field that cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        let (experts, k, groups) = (self.num_experts, self.num_experts_per_tok, self.n_group);
        for (field, size) in [("hidden_size", self.hidden_size), ("num_experts", experts)] {
            if size == 0 {
                return Err(ConfigError::new(field, size, "at least 1"));
            }
        }
        if experts > MAX_EXPERTS {
            return Err(ConfigError::new("num_experts", experts, format!("at most {MAX_EXPERTS}")));
        }
        if k == 0 || k > experts {
            return Err(ConfigError::new("num_experts_per_tok", k, format!("1 to num_experts = {experts}")));
        }
        if groups == 0 || experts % groups != 0 {
            return Err(ConfigError::new("n_group", groups, format!("a divisor of num_experts = {experts}")));
        }
        if self.topk_group == 0 || self.topk_group > groups {
            return Err(ConfigError::new("topk_group", self.topk_group, format!("1 to n_group = {groups}")));
        }
        if self.topk_group * (experts / groups) < k {
            let need = format!("groups of {} that hold num_experts_per_tok = {k} experts", experts / groups);
            return Err(ConfigError::new("topk_group", self.topk_group, need));
        }
        if groups > 1 && experts == groups && self.group_score == GroupScore::Top2Sum {
            return Err(ConfigError::new("group_score", "top2_sum", "max: the groups have one expert each"));
        }
        if self.second_expert_policy == SecondExpertPolicy::Random && k != 2 {
            return Err(ConfigError::new("second_expert_policy", "random", format!("all: K is {k}, not 2")));
        }
        if !self.routed_scaling_factor.is_finite() {
            return Err(ConfigError::new(
                "routed_scaling_factor",
                self.routed_scaling_factor,
                "a finite number",
            ));
        }
        if !(self.noise_epsilon.is_finite() && self.noise_epsilon >= 0.0) {
            return Err(ConfigError::new("noise_epsilon", self.noise_epsilon, "a finite number, at least 0"));
        }
        if self.noise == RouterNoise::Gaussian && self.noise_epsilon == 0.0 {
            let need = "a number above 0: the noise's scale is divided by";
            return Err(ConfigError::new("noise_epsilon", self.noise_epsilon, need));
        }
        let logits_alone =
            self.topk_order == TopkOrder::TopkThenScore && self.scoring_func == ScoringFunc::Softmax;
        if self.selection_bias && logits_alone {
            let need = "false: softmax over the chosen logits selects by the logits";
            return Err(ConfigError::new("selection_bias", true, need));
        }
        if self.selection != Selection::Learned {
            if k != 1 {
                let need = "1: hash and random selection choose one expert";
                return Err(ConfigError::new("num_experts_per_tok", k, need));
            }
            let learned = [
                ("router_bias", self.router_bias),
                ("selection_bias", self.selection_bias),
                ("noise", self.noise != RouterNoise::None),
                ("n_group", groups != 1),
            ];
            if let Some((field, _)) = learned.into_iter().find(|(_, given)| *given) {
                return Err(ConfigError::new(
                    field,
                    "a part of learned selection",
                    "none: nothing is learned",
                ));
            }
        }
        if self.selection == Selection::Hash && self.vocab_size.is_none_or(|size| size == 0) {
            let got = self.vocab_size.map_or("null".to_string(), |size| size.to_string());
            return Err(ConfigError::new("vocab_size", got, "the entries of the hash table, at least 1"));
        }
        Ok(())
    }
}

impl ModuleConfig for RouterConfig {
    type Module = Router;

    /// Builds the router. A hash table starts balanced for tokens that are all equally frequent.
    fn try_init(&self, device: &Device) -> Result<Router, ConfigError> {
        self.check()?;
        let experts = self.num_experts;
        Ok(match (self.selection, self.vocab_size) {
            (Selection::Learned, _) => Router::Learned(LearnedRouter::new(self, device)),
            (Selection::Hash, Some(size)) => {
                Router::Assigned(StochasticAssignment::balanced(&vec![1.0; size], experts, device))
            }
            (Selection::Hash, None) | (Selection::Random, _) => {
                Router::Assigned(StochasticAssignment::random(experts))
            }
        })
    }
}
