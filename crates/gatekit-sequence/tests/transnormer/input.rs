//! Configurations and arguments that are refused; folders.

use super::*;

#[test]
fn unusable_configurations_name_the_field() {
    let device = Device::flex();
    for (field, config) in [
        ("vocab_size", TransNormerConfig::new(0, 16, 2)),
        ("num_layers", TransNormerConfig::new(37, 16, 0)),
        ("num_layers", TransNormerConfig::new(37, 16, usize::MAX)),
        ("num_heads", small().with_num_heads(0)),
        ("embed_dim", small().with_num_heads(3)),
        ("embed_dim", TransNormerConfig::new(37, 0, 2)),
        ("hidden_dim", small().with_hidden_dim(Some(15))),
        ("hidden_dim", small().with_hidden_dim(Some(0))),
        ("glu_dim", small().with_glu_dim(0)),
        ("block_size", small().with_block_size(0)),
        ("norm_eps", small().with_norm_eps(0.0)),
        ("norm_eps", small().with_norm_eps(f64::NAN)),
        ("linear_act_fun", small().with_linear_act_fun("2+elu".into())),
        ("linear_use_lrpe_list", small().with_linear_use_lrpe_list(Some(vec![1]))),
        ("linear_use_lrpe_list", small().with_linear_use_lrpe_list(Some(vec![1, 0, 0]))),
        ("linear_use_lrpe_list", small().with_linear_use_lrpe_list(Some(vec![1, 2]))),
    ] {
        let error = config.try_init(&device).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
    for (field, config) in [
        ("slope_rate", mixer_config(&[0.1, -0.1])),
        ("slope_rate", mixer_config(&[0.1, f64::NAN])),
        ("slope_rate", mixer_config(&[f64::INFINITY, 0.1])),
        ("slope_rate", NormLinearAttentionConfig::new(8, 8, 4, vec![0.1; 3])),
        ("num_heads", NormLinearAttentionConfig::new(8, 8, 0, vec![])),
    ] {
        assert_eq!(config.try_init(&device).expect_err(field).field, field);
        let layer = TransNormerLayerConfig::new(config, 8);
        assert_eq!(layer.try_init(&device).expect_err(field).field, field);
    }
}

#[test]
#[should_panic(
    expected = "configuration field `linear_use_lrpe_list`: got 1 entries, need one for each of 2 layers"
)]
fn init_panics_with_the_same_text() {
    small().with_linear_use_lrpe_list(Some(vec![1])).init(&Device::flex());
}

#[test]
#[should_panic(expected = "`attention_mask` has [batch, time] = [1, 4], `input_ids` [1, 5]")]
fn a_mask_of_another_shape_panics() {
    let device = Device::flex();
    small().init(&device).forward(tokens(1, 5, &device), Some(mask(&[[true; 4]], &device)));
}

#[test]
#[should_panic(expected = "`padding_mask` has [batch, time] = [1, 4], `x` [1, 5]")]
fn a_mask_of_another_shape_panics_in_the_mixer() {
    let device = Device::flex();
    let mixer = mixer_config(&[0.1]).init(&device);
    mixer.forward(features([1, 5, 8], &device), Some(mask(&[[true; 4]], &device)));
}

#[test]
#[should_panic(expected = "`input_ids` holds no token, shape [1, 0]")]
fn a_sequence_of_nothing_panics() {
    let device = Device::flex();
    small().init(&device).forward(tokens(1, 0, &device), None);
}

#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let device = Device::flex();
    let model = small().init(&device);
    let error = model.check_ids(&Tensor::from_data([[1, 37]], &device)).unwrap_err();
    assert_eq!((error.field.as_str(), error.got.as_str()), ("input_ids", "37 at [0, 1]"));
}

#[test]
fn published_configurations_are_read() {
    let read = TransNormerConfig::from_published(&published()).unwrap();
    assert_eq!((read.vocab_size, read.embed_dim, read.num_layers, read.num_heads), (64000, 1024, 3, 8));
    assert_eq!((read.hidden_dim, read.glu_dim, read.block_size), (Some(1024), 2816, 256));
    assert_eq!(read.linear_use_lrpe_list, Some(vec![1, 0, 0]));
    assert_eq!(read.decay_schedule, DecaySchedule::Geometric);
    for config in models() {
        let written = config.to_published();
        assert!(written["embed_dim"].is_null() && written["decoder_embed_dim"].is_u64(), "{written}");
        let again = TransNormerConfig::from_published(&written).unwrap();
        assert_eq!(again.to_published(), written);
        assert_eq!(again.init(&Device::flex()).num_params(), config.init(&Device::flex()).num_params());
    }
    for (field, value) in [
        ("model_type", json!("mamba")),
        ("architectures", json!(["LlamaForCausalLM"])),
        ("norm_type", json!("layernorm")),
        ("decoder_layers", json!("three")),
        ("glu_dim", json!(-1)),
        ("decay_schedule", json!("cubic")),
    ] {
        let mut json = published();
        json[field] = value;
        let error = TransNormerConfig::from_published(&json).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
    assert!(TransNormerConfig::from_published(&json!(3)).is_err());
}

#[test]
fn a_saved_model_is_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    for device in devices() {
        for config in models() {
            let model = lively(&config, &device);
            save_pretrained(folder.path(), &config, &model, None).unwrap();
            let (_, loaded) = load_pretrained::<TransNormerConfig>(folder.path(), &device).unwrap();
            let ids = tokens(2, 9, &device);
            assert_eq!(
                values(&loaded.forward(ids.clone(), None)),
                values(&model.forward(ids, None)),
                "{config}"
            );
        }
    }
}
