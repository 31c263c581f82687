//! From the text of a note to its vector.

use std::collections::{BTreeSet, HashMap};

use burn::config::Config;
use burn::module::{Module, ModuleDisplay};
use burn::nn::{Embedding, EmbeddingConfig};
use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};
use gatekit_core::{ConfigError, InputError, ModuleConfig, check_sizes};

/// Makes one vector of a note: a clinical language model, or, in the small, a [`BagOfWords`].
///
/// It is a module, so that it can be trained with the model that reads its vectors.
pub trait NoteEncoder: Module + ModuleDisplay {
    /// Channels of a vector.
    fn note_dim(&self) -> usize;

    /// The vectors of N notes, `[N, note_dim]`, on the encoder's device, with a gradient on its autodiff form.
    ///
    /// # Errors
    ///
    /// [`InputError`] names a note that cannot be read.
    fn encode(&self, notes: &[&str]) -> Result<Tensor<2>, InputError>;
}

/// Configuration of [`BagOfWords`].
#[derive(Config, Debug)]
pub struct BagOfWordsConfig {
    /// The words it knows, lower case, each once.
    pub vocabulary: Vec<String>,
    /// Channels of a note's vector.
    pub note_dim: usize,
}

impl ModuleConfig for BagOfWordsConfig {
    type Module = BagOfWords;

    fn try_init(&self, device: &Device) -> Result<BagOfWords, ConfigError> {
        check_sizes(&[("vocabulary", self.vocabulary.len()), ("note_dim", self.note_dim)])?;
        let distinct: BTreeSet<&String> = self.vocabulary.iter().collect();
        if distinct.len() < self.vocabulary.len() {
            let got = format!("{} words, {} of them distinct", self.vocabulary.len(), distinct.len());
            return Err(ConfigError::new("vocabulary", got, "each word once"));
        }
        Ok(BagOfWords {
            words: EmbeddingConfig::new(self.vocabulary.len(), self.note_dim).init(device),
            vocabulary: self.vocabulary.iter().cloned().zip(0..).collect(),
        })
    }
}

/// The mean of the vectors of a note's words; unknown words are passed over, a note of none but them is 0.
///
/// Words are what white space and punctuation divide, in lower case. Vectors start normal(0, 1).
#[derive(Module, Debug)]
pub struct BagOfWords {
    /// A vector a word, `[vocabulary, note_dim]`.
    pub words: Embedding,
    #[module(skip)]
    vocabulary: HashMap<String, i64>,
}

impl NoteEncoder for BagOfWords {
    fn note_dim(&self) -> usize {
        self.words.weight.dims()[1]
    }

    fn encode(&self, notes: &[&str]) -> Result<Tensor<2>, InputError> {
        let table = self.words.weight.val();
        let (mut words, mut owners, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        for (note, text) in notes.iter().enumerate() {
            let known: Vec<i64> = (text.split(|c: char| !c.is_alphanumeric()))
                .filter_map(|word| self.vocabulary.get(&word.to_lowercase()).copied())
                .collect();
            owners.extend(vec![note as i64; known.len()]);
            shares.extend(vec![1.0 / known.len() as f64; known.len()]);
            words.extend(known);
        }
        let (count, device) = (words.len(), table.device());
        let vectors = Tensor::zeros([notes.len(), self.note_dim()], (&device, table.dtype()));
        if count == 0 {
            return Ok(vectors);
        }
        let ids = |ids: Vec<i64>| Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), &device);
        let shares = Tensor::<2>::from_data(TensorData::new(shares, [count, 1]), (&device, table.dtype()));
        let rows = table.select(0, ids(words)) * shares;
        Ok(vectors.select_assign(0, ids(owners), rows, IndexingUpdateOp::Add))
    }
}
