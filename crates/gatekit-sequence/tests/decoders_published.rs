//! Configurations and checkpoints of Kimi Linear and DeepSeek-V3 as they are published.

mod support;

use std::collections::HashMap;

use burn::tensor::{Device, TensorData};
use gatekit_core::ModuleConfig;
use gatekit_sequence::checkpoint::{
    PretrainedConfig, SafetensorsFile, load_pretrained, named_parameters, save_pretrained,
};
use gatekit_sequence::deepseek_v3::DeepseekV3Config;
use gatekit_sequence::kimi_linear::{KimiDeltaAttentionConfig, KimiFolderForm, KimiLinearConfig};
use gatekit_sequence::lm::CausalLm;
use serde_json::{Value, json};
use support::decoders::{deepseek, deepseeks, kimi, kimis};
use support::*;

#[test]
fn unusable_kimi_configurations_name_the_field() {
    let device = Device::flex();
    let lists = |kda: &[usize], full: &[usize]| KimiLinearConfig {
        kda_layers: kda.to_vec(),
        full_attn_layers: full.to_vec(),
        ..kimi()
    };
    for (field, config) in [
        ("vocab_size", KimiLinearConfig { vocab_size: 0, ..kimi() }),
        ("hidden_size", KimiLinearConfig { hidden_size: usize::MAX, ..kimi() }),
        ("num_hidden_layers", KimiLinearConfig { num_hidden_layers: 0, ..kimi() }),
        ("full_attn_layers", lists(&[1, 2, 3, 4], &[4])),
        ("kda_layers", lists(&[1, 1, 2, 3], &[4])),
        ("kda_layers", lists(&[1, 2], &[4])),
        ("kda_layers", lists(&[0, 1, 2, 3], &[4])),
        ("full_attn_layers", lists(&[1, 2, 3], &[4, 5])),
        ("intermediate_size", kimi().with_intermediate_size(0)),
        ("linear_num_heads", kimi().with_linear_num_heads(0)),
        ("linear_head_dim", kimi().with_linear_head_dim(0)),
        ("short_conv_kernel_size", kimi().with_short_conv_kernel_size(0)),
        ("lower_bound", kimi().with_lower_bound(Some(0.0))),
        ("lower_bound", kimi().with_lower_bound(Some(f64::NAN))),
        ("chunk_size", kimi().with_chunk_size(0)),
        ("num_attention_heads", kimi().with_num_attention_heads(0)),
        ("kv_lora_rank", kimi().with_kv_lora_rank(0)),
        ("num_experts", kimi().with_num_experts(0)),
        ("num_experts_per_token", kimi().with_num_experts_per_token(7)),
        ("num_experts_per_token", kimi().with_num_experts_per_token(0)),
        ("num_expert_group", kimi().with_num_expert_group(4)),
        ("topk_group", kimi().with_num_expert_group(3).with_topk_group(4)),
        ("topk_group", kimi().with_num_expert_group(3).with_topk_group(1).with_num_experts_per_token(3)),
        ("moe_intermediate_size", kimi().with_moe_intermediate_size(0)),
        ("num_shared_experts", kimi().with_num_shared_experts(usize::MAX)),
        ("moe_router_activation_func", kimi().with_moe_router_activation_func("relu".into())),
        ("routed_scaling_factor", kimi().with_routed_scaling_factor(f64::INFINITY)),
        ("rms_norm_eps", kimi().with_rms_norm_eps(0.0)),
        ("num_nextn_predict_layers", kimi().with_num_nextn_predict_layers(usize::MAX)),
    ] {
        let error = config.try_init(&device).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
    let layer = || KimiDeltaAttentionConfig::new(12, 2, 4);
    for (field, config) in [
        ("num_v_heads", layer().with_num_v_heads(Some(3))),
        ("num_v_heads", layer().with_num_v_heads(Some(0))),
        ("scale", layer().with_scale(Some(f64::NAN))),
        ("rms_norm_eps", layer().with_rms_norm_eps(-1.0)),
        ("head_dim", KimiDeltaAttentionConfig::new(12, 2, 0)),
    ] {
        let error = config.try_init(&device).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
}

#[test]
fn unusable_deepseek_configurations_name_the_field() {
    let device = Device::flex();
    for (field, config) in [
        ("vocab_size", DeepseekV3Config { vocab_size: 0, ..deepseek() }),
        ("num_hidden_layers", DeepseekV3Config { num_hidden_layers: 0, ..deepseek() }),
        ("q_lora_rank", deepseek().with_q_lora_rank(Some(0))),
        ("qk_rope_head_dim", deepseek().with_qk_rope_head_dim(3)),
        ("rope_theta", deepseek().with_rope_theta(0.0)),
        ("n_routed_experts", deepseek().with_n_routed_experts(0)),
        ("num_experts_per_tok", deepseek().with_num_experts_per_tok(7)),
        ("n_group", deepseek().with_n_group(4)),
        ("n_group", deepseek().with_n_group(6).with_topk_group(2)),
        ("topk_group", deepseek().with_topk_group(3)),
        ("n_shared_experts", deepseek().with_n_shared_experts(usize::MAX)),
        ("moe_intermediate_size", deepseek().with_moe_intermediate_size(0)),
        ("rms_norm_eps", deepseek().with_rms_norm_eps(f64::NAN)),
        ("num_nextn_predict_layers", deepseek().with_num_nextn_predict_layers(65)),
    ] {
        let error = config.try_init(&device).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
}

/// The published configuration of the 48B model, in short.
fn released() -> Value {
    json!({
        "model_type": "kimi_linear", "architectures": ["KimiLinearForCausalLM"], "hidden_act": "silu",
        "hidden_size": 2304, "vocab_size": 163840, "num_hidden_layers": 27, "num_key_value_heads": 32,
        "num_attention_heads": 32, "head_dim": 72, "q_lora_rank": null, "rope_scaling": null,
        "mla_use_nope": true, "moe_layer_freq": 1, "use_grouped_topk": true, "rms_norm_eps": 1e-5,
        "linear_attn_config": {
            "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
            "kda_layers": [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19, 21, 22, 23, 25, 26],
            "num_heads": 32, "head_dim": 128, "short_conv_kernel_size": 4,
        },
    })
}

/// As `transformers` saves a small one.
fn saved() -> Value {
    json!({
        "model_type": "kimi_linear", "hidden_size": 16, "vocab_size": 37, "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "mlp_layer_types": ["dense", "dense", "sparse"],
        "linear_num_heads": 2, "linear_head_dim": 4, "linear_conv_kernel_dim": 3,
    })
}

#[test]
fn both_forms_of_kimis_configuration_are_read() {
    let config = KimiLinearConfig::from_published(&released()).unwrap();
    assert_eq!(config.full_attn_layers, [4, 8, 12, 16, 20, 24, 27]);
    assert_eq!((config.kda_layers.len(), config.num_experts, config.kv_lora_rank), (20, 256, 512));
    assert_eq!((config.linear_head_dim, config.folder_form), (128, KimiFolderForm::Released));
    assert!(config.is_full_attention().unwrap()[26]);

    let config = KimiLinearConfig::from_published(&saved()).unwrap();
    assert_eq!((config.kda_layers, config.full_attn_layers), (vec![1, 3], vec![2]));
    assert_eq!((config.linear_num_heads, config.linear_head_dim), (2, 4));
    assert_eq!((config.short_conv_kernel_size, config.first_k_dense_replace), (3, 2));
    assert_eq!(config.folder_form, KimiFolderForm::Transformers);

    for form in [KimiFolderForm::Released, KimiFolderForm::Transformers] {
        for config in kimis() {
            let config = config.with_folder_form(form);
            let again = KimiLinearConfig::from_published(&config.to_published()).unwrap();
            assert_eq!(again.to_string(), config.to_string());
        }
    }
}

#[test]
fn other_kimi_models_are_refused() {
    let refused = |json: &Value| KimiLinearConfig::from_published(json).unwrap_err().field;
    for (field, value) in [
        ("model_type", json!("kimi")),
        ("architectures", json!(["LlamaForCausalLM"])),
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("mla_use_nope", json!(false)),
        ("moe_layer_freq", json!(2)),
        ("topk_method", json!("greedy")),
        ("rope_scaling", json!({ "type": "yarn", "factor": 4 })),
        ("quantization_config", json!({ "quant_method": "fp8" })),
        ("num_key_value_heads", json!(8)),
        ("linear_attn_config", json!([1])),
        ("hidden_size", json!("wide")),
    ] {
        let mut json = released();
        json[field] = value;
        assert_eq!(refused(&json), field);
    }
    for (field, value) in [("kda_layers", json!("all")), ("num_heads", json!(-1)), ("head_dim", json!(0.5))] {
        let mut json = released();
        json["linear_attn_config"][field] = value;
        assert_eq!(refused(&json), format!("linear_attn_config.{field}"));
    }
    for (field, value) in [
        ("layer_types", json!("linear_attention")),
        ("layer_types", json!(["linear_attention", "full_attention", "sliding_attention"])),
        ("layer_types", json!(["linear_attention", "full_attention"])),
        ("mlp_layer_types", json!(["dense", "sparse", "dense"])),
        ("mlp_layer_types", json!(["dense", "sparse"])),
        ("mlp_layer_types", json!([1, 2, 3])),
        ("linear_conv_kernel_dim", json!("four")),
    ] {
        let mut json = saved();
        json[field] = value;
        assert_eq!(refused(&json), field);
    }
    let mut neither = saved();
    neither.as_object_mut().unwrap().remove("layer_types");
    assert_eq!(refused(&neither), "linear_attn_config");
    // A missing list is empty, not the 48B model's.
    let mut half = released();
    half["linear_attn_config"].as_object_mut().unwrap().remove("kda_layers");
    let config = KimiLinearConfig::from_published(&half).unwrap();
    assert_eq!(config.try_init(&Device::flex()).unwrap_err().field, "kda_layers");
}

#[test]
fn a_kimi_folder_keeps_its_form_and_its_names() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let model = enlivened(kimi().init(&device));
    let ids = tokens(2, 9, &device);
    let want = values(&model.forward(ids.clone(), None));
    for (form, dense) in
        [(KimiFolderForm::Released, "mlp"), (KimiFolderForm::Transformers, "block_sparse_moe")]
    {
        let config = kimi().with_folder_form(form);
        save_pretrained(folder.path(), &config, &model, None).unwrap();
        let file = SafetensorsFile::open(&folder.path().join("model.safetensors")).unwrap();
        let has = |name: &str| file.names().iter().any(|held| held == name);
        assert!(has("model.embed_tokens.weight") && has("lm_head.weight") && has("model.norm.weight"));
        assert!(has(&format!("model.layers.0.{dense}.down_proj.weight")));
        for name in ["experts.5.w1.weight", "gate.weight", "gate.e_score_correction_bias"] {
            assert!(has(&format!("model.layers.3.block_sparse_moe.{name}")), "{name}");
        }
        assert!(has("model.layers.3.block_sparse_moe.shared_experts.up_proj.weight"));
        assert_eq!(file.shape("model.layers.1.self_attn.A_log").unwrap().to_vec(), [1, 1, 2, 1]);
        assert_eq!(
            file.names().iter().filter(|name| name.contains("mlp.")).count(),
            if dense == "mlp" { 3 } else { 0 }
        );

        let (read, again) = load_pretrained::<KimiLinearConfig>(folder.path(), &device).unwrap();
        assert_eq!(read.folder_form, form);
        assert_eq!(values(&again.forward(ids.clone(), None)), want);
        assert_eq!(named_parameters(&again), named_parameters(&model));
    }
}

/// The configuration of the 671B model as it was released, but for the scaled rotation and the quantised weights.
fn deepseek_released() -> Value {
    json!({
        "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "hidden_act": "silu",
        "hidden_size": 7168, "vocab_size": 129280, "num_hidden_layers": 61, "num_attention_heads": 128,
        "num_key_value_heads": 128, "n_group": 8, "topk_group": 4, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1,
        "rope_theta": 10000, "q_lora_rank": 1536, "num_nextn_predict_layers": 1,
    })
}

#[test]
fn deepseeks_configuration_is_read() {
    let config = DeepseekV3Config::from_published(&deepseek_released()).unwrap();
    assert_eq!((config.q_lora_rank, config.first_k_dense_replace, config.rope_theta), (Some(1536), 3, 1e4));
    let mut json = deepseek_released();
    json["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 500.0 });
    json["q_lora_rank"] = Value::Null;
    let config = DeepseekV3Config::from_published(&json).unwrap();
    assert_eq!((config.q_lora_rank, config.rope_theta), (None, 500.0));
    for config in deepseeks() {
        let again = DeepseekV3Config::from_published(&config.to_published()).unwrap();
        assert_eq!(again.to_string(), config.to_string());
    }
}

#[test]
fn other_deepseek_models_are_refused() {
    for (field, value) in [
        ("model_type", json!("deepseek_v2")),
        ("hidden_act", json!("gelu")),
        ("scoring_func", json!("softmax")),
        ("topk_method", json!("greedy")),
        ("moe_layer_freq", json!(2)),
        ("quantization_config", json!({ "quant_method": "fp8" })),
        ("num_key_value_heads", json!(8)),
        ("rope_parameters", json!(1)),
        ("n_group", json!("eight")),
    ] {
        let mut json = deepseek_released();
        json[field] = value;
        assert_eq!(DeepseekV3Config::from_published(&json).unwrap_err().field, field);
    }
    for (field, key, value) in [
        ("rope_scaling", "type", json!("yarn")),
        ("rope_scaling", "rope_type", json!("linear")),
        ("rope_parameters", "rope_type", json!("yarn")),
    ] {
        let mut json = deepseek_released();
        json[field] = json!({});
        json[field][key] = value;
        let error = DeepseekV3Config::from_published(&json).unwrap_err();
        assert_eq!(error.field, format!("{field}.{key}"), "{error}");
    }
}

#[test]
fn layers_that_predict_further_tokens_are_passed_over() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let (config, model) = (deepseek(), enlivened(deepseek().init(&device)));
    save_pretrained(folder.path(), &config, &model, None).unwrap();
    let with_extra = |extra: &str| {
        let mut file = SafetensorsFile::open(&path).unwrap();
        let mut tensors: std::collections::BTreeMap<String, TensorData> =
            file.names().into_iter().map(|name| (name.clone(), file.read(&name).unwrap())).collect();
        tensors
            .retain(|name, _| !name.starts_with("model.layers.2.") && !name.starts_with("model.layers.3."));
        tensors.insert(extra.to_string(), TensorData::from([1.0f32, 2.0]));
        SafetensorsFile::write(&path, tensors, HashMap::new()).unwrap();
        load_pretrained::<DeepseekV3Config>(folder.path(), &device)
    };
    let (_, again) = with_extra("model.layers.2.eh_proj.weight").unwrap();
    let ids = tokens(2, 9, &device);
    assert_eq!(values(&again.forward(ids.clone(), None)), values(&model.forward(ids, None)));
    // One such layer is announced, not two.
    let error = with_extra("model.layers.3.eh_proj.weight").unwrap_err().to_string();
    assert!(error.contains("model.layers.3.eh_proj.weight"), "{error}");
}
