//! Feed-forward layers of experts, and what they are compared with.

use std::hint::black_box;

use burn::module::Param;
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use gatekit::core::{
    ModuleConfig,
    dispatch::DispatchPlan,
    feed_forward::SwiGluConfig,
    moe::{MoeLayer, MoeLayerConfig, MoeLayout},
    router::{Phase, Router, RouterInputs},
};
use gatekit::experts::{
    acm::{AcmConfig, AcmMode},
    modes::{SkippingMoeLayer, Thresholds, TokenModalities},
};

use crate::{
    case::Case,
    op::{Op, experts_per_token},
    shape::Shape,
    work::{Inputs, Work, bytes_of},
};

/// The layer of Qwen3-MoE: softmax scores, their largest, renormalised.
fn layer(shape: Shape) -> MoeLayerConfig {
    MoeLayerConfig::new(shape.key_dim, shape.value_dim)
        .with_num_experts(shape.heads)
        .with_num_experts_per_tok(experts_per_token(shape))
        .with_layout(MoeLayout::Qwen3Moe)
}

pub(crate) fn prepare(case: Case, device: &Device) -> Work {
    let shape = case.shape;
    let mut inputs = Inputs::new(case, device);
    let tokens = [shape.batch * shape.time, shape.key_dim];
    let normal = Distribution::Normal(0.0, 1.0);
    match case.op {
        Op::DenseSwiGlu => {
            let x = inputs.draw(tokens, normal);
            let inner = experts_per_token(shape) * shape.value_dim;
            let layer = inputs.module(|device| SwiGluConfig::new(shape.key_dim, inner).init(device));
            let bytes = bytes_of(&x);
            inputs.over_sequences(bytes, move || layer.forward(x.clone()))
        }
        Op::SortedExperts => {
            let unsorted = inputs.normal(tokens);
            let (_, routing) = layer(shape).init(device).forward_with_routing(unsorted.clone());
            let plan = DispatchPlan::new(&routing.assignment);
            let layer = inputs.module(|device| layer(shape).init(device));
            let sorted = plan.gather(unsorted);
            let x = inputs.take(sorted);
            let bytes = bytes_of(&x);
            inputs.over_sequences(bytes, move || layer.experts.forward(x.clone(), plan.offsets()))
        }
        Op::Routing => {
            let x = inputs.draw(tokens, normal);
            let layer = inputs.module(|device| layer(shape).init(device));
            let bytes = tokens[0] * experts_per_token(shape) * size_of::<f32>();
            inputs.over_sequences(bytes, move || {
                let routing = layer.gate.route(x.clone(), &RouterInputs::default(), Phase::Inference);
                let routing = routing.expect("it is learned");
                drop(black_box(DispatchPlan::new(&routing.assignment)));
                routing.weights
            })
        }
        Op::Acm | Op::AcmQuarter => {
            let x = inputs.draw([shape.batch, shape.time, shape.key_dim], normal);
            let learners = experts_per_token(shape);
            let config = AcmConfig::new(shape.key_dim, shape.value_dim).with_num_blocks(learners);
            let layer = inputs.module(|device| config.init(device));
            let bytes = bytes_of(&x);
            if case.op == Op::Acm {
                return inputs.over_sequences(bytes, move || {
                    layer.forward(x.clone(), AcmMode::All).expect("all is legal").y
                });
            }
            // From none to half of the learners, on average a quarter.
            let choice = Distribution::Uniform(0.0, (learners / 2 + 1) as f64);
            let choice = Tensor::<2>::random([shape.batch, shape.time], choice, device).int();
            inputs.over_sequences(bytes, move || {
                let gate = layer.gate_of(x.clone(), None, Phase::Inference).expect("it has a gate");
                drop(black_box(gate.choice));
                layer.forward_given(x.clone(), choice.clone()).expect("as many as there are").y
            })
        }
        Op::SkippingMoe => {
            let x = inputs.draw(tokens, normal);
            let inner = inputs.module(|device| layer(shape).init(device));
            let mut layer = SkippingMoeLayer::new(inner, device);
            let modalities = TokenModalities::text(tokens[0]);
            let pass = layer.forward_with(x.clone(), &modalities, &RouterInputs::default());
            let mut scores = pass.expect("routed").decision.scores().to_vec();
            scores.sort_by(f64::total_cmp);
            let threshold = scores[scores.len() * 4 / 5];
            let thresholds = Thresholds::new(threshold, threshold).expect("a share is no less than 0");
            layer.skipper.set_thresholds(thresholds);
            let bytes = bytes_of(&x);
            inputs.over_sequences(bytes, move || layer.forward(x.clone(), &modalities).expect("routed"))
        }
        _ => {
            let x = inputs.draw(tokens, normal);
            let layer = inputs.module(|device| layer(shape).init(device));
            let bytes = bytes_of(&x);
            inputs.over_sequences(bytes, move || layer.forward(x.clone()))
        }
    }
}

/// Names and sizes of what peers are given: tokens, the router's and the experts' weights, stacked; a dense layer has
/// no router and one expert as wide as a token's together.
pub fn inputs(op: Op, shape: Shape) -> impl Iterator<Item = (&'static str, usize)> {
    let Shape { batch, time, heads: experts, key_dim: width, value_dim: inner } = shape;
    let inner = if op == Op::DenseSwiGlu { experts_per_token(shape) * inner } else { inner * experts };
    let router = (op != Op::DenseSwiGlu).then_some(("router", experts * width));
    let weights = [("gate_up", 2 * inner * width), ("down", inner * width)];
    [("x", batch * time * width)].into_iter().chain(router).chain(weights)
}

/// The output of a layer for given inputs, as peers are asked for it.
pub fn output_of(case: Case, device: &Device, named: &[(&'static str, Vec<f32>)]) -> Vec<f32> {
    let Shape { batch, time, heads: experts, key_dim: width, value_dim: inner } = case.shape;
    let data = |name: &str, dims: &[usize]| {
        let values = named.iter().find(|(known, _)| *known == name).map(|(_, values)| values.clone());
        TensorData::new(values.unwrap_or_default(), dims.to_vec())
    };
    let x = Tensor::<2>::from_data(data("x", &[batch * time, width]), device);
    let output = match case.op {
        Op::DenseSwiGlu => {
            let inner = experts_per_token(case.shape) * inner;
            let gate_up = Tensor::<2>::from_data(data("gate_up", &[2 * inner, width]), device);
            let down = Tensor::<2>::from_data(data("down", &[width, inner]), device);
            let mut layer = SwiGluConfig::new(width, inner).init(device);
            layer.gate_proj.weight = Param::from_tensor(gate_up.clone().narrow(0, 0, inner).transpose());
            layer.up_proj.weight = Param::from_tensor(gate_up.narrow(0, inner, inner).transpose());
            layer.down_proj.weight = Param::from_tensor(down.transpose());
            layer.forward(x)
        }
        _ => {
            let mut layer: MoeLayer = layer(case.shape).init(device);
            if let Router::Learned(router) = &mut layer.gate {
                router.weight = Param::from_data(data("router", &[experts, width]), device);
            }
            layer.experts.gate_up_proj =
                Param::from_data(data("gate_up", &[experts, 2 * inner, width]), device);
            layer.experts.down_proj = Param::from_data(data("down", &[experts, width, inner]), device);
            layer.forward(x)
        }
    };
    output.into_data().convert::<f32>().try_into_vec().unwrap_or_default()
}
