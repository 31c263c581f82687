//! FPro: what the golden cases do not ask.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

use burn::module::Param;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_core::batch_norm::BatchStatistics::{Batch, Running};
use gatekit_core::checkpoint::{load_tensors, named_parameters};
use gatekit_fusion::fpro::training::clipped;
use gatekit_fusion::fpro::{
    FPro, FProConfig, FProTrainer, FProTraining, Frequencies, GatedDynamicFilterConfig,
    HighPromptModulatorConfig, LowPromptGeneratorConfig, LowPromptModulatorConfig, Orientation,
    PromptModuleConfig, PromptStage, Prompts, Tiling, psnr, restoration_loss,
};

#[allow(deprecated)] // NdArray is one of the devices that are tested.
fn devices() -> [Device; 2] {
    [Device::flex(), Device::ndarray()]
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

fn noise<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(0.0, 1.0), device)
}

#[track_caller]
fn assert_close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let bound = tolerance * expected.abs().max(1.0);
        assert!((got - expected).abs() <= bound, "{at}: {got} instead of {expected}");
    }
}

fn small() -> FProConfig {
    FProConfig::new()
        .with_dim(4)
        .with_num_blocks([1, 1, 1])
        .with_num_refinement_blocks(1)
        .with_heads([1, 2, 2])
        .with_ffn_expansion_factor(1.5)
        .with_image_size(8)
        .with_window_size(2)
        .with_filter_groups(2)
}

#[test]
fn the_filter_averages_and_its_parts_are_the_whole() {
    for device in devices() {
        for (filter_size, [height, width]) in [(1, [1, 1]), (3, [2, 5]), (5, [3, 7]), (3, [9, 4])] {
            for gated in [true, false] {
                let filter = GatedDynamicFilterConfig::new(6)
                    .with_filter_groups(3)
                    .with_filter_size(filter_size)
                    .with_filter_gate(gated)
                    .init(&device);
                let x = noise([2, 6, height, width], &device);
                let parts = filter.forward(x.clone(), Batch).expect("two images");
                assert_close(&values(parts.low.clone() + parts.high), &values(x.clone()), 1e-6);
                assert_close(&values(parts.filters.clone().sum_dim(2)), &[1.0; 6], 1e-5);
                let (low, x) = (values(parts.low), values(x));
                let pixels = height * width;
                for (low, x) in low.chunks(pixels).zip(x.chunks(pixels)) {
                    let (least, most) =
                        x.iter().fold((f64::MAX, f64::MIN), |(a, b), &v| (a.min(v), b.max(v)));
                    assert!(low.iter().all(|v| (least - 1e-5..=most + 1e-5).contains(v)));
                }
                assert_eq!(parts.gate.is_some(), gated);
                let open = parts.gate.map(values).unwrap_or_default();
                assert!(open.iter().all(|gate| (0.0..=1.0).contains(gate)));
            }
        }
    }
}

#[test]
fn every_image_is_filtered_by_its_own_taps() {
    for device in devices() {
        let filter = GatedDynamicFilterConfig::new(2).with_filter_groups(1).init(&device);
        let x = noise([2, 2, 4, 5], &device);
        let parts = filter.forward(x.clone(), Running).expect("maps of 4 by 5");
        let (taps, x) = (values(parts.filters), values(x));
        let reflect = |at: i64, size: i64| {
            if at < 0 {
                -at
            } else if at >= size {
                2 * size - 2 - at
            } else {
                at
            }
        };
        let expected: Vec<f64> = (0..80)
            .map(|index| {
                let (map, row, column) = (index / 20, (index % 20 / 5) as i64, (index % 5) as i64);
                (0..9)
                    .map(|tap| {
                        let (i, j) = (reflect(row + tap / 3 - 1, 4), reflect(column + tap % 3 - 1, 5));
                        taps[map / 2 * 9 + tap as usize] * x[map * 20 + (i * 5 + j) as usize]
                    })
                    .sum()
            })
            .collect();
        assert_close(&values(parts.low), &expected, 1e-5);
    }
}

#[test]
fn gates_that_are_shut_leave_plain_averages() {
    let device = Device::flex();
    let mut filter = GatedDynamicFilterConfig::new(2).with_filter_groups(2).init(&device);
    let gate = filter.gate.as_mut().expect("a gate");
    let shape: [usize; 4] = gate.body[0].weight.shape().dims();
    // Logits of f: every tap's gate sees -1e4 times the sum of f, which is made positive.
    gate.body[0].weight = Param::from_tensor(Tensor::full(shape, -1e4, &device));
    filter.conv.weight = Param::from_tensor(Tensor::full([18, 2, 1, 1], 1.0, &device));
    let x = noise([3, 2, 4, 4], &device);
    let parts = filter.forward(x, Running).expect("maps of 4 by 4");
    assert!(values(parts.gate.expect("a gate")).iter().all(|gate| *gate == 0.0));
    assert_close(&values(parts.filters), &[1.0 / 9.0; 54], 1e-6);
}

#[test]
fn filters_refuse_what_they_cannot_filter() {
    let device = Device::flex();
    let filter = GatedDynamicFilterConfig::new(2).with_filter_groups(1).with_filter_size(5).init(&device);
    let error = |shape: [usize; 4], statistics| {
        filter.forward(Tensor::zeros(shape, &device), statistics).expect_err("refused").to_string()
    };
    assert!(error([1, 2, 5, 5], Batch).contains("batch of 1"));
    assert!(error([2, 2, 2, 5], Running).contains("maps of 2 by 5"));
    assert!(error([2, 2, 5, 2], Batch).contains("maps of 5 by 2"));
    let single = filter.forward(Tensor::zeros([1, 2, 3, 3], &device), Running).expect("maps of 3 by 3");
    assert!(values(single.low).iter().all(|value| *value == 0.0));

    let field = |config: GatedDynamicFilterConfig| config.try_init(&device).expect_err("refused").field;
    assert_eq!(field(GatedDynamicFilterConfig::new(6).with_filter_groups(4)), "filter_groups");
    assert_eq!(field(GatedDynamicFilterConfig::new(8).with_filter_size(2)), "filter_size");
    assert_eq!(field(GatedDynamicFilterConfig::new(0)), "dim");
}

#[test]
fn low_prompts_of_odd_sizes_pass_through_an_open_gate() {
    for device in devices() {
        for [height, width] in [[1, 1], [5, 3], [4, 7]] {
            let mut generator = LowPromptGeneratorConfig::new(2, height, width).init(&device);
            // A bias so large that GELU(b) = b: the spectrum is scaled by it; Z undoes that.
            let convolution = &mut generator.gate.body[0];
            convolution.weight = Param::from_tensor(Tensor::zeros([4, 4, 1, 1], &device));
            convolution.bias = Some(Param::from_tensor(Tensor::full([4], 8.0, &device)));
            let real = Tensor::<5>::full([1, 2, height, width / 2 + 1, 1], 1.0 / 8.0, &device);
            let z = Tensor::cat(vec![real.clone(), real.zeros_like()], 4);
            generator.complex_weight = Param::from_tensor(z);
            let low = noise([2, 2, height, width], &device);
            assert_close(&values(generator.forward(low.clone())), &values(low), 1e-4);
        }
    }
}

#[test]
fn the_short_form_of_the_low_modulator_is_attention_to_one_token() {
    for device in devices() {
        let modulator = LowPromptModulatorConfig::new(3, 4).init(&device);
        let (prompt, x) = (noise([2, 3, 5, 5], &device), noise([2, 4, 6, 6], &device));
        // As published: queries of every pixel, one key and value of the mean.
        let mean = prompt.clone().mean_dim(3).mean_dim(2);
        let kv = modulator.kv.forward(mean);
        let heads = |y: Tensor<4>, pixels: usize| y.reshape([2, 2, 2, pixels]);
        let unit = |y: Tensor<4>| y.clone() / y.square().sum_dim(3).sqrt().clamp_min(1e-12);
        let q = unit(heads(modulator.q.forward(x), 36)).swap_dims(2, 3);
        let k = unit(heads(kv.clone().narrow(1, 0, 4), 1));
        let scores = q.matmul(k) * modulator.temperature.val().unsqueeze();
        let weights = burn::tensor::activation::softmax(scores, 3);
        let v = heads(kv.narrow(1, 4, 4), 1).swap_dims(2, 3);
        let whole = modulator.project_out.forward(weights.matmul(v).swap_dims(2, 3).reshape([2, 4, 6, 6]));
        let short = modulator.forward(prompt).expand([2, 4, 6, 6]);
        assert_close(&values(short), &values(whole), 1e-5);
    }
}

#[test]
fn windows_do_not_see_one_another() {
    let device = Device::flex();
    let modulator = HighPromptModulatorConfig::new(2, 4).with_window_size(2).init(&device);
    let (x, prompt) = (noise([1, 4, 4, 6], &device), Tensor::zeros([1, 2, 4, 6], &device));
    let before = modulator.forward(x.clone(), prompt);
    // A change in the middle of the last window's corner stays within reach of the 3x3 convolution of the prompt.
    let corner = Tensor::<4>::ones([1, 2, 1, 1], &device);
    let changed = Tensor::zeros([1, 2, 4, 6], &device).slice_assign([0..1, 0..2, 3..4, 5..6], corner);
    let after = modulator.forward(x, changed);
    let moved = (after - before).abs().max_dim(1);
    assert!(values(moved.clone().slice([0..1, 0..1, 0..2, 0..6])).iter().all(|change| *change == 0.0));
    assert!(values(moved.clone().slice([0..1, 0..1, 2..4, 0..4])).iter().all(|change| *change == 0.0));
    assert!(values(moved.slice([0..1, 0..1, 2..4, 4..6])).iter().all(|change| *change > 0.0));
}

#[test]
fn absent_prompts_add_what_a_bias_adds() {
    for device in devices() {
        let module = PromptModuleConfig::new(2, 4, 4, 4).with_window_size(2).init(&device);
        let (low, high) = (noise([2, 2, 8, 8], &device), noise([2, 2, 8, 8], &device));
        let x = noise([2, 4, 4, 4], &device);
        let all = module.prompts(low, high);
        let with = |low: bool, high: bool| {
            let prompts =
                Prompts { low: all.low.clone().filter(|_| low), high: all.high.clone().filter(|_| high) };
            module.modulate(prompts, x.clone())
        };
        let none = with(false, false);
        let bias = values(module.simple_fusion.bias.as_ref().expect("a bias").val());
        assert_close(&values(none.clone().narrow(0, 0, 1).narrow(2, 0, 1).narrow(3, 0, 1)), &bias, 1e-6);
        // The contributions of both prompts are added.
        let sum = with(true, false) + with(false, true) - none;
        assert_close(&values(with(true, true)), &values(sum), 1e-5);
    }
}

#[test]
fn every_ablation_restores_and_gradients_reach_what_acts() {
    for frequencies in [Frequencies::None, Frequencies::Low, Frequencies::High, Frequencies::Both] {
        for gated in [true, false] {
            let device = Device::flex();
            let config = small().with_frequencies(frequencies).with_filter_gate(gated);
            let model = config.init(&device.clone().autodiff());
            let image = noise([2, 3, 8, 8], &device.clone().autodiff());
            let mut stages = Vec::new();
            let output = model
                .forward_with(image.clone(), Batch, |stage, prompts| {
                    assert_eq!(prompts.low.is_some(), frequencies.has_low());
                    assert_eq!(prompts.high.is_some(), frequencies.has_high());
                    stages.push(stage);
                    prompts
                })
                .expect("two images");
            let expected: &[_] = if frequencies == Frequencies::None { &[] } else { &PromptStage::ALL };
            assert_eq!(stages, expected);
            assert_eq!(output.parts.is_some(), frequencies != Frequencies::None);
            assert_eq!(output.image.dims(), [2, 3, 8, 8]);
            let gradients = config.loss(output.image, image).backward();
            let named = gatekit_core::checkpoint::named_gradients(&model, &gradients);
            for (name, data) in named_parameters(&model) {
                let idle = ["modulator_lo.q.", "modulator_lo.temperature", "running_"];
                let acts = !idle.iter().any(|part| name.contains(part));
                let gradient = named.get(&name).map(|gradient| gradient.iter::<f64>().any(|g| g != 0.0));
                assert_eq!(gradient.unwrap_or(false), acts, "{frequencies:?}: {name} {:?}", data.shape());
            }
        }
    }
}

#[test]
fn parameters_have_their_published_names() {
    let model = small().init(&Device::flex());
    let published = FPro::tensor_layout().to_published(named_parameters(&model));
    for name in [
        "patch_embed.proj.weight",
        "encoder_level2.0.norm2.body.bias",
        "decoder_level3.0.attn.temperature",
        "splitFre.dyna_channel.conv_gate.weight",
        "prompt_r.FSPG_low.complex_weight",
        "prompt_d3.FSPG_high.body.1.bias",
        "prompt_d1.modulator_hi.to_q.to_q.weight",
        "prompt_d2.simple_Fusion.bias",
        "down2_3.body.0.weight",
        "output.weight",
    ] {
        assert!(published.contains_key(name), "{name} of {:?}", published.keys());
    }
    let back = FPro::tensor_layout().to_module(&model, published).expect("all of them");
    assert_eq!(
        named_parameters(&load_tensors(small().init(&Device::flex()), back).expect("the same")).len(),
        named_parameters(&model).len()
    );
}

#[test]
fn the_published_model_has_its_parameters() {
    let model = FProConfig::new().try_init(&Device::flex()).expect("the published sizes");
    let count = burn::module::Module::num_params(&model) as f64;
    assert!((count / 22.3e6 - 1.0).abs() < 0.01, "{count}");
}

#[test]
fn the_loss_counts_the_whole_spectrum() {
    for device in devices() {
        for [height, width] in [[4, 6], [3, 5], [1, 1]] {
            let (a, b) = (noise([2, 1, height, width], &device), noise([2, 1, height, width], &device));
            let error = values(a.clone() - b.clone());
            let count = error.len() as f64;
            let pixels = error.iter().map(|e| e.abs()).sum::<f64>() / count;
            let mut spectrum = 0.0;
            for map in error.chunks(height * width) {
                for (u, v) in (0..height).flat_map(|u| (0..width).map(move |v| (u, v))) {
                    let (mut re, mut im) = (0.0, 0.0);
                    for (at, e) in map.iter().enumerate() {
                        let turns = (u * (at / width)) as f64 / height as f64
                            + (v * (at % width)) as f64 / width as f64;
                        re += e * (std::f64::consts::TAU * turns).cos();
                        im -= e * (std::f64::consts::TAU * turns).sin();
                    }
                    spectrum += re.abs() + im.abs();
                }
            }
            let expected = pixels + 0.1 * spectrum / (2.0 * count);
            assert_close(&values(restoration_loss(a.clone(), b.clone(), 0.1)), &[expected], 1e-5);
            assert_close(&values(restoration_loss(a, b, 0.0)), &[pixels], 1e-6);
        }
    }
}

#[test]
fn noise_ratios_are_in_decibels() {
    let device = Device::flex();
    let target = Tensor::<4>::full([2, 3, 2, 2], 0.5, &device);
    let offsets = Tensor::<4>::from_data(TensorData::new(vec![0.1, 2.0], [2, 1, 1, 1]), &device);
    // Beyond the range counts as at its end.
    assert_close(
        &values(psnr(target.clone() + offsets, target.clone())),
        &[20.0, -20.0 * 0.5f64.log10()],
        1e-4,
    );
    assert_close(&values(psnr(target.clone(), target)), &[120.0, 120.0], 1e-4);
}

#[test]
fn training_lowers_the_loss() {
    let device = Device::flex();
    device.seed(3);
    let config = small();
    let training = FProTraining::new().with_steps(30).with_learning_rate(3e-3).with_max_gradient_norm(1.0);
    let mut trainer = FProTrainer::new(config.init(&device), &config, &training).expect("a training");
    let autodiff = device.autodiff();
    let target = noise([2, 3, 8, 8], &autodiff);
    let image = target.clone() * 0.5 + 0.3;
    let losses: Vec<f64> =
        (0..30).map(|_| trainer.step(image.clone(), target.clone()).expect("two images")).collect();
    assert!(losses[29] < 0.6 * losses[0], "{losses:?}");
    let before = named_parameters(&trainer.model);
    assert!(trainer.step(image.clone() * f32::NAN, target.clone()).expect("two images").is_nan());
    for (name, data) in named_parameters(&trainer.model) {
        if !name.contains("running_") {
            assert_eq!(before[&name], data, "{name}");
        }
    }
    assert!(trainer.step(image.narrow(0, 0, 1), target.narrow(0, 0, 1)).is_err());
}

#[test]
fn the_schedule_is_flat_and_then_falls() {
    let training = FProTraining::new().with_steps(100);
    assert_eq!(training.constant_steps(), 31);
    let mut scheduler = training.scheduler().expect("a schedule");
    let device = Device::flex();
    // The rate of a step is how far plain steps move; read it off a parameter of a linear layer under SGD.
    let mut optimizer = burn::optim::SgdConfig::new().init();
    let mut layer = burn::nn::LinearConfig::new(1, 1).with_bias(false).init(&device.autodiff());
    let mut rates = Vec::new();
    for _ in 0..100 {
        let before = values(layer.weight.val())[0];
        let gradients = GradientsParams::from_grads(layer.weight.val().sum().backward(), &layer);
        layer = optimizer.step(scheduler.step(), layer, gradients);
        rates.push(before - values(layer.weight.val())[0]);
    }
    assert!(rates[..31].iter().all(|rate| (rate - 3e-4).abs() < 2e-7), "{rates:?}");
    assert!(rates[32..].windows(2).all(|pair| pair[1] < pair[0] + 1e-7), "{rates:?}");
    assert!(rates[99] < 3e-6, "{rates:?}");

    let field = |training: FProTraining| training.check().expect_err("refused").field;
    let training = FProTraining::new;
    assert_eq!(field(training().with_steps(1)), "steps");
    assert_eq!(field(training().with_batch_size(1)), "batch_size");
    assert_eq!(field(training().with_learning_rate(0.0)), "learning_rate");
    assert_eq!(field(training().with_min_learning_rate(1.0)), "min_learning_rate");
    assert_eq!(field(training().with_constant_share(1.0)), "constant_share");
    assert_eq!(field(training().with_weight_decay(-1.0)), "weight_decay");
    assert_eq!(field(training().with_max_gradient_norm(f64::NAN)), "max_gradient_norm");
}

#[test]
fn all_gradients_together_are_clipped() {
    let device = Device::flex().autodiff();
    let layer = burn::nn::LinearConfig::new(2, 2).init(&device);
    let gradients = |scale: f64| {
        let loss = (layer.weight.val() * 3.0).sum() + layer.bias.as_ref().expect("a bias").val().sum() * 4.0;
        GradientsParams::from_grads((loss * scale).backward(), &layer)
    };
    let norm = (4.0 * 9.0 + 2.0 * 16.0f64).sqrt();
    let (same, before) = clipped(&layer, gradients(1.0), 100.0);
    assert!((before - norm).abs() < 1e-5);
    assert_close(&values(same.get::<2>(layer.weight.id).expect("a gradient")), &[3.0; 4], 1e-6);
    let (less, _) = clipped(&layer, gradients(2.0), 1.0);
    assert_close(&values(less.get::<2>(layer.weight.id).expect("a gradient")), &[3.0 / norm; 4], 1e-5);
    let bias = less.get::<1>(layer.bias.as_ref().expect("a bias").id).expect("a gradient");
    assert_close(&values(bias), &[4.0 / norm; 2], 1e-5);
}

#[test]
fn orientations_are_the_eight_of_a_square() {
    let device = Device::flex();
    let image =
        Tensor::<4>::from_data(TensorData::new((0..9).map(f64::from).collect(), [1, 1, 3, 3]), &device);
    let mut seen: Vec<Vec<f64>> = Vec::new();
    for orientation in Orientation::ALL {
        let turned = values(orientation.apply(image.clone()));
        assert_eq!(turned[4], 4.0);
        assert!(!seen.contains(&turned), "{orientation:?}");
        seen.push(turned);
    }
    assert_eq!(seen[0], values(image));
}

#[test]
fn tiles_cover_and_come_back() {
    for device in devices() {
        for ([height, width], size, stride) in
            [([30, 17], 16, 7), ([16, 16], 16, 16), ([3, 50], 16, 5), ([1, 1], 8, 8), ([40, 24], 8, 3)]
        {
            let tiling = Tiling::new(height, width, size, stride).expect("a tiling");
            let image = noise([2, 3, height, width], &device);
            let tiles = tiling.tile(image.clone());
            assert_eq!(tiles.len(), tiling.count());
            assert!(tiles.iter().all(|tile| tile.dims() == [2, 3, size, size]));
            assert_close(&values(tiling.untile(&tiles)), &values(image), 1e-5);
        }
    }
    let flush: Vec<[usize; 2]> = Tiling::new(24, 40, 16, 12).expect("a tiling").corners().collect();
    assert_eq!(flush, [[0, 0], [0, 12], [0, 24], [8, 0], [8, 12], [8, 24]]);
    // Padding reflects without repeating the edge.
    let device = Device::flex();
    let row = Tensor::<4>::from_data(TensorData::new(vec![1.0, 2.0, 3.0], [1, 1, 1, 3]), &device);
    let tile = Tiling::new(1, 3, 8, 8).expect("a tiling").tile(row).remove(0);
    assert_eq!(values(tile.narrow(2, 0, 1)), [1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0, 2.0]);

    let field =
        |height, width, size, stride| Tiling::new(height, width, size, stride).expect_err("refused").field;
    assert_eq!(field(0, 3, 8, 8), "image");
    assert_eq!(field(3, 3, 12, 8), "size");
    assert_eq!(field(3, 3, 8, 0), "stride");
    assert_eq!(field(3, 3, 8, 9), "stride");
}

#[test]
fn images_of_any_size_are_restored() {
    let device = Device::flex();
    let model = small().init(&device);
    for [height, width] in [[8, 8], [5, 13], [20, 11], [1, 1]] {
        let restored = model.restore(noise([1, 3, height, width], &device), 6).expect("an image");
        assert_eq!(restored.dims(), [1, 3, height, width]);
        assert!(values(restored).iter().all(|value| (0.0..=1.0).contains(value)));
    }
    let image = noise([1, 3, 8, 8], &device);
    let alone = model.forward(image.clone(), Running).expect("one image").image.clamp(0.0, 1.0);
    assert_close(&values(model.restore(image.clone(), 8).expect("an image")), &values(alone), 1e-6);
    assert_eq!(model.restore(image.clone(), 0).expect_err("refused").field, "stride");
    assert_eq!(model.restore(image.clone() * f32::NAN, 8).expect_err("refused").field, "image");
    assert_eq!(model.restore(image.clone() / 0.0, 8).expect_err("refused").field, "image");
    assert!(model.forward(image, Batch).is_err());
}

#[test]
#[should_panic(expected = "`image` is 8 by 16 pixels, the network's prompts 8 by 8")]
fn images_of_another_size_panic() {
    let device = Device::flex();
    let _ = small().init(&device).forward(Tensor::zeros([1, 3, 8, 16], &device), Running);
}

#[test]
fn configurations_that_make_no_network_are_refused() {
    let field = |config: FProConfig| config.try_init(&Device::flex()).expect_err("refused").field;
    assert_eq!(field(small().with_filter_groups(3)), "filter_groups");
    assert_eq!(field(small().with_filter_size(4)), "filter_size");
    assert_eq!(field(small().with_filter_size(17)), "filter_size");
    assert_eq!(field(small().with_dim(5).with_filter_groups(1)), "dim");
    assert_eq!(field(small().with_heads([3, 2, 2])), "heads");
    assert_eq!(field(small().with_heads([1, 2, 0])), "heads");
    assert_eq!(field(small().with_heads([1, 2, 5])), "heads");
    assert_eq!(field(small().with_image_size(12)), "image_size");
    assert_eq!(field(small().with_window_size(0)), "window_size");
    assert_eq!(field(small().with_prompt_heads(3)), "prompt_heads");
    assert_eq!(field(small().with_out_channels(1)), "out_channels");
    assert_eq!(field(small().with_num_blocks([1, 0, 1])), "num_blocks");
    assert_eq!(field(small().with_ffn_expansion_factor(0.1)), "ffn_expansion_factor");
    assert_eq!(field(small().with_ffn_expansion_factor(f64::NAN)), "ffn_expansion_factor");
    assert_eq!(field(small().with_fft_weight(-1.0)), "fft_weight");
    let modules = PromptModuleConfig::new(4, 8, 6, 8).with_window_size(4).try_init(&Device::flex());
    assert_eq!(modules.expect_err("refused").field, "height");
}
