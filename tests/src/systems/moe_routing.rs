//! `moe-routing`: routers, losses, dispatch and the mixture-of-experts layer.

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor},
};
use gatekit::core::{
    ModuleConfig,
    checkpoint::TensorLayout,
    dispatch::{Capacity, DispatchPlan, Priority},
    moe::{MoeLayerConfig, MoeLayout},
    router::{
        Assignment, BalanceLosses, BiasBalancer, CountNormalizer, ExpertChoiceRouter,
        ExpertChoiceRouterConfig, GroupScore, Phase, Router, RouterConfig, RouterInitialisation,
        RouterInputs, RouterNoise, Routing, ScoringFunc, SecondExpertPolicy, Selection, StochasticAssignment,
        TopkOrder,
    },
};

use super::Row;
use crate::{
    case::Case,
    evaluation::{Evaluation, Produced, once},
    failure::{Failure, Result},
    fields::Fields,
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "router", run: run_router },
    Row { component: "expert-choice", run: run_expert_choice },
    Row { component: "losses", run: run_losses },
    Row { component: "dispatch", run: run_dispatch },
    Row { component: "moe-layer", run: run_moe_layer },
];

const SELECTION_BIAS: &str = "gate.e_score_correction_bias";

/// The router's fields; what is not a field follows from the buffers.
fn router(evaluation: &mut Evaluation<'_>, fields: &mut Fields<'_>) -> Result<RouterConfig> {
    let table = evaluation.optional_int_buffer::<1>("hash_table")?;
    Ok(RouterConfig {
        hidden_size: fields.required("hidden_size")?,
        num_experts: fields.with_default("num_experts", 8)?,
        num_experts_per_tok: fields.with_default("num_experts_per_tok", 2)?,
        scoring_func: fields.with_default("scoring_func", ScoringFunc::Softmax)?,
        topk_order: fields.with_default("topk_order", TopkOrder::ScoreThenTopk)?,
        norm_topk_prob: fields.with_default("norm_topk_prob", true)?,
        routed_scaling_factor: fields.with_default("routed_scaling_factor", 1.0)?,
        n_group: fields.with_default("n_group", 1)?,
        topk_group: fields.with_default("topk_group", 1)?,
        group_score: fields.with_default("group_score", GroupScore::Top2Sum)?,
        router_bias: fields.with_default("router_bias", false)?,
        selection_bias: evaluation.has_buffer(SELECTION_BIAS),
        noise: fields.with_default("noise", RouterNoise::None)?,
        noise_epsilon: fields.with_default("noise_epsilon", 0.01)?,
        second_expert_policy: fields.with_default("second_expert_policy", SecondExpertPolicy::All)?,
        selection: fields.with_default("selection", Selection::Learned)?,
        vocab_size: table.map(|table| table.dims()[0]),
        initialisation: RouterInitialisation::Normal,
    })
}

/// The case's draws and ids; what it lacks is not drawn.
pub(super) fn inputs(evaluation: &mut Evaluation<'_>) -> Result<RouterInputs> {
    Ok(RouterInputs {
        noise: evaluation.optional_float("noise")?.map(Tensor::detach),
        jitter: evaluation.optional_float("jitter")?.map(Tensor::detach),
        uniform: evaluation.optional_float("uniform")?.map(Tensor::detach),
        token_ids: evaluation.optional_int("token_ids")?,
        expert_draws: evaluation.optional_int("expert_draws")?,
    })
}

/// Puts the case's hash table into a router.
pub(super) fn with_table(evaluation: &mut Evaluation<'_>, router: Router) -> Result<Router> {
    match (evaluation.optional_int_buffer::<1>("hash_table")?, router) {
        (Some(table), Router::Assigned(assigned)) => {
            Ok(Router::Assigned(StochasticAssignment::from_table(table, assigned.num_experts())?))
        }
        (_, router) => Ok(router),
    }
}

fn run_router(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = router(evaluation, &mut fields)?;
        fields.finish()?;
        let layout = TensorLayout::default()
            .with_prefix("weight", "gate.weight")
            .with_prefix("bias", "gate.bias")
            .with_prefix("e_score_correction_bias", SELECTION_BIAS);
        let router = config.try_init(evaluation.device())?;
        let router = with_table(evaluation, router)?;
        let router = match config.selection {
            Selection::Learned => evaluation.load_as(router, &layout)?,
            Selection::Hash | Selection::Random => router,
        };
        let inputs = inputs(evaluation)?;
        let x = match evaluation.optional_float::<2>("x")? {
            Some(x) => x,
            // Without scores the tokens' values are of no use.
            None => {
                let ids = inputs.token_ids.as_ref().or(inputs.expert_draws.as_ref());
                let tokens = ids.ok_or_else(|| Failure("the case lacks `input.x`".into()))?.dims()[0];
                Tensor::zeros([tokens, config.hidden_size], evaluation.device())
            }
        };
        // Given draws are used in either phase; what the case does not give is not drawn.
        let routing = router.route(x, &inputs, Phase::Inference)?;
        if let (Some(logits), Some(scores)) = (routing.logits.clone(), routing.scores.clone()) {
            evaluation.output("logits", logits)?;
            evaluation.output("scores", scores)?;
        }
        evaluation.output("importance", routing.importance())?;
        evaluation.bool_output("kept", routing.kept())?;
        evaluation.output("weights", routing.weights)?;
        evaluation.int_output("indices", routing.indices)?;
        match routing.load {
            Some(load) => evaluation.output("load", load),
            None => Ok(()),
        }
    })
}

/// Expert e is its input times a row of its own.
#[derive(Module, Debug)]
struct ScaledExperts {
    expert_scale: Param<Tensor<2>>,
}

impl ScaledExperts {
    fn new(experts: usize, width: usize, device: &Device) -> Self {
        Self { expert_scale: Param::from_tensor(Tensor::zeros([experts, width], device)) }
    }

    fn combined(&self, plan: &DispatchPlan, gathered: Tensor<2>, weights: Tensor<2>) -> Tensor<2> {
        let [rows, width] = gathered.dims();
        if rows == 0 {
            return plan.scatter_combine(gathered, weights);
        }
        let scales: Vec<_> = (plan.tokens_per_expert().into_iter().enumerate())
            .filter(|(_, count)| *count > 0)
            .map(|(expert, count)| self.expert_scale.val().narrow(0, expert, 1).expand([count, width]))
            .collect();
        plan.scatter_combine(gathered * Tensor::cat(scales, 0), weights)
    }
}

#[derive(Module, Debug)]
struct ExpertChoiceLayer {
    gate: ExpertChoiceRouter,
    experts: ScaledExperts,
}

fn run_expert_choice(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = ExpertChoiceRouterConfig {
            hidden_size: fields.required("hidden_size")?,
            num_experts: fields.with_default("num_experts", 8)?,
            capacity_factor: fields.required("capacity_factor")?,
        };
        fields.finish()?;
        let device = evaluation.device().clone();
        let layer = ExpertChoiceLayer {
            gate: config.try_init(&device)?,
            experts: ScaledExperts::new(config.num_experts, config.hidden_size, &device),
        };
        let layout = TensorLayout::default().with_prefix("experts.", "");
        let layer = evaluation.load_as(layer, &layout)?;
        let x = evaluation.float::<2>("x")?;
        let choice = layer.gate.route(x.clone());
        let plan = choice.plan();
        let y = layer.experts.combined(&plan, plan.gather(x), choice.weights.clone());
        evaluation.count_output("coverage", &choice.coverage());
        evaluation.output("scores", choice.scores)?;
        evaluation.output("weights", choice.weights)?;
        evaluation.int_output("indices", choice.indices)?;
        evaluation.output("y", y)
    })
}

fn run_losses(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let experts: usize = fields.required("num_experts")?;
        let k: usize = fields.required("num_experts_per_tok")?;
        let scoring_func = fields.with_default("scoring_func", ScoringFunc::Softmax)?;
        let normalizer = fields.with_default("count_normalizer", CountNormalizer::Tokens)?;
        let speed = fields.with_default("bias_update_speed", 0.001)?;
        fields.finish()?;
        let logits = evaluation.float::<3>("logits")?;
        let weights = evaluation.float::<3>("weights")?;
        let indices = evaluation.int::<3>("indices")?;
        let mask = evaluation.optional_bool::<2>("mask")?;
        let bias = evaluation.buffer::<1>("e_score_correction_bias")?;
        let [batch, time, _] = logits.dims();
        let indices = indices.reshape([batch * time, k]);
        let routing = Routing::from_parts(
            logits.reshape([batch * time, experts]),
            scoring_func,
            indices,
            weights.reshape([batch * time, k]),
        )?;
        let losses = BalanceLosses::new(&routing, [batch, time], mask.as_ref(), normalizer);
        let next_bias = BiasBalancer::new(speed).next_bias(bias, &losses.tokens_per_expert);
        evaluation.output("load_balance", losses.load_balance)?;
        evaluation.output("sequence_balance", losses.sequence_balance)?;
        evaluation.output("z_loss", losses.z_loss)?;
        evaluation.output("importance_cv2", losses.importance_cv2)?;
        evaluation.output("load_cv2", losses.load_cv2)?;
        evaluation.output("entropy", losses.entropy)?;
        evaluation.count_output("tokens_per_expert", &losses.tokens_per_expert);
        evaluation.output("next_bias", next_bias)
    })
}

fn run_dispatch(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let experts: usize = fields.required("num_experts")?;
        let factor: Option<f64> = fields.optional("capacity_factor")?;
        let priority = fields.with_default("priority", Priority::Token)?;
        fields.finish()?;
        let x = evaluation.float::<2>("x")?;
        let weights = evaluation.float::<2>("weights")?;
        let indices = evaluation.int::<2>("indices")?;
        let device = evaluation.device().clone();
        let layer = evaluation.load(ScaledExperts::new(experts, x.dims()[1], &device))?;
        let mut assignment = Assignment::from_tensor(&indices, experts)?;
        if let Some(factor) = factor {
            let first = weights.clone().narrow(1, 0, 1).into_data();
            let first: Vec<f64> = first.iter::<f64>().collect();
            assignment = Capacity::new(factor, priority)?.apply(assignment, &first);
        }
        let plan = DispatchPlan::new(&assignment);
        let gathered = plan.gather(x);
        let y = layer.combined(&plan, gathered.clone(), weights);
        evaluation.bool_output("kept", assignment.kept_mask(&device))?;
        evaluation.count_output("order", plan.order());
        evaluation.count_output("offsets", plan.offsets());
        evaluation.count_output("tokens_per_expert", &plan.tokens_per_expert());
        evaluation.output("gathered", gathered)?;
        evaluation.output("y", y)
    })
}

/// The layer's fields.
pub(super) fn layer_config(
    evaluation: &mut Evaluation<'_>,
    fields: &mut Fields<'_>,
) -> Result<MoeLayerConfig> {
    let router = router(evaluation, fields)?;
    Ok(MoeLayerConfig {
        hidden_size: router.hidden_size,
        moe_intermediate_size: fields.required("moe_intermediate_size")?,
        num_experts: router.num_experts,
        num_experts_per_tok: router.num_experts_per_tok,
        scoring_func: router.scoring_func,
        topk_order: router.topk_order,
        norm_topk_prob: router.norm_topk_prob,
        routed_scaling_factor: router.routed_scaling_factor,
        n_group: router.n_group,
        topk_group: router.topk_group,
        group_score: router.group_score,
        router_bias: router.router_bias,
        selection_bias: Some(router.selection_bias),
        noise: router.noise,
        noise_epsilon: router.noise_epsilon,
        second_expert_policy: router.second_expert_policy,
        selection: router.selection,
        vocab_size: router.vocab_size,
        router_initialisation: router.initialisation,
        capacity_factor: fields.optional("capacity_factor")?,
        priority: fields.with_default("priority", Priority::Token)?,
        count_normalizer: fields.with_default("count_normalizer", CountNormalizer::Tokens)?,
        bias_update_speed: fields.with_default("bias_update_speed", 0.001)?,
        shared_intermediate_size: fields.with_default("shared_intermediate_size", 0)?,
        shared_expert_gate: fields.with_default("shared_expert_gate", false)?,
        layout: fields.with_default("layout", MoeLayout::Stacked)?,
    })
}

fn run_moe_layer(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = layer_config(evaluation, &mut fields)?;
        fields.finish()?;
        let layout = config.tensor_layout(TensorLayout::default(), "");
        let mut layer = config.try_init(evaluation.device())?;
        layer.gate = with_table(evaluation, layer.gate)?;
        let layer = evaluation.load_as(layer, &layout)?;
        let x = evaluation.float::<3>("x")?;
        let inputs = inputs(evaluation)?;
        // Experts overflow in training alone.
        let phase = config.capacity_factor.map_or(Phase::Inference, |_| Phase::Training);
        let (y, routing) = layer.forward_with(x, &inputs, phase)?;
        evaluation.bool_output("kept", routing.kept())?;
        if let Some(logits) = routing.logits {
            evaluation.output("router_logits", logits)?;
        }
        evaluation.int_output("indices", routing.indices)?;
        evaluation.output("y", y)
    })
}
