//! Sentences to learn: reversed, and every token replaced by its cipher.

use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit::experts::thor::{ThorBatch, ThorModel};
use gatekit_examples::tasks;
use rand::RngExt;
use rand::seq::SliceRandom;

pub const PADDING: i64 = 1;
/// Begins and ends a sentence.
pub const MARK: i64 = 2;
const LETTERS: i64 = 16;
pub const VOCABULARY: usize = 3 + LETTERS as usize;
const SHORTEST: usize = 3;
const LONGEST: usize = 6;

/// Sentences of 3 to 6 letters; the target is the source in reverse under a secret permutation of the letters.
pub struct Cipher {
    training: Vec<Vec<i64>>,
    validation: Vec<Vec<i64>>,
    secret: Vec<i64>,
}

/// Sources, the targets one place later, and the targets.
#[derive(Clone)]
pub struct Pairs {
    pub source: Tensor<2, Int>,
    pub target_input: Tensor<2, Int>,
    pub target: Tensor<2, Int>,
}

impl Cipher {
    pub fn new(training: usize, validation: usize, seed: u64) -> Self {
        let mut random = tasks::random(seed);
        let mut secret: Vec<i64> = (3..3 + LETTERS).collect();
        secret.shuffle(&mut random);
        let mut sentences = |count| {
            let mut sentence = || -> Vec<i64> {
                let length = random.random_range(SHORTEST..=LONGEST);
                (0..length).map(|_| random.random_range(3..3 + LETTERS)).collect()
            };
            (0..count).map(|_| sentence()).collect()
        };
        Self { training: sentences(training), validation: sentences(validation), secret }
    }

    fn translated(&self, sentence: &[i64]) -> Vec<i64> {
        sentence.iter().rev().map(|letter| self.secret[(letter - 3) as usize]).collect()
    }

    fn pairs(&self, sentences: &[&Vec<i64>], device: &Device) -> Pairs {
        let tensor = |rows: Vec<Vec<i64>>| {
            let flat = rows.into_iter().flat_map(|mut row| {
                row.resize(LONGEST + 1, PADDING);
                row
            });
            Tensor::from_data(TensorData::new(flat.collect(), [sentences.len(), LONGEST + 1]), device)
        };
        let targets: Vec<Vec<i64>> = sentences.iter().map(|sentence| self.translated(sentence)).collect();
        let ended = |row: &[i64]| row.iter().copied().chain([MARK]).collect::<Vec<i64>>();
        let begun = |row: &[i64]| [MARK].into_iter().chain(row.iter().copied()).collect::<Vec<i64>>();
        Pairs {
            source: tensor(sentences.iter().map(|sentence| ended(sentence)).collect()),
            target_input: tensor(targets.iter().map(|row| begun(row)).collect()),
            target: tensor(targets.iter().map(|row| ended(row)).collect()),
        }
    }

    /// Random sentences to learn from.
    pub fn batch(&self, size: usize, random: &mut rand::rngs::StdRng, device: &Device) -> Pairs {
        let chosen: Vec<&Vec<i64>> =
            (0..size).map(|_| &self.training[random.random_range(0..self.training.len())]).collect();
        self.pairs(&chosen, device)
    }

    /// Sentences to judge by.
    pub fn held_out(&self, device: &Device) -> Pairs {
        self.pairs(&self.validation.iter().collect::<Vec<_>>(), device)
    }

    /// Share of the held-out sentences that `decoded` has letter for letter.
    pub fn right(&self, decoded: &[Vec<i64>]) -> f64 {
        let right =
            self.validation.iter().zip(decoded).filter(|(source, got)| self.translated(source) == **got);
        right.count() as f64 / self.validation.len() as f64
    }
}

impl Pairs {
    pub fn checked(self, model: &ThorModel) -> ThorBatch {
        ThorBatch::new(self.source, self.target_input, self.target, model)
            .expect("the sentences fit the model")
    }
}
