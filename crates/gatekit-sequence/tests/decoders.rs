//! Kimi Linear and DeepSeek-V3: streaming, padding, gradients, states, balance of the experts.

mod support;

use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_core::router::BiasBalancer;
use gatekit_core::scan::ScanForm;
use gatekit_sequence::checkpoint::{load_tensors, named_gradients, named_parameters};
use gatekit_sequence::kimi_linear::{
    KimiDeltaAttentionConfig, KimiLayerState, KimiLinearForCausalLm, KimiLinearState,
};
use gatekit_sequence::lm::{CausalLm, StreamState, StreamingLm};
use gatekit_sequence::recurrent::RecurrentMixer;
use proptest::prelude::*;
use support::decoders::{deepseek, deepseeks, kimi, kimis};
use support::*;

fn assert_streams<M: StreamingLm>(model: &M, device: &Device, pieces: &[usize], what: &str) {
    let ids = tokens(2, pieces.iter().sum(), device);
    let whole = values(&model.forward(ids.clone(), None));
    let mut state = model.empty_state(2, device);
    let (mut logits, mut start) = (Vec::new(), 0);
    for &piece in pieces {
        let part = ids.clone().narrow(1, start, piece);
        let (scores, next) = match piece {
            1 => {
                let (scores, next) = model.step(part.squeeze_dim(1), state);
                (scores.unsqueeze_dim(1), next)
            }
            _ => model.prefill(part, state),
        };
        (state, start) = (next, start + piece);
        logits.push(scores);
    }
    assert_close(&values(&Tensor::cat(logits, 1)), &whole, 2e-5, &format!("{what} in {pieces:?}"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_splits_equal_the_whole(pieces in prop::collection::vec(1usize..24, 1..6)) {
        for device in devices() {
            for config in kimis() {
                assert_streams(&enlivened(config.init(&device)), &device, &pieces, &config.to_string());
            }
            for config in deepseeks() {
                assert_streams(&enlivened(config.init(&device)), &device, &pieces, &config.to_string());
            }
        }
    }
}

#[test]
fn single_steps_equal_the_whole() {
    for device in devices() {
        for config in kimis() {
            assert_streams(&enlivened(config.init(&device)), &device, &[1; 11], &config.to_string());
        }
        for config in deepseeks() {
            assert_streams(&enlivened(config.init(&device)), &device, &[1; 11], &config.to_string());
        }
    }
}

fn assert_ignores_padding<M: CausalLm>(model: &M, device: &Device, what: &str) {
    let real = tokens(1, 7, device);
    let want = values(&model.forward(real.clone(), None));
    let padding = |count| Tensor::<2, Int>::full([1, count], 11, device);
    let (left, right) = (real.clone().narrow(1, 0, 4), real.narrow(1, 4, 3));
    let padded = Tensor::cat(vec![padding(2), left, padding(1), right], 1);
    let mask = [[false, false, true, true, true, true, false, true, true, true]];
    let logits = model.forward(padded, Some(Tensor::<2, Bool>::from_data(mask, device)));
    let got = Tensor::cat(vec![logits.clone().narrow(1, 2, 4), logits.narrow(1, 7, 3)], 1);
    assert_close(&values(&got), &want, 1e-5, what);
}

#[test]
fn padding_does_not_reach_real_tokens() {
    for device in devices() {
        for config in kimis() {
            assert_ignores_padding(&enlivened(config.init(&device)), &device, &config.to_string());
        }
        for config in deepseeks() {
            assert_ignores_padding(&enlivened(config.init(&device)), &device, &config.to_string());
        }
    }
}

fn assert_all_trained<M: CausalLm>(model: &M, device: &Device, what: &str) {
    // So many tokens that every expert gets some.
    let ids = tokens(3, 37, device);
    let gradients = model.loss(model.forward(ids.clone(), None), ids).unwrap().backward();
    let trained = named_gradients(model, &gradients);
    for (name, data) in named_parameters(model) {
        if name.ends_with("e_score_correction_bias") {
            assert!(!trained.contains_key(&name), "{what}: {name} must not be trained");
            continue;
        }
        let gradient = trained.get(&name).unwrap_or_else(|| panic!("{what}: {name} has no gradient"));
        assert_eq!(gradient.shape(), data.shape(), "{what}: {name}");
        assert!(gradient.iter::<f32>().all(f32::is_finite), "{what}: {name}");
        assert!(gradient.iter::<f32>().any(|value| value != 0.0), "{what}: {name} has only zeros");
    }
}

#[test]
fn every_parameter_but_the_selection_bias_is_trained() {
    let device = Device::flex().autodiff();
    for config in kimis() {
        assert_all_trained(&enlivened(config.init(&device)), &device, &config.to_string());
    }
    for config in deepseeks() {
        assert_all_trained(&enlivened(config.init(&device)), &device, &config.to_string());
    }
}

#[test]
fn forms_and_chunks_of_the_scan_do_not_change_the_result() {
    let device = Device::flex();
    let ids = tokens(2, 70, &device);
    let model = enlivened(kimi().init(&device));
    let want = values(&model.forward(ids.clone(), None));
    for form in [ScanForm::Portable, ScanForm::Recurrent] {
        let got = model.clone().with_scan_form(form).forward(ids.clone(), None);
        assert_close(&values(&got), &want, 1e-5, &format!("{form:?}"));
    }
    for chunk_size in [1, 10, 32] {
        let config = kimi().with_chunk_size(chunk_size);
        let got = enlivened(config.init(&device)).forward(ids.clone(), None);
        assert_close(&values(&got), &want, 1e-5, &format!("chunks of {chunk_size}"));
    }
}

/// Value heads that share a query and key head are heads whose queries and keys are equal.
#[test]
fn value_heads_share_queries_and_keys() {
    let device = Device::flex();
    let config = KimiDeltaAttentionConfig::new(12, 2, 4);
    let shared = enlivened(config.clone().with_num_v_heads(Some(4)).init(&device));
    let mut tensors = named_parameters(&shared);
    for name in ["q_proj.weight", "k_proj.weight", "q_conv1d.weight", "k_conv1d.weight"] {
        let data = tensors.remove(name).unwrap();
        let (width, rows) = (data.num_elements() / 8, data.try_to_vec::<f32>().unwrap());
        // Two heads of four rows each; every one twice.
        let heads: Vec<&[f32]> = rows.chunks(4 * width).collect();
        let repeated = [heads[0], heads[0], heads[1], heads[1]].concat();
        let mut shape = data.shape().to_vec();
        shape[0] = 16;
        tensors.insert(name.to_string(), TensorData::new(repeated, shape));
    }
    let apart = load_tensors(KimiDeltaAttentionConfig::new(12, 4, 4).init(&device), tensors).unwrap();
    let mut state = 3;
    let x: Vec<f32> = (0..2 * 9 * 12).map(|_| noise(&mut state)).collect();
    let x = Tensor::<3>::from_data(TensorData::new(x, [2, 9, 12]), &device);
    let got = values(&shared.forward(x.clone(), None));
    assert_close(&got, &values(&apart.forward(x, None)), 1e-6, "shared heads");
    assert_eq!(shared.memory_dims(2), [2, 4, 4, 4]);
}

/// Gates wide open or shut keep values and gradients finite, whatever the length.
#[test]
fn extreme_gates_stay_finite() {
    for device in devices() {
        let device = device.autodiff();
        let plain = KimiDeltaAttentionConfig::new(12, 2, 4);
        for config in
            [plain.clone(), plain.clone().with_lower_bound(Some(-5.0)), plain.with_allow_neg_eigval(true)]
        {
            let layer = enlivened(config.init(&device));
            for (time, scale) in [(1, 300.0), (2, -300.0), (67, 300.0), (67, 1e-30)] {
                let mut state = 3;
                let data: Vec<f32> = (0..time * 12).map(|_| scale * noise(&mut state)).collect();
                let x = Tensor::<3>::from_data(TensorData::new(data, [1, time, 12]), &device).require_grad();
                let y = layer.forward(x.clone(), None);
                assert!(values(&y).iter().all(|value| value.is_finite()), "{config}, {time} steps");
                let gradients = y.sum().backward();
                let gradient = values(&x.grad(&gradients).unwrap());
                assert!(gradient.iter().all(|value| value.is_finite()), "{config}, {time} steps");
            }
        }
    }
}

#[test]
fn gate_values_lie_in_their_ranges() {
    let device = Device::flex();
    let open = |config: gatekit_sequence::KimiLinearConfig| {
        enlivened(config.init(&device)).gate_values(tokens(2, 9, &device))
    };
    let within = |values: Vec<f32>, low: f32, high: f32| values.iter().all(|v| (low..=high).contains(v));
    let plain = open(kimi());
    assert_eq!(plain.len(), 3);
    for gates in &plain {
        assert_eq!((gates.forget.dims(), gates.write.dims()), ([2, 9, 2, 4], [2, 9, 2]));
        assert!(within(values(&gates.forget), 0.0, 1.0) && within(values(&gates.output), 0.0, 1.0));
        assert!(within(values(&gates.write), 0.0, 1.0));
    }
    let floor = open(kimi().with_lower_bound(Some(-0.5)).with_allow_neg_eigval(true));
    assert!(floor.iter().all(|gates| within(values(&gates.forget), (-0.5f32).exp(), 1.0)));
    assert!(floor.iter().any(|gates| !within(values(&gates.write), 0.0, 1.0)));
}

#[test]
fn only_latent_attention_grows() {
    let device = Device::flex();
    let model = kimi().init(&device);
    let empty = model.empty_state(2, &device).bytes();
    // Two rows: matrices of two heads in three layers, windows of three steps of 8 channels, three times.
    assert_eq!(empty, 2 * 4 * 3 * (2 * 4 * 4 + 3 * 3 * 8));
    let (_, state) = model.prefill(tokens(2, 30, &device), model.empty_state(2, &device));
    // A latent of 6 and a key of 2 channels a token.
    assert_eq!(state.bytes(), empty + 2 * 30 * 4 * 8);
    let moved = state.clone().to_device(&device);
    assert_eq!(moved.bytes(), state.bytes());

    let model = deepseek().init(&device);
    let (_, state) = model.prefill(tokens(2, 30, &device), model.empty_state(2, &device));
    assert_eq!(state.bytes(), 2 * 2 * 30 * 4 * 8);
}

fn assert_continues_from_a_file<M: StreamingLm>(model: &M, device: &Device) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let token = || Tensor::<1, Int>::from_data([5, 9], device);
    let (_, state) = model.prefill(tokens(2, 6, device), model.empty_state(2, device));
    state.save(&path).unwrap();
    let loaded = M::State::load(&path, device).unwrap();
    model.check_state(&loaded, 2).unwrap();
    assert_eq!(values(&model.step(token(), loaded).0), values(&model.step(token(), state).0));
}

#[test]
fn a_saved_state_continues() {
    for device in devices() {
        for config in kimis() {
            assert_continues_from_a_file(&enlivened(config.init(&device)), &device);
        }
        assert_continues_from_a_file(&enlivened(deepseek().init(&device)), &device);
    }
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let device = Device::flex();
    let model = kimi().init(&device);
    let field = |state: &KimiLinearState, batch| model.check_state(state, batch).unwrap_err().field;
    let sound = model.empty_state(2, &device);
    assert_eq!(field(&sound, 1), "state.layers.0.memory");
    let mut short = sound.clone();
    short.layers.pop();
    assert_eq!(field(&short, 2), "state");
    let mut mixed = sound.clone();
    mixed.layers[0] = mixed.layers[3].clone();
    assert_eq!(field(&mixed, 2), "state.layers.0.mixer");
    let mut narrow = sound.clone();
    let KimiLayerState::Latent(cache) = &mut narrow.layers[3] else { panic!("the fourth is attention") };
    cache.latents = Tensor::zeros([2, 5, 7], &device);
    assert_eq!(field(&narrow, 2), "state.layers.3.latents");
    let other = kimi().with_short_conv_kernel_size(3).init(&device).empty_state(2, &device);
    assert_eq!(field(&other, 2), "state.layers.0.windows.0");
}

#[test]
fn parameters_without_weight_decay_are_those_of_the_decay() {
    let model: KimiLinearForCausalLm = kimi().init(&Device::flex());
    let ids = model.without_weight_decay();
    assert_eq!(ids.len(), 2 * 3);
    let all = burn::module::list_param_ids(&model);
    assert!(ids.iter().all(|id| all.contains(id)));
}

#[test]
fn balancing_moves_the_bias_against_the_load() {
    let device = Device::flex();
    let model = kimi().init(&device);
    let ids = tokens(2, 20, &device);
    let (logits, routings) = model.forward_with_routing(ids.clone());
    assert_eq!(values(&logits), values(&model.forward(ids, None)));
    assert_eq!(routings.len(), 3);
    let counts: Vec<Vec<usize>> =
        routings.iter().map(|routing| routing.assignment.tokens_per_expert()).collect();
    assert!(counts.iter().all(|counts| counts.iter().sum::<usize>() == 2 * 20 * 2));
    let model = model.rebalance(&BiasBalancer::new(0.25), &routings);
    let biases: Vec<Vec<f32>> = named_parameters(&model)
        .into_iter()
        .filter(|(name, _)| name.ends_with("e_score_correction_bias"))
        .map(|(_, data)| data.iter::<f32>().collect())
        .collect();
    // 80 slots of 6 experts: the mean is no whole number, so every bias moves.
    for (counts, bias) in counts.iter().zip(biases) {
        let expected: Vec<f32> =
            counts.iter().map(|count| if count * 6 < 80 { 0.25 } else { -0.25 }).collect();
        assert_eq!(bias, expected, "{counts:?}");
    }
}

#[test]
fn a_selection_bias_changes_the_choice_but_not_the_weights() {
    // With a bias so large that expert 4 is always chosen, its weight is still its own score's share.
    let device = Device::flex();
    let model = enlivened(kimi().with_num_experts_per_token(1).init(&device));
    let mut tensors = named_parameters(&model);
    for (name, data) in &mut tensors {
        if name.ends_with("e_score_correction_bias") {
            *data = TensorData::from([0.0f32, 0.0, 0.0, 0.0, 100.0, 0.0]);
        }
    }
    let model = load_tensors(model, tensors).unwrap();
    let (_, routings) = model.forward_with_routing(tokens(1, 9, &device));
    for routing in routings {
        assert!(routing.assignment.experts().iter().all(|expert| *expert == 4));
        // One expert is not renormalised: a sigmoid times the scaling factor.
        assert!(values(&routing.weights).iter().all(|weight| *weight < 2.446));
    }
}

#[test]
fn models_print_and_count_their_parameters() {
    let device = Device::flex();
    let model = kimi().init(&device);
    assert!(model.to_string().contains("KimiDeltaAttention"), "{model}");
    let tied = kimi().with_tie_word_embeddings(true).init(&device);
    assert_eq!(model.num_params() - tied.num_params(), 37 * 16);
}

#[test]
#[should_panic(expected = "row 1 without a real token")]
fn a_row_without_a_real_token_panics() {
    let device = Device::flex();
    let mask = Tensor::<2, Bool>::from_data([[true, true], [false, false]], &device);
    kimi().init(&device).forward(tokens(2, 2, &device), Some(mask));
}

#[test]
#[should_panic(expected = "`x` has no time step")]
fn a_sequence_without_a_step_panics() {
    let device = Device::flex();
    KimiDeltaAttentionConfig::new(12, 2, 4).init(&device).forward(Tensor::zeros([1, 0, 12], &device), None);
}

#[test]
#[should_panic(expected = "`latent_attention`, need one of `kimi_delta_attention`")]
fn the_state_of_another_layer_panics() {
    let device = Device::flex();
    let model = kimi().init(&device);
    let mut state = model.empty_state(1, &device);
    state.layers[1] = state.layers[3].clone();
    model.step(Tensor::from_data([3], &device), state);
}
