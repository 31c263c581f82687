//! Routing by learned scores.

use burn::module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param};
use burn::tensor::{DType, Device, Distribution, Tensor, activation::softmax};

use super::load::noisy_load;
use super::select::{assert_numbers, top_of};
use super::{
    Assignment, BiasBalancer, Phase, RouterConfig, RouterInitialisation, RouterInputs, RouterNoise, Routing,
    ScoringFunc, SecondExpertPolicy, TopkOrder,
};
use crate::common::{assert_last_axis, widen};
use crate::decay::softplus_stable;
use crate::dispatch::narrow_matmul;
use crate::init;

/// Added to the sum that weights are divided by.
const SUM_EPSILON: f64 = 1e-20;

/// Top-k routing by a projection of the tokens; [`RouterConfig`] has the equation.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct LearnedRouter {
    /// Score projection `[E, D]`, as it is published.
    pub weight: Param<Tensor<2>>,
    /// Its bias `[E]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// Added to the scores for selection alone, `[E]`; takes no gradient.
    pub e_score_correction_bias: Option<Param<Tensor<1>>>,
    /// Projection to the scale of Gaussian noise.
    pub w_noise: Option<NoiseProjection>,
    #[module(skip)]
    config: RouterConfig,
}

/// The scale of Gaussian noise before its softplus: `x W_n^T`. Starts at 0.
#[derive(Module, Debug)]
pub struct NoiseProjection {
    /// `[E, D]`.
    pub weight: Param<Tensor<2>>,
}

impl LearnedRouter {
    /// The configuration has been checked.
    pub(super) fn new(config: &RouterConfig, device: &Device) -> Self {
        let (experts, hidden) = (config.num_experts, config.hidden_size);
        let zeros = || Initializer::Zeros.init([experts], device);
        let weight = match config.initialisation {
            RouterInitialisation::Normal => Initializer::Normal { mean: 0.0, std: init::STANDARD_DEVIATION }
                .init([experts, hidden], device),
            RouterInitialisation::TruncatedNormal => {
                init::truncated_normal([experts, hidden], (0.1 / hidden as f64).sqrt(), device)
            }
            RouterInitialisation::Uniform => {
                let bound = (hidden as f64).powf(-0.5);
                Initializer::Uniform { min: -bound, max: bound }.init([experts, hidden], device)
            }
        };
        let noise = || NoiseProjection { weight: Initializer::Zeros.init([experts, hidden], device) };
        Self {
            weight,
            bias: config.router_bias.then(zeros),
            e_score_correction_bias: config.selection_bias.then(|| zeros().set_require_grad(false)),
            w_noise: (config.noise == RouterNoise::Gaussian).then(noise),
            config: config.clone(),
        }
    }

    /// What the router computes.
    pub fn config(&self) -> &RouterConfig {
        &self.config
    }

    pub(super) fn rebalance(&mut self, balancer: &BiasBalancer, tokens_per_expert: &[usize]) {
        if let Some(bias) = self.e_score_correction_bias.take() {
            let moved = bias.map(|bias| balancer.next_bias(bias, tokens_per_expert).detach());
            self.e_score_correction_bias = Some(moved.set_require_grad(false));
        }
    }

    /// Routes tokens `x` `[N, D]`; see [`Router::route`](super::Router::route).
    pub fn route(&self, x: Tensor<2>, inputs: &RouterInputs, phase: Phase) -> Routing {
        assert_last_axis("LearnedRouter", x.dims(), self.config.hidden_size);
        let x = widen(x);
        if x.dims()[0] == 0 {
            return self.empty(&x.device(), x.dtype());
        }
        let k = self.config.num_experts_per_tok;
        let (clean, noise_scale) = self.clean_logits(x, inputs, phase);
        let logits = match &noise_scale {
            None => clean.clone(),
            Some(scale) => {
                let draws = inputs.noise.clone().unwrap_or_else(|| standard_normal(&clean));
                assert_same("noise", draws.dims(), clean.dims());
                clean.clone() + draws * scale.clone()
            }
        };
        let scores = self.config.scoring_func.apply(logits.clone());
        let (chosen, load) = match noise_scale {
            None => (self.choose(&logits, &scores, k), None),
            Some(scale) if k < self.config.num_experts => {
                let ranked = self.choose(&logits, &scores, k + 1);
                let load = noisy_load(clean, logits.clone(), scale, &ranked, k);
                (ranked.chunks_exact(k + 1).flat_map(|ranked| &ranked[..k]).copied().collect(), Some(load))
            }
            Some(_) => {
                let [tokens, experts] = clean.dims();
                let all = Tensor::full([experts], tokens as f64, (&clean.device(), clean.dtype()));
                (self.choose(&logits, &scores, k), Some(all))
            }
        };
        let mut assignment =
            Assignment::new(chosen, k, self.config.num_experts).expect("the best experts exist");
        let indices = assignment.indices(&logits.device());
        let mut weights = match self.config.topk_order {
            TopkOrder::TopkThenScore => softmax(logits.clone().gather(1, indices.clone()), 1),
            TopkOrder::ScoreThenTopk => {
                let weights = scores.clone().gather(1, indices.clone());
                match self.config.norm_topk_prob {
                    true => weights.clone() / weights.sum_dim(1).add_scalar(SUM_EPSILON),
                    false => weights,
                }
            }
        };
        if self.config.routed_scaling_factor != 1.0 {
            weights = weights.mul_scalar(self.config.routed_scaling_factor);
        }
        if let Some(keep) = self.second_experts(&weights, inputs, phase) {
            assignment = assignment.retain(|slot| slot % 2 == 0 || keep[slot / 2]);
            if let Some(factor) = assignment.kept_factor(&weights.device()) {
                let dtype = weights.dtype();
                weights = weights * factor.cast(dtype);
            }
        }
        Routing { logits: Some(logits), scores: Some(scores), indices, weights, load, assignment }
    }

    /// Logits without noise, and the scale of the noise where there is some.
    fn clean_logits(
        &self,
        x: Tensor<2>,
        inputs: &RouterInputs,
        phase: Phase,
    ) -> (Tensor<2>, Option<Tensor<2>>) {
        let project = |x: Tensor<2>, weight: &Param<Tensor<2>>| narrow_matmul(x, widen(weight.val()));
        let scale = (self.w_noise.as_ref())
            .filter(|_| phase == Phase::Training || inputs.noise.is_some())
            .map(|noise| {
                softplus_stable(project(x.clone(), &noise.weight)).add_scalar(self.config.noise_epsilon)
            });
        let jitter = match (self.config.noise, &inputs.jitter, phase) {
            (RouterNoise::Jitter, Some(factors), _) => Some(factors.clone()),
            (RouterNoise::Jitter, None, Phase::Training) => {
                let epsilon = self.config.noise_epsilon;
                Some(drawn(&x, Distribution::Uniform(1.0 - epsilon, 1.0 + epsilon)))
            }
            _ => None,
        };
        let x = match jitter {
            Some(factors) => {
                assert_same("jitter", factors.dims(), x.dims());
                x * factors
            }
            None => x,
        };
        let logits = project(x, &self.weight);
        let logits = match &self.bias {
            Some(bias) => logits + widen(bias.val()).unsqueeze_dim(0),
            None => logits,
        };
        (logits, scale)
    }

    /// The `count` best experts of every token.
    fn choose(&self, logits: &Tensor<2>, scores: &Tensor<2>, count: usize) -> Vec<usize> {
        let grouped = self.config.topk_group < self.config.n_group;
        let values = match (self.config.topk_order, self.config.scoring_func, &self.e_score_correction_bias) {
            (TopkOrder::TopkThenScore, _, None) => logits.clone(),
            // Softmax is monotone, but in floats it can underflow to ties.
            (TopkOrder::ScoreThenTopk, ScoringFunc::Softmax, None) if !grouped => logits.clone(),
            (TopkOrder::ScoreThenTopk, _, None) => scores.clone(),
            (TopkOrder::TopkThenScore, _, Some(bias)) => logits.clone() + widen(bias.val()).unsqueeze_dim(0),
            (TopkOrder::ScoreThenTopk, _, Some(bias)) => scores.clone() + widen(bias.val()).unsqueeze_dim(0),
        };
        assert_numbers("LearnedRouter: the logits", &values);
        top_of(values, count, Some(&self.config))
    }

    /// Which tokens keep their second expert; `None`: all.
    fn second_experts(&self, weights: &Tensor<2>, inputs: &RouterInputs, phase: Phase) -> Option<Vec<bool>> {
        let applies = phase == Phase::Training || inputs.uniform.is_some();
        if self.config.second_expert_policy == SecondExpertPolicy::All || !applies {
            return None;
        }
        let second = weights.clone().narrow(1, 1, 1).squeeze_dim::<1>(1);
        let uniform = match &inputs.uniform {
            Some(uniform) => {
                assert_same("uniform", uniform.dims(), second.dims());
                uniform.clone()
            }
            None => drawn(&second, Distribution::Default),
        };
        Some(read(second).into_iter().zip(read(uniform)).map(|(weight, u)| 2.0 * weight > u).collect())
    }

    fn empty(&self, device: &Device, dtype: DType) -> Routing {
        let (experts, k) = (self.config.num_experts, self.config.num_experts_per_tok);
        let assignment = Assignment::new(Vec::new(), k, experts).expect("no expert is out of range");
        let zeros = |width| Tensor::zeros([0, width], (device, dtype));
        Routing {
            logits: Some(zeros(experts)),
            scores: Some(zeros(experts)),
            indices: assignment.indices(device),
            weights: zeros(k),
            load: self.w_noise.as_ref().map(|_| Tensor::zeros([experts], (device, dtype))),
            assignment,
        }
    }
}

/// Values read back from the device.
pub(super) fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// Draws of the shape, type and device of `like`.
pub(super) fn drawn<const D: usize>(like: &Tensor<D>, distribution: Distribution) -> Tensor<D> {
    Tensor::random(like.dims(), distribution, (&like.device(), like.dtype()))
}

fn standard_normal(like: &Tensor<2>) -> Tensor<2> {
    drawn(like, Distribution::Normal(0.0, 1.0))
}

fn assert_same<const D: usize>(name: &str, got: [usize; D], need: [usize; D]) {
    assert!(got == need, "LearnedRouter: `{name}` has shape {got:?}, need {need:?}");
}

impl ModuleDisplay for LearnedRouter {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .add("hidden_size", &self.config.hidden_size)
            .add("num_experts", &self.config.num_experts)
            .add("num_experts_per_tok", &self.config.num_experts_per_tok)
            .optional()
    }
}
