//! The language model.

use burn::module::Module;
use burn::nn::{Embedding, Linear};
use burn::tensor::{Bool, Device, Int, Tensor};
use gatekit_core::scan::ScanForm;
use gatekit_core::simple_rms_norm::SimpleRmsNorm;
use gatekit_core::{InputError, init};

use super::config::TransNormerConfig;
use super::layer::TransNormerLayer;
use super::state::NormLinearAttentionState;
use crate::backbone::{ModelState, padding};
use crate::lm::{CausalLm, IGNORED_LABEL, StreamingLm, Targets, expect_tokens};

/// The streaming state of a [`TransNormerLlm`], of constant size: one state a layer.
pub type TransNormerState = ModelState<NormLinearAttentionState>;

/// Embeddings, layers and the final norm: everything but the head.
#[derive(Module, Debug)]
pub struct TransNormerModel {
    /// Token embeddings `[vocab_size, D]`.
    pub embed_tokens: Embedding,
    /// The layers, first to last.
    pub layers: Vec<TransNormerLayer>,
    /// The norm after the last layer; it has no parameters.
    pub final_norm: SimpleRmsNorm,
}

/// TransNormerLLM.
///
/// ```text
/// x = sqrt(D) E[ids]
/// x = x + mixer(SRMSNorm(x));   x = x + SGLU(SRMSNorm(x))      (per layer)
/// logits = W_head SRMSNorm(x)
/// ```
///
/// Weights start as normal(0, 0.02), biases at 0. Trained with the next-token cross entropy alone;
/// the paper's optimiser is AdamW with betas (0.9, 0.95) and weight decay 0.1, warmup and a cosine
/// schedule. What a mask does to padded tokens is said at the [module](super). Qin et al. (arXiv
/// 2307.14995).
#[derive(Module, Debug)]
pub struct TransNormerLlm {
    /// Everything but the head.
    pub model: TransNormerModel,
    /// The head, `D -> vocab_size`, not tied to the embeddings.
    pub lm_head: Linear,
    embed_scale: f64,
}

impl TransNormerLlm {
    /// `config` is checked and has made the layers.
    pub(super) fn new(config: &TransNormerConfig, layers: Vec<TransNormerLayer>, device: &Device) -> Self {
        let (vocab_size, width) = (config.vocab_size, config.embed_dim);
        Self {
            model: TransNormerModel {
                embed_tokens: init::embedding(vocab_size, width, device),
                layers,
                final_norm: SimpleRmsNorm { eps: config.norm_eps },
            },
            lm_head: init::linear(width, vocab_size, false, device),
            embed_scale: if config.no_scale_embedding { 1.0 } else { (width as f64).sqrt() },
        }
    }

    /// Continues by several tokens of which some are padding; see the [module](super) on what that
    /// does to the state.
    ///
    /// # Shapes
    ///
    /// - `input_ids`, `attention_mask` (`true` for real tokens): `[batch, time]`
    /// - output: `[batch, time, vocab_size]` and the state after the last step
    ///
    /// # Panics
    ///
    /// As [`forward`](CausalLm::forward) and [`prefill`](StreamingLm::prefill).
    pub fn prefill_padded(
        &self,
        input_ids: Tensor<2, Int>,
        attention_mask: Tensor<2, Bool>,
        state: TransNormerState,
    ) -> (Tensor<3>, TransNormerState) {
        let padded = padding(&attention_mask, input_ids.dims()).is_some();
        self.run(input_ids, padded.then_some(attention_mask), Some(state))
    }

    /// The same model with another form of the scan in every layer; see [`ScanForm`].
    pub fn with_scan_form(mut self, form: ScanForm) -> Self {
        for layer in &mut self.model.layers {
            layer.token_mixer = layer.token_mixer.clone().with_scan_form(form);
        }
        self
    }

    /// Scaled embeddings.
    fn embed(&self, input_ids: Tensor<2, Int>) -> Tensor<3> {
        expect_tokens(self, &input_ids);
        self.model.embed_tokens.forward(input_ids).mul_scalar(self.embed_scale)
    }

    fn logits<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.lm_head.forward(self.model.final_norm.forward(x))
    }

    fn run(
        &self,
        input_ids: Tensor<2, Int>,
        mask: Option<Tensor<2, Bool>>,
        state: Option<TransNormerState>,
    ) -> (Tensor<3>, TransNormerState) {
        let x = self.embed(input_ids);
        let (x, state) =
            self.through_layers(x, state, |layer, x, state| layer.forward_with_state(x, mask.clone(), state));
        (self.logits(x), state)
    }

    /// Runs the layers one after the other, each with its part of the state.
    fn through_layers<const D: usize>(
        &self,
        mut x: Tensor<D>,
        state: Option<TransNormerState>,
        run: impl Fn(
            &TransNormerLayer,
            Tensor<D>,
            Option<NormLinearAttentionState>,
        ) -> (Tensor<D>, NormLinearAttentionState),
    ) -> (Tensor<D>, TransNormerState) {
        if let Some(state) = &state {
            self.check_state(state, x.dims()[0]).unwrap_or_else(|error| panic!("{error}"));
        }
        let mut states = state.map(|state| state.layers.into_iter());
        let mut layers = Vec::with_capacity(self.model.layers.len());
        for layer in &self.model.layers {
            let state = states.as_mut().and_then(Iterator::next);
            let (next, state) = run(layer, x, state);
            x = next;
            layers.push(state);
        }
        (x, ModelState { layers })
    }
}

impl CausalLm for TransNormerLlm {
    fn forward(&self, input_ids: Tensor<2, Int>, attention_mask: Option<Tensor<2, Bool>>) -> Tensor<3> {
        let dims = input_ids.dims();
        let mask = attention_mask.filter(|mask| padding(mask, dims).is_some());
        self.run(input_ids, mask, None).0
    }

    fn vocab_size(&self) -> usize {
        self.model.embed_tokens.weight.lazy_shape()[0]
    }

    /// Mean next-token cross entropy as in the trait, but 0 where every label is ignored.
    ///
    /// # Errors
    ///
    /// [`InputError`] for a label that is neither -100 nor a token.
    fn loss(&self, logits: Tensor<3>, labels: Tensor<2, Int>) -> Result<Tensor<1>, InputError> {
        let [_, time] = labels.dims();
        let labels = labels.to_data();
        let counts = |(index, label): (usize, i64)| index % time > 0 && label != IGNORED_LABEL;
        if !labels.iter::<i64>().enumerate().any(counts) {
            // A part of the graph, so that a training loop can go on.
            let first = logits.slice([0..1, 0..1, 0..1]).reshape([1]);
            return Ok(first.mul_scalar(0.0));
        }
        Ok(Targets::new(&labels, self.vocab_size(), &logits.device())?.cross_entropy(logits))
    }
}

impl StreamingLm for TransNormerLlm {
    type State = TransNormerState;

    fn empty_state(&self, batch: usize, device: &Device) -> TransNormerState {
        let empty = |layer: &TransNormerLayer| layer.token_mixer.empty_state(batch, device);
        ModelState { layers: self.model.layers.iter().map(empty).collect() }
    }

    fn check_state(&self, state: &TransNormerState, batch: usize) -> Result<(), InputError> {
        let need = self.model.layers.len();
        if state.layers.len() != need {
            let got = format!("{} layers", state.layers.len());
            return Err(InputError::new("state", got, format!("{need} layers")));
        }
        for (index, (layer, state)) in self.model.layers.iter().zip(&state.layers).enumerate() {
            layer.token_mixer.check_state(state, batch).map_err(|error| {
                InputError::new(format!("state.layers.{index}.{}", error.field), error.got, error.need)
            })?;
        }
        Ok(())
    }

    fn prefill(&self, input_ids: Tensor<2, Int>, state: TransNormerState) -> (Tensor<3>, TransNormerState) {
        self.run(input_ids, None, Some(state))
    }

    fn step(&self, token: Tensor<1, Int>, state: TransNormerState) -> (Tensor<2>, TransNormerState) {
        let x = self.embed(token.unsqueeze_dim(1)).squeeze_dim::<2>(1);
        let (x, state) = self.through_layers(x, Some(state), |layer, x, state| {
            layer.step(x, state.expect("every layer has a state"))
        });
        (self.logits(x), state)
    }
}
