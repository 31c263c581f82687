//! The baseline with a router: top-1 experts with a balancing loss, in the same transformer.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, LayerNorm};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Int, Tensor};
use gatekit::core::dispatch::DispatchPlan;
use gatekit::core::router::{
    BalanceLosses, CountNormalizer, Phase, Router, RouterConfig, RouterInitialisation, RouterInputs,
};
use gatekit::core::{ConfigError, ModuleConfig};
use gatekit::experts::thor::{
    StochasticExpertsConfig, StochasticFfn, ThorConfig, ThorFeedForward, ThorModel,
};

/// `y = p_e f_e(x)` with the expert of the largest probability (Fedus et al., arXiv 2101.03961); the experts are those
/// of [`StochasticFfn`], but chosen by a router.
#[derive(Module, Debug)]
pub struct SwitchFfn {
    router: Router,
    experts: StochasticFfn,
}

impl SwitchFfn {
    fn new(config: &ThorConfig, device: &Device) -> Result<Self, ConfigError> {
        let router = RouterConfig::new(config.embed_dim)
            .with_num_experts(config.num_experts)
            .with_num_experts_per_tok(1)
            .with_norm_topk_prob(false)
            .with_initialisation(RouterInitialisation::TruncatedNormal);
        let experts = StochasticExpertsConfig::new(config.embed_dim, config.ffn_dim)
            .with_num_experts(config.num_experts);
        Ok(Self { router: router.try_init(device)?, experts: experts.try_init(device)? })
    }

    /// Output and balancing loss of `x` `[batch, time, D]`.
    fn forward(&self, x: Tensor<3>) -> (Tensor<3>, Tensor<1>) {
        let dims = x.dims();
        let rows = x.reshape([dims[0] * dims[1], dims[2]]);
        let routing = self
            .router
            .route(rows.clone(), &RouterInputs::default(), Phase::Inference)
            .expect("a learned router needs no ids");
        let losses = BalanceLosses::new(&routing, [dims[0], dims[1]], None, CountNormalizer::Tokens);
        let plan = DispatchPlan::new(&routing.assignment);
        let inner = relu(self.experts.fc1.forward(plan.gather(rows), plan.offsets()));
        let outputs = self.experts.fc2.forward(inner, plan.offsets());
        (plan.scatter_combine(outputs, routing.weights).reshape(dims), losses.load_balance)
    }
}

/// The transformer of [`ThorModel`] with routed experts in its even layers.
#[derive(Module, Debug)]
pub struct SwitchModel {
    base: ThorModel,
    encoder: Vec<SwitchFfn>,
    decoder: Vec<SwitchFfn>,
    dropout: Dropout,
}

impl SwitchModel {
    /// `config` as for THOR, with norms behind the sums.
    pub fn new(config: &ThorConfig, device: &Device) -> Result<Self, ConfigError> {
        let switches = |layers: usize| {
            let routed = (0..layers).filter(|layer| layer.is_multiple_of(2));
            routed.map(|_| SwitchFfn::new(config, device)).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            base: config.clone().with_expert_layers(Some(Vec::new())).try_init(device)?,
            encoder: switches(config.encoder_layers)?,
            decoder: switches(config.decoder_layers)?,
            dropout: DropoutConfig::new(config.dropout).init(),
        })
    }

    /// Logits `[batch, time, V]`, and the balancing losses added up.
    pub fn forward(&self, source: Tensor<2, Int>, target_input: Tensor<2, Int>) -> (Tensor<3>, Tensor<1>) {
        let padding = self.base.padding(&source);
        let mut balance = Tensor::zeros([1], &self.base.embed_tokens.weight.val().device());
        let mut x = self.base.embed(source, 0);
        for (index, layer) in self.base.encoder.layers.iter().enumerate() {
            let attended = layer.self_attn.forward(x.clone(), x.clone(), Some(&padding), false);
            x = self.add(&layer.self_attn_layer_norm, x, attended);
            let y = feed_forward(index, &self.encoder, &layer.ffn, x.clone(), &mut balance);
            x = self.add(&layer.final_layer_norm, x, y);
        }
        let memory = x;
        let mut x = self.base.embed(target_input, 0);
        for (index, layer) in self.base.decoder.layers.iter().enumerate() {
            let attended = layer.self_attn.forward(x.clone(), x.clone(), None, true);
            x = self.add(&layer.self_attn_layer_norm, x, attended);
            let read = layer.encoder_attn.forward(x.clone(), memory.clone(), Some(&padding), false);
            x = self.add(&layer.encoder_attn_layer_norm, x, read);
            let y = feed_forward(index, &self.decoder, &layer.ffn, x.clone(), &mut balance);
            x = self.add(&layer.final_layer_norm, x, y);
        }
        (self.base.logits(x), balance)
    }

    fn add(&self, norm: &LayerNorm, x: Tensor<3>, y: Tensor<3>) -> Tensor<3> {
        norm.forward(x + self.dropout.forward(y))
    }
}

fn feed_forward(
    layer: usize,
    routed: &[SwitchFfn],
    dense: &ThorFeedForward,
    x: Tensor<3>,
    balance: &mut Tensor<1>,
) -> Tensor<3> {
    if layer.is_multiple_of(2) {
        let (y, loss) = routed[layer / 2].forward(x);
        *balance = balance.clone() + loss;
        return y;
    }
    dense.forward(x, None).expect("a layer without experts needs none")
}
