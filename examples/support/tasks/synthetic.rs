//! Tasks that ask for one ability each.

use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit::sequence::lm::IGNORED_LABEL;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

/// Multi-query associative recall: pairs of a key and a value, then every key again, at random places among filler,
/// each followed by its value, which is asked.
///
/// Token 0 is filler; the lower half of the others are keys, the upper half values. Keys differ within a sequence.
/// Arora et al. 2023, "Zoology: Measuring and Improving Recall in Efficient Language Models" (arXiv 2312.04927).
#[derive(Clone, Debug, PartialEq)]
pub struct Recall {
    /// Pairs to remember; at most `(vocabulary - 1) / 2`.
    pub pairs: usize,
    /// Number of tokens.
    pub vocabulary: usize,
    /// Tokens of a sequence; at least `4 * pairs`.
    pub length: usize,
}

impl Recall {
    /// `size` sequences: inputs and labels `[size, length]`.
    ///
    /// # Panics
    ///
    /// When the pairs fit neither the vocabulary nor the length.
    pub fn batch(
        &self,
        size: usize,
        random: &mut StdRng,
        device: &Device,
    ) -> (Tensor<2, Int>, Tensor<2, Int>) {
        let Self { pairs, vocabulary, length } = *self;
        let keys = vocabulary.saturating_sub(1) / 2;
        assert!((1..=keys).contains(&pairs), "Recall: {pairs} pairs of {keys} keys");
        assert!(length >= 4 * pairs, "Recall: length {length} for {pairs} pairs, need {}", 4 * pairs);
        let mut all_keys: Vec<i64> = (1..=keys as i64).collect();
        let mut rows = Rows::new(size, length);
        for row in 0..size {
            let (chosen, _) = all_keys.partial_shuffle(random, pairs);
            let mut queries: Vec<(i64, i64)> = (chosen.iter())
                .map(|key| (*key, random.random_range(keys as i64 + 1..vocabulary as i64)))
                .collect();
            for (index, (key, value)) in queries.iter().enumerate() {
                rows.put(row, 2 * index, *key);
                rows.put(row, 2 * index + 1, *value);
            }
            queries.shuffle(random);
            // A query takes two places; the rest is filler, spread at random before, between and after.
            let spare = length - 4 * pairs;
            for (index, (query, gap)) in queries.iter().zip(gaps(pairs, spare, random)).enumerate() {
                let at = 2 * pairs + 2 * index + gap;
                rows.put(row, at, query.0);
                rows.ask(row, at + 1, query.1);
            }
        }
        rows.tensors(device)
    }
}

/// How much of `spare` stands before each of `count` things: ascending, uniformly drawn.
fn gaps(count: usize, spare: usize, random: &mut impl Rng) -> Vec<usize> {
    let mut gaps: Vec<usize> = (0..count).map(|_| random.random_range(0..=spare)).collect();
    gaps.sort_unstable();
    gaps
}

/// Random tokens, a separator, and the same tokens in reverse, which are asked.
///
/// Token 0 is the separator. A sequence has `2 * length + 1` tokens. From the synthetic tasks of Kimi Team 2025,
/// "Kimi Linear" (arXiv 2510.26692).
#[derive(Clone, Debug, PartialEq)]
pub struct Palindrome {
    /// Number of tokens, the separator included; at least 2.
    pub vocabulary: usize,
    /// Tokens to give back.
    pub length: usize,
}

impl Palindrome {
    /// `size` sequences: inputs and labels `[size, 2 * length + 1]`.
    ///
    /// # Panics
    ///
    /// When there is nothing to give back or no token to choose.
    pub fn batch(
        &self,
        size: usize,
        random: &mut StdRng,
        device: &Device,
    ) -> (Tensor<2, Int>, Tensor<2, Int>) {
        let Self { vocabulary, length } = *self;
        assert!(vocabulary >= 2 && length >= 1, "Palindrome: vocabulary {vocabulary}, length {length}");
        let time = 2 * length + 1;
        let mut rows = Rows::new(size, time);
        for row in 0..size {
            for at in 0..length {
                let token = random.random_range(1..vocabulary as i64);
                rows.put(row, at, token);
                rows.ask(row, time - 1 - at, token);
            }
        }
        rows.tensors(device)
    }
}

/// Sequences in the making: filler that asks nothing, until told otherwise.
struct Rows {
    time: usize,
    inputs: Vec<i64>,
    labels: Vec<i64>,
}

impl Rows {
    fn new(size: usize, time: usize) -> Self {
        Self { time, inputs: vec![0; size * time], labels: vec![IGNORED_LABEL; size * time] }
    }

    fn put(&mut self, row: usize, at: usize, token: i64) {
        self.inputs[row * self.time + at] = token;
    }

    fn ask(&mut self, row: usize, at: usize, token: i64) {
        self.put(row, at, token);
        self.labels[row * self.time + at] = token;
    }

    fn tensors(self, device: &Device) -> (Tensor<2, Int>, Tensor<2, Int>) {
        let shape = [self.inputs.len() / self.time, self.time];
        let tensor = |values| Tensor::from_data(TensorData::new(values, shape), device);
        (tensor(self.inputs), tensor(self.labels))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::tasks;

    fn rows(batch: (Tensor<2, Int>, Tensor<2, Int>)) -> Vec<(Vec<i64>, Vec<i64>)> {
        let time = batch.0.dims()[1];
        let values = |tensor: Tensor<2, Int>| tensor.into_data().iter::<i64>().collect::<Vec<_>>();
        let (inputs, labels) = (values(batch.0), values(batch.1));
        inputs.chunks(time).zip(labels.chunks(time)).map(|(i, l)| (i.to_vec(), l.to_vec())).collect()
    }

    #[test]
    fn every_key_is_asked_once_and_its_value_is_what_came_first() {
        let task = Recall { pairs: 5, vocabulary: 32, length: 31 };
        for (inputs, labels) in rows(task.batch(50, &mut tasks::random(3), &Device::default())) {
            let known: BTreeMap<i64, i64> = inputs[..10].chunks(2).map(|pair| (pair[0], pair[1])).collect();
            assert_eq!(known.len(), 5, "keys differ");
            assert!(known.iter().all(|(key, value)| (1..=15).contains(key) && (16..32).contains(value)));
            let mut asked: Vec<i64> = Vec::new();
            for at in 0..31 {
                if labels[at] != IGNORED_LABEL {
                    assert!(at >= 10 && labels[at] == inputs[at]);
                    assert_eq!(known[&inputs[at - 1]], labels[at]);
                    asked.push(inputs[at - 1]);
                }
            }
            asked.sort_unstable();
            assert_eq!(asked, known.keys().copied().collect::<Vec<_>>());
            assert_eq!(inputs.iter().filter(|token| **token == 0).count(), 31 - 20);
        }
    }

    #[test]
    fn a_palindrome_reads_the_same_backwards() {
        let task = Palindrome { vocabulary: 9, length: 6 };
        for (inputs, labels) in rows(task.batch(20, &mut tasks::random(1), &Device::default())) {
            assert!(inputs.iter().eq(inputs.iter().rev()));
            assert_eq!(inputs[6], 0);
            assert!(inputs[..6].iter().all(|token| (1..9).contains(token)));
            assert_eq!(labels[7..], inputs[7..]);
            assert!(labels[..7].iter().all(|label| *label == IGNORED_LABEL));
        }
    }

    #[test]
    fn the_seed_decides() {
        let task = Recall { pairs: 3, vocabulary: 16, length: 20 };
        let batch = |seed| rows(task.batch(4, &mut tasks::random(seed), &Device::default()));
        assert_eq!(batch(1), batch(1));
        assert_ne!(batch(1), batch(2));
    }

    #[test]
    #[should_panic(expected = "need 24")]
    fn pairs_that_do_not_fit_panic() {
        let task = Recall { pairs: 6, vocabulary: 32, length: 23 };
        task.batch(1, &mut tasks::random(0), &Device::default());
    }
}
