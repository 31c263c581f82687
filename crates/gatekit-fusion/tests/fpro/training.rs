//! Loss, schedule, clipping, turns, the trainer.

use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_core::checkpoint::named_parameters;
use gatekit_fusion::fpro::training::clipped;
use gatekit_fusion::fpro::{FProTrainer, FProTraining, Orientation, psnr, restoration_loss};

use crate::{assert_close, devices, noise, small, values};

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
