//! Caches and generation.

use gatekit_fusion::imagebind_llm::GenerationConfig;

use super::*;

#[test]
fn every_division_of_a_sequence_gives_the_scores_of_the_whole() {
    for device in devices() {
        let model = lively(&config().with_lora_rank(2).with_bias_tuning(true), &device);
        let tokens = ids(&[&[1, 5, 3, 9, 2, 2, 7], &[1, 2, 8, 4, 6, 1, 3]], &device);
        let visual = model.visual(ramp([2, 6], 0.3, &device)).unwrap();
        for visual in [Some(visual), None] {
            let whole = model.forward(tokens.clone(), visual.clone()).unwrap();
            for cuts in [&[0, 7][..], &[0, 1, 2, 3, 4, 5, 6, 7], &[0, 3, 7], &[0, 1, 5, 6, 7]] {
                let piece = |pair: &[usize]| tokens.clone().narrow(1, pair[0], pair[1] - pair[0]);
                let (logits, mut state) = model.prefill(piece(&cuts[..2]), visual.clone()).unwrap();
                let mut pieces = vec![logits];
                for pair in cuts[1..].windows(2) {
                    let (logits, next) = model.extend(piece(pair), state).unwrap();
                    pieces.push(logits);
                    state = next;
                }
                assert_eq!((state.position(), state.batch()), (7, 2));
                assert_close(Tensor::cat(pieces, 1), whole.clone(), 2e-5);
            }
        }
    }
}

/// The likeliest tokens, by whole passes.
fn greedy(model: &ImageBindLlm, prompt: &[usize], visual: &Tensor<3>, count: usize) -> Vec<usize> {
    let device = visual.device();
    let mut tokens: Vec<i64> = prompt.iter().map(|token| *token as i64).collect();
    for _ in 0..count {
        let logits = model.forward(ids(&[&tokens], &device), Some(visual.clone())).unwrap();
        let last = values(logits.narrow(1, tokens.len() - 1, 1));
        let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        tokens.push(best as i64);
    }
    tokens[prompt.len()..].iter().map(|token| *token as usize).collect()
}

#[test]
fn prompts_of_any_lengths_are_continued_as_if_alone() {
    for device in devices() {
        let model = lively(&config(), &device);
        let prompts = [vec![1, 4, 3, 8, 2], vec![1], vec![1, 9, 9]];
        let visual = model.visual(ramp([3, 6], 0.3, &device)).unwrap();
        let config = GenerationConfig::new().with_max_new_tokens(6).with_temperature(0.0);
        let got = model.generate(&prompts, Some(visual.clone()), &config).unwrap();
        let want: Vec<Vec<usize>> = (prompts.iter().enumerate())
            .map(|(row, prompt)| greedy(&model, prompt, &visual.clone().narrow(0, row, 1), 6))
            .collect();
        assert_eq!(got, want);

        // A token that ends a row ends that row alone, and is not handed out.
        let eos = want[0][2];
        let ended = model.generate(&prompts, Some(visual), &config.with_eos_token_id(Some(eos))).unwrap();
        for (got, want) in ended.iter().zip(&want) {
            let end = want.iter().position(|token| *token == eos).unwrap_or(want.len());
            assert_eq!(got[..], want[..end]);
        }
    }
}

#[test]
fn generation_is_reproducible_and_may_be_empty() {
    for device in devices() {
        let device = device.autodiff();
        let model = lively(&config(), &device);
        let config = GenerationConfig::new().with_temperature(2.0).with_top_p(1.0).with_max_new_tokens(40);
        let draw = |config: &GenerationConfig| model.generate(&[vec![1]], None, config).unwrap();
        assert_eq!(draw(&config), draw(&config));
        assert_ne!(draw(&config), draw(&config.clone().with_seed(1)));
        assert_eq!(draw(&config.with_max_new_tokens(0)), [Vec::<usize>::new()]);
        // Cold and from a small nucleus, it is the likeliest token.
        let cold = GenerationConfig::new().with_max_new_tokens(5).with_top_p(1e-9).with_temperature(1.0);
        let hot = cold.clone().with_temperature(0.0);
        assert_eq!(draw(&cold), draw(&hot));
    }
}
