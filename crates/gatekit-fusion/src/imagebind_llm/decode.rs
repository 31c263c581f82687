//! Decoding with a key/value cache.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use gatekit_core::attention::KvCache;
use gatekit_core::sampling::Sampling;
use gatekit_core::{ConfigError, InputError};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use thiserror::Error;

use super::model::ImageBindLlm;

/// Keys and values of the tokens so far, and what each layer adds: the state of a conversation.
#[derive(Debug, Clone)]
pub struct DecodingState {
    caches: Vec<KvCache>,
    injected: Vec<Option<Tensor<4>>>,
}

impl DecodingState {
    /// Tokens seen.
    pub fn position(&self) -> usize {
        self.caches.first().map_or(0, |cache| cache.position)
    }

    /// Rows.
    pub fn batch(&self) -> usize {
        self.caches.first().map_or(0, |cache| cache.keys.dims()[0])
    }
}

/// How to continue prompts. The defaults are the paper's.
#[derive(Config, Debug)]
pub struct GenerationConfig {
    /// Tokens to generate at most, a row. Default 256.
    #[config(default = 256)]
    pub max_new_tokens: usize,
    /// Divides the logits; 0: always the likeliest token. Default 0.1.
    #[config(default = 0.1)]
    pub temperature: f64,
    /// Probability of the nucleus that is drawn from, in (0, 1]. Default 0.75.
    #[config(default = 0.75)]
    pub top_p: f64,
    /// Seed of the draws. Default 0.
    #[config(default = 0)]
    pub seed: u64,
    /// Ends a row and is not handed out; 2 for LLaMA. Default none.
    pub eos_token_id: Option<usize>,
}

/// A generation that cannot start, or go on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GenerationError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A prompt, the visual vectors, or scores that are not finite.
    #[error(transparent)]
    Input(#[from] InputError),
}

impl ImageBindLlm {
    /// As [`forward`](Self::forward), with the state from which [`extend`](Self::extend) goes on.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward).
    pub fn prefill(
        &self,
        tokens: Tensor<2, Int>,
        visual: Option<Tensor<3>>,
    ) -> Result<(Tensor<3>, DecodingState), InputError> {
        self.check_tokens(&tokens)?;
        let injected = self.injections(visual, tokens.dims()[0])?;
        let (hidden, caches) = self.hidden(tokens, &injected, None);
        Ok((self.scores(hidden), DecodingState { caches, injected }))
    }

    /// Scores `[B, T, vocab]` of further `tokens` `[B, T]`, and the state after them. In any division of a sequence the
    /// scores are those of [`forward`](Self::forward): the injected term does not depend on the position.
    ///
    /// # Errors
    ///
    /// [`InputError`] for tokens outside the vocabulary or none at all, or of another batch than the state.
    pub fn extend(
        &self,
        tokens: Tensor<2, Int>,
        state: DecodingState,
    ) -> Result<(Tensor<3>, DecodingState), InputError> {
        self.check_tokens(&tokens)?;
        if tokens.dims()[0] != state.batch() {
            let got = format!("{} rows", tokens.dims()[0]);
            return Err(InputError::new("tokens", got, format!("{}, those of the state", state.batch())));
        }
        let (hidden, caches) = self.hidden(tokens, &state.injected, Some(state.caches));
        Ok((self.scores(hidden), DecodingState { caches, injected: state.injected }))
    }

    /// Continues prompts of any lengths, one visual vector `[B, 1, D]` a row (or none): what follows each prompt, without
    /// the token that ends it.
    ///
    /// Rows are read together up to the shortest prompt's end; where a longer prompt goes on, its token takes the place of
    /// a drawn one. The model runs without autodiff.
    ///
    /// # Errors
    ///
    /// [`GenerationError`] for an unusable configuration, no prompt or an empty one, a token outside the vocabulary, a
    /// visual of another shape, and scores that are not finite.
    pub fn generate(
        &self,
        prompts: &[Vec<usize>],
        visual: Option<Tensor<3>>,
        config: &GenerationConfig,
    ) -> Result<Vec<Vec<usize>>, GenerationError> {
        let sampling = Sampling::new().with_temperature(config.temperature).with_top_p(Some(config.top_p));
        sampling.check()?;
        self.check_prompts(prompts)?;
        let model = self.valid();
        let device = model.llama.output.weight.val().device();
        let mut random = StdRng::seed_from_u64(config.seed);

        let shortest = prompts.iter().map(Vec::len).min().unwrap_or_default();
        let mut rows: Vec<Row> = prompts.iter().map(|prompt| Row::new(&prompt[shortest..], config)).collect();
        let mut tokens: Vec<usize> = prompts.iter().flat_map(|prompt| &prompt[..shortest]).copied().collect();
        let injected = model.injections(visual.map(Tensor::without_autodiff), prompts.len())?;
        let mut caches = None;
        while rows.iter().any(|row| !row.is_finished) {
            let time = tokens.len() / rows.len();
            let ids = tokens.iter().map(|token| *token as i64).collect::<Vec<_>>();
            let ids = Tensor::from_data(TensorData::new(ids, [rows.len(), time]), &device);
            let (hidden, kept) = model.hidden(ids, &injected, caches.take());
            caches = Some(kept);
            let scores = model.scores(hidden.narrow(1, time - 1, 1));
            let scores: Vec<f32> = scores.into_data().iter::<f32>().collect();
            let scores = scores.chunks(model.vocab());
            tokens = (rows.iter_mut().zip(scores))
                .map(|(row, scores)| {
                    row.next(scores, &mut |scores| sampling.pick(scores, random.random::<f64>()))
                })
                .collect::<Result<_, _>>()?;
        }
        Ok(rows.into_iter().map(|row| row.generated).collect())
    }

    fn check_prompts(&self, prompts: &[Vec<usize>]) -> Result<(), InputError> {
        if prompts.is_empty() {
            return Err(InputError::new("prompts", "none", "at least one"));
        }
        for (row, prompt) in prompts.iter().enumerate() {
            if prompt.is_empty() {
                return Err(InputError::new(
                    "prompts",
                    format!("no token in row {row}"),
                    "at least one token",
                ));
            }
            if let Some(place) = prompt.iter().position(|token| *token >= self.vocab()) {
                let got = format!("{} at [{row}, {place}]", prompt[place]);
                return Err(InputError::new("prompts", got, format!("0 .. {}", self.vocab())));
            }
        }
        Ok(())
    }
}

/// A row of a generation.
struct Row {
    /// What of the prompt is left to be read, last token first.
    prompt_left: Vec<usize>,
    generated: Vec<usize>,
    is_finished: bool,
    most: usize,
    eos: Option<usize>,
}

impl Row {
    fn new(prompt: &[usize], config: &GenerationConfig) -> Self {
        let prompt_left = prompt.iter().rev().copied().collect();
        let most = config.max_new_tokens;
        Self { prompt_left, generated: Vec::new(), is_finished: most == 0, most, eos: config.eos_token_id }
    }

    /// The token to be read next: of the prompt, drawn, or padding behind the end.
    fn next(
        &mut self,
        scores: &[f32],
        draw: &mut impl FnMut(&[f32]) -> Result<usize, InputError>,
    ) -> Result<usize, InputError> {
        if let Some(token) = self.prompt_left.pop() {
            return Ok(token);
        }
        if self.is_finished {
            return Ok(0);
        }
        let token = draw(scores)?;
        self.is_finished = Some(token) == self.eos;
        if !self.is_finished {
            self.generated.push(token);
            self.is_finished = self.generated.len() == self.most;
        }
        Ok(token)
    }
}
