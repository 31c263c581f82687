//! What the model computes: names, paths and gates, receptive field, gradients, the loss.

use super::*;

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
