//! TransNormerLLM: names, streaming, padding, extremes, bad input.

#[path = "support/streams.rs"]
mod streams;
mod support;

use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_core::scan::ScanForm;
use gatekit_sequence::checkpoint::{PretrainedConfig, named_gradients, named_parameters};
use gatekit_sequence::lm::{CausalLm, StreamState, StreamingLm};
use gatekit_sequence::transnormer::{
    DecaySchedule, NormLinearAttention, NormLinearAttentionConfig, NormLinearAttentionState,
    TransNormerConfig, TransNormerLayerConfig, TransNormerLlm, TransNormerState, slope_rates,
};
use gatekit_sequence::{load_pretrained, save_pretrained};
use proptest::prelude::*;
use serde_json::{Value, json};
use streams::{assert_streams, in_pieces};
use support::{assert_close, devices, enlivened, noise, tokens, values};

fn small() -> TransNormerConfig {
    TransNormerConfig::new(37, 16, 2).with_num_heads(2).with_glu_dim(24)
}

/// Small models that together use every optional part.
fn models() -> Vec<TransNormerConfig> {
    vec![
        small(),
        // A number of heads that is no power of two, and positions in every layer.
        TransNormerConfig::new(37, 12, 3)
            .with_num_heads(3)
            .with_hidden_dim(Some(24))
            .with_glu_dim(20)
            .with_bias(true)
            .with_linear_use_lrpe_list(Some(vec![1, 1, 1]))
            .with_linear_act_fun("1+elu".into())
            .with_block_size(4),
        small()
            .with_decay_schedule(DecaySchedule::Linear)
            .with_linear_use_lrpe_list(Some(vec![0, 0]))
            .with_linear_act_fun("elu".into())
            .with_no_scale_embedding(true),
        small()
            .with_decay_schedule(DecaySchedule::None)
            .with_use_output_gate(false)
            .with_linear_act_fun("none".into()),
        TransNormerConfig::new(37, 8, 1).with_num_heads(1).with_glu_dim(8).with_linear_act_fun("relu".into()),
    ]
}

fn lively(config: &TransNormerConfig, device: &Device) -> TransNormerLlm {
    enlivened(config.init(device))
}

fn mixer_config(slopes: &[f64]) -> NormLinearAttentionConfig {
    NormLinearAttentionConfig::new(8, 8, slopes.len(), slopes.to_vec())
}

fn mixer(config: &NormLinearAttentionConfig, device: &Device) -> NormLinearAttention {
    enlivened(config.init(device))
}

fn features(shape: [usize; 3], device: &Device) -> Tensor<3> {
    let mut state = 5;
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| noise(&mut state)).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn mask<const T: usize>(rows: &[[bool; T]], device: &Device) -> Tensor<2, Bool> {
    Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), T]), device)
}

#[test]
fn parameters_have_the_published_names_and_layout() {
    let named = |config: TransNormerConfig| {
        let parameters = named_parameters(&config.init(&Device::flex()));
        parameters.into_iter().map(|(name, data)| (name, data.shape().to_vec())).collect::<Vec<_>>()
    };
    let pairs = |pairs: &[(&str, &[usize])]| -> Vec<(String, Vec<usize>)> {
        pairs.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
    };
    assert_eq!(
        named(small()),
        pairs(&[
            ("lm_head.weight", &[37, 16]),
            ("model.embed_tokens.weight", &[37, 16]),
            ("model.layers.0.channel_mixer.l1.weight", &[24, 16]),
            ("model.layers.0.channel_mixer.l2.weight", &[24, 16]),
            ("model.layers.0.channel_mixer.l3.weight", &[16, 24]),
            ("model.layers.0.token_mixer.lrpe.theta", &[2, 1, 8]),
            ("model.layers.0.token_mixer.out_proj.weight", &[16, 16]),
            ("model.layers.0.token_mixer.qkvu_proj.weight", &[64, 16]),
            ("model.layers.1.channel_mixer.l1.weight", &[24, 16]),
            ("model.layers.1.channel_mixer.l2.weight", &[24, 16]),
            ("model.layers.1.channel_mixer.l3.weight", &[16, 24]),
            ("model.layers.1.token_mixer.out_proj.weight", &[16, 16]),
            ("model.layers.1.token_mixer.qkvu_proj.weight", &[64, 16]),
        ])
    );
    let names: Vec<String> = named(small().with_bias(true)).into_iter().map(|(name, _)| name).collect();
    for name in ["token_mixer.qkvu_proj.bias", "token_mixer.out_proj.bias", "channel_mixer.l3.bias"] {
        assert!(names.contains(&format!("model.layers.1.{name}")), "{name}");
    }
    assert!(!names.contains(&"lm_head.bias".to_string()));
}

#[test]
fn a_fresh_model_guesses() {
    for device in devices() {
        device.seed(2);
        let model = small().init(&device);
        let ids = tokens(2, 30, &device);
        let loss = model.loss(model.forward(ids.clone(), None), ids).unwrap();
        assert!((values(&loss)[0] - 37f32.ln()).abs() < 0.1, "{loss}");
    }
}

#[test]
fn the_mixer_is_the_sum_over_all_pairs() {
    // Two heads of four channels by the equations, in float64.
    let slopes = [0.3, 0.0];
    for device in devices() {
        let mixer = mixer(&mixer_config(&slopes), &device);
        let x = features([1, 6, 8], &device);
        let rows = |x: &Tensor<3>| -> Vec<Vec<f64>> {
            let width = x.dims()[2];
            values(x).chunks(width).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect()
        };
        let projected = rows(&mixer.qkvu_proj.forward(x.clone()));
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let mut gated = Vec::new();
        for s in 0..6 {
            let mut o = [0.0; 8];
            for (head, slope) in slopes.iter().enumerate() {
                for t in 0..=s {
                    let score: f64 = (head * 4..head * 4 + 4)
                        .map(|c| silu(projected[s][c]) * silu(projected[t][8 + c]))
                        .sum();
                    let weight = score * (-slope * (s - t) as f64).exp();
                    for c in head * 4..head * 4 + 4 {
                        o[c] += weight * projected[t][16 + c];
                    }
                }
            }
            let mean = o.iter().map(|o| o * o).sum::<f64>() / 8.0;
            gated.extend((0..8).map(|c| (projected[s][24 + c] * o[c] / (mean + 1e-6).sqrt()) as f32));
        }
        let gated = Tensor::<3>::from_data(TensorData::new(gated, [1, 6, 8]), &device);
        let want = mixer.out_proj.forward(gated);
        assert_close(&values(&mixer.forward(x, None)), &values(&want), 1e-5, "mixer");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_splits_equal_the_whole(pieces in prop::collection::vec(1usize..30, 1..6)) {
        for device in devices() {
            for config in models() {
                assert_streams(&lively(&config, &device), &device, &pieces, &config.to_string());
            }
        }
    }
}

#[test]
fn single_steps_equal_the_whole() {
    for device in devices() {
        for config in models() {
            assert_streams(&lively(&config, &device), &device, &[1; 19], &config.to_string());
        }
    }
}

#[test]
fn streams_continue_far_from_their_start() {
    // Positions are relative: a shifted stream with an empty memory gives the same logits.
    for device in devices() {
        let model = lively(&models()[1], &device);
        let ids = tokens(2, 12, &device);
        let want = values(&model.forward(ids.clone(), None));
        for shift in [1000, 50_000] {
            let mut state = model.empty_state(2, &device);
            state.layers.iter_mut().for_each(|layer| layer.position = shift);
            let (logits, state) = in_pieces(&model, &ids, &[5, 1, 1, 5], state);
            assert_close(&values(&logits), &want, 1e-4, &format!("from {shift}"));
            assert_eq!(state.layers[0].position, shift + 12);
        }
    }
}

#[test]
fn forms_and_blocks_agree() {
    for device in devices() {
        for config in models() {
            let ids = tokens(2, 45, &device);
            let run = |config: &TransNormerConfig, form| {
                values(&lively(config, &device).with_scan_form(form).forward(ids.clone(), None))
            };
            let want = run(&config, ScanForm::Recurrent);
            for form in [ScanForm::Auto, ScanForm::Portable] {
                for block in [1, 7, 16, 256] {
                    let config = config.clone().with_block_size(block);
                    assert_close(&run(&config, form), &want, 1e-5, &format!("{form:?}, {block}: {config}"));
                }
            }
        }
    }
}

#[test]
fn the_future_does_not_reach_the_past() {
    for device in devices() {
        let model = lively(&small(), &device);
        let ids = tokens(1, 12, &device);
        let other = Tensor::cat(vec![ids.clone().narrow(1, 0, 7), Tensor::full([1, 5], 3, &device)], 1);
        let early = |ids| values(&model.forward(ids, None).narrow(1, 0, 7));
        assert_eq!(early(ids), early(other));
    }
}

#[test]
fn extreme_decays_are_finite_and_right() {
    for device in devices() {
        let x = features([2, 40, 8], &device);
        // A slope of 200 forgets everything: each output depends on its own step alone.
        let forgetful = mixer(&mixer_config(&[200.0, 200.0]), &device);
        let alone: Vec<Tensor<3>> =
            (0..40).map(|t| forgetful.forward(x.clone().narrow(1, t, 1), None)).collect();
        let got = forgetful.forward(x.clone(), None);
        assert_close(&values(&got), &values(&Tensor::cat(alone, 1)), 1e-5, "slope 200");
        // A slope of 0 and one that is nearly 0 differ by what it forgets.
        let keeping = mixer(&mixer_config(&[0.0, 0.0]), &device).forward(x.clone(), None);
        let hardly = mixer(&mixer_config(&[1e-7, 1e-7]), &device).forward(x.clone(), None);
        assert_close(&values(&hardly), &values(&keeping), 1e-4, "slope 1e-7");

        for slopes in [[200.0, 0.0], [1e-30, 88.0]] {
            let autodiff = device.clone().autodiff();
            let mixer = mixer(&mixer_config(&slopes).with_use_lrpe(true), &autodiff);
            let x = features([1, 33, 8], &autodiff).require_grad();
            let gradients = mixer.forward(x.clone(), None).sum().backward();
            assert!(values(&x.grad(&gradients).unwrap()).iter().all(|slope| slope.is_finite()));
            for (name, gradient) in named_gradients(&mixer, &gradients) {
                assert!(gradient.iter::<f32>().all(|slope| slope.is_finite()), "{name}");
            }
        }
    }
}

#[test]
fn every_parameter_gets_a_gradient() {
    for device in devices() {
        let device = device.autodiff();
        for config in models() {
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
fn a_loss_of_nothing_is_zero() {
    for device in devices() {
        let device = device.autodiff();
        let model = lively(&small(), &device);
        let ids = tokens(2, 5, &device);
        let logits = model.forward(ids.clone(), None);
        // The first label of a row judges nothing.
        let ignored = Tensor::<2, Int>::from_data([[7, -100, -100, -100, -100], [-100; 5]], &device);
        let loss = model.loss(logits.clone(), ignored).unwrap();
        assert_eq!((loss.dims(), values(&loss)[0]), ([1], 0.0));
        for (name, gradient) in named_gradients(&model, &loss.backward()) {
            assert!(gradient.iter::<f32>().all(|slope| slope == 0.0), "{name}");
        }
        let one_token = model.forward(ids.clone().narrow(1, 0, 1), None);
        assert_eq!(values(&model.loss(one_token, ids.clone().narrow(1, 0, 1)).unwrap()), [0.0]);
        // A label that counts makes it a loss again, one that is no token an error.
        let counts = Tensor::<2, Int>::from_data([[-100, 4, -100, -100, -100], [-100; 5]], &device);
        assert!(values(&model.loss(logits.clone(), counts).unwrap())[0] > 0.0);
        let bad = Tensor::<2, Int>::from_data([[1, 37, -100, -100, -100], [-100; 5]], &device);
        assert_eq!(model.loss(logits, bad).unwrap_err().field, "labels");
    }
}

#[test]
fn padding_on_the_left_changes_nothing() {
    for device in devices() {
        for config in models().into_iter().filter(|config| !config.bias) {
            let model = lively(&config, &device);
            let real = tokens(1, 7, &device);
            let want = values(&model.forward(real.clone(), None));
            let padded = Tensor::cat(vec![Tensor::full([1, 3], 11, &device), real.clone()], 1);
            let flags = mask(&[[false, false, false, true, true, true, true, true, true, true]], &device);
            let logits = model.forward(padded.clone(), Some(flags.clone()));
            assert_close(&values(&logits.narrow(1, 3, 7)), &want, 1e-5, &config.to_string());

            let (logits, state) = model.prefill_padded(padded, flags, model.empty_state(1, &device));
            assert_close(&values(&logits.narrow(1, 3, 7)), &want, 1e-5, "prefill");
            let (_, alone) = model.prefill(real, model.empty_state(1, &device));
            let token = Tensor::<1, Int>::from_data([5], &device);
            let (got, _) = model.step(token.clone(), state);
            let (want, _) = model.step(token, alone);
            assert_close(&values(&got), &values(&want), 1e-5, "the step after");
        }
    }
}

#[test]
fn decay_runs_over_padding() {
    let slopes = [0.5, 0.0];
    for device in devices() {
        let mixer = mixer(&mixer_config(&slopes), &device);
        let x = features([1, 5, 8], &device);
        let flags = mask(&[[true, true, true, false, false]], &device);
        let (y, state) = mixer.forward_with_state(x.clone(), Some(flags), None);
        let (want, before) = mixer.forward_with_state(x.narrow(1, 0, 3), None, None);
        assert_close(&values(&y.narrow(1, 0, 3)), &values(&want), 1e-6, "real tokens");
        for (head, slope) in slopes.iter().enumerate() {
            let part = |state: &NormLinearAttentionState| state.recurrent.clone().narrow(1, head, 1);
            let decayed = part(&before).mul_scalar((-2.0 * slope).exp());
            assert_close(&values(&part(&state)), &values(&decayed), 1e-5, "two decayed steps");
        }
        assert_eq!(state.position, 5);
    }
}

#[test]
fn state_size_is_constant_and_doubled_by_positions() {
    let device = Device::flex();
    let model = small().init(&device);
    let state = model.empty_state(3, &device);
    // Two heads of eight channels; the first layer's keys are twice as wide.
    assert_eq!(state.layers[0].recurrent.dims(), [3, 2, 16, 8]);
    assert_eq!(state.layers[1].recurrent.dims(), [3, 2, 8, 8]);
    let bytes = state.bytes();
    assert_eq!(bytes, 3 * 2 * (16 + 8) * 8 * 4);
    let (_, state) = model.prefill(tokens(3, 50, &device), state);
    assert_eq!(state.bytes(), bytes);
    let (_, state) = model.step(Tensor::from_data([3, 4, 5], &device), state);
    assert_eq!((state.bytes(), state.layers[1].position), (bytes, 51));
}

#[test]
fn a_saved_state_continues() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let [from, to] = devices();
    let (here, there) = (lively(&small(), &from), lively(&small(), &to));
    let (_, state) = here.prefill(tokens(2, 9, &from), here.empty_state(2, &from));
    state.save(&path).unwrap();
    let loaded = TransNormerState::load(&path, &from).unwrap();
    here.check_state(&loaded, 2).unwrap();
    let token = |device| Tensor::<1, Int>::from_data([5, 9], device);
    let want = values(&here.step(token(&from), state.clone()).0);
    assert_eq!(values(&here.step(token(&from), loaded).0), want);
    let moved = there.step(token(&to), state.to_device(&to)).0;
    assert_close(&values(&moved), &want, 1e-5, "on the other device");
    assert!(gatekit_sequence::gla::GlaState::load(&path, &from).is_err(), "a state of another mixer");
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let device = Device::flex();
    let model = small().init(&device);
    let field = |state: &TransNormerState, batch| model.check_state(state, batch).unwrap_err().field;
    assert_eq!(field(&model.empty_state(1, &device), 2), "state.layers.0.recurrent");
    let deeper = TransNormerConfig { num_layers: 3, ..small() }.init(&device);
    assert_eq!(field(&deeper.empty_state(1, &device), 1), "state");
    // Positions double the keys' width.
    let plain = small().with_linear_use_lrpe_list(Some(vec![0, 0])).init(&device);
    let error = model.check_state(&plain.empty_state(1, &device), 1).unwrap_err();
    assert_eq!(error.field, "state.layers.0.recurrent");
    assert!(error.got.contains("[1, 2, 8, 8]") && error.need.contains("[1, 2, 16, 8]"), "{error}");
}

#[test]
#[should_panic(expected = "`initial_state`: input `recurrent`: got shape [1, 2, 4, 4], need [1, 2, 8, 4]")]
fn a_state_without_positions_panics_in_a_layer_with_them() {
    let device = Device::flex();
    let state = mixer_config(&[0.1, 0.2]).init(&device).empty_state(1, &device);
    let mixer = mixer_config(&[0.1, 0.2]).with_use_lrpe(true).init(&device);
    mixer.forward_with_state(features([1, 3, 8], &device), None, Some(state));
}

#[test]
fn unusable_configurations_name_the_field() {
    let device = Device::flex();
    for (field, config) in [
        ("vocab_size", TransNormerConfig::new(0, 16, 2)),
        ("num_layers", TransNormerConfig::new(37, 16, 0)),
        ("num_layers", TransNormerConfig::new(37, 16, usize::MAX)),
        ("num_heads", small().with_num_heads(0)),
        ("embed_dim", small().with_num_heads(3)),
        ("embed_dim", TransNormerConfig::new(37, 0, 2)),
        ("hidden_dim", small().with_hidden_dim(Some(15))),
        ("hidden_dim", small().with_hidden_dim(Some(0))),
        ("glu_dim", small().with_glu_dim(0)),
        ("block_size", small().with_block_size(0)),
        ("norm_eps", small().with_norm_eps(0.0)),
        ("norm_eps", small().with_norm_eps(f64::NAN)),
        ("linear_act_fun", small().with_linear_act_fun("2+elu".into())),
        ("linear_use_lrpe_list", small().with_linear_use_lrpe_list(Some(vec![1]))),
        ("linear_use_lrpe_list", small().with_linear_use_lrpe_list(Some(vec![1, 0, 0]))),
        ("linear_use_lrpe_list", small().with_linear_use_lrpe_list(Some(vec![1, 2]))),
    ] {
        let error = config.try_init(&device).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
    for (field, config) in [
        ("slope_rate", mixer_config(&[0.1, -0.1])),
        ("slope_rate", mixer_config(&[0.1, f64::NAN])),
        ("slope_rate", mixer_config(&[f64::INFINITY, 0.1])),
        ("slope_rate", NormLinearAttentionConfig::new(8, 8, 4, vec![0.1; 3])),
        ("num_heads", NormLinearAttentionConfig::new(8, 8, 0, vec![])),
    ] {
        assert_eq!(config.try_init(&device).expect_err(field).field, field);
        let layer = TransNormerLayerConfig::new(config, 8);
        assert_eq!(layer.try_init(&device).expect_err(field).field, field);
    }
}

#[test]
#[should_panic(
    expected = "configuration field `linear_use_lrpe_list`: got 1 entries, need one for each of 2 layers"
)]
fn init_panics_with_the_same_text() {
    small().with_linear_use_lrpe_list(Some(vec![1])).init(&Device::flex());
}

#[test]
#[should_panic(expected = "`attention_mask` has [batch, time] = [1, 4], `input_ids` [1, 5]")]
fn a_mask_of_another_shape_panics() {
    let device = Device::flex();
    small().init(&device).forward(tokens(1, 5, &device), Some(mask(&[[true; 4]], &device)));
}

#[test]
#[should_panic(expected = "`padding_mask` has [batch, time] = [1, 4], `x` [1, 5]")]
fn a_mask_of_another_shape_panics_in_the_mixer() {
    let device = Device::flex();
    let mixer = mixer_config(&[0.1]).init(&device);
    mixer.forward(features([1, 5, 8], &device), Some(mask(&[[true; 4]], &device)));
}

#[test]
#[should_panic(expected = "`input_ids` holds no token, shape [1, 0]")]
fn a_sequence_of_nothing_panics() {
    let device = Device::flex();
    small().init(&device).forward(tokens(1, 0, &device), None);
}

#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let device = Device::flex();
    let model = small().init(&device);
    let error = model.check_ids(&Tensor::from_data([[1, 37]], &device)).unwrap_err();
    assert_eq!((error.field.as_str(), error.got.as_str()), ("input_ids", "37 at [0, 1]"));
}

#[test]
fn upper_layers_forget_less() {
    let model = TransNormerConfig::new(11, 16, 4).with_num_heads(4).with_glu_dim(8).init(&Device::flex());
    for (index, layer) in model.model.layers.iter().enumerate() {
        let want = slope_rates(DecaySchedule::Geometric, 4, index, 4);
        assert_eq!(layer.token_mixer.slope_rate(), want);
    }
    let single = TransNormerConfig::new(11, 16, 1).with_num_heads(1).with_glu_dim(8).init(&Device::flex());
    let slope = single.model.layers[0].token_mixer.slope_rate()[0];
    assert!((slope - (1.0 + 1e-5) / 256.0).abs() < 1e-9, "{slope}");
}

/// The `config.json` of the smallest released model, shortened to three layers.
fn published() -> Value {
    json!({
        "architectures": ["TransnormerForCausalLM"], "model_type": "transnormer", "vocab_size": 64000,
        "decoder_embed_dim": 1024, "decoder_layers": 3, "decoder_attention_heads": 8, "hidden_dim": 1024,
        "linear_use_lrpe_list": [1, 0, 0], "linear_act_fun": "silu", "glu_dim": 2816, "bias": false,
        "no_scale_embedding": false, "norm_type": "simplermsnorm", "init_std": 0.02, "use_cache": true,
    })
}

#[test]
fn published_configurations_are_read() {
    let read = TransNormerConfig::from_published(&published()).unwrap();
    assert_eq!((read.vocab_size, read.embed_dim, read.num_layers, read.num_heads), (64000, 1024, 3, 8));
    assert_eq!((read.hidden_dim, read.glu_dim, read.block_size), (Some(1024), 2816, 256));
    assert_eq!(read.linear_use_lrpe_list, Some(vec![1, 0, 0]));
    assert_eq!(read.decay_schedule, DecaySchedule::Geometric);
    for config in models() {
        let written = config.to_published();
        assert!(written["embed_dim"].is_null() && written["decoder_embed_dim"].is_u64(), "{written}");
        let again = TransNormerConfig::from_published(&written).unwrap();
        assert_eq!(again.to_published(), written);
        assert_eq!(again.init(&Device::flex()).num_params(), config.init(&Device::flex()).num_params());
    }
    for (field, value) in [
        ("model_type", json!("mamba")),
        ("architectures", json!(["LlamaForCausalLM"])),
        ("norm_type", json!("layernorm")),
        ("decoder_layers", json!("three")),
        ("glu_dim", json!(-1)),
        ("decay_schedule", json!("cubic")),
    ] {
        let mut json = published();
        json[field] = value;
        let error = TransNormerConfig::from_published(&json).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
    assert!(TransNormerConfig::from_published(&json!(3)).is_err());
}

#[test]
fn a_saved_model_is_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    for device in devices() {
        for config in models() {
            let model = lively(&config, &device);
            save_pretrained(folder.path(), &config, &model, None).unwrap();
            let (_, loaded) = load_pretrained::<TransNormerConfig>(folder.path(), &device).unwrap();
            let ids = tokens(2, 9, &device);
            assert_eq!(
                values(&loaded.forward(ids.clone(), None)),
                values(&model.forward(ids, None)),
                "{config}"
            );
        }
    }
}
