//! Gates, norms, sinks and biases of the layer.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Bool, Device, Tensor};

use crate::ModuleConfig;
use crate::attention::*;
use crate::gate::{GateActivation, sigmoid};
use crate::sequence::{Boundaries, Packing};
use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

/// Fills every parameter, so that no bias, norm or sink is trivial.
struct Fill(usize);

impl ModuleMapper for Fill {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.0 += 1;
        let tensor = param.val();
        let dims = tensor.dims();
        let values = ramp(dims.iter().product(), 0.5 + 0.07 * self.0 as f64);
        Param::from_tensor(float32(&values, dims, &tensor.device()))
    }
}

fn filled(config: &CausalAttentionConfig, device: &Device) -> CausalAttention {
    config.init(device).map(&mut Fill(0))
}

fn config() -> CausalAttentionConfig {
    CausalAttentionConfig::new(10, 4).with_num_kv_heads(Some(2)).with_head_dim(Some(6))
}

/// Gates of every position and form, fused ones among them.
fn gates() -> Vec<AttentionGateConfig> {
    let gate = AttentionGateConfig::new;
    let positions = [GatePosition::Sdpa, GatePosition::Value, GatePosition::Key, GatePosition::Query];
    let mut gates = vec![gate().with_position(GatePosition::Dense)];
    for position in positions {
        for granularity in [GateGranularity::Elementwise, GateGranularity::Headwise] {
            for head_shared in [false, true] {
                let gate = gate().with_position(position).with_granularity(granularity);
                gates.push(gate.with_head_shared(head_shared));
            }
        }
    }
    gates.push(gate().with_mode(GateMode::Additive).with_activation(GateActivation::Swish));
    gates.push(gate().with_input_dependent(false).with_activation(GateActivation::NonSparseSigmoid));
    for layout in [GateLayout::Head, GateLayout::KvGroup] {
        for granularity in [GateGranularity::Elementwise, GateGranularity::Headwise] {
            gates.push(gate().with_fused(Some(layout)).with_granularity(granularity));
        }
    }
    gates
}

#[test]
fn streaming_and_padding_equal_whole_rows_with_every_gate() {
    let device = devices().pop().expect("at least one device");
    for gate in gates() {
        let config = config()
            .with_qk_norm(true)
            .with_zero_centered_norm(true)
            .with_partial_rotary_factor(0.7)
            .with_qkv_bias(true)
            .with_output_bias(true)
            .with_sinks(true)
            .with_sdpa_transform(SdpaTransform::RmsNorm)
            .with_gate(Some(gate));
        let layer = filled(&config, &device);
        let x = float32(&ramp(2 * 6 * 10, 1.0), [2, 6, 10], &device);
        let whole = layer.forward(x.clone(), None);
        let (first, mut cache) = layer.prefill(x.clone().narrow(1, 0, 3), layer.empty_cache(2, &device));
        let mut pieces = vec![first];
        for t in 3..6 {
            let (y, next) = layer.step(x.clone().narrow(1, t, 1).squeeze_dim(1), cache);
            cache = next;
            pieces.push(y.unsqueeze_dim(1));
        }
        assert_close(&values(Tensor::cat(pieces, 1)), &values(whole), 3e-6);

        let mask = [[false, true, true, false, true, true], [true; 6]];
        let packing = Packing::from_mask(&Tensor::<2, Bool>::from_data(mask, &device)).unwrap();
        let got = layer.forward(x.clone(), Some(&packing));
        let row = x.clone().narrow(0, 0, 1);
        let row = Tensor::cat(vec![row.clone().narrow(1, 1, 2), row.narrow(1, 4, 2)], 1);
        let alone = values(layer.forward(row, None));
        let second = values(layer.forward(x.narrow(0, 1, 1), None));
        let zeros = vec![0.0; 10];
        let expected = [zeros.clone(), alone[..20].to_vec(), zeros, alone[20..].to_vec(), second].concat();
        assert_close(&values(got), &expected, 3e-6);
    }
}

#[test]
fn closed_gates_silence_what_they_gate_and_open_ones_leave_it() {
    let device = devices().pop().expect("at least one device");
    let x = float32(&ramp(5 * 10, 1.0), [1, 5, 10], &device);
    for position in [GatePosition::Sdpa, GatePosition::Value, GatePosition::Dense] {
        let gate = AttentionGateConfig::new().with_position(position).with_input_dependent(false);
        let mut layer = filled(&config().with_gate(Some(gate)), &device);
        let set = |layer: &mut CausalAttention, value: f64| {
            let gate = layer.gate.as_mut().expect("a gate");
            let dims = gate.gate_score.as_ref().expect("learned scores").dims();
            gate.gate_score = Some(Param::from_tensor(Tensor::full(dims, value, &device)));
        };
        set(&mut layer, -200.0);
        assert_eq!(values(layer.forward(x.clone(), None)), vec![0.0; 50]);
        set(&mut layer, 200.0);
        let mut plain = layer.clone();
        plain.gate = None;
        assert_close(&values(layer.forward(x.clone(), None)), &values(plain.forward(x.clone(), None)), 1e-6);
    }
}

#[test]
fn a_fused_gate_equals_the_general_layer_after_splitting() {
    for device in devices() {
        for layout in [GateLayout::Head, GateLayout::KvGroup] {
            for granularity in [GateGranularity::Elementwise, GateGranularity::Headwise] {
                for bias in [false, true] {
                    let gate =
                        AttentionGateConfig::new().with_fused(Some(layout)).with_granularity(granularity);
                    let config = config().with_gate(Some(gate)).with_qkv_bias(bias).with_qk_norm(true);
                    let fused = filled(&config, &device);
                    let split = fused.clone().split();
                    let gate = split.gate.as_ref().expect("a gate of its own");
                    let width = granularity.width(6);
                    let projection = gate.gate_proj.as_ref().expect("a projection");
                    assert_eq!(projection.weight.dims(), [10, 4 * width]);
                    assert_eq!(split.q_proj.weight.dims(), [10, 24]);
                    assert_eq!(split.q_proj.bias.is_some(), bias);
                    let x = float32(&ramp(2 * 5 * 10, 1.0), [2, 5, 10], &device);
                    let expected = values(fused.forward(x.clone(), None));
                    assert_close(&values(split.forward(x.clone(), None)), &expected, 1e-6);
                    let scores = |layer: &CausalAttention| values(layer.gate_scores(x.clone()).unwrap());
                    assert_close(&scores(&split), &scores(&fused), 1e-6);
                }
            }
        }
    }
}

#[test]
fn layouts_agree_only_without_groups() {
    let device = devices().pop().expect("at least one device");
    let output = |layout, kv_heads| {
        let gate = AttentionGateConfig::new().with_fused(Some(layout));
        let config = config().with_num_kv_heads(Some(kv_heads)).with_gate(Some(gate));
        values(filled(&config, &device).forward(float32(&ramp(50, 1.0), [1, 5, 10], &device), None))
    };
    assert_close(&output(GateLayout::Head, 4), &output(GateLayout::KvGroup, 4), 1e-7);
    let far = output(GateLayout::Head, 2)
        .iter()
        .zip(output(GateLayout::KvGroup, 2))
        .any(|(a, b)| (a - b).abs() > 0.1);
    assert!(far);
}

#[test]
fn the_gate_multiplies_each_heads_output() {
    for device in devices() {
        let gate = AttentionGateConfig::new().with_granularity(GateGranularity::Headwise);
        let layer = filled(&config().with_gate(Some(gate)), &device);
        let x = float32(&ramp(2 * 5 * 10, 1.0), [2, 5, 10], &device);
        let scores = layer.gate_scores(x.clone()).unwrap();
        assert_eq!(scores.dims(), [2, 5, 4, 1]);
        let gate = layer.gate.as_ref().unwrap().gate_proj.as_ref().unwrap();
        let logits = gate.forward(x.clone()).reshape([2, 5, 4, 1]);
        assert_close(&values(scores.clone()), &values(sigmoid(logits)), 1e-6);
        let projected = layer.project(x.clone(), Positions::From(0));
        let o = layer.attend(projected.q, projected.k, projected.v, None) * scores;
        let expected = layer.o_proj.forward(o.reshape([2, 5, 24]));
        assert_close(&values(layer.forward(x, None)), &values(expected), 1e-6);
    }
}

#[test]
fn sinks_take_their_share() {
    let [heads, groups, dim, time] = [4, 2, 3, 5];
    let options = AttentionOptions { block_size: 2, ..AttentionOptions::default() };
    for device in devices() {
        let q = float32(&ramp(2 * time * heads * dim, 2.0), [2, time, heads, dim], &device);
        let k = float32(&ramp(2 * time * groups * dim, 1.5), [2, time, groups, dim], &device);
        let v = float32(&ramp(2 * time * groups * dim, 1.1), [2, time, groups, dim], &device);
        let sinks = float32(&[0.5, -2.0, 3.0, -200.0], [heads], &device);
        let got = sink_attention(q.clone(), k.clone(), v.clone(), sinks.clone(), &options, None);
        // exp(s) over exp(sink) + sum exp(s), from the plain weights and the scores.
        let repeated = |x: Tensor<4>| {
            x.swap_dims(1, 2).unsqueeze_dim::<5>(2).repeat_dim(2, 2).reshape([2, heads, time, dim])
        };
        let scores = q.clone().swap_dims(1, 2).matmul(repeated(k.clone()).swap_dims(2, 3)) * 3f64.powf(-0.5);
        let seen = Tensor::<2>::ones([time, time], &device).tril(0).unsqueeze::<4>();
        let exp = scores.exp() * seen;
        let total = exp.clone().sum_dim(3) + sinks.exp().reshape([1, heads, 1, 1]);
        let expected = (exp / total).matmul(repeated(v.clone())).swap_dims(1, 2);
        assert_close(&values(got.clone()), &values(expected), 2e-6);
        // A sink far below every score takes nothing.
        let plain = causal_attention(q, k, v, &options, None);
        assert_close(&values(got.narrow(2, 3, 1)), &values(plain.narrow(2, 3, 1)), 1e-6);
    }
}

#[test]
fn gradients_of_sinks_match_finite_differences() {
    for device in devices() {
        for cu_seqlens in [None, Some([0, 2, 5])] {
            let boundaries = cu_seqlens.map(|cu_seqlens| Boundaries::new(&cu_seqlens, 5).unwrap());
            let q = float64(&ramp(20, 1.0), [1, 5, 2, 2], &device);
            let k = float64(&ramp(10, 1.2), [1, 5, 1, 2], &device);
            let weight = float64(&ramp(20, 1.3), [1, 5, 2, 2], &device);
            check_gradients(&[0.3, -0.7], [2], &device, |sinks: Tensor<1>| {
                let options = AttentionOptions { window: Some(3), ..AttentionOptions::default() };
                let o = sink_attention(q.clone(), k.clone(), k.clone(), sinks, &options, boundaries.as_ref());
                o * weight.clone()
            });
        }
    }
}

#[test]
fn refuses_gates_that_do_not_exist() {
    let device = devices().remove(0);
    let field = |config: CausalAttentionConfig| config.try_init(&device).unwrap_err().field;
    let gate = AttentionGateConfig::new;
    let dense = || gate().with_position(GatePosition::Dense);
    for gate in [dense().with_granularity(GateGranularity::Headwise), dense().with_head_shared(true)] {
        assert_eq!(field(config().with_gate(Some(gate))), "gate.granularity");
    }
    let fused = || gate().with_fused(Some(GateLayout::Head));
    for gate in [
        fused().with_position(GatePosition::Value),
        fused().with_mode(GateMode::Additive),
        fused().with_head_shared(true),
        fused().with_input_dependent(false),
    ] {
        assert_eq!(field(config().with_gate(Some(gate))), "gate.fused");
    }
    let tempered = gate().with_activation(GateActivation::TemperedSigmoid(0.0));
    assert_eq!(field(config().with_gate(Some(tempered))), "gate.activation");
    assert_eq!(field(config().with_head_dim(Some(0))), "head_dim");
    assert_eq!(field(config().with_head_dim(Some(5))), "head_dim");
    assert_eq!(field(config().with_partial_rotary_factor(0.5)), "partial_rotary_factor");
    assert_eq!(field(config().with_partial_rotary_factor(0.1)), "partial_rotary_factor");
    assert_eq!(field(config().with_partial_rotary_factor(1.5)), "partial_rotary_factor");
    assert_eq!(field(config().with_qk_norm(true).with_norm_eps(0.0)), "norm_eps");
    assert!(config().with_partial_rotary_factor(0.34).try_init(&device).is_ok());
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "a score is NaN")]
fn scores_that_are_no_numbers_panic_in_debug_builds() {
    let device = devices().remove(0);
    let layer = config().with_gate(Some(AttentionGateConfig::new())).init(&device);
    layer.forward(Tensor::full([1, 2, 10], f64::NAN, &device), None);
}

#[test]
#[should_panic(expected = "no time step")]
fn an_empty_sequence_panics() {
    let device = devices().remove(0);
    config().init(&device).forward(Tensor::zeros([1, 0, 10], &device), None);
}
