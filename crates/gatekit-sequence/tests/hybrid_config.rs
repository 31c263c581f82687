//! Configurations of linear attention layers and of their stacks.

mod support;

use burn::tensor::Device;
use gatekit_core::gate::GateActivation;
use gatekit_core::{ConfigError, ModuleConfig};
use gatekit_sequence::checkpoint::{PretrainedConfig, named_parameters};
use gatekit_sequence::gla::GlaConfig;
use gatekit_sequence::hybrid_linear_attention::{
    DeltaNetConfig, GatedDeltaNetConfig, Hgrn2Config, HgrnConfig, HybridAttentionConfig, HybridConfig,
    HybridMixer, HybridMixerConfig, RetentionConfig,
};
use gatekit_sequence::lm::CausalLm;
use serde_json::{Value, json};
use support::hybrid::{layers, stack};
use support::*;

#[test]
fn ratios_place_the_attention_layers() {
    let ratio = |linear, full, layers| HybridConfig::ratio(linear, full, layers).unwrap();
    assert_eq!(ratio(3, 1, 12), [3, 7, 11]);
    assert_eq!(ratio(1, 1, 5), [1, 3]);
    assert_eq!(ratio(6, 1, 24), [6, 13, 20]);
    assert_eq!(ratio(1, 2, 6), [1, 2, 4, 5]);
    assert_eq!(ratio(24, 1, 24), [12]);
    assert_eq!(ratio(usize::MAX, 1, 3), [1]);
    for (linear, full, field) in [(0, 1, "linear"), (3, 0, "full")] {
        assert_eq!(HybridConfig::ratio(linear, full, 4).unwrap_err().field, field);
    }
}

#[test]
fn configurations_that_cannot_be_built_are_refused() {
    let device = Device::flex();
    let refused = |config: HybridMixerConfig, field: &str| {
        let error = config.try_init(&device).unwrap_err();
        assert_eq!(error.field, field, "{error}");
        assert_eq!(stack(config).try_init(&device).unwrap_err().field, field);
    };
    let retnet = || RetentionConfig::new(16).with_num_heads(2);
    refused(retnet().with_num_heads(0).into(), "num_heads");
    refused(retnet().with_num_heads(3).into(), "expand_k");
    refused(retnet().with_expand_v(0.3).into(), "expand_v");
    refused(retnet().with_num_heads(16).into(), "head_dim"); // of one channel: none to rotate with
    refused(retnet().with_use_short_conv(true).with_conv_size(0).into(), "conv_size");
    refused(HgrnConfig::new(16).with_expand_ratio(0.0).into(), "expand_ratio");
    refused(HgrnConfig::new(16).with_expand_ratio(f64::NAN).into(), "expand_ratio");
    refused(Hgrn2Config::new(16).into(), "num_heads");
    refused(Hgrn2Config::new(16).with_num_heads(Some(3)).into(), "num_heads");
    refused(Hgrn2Config::new(16).with_num_heads(Some(0)).into(), "num_heads");
    let delta = || DeltaNetConfig::new(16).with_num_heads(2);
    refused(delta().with_qk_activation("gelu".into()).into(), "qk_activation");
    refused(delta().with_qk_norm("l1".into()).into(), "qk_norm");
    refused(delta().with_num_heads(5).into(), "expand_k");
    let gdn = || GatedDeltaNetConfig::new(16).with_num_heads(2).with_head_dim(4);
    refused(gdn().with_num_v_heads(Some(3)).into(), "num_v_heads");
    refused(gdn().with_num_v_heads(Some(0)).into(), "num_v_heads");
    refused(gdn().with_expand_v(1.1).into(), "expand_v");
    refused(gdn().with_head_dim(0).into(), "head_dim");
    let infinite = GateActivation::TemperedSigmoid(0.0);
    refused(gdn().with_output_gate_activation(infinite).into(), "output_gate_activation");
    assert_eq!(retnet().with_norm_eps(0.0).try_init(&device).unwrap_err().field, "norm_eps");
    assert_eq!(HybridMixerConfig::named("mamba", 16).unwrap_err().field, "mixer");

    let attn = |edit: &dyn Fn(HybridAttentionConfig) -> HybridAttentionConfig| {
        let mut config = stack(HgrnConfig::new(16).into());
        config.attn = config.attn.map(edit);
        config.try_init(&device).unwrap_err().field
    };
    assert_eq!(attn(&|attn| HybridAttentionConfig { layers: vec![3], ..attn }), "attn.layers");
    assert_eq!(attn(&|attn| HybridAttentionConfig { layers: vec![1, 0, 1], ..attn }), "attn.layers");
    assert_eq!(attn(&|attn| attn.with_num_kv_heads(Some(3))), "attn.num_kv_heads");
    assert_eq!(attn(&|attn| attn.with_window_size(Some(0))), "attn.window_size");
    assert_eq!(attn(&|attn| HybridAttentionConfig { num_heads: 0, ..attn }), "attn.num_heads");
    assert!(attn(&|attn| HybridAttentionConfig { num_heads: 3, ..attn }).starts_with("attn."));
    assert!(
        attn(&|attn| HybridAttentionConfig { num_heads: 16, num_kv_heads: None, ..attn })
            .starts_with("attn.")
    );
}

#[test]
fn named_layers_have_their_defaults() {
    let device = Device::flex();
    for name in ["retnet", "hgrn", "hgrn2", "delta_net", "gated_deltanet", "gla", "attention"] {
        let config = HybridMixerConfig::named(name, 128).unwrap();
        assert_eq!((config.hidden_size(), config.init(&device).name()), (128, name));
    }
}

#[test]
fn published_configurations_come_back() {
    for config in layers() {
        for attn in [stack(config.clone()).attn, None] {
            let config = HybridConfig { attn, ..stack(config.clone()) }.with_norm_eps(1e-5);
            let published = config.to_published();
            let read = HybridConfig::from_published(&published).unwrap();
            let names = |config: &HybridConfig| {
                let parameters = named_parameters(&config.init(&Device::flex()));
                parameters.into_iter().map(|(name, data)| (name, data.shape().to_vec())).collect::<Vec<_>>()
            };
            assert_eq!(names(&read), names(&config), "{published}");
            assert_eq!(read.to_published(), published);
        }
    }
}

/// What flash-linear-attention writes, with only the fields that matter.
fn published(model_type: &str, architecture: &str, more: Value) -> Value {
    let mut json = json!({
        "model_type": model_type, "architectures": [architecture], "hidden_act": "swish", "hidden_size": 256,
        "num_hidden_layers": 4, "vocab_size": 40, "norm_eps": 1e-6, "elementwise_affine": true, "fuse_norm": true,
        "attn": null, "attn_mode": "chunk", "attnres_block_size": null, "intermediate_size": 32,
        "tie_word_embeddings": false, "use_short_conv": false, "conv_size": 4, "transformers_version": "5.23.0"
    });
    for (field, value) in more.as_object().unwrap() {
        json[field] = value.clone();
    }
    json
}

#[test]
fn published_forms_of_all_model_types_are_read() {
    let read = |json: &Value| HybridConfig::from_published(json);
    let retnet = json!({"num_heads": 2, "expand_k": 1.0, "expand_v": 2.0, "num_kv_heads": null, "feature_map": null,
        "use_output_gate": true, "hidden_ratio": 2});
    let config = read(&published("retnet", "RetNetForCausalLM", retnet)).unwrap();
    assert_eq!(config.hidden_ratio, 2.0);
    let HybridMixerConfig::Retention(layer) = &config.mixer else { panic!("{config}") };
    assert_eq!((layer.hidden_size, layer.num_heads, layer.expand_v), (256, 2, 2.0));

    let config = read(&published("hgrn", "HGRNForCausalLM", json!({"expand_ratio": 1}))).unwrap();
    assert!(matches!(&config.mixer, HybridMixerConfig::Hgrn(layer) if layer.expand_ratio == 1.0));
    assert!(config.use_lower_bound);

    let heads = |more| match read(&published("hgrn2", "HGRN2ForCausalLM", more)).map(|config| config.mixer) {
        Ok(HybridMixerConfig::Hgrn2(layer)) => layer.heads().map_err(|error| error.field),
        Ok(other) => panic!("{other}"),
        Err(error) => Err(error.field),
    };
    assert_eq!(heads(json!({"num_heads": 2, "expand_ratio": 128})), Ok(2));
    assert_eq!(heads(json!({"num_heads": null, "expand_ratio": 64})), Ok(4));
    assert_eq!(heads(json!({"num_heads": 8, "expand_ratio": null})), Ok(8));
    assert_eq!(heads(json!({})), Ok(2));
    assert_eq!(heads(json!({"expand_ratio": 0})), Err("expand_ratio".into()));
    assert_eq!(heads(json!({"expand_ratio": 100})), Err("expand_ratio".into()));

    let attn =
        json!({"layers": [3], "num_heads": 4, "num_kv_heads": 2, "window_size": null, "rope_theta": 10000.0});
    for (architecture, model_type, more) in [
        ("DeltaNetForCausalLM", "delta_net", json!({"num_heads": 2, "qk_norm": "l2", "attn": attn})),
        (
            "GatedDeltaNetForCausalLM",
            "gated_deltanet",
            json!({"num_heads": 2, "head_dim": 32, "attn": [attn]}),
        ),
        ("GLAForCausalLM", "gla", json!({"num_heads": 2, "attn": attn})),
    ] {
        let config = read(&published(model_type, architecture, more)).unwrap();
        assert_eq!(config.attn.as_ref().unwrap().layers, [3]);
        assert!(!config.attn.as_ref().unwrap().qkv_bias);
        let model = config.init(&Device::flex());
        let kinds: Vec<_> = model.model.layers.iter().map(|block| block.attn.name()).collect();
        assert_eq!(kinds, [model_type, model_type, model_type, "attention"]);
    }
}

/// A model of gated linear attention alone loads as either type.
#[test]
fn gla_is_read_by_both() {
    let device = Device::flex();
    let config = GlaConfig { num_heads: 4, ..plain() };
    let (gla, hybrid) = (config.init(&device), HybridConfig::from_published(&config.to_published()).unwrap());
    let names = |tensors: gatekit_sequence::checkpoint::NamedTensors| tensors.into_keys().collect::<Vec<_>>();
    assert_eq!(names(named_parameters(&hybrid.init(&device))), names(named_parameters(&gla)));
    let (gla, hybrid) = (enlivened(gla), enlivened(hybrid.init(&device)));
    let ids = tokens(2, 9, &device);
    assert_eq!(values(&hybrid.forward(ids.clone(), None)), values(&gla.forward(ids, None)));

    let with_attention = published("gla", "GLAForCausalLM", json!({"attn": {"layers": [1], "num_heads": 2}}));
    assert_eq!(GlaConfig::from_published(&with_attention).unwrap_err().field, "attn");
}

#[test]
fn published_configurations_that_ask_for_more_are_refused() {
    let refused = |model_type: &str, architecture: &str, more: Value, field: &str| {
        let error: ConfigError =
            HybridConfig::from_published(&published(model_type, architecture, more)).unwrap_err();
        assert_eq!(error.field, field, "{error}");
    };
    let retnet = |more, field| refused("retnet", "RetNetForCausalLM", more, field);
    retnet(json!({"num_kv_heads": 1, "num_heads": 2}), "num_kv_heads");
    retnet(json!({"feature_map": "relu"}), "feature_map");
    retnet(json!({"use_output_gate": false}), "use_output_gate");
    retnet(json!({"fuse_norm": false}), "fuse_norm");
    retnet(json!({"hidden_act": "powlu"}), "hidden_act");
    retnet(json!({"elementwise_affine": false}), "elementwise_affine");
    retnet(json!({"attnres_block_size": 4}), "attnres_block_size");
    retnet(json!({"num_heads": "two"}), "num_heads");
    retnet(json!({"attn": {"num_heads": 2}}), "attn.layers");
    retnet(json!({"attn": {"layers": [0]}}), "attn.num_heads");
    retnet(json!({"attn": {"layers": [0], "num_heads": -1}}), "attn.num_heads");
    retnet(json!({"attn": {"layers": [0.5], "num_heads": 1}}), "attn.layers");
    let one = json!({"layers": [0], "num_heads": 2});
    retnet(json!({"attn": [one, one]}), "attn");
    retnet(json!({"attn": "all"}), "attn.layers");
    refused("retnet", "GLAForCausalLM", json!({}), "architectures");
    refused("rwkv7", "RWKV7ForCausalLM", json!({}), "model_type");
}

#[test]
fn parameters_have_the_published_names() {
    let device = Device::flex();
    let names = |config: HybridMixerConfig| {
        let layer: HybridMixer = config.init(&device);
        named_parameters(&layer).into_keys().collect::<Vec<_>>().join(" ").replace(".weight", "")
    };
    let [retnet, convolving, hgrn, _, hgrn2, hgrn2_convolving, delta, gated_delta, _, _, gdn, ..] =
        &layers()[..]
    else {
        panic!("the layers above");
    };
    assert_eq!(names(retnet.clone()), "g_norm_swish_gate g_proj k_proj o_proj q_proj v_proj");
    assert!(names(convolving.clone()).contains("k_conv1d k_proj o_proj q_conv1d q_proj v_conv1d v_proj"));
    assert_eq!(names(hgrn.clone()), "f_proj g_norm g_proj i_proj o_proj");
    assert_eq!(names(hgrn2.clone()), "f_proj g_norm i_proj o_proj q_proj");
    assert!(names(hgrn2_convolving.clone()).starts_with("f_conv1d f_proj g_norm i_conv1d"));
    let of_delta = "k_conv1d k_proj o_norm o_proj q_conv1d q_proj v_conv1d v_proj";
    assert_eq!(names(delta.clone()), format!("b_proj {of_delta}"));
    assert_eq!(names(gated_delta.clone()), format!("g_proj {of_delta}"));
    let of_decay = "A_log a_proj b_proj dt_bias g_proj";
    assert_eq!(names(gdn.clone()), format!("{of_decay} {of_delta}"));
}
