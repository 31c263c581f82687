//! Prompts and answers as token tensors.

use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit_core::InputError;

/// Prompts with their answers, padded right with 0 to the longest of them.
#[derive(Debug, Clone)]
pub struct CaptionBatch {
    /// `[B, T]`: prompt, answer, padding.
    pub tokens: Tensor<2, Int>,
    /// `[B, T]`: the answer where it stands in `tokens`, 0 elsewhere.
    pub labels: Tensor<2, Int>,
}

impl CaptionBatch {
    /// Pairs of a prompt and an answer (with the token that ends it), each cut behind `max_tokens` (96 in pre-training,
    /// 512 in fine-tuning).
    ///
    /// # Errors
    ///
    /// [`InputError`] for no pair, a pair without a prompt (nothing would predict its answer's first token), or a length
    /// that leaves no room for an answer's token.
    pub fn new(
        pairs: &[(Vec<usize>, Vec<usize>)],
        max_tokens: usize,
        device: &Device,
    ) -> Result<Self, InputError> {
        if pairs.is_empty() {
            return Err(InputError::new("pairs", "none", "at least one"));
        }
        if max_tokens < 2 {
            return Err(InputError::new("max_tokens", max_tokens, "at least 2"));
        }
        if let Some(row) = pairs.iter().position(|(prompt, _)| prompt.is_empty()) {
            return Err(InputError::new("pairs", format!("no prompt in row {row}"), "at least one token"));
        }
        let length = |(prompt, answer): &(Vec<usize>, Vec<usize>)| prompt.len() + answer.len();
        let time = pairs.iter().map(length).max().unwrap_or_default().min(max_tokens);
        let (mut tokens, mut labels) = (Vec::new(), Vec::new());
        for (prompt, answer) in pairs {
            let padding = std::iter::repeat(&0);
            let row = prompt.iter().chain(answer).chain(padding.clone()).take(time);
            tokens.extend(row.map(|token| *token as i64));
            let hidden = std::iter::repeat_n(&0, prompt.len());
            labels.extend(hidden.chain(answer).chain(padding).take(time).map(|token| *token as i64));
        }
        let tensor =
            |values: Vec<i64>| Tensor::from_data(TensorData::new(values, [pairs.len(), time]), device);
        Ok(Self { tokens: tensor(tokens), labels: tensor(labels) })
    }
}
