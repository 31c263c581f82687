//! The text model.

use std::collections::BTreeSet;

use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor};
use gatekit_core::ModuleConfig;
use gatekit_core::checkpoint::PretrainedConfig;
use gatekit_sequence::checkpoint::{named_gradients, named_parameters};
use gatekit_sequence::lm::{CausalLm, StreamState, StreamingLm};
use gatekit_sequence::mixture_of_value_embeddings::*;
use gatekit_sequence::{GenerateConfig, generate, load_pretrained, save_pretrained};
use proptest::prelude::*;

use super::support::*;
use super::{latent, lively_text, parameters, small, texts};

fn in_pieces(model: &MoveTextModel, ids: &Tensor<2, Int>, pieces: &[usize]) -> (Tensor<3>, MoveTextState) {
    let mut state = model.empty_state(ids.dims()[0], &ids.device());
    let (mut logits, mut start) = (Vec::new(), 0);
    for &length in pieces {
        let piece = ids.clone().narrow(1, start, length);
        let (scores, next) = match length {
            1 => {
                let (scores, next) = model.step(piece.squeeze_dim(1), state);
                (scores.unsqueeze_dim(1), next)
            }
            _ => model.prefill(piece, state),
        };
        (state, start) = (next, start + length);
        logits.push(scores);
    }
    (Tensor::cat(logits, 1), state)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_splits_equal_the_whole(pieces in prop::collection::vec(1usize..7, 1..6)) {
        for device in devices() {
            for config in texts() {
                let model = lively_text(&config, &device);
                let ids = tokens(2, pieces.iter().sum(), &device);
                let (logits, state) = in_pieces(&model, &ids, &pieces);
                let whole = model.forward(ids, None);
                assert_close(&values(&logits), &values(&whole), 2e-5, &format!("{pieces:?}, {config}"));
                assert!(state.layers.iter().all(|cache| cache.position() == pieces.iter().sum::<usize>()));
            }
        }
    }
}

#[test]
fn padding_does_not_reach_real_tokens() {
    for device in devices() {
        for config in texts() {
            let model = lively_text(&config, &device);
            let real = tokens(1, 7, &device);
            let want = values(&model.forward(real.clone(), None));
            let padding = |count| Tensor::<2, Int>::full([1, count], 11, &device);
            let (left, right) = (real.clone().narrow(1, 0, 4), real.narrow(1, 4, 3));
            let padded = Tensor::cat(vec![padding(2), left, padding(1), right], 1);
            let flags = [[false, false, true, true, true, true, false, true, true, true]];
            let logits = model.forward(padded, Some(Tensor::<2, Bool>::from_data(flags, &device)));
            let got = Tensor::cat(vec![logits.clone().narrow(1, 2, 4), logits.narrow(1, 7, 3)], 1);
            assert_close(&values(&got), &want, 1e-5, &config.to_string());
        }
    }
}

#[test]
fn a_memory_costs_no_cache_and_a_window_bounds_it() {
    let device = Device::flex();
    let bytes = |config: &MoveTextConfig, time| {
        let model = config.init(&device);
        model.prefill(tokens(1, time, &device), model.empty_state(1, &device)).1.bytes()
    };
    for base in [small(), latent()] {
        let plain = base.clone().with_memory(ValueMemory::None);
        let large = base.clone().with_memory(ValueMemory::Global { slots: 9 });
        assert_eq!(bytes(&large, 12), bytes(&plain, 12));
        assert!(bytes(&large, 12) > bytes(&large, 6));
        let window = large.with_window_size(4);
        assert_eq!(bytes(&window, 12), bytes(&window, 6));
    }
    // Keys and values of 12 tokens in 3 layers, 16 channels of 4 bytes each.
    assert_eq!(bytes(&small(), 12), 2 * 12 * 3 * 16 * 4);
}

#[test]
fn the_bank_is_counted_once() {
    let device = Device::flex();
    let count = |config: MoveTextConfig| parameters(&config.init(&device));
    let grouped = || small().with_n_kv_head(Some(2));
    let plain = count(grouped().with_memory(ValueMemory::None));
    // rows M G e, and G (M + 1) d in each of 3 layers.
    let slots = |slots| count(grouped().with_memory(ValueMemory::Global { slots })) - plain;
    assert_eq!(slots(5), 37 * 5 * 2 * 4 + 3 * 2 * 6 * 16);
    assert_eq!(slots(1), 37 * 2 * 4 + 3 * 2 * 2 * 16);
    let lave = count(grouped().with_memory(ValueMemory::LayerWise { every: 2 })) - plain;
    assert_eq!(lave, 2 * (37 * 2 * 4 + 2 * 16));
    // x1: as many values as LaVE has in every other layer.
    let default = small().with_n_layer(12).memory().unwrap();
    assert_eq!(default, ValueMemory::Global { slots: 6 });
}

trait WithLayers {
    fn with_n_layer(self, layers: usize) -> Self;
}

impl WithLayers for MoveTextConfig {
    fn with_n_layer(self, n_layer: usize) -> Self {
        Self { n_layer, ..self }
    }
}

#[test]
fn tables_stand_where_the_paper_says_under_published_names() {
    let device = Device::flex();
    let names = |config: MoveTextConfig| -> BTreeSet<String> {
        let published = config.layout().to_published(named_parameters(&config.init(&device)));
        published
            .into_keys()
            .filter(|name| name.contains("value_embeds") || name.contains("ve_gate"))
            .collect()
    };
    let set = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
    let lave =
        |layers, every| names(small().with_n_layer(layers).with_memory(ValueMemory::LayerWise { every }));
    assert_eq!(
        lave(3, 2),
        set(&[
            "transformer.h.0.attn.ve_gate.weight",
            "transformer.h.2.attn.ve_gate.weight",
            "value_embeds.0.weight",
            "value_embeds.2.weight",
        ])
    );
    assert_eq!(lave(4, 3).len(), 4);
    assert!(lave(4, 3).contains("value_embeds.0.weight") && lave(4, 3).contains("value_embeds.3.weight"));
    assert_eq!(lave(4, 1).len(), 8);
    assert_eq!(
        names(latent().with_n_layer(2)),
        set(&[
            "transformer.h.0.attn.ve_gate.weight",
            "transformer.h.1.attn.ve_gate.weight",
            "value_embeds.weight",
        ])
    );
    assert!(names(small().with_memory(ValueMemory::None)).is_empty());
}

/// One table of one slot without a gate on the ordinary value is the layer-wise baseline.
#[test]
fn lave_is_one_slot_without_a_gate_on_the_value() {
    for device in devices() {
        let base = small().with_n_layer(1);
        let lave = lively_text(&base.clone().with_memory(ValueMemory::LayerWise { every: 1 }), &device);
        let one = base.with_memory(ValueMemory::Global { slots: 1 }).with_gate_standard(Some(false));
        let same = lively_text(&one, &device);
        let ids = tokens(2, 9, &device);
        assert_close(
            &values(&lave.forward(ids.clone(), None)),
            &values(&same.forward(ids, None)),
            1e-6,
            "logits",
        );
    }
}

#[test]
fn a_fresh_model_has_open_gates_and_even_logits() {
    for device in devices() {
        device.seed(1);
        for config in texts() {
            let model = config.init(&device);
            let ids = tokens(2, 20, &device);
            let gates = model.gate_values(ids.clone());
            let memory = config.memory().unwrap();
            for (layer, gates) in gates.iter().enumerate() {
                assert_eq!(gates.is_some(), memory.slots(layer, 3).is_some());
                assert!(gates.iter().flat_map(values).all(|gate| gate == 1.0));
            }
            let loss = model.loss(model.forward(ids.clone(), None), ids).unwrap().into_scalar::<f32>();
            assert!((loss - 37f32.ln()).abs() < 0.01, "{loss}, {config}");
        }
    }
}

#[test]
fn every_parameter_gets_a_gradient_and_the_bank_in_its_rows_alone() {
    for device in devices() {
        let device = device.autodiff();
        for config in texts() {
            let model = lively_text(&config, &device);
            let ids = Tensor::<2, Int>::from_data([[3, 5, 3, 8], [9, 3, 5, 1]], &device);
            let loss = model.loss(model.forward(ids.clone(), None), ids).unwrap();
            let gradients = named_gradients(&model, &loss.backward());
            for (name, parameter) in named_parameters(&model) {
                let gradient = gradients.get(&name).unwrap_or_else(|| panic!("no gradient for {name}"));
                assert_eq!(gradient.shape(), parameter.shape(), "{name}");
                let values: Vec<f32> = gradient.iter::<f32>().collect();
                let norm: f32 = values.iter().map(|value| value * value).sum();
                assert!(norm.is_finite() && norm > 0.0, "{name}: {norm}, {config}");
                if name.starts_with("value_embeds") {
                    let columns = parameter.shape()[1];
                    for (row, values) in values.chunks(columns).enumerate() {
                        let untouched = values.iter().all(|value| *value == 0.0);
                        // The last tokens predict nothing and are seen by none.
                        assert_eq!(untouched, ![3, 5, 9].contains(&row), "{name}, row {row}, {config}");
                    }
                }
            }
        }
    }
}

#[test]
fn losses_of_targets_and_of_labels_agree() {
    let device = Device::flex();
    let model = lively_text(&small(), &device);
    let ids = tokens(2, 6, &device);
    let logits = model.forward(ids.clone(), None);
    let labels = model.loss(logits.clone(), ids.clone()).unwrap().into_scalar::<f32>();
    let ignored = Tensor::<2, Int>::full([2, 1], IGNORED_TARGET, &device);
    let targets = Tensor::cat(vec![ids.clone().narrow(1, 1, 5), ignored], 1);
    let aligned = model.target_loss(logits.clone(), targets.clone()).unwrap().into_scalar::<f32>();
    assert!((labels - aligned).abs() < 1e-6, "{labels} {aligned}");

    // Every token stands for three bytes: ten targets of three bytes each.
    let bits = model.bits_per_byte(logits.clone(), targets.clone(), &[3; 37]).unwrap();
    assert!((bits - f64::from(aligned) / 2f64.ln() / 3.0).abs() < 1e-6);
    // A token of no bytes is left out.
    let first = values(&targets.clone().float())[0] as usize;
    let mut lengths = [3; 37];
    lengths[first] = 0;
    let masked = targets.clone().mask_fill(targets.equal_elem(first as i64), IGNORED_TARGET);
    let want = model.bits_per_byte(logits.clone(), masked.clone(), &[3; 37]).unwrap();
    let same = Tensor::cat(vec![ids.narrow(1, 1, 5), Tensor::full([2, 1], -1, &device)], 1);
    let got = model.bits_per_byte(logits.clone(), same, &lengths).unwrap();
    assert!((got - want).abs() < 1e-9 && (got - bits).abs() > 1e-6, "{got} {want} {bits}");
    assert_eq!(model.bits_per_byte(logits, masked, &[3; 36]).unwrap_err().field, "token_bytes");
}

#[test]
fn states_are_saved_moved_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let [here, there] = devices();
    for config in texts() {
        let model = lively_text(&config, &here);
        let (_, state) = model.prefill(tokens(2, 9, &here), model.empty_state(2, &here));
        state.save(&path).unwrap();
        let loaded = MoveTextState::load(&path, &here).unwrap();
        model.check_state(&loaded, 2).unwrap();
        let token = Tensor::<1, Int>::from_data([5, 9], &here);
        let (want, _) = model.step(token.clone(), state.clone());
        assert_eq!(values(&model.step(token, loaded).0), values(&want));

        let elsewhere = lively_text(&config, &there);
        let token = Tensor::<1, Int>::from_data([5, 9], &there);
        let (got, _) = elsewhere.step(token, state.to_device(&there));
        assert_close(&values(&got), &values(&want), 1e-5, "on the other device");
    }
}

#[test]
fn checkpoints_go_around_under_published_names() {
    let folder = tempfile::tempdir().unwrap();
    for device in devices() {
        for config in texts() {
            let model = lively_text(&config, &device);
            save_pretrained(folder.path(), &config, &model, None).unwrap();
            let (read, loaded) = load_pretrained::<MoveTextConfig>(folder.path(), &device).unwrap();
            assert_eq!(read.to_string(), config.to_string());
            let ids = tokens(1, 8, &device);
            assert_eq!(values(&loaded.forward(ids.clone(), None)), values(&model.forward(ids, None)));
        }
    }
}

#[test]
fn generation_streams_the_likeliest_tokens() {
    for device in devices() {
        let model = lively_text(&small(), &device);
        let prompt = [3, 9, 4];
        let drawn = generate(&model, &prompt, &GenerateConfig::new(6).with_temperature(0.0)).unwrap();
        let drawn: Vec<usize> = drawn.collect::<Result<_, _>>().unwrap();
        let mut text = prompt.to_vec();
        for _ in 0..6 {
            let ids: Vec<i64> = text.iter().map(|&token| token as i64).collect();
            let ids = Tensor::<1, Int>::from_data(ids.as_slice(), &device).unsqueeze_dim(0);
            let last = model.valid().forward(ids, None).narrow(1, text.len() - 1, 1);
            text.push(last.argmax(2).into_scalar::<i64>() as usize);
        }
        assert_eq!(drawn, text[3..]);
    }
}
