//! Generation, token by token, from a state of its own.

use burn::config::Config;
use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit_core::sampling::Sampling;
use gatekit_core::{ConfigError, InputError};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use thiserror::Error;

use crate::lm::StreamingLm;

/// How to continue a prompt.
#[derive(Config, Debug)]
pub struct GenerateConfig {
    /// Tokens to generate at most.
    pub max_new_tokens: usize,
    /// Divides the logits: below 1 the likely tokens become likelier. 0: always the likeliest
    /// token (the first of equals), whatever the fields below say.
    #[config(default = 1.0)]
    pub temperature: f64,
    /// Draw from the `top_k` likeliest tokens only.
    pub top_k: Option<usize>,
    /// Draw from the smallest set of likeliest tokens that together have at least this
    /// probability, in (0, 1]. Applied after `top_k` (Holtzman et al. 2019, arXiv 1904.09751).
    pub top_p: Option<f64>,
    /// Seed of the draws: the same seed, model and prompt give the same tokens.
    #[config(default = 0)]
    pub seed: u64,
    /// Stop after this token; it is still handed out.
    pub eos_token_id: Option<usize>,
    /// The prompt is read in pieces of this many tokens, so that memory does not grow with it.
    #[config(default = 256)]
    pub prefill_size: usize,
}

/// A generation that cannot start.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GenerateError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The prompt, or the state.
    #[error(transparent)]
    Input(#[from] InputError),
}

/// Continues `prompt`; see [`Generation`].
///
/// The model runs without autodiff on the device it is on.
///
/// # Errors
///
/// [`GenerateError`] for an unusable configuration, an empty prompt, a token outside the
/// vocabulary, or a prompt longer than the model's longest sequence.
pub fn generate<M: StreamingLm>(
    model: &M,
    prompt: &[usize],
    config: &GenerateConfig,
) -> Result<Generation<M>, GenerateError> {
    let model = model.valid();
    let state = model.empty_state(1, &device_of(&model));
    generate_from(&model, prompt, state, config)
}

/// Continues `prompt`, which itself continues a state (of batch size 1).
///
/// # Errors
///
/// As [`generate`], and for a state that does not fit the model.
pub fn generate_from<M: StreamingLm>(
    model: &M,
    prompt: &[usize],
    state: M::State,
    config: &GenerateConfig,
) -> Result<Generation<M>, GenerateError> {
    let sampler = Sampler::new(config)?;
    if config.prefill_size == 0 {
        return Err(ConfigError::new("prefill_size", 0, "at least 1").into());
    }
    if prompt.is_empty() {
        return Err(InputError::new("prompt", "no token", "at least one token").into());
    }
    let vocab_size = model.vocab_size();
    if let Some((place, token)) = prompt.iter().enumerate().find(|(_, token)| **token >= vocab_size) {
        let got = format!("{token} at {place}");
        return Err(InputError::new("prompt", got, format!("0 .. {vocab_size}")).into());
    }
    let model = model.valid();
    model.check_state(&state, 1)?;
    model.check_room(&state, prompt.len())?;
    let device = device_of(&model);
    let mut state = state;
    let mut logits = Vec::new();
    let mut pieces = prompt.chunks(config.prefill_size).peekable();
    while let Some(piece) = pieces.next() {
        let (scores, next) = model.prefill(ids(piece, &device).unsqueeze_dim(0), state);
        state = next;
        if pieces.peek().is_none() {
            logits = to_host(scores.narrow(1, piece.len() - 1, 1).squeeze_dim::<2>(1));
        }
    }
    Ok(Generation {
        model,
        device,
        state: Some(state),
        logits,
        pending: None,
        sampler,
        left: config.max_new_tokens,
        eos_token_id: config.eos_token_id,
    })
}

/// Tokens as they are generated.
///
/// Each is computed when it is asked for. With a model whose state has a constant size, memory is
/// constant, however many tokens are drawn. An error (logits that are not finite, a sequence as
/// long as the model's learned positions reach) ends the iteration.
pub struct Generation<M: StreamingLm> {
    model: M,
    device: Device,
    /// `None` only while a step runs.
    state: Option<M::State>,
    /// Scores of the next token, unless one is pending.
    logits: Vec<f32>,
    /// The token handed out last, which the state does not know yet.
    pending: Option<usize>,
    sampler: Sampler,
    left: usize,
    eos_token_id: Option<usize>,
}

impl<M: StreamingLm> Generation<M> {
    /// The state after the prompt and every token handed out so far (but for the last one, where
    /// the model's longest sequence is reached).
    pub fn into_state(mut self) -> M::State {
        // Without room the last token stays outside.
        let _ = self.catch_up();
        self.state.expect("no step is running")
    }

    /// Feeds the token that was handed out last.
    fn catch_up(&mut self) -> Result<(), InputError> {
        let Some(token) = self.pending else { return Ok(()) };
        let state = self.state.as_ref().expect("no step is running");
        self.model.check_room(state, 1)?;
        self.pending = None;
        let state = self.state.take().expect("no step is running");
        let (scores, state) = self.model.step(ids(&[token], &self.device), state);
        self.logits = to_host(scores);
        self.state = Some(state);
        Ok(())
    }
}

impl<M: StreamingLm> Iterator for Generation<M> {
    type Item = Result<usize, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let token = self.catch_up().and_then(|()| self.sampler.sample(&self.logits));
        match &token {
            Ok(token) => self.pending = Some(*token),
            Err(_) => self.left = 0,
        }
        if token.is_ok() && self.pending == self.eos_token_id {
            self.left = 0;
        }
        Some(token)
    }
}

/// Draws tokens from logits, with random numbers of its own.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: StdRng,
}

impl Sampler {
    /// A sampler with the temperature, truncations and seed of `config`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a temperature that is negative or not finite, a `top_k` of 0, or a
    /// `top_p` outside (0, 1].
    pub fn new(config: &GenerateConfig) -> Result<Self, ConfigError> {
        let sampling = Sampling { temperature: config.temperature, top_k: config.top_k, top_p: config.top_p };
        sampling.check()?;
        Ok(Self { sampling, random: StdRng::seed_from_u64(config.seed) })
    }

    /// Draws one token.
    ///
    /// # Errors
    ///
    /// [`InputError`] when a logit is NaN or positive infinity, or none is above negative infinity
    /// (which stands for an excluded token).
    pub fn sample(&mut self, logits: &[f32]) -> Result<usize, InputError> {
        // At temperature 0 nothing is drawn.
        let draw = if self.sampling.temperature == 0.0 { 0.0 } else { self.random.random::<f64>() };
        self.sampling.pick(logits, draw)
    }
}

fn device_of<M: StreamingLm>(model: &M) -> Device {
    model.devices().into_iter().next().unwrap_or_default()
}

fn ids(tokens: &[usize], device: &Device) -> Tensor<1, Int> {
    let tokens: Vec<i64> = tokens.iter().map(|&token| token as i64).collect();
    let count = tokens.len();
    Tensor::from_data(TensorData::new(tokens, [count]), device)
}

/// The scores `[1, vocab_size]` on the host.
fn to_host(scores: Tensor<2>) -> Vec<f32> {
    scores.into_data().iter::<f32>().collect()
}
