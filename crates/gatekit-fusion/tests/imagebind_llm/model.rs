//! The network as a whole.

use burn::module::Module;
use gatekit_core::checkpoint::{
    NamedTensors, PretrainedConfig, load_pretrained, named_parameters, save_pretrained,
};
use gatekit_fusion::imagebind_llm::{
    BindNetworkConfig, Embedder, ImageBindLlmConfig, InjectedAttentionConfig, caption_loss, merge_published,
};
use serde_json::json;

use super::*;

#[test]
fn a_closed_gate_is_the_language_model_exactly() {
    for device in devices() {
        let device = device.autodiff();
        let config = config().with_lora_rank(2).with_bias_tuning(true);
        let model = config.init(&device);
        let tokens = ids(&[&[1, 5, 3, 9], &[1, 2, 2, 4]], &device);
        let visual = model.visual(ramp([2, 6], 0.3, &device)).unwrap();
        let alone = model.forward(tokens.clone(), None).unwrap();
        let with = model.forward(tokens.clone(), Some(visual)).unwrap();
        assert_eq!(values(with.clone()), values(alone));
        assert_eq!(model.gates(), [[0.0; 2]; 2]);
        // The gates learn at once; what lies behind them waits.
        let gradients = model.loss(with, &tokens).unwrap().backward();
        for layer in &model.llama.layers[1..] {
            let gate = &layer.attention.gate.as_ref().unwrap().gate;
            assert!(values(gate.val().grad(&gradients).unwrap()).iter().all(|slope| *slope != 0.0));
        }
        let bind = model.bind.proj.weight.val().grad(&gradients).unwrap();
        assert_eq!(values(bind.abs().sum()), [0.0]);
    }
}

#[test]
fn every_token_of_a_layer_gets_the_same_vector() {
    for device in devices() {
        let layer = InjectedAttentionConfig::new(12, 3).with_lora_rank(2).with_gate_start(0.8).init(&device);
        let (x, prompt) = (ramp([2, 5, 12], 0.1, &device), ramp([2, 1, 12], 0.9, &device));
        let added =
            layer.forward(x.clone(), Some(prompt.clone())).unwrap() - layer.forward(x.clone(), None).unwrap();
        assert_close(added.clone(), added.clone().narrow(1, 0, 1).repeat_dim(1, 5), 1e-6);
        // One token, and one row of the batch, alone.
        let one = layer.forward(x.clone().narrow(0, 1, 1), Some(prompt.clone().narrow(0, 1, 1))).unwrap();
        assert_close(one, layer.forward(x.clone(), Some(prompt.clone())).unwrap().narrow(0, 1, 1), 1e-6);
        let first = layer.forward(x.clone().narrow(1, 0, 1), Some(prompt.clone())).unwrap();
        assert_close(first, layer.forward(x, Some(prompt)).unwrap().narrow(1, 0, 1), 1e-6);
    }
}

#[test]
fn the_prompt_goes_through_the_values_without_their_delta() {
    for device in devices() {
        let mut layer =
            InjectedAttentionConfig::new(8, 2).with_lora_rank(3).with_gate_start(0.5).init(&device);
        let prompt = ramp([1, 1, 8], 0.4, &device);
        let before = layer.injection(prompt.clone(), 1).unwrap();
        let delta = layer.wv.delta.as_mut().unwrap();
        delta.l2.weight = delta.l2.weight.clone().map(|weight| weight.add_scalar(1.0));
        assert_eq!(values(layer.injection(prompt, 1).unwrap()), values(before));
    }
}

#[test]
fn causal_and_only_the_last_layers_are_injected() {
    for device in devices() {
        let model = lively(&config(), &device);
        let visual = model.visual(ramp([1, 6], 0.3, &device)).unwrap();
        let logits = |row: &[i64]| model.forward(ids(&[row], &device), Some(visual.clone())).unwrap();
        let (a, b) = (logits(&[1, 2, 3, 4]), logits(&[1, 2, 3, 9]));
        assert_eq!(values(a.clone().narrow(1, 0, 3)), values(b.clone().narrow(1, 0, 3)));
        assert_ne!(values(a), values(b));
        let gated: Vec<bool> =
            model.llama.layers.iter().map(|layer| layer.attention.gate.is_some()).collect();
        assert_eq!(gated, [false, true, true]);
        assert_eq!(model.prefix_query.weight.val().dims(), [2, 8]);
    }
}

#[test]
fn extremes_are_finite() {
    for device in devices() {
        for gate in [-1e4, 0.0, 1e4] {
            let model = config().with_gate_start(gate).with_legacy_bridge(true).init(&device);
            for feats in [0.0, 1e4] {
                let visual = model.visual(Tensor::full([1, 6], feats, &device)).unwrap();
                let logits = model.forward(ids(&[&[1]], &device), Some(visual)).unwrap();
                assert!(values(logits).iter().all(|logit| logit.is_finite()), "{gate} {feats}");
            }
        }
    }
}

#[test]
fn losses_count_labels_that_are_not_padding() {
    for device in devices() {
        let device = device.autodiff();
        let logits = ramp([2, 3, 4], 0.2, &device).require_grad();
        let by_hand = |row: usize, place: usize, label: usize| {
            let scores = &values(logits.clone())[(row * 3 + place) * 4..][..4];
            scores.iter().map(|score| score.exp()).sum::<f64>().ln() - scores[label]
        };
        let loss = |rows: &[&[i64]]| caption_loss(logits.clone(), &ids(rows, &device)).unwrap();
        // The first label of a row is predicted by nothing.
        let got = values(loss(&[&[3, 0, 2], &[0, 1, 3]]))[0];
        let want = (by_hand(0, 1, 2) + by_hand(1, 0, 1) + by_hand(1, 1, 3)) / 3.0;
        assert!((got - want).abs() < 1e-6, "{got} {want}");
        let nothing = loss(&[&[3, 0, 0], &[2, 0, 0]]);
        assert_eq!(values(nothing.clone()), [0.0]);
        let gradients = nothing.backward();
        assert_eq!(values(logits.grad(&gradients).unwrap()), [0.0; 24]);
        let one = caption_loss(logits.clone().narrow(1, 0, 1), &ids(&[&[3], &[2]], &device)).unwrap();
        assert_eq!(values(one), [0.0]);
    }
}

#[test]
fn tuning_goes_on_from_the_same_function() {
    for device in devices() {
        let model = lively(&config(), &device);
        let tokens = ids(&[&[1, 5, 3]], &device);
        let visual = model.visual(ramp([1, 6], 0.3, &device)).unwrap();
        let before = model.forward(tokens.clone(), Some(visual.clone())).unwrap();
        let count = model.num_params();
        let tuned = model.tuned(true, 4);
        assert_eq!(values(tuned.forward(tokens, Some(visual)).unwrap()), values(before));
        // Deltas of rank 4 on seven maps, biases on five.
        let deltas = 4 * (4 * (8 + 8) + 3 * (8 + 12));
        assert_eq!(tuned.num_params(), count + 3 * (deltas + 8 + 8 + 12 + 8 + 12));
        let fresh = config().with_lora_rank(4).with_bias_tuning(true).init(&device);
        assert_eq!(
            named_parameters(&tuned).keys().collect::<Vec<_>>(),
            named_parameters(&fresh).keys().collect::<Vec<_>>()
        );
        assert_eq!(tuned.clone().tuned(true, 4).num_params(), tuned.num_params());
    }
}

#[test]
fn checkpoints_have_the_published_names() {
    let device = Device::flex();
    let config = config().fine_tuned().with_legacy_bridge(true);
    let model = lively(&config, &device);
    let layout = config.tensor_layout();
    let published = layout.to_published(named_parameters(&model));
    for (name, shape) in [
        ("image_bind_proj.bias", &[8][..]),
        ("image_bind_norm_3.bias", &[8]),
        ("image_bind_f1_1.weight", &[10, 8]),
        ("image_bind_f2_2.weight", &[8, 10]),
        ("image_bind_f3_3.bias", &[10]),
        ("prefix_query.weight", &[2, 8]),
        ("llama.layers.1.attention.gate", &[1, 2, 1, 1]),
        ("llama.layers.0.attention.lora_wv_l1.weight", &[16, 8]),
        ("llama.layers.2.attention.wq.bias", &[8]),
        ("llama.layers.2.feed_forward.lora_w2_l2.weight", &[8, 16]),
        ("llama.layers.2.feed_forward.w2.bias", &[8]),
        ("llama.layers.0.ffn_norm.weight", &[8]),
        ("llama.tok_embeddings.weight", &[11, 8]),
        ("llama.output.weight", &[11, 8]),
    ] {
        assert_eq!(published[name].shape().to_vec(), shape, "{name}");
    }
    assert!(!published.contains_key("llama.layers.0.attention.gate"));

    // The release: the language model under its own names, the adapter, gates everywhere, what is not needed.
    let (mut llama, mut adapter) = (NamedTensors::new(), NamedTensors::new());
    for (name, data) in published {
        match name.strip_prefix("llama.").filter(|name| !name.contains("lora") && !name.ends_with(".gate")) {
            Some(plain) => llama.insert(plain.to_string(), data),
            None => adapter.insert(name, data),
        };
    }
    llama.insert("rope.freqs".into(), TensorData::from([1.0f32, 0.1]));
    adapter.insert("llama.layers.0.attention.gate".into(), TensorData::from([[[[1.0f32]], [[2.0]]]]));
    adapter.insert("image_bind.modality_heads.0.weight".into(), TensorData::from([1.0f32]));
    let read = config.init(&device).load_published(&config, merge_published(llama, adapter)).unwrap();
    assert_eq!(named_parameters(&read), named_parameters(&model));

    let folder = tempfile::tempdir().unwrap();
    save_pretrained(folder.path(), &config, &model, None).unwrap();
    let (read_config, read) = load_pretrained::<ImageBindLlmConfig>(folder.path(), &device).unwrap();
    assert_eq!(read_config.to_published(), config.to_published());
    assert_eq!(named_parameters(&read), named_parameters(&model));
    let other = ImageBindLlmConfig::from_published(&json!({ "model_type": "llama" }));
    assert_eq!(other.unwrap_err().field, "model_type");
}

#[test]
fn sizes_come_from_the_released_parameters() {
    let params = json!({
        "dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-6, "vocab_size": -1
    });
    let read =
        ImageBindLlmConfig::new().with_layers(1).with_ffn_hidden(1).with_llama_params(&params).unwrap();
    assert_eq!(read.to_published(), ImageBindLlmConfig::new().to_published());
    assert_eq!((read.injected_layers(), read.ffn_hidden), (32, 11008));
    let small =
        json!({ "dim": 8, "multiple_of": 4, "n_heads": 2, "n_layers": 3, "norm_eps": 1e-5, "vocab_size": 9 });
    let small = ImageBindLlmConfig::new().with_llama_params(&small).unwrap();
    assert_eq!((small.d_model, small.ffn_hidden, small.vocab), (8, 24, 9));
    let broken = json!({ "dim": 8, "multiple_of": 4, "n_layers": 3 });
    assert_eq!(ImageBindLlmConfig::new().with_llama_params(&broken).unwrap_err().field, "n_heads");
}

#[test]
fn both_bridges_add_to_the_projection() {
    for device in devices() {
        for legacy in [false, true] {
            let network = BindNetworkConfig::new(3, 4).with_legacy_bridge(legacy).init(&device);
            assert_eq!(network.blocks[0].feed_forward.gate_proj.weight.shape().dims(), [4, 16]);
            assert_eq!(network.blocks[2].feed_forward.down_proj.bias.is_some(), legacy);
            let mut silent = network.clone();
            for block in &mut silent.blocks {
                let down = &mut block.feed_forward.down_proj;
                down.weight = down.weight.clone().map(|weight| weight.zeros_like());
                down.bias = down.bias.clone().map(|bias| bias.map(|bias| bias.zeros_like()));
            }
            let x = ramp([2, 3], 0.7, &device);
            let want = silent.proj.forward(x.clone()).unsqueeze_dim::<3>(1);
            assert_eq!(values(silent.forward(x.clone()).unwrap()), values(want.clone()));
            assert_ne!(values(network.forward(x).unwrap()), values(want));
        }
    }
}

/// Embeddings that are there already.
struct Stored(Tensor<2>);

impl Embedder for Stored {
    type Input = std::ops::Range<usize>;

    fn dim(&self) -> usize {
        self.0.dims()[1]
    }

    fn embed(&self, rows: &Self::Input) -> Tensor<2> {
        self.0.clone().narrow(0, rows.start, rows.len())
    }
}

#[test]
fn embedders_are_frozen_and_checked() {
    for device in devices() {
        let device = device.autodiff();
        let model = config().init(&device);
        let stored = Stored(ramp([4, 6], 0.1, &device).require_grad());
        let embedding = model.embed(&stored, &(1..3)).unwrap();
        assert_eq!((embedding.dims(), embedding.is_autodiff()), ([2, 6], false));
        assert_eq!(model.visual(embedding).unwrap().dims(), [2, 1, 8]);
        let refused = |stored: Stored| model.embed(&stored, &(0..1)).unwrap_err().got;
        assert_eq!(refused(Stored(Tensor::ones([1, 5], &device))), "5 channels, shape [1, 5]");
        assert_eq!(refused(Stored(Tensor::full([1, 6], f64::NAN, &device))), "NaN or infinity");
    }
}
