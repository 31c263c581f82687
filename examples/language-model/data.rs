//! The text: read as bytes, split into a training part and a held-out part, and drawn from at random.

use std::fs;
use std::path::Path;

use burn::prelude::*;
use gatekit_examples::tasks::held_out_from;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::checkpoint::checksum;
use crate::error::RunError;

/// What identifies a text and its split, wherever the file lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextIdentity {
    /// Length of the file.
    pub text_bytes: usize,
    /// Checksum of the file.
    pub text_checksum: String,
    /// Where the held-out part begins.
    pub held_out_from: usize,
}

/// A text and its split.
pub struct Corpus {
    bytes: Vec<u8>,
    held_out_from: usize,
}

impl Corpus {
    /// Reads `path` and checks that both parts are long enough for training sequences of `context` bytes.
    pub fn read(path: &Path, context: usize) -> Result<Self, RunError> {
        let unusable = |reason: String| RunError::Text { path: path.to_path_buf(), reason };
        let bytes = fs::read(path).map_err(|error| unusable(error.to_string()))?;
        let corpus = Self::new(bytes);
        if corpus.training().len() < context {
            return Err(unusable(format!(
                "its training part has {} bytes, and --context {context} needs at least as many",
                corpus.training().len(),
            )));
        }
        if corpus.held_out().is_empty() {
            return Err(unusable("it leaves nothing to hold out: give at least ten bytes".into()));
        }
        Ok(corpus)
    }

    /// Splits `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        let held_out_from = held_out_from(&bytes);
        Self { bytes, held_out_from }
    }

    /// The whole text.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where the held-out part begins.
    pub fn held_out_from(&self) -> usize {
        self.held_out_from
    }

    /// The part to learn from.
    pub fn training(&self) -> &[u8] {
        &self.bytes[..self.held_out_from]
    }

    /// The part to predict.
    pub fn held_out(&self) -> &[u8] {
        &self.bytes[self.held_out_from..]
    }

    /// What a checkpoint remembers of the text.
    pub fn identity(&self) -> TextIdentity {
        TextIdentity {
            text_bytes: self.bytes.len(),
            text_checksum: checksum(&self.bytes),
            held_out_from: self.held_out_from,
        }
    }

    /// The sequences of one step, `[batch_size, context]`, each from a random place of the training part.
    ///
    /// They depend on `seed` and `step` alone, so a resumed run sees what an uninterrupted one would have seen.
    pub fn batch(&self, seed: u64, step: usize, batch_size: usize, context: usize) -> TensorData {
        let text = self.training();
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&(step as u64).to_le_bytes());
        let mut random = StdRng::from_seed(key);
        let rows = (0..batch_size).flat_map(|_| {
            let start = random.random_range(0..=text.len() - context);
            &text[start..start + context]
        });
        let ids: Vec<i32> = rows.map(|&byte| i32::from(byte)).collect();
        TensorData::new(ids, [batch_size, context])
    }
}

/// Bytes as token ids, `[1, time]`.
pub fn tokens(bytes: &[u8], device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = bytes.iter().map(|&byte| i32::from(byte)).collect();
    Tensor::from_data(TensorData::new(ids, [1, bytes.len()]), device)
}

#[cfg(test)]
mod tests {
    use gatekit_examples::tasks::shakespeare;

    use super::*;

    #[test]
    fn the_shipped_text_is_split_before_twelfth_night() {
        let corpus = Corpus::read(&shakespeare(), 128).expect("the text ships with the repository");
        assert!(corpus.held_out().starts_with(b"TWELFTH NIGHT; OR, WHAT YOU WILL\n"));
        assert!(corpus.training().ends_with(b"Love's fire heats water, water cools not love.\n\n\n"));
        assert_eq!(corpus.training().len(), 962_004);
        assert_eq!(corpus.held_out().len(), 114_838);
        assert_eq!(corpus.identity().held_out_from, 962_004);
    }

    #[test]
    fn texts_that_cannot_be_used_say_why() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("text.txt");
        let reason = |result: Result<Corpus, RunError>| result.err().expect("refused").to_string();
        assert!(reason(Corpus::read(&path, 8)).contains("text.txt"));
        fs::write(&path, "twelve bytes").expect("written");
        assert!(reason(Corpus::read(&path, 16)).contains("--context 16"));
        fs::write(&path, "short").expect("written");
        assert!(reason(Corpus::read(&path, 2)).contains("nothing to hold out"));
        fs::write(&path, "twelve bytes").expect("written");
        assert!(Corpus::read(&path, 8).is_ok());
    }

    #[test]
    fn batches_depend_on_seed_and_step_alone_and_stay_in_the_training_part() {
        let corpus = Corpus::new((0..200).collect());
        let batch = |seed, step| corpus.batch(seed, step, 64, 16);
        assert_eq!(batch(1, 7), batch(1, 7));
        assert_ne!(batch(1, 7), batch(1, 8));
        assert_ne!(batch(1, 7), batch(2, 7));

        let ids: Vec<i64> = batch(1, 7).iter::<i64>().collect();
        assert!(ids.iter().all(|&id| id < 180));
        for row in ids.chunks(16) {
            assert!(row.windows(2).all(|pair| pair[1] == pair[0] + 1));
        }
    }
}
