//! Sampling and generation.

mod support;

use burn::tensor::{Device, Int, Tensor};
use gatekit_core::ModuleConfig;
use gatekit_sequence::generate::{GenerateError, Sampler, generate_from};
use gatekit_sequence::lm::{CausalLm, StreamingLm};
use gatekit_sequence::{GenerateConfig, generate};
use support::*;

fn greedy(count: usize) -> GenerateConfig {
    GenerateConfig::new(count).with_temperature(0.0)
}

fn collect(tokens: impl Iterator<Item = Result<usize, gatekit_core::InputError>>) -> Vec<usize> {
    tokens.map(Result::unwrap).collect()
}

#[test]
fn greedy_generation_repeats_the_likeliest_token() {
    for device in devices() {
        let model = lively(&variants()[1], &device);
        let got = collect(generate(&model, &[3, 1, 4], &greedy(6)).unwrap());
        let mut sequence = vec![3usize, 1, 4];
        for _ in 0..6 {
            let ids: Vec<i64> = sequence.iter().map(|&token| token as i64).collect();
            let ids = Tensor::<1, Int>::from_data(&ids[..], &device).unsqueeze_dim::<2>(0);
            let logits = values(&model.forward(ids, None));
            let last = &logits[logits.len() - 37..];
            sequence.push((0..37).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap());
        }
        assert_eq!(got, sequence[3..]);
    }
}

#[test]
fn a_model_in_training_generates_the_same() {
    let device = Device::flex();
    let model = lively(&plain(), &device);
    let training = lively(&plain(), &device.clone().autodiff());
    assert_eq!(
        collect(generate(&training, &[3, 1, 4], &greedy(6)).unwrap()),
        collect(generate(&model, &[3, 1, 4], &greedy(6)).unwrap())
    );
    // Its state can be continued, too.
    let ids = Tensor::from_data([[3, 1, 4]], &device.clone().autodiff());
    let (_, state) = training.prefill(ids, training.empty_state(1, &device.autodiff()));
    assert_eq!(
        collect(generate_from(&training, &[8, 2], state, &greedy(6)).unwrap()),
        collect(generate(&model, &[3, 1, 4, 8, 2], &greedy(6)).unwrap())
    );
}

#[test]
fn the_prompt_may_be_read_in_pieces() {
    let device = Device::flex();
    let model = lively(&plain(), &device);
    let prompt: Vec<usize> = (0..20).map(|i| (i * 5) % 37).collect();
    let config = GenerateConfig::new(8).with_seed(5);
    let want = collect(generate(&model, &prompt, &config).unwrap());
    for size in [1, 7, 20] {
        assert_eq!(
            collect(generate(&model, &prompt, &config.clone().with_prefill_size(size)).unwrap()),
            want
        );
    }
}

#[test]
fn generation_stops() {
    let device = Device::flex();
    let model = lively(&plain(), &device);
    let tokens = collect(generate(&model, &[3], &greedy(9)).unwrap());
    assert_eq!(tokens.len(), 9);
    assert!(generate(&model, &[3], &greedy(0)).unwrap().next().is_none());
    let end = tokens[4];
    let first = tokens.iter().position(|&token| token == end).unwrap();
    let config = greedy(9).with_eos_token_id(Some(end));
    assert_eq!(collect(generate(&model, &[3], &config).unwrap()), tokens[..=first]);
}

#[test]
fn a_generation_can_be_continued() {
    let device = Device::flex();
    let model = lively(&variants()[1], &device);
    let want = collect(generate(&model, &[3, 1, 4, 8, 2], &greedy(5)).unwrap());

    let mut first = generate(&model, &[3, 1, 4], &greedy(3)).unwrap();
    let spoken = first.next().unwrap().unwrap();
    let state = first.into_state();
    let all = [3, 1, 4, spoken, 8, 2];
    let continued = collect(generate_from(&model, &all[4..], state, &greedy(5)).unwrap());
    assert_eq!(continued, collect(generate(&model, &all, &greedy(5)).unwrap()));

    let state = generate(&model, &[3, 1, 4], &greedy(0)).unwrap().into_state();
    assert_eq!(collect(generate_from(&model, &[8, 2], state, &greedy(5)).unwrap()), want);
}

#[test]
fn the_same_seed_gives_the_same_tokens() {
    let device = Device::flex();
    let model = plain().init(&device);
    let config = GenerateConfig::new(30).with_seed(11);
    let first = collect(generate(&model, &[3], &config).unwrap());
    assert_eq!(collect(generate(&model, &[3], &config).unwrap()), first);
    assert_ne!(collect(generate(&model, &[3], &config.with_seed(12)).unwrap()), first);
}

/// How often each token is drawn.
fn shares(config: GenerateConfig, logits: &[f32]) -> Vec<f64> {
    let mut sampler = Sampler::new(&config).unwrap();
    let draws = 20_000;
    let mut counts = vec![0.0; logits.len()];
    for _ in 0..draws {
        counts[sampler.sample(logits).unwrap()] += 1.0;
    }
    counts.iter().map(|count| count / f64::from(draws)).collect()
}

#[test]
fn draws_follow_the_distribution() {
    let probabilities = [0.1f64, 0.4, 0.05, 0.3, 0.15];
    let logits: Vec<f32> = probabilities.iter().map(|p| p.ln() as f32 + 3.0).collect();
    let config = GenerateConfig::new(1);
    let compare = |config, want: [f64; 5]| {
        for (got, want) in shares(config, &logits).into_iter().zip(want) {
            // Five standard deviations of the share; what is excluded is never drawn.
            let bound = 5.0 * (want * (1.0 - want) / 20_000.0f64).sqrt();
            assert!((got - want).abs() <= bound, "{got} instead of {want}");
        }
    };
    compare(config.clone(), probabilities);
    let squares: f64 = probabilities.iter().map(|p| p * p).sum();
    compare(config.clone().with_temperature(0.5), probabilities.map(|p| p * p / squares));
    compare(config.clone().with_top_k(Some(2)), [0.0, 0.4 / 0.7, 0.0, 0.3 / 0.7, 0.0]);
    compare(config.clone().with_top_k(Some(9)), probabilities);
    compare(config.clone().with_top_p(Some(0.75)), [0.0, 0.4 / 0.85, 0.0, 0.3 / 0.85, 0.15 / 0.85]);
    compare(config.clone().with_top_p(Some(1e-9)), [0.0, 1.0, 0.0, 0.0, 0.0]);
    compare(config.with_top_k(Some(2)).with_top_p(Some(0.5)), [0.0, 1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn a_tiny_temperature_is_greedy_and_stays_finite() {
    let config = GenerateConfig::new(1).with_temperature(1e-300);
    assert_eq!(shares(config, &[1.0, 2.0, 2.5]), [0.0, 0.0, 1.0]);
    assert_eq!(shares(greedy(1), &[2.5, 1.0, 2.5]), [1.0, 0.0, 0.0], "the first of equals");
    let excluded = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
    assert_eq!(shares(GenerateConfig::new(1), &excluded), [0.0, 1.0, 0.0]);
}

#[test]
fn unusable_logits_are_errors() {
    let mut sampler = Sampler::new(&GenerateConfig::new(1)).unwrap();
    for logits in [&[0.0, f32::NAN][..], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY], &[]] {
        assert_eq!(sampler.sample(logits).unwrap_err().field, "logits");
    }
}

#[test]
fn unusable_arguments_are_errors() {
    let device = Device::flex();
    let model = plain().init(&device);
    let config = GenerateConfig::new(3);
    for (field, config) in [
        ("temperature", config.clone().with_temperature(-1.0)),
        ("temperature", config.clone().with_temperature(f64::NAN)),
        ("top_k", config.clone().with_top_k(Some(0))),
        ("top_p", config.clone().with_top_p(Some(0.0))),
        ("top_p", config.clone().with_top_p(Some(1.5))),
        ("top_p", config.clone().with_top_p(Some(f64::NAN))),
        ("prefill_size", config.clone().with_prefill_size(0)),
    ] {
        match generate(&model, &[1], &config).err() {
            Some(GenerateError::Config(error)) => assert_eq!(error.field, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    for prompt in [&[][..], &[1, 37]] {
        match generate(&model, prompt, &config).err() {
            Some(GenerateError::Input(error)) => assert_eq!(error.field, "prompt"),
            other => panic!("{other:?}"),
        }
    }
    match generate_from(&model, &[1], model.empty_state(2, &device), &config).err() {
        Some(GenerateError::Input(error)) => assert_eq!(error.field, "state.layers.0.recurrent"),
        other => panic!("{other:?}"),
    }
}
