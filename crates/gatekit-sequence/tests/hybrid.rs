//! Linear attention layers and their stacks with full attention.

mod support;

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_sequence::backbone::{MixerContext, TokenMixer};
use gatekit_sequence::checkpoint::{named_gradients, named_parameters};
use gatekit_sequence::hybrid_linear_attention::{
    Hgrn2Config, HgrnConfig, HybridConfig, HybridForCausalLm, HybridMixerConfig, HybridState, RetentionConfig,
};
use gatekit_sequence::lm::{CausalLm, StreamState, StreamingLm};
use proptest::prelude::*;
use support::hybrid::{layers, stack};
use support::*;

fn model(mixer: HybridMixerConfig, device: &Device) -> HybridForCausalLm {
    enlivened(stack(mixer).init(device))
}

fn assert_streams(model: &HybridForCausalLm, device: &Device, pieces: &[usize], what: &str) {
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
    fn random_splits_equal_the_whole(pieces in prop::collection::vec(1usize..20, 1..6)) {
        for device in devices() {
            for config in layers() {
                assert_streams(&model(config.clone(), &device), &device, &pieces, &config.to_string());
            }
        }
    }
}

#[test]
fn single_steps_equal_the_whole() {
    for device in devices() {
        for config in layers() {
            assert_streams(&model(config.clone(), &device), &device, &[1; 9], &config.to_string());
        }
    }
}

#[test]
fn padding_does_not_reach_real_tokens() {
    for device in devices() {
        for config in layers() {
            let model = model(config.clone(), &device);
            let real = tokens(1, 7, &device);
            let want = values(&model.forward(real.clone(), None));
            let padding = |count| Tensor::<2, Int>::full([1, count], 11, &device);
            let (left, right) = (real.clone().narrow(1, 0, 4), real.narrow(1, 4, 3));
            let padded = Tensor::cat(vec![padding(2), left, padding(1), right], 1);
            let mask = [[false, false, true, true, true, true, false, true, true, true]];
            let logits = model.forward(padded, Some(Tensor::<2, Bool>::from_data(mask, &device)));
            let got = Tensor::cat(vec![logits.clone().narrow(1, 2, 4), logits.narrow(1, 7, 3)], 1);
            assert_close(&values(&got), &want, 1e-5, &config.to_string());
        }
    }
}

#[test]
fn every_parameter_is_trained() {
    let device = Device::flex().autodiff();
    for config in layers() {
        let model = model(config.clone(), &device);
        let ids = tokens(2, 9, &device);
        let gradients = model.loss(model.forward(ids.clone(), None), ids).unwrap().backward();
        let trained = named_gradients(&model, &gradients);
        for (name, data) in named_parameters(&model) {
            let gradient = trained.get(&name).unwrap_or_else(|| panic!("{config}: {name} has no gradient"));
            assert_eq!(gradient.shape(), data.shape(), "{config}: {name}");
            assert!(gradient.iter::<f32>().all(f32::is_finite), "{config}: {name}");
            assert!(gradient.iter::<f32>().any(|value| value != 0.0), "{config}: {name} has only zeros");
        }
    }
}

/// Attention forgets nothing, every other memory has one size.
#[test]
fn only_attention_grows() {
    let device = Device::flex();
    for config in layers() {
        let attention = matches!(config, HybridMixerConfig::Attention(_));
        let pure = HybridConfig { attn: None, ..stack(config) }.init(&device);
        let (_, state) = pure.prefill(tokens(2, 8, &device), pure.empty_state(2, &device));
        let bytes = state.bytes();
        let (_, state) = pure.prefill(tokens(2, 30, &device), state);
        assert_eq!(state.bytes(), bytes, "{}", state.layers[0].name());
        assert!(attention || bytes == pure.empty_state(2, &device).bytes());
    }
    let hybrid = stack(HgrnConfig::new(16).into()).init(&device);
    let (_, state) = hybrid.prefill(tokens(2, 8, &device), hybrid.empty_state(2, &device));
    // Two vectors of 16 numbers a row, and 8 tokens of 2 heads of 4 channels, keys and values.
    assert_eq!(state.bytes(), 2 * 4 * (2 * 16 + 8 * 2 * 2 * 4));
}

#[test]
fn a_saved_state_continues() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let device = Device::flex();
    let token = || Tensor::<1, Int>::from_data([5, 9], &device);
    for config in layers() {
        let model = model(config, &device);
        let (_, state) = model.prefill(tokens(2, 6, &device), model.empty_state(2, &device));
        state.save(&path).unwrap();
        let loaded = HybridState::load(&path, &device).unwrap();
        model.check_state(&loaded, 2).unwrap();
        assert_eq!(values(&model.step(token(), loaded).0), values(&model.step(token(), state).0));
    }
}

#[test]
fn states_of_other_layers_are_refused() {
    let device = Device::flex();
    let pure = |mixer| HybridConfig { attn: None, ..stack(mixer) }.init(&device);
    let kinds = ["retnet", "hgrn", "hgrn2", "delta_net", "gated_deltanet", "gla", "attention"];
    let named =
        |name: &str| pure(layers().into_iter().find(|config| config.init(&device).name() == name).unwrap());
    let models: Vec<_> = kinds.iter().map(|name| named(name)).collect();
    for (model, name) in models.iter().zip(kinds) {
        for (other, other_name) in models.iter().zip(kinds).filter(|(_, other)| *other != name) {
            let error = model.check_state(&other.empty_state(1, &device), 1).unwrap_err();
            assert_eq!(error.field, "state.layers.0.mixer");
            assert!(error.got.contains(&format!("`{other_name}`")), "{error}");
            assert!(error.need.contains(&format!("`{name}`")), "{error}");
        }
    }

    let field = |model: &HybridForCausalLm, state: HybridState, batch| {
        model.check_state(&state, batch).unwrap_err().field
    };
    let hgrn = named("hgrn");
    assert_eq!(field(&hgrn, hgrn.empty_state(1, &device), 2), "state.layers.0.memory");
    let convolving = pure(HgrnConfig::new(16).with_use_short_conv(true).into());
    assert_eq!(field(&hgrn, convolving.empty_state(1, &device), 1), "state.layers.0.windows");
    let longer = pure(HgrnConfig::new(16).with_use_short_conv(true).with_conv_size(7).into());
    assert_eq!(field(&convolving, longer.empty_state(1, &device), 1), "state.layers.0.windows.0");
}

#[test]
#[should_panic(expected = "a state of `hgrn`, need one of `retnet`")]
fn a_layer_refuses_the_state_of_another() {
    let device = Device::flex();
    let (retnet, hgrn) = (RetentionConfig::new(16).with_num_heads(2), HgrnConfig::new(16));
    let layer = |config: HybridMixerConfig| config.init(&device);
    let state = layer(hgrn.into()).empty_state(1, &device);
    layer(retnet.into()).step(Tensor::zeros([1, 16], &device), state, &MixerContext::default());
}

/// Gates wide open or shut keep values and gradients finite, whatever the length.
#[test]
fn extreme_gates_stay_finite() {
    for device in devices() {
        let device = device.autodiff();
        // Keys divided by their sum are of any length, and their memory grows without bound.
        let bounded = |config: &HybridMixerConfig| !config.to_string().contains("\"sum\"");
        for config in layers().into_iter().filter(bounded) {
            let layer = enlivened(config.init(&device));
            for (time, scale) in [(1, 300.0), (2, -300.0), (67, 300.0), (67, 1e-30)] {
                let mut state = 3;
                let data: Vec<f32> = (0..time * 16).map(|_| scale * noise(&mut state)).collect();
                let x = Tensor::<3>::from_data(TensorData::new(data, [1, time, 16]), &device);
                let x = x.require_grad();
                let y = layer.forward(x.clone(), &MixerContext::default());
                assert!(values(&y).iter().all(|value| value.is_finite()), "{config}, {time} steps");
                let gradients = y.sum().backward();
                let gradient = values(&x.grad(&gradients).unwrap());
                assert!(gradient.iter().all(|value| value.is_finite()), "{config}, {time} steps");
            }
        }
    }
}

#[test]
fn floors_hold_the_forget_gates_open() {
    let device = Device::flex();
    for config in
        [HgrnConfig::new(16).into(), HybridMixerConfig::from(Hgrn2Config::new(16).with_num_heads(Some(2)))]
    {
        let model = stack(config.clone()).init(&device);
        let contexts = model.contexts(None);
        let floors: Vec<Option<Vec<f32>>> =
            contexts.iter().map(|context| context.lower_bound.as_ref().map(values)).collect();
        // Attention layers keep their row: three equal shares, of which the first is taken away.
        assert_eq!(floors[0], None);
        assert_close(floors[1].as_ref().unwrap(), &[1.0 / 3.0; 16], 1e-6, "second layer");
        assert_close(floors[2].as_ref().unwrap(), &[2.0 / 3.0; 16], 1e-6, "third layer");
        let without = HybridConfig { use_lower_bound: false, ..stack(config) }.init(&device);
        assert!(without.contexts(None).iter().all(|context| context.lower_bound.is_none()));
        assert!(!named_parameters(&without).contains_key("model.lower_bounds"));
    }
    let other = stack(RetentionConfig::new(16).with_num_heads(2).into()).init(&device);
    assert!(other.model.lower_bounds.is_none());
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "`lower_bound` holds Some(1.0), outside [0, 1)")]
fn a_floor_of_one_is_refused() {
    let device = Device::flex();
    let layer = Hgrn2Config::new(16).with_num_heads(Some(2)).init(&device);
    let context = MixerContext { packing: None, lower_bound: Some(Tensor::ones([16], &device)) };
    TokenMixer::forward(&layer, Tensor::zeros([1, 2, 16], &device), &context);
}

#[test]
#[should_panic(expected = "no time step")]
fn a_sequence_without_a_step_panics() {
    let device = Device::flex();
    let layer = HgrnConfig::new(16).init(&device);
    TokenMixer::forward(&layer, Tensor::zeros([1, 0, 16], &device), &MixerContext::default());
}
