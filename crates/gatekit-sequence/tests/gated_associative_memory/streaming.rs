//! Streaming to the last position, padding, and the states.

use super::*;

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
