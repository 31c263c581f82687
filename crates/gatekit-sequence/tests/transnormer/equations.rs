//! What the model computes: names, equations, decays, gradients, the loss.

use super::*;

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
