//! Gated associative memory: names, streaming, receptive field, padding, bad input.

#[path = "support/streams.rs"]
mod streams;
mod support;

use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_sequence::checkpoint::{PretrainedConfig, named_gradients, named_parameters};
use gatekit_sequence::gated_associative_memory::{
    Fusion, GamBlock, GamBlockConfig, GamConfig, GamLm, GamMixer, GamMixerConfig, GamState,
};
use gatekit_sequence::generate::{GenerateConfig, GenerateError, generate};
use gatekit_sequence::lm::{CausalLm, StreamState, StreamingLm};
use gatekit_sequence::{load_pretrained, save_pretrained};
use proptest::prelude::*;
use serde_json::json;
use streams::{assert_streams, in_pieces};
use support::{assert_close, devices, enlivened, noise, tokens, values};

fn small() -> GamConfig {
    GamConfig::new(37, 12, 2).with_block_size(64).with_num_memory_slots(10).with_dropout(0.0)
}

/// Small models that together use every optional part.
fn models() -> Vec<GamConfig> {
    vec![
        small(),
        small().with_fusion(Fusion::Sum).with_conv_kernel_size(5),
        small().with_fusion(Fusion::Global),
        small().with_fusion(Fusion::Local).with_conv_kernel_size(2),
        // No history at all.
        GamConfig { num_layers: 1, ..small() }.with_conv_kernel_size(1).with_num_memory_slots(1),
    ]
}

fn lively(config: &GamConfig, device: &Device) -> GamLm {
    enlivened(config.init(device))
}

fn mixer(config: &GamMixerConfig, device: &Device) -> GamMixer {
    enlivened(config.init(device))
}

fn features(shape: [usize; 3], device: &Device) -> Tensor<3> {
    let mut state = 5;
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| noise(&mut state)).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[test]
fn the_published_names_are_the_codes() {
    let device = Device::flex();
    let config = GamConfig { num_layers: 1, ..small() };
    let parameters = config.layout().to_published(named_parameters(&config.init(&device)));
    let named: Vec<(String, Vec<usize>)> =
        parameters.into_iter().map(|(name, data)| (name, data.shape().to_vec())).collect();
    let want: [(&str, &[usize]); 17] = [
        ("blocks.0.causal_conv.bias", &[12]),
        ("blocks.0.causal_conv.weight", &[12, 1, 3]),
        ("blocks.0.ffn.0.bias", &[48]),
        ("blocks.0.ffn.0.weight", &[48, 12]),
        ("blocks.0.ffn.2.bias", &[12]),
        ("blocks.0.ffn.2.weight", &[12, 48]),
        ("blocks.0.gate.bias", &[24]),
        ("blocks.0.gate.weight", &[24, 12]),
        ("blocks.0.ln1.bias", &[12]),
        ("blocks.0.ln1.weight", &[12]),
        ("blocks.0.ln2.bias", &[12]),
        ("blocks.0.ln2.weight", &[12]),
        ("blocks.0.memory_bank", &[10, 12]),
        ("ln_f.bias", &[12]),
        ("ln_f.weight", &[12]),
        ("pos_embedding.weight", &[64, 12]),
        ("token_embedding.weight", &[37, 12]),
    ];
    let want: Vec<(String, Vec<usize>)> =
        want.into_iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect();
    assert_eq!(named, want);
    // A block or a mixer alone.
    let block = GamBlock::layout("").to_published(named_parameters(&config.block().init(&device)));
    assert!(block.contains_key("memory_bank") && block.contains_key("ffn.2.bias"), "{:?}", block.keys());
    let mixer = GamBlock::layout("").to_published(named_parameters(&GamMixerConfig::new(12).init(&device)));
    assert!(
        mixer.contains_key("gate.weight") && mixer.contains_key("causal_conv.bias"),
        "{:?}",
        mixer.keys()
    );
}

#[test]
fn fusions_are_those_of_the_equations() {
    for device in devices() {
        let config = GamMixerConfig::new(6).with_num_memory_slots(4);
        let gated = mixer(&config, &device);
        let x = features([2, 7, 6], &device);
        let with = |kind| {
            let mut other = config.clone().with_fusion(kind).init(&device);
            other.causal_conv = gated.causal_conv.clone();
            other.memory_bank = gated.memory_bank.clone();
            other.forward(x.clone(), None, None).0
        };
        let (local, global) = (with(Fusion::Local), with(Fusion::Global));
        assert_close(&values(&with(Fusion::Sum)), &values(&(local.clone() + global.clone())), 1e-6, "sum");
        let gates = gated.gates(x.clone()).unwrap();
        let want = gates.local * local.clone() + gates.global * global.clone();
        assert_close(&values(&gated.forward(x.clone(), None, None).0), &values(&want), 1e-6, "gated");

        // Gates that are open or closed choose exactly one path.
        let mut chosen = gated.clone();
        let fusion = chosen.fusion.as_mut().unwrap();
        fusion.gate.weight = Param::from_tensor(Tensor::zeros([6, 12], &device));
        let bias = [[1e4f32; 6], [-1e4; 6]].concat();
        fusion.gate.bias = Some(Param::from_data(TensorData::new(bias, [12]), &device));
        assert_close(&values(&chosen.forward(x.clone(), None, None).0), &values(&local), 1e-6, "local alone");
        assert!(mixer(&config.clone().with_fusion(Fusion::Sum), &device).gates(x).is_none());
    }
}

#[test]
fn the_history_keeps_older_inputs_of_a_short_piece() {
    for device in devices() {
        let mixer = mixer(&GamMixerConfig::new(6).with_num_memory_slots(4).with_conv_kernel_size(4), &device);
        let x = features([2, 5, 6], &device);
        let (whole, last) = mixer.forward(x.clone(), None, None);
        assert_eq!(values(&last), values(&x.clone().narrow(1, 2, 3)));
        let (_, history) = mixer.forward(x.clone().narrow(1, 0, 4), None, None);
        let (y, history) = mixer.step(x.clone().narrow(1, 4, 1).squeeze_dim(1), history);
        assert_close(&values(&y), &values(&whole.narrow(1, 4, 1)), 1e-6, "a step");
        assert_eq!(values(&history), values(&last));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_splits_equal_the_whole(pieces in prop::collection::vec(1usize..16, 1..5)) {
        for device in devices() {
            for config in models() {
                assert_streams(&lively(&config, &device), &device, &pieces, &config.to_string());
            }
        }
    }
}

#[test]
fn single_steps_equal_the_whole_to_the_last_position() {
    for device in devices() {
        for config in models() {
            let config = config.with_block_size(21);
            assert_streams(&lively(&config, &device), &device, &[1; 21], &config.to_string());
        }
    }
}

#[test]
fn a_token_sees_the_receptive_field_and_nothing_else() {
    assert_eq!(GamConfig::new(10_000, 512, 6).receptive_field(), 13);
    for device in devices() {
        for config in models() {
            let field = config.receptive_field();
            let expected = if config.fusion == Fusion::Global { 1 } else { field };
            let model = lively(&config, &device);
            let ids = tokens(1, 20, &device);
            let last = |ids| values(&model.forward(ids, None).narrow(1, 19, 1));
            let want = last(ids.clone());
            let changes = |distance: usize| {
                let place = 19 - distance;
                let other = Tensor::<2, Int>::full([1, 1], 36, &device);
                let changed = ids.clone().slice_assign([0..1, place..place + 1], other);
                last(changed) != want
            };
            let seen: Vec<usize> = (0..20).filter(|distance| changes(*distance)).collect();
            assert_eq!(seen, (0..expected).collect::<Vec<_>>(), "{config}");
        }
    }
}

#[test]
fn padding_is_removed() {
    for device in devices() {
        for config in models() {
            let model = lively(&config, &device);
            let real = tokens(1, 7, &device);
            let want = values(&model.forward(real.clone(), None));
            let padding = |count| Tensor::<2, Int>::full([1, count], 11, &device);
            let (left, right) = (real.clone().narrow(1, 0, 4), real.narrow(1, 4, 3));
            let padded = Tensor::cat(vec![padding(2), left, padding(1), right], 1);
            let both = Tensor::cat(vec![padded, tokens(1, 10, &device)], 0);
            let mut flags = [true; 20];
            (flags[0], flags[1], flags[6]) = (false, false, false);
            let mask = Tensor::<2, Bool>::from_data(TensorData::new(flags.to_vec(), [2, 10]), &device);
            let logits = model.forward(both, Some(mask));
            let row = logits.clone().narrow(0, 0, 1);
            let got = Tensor::cat(vec![row.clone().narrow(1, 2, 4), row.narrow(1, 7, 3)], 1);
            assert_close(&values(&got), &want, 1e-5, &config.to_string());
            let full = values(&model.forward(tokens(1, 10, &device), None));
            assert_close(&values(&logits.narrow(0, 1, 1)), &full, 1e-5, "the row without padding");
        }
    }
}

#[test]
fn every_used_parameter_gets_a_gradient() {
    for device in devices() {
        let device = device.autodiff();
        for config in models() {
            let model = lively(&config, &device);
            let ids = tokens(2, 64, &device);
            let loss = model.loss(model.forward(ids.clone(), None), ids).unwrap();
            let gradients = named_gradients(&model, &loss.backward());
            for (name, _) in named_parameters(&model) {
                let unused = match config.fusion {
                    Fusion::Global => name.contains("causal_conv"),
                    Fusion::Local => name.contains("memory_bank"),
                    _ => false,
                };
                let norm = gradients
                    .get(&name)
                    .map_or(0.0, |gradient| gradient.iter::<f32>().map(|value| value * value).sum::<f32>());
                assert!(norm.is_finite() && (norm > 0.0) != unused, "{name}: {norm}, {config}");
            }
        }
    }
}

#[test]
fn targets_are_next_tokens() {
    for device in devices() {
        let model = lively(&small(), &device);
        let ids = tokens(2, 9, &device);
        let logits = model.forward(ids.clone(), None);
        let shifted = values(&model.loss(logits.clone(), ids.clone()).unwrap());
        let ignored = Tensor::<2, Int>::full([2, 1], -100, &device);
        let targets = Tensor::cat(vec![ids.narrow(1, 1, 8), ignored], 1);
        assert_eq!(values(&model.loss_of_targets(logits.clone(), targets).unwrap()), shifted);
        for bad in [37, -1] {
            let targets = Tensor::<2, Int>::full([2, 9], bad, &device);
            let error = model.loss_of_targets(logits.clone(), targets).unwrap_err();
            assert_eq!(error.field, "targets", "{error}");
        }
    }
}

#[test]
fn dropout_acts_in_training_alone() {
    for device in devices() {
        device.seed(4);
        let model = lively(&small().with_dropout(0.5), &device);
        let ids = tokens(2, 9, &device);
        let once = values(&model.forward(ids.clone(), None));
        assert_eq!(values(&model.forward(ids.clone(), None)), once);
        let training = model.train();
        let ids = tokens(2, 9, &device.clone().autodiff());
        let first = values(&training.forward(ids.clone(), None));
        assert_ne!(first, once);
        assert_ne!(values(&training.forward(ids, None)), first);
        assert_eq!(values(&training.valid().forward(tokens(2, 9, &device), None)), once);
    }
}

#[test]
fn gates_of_every_block_are_seen() {
    let device = Device::flex();
    let model = lively(&small(), &device);
    let gates = model.gate_values(tokens(2, 5, &device));
    assert_eq!(gates.len(), 2);
    for gates in gates {
        let gates = gates.expect("the mixers are gated");
        for gate in [gates.local, gates.global] {
            assert_eq!(gate.dims(), [2, 5, 12]);
            assert!(values(&gate).iter().all(|gate| *gate > 0.0 && *gate < 1.0));
        }
    }
    let sum = small().with_fusion(Fusion::Sum).init(&device);
    assert!(sum.gate_values(tokens(1, 3, &device)).iter().all(Option::is_none));
}

#[test]
fn state_size_is_constant() {
    let device = Device::flex();
    let model = small().init(&device);
    let state = model.empty_state(3, &device);
    let bytes = state.bytes();
    assert_eq!(bytes, 2 * 3 * 2 * 12 * 4);
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
    for config in models() {
        let (here, there) = (lively(&config, &from), lively(&config, &to));
        let (_, state) = here.prefill(tokens(2, 9, &from), here.empty_state(2, &from));
        state.save(&path).unwrap();
        let loaded = GamState::load(&path, &from).unwrap();
        here.check_state(&loaded, 2).unwrap();
        let token = |device| Tensor::<1, Int>::from_data([5, 9], device);
        let want = values(&here.step(token(&from), state.clone()).0);
        assert_eq!(values(&here.step(token(&from), loaded).0), want);
        let moved = there.step(token(&to), state.to_device(&to)).0;
        assert_close(&values(&moved), &want, 1e-5, "on the other device");
    }
    assert!(gatekit_sequence::gla::GlaState::load(&path, &from).is_err(), "a state of another mixer");
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let device = Device::flex();
    let model = small().init(&device);
    let field = |state: &GamState, batch| model.check_state(state, batch).unwrap_err().field;
    assert_eq!(field(&model.empty_state(1, &device), 2), "state.layers.0.history");
    let deeper = GamConfig { num_layers: 3, ..small() }.init(&device);
    assert_eq!(field(&deeper.empty_state(1, &device), 1), "state");
    let wider = small().with_conv_kernel_size(4).init(&device);
    let error = model.check_state(&wider.empty_state(1, &device), 1).unwrap_err();
    assert!(error.got.contains("[1, 3, 12]") && error.need.contains("[1, 2, 12]"), "{error}");
    let mut state = model.empty_state(1, &device);
    state.layers[1].position = 3;
    assert_eq!(field(&state, 1), "state.layers.1.position");
    state.layers.iter_mut().for_each(|layer| layer.position = 65);
    assert_eq!(field(&state, 1), "state.layers.0.position");
}

#[test]
#[should_panic(expected = "`state` [2, 3, 12] must be [2, 2, 12]")]
fn a_history_of_another_length_panics() {
    let device = Device::flex();
    let mixer = GamMixerConfig::new(12).init(&device);
    mixer.forward(features([2, 4, 12], &device), None, Some(Tensor::zeros([2, 3, 12], &device)));
}

#[test]
fn unusable_configurations_name_the_field() {
    let device = Device::flex();
    for (field, config) in [
        ("vocab_size", GamConfig::new(0, 12, 2)),
        ("embed_dim", GamConfig::new(37, 0, 2)),
        ("embed_dim", GamConfig::new(37, usize::MAX / 2, 2)),
        ("num_layers", GamConfig::new(37, 12, 0)),
        ("num_layers", GamConfig::new(37, 12, usize::MAX)),
        ("block_size", small().with_block_size(0)),
        ("num_memory_slots", small().with_num_memory_slots(0)),
        ("conv_kernel_size", small().with_conv_kernel_size(0)),
        ("dropout", small().with_dropout(1.0)),
        ("dropout", small().with_dropout(f64::NAN)),
    ] {
        let error = config.try_init(&device).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
    let block = GamBlockConfig::new(GamMixerConfig::new(12)).with_dropout(-1.0);
    assert_eq!(block.try_init(&device).unwrap_err().field, "dropout");
}

#[test]
#[should_panic(expected = "input `input_ids`: got 65 tokens, need at most 64")]
fn a_sequence_longer_than_the_positions_panics() {
    let device = Device::flex();
    small().init(&device).forward(tokens(1, 65, &device), None);
}

#[test]
#[should_panic(expected = "got 1 tokens after 64, 65 together, need at most 64")]
fn a_stream_longer_than_the_positions_panics() {
    let device = Device::flex();
    let model = small().init(&device);
    let (_, state) = in_pieces(&model, &tokens(1, 64, &device), &[60, 4], model.empty_state(1, &device));
    model.step(Tensor::from_data([1], &device), state);
}

#[test]
fn room_is_told_beforehand() {
    let device = Device::flex();
    let model = small().init(&device);
    assert!(model.check_length(0, 64).is_ok());
    assert_eq!(model.check_length(0, 65).unwrap_err().got, "65 tokens");
    assert!(model.check_length(usize::MAX, 1).is_err());
    let (_, state) = model.prefill(tokens(1, 60, &device), model.empty_state(1, &device));
    assert!(model.check_room(&state, 4).is_ok());
    let error = model.check_room(&state, 5).unwrap_err();
    assert!(error.got.contains("65") && error.need.contains("64"), "{error}");
}

#[test]
fn generation_ends_where_the_positions_end() {
    let device = Device::flex();
    let model = lively(&small().with_block_size(8), &device);
    let config = GenerateConfig::new(20).with_temperature(0.0);
    // Five tokens of prompt, three more with positions, and one that the last position predicts.
    let drawn: Vec<_> = generate(&model, &[1, 2, 3, 4, 5], &config).unwrap().collect();
    assert_eq!(drawn.len(), 5);
    assert!(drawn[..4].iter().all(Result::is_ok));
    let error = drawn[4].as_ref().unwrap_err();
    assert!(error.got.contains('9') && error.need.contains('8'), "{error}");

    let mut generation = generate(&model, &[1, 2, 3, 4, 5], &config).unwrap();
    generation.by_ref().take(4).for_each(drop);
    assert_eq!(generation.into_state().layers[0].position, 8);

    let error = generate(&model, &[1; 9], &config).map(drop).unwrap_err();
    assert!(matches!(&error, GenerateError::Input(error) if error.field == "input_ids"), "{error}");
}

#[test]
#[should_panic(expected = "`input_ids` holds no token, shape [1, 0]")]
fn a_sequence_of_nothing_panics() {
    let device = Device::flex();
    small().init(&device).forward(tokens(1, 0, &device), None);
}

#[test]
fn a_saved_model_is_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    for device in devices() {
        for config in models() {
            let model = lively(&config, &device);
            save_pretrained(folder.path(), &config, &model, None).unwrap();
            let (read, loaded) = load_pretrained::<GamConfig>(folder.path(), &device).unwrap();
            assert_eq!(read.to_string(), config.to_string());
            let ids = tokens(2, 9, &device);
            assert_eq!(values(&loaded.forward(ids.clone(), None)), values(&model.forward(ids, None)));
        }
    }
    let mut json = small().to_published();
    json["fusion"] = json!("both");
    assert_eq!(GamConfig::from_published(&json).unwrap_err().field, "fusion");
    json["model_type"] = json!("gla");
    assert_eq!(GamConfig::from_published(&json).unwrap_err().field, "model_type");
}
