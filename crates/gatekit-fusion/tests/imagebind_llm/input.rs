//! What is refused.

use gatekit_core::{ConfigError, InputError};
use gatekit_fusion::imagebind_llm::{
    BindNetworkConfig, FlatIndex, GenerationConfig, GenerationError, InjectedAttentionConfig, ModalityMix,
    PhaseConfig, VisualCacheConfig, caption_loss,
};

use super::*;

#[test]
fn unusable_configurations_name_the_field() {
    let device = Device::flex();
    for (field, config) in [
        ("query_layers", config().with_query_layers(Some(4))),
        ("query_layers", config().with_query_layers(Some(0))),
        ("heads", config().with_heads(3)),
        ("heads", config().with_heads(8)),
        ("heads", config().with_heads(0)),
        ("d_model", config().with_d_model(0)),
        ("layers", config().with_layers(0)),
        ("vocab", config().with_vocab(0)),
        ("ffn_hidden", config().with_ffn_hidden(0)),
        ("modality_dim", config().with_modality_dim(0)),
        ("bind_hidden", config().with_bind_hidden(Some(0))),
        ("bind_blocks", config().with_bind_blocks(0)),
        ("norm_eps", config().with_norm_eps(0.0)),
        ("gate_start", config().with_gate_start(f64::NAN)),
        ("lora_rank", config().with_lora_rank(usize::MAX)),
    ] {
        assert_eq!(config.try_init(&device).expect_err(field).field, field);
    }
    let error = config().with_query_layers(Some(4)).try_init(&device).unwrap_err();
    assert_eq!((error.got.as_str(), error.need.contains('3')), ("4", true));
    let odd = InjectedAttentionConfig::new(9, 3).try_init(&device).unwrap_err();
    assert!(odd.got.contains("3 channels") && odd.need.contains('9'), "{odd}");
    let bridge = BindNetworkConfig::new(4, usize::MAX / 2).try_init(&device).unwrap_err();
    assert_eq!(bridge.field, "d_model");
}

#[test]
fn shapes_that_do_not_fit_are_refused_with_both_sizes() {
    for device in devices() {
        let model = config().init(&device);
        let feats = model.visual(Tensor::ones([2, 5], &device)).unwrap_err();
        assert_eq!((feats.field.as_str(), feats.got.as_str()), ("feats", "shape [2, 5]"));
        assert!(feats.need.contains("[batch, 6]"));
        let tokens = ids(&[&[1, 2, 3], &[1, 2, 3]], &device);
        for shape in [[3, 1, 8], [2, 2, 8], [2, 1, 7], [1, 1, 8]] {
            let visual = Tensor::<3>::ones(shape, &device);
            for error in [
                model.forward(tokens.clone(), Some(visual.clone())).unwrap_err(),
                model.prefill(tokens.clone(), Some(visual.clone())).unwrap_err(),
            ] {
                assert_eq!((error.field.as_str(), error.need.as_str()), ("visual", "[2, 1, 8]"));
                assert!(error.got.contains(&format!("{shape:?}")), "{error}");
            }
            let layer = &model.llama.layers[2].attention;
            let error = layer.forward(ramp([2, 3, 8], 0.1, &device), Some(visual)).unwrap_err();
            assert_eq!(error.need, "[2, 1, 8]");
        }
        let plain = &model.llama.layers[0].attention;
        let error = plain.injection(Tensor::ones([1, 1, 8], &device), 1).unwrap_err();
        assert!(error.need.contains("no gate"), "{error}");
        let (_, state) = model.prefill(tokens, None).unwrap();
        let error = model.extend(ids(&[&[1]], &device), state).unwrap_err();
        assert_eq!((error.field.as_str(), error.got.as_str()), ("tokens", "1 rows"));
    }
}

#[test]
fn tokens_and_labels_are_checked() {
    for device in devices() {
        let model = config().init(&device);
        let got = |row: &[i64]| model.forward(ids(&[row], &device), None).unwrap_err().got;
        assert_eq!(got(&[1, 11]), "11 at [0, 1]");
        assert_eq!(got(&[-1, 1]), "-1 at [0, 0]");
        assert_eq!(got(&[]), "shape [1, 0]");
        let logits = Tensor::<3>::zeros([1, 3, 11], &device);
        let label = |row: &[i64]| caption_loss(logits.clone(), &ids(&[row], &device)).unwrap_err();
        assert_eq!(label(&[0, 11, 2]).got, "11 at 1");
        assert_eq!(label(&[0, -100, 2]).got, "-100 at 1");
        assert_eq!(label(&[0, 2]).need, "[1, 3]");
    }
}

#[test]
fn mixtures_without_a_weight_are_refused() {
    for weights in [vec![], vec![0.0, 0.0], vec![1.0, -0.5], vec![f64::NAN], vec![1.0, f64::INFINITY]] {
        assert_eq!(ModalityMix::new(weights).unwrap_err().field, "weights");
    }
    let mix = ModalityMix::new(vec![1.0, 1.0]).unwrap();
    let error = mix.forward(Tensor::ones([3, 1, 2], &Device::flex())).unwrap_err();
    assert_eq!((error.got.as_str(), error.need.as_str()), ("3 modalities", "2, one a weight"));
}

#[test]
fn caches_without_a_direction_are_refused() {
    for device in devices() {
        let refused = |values: &[f64]| FlatIndex::new(float(values, [2, 2], &device)).unwrap_err().got;
        assert_eq!(refused(&[1.0, 0.0, 0.0, 2.0]), "norm 2 in row 1");
        assert_eq!(refused(&[0.0, 0.0, 0.0, 1.0]), "norm 0 in row 0");
        assert_eq!(refused(&[f64::NAN, 0.0, 0.0, 1.0]), "norm NaN in row 0");

        let index = || FlatIndex::new(float(&[1.0, 0.0, 0.0, 1.0], [2, 2], &device)).unwrap();
        let config = || VisualCacheConfig::new().with_cache_size(1);
        let field = |config: VisualCacheConfig| -> ConfigError { config.try_init(index()).unwrap_err() };
        assert_eq!(field(config().with_cache_size(0)).field, "cache_size");
        assert!(field(config().with_cache_size(3)).need.contains("1 to 2"));
        assert_eq!(field(config().with_cache_t(0.0)).field, "cache_t");
        assert_eq!(field(config().with_cache_t(f64::NAN)).field, "cache_t");
        assert_eq!(field(config().with_cache_weight(1.1)).field, "cache_weight");
        assert_eq!(field(config().with_cache_weight(-0.1)).field, "cache_weight");

        let cache = config().try_init(index()).unwrap();
        let error = |values: &[f64], shape| -> InputError {
            cache.forward(float(values, shape, &device)).unwrap_err()
        };
        assert_eq!(error(&[1.0, 0.0, 0.0, 0.0], [2, 2]).got, "norm 0 in row 1");
        assert_eq!(error(&[f64::NAN, 0.0], [1, 2]).got, "norm NaN in row 0");
        assert_eq!(error(&[1.0, 0.0, 0.0], [1, 3]).got, "shape [1, 3]");
        // What is retrieved cancels the query.
        let poles = FlatIndex::new(float(&[-1.0, 0.0], [1, 2], &device)).unwrap();
        let cancelled = config().try_init(poles).unwrap().forward(float(&[1.0, 0.0], [1, 2], &device));
        assert_eq!(cancelled.unwrap_err().field, "enhanced");
    }
}

#[test]
fn generations_that_cannot_start_are_refused() {
    let device = Device::flex();
    let model = config().init(&device);
    let refused = |prompts: &[Vec<usize>], visual: Option<Tensor<3>>, config: GenerationConfig| match model
        .generate(prompts, visual, &config)
        .unwrap_err()
    {
        GenerationError::Config(error) => error.field,
        GenerationError::Input(error) => error.field,
    };
    let config = GenerationConfig::new;
    assert_eq!(refused(&[vec![1]], None, config().with_temperature(-1.0)), "temperature");
    assert_eq!(refused(&[vec![1]], None, config().with_top_p(0.0)), "top_p");
    assert_eq!(refused(&[], None, config()), "prompts");
    assert_eq!(refused(&[vec![1], vec![]], None, config()), "prompts");
    assert_eq!(refused(&[vec![1, 11]], None, config()), "prompts");
    assert_eq!(refused(&[vec![1]], Some(Tensor::ones([2, 1, 8], &device)), config()), "visual");
    let nothing = Some(Tensor::full([1, 1, 8], f64::NAN, &device));
    assert_eq!(refused(&[vec![1]], nothing, config()), "logits");
}

#[test]
fn phases_that_train_nothing_are_refused() {
    let config = config();
    let field = |phase: PhaseConfig, steps| {
        let model = config.init(&Device::flex());
        phase.try_init(model, &config.tensor_layout(), steps).err().expect("refused").field
    };
    assert_eq!(field(PhaseConfig::pretrain().with_warmup_epochs(150), 1), "warmup_epochs");
    assert_eq!(field(PhaseConfig::pretrain().with_base_rate(f64::NAN), 1), "base_rate");
    assert_eq!(field(PhaseConfig::pretrain().with_weight_decay(-0.1), 1), "weight_decay");
    assert_eq!(field(PhaseConfig::pretrain().with_betas((0.9, 1.0)), 1), "betas");
    assert_eq!(field(PhaseConfig::pretrain().with_effective_batch(0), 1), "effective_batch");
    assert_eq!(field(PhaseConfig::finetune().with_min_rate(f64::INFINITY), 1), "min_rate");
    assert_eq!(field(PhaseConfig::pretrain(), 0), "steps_per_epoch");
}
