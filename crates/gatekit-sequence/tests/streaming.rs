//! Streaming computes what the whole sequence does, from a state that is a plain value.

mod support;

use burn::tensor::{Bool, Device, Int, Tensor};
use gatekit_core::ModuleConfig;
use gatekit_sequence::checkpoint::{CheckpointError, TensorProblem};
use gatekit_sequence::lm::{CausalLm, StreamState, StreamingLm};
use gatekit_sequence::{GlaConfig, SoftmaxConfig};
use proptest::prelude::*;
use support::*;

/// Logits of every position when `ids` comes in pieces; a piece of one token is a step.
fn in_pieces<M: StreamingLm>(
    model: &M,
    ids: &Tensor<2, Int>,
    pieces: &[usize],
) -> (Vec<Tensor<3>>, M::State) {
    let [batch, _] = ids.dims();
    let mut state = model.empty_state(batch, &ids.device());
    let mut logits = Vec::new();
    let mut start = 0;
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
    (logits, state)
}

fn assert_streams<M: StreamingLm>(model: &M, device: &Device, pieces: &[usize], what: &str) {
    let ids = tokens(2, pieces.iter().sum(), device);
    let whole = values(&model.forward(ids.clone(), None));
    let (logits, _) = in_pieces(model, &ids, pieces);
    assert_close(&values(&Tensor::cat(logits, 1)), &whole, 1e-5, &format!("{what} in {pieces:?}"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_splits_equal_the_whole(pieces in prop::collection::vec(1usize..30, 1..6)) {
        for device in devices() {
            for config in variants() {
                assert_streams(&lively(&config, &device), &device, &pieces, &config.to_string());
            }
        }
    }
}

#[test]
fn single_steps_equal_the_whole() {
    for device in devices() {
        for config in variants() {
            assert_streams(&lively(&config, &device), &device, &[1; 23], &config.to_string());
        }
    }
}

#[test]
fn softmax_attention_streams_too() {
    for device in devices() {
        for window in [None, Some(5)] {
            let config = SoftmaxConfig::new(37, 16, 2)
                .with_num_heads(4)
                .with_num_kv_heads(Some(2))
                .with_intermediate_size(Some(24))
                .with_window_size(window);
            let model = enlivened(config.init(&device));
            for pieces in [&[1; 14][..], &[9, 1, 1, 12], &[3, 3, 3], &[20]] {
                assert_streams(&model, &device, pieces, &config.to_string());
            }
        }
    }
}

#[test]
fn state_size_is_constant() {
    let device = Device::flex();
    for config in variants() {
        let model = config.init(&device);
        let state = model.empty_state(2, &device);
        let bytes = state.bytes();
        // S of both rows and layers: K = 4 or 8 by V = 4 to 8, four bytes each.
        assert!(bytes >= 2 * 2 * 2 * 4 * 4 * 4, "{bytes}");
        let (_, state) = model.prefill(tokens(2, 50, &device), state);
        assert_eq!(state.bytes(), bytes);
        let (_, state) = model.step(Tensor::from_data([3, 4], &device), state);
        assert_eq!(state.bytes(), bytes);
    }

    let softmax = SoftmaxConfig::new(37, 16, 1).with_num_heads(2).with_intermediate_size(Some(24));
    let bytes_after = |config: &SoftmaxConfig, time| {
        let model = config.init(&device);
        let (_, state) = model.prefill(tokens(1, time, &device), model.empty_state(1, &device));
        state.bytes()
    };
    assert!(bytes_after(&softmax, 40) > bytes_after(&softmax, 20));
    let window = softmax.with_window_size(Some(8));
    assert_eq!(bytes_after(&window, 40), bytes_after(&window, 20));
}

#[test]
fn clones_of_a_state_go_their_own_ways() {
    let device = Device::flex();
    let model = lively(&variants()[1], &device);
    let (_, state) = model.prefill(tokens(1, 9, &device), model.empty_state(1, &device));
    let token = Tensor::<1, Int>::from_data([5], &device);
    let (first, _) = model.step(token.clone(), state.clone());
    let (_, elsewhere) = model.step(Tensor::from_data([6], &device), state.clone());
    let (again, _) = model.step(token.clone(), state);
    assert_eq!(values(&first), values(&again));
    let (other, _) = model.step(token, elsewhere);
    assert_ne!(values(&first), values(&other));
}

#[test]
fn a_state_moves_to_another_device() {
    let [from, to] = devices();
    let config = &variants()[1];
    let (here, there) = (lively(config, &from), lively(config, &to));
    let (_, state) = here.prefill(tokens(2, 11, &from), here.empty_state(2, &from));
    let (want, _) = here.step(Tensor::from_data([5, 7], &from), state.clone());
    let (got, _) = there.step(Tensor::from_data([5, 7], &to), state.to_device(&to));
    assert_close(&values(&got), &values(&want), 1e-5, "on the other device");
}

#[test]
fn padding_does_not_reach_real_tokens() {
    for device in devices() {
        for config in variants() {
            let model = lively(&config, &device);
            let real = tokens(1, 7, &device);
            let want = values(&model.forward(real.clone(), None));
            let padding = |count| Tensor::<2, Int>::full([1, count], 11, &device);
            let mask = |flags: [bool; 10]| Tensor::<2, Bool>::from_data([flags], &device);
            let (left, right) = (real.clone().narrow(1, 0, 4), real.narrow(1, 4, 3));
            let padded = Tensor::cat(vec![padding(2), left, padding(1), right], 1);
            let flags = [false, false, true, true, true, true, false, true, true, true];
            let logits = model.forward(padded, Some(mask(flags)));
            let got = Tensor::cat(vec![logits.clone().narrow(1, 2, 4), logits.narrow(1, 7, 3)], 1);
            assert_close(&values(&got), &want, 1e-5, &config.to_string());
        }
    }
}

#[test]
#[should_panic(expected = "`attention_mask` has [batch, time] = [1, 4], `input_ids` [1, 5]")]
fn a_mask_of_another_shape_panics() {
    let device = Device::flex();
    let mask = Tensor::<2, Bool>::from_data([[true; 4]], &device);
    plain().init(&device).forward(tokens(1, 5, &device), Some(mask));
}

#[test]
#[should_panic(expected = "row 0 without a real token")]
fn a_mask_without_a_real_token_panics() {
    let device = Device::flex();
    let mask = Tensor::<2, Bool>::from_data([[false; 5]], &device);
    plain().init(&device).forward(tokens(1, 5, &device), Some(mask));
}

#[test]
fn token_ids_are_checked() {
    let device = Device::flex();
    let model = plain().init(&device);
    assert!(model.check_ids(&tokens(2, 5, &device)).is_ok());
    for (bad, place) in [([[1, 2], [37, 4]], "37 at [1, 0]"), ([[1, -1], [3, 4]], "-1 at [0, 1]")] {
        let error = model.check_ids(&Tensor::from_data(bad, &device)).unwrap_err();
        assert_eq!((error.field.as_str(), error.got.as_str()), ("input_ids", place));
    }
}

#[test]
fn a_saved_state_continues() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    for device in devices() {
        for config in variants() {
            let model = lively(&config, &device);
            let (_, state) = model.prefill(tokens(2, 9, &device), model.empty_state(2, &device));
            state.save(&path).unwrap();
            let loaded = <_ as StreamState>::load(&path, &device).unwrap();
            model.check_state(&loaded, 2).unwrap();
            let token = Tensor::<1, Int>::from_data([5, 9], &device);
            let (want, _) = model.step(token.clone(), state);
            let (got, _) = model.step(token, loaded);
            assert_eq!(values(&got), values(&want));
        }
        let model = SoftmaxConfig::new(37, 16, 2).with_num_heads(2).with_window_size(Some(6)).init(&device);
        let (_, state) = model.prefill(tokens(2, 9, &device), model.empty_state(2, &device));
        state.save(&path).unwrap();
        let loaded = <_ as StreamState>::load(&path, &device).unwrap();
        model.check_state(&loaded, 2).unwrap();
        let token = Tensor::<1, Int>::from_data([5, 9], &device);
        let (want, _) = model.step(token.clone(), state);
        assert_eq!(values(&model.step(token, loaded).0), values(&want));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no file but the state is left");
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let device = Device::flex();
    let model = plain().init(&device);
    let field =
        |state: &gatekit_sequence::gla::GlaState, batch| model.check_state(state, batch).unwrap_err().field;

    assert_eq!(field(&model.empty_state(1, &device), 2), "state.layers.0.recurrent");
    let deeper = GlaConfig { num_hidden_layers: 3, ..plain() }.init(&device);
    assert_eq!(field(&deeper.empty_state(1, &device), 1), "state");
    let wider = plain().with_expand_v(2.0).init(&device);
    assert_eq!(field(&wider.empty_state(1, &device), 1), "state.layers.0.recurrent");
    let convolving = plain().with_use_short_conv(true).init(&device);
    assert_eq!(field(&convolving.empty_state(1, &device), 1), "state.layers.0.windows");
    let error = convolving.check_state(&model.empty_state(1, &device), 1).unwrap_err();
    assert_eq!(error.field, "state.layers.0.windows");
    let longer = plain().with_use_short_conv(true).with_conv_size(5).init(&device);
    let error = convolving.check_state(&longer.empty_state(1, &device), 1).unwrap_err();
    assert_eq!(error.field, "state.layers.0.windows.q");
}

#[test]
fn damaged_states_are_refused() {
    use gatekit_sequence::checkpoint::{NamedTensors, SafetensorsFile};
    use gatekit_sequence::gla::GlaState;
    use gatekit_sequence::softmax::SoftmaxState;

    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let model = variants()[1].init(&device);
    let state = model.empty_state(1, &device);

    let missing = GlaState::load(&path, &device).unwrap_err();
    assert!(matches!(missing, CheckpointError::Io { .. }), "{missing}");

    state.save(&path).unwrap();
    let other = SoftmaxState::load(&path, &device).expect_err("a state of another mixer").to_string();
    assert!(other.contains("gated_linear_attention") && other.contains("softmax"), "{other}");

    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
    let truncated = GlaState::load(&path, &device).unwrap_err();
    assert!(matches!(truncated, CheckpointError::Malformed { .. }), "{truncated}");

    // A sound file of this format, edited.
    let read = || {
        std::fs::write(&path, &bytes).unwrap();
        let mut file = SafetensorsFile::open(&path).unwrap();
        let tensors: NamedTensors =
            file.names().into_iter().map(|name| (name.clone(), file.read(&name).unwrap())).collect();
        let metadata =
            ["format", "mixer", "layers"].map(|key| (key.to_string(), file.metadata(key).unwrap().into()));
        (tensors, metadata)
    };
    let edited = |edit: &dyn Fn(&mut NamedTensors)| {
        let (mut tensors, metadata) = read();
        edit(&mut tensors);
        SafetensorsFile::write(&path, tensors, metadata.into()).unwrap();
        match GlaState::load(&path, &device) {
            Err(CheckpointError::Tensor { source, .. }) => source,
            other => panic!("expected a tensor error, got {other:?}"),
        }
    };
    let gone = edited(&|tensors| drop(tensors.remove("layers.1.windows.k")));
    assert_eq!((gone.tensor.as_str(), gone.problem), ("layers.1.windows.k", TensorProblem::Missing));
    let extra = edited(&|tensors| {
        let copy = tensors["layers.0.windows.k"].clone();
        tensors.insert("layers.0.windows.x".into(), copy);
    });
    assert_eq!((extra.tensor.as_str(), extra.problem), ("layers.0.windows.x", TensorProblem::Unexpected));
    let beyond = edited(&|tensors| {
        let copy = tensors["layers.0.recurrent"].clone();
        tensors.insert("layers.2.recurrent".into(), copy);
    });
    assert_eq!((beyond.tensor.as_str(), beyond.problem), ("layers.2.recurrent", TensorProblem::Unexpected));
    let shape = edited(&|tensors| {
        let copy = tensors["layers.0.windows.k"].clone();
        tensors.insert("layers.0.recurrent".into(), copy);
    });
    assert!(matches!(shape.problem, TensorProblem::Shape { .. }), "{shape}");
}
