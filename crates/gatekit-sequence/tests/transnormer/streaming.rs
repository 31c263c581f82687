//! Streaming in pieces, padding, and the states.

use super::*;

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
