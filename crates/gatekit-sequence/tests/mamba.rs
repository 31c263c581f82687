//! Mamba: streaming, masks, extremes, published folders, and what it refuses.

mod support;

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_core::scan::ScanForm;
use gatekit_sequence::checkpoint::{
    PretrainedConfig, SafetensorsFile, load_pretrained, load_tensors, named_gradients, named_parameters,
    save_pretrained,
};
use gatekit_sequence::lm::{CausalLm, StreamState, StreamingLm};
use gatekit_sequence::mamba::{MambaMixer, MambaModelState, MambaState};
use gatekit_sequence::{GenerateConfig, MambaConfig, MambaForCausalLm, MambaMixerConfig, generate};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::*;

/// Small models that together use every optional part.
fn models() -> Vec<MambaConfig> {
    let plain = MambaConfig::new(37, 12, 2).with_state_size(4);
    vec![
        plain.clone(),
        plain
            .clone()
            .with_use_bias(true)
            .with_use_conv_bias(false)
            .with_conv_kernel(1)
            .with_tie_word_embeddings(false),
        plain
            .with_intermediate_size(Some(10))
            .with_time_step_rank(Some(3))
            .with_conv_kernel(6)
            .with_use_bias(true)
            .with_rescale_prenorm_residual(true),
    ]
}

fn model(config: &MambaConfig, device: &Device) -> MambaForCausalLm {
    enlivened(config.init(device))
}

/// Logits of every position when `ids` comes in pieces; a piece of one token is a step.
fn in_pieces(model: &MambaForCausalLm, ids: &Tensor<2, Int>, pieces: &[usize]) -> Vec<f32> {
    let [batch, _] = ids.dims();
    let mut state = model.empty_state(batch, &ids.device());
    let (mut logits, mut start) = (Vec::new(), 0);
    for &length in pieces {
        let piece = ids.clone().narrow(1, start, length);
        let (scores, next) = match length {
            1 => {
                let (scores, next) = model.step(piece.squeeze_dim::<1>(1), state);
                (scores.unsqueeze_dim(1), next)
            }
            _ => model.prefill(piece, state),
        };
        state = next;
        start += length;
        logits.push(scores);
    }
    values(&Tensor::cat(logits, 1))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_splits_equal_the_whole(pieces in prop::collection::vec(1usize..20, 1..6)) {
        for device in devices() {
            for config in models() {
                let model = model(&config, &device);
                let ids = tokens(2, pieces.iter().sum(), &device);
                let whole = values(&model.forward(ids.clone(), None));
                assert_close(&in_pieces(&model, &ids, &pieces), &whole, 1e-5, &config.to_string());
            }
        }
    }
}

#[test]
fn single_steps_and_single_tokens_equal_the_whole() {
    for device in devices() {
        for config in models() {
            let model = model(&config, &device);
            for time in [1, 2, 17] {
                let ids = tokens(3, time, &device);
                let whole = values(&model.forward(ids.clone(), None));
                assert_close(&in_pieces(&model, &ids, &vec![1; time]), &whole, 1e-5, &config.to_string());
            }
        }
    }
}

#[test]
fn all_forms_of_the_scan_agree() {
    for device in devices() {
        let model = model(&models()[0], &device);
        let ids = tokens(2, 70, &device);
        let want = values(&model.forward(ids.clone(), None));
        for form in [ScanForm::Portable, ScanForm::Recurrent] {
            let got = values(&model.clone().with_scan_form(form).forward(ids.clone(), None));
            assert_close(&got, &want, 1e-5, &format!("{form:?}"));
        }
    }
}

#[test]
fn the_state_is_constant_and_a_plain_value() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let config = &models()[0];
    let model = model(config, &device);
    let state = model.empty_state(2, &device);
    // K - 1 inputs and N numbers for each of 24 channels, in both rows and layers.
    let bytes = 2 * 2 * 24 * (3 + 4) * 4;
    assert_eq!(state.bytes(), bytes);
    let (_, state) = model.prefill(tokens(2, 40, &device), state);
    assert_eq!(state.bytes(), bytes);

    state.save(&path).unwrap();
    let loaded = MambaModelState::load(&path, &device).unwrap();
    model.check_state(&loaded, 2).unwrap();
    let token = Tensor::<1, Int>::from_data([5, 9], &device);
    let (want, _) = model.step(token.clone(), state.clone());
    assert_eq!(values(&model.step(token.clone(), loaded).0), values(&want));
    assert_eq!(values(&model.step(token, state).0), values(&want), "the state was not changed");

    // Half a state is none.
    let mut file = SafetensorsFile::open(&path).unwrap();
    let mut tensors: gatekit_sequence::checkpoint::NamedTensors =
        file.names().into_iter().map(|name| (name.clone(), file.read(&name).unwrap())).collect();
    tensors.remove("layers.1.ssm");
    let metadata =
        ["format", "mixer", "layers"].map(|key| (key.to_string(), file.metadata(key).unwrap().into()));
    SafetensorsFile::write(&path, tensors, metadata.into()).unwrap();
    let error = MambaModelState::load(&path, &device).unwrap_err().to_string();
    assert!(error.contains("layers.1.ssm"), "{error}");
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let device = Device::flex();
    let [plain, _, wide] = &models()[..] else { unreachable!() };
    let model = plain.init(&device);
    let field = |state: &MambaModelState, batch| model.check_state(state, batch).unwrap_err().field;
    assert_eq!(field(&model.empty_state(1, &device), 2), "state.layers.0.conv");
    assert_eq!(field(&wide.init(&device).empty_state(1, &device), 1), "state.layers.0.conv");
    let larger = plain.clone().with_state_size(5).init(&device);
    assert_eq!(field(&larger.empty_state(1, &device), 1), "state.layers.0.ssm");
    let deeper = MambaConfig { num_hidden_layers: 3, ..plain.clone() }.init(&device);
    assert_eq!(field(&deeper.empty_state(1, &device), 1), "state");
}

/// Rows padded in front, behind and not at all, next to the same rows alone.
#[test]
fn padding_at_the_ends_changes_nothing() {
    for device in devices() {
        for config in models() {
            let model = model(&config, &device);
            let real = tokens(1, 6, &device);
            let want = values(&model.forward(real.clone(), None));
            let padding = |count| Tensor::<2, Int>::full([1, count], 11, &device);
            let rows = Tensor::cat(
                vec![
                    Tensor::cat(vec![padding(3), real.clone()], 1),
                    Tensor::cat(vec![real.clone(), padding(3)], 1),
                    tokens(1, 9, &device),
                ],
                0,
            );
            let mask = Tensor::<2, Bool>::from_data(
                [
                    [false, false, false, true, true, true, true, true, true],
                    [true, true, true, true, true, true, false, false, false],
                    [true; 9],
                ],
                &device,
            );
            let logits = model.forward(rows, Some(mask));
            let left = logits.clone().narrow(0, 0, 1).narrow(1, 3, 6);
            let right = logits.narrow(0, 1, 1).narrow(1, 0, 6);
            assert_close(&values(&left), &want, 1e-5, "padded in front");
            assert_close(&values(&right), &want, 1e-5, "padded behind");
        }
    }
}

#[test]
fn what_padded_tokens_hold_reaches_nothing() {
    for device in devices() {
        let model = model(&models()[2], &device);
        let mask = Tensor::<2, Bool>::from_data([[false, true, true, false, true, true, false]], &device);
        let logits = |held: [i64; 3]| {
            let [a, b, c] = held;
            let ids = Tensor::<2, Int>::from_data([[a, 5, 9, b, 30, 7, c]], &device);
            model.forward(ids, Some(mask.clone()))
        };
        let real = |logits: &Tensor<3>| {
            let at = |start, count| logits.clone().narrow(1, start, count);
            values(&Tensor::cat(vec![at(1, 2), at(4, 2)], 1))
        };
        assert_eq!(real(&logits([1, 2, 3])), real(&logits([30, 0, 17])));
    }
}

/// Between real tokens, padding is a step that writes nothing: the state decays by its own rate.
#[test]
fn padding_between_real_tokens_lets_the_state_decay() {
    for device in devices() {
        let mixer: MambaMixer = enlivened(MambaMixerConfig::new(6).with_state_size(3).init(&device));
        let x = Tensor::<3>::from_data(TensorData::new(ramp(6 * 5), [1, 5, 6]), &device);
        let mask = Tensor::<2, Bool>::from_data([[true, true, true, false, false]], &device);
        let (_, before) = mixer.forward_with_state(x.clone().narrow(1, 0, 3), None, None);
        let (y, after) = mixer.forward_with_state(x, Some(&mask), None);
        assert!(values(&y.narrow(1, 3, 2)).iter().all(|&y| y == 0.0), "nothing is read at padding");
        let bias = values(&mixer.dt_proj.bias.as_ref().unwrap().val());
        let rates = values(&mixer.A_log.val());
        let want: Vec<f32> = (values(&before.ssm).iter().enumerate())
            .map(|(index, s)| s * (-2.0 * rates[index].exp() * bias[index / 3].exp().ln_1p()).exp())
            .collect();
        assert_close(&values(&after.ssm), &want, 1e-5, "decayed");
    }
}

fn ramp(count: usize) -> Vec<f32> {
    (0..count).map(|i| (1.7 * i as f32 + 0.3).sin()).collect()
}

/// A step that is all but zero passes a token over, a huge one forgets what was before.
#[test]
fn closed_and_open_steps_are_exact() {
    for device in devices() {
        let mixer: MambaMixer = enlivened(MambaMixerConfig::new(6).with_state_size(3).init(&device));
        let with_steps = |logit: f32| {
            let mut tensors = named_parameters(&mixer);
            tensors.insert("dt_proj.bias".into(), TensorData::new(vec![logit; 12], [12]));
            tensors.insert("dt_proj.weight".into(), TensorData::new(vec![0f32; 12], [12, 1]));
            load_tensors(mixer.clone(), tensors).unwrap()
        };
        let x = Tensor::<3>::from_data(TensorData::new(ramp(6 * 4), [1, 4, 6]), &device);
        let state = MambaState {
            ssm: Tensor::from_data(TensorData::new(ramp(36), [1, 12, 3]), &device),
            ..mixer.empty_state(1, &device)
        };
        let (_, passed) = with_steps(-200.0).forward_with_state(x.clone(), None, Some(state.clone()));
        assert_eq!(values(&passed.ssm), values(&state.ssm));

        let open = with_steps(1e4);
        let (_, fresh) = open.forward_with_state(x.clone(), None, None);
        let (y, full) = open.forward_with_state(x, None, Some(state));
        assert_eq!(values(&full.ssm), values(&fresh.ssm));
        assert!(values(&y).iter().all(|y| y.is_finite()));
    }
}

#[test]
fn nan_passes_through_and_large_steps_are_not_clamped() {
    let device = Device::flex();
    let mixer: MambaMixer = enlivened(MambaMixerConfig::new(6).with_state_size(3).init(&device));
    let x = Tensor::<3>::from_data(TensorData::new(ramp(6 * 4), [1, 4, 6]), &device);
    let mut broken = mixer.clone();
    broken.dt_proj.bias = broken.dt_proj.bias.map(|bias| bias.map(|bias| bias * f32::NAN));
    assert!(values(&broken.forward(x.clone(), None)).iter().all(|y| y.is_nan()));

    let mut large = mixer;
    large.dt_proj.bias = large.dt_proj.bias.map(|bias| bias.map(|bias| bias * 0.0 + 1e4));
    let steps = values(&large.steps(x));
    assert!(steps.iter().all(|&step| (step - 1e4).abs() < 100.0), "{steps:?}");
}

/// A fresh layer starts as the paper says.
#[test]
fn a_fresh_model_starts_as_published() {
    for device in devices() {
        device.seed(1);
        let mixer = MambaMixerConfig::new(64).init(&device);
        let close = |got: &[f32], want: f32| got.iter().all(|got| (got - want).abs() < 1e-5);
        let rates = values(&mixer.A_log.val().exp());
        assert!((0..128).all(|channel| {
            (0..16).all(|n| (rates[channel * 16 + n] / (n + 1) as f32 - 1.0).abs() < 1e-5)
        }));
        assert!(close(&values(&mixer.D.val()), 1.0));
        let steps: Vec<f32> =
            values(&mixer.dt_proj.bias.unwrap().val()).iter().map(|bias| bias.exp().ln_1p()).collect();
        assert!(steps.iter().all(|step| (0.000_999..0.1001).contains(step)), "{steps:?}");
        let largest = |values: Vec<f32>| values.into_iter().fold(0f32, |a, b| a.max(b.abs()));
        for (name, weight, limit) in [
            ("dt_proj", mixer.dt_proj.weight.val(), 0.5),
            ("in_proj", mixer.in_proj.weight.val(), 0.125),
            ("out_proj", mixer.out_proj.weight.val(), 128f32.powf(-0.5)),
        ] {
            let largest = largest(values(&weight));
            assert!((0.9 * limit..=limit * 1.0001).contains(&largest), "{name}: {largest} of {limit}");
        }
        let constant = MambaMixerConfig::new(64)
            .with_time_step_init_scheme("constant".into())
            .with_time_step_scale(2.0)
            .init(&device);
        assert!(close(&values(&constant.dt_proj.weight.val()), 1.0));

        let rescaled = MambaConfig::new(37, 64, 4).with_rescale_prenorm_residual(true).init(&device);
        let largest = largest(values(&rescaled.backbone.layers[0].mixer.out_proj.weight.val()));
        assert!((0.9..=1.0001).contains(&(largest * 512f32.sqrt())), "{largest}");
    }
}

#[test]
fn every_parameter_is_trained() {
    for device in devices() {
        for config in models() {
            let model = model(&config, &device.clone().autodiff());
            let ids = tokens(2, 9, &device);
            let logits = model.forward(ids.clone(), None);
            let gradients = model.loss(logits, ids).unwrap().backward();
            let gradients = named_gradients(&model, &gradients);
            for (name, data) in named_parameters(&model) {
                let gradient = &gradients[&name];
                assert_eq!(gradient.shape(), data.shape(), "{name}");
                let largest = gradient.iter::<f32>().fold(0f32, |a, b| a.max(b.abs()));
                assert!(largest > 0.0 && largest.is_finite(), "{name}: {largest}");
            }
        }
    }
}

#[test]
fn configurations_that_describe_no_layer_are_refused() {
    let device = Device::flex();
    let plain = MambaMixerConfig::new(8);
    let cases = [
        ("hidden_size", MambaMixerConfig::new(0)),
        ("intermediate_size", plain.clone().with_intermediate_size(Some(0))),
        ("state_size", plain.clone().with_state_size(0)),
        ("state_size", plain.clone().with_state_size(usize::MAX)),
        ("time_step_rank", plain.clone().with_time_step_rank(Some(0))),
        ("conv_kernel", plain.clone().with_conv_kernel(0)),
        ("time_step_min", plain.clone().with_time_step_min(0.0)),
        ("time_step_max", plain.clone().with_time_step_max(0.001)),
        ("time_step_floor", plain.clone().with_time_step_floor(f64::NAN)),
        ("time_step_scale", plain.clone().with_time_step_scale(-1.0)),
        ("time_step_init_scheme", plain.with_time_step_init_scheme("zeros".into())),
    ];
    for (field, config) in cases {
        assert_eq!(config.try_init(&device).unwrap_err().field, field);
    }
    let plain = MambaConfig::new(37, 8, 2);
    let cases = [
        ("vocab_size", MambaConfig { vocab_size: 0, ..plain.clone() }),
        ("num_hidden_layers", MambaConfig { num_hidden_layers: 0, ..plain.clone() }),
        ("num_hidden_layers", MambaConfig { num_hidden_layers: usize::MAX, ..plain.clone() }),
        ("layer_norm_epsilon", plain.clone().with_layer_norm_epsilon(0.0)),
        ("initializer_range", plain.clone().with_initializer_range(f64::INFINITY)),
        ("expand", plain.clone().with_expand(0)),
        ("state_size", plain.with_state_size(0)),
    ];
    for (field, config) in cases {
        assert_eq!(config.try_init(&device).unwrap_err().field, field);
    }
}

#[test]
fn published_configurations_are_read_and_written() {
    let read = |change: &dyn Fn(&mut Value)| {
        let mut json = json!({ "model_type": "mamba", "architectures": ["MambaForCausalLM"], "hidden_act": "silu",
            "vocab_size": 50280, "hidden_size": 100, "num_hidden_layers": 3, "time_step_rank": "auto" });
        change(&mut json);
        MambaConfig::from_published(&json)
    };
    let config = read(&|_| ()).unwrap();
    assert_eq!(config.layer().rank(), 7, "100 / 16, rounded up");
    assert_eq!((config.layer().channels(), config.tie_word_embeddings), (200, true));
    let again = MambaConfig::from_published(&config.to_published()).unwrap();
    assert_eq!((again.layer().rank(), again.layer().channels()), (7, 200));

    for (field, value) in [
        ("model_type", json!("mamba2")),
        ("architectures", json!(["Mamba2ForCausalLM"])),
        ("hidden_act", json!("gelu")),
        ("quantization_config", json!({ "bits": 4 })),
        ("time_step_rank", json!("large")),
        ("state_size", json!(-3)),
    ] {
        let error = read(&|json| json[field] = value.clone()).unwrap_err();
        assert_eq!(error.field, field);
    }
}

#[test]
#[should_panic(expected = "`attention_mask` has [batch, time] = [1, 4], `x` [1, 5]")]
fn a_mask_of_another_shape_panics() {
    let device = Device::flex();
    let mask = Tensor::<2, Bool>::from_data([[true; 4]], &device);
    MambaMixerConfig::new(6).init(&device).forward(Tensor::zeros([1, 5, 6], &device), Some(&mask));
}

#[test]
#[should_panic(expected = "`x` has no time step")]
fn no_time_step_panics() {
    let device = Device::flex();
    MambaMixerConfig::new(6).init(&device).forward(Tensor::zeros([1, 0, 6], &device), None);
}

#[test]
#[should_panic(expected = "input `ssm`: got shape [1, 12, 4], need [1, 12, 16]")]
fn a_state_of_another_shape_panics() {
    let device = Device::flex();
    let mixer = MambaMixerConfig::new(6).init(&device);
    let state = MambaState { ssm: Tensor::zeros([1, 12, 4], &device), ..mixer.empty_state(1, &device) };
    mixer.step(Tensor::zeros([1, 6], &device), state);
}

fn published() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/checkpoints/mamba-tiny")
}

fn tensors_of(path: &Path) -> gatekit_sequence::checkpoint::NamedTensors {
    let mut file = SafetensorsFile::open(path).unwrap();
    file.names().into_iter().map(|name| (name.clone(), file.read(&name).unwrap())).collect()
}

#[test]
fn a_published_folder_gives_its_logits_and_tokens() {
    let folder = published();
    let expected = tensors_of(&folder.join("expected.safetensors"));
    let want: Vec<f32> = expected["logits"].iter::<f32>().collect();
    for device in devices() {
        let (_, model) = load_pretrained::<MambaConfig>(&folder, &device).unwrap();
        let ids = Tensor::<2, Int>::from_data(expected["input_ids"].clone(), &device);
        let [batch, time] = ids.dims();
        assert_close(&values(&model.forward(ids.clone(), None)), &want, 1e-4, "whole");
        assert_close(&in_pieces(&model, &ids, &vec![1; time]), &want, 1e-4, "token by token");
        let tokens: Vec<i64> = expected["generated"].iter::<i64>().collect();
        let length = tokens.len() / batch;
        for row in tokens.chunks(length) {
            let row: Vec<usize> = row.iter().map(|&token| token as usize).collect();
            let config = GenerateConfig::new(length - time).with_temperature(0.0);
            let got: Vec<usize> =
                generate(&model, &row[..time], &config).unwrap().collect::<Result<_, _>>().unwrap();
            assert_eq!(got, row[time..]);
        }
    }
}

#[test]
fn a_saved_folder_holds_the_same_tensors_and_fields() {
    let device = Device::flex();
    let (config, model) = load_pretrained::<MambaConfig>(published(), &device).unwrap();
    let folder = tempfile::tempdir().unwrap();
    save_pretrained(folder.path(), &config, &model, None).unwrap();
    let weights = |folder: &Path| tensors_of(&folder.join("model.safetensors"));
    assert_eq!(weights(folder.path()), weights(&published()), "the same names, without a head");

    let json = |folder: &Path| -> Value {
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
    };
    let (got, want) = (json(folder.path()), json(&published()));
    for (field, value) in got.as_object().unwrap() {
        assert_eq!(value, &want[field], "{field}");
    }
    let (_, again) = load_pretrained::<MambaConfig>(folder.path(), &device).unwrap();
    let ids = tokens(1, 9, &device);
    assert_eq!(values(&again.forward(ids.clone(), None)), values(&model.forward(ids, None)));
}

/// Some folders hold the tied head a second time; it is passed over, a head of its own is not.
#[test]
fn a_tied_head_in_the_folder_is_passed_over() {
    let device = Device::flex();
    for tied in [true, false] {
        let config = models()[0].clone().with_tie_word_embeddings(tied);
        let model = model(&config, &device);
        let folder = tempfile::tempdir().unwrap();
        save_pretrained(folder.path(), &config, &model, None).unwrap();
        let path = folder.path().join("model.safetensors");
        let mut tensors = tensors_of(&path);
        assert_eq!(tensors.contains_key("lm_head.weight"), !tied);
        let head = tensors["backbone.embeddings.weight"].clone();
        tensors.insert("lm_head.weight".into(), head);
        SafetensorsFile::write(&path, tensors, Default::default()).unwrap();
        let (_, loaded) = load_pretrained::<MambaConfig>(folder.path(), &device).unwrap();
        assert_eq!(loaded.lm_head.is_some(), !tied);
        assert_eq!(loaded.num_params(), model.num_params());
    }
}
