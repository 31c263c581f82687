//! Configurations and sequences that are refused; folders.

use super::*;

#[test]
fn unusable_configurations_name_the_field() {
    let device = Device::flex();
    for (field, config) in [
        ("vocab_size", GamConfig::new(0, 12, 2)),
        ("embed_dim", GamConfig::new(37, 0, 2)),
        ("embed_dim", GamConfig::new(37, usize::MAX / 2, 2)),
        ("num_layers", GamConfig::new(37, 12, 0)),
        ("num_layers", GamConfig::new(37, 12, usize::MAX)),
        ("block_size", small().with_block_size(0)),
        ("num_memory_slots", small().with_num_memory_slots(0)),
        ("conv_kernel_size", small().with_conv_kernel_size(0)),
        ("dropout", small().with_dropout(1.0)),
        ("dropout", small().with_dropout(f64::NAN)),
    ] {
        let error = config.try_init(&device).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
    let block = GamBlockConfig::new(GamMixerConfig::new(12)).with_dropout(-1.0);
    assert_eq!(block.try_init(&device).unwrap_err().field, "dropout");
}

#[test]
#[should_panic(expected = "input `input_ids`: got 65 tokens, need at most 64")]
fn a_sequence_longer_than_the_positions_panics() {
    let device = Device::flex();
    small().init(&device).forward(tokens(1, 65, &device), None);
}

#[test]
#[should_panic(expected = "got 1 tokens after 64, 65 together, need at most 64")]
fn a_stream_longer_than_the_positions_panics() {
    let device = Device::flex();
    let model = small().init(&device);
    let (_, state) = in_pieces(&model, &tokens(1, 64, &device), &[60, 4], model.empty_state(1, &device));
    model.step(Tensor::from_data([1], &device), state);
}

#[test]
#[should_panic(expected = "`input_ids` holds no token, shape [1, 0]")]
fn a_sequence_of_nothing_panics() {
    let device = Device::flex();
    small().init(&device).forward(tokens(1, 0, &device), None);
}

#[test]
fn a_saved_model_is_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    for device in devices() {
        for config in models() {
            let model = lively(&config, &device);
            save_pretrained(folder.path(), &config, &model, None).unwrap();
            let (read, loaded) = load_pretrained::<GamConfig>(folder.path(), &device).unwrap();
            assert_eq!(read.to_string(), config.to_string());
            let ids = tokens(2, 9, &device);
            assert_eq!(values(&loaded.forward(ids.clone(), None)), values(&model.forward(ids, None)));
        }
    }
    let mut json = small().to_published();
    json["fusion"] = json!("both");
    assert_eq!(GamConfig::from_published(&json).unwrap_err().field, "fusion");
    json["model_type"] = json!("gla");
    assert_eq!(GamConfig::from_published(&json).unwrap_err().field, "model_type");
}
