//! Bytes of a text.

use std::f64::consts::LN_2;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit::sequence::CausalLm;
use gatekit::sequence::lm::Targets;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::error::ExampleError;

/// Windows that [`Corpus::bits_per_byte`] computes at a time.
const WINDOWS: usize = 16;

/// The text that ships with the repository.
pub fn shakespeare() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/shakespeare.txt")
}

/// Where a text's held-out part begins: at the line that opens Twelfth Night after the Sonnets in the text that ships
/// here, before the last tenth in any other.
pub fn held_out_from(bytes: &[u8]) -> usize {
    let line_starting = |text: &[u8], from: usize| {
        let mut at_line = from == 0;
        (from..bytes.len()).find(|&position| {
            let found = at_line && bytes[position..].starts_with(text);
            at_line = bytes[position] == b'\n';
            found
        })
    };
    line_starting(b"THE SONNETS", 0)
        .and_then(|sonnets| line_starting(b"TWELFTH NIGHT", sonnets))
        .unwrap_or(bytes.len() - bytes.len() / 10)
}

/// A text as bytes, one token each (a vocabulary of 256), with a part to learn from and a held-out part.
#[derive(Clone, Debug)]
pub struct Corpus {
    training: Vec<u8>,
    held_out: Vec<u8>,
}

impl Corpus {
    /// Number of tokens.
    pub const VOCABULARY: usize = 256;

    /// The text that ships with the repository.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn shakespeare() -> Result<Self, ExampleError> {
        Self::read(shakespeare())
    }

    /// Another text.
    ///
    /// # Errors
    ///
    /// [`ExampleError::Io`] for a file that cannot be read, [`ExampleError::Unusable`] for one of less than 100 bytes.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ExampleError> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(ExampleError::io(path))?;
        if bytes.len() < 100 {
            return Err(ExampleError::unusable(path, format!("{} bytes, need at least 100", bytes.len())));
        }
        Ok(Self::new(bytes))
    }

    /// Splits `bytes`; see [`held_out_from`].
    pub fn new(mut training: Vec<u8>) -> Self {
        let held_out = training.split_off(held_out_from(&training));
        Self { training, held_out }
    }

    /// The part to learn from.
    pub fn training(&self) -> &[u8] {
        &self.training
    }

    /// The part to judge by.
    pub fn held_out(&self) -> &[u8] {
        &self.held_out
    }

    /// `size` windows of `time` bytes from random places of the training part, `[size, time]`: inputs and labels are
    /// the same, every byte is asked.
    ///
    /// # Panics
    ///
    /// When the training part is shorter than `time`.
    pub fn batch(
        &self,
        size: usize,
        time: usize,
        random: &mut StdRng,
        device: &Device,
    ) -> (Tensor<2, Int>, Tensor<2, Int>) {
        let text = &self.training;
        assert!(text.len() >= time, "Corpus: windows of {time} bytes of {}", text.len());
        let starts = (0..size).map(|_| random.random_range(0..=text.len() - time));
        let ids = windows(text, starts.collect(), time, device);
        (ids.clone(), ids)
    }

    /// `size` windows of `time` bytes from the held-out part, evenly spaced and always the same.
    ///
    /// # Panics
    ///
    /// When the held-out part is shorter than `time`.
    pub fn validation(&self, size: usize, time: usize, device: &Device) -> (Tensor<2, Int>, Tensor<2, Int>) {
        let ids = windows(&self.held_out, self.validation_starts(size, time), time, device);
        (ids.clone(), ids)
    }

    /// Mean bits per byte of `model` on [`validation`](Self::validation) windows: the first byte of a window is given,
    /// the others are predicted.
    ///
    /// # Panics
    ///
    /// As [`validation`](Self::validation), and when the model's vocabulary has less than 256 tokens.
    pub fn bits_per_byte<M: CausalLm>(&self, model: &M, size: usize, time: usize, device: &Device) -> f64 {
        let (mut nats, mut count) = (0.0, 0);
        for starts in self.validation_starts(size, time).chunks(WINDOWS) {
            let ids = windows(&self.held_out, starts.to_vec(), time, device);
            let targets = Targets::new(&ids.to_data(), model.vocab_size(), device)
                .unwrap_or_else(|error| panic!("{error}"));
            let logits = model.forward(ids, None);
            count += targets.count();
            nats += targets.negative_log_likelihood(logits).sum().into_scalar::<f64>();
        }
        nats / count as f64 / LN_2
    }

    fn validation_starts(&self, size: usize, time: usize) -> Vec<usize> {
        let text = self.held_out.len();
        assert!(text >= time, "Corpus: windows of {time} bytes of {text}");
        (0..size).map(|index| index * (text - time) / size.max(2).saturating_sub(1)).collect()
    }
}

fn windows(text: &[u8], starts: Vec<usize>, time: usize, device: &Device) -> Tensor<2, Int> {
    let ids = starts.iter().flat_map(|&start| &text[start..start + time]);
    let ids: Vec<i64> = ids.map(|&byte| i64::from(byte)).collect();
    Tensor::from_data(TensorData::new(ids, [starts.len(), time]), device)
}

#[cfg(test)]
mod tests {
    use gatekit::core::ModuleConfig;
    use gatekit::sequence::GlaConfig;

    use super::*;
    use crate::tasks;

    fn values(ids: Tensor<2, Int>) -> Vec<i64> {
        ids.into_data().iter::<i64>().collect()
    }

    #[test]
    fn windows_are_stretches_of_their_part() {
        let corpus = Corpus::new((0..200).collect());
        assert_eq!((corpus.training().len(), corpus.held_out().len()), (180, 20));
        let (inputs, labels) = corpus.batch(64, 16, &mut tasks::random(1), &Device::default());
        let inputs = values(inputs);
        assert_eq!(inputs, values(labels));
        for row in inputs.chunks(16) {
            assert!(row.iter().all(|id| *id < 180) && row.windows(2).all(|pair| pair[1] == pair[0] + 1));
        }
        let (inputs, _) = corpus.validation(3, 10, &Device::default());
        let firsts: Vec<i64> = values(inputs).chunks(10).map(|row| row[0]).collect();
        assert_eq!(firsts, [180, 185, 190]);
        let (inputs, _) = corpus.validation(1, 10, &Device::default());
        assert_eq!(values(inputs)[0], 180);
    }

    #[test]
    fn bits_per_byte_is_the_mean_loss_in_bits() {
        let device = Device::default();
        let corpus = Corpus::new((0..400).map(|byte| (byte % 256) as u8).collect());
        let model = GlaConfig::new(256, 16, 1).with_intermediate_size(Some(16)).init(&device);
        let (ids, labels) = corpus.validation(20, 12, &device);
        let nats = model.loss(model.forward(ids, None), labels).expect("labels").into_scalar::<f64>();
        let bits = corpus.bits_per_byte(&model, 20, 12, &device);
        assert!((bits - nats / LN_2).abs() < 1e-5, "{bits} {nats}");
    }

    #[test]
    fn the_shipped_text_is_split_before_twelfth_night() {
        let corpus = Corpus::shakespeare().expect("the text ships with the repository");
        assert!(corpus.held_out().starts_with(b"TWELFTH NIGHT; OR, WHAT YOU WILL\n"));
        assert_eq!(corpus.training().len(), 962_004);
        assert_eq!(corpus.held_out().len(), 114_838);
    }

    #[test]
    fn another_text_is_split_before_its_last_tenth() {
        assert_eq!(held_out_from(&[b'a'; 1000]), 900);
        // The line must come after the Sonnets, and open a line.
        assert_eq!(held_out_from(b"TWELFTH NIGHT\nTHE SONNETS\n on TWELFTH NIGHT\n"), 44 - 4);
        assert_eq!(held_out_from(b"THE SONNETS\n\nTWELFTH NIGHT\n"), 13);
    }

    #[test]
    fn files_that_cannot_be_used_say_why() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("text.txt");
        assert!(matches!(Corpus::read(&path), Err(ExampleError::Io { .. })));
        fs::write(&path, "short").expect("written");
        assert!(Corpus::read(&path).expect_err("refused").to_string().contains("5 bytes"));
    }
}
