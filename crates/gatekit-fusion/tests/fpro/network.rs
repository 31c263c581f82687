//! The network, and images of any size.

use burn::tensor::{Device, Tensor, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_core::batch_norm::BatchStatistics::{Batch, Running};
use gatekit_core::checkpoint::{load_tensors, named_parameters};
use gatekit_fusion::fpro::{FPro, FProConfig, Frequencies, PromptModuleConfig, PromptStage, Tiling};

use crate::{assert_close, devices, noise, small, values};

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
