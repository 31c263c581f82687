//! The model: decoding, padding, the mean of the experts, spread, files.

use gatekit_core::checkpoint::{PretrainedConfig, load_pretrained, named_parameters, save_pretrained};
use gatekit_experts::thor::ExpertSpread;
use serde_json::json;

use super::*;

fn models() -> Vec<ThorConfig> {
    vec![
        small(),
        small().with_normalize_before(true),
        small().with_expert_layers(Some(vec![1])).with_num_heads(4),
        // Nothing to draw.
        small().with_expert_layers(Some(Vec::new())).with_decoder_layers(1),
    ]
}

#[test]
fn decoding_keeps_its_experts_and_equals_the_whole_target() {
    for device in devices() {
        for config in models() {
            let model = lively(&config, &device);
            let source = ids(&[&[3, 4, 5, 6], &[7, 8, 1, 1]], &device);
            let target = ids(&[&[2, 9, 10, 11, 3], &[2, 4, 4, 5, 12]], &device);
            for level in LEVELS {
                let experts = model.draw(&mut draw(level, 5), 2, 4, 5);
                let whole = model.forward(source.clone(), target.clone(), &experts).unwrap();
                let mut state = model.start(source.clone(), &experts).unwrap();
                for t in 0..5 {
                    assert_eq!(state.position(), t);
                    let token = target.clone().narrow(1, t, 1).squeeze_dim::<1>(1);
                    let (logits, next) = model.step(token, state).unwrap();
                    state = next.to_device(&device);
                    let want = whole.clone().narrow(1, t, 1).squeeze_dim::<2>(1);
                    assert_close(&values(logits), &values(want), 2e-5);
                }
            }
        }
    }
}

#[test]
fn greedy_takes_the_likeliest_token_until_the_end() {
    let device = Device::flex();
    let model = lively(&small(), &device);
    let source = ids(&[&[3, 4, 5], &[6, 7, 1], &[8, 1, 1]], &device);
    for level in LEVELS {
        let experts = model.draw(&mut draw(level, 1), 3, 3, 7);
        let open = model.greedy(source.clone(), 2, 99, 7, &experts).unwrap();
        assert!(open.iter().all(|row| row.len() == 7), "99 is no token, so nothing ends");
        let input: Vec<Vec<i64>> =
            open.iter().map(|row| std::iter::once(2).chain(row[..6].iter().copied()).collect()).collect();
        let input = ids(&input.iter().map(Vec::as_slice).collect::<Vec<_>>(), &device);
        let logits = model.forward(source.clone(), input, &experts).unwrap();
        let best: Vec<i64> = logits.argmax(2).into_data().iter::<i64>().collect();
        assert_eq!(best, open.concat());
        // With the third token of the first row as the end, that row is shorter.
        let end = open[0][2];
        let closed = model.greedy(source.clone(), 2, end, 7, &experts).unwrap();
        for (open, closed) in open.iter().zip(closed) {
            let stop = open.iter().position(|token| *token == end).unwrap_or(7);
            assert_eq!(closed, open[..stop]);
        }
    }
    let none = Tensor::<2, Int>::zeros([0, 3], &device);
    assert!(model.greedy(none, 2, 3, 4, &model.mean()).unwrap().is_empty());
    assert_eq!(model.greedy(source, 2, 3, 0, &model.mean()).unwrap(), vec![Vec::<i64>::new(); 3]);
}

#[test]
fn padding_changes_nothing() {
    for device in devices() {
        for config in models() {
            let model = lively(&config, &device);
            let experts = model.draw(&mut draw(ExpertLevel::Sentence, 2), 1, 3, 2);
            let logits = |source: &[i64], target: &[i64]| {
                let (source, target) = (ids(&[source], &device), ids(&[target], &device));
                values(model.forward(source, target, &experts).unwrap())
            };
            let short = logits(&[3, 4, 5], &[2, 6]);
            let padded = logits(&[3, 4, 5, 1, 1], &[2, 6, 1]);
            assert_close(&padded[..short.len()], &short, 2e-5);
        }
    }
}

#[test]
fn experts_matter_and_their_mean_is_the_same_every_time() {
    let device = Device::flex();
    let model = lively(&small(), &device);
    let (source, target) = (ids(&[&[3, 4, 5]], &device), ids(&[&[2, 6, 7]], &device));
    let mut draw = draw(ExpertLevel::Token, 0);
    let mut pass = || {
        let experts = model.draw(&mut draw, 1, 3, 3);
        model.forward(source.clone(), target.clone(), &experts).unwrap()
    };
    let (a, b) = (pass(), pass());
    assert_ne!(values(a.clone()), values(b.clone()));
    let spread = ExpertSpread::of([a.clone(), b], None);
    assert!(spread.symmetric_kl > 0.0 && (0.0..=1.0).contains(&spread.disagreement), "{spread:?}");
    let same = ExpertSpread::of([a.clone(), a], None);
    assert_eq!(same, ExpertSpread { symmetric_kl: 0.0, disagreement: 0.0 });
    let mean = || values(model.mean_expert(source.clone(), target.clone()).unwrap());
    assert_eq!(mean(), mean());
    // With one expert alone, the mean is that expert.
    let alone = lively(&small().with_num_experts(1), &device);
    let mut draw = ExpertDraw::new(1, ExpertLevel::Pass, 0).unwrap();
    let experts = alone.draw(&mut draw, 1, 3, 3);
    let drawn = values(alone.forward(source.clone(), target.clone(), &experts).unwrap());
    assert_eq!(values(alone.mean_expert(source.clone(), target.clone()).unwrap()), drawn);
    let spread = alone.spread(source, target.clone(), &target, &mut draw).unwrap();
    assert_eq!(spread.symmetric_kl, 0.0);
}

#[test]
fn spread_counts_real_positions_alone() {
    let device = Device::flex();
    let a = Tensor::<3>::from_data([[[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]]], &device);
    let b = Tensor::<3>::from_data([[[0.0, 2.0], [0.0, 3.0], [0.0, 9.0]]], &device);
    let mask = Tensor::from_data([[true, true, false]], &device);
    let spread = ExpertSpread::of([a, b], Some(&mask));
    let share = 1.0 / (1.0 + (-2f64).exp());
    let want = 2.0 * (2.0 * share - 1.0) * 2.0 / 2.0;
    assert!((spread.symmetric_kl - want).abs() < 1e-5, "{spread:?}, want {want}");
    assert_eq!(spread.disagreement, 0.5);
}

#[test]
fn files_have_the_released_names_and_read_back() {
    let device = Device::flex();
    let model = lively(&small(), &device);
    let names: Vec<String> = small().layout().to_published(named_parameters(&model)).into_keys().collect();
    for name in [
        "encoder.embed_tokens.weight",
        "encoder.layers.0.fc1.3.weight",
        "encoder.layers.0.fc2.0.bias",
        "encoder.layers.1.fc1.weight",
        "encoder.layers.1.self_attn.out_proj.bias",
        "decoder.layers.2.fc1.0.weight",
        "decoder.layers.1.fc2.bias",
        "decoder.layers.0.encoder_attn.k_proj.weight",
        "decoder.layers.0.encoder_attn_layer_norm.weight",
        "decoder.layers.0.final_layer_norm.bias",
    ] {
        assert!(names.iter().any(|known| known == name), "{name} is missing among {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("ffn") || name.contains("layer_norm.gamma")));

    let folder = tempfile::tempdir().unwrap();
    for config in models() {
        let model = lively(&config, &device);
        save_pretrained(folder.path(), &config, &model, None).unwrap();
        let (read, loaded) = load_pretrained::<ThorConfig>(folder.path(), &device).unwrap();
        assert_eq!(read.to_string(), config.to_string());
        let (source, target) = (ids(&[&[3, 4, 5]], &device), ids(&[&[2, 6]], &device));
        let logits = |model: &ThorModel| values(model.mean_expert(source.clone(), target.clone()).unwrap());
        assert_eq!(logits(&loaded), logits(&model));
    }
    let mut json = small().to_published();
    json["level"] = json!("word");
    assert_eq!(ThorConfig::from_published(&json).unwrap_err().field, "level");
    json["model_type"] = json!("transformer");
    assert_eq!(ThorConfig::from_published(&json).unwrap_err().field, "model_type");
}
