//! A corpus of random facts: every entity has one value for every relation.

use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit_examples::tasks;
use rand::RngExt;
use rand::rngs::StdRng;

/// Tokens below are bytes of ordinary text.
const WORDS: usize = 256;
/// Values that a relation can take; they are its own.
const VALUES: usize = 32;
/// "the R of E is V ."
const SENTENCE: usize = 7;

/// Facts "the R of E is V.", one token a word.
pub struct Facts {
    entities: usize,
    relations: usize,
    /// `values[entity * relations + relation]`, below [`VALUES`].
    values: Vec<usize>,
}

impl Facts {
    /// Draws the value of every relation of every entity.
    pub fn new(seed: u64, entities: usize, relations: usize) -> Self {
        let mut random = tasks::random(seed ^ 0xfac7);
        let values = (0..entities * relations).map(|_| random.random_range(0..VALUES)).collect();
        Self { entities, relations, values }
    }

    /// Number of facts.
    pub fn count(&self) -> usize {
        self.values.len()
    }

    /// Tokens of the corpus, the bytes included.
    pub fn vocabulary(&self) -> usize {
        self.value(self.relations, 0)
    }

    fn entity(&self, entity: usize) -> usize {
        WORDS + 4 + entity
    }

    fn relation(&self, relation: usize) -> usize {
        WORDS + 4 + self.entities + relation
    }

    fn value(&self, relation: usize, value: usize) -> usize {
        WORDS + 4 + self.entities + self.relations + relation * VALUES + value
    }

    /// The tokens of a fact.
    fn sentence(&self, fact: usize) -> [usize; SENTENCE] {
        let (entity, relation) = (fact / self.relations, fact % self.relations);
        let [the, of, is, stop] = [WORDS, WORDS + 1, WORDS + 2, WORDS + 3];
        let value = self.value(relation, self.values[fact]);
        [the, self.relation(relation), of, self.entity(entity), is, value, stop]
    }

    /// Random facts one after the other, `[size, time]`.
    pub fn batch(&self, size: usize, time: usize, random: &mut StdRng, device: &Device) -> Tensor<2, Int> {
        let mut tokens = Vec::with_capacity(size * (time + SENTENCE));
        for row in 0..size {
            while tokens.len() < (row + 1) * time {
                tokens.extend(self.sentence(random.random_range(0..self.count())));
            }
            tokens.truncate((row + 1) * time);
        }
        to_tensor(&tokens, [size, time], device)
    }

    /// Facts, each alone, `[count, 7]`, and labels that ask for the values alone.
    pub fn questions(
        &self,
        facts: std::ops::Range<usize>,
        device: &Device,
    ) -> (Tensor<2, Int>, Tensor<2, Int>) {
        let shape = [facts.len(), SENTENCE];
        let tokens: Vec<usize> = facts.flat_map(|fact| self.sentence(fact)).collect();
        let labels = tokens.chunks(SENTENCE).flat_map(|sentence| {
            (0..SENTENCE).map(|place| if place == SENTENCE - 2 { sentence[place] as i64 } else { -100 })
        });
        let labels = TensorData::new(labels.collect(), shape);
        (to_tensor(&tokens, shape, device), Tensor::from_data(labels, device))
    }
}

fn to_tensor<const D: usize>(tokens: &[usize], shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    let tokens: Vec<i64> = tokens.iter().map(|&token| token as i64).collect();
    Tensor::from_data(TensorData::new(tokens, shape), device)
}
