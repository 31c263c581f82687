//! The layer of gated linear attention and its configuration.

mod support;

use burn::module::Module;
use burn::tensor::{Bool, Device, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_core::scan::ScanForm;
use gatekit_core::sequence::Packing;
use gatekit_sequence::backbone::{MixerContext, TokenMixer};
use gatekit_sequence::checkpoint::{PretrainedConfig, config_from_json, named_gradients, named_parameters};
use gatekit_sequence::gla::{GatedLinearAttentionConfig, GlaConfig};
use gatekit_sequence::lm::CausalLm;
use serde_json::{Value, json};
use support::*;

fn features(shape: [usize; 3], device: &Device) -> Tensor<3> {
    let mut state = 5;
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| noise(&mut state)).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[test]
fn parameters_have_the_published_names_and_layout() {
    let layer = |config: GatedLinearAttentionConfig| {
        let parameters = named_parameters(&config.init(&Device::flex()));
        parameters.into_iter().map(|(name, data)| (name, data.shape().to_vec())).collect::<Vec<_>>()
    };
    let base = GatedLinearAttentionConfig::new(16).with_num_heads(2).with_gate_low_rank_dim(5);
    let pairs = |pairs: &[(&str, &[usize])]| -> Vec<(String, Vec<usize>)> {
        pairs.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
    };
    assert_eq!(
        layer(base.clone()),
        pairs(&[
            ("g_norm_swish_gate.weight", &[8]),
            ("g_proj.weight", &[16, 16]),
            ("gk_proj.0.weight", &[5, 16]),
            ("gk_proj.1.bias", &[8]),
            ("gk_proj.1.weight", &[8, 5]),
            ("k_proj.weight", &[8, 16]),
            ("o_proj.weight", &[16, 16]),
            ("q_proj.weight", &[8, 16]),
            ("v_proj.weight", &[16, 16]),
        ])
    );
    let grouped = base.clone().with_num_heads(4).with_num_kv_heads(Some(2)).with_expand_k(1.0);
    assert_eq!(
        layer(grouped.with_use_short_conv(true).with_conv_bias(true).with_conv_size(3)),
        pairs(&[
            ("g_norm_swish_gate.weight", &[4]),
            ("g_proj.weight", &[16, 16]),
            ("gk_proj.0.weight", &[5, 16]),
            ("gk_proj.1.bias", &[8]),
            ("gk_proj.1.weight", &[8, 5]),
            ("k_conv1d.bias", &[8]),
            ("k_conv1d.weight", &[8, 1, 3]),
            ("k_proj.weight", &[8, 16]),
            ("o_proj.weight", &[16, 16]),
            ("q_conv1d.bias", &[16]),
            ("q_conv1d.weight", &[16, 1, 3]),
            ("q_proj.weight", &[16, 16]),
            ("v_conv1d.bias", &[8]),
            ("v_conv1d.weight", &[8, 1, 3]),
            ("v_proj.weight", &[8, 16]),
        ])
    );
    let norm_name =
        |config| layer(config).into_iter().find(|(name, _)| name.starts_with("g_norm")).unwrap().0;
    assert_eq!(norm_name(base.clone().with_gate_fn("sigmoid".into())), "g_norm.weight");
    assert_eq!(norm_name(base.clone().with_gate_fn("silu".into())), "g_norm.weight");
    assert_eq!(norm_name(base.with_use_output_gate(false)), "g_norm.weight");
}

#[test]
fn the_decay_starts_where_the_paper_says() {
    let device = Device::flex();
    device.seed(1);
    let layer = GatedLinearAttentionConfig::new(32).init(&device);
    let decay = values(&layer.gates(features([2, 5, 32], &device)).forget);
    let start = 0.5f32.powf(1.0 / 16.0);
    assert!(decay.iter().all(|alpha| (alpha - start).abs() < 5e-3), "{decay:?}");
}

#[test]
fn gates_are_those_of_the_equations() {
    for device in devices() {
        let config = &variants()[1];
        let model = lively(config, &device);
        let layer = &model.model.layers[0].attn;
        let x = features([2, 5, 16], &device);
        let gates = layer.gates(x.clone());
        assert_eq!(gates.forget.dims(), [2, 5, 2, 4]);
        assert_eq!(gates.output.as_ref().unwrap().dims(), [2, 5, 4, 4]);

        let logits = layer.gk_proj[1].forward(layer.gk_proj[0].forward(x.clone()));
        let want: Vec<f32> = (values(&logits).into_iter())
            .map(|z| (-(-f64::from(z)).exp().ln_1p() / 2.0).max(-0.3).exp() as f32)
            .collect();
        assert_close(&values(&gates.forget), &want, 1e-5, "forget gate");
        let swish = |z: f32| z / (1.0 + (-z).exp());
        let logits = layer.g_proj.as_ref().unwrap().forward(x);
        let want: Vec<f32> = values(&logits).into_iter().map(swish).collect();
        assert_close(&values(&gates.output.unwrap()), &want, 1e-5, "output gate");

        let all = model.gate_values(tokens(2, 5, &device));
        assert_eq!(all.len(), 2);
        let first = model.model.layers[0].attn_norm.forward(model.embed(tokens(2, 5, &device)));
        assert_eq!(values(&all[0].forget), values(&layer.gates(first).forget));
        assert_ne!(values(&all[0].forget), values(&all[1].forget));
    }
    let ungated = plain().with_use_output_gate(false).init(&Device::flex());
    assert!(ungated.gate_values(tokens(1, 3, &Device::flex()))[0].output.is_none());
}

#[test]
fn all_forms_of_the_scan_agree() {
    for device in devices() {
        for config in variants() {
            let model = lively(&config, &device);
            let ids = tokens(2, 90, &device);
            let step_by_step = model.clone().with_scan_form(ScanForm::Recurrent).forward(ids.clone(), None);
            for form in [ScanForm::Auto, ScanForm::Portable] {
                let got = model.clone().with_scan_form(form).forward(ids.clone(), None);
                assert_close(&values(&got), &values(&step_by_step), 1e-5, &format!("{form:?}, {config}"));
            }
        }
    }
}

#[test]
fn chunk_sizes_do_not_change_the_result() {
    let device = Device::flex();
    let want = values(&lively(&plain(), &device).forward(tokens(1, 90, &device), None));
    for (chunk, sub_chunk) in [(8, 8), (16, 4), (32, 16), (128, 16)] {
        let config = plain().with_chunk_size(chunk).with_sub_chunk_size(sub_chunk);
        let got = lively(&config, &device).forward(tokens(1, 90, &device), None);
        assert_close(&values(&got), &want, 1e-5, &format!("{chunk}, {sub_chunk}"));
    }
}

#[test]
fn padding_leaves_the_state_after_the_last_real_token() {
    for device in devices() {
        for config in variants() {
            let layer = &lively(&config, &device).model.layers[1].attn;
            let x = features([2, 9, 16], &device);
            let mask = [
                [false, false, true, true, true, false, true, true, false],
                [true, true, true, true, true, true, true, true, true],
            ];
            let packing = Packing::from_mask(&Tensor::<2, Bool>::from_data(mask, &device)).unwrap();
            let (y, state) = layer.forward_with_state(x.clone(), Some(&packing), None);
            for (row, mask) in mask.iter().enumerate() {
                let here = |x: &Tensor<3>| x.clone().narrow(0, row, 1);
                let real: Vec<usize> = (0..9).filter(|&time| mask[time]).collect();
                let pick = |x: &Tensor<3>| {
                    Tensor::cat(real.iter().map(|&time| here(x).narrow(1, time, 1)).collect(), 1)
                };
                let (want, alone) = layer.forward_with_state(pick(&x), None, None);
                assert_close(&values(&pick(&y)), &values(&want), 1e-5, "output");
                let recurrent = state.recurrent.clone().narrow(0, row, 1);
                assert_close(&values(&recurrent), &values(&alone.recurrent), 1e-5, "state");
                if let (Some(got), Some(want)) = (&state.windows, &alone.windows) {
                    assert_close(&values(&here(&got.k)), &values(&want.k), 1e-5, "window");
                }
            }
            let padded = values(&y.narrow(0, 0, 1).narrow(1, 0, 2));
            assert!(padded.iter().all(|value| *value == 0.0), "0 at padded positions");
        }
    }
}

#[test]
fn every_parameter_gets_a_gradient() {
    for device in devices() {
        let device = device.autodiff();
        for config in variants() {
            let model = lively(&config, &device);
            let ids = tokens(2, 9, &device);
            let loss = model.loss(model.forward(ids.clone(), None), ids).unwrap();
            let gradients = named_gradients(&model, &loss.backward());
            for (name, parameter) in named_parameters(&model) {
                let gradient = gradients.get(&name).unwrap_or_else(|| panic!("no gradient for {name}"));
                assert_eq!(gradient.shape(), parameter.shape(), "{name}");
                let norm: f32 = gradient.iter::<f32>().map(|value| value * value).sum();
                assert!(norm.is_finite() && norm > 0.0, "{name}: {norm}, {config}");
            }
        }
    }
}

#[test]
fn tied_embeddings_have_no_head() {
    let device = Device::flex();
    let tied = plain().with_tie_word_embeddings(true).init(&device);
    assert!(tied.lm_head.is_none());
    assert_eq!(plain().init(&device).num_params() - tied.num_params(), 37 * 16);
    assert_eq!(tied.forward(tokens(2, 3, &device), None).dims(), [2, 3, 37]);
}

#[test]
fn unusable_configurations_name_the_field() {
    let device = Device::flex();
    for (field, config) in [
        ("expand_k", plain().with_expand_k(0.3)),
        ("expand_k", plain().with_expand_k(f64::NAN)),
        ("expand_k", plain().with_expand_k(1e300)),
        ("expand_v", plain().with_expand_v(-1.0)),
        ("expand_v", plain().with_num_heads(4).with_expand_k(1.0).with_expand_v(0.125)),
        ("num_heads", plain().with_num_heads(0)),
        ("num_kv_heads", plain().with_num_heads(4).with_num_kv_heads(Some(3))),
        ("num_kv_heads", plain().with_num_kv_heads(Some(0))),
        ("gate_logit_normalizer", plain().with_gate_logit_normalizer(0.0)),
        ("gate_logit_normalizer", plain().with_gate_logit_normalizer(-1.0)),
        ("clamp_min", plain().with_clamp_min(Some(0.5))),
        ("gate_fn", plain().with_gate_fn("swoosh".into())),
        ("feature_map", plain().with_feature_map(Some("swoosh".into()))),
        ("gate_low_rank_dim", plain().with_gate_low_rank_dim(0)),
        ("chunk_size", plain().with_chunk_size(40)),
        ("chunk_size", plain().with_chunk_size(0)),
        ("sub_chunk_size", plain().with_sub_chunk_size(0)),
        ("conv_size", plain().with_use_short_conv(true).with_conv_size(0)),
        ("norm_eps", plain().with_norm_eps(0.0)),
        ("intermediate_size", plain().with_intermediate_size(Some(0))),
        ("hidden_ratio", plain().with_intermediate_size(None).with_hidden_ratio(-1.0)),
        ("hidden_ratio", plain().with_intermediate_size(None).with_hidden_ratio(f64::MAX)),
        ("vocab_size", GlaConfig::new(0, 16, 2)),
        ("hidden_size", GlaConfig::new(37, 0, 2)),
        ("num_hidden_layers", GlaConfig::new(37, 16, 0)),
        ("num_hidden_layers", GlaConfig::new(37, 16, usize::MAX)),
    ] {
        let error = config.try_init(&device).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
}

#[test]
#[should_panic(expected = "configuration field `gate_logit_normalizer`: got 0")]
fn init_panics_with_the_same_text() {
    plain().with_gate_logit_normalizer(0.0).init(&Device::flex());
}

#[test]
#[should_panic(expected = "this layer has no convolutions")]
fn a_state_of_another_layer_panics() {
    let device = Device::flex();
    let other = plain().with_use_short_conv(true).init(&device).model.layers[0].attn.empty_state(1, &device);
    plain().init(&device).model.layers[0].attn.prefill(
        features([1, 3, 16], &device),
        other,
        &MixerContext::default(),
    );
}

fn published() -> Value {
    json!({ "model_type": "gla", "architectures": ["GLAForCausalLM"], "hidden_size": 64, "vocab_size": 11 })
}

#[test]
fn published_configurations_are_read() {
    let read = GlaConfig::from_published(&published()).unwrap();
    assert_eq!((read.hidden_size, read.vocab_size, read.num_hidden_layers), (64, 11, 24));
    assert_eq!((read.num_heads, read.gate_low_rank_dim, read.norm_eps), (4, 16, 1e-6));
    assert_eq!(
        (read.gate_fn.as_str(), read.intermediate_size, read.gate_logit_normalizer),
        ("swish", None, 16.0)
    );

    let mut json = published();
    json["hidden_act"] = json!("silu");
    json["num_heads"] = json!(2);
    json["clamp_min"] = json!(-5);
    json["hidden_ratio"] = Value::Null;
    json["attn"] = Value::Null;
    json["something_new"] = json!({ "a": 1 });
    let read = GlaConfig::from_published(&json).unwrap();
    assert_eq!(
        (read.gate_fn.as_str(), read.num_heads, read.clamp_min, read.hidden_ratio),
        ("silu", 2, Some(-5.0), 4.0)
    );

    let mut json = published();
    json["fuse_norm"] = json!(false);
    assert_eq!(GlaConfig::from_published(&json).unwrap().gate_fn, "silu", "the norm is called g_norm");

    for config in variants() {
        let again = GlaConfig::from_published(&config.to_published()).unwrap();
        assert_eq!(again.to_string(), config.to_string());
    }
}

#[test]
fn the_feed_forward_width_follows_from_the_ratio() {
    // The 1.3B model of the paper.
    let config = GlaConfig::new(3, 2048, 1);
    let model = config.init(&Device::flex());
    let mlp = model.model.layers[0].mlp.dense().expect("experts are not asked for");
    assert_eq!(mlp.up_proj.weight.lazy_shape().to_vec(), [2048, 5632]);
}

#[test]
fn other_models_are_refused() {
    for (field, value) in [
        ("model_type", json!("mamba")),
        ("model_type", Value::Null),
        ("architectures", json!(["LlamaForCausalLM"])),
        ("architectures", json!("GLAForCausalLM")),
        ("hidden_act", json!("gelu")),
        ("elementwise_affine", json!(false)),
        ("attn", json!({ "layers": [1], "num_heads": 2 })),
        ("attnres_block_size", json!(2)),
        ("num_heads", json!("two")),
        ("num_heads", json!(-2)),
        ("hidden_size", json!(0.5)),
        ("tie_word_embeddings", json!("yes")),
    ] {
        let mut json = published();
        json[field] = value;
        let error = GlaConfig::from_published(&json).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
    assert!(GlaConfig::from_published(&json!([1, 2])).is_err());
}

#[test]
fn a_configuration_is_overlaid_with_json() {
    let defaults = GatedLinearAttentionConfig::new(8);
    let json = json!({ "hidden_size": 24, "num_kv_heads": null, "gate_logit_normalizer": 2 });
    let config = config_from_json(&defaults, &json).unwrap();
    assert_eq!((config.hidden_size, config.num_kv_heads, config.gate_logit_normalizer), (24, None, 2.0));
    assert_eq!(config_from_json(&defaults, &json!({ "conv_size": true })).unwrap_err().field, "conv_size");
    assert!(config_from_json(&defaults, &json!(3)).is_err());
}
