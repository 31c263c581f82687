//! The filter, the prompts and their modulators.

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use gatekit_core::ModuleConfig;
use gatekit_core::batch_norm::BatchStatistics::{Batch, Running};
use gatekit_fusion::fpro::{
    GatedDynamicFilterConfig, HighPromptModulatorConfig, LowPromptGeneratorConfig, LowPromptModulatorConfig,
    PromptModuleConfig, Prompts,
};

use crate::{assert_close, devices, noise, values};

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
